"""Finds the current problems of the fleet in plain records: failures, drift, stale data, low performance. Pure.

Each variant is represented by its newest batch or attempt of this week or, until there is one, of last week, so that no
condition ends and begins again on Monday at midnight. Among thousands of variants some figure is always extreme, so
tests control the false discovery rate over the whole fleet.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import cached_property
from itertools import compress
from typing import Any

import numpy as np
from scipy import special

from churn.defaults import LABEL_LAG_DAYS
from churn.evaluation.metrics import Interval, discoveries, p_at_least
from churn.monitoring import drift
from churn.monitoring.drift import LEAST_FLEET, UNKNOWN, FeatureDrift, Flag, Volume
from churn.monitoring.incidents import Condition, Mark, one_line
from churn.monitoring.profiles import SCORE
from churn.versions import CHALLENGER, CHAMPION
from churn.weeks import monday_of, month_number, newest_month_due, newest_whole_month
from churn.wording import counted, listed, percent

FDR = 0.01  # false discovery rate: the expected share of false findings among all findings
LEAST_COMMON = 0.1  # share of the rows that moves in most variants of a fleet before people are told
LEAST_MONTHS = 3  # earlier months with which a month's rows are compared, at least
MOST_COHORTS = 6  # independent cohorts over which evidence accumulates, at most
MEMORY = timedelta(weeks=40)  # of a variant's history that is read: nine months of data, twice as much as is used

_WEEK = timedelta(weeks=1)
_TRANSIENT_FOR = timedelta(minutes=10)
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(minutes=10), timedelta(hours=4)
_MOST_ERROR = 400
_SMALLEST_P = 1e-300
_GAP_TOLERANCE, _EXCESS_TOLERANCE = 0.05, 0.02  # of the share that churned; of log-loss, in nats
_MOST_NAMED = 3


@dataclass(frozen=True)
class ScoredBatch:
    """A current batch of a champion."""

    batch_id: int
    variant: str
    week: date
    model_version: int
    n_rows: int
    data_of: str  # the key of the variant whose data was scored
    fallback_reason: str | None = None  # `None` if the data came from the configured source
    # One for each feature and one for the score; empty if the model has no reference
    drifts: Sequence[FeatureDrift] = ()
    as_of: date | None = None  # the batch's as-of day; `None` if unknown
    newest_month: date | None = None  # the newest month known then; `None` of encoded rows
    source_sha256: str = ""  # of the input file; batches of one file are one input
    n_newest: int | None = None  # rows of the newest month that was over at the as-of day; `None` if unknown

    @property
    def whole_month(self) -> date | None:
        """The month that ``n_newest`` is of."""
        known = self.newest_month is not None and self.as_of is not None and self.n_newest is not None
        return newest_whole_month(self.newest_month, self.as_of) if known else None  # type: ignore[arg-type]


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
    n_failed: int = 1  # failed attempts of its week until then
    error_type: str = ""
    dagster_run_id: str | None = None

    @property
    def next_at(self) -> datetime | None:
        """When its week is scored again by itself; ``None`` if it was published, or its error cannot pass by itself."""
        if self.error is None or not self.is_transient:
            return None
        return self.ended_at + min(_FIRST_PAUSE * 2.0 ** min(self.n_failed - 1, 10), _LONGEST_PAUSE)


@dataclass(frozen=True)
class History:
    """A variant's row counts and inputs over its earlier weeks."""

    n_rows: Mapping[date, int]  # read for the current batch of each week
    inputs: Mapping[str, date] = field(default_factory=dict)  # when each file first appeared, by its SHA-256
    n_newest: Mapping[date, int] = field(default_factory=dict)  # of each month that was the newest whole one

    def volume_of(self, batch: ScoredBatch) -> Volume:
        """Compare a batch's newest whole month with earlier ones, or its rows with those of the weeks before.

        An extract of all months hides what is missing from its newest one.
        """
        month, n_newest = batch.whole_month, batch.n_newest
        months = [n for of, n in sorted(self.n_newest.items()) if month is not None and of < month]
        if n_newest is not None and len(months) >= LEAST_MONTHS:
            return drift.volume(n_newest, months)
        return drift.volume(batch.n_rows, [n for scored, n in sorted(self.n_rows.items()) if scored < batch.week])


