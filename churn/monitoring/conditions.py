"""Finds the current problems of the fleet in plain records: failures, drift, stale data, low performance. Pure.

Each variant is represented by its newest batch or attempt of this week or, until there is one, of last week, so that no
condition ends and begins again on Monday at midnight. Among thousands of variants some figure is always extreme, so
tests control the false discovery rate over the whole fleet.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from itertools import compress
from typing import Any

from churn.defaults import LABEL_LAG_DAYS
from churn.evaluation.metrics import Interval, discoveries, p_at_least
from churn.monitoring.drift import LEAST_UNKNOWN_RISE, FeatureDrift, Flag, confirmed, flag_fleet, freshness, volume
from churn.monitoring.incidents import Condition
from churn.monitoring.profiles import SCORE
from churn.versions import CHALLENGER, CHAMPION
from churn.weeks import monday_of, newest_month_due

FDR = 0.01
"""False discovery rate: the expected share of false findings among all findings."""

MEMORY = timedelta(weeks=40)
"""How far back a variant's history is read: nine months of monthly data, twice as much as is used."""

_WEEK = timedelta(weeks=1)
_TRANSIENT_FOR = timedelta(minutes=10)
_MOST_ERROR = 200
_MOST_NAMED = 3


@dataclass(frozen=True)
class ScoredBatch:
    """A current batch of a champion.

    Attributes:
        data_of: The key of the variant whose data was scored.
        fallback_reason: ``None`` if the data came from the configured source.
        drifts: One for each feature and one for the score; empty if the model has no reference.
        as_of: The batch's as-of day; ``None`` if unknown.
        newest_month: The newest month known then; ``None`` of encoded rows.
    """

    batch_id: int
    variant: str
    week: date
    model_version: int
    n_rows: int
    data_of: str
    fallback_reason: str | None = None
    drifts: Sequence[FeatureDrift] = ()
    as_of: date | None = None
    newest_month: date | None = None


@dataclass(frozen=True)
class Attempt:
    """The newest scoring attempt of a variant in a role; ``error`` is ``None`` if it published a batch."""

    number: int
    variant: str
    week: date
    role: str
    ended_at: datetime
    error: str | None = None
    is_transient: bool = False


@dataclass(frozen=True)
class History:
    """A variant's row counts and inputs over its earlier weeks.

    Attributes:
        n_rows: Rows read for the current batch of each week.
        inputs: The day on which each input file of the variant first appeared, by the file's SHA-256.
    """

    n_rows: Mapping[date, int]
    inputs: Mapping[str, date] = field(default_factory=dict)

    def before(self, week: date) -> list[int]:
        """Return the row counts of the weeks before ``week``, the latest last."""
        return [n for scored, n in sorted(self.n_rows.items()) if scored < week]


@dataclass(frozen=True)
class EvaluatedChampion:
    """A champion's batch with enough matured labels; ``limit`` is the minimum ROC AUC of its model version."""

    batch_id: int
    variant: str
    week: date
    model_version: int
    roc_auc: Interval
    limit: float


@dataclass(frozen=True)
class LowSegment:
    """A segment with low ROC AUC; ``p_below_limit`` is the p-value of one this low if the true one were ``limit``."""

    variant: str
    segment: str
    level: str
    roc_auc: float
    limit: float
    p_below_limit: float


@dataclass(frozen=True)
class FailedRun:
    """A failed Dagster run that no later run has made up for; ``names`` are the variants that failed in it, if any."""

    job: str
    dagster_run_id: str
    started_at: datetime
    sentence: str
    names: Collection[str] = ()


@dataclass(frozen=True)
class DriftFlag:
    """A feature, or the score, that drifted in a batch; confirmed if it drifted in the week before as well."""

    batch_id: int
    variant: str
    week: date
    drift: FeatureDrift
    is_confirmed: bool


def read_drifts(recorded: Mapping[str, Mapping[str, Any]] | None) -> list[FeatureDrift]:
    """Read the drift measures of a batch's record; empty if the batch was not compared with a reference."""
    return [FeatureDrift(feature, **measures) for feature, measures in (recorded or {}).items()]


def newest_batches(batches: Iterable[ScoredBatch], week: date) -> dict[str, ScoredBatch]:
    """Return each variant's batch of ``week`` or, if there is none yet, of the week before."""
    recent = [batch for batch in batches if week - _WEEK <= batch.week <= week]
    return {batch.variant: batch for batch in sorted(recent, key=lambda batch: batch.week)}


