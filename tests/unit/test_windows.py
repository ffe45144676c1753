"""Features over several months: training and scoring must compute the same bytes, and what the names say.

At stake: a model that was trained on other numbers than it scores, or on what was not known yet.
"""

import tempfile
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from churn.data.features import encode, features, plan_encoding, unpack
from churn.data.labels import Horizon, Reports, at_risk
from churn.data.scoring_rows import prepare
from churn.data.windows import GRAMMAR, Window, parse
from churn.errors import InputError
from churn.weeks import month_number, month_start

MONEY = ("total_deposit", "total_handle", "total_ngr")
COLUMNS = (*MONEY, "brand_id", "ftd_date", "reg_date", "visits")
NAMES = (
    "total_handle", "total_handle_sum_1m", "total_ngr_sum_3m", "total_handle_mean_4m", "total_ngr_max_2m",
    "total_deposit_count_6m", "total_handle_trend_3m", "total_ngr_rate_2m", "visits_sum_2m", "months_since_active",
    "active_months_5m", "months_since_ftd_date", "months_active", "brand_id_OH",
)  # fmt: skip
FIRST = date(2025, 1, 1)
AS_OFS = (date(2025, 5, 1), date(2025, 5, 20), date(2025, 6, 30), date(2025, 9, 3))
AMOUNTS = st.sampled_from([0.0, 0.1, 1 / 3, 2.5, 1e7, 12345.678])


@st.composite
def activities(draw: st.DrawFn) -> pl.DataFrame:
    """Rows of a few accounts in any order, with repeats, corrections that came later, and missing values."""
    rows = draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "account_id": st.integers(1, 4),
                    "month": st.integers(0, 7),
                    "days_late": st.integers(0, 70),
                    "total_deposit": AMOUNTS,
                    "total_handle": st.none() | AMOUNTS,
                    "total_ngr": AMOUNTS.map(lambda amount: -amount) | AMOUNTS,
                    "visits": st.integers(0, 9),
                    "ftd_date": st.none() | st.dates(date(2024, 12, 1), date(2025, 10, 1)),
                    "brand_id": st.sampled_from(["OH", "PA"]),
                }
            ),
            min_size=1,
            max_size=25,
        )
    )
    frame = pl.DataFrame(
        rows, schema_overrides={"total_handle": pl.Float64, "ftd_date": pl.Date}, infer_schema_length=None
    )
    months = [month_start(FIRST, row["month"]) for row in rows]
    known_at = [
        datetime(month.year, month.month, 1, tzinfo=UTC) + timedelta(days=row["days_late"])
        for month, row in zip(months, rows, strict=True)
    ]
    return frame.drop("month", "days_late").with_columns(
        activity_month=pl.Series(months, dtype=pl.Date),
        known_at=pl.Series(known_at, dtype=pl.Datetime("us", "UTC")),
        reg_date=pl.lit(date(2024, 12, 5)),
        ben_login_id=pl.lit("actionnetwork"),
        player_reg_product=pl.lit("BETTING"),
        tracker_id=pl.lit(1000),
    )


def scored(activity: pl.DataFrame, as_of: date, names=NAMES) -> tuple[np.ndarray, np.ndarray, int]:
    """Return account ids and the matrix in their order as scoring builds them from a file, and the short windows."""
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        activity.write_parquet(file.name)
        rows = prepare(Path(file.name), tuple(names), as_of, 0.0, "the file")
        chunks = [(ids, unpack(packed, rows.encoding)) for ids, packed in rows.chunks()]
    ids = np.concatenate([ids for ids, _ in chunks])
    order = np.argsort(ids)
    return ids[order], np.concatenate([matrix for _, matrix in chunks])[order], rows.counts.n_short_windows


def trained(activity: pl.DataFrame, as_of: date, names=NAMES) -> tuple[np.ndarray, np.ndarray]:
    """Return account ids and the matrix as training builds them."""
    rows = features(activity, as_of, names)
    return rows["account_id"].to_numpy(), encode(rows, plan_encoding(names, rows.columns))


