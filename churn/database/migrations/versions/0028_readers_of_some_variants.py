"""Readers that are bound to variants: grants by login, and views that show no other variant."""

from pathlib import Path

from alembic import op

revision = "0028"
down_revision = "0021"


def upgrade() -> None:
    """Add the table of grants and the views of own predictions."""
    statements = (Path(__file__).parents[1] / "readers_of_some_variants.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(statements.replace("%", "%%"))
