"""Evaluation: measure the performance of published batches whose labels have matured, and compare challengers.

For each variant, :func:`evaluate_fleet` ingests new activity, builds labels from what is known today, evaluates each
batch as a whole and by segment, and compares the challenger with the champion. Figures are stored in PostgreSQL and
logged to MLflow.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import polars as pl

from churn.data.arrays import Doubles, Flags
from churn.data.columns import Columns
from churn.data.labels import Horizon, Ids, Labels, Reports, at_risk, label
from churn.database.evaluations import EvaluatedBatch, Evaluations, Pair, PublishedBatch, Scored
from churn.errors import ChurnError, UnlabelledError
from churn.evaluation.comparison import Comparison, Limits, PairedCohort, compare
from churn.evaluation.metrics import counts, evaluate, reliability
from churn.evaluation.segments import EvaluatedSegment, Levels, below_limit, evaluate_segments
from churn.registry import tags as tag
from churn.storage.history import Appended
from churn.storage.sources import NoFileError
from churn.variants import Variant
from churn.versions import CHAMPION
from churn.weeks import month_number
from churn.workflows.engines import for_each_on
from churn.workflows.fleet import Attempts, error_text, for_each_variant
from churn.workflows.ingest import Ingestion, NoActivityError, with_numbers

if TYPE_CHECKING:
    from churn.registry.registry import Registry
    from churn.workflows.promote import Promoter, VariantStatus
    from churn.workflows.ray_engine import Workers

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")
Evaluated = list[EvaluatedBatch]
Tags = Mapping[str, str]
TagsOf = Callable[[Variant, int], Tags]  # returns the tags of a variant's model version
_AUTO_PROMOTED = "CHURN_AUTO_PROMOTE"  # the reason recorded with an automatic promotion
_THREADS = 2  # more of them wait for one another
_LOGGED_WITHIN = timedelta(days=60)
_REPAIRED_WITHIN = timedelta(days=180)
_LEAST_CHANGE = 0.01  # of the accounts at risk; late reports, as they come in every month, change fewer labels
_LIVE_METRICS = (
    "roc_auc", "roc_auc_low", "roc_auc_high", "brier_score", "log_loss", "average_precision", "calibration_error",
    "lift_at_10",
)  # fmt: skip


@dataclass(frozen=True)
class VariantEvaluation:
    """The result of evaluating a variant: the batches evaluated now, by week, its models and their comparison."""

    n_new_facts: int = 0
    batches: Sequence[EvaluatedBatch] = ()
    status: "VariantStatus | None" = None
    not_evaluated: str | None = None  # why the variant cannot be evaluated; then `status` is `None`

    @property
    def of_champion(self) -> list[EvaluatedBatch]:
        """The champion's batches among those evaluated."""
        return [one for one in self.batches if one.batch.role == CHAMPION]

    @property
    def segments_below_limit(self) -> list[tuple[date, EvaluatedSegment]]:
        """Segments of the champion's batches below the limit, with false discoveries controlled over the variant."""
        segments = [(one.batch.scored_week, segment) for one in self.of_champion for segment in one.segments]
        is_low = below_limit([segment for _, segment in segments])
        return [pair for pair, low in zip(segments, is_low, strict=True) if low]


def evaluate_fleet(
    promoter: "Promoter",
    keys: Sequence[str],
    *,
    auto_promote: bool = False,
    log: logging.Logger = logger,
    workers: "Workers[Promoter] | None" = None,
) -> Attempts[VariantEvaluation]:
    """Evaluate many variants, promote challengers that are proven better if ``auto_promote``, and withdraw ended ones.

    Yields each key with the evaluation or the error: as they complete from ``workers``, in the order of ``keys``
    without. Aliases that were moved outside of this project are recorded first. False promotions are controlled over
    all of ``keys``, so they should be many. Aliases are moved, which is logged to ``log``, once the last result was
    consumed.
    """
    aliases = promoter.registry.aliases()
    promoter.observe(aliases)
    requested = set(keys)
    of_fleet = promoter.for_fleet([variant for variant in aliases if variant.key in requested], aliases)
    evaluated: list[Variant] = []
    compared: dict[str, VariantStatus] = {}
    work = partial(_evaluate, listed=of_fleet.listed, pending=of_fleet.evaluator.listed)
    for key, result in for_each_on(workers, promoter, work, keys, n_threads=_THREADS):
        if not isinstance(result, BaseException):
            evaluated.append(Variant.from_key(key))
            if result.status is not None and result.status.comparison is not None:
                compared[key] = result.status
        yield key, result
    if auto_promote:
        _promote(promoter, evaluated, log)
    _withdraw(promoter, compared, log)


