"""At stake: what scores every week is what this script registered. It must be the very model of the files, able to
prove so, and a file that will not do must leave nothing behind that a job or a person could mistake for a model.
"""

import io
import json
import time
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pandas as pd
import polars as pl
import pytest
import xgboost as xgb

from churn.deployment.services import Deployment
from churn.variants import Variant
from tests.support import ROOT
from tests.support.site import Run, Site, bundled, put_model_files

NAMES: list[str] = json.loads(bundled("feature_names_3.json"))


@pytest.fixture
def client(deployment: Deployment) -> Any:
    """MLflow's own client, on the deployment's database, by which what was logged is judged."""
    import mlflow

    deployment.registry(read_only=False)
    return mlflow.MlflowClient(deployment.tracking_uri)


def sample_rows() -> pd.DataFrame:
    """The bundled sample as pandas reads it, in the model's order."""
    frame = pd.read_json(ROOT / "data/churn/X_test_sample_2.json", lines=True)
    return frame[NAMES].astype("float32")


def booster() -> xgb.Booster:
    loaded = xgb.Booster()
    loaded.load_model(bytearray(bundled("xgb_churn_model_2.bin")))
    return loaded


def expected_scores(rows: pd.DataFrame) -> "np.ndarray[Any, Any]":
    return np.asarray(booster().predict(xgb.DMatrix(rows, feature_names=NAMES)))


def left_over(site: Site) -> dict[str, int]:
    """Count what a failed attempt could leave in MLflow."""
    tables = ("runs", "logged_models", "registered_models", "model_versions")
    return {table: site.rows(site.mlflow, f"SELECT count(*) FROM {table}")[0][0] for table in tables}  # noqa: S608


NOTHING = {"runs": 0, "logged_models": 0, "registered_models": 0, "model_versions": 0}


def test_the_command_registers_the_model_of_the_files_in_s3(site: Site, log_model: Run, client: Any) -> None:
    import mlflow

    put_model_files(site, "company-clienta/")

    said = log_model("--company", "ClientA")

    assert (said.status, said.err) == (0, "")
    assert f"s3://{site.bucket}/company-clienta/models/churn/xgb_churn_model_2.bin" in said.out
    assert "models:/churn-prediction-model-clienta/1" in said.out
    assert "alias champion" in said.out
    assert "fallback" not in said.out
    rows = sample_rows().head(50)
    model = mlflow.pyfunc.load_model("models:/churn-prediction-model-clienta@champion")
    assert model.predict(rows).tolist() == pytest.approx(expected_scores(rows).tolist(), abs=0)
    # A caller that has the columns in another order is put right by the signature.
    assert model.predict(rows[NAMES[::-1]]).tolist() == model.predict(rows).tolist()
    as_pandas_reads_it = pd.read_json(ROOT / "data/churn/X_test_sample_2.json", lines=True).head(50)
    assert {kind.kind for kind in as_pandas_reads_it.dtypes} >= {"b", "f"}
    assert model.predict(as_pandas_reads_it).tolist() == model.predict(rows).tolist()


