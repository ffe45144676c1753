"""At stake: each row is either scored as it stands or quarantined with the rule it broke, never lost or altered.

The quirks that real extracts show are data and must pass; a value that cannot be meant must not reach a model.
"""

import json
import string
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from churn.data.activity import KINDS, check_activity, check_encoded, counts_by_rule, is_activity
from churn.errors import InputError, QuarantineError

GOOD = {
    "account_id": 7,
    "activity_month": date(2025, 3, 1),
    "brand_id": "OH",
    "reg_date": date(2024, 12, 5),
    "ftd_date": date(2024, 12, 6),
    "qp_date": date(2024, 12, 7),
    "ben_login_id": "BCUSA22L",
    "tracker_id": 101,
    "player_reg_product": "BETTING",
    "total_deposit": 10.5,
    "total_handle": 20.0,
    "total_ngr": -3.25,
}
FEATURES = ("total_deposit", "months_active", "brand_id_OH", "brand_id_PA", "player_reg_product_BETTING")
ENCODED = {
    "total_deposit": 1.5,
    "months_active": -2.0,
    "brand_id_OH": True,
    "brand_id_PA": False,
    "player_reg_product_BETTING": True,
}


def activity(*changes: dict[str, object]) -> pl.DataFrame:
    """A good row, then the good row with each of ``changes``."""
    return pl.from_dicts([GOOD, *({**GOOD, **change} for change in changes)], infer_schema_length=None, strict=False)


def encoded(*changes: dict[str, object]) -> pl.DataFrame:
    return pl.from_dicts([ENCODED, *({**ENCODED, **change} for change in changes)], infer_schema_length=None)


def broken_rules(checked) -> dict[int, list[str]]:
    return dict(checked.quarantined.select("row_number", "rules").iter_rows())


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        *(
            ({name: None}, [f"{name}_missing"])
            for name in (
                "account_id",
                "activity_month",
                "brand_id",
                "reg_date",
                "ben_login_id",
                "tracker_id",
                "player_reg_product",
                "total_deposit",
                "total_ngr",
            )
        ),
        *(({name: float("nan")}, [f"{name}_missing"]) for name in ("total_deposit", "total_ngr")),
        ({"total_ngr": float("inf")}, ["total_ngr_not_finite"]),
        ({"total_ngr": float("-inf")}, ["total_ngr_not_finite"]),
        ({"total_deposit": -0.01}, ["total_deposit_negative"]),
        ({"total_handle": -1.0}, ["total_handle_negative"]),
        ({"total_handle": 1.01e8}, ["total_handle_absurd"]),
        ({"total_ngr": -1.01e8}, ["total_ngr_absurd"]),
        ({"total_deposit": -2e8}, ["total_deposit_absurd", "total_deposit_negative"]),
        ({"reg_date": date(1989, 12, 31)}, ["reg_date_out_of_range"]),
        ({"ftd_date": date(2200, 1, 2)}, ["ftd_date_out_of_range"]),
        ({"activity_month": date(9999, 1, 1)}, ["activity_month_out_of_range"]),
        ({"activity_month": date(2025, 3, 2)}, ["activity_month_not_first_of_month"]),
        ({"activity_month": date(1970, 1, 2)}, ["activity_month_out_of_range", "activity_month_not_first_of_month"]),
    ],
    ids=str,
)
def test_a_row_that_breaks_a_rule_is_quarantined_with_the_rules_name(change, rules):
    checked = check_activity(activity(change))

    assert broken_rules(checked) == {2: rules}
    assert checked.rows["row_number"].to_list() == [1]
    assert checked.n_read == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("account_id", "7,5"),
        ("account_id", "7.5"),
        ("account_id", "1.23457E+12"),
        ("activity_month", "2025-03"),
        ("activity_month", "01/03/2025"),
        ("activity_month", "2025-02-30"),
        ("reg_date", "yesterday"),
        ("tracker_id", "1.23457E+12"),
        ("total_deposit", "1,000"),
        ("total_deposit", "€5"),
        ("total_handle", "not known"),
        ("known_at", "soon"),
    ],
)
def test_text_that_is_not_what_the_column_holds_is_unreadable(name, text):
    good = GOOD | {"known_at": "2025-04-01T06:00:00Z"}
    rows = [{column: str(value) for column, value in row.items()} for row in (good, good | {name: text})]

    assert broken_rules(check_activity(pl.from_dicts(rows))) == {2: [f"{name}_unreadable"]}


