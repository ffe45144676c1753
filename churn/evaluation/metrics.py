"""Metrics of how well scores predict churn, with confidence intervals. Pure.

Belongs here: arithmetic on outcomes and scores. Not here: which rows are held out, and the limits of the metrics. Every
interval assumes independent rows, so pass one row per account: an account in several snapshots counts several times
and makes the intervals too narrow. Weights of accounts, shape (n,), are above 0, such as the inverse of the probability
to be there (:func:`churn.decisions.effects.inverse_weights`).

AUC and its variance: DeLong et al., Biometrics 1988, from ranks as Sun and Xu, IEEE SPL 2014. The intervals of AUC and
average precision are computed on the logit scale, where they have their nominal coverage near 1 and stay in [0, 1].
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from churn.data.arrays import Doubles, Flags, Floats, Longs
from churn.errors import ChurnError

MIN_OF_CLASS = 50
"""Rows of each outcome below which no metric is computed: its interval would span most of the possible range."""

LIFT_SHARE = 0.1

# Scores are served as float32, so a probability of 1 means "nearer to 1 than float32 resolves".
_SMALLEST = float(np.finfo(np.float32).eps)
_ROUNDING = 1e-12  # of sums of weights
_SHIFT_SD, _MOST_STEPS, _CLOSE = 0.5, 25, 1e-6  # of the log-odds, in recalibration

Scores = Floats | Doubles
Weights = Doubles | None  # `None` weights all alike


class NotMeasurableError(ChurnError, ValueError):
    """The requested metric does not exist for these outcomes and scores."""


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its confidence interval.

    >>> f"{Interval(0.7123, 0.6901, 0.7329):.3f}"
    '0.712 (0.690 to 0.733)'
    """

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


@dataclass(frozen=True)
class AucComparison:
    """Two models' AUC on the same rows."""

    difference: float  # the second's less the first's: above 0 the second is better
    standard_error: float
    p_value: float  # two-sided

    @property
    def interval(self) -> Interval:
        """The difference with its 95 % interval."""
        reach = _quantile(0.95) * self.standard_error
        return Interval(self.difference, self.difference - reach, self.difference + reach)


@dataclass(frozen=True)
class Evaluation:
    """A model's metrics on rows it was not trained on; ``None`` if the status is ``insufficient``."""

    n: int
    n_churned: int
    roc_auc: Interval | None
    average_precision: Interval | None
    log_loss: Interval | None
    log_loss_excess: Interval | None  # log-loss less its expectation if the scores were calibrated
    brier_score: Interval | None
    calibration_error: float | None
    lift_at_10: float | None
    mean_score: float  # NaN of no rows
    status: Literal["ok", "insufficient"]  # `insufficient` if fewer than `MIN_OF_CLASS` rows churned, or fewer did not

    def metrics(self) -> dict[str, float]:
        """Return the metrics that exist as flat numbers, for MLflow; interval ends end in ``_low`` and ``_high``."""
        flat: dict[str, float] = {}
        for name, value in vars(self).items():
            if isinstance(value, Interval):
                flat |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
            elif isinstance(value, int | float) and not math.isnan(value):
                flat[name] = value
        return flat


def counts(churned: Flags, weights: Weights = None) -> tuple[int, int, float]:
    """Return rows, those that churned, and those of the rarer outcome.

    With weights, they are so many equally weighted ones as have the same variance (Kish), and the share churned.
    """
    w = _weights(weights, churned)
    n, fewest = round(_effective(w)), min(_effective(w[churned]), _effective(w[~churned]))
    return n, round(n * float(w[churned].sum() / w.sum())) if n else 0, fewest


def _effective(weights: Doubles) -> float:
    return float(weights.sum() ** 2 / (weights * weights).sum()) if len(weights) else 0.0


def evaluate(churned: Flags, scores: Scores, weights: Weights = None) -> Evaluation:
    """Compute every metric of outcomes and churn probabilities, shape (n,) each; none if an outcome is too rare.

    With weights, ``n`` is the effective number of accounts, and ``n_churned`` the weighted share of it. Raises
    ``NotMeasurableError`` if the shapes differ or a score is not a probability.
    """
    churned, scores = _checked(churned, scores, probabilities=True)
    w, (n, n_churned, fewest) = _weights(weights, churned), counts(churned, weights)
    mean_score = float(np.average(scores, weights=w)) if n else math.nan
    if fewest < MIN_OF_CLASS:
        return Evaluation(n, n_churned, None, None, None, None, None, None, None, mean_score, "insufficient")
    return Evaluation(
        n=n,
        n_churned=n_churned,
        roc_auc=roc_auc_interval(churned, scores, weights=weights),
        average_precision=average_precision_interval(churned, scores, weights=weights),
        log_loss=_mean_interval(log_losses(churned, scores), w),
        log_loss_excess=log_loss_excess(churned, scores, weights),
        brier_score=_mean_interval((scores - churned) ** 2, w, most=1),
        calibration_error=calibration_error(churned, scores, weights=weights),
        lift_at_10=lift(churned, scores, LIFT_SHARE, weights),
        mean_score=mean_score,
        status="ok",
    )