@dataclass(frozen=True)
class EvaluatedChampion:
    """A champion's batch with enough matured labels."""

    batch_id: int
    variant: str
    week: date
    model_version: int
    roc_auc: Interval
    limit: float  # the minimum ROC AUC of its model version
    as_of: date
    horizon_months: int  # batches at least this far apart share no outcome
    n: int  # labels; `n_churned` of them churned
    n_churned: int
    mean_score: float | None = None  # mean churn probability of the accounts with a label; `None` if unknown
    log_loss_excess: Interval | None = None  # see churn.evaluation.metrics.log_loss_excess; `None` if unknown
    is_calibrated: bool = False  # whether the scores are meant as probabilities

    @property
    def gap(self) -> float:
        """Share that churned, less the share expected."""
        return self.n_churned / self.n - (self.mean_score or 0)


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
    """A failed Dagster run that no later run has made up for; ``names`` are the variants that failed in it, if any.

    Of a sensor or schedule whose ticks keep failing, ``job`` is its name, and there is no run.
    """

    job: str
    dagster_run_id: str | None
    started_at: datetime
    sentence: str
    names: Collection[str] = ()


@dataclass(frozen=True)
class DriftFlag:
    """A feature, or the score, that drifted in a batch; confirmed if it drifted in the input before as well."""

    batch_id: int
    variant: str
    week: date
    drift: FeatureDrift
    is_confirmed: bool


def read_drifts(recorded: Mapping[str, Mapping[str, Any]] | None) -> list[FeatureDrift]:
    """Read the drift measures of a batch's record; empty if the batch was not compared with a reference."""
    return [FeatureDrift(feature, **measures) for feature, measures in (recorded or {}).items()]


class StoredDrifts(Sequence[FeatureDrift]):
    """Drift measures as a batch's record has them, parsed when first used: those of an earlier input seldom are."""

    def __init__(self, text: str | None) -> None:
        self._text = text

    @cached_property
    def _drifts(self) -> list[FeatureDrift]:
        return read_drifts(json.loads(self._text or "{}"))

    def __getitem__(self, place: Any) -> Any:
        return self._drifts[place]

    def __len__(self) -> int:
        return len(self._drifts)


def newest_batches(batches: Iterable[ScoredBatch], week: date) -> dict[str, ScoredBatch]:
    """Return each variant's batch of ``week`` or, if there is none yet, of the week before."""
    recent = [batch for batch in batches if week - _WEEK <= batch.week <= week]
    return {batch.variant: batch for batch in sorted(recent, key=lambda batch: batch.week)}


def inputs_before(batches: Iterable[ScoredBatch], newest: Mapping[str, ScoredBatch]) -> dict[str, ScoredBatch]:
    """Return each variant's newest batch of another input than its newest batch.

    A batch of the same rows confirms nothing, and neither does one of another model version, which was compared with
    another reference.
    """
    before = {}
    for batch in sorted(batches, key=lambda batch: batch.week):
        now = newest.get(batch.variant)
        is_other = now is not None and batch.source_sha256 != now.source_sha256 and batch.week < now.week
        if now is not None and is_other and batch.model_version == now.model_version:
            before[batch.variant] = batch
    return before


def flag_drifts(batches: Sequence[ScoredBatch], week: date, **least: float) -> list[DriftFlag]:
    """Find the features and scores that drifted in each variant's newest batch, over the whole fleet.

    There is, of each variant, at least the newest batch until ``week``, and the newest one of another input. The
    thresholds, ``least_moved`` and ``least_unknown_rise``, are as of :func:`churn.monitoring.drift.flag_fleet`.
    """
    newest = newest_batches(batches, week)

    def flag(inputs: Mapping[str, ScoredBatch]) -> frozenset[Flag]:
        return drift.flag_fleet({key: batch.drifts for key, batch in inputs.items()}, fdr=FDR, **least)

    flags = flag(newest)
    earlier = flag(inputs_before(batches, newest)) if flags else frozenset()
    return [
        DriftFlag(batch.batch_id, key, batch.week, of_feature, one in earlier)
        for key, batch in sorted(newest.items())
        for of_feature in batch.drifts
        if (one := Flag(key, of_feature.feature)) in flags
    ]


