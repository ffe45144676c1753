"""At stake: each way in which a bad file once crashed, stalled or misled a reader stays shut.

Every test here failed before the reader was mended.
"""

# ruff: noqa: E501, RUF001

# Inputs are tables, and letters that look like others are what some of them are for.

import io
import json
import struct
from datetime import date

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from churn.data.formats import open_rows, read_frame
from churn.data.labels import Horizon
from churn.database.connection import parse_database_url
from churn.deployment.command_line import parse_account, parse_alias, parse_port
from churn.deployment.credentials import parse_secret
from churn.deployment.settings import load_settings
from churn.errors import ChurnError, CredentialsError, InputError, ModelFileError, UsageError
from churn.inference.bundle import Golden, parse_feature_names, read_bundle
from churn.inference.ubjson import parse_ubjson
from churn.monitoring.profiles import Profile
from churn.storage.places import Folder
from churn.workflows.erase import first_kept_week
from experiment_tracking import promote_model
from tests.support.hostile import corpus
from tests.support.hostile.harness import require_clear

NAMES = corpus.feature_names()


@pytest.fixture
def read(tmp_path):
    def read_bytes(content: bytes) -> pl.DataFrame:
        (tmp_path / "rows").write_bytes(content)
        return read_frame(tmp_path / "rows", NAMES)

    return read_bytes


def parquet(table: pa.Table, **options) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def model(**changes) -> bytes:
    document = json.loads(corpus.boosters()["gbtree json"])
    tree = document["learner"]["gradient_booster"]["model"]["trees"][0]
    for key, value in changes.items():
        (tree["tree_param"] if key in tree["tree_param"] else tree)[key] = value
    return json.dumps(document).encode()


@given(st.text())
def test_every_error_is_one_line_that_terminals_and_databases_take(text):
    message = str(ChurnError(f"{text} was found and something else is needed"))
    require_clear(message)
    message.encode()


def test_a_long_error_keeps_its_beginning_and_the_next_step_at_its_end():
    message = str(ChurnError(f"value {'x' * 1_000_000} is wrong; write it again"))
    assert message.startswith("value xxx")
    assert message.endswith("; write it again")


def test_json_lines_that_share_no_keys_are_refused_at_once(read):
    for n_keys, why in (
        (1_000, "different keys; rows that have their keys in common are"),
        (9_000, "at most 5000 are"),
    ):
        with pytest.raises(InputError, match=why):
            read(b"".join(b'{"k%d":1}\n' % (i % n_keys) for i in range(100_000 if n_keys == 1_000 else 9_000)))


@pytest.mark.parametrize(
    "content", [b'{"a":1,"a":2}\n{"a":1}\n', b'{"a":1}\n{"b":1,"a":2,"b":3}\n', b'[{"a":1,"a":2}]']
)
def test_an_object_with_a_key_twice_is_refused(read, content):
    with pytest.raises(InputError, match="occurs twice in one object"):
        read(content)


def test_a_key_that_comes_after_many_lines_is_kept(read):
    frame = read(b'{"a":1}\n' * 5_000 + b'{"a":1,"late":2}\n{"late" :3}\n')
    assert frame["late"].drop_nulls().to_list() == [2, 3]


@pytest.mark.parametrize("content", [b'[{"id":true},{"id":7}]', b'{"id":true}\n{"id":7}\n'])
def test_a_truth_value_among_numbers_does_not_become_the_number_1(read, content):
    assert read(content)["id"].to_list() == ["true", "7"]


def test_a_csv_row_with_fewer_fields_than_the_header_is_refused(read):
    for content in (b"a,b\n1,2\n3\n", b'a,b\n"1",2\n3\n'):
        with pytest.raises(
            InputError, match="1 fields in the row that ends on line 3, and its header 2; is the file cut"
        ):
            read(content)


def test_a_csv_with_columns_of_one_name_or_too_many_is_refused(read):
    with pytest.raises(InputError, match=r"repeated columns: \['a'\]"):
        read(b"a,b,a\n1,2,3\n")
    with pytest.raises(InputError, match="at most 5000 are read"):
        read(b"a," * 100_000 + b"\n1\n")


