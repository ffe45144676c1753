"""At stake: a value has one meaning, whichever tool wrote it and in whichever format.

A spelling that is not understood is quarantined, never read as another value.
"""

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from churn.data.activity import check_activity
from churn.data.features import encode, plan_encoding
from churn.data.formats import read_frame
from churn.data.spellings import folded_levels
from tests.support.extracts import FEATURES, GOOD, WRITERS, as_lines, typed

SPELLINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "account_id": {"1723": ("1723.0", "1723.00", " 1723 ", "+1723", "1.723e3", "1.723E+03", "1723.")},
    "activity_month": {
        "2025-03-01": (
            "2025-03-01 00:00:00+00", "2025-03-01 00:00:00 UTC", "2025-03-01 00:00", "2025-03-01 00:00:00.000",
            "2025-03-01 00:00:00.000 +0000", "2025-03-01 00:00:00.000 America/New_York", "2025-03-01T00:00:00.000Z",
            "2025-03-01T00:00:00+09:00", "2025-03-01 00:00:00.0000000 +00:00", "2025-03-01 12:00:00 AM", "2025/03/01",
            "01-MAR-2025", "01MAR2025", "Mar 1, 2025", "March 1, 2025", " 2025-03-01", "2025-03-01 00:00:00 +0000 UTC",
            "2025-03-01T00:00:00-0500", "2025-3-1", "01MAR2025:00:00:00", "2025-03-01 00:00:00 GMT", "2025-03-01+01:00",
        )
    },
    "reg_date": {"2024-12-05": ("2024-12-05 23:59:59.999999", "2024-12-05T23:30:00+09:00", "05-Dec-2024 13:01:02")},
    "ftd_date": {"": ("NaN", "NULL", "null", "\\N", "NaT", "<NA>", "NA", "None", "0000-00-00", "(null)", "#N/A", " ")},
    "known_at": {
        "2025-04-01T06:00:00Z": (
            "2025-04-01 06:00:00+00", "2025-04-01 06:00:00 UTC", "2025-04-01 06:00", "2025-04-01 06:00:00.000 +0000",
            "2025-04-01T08:00:00+02:00", "2025-04-01T11:30:00.000000+0530", "2025-04-01 03:00:00-03",
            "2025-04-01T06:00:00.000000000Z", "2025-04-01 06:00:00", "2025-04-01 06:00:00.0000000 +00:00",
        )
    },
    "total_deposit": {
        "1234.5": (
            "1234.50", "1,234.50", "1.234,50", "1'234.50", "1 234,50", "1\u202f234,5", "1.2345e3", "1.2345E+03",
            "+1234.5", "1234,5", " 1234.5 ",
        )
    },
    "total_handle": {
        "20": ("20.0", "2e1", "2E+01", "20.", "20,0"),
        "": ("NaN", "nan", "NULL", "\\N", "NA", "N/A", "None", "<NA>", "-nan"),
    },
    "total_ngr": {"-1234567": ("-1,234,567", "-1.234.567", "-1234567.0", "-1.234567e6", "\u22121234567", "-1 234 567")},
    "brand_id": {"PA": ("PA ", " pa", "Pa", "\tPA", "pa\u00a0", "\uff30\uff21")},
    "player_reg_product": {"BETTING": ("betting", "Betting ")},
}  # fmt: skip
CASES = [
    (column, value, spelling)
    for column, values in SPELLINGS.items()
    for value, spellings in values.items()
    for spelling in spellings
]


def read(content: bytes, folder: Path) -> pl.DataFrame:
    """The features of a file's rows, in which no row may be quarantined."""
    (folder / "rows").write_bytes(content)
    checked = check_activity(read_frame(folder / "rows"))
    assert checked.quarantined.is_empty(), checked.quarantined.to_dicts()
    return checked.rows


