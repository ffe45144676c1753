"""At stake: a company may call its players whatever it likes; two players must never become one, nor one two."""

import re
import uuid
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from churn.data.account_ids import keys_of, read_id
from churn.data.activity import check_activity, check_encoded
from churn.data.formats import read_frame
from churn.data.scoring_rows import prepare
from churn.database.copy_format import CopyLayout, ScoredRows, encode_rows
from churn.deployment.command_line import parse_account
from churn.errors import InputError
from tests.support.account_ids import IDS, MISSING, NOTHING, TEXTS, WHOLE
from tests.support.extracts import FEATURES, GOOD, WRITERS, as_csv, as_lines, typed


def extract(form: str) -> list[dict[str, object]]:
    """A row of each id; a CSV with the character NUL is no text, and refused as a whole."""
    return [GOOD | {"account_id": text} for text in IDS if form != "CSV" or "\0" not in text]


@pytest.mark.parametrize("form", WRITERS)
def test_an_id_is_the_same_account_or_breaks_the_same_rule_in_every_format(form, tmp_path):
    rows = extract(form)
    (tmp_path / "rows").write_bytes(WRITERS[form](rows))

    checked = check_activity(read_frame(tmp_path / "rows"))

    assert checked.rows.select("account_id", "account_key").rows() == [*WHOLE.values(), *TEXTS.values()]
    broken = checked.quarantined.select("rules", "account_id", "account_key").rows()
    assert broken == [
        *((["account_id_unreadable"], None, None) for _ in rows[len(WHOLE) + len(TEXTS) : -len(MISSING)]),
        *((["account_id_missing"], None, None) for _ in MISSING),
    ]
    numbers = [number for number, _ in TEXTS.values()]
    assert len({*WHOLE.values(), *TEXTS.values()}) == checked.rows["account_id"].n_unique()
    assert max(numbers) < 0


@pytest.mark.parametrize("text", IDS)
def test_the_command_line_reads_an_id_as_an_extract_does(text):
    if text in (WHOLE | TEXTS):
        number, key = (WHOLE | TEXTS)[text]
        assert parse_account(text) == (key or str(number))
        assert read_id(text)[0] == number
    else:
        with pytest.raises(Exception, match=re.escape(repr(text))):
            parse_account(text)


ID = uuid.UUID("f47ac10b-58cc-4372-a567-0e02b2c3d479")
TYPED = {
    "UUIDs": (pa.array([ID.bytes], pa.uuid()), str(ID)),
    "bytes": (pa.array([b"A-17"]), "A-17"),
    "categories": (pa.array(["A-17"]).dictionary_encode(), "A-17"),
    "large whole numbers": (pa.array([2**63], pa.uint64()), str(2**63)),
    "large decimals": (pa.array([10**30], pa.decimal128(38, 0)), str(10**30)),
    "decimals beyond a float": (pa.array([2**53 + 1], pa.decimal128(38, 0)), None),
    "numbers": (pa.array([1723]), None),
    "truth values": (pa.array([True]), NOTHING),
    "fractions": (pa.array([12.5]), NOTHING),
    "numbers that a float rounds": (pa.array([2.0**53]), NOTHING),
}


@pytest.mark.parametrize("case", TYPED)
def test_a_type_that_parquet_has_beside_text_is_read_as_that_text_or_quarantined(case, tmp_path):
    (tmp_path / "rows").write_bytes(typed("account_id", TYPED[case][0]))
    checked = check_activity(read_frame(tmp_path / "rows"))
    assert checked.quarantined.height == (TYPED[case][1] is NOTHING)
    assert checked.rows.to_dict().get("account_key", pl.Series([TYPED[case][1]] * checked.rows.height)).to_list() == (
        [] if TYPED[case][1] is NOTHING else [TYPED[case][1]]
    )


def test_numbers_and_texts_may_be_mixed_in_json(tmp_path):
    ids = [7, "A-17", 12.0, "00123", 9]
    (tmp_path / "rows").write_bytes(as_lines([GOOD | {"account_id": one} for one in ids]))
    checked = check_activity(read_frame(tmp_path / "rows"))
    assert checked.rows["account_key"].to_list() == [None, "A-17", None, "00123", None]
    assert checked.rows["account_id"].to_list()[::2] == [7, 12, 9]


def scored(path: Path, features: tuple[str, ...] = FEATURES) -> list[tuple[int, str | None]]:
    rows = prepare(path, features, date(2025, 4, 6), 0.0, "the extract")
    ids = np.concatenate([ids for ids, _ in rows.chunks()])
    keys = rows.counts.account_keys
    return list(zip(ids.tolist(), [None] * len(ids) if keys is None else keys_of(keys, ids), strict=True))


def test_keys_follow_their_accounts_to_the_rows_that_are_scored(tmp_path):
    (tmp_path / "raw").write_bytes(as_csv([GOOD | {"account_id": one} for one in ("A-17", "7", "A-17", "00123")]))
    encoded = [dict.fromkeys(FEATURES, 0) | {"account_id": one} for one in ("A-17", "7", "00123")]
    (tmp_path / "encoded").write_bytes(as_csv(encoded))

    assert {*scored(tmp_path / "raw")} == {(7, None), *(TEXTS[one] for one in ("A-17", "00123"))}
    assert scored(tmp_path / "encoded") == [TEXTS["A-17"], (7, None), TEXTS["00123"]]


@pytest.mark.parametrize("is_encoded", [False, True])
def test_two_ids_of_one_number_are_refused_and_not_named(tmp_path, is_encoded):
    ids = ["A-17", "7", str(TEXTS["A-17"][0])]
    row = dict.fromkeys(FEATURES, 0) if is_encoded else GOOD
    (tmp_path / "rows").write_bytes(as_csv([row | {"account_id": one} for one in ids]))

    with pytest.raises(InputError, match="have the same number of 64 bits") as refused:
        scored(tmp_path / "rows")

    assert not [one for one in (ids[0], ids[2][1:]) if one in str(refused.value)]


def test_a_files_own_column_of_keys_is_not_read(tmp_path):
    (tmp_path / "rows").write_bytes(
        as_csv([GOOD | {"account_id": one, "account_key": "other"} for one in ("A-17", "7")])
    )
    assert {*scored(tmp_path / "rows")} == {TEXTS["A-17"], (7, None)}


def test_a_text_is_the_last_field_of_a_copied_row_and_numbers_pay_nothing():
    rows = ScoredRows(np.array([7, -9]), np.array([0.5, 0.25], np.float32))
    plain = [*encode_rows(CopyLayout(date(2026, 11, 23)), [rows])][1]
    keys = pl.DataFrame({"account_id": [-9, 7], "account_key": ["\u00e9\U0001f3b2", None]})
    mixed = [*encode_rows(CopyLayout(date(2026, 11, 23), account_keys=keys), [rows])][1]

    half = len(plain) // 2
    null, text = b"\xff\xff\xff\xff", b"\x00\x00\x00\x06" + "\u00e9\U0001f3b2".encode()
    assert plain[:2] == plain[half : half + 2] == b"\x00\x03"
    assert mixed == b"\x00\x04" + plain[2:half] + null + b"\x00\x04" + plain[half + 2 :] + text


def test_encoded_rows_of_a_text_that_occurs_twice_are_quarantined_as_numbers_are():
    frame = pl.DataFrame([dict.fromkeys(FEATURES, 0) | {"account_id": one} for one in ("a", "A", "a")])
    checked = check_encoded(frame, FEATURES)
    assert checked.rows["account_key"].to_list() == ["A"]
    assert checked.quarantined["rules"].to_list() == [["account_id_duplicated"]] * 2