def flag_drifts(batches: Sequence[ScoredBatch], week: date) -> list[DriftFlag]:
    """Find the features and scores that drifted in each variant's newest batch, over the whole fleet.

    Args:
        batches: The batches of ``week`` and of the two weeks before. A batch of another model version cannot confirm a
            drift, since it was compared with another reference.
    """
    newest = newest_batches(batches, week)
    before = {(one.variant, one.week + _WEEK, one.model_version): one.drifts for one in batches}
    flags = flag_fleet({key: batch.drifts for key, batch in newest.items()}, fdr=FDR)
    earlier = flag_fleet(
        {key: before.get((key, batch.week, batch.model_version), ()) for key, batch in newest.items()}, fdr=FDR
    )
    both = set(confirmed(flags, earlier))
    return [
        DriftFlag(batch.batch_id, key, batch.week, drift, Flag(key, drift.feature) in both)
        for key, batch in sorted(newest.items())
        for drift in batch.drifts
        if Flag(key, drift.feature) in flags
    ]


def drifted(flags: Iterable[DriftFlag]) -> list[Condition]:
    """Return the variants with drifted inputs, and those with drifted scores, in two consecutive weeks."""
    drifts: dict[str, dict[str, list[FeatureDrift]]] = {"input_drifted": {}, "scores_drifted": {}}
    for flag in flags:
        if flag.is_confirmed:
            kind = "scores_drifted" if flag.drift.feature == SCORE else "input_drifted"
            drifts[kind].setdefault(flag.variant, []).append(flag.drift)
    return [
        Condition(kind, {key: _drift_sentence(of_variant) for key, of_variant in by_variant.items()})
        for kind, by_variant in drifts.items()
    ]


def _drift_sentence(drifts: Sequence[FeatureDrift]) -> str:
    largest = sorted(drifts, key=lambda drift: -drift.excess_psi)
    named = _enumerated([describe_drift(drift) for drift in largest])
    return f"{named} drifted from the model's reference in two consecutive weeks"


