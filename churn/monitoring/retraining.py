"""When a champion should be trained anew. Pure.

Three reasons: its scores did worse than they must on two cohorts whose outcomes have nothing in common, its input or
scores drifted in two weeks running, or it has grown old. A reason asks for training; whether what is trained becomes
champion is another question.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from churn.defaults import HORIZON_MONTHS, RETRAIN_AFTER_MONTHS
from churn.weeks import monday_of, month_number


@dataclass(frozen=True)
class EvaluatedCohort:
    """A week's batch of the champion, judged.

    Attributes:
        roc_auc_high: Upper end of the AUC's interval; ``None`` where labels were too few.
        limit: What the AUC must not lie under; ``None`` where none is known.
    """

    as_of: date
    roc_auc_high: float | None
    limit: float | None

    @property
    def is_below(self) -> bool:
        """Whether the AUC lies under its limit beyond doubt."""
        return self.roc_auc_high is not None and self.limit is not None and self.roc_auc_high < self.limit


@dataclass(frozen=True)
class RetrainingPolicy:
    """What is reason enough.

    Attributes:
        horizon_months: The label's; cohorts that far apart share no outcome.
        after_months: Age of a model at which it is trained anew anyway; 0 for never.
        pause_days: For how long a request is not made again.
    """

    horizon_months: int = HORIZON_MONTHS
    after_months: int = RETRAIN_AFTER_MONTHS
    pause_days: int = 28


def reason_to_retrain(
    cohorts: Sequence[EvaluatedCohort],
    drifted: Mapping[date, Sequence[str]],
    trained_on: date | None,
    today: date,
    policy: RetrainingPolicy,
) -> str | None:
    """Return why a champion should be trained anew, in a sentence; ``None`` when there is no reason.

    Args:
        cohorts: Of the version that is champion now, in any order.
        drifted: What drifted, by scored week, of the weeks in which anything did.
        trained_on: ``None`` when nobody knows.
    """
    return _performance(cohorts, policy) or _drift(drifted, today) or _age(trained_on, today, policy)


def is_paused(requested_on: date | None, today: date, policy: RetrainingPolicy) -> bool:
    """Tell whether training was requested so lately that it is not requested again."""
    return requested_on is not None and today < requested_on + timedelta(days=policy.pause_days)


def _performance(cohorts: Sequence[EvaluatedCohort], policy: RetrainingPolicy) -> str | None:
    known = sorted((cohort for cohort in cohorts if cohort.roc_auc_high is not None), key=lambda cohort: cohort.as_of)
    if not known or not known[-1].is_below:
        return None
    newest = known[-1]
    for earlier in known[:-1]:
        if earlier.is_below and month_number(newest.as_of) - month_number(earlier.as_of) >= policy.horizon_months:
            return (
                f"ROC AUC is at most {earlier.roc_auc_high:.3f} as of {earlier.as_of} and {newest.roc_auc_high:.3f} "
                f"as of {newest.as_of}, under the limit of {newest.limit:.3f}"
            )
    return None


def _drift(drifted: Mapping[date, Sequence[str]], today: date) -> str | None:
    this_week = monday_of(today)
    # The newest week may not be scored yet.
    for week in (this_week, this_week - timedelta(weeks=1)):
        both = sorted(set(drifted.get(week, ())) & set(drifted.get(week - timedelta(weeks=1), ())))
        if both:
            return f"{', '.join(both)} drifted in the weeks of {week - timedelta(weeks=1)} and {week}"
    return None


def _age(trained_on: date | None, today: date, policy: RetrainingPolicy) -> str | None:
    if not policy.after_months or trained_on is None:
        return None
    months = month_number(today) - month_number(trained_on) - (today.day < trained_on.day)
    return f"trained on {trained_on}, {months} months ago" if months >= policy.after_months else None
