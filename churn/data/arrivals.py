"""When the rows of a month arrive: the delivery delay of a feed. Pure.

A variant's first extract has months long past, and does not show when their rows arrived. The history dates them at the
last instant of their month. Here they are dated later by the delay that later extracts show, so that an as-of day of
the past knows what a day of scoring knows.
"""

from datetime import datetime, timedelta

import numpy as np
import polars as pl

_MONTH = "activity_month"
_NEXT_MONTH = pl.col(_MONTH).dt.offset_by("1mo").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
LAST_INSTANT = _NEXT_MONTH - pl.duration(microseconds=1)
"""Of a row's month."""
INSTANT = pl.Datetime("us", "UTC")
_COMPLETE_SHARE = 0.5  # of a usual month's accounts; with fewer, a month has hardly arrived


def date_arrivals(facts: pl.DataFrame, default: timedelta, received_at: datetime) -> pl.DataFrame:
    """Date the facts of a first extract at the end of their month plus the delivery delay.

    A fact is never dated after the extract that brought it, nor after the report that replaces it.

    Args:
        facts: A variant's history, in order of account, month and ``known_at``.
        default: The delay if later extracts show none, see :func:`delivery_delay`.
        received_at: When the first extract was received, or later; UTC.
    """
    is_first = facts.select(pl.col("known_at") == LAST_INSTANT).to_series()
    if not is_first.any():
        return facts
    shown = delivery_delay(facts)
    delay = default if shown is None else shown
    of_account_month = pl.struct("account_id", _MONTH)
    replaced_at = pl.when(of_account_month == of_account_month.shift(-1)).then(pl.col("known_at").shift(-1))
    arrived_at = pl.min_horizontal(pl.col("known_at") + delay, replaced_at, pl.lit(received_at, INSTANT))
    return facts.with_columns(known_at=pl.when(is_first).then(arrived_at).otherwise("known_at"))


def delivery_delay(facts: pl.DataFrame) -> timedelta | None:
    """Return the shortest time from the end of a month until the rows of half its accounts had arrived.

    Months of the first extract, and months of which hardly any row has arrived, do not count. The delay is 0 where rows
    arrive while their month is under way, and ``None`` where no month shows it.
    """
    reports = facts.group_by("account_id", _MONTH).agg(pl.col("known_at").min())
    late = (pl.col("known_at") - LAST_INSTANT).alias("late")
    months = reports.group_by(_MONTH).agg(late.median(), n=pl.len(), is_first=(late == timedelta(0)).any())
    usual = float(np.median(months["n"].to_numpy()))
    shown = months.filter(~pl.col("is_first"), pl.col("n") >= _COMPLETE_SHARE * usual)["late"].min()
    return None if shown is None else max(shown, timedelta(0))  # type: ignore[return-value]  # a duration
