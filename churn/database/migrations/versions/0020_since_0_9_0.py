"""The schema of the next release, from that of 0.9.0; the commits between had others, which are not migrated."""

from pathlib import Path

from alembic import op

revision = "0020"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add tables, columns and functions, and replace the views; all rows are kept."""
    statements = (Path(__file__).parents[1] / "since_0_9_0.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(statements.replace("%", "%%"))
