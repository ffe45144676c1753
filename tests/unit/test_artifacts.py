"""At stake: the committed sample files and base model are what everyone tries first, so they must be what they say.

They are regenerated once here; a byte that differs means a file was changed by hand or the program without a rerun.
"""

import json
import platform
import re
import runpy
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import xgboost as xgb
from polars.testing import assert_frame_equal

from tests.support import ROOT
from tests.support.simulated import FEATURE_NAMES

DATA, MODELS = ROOT / "data" / "churn", ROOT / "models" / "churn"
MAKE = runpy.run_path(str(ROOT / "data" / "make_artifacts.py"))
DATA_FILES = ("activity.parquet", "activity.jsonl", "feature_names_3.json", "X_test_sample_2.json")
MODEL_FILES = ("xgb_churn_model_2.bin", "xgb_churn_model_2.json")


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory) -> tuple[Path, Any]:
    root = tmp_path_factory.mktemp("artifacts")
    return root, MAKE["write_artifacts"](root)


@pytest.fixture
def sample() -> pl.DataFrame:
    # Polars orders the columns of JSON Lines as it pleases, so the order is asked for by name.
    return pl.read_ndjson(DATA / "X_test_sample_2.json").select(FEATURE_NAMES)


@pytest.fixture
def booster() -> xgb.Booster:
    return xgb.Booster(model_file=bytearray((MODELS / "xgb_churn_model_2.bin").read_bytes()))


def predict(booster: xgb.Booster, sample: pl.DataFrame) -> np.ndarray:
    values = sample.select(pl.all().cast(pl.Float32).fill_null(float("nan"))).to_numpy()
    return booster.predict(xgb.DMatrix(values, feature_names=sample.columns))


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA_FILES)
def test_regenerating_gives_the_committed_data_files_byte_for_byte(regenerated, name):
    root, _ = regenerated
    assert (root / "data" / "churn" / name).read_bytes() == (DATA / name).read_bytes()


@pytest.mark.slow
def test_regenerating_gives_the_committed_readme_of_the_data_but_for_versions(regenerated):
    root, _ = regenerated
    written, committed = (
        [line for line in (folder / "README.md").read_text().splitlines() if "These were written by" not in line]
        for folder in (root / "data" / "churn", DATA)
    )
    assert written == committed


@pytest.mark.slow
@pytest.mark.parametrize("name", MODEL_FILES)
def test_regenerating_gives_the_committed_model_files_byte_for_byte(regenerated, name):
    written_by = json.loads((MODELS / "xgb_churn_model_2.json").read_text())["version"]
    recorded = ".".join(map(str, written_by))
    if recorded != xgb.__version__:
        pytest.skip(f"the committed model is XGBoost {recorded}'s, and {xgb.__version__} is running")
    if platform.machine() not in {"x86_64", "AMD64"}:
        pytest.skip(f"the committed model was trained on x86-64; {platform.machine()} may round otherwise")
    root, _ = regenerated
    assert (root / "models" / "churn" / name).read_bytes() == (MODELS / name).read_bytes()


@pytest.mark.parametrize(("folder", "names"), [(DATA, DATA_FILES), (MODELS, MODEL_FILES)], ids=["data", "models"])
def test_each_readme_gives_the_size_and_sha256_of_the_files_beside_it(folder, names):
    readme = (folder / "README.md").read_text()
    stated = re.findall(r"^\| `([^`]+)` \| ([\d,]+) \| `([0-9a-f]{64})` \|$", readme, flags=re.MULTILINE)
    contents = {name: (folder / name).read_bytes() for name in names}
    assert stated == [(name, f"{len(raw):,}", sha256(raw).hexdigest()) for name, raw in contents.items()]
    assert {path.name for path in folder.iterdir()} == {*names, "README.md"}


@pytest.mark.slow
def test_the_model_readme_gives_the_held_out_auc_that_training_gives(regenerated):
    _, model = regenerated
    stated = re.search(r"AUC is \*\*(\d\.\d{4})\*\*", (MODELS / "README.md").read_text())
    assert stated is not None
    assert float(stated.group(1)) == pytest.approx(model.auc, abs=0.002)


