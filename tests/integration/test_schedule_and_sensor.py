"""At stake: nobody starts the weekly run by hand. The schedule must name the right week across a year's end, and both
it and the sensor must ask for every variant that is due, once, and for no other.
"""

import json
import os
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest
from dagster._utils.schedules import schedule_execution_time_iterator

from churn.deployment.services import Deployment
from churn.variants import Variant
from orchestration import sensors
from orchestration.assets.scoring import WEEK_TAG
from orchestration.definitions import defs
from orchestration.job import weekly_churn_prediction_schedule
from orchestration.partitions import RANGE_END_TAG, RANGE_START_TAG, ranges, sync_partitions, variants_partitions
from orchestration.resources import Services
from orchestration.sensors import new_data_sensor, published_batches_sensor, unpublished_week_sensor
from tests.support.batches import week_request
from tests.support.daemons import daemon, wait_for
from tests.support.inputs import register_bundled
from tests.support.site import Run, Site, bundled

FLEET = ["base", "company-clienta", "geography-eu.company-clientb", "geography-us"]


def this_week() -> str:
    today = datetime.now(UTC).date()
    return (today - timedelta(days=today.weekday())).isoformat()


@pytest.fixture
def fleet(site: Site, log_model: Run) -> list[Variant]:
    """Four registered variants, each with a file in S3."""
    variants = [Variant.from_key(key) for key in FLEET]
    register_bundled(site, log_model, *FLEET)
    for variant in variants:
        site.put(f"{variant.prefix}data/churn/activity.parquet", bundled("activity.parquet"))
    return variants


def remove(deployment: Deployment, key: str) -> None:
    """Take a variant out of the registry."""
    from mlflow import MlflowClient

    deployment.registry(read_only=False)
    MlflowClient(deployment.tracking_uri).delete_registered_model(Variant.from_key(key).registered_model)


def tick(instance: dg.DagsterInstance, at: datetime) -> list[dg.RunRequest | dg.SkipReason]:
    """Evaluate the schedule as the daemon does at a moment."""
    with dg.build_schedule_context(
        instance=instance, scheduled_execution_time=at, resources={"services": Services()}
    ) as context:
        data = weekly_churn_prediction_schedule.evaluate_tick(context)
    return [*(data.run_requests or []), *([dg.SkipReason(data.skip_message)] if data.skip_message else [])]


def asked(requests: list[Any]) -> list[tuple[str, str, str]]:
    return [
        (request.tags[WEEK_TAG], request.tags[RANGE_START_TAG], request.tags[RANGE_END_TAG]) for request in requests
    ]


@pytest.mark.parametrize("monday", [date(2026, 12, 28), date(2027, 1, 4), date(2028, 1, 3)])
def test_a_tick_asks_for_the_week_that_begins_and_for_every_variant(
    fleet: list[Variant], instance: dg.DagsterInstance, monday: date
) -> None:
    requests = tick(instance, datetime(monday.year, monday.month, monday.day, tzinfo=UTC))

    assert asked(requests) == [(monday.isoformat(), "base", "geography-us")]
    assert requests[0].run_key == f"{monday}:base:geography-us"
    assert instance.get_dynamic_partitions("churn_variants") == FLEET


@pytest.mark.parametrize("sensor", defs.get_repository_def().sensor_defs, ids=lambda sensor: sensor.name)
def test_every_sensor_runs_over_variants_with_and_without_a_geography(
    fleet: list[Variant], instance: dg.DagsterInstance, sensor: dg.SensorDefinition
) -> None:
    repository = defs.get_repository_def()
    with dg.build_sensor_context(
        instance=instance, repository_def=repository, resources={"services": Services()}
    ) as context:
        data = sensor.evaluate_tick(context)

    assert data.skip_message or data.run_requests
    assert "cannot" not in (data.skip_message or "")


@pytest.mark.parametrize("schedule", defs.get_repository_def().schedule_defs, ids=lambda schedule: schedule.name)
def test_every_schedule_runs_over_variants_with_and_without_a_geography(
    fleet: list[Variant], instance: dg.DagsterInstance, schedule: dg.ScheduleDefinition
) -> None:
    at = datetime(2026, 12, 28, tzinfo=UTC)
    with dg.build_schedule_context(
        instance=instance,
        repository_def=defs.get_repository_def(),
        scheduled_execution_time=at,
        resources={"services": Services()},
    ) as context:
        data = schedule.evaluate_tick(context)

    assert data.run_requests


