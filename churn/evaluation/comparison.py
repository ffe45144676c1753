"""Challenger against champion: a sequential test that is valid at every look, and guardrails. Pure.

Belongs here: statistics of accounts that both models scored and that have matured labels. Not here: reading them, or
moving aliases.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np

from churn.data.arrays import Doubles, Flags
from churn.data.labels import Ids
from churn.evaluation import metrics, sequential
from churn.evaluation.metrics import Interval, Scores
from churn.evaluation.sequential import EvidenceError, PairedSums
from churn.weeks import month_number

_MOST_ODDS = 1_000_000


@dataclass(frozen=True)
class PairedCohort:
    """Accounts with matured labels and both models' churn probabilities of one week, each once; arrays of shape (n,).

    A weight of 0 leaves an account out, such as one that was contacted; the inverse of the probability not to be
    contacted makes the others stand for it. ``None`` weights all alike.
    """

    as_of: date
    account_ids: Ids
    champion: Scores
    challenger: Scores
    churned: Flags
    weights: Doubles | None = None

    def __post_init__(self) -> None:
        if self.weights is not None and len(wrong := self.weights[~(np.isfinite(self.weights) & (self.weights >= 0))]):
            raise EvidenceError(f"weights of accounts are {wrong[:3].tolist()}; give finite numbers of 0 or more")

    def select(self, rows: Flags) -> "PairedCohort":
        """Return the accounts of a mask of shape (n,)."""
        arrays: dict[str, Any] = {name: one[rows] for name, one in vars(self).items() if isinstance(one, np.ndarray)}
        return replace(self, **arrays)

    def sums(self) -> PairedSums:
        """Return the sums of the two models' losses, both recalibrated on these accounts."""
        scores = (metrics.recalibrated(self.churned, one, self.weights) for one in (self.champion, self.challenger))
        first, second = (metrics.log_losses(self.churned, one) for one in scores)
        return PairedSums.of(first, second, self.weights)


@dataclass(frozen=True)
class Limits:
    """The conditions of promotion."""

    alpha: float = 0.05  # maximum share of promotions among challengers that are no better
    tuned_for: int = 1000  # accounts by which an improvement should be detected; fixed before the first look
    min_of_class: int = 50  # minimum matured accounts of each outcome
    # Maximum decrease of ROC AUC that is accepted for a better log-loss; it is exceeded if the whole interval of the
    # difference is below.
    max_auc_loss: float = 0.005
    max_calibration_loss: float = 0.02  # maximum increase of the calibration error, beyond chance
    min_gain: float = 0.01  # smallest decrease of log-loss worth having, as a share of the champion's
    max_months: int = 30  # months after which a challenger that is not proven better ends


@dataclass(frozen=True)
class Guardrail:
    """A condition of promotion besides the test; ``sentence`` gives the figure and its limit."""

    name: str
    sentence: str
    holds: bool


@dataclass(frozen=True)
class Comparison:
    """The result of comparing a challenger with the champion."""

    n: int  # accounts counted, each once per horizon
    n_churned: int
    improvement: Interval  # mean decrease of log-loss, with an interval valid at all looks
    e_value: float  # the evidence that the challenger is better; `1 / alpha` is needed
    guardrails: tuple[Guardrail, ...]
    alpha: float
    after: date | None = None  # only later as-of days count, since one of the models was trained on outcomes up to then
    min_gain: float = 0.0  # smallest improvement worth having
    since: date | None = None  # the first as-of day that both models scored

    @property
    def is_hopeless(self) -> bool:
        """Whether even the interval's upper end is below the smallest improvement worth having."""
        return self.improvement.high < self.min_gain

    @property
    def is_better(self) -> bool:
        return self.e_value >= 1 / self.alpha

    @property
    def broken(self) -> list[Guardrail]:
        """The guardrails that do not hold."""
        return [guardrail for guardrail in self.guardrails if not guardrail.holds]

    @property
    def sentence(self) -> str:
        """The result in one line, for a person."""
        if self.n == 0:
            since = f"; as-of days after {self.after} count, since the models were trained before" if self.after else ""
            return f"no account that both models scored has a matured label yet{since}"
        by = self.improvement
        gain = f"better by {by:.4f}" if by.value >= 0 else f"worse by {Interval(-by.value, -by.high, -by.low):.4f}"
        needed = odds(1 / self.alpha)
        found = f"{self.n:,} matured accounts, log-loss {gain}, evidence {odds(self.e_value)}, {needed} needed"
        if self.broken:
            return f"{found}; not allowed: {'; '.join(guardrail.sentence for guardrail in self.broken)}"
        if self.is_better:
            return f"{found}: the challenger is better"
        if self.improvement.high < 0:
            return f"{found}: the challenger is worse"
        if self.is_hopeless:
            return f"{found}: the gain is below the smallest worth having, {self.min_gain:.4f}"
        return f"{found}: no decision yet"

    def evidence(self) -> dict[str, float | int | bool]:
        """Return the figures that are stored with a promotion."""
        values = {
            "n": self.n,
            "n_churned": self.n_churned,
            "improvement": self.improvement.value,
            "improvement_low": self.improvement.low,
            "improvement_high": self.improvement.high,
            "e_value": self.e_value,
            "alpha": self.alpha,
        }
        finite = {name: value for name, value in values.items() if np.isfinite(value)}
        return finite | {guardrail.name: guardrail.holds for guardrail in self.guardrails}


