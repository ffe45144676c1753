"""At stake: what this registers may one day decide whom the campaigns go to. A model must be re-makable from what its
version says, must not pass itself off as better or other than it is, and a training that fails must leave nothing
behind that scores.
"""

import functools
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from multiprocessing import forkserver
from operator import attrgetter
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import polars as pl
import pytest
from moto.s3.models import s3_backends

from churn.deployment.services import Deployment, open_node
from churn.storage.history import ActivityHistory
from churn.training.checks import GATE_CHECKS, GateCheck
from churn.training.gate import GateLimits
from churn.variants import Variant
from churn.weeks import monday_of, month_start
from churn.workflows.ray_engine import Workers
from churn.workflows.score import FleetRequest
from orchestration.definitions import defs
from orchestration.partitions import RANGE_END_TAG, RANGE_START_TAG, sync_partitions, variants_partitions
from tests.support import ROOT
from tests.support.batches import week_request
from tests.support.simulated import simulate_activity
from tests.support.site import Run, Said, Site, bundled, put_model_files, run_script
from tests.support.world import HEALTHY_WORLD, simulate_world

FIRST_MONTH = date(2025, 2, 1)
NAMES: list[str] = json.loads(bundled("feature_names_3.json"))


@functools.cache
def activity(key: str = "base", n_accounts: int = 1_500) -> bytes:
    frame = simulate_activity(
        n_accounts=n_accounts, first_month=FIRST_MONTH, n_months=21, seed=11, variant=Variant.from_key(key)
    )
    body = io.BytesIO()
    frame.write_parquet(body)
    return body.getvalue()


def put_activity(site: Site, key: str = "base", body: bytes | None = None) -> None:
    site.put(f"{Variant.from_key(key).prefix}data/churn/activity.parquet", body or activity(key))


def put_names(site: Site, key: str = "base", names: Sequence[str] = NAMES) -> None:
    site.put(f"{Variant.from_key(key).prefix}data/churn/feature_names_3.json", json.dumps(list(names)).encode())


@pytest.fixture
def train_model(run_main: Run) -> Run:
    """Run ``train_model.py`` with these arguments, few trials unless they say otherwise."""
    from experiment_tracking.train_model import main

    return partial(run_main, main, "--trials", "1")


@pytest.fixture
def client(deployment: Deployment) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(deployment.tracking_uri, deployment.tracking_uri)


def keys_under(site: Site, prefix: str) -> list[str]:
    found = boto3.client("s3").list_objects_v2(Bucket=site.bucket, Prefix=prefix)
    return [item["Key"] for item in found.get("Contents", [])]


def lines(said: Said) -> dict[str, str]:
    """Read what was printed: the first words of each line, and the rest."""
    parted = (line.split(maxsplit=1) for line in said.out.splitlines())
    return {words[0]: words[1] for words in parted if len(words) == 2}


def test_a_first_model_becomes_champion_and_the_same_data_again_a_challenger_of_the_same_bytes(
    site: Site, train_model: Run, client: Any, deployment: Deployment
) -> None:
    put_names(site)
    put_activity(site)

    said = [train_model("--as-of", "2026-11-30") for _ in range(2)]

    assert [one.status for one in said] == [0, 0], said
    assert [lines(one)["version"] for one in said] == ["1, alias champion", "2, alias challenger"], said
    first, second = (client.get_model_version("churn-prediction-model", number) for number in ("1", "2"))
    require_remakable(client, first, deployment.code_version)
    require_card(client, first)
    for tag in ("churn.model_sha256", "churn.data_sha256"):
        assert first.tags[tag] == second.tags[tag]
    assert first.run_id != second.run_id
    registry = deployment.registry(read_only=True)
    bundle = registry.open(Variant(), "challenger").bundle
    assert bundle.sha256 == second.tags["churn.model_sha256"]
    assert list(bundle.feature_names) == NAMES
    assert len(keys_under(site, "history/activity/")) == 1
    assert "0 of them new" in said[1].out
    assert "champion   AUC" in said[1].out
    assert lines(said[1])["months"] == "2025-02 to 2026-10"
    history = ActivityHistory(deployment.sources().primary).read(Variant())
    assert history["activity_month"].max() == date(2026, 10, 1)
    (event,) = [event for event in deployment.promoter().events.history(Variant()) if event.action == "challenged"]
    assert (event.champion, event.challenger) == (1, 2)
    assert event.reason == "trained as of 2026-11-30; it passed the gate"


