"""The writer adds batches, and changes what is published, recorded or reported only through functions of the owner."""

from pathlib import Path

from alembic import op

revision = "0026"
down_revision = "0025"


def upgrade() -> None:
    """Replace the writer's rights to insert and update by functions, which set the time and the login."""
    statements = (Path(__file__).parents[1] / "roles_that_cannot_forge.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(statements.replace("%", "%%"))