def choose(comparisons: Sequence[Comparison], alpha: float) -> list[bool]:
    """Return which challengers of a fleet to promote, so that at most a share ``alpha`` of these is no better.

    One that a guardrail does not allow counts as without evidence: it would loosen the limit for those promoted.
    """
    return sequential.e_benjamini_hochberg([0.0 if one.broken else one.e_value for one in comparisons], alpha)


def odds(e_value: float) -> str:
    """Return evidence as odds for a person: what a bet of 1 on no difference has become.

    >>> odds(0.2), odds(7.26), odds(19.64), odds(20), odds(1234.5), odds(1e300)
    ('below 1 to 1', '7.26 to 1', '19.6 to 1', '20 to 1', '1,234 to 1', 'over 1,000,000 to 1')
    """
    if e_value < 1:
        return "below 1 to 1"
    if e_value > _MOST_ODDS:
        return f"over {_MOST_ODDS:,} to 1"
    return f"{e_value:.3g} to 1" if e_value < 100 else f"{e_value:,.0f} to 1"


def compare(cohorts: Iterable[PairedCohort], horizon_months: int, limits: Limits) -> Comparison:
    """Compare a challenger with the champion on the accounts of several weeks, one a month at most.

    An account counts again only when its outcomes, over the label's ``horizon_months``, do not overlap.
    """
    known = [cohort if cohort.weights is None else cohort.select(cohort.weights > 0) for cohort in cohorts]
    counted = count_once(sorted(known, key=lambda cohort: cohort.as_of), horizon_months)
    if not counted:
        unknown = Interval(0.0, -np.inf, np.inf)
        return Comparison(0, 0, unknown, 1.0, (_enough_labels(np.zeros(0, dtype=bool), None, limits),), limits.alpha)
    churned = np.concatenate([cohort.churned for cohort in counted])
    champion = np.concatenate([cohort.champion for cohort in counted])
    challenger = np.concatenate([cohort.challenger for cohort in counted])
    weights = np.concatenate([np.ones(len(one.churned)) if one.weights is None else one.weights for one in counted])
    sums = sequential.discount_months([cohort.sums() for cohort in counted])
    return Comparison(
        n=len(churned),
        n_churned=int(churned.sum()),
        improvement=sequential.confidence_sequence(sums, alpha=limits.alpha, tuned_for=limits.tuned_for),
        e_value=sequential.e_value(sums, tuned_for=limits.tuned_for),
        guardrails=tuple(_check(churned, champion, challenger, weights, limits)),
        alpha=limits.alpha,
        min_gain=limits.min_gain * float(np.average(metrics.log_losses(churned, champion), weights=weights)),
    )


def count_once(cohorts: Sequence[PairedCohort], horizon_months: int) -> list[PairedCohort]:
    """Drop the accounts with an outcome that overlaps one counted before; the oldest of the ``cohorts`` comes first."""
    counted: list[PairedCohort] = []
    for cohort in cohorts:
        month = month_number(cohort.as_of)
        overlapping = [one.account_ids for one in counted if month_number(one.as_of) > month - horizon_months]
        new = cohort.select(~np.isin(cohort.account_ids, np.concatenate([np.zeros(0, np.int64), *overlapping])))
        if len(new.account_ids):
            counted.append(new)
    return counted


def _check(churned: Flags, first: Scores, second: Scores, weights: Doubles, limits: Limits) -> Iterator[Guardrail]:
    yield (enough := _enough_labels(churned, weights, limits))
    if not enough.holds:
        return
    change = metrics.compare_roc_auc(churned, first, second, weights).interval
    before, after = (metrics.calibration_error(churned, one, weights=weights) for one in (first, second))
    n, n_churned, _ = metrics.counts(churned, weights)
    chance = 0.8 * math.sqrt(10 * n_churned * (n - n_churned) / n**3)  # of a perfectly calibrated model in ten bins
    rise = limits.max_calibration_loss + chance
    of_auc = f"ROC AUC changes by {change:+.4f}, and must not have fallen by more than {limits.max_auc_loss}"
    of_calibration = f"calibration error goes from {before:.4f} to {after:.4f}, and may rise by {rise:.4f}"
    yield Guardrail("auc_holds", of_auc, change.high >= -limits.max_auc_loss)
    yield Guardrail("calibration_holds", of_calibration, after <= before + rise)


def _enough_labels(churned: Flags, weights: Doubles | None, limits: Limits) -> Guardrail:
    (n, n_churned, fewest), least = metrics.counts(churned, weights), limits.min_of_class
    found = f"{n_churned} matured accounts churned and {n - n_churned} stayed; {least} of each are needed"
    if n < len(churned):
        found = f"of {len(churned)} accounts that were not contacted, which weigh as much as {n}, {found}"
    return Guardrail("labels_are_enough", found, fewest >= least)
