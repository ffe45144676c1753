"""The net revenue that an account is expected to bring while it stays, from its history. Pure.

Times the score, it is the value at risk. An account's own mean of a few months is mostly chance, so it is shrunk to the
mean of its variant: credibility by Bühlmann (1967), n / (n + k) after n months, with k = (1 - r) / r of the correlation
r of an account's consecutive months. It is Spearman's, since a few jackpots decide variances. A month without a row
brought nothing.
"""

from datetime import UTC, date, datetime, time, timedelta

import polars as pl

from churn.weeks import at_risk_since, month_number, month_numbers

N_MONTHS = 12
"""Whole months before the as-of day's that count; an account's count from its first."""
_CAPPED = 0.05  # of each tail of a variant's monthly revenue, where one month would decide an account's mean


def expected_revenue(facts: pl.DataFrame, as_of: date, horizon_months: int, column: str) -> pl.DataFrame:
    """Return ``account_id, revenue``: the expected net revenue over the horizon, in the currency of ``column``.

    Of the accounts with a row that puts them at risk at ``as_of``, by what was known at its end; ``facts`` have
    ``known_at``. Of the reports of a month, the one known last counts. Accounts without a whole month have the mean.
    """
    end = datetime.combine(as_of + timedelta(days=1), time.min, UTC)
    month, last = month_numbers(pl.col("activity_month")), month_number(as_of)
    known = facts.lazy().filter(pl.col("known_at") < end, pl.col("activity_month") <= as_of)
    reports = known.select("account_id", "known_at", month=month, revenue=pl.col(column).cast(pl.Float64))
    counted = reports.sort("account_id", "month", "known_at", maintain_order=True).unique(
        ["account_id", "month"], keep="last", maintain_order=True
    )
    brought = pl.col("revenue").fill_nan(None).fill_null(0.0)
    is_counted = pl.col("month").is_between(last - N_MONTHS, last - 1)
    limits = [brought.filter(is_counted).quantile(share) for share in (_CAPPED, 1 - _CAPPED)]
    months = counted.with_columns(revenue=brought.clip(*limits)).collect()
    is_next = (pl.col("account_id").diff() == 0) & (pl.col("month").diff() == 1) & is_counted
    pairs = months.filter(is_counted).select("revenue", before=pl.col("revenue").shift(), is_next=is_next)
    likeness = pairs.filter("is_next").select(pl.corr("revenue", "before", method="spearman")).item()
    n, total = (last - pl.col("month").min()).clip(0, N_MONTHS), pl.col("revenue").filter(is_counted).sum()
    accounts = months.group_by("account_id").agg(newest=pl.col("month").max(), n=n, total=total)
    at_risk = accounts.filter(pl.col("newest") >= month_number(at_risk_since(as_of, horizon_months)))
    n, total = pl.col("n"), pl.col("total")
    mean = (total.sum() / n.sum()).fill_nan(0.0)
    # An account of n months weighs n r / (n r + 1 - r); without two months of anybody, r is unknown and nothing counts.
    share = max(likeness, 0.0) if likeness is not None and likeness == likeness else 0.0  # noqa: PLR0124 NaN
    weight = (n * share / (n * share + 1 - share)).fill_nan(0.0)
    own = pl.when(n > 0).then(total / n).otherwise(mean)
    return at_risk.select("account_id", revenue=(mean + weight * (own - mean)) * horizon_months).sort("account_id")