def drifted(flags: Iterable[DriftFlag]) -> list[Condition]:
    """Return the variants with broken data, and those with inputs or scores that drifted in two different inputs."""
    drifts: dict[str, dict[str, list[FeatureDrift]]] = {"data_broken": {}, "input_drifted": {}, "scores_drifted": {}}
    for flag in flags:
        kind = "scores_drifted" if flag.drift.feature == SCORE else "input_drifted"
        kind = "data_broken" if drift.is_broken(flag.drift) else kind
        if flag.is_confirmed or kind == "data_broken":
            drifts[kind].setdefault(flag.variant, []).append(flag.drift)
    sentences = {kind: {key: _drift_sentence(one, kind) for key, one in of.items()} for kind, of in drifts.items()}
    marks = {kind: {key: _drift_mark(one) for key, one in of.items()} for kind, of in drifts.items()}
    return [Condition(kind, members, marks=marks[kind]) for kind, members in sentences.items()]


def _drift_mark(drifts: Sequence[FeatureDrift]) -> Mark:
    return Mark(tuple(sorted(one.feature for one in drifts)), max(one.psi for one in drifts))


def _drift_sentence(drifts: Sequence[FeatureDrift], kind: str) -> str:
    by_effect = sorted(drifts, key=lambda one: (-abs(one.effect), -one.excess_psi))
    named = listed([describe_drift(one) for one in by_effect], _MOST_NAMED)
    if kind == "data_broken":
        return f"{named}: most values are unknown to the model or missing, which they were not in its reference"
    return f"{named} drifted from the model's reference in two different inputs"


def fleet_moved(batches: Sequence[ScoredBatch], week: date) -> Condition:
    """Return the features that moved in most variants of the fleet, in two different inputs; they are no drift."""
    newest = newest_batches(batches, week)
    now = drift.common_moves({key: batch.drifts for key, batch in newest.items()}, LEAST_COMMON)
    earlier = inputs_before(batches, newest) if now else {}
    before = drift.common_moves({key: batch.drifts for key, batch in earlier.items()}, LEAST_COMMON)
    said = {of: f"{_share_of(key)} moved by {100 * by:+.0f} points" for of, (key, by) in now.items() if of in before}
    members = {of: f"{text} in the median of {len(newest):,} variants" for of, text in said.items()}
    return Condition("fleet_moved", members, marks={one: Mark(figure=abs(now[one][1])) for one in members})


def _share_of(key: str) -> str:
    """Describe what a move is the share of.

    >>> _share_of("0.5"), _share_of("OH"), _share_of("unknown")
    ("the share of values up to the reference's 50 % quantile", 'the share of OH', 'the share of unknown values')
    """
    if key == UNKNOWN:
        return "the share of unknown values"
    is_decile = len(key) == 3 and key.startswith("0.")
    return f"the share of values up to the reference's {key[2:]}0 % quantile" if is_decile else f"the share of {key}"


def describe_drift(of: FeatureDrift) -> str:
    """Return the feature's name with the size of its drift.

    >>> moves = {"OH": (0.1, 0.25), "PA": (0.3, 0.2)}
    >>> describe_drift(FeatureDrift("brand_id", 900, 0.31, 0.3, 0.2, 1e-9, 0.12, 0.1, 1e-9, 900, -0.1, moves))
    'brand_id (share of OH 10 % → 25 %, log-odds -0.10, PSI 0.31, unknown 12.0 %)'
    """
    unknown = f", unknown {100 * of.unknown_share:.1f} %" if has_more_unknown(of) else ""
    by_size = sorted(of.moves.items(), key=lambda move: abs(move[1][1] - move[1][0]))
    key, (before, now) = by_size[-1] if by_size else (UNKNOWN, (0.0, 0.0))
    moved = "" if key == UNKNOWN else f"{_share_of(key).removeprefix('the ')} {percent(before)} → {percent(now)}, "
    effect = f"log-odds {of.effect:+.2f}, " if of.effect else ""
    return f"{of.feature} ({moved}{effect}PSI {of.psi:.2f}{unknown})"


