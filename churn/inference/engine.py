"""Scoring and explaining a batch: by tables compiled from the booster's trees, or otherwise by XGBoost itself.

The tables' results are compared with XGBoost's on rows of each batch before they are used.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from churn.data.features import Encoding, Packed, unpack
from churn.errors import ModelFileError
from churn.inference.bundle import Bundle
from churn.inference.explanations import build_explainer, sum_by_column
from churn.inference.forest import Floats, NotCompilableError
from churn.inference.scoring import build_scorer

logger = logging.getLogger(__name__)

_LARGE_BATCH = 100_000
_PROVED_SCORES = 256
_PROVED_REASONS = 4
_SCORE_TOLERANCE = 1e-6  # equal bits are expected, but C libraries may round an exponential's last bit differently
_REASON_TOLERANCE = 1e-4  # log-odds


@dataclass(frozen=True)
class Reasons:
    """What a batch's contributions refer to.

    Attributes:
        encoding: Of the rows; the contributions are in the order of its columns.
        bias: Log-odds that are the same for all rows of the model.
    """

    encoding: Encoding
    bias: float


@dataclass(frozen=True)
class Engine:
    """Scores rows of one encoding.

    Attributes:
        score: From rows to churn probabilities, shape (n_rows,), and contributions in log-odds, shape
            (n_rows, n_columns), or ``None`` without reasons; thread-safe.
        fallback_reason: Why XGBoost itself scores; ``None`` for the compiled tables.
    """

    score: Callable[[Packed], tuple[Floats, Floats | None]]
    reasons: Reasons | None
    fallback_reason: str | None = None


def build_engine(bundle: Bundle, encoding: Encoding, head: Packed, *, n_rows: int, with_reasons: bool) -> Engine:
    """Compile a model for rows of an encoding, and compare it with XGBoost on the first of them.

    Args:
        head: Some rows of the batch.
        n_rows: The approximate number of rows in the batch.
    """
    try:
        compiled = _compile(bundle, encoding, is_large_batch=n_rows >= _LARGE_BATCH, with_reasons=with_reasons)
    except NotCompilableError as error:
        return _use_xgboost(bundle, encoding, str(error), with_reasons=with_reasons)
    if difference := _compare(compiled, bundle, encoding, head):
        logger.warning("compiled scores differ from XGBoost's (%s); XGBoost scores this batch", difference)
        return _use_xgboost(bundle, encoding, difference, with_reasons=with_reasons)
    return compiled


def _compile(bundle: Bundle, encoding: Encoding, *, is_large_batch: bool, with_reasons: bool) -> Engine:
    forest = bundle.read_forest()
    if with_reasons:
        explainer = build_explainer(forest, encoding, is_large_batch=is_large_batch)
        return Engine(explainer.explain, Reasons(encoding, explainer.bias))
    scorer = build_scorer(forest, encoding)
    return Engine(lambda packed: (scorer.score(packed), None), None)


def _use_xgboost(bundle: Bundle, encoding: Encoding, why: str, *, with_reasons: bool) -> Engine:
    if not with_reasons:
        return Engine(lambda packed: (bundle.predict(unpack(packed, encoding)), None), None, why)

    def score(packed: Packed) -> tuple[Floats, Floats]:
        matrix = unpack(packed, encoding)
        return bundle.predict(matrix), sum_by_column(bundle.contributions(matrix), encoding)

    bias = float(bundle.contributions(np.zeros((1, encoding.n_features), dtype=np.float32))[0, -1])
    return Engine(score, Reasons(encoding, bias), why)


def _compare(engine: Engine, bundle: Bundle, encoding: Encoding, head: Packed) -> str:
    """Return how an engine's results differ from XGBoost's; empty if they do not."""
    some = head.take(slice(_PROVED_SCORES))
    matrix = unpack(some, encoding)
    scores, contributions = engine.score(some)
    gap = float(np.abs(scores - bundle.predict(matrix)).max())
    if not gap <= _SCORE_TOLERANCE:
        return f"scores by {gap:.2g}"
    if contributions is not None and engine.reasons is not None:
        by_feature = bundle.contributions(matrix[:_PROVED_REASONS])
        expected, bias = sum_by_column(by_feature, encoding), float(by_feature[0, -1])
        gap = max(float(np.abs(contributions[:_PROVED_REASONS] - expected).max()), abs(bias - engine.reasons.bias))
        if not gap <= _REASON_TOLERANCE:
            return f"contributions by {gap:.2g}"
    return ""


def require_sums(scores: Floats, contributions: Floats, bias: float, origin: str) -> None:
    """Raise ``ModelFileError`` unless each row's contributions and the bias add up to its margin, within tolerance."""
    margins = contributions.sum(axis=1, dtype=np.float64) + bias
    # Compared as probabilities, since a margin cannot be recovered from a score near 0 or 1.
    gap = float(np.abs(1 / (1 + np.exp(-margins)) - scores).max(initial=0.0))
    if not gap <= _REASON_TOLERANCE:
        raise ModelFileError(f"{origin} gave rows reasons that miss their scores by {gap:.2g}; nothing was published")
