"""At stake: rows that did not arrive look like players who left.

A model trained on them learns the feed's gaps, and one that is evaluated on them looks worse, or better, than it is.
"""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from churn.data.activity import ONE_HOT_COLUMNS, UNDATED
from churn.data.labels import Horizon, Reports, label

AS_OF, TODAY = date(2025, 3, 31), date(2025, 8, 1)  # horizon: April to June
APRIL, MAY, JUNE, JULY = (date(2025, month, 1) for month in (4, 5, 6, 7))
N = 200
ID, MONTH = pl.col("account_id"), pl.col("activity_month")
NJ, IS_HORIZON = ID <= 100, MONTH.is_between(APRIL, JUNE)
HALF = ID <= 50
FALLING = pl.when(ID % 3 == 0).then(APRIL).when(ID % 3 == 1).then(MAY).otherwise(JUNE)
EVEN = ID % 2 == 0


def feed() -> pl.DataFrame:
    """Two brands of 100 players each, who play every month from January to July."""
    months = [date(2025, month, 1) for month in range(1, 8)]
    rows = pl.DataFrame({"account_id": np.arange(1, N + 1)}).join(pl.DataFrame({"activity_month": months}), how="cross")
    known_at = MONTH.dt.offset_by("1mo").cast(pl.Datetime("us", "UTC")) - pl.duration(microseconds=1)
    product, device = pl.when(EVEN).then(pl.lit("CASINO")), pl.when(ID % 4 == 0).then(pl.lit("phone"))
    return rows.with_columns(
        brand_id=pl.when(NJ).then(pl.lit("NJ")).otherwise(pl.lit("NY")),
        player_reg_product=product.otherwise(pl.lit("BETTING")),
        device=device.otherwise(pl.lit("desk")),
        total_deposit=5.0,
        known_at=known_at,
    )


def labels_of(
    facts: pl.DataFrame, segments=ONE_HOT_COLUMNS, quarantined: pl.DataFrame | None = None, today: date = TODAY
) -> tuple[int, int, int]:
    """Return the accounts with a label, those that churned, and those without a label."""
    reports = Reports.of(facts, segments=segments, quarantined=quarantined)
    ids = facts["account_id"].unique().to_numpy()
    labels = label(reports, ids, AS_OF, today=today, horizon=Horizon())
    return len(labels.account_ids), int(labels.churned.sum()), labels.n_missing


ALL = (N, 0, 0)
NOBODY = (0, 0, N)
WITHOUT_NJ = (N - 100, 0, 100)


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        pytest.param(pl.lit(value=False), ALL, id="all rows arrive"),
        pytest.param(NJ & (MONTH >= APRIL), WITHOUT_NJ, id="a brand leaves the feed"),
        pytest.param(NJ & (MONTH == APRIL), WITHOUT_NJ, id="a brand lacks a month, and its players play in the others"),
        pytest.param(NJ & (MONTH == JULY), ALL, id="a brand lacks a month that is not in the horizon"),
        pytest.param(
            NJ & ((ID <= 90) | (date(2025, 2, 1) <= MONTH)), (100, 0, 10), id="a brand of ten left the feed in February"
        ),
        pytest.param(EVEN & (MONTH >= MAY), (100, 0, 100), id="a product leaves the feed"),
        pytest.param((ID != 7) & (MONTH >= APRIL), NOBODY, id="one player is left"),
        pytest.param(((ID != 7) | (MONTH != MAY)) & (MONTH >= APRIL), NOBODY, id="one row is left"),
        pytest.param(MONTH == MAY, NOBODY, id="a month lacks all rows"),
        pytest.param(HALF & (MONTH == MAY), WITHOUT_NJ, id="a month has half of a brand's players, who come back"),
        pytest.param(HALF & MONTH.is_in([MAY, JUNE]), WITHOUT_NJ, id="two months have half of them"),
        pytest.param(HALF & (MONTH >= JUNE), (N, 0, 0), id="half of a brand leaves in the last month"),
        pytest.param(HALF & (MONTH >= APRIL), (N, 50, 0), id="half of a brand leaves at once"),
        pytest.param((ID <= 90) & (MONTH >= FALLING), (N, 30, 0), id="nine tenths of a brand leave, month by month"),
        pytest.param((ID <= 60) & (MONTH == APRIL), WITHOUT_NJ, id="a gap of a month is filled to 40 %"),
        pytest.param((ID <= 10) & (MONTH == APRIL), ALL, id="a gap of a month is filled to 90 %"),
        pytest.param(
            (ID > 6) | ((ID > 1) & (MONTH >= APRIL)), (0, 0, 6), id="of six players one is left, in three months"
        ),
        pytest.param((ID > 2) | ((ID > 1) & (MONTH >= APRIL)), (2, 1, 0), id="of two players one is left: unnoticed"),
        pytest.param((ID > 12) | ((ID > 1) & (MONTH >= APRIL)), (0, 0, 12), id="of twelve players one is left"),
    ],
)
def test_a_month_is_observed_where_its_rows_arrived(lost, expected):
    assert labels_of(feed().filter(~lost)) == expected