def _evaluate(
    promoter: "Promoter", variant: Variant, *, listed: Mapping[Variant, Any], pending: Mapping[Variant, Any]
) -> VariantEvaluation:
    """Evaluate a variant with what ``Promoter.for_fleet`` listed, where it was listed."""
    evaluator = replace(promoter.evaluator, listed=pending)
    return evaluate_variant(replace(promoter, listed=listed, evaluator=evaluator), variant)


def _promote(promoter: "Promoter", evaluated: Sequence[Variant], log: logging.Logger) -> None:
    for variant, promoted in promoter.promote_all(evaluated, reason=_AUTO_PROMOTED).items():
        if isinstance(promoted, BaseException):
            log.error("%s: promotion failed: %s", variant, error_text(promoted))
        elif isinstance(promoted, Comparison):
            log.info("%s: not promoted: %s", variant, promoted.sentence)
        else:
            log.info("%s: version %s was promoted to champion", variant, promoted.champion)


def _withdraw(promoter: "Promoter", compared: Mapping[str, "VariantStatus"], log: logging.Logger) -> None:
    for key, event in for_each_variant(lambda one: promoter.withdraw_ended(one, compared[one.key]), list(compared)):
        if isinstance(event, BaseException):
            log.error("%s: the challenger was not withdrawn: %s", key, error_text(event))
        elif event is not None:
            log.info("%s: challenger version %s was withdrawn: %s", key, event.from_challenger, event.reason)


def evaluate_variant(promoter: "Promoter", variant: Variant) -> VariantEvaluation:
    """Ingest a variant's activity, evaluate its batches whose labels have matured, and compare its challenger."""
    evaluator = promoter.evaluator
    try:
        appended = evaluator.ingestion.ingest(variant)
    except (NoActivityError, NoFileError) as error:
        # Encoded rows, the bundled simulation, or nothing yet: no labels can be built. What vanished is an error.
        if isinstance(error, NoFileError) and evaluator.ingestion.history.version(variant) is not None:
            raise
        return VariantEvaluation(not_evaluated=str(error))
    try:
        batches = evaluator.evaluate_batches(variant, promoter.today, appended)
        return VariantEvaluation(appended.n_added, batches, promoter.status(variant, appended))
    except UnlabelledError as error:
        return VariantEvaluation(appended.n_added, not_evaluated=str(error))


@dataclass(frozen=True)
class PendingEvaluation:
    """Batches to evaluate, whose labels may be used, and evaluations to log to MLflow, of some variants."""

    unevaluated: list[PublishedBatch]
    unlogged: list[EvaluatedBatch]
    version_tags: Mapping[tuple[Variant, int], Tags] | None = None  # of all versions; `None` queries those needed


