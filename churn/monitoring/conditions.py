"""What is wrong with a fleet now, from plain records of what it did: who failed, who drifts, whose data is old. Pure.

A look is at each variant's newest batch or attempt, of this week or, until that one is done, of the last: so nothing
ends and begins again at midnight. Over thousands of variants some figure is always odd, so false discoveries are
controlled over the fleet wherever a figure decides. What follows of a condition is for
:mod:`churn.monitoring.incidents`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

from churn.evaluation.metrics import Interval, discoveries, p_at_least
from churn.monitoring.drift import (
    LEAST_UNKNOWN_RISE,
    FeatureDrift,
    Flag,
    confirmed,
    flag_fleet,
    freshness,
    volume,
)
from churn.monitoring.incidents import Condition
from churn.monitoring.profiles import SCORE
from churn.versions import CHALLENGER, CHAMPION
from churn.weeks import monday_of

FDR = 0.01
"""Share of what is named that may be named falsely."""

MEMORY = timedelta(weeks=40)
"""How far back it matters what a variant's batches were: nine months of monthly data, twice as much as is used."""

_WEEK = timedelta(weeks=1)
_TRANSIENT_FOR = timedelta(minutes=10)
_MOST_ERROR = 200
_MOST_NAMED = 3


@dataclass(frozen=True)
class ScoredBatch:
    """A current batch of a champion.

    Attributes:
        data_of: The key of the variant whose data was scored.
        fallback_reason: ``None`` when the data came from where it should.
        drifts: By feature, and of the score; none where the model brought no reference.
    """

    batch_id: int
    variant: str
    week: date
    model_version: int
    n_rows: int
    data_of: str
    fallback_reason: str | None = None
    drifts: Sequence[FeatureDrift] = ()


@dataclass(frozen=True)
class Attempt:
    """The newest attempt of a variant in a role.

    Attributes:
        number: Grows with time.
        error: ``None`` when it was published.
    """

    number: int
    variant: str
    week: date
    role: str
    ended_at: datetime
    error: str | None = None
    is_transient: bool = False


@dataclass(frozen=True)
class History:
    """What a variant's earlier weeks were like.

    Attributes:
        n_rows: Rows read for each scored week, of its current batch.
        inputs: What its own input was, by the bytes' digest, each with the day on which it was new.
    """

    n_rows: Mapping[date, int]
    inputs: Mapping[str, date] = field(default_factory=dict)

    def before(self, week: date) -> list[int]:
        """Return the rows of the weeks before one, the latest last."""
        return [n for scored, n in sorted(self.n_rows.items()) if scored < week]


@dataclass(frozen=True)
class EvaluatedChampion:
    """A batch of which enough labels matured; ``limit`` is what its AUC must not lie under."""

    batch_id: int
    variant: str
    week: date
    model_version: int
    roc_auc: Interval
    limit: float


@dataclass(frozen=True)
class LowSegment:
    """A part of a judged batch, whose ``p_below_limit``, of an AUC this low were it really ``limit``, is small."""

    variant: str
    segment: str
    level: str
    roc_auc: float
    limit: float
    p_below_limit: float


@dataclass(frozen=True)
class FailedRun:
    """A Dagster run that failed and was not made good by a later one.

    Attributes:
        names: The variants whose failure failed it, where each leaves an attempt; none when it failed otherwise.
    """

    job: str
    dagster_run_id: str
    started_at: datetime
    sentence: str
    names: Collection[str] = ()


@dataclass(frozen=True)
class DriftFlag:
    """A feature, or the score, of a batch that drifted; confirmed where it had the week before, too."""

    batch_id: int
    variant: str
    week: date
    drift: FeatureDrift
    is_confirmed: bool


def read_drifts(recorded: Mapping[str, Mapping[str, Any]] | None) -> list[FeatureDrift]:
    """Read the measures by feature that a batch's record keeps; none where it was compared with nothing."""
    return [FeatureDrift(feature, **measures) for feature, measures in (recorded or {}).items()]


def newest_batches(batches: Iterable[ScoredBatch], week: date) -> dict[str, ScoredBatch]:
    """Return each variant's batch of this week or, where that is not scored yet, of the last one."""
    recent = [batch for batch in batches if week - _WEEK <= batch.week <= week]
    return {batch.variant: batch for batch in sorted(recent, key=lambda batch: batch.week)}


