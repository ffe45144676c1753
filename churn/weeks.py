"""Weeks and as-of days. A scored week is named by its Monday, a date, so that a 53rd ISO week needs no care. Pure."""

from datetime import date, timedelta

from churn.errors import UsageError


def monday_of(day: date) -> date:
    """Return the Monday of a day's week."""
    return day - timedelta(days=day.weekday())


def parse_week(text: str | None, today: date) -> date:
    """Read the week to score: a Monday as ``YYYY-MM-DD``, or ``None`` for this week's.

    Raises:
        UsageError: If it is not a date, not a Monday, or has not begun.
    """
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
    """Return the last day of the week that has begun: today in the current week, its Sunday in a past one."""
    return min(today, week + timedelta(days=6))
