"""What must hold after a fault and its retry, and what a reader must have seen all the while."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from typing import Any

import sqlalchemy as sa

from churn.variants import Variant
from tests.support.faults.house import House, Input, week_of

_CURRENT = """
SELECT v.account_id, v.churn_probability, v.is_fallback, b.source_sha256, b.dagster_run_id
FROM churn_predictions_current AS v JOIN scoring_batches AS b ON b.batch_id = v.batch_id
WHERE v.variant = :variant AND v.scored_week = :week
"""
_SEEN = """
SELECT v.variant, v.scored_week, v.batch_id, b.source_sha256, count(*), count(DISTINCT v.account_id),
       sum(v.churn_probability::float8)
FROM churn_predictions_current AS v JOIN scoring_batches AS b ON b.batch_id = v.batch_id
WHERE v.scored_week = :week GROUP BY 1, 2, 3, 4
"""
_NAIVE_SEEN = """
SELECT variant, count(*), count(DISTINCT account_id) FROM naive_predictions WHERE scored_week = :week GROUP BY 1
"""
_HALF = """
SELECT count(*) FROM scoring_batches AS b WHERE scored_week = :week AND n_rows_scored <> (
    SELECT count(*) FROM churn_predictions AS p WHERE p.scored_week = b.scored_week AND p.batch_id = b.batch_id)
"""
_ORPHANS = """
SELECT count(*) FROM churn_predictions AS p WHERE scored_week = :week AND NOT EXISTS (
    SELECT FROM scoring_batches AS b WHERE b.batch_id = p.batch_id)
"""


@dataclass
class Tally:
    """What a fault did, over all the times it was made.

    Attributes:
        n: How often the fault was really made.
        lost, doubled, wrong: Rows.
        torn: Readings that saw half a batch, two, or none where there had been one.
        stale: Weeks whose scores are of old input and do not say so.
        broken: Batches that are recorded and not whole, or rows of no batch.
        outcomes: What became of the runs that met the fault, in words.
    """

    n: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    torn: int = 0
    stale: int = 0
    broken: int = 0
    readings: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def harm(self) -> dict[str, int]:
        """Everything that is not zero and ought to be."""
        names = ("lost", "doubled", "wrong", "torn", "stale", "broken")
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    def add(self, other: "Tally") -> None:
        for name in ("n", "lost", "doubled", "wrong", "torn", "stale", "broken", "readings"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.outcomes += other.outcomes

    def count(self, rows: Mapping[int, list[float]], expected: Mapping[int, float]) -> None:
        """Compare the rows of a week, by account, with the scores there must be."""
        self.lost += len(set(expected) - set(rows))
        self.doubled += sum(len(found) - 1 for found in rows.values())
        self.wrong += len(set(rows) - set(expected))
        self.wrong += sum(
            abs(rows[account][0] - score) > 1e-6 for account, score in expected.items() if account in rows
        )


def engine_of(url: sa.URL) -> sa.Engine:
    return sa.create_engine(url, poolclass=sa.NullPool, connect_args={"connect_timeout": 5})


@cache
def _kept_engine(url: sa.URL) -> sa.Engine:
    return sa.create_engine(url, pool_pre_ping=True, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 5})


def execute(url: sa.URL, statement: str, **values: object) -> list[Any]:
    """Run a statement as the superuser, at once committed; waits while the server recovers."""
    for left in range(100, -1, -1):
        try:
            return _execute(url, statement, values)
        except sa.exc.OperationalError:
            if not left:
                raise
            time.sleep(0.1)
    raise AssertionError


def _execute(url: sa.URL, statement: str, values: Mapping[str, object]) -> list[Any]:
    with _kept_engine(url).connect() as connection:
        result = connection.execute(sa.text(statement), values)
        return list(result) if result.returns_rows else []


def judge(house: House, tally: Tally, variant: Variant, week: date, meant: Input) -> str:
    """Count what is wrong with a variant's week after all is over; returns the Dagster run id of its current batch."""
    rows: dict[int, list[float]] = {}
    found = execute(house.server, _CURRENT, variant=variant.key, week=week)
    for account, probability, *_ in found:
        rows.setdefault(account, []).append(probability)
    shas, runs = {row.source_sha256 for row in found}, {row.dagster_run_id for row in found}
    is_flagged = any(row.is_fallback for row in found)
    used = next((item for item in house.inputs if {item.sha256} == shas), meant)
    if used is not meant and not is_flagged:
        tally.stale += 1
    if len(runs) > 1:
        tally.broken += 1
    tally.count(rows, used.scores)
    return str(next(iter(runs), None))


def judge_week(house: House, tally: Tally, week: date) -> None:
    """Count batches of a week that are not whole, and rows that are of none."""
    for query in (_HALF, _ORPHANS):
        tally.broken += int(execute(house.server, query, week=week)[0][0])


class Reader:
    """Somebody who looks at the week's scores all the time, as an analyst's dashboard does."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._known = {item.sha256: (len(item.scores), sum(item.scores.values())) for item in house.inputs}
        self._sizes = {size for size, _ in self._known.values()}
        self._stop = threading.Event()
        self._seen: set[tuple[str, date]] = set()
        self.week = week_of(0)
        self.tally = Tally()
        self.naive = Tally()
        self.examples: list[str] = []

    @contextmanager
    def watching(self) -> Iterator["Reader"]:
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            with suppress(sa.exc.DBAPIError), engine_of(self._house.server).connect() as connection:
                while not self._stop.wait(0.02):
                    week = self.week
                    self._look(week, connection.execute(sa.text(_SEEN), {"week": week}).all())
                    self._look_naively(connection.execute(sa.text(_NAIVE_SEEN), {"week": week}).all())
                    connection.rollback()
            time.sleep(0.05)

    def _look(self, week: date, groups: list[Any]) -> None:
        self.tally.readings += 1
        torn = [group for group in groups if not self._is_whole(group)]
        variants = [group.variant for group in groups]
        torn += [name for name in set(variants) if variants.count(name) > 1]
        torn += [name for name, seen in self._seen if seen == week and name not in variants]
        self._seen |= {(name, week) for name in variants}
        if torn:
            self.tally.torn += 1
            self.examples.append(str(torn[0]))

    def _is_whole(self, group: Any) -> bool:
        size, total = self._known.get(group.source_sha256, (0, 0.0))
        return group[4] == group[5] == size and abs(group[6] - total) < 1e-3

    def _look_naively(self, groups: list[Any]) -> None:
        self.naive.readings += 1
        self.naive.torn += any(n != accounts or n not in self._sizes for _, n, accounts in groups)
