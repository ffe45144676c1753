"""At stake: analysts act on "why". Every stored reason must be XGBoost's own exact value and say what it is about."""

import io
import json
import re
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import xgboost as xgb

from churn.cli.main import main
from churn.data.activity import check_activity
from churn.data.features import encode, features, plan_encoding
from churn.deployment.services import Deployment
from churn.errors import InputError
from churn.variants import Variant
from churn.weeks import default_as_of, month_start
from churn.workflows.score import score_fleet
from tests.support.batches import week_request
from tests.support.inputs import NAMES, activity, as_parquet, encoded, last_active, monday, put_input, register_bundled
from tests.support.site import Run, Site, bundled, put_model_files

US = Variant("us")
SOURCE_COLUMNS = [
    "total_deposit", "total_handle", "total_ngr", "months_active", "brand_id", "ben_login_id", "player_reg_product",
]  # fmt: skip


def parent_of(name: str) -> str:
    return next(parent for parent in SOURCE_COLUMNS if name == parent or name.startswith(f"{parent}_"))


def expected_reasons(rows: pd.DataFrame) -> pd.DataFrame:
    """By account: what ``pred_contribs`` gives, summed to parents, and the bias."""
    table = encoded(rows, monday() + pd.Timedelta(days=6))
    booster = xgb.Booster()
    booster.load_model(bytearray(bundled("xgb_churn_model_2.bin")))
    data = xgb.DMatrix(table[NAMES].astype("float32"), feature_names=NAMES)
    values = pd.DataFrame(booster.predict(data, pred_contribs=True), columns=[*NAMES, "bias"])
    sums = values[NAMES].T.groupby(parent_of).sum().T.assign(bias=values["bias"])
    return sums.set_axis(table["account_id"], axis=0)


@pytest.fixture
def us(site: Site, log_model: Run) -> pd.DataFrame:
    """One variant, registered, with activity in S3 that has a brand the model does not know."""
    register_bundled(site, log_model, US.key)
    rows = activity()
    rows.loc[rows.index % 7 == 0, "brand_id"] = "ZZ"
    put_input(site, US.key, as_parquet(rows))
    return rows


@pytest.fixture
def churn(run_main: Run) -> Run:
    return partial(run_main, main)


def test_every_stored_reason_is_exact_adds_up_and_tells_its_value(
    site: Site, us: pd.DataFrame, deployment: Deployment
) -> None:
    outcome = deployment.scorer().score_variant(week_request(monday()).of(US))

    assert (outcome.record.scored_by, outcome.engine.fallback_reason) == ("tables", None)
    wanted = expected_reasons(us)
    table = encoded(us, monday()).set_index("account_id")
    held = site.current()
    assert held["account_id"].to_list() == wanted.index.tolist()
    brands = us.sort_values("activity_month", kind="stable").groupby("account_id")["brand_id"].last()
    for row in held.iter_rows(named=True):
        account = row["account_id"]
        sizes = {reason["feature"]: reason["contribution"] for reason in row["reasons"]}
        values = {reason["feature"]: reason["value"] for reason in row["reasons"]}
        assert sizes == pytest.approx(wanted.loc[account].drop("bias").to_dict(), abs=1e-4)
        assert [*sizes.values()] == sorted(sizes.values(), key=abs, reverse=True)
        margin = np.log(row["churn_probability"] / (1 - row["churn_probability"]))
        assert sum(sizes.values()) + row["bias"] == pytest.approx(margin, abs=1e-4)
        assert values["brand_id"] == ("(other)" if brands[account] == "ZZ" else brands[account])
        deposit = table.loc[account, "total_deposit"]
        assert (
            values["total_deposit"] == "(missing)"
            if np.isnan(deposit)
            else float(values["total_deposit"]) == (pytest.approx(deposit, rel=1e-5))
        )
        first = row["reasons"][0]
        assert row["reason_1"] == f"{first['feature']} = {first['value']} ({first['contribution']:+.2f})"
    assert {"(missing)"} & {reason["value"] for row in held["reasons"] for reason in row}
    assert {"(other)"} & {reason["value"] for row in held["reasons"] for reason in row}


