"""At stake: every Monday this job decides whom the campaigns go to. Each score must be the registered model's on the
variant's own rows, one per account, or be flagged; one bad variant must neither hide nor hurt another.
"""

import io
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import numpy as np
import pandas as pd
import polars as pl
import pytest
import xgboost as xgb
from moto.server import ThreadedMotoServer

import churn.workflows.score as score_module
from churn.deployment.services import Deployment
from churn.errors import InputError, RegistryUnavailableError
from churn.training.checks import GATE_CHECKS
from churn.variants import Variant
from churn.weeks import monday_of
from churn.workflows.score import FleetRequest
from orchestration.definitions import defs
from orchestration.partitions import RANGE_END_TAG, RANGE_START_TAG
from tests.support import ROOT
from tests.support.inputs import (
    FORMATS,
    NAMES,
    activity,
    as_csv,
    as_parquet,
    encoded,
    expected,
    monday,
    put_input,
    register,
)
from tests.support.site import Run, Site, bundled, put_model_files, require_no_password

ASSETS = {
    "raw_churn_data",
    "transformed_features",
    "load_model_from_mlflow",
    "generate_predictions",
    "store_predictions",
}
CHECKS = {
    "rows_were_scored",
    "probabilities_are_valid",
    "input_came_from_s3",
    "input_is_activity",
    "quarantine_is_small",
    "model_is_the_champion",
    "challenger_was_scored",
    "row_count_is_usual",
    "data_is_fresh",
    "input_is_new",
    "input_matches_its_reference",
    "missing_values_were_trained",
    "scores_match_their_reference",
}
MONITORING_CHECKS = {
    "no_data_is_broken",
    "no_input_drifts",
    "no_scores_drift",
    "missing_values_are_usual",
    "levels_are_known",
    "volumes_are_usual",
    "data_is_fresh",
    "every_variant_was_scored",
    "performance_holds",
    "scores_match_outcomes",
    "segments_hold",
}
FLEET = ["base", "company-clienta", "geography-eu.company-clientb", "geography-us"]

Execute = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture
def fleet(site: Site, log_model: Run, instance: dg.DagsterInstance) -> dict[str, pd.DataFrame]:
    """The four kinds of variant, registered, each with activity of its own in S3."""
    register(site, log_model, instance, *FLEET)
    rows = {key: activity(seed) for seed, key in enumerate(FLEET)}
    for key, frame in rows.items():
        put_input(site, key, as_parquet(frame))
    return rows


@pytest.fixture
def us(site: Site, log_model: Run, instance: dg.DagsterInstance) -> pd.DataFrame:
    """One variant, registered, with activity in S3."""
    register(site, log_model, instance, "geography-us")
    rows = activity()
    put_input(site, "geography-us", as_parquet(rows))
    return rows


