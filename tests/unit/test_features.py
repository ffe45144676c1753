"""At stake: a score may rest only on what was known at the as-of date, and each value must reach its own model column.

A leak from the future makes training look better than scoring ever is; a column off by one mis-scores everyone unseen.
"""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import pandas as pd
import polars as pl
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st

from churn.data.activity import check_activity, require_features
from churn.data.features import encode, features, own_columns, pack, plan_encoding
from churn.errors import InputError
from churn.inference.bundle import read_bundle

BRANDS, LOGINS, PRODUCTS = ("OH", "PA", "NO_LIMIT"), ("BCUSA22L", "actionnetwork"), ("BETTING", "CASINO")
NAMES = (
    "total_deposit",
    "total_handle",
    "total_ngr",
    "months_active",
    *(f"brand_id_{level}" for level in BRANDS),
    *(f"ben_login_id_{level}" for level in LOGINS),
    *(f"player_reg_product_{level}" for level in PRODUCTS),
)
AS_OF = date(2025, 6, 30)


def rows(*records: dict[str, object]) -> pl.DataFrame:
    defaults = {"account_id": 1, "activity_month": date(2025, 3, 1), "ftd_date": date(2025, 1, 9), "total_ngr": 0.0}
    return pl.from_dicts([defaults | record for record in records], infer_schema_length=None)


def at(*instant: int) -> datetime:
    return datetime(*instant, tzinfo=UTC)


def random_activity(seed: int, n_rows: int = 200, n_accounts: int = 60) -> pl.DataFrame:
    """Rows as they come, with missing values, levels the model does not know, and months reported twice."""
    random = np.random.default_rng(seed)
    months = [date(2025, month, 1) for month in range(1, 7)]
    frame = pl.DataFrame(
        {
            "account_id": random.integers(1, n_accounts, n_rows),
            "activity_month": random.choice(months, n_rows).tolist(),
            "ftd_date": random.choice([None, date(2024, 2, 9), date(2025, 4, 30)], n_rows).tolist(),
            "brand_id": random.choice([*BRANDS, "XX", "no limit"], n_rows).tolist(),
            "ben_login_id": random.choice([*LOGINS, "other"], n_rows).tolist(),
            "player_reg_product": random.choice(PRODUCTS, n_rows).tolist(),
            "total_deposit": random.exponential(50, n_rows).round(2),
            "total_handle": [None if missing else 3.3 for missing in random.random(n_rows) < 0.1],
            "total_ngr": random.normal(0, 70, n_rows).round(2),
        }
    )
    return check_activity(frame).rows


def matrix_of(activity: pl.DataFrame, as_of: date = AS_OF, names: tuple[str, ...] = NAMES):
    latest = features(activity, as_of)
    return encode(latest, plan_encoding(names, latest.columns))


@pytest.fixture(scope="module")
def bundle():
    training = matrix_of(random_activity(0, n_rows=2_000, n_accounts=900))
    labels = np.random.default_rng(1).random(len(training)) < 0.2 + 0.6 * (training[:, 0] > 30)
    parameters = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1}
    booster = xgb.train(parameters, xgb.DMatrix(training, label=labels), 8)
    return read_bundle(bytes(booster.save_raw("ubj")), NAMES, "model")


def test_each_account_has_one_row_and_they_are_in_order():
    accounts = features(random_activity(3), AS_OF)["account_id"].to_list()
    assert accounts == sorted(set(accounts))
    assert set(accounts) == set(random_activity(3)["account_id"])


def test_the_latest_month_speaks_for_the_account_wherever_it_stands_in_the_file():
    activity = rows(
        {"activity_month": date(2025, 4, 1), "total_ngr": 4.0},
        {"activity_month": date(2025, 5, 1), "total_ngr": 5.0},
        {"activity_month": date(2025, 2, 1), "total_ngr": 2.0},
    )
    assert features(activity, AS_OF)["total_ngr"].to_list() == [5.0]
    assert features(activity, date(2025, 4, 30))["total_ngr"].to_list() == [4.0]


