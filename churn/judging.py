"""Delayed performance: once labels have matured, what was each batch worth, and is the challenger better?

The activity that came in since is added to the variant's history, labels are made of it as known today, and batches
are held against them. Knows no Dagster; ``orchestration`` tells what came of it.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from churn.data.history import ActivityHistory
from churn.data.labels import Horizon, Ids, Labels, at_risk, label
from churn.data.sources import Sources
from churn.intake import take_in
from churn.model.evaluation import evaluate
from churn.model.verdict import Limits, PairedCohort, Verdict, judge, month_number
from churn.store.results import BatchResults, JudgedBatch, Pair, PublishedBatch
from churn.variants import Variant

if TYPE_CHECKING:
    from churn.model.registry import Registry

logger = logging.getLogger(__name__)

AUC_LIMIT_TAG = "churn.auc_limit"
"""Of a model version: what its ROC AUC must not lie under, from its own held-out figures."""


@dataclass(frozen=True)
class Judge:
    """The services that judging needs, and its limits.

    Attributes:
        auc_limit: For versions that were not trained here and so brought no limit of their own.
        max_quarantine_share: As for scoring.
    """

    sources: Sources
    history: ActivityHistory
    registry: "Registry"
    results: BatchResults
    horizon: Horizon
    limits: Limits
    auc_limit: float
    max_quarantine_share: float

    def take_in(self, variant: Variant) -> int:
        """Add the variant's input, as it is now, to its history; returns how many facts were new.

        Raises:
            NoActivityError: If the variant has no raw activity of its own, of which alone labels can be made.
        """
        return take_in(self.sources, self.history, variant, self.max_quarantine_share)

    def judge_batches(self, variant: Variant, today: date) -> list[JudgedBatch]:
        """Judge the variant's current batches whose labels have matured and that were not judged yet.

        Each is judged once. One whose labels are missing waits for the activity that they need.
        """
        ready = [batch for batch in self.results.unjudged(variant) if self.horizon.matures_on(batch.as_of) <= today]
        if not ready:
            return []
        facts = self.history.read(variant)
        limits: dict[int, float] = {}
        judged = [found for batch in ready if (found := self._judge(batch, facts, today, limits)) is not None]
        self.results.record(judged)
        return judged

    def compare(self, variant: Variant, champion: int, challenger: int, today: date) -> Verdict:
        """Say what the accounts that both versions scored, and whose labels matured, say of the challenger."""
        pairs = [
            pair
            for pair in newest_of_each_month(self.results.pairs(variant, champion, challenger))
            if self.horizon.matures_on(pair.champion.as_of) <= today
        ]
        if not pairs or self.history.version(variant) is None:
            return judge([], self.horizon.months, self.limits)
        facts = self.history.read(variant)
        return judge((self._cohort(pair, facts, today) for pair in pairs), self.horizon.months, self.limits)

    def _judge(
        self, batch: PublishedBatch, facts: pl.DataFrame, today: date, limits: dict[int, float]
    ) -> JudgedBatch | None:
        account_ids, scores = self.results.scores(batch)
        watched = self._at_risk(facts, account_ids, batch.as_of)
        labels = label(facts, watched, batch.as_of, today=today, horizon=self.horizon)
        if not len(labels.account_ids):
            logger.warning(
                "%s, week of %s: of %d accounts, %d of which could still churn, no label is known",
                batch.variant, batch.scored_week, len(account_ids), len(watched),
            )  # fmt: skip
            return None
        found = evaluate(labels.churned, scores[_places(account_ids, labels)])
        if batch.model_version not in limits:
            tags = self.registry.version_tags(batch.variant, batch.model_version)
            limits[batch.model_version] = float(tags.get(AUC_LIMIT_TAG, self.auc_limit))
        return JudgedBatch(
            batch=batch,
            labels_as_of=today,
            horizon_months=self.horizon.months,
            n_accounts=len(account_ids),
            n_at_risk=len(watched),
            n_matured=len(labels.account_ids),
            n_missing=labels.n_missing,
            n_churned=int(labels.churned.sum()),
            verdict=found.verdict,
            auc_limit=limits[batch.model_version],
            measures=found.metrics(),
        )

    def _at_risk(self, facts: pl.DataFrame, account_ids: Ids, as_of: date) -> Ids:
        """Leave out the accounts that had churned before they were scored: telling that is no merit."""
        return np.intersect1d(account_ids, at_risk(facts, as_of, self.horizon), assume_unique=True)

    def _cohort(self, pair: Pair, facts: pl.DataFrame, today: date) -> PairedCohort:
        account_ids, champion = self.results.scores(pair.champion)
        others, challenger = self.results.scores(pair.challenger)
        both, first, second = np.intersect1d(account_ids, others, assume_unique=True, return_indices=True)
        watched = self._at_risk(facts, both, pair.champion.as_of)
        labels = label(facts, watched, pair.champion.as_of, today=today, horizon=self.horizon)
        places = _places(both, labels)
        return PairedCohort(
            as_of=pair.champion.as_of,
            account_ids=labels.account_ids,
            champion=champion[first][places],
            challenger=challenger[second][places],
            churned=labels.churned,
        )


def newest_of_each_month(pairs: Iterable[Pair]) -> list[Pair]:
    """Keep the last scored week of each month: labels are of months, so that a month's weeks have the same ones."""
    newest = {month_number(pair.champion.as_of): pair for pair in sorted(pairs, key=lambda p: p.champion.scored_week)}
    return list(newest.values())


def _places(account_ids: np.ndarray, labels: Labels) -> np.ndarray:
    """Say where the labelled accounts stand among ids in ascending order."""
    return np.searchsorted(account_ids, labels.account_ids)