def has_more_unknown(of: FeatureDrift) -> bool:
    """Return whether the share of unknown values rose in a drift that was flagged."""
    return of.unknown_rise >= drift.LEAST_UNKNOWN_RISE and of.unknown_p_value <= FDR


def variants_failed(attempts: Iterable[Attempt], batches: Mapping[str, ScoredBatch], now: datetime) -> Condition:
    """Return the variants whose newest attempt failed; transient errors count only after ten minutes."""
    members, marks = dict[str, str](), dict[str, Mark]()
    for attempt, sentence, mark in _failures(attempts, CHAMPION, now):
        has_batch = (batch := batches.get(attempt.variant)) is not None and batch.week == attempt.week
        notes = ["an earlier batch is still published"] if has_batch else []
        notes += [f"scored again by itself from {at:%Y-%m-%d %H:%M} UTC on"] if (at := attempt.next_at) else []
        known = f" ({', '.join(notes)})" if notes else ""
        members[attempt.variant] = f"week of {attempt.week}{known}: {sentence}"
        marks[attempt.variant] = mark
    return Condition("variants_failed", members, marks=marks)


def challengers_failed(attempts: Sequence[Attempt], now: datetime) -> Condition:
    """Return the variants whose challenger failed when the champion was last scored."""
    champions = {attempt.variant: attempt.number for attempt in attempts if attempt.role == CHAMPION}
    # The challenger scores after the champion; an older attempt is of a version that is no longer the challenger.
    failures = [one for one in _failures(attempts, CHALLENGER, now) if one[0].number > champions.get(one[0].variant, 0)]
    members = {one.variant: f"week of {one.week}: {sentence}" for one, sentence, _ in failures}
    return Condition("challengers_failed", members, marks={one.variant: mark for one, _, mark in failures})


def _failures(attempts: Iterable[Attempt], role: str, now: datetime) -> Iterator[tuple[Attempt, str, Mark]]:
    for one in attempts:
        is_recent = one.is_transient and now - one.ended_at < _TRANSIENT_FOR
        if one.role == role and one.error is not None and not is_recent:
            # The text of what may pass differs from one attempt to the next.
            cause = one.error_type if one.is_transient else f"{one.error_type} {_digest_of(one.error)}".strip()
            yield one, one_line(one.error, _MOST_ERROR), Mark((cause,), dagster_run_id=one.dagster_run_id)


def _digest_of(error: str) -> str:
    """Return what tells causes apart: a text without its numbers, quoted values and files, which may be personal.

    >>> _digest_of("s3://b/x.csv: 3 rows lack 'age'") == _digest_of("s3://b/y.csv: 12 rows lack 'id'")
    True
    """
    words = re.sub(r"'[^']*'|\"[^\"]*\"|\S*[\d/]\S*", "", error).split()
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:8]


def week_due(now: datetime, grace: timedelta) -> date:
    """Return the newest week that should have been scored: the last week until the grace period is over."""
    return monday_of((now - grace).date())


def week_missed(
    registered: Mapping[str, datetime], histories: Mapping[str, History], attempts: Iterable[Attempt], due: date
) -> Condition:
    """Return the variants with neither a batch nor an attempt of the week that is due, though registered before it."""
    weeks = {key: list(history.n_rows) for key, history in histories.items()}
    for attempt in (one for one in attempts if one.role == CHAMPION):
        weeks.setdefault(attempt.variant, []).append(attempt.week)
    text, members, marks = f"not scored for the week of {due};", {}, {}
    for key, since in registered.items():
        last = max(weeks.get(key, ()), default=None)
        if (last or since.date()) < due:
            members[key] = f"{text} the last week scored or attempted is {last}" if last else f"{text} it never was"
            marks[key] = Mark(figure=(due - (last or since.date())).days)
    return Condition("week_missed", members, marks=marks)


def to_repeat(attempts: Iterable[Attempt], missed: Condition, now: datetime) -> dict[str, int]:
    """Return the variants to score again for the running week, each with the number of its last attempt, else 0.

    ``missed`` is from :func:`week_missed`, for the running week.
    """
    failed = (one for one in attempts if one.role == CHAMPION and one.week == monday_of(now.date()))
    due = {one.variant: one.number for one in failed if (at := one.next_at) is not None and at <= now}
    return dict.fromkeys(missed.members, 0) | due