def test_a_version_carries_all_that_its_users_need(site: Site, log_model: Run, client: Any) -> None:
    import mlflow

    put_model_files(site, "geography-eu/company-clientb/")

    assert log_model("--geography", "EU", "--company", "ClientB").status == 0

    version = client.get_model_version_by_alias("churn-prediction-model-eu-clientb", "champion")
    uri = f"models:/{version.name}/{version.version}"
    card = mlflow.models.get_model_info(uri)
    assert [column.name for column in card.signature.inputs] == NAMES
    folder = Path(mlflow.artifacts.download_artifacts(uri))
    example = mlflow.models.Model.load(str(folder)).load_input_example(str(folder))
    assert example[NAMES].astype("float32").equals(sample_rows().head(5))
    golden = json.loads((folder / "golden_rows.json").read_text())
    rows = np.array([[np.nan if value is None else value for value in row] for row in golden["rows"]], dtype="float32")
    assert np.array_equal(rows, sample_rows().head(64).to_numpy(), equal_nan=True)
    assert golden["scores"] == [float(score) for score in expected_scores(sample_rows().head(64))]

    run = client.get_run(version.run_id)
    parts = {"geography": "eu", "company_id": "clientb"}
    model_date = boto3.client("s3").head_object(
        Bucket=site.bucket, Key="geography-eu/company-clientb/models/churn/xgb_churn_model_2.bin"
    )["LastModified"]
    assert {name: run.data.tags[name] for name in parts} == {"geography": "EU", "company_id": "ClientB"}  # as typed
    assert {name: version.tags[name] for name in parts} == parts
    for tags in (run.data.tags, version.tags):
        assert tags["training_date"] == model_date.date().isoformat()
        assert "churn.fallback_reason" not in tags
        assert tags["churn.training_date_from"] == "the model file's date: the booster names none"
    assert f"registered from {tags['churn.model_uri']}; its ROC AUC is unknown" in version.description
    assert client.get_registered_model(version.name).tags == parts
    assert "the version with the alias champion scores" in client.get_registered_model(version.name).description
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.note.content"] == version.description
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.source_type) == ("sample of geography-eu.company-clientb", "s3")
    assert mlflow.data.get_source(dataset).uri.endswith("clientb/data/churn/X_test_sample_2.json")
    assert client.get_logged_model(version.source.removeprefix("models:/")).name == version.name
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.name == "churn_prediction-geography-eu-company-clientb"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert "performance by week" in experiment.tags["mlflow.note.content"]
    params = run.data.params
    dump = booster().get_dump()
    assert int(params["n_trees"]) == len(dump) > 1
    assert int(params["n_features"]) == len(NAMES)
    assert int(params["n_leaves"]) == sum(tree.count("leaf=") for tree in dump)
    assert (params["objective"], params["booster"]) == ("binary:logistic", "gbtree")
    assert run.data.metrics["sample_rows"] == 500
    assert run.data.metrics["sample_mean_churn_probability"] == pytest.approx(expected_scores(sample_rows()).mean())
    assert "roc_auc" not in run.data.metrics  # there are no labels in the sample


def test_a_booster_that_says_when_it_was_trained_is_believed(site: Site, log_model: Run, client: Any) -> None:
    trained = booster()
    trained.set_attr(training_date="2026-09-30")
    put_model_files(site, model=bytes(trained.save_raw("ubj")))

    assert log_model().status == 0

    version = client.get_model_version_by_alias("churn-prediction-model", "champion")
    assert version.tags["training_date"] == "2026-09-30"
    assert {"geography", "company_id"} & set(version.tags) == set()


def test_declared_columns_are_checked_and_kept_with_the_version(site: Site, log_model: Run, client: Any) -> None:
    declared = {"activity": ["total_ngr"], "segments": ["tracker_id"], "revenue": "total_ngr"}
    put_model_files(site)
    site.put("data/churn/activity.parquet", bundled("activity.parquet"))
    site.put("data/churn/columns.json", json.dumps(declared | {"segments": ["device"]}).encode())

    refused = log_model()

    assert refused.status == 1
    assert "lacks the declared device" in refused.err
    site.put("data/churn/columns.json", json.dumps(declared).encode())
    assert log_model().status == 0
    tags = client.get_model_version_by_alias("churn-prediction-model", "champion").tags
    assert json.loads(tags["churn.columns"]) == declared | {"one_hot": None}


def test_activity_that_gives_no_labels_and_a_sample_made_otherwise_are_remarked(site: Site, log_model: Run) -> None:
    activity = pl.read_parquet(io.BytesIO(bundled("activity.parquet")))
    sample = sample_rows().assign(account_id=activity["account_id"].unique(maintain_order=True).head(500).to_numpy())
    put_model_files(site, sample=sample.to_json(orient="records", lines=True).encode())
    body = io.BytesIO()
    activity.drop("total_deposit", "total_handle", "total_ngr").write_parquet(body)
    site.put("data/churn/activity.parquet", body.getvalue())

    said = log_model()

    assert said.status == 0
    assert "remark    the activity has none of total_deposit, total_handle, total_ngr, so it is scored" in said.out
    assert "remark    the activity cannot be scored: " in said.out
    activity.drop("account_id").write_csv(body := io.BytesIO())
    site.put("data/churn/activity.parquet", body.getvalue())
    sentence = (
        "the rows have columns of raw activity (activity_month, ben_login_id, brand_id, ftd_date and 4 more) and lack "
        "account_id; add it to the extract"
    )
    assert f"remark    the activity cannot be scored: {sentence}" in log_model().out
    site.put("data/churn/activity.parquet", bundled("activity.parquet"))
    again = log_model()
    assert "of the sample's features differ from those made from the activity of 500 accounts" in again.out


