"""Rules that decide when a champion is retrained. Pure.

There are three reasons: its performance is low by the rule of the alert
(:func:`churn.monitoring.conditions.performance_low`), its input or scores drifted in two different inputs, or it has
reached the maximum age. Poor calibration is no reason: models are compared after both are recalibrated, so a challenger
better at that alone is not promoted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from churn.defaults import HORIZON_MONTHS, RETRAIN_AFTER_MONTHS
from churn.monitoring.conditions import ScoredBatch, flag_drifts
from churn.monitoring.drift import is_broken
from churn.weeks import month_number

# Higher than the thresholds that raise an alert: not every drift needs a new model.
_LEAST_MOVED, _LEAST_UNKNOWN_RISE = 0.2, 0.05
_STALE_AFTER = 3  # horizons: labels take one to mature, which leaves two cohorts to compare on


@dataclass(frozen=True)
class RetrainingPolicy:
    """Thresholds for retraining: the age at which a champion is too old, 0 for none, and the pause between requests."""

    horizon_months: int = HORIZON_MONTHS
    after_months: int = RETRAIN_AFTER_MONTHS
    pause_days: int = 28

    def reason(self, low: str | None, drifted: Sequence[str], trained_on: date | None, today: date) -> str | None:
        """Return why a champion should be retrained, as a sentence; ``None`` if there is no reason.

        ``low`` is how its performance is below the limit, if it is, and ``drifted`` the features that drifted in two
        different inputs. ``trained_on`` is ``None`` if it is unknown, or the champion's age does not count.
        """
        if low or drifted:
            return low or f"{', '.join(sorted(drifted))} drifted in two different inputs"
        months = 0 if trained_on is None else _months_since(trained_on, today)
        is_old = self.after_months and months >= self.after_months
        return f"trained on {trained_on}, {months} months ago" if is_old else None

    def is_paused(self, requested_on: date | None, today: date) -> bool:
        """Return whether the last request for training is too recent for another."""
        return requested_on is not None and today < requested_on + timedelta(days=self.pause_days)

    def is_stale(self, trained_on: date | None, today: date) -> bool:
        """Return whether a challenger is so old that it may be replaced; sooner, lasting drift ended its comparison."""
        return trained_on is None or _months_since(trained_on, today) >= _STALE_AFTER * self.horizon_months


def drifted_features(batches: Sequence[ScoredBatch], week: date) -> dict[tuple[str, int], list[str]]:
    """Return the features that drifted far in two different inputs, of each variant key and model version.

    A variant whose data is broken is left out: a model trained on it would learn the fault. The arguments are those of
    :func:`churn.monitoring.conditions.flag_drifts`.
    """
    versions, features = {batch.batch_id: batch.model_version for batch in batches}, dict[tuple[str, int], list[str]]()
    flags = flag_drifts(batches, week, least_moved=_LEAST_MOVED, least_unknown_rise=_LEAST_UNKNOWN_RISE)
    broken = {flag.variant for flag in flags if is_broken(flag.drift)}
    for flag in flags:
        if flag.is_confirmed and flag.variant not in broken:
            features.setdefault((flag.variant, versions[flag.batch_id]), []).append(flag.drift.feature)
    return features


def _months_since(day: date, today: date) -> int:
    return month_number(today) - month_number(day) - (today.day < day.day)
