"""Reads what ``churn status`` shows: the week's variants, open incidents, and the last ticks of sensors and schedules.

Dagster's ticks are read from its tables: to open its instance takes seconds.
"""

from collections.abc import Sequence
from datetime import date
from typing import Any

import sqlalchemy as sa

from churn.database.connection import create_engine, errors_translated, open_snapshot, read_queries
from churn.database.metrics import EXPECTED, EXPECTED_DAYS

_SQL = read_queries("status")
Rows = list[dict[str, Any]]


def read_variants_and_incidents(url: sa.URL, week: date) -> tuple[Rows, Rows]:
    """Return the variants that are expected in the week that begins on a Monday, and the open incidents."""
    values = {"week": week, "days": EXPECTED_DAYS}
    with open_snapshot(url) as connection:
        variants = connection.execute(sa.text(f"{EXPECTED}\n{_SQL['variants']}"), values).all()
        return _plain(variants), _plain(connection.execute(sa.text(_SQL["incidents"])).all())


def read_ticks(url: sa.URL) -> Rows:
    """Return the last tick of each sensor and schedule that Dagster's daemon has ever started."""
    with errors_translated(url), create_engine(url).connect() as connection:
        return _plain(connection.execute(sa.text(_SQL["ticks"])).all())


def _plain(rows: Sequence[sa.Row[Any]]) -> Rows:
    return [row._asdict() for row in rows]
