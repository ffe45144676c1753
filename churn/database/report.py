"""Reads the rows of the report, as the reader role in one snapshot: a few statements for all variants.

:mod:`churn.report.content` turns the rows into what the page shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import sqlalchemy as sa

from churn.database.connection import open_snapshot, read_queries
from churn.errors import UsageError

Row = Mapping[str, Any]

WEEKS_SHOWN = 26
_RESOLVED_FOR = timedelta(days=14)

_WEEKS = "SELECT scored_week FROM scoring_attempts UNION SELECT scored_week FROM scoring_batches ORDER BY 1 DESC"
_QUERIES = read_queries("report")  # by the attribute of FleetRows


@dataclass(frozen=True)
class FleetRows:
    """The rows of one report."""

    week: date | None  # the reported week; `None` if nothing was ever scored
    weeks: Sequence[date] = ()  # the weeks shown, ascending; the last is `week`
    batches: Sequence[Row] = ()  # current ones of these weeks, both roles, with the results of their evaluation, if any
    newest: Sequence[Row] = ()  # the champion's newest batch of each variant, with all columns
    evaluated: Sequence[Row] = ()  # the champion's newest batch of each variant that had enough labels to be evaluated
    segments: Sequence[Row] = ()  # the segments of the batches in `evaluated`
    flags: Sequence[Row] = ()  # drift flags of these weeks
    attempts: Sequence[Row] = ()  # the last attempt of each variant and role in `week`
    champions: Sequence[Row] = ()  # each variant's champion and challenger when `week` ends, and the former's first day
    registered: Sequence[Row] = ()  # the variants that were registered by the end of `week`, scored or not
    changes: Sequence[Row] = ()  # promotions and rollbacks in these weeks, newest first
    incidents: Sequence[Row] = ()  # open incidents, then recently resolved ones
    campaigns: Sequence[Row] = ()  # open campaigns, then those closed in these weeks


def read_fleet(url: sa.URL, week: date | None, now: datetime) -> FleetRows:
    """Read the rows of the report on a week, by its Monday; ``None`` is the newest week with an attempt.

    Raises:
        UsageError: If ``week`` has neither a batch nor an attempt; names the newest week.
        ChurnError: If the database cannot be read.
    """
    with open_snapshot(url) as connection:
        known = list(connection.scalars(sa.text(_WEEKS)))
        if week is not None and week not in known:
            remedy = f"the newest week is {known[0]}" if known else "nothing was scored yet; run churn score"
            raise UsageError(f"the week of {week} has no batch and no attempt; {remedy}")
        values: dict[str, object] = {"resolved_since": now - _RESOLVED_FOR}
        if not known:
            return FleetRows(None, incidents=_rows(connection, _QUERIES["incidents"], values))
        reported = week or known[0]
        shown = sorted(one for one in known if reported - timedelta(weeks=WEEKS_SHOWN) < one <= reported)
        end = datetime.combine(reported, time(), UTC) + timedelta(weeks=1)
        values |= {"week": reported, "first": shown[0], "end": end}
        return FleetRows(reported, shown, **{name: _rows(connection, one, values) for name, one in _QUERIES.items()})


def _rows(connection: sa.Connection, query: str, values: Mapping[str, object]) -> list[Row]:
    return [dict(row) for row in connection.execute(sa.text(query), values).mappings()]