@pytest.fixture
def execute(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> Execute:
    """Run the job over a range of partitions, without pauses before retries, and require that it ends as expected."""
    monkeypatch.setattr(dg.RetryPolicy, "calculate_delay", lambda *_: 0)

    def run(
        start: str, end: str | None = None, *, week: str | None = None, corrected: bool = False, ok: bool = True
    ) -> Any:
        result = defs.resolve_job_def("churn_prediction_job").execute_in_process(
            instance=instance,
            tags={RANGE_START_TAG: start, RANGE_END_TAG: end or start},
            run_config={"ops": {"score_variants": {"config": {"week": week, "corrected": corrected}}}},
            raise_on_error=False,
        )
        assert result.success == ok, failure(result)
        require_no_password(*(entry.to_json() for entry in instance.all_logs(result.run_id)))
        return result

    return run


def failure(result: dg.ExecuteInProcessResult) -> str:
    """What the failed run says, as the UI shows it."""
    events = [event for event in result.all_events if event.is_step_failure]
    return "\n".join(str(event.step_failure_data.error_display_string) for event in events)


def failed_variants(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    """The list that a failure sensor reads."""
    (event,) = (event for event in result.all_events if event.is_step_failure)
    held = event.step_failure_data.user_failure_data
    assert held is not None
    return dict(held.metadata["failed"].value)  # type: ignore[arg-type]


def events(instance: dg.DagsterInstance, run_id: str, kind: dg.DagsterEventType) -> list[dg.DagsterEvent]:
    return [entry.dagster_event for entry in instance.all_logs(run_id, of_type=kind) if entry.dagster_event is not None]


def checks_of(instance: dg.DagsterInstance, run_id: str, key: str) -> dict[str, dg.AssetCheckEvaluation]:
    found = [
        event.asset_check_evaluation_data
        for event in events(instance, run_id, dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    ]
    return {evaluation.check_name: evaluation for evaluation in found if evaluation.partition == key}


def predictions(site: Site, key: str) -> dict[int, float]:
    held = site.current(f"variant = '{key}'")
    assert held["account_id"].is_unique().all()
    return dict(held.select("account_id", "churn_probability").iter_rows())


def test_each_variant_of_the_range_gets_its_own_scores_materializations_and_checks(
    site: Site, fleet: dict[str, pd.DataFrame], instance: dg.DagsterInstance, execute: Execute
) -> None:
    result = execute("base", "geography-us")

    for key, rows in fleet.items():
        assert predictions(site, key) == pytest.approx(expected(rows), abs=1e-6)
    made = events(instance, result.run_id, dg.DagsterEventType.ASSET_MATERIALIZATION)
    assert sorted((event.asset_key.to_user_string(), str(event.partition)) for event in made) == sorted(
        (asset, key) for asset in ASSETS for key in FLEET
    )
    for asset in ASSETS:
        assert instance.get_materialized_partitions(dg.AssetKey(asset)) == set(FLEET)
    for key in FLEET:
        evaluations = checks_of(instance, result.run_id, key)
        passed = {name: evaluation.passed for name, evaluation in evaluations.items()}
        assert passed == dict.fromkeys(CHECKS - {"challenger_was_scored"}, True)  # there is none
    batches = site.rows(
        site.churn,
        "SELECT variant, scored_week, registered_model, model_version, source, dagster_run_id, source_uri "
        "FROM scoring_batches WHERE is_current ORDER BY variant",
    )
    assert batches == [
        (
            key,
            monday(),
            Variant.from_key(key).registered_model,
            1,
            "s3",
            result.run_id,
            f"s3://{site.bucket}/{Variant.from_key(key).prefix}data/churn/activity.parquet",
        )
        for key in FLEET
    ]
    stages = {"read", "features", "score", "explain", "publish"}
    for (seconds,) in site.rows(site.churn, "SELECT seconds FROM scoring_attempts"):
        assert seconds.keys() == stages
        assert all(0 <= spent < 60 for spent in seconds.values())


def test_running_twice_leaves_one_current_row_per_account(site: Site, us: pd.DataFrame, execute: Execute) -> None:
    execute("geography-us")
    first = site.current()
    execute("geography-us")
    second = site.current()

    assert second.drop("batch_id", "scored_at").equals(first.drop("batch_id", "scored_at"))
    assert set(second["batch_id"]) != set(first["batch_id"])
    assert site.rows(site.churn, "SELECT is_current FROM scoring_batches ORDER BY batch_id") == [(False,), (True,)]


def test_the_champion_of_the_moment_scores(
    site: Site, us: pd.DataFrame, log_model: Run, instance: dg.DagsterInstance, execute: Execute
) -> None:
    data = xgb.DMatrix(np.eye(len(NAMES)), label=np.arange(len(NAMES)) % 2, feature_names=NAMES)
    other = xgb.train({"objective": "binary:logistic", "max_depth": 1}, data, 2)
    put_model_files(site, "geography-us/", model=bytes(other.save_raw("ubj")))
    assert log_model("--geography", "us", "--alias", "challenger").status == 0

    execute("geography-us")
    assert set(site.current()["model_version"]) == {1}

    assert log_model("--geography", "us", "--alias", "champion").status == 0
    execute("geography-us")

    assert set(site.current()["model_version"]) == {2}  # the challenger, which is of the same files
    table = encoded(us, datetime.now(UTC).date())
    scores = other.predict(xgb.DMatrix(table[NAMES].astype("float32"), feature_names=NAMES))
    held = dict(zip(table["account_id"].tolist(), scores.tolist(), strict=True))
    assert predictions(site, "geography-us") == pytest.approx(held, abs=1e-6)


@pytest.fixture
def own_s3(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """An S3 that can be stopped and started; Secrets Manager stays."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running: list[ThreadedMotoServer] = []

    def switch(on: bool) -> None:
        while running:
            running.pop().stop()
        if on:
            running.append(ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False))
            running[0].start()

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{port}")  # MLflow keeps its client per such URL
    switch(True)
    yield switch
    switch(False)


def test_while_s3_is_down_local_data_is_scored_and_flagged_until_it_is_back(  # noqa: PLR0917 fixtures
    site: Site,
    own_s3: Callable[[bool], None],
    fleet: dict[str, pd.DataFrame],
    local_root: Path,
    instance: dg.DagsterInstance,
    execute: Execute,
    deployment: Deployment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = activity(7)
    (local_root / "geography-us/data/churn").mkdir(parents=True)
    (local_root / "geography-us/data/churn/activity.csv").write_bytes(as_csv(own))
    for key in FLEET:
        deployment.registry(read_only=True).open(Variant.from_key(key))  # into the cache of models
    monkeypatch.setattr(score_module, "_RETRY_FOR_S", 1)
    own_s3(False)

    result = execute("base", "geography-us", ok=False)

    assert predictions(site, "geography-us") == pytest.approx(expected(own), abs=1e-6)
    flags = site.current().select("variant", "source", "is_fallback", "is_foreign_data").unique().sort("variant")
    assert flags.rows() == [("geography-us", "local", True, False)]  # neither another's copy nor the bundled files
    assert all("could not be reached" in reason for reason in site.current()["fallback_reason"])
    evaluation = checks_of(instance, result.run_id, "geography-us")["input_came_from_s3"]
    assert (evaluation.passed, evaluation.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "could not be reached" in str(evaluation.metadata["reason"].value)

    own_s3(True)
    again = execute("base", "geography-us")

    assert site.current()["is_fallback"].any() is False
    for key, rows in fleet.items():
        assert predictions(site, key) == pytest.approx(expected(rows), abs=1e-6)
        assert checks_of(instance, again.run_id, key)["input_came_from_s3"].passed

    own_s3(False)
    execute("geography-us")
    assert site.current()["is_fallback"].any() is False  # a local copy does not replace what was made from S3
    why = "SELECT count(*) FROM scoring_batches WHERE variant = 'geography-us' AND NOT is_current"
    assert site.rows(site.churn, why) == [(2,)]


def test_neither_the_sample_nor_bundled_data_takes_the_place_of_activity(
    site: Site, us: pd.DataFrame, execute: Execute, deployment: Deployment
) -> None:
    execute("geography-us")
    scored = predictions(site, "geography-us")
    deployment.ingestion().ingest(Variant("us"))
    boto3.client("s3").delete_object(Bucket=site.bucket, Key="geography-us/data/churn/activity.parquet")

    only_the_sample = execute("geography-us", ok=False)

    assert "geography-us had activity before, and only the sample" in failure(only_the_sample)
    boto3.client("s3").delete_object(Bucket=site.bucket, Key="geography-us/data/churn/X_test_sample_2.json")
    assert "there is no local copy" in failure(execute("geography-us", ok=False))
    assert predictions(site, "geography-us") == scored
    site.put("geography-us/data/churn/X_test_sample_2.json", bundled("X_test_sample_2.json"))
    today = datetime.now(UTC).date()
    site.rows(
        site.churn, "UPDATE scoring_batches SET source_variant = 'base'"
    )  # as if no batch of its own was retained
    request = FleetRequest.as_known(monday_of(today), today=today)
    with pytest.raises(InputError, match="geography-us had activity before"):
        deployment.scorer().score_variant(request.of(Variant("us")))
    request = replace(request, is_forced=True)
    assert deployment.scorer().score_variant(request.of(Variant("us"))).record.n_rows_scored == 500


def test_a_model_that_cannot_be_fetched_is_worth_a_retry(
    site: Site,
    own_s3: Callable[[bool], None],
    us: pd.DataFrame,
    deployment: Deployment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    registry = deployment.registry(read_only=True)
    own_s3(False)

    with pytest.raises(RegistryUnavailableError, match="check the network, and that S3 runs"):
        registry.open(Variant("us"))

    own_s3(True)
    assert registry.open(Variant("us")).bundle.feature_names == tuple(NAMES)


def broken_row(rows: pd.DataFrame, **columns: object) -> bytes:
    """Parquet whose first row breaks the contract, with columns of ours beside it."""
    frame = pl.from_pandas(rows).with_row_index("n")
    bad = pl.when(pl.col("n") == 0).then(pl.lit(-1.0)).otherwise(pl.col("total_deposit")).alias("total_deposit")
    extra = [pl.Series(name, [value] * frame.height) for name, value in columns.items()]
    buffer = io.BytesIO()
    frame.with_columns(bad, *extra).drop("n").write_parquet(buffer)
    return buffer.getvalue()


def test_poisoned_variants_are_named_and_hurt_no_other(
    site: Site, log_model: Run, instance: dg.DagsterInstance, execute: Execute
) -> None:
    rows = activity()
    whole = as_parquet(rows)
    inputs = {
        "base": whole,
        "geography-cut": whole[: len(whole) // 2],
        "geography-empty": b"",
        "geography-html": b"<html>403</html>",
        "geography-negative": as_parquet(rows.assign(total_deposit=-1.0)),
        "geography-none": as_parquet(rows.assign(activity_month=date(2199, 1, 1))),
        "geography-zip": b"PK\x03\x04" + bytes(100),
        "geography-zz": whole,
    }
    register(site, log_model, instance, *inputs)
    for key, body in inputs.items():
        put_input(site, key, body)
    poisoned = sorted(set(inputs) - {"base", "geography-zz"})

    result = execute("base", "geography-zz", ok=False)

    assert sorted(failed_variants(result)) == poisoned
    assert set(site.current()["variant"]) == {"base", "geography-zz"}
    assert predictions(site, "geography-zz") == pytest.approx(expected(rows), abs=1e-6)
    said = failure(result)
    assert "6 of 8 variants failed: geography-cut, geography-empty" in said
    assert "truncated or damaged Parquet" in failed_variants(result)["geography-cut"]
    assert "broke the contract" in failed_variants(result)["geography-negative"]
    for asset in ASSETS:
        assert instance.get_materialized_partitions(dg.AssetKey(asset)) == {"base", "geography-zz"}

    for key in poisoned:
        put_input(site, key, whole)
    execute("base", "geography-zz")

    assert set(site.current()["variant"]) == set(inputs)
    for asset in ASSETS:
        assert instance.get_materialized_partitions(dg.AssetKey(asset)) == set(inputs)


def test_a_bad_row_of_a_file_with_odd_columns_is_quarantined_and_the_rest_is_scored(
    site: Site, us: pd.DataFrame, execute: Execute
) -> None:
    odd = {"blob": b"\xff\x00", "when": datetime(2026, 1, 1, tzinfo=UTC), "tags": ["a"], "note": 'a\x00b "c"'}
    put_input(site, "geography-us", broken_row(us, **odd))

    execute("geography-us")

    quarantined = site.rows(site.churn, "SELECT rules, row ->> 'total_deposit' FROM quarantined_rows")
    assert quarantined == [(["total_deposit_negative"], "-1.0")]
    account, month = us.loc[0, ["account_id", "activity_month"]]
    rest = us.drop(index=0)
    newer = rest[(rest["account_id"] == account) & (rest["activity_month"] > month)]
    scores = expected(rest)
    if newer.empty:  # an older row of the account would be stale
        scores.pop(account, None)
    assert predictions(site, "geography-us") == pytest.approx(scores, abs=1e-6)


def test_an_unregistered_partition_fails_with_a_hint(
    site: Site, us: pd.DataFrame, instance: dg.DagsterInstance, execute: Execute
) -> None:
    instance.add_dynamic_partitions("churn_variants", ["geography-uss"])

    result = execute("geography-uss", ok=False)

    said = failure(result)
    assert "variant geography-uss is not registered" in said
    assert "did you mean 'geography-us'?" in said
    assert "log_model.py" in said
    assert site.current().is_empty()
    assert site.rows(site.churn, "SELECT variant FROM scoring_attempts") == []  # a name is no variant that failed


def test_a_removed_alias_fails_with_the_remedy(
    site: Site, us: pd.DataFrame, deployment: Deployment, execute: Execute
) -> None:
    from mlflow import MlflowClient

    deployment.registry(read_only=False)
    MlflowClient(deployment.tracking_uri).delete_registered_model_alias("churn-prediction-model-us", "champion")

    said = failure(execute("geography-us", ok=False))

    assert "'churn-prediction-model-us' has no alias 'champion' (it has: none)" in said
    assert "log_model.py --alias champion" in said


@pytest.mark.slow
def test_every_format_of_either_shape_gives_the_same_scores(
    site: Site, log_model: Run, instance: dg.DagsterInstance, execute: Execute
) -> None:
    rows = activity()
    table = encoded(rows, datetime.now(UTC).date())
    values = table[NAMES].astype("float64").astype(object).where(table[NAMES].notna(), None)
    inputs = {f"geography-a{i}": (name, write(rows)) for i, (name, write) in enumerate(FORMATS.items())}
    inputs |= {f"geography-b{i}": (name, write(table)) for i, (name, write) in enumerate(FORMATS.items())}
    without_ids = {
        f"geography-c{i}": (name, write(table.drop(columns="account_id")))
        for i, (name, write) in enumerate(FORMATS.items())
    }
    without_ids["geography-d"] = ("activity.json", json.dumps(values.to_numpy().tolist()).encode())
    register(site, log_model, instance, *inputs, *without_ids)
    for key, (name, body) in (inputs | without_ids).items():
        put_input(site, key, body, name)

    execute("geography-a0", "geography-d")

    scores = expected(rows)
    for key in inputs:
        assert predictions(site, key) == pytest.approx(scores, abs=1e-6), key
    by_row = dict(enumerate(scores.values(), start=1))
    for key in without_ids:
        assert predictions(site, key) == pytest.approx(by_row, abs=1e-6), key
    ids = dict(site.current().select("variant", "account_ids").unique().iter_rows())
    assert ids == dict.fromkeys(inputs, "input") | dict.fromkeys(without_ids, "row_number")


def test_a_past_week_is_scored_from_todays_extract_where_that_is_wanted(
    site: Site, us: pd.DataFrame, execute: Execute
) -> None:
    week = monday(weeks_ago=26)
    sunday = week + timedelta(days=6)

    execute("geography-us", week=week.isoformat(), corrected=True)

    held = site.current()
    assert (set(held["scored_week"]), set(held["as_of"])) == ({week}, {sunday})
    then, now = expected(us, sunday), expected(us)
    assert then != now
    assert predictions(site, "geography-us") == pytest.approx(then, abs=1e-6)


@pytest.mark.parametrize(
    ("week", "needed"),
    [
        (lambda: str(monday() + timedelta(days=1)), "begins on a Tuesday; did you mean its Monday"),
        (lambda: (monday(weeks_ago=-1)).isoformat(), "has not begun"),
        (lambda: "next week", "is not a date; the Monday of the week is needed, as YYYY-MM-DD"),
    ],
)
def test_a_week_that_cannot_be_meant_fails_clearly(
    site: Site, us: pd.DataFrame, execute: Execute, week: Callable[[], str], needed: str
) -> None:
    result = execute("geography-us", week=week(), ok=False)

    assert needed in failure(result)
    assert list(failed_variants(result)) == ["geography-us"]
    assert site.current().is_empty()


def test_what_failed_for_a_moment_is_retried_alone(
    site: Site, log_model: Run, instance: dg.DagsterInstance, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_module, "_ATTEMPTS", 3)
    register(site, log_model, instance, "base", "geography-us")
    # PostgreSQL refuses one variant with a serialization failure; a sequence counts on although it rolls back.
    site.rows(site.churn, "CREATE SEQUENCE refusals")
    site.rows(site.churn, "GRANT USAGE ON SEQUENCE refusals TO churn_writer")
    site.rows(
        site.churn,
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('refusals') <= 3 THEN RAISE EXCEPTION 'not now' USING ERRCODE = '40001'; END IF;
            RETURN NEW;
        END $$
        """,
    )
    site.rows(
        site.churn,
        "CREATE TRIGGER refuse BEFORE INSERT ON scoring_batches FOR EACH ROW WHEN (NEW.variant = 'geography-us') "
        "EXECUTE FUNCTION refuse()",
    )

    result = execute("base", "geography-us")

    assert len(events(instance, result.run_id, dg.DagsterEventType.STEP_UP_FOR_RETRY)) == 1
    batches = site.rows(site.churn, "SELECT variant, is_current FROM scoring_batches ORDER BY batch_id")
    assert batches == [("base", True), ("geography-us", True)]
    made = events(instance, result.run_id, dg.DagsterEventType.ASSET_MATERIALIZATION)
    assert len(made) == len(ASSETS) * 2  # base was not made again


def test_the_definitions_load_without_an_environment_and_open_nothing() -> None:
    program = """
import sys

def refuse(event, details):
    if event == "subprocess.Popen" and details[0] == "uname":  # Python's own platform module
        return
    if event in ("socket.connect", "socket.bind", "subprocess.Popen", "os.mkdir", "sqlite3.connect"):
        raise RuntimeError(f"{event} {details}")
    if event == "open" and isinstance(details[1], str) and set(details[1]) & set("wxa+"):
        raise RuntimeError(f"{event} {details}")

sys.dont_write_bytecode = True
sys.addaudithook(refuse)
from orchestration.definitions import defs
import dagster as dg
dg.Definitions.validate_loadable(defs)
print(sorted(job.name for job in defs.resolve_all_job_defs() if not job.name.startswith("__")))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": ""}, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (
        0,
        "['churn_prediction_job', 'decisions_job', 'evaluation_job', 'maintenance_job', 'monitoring_job', "
        "'promotion_job', 'training_job']\n",
    ), done.stderr


def test_the_graph_is_the_one_that_people_know() -> None:
    graph = defs.resolve_asset_graph()
    found = {
        key.to_user_string(): (
            sorted(parent.to_user_string() for parent in node.parent_keys),
            node.group_name,
            list(node.owners),
            sorted(node.kinds),
        )
        for key, node in ((key, graph.get(key)) for key in graph.get_all_asset_keys())
    }
    weekly, learning, monitoring = ((name, ["team:retention"]) for name in ("weekly_scoring", "learning", "monitoring"))
    assert found == {
        "raw_churn_data": ([], *weekly, ["parquet", "s3"]),
        "transformed_features": (["raw_churn_data"], *weekly, ["polars"]),
        "load_model_from_mlflow": ([], *weekly, ["mlflow", "xgboost"]),
        "generate_predictions": (["load_model_from_mlflow", "transformed_features"], *weekly, ["xgboost"]),
        "store_predictions": (["generate_predictions"], *weekly, ["postgres", "table"]),
        "delivered_predictions": (["store_predictions"], "delivery", ["team:retention"], ["parquet", "s3"]),
        "evaluated_batches": (["store_predictions"], *learning, ["postgres", "table"]),
        "trained_models": ([], *learning, ["mlflow", "xgboost"]),
        "drifted_features": (["store_predictions"], *monitoring, ["postgres", "table"]),
        "fleet_incidents": (["drifted_features", "evaluated_batches"], *monitoring, ["postgres", "table"]),
        "fleet_report": (["fleet_incidents"], *monitoring, ["html"]),
        "campaign_members": (["store_predictions"], "decisions", ["team:retention"], ["postgres", "table"]),
        "campaign_effects": (["campaign_members", "evaluated_batches"], "decisions", ["team:retention"], ["postgres"]),
    }
    evaluation_checks = {"auc_is_not_below_its_limit", "no_segment_is_below_its_limit"}
    checks = CHECKS | MONITORING_CHECKS | set(GATE_CHECKS) | evaluation_checks
    assert {key.name for key in graph.asset_check_keys} == checks
    of_fleet = ("monitoring", "decisions")
    partitions = {
        graph.get(dg.AssetKey(name)).partitions_def for name, (_, group, *_) in found.items() if group not in of_fleet
    }
    assert partitions == {dg.DynamicPartitionsDefinition(name="churn_variants")}
