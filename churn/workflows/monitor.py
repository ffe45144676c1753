"""Monitoring: detect drift and other problems over the whole fleet, and reconcile the incidents with them.

Cheap enough to run every few minutes, and safe to repeat: without a change nothing is written and no alert is queued.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

from churn.database.fleet import FleetTables
from churn.database.incidents import Incidents
from churn.errors import ChurnError
from churn.monitoring import conditions
from churn.monitoring.conditions import Attempt, DriftFlag, FailedRun, ScoredBatch
from churn.monitoring.incidents import KINDS, Change, Condition
from churn.weeks import monday_of

logger = logging.getLogger(__name__)

_RUN_KINDS = frozenset({"run_failed", "ticks_failed"})
_REGISTRY_KINDS = frozenset({"variants_missing", "week_missed", "performance_low", "calibration_poor", "segment_low"})
_WEEK = timedelta(weeks=1)


@dataclass(frozen=True)
class FleetDrift:
    """The drift of a fleet's newest batches, of which ``n_compared`` could be compared with a reference."""

    n_compared: int
    flags: Sequence[DriftFlag]
    unknown_levels: Sequence[DriftFlag]  # of categorical features whose share of unknown levels rose
    missing_values: Sequence[DriftFlag]  # of others that miss more values

    def by_check(self) -> dict[str, dict[str, str]]:
        """Return the variants that fail each check, by the check's name, each with a sentence."""
        broken, inputs, scores = (dict(condition.members) for condition in conditions.drifted(self.flags))
        drifted = {"no_data_is_broken": broken, "no_input_drifts": inputs, "no_scores_drift": scores}
        missing, unknown = _sentences(self.missing_values), _sentences(self.unknown_levels)
        return {**drifted, "missing_values_are_usual": missing, "levels_are_known": unknown}


_KINDS_OF_CHECK: Mapping[str, Collection[str]] = {
    "volumes_are_usual": ("volume_unusual",),
    "data_is_fresh": ("data_stale",),
    "every_variant_was_scored": ("variants_missing", "variants_failed", "week_missed"),
    "performance_holds": ("performance_low",),
    "scores_match_outcomes": ("calibration_poor",),
    "segments_hold": ("segment_low",),
}
"""The kinds of incident that fail each check of a fleet's status."""


@dataclass(frozen=True)
class FleetStatus:
    """The problems of a fleet by kind, kinds without a problem included."""

    n_variants: int
    conditions: Sequence[Condition]
    unavailable_kinds: frozenset[str]  # not examined, because the registry or Dagster could not be queried
    changes: Sequence[Change]

    def by_check(self) -> dict[str, dict[str, str] | None]:
        """Return the variants that fail each check, by the check's name; ``None`` if it could not be evaluated."""
        is_known = self.unavailable_kinds.isdisjoint
        return {name: self.members(*kinds) if is_known(kinds) else None for name, kinds in _KINDS_OF_CHECK.items()}

    def members(self, *kinds: str) -> dict[str, str]:
        """Return the variants or runs affected by some kinds, each with a sentence."""
        affected = [one.members for one in self.conditions if one.kind in kinds]
        return {member: sentence for members in affected for member, sentence in members.items()}