def roc_auc_interval(churned: Flags, scores: Scores, confidence: float = 0.95, weights: Weights = None) -> Interval:
    """Return the AUC, ties counting half, with DeLong's variance on the logit scale.

    A bound replaces a DeLong variance of 0. If all pairs are ordered correctly, the lower end is the exact bound from
    disjoint pairs, of which the rarer outcome has k: all k are correct with probability AUC to the k. If all placements
    are equal, as with tied scores, the variance is the largest possible, ``AUC (1 - AUC) / k`` (Birnbaum and Klose,
    1957).

    Both arguments have shape (n,); scores are any finite numbers, higher meaning likelier to churn. Raises
    ``NotMeasurableError`` if an outcome is missing, the shapes differ or a score is not finite.
    """
    churned, scores = _both_outcomes(churned, scores)
    w = _weights(weights, churned)
    wins, losses = _wins(churned, scores, w)
    of_churned, of_stayed = w[churned], w[~churned]
    fewest = min(_effective(of_churned), _effective(of_stayed))
    value = float(np.average(wins, weights=of_churned))
    if min(value, 1 - value) < _ROUNDING:
        far = ((1 - confidence) / 2) ** (1 / fewest)
        return Interval(1.0, far, 1.0) if value > _ROUNDING else Interval(0.0, 0.0, 1 - far)
    variance = _variance_of_mean(wins, of_churned) + _variance_of_mean(losses, of_stayed)
    return _logit_interval(value, math.sqrt(variance or value * (1 - value) / fewest), confidence)


def p_at_least(auc: Interval, limit: float) -> float:
    """Return the one-sided p-value that an AUC is at least ``limit``, by the standard error of its 95 % interval.

    If every pair was ordered wrongly there is no standard error; then it is the chance that as many disjoint pairs all
    are, as in :func:`roc_auc_interval`, whose scale is used.
    """
    if auc.value == 1 or limit <= 0:
        return 1.0
    if limit >= 1:
        return 0.0
    if auc.value == 0:
        n_pairs = math.log((1 - 0.95) / 2) / math.log1p(-auc.high)
        return float((1 - limit) ** n_pairs)
    low, value, high, least = special.logit([auc.low, auc.value, auc.high, limit])
    return float(special.ndtr((value - least) / ((high - low) / 2 / _quantile(0.95))))


def compare_roc_auc(churned: Flags, first: Scores, second: Scores, weights: Weights = None) -> AucComparison:
    """Compare two models on the same rows: DeLong's paired test.

    If the variance of the difference is 0 and the difference is not, as between a constant and a perfect model, the
    p-value is Hoeffding's bound over disjoint pairs of a churned row and one that stayed.
    """
    w = _weights(weights, churned)
    of_first, of_second = (_wins(*_both_outcomes(churned, scores), w) for scores in (first, second))
    of_churned, of_stayed = w[churned], w[~churned]
    by_churned, by_stayed = of_second[0] - of_first[0], of_first[1] - of_second[1]
    difference = float(np.average(by_churned, weights=of_churned))
    error = math.sqrt(_variance_of_mean(by_churned, of_churned) + _variance_of_mean(by_stayed, of_stayed))
    if error:
        p_value = math.erfc(abs(difference) / error / math.sqrt(2))
    else:
        fewest = min(_effective(of_churned), _effective(of_stayed))
        p_value = min(1.0, 2 * math.exp(-fewest * difference**2 / 2))
    return AucComparison(difference, error, p_value)