@dataclass(frozen=True)
class PerformanceEvaluator:
    """The services and limits of evaluation."""

    ingestion: Ingestion
    registry: "Registry"
    results: Evaluations
    horizon: Horizon
    limits: Limits
    auc_limit: float  # of versions registered without a limit of their own
    # Of a fleet's variants, from one query; that of others is queried when needed.
    listed: Mapping[Variant, PendingEvaluation] = field(default_factory=dict)

    def for_fleet(self, variants: Sequence[Variant], today: date) -> "PerformanceEvaluator":
        """Return an evaluator that has queried PostgreSQL and the registry once for a fleet's pending work."""
        pending = self._pending(variants, today)
        tags = self.registry.version_tags() if len(variants) > 1 else None
        listed = {one: PendingEvaluation([], [], tags) for one in variants}
        for batch in pending.unevaluated:
            listed[batch.variant].unevaluated.append(batch)
        for one in pending.unlogged:
            listed[one.batch.variant].unlogged.append(one)
        return replace(self, listed=listed)

    def evaluate_batches(self, variant: Variant, today: date, appended: Appended | None = None) -> list[EvaluatedBatch]:
        """Evaluate the variant's current batches whose labels have matured and that were not evaluated yet.

        A week with outcomes that its model has seen is not evaluated (see :func:`churn.registry.tags.evidence_after`).
        One whose labels are missing is evaluated once the activity that they need has arrived. One that was evaluated
        within the last 180 days is evaluated again if activity that arrived since changes the labels of 1 % of the
        accounts at risk, as after a repair of the feed; the earlier evaluation stays in ``replaced_evaluations``. If
        MLflow fails, the figures are logged at a later evaluation, for up to 60 days. The history is that of ingestion,
        ``appended``; without it, it is read, and no batch is evaluated again.
        """
        pending = self.listed.get(variant) or self._pending([variant], today)
        tags_of = cache(partial(self._tags_of, pending))
        due = pending.unevaluated
        batches = [one for one in due if one.as_of > tag.evidence_after(tags_of(variant, one.model_version))]
        earlier = [] if appended is None else self.results.evaluated_since(variant, today - _REPAIRED_WITHIN)
        evaluated: list[EvaluatedBatch] = []
        if batches or earlier:
            known = self.ingestion.history.open(variant) if appended is None else appended
            changed = self._changed(earlier, known, today, tags_of)
            found = self._evaluate_all([*batches, *(one.batch for one in changed)], known, today, tags_of)
            evaluated, replaced = _with_reasons(found, changed)
            self.results.record(evaluated, replaced)
        logged_now = {one.batch.batch_id for one in evaluated}
        unlogged = [one for one in pending.unlogged if one.batch.batch_id not in logged_now]
        self._log_live(variant, [*unlogged, *evaluated])
        return evaluated

    def _changed(self, earlier: Evaluated, known: Appended, today: date, tags_of: TagsOf) -> Evaluated:
        """Return the evaluations whose labels seem to have changed, by all accounts at risk; corrects evidence days.

        The weeks of a month share the months of their labels, so that one of them tells: the one evaluated first.
        """
        reports_of, first = cache(partial(build_reports, known)), dict[int, EvaluatedBatch]()
        counted: list[EvaluatedBatch] = []
        for one in sorted(earlier, key=lambda one: one.labels_as_of):
            batch = one.batch
            after = tag.evidence_after(tags_of(batch.variant, batch.model_version))
            if after != one.evidence_after:
                self.results.date_evidence(batch.variant, batch.model_version, after)
            if batch.as_of > after:
                counted.append(one)
                first.setdefault(month_number(batch.as_of), one)
        changed = set()
        for month, one in first.items():
            reports = reports_of(_columns(one.batch, tags_of(one.batch.variant, one.batch.model_version)))
            candidates = at_risk(reports, one.batch.as_of, self.horizon)
            labels = label(reports, candidates, one.batch.as_of, today=today, horizon=self.horizon)
            if _why_again(one, len(labels.account_ids), int(labels.churned.sum())):
                _, churned, weights = self.untreated(one.batch, labels)
                if weights is None or _why_again(one, *counts(churned, weights)[:2]):
                    changed.add(month)
        return [one for one in counted if month_number(one.batch.as_of) in changed]

    def compare(
        self, variant: Variant, champion: int, challenger: int, today: date, appended: Appended | None = None
    ) -> Comparison:
        """Compare a challenger with the champion on the accounts that both scored and whose labels have matured."""
        pairs = newest_of_each_month(self.results.pairs(variant, champion, challenger), lambda pair: pair.champion)
        since = pairs[0].champion.as_of if pairs else None
        pairs = [pair for pair in pairs if self.horizon.matures_on(pair.champion.as_of) <= today]
        if not pairs or (appended is None and self.ingestion.history.version(variant) is None):
            return replace(compare([], self.horizon.months, self.limits), since=since)
        listed = (self.listed[variant].version_tags if variant in self.listed else None) or {}
        tags = [listed.get((variant, one)) or self.registry.tags_of(variant, one) for one in (champion, challenger)]
        after = max(map(tag.evidence_after, tags))
        cohorts: Iterable[PairedCohort] = ()
        if pairs := [pair for pair in pairs if pair.champion.as_of > after]:
            columns = tag.columns_of(tags[0].get(tag.COLUMNS), f"version {champion} of {variant}")
            reports = build_reports(self.ingestion.history.open(variant) if appended is None else appended, columns)
            cohorts = (self._cohort(pair, reports, today) for pair in pairs)
        return replace(compare(cohorts, self.horizon.months, self.limits), after=after, since=since)

    def _pending(self, variants: Sequence[Variant], today: date) -> PendingEvaluation:
        unevaluated = self.results.unevaluated(variants, self.horizon.newest_mature(today))
        return PendingEvaluation(unevaluated, self.results.unlogged(variants, today - _LOGGED_WITHIN))

    def _tags_of(self, pending: PendingEvaluation, variant: Variant, version: int) -> Tags:
        listed = pending.version_tags
        return self.registry.tags_of(variant, version) if listed is None else listed.get((variant, version), {})

    def _evaluate_all(self, batches: list[PublishedBatch], known: Appended, today: date, tags_of: TagsOf) -> Evaluated:
        reports_of, levels_of = cache(partial(build_reports, known)), cache(partial(Levels, known.facts))
        evaluated = []
        for batch, scored in zip(batches, self.results.scores(batches), strict=True):
            tags = tags_of(batch.variant, batch.model_version)
            columns = _columns(batch, tags)
            one = self._evaluate(batch, scored, reports_of(columns), levels_of(columns.segments), today, tags=tags)
            evaluated += [] if one is None else [one]
        return evaluated

    def _log_live(self, variant: Variant, unlogged: Iterable[EvaluatedBatch]) -> None:
        by_run: dict[str, list[EvaluatedBatch]] = defaultdict(list)
        for one in unlogged:
            by_run[one.batch.mlflow_run_id].append(one)
        for mlflow_run_id, of_run in by_run.items():
            try:
                self.registry.log_live(mlflow_run_id, [_live_point(one) for one in of_run])
            except ChurnError as error:
                logger.warning("%s: evaluated; logging to MLflow failed and will be retried: %s", variant, error)
                continue
            self.results.mark_logged(of_run)

    def _evaluate(
        self, batch: PublishedBatch, scored: Scored, reports: Reports, levels: Levels, today: date, *, tags: Tags
    ) -> EvaluatedBatch | None:
        (account_ids, scores), limit = scored, float(tags.get(tag.AUC_LIMIT, self.auc_limit))
        candidates = self._at_risk(reports, account_ids, batch.as_of)
        labels = label(reports, candidates, batch.as_of, today=today, horizon=self.horizon)
        if not len(labels.account_ids):
            logger.warning(
                "%s, week of %s: no label is known for any of %d accounts, of which %d were at risk of churning",
                batch.variant, batch.scored_week, len(account_ids), len(candidates),
            )  # fmt: skip
            return None
        known, churned, weights = self.untreated(batch, labels)
        scores = scores[np.searchsorted(account_ids, known)]
        evaluation = evaluate(churned, scores, weights)
        if weights is not None:
            logger.info(
                "%s, week of %s: of %d accounts with labels, campaigns left %d alone, which weigh as much as %d: %s",
                batch.variant, batch.scored_week, len(labels.account_ids), len(known), evaluation.n, evaluation.status,
            )  # fmt: skip
        return EvaluatedBatch(
            batch=batch, labels_as_of=today, horizon_months=self.horizon.months, auc_limit=limit,
            n_accounts=len(account_ids), n_at_risk=len(candidates), n_missing=labels.n_missing,
            n_matured=evaluation.n, n_churned=evaluation.n_churned, status=evaluation.status,
            measures=evaluation.metrics(), evidence_after=tag.evidence_after(tags),
            reliability=None if evaluation.status == "insufficient" else reliability(churned, scores, weights),
            segments=evaluate_segments(levels.known(known, batch.as_of), churned, scores, limit, weights),
        )  # fmt: skip

    def _at_risk(self, reports: Reports, account_ids: Ids, as_of: date) -> Ids:
        """Exclude the accounts that had churned before they were scored, which any model could predict."""
        return np.intersect1d(account_ids, at_risk(reports, as_of, self.horizon), assume_unique=True)

    def untreated(self, batch: PublishedBatch, labels: Labels) -> tuple[Ids, Flags, Doubles | None]:
        """Return the accounts that no list contacted, their labels, and their weights if there was one."""
        weights = self.results.weights(batch.variant, batch.as_of, labels.account_ids, self.horizon)
        if weights is None:
            return labels.account_ids, labels.churned, None
        return labels.account_ids[weights > 0], labels.churned[weights > 0], weights[weights > 0]

    def _cohort(self, pair: Pair, reports: Reports, today: date) -> PairedCohort:
        (account_ids, champion), (others, challenger) = self.results.scores([pair.champion, pair.challenger])
        both, first, second = np.intersect1d(account_ids, others, assume_unique=True, return_indices=True)
        candidates = self._at_risk(reports, both, pair.champion.as_of)
        labels = label(reports, candidates, pair.champion.as_of, today=today, horizon=self.horizon)
        known, churned, weights = self.untreated(pair.champion, labels)
        places = np.searchsorted(both, known)
        champion, challenger = champion[first][places], challenger[second][places]
        return PairedCohort(pair.champion.as_of, known, champion, challenger, churned, weights)


