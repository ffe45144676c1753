"""The rows of a report. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

Row = Mapping[str, Any]

EVALUATED_MEASURES = (
    "roc_auc", "roc_auc_low", "roc_auc_high", "auc_limit", "brier_score", "calibration_error", "lift_at_10",
)  # fmt: skip
SEGMENT_MEASURES = ("roc_auc", "roc_auc_low", "roc_auc_high", "calibration_error", "mean_score")


@dataclass(frozen=True)
class FleetRows:
    """The rows of one report, as the tables hold them.

    Attributes:
        week: The reported week; ``None`` when nothing was ever scored.
        weeks: The weeks shown, ascending; the last is ``week``.
        batches: Current batches of these weeks, both roles, with the results of their evaluation if there are any.
        newest: The champion's newest batch of each variant, with all columns.
        evaluated: The champion's newest batch of each variant that had enough labels to be evaluated.
        segments: The segments of the batches in ``evaluated``.
        flags: Drift flags of these weeks.
        attempts: The last attempt of each variant and role in ``week``.
        champions: Each variant's champion and challenger at the end of ``week``, and the champion's first day.
        changes: Promotions and rollbacks in these weeks, the newest first.
        incidents: Open incidents, then recently resolved ones.
    """

    week: date | None
    weeks: Sequence[date] = ()
    batches: Sequence[Row] = ()
    newest: Sequence[Row] = ()
    evaluated: Sequence[Row] = ()
    segments: Sequence[Row] = ()
    flags: Sequence[Row] = ()
    attempts: Sequence[Row] = ()
    champions: Sequence[Row] = ()
    changes: Sequence[Row] = ()
    incidents: Sequence[Row] = ()