def test_the_batch_keeps_what_drove_its_scores(site: Site, us: pd.DataFrame, deployment: Deployment) -> None:
    outcome = deployment.scorer().score_variant(week_request(monday()).of(US))

    since = month_start(outcome.record.as_of, -3)
    at_risk = [account for account, month in last_active(us, outcome.record.as_of).items() if month >= since]
    means = expected_reasons(us).drop(columns="bias").loc[at_risk].abs().mean().to_dict()
    ((importance, bias, other),) = site.rows(
        site.churn, "SELECT importance, bias, other_source_columns FROM scoring_batches"
    )
    assert importance == pytest.approx(means, abs=1e-4)
    assert list(outcome.record.importance or {}) == sorted(means, key=lambda name: -means[name])
    assert bias == pytest.approx(expected_reasons(us)["bias"].iloc[0], abs=1e-4)
    assert other == []


def test_a_model_of_other_features_has_its_reasons_in_the_compact_form(
    site: Site, log_model: Run, deployment: Deployment, churn: Run
) -> None:
    names = ["visits", "spend (eur)", "idle", "brand_id_OH", "brand_id_PA"]  # idle splits no tree
    rng = np.random.default_rng(0)
    levels = np.eye(3)[rng.integers(0, 3, 200)].T[:2]
    matrix = np.column_stack([rng.integers(0, 9, 200), rng.normal(size=200), np.zeros(200), *levels])
    data = xgb.DMatrix(matrix, matrix[:, 0] + matrix[:, 1] > rng.normal(4, 2, 200), feature_names=names)
    booster = xgb.train({"objective": "binary:logistic", "max_depth": 3}, data, 5)
    put_model_files(
        site, US.prefix, model=bytes(booster.save_raw("ubj")), names=json.dumps(names).encode(), sample=None
    )
    sample = pl.DataFrame(matrix, schema=names).with_columns(account_id=pl.int_range(200) + 1)
    put_input(site, US.key, sample.write_csv().encode(), "activity.csv")
    site.put(f"{US.prefix}data/churn/X_test_sample_2.json", json.dumps(sample.head(5).to_dicts()).encode())
    said = log_model("--geography", "us")
    assert said.status == 0, said

    outcome = deployment.scorer().score_variant(week_request(monday()).of(US))

    assert outcome.record.other_source_columns == names[:3]
    values = booster.predict(data, pred_contribs=True)
    for i, row in enumerate(site.current().iter_rows(named=True)):
        sizes = {reason["feature"]: reason["contribution"] for reason in row["reasons"]}
        wanted = {name: values[i, j] for j, name in enumerate(names[:3])} | {"brand_id": values[i, 3] + values[i, 4]}
        assert sizes == pytest.approx(wanted, abs=1e-4)
    printed = churn("explain", "--account", "7", "--variant", "us")
    assert printed.status == 0, printed
    assert "spend (eur)" in printed.out
    assert "idle" not in printed.out  # it contributes 0


