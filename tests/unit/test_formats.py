"""At stake: a file in any promised format gives its rows, and a damaged one is refused with a reason.

A value lost on the way would be scored as missing without anyone knowing; an exception other than ``InputError``, or a
crash of the reader, would take the other variants of the run with it.
"""

import io
import json
import random
from contextlib import suppress

import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from churn.data.formats import open_rows, read_frame
from churn.errors import InputError

ROWS = [
    {"account_id": 7, "brand_id": "OH", "total_handle": 1.5},
    {"account_id": 8, "brand_id": "PA", "total_handle": None},
]
NAMES = ("account_id", "brand_id", "total_handle")
BOM = b"\xef\xbb\xbf"


def parquet() -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(ROWS).write_parquet(buffer)
    return buffer.getvalue()


def json_lines(rows=ROWS) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def json_array(rows=ROWS) -> bytes:
    return json.dumps(rows).encode()


CSV = b"account_id,brand_id,total_handle\n7,OH,1.5\n8,PA,\n"
ARRAY_OF_ARRAYS = json_array([list(row.values()) for row in ROWS])


@pytest.fixture
def read(tmp_path):
    def read_bytes(content: bytes, names=(), suffix=".dat") -> pl.DataFrame:
        path = tmp_path / f"rows{suffix}"
        path.write_bytes(content)
        return read_frame(path, names)

    return read_bytes


def values(frame: pl.DataFrame) -> list[dict[str, object]]:
    """Rows by name: polars does not promise the order of keys."""
    return frame.select(NAMES).to_dicts()


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".json", ""])
@pytest.mark.parametrize(
    "content",
    [parquet(), json_lines(), json_array(), ARRAY_OF_ARRAYS, json.dumps(ROWS, indent=2).encode()],
    ids=["parquet", "lines", "objects", "arrays", "indented"],
)
def test_the_content_tells_the_format_whatever_the_suffix(read, content, suffix):
    assert values(read(content, NAMES, suffix)) == ROWS


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json"])
def test_csv_is_read_as_strings_for_the_contract_to_parse(read, suffix):
    assert values(read(CSV, suffix=suffix)) == [
        {"account_id": "7", "brand_id": "OH", "total_handle": "1.5"},
        {"account_id": "8", "brand_id": "PA", "total_handle": None},
    ]


@pytest.mark.parametrize("content", [json_lines(), json_array(), ARRAY_OF_ARRAYS], ids=["lines", "objects", "arrays"])
def test_a_byte_order_mark_changes_nothing(read, content):
    assert values(read(BOM + content, NAMES)) == ROWS
    assert read(BOM + CSV).columns == list(NAMES)


def test_windows_line_ends_and_blank_lines_change_nothing_in_json_lines(read):
    assert values(read(b"\n" + json_lines().replace(b"\n", b"\r\n\r\n"))) == ROWS


def test_keys_may_come_in_another_order_or_be_left_out_in_a_row(read):
    content = b'{"total_handle":1.5,"brand_id":"OH","account_id":7}\n{"account_id":8,"brand_id":"PA"}\n'
    assert values(read(content)) == ROWS


@pytest.mark.parametrize("content", [b"", b" \n\t\r\n", BOM])
def test_an_empty_file_is_refused(read, content):
    with pytest.raises(InputError, match=r"rows\.dat is empty; Parquet, CSV, JSON Lines or a JSON array"):
        read(content)


@pytest.mark.parametrize("content", [b"[]", b"[{}]", b"{}\n{}", b"a,b\n", b"[[]]"])
def test_a_file_without_rows_is_refused(read, content):
    with pytest.raises(InputError, match="has no rows; at least one is needed"):
        read(content)


@pytest.mark.parametrize("kept", [4, 8, 11, 100, -1, -8, -100])
def test_a_truncated_parquet_file_is_refused(read, kept):
    with pytest.raises(InputError, match=r"rows\.dat is a truncated or damaged Parquet file"):
        read(parquet()[:kept])


