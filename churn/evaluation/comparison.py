"""Challenger against champion: a sequential test that stays valid at every look, and guardrails. Pure.

Belongs here: statistics of accounts that both scored and whose labels matured. Not here: reading them, moving aliases.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt

from churn.evaluation.metrics import Interval, calibration_error, compare_roc_auc, log_losses
from churn.evaluation.sequential import PairedSums, confidence_sequence, e_value
from churn.weeks import month_number

Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
Outcomes = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PairedCohort:
    """Accounts that both models scored in one week and whose labels have matured.

    Attributes:
        as_of: The day as of which both scored.
        account_ids: Shape (n,), each once.
        champion: Its churn probabilities, shape (n,).
        challenger: Likewise.
        churned: The outcomes, shape (n,).
    """

    as_of: date
    account_ids: Ids
    champion: Scores
    challenger: Scores
    churned: Outcomes


@dataclass(frozen=True)
class Limits:
    """What a promotion needs.

    Attributes:
        alpha: Maximum share of challengers that are promoted although they are no better.
        tuned_for: Accounts by which an improvement should show; fixed before the first look.
        min_of_class: Matured accounts needed of those that churned, and of those that stayed.
        max_auc_loss: How much of the champion's ROC AUC a better log-loss may cost.
        max_calibration_loss: By how much more than the champion's the calibration error may be, beyond chance.
    """

    alpha: float = 0.05
    tuned_for: int = 2000
    min_of_class: int = 50
    max_auc_loss: float = 0.005
    max_calibration_loss: float = 0.02


@dataclass(frozen=True)
class Guardrail:
    """A condition of promotion besides the test.

    Attributes:
        sentence: The figure and its limit.
    """

    name: str
    sentence: str
    holds: bool


@dataclass(frozen=True)
class Comparison:
    """The result of comparing a challenger with the champion.

    Attributes:
        n: Accounts counted, each once per horizon.
        improvement: Mean log-loss that the challenger saves, with an interval valid at all looks.
        e_value: The evidence that it is better; promotion by itself needs ``1 / alpha``.
    """

    n: int
    n_churned: int
    improvement: Interval
    e_value: float
    guardrails: tuple[Guardrail, ...]
    alpha: float

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
            return "no account that both scored has a matured label yet"
        found = (
            f"{self.n:,} matured accounts, log-loss better by {self.improvement:.4f}, "
            f"evidence {self.e_value:.3g} of {1 / self.alpha:.0f}"
        )
        if self.broken:
            return f"{found}; not allowed: {'; '.join(guardrail.sentence for guardrail in self.broken)}"
        if self.is_better:
            return f"{found}: the challenger is better"
        return f"{found}: {'the challenger is worse' if self.improvement.high < 0 else 'no decision yet'}"

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
        kept = {name: value for name, value in values.items() if np.isfinite(value)}
        return kept | {guardrail.name: guardrail.holds for guardrail in self.guardrails}


def compare(cohorts: Iterable[PairedCohort], horizon_months: int, limits: Limits) -> Comparison:
    """Compare a challenger with the champion on the accounts of several weeks.

    Args:
        cohorts: One a month at most; see :func:`newest_of_each_month`.
        horizon_months: The label's; an account counts again only when its outcomes do not overlap.
    """
    counted = count_once(sorted(cohorts, key=lambda cohort: cohort.as_of), horizon_months)
    churned = np.concatenate([cohort.churned for cohort in counted] or [np.empty(0, dtype=np.bool_)])
    champion = np.concatenate([cohort.champion for cohort in counted] or [np.empty(0, dtype=np.float32)])
    challenger = np.concatenate([cohort.challenger for cohort in counted] or [np.empty(0, dtype=np.float32)])
    if not len(churned):
        nothing = Interval(0.0, -np.inf, np.inf)
        return Comparison(0, 0, nothing, 1.0, (_enough_labels(churned, limits),), limits.alpha)
    sums = PairedSums.of(log_losses(churned, champion), log_losses(churned, challenger))
    return Comparison(
        n=sums.n,
        n_churned=int(churned.sum()),
        improvement=confidence_sequence(sums, alpha=limits.alpha, tuned_for=limits.tuned_for),
        e_value=e_value(sums, tuned_for=limits.tuned_for),
        guardrails=tuple(_guardrails(churned, champion, challenger, limits)),
        alpha=limits.alpha,
    )


def count_once(cohorts: Sequence[PairedCohort], horizon_months: int) -> list[PairedCohort]:
    """Leave out the accounts whose outcome overlaps with one that was counted before.

    Args:
        cohorts: By as-of date, oldest first.
    """
    counted_in: dict[int, int] = {}
    kept: list[PairedCohort] = []
    for cohort in cohorts:
        month = month_number(cohort.as_of)
        ids = cohort.account_ids.tolist()
        is_new = np.array(
            [month - counted_in.get(i, month - horizon_months) >= horizon_months for i in ids], dtype=bool
        )
        counted_in.update(dict.fromkeys(cohort.account_ids[is_new].tolist(), month))
        if is_new.any():
            kept.append(
                PairedCohort(
                    cohort.as_of,
                    cohort.account_ids[is_new],
                    cohort.champion[is_new],
                    cohort.challenger[is_new],
                    cohort.churned[is_new],
                )
            )
    return kept


def _guardrails(churned: Outcomes, champion: Scores, challenger: Scores, limits: Limits) -> list[Guardrail]:
    enough = _enough_labels(churned, limits)
    if not enough.holds:
        return [enough]
    auc = compare_roc_auc(churned, champion, challenger)
    theirs, ours = calibration_error(churned, champion), calibration_error(churned, challenger)
    # The expected error of a perfectly calibrated model in ten bins.
    chance = 0.8 * math.sqrt(10 * churned.mean() * (1 - churned.mean()) / len(churned))
    rise = limits.max_calibration_loss + chance
    return [
        enough,
        Guardrail(
            "auc_holds",
            f"ROC AUC changes by {auc.difference:+.4f}, and may fall by {limits.max_auc_loss}",
            auc.difference >= -limits.max_auc_loss,
        ),
        Guardrail(
            "calibration_holds",
            f"calibration error goes from {theirs:.4f} to {ours:.4f}, and may rise by {rise:.4f}",
            ours <= theirs + rise,
        ),
    ]


def _enough_labels(churned: Outcomes, limits: Limits) -> Guardrail:
    n_churned = int(churned.sum())
    least = min(n_churned, len(churned) - n_churned)
    return Guardrail(
        "labels_are_enough",
        f"{n_churned} matured accounts churned and {len(churned) - n_churned} stayed; {limits.min_of_class} of each "
        f"are needed",
        least >= limits.min_of_class,
    )
