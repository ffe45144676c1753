"""Retention by a login that owns nothing: how many weeks are kept is recorded by set-up."""

from pathlib import Path

from alembic import op

revision = "0029"
down_revision = "0028"


def upgrade() -> None:
    """Add the record and the function that keeps to it."""
    statements = (Path(__file__).parents[1] / "retention_by_the_job.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(statements.replace("%", "%%"))