def test_half_of_a_brand_in_the_newest_month_is_unknown_until_later_months_show_what_it_was():
    matured = Horizon().matures_on(AS_OF)
    left = feed().filter(~(HALF & (MONTH >= JUNE)), MONTH <= JUNE)
    assert labels_of(left, today=matured) == WITHOUT_NJ
    assert labels_of(feed().filter(~(HALF & (MONTH >= JUNE)))) == ALL, "they had stayed in April and May"
    assert labels_of(feed().filter(~(HALF & (MONTH == JUNE)))) == WITHOUT_NJ


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        (("device",), (150, 0, 50)),
        (("brand_id", "device"), (150, 0, 50)),
        (("brand_id",), ALL),
        (("no",), ALL),
        ((), ALL),
    ],
    ids=str,
)
def test_the_declared_segments_are_watched(segments, expected):
    assert labels_of(feed().filter(~((pl.col("device") == "phone") & (MONTH == APRIL))), segments) == expected


@pytest.mark.parametrize("segments", [("no",), ()], ids=str)
def test_without_segments_the_feed_as_a_whole_is_watched(segments):
    assert labels_of(feed().filter(~(EVEN & (MONTH == APRIL))), segments) == NOBODY


def test_a_brand_that_closed_has_churned_if_its_rows_say_so():
    amount = pl.when(NJ & (MONTH >= APRIL)).then(0.0).otherwise("total_deposit")
    assert labels_of(feed().with_columns(total_deposit=amount)) == (N, 100, 0)


def test_accounts_are_counted_and_not_their_reports():
    facts = feed().filter(~(NJ & (ID > 10) & (MONTH >= APRIL)))
    corrections = [
        facts.filter(NJ & IS_HORIZON).with_columns(pl.col("known_at") + timedelta(hours=hours)) for hours in range(1, 9)
    ]
    assert labels_of(pl.concat([facts, *corrections])) == WITHOUT_NJ


def at(*instant: int) -> datetime:
    return datetime(*instant, tzinfo=UTC)


@pytest.mark.parametrize(
    ("month", "arrived", "report", "is_known"),
    [
        pytest.param(MAY, at(2025, 6, 2), None, False, id="quarantined"),
        pytest.param(MAY, at(2025, 6, 2), (MAY, at(2025, 6, 9)), True, id="and corrected"),
        pytest.param(MAY, at(2025, 6, 2), (MAY, at(2025, 6, 1)), False, id="after a report that could be read"),
        pytest.param(MAY, at(2025, 6, 2), (APRIL, at(2025, 6, 9)), False, id="and another month corrected"),
        pytest.param(MAY, at(2025, 6, 2), (MAY, at(2025, 8, 3)), False, id="and corrected later than today"),
        pytest.param(MAY, at(2025, 8, 3), None, True, id="later than today"),
        pytest.param(date(2025, 3, 1), at(2025, 6, 2), None, True, id="of a month before the horizon"),
        pytest.param(JULY, at(2025, 8, 1), None, True, id="of a month after it"),
        pytest.param(UNDATED, at(2025, 6, 2), None, False, id="without a month"),
        pytest.param(UNDATED, at(2025, 3, 2), None, True, id="without a month, before the horizon"),
        pytest.param(UNDATED, at(2025, 6, 2), (MAY, at(2025, 6, 9)), True, id="without a month, and corrected"),
    ],
)
@pytest.mark.parametrize("stays", [True, False])
def test_a_quarantined_row_makes_its_accounts_month_unknown(month, arrived, report, is_known, *, stays):
    is_lost = (ID == 5) & IS_HORIZON & ((MONTH == MAY) if stays else True)
    facts = feed().filter(~is_lost)
    schema = {"account_id": pl.Int64, "activity_month": pl.Date, "known_at": pl.Datetime("us", "UTC")}
    quarantined = pl.DataFrame([(5, month, arrived)], schema=schema, orient="row")
    if report is not None:
        row = facts.filter(ID == 5).head(1)
        row = row.with_columns(activity_month=pl.lit(report[0]), known_at=pl.lit(report[1], schema["known_at"]))
        facts = pl.concat([facts, row.with_columns(total_deposit=0.0)])
    n_churned = int(is_known and not stays)
    assert labels_of(facts, quarantined=quarantined) == (N - (not is_known), n_churned, int(not is_known))
