"""Checks that a trained model must pass, and their results. Apart from the gate, which imports XGBoost. Pure."""

from dataclasses import dataclass
from typing import Literal

from churn.markdown import markdown_table

Outcome = Literal["holds", "fails", "skipped"]

GATE_CHECKS = {
    "auc_is_above_the_floor": (
        "The 95 % confidence interval of the model's held-out ROC AUC lies above the minimum, CHURN_MIN_AUC."
    ),
    "scores_are_calibrated": (
        "The model's held-out calibration error is at most CHURN_MAX_CALIBRATION_ERROR, widened by sampling error when "
        "there are few accounts."
    ),
    "shuffled_labels_do_not_pass": (
        "A model trained in the same way on shuffled labels does not exceed the minimum ROC AUC, CHURN_MIN_AUC."
    ),
    "the_future_does_not_leak": (
        "A planted value that reveals the label, on facts that were not known at the as-of date, reaches no feature."
    ),
    "golden_rows_reproduce": "The model, saved and loaded again, gives its golden rows identical scores.",
    "trees_compile_to_tables": "The model's trees compile to the lookup tables that weekly scoring uses.",
    "scoring_is_no_slower": (
        "Scoring with reasons takes at most the allowed multiple of the champion's time, or a negligible time."
    ),
}
"""Every check with its description, in the order of evaluation."""


@dataclass(frozen=True)
class GateCheck:
    """One thing that must hold, and whether it does.

    Attributes:
        value: What was measured; ``None`` when it could not be.
        limit: What it is held against.
        sentence: What was found, for a person.
    """

    name: str
    value: float | None
    limit: float | None
    outcome: Outcome
    sentence: str


@dataclass(frozen=True)
class Gate:
    """All checks about one trained model."""

    checks: tuple[GateCheck, ...]

    @property
    def is_passed(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[GateCheck, ...]:
        return tuple(check for check in self.checks if check.outcome == "fails")

    def to_markdown(self) -> str:
        """Write the checks as a table."""
        rows = [
            (check.name, check.outcome, _figure(check.value), _figure(check.limit), check.sentence)
            for check in self.checks
        ]
        return markdown_table(("check", "outcome", "value", "limit", ""), rows, "--rr")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
