"""The schema of release 0.9.0, as pg_dump writes it; nothing older is migrated."""

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create all tables, views, functions and grants of that release."""
    statements = (Path(__file__).parents[1] / "release_0_9_0.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(statements.replace("%", "%%"))