@pytest.mark.slow
def test_churn_can_be_told_from_behaviour_but_not_perfectly(regenerated):
    _, model = regenerated
    assert 0.70 < model.auc < 0.86


@pytest.mark.slow
def test_held_out_probabilities_agree_with_how_many_churned(regenerated):
    _, model = regenerated
    assert model.mean_probability == pytest.approx(model.churned_share, abs=0.02)
    assert 0.2 < model.churned_share < 0.6


def test_feature_names_are_four_numbers_and_then_one_column_per_level():
    names = json.loads((DATA / "feature_names_3.json").read_text())
    assert names[:5] == ["total_deposit", "total_handle", "total_ngr", "months_active", "brand_id_AZ"]
    assert names[32:34] == ["brand_id_WY", "ben_login_id_BCCSB22"]
    assert names[39:41] == ["ben_login_id_wedgetraffic", "player_reg_product_BETTING"]
    assert names[-1] == "player_reg_product_RACEBOOK"
    assert len(names) == len(set(names)) == 45
    assert names == list(MAKE["FEATURE_NAMES"])


def test_the_booster_names_its_features_as_the_file_does(booster):
    assert booster.feature_names == json.loads((DATA / "feature_names_3.json").read_text())


def test_both_model_files_hold_the_same_booster(booster, sample):
    from_json = xgb.Booster(model_file=bytearray((MODELS / "xgb_churn_model_2.json").read_bytes()))
    assert np.array_equal(predict(booster, sample), predict(from_json, sample))


def test_the_booster_tells_sample_rows_apart(booster, sample):
    probability = predict(booster, sample)
    assert probability.min() < 0.1
    assert probability.max() > 0.8


def test_each_sample_line_is_an_encoded_row_in_model_order():
    lines = (DATA / "X_test_sample_2.json").read_text().splitlines()
    assert len(lines) == 500
    for line in lines:
        row = json.loads(line)
        assert tuple(row) == FEATURE_NAMES
        levels = list(row.values())[4:]
        assert all(type(level) is bool for level in levels)
        assert sum(levels) == 3, "one brand, one login and one product"
        assert all(value is None or type(value) is float for value in list(row.values())[:4])


def test_the_sample_keeps_missing_numbers_missing(sample):
    assert sample["months_active"].null_count() > 0
    assert sample["total_deposit"].null_count() == 0


def test_json_lines_hold_the_same_activity_as_parquet():
    parquet = pl.read_parquet(DATA / "activity.parquet")
    json_lines = pl.read_ndjson(DATA / "activity.jsonl", schema_overrides=dict(parquet.schema))
    assert_frame_equal(json_lines, parquet, check_exact=True)


def test_json_lines_write_dates_as_text_and_missing_ones_as_null():
    rows = [json.loads(line) for line in (DATA / "activity.jsonl").read_text().splitlines()]
    assert {row["activity_month"] for row in rows} == {
        f"{year}-{month:02}-01"
        for year in (2025, 2026)
        for month in range(1, 13)
        if (2025, 2) <= (year, month) <= (2026, 10)
    }
    assert all("ftd_date" in row for row in rows)
    assert any(row["ftd_date"] is None for row in rows)


def test_the_bundled_extract_is_a_few_thousand_rows_with_the_quirks_in_it():
    activity = pl.read_parquet(DATA / "activity.parquet")
    assert 3_000 <= activity.height <= 6_000
    assert activity["total_handle"].null_count() > 0
    assert activity.select("account_id", "activity_month").is_duplicated().any()
    assert (activity["reg_date"] > activity["activity_month"].dt.month_end()).any()
    assert (activity["ftd_date"] < activity["reg_date"]).any()


def test_the_command_line_explains_itself(capsys):
    with pytest.raises(SystemExit, match="0"):
        MAKE["main"](["--help"])
    assert "--root" in capsys.readouterr().out