@pytest.mark.parametrize("content", [b"\x7fELF\0\0", b"binf\0\0\0", b"\0" * 100])
def test_binary_that_is_not_parquet_is_refused_with_its_first_bytes(read, content):
    with pytest.raises(InputError, match="is binary and not Parquet") as refused:
        read(content)
    assert repr(content[:4]) in str(refused.value)


@pytest.mark.parametrize("content", [json.dumps(ROWS[0], indent=1).encode(), b'{"a": 1,\n "b": {"c": [2]}}'])
def test_a_single_object_over_several_lines_is_named_as_such(read, content):
    with pytest.raises(InputError, match="is one JSON object; JSON Lines"):
        read(content)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"account_id": 8', "is not JSON"),
        (b'{"account_id": 8} {"account_id": 9}', "is not JSON"),
        (b'{"account_id": 8},', "is not JSON"),
        (b"[8]", "is not an object"),
        (b"null", "is not an object"),
        (b'{"brand_id": "\xff"}', "is not JSON"),
    ],
)
def test_a_bad_line_of_json_lines_is_named(read, line, why):
    with pytest.raises(InputError, match=f"line 2 {why}"):
        read(b'{"account_id": 7}\n' + line + b'\n{"account_id": 9}\n')


@pytest.mark.parametrize("write", [json_lines, json_array], ids=["lines", "array"])
def test_nan_is_missing_and_infinity_is_left_to_the_contract(read, write):
    frame = read(write([{"total_handle": value} for value in (1.5, float("nan"), float("inf"), float("-inf"))]))
    assert frame["total_handle"].to_list() == [1.5, None, float("inf"), float("-inf")]


def test_a_truncated_array_is_refused(read):
    with pytest.raises(InputError, match=r"is not valid JSON .*; it may be truncated"):
        read(json_array()[:-9])


@pytest.mark.parametrize("content", [b"[1, 2]", b'[{"a": 1}, [1]]', b'["a"]', b"[null]"])
def test_an_array_of_anything_but_rows_of_one_kind_is_refused(read, content):
    with pytest.raises(InputError, match="JSON array of mixed values"):
        read(content)


@pytest.mark.parametrize("rows", [[[1, 2]], [[1, "OH", 2.0], [1]], [[1, "OH", 2.0, 4]]])
def test_an_array_of_arrays_must_be_as_wide_as_the_model(read, rows):
    with pytest.raises(InputError, match="the model has 3 features"):
        read(json_array(rows), NAMES)


@pytest.mark.parametrize("content", [b"a,b\n1,2,3\n", b"a,b\n\xff,1\n", b'a,b\n"1,2\n'])
def test_broken_csv_is_refused(read, content):
    with pytest.raises(InputError, match="cannot be read as CSV with a header"):
        read(content)


WRONG_KINDS = ["x", True, {"b": 1}, [1], {"b": [{}]}]


@pytest.mark.parametrize("wrong", WRONG_KINDS, ids=repr)
@pytest.mark.parametrize("write", [json_lines, json_array], ids=["lines", "array"])
def test_one_value_of_another_kind_is_kept_for_the_contract_and_never_made_null(read, write, wrong):
    frame = read(write([{"a": 1.5}, {"a": wrong}, {"a": None}]))

    assert frame["a"].is_null().to_list() == [False, False, True]
    assert float(frame["a"][0]) == 1.5
    assert frame["a"][1] in (wrong, json.dumps(wrong))


@pytest.mark.parametrize("wrong", WRONG_KINDS, ids=repr)
def test_neither_is_one_in_an_array_of_arrays(read, wrong):
    frame = read(json_array([[1.5], [wrong], [None]]), ["a"])

    assert frame["a"].is_null().to_list() == [False, False, True]


