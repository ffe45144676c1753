"""Delayed performance: once labels have matured, what was each batch worth, and is the challenger better?

The activity that came in since is added to the variant's history, labels are made of it as known today, and batches
are held against them, in all and by segment. PostgreSQL has the record; MLflow is given what it lacks of it. Knows no
Dagster; ``orchestration`` tells what came of it.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import polars as pl

from churn.data.labels import Horizon, Ids, Labels, Reports, at_risk, label
from churn.database.evaluations import EvaluatedBatch, Evaluations, Pair, PublishedBatch, Scored
from churn.errors import ChurnError
from churn.evaluation.charts import draw_reliability
from churn.evaluation.comparison import Comparison, Limits, PairedCohort, compare
from churn.evaluation.metrics import evaluate, reliability
from churn.evaluation.segments import Levels, evaluate_segments
from churn.storage.history import ActivityHistory, Appended
from churn.storage.sources import Sources
from churn.variants import Variant
from churn.weeks import month_number
from churn.workflows.ingest import ingest

if TYPE_CHECKING:
    from churn.registry.records import LivePoint
    from churn.registry.registry import Registry

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")

AUC_LIMIT_TAG = "churn.auc_limit"
"""Of a model version: what its ROC AUC must not lie under, from its own held-out figures."""

_LOGGED_WITHIN = timedelta(days=60)
_LIVE_METRICS = (
    "roc_auc", "roc_auc_low", "roc_auc_high", "brier_score", "log_loss", "average_precision", "calibration_error",
    "lift_at_10",
)  # fmt: skip


@dataclass(frozen=True)
class Waiting:
    """What is to be done about variants.

    Attributes:
        unevaluated: Their current batches that were not judged, of which labels may be used.
        unlogged: Their batches that were judged, and that MLflow is not known to have.
        version_tags: Those of all model versions, where they were listed; ``None`` looks up those that are needed.
    """

    unevaluated: Sequence[PublishedBatch]
    unlogged: Sequence[EvaluatedBatch]
    version_tags: Mapping[tuple[Variant, int], Mapping[str, str]] | None


@dataclass(frozen=True)
class PerformanceEvaluator:
    """The services that judging needs, and its limits.

    Attributes:
        auc_limit: For versions that were not trained here and so brought no limit of their own.
        max_quarantine_share: As for scoring.
        listed: What waits of variants of a fleet, by one look at all; others are looked up.
    """

    sources: Sources
    history: ActivityHistory
    registry: "Registry"
    results: Evaluations
    horizon: Horizon
    limits: Limits
    auc_limit: float
    max_quarantine_share: float
    listed: Mapping[Variant, Waiting] = field(default_factory=dict)

    def for_fleet(self, variants: Sequence[Variant], today: date) -> "PerformanceEvaluator":
        """Return one that asks PostgreSQL and the registry once what waits of many variants."""
        together = self._waiting(variants, today)
        unevaluated: dict[Variant, list[PublishedBatch]] = defaultdict(list)
        unlogged: dict[Variant, list[EvaluatedBatch]] = defaultdict(list)
        for batch in together.unevaluated:
            unevaluated[batch.variant].append(batch)
        for one in together.unlogged:
            unlogged[one.batch.variant].append(one)
        tags = None
        if len(variants) > 1 and (together.unevaluated or together.unlogged):
            tags = self.registry.version_tags()
            self.registry.look_up_locations()
        return replace(self, listed={one: Waiting(unevaluated[one], unlogged[one], tags) for one in variants})

    def ingest(self, variant: Variant) -> Appended:
        """Add the variant's input, as it is now, to its history.

        Raises:
            NoActivityError: If the variant has no raw activity of its own, of which alone labels can be made.
        """
        return ingest(self.sources, self.history, variant, self.max_quarantine_share)

    def evaluate_batches(self, variant: Variant, today: date, taken: Appended | None = None) -> list[EvaluatedBatch]:
        """Judge the variant's current batches whose labels have matured and that were not judged yet.

        Each is judged once. One whose labels are missing waits for the activity that they need. What MLflow does not
        take is logged when the variant is judged again, as long as the judging is not older than 60 days.

        Args:
            taken: What :meth:`ingest` gave, whose facts are the variant's history; ``None`` reads that.
        """
        waiting = self.listed.get(variant) or self._waiting([variant], today)
        judged: list[EvaluatedBatch] = []
        if waiting.unevaluated:
            judged = self._judge_all(waiting, self._facts(variant, taken), today)
        self.results.record(judged)
        self._log_live(variant, [*waiting.unlogged, *judged])
        return judged

    def compare(
        self, variant: Variant, champion: int, challenger: int, today: date, taken: Appended | None = None
    ) -> Comparison:
        """Say what the accounts that both versions scored, and whose labels matured, say of the challenger.

        Args:
            taken: As for :meth:`evaluate_batches`.
        """
        pairs = [
            pair
            for pair in newest_of_each_month(
                self.results.pairs(variant, champion, challenger), lambda pair: pair.champion
            )
            if self.horizon.matures_on(pair.champion.as_of) <= today
        ]
        if not pairs or (taken is None and self.history.version(variant) is None):
            return compare([], self.horizon.months, self.limits)
        reports = Reports.of(self._facts(variant, taken))
        return compare((self._cohort(pair, reports, today) for pair in pairs), self.horizon.months, self.limits)

    def _facts(self, variant: Variant, taken: Appended | None) -> pl.DataFrame:
        return self.history.read(variant) if taken is None else taken.facts

    def _waiting(self, variants: Sequence[Variant], today: date) -> Waiting:
        return Waiting(
            self.results.unevaluated(variants, self.horizon.newest_mature(today)),
            self.results.unlogged(variants, today - _LOGGED_WITHIN),
            None,
        )

    def _judge_all(self, waiting: Waiting, facts: pl.DataFrame, today: date) -> list[EvaluatedBatch]:
        known = _Known(Reports.of(facts), Levels(facts), today)

        @cache
        def limit_of(variant: Variant, version: int) -> float:
            listed = waiting.version_tags
            tags = self.registry.tags_of(variant, version) if listed is None else listed.get((variant, version), {})
            return float(tags.get(AUC_LIMIT_TAG, self.auc_limit))

        scored = zip(waiting.unevaluated, self.results.scores(waiting.unevaluated), strict=True)
        judged = (self._judge(batch, scores, known, limit_of) for batch, scores in scored)
        return [one for one in judged if one is not None]

    def _log_live(self, variant: Variant, judged: Iterable[EvaluatedBatch]) -> None:
        """Give MLflow the weeks that it lacks, each to the run of the version that scored it."""
        by_run: dict[str, list[EvaluatedBatch]] = {}
        for one in judged:
            by_run.setdefault(one.batch.mlflow_run_id, []).append(one)
        for mlflow_run_id, lacking in by_run.items():
            try:
                self.registry.log_live(variant, mlflow_run_id, _live_points(lacking))
            except ChurnError as error:
                logger.warning(
                    "%s: judged, but not in MLflow yet, which the next judging tries again: %s", variant, error
                )
                continue
            self.results.mark_logged(lacking)

    def _judge(
        self,
        batch: PublishedBatch,
        scored: Scored,
        known: "_Known",
        limit_of: Callable[[Variant, int], float],
    ) -> EvaluatedBatch | None:
        account_ids, scores = scored
        watched = self._at_risk(known.reports, account_ids, batch.as_of)
        labels = label(known.reports, watched, batch.as_of, today=known.today, horizon=self.horizon)
        if not len(labels.account_ids):
            logger.warning(
                "%s, week of %s: of %d accounts, %d of which could still churn, no label is known",
                batch.variant, batch.scored_week, len(account_ids), len(watched),
            )  # fmt: skip
            return None
        scores = scores[_places(account_ids, labels)]
        found = evaluate(labels.churned, scores)
        limit = limit_of(batch.variant, batch.model_version)
        levels = known.levels.known(labels.account_ids, batch.as_of)
        return EvaluatedBatch(
            batch=batch,
            labels_as_of=known.today,
            horizon_months=self.horizon.months,
            n_accounts=len(account_ids),
            n_at_risk=len(watched),
            n_matured=len(labels.account_ids),
            n_missing=labels.n_missing,
            n_churned=int(labels.churned.sum()),
            status=found.status,
            auc_limit=limit,
            measures=found.metrics(),
            reliability=None if found.status == "insufficient" else reliability(labels.churned, scores),
            segments=evaluate_segments(levels, labels.churned, scores, limit),
        )

    def _at_risk(self, reports: Reports, account_ids: Ids, as_of: date) -> Ids:
        """Leave out the accounts that had churned before they were scored: telling that is no merit."""
        return np.intersect1d(account_ids, at_risk(reports, as_of, self.horizon), assume_unique=True)

    def _cohort(self, pair: Pair, reports: Reports, today: date) -> PairedCohort:
        (account_ids, champion), (others, challenger) = self.results.scores([pair.champion, pair.challenger])
        both, first, second = np.intersect1d(account_ids, others, assume_unique=True, return_indices=True)
        watched = self._at_risk(reports, both, pair.champion.as_of)
        labels = label(reports, watched, pair.champion.as_of, today=today, horizon=self.horizon)
        places = _places(both, labels)
        return PairedCohort(
            as_of=pair.champion.as_of,
            account_ids=labels.account_ids,
            champion=champion[first][places],
            challenger=challenger[second][places],
            churned=labels.churned,
        )


@dataclass(frozen=True)
class _Known:
    """What a variant's history says, and the day on which it is looked at."""

    reports: Reports
    levels: Levels
    today: date