def test_real_labels_give_real_metrics(site: Site, log_model: Run, client: Any) -> None:
    from sklearn.metrics import roc_auc_score

    rows = [json.loads(line) for line in bundled("X_test_sample_2.json").splitlines()]
    labels = [i % 3 == 0 for i in range(len(rows))]
    labelled = [row | {"churned": int(label)} for row, label in zip(rows, labels, strict=True)]
    put_model_files(site, sample=json.dumps(labelled).encode())

    assert log_model().status == 0

    version = client.get_model_version_by_alias("churn-prediction-model", "champion")
    metrics = client.get_run(version.run_id).data.metrics
    assert metrics["roc_auc"] == pytest.approx(roc_auc_score(labels, expected_scores(sample_rows())))
    assert {"average_precision", "log_loss", "brier_score"} <= set(metrics)


def test_only_the_first_version_becomes_champion_unasked_and_a_repeat_registers_nothing(
    site: Site, log_model: Run, client: Any, local_root: Path
) -> None:
    put_model_files(site, "geography-us/")
    us = "--geography", "us"
    first, again = log_model(*us), log_model(*us)
    own_local_files(local_root, "own")
    put_model_files(site, "geography-us/", model=(local_root / "own/models/churn/xgb_churn_model_2.bin").read_bytes())
    second, third = log_model(*us), log_model(*us)
    challenger, same = log_model(*us, "--alias", "challenger"), log_model(*us, "--alias", "challenger")
    promoted = log_model(*us, "--alias", "champion")

    said = [first, again, second, third, challenger, same, promoted]
    assert [one.status for one in said] == [0] * 7
    lines = [next(line for line in one.out.splitlines() if line.startswith("version ")) for one in said]
    assert [line.removeprefix("version   ") for line in lines] == [
        "1, alias champion",
        "already registered as version 1, alias champion; nothing was changed",
        "2, without an alias",
        "already registered as version 2, without an alias; nothing was changed",
        "3, alias challenger",
        "already registered as version 3, alias challenger; nothing was changed",
        "2, alias champion",
    ]
    for one in (second, third):
        assert "next      version 1 is still the champion" in one.out
    model = client.get_registered_model("churn-prediction-model-us")
    assert {name: str(version) for name, version in model.aliases.items()} == {
        "champion": "2", "challenger": "3", "previous": "1",
    }  # fmt: skip


@pytest.mark.parametrize("alias", ["latest", "LATEST", "v3", "a b", "", "champion\n", "x" * 256])
def test_an_alias_that_mlflow_would_refuse_is_wrong_usage_and_nothing_is_logged(
    site: Site, log_model: Run, alias: str
) -> None:
    put_model_files(site)

    log_model("--alias", alias).require_one_line("alias", "is not allowed", "champion", status=2)

    assert left_over(site) == NOTHING


def own_local_files(local_root: Path, prefix: str) -> None:
    """Make a variant's local copy: a model and a sample that are not the bundled ones, byte for byte."""
    for key in ("models/churn/xgb_churn_model_2.bin", "data/churn/X_test_sample_2.json"):
        (local_root / prefix / key).parent.mkdir(parents=True, exist_ok=True)
    own = booster()
    own.set_attr(owner=prefix)
    (local_root / prefix / "models/churn/xgb_churn_model_2.bin").write_bytes(own.save_raw("ubj"))
    (local_root / prefix / "data/churn/feature_names_3.json").write_bytes(bundled("feature_names_3.json"))
    (local_root / prefix / "data/churn/X_test_sample_2.json").write_bytes(bundled("X_test_sample_2.json") + b"\n")


