"""The features of new models whose names nobody gave. Pure.

The set sees time through the windows of ``churn.data.windows``. The running month enters as rates only, so that the
scores of a model do not change with the day of the month. docs/training.md lists the set.
"""

from collections.abc import Sequence

import polars as pl

from churn.data.activity import MONEY, ONE_HOT_COLUMNS

DEFAULT_SET = "the default set, version 1"  # recorded with a training run; the version changes with the set
MAX_LEVELS = 60  # levels of each category, the most frequent ones
_OF_MONEY = ("sum_1m", "sum_3m", "sum_12m", "count_6m", "trend_6m", "rate_1m")
_OF_ACTIVITY = ("months_since_active", "active_months_3m", "active_months_6m", "active_months_12m")
_DATES = ("reg_date", "ftd_date", "qp_date")


def default_feature_names(
    facts: pl.DataFrame, money: Sequence[str] = MONEY, segments: Sequence[str] = ONE_HOT_COLUMNS
) -> list[str]:
    """Return the names for a variant's checked activity: windows of the columns it has, and levels that occur in it.

    In columns of ``money`` a value other than 0 is activity; the levels of ``segments`` become features.
    """
    names = [f"{column}_{window}" for column in money if column in facts.columns for window in _OF_MONEY]
    names += [*_OF_ACTIVITY, *(f"months_since_{column}" for column in _DATES if column in facts.columns)]
    for column in (name for name in segments if name in facts.columns):
        counts = facts[column].cast(pl.String).drop_nulls().value_counts()
        most = counts.sort(["count", column], descending=[True, False])[column].head(MAX_LEVELS)
        names += [f"{column}_{level}" for level in sorted(most)]
    return names
