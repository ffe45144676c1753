"""At stake: an as-of day of the past must know what a day of scoring knows: a month once its rows have arrived."""

from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from churn.data.arrivals import date_arrivals, delivery_delay
from churn.data.features import in_order
from churn.storage.history import ActivityHistory, new_facts
from churn.storage.places import Folder
from churn.variants import Variant

MONTHS = [date(2025, month, 1) for month in range(1, 9)]
DEFAULT = timedelta(days=3)
FIRST = datetime(2025, 5, 20, 6, tzinfo=UTC)


def rows(months: list[date], accounts: range = range(20)) -> pl.DataFrame:
    pairs = [(account, month) for account in accounts for month in months]
    return pl.DataFrame(pairs, schema={"account_id": pl.Int64, "activity_month": pl.Date}, orient="row").with_columns(
        total_deposit=1.0
    )


def followed_by(facts: pl.DataFrame, *extracts: tuple[pl.DataFrame, datetime]) -> pl.DataFrame:
    for extract, received_at in extracts:
        facts = in_order(pl.concat([facts, new_facts(extract, facts, received_at)]))
    return facts


@pytest.fixture
def first_extract() -> pl.DataFrame:
    """Whole months, of which April was over when it was received."""
    return new_facts(rows(MONTHS[:4]), None, FIRST)


def known_at(facts: pl.DataFrame, month: date) -> list[datetime]:
    return sorted(set(facts.filter(pl.col("activity_month") == month)["known_at"]))


def test_months_of_a_first_extract_arrive_after_the_delay_of_the_setting(first_extract: pl.DataFrame):
    dated = date_arrivals(first_extract, DEFAULT, FIRST)

    assert known_at(dated, MONTHS[0]) == [datetime(2025, 2, 3, 23, 59, 59, 999999, UTC)]
    assert known_at(dated, MONTHS[3]) == [datetime(2025, 5, 3, 23, 59, 59, 999999, UTC)]
    assert dated.drop("known_at").equals(first_extract.drop("known_at"))


def test_later_extracts_show_the_delay_and_a_few_early_rows_do_not(first_extract: pl.DataFrame):
    assert delivery_delay(first_extract) is None

    few = rows([*MONTHS[:4], MONTHS[5]], range(3))
    facts = followed_by(
        first_extract,
        (rows(MONTHS[:5]), datetime(2025, 6, 9, tzinfo=UTC)),
        (few, datetime(2025, 6, 16, tzinfo=UTC)),
        (rows(MONTHS[:6]), datetime(2025, 7, 6, tzinfo=UTC)),
    )

    assert delivery_delay(facts) == timedelta(days=5, microseconds=1)
    assert known_at(date_arrivals(facts, DEFAULT, FIRST), MONTHS[0]) == [datetime(2025, 2, 6, tzinfo=UTC)]
    assert known_at(date_arrivals(facts, DEFAULT, FIRST), MONTHS[4]) == [datetime(2025, 6, 9, tzinfo=UTC)]


def test_rows_of_a_running_month_show_that_there_is_no_delay():
    facts = new_facts(rows(MONTHS[:5]), None, FIRST)

    assert delivery_delay(facts) == timedelta(0)
    assert date_arrivals(facts, DEFAULT, FIRST).equals(facts)


def test_no_month_arrives_after_the_extract_that_brought_it(tmp_path):
    received_at = datetime(2025, 5, 1, 6, tzinfo=UTC)
    history = ActivityHistory(Folder(tmp_path), delay=DEFAULT)

    appended = history.append(Variant(), rows(MONTHS[:4]), received_at)

    assert known_at(appended.facts, MONTHS[2]) == [datetime(2025, 4, 3, 23, 59, 59, 999999, UTC)]
    assert known_at(appended.facts, MONTHS[3]) == [received_at]
    assert known_at(history.read(Variant()), MONTHS[3]) == [received_at]


def test_a_correction_counts_after_what_it_corrects(first_extract: pl.DataFrame):
    received_at = datetime(2025, 5, 1, 5, tzinfo=UTC)
    corrected = rows([MONTHS[3]], range(1)).with_columns(total_deposit=2.0)
    facts = in_order(date_arrivals(followed_by(first_extract, (corrected, received_at)), DEFAULT, FIRST))

    last = facts.filter(pl.col("account_id") == 0, pl.col("activity_month") == MONTHS[3]).row(-1, named=True)
    assert last["total_deposit"] == 2.0
    assert facts.equals(date_arrivals(followed_by(first_extract, (corrected, received_at)), DEFAULT, FIRST))


def test_every_reader_of_a_history_sees_the_delay_and_its_files_do_not_change(tmp_path):
    variant = Variant("us")
    late, plain = ActivityHistory(Folder(tmp_path), delay=DEFAULT), ActivityHistory(Folder(tmp_path))

    dry = late.append(variant, rows(MONTHS[:4]), FIRST, dry_run=True)
    assert late.version(variant) is None
    appended = late.append(variant, rows(MONTHS[:4]), FIRST)

    assert appended.facts.equals(late.read(variant))
    assert dry.facts.equals(late.read(variant))
    assert known_at(late.read(variant), MONTHS[0]) == [datetime(2025, 2, 3, 23, 59, 59, 999999, UTC)]
    assert known_at(plain.read(variant), MONTHS[0]) == [datetime(2025, 1, 31, 23, 59, 59, 999999, UTC)]
    assert late.append(variant, rows(MONTHS[:4]), FIRST + timedelta(days=30)).n_added == 0