@pytest.mark.slow
def test_the_gate_scores_last_months_batch_again_from_the_history(
    site: Site, train_model: Run, deployment: Deployment
) -> None:
    put_names(site)
    put_activity(site)
    today = datetime.now(UTC).date()
    assert train_model("--as-of", "2026-11-30").status == 0
    outcome = deployment.scorer().score_variant(week_request(monday_of(today)).of(Variant()))
    deployment.scorer().ingestion.ingest_scored(Variant())

    trained = deployment.trainer(n_trials=1).train_variant(Variant(), today + timedelta(days=35), dry_run=True)

    (replay,) = [check for check in trained.gate.checks if check.name == "past_features_are_those_scored"]
    assert (replay.outcome, replay.value) == ("holds", 0.0), replay
    assert f"of {outcome.record.n_rows_scored:,} accounts scored as of" in replay.sentence


@pytest.mark.slow
def test_rolling_extracts_are_trained_on_as_they_are_scored_and_a_leak_is_still_found(
    site: Site, deployment: Deployment
) -> None:
    base = Variant()
    world = simulate_world(HEALTHY_WORLD, n_accounts=1_500, first_month=FIRST_MONTH, n_months=22, seed=4)

    def deliver(day: date) -> pl.DataFrame:
        extract = world.extract_on(day).filter(pl.col("activity_month") >= month_start(day, -5))
        body = io.BytesIO()
        extract.write_parquet(body)
        put_activity(site, body=body.getvalue())
        stored = s3_backends["123456789012"]["aws"].buckets[site.bucket].keys["data/churn/activity.parquet"]
        stored.last_modified = datetime.combine(day, time(5))
        return extract

    for weeks in range(0, 64, 4):
        deliver(date(2025, 8, 4) + timedelta(weeks=weeks))
        deployment.ingestion().ingest(base)
    put_names(site, names=["active_months_12m", "total_handle_sum_12m", "total_handle_rate_1m", "months_since_active"])
    trainer = replace(deployment.trainer(n_trials=1), limits=GateLimits(max_calibration_error=0.2))
    assert trainer.train_variant(base, date(2026, 10, 5)).gate.failures == ()
    mondays = [date(2026, 10, 12) + timedelta(weeks=i) for i in range(7)]
    for monday in mondays:
        extract = deliver(monday)
        outcome = deployment.scorer().score_variant(FleetRequest(monday, as_of=monday).of(base))
        assert outcome.record.first_month == month_start(monday, -5)
        deployment.ingestion().ingest_scored(base)
    scores = "SELECT account_id, churn_probability FROM churn_predictions_current WHERE scored_week = :week ORDER BY 1"
    then = site.rows(site.churn, scores, week=mondays[0])

    def replay() -> GateCheck:
        trained = trainer.train_variant(base, mondays[-1], dry_run=True)
        (check,) = [check for check in trained.gate.checks if check.name == "past_features_are_those_scored"]
        return check

    found = replay()
    assert (found.outcome, found.value) == ("holds", 0.0), found
    assert "scored as of 2026-10-26" in found.sentence
    deployment.scorer().score_variant(FleetRequest.as_known(mondays[0], today=mondays[-1], as_of=mondays[0]).of(base))
    assert site.rows(site.churn, scores, week=mondays[0]) == then
    # What November said is written into October, as if it had been known.
    known_at = pl.lit(datetime(2026, 10, 20, tzinfo=UTC))
    leak = extract.filter(pl.col("activity_month") == date(2026, 11, 1)).with_columns(
        pl.lit(date(2026, 9, 1)).alias("activity_month"), known_at=known_at
    )
    deployment.history().append(base, leak, datetime(2026, 11, 23, 6, tzinfo=UTC))
    assert replay().outcome == "fails"


