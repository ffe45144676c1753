"""Reads what ``churn status`` shows: the week's variants, open incidents, and the last ticks of sensors and schedules.

Dagster's ticks are read from its tables: to open its instance takes seconds.
"""

from datetime import date
from typing import Any

import sqlalchemy as sa

from churn.database.connection import create_engine, errors_translated, open_snapshot, read_queries
from churn.database.metrics import EXPECTED, EXPECTED_DAYS

_SQL = read_queries("status")
Rows = list[dict[str, Any]]


def read_variants_and_incidents(url: sa.URL, week: date) -> tuple[Rows, Rows]:
    """Return the variants that are expected in the week that begins on a Monday, and the open incidents."""
    with open_snapshot(url) as connection:
        variants = _rows(connection, f"{EXPECTED}\n{_SQL['variants']}", week=week, days=EXPECTED_DAYS)
        return variants, _rows(connection, _SQL["incidents"])


def read_ticks(url: sa.URL) -> Rows:
    """Return the last tick of each sensor and schedule that Dagster's daemon has ever started."""
    with errors_translated(url), create_engine(url).connect() as connection:
        return _rows(connection, _SQL["ticks"])


def _rows(connection: sa.Connection, query: str, **values: object) -> Rows:
    return [dict(row) for row in connection.execute(sa.text(query), values).mappings()]