def test_a_csv_with_quotes_around_everything_has_missing_values_all_the_same(read):
    assert read(b'"a","b"\n"1",""\n').to_dicts() == [{"a": "1", "b": None}]


def test_a_parquet_bomb_is_refused_before_it_goes_off(tmp_path):
    ones = pa.array(["a" * 1_000_000]).dictionary_encode().take(pa.array(np.zeros(40_000, np.int64)))
    bombs = {
        "less than a byte each": parquet(pa.table({"a": pa.array(np.ones(3_000_000))}), compression="zstd"),
        "which no extract": parquet(pa.table({"a": ["a" * 1000] * 100_000}), compression="zstd", use_dictionary=False),
        "a text of 1000000 bytes": parquet(
            pa.table({"a": ones}), compression="zstd", dictionary_pagesize_limit=1 << 30
        ),
        "at most 5000 are read": parquet(pa.table({f"c{i}": [1] for i in range(6_000)})),
    }
    for why, content in bombs.items():
        (tmp_path / "rows").write_bytes(content)
        with pytest.raises(InputError, match=why):
            [len(chunk) for chunk in open_rows(tmp_path / "rows").chunks(["a"], 65_536)]


def test_parquet_text_that_is_no_text_is_refused(read):
    broken = pa.StringArray.from_buffers(1, pa.array([b"\xff"]).buffers()[1], pa.array([b"\xff"]).buffers()[2])
    with pytest.raises(InputError, match="damaged Parquet file"):
        read(parquet(pa.table({"a": broken})))


def test_a_parquet_page_that_fails_its_checksum_is_refused(read):
    content = bytearray(
        parquet(pa.table({"a": [1.5] * 9}), compression="none", use_dictionary=False, write_page_checksum=True)
    )
    at = content.index(struct.pack("<d", 1.5) * 9)
    content[at] ^= 1
    with pytest.raises(InputError, match="damaged Parquet file"):
        read(bytes(content))


@pytest.mark.parametrize(
    "changes",
    [
        {"size_leaf_vector": "2000000000"},
        {"categories": [1], "categories_nodes": [0], "categories_segments": [10**9], "categories_sizes": [10**9]},
        {"split_type": [1] * 15},
        {"split_conditions": [float("inf")] * 15},
        {"left_children": [10**30]},
    ],
    ids=str,
)
def test_a_tree_that_xgboost_would_crash_on_is_refused(changes):
    with pytest.raises(ModelFileError, match="model is damaged"):
        read_bundle(model(**changes), NAMES, "model")


def test_a_model_file_with_a_key_twice_is_refused_since_xgboost_may_take_the_other():
    data = corpus.boosters()["gbtree json"]
    with pytest.raises(ModelFileError, match="key 'trees' occurs twice"):
        read_bundle(data.replace(b'"trees":', b'"trees":[],"trees":', 1), NAMES, "model")
    with pytest.raises(ValueError, match="twice in one object"):
        parse_ubjson(b"{U\x01aTU\x01aF}")


def test_a_model_file_that_is_a_bomb_is_refused():
    for data in (
        b'{"a":[' + b"[]," * 2_000_000 + b"0]}",
        b"{L" + struct.pack(">q", 1) + b"a[" + b"Z" * 3_000_000 + b"]}",
    ):
        with pytest.raises(ModelFileError, match="model is damaged"):
            read_bundle(data, NAMES, "model")


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "null", "[" * 100_000, '{"rows":[],"scores":[]}', '{"rows":[[1]],"scores":[]}', '{"rows":[[1]],"scores":[2]}',
        '{"rows":[[1],[1,2]],"scores":[0,0]}', '{"rows":[[1]],"scores":[null]}', '{"rows":[["x"]],"scores":[0.5]}',
    ],
)  # fmt: skip
def test_golden_rows_that_prove_nothing_are_refused(text):
    with pytest.raises(ModelFileError, match=r"golden rows .*log the model again"):
        Golden.from_json(text)


