"""Watching: look at the whole fleet now, write down what drifts, and settle what is wrong as incidents.

Cheap enough to be done every few minutes, and safe to repeat: what did not change writes nothing and tells nobody.
Knows no Dagster; ``orchestration`` looks, shows, and sends.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from churn.database.fleet import FleetTables
from churn.errors import ChurnError
from churn.monitoring import conditions as wrong
from churn.monitoring.conditions import Attempt, DriftFlag, FailedRun, History, ScoredBatch
from churn.monitoring.incidents import KINDS, Change, Condition
from churn.weeks import monday_of

if TYPE_CHECKING:
    from churn.database.incidents import Incidents

logger = logging.getLogger(__name__)

_OF_RUNS = frozenset({"run_failed"})
_OF_REGISTRY = frozenset({"week_missed", "performance_low", "segment_low"})


@dataclass(frozen=True)
class Drifts:
    """What drifts over the fleet.

    Attributes:
        n_compared: Variants whose newest batch could be compared with a reference.
        unknown: Of the flags, those whose share of unknown values rose.
        categories: Of the batches with such flags, the features whose unknown values are levels.
    """

    n_compared: int
    flags: Sequence[DriftFlag]
    unknown: Sequence[DriftFlag]
    categories: Mapping[int, frozenset[str]]


@dataclass(frozen=True)
class Looked:
    """What a look found.

    Attributes:
        n_variants: Whose state was looked at.
        conditions: What is wrong, those of no member included.
        not_watched: Kinds that this look could not judge.
        changes: What people are told of, as it was queued.
    """

    n_variants: int
    conditions: Sequence[Condition]
    not_watched: frozenset[str]
    changes: Sequence[Change]

    def members(self, *kinds: str) -> dict[str, str]:
        """Return who is concerned by some kinds, each with its sentence."""
        return {
            member: sentence
            for condition in self.conditions
            if condition.kind in kinds
            for member, sentence in condition.members.items()
        }


@dataclass(frozen=True)
class Watch:
    """The services that watching needs, and its limits.

    Attributes:
        champions: Asks the registry for each registered variant's champion version, by key.
        receivers: Who is told, by name; without any, incidents are kept all the same.
        grace: After Monday 00:00 UTC, by when a week must have been scored.
    """

    fleet: FleetTables
    incidents: "Incidents"
    champions: Callable[[], Mapping[str, int | None]]
    receivers: Sequence[str]
    grace: timedelta

    def flag(self, now: datetime) -> Drifts:
        """Find what drifts and write it down; the newest flags of a batch replace its earlier ones."""
        week = monday_of(now.date())
        batches = self.fleet.batches(week - timedelta(weeks=2))
        flags = self._flagged(batches, now)
        unknown = [flag for flag in flags if wrong.has_more_unknown(flag.drift)]
        return Drifts(
            n_compared=sum(bool(batch.drifts) for batch in wrong.newest_batches(batches, week).values()),
            flags=flags,
            unknown=unknown,
            categories=self.fleet.categories(flag.batch_id for flag in unknown) if unknown else {},
        )

    def look(self, now: datetime, failed_runs: Sequence[FailedRun] | None) -> Looked:
        """Find what is wrong and settle it as incidents, with an alert for each receiver where people must be told.

        Args:
            failed_runs: ``None`` when nobody knows.

        Raises:
            ChurnError: If the predictions database does not answer. Without the registry, what needs it is left alone.
        """
        champions = self._champions()
        week = monday_of(now.date())
        batches = self.fleet.batches(week - timedelta(weeks=2))
        attempts = self.fleet.attempts(week - timedelta(weeks=1))
        registered = {attempt.variant for attempt in attempts} if champions is None else set(champions)
        found = [
            *wrong.drifted(self._flagged(batches, now)),
            *self._of_scoring(now, registered, batches, attempts),
            *(self._of_labels(champions) if champions is not None else ()),
        ]
        conditions = [_among(registered, condition) for condition in found]
        conditions += wrong.runs_failed(failed_runs or (), attempts)
        not_watched = (_OF_REGISTRY if champions is None else frozenset()) | (
            _OF_RUNS if failed_runs is None else set()
        )
        watched = set(KINDS) - not_watched
        changes = self.incidents.reconcile(conditions, watched, self.receivers, now)
        return Looked(len(registered), conditions, not_watched, changes)

    def _champions(self) -> Mapping[str, int | None] | None:
        try:
            return self.champions()
        except ChurnError as error:
            logger.warning("the registry cannot be asked, so what needs it is not watched now: %s", error)
            return None

    def _flagged(self, batches: Sequence[ScoredBatch], now: datetime) -> list[DriftFlag]:
        week = monday_of(now.date())
        flags = wrong.flag_drifts(batches, week)
        newest = wrong.newest_batches(batches, week)
        self.fleet.replace_flags([batch.batch_id for batch in newest.values()], flags)
        return flags

    def _of_scoring(
        self, now: datetime, registered: Collection[str], batches: Sequence[ScoredBatch], attempts: Sequence[Attempt]
    ) -> list[Condition]:
        histories: Mapping[str, History] = self.fleet.histories(now.date() - wrong.MEMORY)
        newest = wrong.newest_batches(batches, monday_of(now.date()))
        conditions = [
            wrong.variants_failed(attempts, newest, now),
            wrong.challengers_failed(attempts, now),
            wrong.data_stale(newest.values(), histories, now.date()),
            wrong.volume_unusual(newest.values(), histories),
        ]
        due = wrong.week_due(now, self.grace)
        return [*conditions, wrong.week_missed(registered, histories, attempts, due)]

    def _of_labels(self, champions: Mapping[str, int | None]) -> list[Condition]:
        judged = wrong.newest_evaluated(self.fleet.evaluated(), champions)
        low = wrong.performance_low(judged.values())
        segments, n_evaluated = self.fleet.low_segments([one.batch_id for one in judged.values()], wrong.FDR)
        return [low, wrong.segment_low(segments, n_evaluated, low.members)]


def _among(registered: Collection[str], condition: Condition) -> Condition:
    """Leave out variants that are not registered any more."""
    members = {key: sentence for key, sentence in condition.members.items() if key in registered}
    return Condition(condition.kind, members, condition.subject)
