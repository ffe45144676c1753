"""At stake: learning is automatic as far as it should be, and no further. Batches are evaluated when their labels have
matured, training is requested where there is a reason, and champions move on a launch, not on a timer.
"""

import io
import json
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import polars as pl
import pytest

from churn.database.evaluations import EvaluatedBatch
from churn.deployment.services import Deployment
from churn.variants import Variant
from churn.weeks import monday_of
from orchestration.assets.scoring import ASSETS, OP_NAME
from orchestration.definitions import defs
from orchestration.fleet import RESUME_TAGS
from orchestration.partitions import RANGE_END_TAG, RANGE_START_TAG, sync_partitions
from orchestration.resources import Services
from orchestration.sensors import REASON_TAG, retraining_sensor
from tests.support.batches import week_request
from tests.support.inputs import register_bundled, register_second, trained_until
from tests.support.run_job import promotion_job, weekly_job
from tests.support.simulated import simulate_activity
from tests.support.site import Run, Site

US, EU = Variant("us"), Variant("eu")
KEYS = [EU.key, US.key]
WEEK = date(2026, 5, 25)


@pytest.fixture
def fleet(site: Site, log_model: Run, instance: dg.DagsterInstance) -> None:
    """Two registered variants: one with raw activity, one with encoded rows only."""
    activity = simulate_activity(n_accounts=1500, first_month=date(2025, 2, 1), n_months=21, seed=3)
    body = io.BytesIO()
    activity.write_parquet(body)
    register_bundled(site, log_model, *KEYS)
    trained_until(site, US, 1)
    site.put(f"{US.prefix}data/churn/activity.parquet", body.getvalue())
    sync_partitions(instance, [EU, US])


def run(instance: dg.DagsterInstance, job: str, **options: object) -> dg.ExecuteInProcessResult:
    return defs.resolve_job_def(job).execute_in_process(instance=instance, raise_on_error=False, **options)


