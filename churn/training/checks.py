"""What is claimed of a trained model, and whether it held: for those who tell of it and need not load XGBoost. Pure."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["holds", "fails", "skipped"]

CLAIMS = {
    "auc_is_above_the_floor": "The lower end of the held-out AUC's interval is above the floor.",
    "scores_are_calibrated": "Held-out scores miss what came true by no more than the limit, or than chance explains.",
    "shuffled_labels_do_not_pass": "The same training on shuffled labels gives a model that the floor stops.",
    "the_future_does_not_leak": "A number on facts not known yet that gives the label away reaches no feature.",
    "golden_rows_reproduce": "A saved and loaded model gives its golden rows the same scores.",
    "trees_compile_to_tables": "The trees compile to the tables that weekly scoring uses.",
    "scoring_is_no_slower": "Scoring with reasons takes at most so many times as long as the champion's, or little.",
}
"""Every claim, in the order in which they are judged."""


@dataclass(frozen=True)
class Claim:
    """One thing that must hold, and whether it does.

    Attributes:
        value: What was measured; ``None`` when it could not be.
        limit: What it is held against.
        sentence: What was found, for a person.
    """

    name: str
    value: float | None
    limit: float | None
    verdict: Verdict
    sentence: str


@dataclass(frozen=True)
class Gate:
    """All claims about one trained model."""

    claims: tuple[Claim, ...]

    @property
    def is_passed(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[Claim, ...]:
        return tuple(claim for claim in self.claims if claim.verdict == "fails")

    def to_markdown(self) -> str:
        """Write the claims as a table."""
        rows = [
            f"| {claim.name} | {claim.verdict} | {_figure(claim.value)} | {_figure(claim.limit)} | {claim.sentence} |"
            for claim in self.claims
        ]
        return "\n".join(["| claim | verdict | value | limit | |", "|---|---|---:|---:|---|", *rows])


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
