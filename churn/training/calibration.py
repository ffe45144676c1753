"""Calibration: make scores mean what they say, and keep the model a native booster that XGBoost serves alone. Pure.

Platt's method fits ``sigmoid(slope * logit(score) + intercept)`` to what came true. A booster's margin is its base
margin and a leaf of each tree, so the same change made to those numbers in its file gives a booster whose scores are
calibrated, whose order of accounts is unchanged, and whose SHAP values are those of the calibrated log-odds.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost as xgb

from churn.inference.forest import LEAF, read_forest

Doubles = npt.NDArray[np.float64]

MIN_SLOPE = 0.05  # below it, scores hold next to nothing of what came true, and float32 next to nothing of their order
_STEPS = 100
_HALVINGS = 30
_SMALL_STEP = 1e-12


@dataclass(frozen=True)
class Calibration:
    """From a model's log-odds to calibrated ones: ``slope * log_odds + intercept``, with a positive slope.

    Attributes:
        is_shift: Whether only the intercept was fitted, because the scores would have had to be turned round.
    """

    slope: float
    intercept: float
    is_shift: bool = False

    def apply(self, margins: npt.NDArray[np.floating]) -> Doubles:
        """Turn a model's log-odds into calibrated probabilities, shape as given."""
        return sigmoid(self.slope * np.asarray(margins, dtype=np.float64) + self.intercept)


def fit_platt(margins: npt.NDArray[np.floating], churned: npt.NDArray[np.bool_]) -> Calibration:
    """Fit Platt's slope and intercept by Newton's method; deterministic.

    Args:
        margins: A model's log-odds of rows it was not fitted to, shape (n,).
        churned: What came true, shape (n,); both outcomes occur.

    Returns:
        The best fit of a slope of at least ``MIN_SLOPE``; where the best has less, a slope of 1 and its intercept.
    """
    n_churned = int(churned.sum())
    if not 0 < n_churned < churned.size:
        raise ValueError(f"{n_churned} of {churned.size} rows churned; a calibration needs both outcomes")
    x = np.asarray(margins, dtype=np.float64)
    # Platt's targets, not quite 0 and 1: scores that part the outcomes perfectly must not be sent to infinity.
    low, high = 1 / (churned.size - n_churned + 2), (n_churned + 1) / (n_churned + 2)
    targets = np.where(churned, high, low)
    slope, intercept = _fit(np.column_stack([x, np.ones_like(x)]), targets, np.zeros_like(x))
    if slope >= MIN_SLOPE:
        return Calibration(float(slope), float(intercept))
    (shift,) = _fit(np.ones((x.size, 1)), targets, x)
    return Calibration(1.0, float(shift), is_shift=True)


def fold_into(booster: xgb.Booster, calibration: Calibration) -> xgb.Booster:
    """Return a booster whose margin is the calibrated one; the one given is left as it is.

    Raises:
        NotCompilableError: If it is not a ``gbtree`` booster of plain splits.
    """
    document = json.loads(bytes(booster.save_raw("json")))
    base_margin = float(read_forest(document).base_margin)
    learner = document["learner"]
    for tree in learner["gradient_booster"]["model"]["trees"]:
        _scale_leaves(tree, calibration.slope)
    base_score = sigmoid(np.array(calibration.slope * base_margin + calibration.intercept))
    learner["learner_model_param"]["base_score"] = f"[{np.float32(base_score)!s}]"
    folded = xgb.Booster()
    folded.load_model(bytearray(json.dumps(document).encode()))
    return folded


def sigmoid(log_odds: npt.NDArray[np.floating]) -> Doubles:
    """Turn log-odds into probabilities, without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(log_odds, dtype=np.float64))))


def _scale_leaves(tree: dict[str, Any], slope: float) -> None:
    """Multiply a tree's leaves in place; a leaf keeps its value where a split keeps its threshold."""
    is_leaf = np.asarray(tree["left_children"]) == LEAF
    values = np.asarray(tree["split_conditions"], dtype=np.float32)
    weights = np.asarray(tree["base_weights"], dtype=np.float32)
    tree["split_conditions"] = _shortest(np.where(is_leaf, values * slope, values))
    tree["base_weights"] = _shortest(weights * slope)


def _shortest(values: npt.NDArray[np.floating]) -> list[float]:
    """Write float32 values in the fewest digits that read back as the same, as XGBoost's own files do."""
    return [float(str(value)) for value in values.astype(np.float32)]


def _fit(design: Doubles, targets: Doubles, offset: Doubles) -> Doubles:
    """Minimize the log loss of ``sigmoid(design @ weights + offset)`` by Newton's method with halved steps."""
    weights = np.zeros(design.shape[1])
    loss = _log_loss(design @ weights + offset, targets)
    for _ in range(_STEPS):
        probabilities = sigmoid(design @ weights + offset)
        gradient = design.T @ (probabilities - targets)
        curvature = (design * (probabilities * (1 - probabilities))[:, None]).T @ design
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        tried = (weights - step * 0.5**halving for halving in range(_HALVINGS))
        lower = ((there, _log_loss(design @ there + offset, targets)) for there in tried)
        weights, better = next(((there, less) for there, less in lower if less <= loss), (weights, loss))
        if loss - better <= _SMALL_STEP * max(abs(loss), 1):
            break
        loss = better
    return weights


def _log_loss(margins: Doubles, targets: Doubles) -> float:
    return float((np.logaddexp(0, margins) - targets * margins).sum())