@pytest.mark.parametrize(("as_of", "known"), [(date(2025, 2, 28), 0), (date(2025, 3, 1), 1)])
def test_an_account_without_a_month_yet_has_no_row(as_of, known):
    assert features(rows({}), as_of).height == known


def test_a_late_correction_does_not_reach_an_earlier_as_of_date():
    activity = rows(
        {"total_ngr": 1.0, "known_at": at(2025, 4, 2)}, {"total_ngr": 99.0, "known_at": at(2025, 5, 10, 23, 59, 59)}
    )
    scored = {day: features(activity, date(2025, 5, day))["total_ngr"].to_list() for day in (9, 10, 11)}
    assert scored == {9: [1.0], 10: [99.0], 11: [99.0]}


def test_a_row_not_known_yet_does_not_exist_yet():
    activity = rows({"known_at": at(2025, 4, 2)})
    assert features(activity, date(2025, 4, 1)).is_empty()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), as_of=st.dates(date(2025, 1, 1), date(2025, 7, 31)))
def test_no_row_known_later_changes_an_earlier_answer(seed, as_of):
    random = np.random.default_rng(seed)
    activity = random_activity(seed, 60, 12)
    day = pl.Series(random.integers(0, 210, 60).tolist())
    activity = activity.with_columns(known_at=pl.lit(at(2025, 1, 1)) + pl.duration(days=day))
    known_then = activity.filter(
        (pl.col("known_at") < pl.lit(at(as_of.year, as_of.month, as_of.day)) + pl.duration(days=1)),
        pl.col("activity_month") <= as_of,
    )
    assert features(activity, as_of).equals(features(known_then, as_of))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_of_a_month_reported_more_than_once_the_report_known_last_counts(order):
    reports = [
        {"total_ngr": 1.0, "known_at": at(2025, 4, 2)},
        {"total_ngr": 2.0, "known_at": at(2025, 4, 9)},
        {"total_ngr": 3.0, "known_at": at(2025, 4, 3)},
    ]
    assert features(rows(*(reports[i] for i in order)), AS_OF)["total_ngr"].to_list() == [2.0]


@pytest.mark.parametrize("known_at", [{}, {"known_at": at(2025, 4, 2)}])
def test_of_reports_known_alike_the_later_in_the_file_counts(known_at):
    activity = rows({"total_ngr": 1.0} | known_at, {"total_ngr": 2.0} | known_at)
    assert features(activity, AS_OF)["total_ngr"].to_list() == [2.0]


@pytest.mark.parametrize(
    ("first_deposit", "months"),
    [
        (date(2025, 3, 31), 0),
        (date(2025, 2, 28), 1),
        (date(2024, 12, 31), 3),
        (date(2021, 5, 1), 46),
        (date(2025, 4, 1), -1),
        (AS_OF + timedelta(days=1), None),  # a day after the as-of day reveals what the account does later
        (None, None),
    ],
)
def test_months_active_counts_months_since_the_first_deposits_and_may_be_negative_or_missing(first_deposit, months):
    activity = rows({"ftd_date": first_deposit}).with_columns(pl.col("ftd_date").cast(pl.Date))
    assert features(activity, AS_OF)["months_active"].to_list() == [months]


def test_a_column_of_a_derived_name_is_used_as_it_is():
    activity = rows({"months_active": 40, "total_handle": 3.0, "total_handle_sum_3m": 7.0})
    names = ["months_active", "total_handle_sum_3m", "total_handle", "months_since_active"]

    assert features(activity, AS_OF, ["months_active"])["months_active"].to_list() == [40]
    assert features(activity, AS_OF, ["total_handle_sum_3m"])["total_handle_sum_3m"].to_list() == [7.0]
    assert own_columns(names, activity.columns) == ["months_active", "total_handle_sum_3m"]
    assert own_columns(names, rows({"total_handle": 1.0}).columns) == []
    assert own_columns(["months_active"], ["months_active", "account_id"]) == []  # nothing to compute it from


