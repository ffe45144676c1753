"""Sequential test of challenger against champion: valid at every weekly look. Pure.

The evidence is the differences of paired losses, ``d = loss(champion) - loss(challenger)``, one per account and
horizon: above 0 the challenger was nearer to the outcome. Only sums are stored, so a look costs the same after a year
as after a week. docs/explanation/statistics.md has the reasons: why a repeated z-test is invalid, an outcome counts
once, months are discounted, and a fleet is decided by e-values.

A confidence sequence covers the true mean at all looks together with 95 %. An e-value has a mean of at most 1 at any
stopping time if the challenger is no better, so it ever reaches 20 in at most 5 % of cases (Ville's inequality). On
e-values, Benjamini and Hochberg's procedure bounds the expected share of false promotions under any dependence, because
it uses only each one's mean (Wang and Ramdas, JRSS B 2022). Months are divided by their design effect (Kish).

Both are asymptotic: the variance is estimated, as the central limit theorem allows, so there is no evidence below
``MIN_PAIRS`` (Waudby-Smith et al., "Time-uniform central limit theory and asymptotic confidence sequences", arXiv
2103.06476).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from churn.data.arrays import Doubles
from churn.errors import ChurnError
from churn.evaluation.metrics import Interval, Weights

MIN_PAIRS = 100
"""Pairs below which there is no evidence: the variance of few heavy-tailed differences is mostly underestimated."""

_TUNED_ALPHA = 0.05
_MONTH_SD = 0.015  # of a month's mean difference beyond chance, in standard deviations of one account's difference
_MONTHS_ASSUMED = 12  # by how many months that assumption counts as if they had been observed
_LARGEST_E_VALUE = 1e300  # finite, for the sums, means and JSON of e-values


class EvidenceError(ChurnError, ValueError):
    """Losses, weights or e-values out of range."""


@dataclass(frozen=True)
class PairedSums:
    """Sufficient sums of paired differences; add those of new accounts with ``+``."""

    n: float = 0  # of accounts, or of as many equally weighted, independent ones as have the same variance
    total: float = 0.0
    total_squares: float = 0.0

    @classmethod
    def of(cls, champion_losses: Doubles, challenger_losses: Doubles, weights: Weights = None) -> "PairedSums":
        """Sum up accounts that both models scored: losses of shape (n,), in the same order.

        Weights are 0 or more, shape (n,); not all 0. Unequal ones leave fewer effective accounts (Kish).
        """
        same_shape = champion_losses.shape == challenger_losses.shape
        if not same_shape or not np.isfinite(differences := champion_losses - challenger_losses).all():
            problem = f"losses of shapes {champion_losses.shape} and {challenger_losses.shape} are not finite pairs"
            raise EvidenceError(f"{problem}; give one loss of each model per account")
        if weights is None:
            return cls(len(differences), float(differences.sum()), float(differences @ differences))
        scaled = weights * (weights.sum() / (weights @ weights))
        return cls(float(scaled.sum()), float(scaled @ differences), float(scaled @ differences**2))

    def __add__(self, other: "PairedSums") -> "PairedSums":
        return PairedSums(self.n + other.n, self.total + other.total, self.total_squares + other.total_squares)

    @property
    def mean(self) -> float:
        """Mean difference; NaN of no pairs."""
        return self.total / self.n if self.n else math.nan

    @property
    def variance(self) -> float:
        """Sample variance of a difference; NaN below two pairs."""
        if self.n < 2:
            return math.nan
        return max(self.total_squares - self.total * self.total / self.n, 0.0) / (self.n - 1)


def discount_months(months: Sequence[PairedSums]) -> PairedSums:
    """Add up the sums of months, as those of so many independent accounts as tell as much.

    The design effect is that of an assumed surprise, moderated by the observed one (Cochran's Q, which is 1 a degree of
    freedom if months differ by chance only) as in Smyth's moderated t statistics (2004). It is at least 1.
    """
    whole = sum(months, PairedSums())
    if not whole.variance > 0:  # NaN included
        return whole
    n = np.array([month.n for month in months])
    observed = float(n @ (np.array([month.mean for month in months]) - whole.mean) ** 2) / whole.variance
    assumed = 1 + _MONTH_SD**2 * float(n @ n) / whole.n
    effect = max(1.0, (_MONTHS_ASSUMED * assumed + observed) / (_MONTHS_ASSUMED + len(n) - 1))
    return PairedSums(whole.n / effect, whole.total / effect, whole.total_squares / effect)


def confidence_sequence(sums: PairedSums, *, alpha: float = 0.05, tuned_for: int = 1000) -> Interval:
    """Return the mean difference with an interval that covers the true one at all looks together, with 1 - alpha.

    Two-sided, for display; promotion uses :func:`e_value`. Below ``MIN_PAIRS`` the interval is unbounded. It is
    narrowest at ``tuned_for`` pairs; fix that before the first look: an interval is not valid if it depends on the
    data.
    """
    if sums.n < MIN_PAIRS:
        return Interval(sums.mean, -math.inf, math.inf)
    n, rho_squared = sums.n, mixture_variance(alpha, tuned_for)
    spread = n * rho_squared + 1
    reach = math.sqrt(sums.variance * 2 * spread / (n * n * rho_squared) * math.log(math.sqrt(spread) / alpha))
    return Interval(sums.mean, sums.mean - reach, sums.mean + reach)


def e_value(sums: PairedSums, *, tuned_for: int = 1000) -> float:
    """Return the evidence that the challenger is better: at most 1 on average, at any stopping time, if it is not.

    With differences standardised to unit variance and sum s, the likelihood ratio of a mean m against 0 is ``exp(m s -
    m² n / 2)``; this is its mean over m from a half-normal distribution, so that only improvements count. It grows
    soonest at ``tuned_for`` pairs, fixed beforehand, see :func:`confidence_sequence`.

    It is between 0 and 1e300; 1, no evidence either way, below ``MIN_PAIRS`` and if all differences are equal, since
    their variation is then unknown.
    """
    rho_squared = mixture_variance(2 * _TUNED_ALPHA, tuned_for)
    # Sums of squares leave a rounding error where the variance is 0.
    if sums.n < MIN_PAIRS or sums.variance <= 1e-12 * sums.total_squares / sums.n:
        return 1.0
    spread = sums.n * rho_squared + 1
    standardised = math.sqrt(rho_squared / spread) * sums.total / math.sqrt(sums.variance)
    # erfcx(-s / sqrt(2)) is 2 exp(s² / 2) Phi(s), and infinite where that is more than a float holds.
    return min(float(special.erfcx(-standardised / math.sqrt(2))) / math.sqrt(spread), _LARGEST_E_VALUE)


def e_benjamini_hochberg(e_values: Sequence[float], alpha: float) -> list[bool]:
    """Choose which null hypotheses to reject so that the false ones' expected share is at most alpha.

    The k largest are rejected, k being the most for which the k-th largest is at least ``len(e_values) / (alpha k)``.
    Valid under any dependence. Include every hypothesis tested, those without evidence as 1. Results keep the order.
    """
    values = np.asarray(e_values, dtype=np.float64)
    if not (values >= 0).all():  # NaN included
        raise EvidenceError(f"e-values {values[~(values >= 0)][:3].tolist()} are not 0 or more")
    falling = np.sort(values)[::-1]
    enough = np.flatnonzero(falling * np.arange(1, len(falling) + 1) >= len(falling) / alpha)
    return [bool(len(enough) and value >= falling[enough[-1]]) for value in values]


def mixture_variance(alpha: float, tuned_for: npt.ArrayLike) -> Any:
    """Return the variance of mixed-over means that makes a two-sided sequence narrowest at ``tuned_for`` pairs."""
    if np.min(tuned_for) < 1:
        raise EvidenceError(f"tuned_for is {tuned_for!r}; give the number of pairs expected by when it matters")
    level = -2 * math.log(alpha)
    return (level + math.log(level + 1)) / np.asarray(tuned_for)