@pytest.mark.parametrize("name", ["activity_month", "reg_date", "ftd_date"])
@pytest.mark.parametrize("number", [20250301, 45658, 1_740_787_200_000, 20148.0])
def test_a_number_is_not_taken_for_a_date(name, number):
    frame = activity().with_columns(pl.lit(number).alias(name))
    assert broken_rules(check_activity(frame)) == {1: [f"{name}_unreadable"]}


@pytest.mark.parametrize(
    "quirk",
    [
        {"ftd_date": None},
        {"qp_date": None},
        {"total_handle": None},
        {"reg_date": date(2025, 6, 1)},
        {"ftd_date": date(2026, 3, 1)},
        {"ftd_date": date(2020, 1, 1)},
        {"total_deposit": 0.0, "total_handle": 0.0, "total_ngr": 0.0},
        {"total_handle": 4.8e6, "total_ngr": -116_000.0},
        {"brand_id": "a brand nobody knows"},
        {},
    ],
    ids=str,
)
def test_the_quirks_of_real_extracts_are_data(quirk):
    checked = check_activity(activity(quirk))

    assert checked.quarantined.is_empty()
    assert checked.rows.drop("row_number").rows(named=True)[1] == GOOD | quirk


def test_rows_reach_the_caller_typed_and_with_their_other_columns():
    frame = pl.from_dicts([{name: str(value) for name, value in GOOD.items()} | {"campaign": "spring"}])

    checked = check_activity(frame)

    assert checked.rows.drop("row_number").row(0, named=True) == GOOD | {"campaign": "spring"}


@pytest.mark.parametrize(
    "known_at",
    [
        ["2025-04-01T06:00:00Z", "2025-04-01T08:00:00+02:00"],
        [datetime(2025, 4, 1, 6), datetime(2025, 4, 1, 6)],  # noqa: DTZ001 without a zone it is UTC
        [datetime(2025, 4, 1, 6, tzinfo=UTC)] * 2,
    ],
    ids=["text", "naive", "aware"],
)
def test_known_at_is_an_instant_in_utc(known_at):
    checked = check_activity(activity({}).with_columns(known_at=pl.Series(known_at)))
    assert checked.rows["known_at"].to_list() == [datetime(2025, 4, 1, 6, tzinfo=UTC)] * 2


def test_a_column_that_only_the_model_names_is_held_to_be_a_number_and_may_be_missing():
    frame = activity({}, {}, {}).with_columns(
        sessions=pl.Series(["3", "many", None, "1e39"]), campaign=pl.Series(["a", "b", None, "c"])
    )
    assert broken_rules(check_activity(frame, ["sessions"])) == {2: ["sessions_unreadable"], 4: ["sessions_not_finite"]}


@pytest.mark.parametrize(
    ("ids", "unreadable"),
    [
        ([7.0, 7.5, 7e30, float("inf"), 2.0**53], [2, 3, 4, 5]),
        ([Decimal("7"), Decimal("7.5"), Decimal("8"), Decimal("9"), Decimal("10")], [2]),
        ([True, False, True, True, True], [1, 2, 3, 4, 5]),
        (pl.Series(["7", "7.5", "8", "9", "10"], dtype=pl.Categorical), [2]),
        ([[7], [8], [9], [10], [11]], [1, 2, 3, 4, 5]),
    ],
    ids=["float", "decimal", "boolean", "categorical", "list"],
)
def test_an_account_id_is_a_whole_number_that_its_type_holds_exactly(ids, unreadable):
    checked = check_activity(activity({}, {}, {}, {}).with_columns(account_id=pl.Series(ids)))
    assert broken_rules(checked) == {number: ["account_id_unreadable"] for number in unreadable}


