"""Monitoring: detect drift and other problems over the whole fleet, and reconcile the incidents with them.

Cheap enough to run every few minutes, and safe to repeat: without a change nothing is written and nobody is alerted.
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
class FleetDrift:
    """The drift of a fleet's newest batches.

    Attributes:
        n_compared: Variants whose newest batch could be compared with a reference.
        unknown_levels: Flags of categorical features whose share of unknown levels rose.
        missing_values: Flags of other features whose share of missing values rose.
    """

    n_compared: int
    flags: Sequence[DriftFlag]
    unknown_levels: Sequence[DriftFlag]
    missing_values: Sequence[DriftFlag]

    def by_check(self) -> dict[str, dict[str, str]]:
        """Return the variants that fail each check, by the check's name, each with a sentence."""
        inputs, scores = (dict(condition.members) for condition in wrong.drifted(self.flags))
        return {
            "no_input_drifts": inputs,
            "no_scores_drift": scores,
            "missing_values_are_usual": _sentences(self.missing_values),
            "levels_are_known": _sentences(self.unknown_levels),
        }


KINDS_OF_CHECK: Mapping[str, Collection[str]] = {
    "volumes_are_usual": ("volume_unusual",),
    "data_is_fresh": ("data_stale",),
    "every_variant_was_scored": ("variants_failed", "week_missed"),
    "performance_holds": ("performance_low",),
    "segments_hold": ("segment_low",),
}
"""The kinds of incident that fail each check of a fleet's status."""


@dataclass(frozen=True)
class FleetStatus:
    """The problems of a fleet.

    Attributes:
        n_variants: Variants that were examined.
        conditions: The problems by kind, kinds without a problem included.
        unavailable_kinds: Kinds that could not be examined, because the registry or Dagster could not be queried.
        changes: Changes of incidents, for each of which alerts were queued.
    """

    n_variants: int
    conditions: Sequence[Condition]
    unavailable_kinds: frozenset[str]
    changes: Sequence[Change]

    def by_check(self) -> dict[str, dict[str, str] | None]:
        """Return the variants that fail each check, by the check's name; ``None`` if it could not be evaluated."""
        return {
            name: self.members(*kinds) if self.unavailable_kinds.isdisjoint(kinds) else None
            for name, kinds in KINDS_OF_CHECK.items()
        }

    def members(self, *kinds: str) -> dict[str, str]:
        """Return the variants or runs affected by some kinds, each with a sentence."""
        return {
            member: sentence
            for condition in self.conditions
            if condition.kind in kinds
            for member, sentence in condition.members.items()
        }


@dataclass(frozen=True)
class FleetMonitor:
    """The services that monitoring needs.

    Attributes:
        champions: Queries the registry for each registered variant's champion version, by key.
        receivers: Names of those who are alerted; incidents are recorded without any, too.
        grace: Time after Monday 00:00 UTC by which a week must have been scored.
    """

    fleet: FleetTables
    incidents: "Incidents"
    champions: Callable[[], Mapping[str, int | None]]
    receivers: Sequence[str]
    grace: timedelta

    def flag_drift(self, now: datetime) -> FleetDrift:
        """Detect drift and store it; the newest flags of a batch replace its earlier ones."""
        week = monday_of(now.date())
        batches = self.fleet.batches(week - timedelta(weeks=2))
        flags = self._flagged(batches, now)
        unknown = [flag for flag in flags if wrong.has_more_unknown(flag.drift)]
        categories = self.fleet.categories(flag.batch_id for flag in unknown) if unknown else {}
        levels = [flag for flag in unknown if flag.drift.feature in categories.get(flag.batch_id, ())]
        return FleetDrift(
            n_compared=sum(bool(batch.drifts) for batch in wrong.newest_batches(batches, week).values()),
            flags=flags,
            unknown_levels=levels,
            missing_values=[flag for flag in unknown if flag not in levels],
        )

    def reconcile(self, now: datetime, failed_runs: Sequence[FailedRun] | None) -> FleetStatus:
        """Detect problems and open, update or resolve incidents; queue an alert for each receiver of a change.

        Args:
            failed_runs: ``None`` if Dagster could not be queried.

        Raises:
            ChurnError: If the predictions database does not answer. Without the registry, kinds that need it are left
                as they are.
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
        conditions = [_of_registered(registered, condition) for condition in found]
        conditions += wrong.runs_failed(failed_runs or (), attempts)
        unavailable = (_OF_REGISTRY if champions is None else frozenset()) | (
            _OF_RUNS if failed_runs is None else frozenset()
        )
        changes = self.incidents.reconcile(conditions, set(KINDS) - unavailable, self.receivers, now)
        return FleetStatus(len(registered), conditions, unavailable, changes)

    def _champions(self) -> Mapping[str, int | None] | None:
        try:
            return self.champions()
        except ChurnError as error:
            logger.warning("MLflow registry unavailable: skipped %s: %s", ", ".join(sorted(_OF_REGISTRY)), error)
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
        evaluated = wrong.newest_evaluated(self.fleet.evaluated(), champions)
        low = wrong.performance_low(evaluated.values())
        segments, n_evaluated = self.fleet.low_segments([one.batch_id for one in evaluated.values()], wrong.FDR)
        return [low, wrong.segment_low(segments, n_evaluated, low.members)]


def _of_registered(registered: Collection[str], condition: Condition) -> Condition:
    """Leave out variants that are no longer registered."""
    members = {key: sentence for key, sentence in condition.members.items() if key in registered}
    return Condition(condition.kind, members, condition.subject)


def _sentences(flags: Sequence[DriftFlag]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for flag in flags:
        found.setdefault(flag.variant, []).append(wrong.describe_drift(flag.drift))
    return {key: ", ".join(sentences) for key, sentences in found.items()}