@pytest.mark.slow
def test_a_new_variant_takes_the_default_set_and_a_champion_of_other_features_is_compared_on_the_same_accounts(
    site: Site, train_model: Run, client: Any, deployment: Deployment
) -> None:
    us = Variant("us")
    put_activity(site, us.key)
    names = ["total_handle_sum_3m", "months_since_active", *NAMES[3:]]

    said = [
        train_model("--geography", "us", "--as-of", "2026-11-30", *more)
        for more in ((), ("--features", ",".join(names)))
    ]

    assert [one.status for one in said] == [0, 0], said
    registry = deployment.registry(read_only=True)
    default = registry.open(us, "champion").bundle.feature_names
    assert {"total_handle_sum_3m", "months_since_active", "total_ngr_rate_1m", "brand_id_OH"} <= set(default)
    assert not set(default) & set(NAMES[:4])
    assert list(registry.open(us, "challenger").bundle.feature_names) == names
    origins = [
        client.get_run(client.get_model_version("churn-prediction-model-us", number).run_id).data.params
        for number in ("1", "2")
    ]
    assert [one["feature_names_from"] for one in origins] == ["the default set, version 1", "--features"]
    # The champion's held-out figures are those that it had itself, on the same accounts.
    assert lines(said[1])["champion"].startswith(lines(said[0])["held"].removeprefix("out ").split(";")[0].strip())


def test_names_that_are_no_windows_and_unreadable_files_are_refused(site: Site, train_model: Run) -> None:
    put_activity(site)
    said = train_model("--as-of", "2026-11-30", "--features", "total_handle_sum_0m")
    assert said.status == 1
    assert "'total_handle_sum_0m' look like windows over past months and are none" in said.err
    said = train_model("--features", "total_handle,total_handle")
    assert said.status == 2
    assert "repeated feature names: ['total_handle']" in said.err


def require_remakable(client: Any, version: Any, code_version: str) -> None:
    """Fail unless a version and its run say what was trained, on what, how and how well."""
    run = client.get_run(version.run_id)
    assert client.get_experiment(run.info.experiment_id).name == "churn_prediction"
    assert run.info.run_name == "train-base-2026-11-30"
    for tags in (version.tags, run.data.tags):
        assert tags["churn.gate"] == "passed"
        assert tags["churn.trained_on"] == "base"
        assert tags["churn.trained_as_of"] == tags["training_date"] == "2026-11-30"
        assert tags["churn.code_version"] == code_version
        assert len(tags["churn.data_sha256"]) == 64
        assert tags["churn.auc_limit"] == f"{run.data.metrics['roc_auc_low']:.4f}"
    params, metrics = run.data.params, run.data.metrics
    assert "as of 2026-11-30 on the activity of base; ROC AUC on" in version.description
    assert 0.6 < metrics["roc_auc_low"] < metrics["roc_auc"] < metrics["roc_auc_high"] < 1
    assert {"log_loss", "calibration_error", "lift_at_10", "average_precision_low"} <= set(metrics)
    assert params["held_out_days"].startswith("2026-05-04 2026-05-11 2026-05-18 2026-05-25 2026-06-01")
    assert {"max_depth", "n_rounds", "calibration_slope", "seed", "horizon_months"} <= set(params)
    (dataset,) = run.inputs.dataset_inputs
    assert run.data.tags["mlflow.note.content"] == version.description
    assert version.tags["churn.data_sha256"].startswith(dataset.dataset.digest)
    files = {file.path for file in client.list_artifacts(version.run_id)}
    pictures = {file.path for file in client.list_artifacts(version.run_id, "pictures")}
    assert {"model_card.md", "gate.json", "trials.json"} <= files
    assert {"pictures/roc.svg", "pictures/reliability.svg", "pictures/reasons.svg"} <= pictures


