"""At stake: a week scored twice, or not at all, because a clock was put forward or back, or a year ended."""

import time
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from dagster._utils.schedules import schedule_execution_time_iterator
from hypothesis import given
from hypothesis import strategies as st

from churn.weeks import default_as_of, monday_of, parse_week
from orchestration.job import weekly_churn_prediction_schedule as schedule

ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia")
DAYS = st.dates(date(1999, 1, 1), date(2100, 1, 1))


def ticks(start: datetime, end: datetime) -> list[datetime]:
    found = []
    times = schedule_execution_time_iterator(
        start.timestamp(), str(schedule.cron_schedule), schedule.execution_timezone
    )
    for tick in times:
        if tick >= end:
            return found
        found.append(tick)
    raise AssertionError


@pytest.mark.parametrize("zone", ZONES)
def test_every_monday_of_seven_years_has_one_tick_at_midnight_utc_wherever_the_machine_is(
    zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        found = ticks(datetime(2024, 1, 1, tzinfo=UTC), datetime(2031, 1, 1, tzinfo=UTC))
    finally:
        monkeypatch.undo()
        time.tzset()

    first = datetime(2024, 1, 1, tzinfo=UTC)
    assert [tick.astimezone(UTC) for tick in found] == [first + timedelta(weeks=n) for n in range(len(found))]
    assert len(found) == 366


@pytest.mark.parametrize(
    ("day", "monday"),
    [
        (date(2020, 12, 31), date(2020, 12, 28)),  # week 53
        (date(2021, 1, 3), date(2020, 12, 28)),
        (date(2026, 12, 31), date(2026, 12, 28)),  # week 53
        (date(2027, 1, 3), date(2026, 12, 28)),
        (date(2027, 1, 4), date(2027, 1, 4)),
        (date(2024, 2, 29), date(2024, 2, 26)),
        (date(2026, 3, 29), date(2026, 3, 23)),  # clocks forward in Europe
        (date(2026, 11, 1), date(2026, 10, 26)),  # back in America
    ],
)
def test_a_day_belongs_to_the_week_of_its_monday_at_year_ends_and_when_clocks_change(day: date, monday: date) -> None:
    assert monday_of(day) == monday
    assert parse_week(None, day) == monday


@given(DAYS)
def test_weeks_follow_each_other_without_a_gap_or_an_overlap(day: date) -> None:
    monday = monday_of(day)

    assert monday.weekday() == 0
    assert monday <= day < monday + timedelta(weeks=1)
    assert monday_of(monday + timedelta(days=7)) == monday + timedelta(days=7)
    assert monday <= default_as_of(monday, day) <= monday + timedelta(days=6)


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("day", [date(2026, 3, 29), date(2026, 10, 25), date(2026, 11, 1), date(2026, 12, 28)])
def test_the_week_of_a_tick_is_named_in_utc_whatever_the_local_day_is(zone: str, day: date) -> None:
    monday = monday_of(day)
    tick = datetime(monday.year, monday.month, monday.day, tzinfo=UTC)

    local = tick.astimezone(ZoneInfo(zone))

    assert local.astimezone(UTC).date() == monday
    assert monday_of(local.astimezone(UTC).date()) == monday