@pytest.mark.parametrize(
    "features",
    [
        "x", [1], [{"feature": "a", "edges": [1e999], "counts": [1, 1, 1]}], [{"feature": "a", "edges": "123", "counts": [1] * 5}],
        [{"feature": "a", "edges": [2, 1], "counts": [1] * 4}], [{"feature": 1, "edges": [], "counts": [1, 1]}],
        [{"feature": "a", "levels": ["x", "x"], "counts": [1] * 3}], [{"feature": "a", "edges": [], "counts": [2**62, 2**62]}],
        [{"feature": "a", "edges": [], "counts": [1, 1]}] * 2, [{"feature": "a", "edges": [10**400], "counts": [1] * 3}],
    ],
)  # fmt: skip
def test_a_profile_that_cannot_be_counted_into_is_refused(features):
    with pytest.raises(InputError, match="profile"):
        Profile.from_json(json.dumps({"format": 1, "features": features}))


def test_a_profile_nested_too_deep_is_refused():
    with pytest.raises(InputError, match="not a profile"):
        Profile.from_json("[" * 100_000)


def test_names_that_xgboost_would_cut_short_are_refused():
    with pytest.raises(ModelFileError, match="cannot be printed"):
        parse_feature_names(b'["a\\u0000b", "a\\u0000c"]', "names")


@pytest.mark.parametrize(
    "secret",
    ["[" * 100_000, '{"username":"a\\u0000","password":"p"}', '{"username":"u","password":"\\ud800"}', '{"username":"u","password":"p","host":[1]}'],
)  # fmt: skip
def test_a_secret_that_cannot_be_a_login_is_refused(secret):
    with pytest.raises(CredentialsError, match="secret 'name'"):
        parse_secret(secret, "name", load_settings())


def test_the_keys_of_a_secret_that_are_not_ours_are_not_repeated():
    with pytest.raises(CredentialsError) as refused:
        parse_secret('{"hunter2": "x", "host": "h"}', "name", load_settings())
    assert "hunter2" not in str(refused.value)
    assert "['host']" in str(refused.value)


@pytest.mark.parametrize("url", ["postgresql://u:%00@h/db", "postgresql://u:pa@ss@h/db", "postgresql://u:\udcff@h/db"])
def test_a_database_url_that_cannot_be_sent_is_refused_without_its_password(url):
    with pytest.raises(UsageError, match="percent-encoded") as refused:
        parse_database_url(url, "CHURN_DATABASE_URL")
    assert "ss@" not in str(refused.value)


@pytest.mark.parametrize("prefix", ["/etc/", "/", "../", "geography-us/../../"])
def test_a_prefix_leads_nowhere_but_into_the_folder(tmp_path, prefix):
    (tmp_path / "local").mkdir()
    (tmp_path / "beside").write_text("")
    assert Folder(tmp_path / "local").list(prefix) == []


def test_a_letter_that_only_looks_like_ascii_is_no_letter_of_an_alias():
    import argparse

    with pytest.raises(UsageError, match="is not allowed"):
        parse_alias(argparse.Namespace(alias="champion\N{LATIN SMALL LETTER LONG S}"))


@pytest.mark.parametrize("text", ["0", "65536", "-1", "９", "1e3", "9" * 5_000, ""])
def test_a_port_or_account_out_of_range_is_wrong_usage(text):
    import argparse

    with pytest.raises(argparse.ArgumentTypeError, match="is not a port"):
        parse_port(text)
    if text in ("9" * 5_000, ""):
        with pytest.raises(argparse.ArgumentTypeError, match="is not an account_id"):
            parse_account(text)


@pytest.mark.parametrize("n_weeks", [-1, 10**20])
def test_a_number_of_weeks_that_no_calendar_holds_is_wrong_usage(n_weeks):
    with pytest.raises(UsageError, match="weeks cannot be kept"):
        first_kept_week(date(2026, 11, 4), n_weeks, Horizon(3, 7))


@pytest.mark.parametrize("share", ["nan", "inf", "-1", "1e308"])
def test_a_share_that_is_none_is_wrong_usage(share, capsys):
    with pytest.raises(SystemExit) as end:
        promote_model.main(["share", f"--share={share}"])
    assert end.value.code == 2
    assert "use 0 % to 100 %" in capsys.readouterr().err


def test_a_file_of_variants_without_end_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        promote_model.main(["status", "--all", "/dev/zero"])
    assert end.value.code == 2
    assert "cannot be read" in capsys.readouterr().err