def test_a_late_tick_still_asks_for_the_week_of_its_monday(fleet: list[Variant], instance: dg.DagsterInstance) -> None:
    """A daemon that was down evaluates the missed tick later, with the time it was meant for."""
    requests = tick(instance, datetime(2026, 12, 28, tzinfo=UTC))
    again = tick(instance, datetime(2026, 12, 28, tzinfo=UTC))

    assert [request.run_key for request in requests] == [request.run_key for request in again]


def test_without_a_variant_the_tick_is_skipped_and_says_why(site: Site, instance: dg.DagsterInstance) -> None:
    (skipped,) = tick(instance, datetime(2026, 12, 28, tzinfo=UTC))

    assert isinstance(skipped, dg.SkipReason)
    assert "no variant is registered in MLflow" in str(skipped.skip_message)


def test_the_schedule_fires_at_midnight_utc_of_each_monday_and_never_else() -> None:
    schedule = weekly_churn_prediction_schedule
    start, end = datetime(2026, 10, 1, tzinfo=UTC), datetime(2027, 12, 1, tzinfo=UTC)

    ticks = schedule_execution_time_iterator(
        start.timestamp(), schedule.cron_schedule, schedule.execution_timezone, ascending=True
    )
    fired = list(takewhile(lambda at: at < end, ticks))

    first = datetime(2026, 10, 5, tzinfo=UTC)
    assert [at.astimezone(UTC) for at in fired] == [first + timedelta(weeks=i) for i in range(len(fired))]
    assert len(fired) == 61  # a year and two months, with both changes of the clocks and an ISO week 53
    assert schedule.job_name == "churn_prediction_job"
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING


@pytest.mark.parametrize(
    ("ordered", "wanted", "most", "covered"),
    [
        ("abcd", "abcd", 9, ["ad"]),
        ("abcd", "abcd", 2, ["ab", "cd"]),
        ("abcde", "abcde", 2, ["ab", "cd", "ee"]),
        ("abcd", "abcd", 1, ["aa", "bb", "cc", "dd"]),
        ("abcd", "ad", 9, ["aa", "dd"]),
        ("abcdef", "abdef", 2, ["ab", "de", "ff"]),
        ("abc", "b", 9, ["bb"]),
        ("abc", "", 9, []),
        ("", "abc", 9, []),
        ("cab", "abc", 9, ["cb"]),
    ],
)
def test_ranges_cover_the_wanted_keys_and_no_other(ordered: str, wanted: str, most: int, covered: list[str]) -> None:
    found = [tags[RANGE_START_TAG] + tags[RANGE_END_TAG] for tags in ranges(ordered, set(wanted), most)]

    assert found == covered


def test_partitions_named_as_before_1_0_keep_their_order_and_are_left_to_whom_they_belong() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("variants", ["geography-us", "another-teams", "base"])

        keys = sync_partitions(instance, [Variant(), Variant("eu"), Variant("us")])

        assert keys == ["geography-us", "base", "geography-eu"]
        assert list(instance.get_dynamic_partitions("variants")) == ["geography-us", "another-teams", "base"]