def test_the_original_row_is_kept_as_json_with_the_account_and_month_it_names():
    checked = check_activity(
        activity({"total_deposit": -1.0, "brand_id": "a\u2028b\x85c\nd\x0ce"}, {"account_id": None})
    )

    assert checked.quarantined["account_id"].to_list() == [7, None]
    assert checked.quarantined["activity_month"].to_list() == [date(2025, 3, 1)] * 2
    rows = [json.loads(row) for row in checked.quarantined["row"]]
    assert rows[0] == json.loads(json.dumps(GOOD, default=str)) | {
        "total_deposit": -1.0,
        "brand_id": "a\u2028b\x85c\nd\x0ce",
    }
    assert rows[1]["account_id"] is None


def test_what_json_or_postgresql_cannot_hold_does_not_lose_the_quarantined_row():
    frame = activity({}).with_columns(
        total_deposit=pl.lit(-1.0),
        brand_id=pl.lit("O\0H"),
        fingerprint=pl.lit(b"\xff"),
        reg_date=pl.Series([2**31 - 1] * 2, dtype=pl.Int32).cast(pl.Date),
        seen_at=pl.Series([2**62] * 2).cast(pl.Datetime("us")),
    )

    checked = check_activity(frame)

    assert checked.quarantined.height == 2
    for row in map(json.loads, checked.quarantined["row"]):
        assert row["account_id"] == 7
        assert row["brand_id"] == "O\ufffdH"


def test_a_month_that_no_calendar_reaches_is_no_month():
    frame = activity().with_columns(activity_month=pl.Series([20_250_101], dtype=pl.Int32).cast(pl.Date))
    checked = check_activity(frame)
    assert checked.quarantined["activity_month"].to_list() == [None]


@pytest.mark.parametrize("name", ["row_number", "rules", "row"])
def test_a_files_own_column_of_a_name_that_is_used_here_does_no_harm(name):
    checked = check_activity(activity({"total_deposit": -1.0}).with_columns(pl.lit(99).alias(name)))
    assert broken_rules(checked) == {2: ["total_deposit_negative"]}
    assert checked.rows["row_number"].to_list() == [1]


def test_rules_are_counted_most_frequent_first_and_a_row_counts_for_each_it_broke():
    rows = check_activity(activity({"total_deposit": -2e8}, {"total_deposit": -1.0})).quarantined
    assert list(counts_by_rule(rows).items()) == [("total_deposit_negative", 2), ("total_deposit_absurd", 1)]


def test_nothing_broken_counts_nothing():
    assert counts_by_rule(check_activity(activity()).quarantined) == {}


def test_too_large_a_share_of_broken_rows_is_refused_with_rules_rows_limit_and_remedy():
    checked = check_activity(activity({"total_deposit": -1.0}, {"brand_id": None}, {}))

    checked.require_share(0.5)
    with pytest.raises(QuarantineError) as refused:
        checked.require_share(0.49)

    for part in (
        "2 of 4 rows (50.0 %) broke the contract",
        "CHURN_MAX_QUARANTINE_SHARE allows 49.0 %",
        "'total_deposit_negative': 1",
        "row 2 broke total_deposit_negative;",
        "row 3 broke brand_id_missing",
        "correct the extract or raise the limit",
    ):
        assert part in str(refused.value)


def test_a_file_whose_every_row_is_broken_is_refused_at_any_limit():
    with pytest.raises(QuarantineError, match="1 of 1 rows"):
        check_activity(activity().with_columns(total_deposit=-1.0)).require_share(1.0)


def test_an_account_reported_twice_for_a_month_is_data():
    assert check_activity(activity({}, {})).rows.height == 3