def require_card(client: Any, version: Any) -> None:
    """Fail unless the card tells what was measured, what it was measured on, and how it was judged."""
    card = Path(client.download_artifacts(version.run_id, "model_card.md")).read_text()
    metrics = client.get_run(version.run_id).data.metrics
    assert f"{metrics['roc_auc']:.4f} ({metrics['roc_auc_low']:.4f} to {metrics['roc_auc_high']:.4f})" in card
    for check in GATE_CHECKS:
        assert f"| {check} |" in card
    for heading in ("Data", "Metrics", "Gate", "Parameters", "Limits", "Lineage"):
        assert f"## {heading}\n" in card
    for tag in ("churn.data_sha256", "churn.model_sha256"):
        assert version.tags[tag] in card


@pytest.mark.slow
def test_a_dry_run_says_what_would_be_and_writes_nothing(
    site: Site, train_model: Run, client: Any, instance: dg.DagsterInstance
) -> None:
    put_names(site)
    put_activity(site)
    before = keys_under(site, "")

    said = train_model("--dry-run")

    assert said.status == 0, said
    assert "dry run    nothing was changed" in said.out
    assert "auc_is_above_minimum: AUC" in said.out
    sync_partitions(instance, [Variant()])
    assert run_training(instance, "base", "base", dry_run=True).success
    assert instance.get_materialized_partitions(dg.AssetKey("trained_models")) == set()
    assert keys_under(site, "") == before
    assert client.search_registered_models() == []
    assert client.get_experiment_by_name("churn_prediction") is None


@pytest.mark.slow
def test_a_variant_with_too_few_labels_is_trained_on_its_parents_activity_and_says_so(
    site: Site, train_model: Run, client: Any
) -> None:
    put_names(site)
    put_activity(site, "geography-eu")
    put_activity(site, "geography-eu.company-clientb", activity("geography-eu.company-clientb", n_accounts=150))

    said = train_model("--geography", "EU", "--company", "ClientB")

    assert said.status == 0, said
    version = client.get_model_version("churn-prediction-model-eu-clientb", "1")
    assert version.tags["churn.trained_on"] == "geography-eu"
    assert "where 200 of each are needed" in version.tags["churn.trained_on_because"]
    run = client.get_run(version.run_id).data
    assert run.params["activity_of"] == "geography-eu"
    assert [(tags["geography"], tags["company_id"]) for tags in (run.tags, version.tags)] == [
        ("EU", "ClientB"),  # as typed
        ("eu", "clientb"),
    ]
    assert "because    geography-eu.company-clientb has" in said.out
    assert keys_under(site, "geography-eu/history/")
    assert keys_under(site, "geography-eu/company-clientb/history/")
    assert not keys_under(site, "history/")