def variants_missing(watched: Mapping[str, datetime], registered: Collection[str]) -> Condition:
    """Return the variants that were registered or scored, are not registered now, and were not acknowledged as gone."""
    text = "not registered in MLflow any more, so it is not scored; watched since"
    members = {key: f"{text} {since:%Y-%m-%d}" for key, since in watched.items() if key not in registered}
    return Condition("variants_missing", members)


def data_stale(batches: Iterable[ScoredBatch], histories: Mapping[str, History], today: date) -> Condition:
    """Return the variants scored from a fallback copy, from another variant's data, or from overdue data."""
    members, marks = dict[str, str](), dict[str, Mark]()
    for batch in batches:
        history = histories.get(batch.variant)
        if batch.fallback_reason is not None:
            members[batch.variant] = f"scored from the local copy: {one_line(batch.fallback_reason, _MOST_ERROR)}"
            marks[batch.variant] = Mark(("local copy",))
        elif sentence := outdated_sentence(batch, history, today):
            members[batch.variant] = sentence
            age_days, _ = drift.freshness(history.inputs.values() if history else (), today)
            marks[batch.variant] = Mark(("other data" if batch.data_of != batch.variant else "old",), age_days)
    return Condition("data_stale", members, marks=marks)


def outdated_sentence(batch: ScoredBatch, history: History | None, today: date) -> str | None:
    """Return why a batch's data is another variant's or overdue, wherever it was read; ``None`` if it is neither."""
    if batch.data_of != batch.variant:
        return f"scored from the data of {batch.data_of}, since the variant has no input"
    if batch.as_of is not None and batch.newest_month is not None:
        due = newest_month_due(batch.as_of, LABEL_LAG_DAYS)  # the last month whose late reports should have arrived
        if batch.newest_month < due:
            return f"the newest month of the data is {batch.newest_month:%Y-%m}; {due:%Y-%m} should have arrived"
    age_days, limit_days = drift.freshness(history.inputs.values() if history else (), today)
    if age_days <= limit_days:
        return None
    return f"no new data for {age_days} days, since {today - timedelta(age_days)}; the limit is {limit_days} days"


def volume_unusual(batches: Iterable[ScoredBatch], histories: Mapping[str, History]) -> Condition:
    """Return the variants with far more or far fewer rows than usual."""
    members, marks = dict[str, str](), dict[str, Mark]()
    for batch in batches:
        rows = histories.get(batch.variant, History({})).volume_of(batch)
        if rows.status in ("low", "high"):
            of = f"of {batch.whole_month:%Y-%m}" if rows.n_rows == batch.n_newest else f"in the week of {batch.week}"
            members[batch.variant] = f"{rows.n_rows:,} rows {of}; usual are {rows.usual:,.0f}"
            by = (rows.n_rows + 1) / ((rows.usual or 0) + 1)
            marks[batch.variant] = Mark((rows.status,), max(by, 1 / by))
    return Condition("volume_unusual", members, marks=marks)


def independent_cohorts(
    evaluated: Iterable[EvaluatedChampion], champions: Mapping[str, int | None]
) -> dict[str, list[EvaluatedChampion]]:
    """Return evaluated batches of each variant's current champion version that share no outcome, the newest first."""
    cohorts: dict[str, list[EvaluatedChampion]] = {}
    for one in sorted(evaluated, key=lambda one: (one.as_of, one.batch_id), reverse=True):
        if champions.get(one.variant) != one.model_version:
            continue
        of_variant = cohorts.setdefault(one.variant, [])
        is_apart = not of_variant or month_number(of_variant[-1].as_of) - month_number(one.as_of) >= one.horizon_months
        if is_apart and len(of_variant) < MOST_COHORTS:
            of_variant.append(one)
    return cohorts