def test_activity_is_told_from_encoded_rows_by_its_key_columns():
    assert is_activity(GOOD)
    assert not is_activity(ENCODED)
    assert not is_activity([*ENCODED, "account_id"])


def test_encoded_rows_without_account_ids_are_numbered_as_in_the_file():
    checked = check_encoded(encoded({"total_deposit": float("inf")}, {}), FEATURES)

    assert checked.rows["account_id"].to_list() == [1, 3]
    assert broken_rules(checked) == {2: ["total_deposit_not_finite"]}
    assert checked.quarantined["account_id"].to_list() == [None]


def test_encoded_rows_keep_the_account_ids_they_carry():
    frame = encoded({}, {}).with_columns(account_id=pl.Series([30, None, 10]))

    checked = check_encoded(frame, FEATURES)

    assert checked.rows["account_id"].to_list() == [30, 10]
    assert broken_rules(checked) == {2: ["account_id_missing"]}


def test_of_encoded_rows_of_one_account_none_is_chosen():
    frame = encoded({}, {}).with_columns(account_id=pl.Series([30, 10, 30]))
    assert broken_rules(check_encoded(frame, FEATURES)) == {1: ["account_id_duplicated"], 3: ["account_id_duplicated"]}


@pytest.mark.parametrize(
    "change",
    [{"brand_id_PA": True}, {"brand_id_OH": None}, {"brand_id_OH": 0.5}, {"brand_id_OH": 2}, {"brand_id_OH": -1}],
    ids=str,
)
def test_flags_that_are_not_one_hot_are_quarantined(change):
    rows = [{name: float(value) if value is not None else None for name, value in (ENCODED | change).items()}]
    assert broken_rules(check_encoded(pl.from_dicts(rows), FEATURES)) == {1: ["brand_id_not_one_hot"]}


@pytest.mark.parametrize(("yes", "no"), [("True", "False"), ("true", "false"), ("1", "0"), ("1.0", "0.0")])
def test_flags_of_a_csv_are_read_in_every_common_spelling(yes, no):
    row = {name: (yes if value is True else no if value is False else str(value)) for name, value in ENCODED.items()}

    checked = check_encoded(pl.from_dicts([row]), FEATURES)

    assert checked.rows.select(FEATURES).row(0) == (1.5, -2.0, 1.0, 0.0, 1.0)


def test_a_row_whose_level_the_model_does_not_know_sets_no_flag_and_passes():
    assert check_encoded(encoded({"brand_id_OH": False}), FEATURES).quarantined.is_empty()


def test_numbers_of_encoded_rows_may_be_missing_but_not_all_of_a_rows():
    frame = pl.DataFrame({"total_deposit": [1.0, None, None], "months_active": [None, 2.0, None]})
    assert broken_rules(check_encoded(frame, FEATURES[:2])) == {3: ["row_empty"]}


def test_encoded_rows_may_carry_a_month_that_is_not_read():
    checked = check_encoded(encoded({"months_active": float("inf")}).with_columns(activity_month=pl.lit("x")), FEATURES)
    assert checked.quarantined["activity_month"].to_list() == [None]


def test_encoded_rows_that_lack_features_are_refused_with_their_names():
    with pytest.raises(InputError, match=r"lack 2 of the model's 5 features: months_active, brand_id_PA; export"):
        check_encoded(encoded().drop("months_active", "brand_id_PA"), FEATURES)


def test_rows_of_something_else_are_refused_with_both_shapes_that_would_do():
    with pytest.raises(
        InputError, match=r"the rows have columns x, y, which are neither raw activity .* nor the model's 5 features"
    ):
        check_encoded(pl.DataFrame({"x": [1], "y": [2]}), FEATURES)