def _enumerated(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def describe_drift(drift: FeatureDrift) -> str:
    """Return the feature's name with the size of its drift.

    >>> describe_drift(FeatureDrift("brand_id", 900, 0.31, 0.3, 0.2, 1e-9, 0.12, 0.1, 1e-9))
    'brand_id (PSI 0.31, unknown 12.0 %)'
    """
    unknown = f", unknown {100 * drift.unknown_share:.1f} %" if has_more_unknown(drift) else ""
    return f"{drift.feature} (PSI {drift.psi:.2f}{unknown})"


def has_more_unknown(drift: FeatureDrift) -> bool:
    """Return whether the share of unknown values rose in a drift that was flagged."""
    return drift.unknown_rise >= LEAST_UNKNOWN_RISE and drift.unknown_p_value <= FDR


def variants_failed(attempts: Iterable[Attempt], batches: Mapping[str, ScoredBatch], now: datetime) -> Condition:
    """Return the variants whose newest attempt failed; transient errors count only after ten minutes."""
    members: dict[str, str] = {}
    for attempt, sentence in _failures(attempts, CHAMPION, now):
        has_batch = (batch := batches.get(attempt.variant)) is not None and batch.week == attempt.week
        rest = " (an earlier batch of the week is still published)" if has_batch else ""
        members[attempt.variant] = sentence + rest
    return Condition("variants_failed", members)


def challengers_failed(attempts: Sequence[Attempt], now: datetime) -> Condition:
    """Return the variants whose challenger failed when the champion was last scored."""
    champions = {attempt.variant: attempt.number for attempt in attempts if attempt.role == CHAMPION}
    # The challenger scores after the champion; an older attempt is of a version that is no longer the challenger.
    failures = _failures(attempts, CHALLENGER, now)
    members = {one.variant: sentence for one, sentence in failures if one.number > champions.get(one.variant, 0)}
    return Condition("challengers_failed", members)


def _failures(attempts: Iterable[Attempt], role: str, now: datetime) -> Iterator[tuple[Attempt, str]]:
    for one in attempts:
        is_recent = one.is_transient and now - one.ended_at < _TRANSIENT_FOR
        if one.role == role and one.error is not None and not is_recent:
            yield one, f"week of {one.week}: {_shortened(one.error)}"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MOST_ERROR else f"{line[: _MOST_ERROR - 1]}…"


def week_due(now: datetime, grace: timedelta) -> date:
    """Return the newest week that should have been scored: the last week until the grace period is over."""
    return monday_of((now - grace).date())


def week_missed(
    registered: Iterable[str], histories: Mapping[str, History], attempts: Iterable[Attempt], due: date
) -> Condition:
    """Return the variants that have earlier batches or attempts, and neither for the week that is due.

    A registered variant that was never scored or attempted is not included.
    """
    weeks = {key: list(history.n_rows) for key, history in histories.items()}
    for attempt in attempts:
        if attempt.role == CHAMPION:
            weeks.setdefault(attempt.variant, []).append(attempt.week)
    last = {key: max(weeks[key]) for key in registered if weeks.get(key)}
    text = f"not scored for the week of {due}; the last week scored or attempted is"
    return Condition("week_missed", {key: f"{text} {week}" for key, week in last.items() if week < due})


def data_stale(batches: Iterable[ScoredBatch], histories: Mapping[str, History], today: date) -> Condition:
    """Return the variants scored from a fallback copy, from another variant's data, or from overdue data."""
    stale = {batch.variant: stale_sentence(batch, histories.get(batch.variant), today) for batch in batches}
    return Condition("data_stale", {key: sentence for key, sentence in stale.items() if sentence})


def stale_sentence(batch: ScoredBatch, history: History | None, today: date) -> str | None:
    """Return why a batch's data is stale; ``None`` if it is fresh."""
    if batch.fallback_reason is not None:
        return f"scored from the local copy: {_shortened(batch.fallback_reason)}"
    if batch.data_of != batch.variant:
        return f"scored from the data of {batch.data_of}, since the variant has no input"
    if (missing := _missing_month(batch)) is not None:
        return f"the newest month of the data is {batch.newest_month:%Y-%m}; {missing:%Y-%m} should have arrived"
    arrived_on = [day for day in (history.inputs.values() if history else ()) if day <= today]
    if not arrived_on or not (age := freshness(arrived_on, today)).is_stale:
        return None
    return f"no new data for {age.age_days} days, since {max(arrived_on)}; the limit is {age.limit_days} days"


def _missing_month(batch: ScoredBatch) -> date | None:
    """Return the month that a batch's data should reach: the last one whose late reports are due by the as-of day."""
    if batch.as_of is None or batch.newest_month is None:
        return None
    due = newest_month_due(batch.as_of, LABEL_LAG_DAYS)
    return due if batch.newest_month < due else None


def volume_unusual(batches: Iterable[ScoredBatch], histories: Mapping[str, History]) -> Condition:
    """Return the variants with far more or far fewer rows than usual."""
    members: dict[str, str] = {}
    for batch in batches:
        history = histories.get(batch.variant)
        rows = volume(batch.n_rows, history.before(batch.week) if history else ())
        if rows.status in ("low", "high"):
            members[batch.variant] = f"{rows.n_rows:,} rows in the week of {batch.week}; usual are {rows.usual:,.0f}"
    return Condition("volume_unusual", members)


def newest_evaluated(
    evaluated: Iterable[EvaluatedChampion], champions: Mapping[str, int | None]
) -> dict[str, EvaluatedChampion]:
    """Return each variant's newest evaluated batch of its current champion version."""
    by_week = sorted(evaluated, key=lambda one: (one.week, one.batch_id))
    return {one.variant: one for one in by_week if champions.get(one.variant) == one.model_version}


def performance_low(evaluated: Iterable[EvaluatedChampion]) -> Condition:
    """Return the variants with a ROC AUC significantly below its limit."""
    ordered = list(evaluated)
    is_low = discoveries([p_at_least(one.roc_auc, one.limit) for one in ordered], FDR)
    members = {
        one.variant: f"ROC AUC {one.roc_auc:.3f} in the week of {one.week}; the limit is {one.limit:.3f}"
        for one in compress(ordered, is_low)
    }
    return Condition("performance_low", members)


def segment_low(segments: Sequence[LowSegment], n_evaluated: int, excluded: Collection[str]) -> Condition:
    """Return the variants with a segment that has a ROC AUC significantly below the limit.

    Args:
        segments: Those with a p-value of at most ``FDR``; no other can be significant.
        n_evaluated: The number of segments of the fleet that have a p-value.
        excluded: Variants with low overall performance.
    """
    is_low = discoveries([segment.p_below_limit for segment in segments], FDR, n_evaluated)
    low: dict[str, list[LowSegment]] = {}
    for segment in compress(segments, is_low):
        if segment.variant not in excluded:
            low.setdefault(segment.variant, []).append(segment)
    return Condition("segment_low", {key: _segments_sentence(of_variant) for key, of_variant in low.items()})


def _segments_sentence(segments: Sequence[LowSegment]) -> str:
    worst = sorted(segments, key=lambda segment: segment.p_below_limit)
    named = _enumerated([f"{one.segment} {one.level}: ROC AUC {one.roc_auc:.3f}" for one in worst])
    return f"{named}; the limit is {worst[0].limit:.3f}"


def runs_failed(runs: Iterable[FailedRun], attempts: Iterable[Attempt]) -> list[Condition]:
    """Return the failed runs by job, except those with failures that show in the attempts of their variants."""
    newest = {attempt.variant: attempt.ended_at for attempt in attempts if attempt.role == CHAMPION}
    by_job: dict[str, dict[str, str]] = {}
    for run in runs:
        is_reported = run.names and all(key in newest and newest[key] >= run.started_at for key in run.names)
        if not is_reported:
            by_job.setdefault(run.job, {})[run.dagster_run_id] = _shortened(run.sentence)
    return [Condition("run_failed", members, subject=job) for job, members in by_job.items()]