@dataclass(frozen=True)
class FleetMonitor:
    """The services that monitoring needs."""

    fleet: FleetTables
    incidents: Incidents
    # Queries the registry for each registered variant's champion version, by key
    champions: Callable[[], Mapping[str, int | None]]
    receivers: Sequence[str]  # names of the receivers of alerts; incidents are recorded without any, too
    grace: timedelta  # time after Monday 00:00 UTC by which a week must have been scored

    def flag_drift(self, now: datetime) -> FleetDrift:
        """Detect drift and store it; the newest flags of a batch replace its earlier ones."""
        week = monday_of(now.date())
        newest, flags = self._store_flags(self.fleet.newest_inputs(week), week)
        unknown = [flag for flag in flags if conditions.has_more_unknown(flag.drift)]
        categories = self.fleet.categories(flag.batch_id for flag in unknown) if unknown else {}
        levels = [flag for flag in unknown if flag.drift.feature in categories.get(flag.batch_id, ())]
        n_compared = sum(bool(batch.drifts) for batch in newest.values())
        return FleetDrift(n_compared, flags, levels, [flag for flag in unknown if flag not in levels])

    def reconcile(self, now: datetime, failed_runs: Sequence[FailedRun] | None) -> FleetStatus:
        """Detect problems and open, update or resolve incidents; queue an alert for each receiver of a change.

        An incident keeps a variant that is no longer registered until somebody acknowledges that it is gone.
        ``failed_runs`` is ``None`` if Dagster could not be queried. Raises ``ChurnError`` if the predictions database
        does not answer; without the registry, kinds that need it are left as they are.
        """
        champions, week = self._champions(), monday_of(now.date())
        batches, attempts = self.fleet.newest_inputs(week), self.fleet.attempts(week - _WEEK)
        newest, flags = self._store_flags(batches, week)
        watched = self.fleet.watch(champions or (), newest, now)
        stored = (one for one in self.incidents.open() if one.kind in KINDS)  # others are those of newer code
        old = [Condition(one.kind, one.members) for one in stored if KINDS[one.kind].noun == "variant"]
        # Without the registry, those that were missing before are missing still.
        gone = {key for one in old if one.kind == "variants_missing" for key in one.members}
        registered = {*watched, *(one.variant for one in attempts)} - gone if champions is None else set(champions)
        missing = conditions.variants_missing(watched, registered)
        problems = [*_only(old, missing.members), missing, *conditions.drifted(flags)]
        problems += self._scoring_problems(now, {key: watched.get(key, now) for key in registered}, newest, attempts)
        problems += self._performance_problems(champions) if champions is not None else ()
        found = _only(problems, registered | watched.keys())
        found += [*conditions.runs_failed(failed_runs or (), attempts), conditions.fleet_moved(batches, week)]
        unavailable = frozenset[str]() if champions is not None else _REGISTRY_KINDS
        unavailable |= frozenset() if failed_runs is not None else _RUN_KINDS
        changes = self.incidents.reconcile(found, set(KINDS) - unavailable, self.receivers)
        return FleetStatus(len(registered), found, unavailable, changes)

    def to_repeat(self, now: datetime) -> dict[str, int]:
        """Return the registered variants to score again now, each with the number of its last attempt, else 0.

        These are the ones whose newest attempt of this week failed for a cause that may pass, after a pause that grows,
        and those without an attempt after the grace period, as when no daemon ran on Monday. Raises ``ChurnError`` if
        the registry or the predictions database does not answer.
        """
        week, due = monday_of(now.date()), conditions.week_due(now, self.grace)
        champions, attempts = self.champions(), self.fleet.attempts(week - _WEEK)
        since = self.fleet.watch(champions, (), now) if due == week else {}
        missed = conditions.week_missed(since, self.fleet.histories(week - _WEEK), attempts, due)
        found = conditions.to_repeat(attempts, missed, now)
        return {key: number for key, number in found.items() if key in champions}

    def _champions(self) -> Mapping[str, int | None] | None:
        try:
            return self.champions()
        except ChurnError as error:
            logger.warning("MLflow registry unavailable: skipped %s: %s", ", ".join(sorted(_REGISTRY_KINDS)), error)
            return None

    def _store_flags(self, batches: list[ScoredBatch], week: date) -> tuple[dict[str, ScoredBatch], list[DriftFlag]]:
        newest, flags = conditions.newest_batches(batches, week), conditions.flag_drifts(batches, week)
        self.fleet.replace_flags([batch.batch_id for batch in newest.values()], flags)
        return newest, flags

    def _scoring_problems(
        self, now: datetime, since: Mapping[str, datetime], newest: Mapping[str, ScoredBatch], attempts: list[Attempt]
    ) -> list[Condition]:
        histories = self.fleet.histories(now.date() - conditions.MEMORY)
        return [
            conditions.variants_failed(attempts, newest, now),
            conditions.challengers_failed(attempts, now),
            conditions.data_stale(newest.values(), histories, now.date()),
            conditions.volume_unusual(newest.values(), histories),
            conditions.week_missed(since, histories, attempts, conditions.week_due(now, self.grace)),
        ]

    def _performance_problems(self, champions: Mapping[str, int | None]) -> list[Condition]:
        cohorts = conditions.independent_cohorts(self.fleet.evaluated(), champions)
        low = conditions.performance_low(cohorts)
        newest = [of_variant[0].batch_id for of_variant in cohorts.values()]
        segments, n_evaluated = self.fleet.low_segments(newest, conditions.FDR)
        return [low, conditions.calibration_poor(cohorts), conditions.segment_low(segments, n_evaluated, low.members)]


def _only(problems: Iterable[Condition], variants: Collection[str]) -> list[Condition]:
    return [replace(one, members={key: one.members[key] for key in one.members if key in variants}) for one in problems]


def _sentences(flags: Sequence[DriftFlag]) -> dict[str, str]:
    by_variant: dict[str, list[str]] = defaultdict(list)
    for flag in flags:
        by_variant[flag.variant].append(conditions.describe_drift(flag.drift))
    return {key: ", ".join(sentences) for key, sentences in by_variant.items()}