def reliability_picture(judged: EvaluatedBatch) -> str | None:
    """Draw a judged batch's calibration as SVG; ``None`` where too few labels matured."""
    if judged.reliability is None:
        return None
    batch, error = judged.batch, judged.measures["calibration_error"]
    about = f"{batch.variant} v{batch.model_version}, week of {batch.scored_week}: {judged.n_matured:,} accounts"
    return draw_reliability(judged.reliability, f"Calibration: error {error:.4f}", about)


def newest_of_each_month(items: Iterable[_Item], batch_of: Callable[[_Item], PublishedBatch]) -> list[_Item]:
    """Keep the last scored week of each month: labels are of months, so that a month's weeks have the same ones."""
    by_week = sorted(items, key=lambda item: batch_of(item).scored_week)
    return list({month_number(batch_of(item).as_of): item for item in by_week}.values())


def _places(account_ids: np.ndarray, labels: Labels) -> np.ndarray:
    """Say where the labelled accounts stand among ids in ascending order."""
    return np.searchsorted(account_ids, labels.account_ids)


def _live_points(judged: Sequence[EvaluatedBatch]) -> list["LivePoint"]:
    """Tell MLflow of each week, with a picture for the last of each month, whose other weeks look nearly the same."""
    from churn.registry.records import LivePoint

    drawn = {one.batch.batch_id for one in newest_of_each_month(judged, lambda one: one.batch)}
    points = []
    for one in judged:
        picture = reliability_picture(one) if one.batch.batch_id in drawn else None
        artifacts = {} if picture is None else {"reliability.svg": picture}
        metrics = {name: one.measures[name] for name in _LIVE_METRICS if name in one.measures}
        points.append(LivePoint(one.batch.scored_week, one.batch.as_of, one.n_matured, metrics, artifacts))
    return points
