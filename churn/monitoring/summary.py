"""Summary of a batch's scores, for people and later weeks, accumulated chunk by chunk. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from churn.monitoring.drift import compare, estimated_auc
from churn.monitoring.profiles import Profile

_BINS, _FINE_BINS = 20, 1000
_TOP = 10


@dataclass
class ScoreSummary:
    """Counts and extremes of a batch's scores.

    Attributes:
        fine_counts: Accounts per thousandth of [0, 1], shape (1000,).
        top: ``(probability, account id)`` of the highest, in falling order.
        absolute: Sums of the contributions' absolute values, by source column; ``None`` without reasons.
        reference: The model's reference profile; ``None`` if the model has none.
        profile: The rows counted into the bins of the reference; ``None`` without one.
    """

    n: int = 0
    total: float = 0.0
    lowest: float = 1.0
    highest: float = 0.0
    fine_counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_FINE_BINS, dtype=np.int64))
    top: list[tuple[float, int]] = field(default_factory=list)
    absolute: npt.NDArray[np.float64] | None = None
    reference: Profile | None = None
    profile: Profile | None = None

    @property
    def mean(self) -> float:
        return self.total / max(self.n, 1)

    @property
    def estimated_auc(self) -> float | None:
        """Expected ROC AUC if each score is a calibrated probability; assumes no concept drift."""
        middles = (np.arange(_FINE_BINS) + 0.5) / _FINE_BINS
        return estimated_auc(middles, self.fine_counts) if self.n else None

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Accounts per twentieth of [0, 1], shape (20,)."""
        return np.asarray(self.fine_counts.reshape(_BINS, -1).sum(axis=1), dtype=np.int64)

    def importance(self, source_columns: Sequence[str]) -> dict[str, float]:
        """Return the mean absolute contribution of each source column in log-odds, the largest first."""
        if self.absolute is None:
            return {}
        means = dict(zip(source_columns, (self.absolute / self.n).tolist(), strict=True))
        return dict(sorted(means.items(), key=lambda pair: (-pair[1], pair[0])))

    def add(
        self,
        account_ids: npt.NDArray[np.int64],
        probabilities: npt.NDArray[np.float32],
        contributions: npt.NDArray[np.float32] | None = None,
        profile: Profile | None = None,
    ) -> None:
        """Count a chunk of scored rows.

        Args:
            account_ids: Shape (n,), as ``probabilities``.
            contributions: Shape (n, n_source_columns); ``None`` without reasons.
            profile: The chunk counted into the reference's bins; ``None`` without one.
        """
        if profile is not None:
            self.profile = profile if self.profile is None else self.profile + profile
        if contributions is not None:
            sums = np.abs(contributions).sum(axis=0, dtype=np.float64)
            self.absolute = sums if self.absolute is None else self.absolute + sums
        self.n += probabilities.size
        self.total += float(probabilities.sum(dtype=np.float64))
        self.lowest = min(self.lowest, float(probabilities.min()))
        self.highest = max(self.highest, float(probabilities.max()))
        self.fine_counts += np.histogram(probabilities, bins=_FINE_BINS, range=(0, 1))[0]
        best = np.argpartition(-probabilities, min(_TOP, probabilities.size) - 1)[:_TOP]
        highest = [(float(probabilities[i]), int(account_ids[i])) for i in best]
        self.top = sorted([*self.top, *highest], key=lambda pair: (-pair[0], pair[1]))[:_TOP]

    def drift(self) -> dict[str, dict[str, float]] | None:
        """Return the drift measures by feature; ``None`` without a reference."""
        if self.reference is None or self.profile is None:
            return None
        measures = [asdict(drift) for drift in compare(self.reference, self.profile)]
        return {str(drift.pop("feature")): drift for drift in measures}

    def record_fields(self) -> dict[str, Any]:
        """Return the fields of the batch's record that describe its scores."""
        return {
            "drift": self.drift(),
            "mean_probability": self.mean,
            "score_counts": self.counts.tolist(),
            "profile_counts": None if self.profile is None else self.profile.counts.tolist(),
            "estimated_auc": self.estimated_auc,
        }
