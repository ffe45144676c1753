"""Reads published predictions through ``churn_predictions_current``, as the reader role, for the command line."""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

import sqlalchemy as sa

from churn.database.connection import READER, Tables

_VARIANTS = "SELECT DISTINCT variant FROM scoring_batches WHERE is_current ORDER BY variant"
_PREDICTION = """
SELECT variant, scored_week, account_id, churn_probability, bias, reasons,
       registered_model, model_version, is_fallback, is_foreign_data, batch_id
FROM churn_predictions_current
WHERE variant = :variant AND account_id = :account AND (:week IS NULL OR scored_week = CAST(:week AS date))
ORDER BY scored_week DESC LIMIT 1
"""
_BATCHES = """
SELECT variant, batch_id, count(*) AS n_accounts, avg(churn_probability) AS mean_probability, model_version, source,
       is_foreign_data, fallback_reason
FROM churn_predictions_current WHERE scored_week = :week AND variant = ANY(:variants)
GROUP BY variant, batch_id, model_version, source, is_foreign_data, fallback_reason
ORDER BY variant
"""
_HIGHEST = """
SELECT variant, account_id, churn_probability, reason_1, reason_2 FROM churn_predictions_current
JOIN (
    SELECT variant, account_id,
           row_number() OVER (PARTITION BY variant ORDER BY churn_probability DESC, account_id) AS place
    FROM churn_predictions_current WHERE scored_week = :week AND variant = ANY(:variants)
) AS ranked USING (variant, account_id)
WHERE place <= :n AND scored_week = :week ORDER BY variant, place
"""


class Prediction(NamedTuple):
    """An account's prediction; ``reasons`` is ``None`` if the batch was scored without reasons."""

    variant: str
    scored_week: date
    account_id: int
    churn_probability: float
    bias: float | None
    reasons: Sequence[Mapping[str, Any]] | None
    registered_model: str
    model_version: int
    is_fallback: bool
    is_foreign_data: bool
    batch_id: int


class BatchSummary(NamedTuple):
    """A variant's predictions of one week, and the provenance of their input."""

    variant: str
    batch_id: int
    n_accounts: int
    mean_probability: float
    model_version: int
    source: str
    is_foreign_data: bool
    fallback_reason: str | None


class HighScore(NamedTuple):
    """One of a variant's highest scores, with its two largest reasons."""

    variant: str
    account_id: int
    churn_probability: float
    reason_1: str | None
    reason_2: str | None


class PublishedPredictions(Tables):
    """The current predictions, as the reader role."""

    def __init__(self, url: sa.URL) -> None:
        super().__init__(url, role=READER, pool_size=0)

    def variants(self) -> list[str]:
        """Return the keys of the variants with a current batch."""
        return [row.variant for row in self._rows(_VARIANTS)]

    def prediction(self, variant: str, account_id: int, week: date | None) -> Prediction | None:
        """Return an account's prediction of ``week``, or of its newest week."""
        rows = self._rows(_PREDICTION, variant=variant, account=account_id, week=week)
        return Prediction(*rows[0]) if rows else None

    def summarize(self, week: date, variants: Sequence[str]) -> list[BatchSummary]:
        """Return a summary of the week's predictions of each of these variants."""
        return [BatchSummary(*row) for row in self._rows(_BATCHES, week=week, variants=list(variants))]

    def highest(self, week: date, variants: Sequence[str], n: int) -> list[HighScore]:
        """Return each variant's ``n`` accounts with the highest scores, highest first."""
        return [HighScore(*row) for row in self._rows(_HIGHEST, week=week, variants=list(variants), n=n)]
