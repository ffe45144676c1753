"""Weeks are opened and dropped with short or weak locks."""

from pathlib import Path

from alembic import op

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    """Replace the functions that open, index and drop weeks."""
    statements = (Path(__file__).parents[1] / "weeks_without_waiting.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(statements.replace("%", "%%"))
