"""At stake: labels, features and weeks are counted in months and days; a leap day or a new year must not shift them."""

from datetime import date

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from churn.weeks import (
    day_from_epoch,
    day_start_us,
    days_since_epoch,
    month_end,
    month_number,
    month_numbers,
    month_start,
)

days = st.dates(date(1900, 1, 1), date(2200, 12, 31))


@given(day=days, months=st.integers(-600, 600))
def test_a_month_so_many_months_later_is_so_many_months_later(day: date, months: int):
    later = month_start(day, months)

    assert later.day == 1
    assert month_number(later) - month_number(day) == months


@given(day=days)
def test_days_and_instants_are_counted_from_1970(day: date):
    assert day_from_epoch(days_since_epoch(day)) == day
    assert pl.Series([day]).cast(pl.Datetime("us")).to_physical().item() == day_start_us(day)


@given(day=days)
def test_a_columns_months_are_a_days(day: date):
    assert pl.select(month_numbers(pl.lit(day))).item() == month_number(day)


@pytest.mark.parametrize(
    ("day", "end"),
    [
        (date(2024, 2, 1), date(2024, 2, 29)),
        (date(2025, 2, 28), date(2025, 2, 28)),
        (date(2025, 12, 5), date(2025, 12, 31)),
    ],
    ids=str,
)
def test_a_month_ends_on_its_last_day(day: date, end: date):
    assert month_end(day) == end