def run_evaluation(instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    return run(instance, "evaluation_job", tags={RANGE_START_TAG: KEYS[0], RANGE_END_TAG: KEYS[-1]})


def evaluate(instance: dg.DagsterInstance, cursor: str | None = None) -> dg.SensorResult:
    with dg.build_sensor_context(instance=instance, cursor=cursor, resources={"services": Services()}) as context:
        result = retraining_sensor(context)
    assert isinstance(result, dg.SensorResult)
    return result


def test_past_batches_are_evaluated_and_variants_without_activity_are_skipped(
    site: Site, fleet: None, deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    deployment.scorer().score_variant(week_request(WEEK).of(US))

    result = run_evaluation(instance)

    assert result.success, [event.step_failure_data for event in result.get_step_failure_events()]
    shown = {event.partition: event.metadata for event in result.asset_materializations_for_node("evaluate_batches")}
    assert set(shown) == set(KEYS)
    assert "rows already encoded" in shown[EU.key]["not_evaluated"].value
    assert shown[US.key]["batches_evaluated"].value == 1
    assert shown[US.key]["facts_added_to_history"].value > 1500
    assert 0.6 < shown[US.key]["roc_auc"].value < 1
    assert f"| {WEEK} | champion v1 |" in shown[US.key]["evaluated"].value
    rows = site.rows(site.churn, "SELECT n_at_risk, n_matured, status FROM evaluated_batches")
    assert [(at_risk == matured, status) for at_risk, matured, status in rows] == [(True, "ok")]
    actions = site.rows(site.churn, "SELECT variant, action, champion_version FROM model_events ORDER BY variant")
    assert actions == [(EU.key, "observed", 1), (US.key, "observed", 1)]

    again = run_evaluation(instance)
    assert again.success
    assert site.rows(site.churn, "SELECT count(*) FROM evaluated_batches") == [(1,)]


def test_a_champion_moves_on_a_launch_and_back_on_another(
    site: Site, fleet: None, log_model: Run, deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    register_second(site, log_model, US)
    promoter = deployment.promoter()
    promoter.challenge(US, 2, "a test")

    def launch(**config: object) -> dg.ExecuteInProcessResult:
        full = {"variants": [US.key], **config}
        return run(instance, "promotion_job", run_config={"ops": {"move_champions": {"config": full}}})

    undecided = launch(variants=[US.key, "no variant"])
    assert not undecided.success
    (failure,) = (event for event in undecided.all_events if event.is_step_failure)
    assert "no account that both models scored" in str(failure.event_specific_data)
    assert "2 of 2 variants not changed" in str(failure.event_specific_data)
    assert promoter.registry.aliases_of(US)["champion"] == 1
    assert launch(force=True, reason="a drill", dry_run=True).success
    assert promoter.registry.aliases_of(US)["champion"] == 1
    assert launch(force=True, reason="a drill").success
    assert promoter.registry.aliases_of(US) == {"champion": 2, "previous": 1}
    assert launch(action="ROLLBACK", reason="a drill").success
    assert promoter.registry.aliases_of(US) == {"champion": 1, "previous": 2}


def test_a_retry_of_a_rollback_is_the_same_decision(
    site: Site, fleet: None, log_model: Run, deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    register_second(site, log_model, US)
    promoter = deployment.promoter()
    promoter.challenge(US, 2, "a test")
    promoter.promote(US, force=True, reason="a drill")
    config = {"ops": {"move_champions": {"config": {"variants": [US.key], "action": "ROLLBACK"}}}}
    job = dg.reconstructable(promotion_job)
    with dg.execute_job(job, instance, run_config=config) as first:
        assert first.success
    again = dg.ReexecutionOptions(parent_run_id=first.run_id)

    with dg.execute_job(job, instance, run_config=config, reexecution_options=again) as retried:
        assert retried.success
    with dg.execute_job(job, instance, run_config=config, raise_on_error=False) as launched_again:
        assert not launched_again.success

    assert promoter.registry.aliases_of(US) == {"champion": 1, "previous": 2}
    assert [event.action for event in promoter.events.history(US)].count("rolled_back") == 1


def test_a_retry_scores_the_week_that_its_first_run_was_launched_in(
    site: Site, fleet: None, instance: dg.DagsterInstance
) -> None:
    tags = {RANGE_START_TAG: US.key, RANGE_END_TAG: US.key}
    config = {"ops": {OP_NAME: {"config": {"corrected": True}}}}
    job = dg.reconstructable(weekly_job)
    with dg.execute_job(job, instance, run_config=config, tags=tags, raise_on_error=False) as first:
        pass
    site.rows(site.dagster, "UPDATE runs SET create_timestamp = create_timestamp - interval '7 days'")
    again = dg.ReexecutionOptions(parent_run_id=first.run_id)

    with dg.execute_job(job, instance, run_config=config, tags=tags, reexecution_options=again) as retried:
        assert retried.success

    monday = monday_of(datetime.now(UTC).date())
    weeks = site.rows(site.churn, "SELECT scored_week FROM scoring_batches ORDER BY batch_id")
    assert weeks == [(monday,), (monday - timedelta(days=7),)]


def test_what_a_killed_run_published_is_told_by_the_run_that_resumes_it(
    site: Site, fleet: None, deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    tags = {RANGE_START_TAG: KEYS[0], RANGE_END_TAG: KEYS[-1]}
    week = monday_of(datetime.now(UTC).date())
    # What a kill between a commit and its events leaves: a failed run, and a batch of it.
    killed = instance.create_run_for_job(weekly_job(), tags=tags)
    instance.report_run_failed(killed)
    deployment.scorer().score_variant(week_request(week, dagster_run_id=killed.run_id).of(US))
    logged, parent = [], killed.run_id
    for _ in range(2):
        resume = dg.ReexecutionOptions(parent_run_id=parent)
        config, resuming = {"ops": {OP_NAME: {"config": {"corrected": True}}}}, tags | {RESUME_TAGS[0]: "true"}
        job = dg.reconstructable(weekly_job)
        with dg.execute_job(job, instance, run_config=config, tags=resuming, reexecution_options=resume) as resumed:
            assert resumed.success
            logged.append((resumed.asset_materializations_for_node(OP_NAME), resumed.get_asset_check_evaluations()))
        if parent == killed.run_id:  # by hand, after the run that is resumed
            deployment.scorer().score_variant(week_request(week).of(US))
        parent = resumed.run_id

    scored = [US.key, EU.key, US.key]
    assert site.rows(site.churn, "SELECT variant FROM scoring_batches ORDER BY batch_id") == [(key,) for key in scored]
    (told, checked), (told_again, checked_again) = logged
    assert sorted((event.asset_key.to_user_string(), event.partition) for event in told) == [
        (asset, key) for asset in sorted(ASSETS) for key in KEYS
    ]
    checks = {key: {one.check_name for one in checked if one.partition == key} for key in KEYS}
    assert "rows_were_scored" in checks[US.key]
    assert checks[US.key] >= checks[EU.key]
    assert told_again == []
    assert [one for one in checked_again if one.partition] == []
    for all_checked in (checked, checked_again):
        summary = {one.check_name: one.description for one in all_checked if one.partition is None}
        assert summary["rows_were_scored"] == "Passed for 2 of 2 variants."


def evaluated(variant: Variant, as_of: date, high: float, deployment: Deployment) -> None:
    """Score a week and record that its AUC's upper end was ``high``, with a limit of 0.7."""
    week = as_of - timedelta(days=as_of.weekday())
    deployment.scorer().score_variant(week_request(week).of(variant))
    results = deployment.promoter().evaluator.results
    of_week = [one for one in results.unevaluated([variant]) if one.scored_week == week]
    (batch,) = [one for one in of_week if one.role == "champion"]
    measures = {"roc_auc": high - 0.05, "roc_auc_low": high - 0.1, "roc_auc_high": high}
    seen_until = as_of - timedelta(days=1)
    found = EvaluatedBatch(batch, as_of, 3, 100, 100, 100, 0, 50, "ok", 0.7, measures, evidence_after=seen_until)
    results.record([found])


@pytest.fixture
def never_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHURN_RETRAIN_AFTER_MONTHS", "0")


def test_the_sensor_requests_training_once_where_the_outcomes_are_below_the_limit_beyond_chance(
    fleet: None, never_old: None, deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    evaluated(US, date(2026, 1, 28), 0.70, deployment)
    assert evaluate(instance).run_requests == []
    evaluated(US, date(2026, 5, 27), 0.62, deployment)

    asked = evaluate(instance)

    (request,) = asked.run_requests or []
    assert (request.tags[RANGE_START_TAG], request.tags[RANGE_END_TAG]) == (US.key, US.key)
    assert "the limit is 0.700" in request.tags[REASON_TAG]
    assert evaluate(instance, asked.cursor).run_requests == []
    long_ago = json.dumps({US.key: (datetime.now(UTC).date() - timedelta(days=28)).isoformat()})
    assert len(evaluate(instance, long_ago).run_requests or []) == 1


def test_the_sensor_waits_for_the_comparison_of_a_challenger(
    site: Site, fleet: None, *, never_old: None, log_model: Run, deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    for as_of in (date(2026, 1, 28), date(2026, 5, 27)):
        evaluated(US, as_of, 0.65, deployment)
    register_second(site, log_model, US)
    deployment.promoter().challenge(US, 2, "a test")

    assert evaluate(instance).run_requests == []


def test_the_sensor_replaces_a_stale_challenger_of_a_champion_that_underperforms(
    site: Site, fleet: None, log_model: Run, deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    register_second(site, log_model, US)
    deployment.promoter().challenge(US, 2, "a test")
    from mlflow import MlflowClient

    old = datetime.now(UTC).date() - timedelta(days=300)
    for version in ("1", "2"):
        MlflowClient(deployment.tracking_uri).set_model_version_tag(
            US.registered_model, version, "training_date", old.isoformat()
        )
    assert evaluate(instance).run_requests == []  # the champion's age alone replaces no challenger
    for as_of in (date(2026, 1, 28), date(2026, 5, 27)):
        evaluated(US, as_of, 0.65, deployment)

    (request,) = evaluate(instance).run_requests or []

    assert "the limit is 0.700" in request.tags[REASON_TAG]


def test_the_sensor_requests_training_where_two_different_inputs_drifted(
    site: Site, fleet: None, never_old: None, deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    today = datetime.now(UTC).date()
    weeks = [today - timedelta(days=today.weekday() + 7 * n) for n in (0, 1)]
    activity = simulate_activity(n_accounts=1500, first_month=date(2025, 2, 1), n_months=21, seed=3)
    moved = activity.with_columns(brand_id=pl.lit("OH"))

    def score(week: date, rows: pl.DataFrame) -> None:
        body = io.BytesIO()
        rows.write_parquet(body)
        site.put(f"{US.prefix}data/churn/activity.parquet", body.getvalue())
        deployment.scorer().score_variant(week_request(week).of(US))

    for week in weeks:
        score(week, moved)
    assert evaluate(instance).run_requests == []
    score(weeks[0], moved[:-1])

    (request,) = evaluate(instance).run_requests or []

    assert "brand_id" in request.tags[REASON_TAG]
    assert "drifted in two different inputs" in request.tags[REASON_TAG]
    ((drift,),) = site.rows(
        site.churn, "SELECT drift FROM scoring_batches WHERE is_current AND scored_week = :week", week=weeks[0]
    )
    assert drift["brand_id"]["psi"] > 1
    volume = "SELECT n_rows_newest_month, least(newest_month, date_trunc('month', as_of - interval '1 month')::date) "
    ((n_rows, month),) = site.rows(
        site.churn, f"{volume}FROM scoring_batches WHERE is_current AND scored_week = '{weeks[0]}'"
    )
    assert n_rows == moved[:-1].filter(pl.col("activity_month") == month).height > 0
    assert set(drift) == {
        "total_deposit", "total_handle", "total_ngr", "months_active", "brand_id", "ben_login_id", "player_reg_product",
        "churn_probability",
    }  # fmt: skip


def test_the_sensor_requests_training_of_old_champions(
    fleet: None, deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    assert set(deployment.registry(read_only=False).version_tags()) == {(EU, 1), (US, 1)}
    from mlflow import MlflowClient

    old = datetime.now(UTC).date() - timedelta(days=100)
    MlflowClient(deployment.tracking_uri).set_model_version_tag(
        US.registered_model, "1", "training_date", old.isoformat()
    )

    (request,) = evaluate(instance).run_requests or []

    assert request.tags[RANGE_START_TAG] == US.key
    assert request.tags[REASON_TAG] == f"trained on {old}, 3 months ago"