def accumulated(p_values: Sequence[float], weights: Sequence[float], step: int = 1) -> tuple[float, int]:
    """Return the p-value of all cohorts together, and how many of them, the newest first, weigh most against the model.

    The cohorts' p-values are combined by Stouffer's method, for each number of them, since a model may have become
    worse lately: the smallest counts, times their number. With a ``step``, only multiples of it are combined.

    >>> p_value, n_cohorts = accumulated([0.01, 0.01, 0.01, 0.9], [500, 500, 500, 500])
    >>> round(p_value, 5), n_cohorts
    (0.00011, 3)
    """
    z = special.ndtri(np.clip(p_values, _SMALLEST_P, 1 - 1e-15)) * np.sqrt(weights)
    combined = (np.cumsum(z) / np.sqrt(np.cumsum(weights)))[step - 1 :: step]
    n = int(combined.argmin()) + 1
    return min(1.0, float(special.ndtr(combined[n - 1])) * len(combined)), n * step


def performance_low(cohorts: Mapping[str, Sequence[EvaluatedChampion]]) -> Condition:
    """Return the variants with a ROC AUC significantly below its limit, over their independent cohorts."""
    p_values = ([p_at_least(one.roc_auc, one.limit) for one in of_variant] for of_variant in cohorts.values())
    weights = ([one.n for one in of_variant] for of_variant in cohorts.values())
    found, members, marks = list(map(accumulated, p_values, weights)), dict[str, str](), dict[str, Mark]()
    newest = [of_variant[0] for of_variant in cohorts.values()]
    for one, (_, n) in compress(zip(newest, found, strict=True), discoveries([p for p, _ in found], FDR)):
        found_in = f"the week of {one.week}" + ("" if n == 1 else f", with {counted(n - 1, 'earlier cohort')}")
        members[one.variant] = f"ROC AUC {one.roc_auc:.3f} in {found_in}; the limit is {one.limit:.3f}"
        marks[one.variant] = Mark(figure=max(one.limit - one.roc_auc.value, 0.0))
    return Condition("performance_low", members, marks=marks)


def calibration_poor(cohorts: Mapping[str, Sequence[EvaluatedChampion]]) -> Condition:
    """Return the variants whose outcomes contradict their scores, over their independent cohorts.

    Either another share churned than the scores lead one to expect, or the log-loss is higher. What holds for most
    variants of a fleet, a season, is subtracted; of few variants, cohorts half a year apart count together, in which it
    cancels out. Small differences are tolerated.
    """
    known = {key: [one for one in of_variant if one.mean_score is not None] for key, of_variant in cohorts.items()}
    known = {key: of_variant for key, of_variant in known.items() if of_variant and of_variant[0].is_calibrated}
    newest = [of_variant[0] for of_variant in known.values()]
    if (step := 1 + (len(newest) < LEAST_FLEET)) == 2:
        known = {key: pairs for key, of_variant in known.items() if (pairs := _half_years(of_variant))}
    usual = np.median([one.gap for one in newest]) if len(newest) >= LEAST_FLEET else 0.0
    excesses = [one.log_loss_excess.value for one in newest if one.log_loss_excess is not None]
    usual_excess = max(float(np.median(excesses)), 0.0) if len(excesses) >= LEAST_FLEET else 0.0
    found: list[tuple[float, str, str]] = []
    for key, of_variant in known.items():
        weights = [one.n for one in of_variant]
        for side in (1, -1):
            p, n = accumulated([_p_of_gap(one, side, float(usual)) for one in of_variant], weights, step)
            found.append((min(2 * p, 1), key, _gap_sentence(of_variant[:n])))
        p, n = accumulated([_p_of_excess(one, usual_excess) for one in of_variant], weights, step)
        found.append((p, key, _excess_sentence(of_variant[:n])))
    members: dict[str, list[str]] = {}
    for _, key, sentence in compress(found, discoveries([p for p, _, _ in found], FDR)):
        members.setdefault(key, []).append(sentence)
    marks = {one.variant: Mark(figure=abs(one.gap - float(usual))) for one in newest if one.variant in members}
    return Condition("calibration_poor", {key: "; ".join(said) for key, said in members.items()}, marks=marks)