def flag_drifts(batches: Sequence[ScoredBatch], week: date) -> list[DriftFlag]:
    """Find what drifted over the whole fleet, in each variant's newest batch.

    Args:
        batches: Of this week and the two before. A week in which another version scored confirms nothing: it was
            compared with another reference.
    """
    newest = newest_batches(batches, week)
    by_week = {(batch.variant, batch.week): batch for batch in batches}
    before = {key: by_week.get((key, batch.week - _WEEK)) for key, batch in newest.items()}
    flags = flag_fleet({key: batch.drifts for key, batch in newest.items()}, fdr=FDR)
    earlier = flag_fleet(
        {
            key: batch.drifts
            for key, batch in before.items()
            if batch is not None and batch.model_version == newest[key].model_version
        },
        fdr=FDR,
    )
    both = set(confirmed(flags, earlier))
    return [
        DriftFlag(batch.batch_id, key, batch.week, drift, Flag(key, drift.feature) in both)
        for key, batch in sorted(newest.items())
        for drift in batch.drifts
        if Flag(key, drift.feature) in flags
    ]


def drifted(flags: Iterable[DriftFlag]) -> list[Condition]:
    """Tell which variants' inputs and scores drifted two weeks running."""
    inputs: dict[str, list[FeatureDrift]] = {}
    scores: dict[str, list[FeatureDrift]] = {}
    for flag in flags:
        if flag.is_confirmed:
            into = scores if flag.drift.feature == SCORE else inputs
            into.setdefault(flag.variant, []).append(flag.drift)
    return [
        Condition("input_drifted", {key: _drift_sentence(found) for key, found in inputs.items()}),
        Condition("scores_drifted", {key: _drift_sentence(found) for key, found in scores.items()}),
    ]


def _drift_sentence(drifts: Sequence[FeatureDrift]) -> str:
    largest = sorted(drifts, key=lambda drift: -drift.excess_psi)
    told = [describe_drift(drift) for drift in largest[:_MOST_NAMED]]
    more = len(largest) - len(told)
    return f"{', '.join(told)}{f' and {more} more' if more else ''} differ from the model's reference two weeks running"


def describe_drift(drift: FeatureDrift) -> str:
    """Name a drift with its size.

    >>> describe_drift(FeatureDrift("brand_id", 900, 0.31, 0.3, 0.2, 1e-9, 0.12, 0.1, 1e-9))
    'brand_id (PSI 0.31, unknown 12.0 %)'
    """
    unknown = f", unknown {100 * drift.unknown_share:.1f} %" if has_more_unknown(drift) else ""
    return f"{drift.feature} (PSI {drift.psi:.2f}{unknown})"


def has_more_unknown(drift: FeatureDrift) -> bool:
    """Tell whether unknown values are part of a drift that was flagged."""
    return drift.unknown_rise >= LEAST_UNKNOWN_RISE and drift.unknown_p_value <= FDR


def variants_failed(attempts: Iterable[Attempt], batches: Mapping[str, ScoredBatch], now: datetime) -> Condition:
    """Tell whose newest attempt failed; one that a retry is likely to put right waits for it.

    Args:
        batches: The newest batch of each variant.
    """
    members: dict[str, str] = {}
    for attempt in attempts:
        if attempt.role == CHAMPION and _has_failed(attempt, now):
            stands = (batch := batches.get(attempt.variant)) is not None and batch.week == attempt.week
            rest = " (an earlier batch of the week stands)" if stands else ""
            members[attempt.variant] = f"week of {attempt.week}: {_shortened(str(attempt.error))}{rest}"
    return Condition("variants_failed", members)


def challengers_failed(attempts: Sequence[Attempt], now: datetime) -> Condition:
    """Tell whose challenger failed when the champion was scored last."""
    champions = {attempt.variant: attempt.number for attempt in attempts if attempt.role == CHAMPION}
    return Condition(
        "challengers_failed",
        {
            attempt.variant: f"week of {attempt.week}: {_shortened(str(attempt.error))}"
            for attempt in attempts
            if attempt.role == CHALLENGER
            and _has_failed(attempt, now)
            # It is tried after the champion; one that was not tried again is no challenger any more.
            and attempt.number > champions.get(attempt.variant, 0)
        },
    )


def _has_failed(attempt: Attempt, now: datetime) -> bool:
    return attempt.error is not None and not (attempt.is_transient and now - attempt.ended_at < _TRANSIENT_FOR)


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MOST_ERROR else f"{line[: _MOST_ERROR - 1]}…"


def week_due(now: datetime, grace: timedelta) -> date:
    """Return the newest week that must have been scored: before the grace is over, the last one."""
    return monday_of((now - grace).date())


def week_missed(
    registered: Iterable[str], histories: Mapping[str, History], attempts: Iterable[Attempt], due: date
) -> Condition:
    """Tell which variants had earlier weeks and have neither a batch nor an attempt of the week that is due."""
    tried = {attempt.variant: attempt.week for attempt in attempts if attempt.role == CHAMPION}
    members: dict[str, str] = {}
    for key in registered:
        weeks = [*(histories[key].n_rows if key in histories else ()), *([tried[key]] if key in tried else ())]
        if weeks and max(weeks) < due:
            members[key] = f"nothing was done for the week of {due}; the last one was {max(weeks)}"
    return Condition("week_missed", members)