@pytest.mark.parametrize("booster_name", ["gbtree", pytest.param("dart", marks=pytest.mark.slow)])
def test_windows_are_summed_by_source_column_and_the_largest_is_shown_by_name(
    site: Site, log_model: Run, deployment: Deployment, churn: Run, booster_name: str
) -> None:
    names = [
        "total_handle", "total_handle_sum_3m", "total_ngr_mean_6m", "months_since_active", "active_months_3m",
        "months_since_reg_date", "brand_id_OH", "brand_id_PA", "total_handle_sum_120m",
    ]  # fmt: skip
    groups = {
        "total_handle": [0, 1, 8], "total_ngr": [2], "activity": [3, 4], "reg_date": [5], "brand_id": [6, 7],
    }  # fmt: skip
    rows, as_of = pl.read_parquet(io.BytesIO(as_parquet(activity()))), default_as_of(monday(), datetime.now(UTC).date())
    made = features(check_activity(rows).rows, as_of, names)
    matrix = encode(made, plan_encoding(names, made.columns))
    label = np.nan_to_num(matrix[:, 1]) < np.median(np.nan_to_num(matrix[:, 1])) + matrix[:, 6]
    data = xgb.DMatrix(matrix, label, feature_names=names)
    parameters = {"objective": "binary:logistic", "booster": booster_name, "max_depth": 3, "min_child_weight": 0.1}
    booster = xgb.train(parameters, data, 6)
    sample = pl.DataFrame(matrix, schema=names).head(5).to_dicts()
    put_model_files(
        site,
        US.prefix,
        model=bytes(booster.save_raw("ubj")),
        names=json.dumps(names).encode(),
        sample=json.dumps(sample).replace("NaN", "null").encode(),
    )
    put_input(site, US.key, as_parquet(activity()))
    site.put(f"{US.prefix}data/churn/columns.json", json.dumps({"words": OWN_WORDS}).encode())
    assert log_model("--geography", "us").status == 0

    outcome = deployment.scorer().score_variant(week_request(monday()).of(US))

    assert outcome.record.n_short_windows == 1
    assert outcome.record.scored_by == ("tables" if booster_name == "gbtree" else "xgboost")
    values, place = booster.predict(data, pred_contribs=True), {id_: i for i, id_ in enumerate(made["account_id"])}
    for row in site.current().iter_rows(named=True):
        i = place[row["account_id"]]
        assert row["churn_probability"] == pytest.approx(booster.inplace_predict(matrix[i : i + 1])[0], abs=1e-6)
        for reason in row["reasons"]:
            of_column = groups[reason["feature"]]
            assert reason["contribution"] == pytest.approx(values[i, of_column].sum(), abs=1e-4)
            if reason["feature"] == "brand_id":
                assert reason["window"] is None
                continue
            shown = names.index(reason["window"] or reason["feature"])
            assert shown in of_column
            assert abs(values[i, shown]) >= np.abs(values[i, of_column]).max() - 1e-4
            stored = np.nan if reason["value"] == "(missing)" else np.float32(reason["value"])
            np.testing.assert_equal(stored, matrix[i, shown])
        first = row["reasons"][0]
        assert row["reason_1"].startswith(f"{first['window'] or first['feature']} = {first['value']} (")
        assert row["reason_1_text"] == in_words(first)
    row = next(row for row in site.current().iter_rows(named=True) if row["reasons"][0]["window"])
    printed = churn("explain", "--account", str(row["account_id"]), "--variant", "us")
    assert in_words(row["reasons"][0]) in printed.out
    assert re.search(rf"{row['reasons'][0]['window']} +{row['reasons'][0]['value']}", printed.out)


OWN_WORDS = {"total_handle": {"label": "stakes {level} <b>", "unit": "EUR"}, "total_ngr": {"label": "revenue"}}
SENTENCES = {
    **{
        f"total_handle{window}": (f"No stakes {{}} <b> in the {which}", f"Stakes {{}} <b> of [] EUR in the {which}")
        for window, which in {"": "latest month", "_sum_3m": "last 3 months", "_sum_120m": "last 120 months"}.items()
    },
    "total_ngr_mean_6m": ("No revenue in the last 6 months", "Revenue of [] a month over the last 6 months"),
    "months_since_active": ("Active in the last month", "No activity for [] months"),
    "active_months_3m": ("No activity in the last 3 months", "Active in [] of the last 3 months"),
    "months_since_reg_date": ("Registration in this month", "Registration [] months ago"),
    "brand_id": ("", "State or brand: {}"),
}  # fmt: skip


def in_words(reason: dict[str, Any]) -> str:
    """What the database shall say of a reason."""
    low, high = SENTENCES[reason["window"] or reason["feature"]]
    if (value := reason["value"]) == "(missing)":
        said = "No activity on record" if reason["window"] == "months_since_active" else "No registration on record"
    elif reason["feature"] == "brand_id":
        said = high.replace("{}", value)
    else:
        number = f"{float(value):,.2f}".rstrip("0").rstrip(".")
        said = (low if float(value) == 0 else high).replace("{}", value).replace("[]", number)
        said = said.replace(" 1 months", " 1 month")
    return f"{said} ({'raises' if reason['contribution'] > 0 else 'lowers'} risk)"


