"""Weeks, months and as-of dates: all arithmetic on dates. Pure.

A scored week is named by its Monday, so that a 53rd ISO week is no special case. A month is named by its first day.
"""

from datetime import date, timedelta
from typing import TYPE_CHECKING

from churn.errors import UsageError

if TYPE_CHECKING:
    import polars as pl

_EPOCH = date(1970, 1, 1)


def monday_of(day: date) -> date:
    """Return the Monday of a day's week."""
    return day - timedelta(days=day.weekday())


def parse_week(text: str | None, today: date) -> date:
    """Parse the Monday to score, by default this week's; raises ``UsageError`` if it is none, or in the future."""
    if text is None:
        return monday_of(today)
    try:
        week = date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"week {text!r} is not a date; the Monday of the week is needed, as YYYY-MM-DD") from None
    if week != monday_of(week):
        raise UsageError(f"week {week} begins on a {week:%A}; did you mean its Monday, {monday_of(week)}?")
    if week > today:
        raise UsageError(f"week {week} has not begun (today is {today}); the latest week is {monday_of(today)}")
    return week


def default_as_of(week: date, today: date) -> date:
    """Return today for the current week, and the Sunday of a past week."""
    return min(today, week + timedelta(days=6))


def month_number(day: date) -> int:
    """Return the number of months from January of year 0 to a day's month.

    >>> month_number(date(2025, 3, 1)) - month_number(date(2024, 12, 31))
    3
    """
    return day.year * 12 + day.month - 1


def month_numbers(days: "pl.Expr") -> "pl.Expr":
    """Return :func:`month_number` of a column of dates."""
    return days.dt.year() * 12 + days.dt.month() - 1


def month_start(day: date, months_later: int = 0) -> date:
    """Return the first day of the month that is ``months_later`` months after a day's.

    >>> month_start(date(2025, 11, 30), 2), month_start(date(2025, 1, 5), -1)
    (datetime.date(2026, 1, 1), datetime.date(2024, 12, 1))
    """
    year, month = divmod(month_number(day) + months_later, 12)
    return date(year, month + 1, 1)


def month_range(first: date, last: date) -> str:
    """Return the months from one to another as text, such as ``2025-01 to 2026-03``."""
    return f"{first:%Y-%m} to {last:%Y-%m}"


def at_risk_since(as_of: date, horizon_months: int) -> date:
    """Return the first month in which activity puts an account at risk of churning at ``as_of``.

    It is ``horizon_months`` months before the as-of day's. ``scoring_batches.at_risk_since`` has the same rule in SQL.

    >>> at_risk_since(date(2025, 11, 30), 3)
    datetime.date(2025, 8, 1)
    """
    return month_start(as_of, -horizon_months)


def newest_month_due(day: date, lag_days: int) -> date:
    """Return the newest month whose reports should have arrived by a day, ``lag_days`` days after the month's end.

    >>> newest_month_due(date(2026, 11, 7), 7), newest_month_due(date(2026, 11, 8), 7)
    (datetime.date(2026, 9, 1), datetime.date(2026, 10, 1))
    """
    return month_start(day - timedelta(days=lag_days), -1)


def newest_whole_month(newest: date, as_of: date) -> date:
    """Return the newest of the months up to ``newest`` that was over at a day.

    >>> newest_whole_month(date(2026, 11, 1), date(2026, 11, 9))
    datetime.date(2026, 10, 1)
    """
    return min(newest, month_start(as_of, -1))


def month_end(day: date) -> date:
    """Return the last day of a day's month."""
    return month_start(day, 1) - timedelta(days=1)


def month_ends(first: date, last: date) -> list[date]:
    """Return the last days of months from ``first`` to ``last``, both included.

    >>> month_ends(date(2025, 1, 31), date(2025, 3, 30))
    [datetime.date(2025, 1, 31), datetime.date(2025, 2, 28)]
    """
    n_months = month_number(last) - month_number(first) + 1
    return [end for i in range(n_months) if (end := month_end(month_start(first, i))) <= last]


def mondays_of(month: date) -> list[date]:
    """Return the Mondays of a month, given by its first day.

    >>> [day.day for day in mondays_of(date(2025, 3, 1))]
    [3, 10, 17, 24, 31]
    """
    first = month + timedelta(days=-month.weekday() % 7)
    return [day for weeks in range(5) if (day := first + timedelta(weeks=weeks)) < month_start(month, 1)]


def week_of_month(day: date) -> int:
    """Return 1 for the first seven days of a month, to 5 for those after the 28th."""
    return (day.day + 6) // 7


def training_days(first: date, last: date, n_full: int = 0) -> list[date]:
    """Return Mondays from ``first`` to ``last``: all of the last ``n_full`` months, before them one a month.

    Scoring happens on Mondays, so a model sees the phases of a month that it will score: the first to the fourth Monday
    in turn, at the cost of a day a month.

    >>> training_days(date(2025, 1, 1), date(2025, 3, 30))
    [datetime.date(2025, 1, 6), datetime.date(2025, 2, 10), datetime.date(2025, 3, 17)]
    """
    months = [month_start(first, i) for i in range(month_number(last) - month_number(first) + 1)]
    n_single = max(0, len(months) - n_full)
    days = [mondays_of(month)[month_number(month) % 4] for month in months[:n_single]]
    days += [day for month in months[n_single:] for day in mondays_of(month)]
    return [day for day in days if first <= day <= last]


def days_since_epoch(day: date) -> int:
    """Return the days from 1970-01-01 to a day."""
    return (day - _EPOCH).days


def day_from_epoch(days: int) -> date:
    """Return the day that is ``days`` days after 1970-01-01."""
    return _EPOCH + timedelta(days=days)


def day_start_us(day: date) -> int:
    """Return the beginning of a day, UTC, in microseconds since 1970."""
    return days_since_epoch(day) * 24 * 60 * 60 * 1_000_000