def test_a_local_copy_of_its_own_stands_in_and_the_bundled_model_never(
    site: Site, log_model: Run, client: Any, local_root: Path
) -> None:
    site.put("geography-XH/models/churn/xgb_churn_model_2.bin", bundled("xgb_churn_model_2.bin"))
    for typed, meant in {
        "XH": "keys in S3 are case-sensitive, and geography-XH/ is there: move its files to geography-xh/",
        "XI": "did you mean 'geography-xh'?",
    }.items():
        log_model("--geography", typed).require_one_line(f"geography-{typed.lower()}/ has none of", f"; {meant}")
    for flags in (["--geography", "TYPO"], []):  # the bundled model lies in the base variant's local copy
        refused = log_model(*flags)
        assert refused.status == 1
        assert f"s3://{site.bucket}/" in refused.err
        assert "is the bundled simulation" in refused.err or "there is no local copy" in refused.err
    assert left_over(site) == NOTHING
    own_local_files(local_root, "geography-us/")
    put_model_files(site, "geography-us/", names=None)  # and files are never mixed from two places

    said = log_model("--geography", "us")

    assert said.status == 0
    assert f"fallback  local copy of geography-us, because s3://{site.bucket}/geography-us/ has none of" in said.out
    tags = client.get_model_version_by_alias("churn-prediction-model-us", "champion").tags
    assert (tags["churn.source"], tags["churn.files_of_variant"]) == ("local", "geography-us")
    assert "has none of" in tags["churn.fallback_reason"]


def test_another_variants_model_is_used_where_it_is_named(site: Site, log_model: Run, client: Any) -> None:
    put_model_files(site, "geography-us/")
    assert log_model("--geography", "eu").status == 1

    said = log_model("--geography", "eu", "--from-variant", "geography-us")

    assert said.status == 0
    assert f"model     s3://{site.bucket}/geography-us/models" in said.out
    tags = client.get_model_version_by_alias("churn-prediction-model-eu", "champion").tags
    assert (tags["geography"], tags["churn.files_of_variant"]) == ("eu", "geography-us")


def test_mlflows_database_and_a_bucket_are_enough_to_log_a_model(
    site: Site, log_model: Run, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_SECRET_NAME", "MLFLOW_DB_NAME", "CHURN_DB_NAME", "CHURN_DAGSTER_DB_NAME"):
        monkeypatch.delenv(name)
    uri = site.login.set(drivername="postgresql", database=site.mlflow)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.render_as_string(hide_password=False))
    put_model_files(site)

    first, second, moved = log_model(), log_model(), log_model("--alias", "champion")

    assert (first.status, second.status, moved.status) == (0, 0, 2), (first, second, moved)
    assert "version   1, alias champion" in first.out
    assert "trail     none of the aliases is kept, since no database for predictions is set" in first.out
    assert "already registered as version 1, alias champion" in second.out
    assert "the alias champion of base names a version, and moving it needs a trail" in moved.err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.set(password=site.mlflow).render_as_string(hide_password=False))
    refused = log_model()
    refused.require_one_line("refused the password of user", "correct username and password in MLFLOW_TRACKING_URI")
    assert "secret" not in refused.err


