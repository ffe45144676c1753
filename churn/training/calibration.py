"""Calibration: scores that are probabilities, from a model that stays a native XGBoost booster. Pure.

Platt's method fits ``expit(slope * logit(score) + intercept)`` to the outcomes. A booster's margin is its base margin
plus a leaf of each tree. The same linear change of those numbers in its file therefore gives a booster with calibrated
scores, the same order of accounts, and the SHAP values of the calibrated log-odds.
"""

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xgboost as xgb
from scipy.optimize import brentq, minimize
from scipy.special import expit, logit

from churn.data.arrays import Array, Doubles, Flags
from churn.inference.forest import LEAF, read_forest

MIN_SLOPE = 0.05  # below it, scores hardly predict the outcomes, and float32 hardly preserves their order
_PRIOR_SD = np.array([0.3, 0.15])  # of a variant's intercept and slope about its pool's; benchmarks/quality/pooled


@dataclass(frozen=True)
class Calibration:
    """A linear map from a model's log-odds to calibrated ones: ``slope * log_odds + intercept``, the slope positive.

    ``is_shift`` is whether only the intercept was fitted, because the best slope was below ``MIN_SLOPE``.
    """

    slope: float
    intercept: float
    is_shift: bool = False


def fit_platt(margins: Array, churned: Flags, weights: Doubles | float = 1.0) -> Calibration:
    """Fit Platt's slope and intercept by maximum likelihood; deterministic.

    ``margins`` are a model's log-odds of rows it was not trained on, ``churned`` their outcomes, both occurring; shape
    (n,) each, as weights. If the best fit has a slope below ``MIN_SLOPE``, the best one with a slope of 1 is returned.
    """
    n_churned = int(churned.sum())
    if not 0 < n_churned < churned.size:
        raise ValueError(f"{n_churned} of {churned.size} rows churned; a calibration needs both outcomes")
    x = np.asarray(margins, dtype=np.float64)
    # Platt's targets, not quite 0 and 1: scores that separate the outcomes perfectly must not diverge.
    low, high = 1 / (churned.size - n_churned + 2), (n_churned + 1) / (n_churned + 2)
    targets = np.where(churned, high, low)
    if np.ptp(x) > 0 and (fitted := _fit_line(x, targets, np.inf, weights)).slope >= MIN_SLOPE:
        return fitted
    w = np.broadcast_to(weights, x.shape) / np.sum(np.broadcast_to(weights, x.shape))
    mean = w @ targets
    shift = brentq(lambda shift: w @ expit(x + shift) - mean, logit(mean) - x.max() - 1, logit(mean) - x.min() + 1)
    return Calibration(1.0, float(shift), is_shift=True)


def fit_shrunken(margins: Array, churned: Flags, weights: Doubles | float = 1.0) -> Calibration:
    """Fit a slope near 1 and an intercept near 0, as far as the outcomes show otherwise; deterministic.

    The maximum a posteriori of a logistic regression with normal priors, so that no or few rows, or rows of one
    outcome, change little. ``margins`` are a calibrated model's log-odds; shape (n,), n may be 0.
    """
    fitted = _fit_line(np.asarray(margins, dtype=np.float64), churned.astype(np.float64), _PRIOR_SD, weights)
    return replace(fitted, slope=max(fitted.slope, MIN_SLOPE))


def _fit_line(x: Doubles, y: Doubles, prior_sd: Doubles | float, weights: Doubles | float) -> Calibration:
    def loss(line: Doubles) -> tuple[float, Doubles]:
        z, off = line[0] + line[1] * x, (line - (0.0, 1.0)) / prior_sd
        error = weights * (expit(z) - y)
        value = (weights * (np.logaddexp(0.0, z) - y * z)).sum() + (off**2).sum() / 2
        return float(value), np.array([error.sum(), error @ x]) + off / prior_sd

    intercept, slope = minimize(loss, np.array([0.0, 1.0]), jac=True, method="BFGS").x
    return Calibration(float(slope), float(intercept))


def apply_to_booster(booster: xgb.Booster, calibration: Calibration) -> xgb.Booster:
    """Return a booster with the calibrated margin; the argument is not changed.

    Raises ``NotCompilableError`` if it is not a ``gbtree`` booster of plain splits.
    """
    document = json.loads(bytes(booster.save_raw("json")))
    base_margin = float(read_forest(document).base_margin)
    learner = document["learner"]
    for tree in learner["gradient_booster"]["model"]["trees"]:
        _scale_leaves(tree, calibration.slope)
    base_score = expit(calibration.slope * base_margin + calibration.intercept)
    learner["learner_model_param"]["base_score"] = f"[{np.float32(base_score)!s}]"
    calibrated = xgb.Booster()
    calibrated.load_model(bytearray(json.dumps(document).encode()))
    return calibrated


def _scale_leaves(tree: dict[str, Any], slope: float) -> None:
    """Multiply a tree's leaves in place; a leaf's value and a split's threshold share one array."""
    is_leaf = np.asarray(tree["left_children"]) == LEAF
    values = np.asarray(tree["split_conditions"], dtype=np.float32)
    weights = np.asarray(tree["base_weights"], dtype=np.float32)
    tree["split_conditions"] = _shortest(np.where(is_leaf, values * slope, values))
    tree["base_weights"] = _shortest(weights * slope)


def _shortest(values: Array) -> list[float]:
    """Write float32 values in the fewest digits that read back as the same, as XGBoost's own files do."""
    return [float(str(value)) for value in values.astype(np.float32)]
