"""Account ids that are text: a column for them beside the number, and the number of a text."""

from pathlib import Path

from alembic import op

revision = "0021"
down_revision = "0027"


def upgrade() -> None:
    """Add the columns and the function, and extend the views and erasure; all rows are kept."""
    statements = (Path(__file__).parents[1] / "text_ids.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(statements.replace("%", "%%"))
