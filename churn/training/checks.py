"""The gate checks that a trained model must pass, and their results. Pure.

Not here: how a check is done (``churn.training.gate``), which imports XGBoost.
"""

from dataclasses import dataclass
from typing import Literal

from churn.wording import markdown_table

Outcome = Literal["holds", "fails", "skipped"]

GATE_CHECKS = {
    "auc_is_above_minimum": (
        "The new model's ROC AUC on held-out accounts is above the minimum: the lower end of its 95 % interval counts."
    ),
    "scores_are_calibrated": (
        "The new model's calibration error on held-out accounts is at most the limit, widened by sampling error."
    ),
    "shuffled_labels_do_not_pass": (
        "A model trained the same way on shuffled labels has no ROC AUC above the minimum, so the gate can reject."
    ),
    "the_future_does_not_leak": (
        "A marker of the label, planted on facts that were not known at the as-of date, reaches no feature."
    ),
    "churn_share_is_plausible": "The share of churn in the rows is between 1 % and 90 %.",
    "accounts_have_several_months": (
        "Accounts have at least 1.5 months each on average: in a sample of rows, nearly everybody seems to leave."
    ),
    "log_loss_beats_simple_models": (
        "The new model's log-loss on held-out accounts is better than that of the base rate, and not worse than that "
        "of a model of recency alone, beyond sampling error."
    ),
    "past_months_are_not_restated": (
        "No column of the features changed from one extract to another in more than 5 % of the months that were over "
        "10 days before, or in more than 1 % of those over 90 days, unless the extract says when each row became known."
    ),
    "past_features_are_those_scored": (
        "Last month's features, computed again from the history, give the scores that were published, for at least "
        "99 % of the accounts."
    ),
    "golden_rows_reproduce": "The new model gives its golden rows the same scores after it was saved and loaded.",
    "trees_compile_to_tables": "The new model's trees compile to the tables that weekly scoring uses.",
    "scoring_is_no_slower": (
        "The new model's CPU time per row, reasons included, is at most the allowed multiple of the champion's."
    ),
}
"""The description of every check by its name, in the order in which they run."""


@dataclass(frozen=True)
class GateCheck:
    """The result of one check: the measured value, if any, its limit, and a sentence for a person."""

    name: str
    value: float | None
    limit: float | None
    outcome: Outcome
    sentence: str

    @classmethod
    def of(cls, name: str, value: float | None, limit: float | None, sentence: str, *, holds: bool) -> "GateCheck":
        """Return the result of a check that was done."""
        return cls(name, value, limit, "holds" if holds else "fails", sentence)


@dataclass(frozen=True)
class Gate:
    """The results of all checks of one trained model."""

    checks: tuple[GateCheck, ...]

    @property
    def is_passed(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[GateCheck, ...]:
        return tuple(check for check in self.checks if check.outcome == "fails")

    def to_markdown(self) -> str:
        """Return the checks as a Markdown table."""
        rows = []
        for check in self.checks:
            numbers = (None if number is None else f"{number:.4g}" for number in (check.value, check.limit))
            rows.append((check.name, check.outcome, *numbers, check.sentence))
        return markdown_table(("check", "outcome", "value", "limit", ""), rows, "--rr")