def matrix_of(rows: pl.DataFrame) -> np.ndarray:
    months = (pl.col("activity_month") - pl.col("ftd_date")).dt.total_days()
    rows = rows.with_columns(months_active=months)
    return np.column_stack(
        [
            encode(rows, plan_encoding(FEATURES, rows.columns)),
            rows.select(pl.col("account_id"), pl.col("reg_date", "activity_month").to_physical()).to_numpy(),
            rows.select(pl.col("known_at").to_physical()).to_numpy(),
        ]
    )


@pytest.mark.parametrize("form", WRITERS)
def test_each_spelling_of_a_value_gives_the_same_matrix_in_every_format(form, tmp_path):
    for column, value, spelling in CASES:
        rows = [GOOD, GOOD | {column: value}, GOOD | {column: spelling}]

        matrix = matrix_of(read(WRITERS[form](rows), tmp_path))

        assert np.array_equal(matrix[1], matrix[2], equal_nan=True), (column, spelling)


NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
TOKYO = datetime(2025, 3, 1, tzinfo=timezone(timedelta(hours=9)))
TYPED = {
    "days": ("activity_month", pa.array([date(2025, 3, 1)])),
    "date64": ("activity_month", pa.array([date(2025, 3, 1)], pa.date64())),
    **{
        f"instants in {unit}": ("activity_month", pa.array([datetime(2025, 3, 1)], pa.timestamp(unit)))  # noqa: DTZ001
        for unit in ("s", "ms", "us", "ns")
    },
    **{
        f"midnight in {zone}": ("activity_month", pa.array([TOKYO], pa.timestamp("us", zone)))
        for zone in ("Asia/Tokyo", "+09:00", "Asia/Seoul")
    },
    "midnight in Kolkata": (
        "activity_month",
        pa.array([datetime(2025, 3, 1, tzinfo=timezone(timedelta(hours=5.5)))], pa.timestamp("ns", "+05:30")),
    ),
    "noon in UTC": ("activity_month", pa.array([NOON], pa.timestamp("ns", "UTC"))),
    "noon in Z": ("activity_month", pa.array([NOON], pa.timestamp("us", "Z"))),
    "ids as floats": ("account_id", pa.array([1723.0])),
    "ids as decimals": ("account_id", pa.array([Decimal("1723.00")])),
    "ids as large decimals": ("account_id", pa.array([Decimal("1723.000")], pa.decimal256(70, 3))),
    "ids as small integers": ("account_id", pa.array([1723], pa.uint16())),
    "ids as binary": ("account_id", pa.array([b"1723"])),
    "money as large decimals": ("total_deposit", pa.array([Decimal("1234.50")], pa.decimal256(50, 2))),
    "money as single floats": ("total_deposit", pa.array([1234.5], pa.float32())),
    "money as text": ("total_deposit", pa.array(["1,234.50"], pa.large_string())),
    "levels as binary": ("brand_id", pa.array([b"PA"])),
    "levels as large binary": ("brand_id", pa.array([b"PA"], pa.large_binary())),
    "levels of fixed size": ("brand_id", pa.array([b"PA"], pa.binary(2))),
    "levels as views": ("brand_id", pa.array(["PA"], pa.string_view())),
    "levels as categories": ("brand_id", pa.array([" pa"]).dictionary_encode()),
    "levels as large categories": ("brand_id", pa.array(["PA"], pa.large_string()).dictionary_encode()),
    "levels as binary categories": ("brand_id", pa.array([b"PA"]).dictionary_encode()),
}


@pytest.mark.parametrize("case", TYPED)
def test_each_type_of_a_value_gives_the_same_matrix(case, tmp_path):
    expected = matrix_of(read(as_lines([GOOD]), tmp_path))
    assert np.array_equal(matrix_of(read(typed(*TYPED[case]), tmp_path)), expected, equal_nan=True)