def test_what_is_missing_reaches_the_model_as_missing():
    activity = random_activity(5).filter(pl.col("total_handle").is_null() | pl.col("ftd_date").is_null())
    latest = features(activity, AS_OF)

    matrix = encode(latest, plan_encoding(NAMES, latest.columns))

    assert (np.isnan(matrix[:, 1]) == latest["total_handle"].is_null().to_numpy()).all()
    assert (np.isnan(matrix[:, 3]) == latest["months_active"].is_null().to_numpy()).all()
    assert np.isnan(matrix).sum() == np.isnan(matrix[:, [1, 3]]).sum() > 0


@pytest.mark.parametrize("seed", range(5))
def test_the_matrix_is_what_pandas_get_dummies_gives(seed):
    latest = features(random_activity(seed), AS_OF)
    frame = pd.DataFrame(latest.to_dict(as_series=False))
    dummies = pd.get_dummies(frame, columns=["brand_id", "ben_login_id", "player_reg_product"])
    expected = dummies.reindex(columns=list(NAMES), fill_value=0).astype("float32").to_numpy()

    matrix = encode(latest, plan_encoding(NAMES, latest.columns))

    assert matrix.dtype == np.float32
    assert matrix.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(matrix, expected)


def test_a_level_that_the_model_does_not_know_sets_no_column_and_is_counted():
    frame = pl.DataFrame({"brand_id": ["XX", "OH", "o h", None, "XX", "NO", "a\0b"]})
    encoding = plan_encoding(NAMES[4:7], frame.columns)

    assert encode(frame, encoding).sum(axis=1).tolist() == [0, 1, 0, 0, 0, 0, 0]
    assert pack(frame, encoding).unknown_levels == {
        "brand_id": {"XX": 2, "o h": 1, "(missing)": 1, "NO": 1, "a\ufffdb": 1}
    }
    assert next(iter(pack(frame, encoding).unknown_levels["brand_id"].items())) == ("XX", 2)


def test_known_levels_are_not_counted():
    frame = pl.DataFrame({"brand_id": ["OH", "PA"]})
    assert pack(frame, plan_encoding(NAMES[4:7], frame.columns)).unknown_levels == {}


def test_underscores_in_columns_and_levels_are_resolved_by_the_longest_column():
    frame = pl.DataFrame({"tier": ["id_gold", "x"], "tier_id": ["gold", "top_gold"], "tier_id_top": ["x", "gold"]})
    names = ("tier_id_gold", "tier_id_top_gold", "tier_x", "tier_id_silver")

    matrix = encode(frame, plan_encoding(names, frame.columns))

    assert matrix.tolist() == [[1, 0, 0, 0], [0, 1, 1, 0]]


def test_a_column_of_the_features_own_name_is_a_number_even_where_a_parent_would_do():
    frame = pl.DataFrame({"visits": ["web", "app"], "visits_web": [5, 6]})
    assert encode(frame, plan_encoding(("visits_web", "visits_app"), frame.columns)).tolist() == [[5, 0], [6, 1]]


@pytest.mark.parametrize(
    "parent", [pl.Series([7, 8]), pl.Series(["7", "8"], dtype=pl.Categorical), pl.Series(["7", "8"])], ids=str
)
def test_levels_match_by_their_text_whatever_the_columns_type(parent):
    frame = pl.DataFrame({"tracker_id": parent})
    assert encode(frame, plan_encoding(("tracker_id_8", "tracker_id_7"), ["tracker_id"])).tolist() == [[0, 1], [1, 0]]