def discoveries(p_values: npt.ArrayLike, fdr: float, n_tested: int = 0) -> Flags:
    """Return which null hypotheses are rejected at a false discovery rate ``fdr`` (Benjamini and Hochberg).

    ``p_values``, shape (n,), are of all that are tested together, or the smallest of ``n_tested``; others are not
    rejected.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not len(p):
        return np.zeros(0, dtype=np.bool_)
    from scipy import stats  # its import takes half a second

    adjusted = stats.false_discovery_control(np.concatenate([p, np.ones(max(n_tested - len(p), 0))]))
    return np.asarray(adjusted[: len(p)] <= fdr)


def average_precision_interval(churned: Flags, scores: Scores, weights: Weights = None) -> Interval:
    """Return average precision, as scikit-learn defines it, with the infinitesimal jackknife's variance on logit scale.

    A bootstrap converges to it with more resamples: each row's influence is the derivative by its weight, and the
    variance is the sum of their squares (Efron, JASA 2014).
    """
    churned, scores = _both_outcomes(churned, scores)
    order = np.argsort(-scores)
    w = _weights(weights, churned)[order]
    hits, (starts, ends), total = w * churned[order], _ties(scores[order]), np.cumsum(w)
    above = total[ends - 1]
    precisions = np.cumsum(hits)[ends - 1] / above
    value = float(np.average(precisions, weights=hits))
    if value > 1 - _ROUNDING:
        fewest = min(_effective(hits[hits > 0]), _effective(w[hits == 0]))
        return Interval(1.0, ((1 - 0.95) / 2) ** (1 / fewest), 1.0)
    # A row at or above a churned one moves that one's precision: by 1/n if it churned, all less precision/n.
    gained, lost = (np.cumsum(moves[::-1])[::-1][starts] for moves in (hits / above, hits * precisions / above))
    influence = (hits * (precisions + gained - value) - w * lost) / hits.sum()
    return _logit_interval(value, math.sqrt(influence @ influence), 0.95)


def log_losses(churned: Flags, scores: Scores) -> Doubles:
    """Return each row's ``-ln`` of the probability of its outcome, shape (n,), clipped by float32's resolution."""
    churned, scores = _checked(churned, scores, probabilities=True)
    clipped = np.clip(scores, _SMALLEST, 1 - _SMALLEST)
    return -np.log(np.where(churned, clipped, 1 - clipped))


def recalibrated(churned: Flags, scores: Scores, weights: Weights = None) -> Doubles:
    """Return the scores with their log-odds shifted by what fits these outcomes best, shape (n,).

    A ridge of standard deviation 0.5 keeps the shift of a few rows, or of one outcome only, finite.
    """
    churned, scores = _checked(churned, scores, probabilities=True)
    log_odds, shift = special.logit(np.clip(scores, _SMALLEST, 1 - _SMALLEST)), 0.0
    of_row = np.ones(1) if weights is None else weights
    for _ in range(_MOST_STEPS):
        shifted = special.expit(log_odds + shift)
        slope = float((of_row * (churned - shifted)).sum()) - shift / _SHIFT_SD**2
        step = slope / (float((of_row * shifted * (1 - shifted)).sum()) + 1 / _SHIFT_SD**2)
        shift += min(max(step, -1.0), 1.0)  # Newton's step alone overshoots where most scores are near 0 or 1
        if abs(step) < _CLOSE:
            break
    return np.asarray(special.expit(log_odds + shift))


def log_loss_excess(churned: Flags, scores: Scores, weights: Weights = None) -> Interval:
    """Return log-loss less what the scores themselves lead one to expect; 0 if they are calibrated, above if too sure.

    Log-loss alone moves with the share that churns; its expectation, the mean entropy of the scores, moves with it.
    Raises ``NotMeasurableError`` if there are fewer than two rows, the shapes differ or a score is not a probability.
    """
    churned, scores = _checked(churned, scores, probabilities=True)
    if len(scores) < 2:
        raise NotMeasurableError(f"{len(scores)} rows have no interval; give at least 2")
    clipped = np.clip(scores, _SMALLEST, 1 - _SMALLEST)
    return _mean_interval((clipped - churned) * special.logit(clipped), _weights(weights, churned), least=-math.inf)


def calibration_bins(churned: Flags, scores: Scores, n_bins: int = 10, weights: Weights = None) -> tuple[Doubles, ...]:
    """Return rows, mean score and share churned of bins that have as equal numbers of rows as ties allow.

    Most bins of equal width would be nearly empty and noisy, since a variant's scores are close together. Equal scores
    share a bin, so the order of rows does not matter. Bins are by rising score; empty ones are left out.
    """
    churned, scores = _checked(churned, scores, probabilities=True)
    if not len(churned):
        raise NotMeasurableError("there are no rows to calibrate; give at least one")
    edges = np.percentile(scores, np.linspace(0, 1, n_bins + 1) * 100)
    of_row = np.searchsorted(edges[1:-1], scores)
    w = _weights(weights, churned)
    n, total, hits = np.array([np.bincount(of_row, one, n_bins) for one in (w, w * scores, w * churned)], np.float64)
    filled = n > 0
    return n[filled], total[filled] / n[filled], hits[filled] / n[filled]


def reliability(churned: Flags, scores: Scores, weights: Weights = None) -> dict[str, list[float]]:
    """Return :func:`calibration_bins` as lists named ``n``, ``mean_score`` and ``churned_share``."""
    names = ("n", "mean_score", "churned_share")
    bins = calibration_bins(churned, scores, weights=weights)
    return {name: values.tolist() for name, values in zip(names, bins, strict=True)}


def calibration_error(churned: Flags, scores: Scores, n_bins: int = 10, weights: Weights = None) -> float:
    """Return the mean distance of score and share churned over :func:`calibration_bins`, weighted by rows.

    By chance alone it is about ``0.8 sqrt(n_bins p (1 - p) / n)`` for a share p of n rows: 0.014 of 5,000 at 0.2.
    """
    n, mean_score, share = calibration_bins(churned, scores, n_bins, weights)
    return float(n @ np.abs(mean_score - share) / n.sum())


def lift(churned: Flags, scores: Scores, share: float = LIFT_SHARE, weights: Weights = None) -> float:
    """Return how many times likelier than all rows the highest scored ``share`` of them were to churn.

    Rows tied at the cut count by their mean, as if it fell among them at random. A fraction of a row counts as a row.
    """
    churned, scores = _both_outcomes(churned, scores)
    w = _weights(weights, churned)
    n_top = math.ceil(round(share * len(scores), 6)) if weights is None else share * w.sum()
    falling = np.argsort(-scores)
    cut = scores[falling[np.searchsorted(np.cumsum(w[falling]), n_top - _ROUNDING)]]
    above, tied = scores > cut, scores == cut
    hits = w[above & churned].sum() + (n_top - w[above].sum()) * np.average(churned[tied], weights=w[tied])
    return float(hits / n_top / np.average(churned, weights=w))


def _checked(churned: Any, scores: Any, *, probabilities: bool) -> tuple[Flags, Doubles]:
    outcomes, numbers = np.asarray(churned), np.asarray(scores, dtype=np.float64)
    if outcomes.ndim != 1 or outcomes.shape != numbers.shape:
        raise NotMeasurableError(f"outcomes of shape {outcomes.shape} do not match scores of shape {numbers.shape}")
    if outcomes.dtype != np.bool_:
        raise NotMeasurableError(f"outcomes are {outcomes.dtype}; give bool, true where the account churned")
    if not np.isfinite(numbers).all():
        raise NotMeasurableError(f"{np.count_nonzero(~np.isfinite(numbers))} scores are NaN or infinite")
    if probabilities and len(numbers) and not 0 <= numbers.min() <= numbers.max() <= 1:
        raise NotMeasurableError(f"scores run from {numbers.min()} to {numbers.max()}; give probabilities")
    return outcomes, numbers


def _both_outcomes(churned: Any, scores: Any) -> tuple[Flags, Doubles]:
    churned, scores = _checked(churned, scores, probabilities=False)
    if churned.all() or not churned.any():
        raise NotMeasurableError(f"{churned.sum()} of {len(churned)} rows churned; rows of both outcomes are needed")
    return churned, scores


def _weights(weights: Doubles | None, churned: Flags) -> Doubles:
    if weights is None:
        return np.ones(len(churned))
    if weights.shape != churned.shape or not (np.isfinite(weights) & (weights > 0)).all():
        raise NotMeasurableError(f"{len(weights)} weights of {len(churned)} rows are not one above 0 for each")
    return weights


def _wins(churned: Flags, scores: Doubles, weights: Doubles) -> tuple[Doubles, Doubles]:
    """Return the share of stayed rows below each churned row, and of churned ones above each stayed; ties are half."""
    order = np.argsort(scores)
    starts, ends = _ties(scores[order])
    placed = []
    for of_class in (weights * ~churned, weights * churned):
        sums = np.append(0, np.cumsum(of_class[order]))  # of the first so many
        placed.append(np.empty(len(scores)))
        placed[-1][order] = (sums[starts] + sums[ends]) / 2 / sums[-1]
    return placed[0][churned], 1 - placed[1][~churned]


def _ties(ordered: Doubles) -> tuple[Longs, Longs]:
    """Return for each value where its run of equal ones begins and ends."""
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    n = np.diff(starts, append=len(ordered))
    return np.repeat(starts, n), np.repeat(starts + n, n)


def _variance_of_mean(values: Doubles, weights: Doubles) -> float:
    if not len(values) or not np.ptp(values):
        return 0.0
    # Products are summed without BLAS, whose threads wait for each other where cores are busy.
    off = weights * (values - (weights * values).sum() / weights.sum())
    return float((off * off).sum()) / float(weights.sum()) ** 2 * len(values) / (len(values) - 1)


def _mean_interval(values: Doubles, weights: Doubles, least: float = 0.0, most: float = math.inf) -> Interval:
    value = float(np.average(values, weights=weights))
    reach = _quantile(0.95) * math.sqrt(_variance_of_mean(values, weights))
    return Interval(value, max(value - reach, least), min(value + reach, most))


def _logit_interval(value: float, error: float, confidence: float) -> Interval:
    centre, reach = special.logit(value), _quantile(confidence) * error / (value * (1 - value))
    return Interval(value, *special.expit([centre - reach, centre + reach]).tolist())


def _quantile(confidence: float) -> float:
    return float(special.ndtri((1 + confidence) / 2))  # half the width of an interval, in standard errors
