"""At stake: a variant with other columns than the contract's is labelled, evaluated and explained by its own, and a
declaration that cannot be meant is refused before a model is registered with it.
"""

import json
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from churn.data.activity import check_activity, counts_by_rule
from churn.data.columns import Columns, one_hot_columns
from churn.data.features import encode, features, is_active, plan_encoding
from churn.data.sample_rows import compare_with_activity
from churn.data.scoring_rows import prepare
from churn.errors import InputError, UnlabelledError
from churn.evaluation.segments import Levels, evaluate_segments
from tests.support.simulated import FEATURE_NAMES, simulate_activity
from tests.support.site import bundled

OWN = Columns(activity=("logins", "stakes"), segments=("device",), revenue=None)


def test_a_declaration_survives_json():
    for columns in (Columns(), OWN, Columns(one_hot=("device", "sport")), Columns(max_money=1e10)):
        assert Columns.from_json(columns.to_json(), "a file") == columns


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"activity": []}', '{"activity": "logins"}', '{"activity": [1]}', '{"activity": [""]}',
        '{"activity": ["logins"], "revenue": 1}', '{"activity": ["logins"], "segments": {"device": 1}}',
        '{"activity": ["logins"], "segment": ["device"]}', '{"max_money": 0}', '{"max_money": "1e9"}',
        '{"max_money": true}', f'{{"max_money": 1{"0" * 400}}}',
        '{"max_money": 1e999}', '{"max_money": 1e9, "segments": ["device"]}',
        '{"words": []}', '{"words": {"a": {}}}', '{"words": {"a": {"label": 1}}}',
        '{"words": {"a": {"label": "\\u001b"}}}',
        '{"words": {"a": {"label": "b", "lowest": "c"}}}', f'{{"words": {{"a": {{"label": "{"b" * 4000}"}}}}}}',
    ],
)  # fmt: skip
def test_what_is_no_declaration_is_refused_with_an_example(text: str):
    with pytest.raises(InputError, match=r"columns\.json is no declaration of columns .*\"revenue\": \"total_ngr\""):
        Columns.from_json(text, "columns.json")


def test_declared_columns_must_exist():
    OWN.require(["logins", "stakes", "device", "account_id"], "the file")
    with pytest.raises(InputError, match=r"the file has columns .*device.* lacks the declared logins, stakes"):
        OWN.require(["device"], "the file")


@pytest.mark.parametrize("name", ["account_id", "activity_month", "brand_id", "reg_date", "known_at", "tracker_id"])
def test_a_column_that_cannot_measure_activity_is_refused_at_registration(name: str):
    with pytest.raises(InputError, match=rf"the file: {name} \(.*cannot measure activity"):
        Columns(activity=("total_deposit", name), segments=(), revenue=None).require(
            [name, "total_deposit"], "the file"
        )


def test_a_column_that_is_declared_twice_counts_once():
    declared = Columns.from_json('{"activity": ["a", "b", "a"], "segments": ["d", "d"]}', "a file")
    assert (declared.activity, declared.segments) == (("a", "b"), ("d",))


def test_activity_is_what_the_variant_declares_even_where_a_csv_file_holds_texts():
    rows = pl.DataFrame({"logins": ["0", "3", "", None], "stakes": ["0.0", "0", "1.5", None], "device": ["a"] * 4})

    assert is_active(rows, OWN.activity).to_list() == [False, True, True, False]
    with pytest.raises(UnlabelledError, match=r"total_deposit.*columns\.json"):
        is_active(rows)


def test_a_variant_without_segments_is_evaluated_as_a_whole():
    facts = pl.DataFrame({
        "account_id": [1, 2], "activity_month": [date(2026, 1, 1)] * 2, "known_at": [date(2026, 1, 31)] * 2,
        "device": ["web", "ios"],
    }).with_columns(pl.col("known_at").cast(pl.Datetime("us", "UTC")))  # fmt: skip
    ids = np.array([1, 2])

    assert Levels(facts, ["device"]).known(ids, date(2026, 2, 1))["device"].to_list() == ["web", "ios"]
    none = Levels(facts).known(ids, date(2026, 2, 1))
    assert evaluate_segments(none, ids > 1, np.array([0.2, 0.3]), None) == []


