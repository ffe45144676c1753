"""The rows that a report is made of. Pure."""

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
    """All that one report shows, as the tables hold it.

    Attributes:
        week: The week it is about; ``None`` when nothing was ever scored.
        weeks: Those shown, ascending; the last is ``week``.
        batches: Current batches of these weeks, both roles, with what they were worth where that is known.
        newest: Of each variant the champion's newest batch in full.
        judged: Of each variant the champion's newest batch that could be judged.
        segments: Of those.
        flags: What drifted in these weeks.
        attempts: The last attempt of each variant and role in ``week``.
        champions: Who was champion and challenger at the end of ``week``, and since when.
        changes: Promotions and rollbacks in these weeks, the newest first.
        incidents: Those open now, then those resolved of late.
    """

    week: date | None
    weeks: Sequence[date] = ()
    batches: Sequence[Row] = ()
    newest: Sequence[Row] = ()
    judged: Sequence[Row] = ()
    segments: Sequence[Row] = ()
    flags: Sequence[Row] = ()
    attempts: Sequence[Row] = ()
    champions: Sequence[Row] = ()
    changes: Sequence[Row] = ()
    incidents: Sequence[Row] = ()
