"""Performance by segment: a good total can hide a state, product or source with bad scores. Pure.

A segment is a categorical column that the variant declares. A level is one of its values, as it was known when an
account was scored. Each level is evaluated like a whole batch: with too few of an outcome it has no metrics.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

import numpy as np
import polars as pl

from churn.data.activity import ONE_HOT_COLUMNS
from churn.data.arrays import Doubles, Flags, Longs
from churn.data.features import MISSING, keys_of, known_rows
from churn.evaluation import metrics
from churn.evaluation.metrics import Interval, Scores, Weights

MOST_LEVELS = 50


@dataclass(frozen=True)
class EvaluatedSegment:
    """The metrics of one level's accounts; ``None`` if the status is ``insufficient``."""

    segment: str
    level: str
    n_matured: int
    n_churned: int
    status: Literal["ok", "insufficient"]
    roc_auc: Interval | None = None
    brier_score: float | None = None
    calibration_error: float | None = None
    mean_score: float | None = None
    p_below_limit: float | None = None  # of an AUC this low if the true one is the batch's limit; `None` without one


class Levels:
    """The levels of a variant's accounts, as they were known on any day, from the ordered facts of its history."""

    def __init__(self, facts: pl.DataFrame, segments: Sequence[str] = ONE_HOT_COLUMNS) -> None:
        self._keys = keys_of(facts)
        self._levels = facts.select(name for name in segments if name in facts.columns)

    def known(self, account_ids: Longs, as_of: date) -> pl.DataFrame:
        """Return each account's levels as known at the end of ``as_of``, by the rules of features: the row scored then.

        Each of ``account_ids``, shape (n,), has a fact known by then. The result has shape (n, n_segments), without
        segments that the facts lack.
        """
        if not self._levels.columns:
            return self._levels
        rows = known_rows(as_of, *self._keys).latest
        return self._levels[rows[np.searchsorted(self._keys[0][rows], account_ids)]]


def evaluate_segments(
    levels: pl.DataFrame, churned: Flags, scores: Scores, auc_limit: float | None, weights: Weights = None
) -> list[EvaluatedSegment]:
    """Evaluate the 50 largest levels of each segment; returns them by segment, the largest level first.

    ``levels`` are from :meth:`Levels.known`, shape (n, n_segments); the others have shape (n,).
    """
    named = levels.select(pl.all().cast(pl.String).fill_null(MISSING))
    w = np.ones(len(churned)) if weights is None else weights
    return [one for column in named for one in _evaluate_levels(column, churned, scores, w, auc_limit)]


def below_limit(segments: Sequence[EvaluatedSegment]) -> list[bool]:
    """Return which segments' AUC is below the limit, at a false discovery rate of 0.01 over the segments given."""
    p_values = [1.0 if one.p_below_limit is None else one.p_below_limit for one in segments if one.status == "ok"]
    is_low = iter(metrics.discoveries(p_values, 0.01).tolist())
    return [one.status == "ok" and next(is_low) for one in segments]


def _evaluate_levels(
    levels: pl.Series, churned: Flags, scores: Scores, weights: Doubles, auc_limit: float | None
) -> Iterator[EvaluatedSegment]:
    # Arrow encodes a small batch's levels in a quarter of the time of polars and numpy.
    encoded = levels.to_arrow().dictionary_encode()
    of_row, names = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    n = np.bincount(of_row, minlength=len(names))
    for i in sorted(range(len(names)), key=lambda i: (-n[i], names[i]))[:MOST_LEVELS]:
        at = of_row == i
        yield EvaluatedSegment(levels.name, names[i], **_measures(churned[at], scores[at], weights[at], auc_limit))


def _measures(churned: Flags, scores: Scores, weights: Doubles, auc_limit: float | None) -> dict[str, Any]:
    n, n_churned, fewest = metrics.counts(churned, weights)
    counts = {"n_matured": n, "n_churned": n_churned}
    if fewest < metrics.MIN_OF_CLASS:
        return {**counts, "status": "insufficient"}
    auc = metrics.roc_auc_interval(churned, scores, weights=weights)
    return {
        **counts,
        "status": "ok",
        "roc_auc": auc,
        "brier_score": float(np.average((scores - churned.astype(np.float64)) ** 2, weights=weights)),
        "calibration_error": metrics.calibration_error(churned, scores, weights=weights),
        "mean_score": float(np.average(scores.astype(np.float64), weights=weights)),
        "p_below_limit": None if auc_limit is None else metrics.p_at_least(auc, auc_limit),
    }
