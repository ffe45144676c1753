"""The results of the checks that a trained model must pass. Pure.

Not here: how a check is done (``churn.training.gate``), which imports XGBoost.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from churn.wording import markdown_table

Outcome = Literal["holds", "fails", "skipped"]

GATE_CHECKS: Mapping[str, str] = tomllib.loads(files("churn.training").joinpath("gate_checks.toml").read_text("utf-8"))
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
