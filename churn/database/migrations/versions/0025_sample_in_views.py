"""The flag of the encoded sample in the views of predictions."""

from pathlib import Path

from alembic import op

revision = "0025"
down_revision = "0020"


def upgrade() -> None:
    """Add the column to the three views."""
    statements = (Path(__file__).parents[1] / "sample_in_views.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(statements.replace("%", "%%"))