@pytest.mark.parametrize("nothing", [float("nan"), None, "NaN", "", "\\N"])
def test_nan_is_missing_in_every_format(nothing, tmp_path):
    for form, write in WRITERS.items():
        rows = read(write([GOOD | {"total_handle": nothing, "qp_date": None}]), tmp_path)
        assert rows["total_handle"].to_list() == [None], form


@pytest.mark.parametrize(
    ("column", "spelling"),
    [
        ("account_id", "1.23457E+12"), ("account_id", "1,723"), ("account_id", "1 723"), ("account_id", "1723.5"),
        ("account_id", "true"), ("activity_month", "01/03/2025"), ("activity_month", "2025-03"),
        ("activity_month", "20250301"), ("activity_month", "01.03.2025"), ("activity_month", "45717"),
        ("activity_month", "2025-02-30"), ("activity_month", "1740787200"), ("total_deposit", "1,234"),
        ("total_deposit", "$5"), ("total_deposit", "5 EUR"), ("total_deposit", "12%"), ("total_deposit", "1.2.3"),
        ("total_deposit", "1,23,456"), ("known_at", "yesterday"), ("brand_id", "NULL"), ("brand_id", "\\N"),
        ("total_handle", "inf"),
    ],
)  # fmt: skip
def test_what_could_be_two_values_is_quarantined_in_every_format(column, spelling, tmp_path):
    for form, write in WRITERS.items():
        (tmp_path / "rows").write_bytes(write([GOOD, GOOD | {column: spelling}]))
        checked = check_activity(read_frame(tmp_path / "rows"))
        assert checked.quarantined["row_number"].to_list() == [2], (form, checked.rows.to_dicts())


def test_a_point_before_three_digits_is_ambiguous_among_decimal_commas():
    rows = [GOOD | {"total_deposit": value} for value in ("1.234", "1.234,50", "12,5", "1234")]
    checked = check_activity(pl.from_dicts(rows))
    assert checked.quarantined["row_number"].to_list() == [1]
    assert checked.rows["total_deposit"].to_list() == [1234.5, 12.5, 1234.0]


LEVELS = {
    "PA": ("PA", "PA ", " PA", "pa", "Pa", "\tpa\n", "\u00a0PA", "\uff30\uff21"),
    "New York": ("new york", "NEW YORK ", "New\u00a0York"),
    "É": ("é", "E\u0301", " é "),
    "7": ("7", "7.0", " 7", "7.00"),
    "true": ("True", "TRUE"),
    "x": ("x",), "X": ("X",),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical])
def test_outer_spaces_and_case_are_no_part_of_a_level(dtype):
    names = tuple(LEVELS)
    spelled = [(names.index(level), spelling) for level, spellings in LEVELS.items() for spelling in spellings]
    frame = pl.DataFrame({"device": pl.Series([spelling for _, spelling in spelled], dtype=dtype)})

    encoded = encode(frame, plan_encoding([f"device_{name}" for name in names], frame.columns))

    assert encoded.argmax(axis=1).tolist() == [place for place, _ in spelled]
    assert (encoded.sum(axis=1) == 1).all()


@pytest.mark.parametrize("values", [pl.Series([7.0, 8.0]), pl.Series([7, 8]), pl.Series(["7", "8.0"])], ids=str)
def test_a_level_that_is_a_number_is_found_in_every_type(values):
    for levels in ("7", "8"), ("7.0", "8.0"):
        encoded = encode(pl.DataFrame({"code": values}), plan_encoding([f"code_{name}" for name in levels], ["code"]))
        assert encoded.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("unknown", ["P A", "X ", "PENN", "pa.", "", "\u0440a"])
def test_a_level_that_is_another_stays_unknown(unknown):
    encoded = encode(
        pl.DataFrame({"device": [unknown]}), plan_encoding([f"device_{name}" for name in LEVELS], ["device"])
    )
    assert not encoded.any()


def test_levels_that_differ_in_case_alone_are_not_folded():
    assert folded_levels(("x", "X", "PA")) == {"pa": 2}