def test_the_one_hot_groups_of_a_model_are_found_in_its_sample():
    rng = np.random.default_rng(1)
    names = ["stakes", "sport_beach_volley", "sport_beach_soccer", "sport_futebol", "is_new", "is_vip", "device_web",
             "device_ios"]  # fmt: skip
    sport, device = np.eye(3)[rng.integers(0, 3, 200)], np.eye(3)[rng.integers(0, 3, 200)][:, :2]
    flags = rng.random((200, 2)) < 0.3
    matrix = np.column_stack([rng.random(200), sport, flags, device]).astype(np.float32)

    assert one_hot_columns(names, matrix) == ("sport", "device")
    assert one_hot_columns(names, matrix[:10]) == ()
    sample = pl.read_ndjson(bundled("X_test_sample_2.json")).select(FEATURE_NAMES).cast(pl.Float32).to_numpy()
    assert one_hot_columns(FEATURE_NAMES, sample) == Columns().segments


@pytest.fixture(scope="module")
def activity() -> pl.DataFrame:
    return simulate_activity(n_accounts=200, first_month=date(2025, 2, 1), n_months=21, seed=3)


def test_a_sample_made_as_here_equals_the_features_and_one_in_other_units_is_reported(activity: pl.DataFrame):
    names = ["total_deposit", "total_handle", "months_active", "brand_id_OH", "total_handle_sum_3m"]
    rows = features(activity, date(2026, 5, 31), names)
    matrix = encode(rows, plan_encoding(names, rows.columns))

    same = compare_with_activity(rows["account_id"], matrix, names, activity)
    in_cents = matrix.copy()
    in_cents[:, 0] *= 100
    other = compare_with_activity(rows["account_id"], in_cents, names, activity)

    assert same is not None
    assert "the sample equals" in same
    assert other is not None
    assert "1 of the sample's features differ" in other
    assert f": total_deposit in {(matrix[:, 0] > 0).sum()};" in other
    assert compare_with_activity(rows["account_id"] + 10**9, matrix, names, activity) is None


def test_encoded_rows_have_one_source_column_for_each_one_hot_group(tmp_path: Path):
    names = ("stakes", "device_web", "device_ios")
    path = tmp_path / "rows.json"
    path.write_text(
        '{"stakes":1.0,"device_web":1,"device_ios":0}\n{"stakes":2.0,"device_web":1,"device_ios":1}\n'
        '{"stakes":2.0,"device_web":0,"device_ios":0}\n'
    )

    rows = prepare(path, names, date(2026, 1, 1), 0.5, "rows.json", declared=Columns(one_hot=("device",)))
    ((_, packed),) = rows.chunks()

    assert rows.encoding.source_columns == ("stakes", "device")
    assert packed.levels.tolist() == [[0, 2]]
    assert counts_by_rule(rows.counts.quarantined) == {"device_not_one_hot": 1}
    unknown = prepare(path, names, date(2026, 1, 1), 0.5, "rows.json")
    assert unknown.encoding.source_columns == names


def test_a_declaration_is_one_line_of_json():
    assert json.loads(OWN.to_json()) == {
        "activity": ["logins", "stakes"], "segments": ["device"], "revenue": None, "one_hot": None,
    }  # fmt: skip


def test_a_limit_on_money_is_the_variants():
    assert Columns.from_json('{"max_money": 1e10}', "columns.json") == Columns(max_money=1e10)
    assert Columns.from_json('{"max_money": 1e8}', "columns.json") == Columns()
    rows = simulate_activity(n_accounts=5, first_month=date(2025, 1, 1), n_months=2, seed=1)
    rows = rows.with_columns(total_handle=pl.lit(2e9))  # of rupiah
    assert check_activity(rows).rows.is_empty()
    assert check_activity(rows, max_money=1e10).quarantined.is_empty()