@pytest.mark.slow
def test_a_fleet_is_trained_together_and_a_retry_of_what_is_left_has_the_same_pool(
    site: Site, client: Any, deployment: Deployment
) -> None:
    keys, as_of = ["company-few", "company-none", "geography-eu", "geography-us"], date(2026, 11, 25)
    for key, n_accounts in {"geography-us": 900, "geography-eu": 600, "company-few": 60}.items():
        put_activity(site, key, activity(key, n_accounts=n_accounts))
    trainer = replace(deployment.trainer(n_trials=2), least_pooled=len(keys), limits=GateLimits(min_auc=0.5))

    outcomes = dict(trainer.train_fleet(keys, as_of, lambda outcome: outcome))

    versions = {key: outcome.version for key, outcome in outcomes.items()}
    assert {key: version.alias for key, version in versions.items()} == dict.fromkeys(keys, "champion")
    tags = {key: client.get_model_version(of.registered_model, "1").tags for key, of in versions.items()}
    assert all(of["churn.pooled"].startswith("3 variants, with ") for of in tags.values())
    few = {key for key, of in tags.items() if of["churn.pooled"].endswith("too few labels of its own")}
    assert (
        few == {"company-few", "company-none"} == {key for key, of in tags.items() if "churn.trained_on_because" in of}
    )
    assert "company-none has no activity" in tags["company-none"]["churn.trained_on_because"]
    assert {key: version.has_reference for key, version in versions.items()} == {key: key not in few for key in keys}
    names = {outcome.trained.feature_names for outcome in outcomes.values()}
    assert len(names) == 1
    stored = keys_under(site, "history/pools/")
    assert len(stored) == 1
    assert not keys_under(site, "company-none/history/")

    forkserver._forkserver._stop()  # it was perhaps started with another environment  # noqa: SLF001
    workers = Workers(None, open_node, deployment.fingerprint(), 1, Deployment.trainer)
    sha256 = attrgetter("version.sha256")
    retried = dict(trainer.train_fleet(keys[2:3], as_of, sha256, fleet=keys, workers=workers))

    assert retried == {"geography-eu": versions["geography-eu"].sha256}
    assert keys_under(site, "history/pools/") == stored


def test_without_a_bucket_the_local_copy_is_used_and_the_base_variants_is_nobody_elses_own(
    site: Site, train_model: Run, client: Any, monkeypatch: pytest.MonkeyPatch, local_root: Path
) -> None:
    monkeypatch.delenv("MLFLOW_S3_BUCKET")
    (local_root / "data/churn/activity.parquet").write_bytes(activity())

    said = train_model("--company", "ClientA")

    assert said.status == 0, said
    version = client.get_model_version("churn-prediction-model-clienta", "1")
    assert version.tags["churn.trained_on"] == "base"
    assert version.tags["churn.trained_on_because"].startswith("company-clienta has no activity (S3 is not configured")
    assert len(list((local_root / "history/activity").glob("*.parquet"))) == 1
    assert not (local_root / "company-clienta").exists()


def test_a_model_that_fails_the_gate_is_kept_without_an_alias_and_a_failed_variant_stops_no_other(
    site: Site, train_model: Run, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_names(site, names=[*NAMES, "n_logins"])  # a number beyond the contract, in a file that has it as text
    frame = pl.read_parquet(activity()).with_columns(n_logins=pl.int_range(pl.len()).cast(pl.String))
    body = io.BytesIO()
    frame.write_parquet(body)
    put_activity(site, body=body.getvalue())
    put_activity(site, "geography-us", b"PAR1 and no more")
    monkeypatch.setenv("CHURN_MIN_AUC", "0.97")

    said = train_model("--variant", "geography-us", "--variant", "base")

    assert said.status == 1
    assert "train_model.py: geography-us: activity.parquet is a truncated or damaged Parquet file" in said.err
    assert "train_model.py: 1 of 2 failed: geography-us" in said.err
    assert lines(said)["gate"] == "FAILED"
    assert "version 1 is not a challenger: auc_is_above_minimum" in said.out
    (model,) = client.search_registered_models()
    assert model.name == "churn-prediction-model"
    assert not model.aliases
    version = client.get_model_version(model.name, "1")
    assert version.tags["churn.gate"] == "failed"
    assert "auc_is_above_minimum: AUC" in version.tags["churn.gate_failures"]
    assert client.get_run(version.run_id).data.params["n_features"] == str(len(NAMES) + 1)


def test_too_few_labels_anywhere_are_an_error_with_the_counts(site: Site, train_model: Run, client: Any) -> None:
    put_names(site)
    put_activity(site, body=activity(n_accounts=200))
    put_activity(site, "geography-us", activity("geography-us", n_accounts=100))

    said = train_model("--geography", "US")

    said.require_one_line(
        "train_model.py: geography-us cannot be trained as of",
        "geography-us has",
        "base has",
        "matured labels of churn",
        "its months run from 2025-02 to 2026-10",
        "upload activity of more months",
    )
    assert client.search_registered_models() == []


def test_rows_that_came_encoded_cannot_be_trained_on(site: Site, train_model: Run) -> None:
    put_model_files(site)

    train_model().require_one_line("X_test_sample_2.json contains rows already encoded", "upload raw activity")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--as-of", "2999-01-01"), "is in the future"),
        (("--as-of", "soon"), "'soon' is not a day"),
        (("--trials", "0"), "not a number of trials"),
        (("--geography", "U.S."), "did you mean 'u_s'?"),
    ],
)
def test_what_cannot_be_meant_is_told_before_anything_is_opened(
    train_model: Run, arguments: Sequence[str], said: str
) -> None:
    found = train_model(*arguments)

    assert found.status == 2
    assert said in found.err


