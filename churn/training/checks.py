"""Checks that a trained model must pass, and their results. Apart from the gate, which imports XGBoost. Pure."""

from dataclasses import dataclass
from typing import Literal

from churn.markdown import markdown_table

Outcome = Literal["holds", "fails", "skipped"]

GATE_CHECKS = {
    "auc_is_above_the_floor": "The lower end of the held-out AUC's interval is above the floor.",
    "scores_are_calibrated": "Held-out scores miss what came true by no more than the limit, or than chance explains.",
    "shuffled_labels_do_not_pass": "The same training on shuffled labels gives a model that the floor stops.",
    "the_future_does_not_leak": "A number on facts not known yet that gives the label away reaches no feature.",
    "golden_rows_reproduce": "A saved and loaded model gives its golden rows the same scores.",
    "trees_compile_to_tables": "The trees compile to the tables that weekly scoring uses.",
    "scoring_is_no_slower": "Scoring with reasons takes at most so many times as long as the champion's, or little.",
}
"""Every check, in the order in which they are judged."""


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