def test_without_a_bucket_the_bundled_model_is_used_and_its_reason_is_named(
    site: Site, log_model: Run, deployment: Deployment, local_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_S3_BUCKET")

    said = log_model("--geography", "us")

    assert said.status == 0
    reason = "geography-us has no model of its own, and the bundled simulation is used; S3 is not configured"
    assert f"fallback  bundled model, because {reason}" in said.out
    unknown = log_model("--geography", "us", "--from-variant", "geography-uss")
    unknown.require_one_line("geography-uss, whose model geography-us should get, has no model of its own", status=2)
    misspelled = log_model("--geography", "us", "--alias", "chalenger")
    misspelled.require_one_line("alias 'chalenger' is not challenger, and close to it", status=2)
    assert "warning" not in said.out
    own_local_files(local_root, "geography-XH/")
    of_its_own = log_model("--geography", "XH")  # spelled otherwise on disk, and found
    assert "geography-XH/models/churn/xgb_churn_model_2.bin" in of_its_own.out
    assert "warning" not in of_its_own.out
    (local_root / "company-clienta").mkdir()
    for flag, typed, near in [("geography", "UX", "geography-us"), ("company", "ClientA1", "company-clienta")]:
        misspelled = log_model(f"--{flag}", typed)
        warning = f"{flag}-{typed.lower()} is new, has no files of its own, and is spelled like {near}"
        assert f"warning   {warning}; to undo it: docs/how-to/remove-a-variant.md" in misspelled.out
        assert "warning" not in log_model(f"--{flag}", typed).out
    own_local_files(local_root, "geography-uk/")
    (local_root / "geography-uk" / "data/churn/X_test_sample_2.json").unlink()
    incomplete = log_model("--geography", "uk")
    incomplete.require_one_line("there is no local copy", "geography-uk has none of data/churn/X_test_sample_2.json")
    own_local_files(local_root, "")
    refused = log_model("--geography", "eu")
    refused.require_one_line("log_model.py: geography-eu: S3 is not configured", "there is no local copy")


def test_many_variants_are_logged_and_the_bad_one_is_named(
    site: Site, log_model: Run, client: Any, tmp_path: Path
) -> None:
    for geography in ("us", "eu", "uk"):
        put_model_files(site, f"geography-{geography}/")
    site.put("geography-eu/models/churn/xgb_churn_model_2.bin", b"")
    listed = tmp_path / "variants.txt"
    listed.write_text("geography-us\n\ngeography-eu\ngeography-uk\ngeography-us\n")

    said = log_model("--all", str(listed))

    assert said.status == 1
    first, last = said.err.splitlines()
    assert first.startswith("log_model.py: geography-eu: s3://")
    assert "is empty" in first
    assert last == "log_model.py: 1 of 3 failed: geography-eu"
    held = {model.name: len(model.latest_versions) for model in client.search_registered_models()}
    assert held == {"churn-prediction-model-us": 1, "churn-prediction-model-uk": 1}


@pytest.mark.parametrize("content", [b"", b"no such/variant\n", b"\xff\xfe\x00"])
def test_a_list_of_variants_that_cannot_be_meant_is_wrong_usage(
    site: Site, log_model: Run, tmp_path: Path, content: bytes
) -> None:
    listed = tmp_path / "variants.txt"
    listed.write_bytes(content)

    log_model("--all", str(listed)).require_one_line("log_model.py: ", status=2)
    log_model("--all", str(tmp_path / "absent")).require_one_line("log_model.py: --all", "cannot be read", status=2)

    assert left_over(site) == NOTHING


def without(name: str) -> bytes:
    rows = [json.loads(line) for line in bundled("X_test_sample_2.json").splitlines()]
    return "\n".join(json.dumps({key: value for key, value in row.items() if key != name}) for row in rows).encode()


def scored(score: float) -> bytes:
    rows = [json.loads(line) for line in bundled("X_test_sample_2.json").splitlines()]
    return "\n".join(json.dumps(row | {"expected_probability": score}) for row in rows).encode()


def regressor() -> bytes:
    data = xgb.DMatrix(np.zeros((4, len(NAMES))), label=np.arange(4), feature_names=NAMES)
    return bytes(xgb.train({"objective": "reg:squarederror"}, data, 1).save_raw("ubj"))


BAD_FILES = {
    "old binary format": ({"model": b"binf\x00\x00\x80\x3f" + bytes(100)}, ["old binary format", "XGBoost 2.x"]),
    "empty model": ({"model": b""}, ["xgb_churn_model_2.bin is empty"]),
    "pickle": ({"model": b"\x80\x04\x95cposix"}, ["neither UBJSON nor JSON"]),
    "cut off": ({"model": bundled("xgb_churn_model_2.bin")[:-1000]}, ["is damaged", "save the model again"]),
    "cut in the middle": ({"model": bundled("xgb_churn_model_2.bin")[:90_000]}, ["is damaged", "cut off"]),
    "some other JSON": ({"model": b'{"a": 1}'}, ["is not an XGBoost model"]),
    "another objective": ({"model": regressor()}, ["reg:squarederror", "binary:logistic"]),
    "a name too few": ({"names": json.dumps(NAMES[:-1]).encode()}, ["45 features", "has 44"]),
    "names in another order": ({"names": json.dumps(NAMES[::-1]).encode()}, ["disagree at", "same training run"]),
    "names twice": ({"names": json.dumps([NAMES[0], *NAMES[:-1]]).encode()}, ["repeated feature names", NAMES[0]]),
    "names not JSON": ({"names": b"total_deposit,total_handle"}, ["feature_names_3.json is not JSON"]),
    "sample lacks a feature": ({"sample": without("brand_id_OH")}, ["lack 1 of", "brand_id_OH"]),
    "sample empty": ({"sample": b""}, ["X_test_sample_2.json is empty"]),
    "sample not JSON": ({"sample": b"{not json"}, ["X_test_sample_2.json", "JSON Lines"]),
    "sample of nothing": ({"sample": b"[]"}, ["has no rows"]),
    "a score that the author did not get": (
        {"sample": scored(0.5)},
        ["sample row", "expected_probability is 0.500000"],
    ),
    "sample with an absurd row": ({"sample": bundled("X_test_sample_2.json") + b'{"total_deposit":-5}'}, ["broke"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_will_not_do_are_told_in_one_line_and_nothing_is_logged(
    site: Site, log_model: Run, case: str
) -> None:
    replaced, parts = BAD_FILES[case]
    put_model_files(site, "geography-us/", **replaced)

    said = log_model("--geography", "us")

    said.require_one_line("log_model.py: geography-us: ", *parts)
    assert left_over(site) == NOTHING


def test_a_company_may_not_take_the_model_name_of_a_geography(site: Site, log_model: Run) -> None:
    put_model_files(site, "geography-x/")
    put_model_files(site, "company-x/")
    assert log_model("--geography", "x").status == 0
    before = left_over(site)

    log_model("--company", "x").require_one_line("churn-prediction-model-x", "belongs to geography-x", "rename")

    assert left_over(site) == before


def test_a_bucket_that_is_gone_is_told_in_one_line_and_no_version_is_left(site: Site, log_model: Run) -> None:
    boto3.client("s3").delete_bucket(Bucket=site.bucket)

    log_model().require_one_line("log_model.py: ", "base", "NoSuchBucket", "correct MLFLOW_S3_BUCKET", status=2)

    assert left_over(site) == NOTHING


def test_a_deployment_that_was_not_set_up_is_told_in_one_line(bare_site: Site, log_model: Run) -> None:
    log_model().require_one_line("has no or an outdated schema", bare_site.mlflow, "run experiment_tracking/setup.py")


def test_a_booster_that_was_changed_after_it_was_logged_is_not_used_and_the_error_says_how_to_replace_it(
    site: Site, log_model: Run, deployment: Deployment
) -> None:
    from churn.errors import ModelFileError

    put_model_files(site)
    assert log_model().status == 0
    held = boto3.client("s3").list_objects_v2(Bucket=site.bucket, Prefix="mlflow/")["Contents"]
    (key,) = [item["Key"] for item in held if item["Key"].endswith("/model.ubj")]
    site.put(key, bundled("xgb_churn_model_2.bin").replace(b"binary:logistic", b"binary:logitraw"))

    registry = deployment.registry(read_only=True)
    with pytest.raises(ModelFileError, match="another sha256 than was logged; log the model again: uv run") as refused:
        registry.open(Variant())

    _, _, command = str(refused.value).partition("uv run python experiment_tracking/log_model.py ")
    said = log_model(*command.split())
    assert (said.status, said.err) == (0, "")
    assert "version   2, alias champion" in said.out
    assert deployment.registry(read_only=True).aliases()[Variant()] == {"champion": 2, "previous": 1}
    assert registry.open(Variant()).version.version == 2
    events = deployment.events().history(Variant())
    assert [(event.action, event.champion, event.previous) for event in events] == [
        ("observed", 1, None),
        ("promoted", 2, 1),
    ]


def test_a_damaged_cache_is_fetched_again(site: Site, log_model: Run, deployment: Deployment) -> None:
    put_model_files(site)
    assert log_model().status == 0
    registry = deployment.registry(read_only=True)
    opened = registry.open(Variant())
    (entry,) = (deployment.settings.churn_home / "cache" / "models").iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(b"")

    assert registry.open(Variant()).version == opened.version
    assert entry.read_bytes() == whole


def test_a_sample_may_be_an_array_of_arrays_in_model_order(site: Site, log_model: Run, client: Any) -> None:
    rows = pl.read_ndjson(bundled("X_test_sample_2.json")).select(NAMES).cast(pl.Float64).rows()
    put_model_files(site, sample=json.dumps(rows).encode())

    assert log_model().status == 0

    version = client.get_model_version_by_alias("churn-prediction-model", "champion")
    mean = client.get_run(version.run_id).data.metrics["sample_mean_churn_probability"]
    assert mean == pytest.approx(expected_scores(sample_rows()).mean())


@pytest.mark.slow
def test_an_mlflow_server_that_is_down_is_told_in_seconds(
    site: Site, log_model: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_model_files(site)
    monkeypatch.delenv("MLFLOW_SECRET_NAME")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    database = site.login.set(database=site.churn).render_as_string(hide_password=False)
    monkeypatch.setenv("CHURN_DATABASE_URL", database)
    started = time.monotonic()

    said = log_model()

    said.require_one_line("log_model.py: ", "did not answer", "MLFLOW_TRACKING_URI")
    assert time.monotonic() - started < 20
