"""Summary of a batch's scores, for people and later weeks, accumulated chunk by chunk. Pure.

It is about the accounts at risk, as the performance of a model is. Where it is unknown who is at risk, it is about all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np

from churn.data.arrays import Doubles, Flags, Floats, Longs
from churn.monitoring.drift import compare, estimated_auc
from churn.monitoring.profiles import Profile, untrained_missing

_BINS, _FINE_BINS = 20, 1000
_TOP = 10


@dataclass
class ScoreSummary:
    """Counts and extremes of the scores of a batch's ``n`` accounts summarized."""

    n: int = 0
    n_scored: int = 0  # accounts scored, those not at risk included, as are the two extremes
    lowest: float = float("inf")
    highest: float = float("-inf")
    is_at_risk_known: bool = False  # whether the accounts summarized are those at risk; `False` if they are all
    is_calibrated: bool = False  # whether the scores are probabilities
    total: float = 0.0
    # Accounts per thousandth of [0, 1], shape (1000,)
    fine_counts: Longs = field(default_factory=lambda: np.zeros(_FINE_BINS, dtype=np.int64))
    # `(probability, account id)` of the highest, in falling order
    top: list[tuple[float, int]] = field(default_factory=list)
    # Sums of the contributions' absolute values, by source column; `None` without reasons
    absolute: Doubles | None = None
    # The batch's as-of day, by which the part of the reference is chosen; `None` for the whole
    as_of: date | None = None
    reference: Profile | None = None  # the model's reference profile; `None` if the model has none
    profile: Profile | None = None  # the rows counted into the bins of the reference; `None` without one

    @property
    def mean(self) -> float:
        return self.total / max(self.n, 1)

    @property
    def estimated_auc(self) -> float | None:
        """Expected ROC AUC, assuming no concept drift; ``None`` if the scores are not calibrated probabilities."""
        middles = (np.arange(_FINE_BINS) + 0.5) / _FINE_BINS
        return estimated_auc(middles, self.fine_counts) if self.n and self.is_calibrated else None

    @property
    def population(self) -> str:
        """The accounts summarized, in words."""
        return "accounts at risk" if self.is_at_risk_known else "all accounts, since it is unknown who is at risk"

    @property
    def counts(self) -> Longs:
        """Accounts per twentieth of [0, 1], shape (20,)."""
        return np.asarray(self.fine_counts.reshape(_BINS, -1).sum(axis=1), dtype=np.int64)

    def importance(self, source_columns: Sequence[str]) -> dict[str, float]:
        """Return the mean absolute contribution of each source column in log-odds, the largest first."""
        if self.absolute is None:
            return {}
        means = dict(zip(source_columns, (self.absolute / max(self.n, 1)).tolist(), strict=True))
        return dict(sorted(means.items(), key=lambda pair: (-pair[1], pair[0])))

    def add(
        self,
        account_ids: Longs,
        probabilities: Floats,
        contributions: Floats | None,
        is_at_risk: Flags | None,
        profile: Profile | None = None,
    ) -> None:
        """Count a chunk of scored rows.

        Arrays have shape (n,), ``contributions``, if there are reasons, (n, n_source_columns). ``is_at_risk`` is
        ``None`` if unknown; ``profile`` counts the accounts at risk into the reference's bins, if there is one.
        """
        self.n_scored += probabilities.size
        self.lowest = min(self.lowest, float(probabilities.min(initial=np.inf)))
        self.highest = max(self.highest, float(probabilities.max(initial=-np.inf)))
        self.is_at_risk_known = is_at_risk is not None
        counted = slice(None) if is_at_risk is None else np.flatnonzero(is_at_risk)
        probabilities, account_ids = probabilities[counted], account_ids[counted]
        if profile is not None:
            self.profile = profile if self.profile is None else self.profile + profile
        if contributions is not None:
            sums = np.abs(contributions[counted]).sum(axis=0, dtype=np.float64)
            self.absolute = sums if self.absolute is None else self.absolute + sums
        if not probabilities.size:
            return
        self.n += probabilities.size
        self.total += float(probabilities.sum(dtype=np.float64))
        self.fine_counts += np.histogram(probabilities, bins=_FINE_BINS, range=(0, 1))[0]
        best = np.argpartition(-probabilities, min(_TOP, probabilities.size) - 1)[:_TOP]
        highest = [(float(probabilities[i]), int(account_ids[i])) for i in best]
        self.top = sorted([*self.top, *highest], key=lambda pair: (-pair[0], pair[1]))[:_TOP]

    def drift(self) -> dict[str, dict[str, Any]] | None:
        """Return the drift measures by feature; ``None`` without a reference."""
        if self.reference is None or self.profile is None:
            return None
        season, year = (self.reference, None) if self.as_of is None else self.reference.at(self.as_of)
        measures = [dict(vars(drift)) for drift in compare(season, self.profile, year)]
        return {str(drift.pop("feature")): drift for drift in measures}

    def record_fields(self) -> dict[str, Any]:
        """Return the fields of the batch's record that describe its scores."""
        reference, profile = self.reference, self.profile
        return {
            "drift": self.drift(),
            "untrained_missing": untrained_missing(reference, profile) if reference and profile else None,
            "n_at_risk": self.n if self.is_at_risk_known else None,
            "mean_probability": self.mean if self.n else None,
            "score_counts": self.counts.tolist(),
            "profile_counts": None if self.profile is None else self.profile.counts.tolist(),
            "estimated_auc": self.estimated_auc,
        }
