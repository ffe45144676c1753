"""At stake: a system that watches itself must see what happens to it, tell it once, and say when it is over. It must
not be blind when a service is down, nor slow when it has thousands of variants.
"""

import json
import re
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from churn.database.connection import create_engine
from churn.deployment.services import Deployment
from churn.errors import RegistryUnavailableError
from churn.variants import Variant
from churn.workflows.monitor import FleetMonitor
from orchestration.definitions import defs
from orchestration.failed_runs import failed_runs
from orchestration.partitions import RANGE_END_TAG, RANGE_START_TAG, sync_partitions
from orchestration.resources import Services
from orchestration.sensors import incident_sensor
from tests.support import ROOT
from tests.support.batches import week_request
from tests.support.inputs import register_bundled
from tests.support.site import Run, Site, bundled

US, EU = "geography-us", "geography-eu"
KEYS = [EU, US]


def monday(weeks_ago: int = 0) -> date:
    today = datetime.now(UTC).date()
    return today - timedelta(days=today.weekday() + 7 * weeks_ago)


def noon(week: date) -> datetime:
    return datetime(week.year, week.month, week.day, 12, tzinfo=UTC)


@pytest.fixture
def fleet(site: Site, log_model: Run, instance: dg.DagsterInstance) -> None:
    """Two registered variants, each with activity in S3."""
    register_bundled(site, log_model, *KEYS)
    for key in KEYS:
        put_input(site, key, bundled("activity.parquet"))
    sync_partitions(instance, [Variant.from_key(key) for key in KEYS])


def put_input(site: Site, key: str, body: bytes) -> None:
    site.put(f"{Variant.from_key(key).prefix}data/churn/activity.parquet", body)


def run(instance: dg.DagsterInstance, job: str) -> dg.ExecuteInProcessResult:
    tags = {RANGE_START_TAG: EU, RANGE_END_TAG: US} if job == "churn_prediction_job" else {}
    return defs.resolve_job_def(job).execute_in_process(instance=instance, tags=tags, raise_on_error=False)


def look(instance: dg.DagsterInstance) -> str:
    with dg.build_sensor_context(instance=instance, resources={"services": Services()}) as context:
        result = incident_sensor(context)
    assert isinstance(result, dg.SkipReason)
    return str(result.skip_message)


def open_incidents(site: Site) -> dict[str, list[str]]:
    rows = site.rows(site.churn, "SELECT kind, members FROM incidents WHERE resolved_at IS NULL")
    return {kind: sorted(members) for kind, members in rows}


def test_a_failed_variant_opens_an_incident_once_and_its_success_ends_it(
    site: Site, fleet: None, instance: dg.DagsterInstance
) -> None:
    put_input(site, US, b"account_id,activity_month\n1,soon\n")
    assert not run(instance, "churn_prediction_job").success

    first, second = look(instance), look(instance)

    assert "opened: Scoring failed: 1 variant" in first
    assert "no change" in second
    assert open_incidents(site) == {"variants_failed": [US]}  # and no run_failed: it failed for this reason alone
    put_input(site, US, bundled("activity.parquet"))
    assert run(instance, "churn_prediction_job").success
    assert "resolved" in look(instance)
    assert open_incidents(site) == {}
    assert site.rows(site.churn, "SELECT event FROM alerts ORDER BY alert_id") == [("opened",), ("resolved",)]