def test_without_reasons_a_batch_has_none_and_says_how_to_get_them(
    site: Site, us: pd.DataFrame, deployment: Deployment, churn: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHURN_REASONS", "false")
    account = int(us["account_id"].iloc[0])

    assert churn("score", US.key).status == 0

    assert site.current()["reasons"].null_count() == us["account_id"].nunique()
    assert "CHURN_REASONS=true" in churn("explain", "--account", str(account), "--variant", "us").out


def test_what_tables_cannot_hold_is_explained_by_xgboost_and_the_batch_says_so(
    site: Site, log_model: Run, deployment: Deployment
) -> None:
    names = ["total_deposit", "total_ngr"]
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(300, 2)).astype(np.float32) ** 2
    data = xgb.DMatrix(matrix, matrix[:, 0] > matrix[:, 1], feature_names=names)
    booster = xgb.train({"objective": "binary:logistic", "booster": "dart", "rate_drop": 0.5}, data, 5)
    put_model_files(site, US.prefix, model=bytes(booster.save_raw("ubj")), names=json.dumps(names).encode(), sample=b"")
    rows = pl.DataFrame(matrix, schema=names).with_columns(account_id=pl.int_range(300))
    site.put(f"{US.prefix}data/churn/X_test_sample_2.json", json.dumps(rows.head(5).to_dicts()).encode())
    put_input(site, US.key, rows.write_csv().encode(), "activity.csv")
    said = log_model("--geography", "us")
    assert said.status == 0, said

    outcome = deployment.scorer().score_variant(week_request(monday()).of(US))

    assert site.rows(site.churn, "SELECT scored_by FROM scoring_batches") == [("xgboost",)]
    assert outcome.engine.fallback_reason == "booster dart"
    held = np.array([[{r["feature"]: r["contribution"] for r in row}[name] for name in names]
                     for row in site.current()["reasons"]])  # fmt: skip
    np.testing.assert_allclose(held, booster.predict(data, pred_contribs=True)[:, :2], atol=1e-4)


def test_explaining_an_account_shows_each_feature_with_a_bar_and_the_sum(
    us: pd.DataFrame, deployment: Deployment, churn: Run
) -> None:
    deployment.scorer().score_variant(week_request(monday()).of(US))
    account = int(us["account_id"].iloc[0])

    printed = churn("explain", "--account", str(account), "--variant", "us").out

    assert f"account {account} of geography-us, week of {monday()}: churn probability 0." in printed
    for parent in SOURCE_COLUMNS:
        line = next(line for line in printed.splitlines() if line.strip().startswith(parent))
        assert "█" in line
    wanted = expected_reasons(us).loc[account]
    assert f"{wanted.sum():+.3f}" in next(line for line in printed.splitlines() if line.strip().startswith("sum"))


def test_explaining_what_is_not_there_says_what_is(us: pd.DataFrame, deployment: Deployment, churn: Run) -> None:
    churn("explain", "--account", "1", "--variant", "us").require_one_line("'us'", "none yet", status=2)
    deployment.scorer().score_variant(week_request(monday()).of(US))
    account = int(us["account_id"].iloc[0])

    assert f"account {account} of geography-us" in churn("explain", "--account", str(account)).out
    of_none = ("no current prediction of base", "and none of any variant")
    churn("explain", "--account", "1").require_one_line(*of_none, status=2)
    churn("explain", "--account", "1", "--variant", "us").require_one_line("account 1", "geography-us", status=2)
    churn("explain", "--account", "1", "--variant", "ussr").require_one_line("'ussr'", "geography-us", status=2)
    churn("explain", "--account", "1", "--week", "2026-11-17").require_one_line("2026-11-17", "Monday", status=2)


def test_dagster_shows_the_importances_and_who_scored(us: pd.DataFrame, deployment: Deployment) -> None:
    from orchestration.assets.metadata import describe

    outcome = deployment.scorer().score_variant(week_request(monday()).of(US))

    shown = describe(outcome, lambda _name, _version: "http://mlflow")["generate_predictions"]
    rows = [line.strip("| ").split(" | ") for line in str(shown["importance"].value).splitlines() if "█" in line]
    drawn = {name.replace("\\", ""): float(size) for name, size, _ in rows}
    assert drawn == pytest.approx(outcome.record.importance, abs=5e-4)
    assert all(len(bar) == round(30 * float(size) / max(drawn.values())) for _, size, bar in rows)
    assert shown["computed_by"] == "tables compiled from the model's trees"