def test_a_model_with_other_features_in_another_order_works():
    names = (
        "channel_web",
        "sessions",
        "channel_store_front",
        "total_ngr",
        "region_é",
        "region_ ",
        "channel_app",
        "region_south_west",
        "months_active",
        "region_1.5",
        "basket_value",
        "plan_A&B",
    )
    activity = rows({"account_id": 1}, {"account_id": 2}, {"account_id": 3}).with_columns(
        channel=pl.Series(["store_front", "app", "web"]),
        sessions=pl.Series([3, 4, None]),
        region=pl.Series(["é", "south_west", " "]),
        basket_value=pl.Series(["1.5", "2", None]),
        plan=pl.Series(["A&B", "A", None]),
    )
    checked = check_activity(activity, ["sessions", "basket_value"])
    expected = [
        [0, 3, 1, 0, 1, 0, 0, 0, 2, 0, 1.5, 1],
        [0, 4, 0, 0, 0, 0, 1, 1, 2, 0, 2, 0],
        [1, np.nan, 0, 0, 0, 1, 0, 0, 2, 0, np.nan, 0],
    ]
    np.testing.assert_array_equal(matrix_of(checked.rows, names=names), np.array(expected, dtype=np.float32))


def test_features_that_no_column_gives_are_refused_with_their_names():
    with pytest.raises(InputError, match=r"2 of the model's features cannot be built: age, city_Oslo; add the columns"):
        plan_encoding(("age", "brand_id_OH", "city_Oslo"), ["brand_id"])


def test_a_misspelled_feature_gets_the_nearest_column():
    columns = ["account_id", "activity_month", "brand_id", "total_deposit", "total_handle", "total_ngr", "ben_login_id"]
    meant = {
        "total_hanlde": "total_handle", "total_deposits": "total_deposit", "total_Ngr": "total_ngr",
        "brandid_OH": "brand_id", "total_hanlde_sum_3m": "total_handle", "benlogin_id": "ben_login_id",
        "totaldeposit": "total_deposit", "total_depositt_trend_6m": "total_deposit",
    }  # fmt: skip
    for name, column in meant.items():
        with pytest.raises(InputError, match=rf"{name}'? \({column}\?\)(; add| look like)"):
            plan_encoding((name, "brand_id_OH"), columns)
    with pytest.raises(InputError, match=r"lack 1 of the model's 2 features: total_hanlde \(total_handles\?\); export"):
        require_features(["total_handles", "brand_id_OH"], ["total_hanlde", "brand_id_OH"])


def test_the_order_of_the_inputs_columns_does_not_matter():
    activity = random_activity(7)
    reordered = activity.select(sorted(activity.columns, reverse=True))
    assert matrix_of(activity).tobytes() == matrix_of(reordered).tobytes()


@settings(deadline=None, max_examples=30)
@given(data=st.data(), seed=st.integers(0, 10_000))
def test_a_score_does_not_depend_on_who_else_is_in_the_batch(bundle, data, seed):
    activity = random_activity(seed)
    everyone = dict(zip(features(activity, AS_OF)["account_id"], bundle.predict(matrix_of(activity)), strict=True))
    chosen = data.draw(st.sets(st.sampled_from(sorted(everyone)), min_size=1))

    some = activity.filter(pl.col("account_id").is_in(chosen))

    assert bundle.predict(matrix_of(some)).tolist() == [everyone[account] for account in sorted(chosen)]


def test_training_at_a_date_and_scoring_at_it_later_see_the_same_bytes():
    known = random_activity(11).with_columns(known_at=pl.lit(at(2025, 6, 15)))
    learnt_since = random_activity(12).with_columns(known_at=pl.lit(at(2025, 8, 1)))

    trained_on = matrix_of(known)
    scored = matrix_of(pl.concat([learnt_since, known]))

    assert scored.tobytes() == trained_on.tobytes()
    assert matrix_of(pl.concat([learnt_since, known]), date(2025, 8, 2)).tobytes() != trained_on.tobytes()