def _columns(batch: PublishedBatch, tags: Tags) -> Columns:
    return tag.columns_of(tags.get(tag.COLUMNS), f"version {batch.model_version} of {batch.variant}")


def _with_reasons(evaluated: Evaluated, earlier: Evaluated) -> tuple[Evaluated, Evaluated]:
    """Return the evaluations to store, and those of ``earlier`` that they replace, for the reason that they state."""
    before, stored, replaced = {one.batch.batch_id: one for one in earlier}, [], []
    for one in evaluated:
        if (first := before.get(one.batch.batch_id)) is None:
            stored.append(one)
        elif why := _why_again(first, one.n_matured, one.n_churned):
            logger.info("%s, week of %s: evaluated again: %s", one.batch.variant, one.batch.scored_week, why)
            stored.append(replace(one, replaces_because=why))
            replaced.append(first)
    return stored, replaced


def _why_again(earlier: EvaluatedBatch, n_matured: int, n_churned: int) -> str | None:
    """Return why a batch is evaluated again; ``None`` if its labels are about the same, or fewer, as after erasure."""
    more = n_matured - earlier.n_matured, n_churned - earlier.n_churned
    if max(*more, more[0] - more[1]) < max(1, _LEAST_CHANGE * earlier.n_at_risk):
        return None
    now = f"{n_matured:,} accounts have labels, of which {n_churned:,} churned"
    before = f"{earlier.n_matured:,} and {earlier.n_churned:,}"
    return f"by activity received after {earlier.labels_as_of}, {now}; before, {before}"


def build_reports(known: Appended, columns: Columns) -> Reports:
    """Build the reports that labels are made of; rows whose activity cannot be read count as quarantined."""
    facts, broken = with_numbers(known.facts, (), columns, 1.0)
    quarantined = pl.concat([known.quarantined, broken.select(known.quarantined.columns)])
    return Reports.of(facts, columns.activity, columns.segments, quarantined)


def newest_of_each_month(items: Iterable[_Item], batch_of: Callable[[_Item], PublishedBatch]) -> list[_Item]:
    """Return the last scored week of each month: labels cover whole months, so a month's weeks share them."""
    by_week = sorted(items, key=lambda item: batch_of(item).scored_week)
    return list({month_number(batch_of(item).as_of): item for item in by_week}.values())


def _live_point(one: EvaluatedBatch) -> tuple[date, date, dict[str, float]]:
    """Return an evaluation's week, its day and its metrics; of the values of a week, MLflow shows the latest day's."""
    metrics = {name: one.measures[name] for name in _LIVE_METRICS if name in one.measures}
    day = one.batch.as_of if one.replaces_because is None else one.labels_as_of
    return one.batch.scored_week, day, metrics | {"n_matured": one.n_matured}
