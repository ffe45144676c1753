"""Reads the state of the fleet for Prometheus: a few statements over all variants, in one snapshot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import sqlalchemy as sa

from churn.database.connection import open_snapshot, read_queries

_STATEMENT_TIMEOUT, _ANSWER_WITHIN_S = "5s", 6.0  # Prometheus allows 10 s for a scrape
EXPECTED_DAYS = 3 * 7

_SQL = read_queries("metrics")
STATES, _BATCHES, _EVALUATED, _FLAGS = (
    f"{_SQL['expected']}\n{_SQL[name]}" for name in ("states", "batches", "evaluated", "flags")
)
"""The first: the number of variants in each state of ``:week``; infra/make_alert_rules.py uses it for Grafana, too."""

Row = sa.Row[Any]


@dataclass(frozen=True)
class FleetMetrics:
    """The state of the fleet in one week.

    Attributes:
        n_by_state: The number of expected variants that are published, failed and missing.
        last_published_s: The newest publication, seconds since the epoch; ``None`` before the first.
        batches: Each variant's newest current batch; times in seconds, ``week`` since the epoch.
        evaluated: Each variant's newest batch with enough labels; ``week`` in seconds since the epoch.
        flags: Features, and the score, that drifted in each variant's newest batch.
        n_incidents: Open incidents by kind and severity.
        n_undelivered: Alerts not delivered to their receiver yet.
        oldest_undelivered_s: Age of the oldest of these alerts, seconds; 0 if there is none.
    """

    n_by_state: Mapping[str, int]
    last_published_s: float | None
    batches: Sequence[Row]
    evaluated: Sequence[Row]
    flags: Sequence[Row]
    n_incidents: Mapping[tuple[str, str], int]
    n_undelivered: int
    oldest_undelivered_s: float


def read_metrics(url: sa.URL, week: date) -> FleetMetrics:
    """Read the fleet in the week that begins on a Monday; raises ``ChurnError`` if that takes longer than a scrape."""
    with open_snapshot(url, answer_within_s=_ANSWER_WITHIN_S) as connection:
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{_STATEMENT_TIMEOUT}'")

        def rows(statement: str) -> Sequence[Row]:
            values = {"week": week, "days": EXPECTED_DAYS} if ":week" in statement else {}
            return connection.execute(sa.text(statement), values).all()

        ((published,),), ((n_undelivered, oldest),) = rows(_SQL["published"]), rows(_SQL["alerts"])
        return FleetMetrics(
            n_by_state=dict(map(tuple, rows(STATES))),
            last_published_s=published,
            batches=rows(_BATCHES),
            evaluated=rows(_EVALUATED),
            flags=rows(_FLAGS),
            n_incidents={(kind, severity): n for kind, severity, n in rows(_SQL["incidents"])},
            n_undelivered=n_undelivered,
            oldest_undelivered_s=oldest,
        )
