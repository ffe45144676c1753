"""Alembic migrations of the predictions database; each runs a file of SQL."""

from collections.abc import Callable
from pathlib import Path

from alembic import op


def by_sql(name: str) -> Callable[[], None]:
    """Return the upgrade that runs a file of this folder."""

    def upgrade() -> None:
        statements = (Path(__file__).parent / name).read_text(encoding="utf-8")
        op.get_bind().exec_driver_sql(statements.replace("%", "%%"))

    return upgrade