def test_failed_variants_keep_nothing_of_their_models_in_memory(us: pd.DataFrame, deployment: Deployment) -> None:
    ((_, error),) = score_fleet(deployment.scorer(), [US.key], week_request(monday(weeks_ago=200)), lambda *_: None)

    assert isinstance(error, InputError)
    assert "score a later week" in str(error)
    assert (error.__traceback__, error.__context__) == (None, None)


def test_a_categorical_models_reasons_are_exact_and_show_the_levels(
    site: Site, log_model: Run, deployment: Deployment
) -> None:
    rows = activity()
    rows["plan"] = np.array(["gold", "basic", None, "trial"])[rows["account_id"] % 4]
    last = encoded(rows, monday())[["account_id", "total_deposit"]].merge(
        rows.groupby("account_id")[["brand_id", "plan"]].last().reset_index(), how="left"
    )
    frame = last[["total_deposit", "brand_id", "plan"]].astype({"brand_id": "category", "plan": "category"})
    data = xgb.DMatrix(frame, frame["plan"].isin(["gold"]) ^ (frame.index % 3 == 0), enable_categorical=True)
    booster = xgb.train({"objective": "binary:logistic", "max_depth": 3, "min_child_weight": 0.1}, data, 5)
    sample = last.assign(expected_probability=booster.predict(data))[[*frame.columns, "expected_probability"]]
    files = {"model": bytes(booster.save_raw("ubj")), "names": json.dumps(list(frame.columns)).encode()}
    lines = sample.to_json(orient="records", lines=True).encode()
    put_model_files(site, US.prefix, **files, sample=lines.replace(b'"gold"', b'"golden"'))
    put_input(
        site, US.key, as_parquet(rows.assign(plan=rows["plan"].replace("trial", " Trial").replace("basic", "new")))
    )
    refused = log_model("--geography", "us")
    assert refused.status == 1
    assert "rows with a plan that the model does not know; it knows basic, gold, trial: correct" in refused.err
    put_model_files(site, US.prefix, **files, sample=lines)
    assert log_model("--geography", "us").status == 0

    outcome = deployment.scorer().score_variant(week_request(monday()).of(US))

    assert (outcome.record.scored_by, outcome.engine.fallback_reason) == ("tables", None)
    assert outcome.counts.unknown_levels["plan"].keys() == {"new"}
    matrix = np.column_stack([frame["total_deposit"], frame["brand_id"].cat.codes, frame["plan"].cat.codes])
    plans = last["plan"].fillna("(missing)").replace("basic", "(other)")
    matrix[:, 2] = np.where(plans == "(missing)", np.nan, np.where(plans == "(other)", 3, matrix[:, 2]))
    expected = xgb.DMatrix(matrix.astype(np.float32), feature_names=list(frame.columns), feature_types=["q", "c", "c"])
    held = site.current()
    assert held["account_id"].to_list() == last["account_id"].to_list()
    assert held["churn_probability"].to_list() == pytest.approx(booster.predict(expected).tolist(), abs=1e-6)
    values = [{reason["feature"]: reason["value"] for reason in row} for row in held["reasons"]]
    assert [row["plan"] for row in values] == plans.tolist()
    assert [row["brand_id"] for row in values] == last["brand_id"].tolist()
    sizes = [
        [{reason["feature"]: reason["contribution"] for reason in row}[name] for name in frame]
        for row in held["reasons"]
    ]
    np.testing.assert_allclose(sizes, booster.predict(expected, pred_contribs=True)[:, :3], atol=1e-6)
    with pytest.raises(InputError, match=r"categorical features \(brand_id, plan\) cannot be trained here; use --feat"):
        deployment.trainer(n_trials=1).train_variant(US, monday(), dry_run=True)