def test_rows_with_nested_values_keep_their_order_over_many_batches(read):
    n_rows = 140_000
    lines = [b'{"i":%d}' % i for i in range(n_rows)]
    lines[100_000] = b'{"i":100000,"extra":[1,{"b":2}]}'

    frame = read(b"\n".join(lines))

    assert frame["i"].to_list() == list(range(n_rows))
    assert frame["extra"].drop_nulls().to_list() == ['[1, {"b": 2}]']


@pytest.mark.parametrize("depth", [900, 5_000, 200_000])
@pytest.mark.parametrize(("start", "end"), [(b'{"a":', b"}"), (b"[", b"]")], ids=["objects", "arrays"])
def test_deep_nesting_cannot_crash_the_process(read, depth, start, end):
    for content in (start * depth + b"1" + end * depth, b'{"a":' + start * depth + b"1" + end * depth + b'}\n{"a":1}'):
        with suppress(InputError):
            assert read(content).height in (1, 2)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=200)
    | st.text(max_size=200).map(str.encode)
    | st.text(alphabet='[]{}:,"\n\\0123456789.eE-+aAntrufls\ud800', max_size=60).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    )
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    ).map(lambda value: json.dumps(value).encode())
    | st.lists(st.dictionaries(st.sampled_from("ab"), st.integers() | st.text(max_size=3) | st.floats())).map(
        json_lines
    )
)
@example(b'{"a":' + b"9" * 400 + b"}")
@example(b'{"a":"\\ud800"}\n{"a":[]}')
@example(b"a,a\n1,2")
@example(b'{"":null,"*":null}')
@example(b'{"*":null}')
@example(b'{"^.*$":1,"a":2}')
def test_any_bytes_end_in_rows_or_an_input_error(tmp_path, content):
    path = tmp_path / "any"
    path.write_bytes(content)
    with suppress(InputError):
        assert read_frame(path, ["a", "b"]).height > 0


def test_a_parquet_file_with_any_one_byte_changed_ends_in_rows_or_an_input_error(tmp_path):
    whole, chance, path = parquet(), random.Random(2), tmp_path / "any"  # noqa: S311
    n_refused = 0
    for _ in range(500):
        content = bytearray(whole)
        content[chance.randrange(len(whole))] = chance.randrange(256)
        path.write_bytes(content)
        try:
            assert read_frame(path).height > 0
            rows = open_rows(path)
            assert sum(chunk.height for chunk in rows.chunks(rows.columns, 10)) > 0
        except InputError:
            n_refused += 1
    assert n_refused > 100


@pytest.mark.parametrize(
    "content",
    [parquet(), json_lines(), json_array(), ARRAY_OF_ARRAYS, CSV],
    ids=["parquet", "lines", "objects", "arrays", "csv"],
)
def test_a_file_opened_for_reading_in_chunks_gives_the_same_rows_again_and_again(tmp_path, content):
    path = tmp_path / "any"
    path.write_bytes(content)

    rows = open_rows(path, NAMES)

    expected = read_frame(path, NAMES).select("total_handle", "brand_id")
    for size in (1, 2, 100):
        chunks = list(rows.chunks(["total_handle", "brand_id"], size))
        assert max(chunk.height for chunk in chunks) <= size
        assert [row for chunk in chunks for row in chunk.iter_rows()] == expected.rows()
    assert rows.n_rows == 2
    assert sorted(rows.columns) == sorted(NAMES)


@pytest.mark.parametrize("content", [b"", b"[]", b"a,b\n", parquet()[:50], b"PAR1", b"\0"])
def test_what_holds_no_rows_cannot_be_opened(tmp_path, content):
    (tmp_path / "any").write_bytes(content)
    with pytest.raises(InputError, match=r"any (is|has) "):
        open_rows(tmp_path / "any")


def test_a_parquet_file_without_rows_cannot_be_opened(tmp_path):
    pl.DataFrame(ROWS).clear().write_parquet(tmp_path / "any")
    with pytest.raises(InputError, match="any has no rows"):
        open_rows(tmp_path / "any")