def slowly(activity: pl.DataFrame, as_of: date) -> dict[int, list[float | None]]:
    """Compute ``NAMES`` by the words of the grammar, one account and month after another."""
    end_of_day = datetime(as_of.year, as_of.month, as_of.day, tzinfo=UTC) + timedelta(days=1)
    reports: dict[int, dict[int, dict]] = defaultdict(dict)
    in_order = sorted(activity.iter_rows(named=True), key=lambda row: row["known_at"])
    for row in in_order:
        if row["known_at"] < end_of_day and row["activity_month"] <= as_of:
            reports[row["account_id"]][month_number(row["activity_month"])] = row
    running = month_number(as_of)
    all_months = {month for months in reports.values() for month in months}
    end = running - 1 if running - 1 in all_months else running - 2
    elapsed = as_of.day if running in all_months else 0

    def of(account: int) -> list[float | None]:
        months = reports[account]
        latest = months[max(months)]

        def values(column: str, n: int) -> list[float]:
            return [float(np.float32(months.get(end - lag, {}).get(column) or 0)) for lag in range(n)]

        def is_active(month: int) -> bool:
            return any(months.get(month, {}).get(name) for name in MONEY)

        def days(n: int) -> int:
            first = month_start(as_of, end - running - n + 1)
            return (month_start(as_of, end - running + 1) - first).days

        ftd = latest["ftd_date"]
        ftd = ftd if ftd is not None and ftd <= as_of else None
        active = [month for month in months if month <= end and is_active(month)]
        handles = values("total_handle", 3)
        return [
            latest["total_handle"],
            sum(values("total_handle", 1)),
            sum(values("total_ngr", 3)),
            sum(values("total_handle", 4)) / 4,
            max(values("total_ngr", 2)),
            sum(value != 0 for value in values("total_deposit", 6)),
            float(np.polyfit([0, -1, -2], handles, 1)[0]),
            (sum(values("total_ngr", 2)) + float(months.get(running, {}).get("total_ngr") or 0)) / (days(2) + elapsed),
            sum(values("visits", 2)),
            running - 1 - max(active) if active else None,
            sum(is_active(end - lag) for lag in range(5)),
            None if ftd is None else month_number(as_of) - month_number(ftd),
            None if ftd is None else month_number(latest["activity_month"]) - month_number(ftd),
            float(latest["brand_id"] == "OH"),
        ]

    return {account: of(account) for account in sorted(reports)}