def test_partitions_follow_the_registry(
    fleet: list[Variant], deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    tick(instance, datetime(2026, 12, 28, tzinfo=UTC))
    remove(deployment, "company-clienta")

    requests = tick(instance, datetime(2027, 1, 4, tzinfo=UTC))

    left = ["base", "geography-eu.company-clientb", "geography-us"]
    assert instance.get_dynamic_partitions("churn_variants") == left
    assert asked(requests) == [("2027-01-04", "base", "geography-us")]


@pytest.mark.parametrize(
    ("n_before", "n_listed", "n_left"),
    [
        (4, 1, 1),
        (5, 1, 5),
        (4, 0, 4),
        (40, 37, 37),
        (40, 36, 36),
        (40, 35, 40),
        (60, 54, 54),
        (60, 53, 60),
        (3, 0, 0),
        (1, 0, 0),
        (10, 7, 7),
        (10, 6, 10),
        (10, 0, 10),
        (100, 90, 90),
        (100, 89, 100),
        (100, 1, 100),
    ],
)
def test_a_listing_that_comes_back_short_deletes_no_partition(
    caplog: pytest.LogCaptureFixture, n_before: int, n_listed: int, n_left: int
) -> None:
    variants = [Variant(f"g{n:02}") for n in range(n_before)]
    with dg.DagsterInstance.ephemeral() as instance:
        sync_partitions(instance, variants)
        left = sync_partitions(instance, variants[:n_listed])
    assert len(left) == n_left
    is_short = n_left > n_listed
    assert ("no partition is deleted" in caplog.text) == is_short


def look(instance: dg.DagsterInstance, cursor: str | None) -> dg.SensorResult:
    """Evaluate the sensor as the daemon does, with the cursor of the evaluation before."""
    with dg.build_sensor_context(instance=instance, cursor=cursor, definitions=defs) as context:
        result = new_data_sensor(context, services=Services())
    assert isinstance(result, dg.SensorResult)
    return result


def known(instance: dg.DagsterInstance, result: dg.SensorResult) -> set[str]:
    """Return the variants whose inputs the sensor has seen."""
    name = f"churn_variants/new_data_sensor/{json.loads(str(result.cursor))['state'] % 2}"
    return set(json.loads(instance.daemon_cursor_storage.get_cursor_values({name})[name])["versions"])


@pytest.fixture
def scored(fleet: list[Variant], deployment: Deployment) -> list[Variant]:
    """The fleet, each scored once from the file that is in S3 now."""
    scorer = deployment.scorer()
    for variant in fleet:
        scorer.score_variant(week_request(date.fromisoformat(this_week())).of(variant))
    return fleet


def test_at_first_only_what_was_never_scored_is_asked_for(
    site: Site, fleet: list[Variant], deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    scorer = deployment.scorer()
    for variant in (fleet[0], fleet[2], fleet[3]):
        scorer.score_variant(week_request(date.fromisoformat(this_week())).of(variant))

    result = look(instance, None)

    assert asked(list(result.run_requests or [])) == [(this_week(), "company-clienta", "company-clienta")]


def test_a_first_look_at_scored_data_asks_for_nothing_and_reports_it_to_dagster_once(
    site: Site,
    scored: list[Variant],
    deployment: Deployment,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = look(instance, None)

    assert not result.run_requests
    assert "no new input for any of 4 variants" in str(result.skip_reason)
    assert not look(instance, result.cursor).run_requests

    def tell(cursor: str | None) -> tuple[dict[str, list[int]], str]:
        with dg.build_sensor_context(instance=instance, definitions=defs, cursor=cursor) as context:
            result = published_batches_sensor(context, services=Services())
        assert isinstance(result, dg.SensorResult)
        for event in result.asset_events:
            instance.report_runless_asset_event(event)
        stored = [one for one in result.asset_events if one.asset_key == dg.AssetKey("store_predictions")]
        assert {one.metadata["checks_failed"].value for one in stored} <= {"input_is_new", "none"}
        batches = [(one.partition, one.metadata["batch_id"].value) for one in stored]
        return {str(key): number for key, number in batches}, str(result.cursor)

    current = "SELECT variant, batch_id FROM scoring_batches WHERE is_current"
    monkeypatch.setattr(sensors, "_MAX_REQUESTS", 3)
    sync_partitions(instance, scored)

    first, cursor = tell(None)
    second, cursor = tell(cursor)

    assert first | second == dict(site.rows(site.churn, current))
    assert (len(first), len(second)) == (3, 1)
    assert tell(cursor)[0] == {}
    repaired = week_request(date.fromisoformat(this_week())).of(scored[3])
    outcome = deployment.scorer().score_variant(repaired)
    deployment.scorer().score_variant(
        replace(week_request(date.fromisoformat(this_week())), dagster_run_id="a").of(scored[0])
    )
    assert tell(cursor)[0] == {"geography-us": outcome.batch_id}
    status = instance.get_status_by_partition(dg.AssetKey("store_predictions"), FLEET, variants_partitions)
    assert {key: str(one) for key, one in (status or {}).items()} == dict.fromkeys(
        FLEET, "AssetPartitionStatus.MATERIALIZED"
    )


def test_a_new_object_asks_for_exactly_its_variant_once_and_a_changed_one_again(
    site: Site, scored: list[Variant], instance: dg.DagsterInstance
) -> None:
    cursor = look(instance, None).cursor
    keys: list[str | None] = []
    for n_rows in (1, 2):
        new = b"\n".join(bundled("activity.jsonl").splitlines()[:n_rows])
        site.put("company-clienta/data/churn/activity.parquet", new)  # the name says nothing, the content does

        result = look(instance, cursor)

        assert asked(list(result.run_requests or [])) == [(this_week(), "company-clienta", "company-clienta")]
        keys += [request.run_key for request in result.run_requests or []]
        assert not look(instance, result.cursor).run_requests
        cursor = result.cursor
    assert len(set(keys)) == 2  # or Dagster would take the second for the first


def test_a_tick_costs_few_bytes_and_looks_up_as_many_inputs_as_a_setting_says_in_turn(
    site: Site, scored: list[Variant], instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHURN_INPUT_CHECKS_PER_MINUTE", "4")
    cursor = look(instance, None).cursor
    for variant in scored:
        site.put(f"{variant.prefix}data/churn/activity.parquet", bundled("activity.jsonl").splitlines()[0])
    found: list[list[str]] = []
    for _ in range(3):
        result = look(instance, cursor)
        found += [[first, last] for _, first, last in asked(list(result.run_requests or []))]
        assert len(str(result.cursor)) < 80
        cursor = result.cursor
    assert sorted(found) == [["base", "company-clienta"], ["geography-eu.company-clientb", "geography-us"]]


def test_a_sensor_that_dies_before_its_runs_are_requested_requests_the_same_ones_again(
    site: Site, scored: list[Variant], instance: dg.DagsterInstance
) -> None:
    cursor = look(instance, None).cursor
    site.put("company-clienta/data/churn/activity.parquet", bundled("activity.jsonl").splitlines()[0])

    lost, again = look(instance, cursor), look(instance, cursor)

    assert len(again.run_requests or []) == 1
    assert [one.run_key for one in again.run_requests or []] == [one.run_key for one in lost.run_requests or []]
    assert not look(instance, again.cursor).run_requests


def test_a_cursor_from_before_1_0_goes_on_and_one_whose_state_is_gone_starts_from_what_was_scored(
    site: Site, scored: list[Variant], instance: dg.DagsterInstance, deployment: Deployment
) -> None:
    versions = deployment.store().latest_inputs() | {"geography-us": "an earlier one"}
    before = json.dumps({"tick": 7, "versions": versions, "stand_ins": {}})

    result = look(instance, before)

    assert asked(list(result.run_requests or [])) == [(this_week(), "geography-us", "geography-us")]
    assert json.loads(str(result.cursor)) == {"state": 8, "looked_up": ""}
    assert not look(instance, '{"state": 3}').run_requests


def test_the_same_bytes_uploaded_again_are_not_new(
    site: Site, scored: list[Variant], instance: dg.DagsterInstance
) -> None:
    cursor = look(instance, None).cursor
    site.put("geography-us/data/churn/activity.parquet", bundled("activity.parquet"))

    assert not look(instance, cursor).run_requests


def test_an_object_that_comes_back_unchanged_is_not_new(
    site: Site, scored: list[Variant], instance: dg.DagsterInstance
) -> None:
    cursor = look(instance, None).cursor
    for name in ("activity.parquet", "X_test_sample_2.json"):
        boto3.client("s3").delete_object(Bucket=site.bucket, Key=f"geography-us/data/churn/{name}")
    gone = look(instance, cursor)
    assert not gone.run_requests
    site.put("geography-us/data/churn/activity.parquet", bundled("activity.parquet"))

    assert not look(instance, gone.cursor).run_requests


def test_while_s3_is_down_nothing_is_asked_for_and_what_was_seen_is_kept(
    site: Site, scored: list[Variant], instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    cursor = look(instance, None).cursor
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")

        result = look(instance, cursor)

    assert not result.run_requests
    assert "cannot check for new data" in str(result.skip_reason)
    assert result.cursor == cursor
    site.put("base-is-elsewhere/data/churn/activity.parquet", b"x")  # of no variant
    site.put("data/churn/activity.parquet", b"new")
    assert asked(list(look(instance, cursor).run_requests or [])) == [(this_week(), "base", "base")]


def test_a_batch_of_a_local_copy_is_scored_again_when_s3_answers(
    site: Site, scored: list[Variant], instance: dg.DagsterInstance
) -> None:
    cursor = look(instance, None).cursor
    stand_in = "UPDATE scoring_batches SET source = 'local', fallback_reason = 'S3 kept failing' WHERE variant = :key"
    site.rows(site.churn, stand_in, key="company-clienta")

    result = look(instance, cursor)

    assert asked(list(result.run_requests or [])) == [(this_week(), "company-clienta", "company-clienta")]
    assert not look(instance, result.cursor).run_requests  # the run is on its way


def test_a_week_that_failed_for_a_cause_that_may_pass_is_asked_for_again_until_it_is_published(
    site: Site, scored: list[Variant], deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    fail = (
        "INSERT INTO scoring_attempts (variant, scored_week, role, started_at, ended_at, outcome, error_type, error, "
        "is_transient) SELECT key, :week, 'champion', now(), now() - interval '21 minutes', 'failed', 'X', 'down', "
        "transient FROM (VALUES ('geography-us', true), ('base', false)) AS failed (key, transient)"
    )
    site.rows(site.churn, fail, week=this_week())

    def look_again() -> dg.SensorResult:
        with dg.build_sensor_context(instance=instance, definitions=defs) as context:
            result = unpublished_week_sensor(context, services=Services())
        assert isinstance(result, dg.SensorResult)
        return result

    first, second = look_again(), look_again()

    assert asked(list(first.run_requests or [])) == [(this_week(), "geography-us", "geography-us")]
    assert datetime.now(UTC).minute == 59 or first.run_requests == second.run_requests  # one run of one key
    for _ in range(2):
        site.rows(site.churn, fail, week=this_week())
    assert not look_again().run_requests  # 21 of the 40 minutes after a third failure
    deployment.scorer().score_variant(week_request(date.fromisoformat(this_week())).of(scored[3]))
    assert not look_again().run_requests


def test_the_sample_that_is_left_while_activity_is_replaced_is_not_new(
    site: Site, scored: list[Variant], instance: dg.DagsterInstance
) -> None:
    key = "geography-us/data/churn/activity.parquet"
    cursor = look(instance, None).cursor
    boto3.client("s3").delete_object(Bucket=site.bucket, Key=key)
    for _ in range(2):
        result = look(instance, cursor)
        assert not result.run_requests
        cursor = result.cursor
    site.put(key, bundled("activity.jsonl"))
    assert asked(list(look(instance, cursor).run_requests or [])) == [(this_week(), "geography-us", "geography-us")]


CURSORS = [
    "",
    "{",
    "[]",
    "7",
    "null",
    '"x"',
    '{"versions": []}',
    '{"tick": "many"}',
    '{"base": "2026-11-02"}',
    "1764500",
    "2026-11-02T00:00:00+00:00",
    "NaN",
    '{"tick": 1, "versions": {"base": 5}}',
    '{"tick": 1, "versions": {}, "stand_ins": {"base": "x"}}',
    '{"tick": 1, "versions": {}, "partitions": []}',
    '{"latest_storage_id": 7, "latest_backfill_timestamp": null}',  # of an asset sensor
    "\ufeff{}x",
]


def test_a_cursor_of_something_else_begins_anew(scored: list[Variant], instance: dg.DagsterInstance) -> None:
    for cursor in CURSORS:
        result = look(instance, cursor)

        assert not result.run_requests
        assert known(instance, result) == set(FLEET)


def test_a_cursor_that_was_reset_repeats_no_run_key(
    site: Site, scored: list[Variant], instance: dg.DagsterInstance
) -> None:
    keys = []
    for n_rows in (1, 2):
        site.put("data/churn/activity.parquet", b"\n".join(bundled("activity.jsonl").splitlines()[:n_rows]))
        keys += [request.run_key for request in look(instance, None).run_requests or []]
    assert len(set(keys)) == 2


def test_a_variant_taken_out_of_the_registry_loses_its_partition(
    scored: list[Variant], deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    cursor = look(instance, None).cursor
    assert instance.get_dynamic_partitions("churn_variants") == FLEET
    remove(deployment, "geography-eu.company-clientb")

    result = look(instance, cursor)

    assert instance.get_dynamic_partitions("churn_variants") == ["base", "company-clienta", "geography-us"]
    assert known(instance, result) == {"base", "company-clienta", "geography-us"}


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_a_real_daemon_scores_a_new_object_exactly_once(
    site: Site, scored: list[Variant], instance: dg.DagsterInstance
) -> None:
    home = Path(os.environ["DAGSTER_HOME"])

    def n_ticks() -> int:
        states = instance.all_instigator_state()
        return sum(
            len(instance.get_ticks(state.instigator_origin_id, state.selector_id))
            for state in states
            if state.name == "new_data_sensor"
        )

    with daemon(home) as process:
        wait_for(lambda: n_ticks() >= 1, 90, home / "daemon.log")
        assert instance.get_runs_count() == 0
        site.put("company-clienta/data/churn/activity.parquet", bundled("activity.jsonl"))
        wait_for(lambda: instance.get_runs_count() == 1, 90, home / "daemon.log")
        seen = n_ticks()
        wait_for(lambda: all(run.is_finished for run in instance.get_runs()), 120, home / "daemon.log")
        wait_for(lambda: n_ticks() >= seen + 2, 120, home / "daemon.log")
        assert process.poll() is None

    (run,) = instance.get_runs()
    assert run.status == dg.DagsterRunStatus.SUCCESS, (home / "daemon.log").read_text()[-4000:]
    assert (run.tags[RANGE_START_TAG], run.tags[RANGE_END_TAG]) == ("company-clienta", "company-clienta")
    batches = site.rows(
        site.churn, "SELECT dagster_run_id FROM scoring_batches WHERE is_current AND variant = 'company-clienta'"
    )
    assert batches == [(run.run_id,)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_daemon_killed_in_the_middle_of_a_run_and_started_again_scores_exactly_once(
    site: Site, scored: list[Variant], instance: dg.DagsterInstance
) -> None:
    home = Path(os.environ["DAGSTER_HOME"])
    ended = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}

    def statuses() -> list[dg.DagsterRunStatus]:
        return [run.status for run in instance.get_runs()]

    with daemon(home) as killed:
        wait_for(lambda: bool(instance.all_instigator_state()), 90, home / "daemon.log")
        site.put("company-clienta/data/churn/activity.parquet", bundled("activity.jsonl"))
        wait_for(lambda: bool(set(statuses()) - {dg.DagsterRunStatus.QUEUED}), 120, home / "daemon.log")
        killed.kill()
        killed.wait()
        with daemon(home) as second:
            wait_for(lambda: bool(statuses()) and set(statuses()) <= ended, 240, home / "daemon.log")
            time.sleep(45)  # another look of the sensor
            assert second.poll() is None

    assert statuses() == [dg.DagsterRunStatus.SUCCESS], (home / "daemon.log").read_text()[-4000:]
    (run,) = instance.get_runs()
    batches = site.rows(
        site.churn, "SELECT dagster_run_id FROM scoring_batches WHERE is_current AND variant = 'company-clienta'"
    )
    assert batches == [(run.run_id,)]


def test_upkeep_indexes_the_weeks_that_are_over_once(
    site: Site, fleet: list[Variant], deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    for week in (date(2026, 11, 2), date.fromisoformat(this_week())):
        deployment.scorer().score_variant(week_request(week).of(fleet[0]))
    indexes = "SELECT indexname FROM pg_indexes WHERE indexname LIKE 'churn_predictions_%_account' ORDER BY 1"

    for _ in range(2):
        assert defs.resolve_job_def("maintenance_job").execute_in_process(instance=instance).success
        assert site.rows(site.churn, indexes) == [("churn_predictions_20261102_account",)]