def test_a_run_that_fails_as_a_whole_is_told_until_the_same_work_succeeds(
    site: Site, fleet: None, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setenv("MLFLOW_SECRET_NAME", "there/is/none")
        for job in ("churn_prediction_job", "maintenance_job"):
            assert not run(instance, job).success

    now = datetime.now(UTC)
    found = {one.job: one for one in failed_runs(instance, now)}
    assert set(found) == {"churn_prediction_job", "maintenance_job"}
    assert "there/is/none" in found["maintenance_job"].sentence
    assert list(found["churn_prediction_job"].names) == KEYS
    look(instance)
    rows = site.rows(site.churn, "SELECT kind, subject FROM incidents ORDER BY subject")
    assert rows == [("run_failed", "churn_prediction_job"), ("run_failed", "maintenance_job")]

    assert run(instance, "maintenance_job").success
    look(instance)

    assert [one.job for one in failed_runs(instance, now)] == ["churn_prediction_job"]
    rows = site.rows(site.churn, "SELECT subject FROM incidents WHERE resolved_at IS NULL")
    assert rows == [("churn_prediction_job",)]


def test_the_assets_show_what_is_wrong_with_checks_and_keep_the_flags(
    site: Site, fleet: None, deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    scorer = deployment.scorer()
    for week in (monday(1), monday()):
        for key in KEYS:
            scorer.score_variant(week_request(week).of(Variant.from_key(key)))
    drift_away(site, US)

    result = run(instance, "monitoring_job")

    assert result.success, [event.step_failure_data for event in result.get_step_failure_events()]
    evaluations = {one.check_name: one for one in result.get_asset_check_evaluations()}
    failed = {name for name, one in evaluations.items() if not one.passed}
    assert len(evaluations) == 11
    assert failed == {"no_input_drifts", "levels_are_known"}
    assert (
        "brand_id (share of OH 10 % → 50 %, PSI 0.40, unknown 12.0 %)"
        in evaluations["no_input_drifts"].metadata["variants"].value
    )
    assert evaluations["every_variant_was_scored"].severity == dg.AssetCheckSeverity.ERROR
    flags = "SELECT variant, scored_week, feature, is_confirmed FROM drift_flags JOIN scoring_batches USING (batch_id)"
    assert site.rows(site.churn, flags) == [(US, monday(), "brand_id", True)]
    assert open_incidents(site) == {"input_drifted": [US]}
    (shown,) = result.asset_materializations_for_node("fleet_incidents")
    assert "| Input drifted: 1 variant | warning |" in shown.metadata["open_incidents"].value

    assert run(instance, "monitoring_job").success
    assert site.rows(site.churn, flags) == [(US, monday(), "brand_id", True)]
    assert site.rows(site.churn, "SELECT count(*) FROM alerts") == [(1,)]


def drift_away(site: Site, key: str) -> None:
    """Let a variant's batches say that one feature drifted, and no other of any variant."""
    none = {"psi": 0.001, "excess_psi": -0.01, "jensen_shannon": 0.01, "p_value": 0.5, "n_rows": 1000,
            "unknown_share": 0.0, "unknown_rise": 0.0, "unknown_p_value": 1.0, "n_reference": 1000, "effect": 0.0,
            "moves": {"OH": [0.1, 0.1], "unknown": [0.0, 0.0]}}  # fmt: skip
    moved = none | {"psi": 0.4, "excess_psi": 0.39, "p_value": 1e-20, "unknown_share": 0.12, "unknown_rise": 0.12,
                    "unknown_p_value": 1e-15, "moves": {"OH": [0.1, 0.5], "unknown": [0.0, 0.12]}}  # fmt: skip
    change = (
        "UPDATE scoring_batches SET drift = CAST(:drift AS jsonb), source_sha256 = md5(scored_week::text) "
        "WHERE variant = :key OR :of_all"
    )
    still = {"total_deposit": none, "brand_id": none}
    site.rows(site.churn, change, drift=json.dumps(still), key=key, of_all=True)
    site.rows(site.churn, change, drift=json.dumps(still | {"brand_id": moved}), key=key, of_all=False)


def remove(deployment: Deployment, *keys: str) -> None:
    from mlflow import MlflowClient

    deployment.registry(read_only=False)
    client = MlflowClient(deployment.tracking_uri)
    for key in keys:
        client.delete_registered_model(Variant.from_key(key).registered_model)


def test_a_missed_week_is_told_after_the_grace_and_what_is_gone_until_somebody_says_so(
    site: Site, fleet: None, deployment: Deployment, log_model: Run
) -> None:
    for key in KEYS:
        deployment.scorer().score_variant(week_request(monday(1)).of(Variant.from_key(key)))
    monitor, week = deployment.fleet_monitor(), monday()

    early = monitor.reconcile(noon(week) - timedelta(hours=7), [])
    late = monitor.reconcile(noon(week), [])

    assert not early.members("week_missed")
    assert set(late.members("week_missed")) == set(KEYS)
    assert monitor.to_repeat(noon(week) - timedelta(hours=7)) == {}
    assert monitor.to_repeat(noon(week)) == dict.fromkeys(KEYS, 0)
    remove(deployment, EU)
    assert monitor.to_repeat(noon(week)) == {US: 0}
    gone = monitor.reconcile(noon(week), [])
    assert set(gone.members("variants_missing")) == {EU}
    assert "not registered in MLflow any more" in (gone.by_check()["every_variant_was_scored"] or {})[EU]
    assert open_incidents(site) == {"week_missed": KEYS, "variants_missing": [EU]}
    # Weeks later, when nothing that is wrong can be seen any more, and while the registry is down.
    blind = replace(monitor, champions=unavailable)
    for look in (monitor, blind):
        look.reconcile(noon(week) + timedelta(weeks=60), [])
        assert open_incidents(site) == {"week_missed": KEYS, "variants_missing": [EU]}

    acknowledge = re.findall(r"^UPDATE watched_variants .*?;", (ROOT / "docs/runbook.md").read_text(), re.M | re.S)
    site.rows(site.churn, acknowledge[0].replace("geography-us", EU))

    changes = monitor.reconcile(noon(week), []).changes
    assert [(one.event, one.kind) for one in changes] == [("resolved", "variants_missing")]
    assert open_incidents(site) == {"week_missed": [US]}
    assert monitor.reconcile(noon(week), []).changes == []
    register_bundled(site, log_model, EU)
    monitor.reconcile(noon(week), [])
    remove(deployment, EU)
    assert set(monitor.reconcile(noon(week), []).members("variants_missing")) == {EU}
    page = (ROOT / "docs/how-to/remove-a-variant.md").read_text()
    (statements,) = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    site.rows(site.churn, f"SET ROLE churn_owner; {statements}; RESET ROLE".replace("geography-ux", EU))
    assert not monitor.reconcile(noon(week), []).members("variants_missing")
    assert set(site.current()["variant"]) == {US}


def unavailable() -> dict[str, int | None]:
    raise RegistryUnavailableError("MLflow did not answer")


def test_a_variant_that_was_never_scored_misses_the_week_and_is_missed_when_it_leaves(
    fleet: None, deployment: Deployment
) -> None:
    monitor, week = deployment.fleet_monitor(), monday()

    assert not monitor.reconcile(noon(week), []).members("week_missed", "variants_missing")
    late = monitor.reconcile(noon(week + timedelta(weeks=1)), [])
    assert set(late.members("week_missed")) == set(KEYS)
    remove(deployment, *KEYS)
    assert set(monitor.reconcile(noon(week), []).members("variants_missing")) == set(KEYS)


def test_without_the_registry_what_needs_it_neither_opens_nor_ends(
    site: Site, fleet: None, deployment: Deployment, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.scorer().score_variant(week_request(monday(1)).of(Variant.from_key(US)))
    deployment.fleet_monitor().reconcile(noon(monday()), [])
    assert open_incidents(site) == {"week_missed": [US]}
    deployment.store().record_failure(EU, monday(), None, noon(monday()), ValueError("no such file"))

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    result = run(instance, "monitoring_job")

    assert result.success, [event.step_failure_data for event in result.get_step_failure_events()]
    assert open_incidents(site) == {"week_missed": [US], "variants_failed": [EU]}
    not_evaluated = {
        one.check_name for one in result.get_asset_check_evaluations() if "not evaluated" in str(one.description)
    }
    assert not_evaluated == {
        "every_variant_was_scored", "performance_holds", "scores_match_outcomes", "segments_hold"
    }  # fmt: skip


def test_what_a_champion_was_worth_is_told_until_another_takes_its_place(
    site: Site, fleet: None, deployment: Deployment
) -> None:
    scorer = deployment.scorer()
    for key in KEYS:
        scorer.score_variant(week_request(monday()).of(Variant.from_key(key)))
    judge = (
        "INSERT INTO evaluated_batches (evidence_after, "
        "batch_id, evaluated_at, labels_as_of, horizon_months, n_accounts, n_at_risk,"
        " n_matured, n_missing, n_churned, status, auc_limit, roc_auc, roc_auc_low, roc_auc_high)"
        " SELECT date '2000-01-01', "
        "batch_id, now(), now(), 3, 900, 900, 900, 0, 300, 'ok', 0.7, :auc, :auc - 0.03, :auc + 0.03"
        " FROM scoring_batches WHERE variant = :key"
    )
    segment = (
        "INSERT INTO evaluated_segments (batch_id, segment, level, n_matured, n_churned, status,"
        " roc_auc, p_below_limit) "
        "SELECT batch_id, 'brand_id', :level, 300, 100, 'ok', 0.5, :p FROM scoring_batches WHERE variant = :key"
    )
    site.rows(site.churn, judge, key=US, auc=0.55)
    site.rows(site.churn, judge, key=EU, auc=0.8)
    for level, p_value in (("OH", 1e-9), ("PA", 0.5)):
        site.rows(site.churn, segment, key=EU, level=level, p=p_value)
    monitor = deployment.fleet_monitor()

    status = monitor.reconcile(datetime.now(UTC), [])

    assert set(status.members("performance_low")) == {US}
    assert status.members("segment_low") == {EU: "brand_id OH: ROC AUC 0.500; the limit is 0.700"}
    promoted = FleetMonitor(monitor.fleet, monitor.incidents, lambda: {US: 2, EU: 1}, (), monitor.grace)
    assert not promoted.reconcile(datetime.now(UTC), []).members("performance_low")


@pytest.fixture
def thousands(site: Site) -> list[str]:
    """The records of 2,000 variants over 26 weeks, with drift measures as the weekly job writes them."""
    keys = [f"company-c{i:04}" for i in range(2000)]
    measures = {"psi": 0.01, "excess_psi": 0.001, "jensen_shannon": 0.02, "p_value": 0.4, "n_rows": 1000,
                "unknown_share": 0.0, "unknown_rise": 0.0, "unknown_p_value": 1.0, "n_reference": 1000, "effect": 0.0,
                "moves": {f"0.{i}": [i / 10, i / 10] for i in range(1, 10)} | {"unknown": [0.0, 0.0]}}  # fmt: skip
    drift = json.dumps({f"feature_{i}": measures for i in range(28)} | {"churn_probability": measures})
    columns: dict[str, Any] = {"drift": drift, "first": monday(25), "n_weeks": 26, "n_variants": len(keys)}
    statements = (
        "INSERT INTO scoring_batches (variant, scored_week, as_of, registered_model, model_version, role, model_sha256,"
        " mlflow_run_id, code_version, source, source_uri, source_version, source_sha256, source_modified_at,"
        " source_variant, account_ids, n_rows_read, n_rows_quarantined, n_accounts_withheld, n_rows_scored,"
        " unknown_levels, started_at, published_at, is_current, drift, profile_counts)"
        " SELECT v, w, w, 'm', 1, 'champion', 'x', 'r', 'c', 's3', 'u', 'v', md5(v || w), w, v, 'input', 1000, 0, 0,"
        " 1000, '{}', w, w, true, CAST(:drift AS jsonb), array_fill(100::bigint, ARRAY[100])"
        " FROM (SELECT 'company-c' || lpad(i::text, 4, '0') AS v FROM generate_series(0, :n_variants - 1) i) AS vs,"
        " (SELECT CAST(:first AS date) + 7 * i AS w FROM generate_series(0, :n_weeks - 1) i) AS weeks",
        "INSERT INTO scoring_attempts (variant, scored_week, outcome, batch_id, started_at, ended_at)"
        " SELECT variant, scored_week, 'published', batch_id, started_at, published_at FROM scoring_batches",
        "INSERT INTO evaluated_batches (evidence_after, "
        "batch_id, evaluated_at, labels_as_of, horizon_months, n_accounts, n_at_risk,"
        " n_matured, n_missing, n_churned, status, auc_limit, roc_auc, roc_auc_low, roc_auc_high)"
        " SELECT date '2000-01-01', "
        "batch_id, now(), now(), 3, 900, 900, 900, 0, 300, 'ok', 0.7, 0.75, 0.7, 0.8 FROM scoring_batches",
        "INSERT INTO evaluated_segments (batch_id, segment, level, n_matured, n_churned, status,"
        " roc_auc, p_below_limit)"
        " SELECT batch_id, 'brand_id', i::text, 300, 100, 'ok', 0.7, 0.5 FROM evaluated_batches,"
        " generate_series(1, 8) i"
        " WHERE batch_id % 4 = 0",
        "ANALYZE",
    )
    engine = create_engine(site.server.set(database=site.churn)).execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(sa.text(statement), columns if ":drift" in statement else {})
    return keys


@pytest.mark.slow
def test_a_look_at_two_thousand_variants_takes_less_than_five_seconds(
    thousands: list[str], deployment: Deployment
) -> None:
    monitor = deployment.fleet_monitor()
    quick = FleetMonitor(monitor.fleet, monitor.incidents, lambda: dict.fromkeys(thousands, 1), (), monitor.grace)

    started = time.process_time(), time.perf_counter()
    status = quick.reconcile(datetime.now(UTC), [])
    spent = time.process_time() - started[0], time.perf_counter() - started[1]

    assert status.n_variants == 2000
    assert not status.changes
    assert max(spent) < 5, spent