def _half_years(cohorts: Sequence[EvaluatedChampion]) -> list[EvaluatedChampion]:
    """Return cohorts, the newest first, each followed by the one nearest to half a year before."""
    paired: list[EvaluatedChampion] = []
    for one in cohorts:
        rest, month = [other for other in cohorts if other not in paired], month_number(one.as_of)
        off = {abs(month - month_number(other.as_of) - 6): other for other in rest}
        if one in rest and min(off) <= 2:
            paired += [one, off[min(off)]]
    return paired


def _p_of_gap(one: EvaluatedChampion, side: int, usual: float) -> float:
    mean = one.mean_score or 0.0
    error = max((mean * (1 - mean) / one.n) ** 0.5, 1e-9)  # at most; less where scores differ
    return float(special.ndtr((_GAP_TOLERANCE - side * (one.gap - usual)) / error))


def _p_of_excess(one: EvaluatedChampion, usual: float) -> float:
    if one.log_loss_excess is None:
        return 0.5
    error = max((one.log_loss_excess.high - one.log_loss_excess.low) / 2 / special.ndtri(0.975), 1e-9)
    return float(special.ndtr((_EXCESS_TOLERANCE + usual - one.log_loss_excess.value) / error))


def _gap_sentence(cohorts: Sequence[EvaluatedChampion]) -> str:
    n, n_churned = sum(one.n for one in cohorts), sum(one.n_churned for one in cohorts)
    expected = sum(one.n * (one.mean_score or 0) for one in cohorts) / n
    return f"{percent(n_churned / n, 1)} of {n:,} accounts churned, the scores expected {percent(expected, 1)}"


def _excess_sentence(cohorts: Sequence[EvaluatedChampion]) -> str:
    values = [one.log_loss_excess.value for one in cohorts if one.log_loss_excess is not None]
    mean = sum(values) / max(len(values), 1)
    return f"log-loss {mean:.3f} above what the scores imply, mean of {len(values)} cohorts"


def segment_low(segments: Sequence[LowSegment], n_evaluated: int, excluded: Collection[str]) -> Condition:
    """Return the variants with a segment that has a ROC AUC significantly below the limit.

    ``segments`` are those with a p-value of at most ``FDR``, since no other can be significant, of the fleet's
    ``n_evaluated`` with one. ``excluded`` are variants with low overall performance.
    """
    low: dict[str, list[LowSegment]] = {}
    for segment in compress(segments, discoveries([one.p_below_limit for one in segments], FDR, n_evaluated)):
        if segment.variant not in excluded:
            low.setdefault(segment.variant, []).append(segment)
    causes = {key: tuple(f"{one.segment} {one.level}" for one in of_variant) for key, of_variant in low.items()}
    marks = {key: Mark(causes[key], max(one.limit - one.roc_auc for one in low[key])) for key in low}
    return Condition("segment_low", {key: _segments_sentence(these) for key, these in low.items()}, marks=marks)


def _segments_sentence(segments: Sequence[LowSegment]) -> str:
    worst = sorted(segments, key=lambda segment: segment.p_below_limit)
    named = listed([f"{one.segment} {one.level}: ROC AUC {one.roc_auc:.3f}" for one in worst], _MOST_NAMED)
    return f"{named}; the limit is {worst[0].limit:.3f}"


def runs_failed(runs: Iterable[FailedRun], attempts: Iterable[Attempt]) -> list[Condition]:
    """Return the failing ticks, and the failed runs by job, except those whose failures show in their variants."""
    newest = {attempt.variant: attempt.ended_at for attempt in attempts if attempt.role == CHAMPION}
    by_job, ticks = dict[str, dict[str, str]](), dict[str, str]()
    for run in runs:
        if run.dagster_run_id is None:
            ticks[run.job] = one_line(run.sentence, _MOST_ERROR)
        elif not run.names or any(key not in newest or newest[key] < run.started_at for key in run.names):
            by_job.setdefault(run.job, {})[run.dagster_run_id] = one_line(run.sentence, _MOST_ERROR)
    marks = {name: Mark((_digest_of(sentence),)) for name, sentence in ticks.items()}
    of_runs = {job: {one: Mark(dagster_run_id=one) for one in members} for job, members in by_job.items()}
    failed = [Condition("run_failed", members, job, of_runs[job]) for job, members in by_job.items()]
    return [*failed, *([Condition("ticks_failed", ticks, marks=marks)] if ticks else [])]