@given(activities(), st.sampled_from(AS_OFS), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_training_and_scoring_compute_the_same_bytes_and_what_the_names_say(activity, as_of, chance):
    expected = slowly(activity, as_of)
    if not expected:
        return
    ids, matrix = trained(activity, as_of)
    assert ids.tolist() == list(expected)
    wanted = np.array([[np.nan if value is None else value for value in row] for row in expected.values()])
    np.testing.assert_allclose(matrix, wanted, rtol=1e-5, atol=1e-2)
    ids_scored, matrix_scored, _ = scored(activity, as_of)
    assert ids_scored.tolist() == ids.tolist()
    assert matrix_scored.tobytes() == matrix.tobytes()
    # The order of rows matters only between reports of the same account, month and time.
    keyed = activity.unique(["account_id", "activity_month", "known_at"], keep="last", maintain_order=True)
    order = list(range(keyed.height))
    chance.shuffle(order)
    assert trained(keyed[order], as_of)[1].tobytes() == matrix.tobytes()


@given(activities(), st.sampled_from(AS_OFS))
@settings(max_examples=30, deadline=None)
def test_a_late_correction_reaches_only_later_as_of_days(activity, as_of):
    known = activity.filter(pl.col("known_at").dt.date() <= as_of)
    if not slowly(known, as_of):
        return
    assert trained(activity, as_of)[1].tobytes() == trained(known, as_of)[1].tobytes()


def test_an_account_is_computed_from_its_rows_alone():
    activity = pl.concat([row_of(account, month, 10.0 * account) for account in (1, 2, 3) for month in (3, 4, 5)])
    ids, together = trained(activity, date(2025, 6, 9))
    for account, expected in zip(ids, together, strict=True):
        alone = trained(activity.filter(pl.col("account_id") == account), date(2025, 6, 9))[1][0]
        assert alone.tobytes() == expected.tobytes()


def row_of(account: int, month: int, handle: float) -> pl.DataFrame:
    """Return one checked row of 2025, known on the last day of its month."""
    first = date(2025, month, 1)
    known_at = datetime.combine(month_start(first, 1), datetime.min.time(), UTC) - timedelta(hours=1)
    return pl.DataFrame(
        {
            "account_id": [account], "activity_month": [first], "known_at": [known_at], "total_deposit": [0.0],
            "total_handle": [handle], "total_ngr": [0.0], "brand_id": ["OH"], "reg_date": [date(2025, 1, 1)],
            "ftd_date": [date(2025, 1, 2)], "ben_login_id": ["actionnetwork"], "player_reg_product": ["BETTING"],
            "tracker_id": [1000], "visits": [1],
        }
    )  # fmt: skip


def test_a_window_does_not_change_with_the_day_of_the_month_and_a_rate_counts_the_days():
    names = ["total_handle_sum_2m", "months_since_active", "total_handle_rate_1m"]
    activity = pl.concat([row_of(1, 4, 30.0), row_of(1, 5, 31.0), row_of(1, 6, 60.0)])
    month_to_date = activity.with_columns(
        known_at=pl.when(pl.col("activity_month") == date(2025, 6, 1))
        .then(pl.lit(datetime(2025, 6, 2, tzinfo=UTC)))
        .otherwise("known_at")
    )
    for day in (2, 9, 30):
        assert trained(month_to_date, date(2025, 6, day), names)[1][0].tolist() == pytest.approx(
            [61.0, 0.0, 91.0 / (31 + day)]
        )
    # Extracts of whole months say nothing of June before it is over, so that its days do not count.
    assert trained(activity, date(2025, 6, 20), names)[1][0].tolist() == [61.0, 0.0, 1.0]


def test_while_the_last_month_has_not_arrived_windows_end_a_month_earlier():
    names = ["total_handle_sum_1m", "months_since_active"]
    activity = pl.concat([row_of(1, 4, 30.0), row_of(2, 3, 5.0)])
    assert trained(activity, date(2025, 6, 3), names)[1].tolist() == [[30.0, 1.0], [0.0, 2.0]]
    # An older extract gives no activity in the window, and the months since then.
    assert trained(activity, date(2025, 9, 3), names)[1].tolist() == [[0.0, 4.0], [0.0, 5.0]]


def feed_of(rows: dict[int, int]) -> pl.DataFrame:
    """Return rows of a handle of 30 of the first accounts of each month of 2025: ``{month: accounts}``."""
    rows_of = [row_of(account, month, 30.0) for month, n in rows.items() for account in range(n)]
    known_at = pl.col("activity_month").cast(pl.Datetime("us", "UTC"))
    return pl.concat(rows_of).with_columns(known_at=known_at).sort("account_id", maintain_order=True)


@pytest.mark.parametrize(
    ("rows", "newest", "expected"),
    [
        pytest.param({9: 20, 10: 20}, 10, [30.0, 0.0, 30 / 31], id="the last month has arrived"),
        pytest.param({8: 20, 9: 20, 10: 1}, 9, [30.0, 1.0, 1.0], id="a row of the last month came early"),
        pytest.param({8: 20, 9: 20, 10: 5}, 10, [30.0, 0.0, 30 / 31], id="a quarter of the last month came"),
        pytest.param({9: 20, 10: 20, 11: 1}, 10, [30.0, 0.0, 30 / 31], id="a row of the running month came early"),
        pytest.param({9: 20, 10: 20, 11: 3}, 11, [30.0, 0.0, 60 / 51], id="the running month arrives as it goes"),
        pytest.param({1: 20, 2: 20, 10: 1}, 2, [0.0, 8.0, 0.0], id="months are missing before a row"),
        pytest.param(
            {1: 6, 2: 6, 3: 6, 8: 1, 9: 1, 10: 1}, 3, [30.0, 1.0, 1.0], id="of few accounts, three months count"
        ),
        pytest.param({1: 2, 2: 2, 10: 1}, 10, [30.0, 0.0, 30 / 31], id="of two accounts, nothing can be told"),
        pytest.param({2: 20, 3: 3, 4: 3, 5: 3, 6: 3, 10: 3}, 10, [30.0, 0.0, 30 / 31], id="a feed that shrank"),
    ],
)
def test_a_month_is_known_when_its_usual_rows_arrived(rows, newest, expected):
    """Windows, freshness and who is at risk go by one newest month, in training and scoring."""
    names, as_of, activity = (
        ["total_handle_sum_1m", "months_since_active", "total_handle_rate_1m"],
        date(2025, 11, 20),
        feed_of(rows),
    )
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        activity.write_parquet(file.name)
        prepared = prepare(Path(file.name), tuple(names), as_of, 0.0, "the file")
        _, packed = next(iter(prepared.chunks()))
    assert prepared.counts.newest_month == date(2025, newest, 1)
    assert unpack(packed, prepared.encoding)[0].tolist() == pytest.approx(expected)
    assert trained(activity, as_of, names)[1][0].tolist() == pytest.approx(expected)
    assert (packed.is_at_risk is None) == (newest < 8)
    expected_ids = [] if newest < 8 else sorted({i for month, n in rows.items() if month >= 8 for i in range(n)})
    assert at_risk(Reports.of(activity), as_of, Horizon()).tolist() == expected_ids


def test_windows_longer_than_the_history_are_served_and_counted():
    names = ["total_handle_sum_2m", "total_handle_sum_3m", "active_months_12m"]
    activity = pl.concat([row_of(1, 4, 30.0), row_of(1, 5, 31.0)])
    _, matrix, n_short = scored(activity, date(2025, 6, 9), names)
    assert matrix.tolist() == [[61.0, 61.0, 2.0]]
    assert n_short == 2


@pytest.mark.parametrize(
    "name",
    [
        "total_handle_sum_0m", "total_handle_sum_03m", "total_handle_sum_121m", "total_handle_trend_1m",
        "total_handle_median_3m", "total_handle_sum_3", "total_handle_sum", "total_wagers_sum_3m", "brand_id_sum_3m",
        "ftd_date_mean_3m", "account_id_sum_3m", "months_since_brand_id", "months_since_birthday", "active_months_0m",
        "months_since_", "active_months_m", "visits_sum_3", "visits_max_3months", "reg_date_2020", "ftd_date_2020-01",
    ],
)  # fmt: skip
def test_a_name_that_looks_like_a_window_and_is_none_is_refused_with_the_grammar(name):
    with pytest.raises(InputError) as refused:
        plan_encoding(["total_deposit", name], [*COLUMNS, "account_id"])
    assert repr(name) in str(refused.value)
    assert GRAMMAR in str(refused.value)


@pytest.mark.parametrize("name", ["visits_median_3m", "visits_sum", "visits_max_all", "visits_SUM_3m", "visits_3m"])
def test_an_unknown_aggregate_of_a_column_of_numbers_is_refused_when_its_rows_are_seen(name: str):
    for build in (trained, scored):
        with pytest.raises(InputError, match=f"'{name}' look like windows"):
            build(row_of(1, 5, 31.0), date(2025, 6, 9), [name])


@pytest.mark.parametrize("name", ["months_since_plan", "plan_sum_3m", "months_since_visits", "signup_sum_3m"])
def test_a_window_of_a_column_of_another_kind_is_refused_with_the_grammar(name: str):
    activity = row_of(1, 5, 31.0).with_columns(plan=pl.lit("gold"), visits=pl.lit(2), signup=pl.lit(date(2025, 1, 1)))
    with pytest.raises(InputError, match=f"'{name}' look like windows") as refused:
        features(activity, date(2025, 6, 9), [name])
    assert GRAMMAR in str(refused.value)


def test_levels_and_columns_that_look_like_windows_are_levels_and_columns():
    names = ["plan_gold_12m", "x_sum_3m", "plan_max", "reg_date_source_web"]
    encoding = plan_encoding(names, ["plan", "x_sum_3m", "reg_date", "reg_date_source"])
    assert [group.levels for group in encoding.one_hots] == [("gold_12m", "max"), ("web",)]
    assert encoding.source_columns == ("x_sum_3m", "plan", "reg_date_source")


def test_a_window_of_a_computed_column_is_refused_in_training_and_scoring():
    for build in (trained, scored):
        with pytest.raises(InputError, match=r"'months_active_sum_3m' look like windows"):
            build(row_of(1, 5, 30.0), date(2025, 6, 3), ["months_active", "months_active_sum_3m"])


def test_windows_are_grouped_by_their_source_column_in_raw_and_encoded_rows():
    names = ["total_handle", "total_handle_sum_3m", "months_since_active", "active_months_3m", "months_since_ftd_date"]
    expected = ("total_handle", "activity", "ftd_date")
    assert plan_encoding(names, COLUMNS).source_columns == expected
    assert plan_encoding(names, names).source_columns == expected
    assert parse("total_handle_sum_3m", COLUMNS) == Window("total_handle_sum_3m", "total_handle", "sum", 3)


@pytest.mark.parametrize("own", [32.0, "casino"])
def test_an_extract_may_have_a_column_activity_of_its_own(own: float | str):
    activity = pl.concat([row_of(1, 4, 0.0), row_of(1, 5, 31.0)]).with_columns(activity=pl.lit(own))
    names = ["months_since_active", "active_months_3m", *(["activity", "activity_sum_3m"] if own == 32.0 else [])]
    expected = [[0.0, 1.0, 32.0, 64.0][: len(names)]]
    assert trained(activity, date(2025, 6, 9), names)[1].tolist() == expected
    assert scored(activity, date(2025, 6, 9), names)[1].tolist() == expected


def test_windows_over_activity_need_a_column_of_money():
    activity = row_of(1, 5, 31.0).drop(MONEY)
    with pytest.raises(InputError, match="none of which measures activity"):
        features(activity, date(2025, 6, 9), ["months_since_active"])


def test_dates_after_the_as_of_day_are_missing_in_training_and_scoring():
    activity = row_of(1, 5, 31.0).with_columns(ftd_date=pl.lit(date(2025, 6, 10)), signup=pl.lit(date(2025, 6, 11)))
    names = ["months_active", "months_since_ftd_date", "months_since_signup"]
    for as_of, expected in ((date(2025, 6, 9), [np.nan] * 3), (date(2025, 6, 11), [-1.0, 0.0, 0.0])):
        np.testing.assert_array_equal(trained(activity, as_of, names)[1][0], expected)
        np.testing.assert_array_equal(scored(activity, as_of, names)[1][0], expected)