def test_the_script_runs_from_its_own_folder() -> None:
    found = run_script("train_model.py", "--as-of", "2999-01-01", folder=ROOT / "experiment_tracking")

    found.require_one_line("train_model.py: --as-of 2999-01-01 is in the future", status=2)


def run_training(instance: dg.DagsterInstance, first: str, last: str, **config: object) -> dg.ExecuteInProcessResult:
    return defs.resolve_job_def("training_job").execute_in_process(
        instance=instance,
        tags={RANGE_START_TAG: first, RANGE_END_TAG: last},
        run_config={"ops": {"train_variants": {"config": {"trials": 1, **config}}}},
        raise_on_error=False,
    )


def test_dagster_trains_a_range_and_shows_what_came_of_each_variant(
    site: Site, log_model: Run, instance: dg.DagsterInstance, client: Any
) -> None:
    keys = ["base", "geography-us"]
    for key in keys:
        put_model_files(site, Variant.from_key(key).prefix)
    assert log_model("--variant", "base", "--variant", "geography-us").status == 0
    sync_partitions(instance, [Variant.from_key(key) for key in keys])
    put_activity(site)  # geography-us has its sample only, which cannot be trained on

    done = run_training(instance, "base", "geography-us")

    assert not done.success
    (failure,) = [event for event in done.all_events if event.is_step_failure]
    reasons = failure.step_failure_data.user_failure_data.metadata["failed"].value
    assert list(reasons) == ["geography-us"]
    assert "rows already encoded" in reasons["geography-us"]
    (materialization,) = done.asset_materializations_for_node("train_variants")
    assert materialization.partition == "base"
    metadata = materialization.metadata
    assert metadata["alias"].value == "challenger"
    assert metadata["model_version"].value == 2
    assert "| auc_is_above_minimum | holds |" in metadata["gate"].value
    assert metadata["mlflow"].value.endswith(
        "/#/models/churn-prediction-model/versions/2?workflowType=machine_learning"
    )
    assert metadata["roc"].value.startswith("![picture](data:image/svg+xml;base64,")
    assert metadata["held_out_roc_auc"].value > 0.6
    evaluations = [e for e in done.get_asset_check_evaluations() if e.partition == "base"]
    assert {e.check_name for e in evaluations} == set(GATE_CHECKS)
    assert all(e.passed for e in evaluations), evaluations
    assert client.get_model_version_by_alias("churn-prediction-model", "challenger").version == 2
    status = instance.get_status_by_partition(dg.AssetKey("trained_models"), keys, variants_partitions)
    assert {key: status[key].value for key in keys} == {"base": "MATERIALIZED", "geography-us": "FAILED"}


@pytest.mark.parametrize(("as_of", "said"), [("soon", "'soon' is not a date"), ("2999-01-01", "is in the future")])
def test_a_day_that_cannot_be_meant_fails_the_run_at_once(instance: dg.DagsterInstance, as_of: str, said: str) -> None:
    sync_partitions(instance, [Variant()])

    done = run_training(instance, "base", "base", as_of=as_of)

    assert not done.success
    (failure,) = [event for event in done.all_events if event.is_step_failure]
    assert said in failure.step_failure_data.error_display_string