cells = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["2025-03-01", "7", "1e5", "-1", "9" * 400, "2025-03-01T00:00:00Z", "\0", "\u2028"])
)
typed_columns = st.sampled_from(
    [
        pl.Series([None, None]),
        pl.Series([b"\xff", None]),
        pl.Series([[1], []]),
        pl.Series([{"a": 1}, {"a": None}]),
        pl.Series([time(1), None]),
        pl.Series([timedelta(1), timedelta(-1)]),
        pl.Series([Decimal("1.50"), Decimal("7")]),
        pl.Series([True, None]),
        pl.Series(["7", "2025-03-01"], dtype=pl.Categorical),
        pl.Series(["7", "x"], dtype=pl.Enum(["7", "x"])),
        pl.Series([2**31 - 1, -(2**31)], dtype=pl.Int32).cast(pl.Date),
        pl.Series([2**63 - 1, -(2**63)], dtype=pl.Int64).cast(pl.Datetime("ms")),
        pl.Series([2**62, 0]).cast(pl.Datetime("us", "UTC")),
        pl.Series([2**63 - 1, -(2**63)]).cast(pl.Datetime("us", "Asia/Tokyo")),
        pl.Series([2**127 - 1, -1], dtype=pl.Int128),
        pl.Series([float("nan"), 1e308]),
        pl.Series([[b"x"], None]),
        pl.Series([1, 2], dtype=pl.UInt8),
    ]
)


def require_partition(checked, frame) -> None:
    """Every row of the file is in one of the two tables, once, and the quarantine can be stored."""
    numbers = checked.rows["row_number"].to_list() + checked.quarantined["row_number"].to_list()
    assert sorted(numbers) == list(range(1, frame.height + 1))
    assert checked.n_read == frame.height == checked.rows.height + checked.quarantined.height
    for row in checked.quarantined.to_dicts():
        assert row["rules"]
        assert isinstance(json.loads(row["row"]), dict)
        assert "\\u0000" not in row["row"]


def column_of(values: list[object]) -> pl.Series:
    """The values as numbers where all are, else as text, as a reader would give them."""
    if all(value is None or isinstance(value, float) for value in values):
        return pl.Series(values, dtype=pl.Float64)
    return pl.Series([value if value is None else str(value) for value in values], dtype=pl.String)


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.tuples(*[cells] * len(KINDS)), min_size=1, max_size=4))
def test_values_of_any_kind_are_kept_or_quarantined_and_never_raise(rows):
    frame = pl.DataFrame(
        [column_of(list(values)).alias(name) for name, values in zip(KINDS, zip(*rows, strict=True), strict=True)]
    )

    require_partition(check_activity(frame), frame)
    require_partition(check_encoded(frame, ["total_deposit", "total_ngr", "tracker_id"]), frame)


@settings(deadline=None)
@given(columns=st.fixed_dictionaries(dict.fromkeys([*KINDS, "other"], typed_columns)))
def test_columns_of_any_type_are_kept_or_quarantined_and_never_raise(columns):
    frame = pl.DataFrame(columns)

    require_partition(check_activity(frame, ["other"]), frame)
    require_partition(check_encoded(frame, ["total_deposit", "other"]), frame)


@settings(deadline=None)
@given(broken=st.lists(st.booleans(), min_size=1, max_size=50))
def test_the_good_rows_of_a_file_pass_in_their_order_whatever_stands_between_them(broken):
    frame = pl.from_dicts([GOOD | {"total_deposit": -1.0 if is_broken else 1.0} for is_broken in broken])

    checked = check_activity(frame)

    assert checked.rows["row_number"].to_list() == [i for i, is_broken in enumerate(broken, 1) if not is_broken]
    require_partition(checked, frame)


@settings(deadline=None)
@given(text=st.text(alphabet=string.printable + "\0\u2028\x85\ud7ff\U0001f600\\", max_size=20))
def test_any_text_survives_in_the_quarantined_row(text):
    checked = check_activity(activity().with_columns(total_deposit=-1.0, brand_id=pl.lit(text)))
    if "\\u0000" not in text:
        assert json.loads(checked.quarantined["row"][0])["brand_id"] == text.replace("\0", "\ufffd")
