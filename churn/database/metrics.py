"""Reads the state of the fleet for Prometheus: a few statements over all variants, in one snapshot."""

from collections.abc import Sequence
from datetime import date
from typing import Any

import sqlalchemy as sa

from churn.database.connection import open_snapshot, read_queries

_STATEMENT_TIMEOUT, _ANSWER_WITHIN_S = "5s", 6.0  # Prometheus allows 10 s for a scrape
EXPECTED_DAYS = 3 * 7

Row = sa.Row[Any]

QUERIES = read_queries("metrics")
EXPECTED = QUERIES.pop("expected")
QUERIES |= {name: f"{EXPECTED}\n{QUERIES[name]}" for name in ("states", "batches", "evaluated", "flags")}
"""Of ``states``, the number of variants in each state of ``:week``, infra/make_alert_rules.py makes Grafana's, too."""


def read_metrics(url: sa.URL, week: date) -> dict[str, Sequence[Row]]:
    """Read the state of the fleet in the week that begins on a Monday: the rows of each of ``QUERIES``.

    ``batches``, ``evaluated`` and ``flags`` are of each variant's newest batch, and newest one with enough labels;
    ``states`` counts the expected variants, ``alerts`` those not delivered yet. Times are seconds, dates since the
    epoch. Raises ``ChurnError`` if all that takes longer than a scrape.
    """
    values = {"week": week, "days": EXPECTED_DAYS}
    with open_snapshot(url, answer_within_s=_ANSWER_WITHIN_S) as connection:
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{_STATEMENT_TIMEOUT}'")
        return {name: connection.execute(sa.text(query), values).all() for name, query in QUERIES.items()}