def data_stale(batches: Iterable[ScoredBatch], histories: Mapping[str, History], today: date) -> Condition:
    """Tell which variants were scored on a stand-in, or on data older than it usually becomes."""
    found = {batch.variant: stale_sentence(batch, histories.get(batch.variant), today) for batch in batches}
    return Condition("data_stale", {key: sentence for key, sentence in found.items() if sentence})


def stale_sentence(batch: ScoredBatch, history: History | None, today: date) -> str | None:
    """Say in what way a batch's data is not fresh; ``None`` when it is."""
    if batch.fallback_reason is not None:
        return f"scored on the local copy: {_shortened(batch.fallback_reason)}"
    if batch.data_of != batch.variant:
        return f"scored on the data of {batch.data_of}, having none of its own"
    arrived_on = [day for day in (history.inputs.values() if history else ()) if day <= today]
    if not arrived_on or not (age := freshness(arrived_on, today)).is_stale:
        return None
    return f"no new data for {age.age_days} days, since {max(arrived_on)}; after {age.limit_days} it is late"


def volume_unusual(batches: Iterable[ScoredBatch], histories: Mapping[str, History]) -> Condition:
    """Tell which variants have far more or fewer rows than they usually have."""
    members: dict[str, str] = {}
    for batch in batches:
        history = histories.get(batch.variant)
        found = volume(batch.n_rows, history.before(batch.week) if history else ())
        if found.status in ("low", "high"):
            members[batch.variant] = f"{found.n_rows:,} rows in the week of {batch.week}, usually {found.usual:,.0f}"
    return Condition("volume_unusual", members)


def newest_evaluated(
    judged: Iterable[EvaluatedChampion], champions: Mapping[str, int | None]
) -> dict[str, EvaluatedChampion]:
    """Return each variant's newest judged batch of the version that is champion now: what another did is over."""
    by_week = sorted(judged, key=lambda one: (one.week, one.batch_id))
    return {one.variant: one for one in by_week if champions.get(one.variant) == one.model_version}


def performance_low(judged: Iterable[EvaluatedChampion]) -> Condition:
    """Tell whose AUC lies under its limit beyond what chance brings about in a fleet."""
    ordered = list(judged)
    is_low = discoveries([p_at_least(one.roc_auc, one.limit) for one in ordered], FDR)
    return Condition(
        "performance_low",
        {
            one.variant: f"ROC AUC {one.roc_auc.value:.3f} ({one.roc_auc.low:.3f} to {one.roc_auc.high:.3f}) "
            f"in the week of {one.week}; the limit is {one.limit:.3f}"
            for one, low in zip(ordered, is_low, strict=True)
            if low
        },
    )


def segment_low(segments: Sequence[LowSegment], n_evaluated: int, known: Collection[str]) -> Condition:
    """Tell which variants do badly in a part of their accounts.

    Args:
        segments: Those with a p-value of at most ``FDR``; no other can be named.
        n_evaluated: How many segments of the fleet have a p-value.
        known: Variants whose performance is low as a whole, which needs no parts to be told.
    """
    p_values = [segment.p_below_limit for segment in segments]
    is_low = discoveries(p_values, FDR, n_evaluated)
    low: dict[str, list[LowSegment]] = {}
    for segment, found in zip(segments, is_low, strict=True):
        if found and segment.variant not in known:
            low.setdefault(segment.variant, []).append(segment)
    return Condition("segment_low", {key: _segments_sentence(found) for key, found in low.items()})


def _segments_sentence(segments: Sequence[LowSegment]) -> str:
    worst = sorted(segments, key=lambda segment: segment.p_below_limit)
    told = [f"{one.segment} {one.level}: ROC AUC {one.roc_auc:.3f}" for one in worst[:_MOST_NAMED]]
    more = len(worst) - len(told)
    return f"{', '.join(told)}{f' and {more} more' if more else ''}; the limit is {worst[0].limit:.3f}"


def runs_failed(runs: Iterable[FailedRun], attempts: Iterable[Attempt]) -> list[Condition]:
    """Tell which runs failed, a condition for each job; not those of which each failed variant tells itself."""
    newest = {attempt.variant: attempt.ended_at for attempt in attempts if attempt.role == CHAMPION}
    by_job: dict[str, dict[str, str]] = {}
    for run in runs:
        is_told = run.names and all(key in newest and newest[key] >= run.started_at for key in run.names)
        if not is_told:
            by_job.setdefault(run.job, {})[run.dagster_run_id] = _shortened(run.sentence)
    return [Condition("run_failed", members, subject=job) for job, members in by_job.items()]
