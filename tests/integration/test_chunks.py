"""At stake: a fleet in several runs. Whatever comes, goes or dies between them, each variant is scored once a tick, no
more runs go on at a time than are allowed, and a chunk that failed is told until its work is done.
"""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import pytest
import yaml
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    ScheduleInstigatorData,
    SensorInstigatorData,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

from churn.deployment.services import Deployment
from churn.variants import Variant
from churn.weeks import monday_of
from orchestration.assets.scoring import SPECS, WEEK_TAG
from orchestration.definitions import defs
from orchestration.failed_runs import failed_runs
from orchestration.job import weekly_churn_prediction_schedule
from orchestration.partitions import RANGE_END_TAG, RANGE_START_TAG, RETRIED_TAG, span, sync_partitions
from orchestration.resources import Services
from orchestration.schedules import TICK_TAG
from orchestration.sensors import new_data_sensor
from tests.support.daemons import daemon, wait_for
from tests.support.inputs import register_bundled
from tests.support.simulated import simulate_activity
from tests.support.site import Run, Site, bundled

pytestmark = pytest.mark.slow  # daemons and runs of their own

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEYS = [f"company-v{i:02}" for i in range(12)]
MONDAY = datetime(2026, 12, 28, tzinfo=UTC)
MODULE = "orchestration.definitions"
REPOSITORY = RemoteRepositoryOrigin(
    ManagedGrpcPythonEnvCodeLocationOrigin(
        LoadableTargetOrigin(executable_path=sys.executable, module_name=MODULE), location_name=MODULE
    ),
    "__repository__",
)
"""The code location as a daemon that is started over the module knows it."""


@pytest.fixture
def named(site: Site, deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Twelve variants that are registered without a version, five a run."""
    monkeypatch.setenv("CHURN_VARIANTS_PER_RUN", "5")
    add(deployment, *KEYS)
    return KEYS


def client(deployment: Deployment) -> "MlflowClient":
    from mlflow import MlflowClient

    deployment.registry(read_only=False)
    return MlflowClient(deployment.tracking_uri)


def add(deployment: Deployment, *keys: str) -> None:
    for variant in map(Variant.from_key, keys):
        client(deployment).create_registered_model(variant.registered_model, tags={"company_id": str(variant.company)})


def remove(deployment: Deployment, *keys: str) -> None:
    for variant in map(Variant.from_key, keys):
        client(deployment).delete_registered_model(variant.registered_model)


@pytest.fixture
def fleet(site: Site, log_model: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Twelve registered variants with input in S3, five a run; no local copy may stand in."""
    monkeypatch.setenv("CHURN_LOCAL_FALLBACK", "never")
    monkeypatch.setenv("CHURN_VARIANTS_PER_RUN", "5")
    monkeypatch.setenv("DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS", "1")
    path = tmp_path / "activity.parquet"
    simulate_activity(n_accounts=40, first_month=date(2025, 2, 1), n_months=21, seed=1).write_parquet(path)
    register_bundled(site, log_model, *KEYS)
    for key in KEYS:
        site.put(f"{Variant.from_key(key).prefix}data/churn/activity.parquet", path.read_bytes())
    return KEYS


def tick(instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    """Evaluate the weekly schedule as the daemon does."""
    with dg.build_schedule_context(
        instance=instance, scheduled_execution_time=MONDAY, resources={"services": Services()}
    ) as context:
        return list(weekly_churn_prediction_schedule.evaluate_tick(context).run_requests or [])


def spans(requests: Sequence[dg.RunRequest], instance: dg.DagsterInstance) -> list[list[str]]:
    keys = list(instance.get_dynamic_partitions("churn_variants"))
    return [span(request.tags, keys) for request in requests]


def started(
    instance: dg.DagsterInstance, tags: dict[str, str], status: dg.DagsterRunStatus = dg.DagsterRunStatus.NOT_STARTED
) -> dg.DagsterRun:
    """Note a run of the weekly job, as far as it has come."""
    return instance.create_run_for_job(
        defs.resolve_job_def("churn_prediction_job"),
        tags=tags,
        status=status,
        asset_selection={spec.key for spec in SPECS},
        remote_job_origin=RemoteJobOrigin(REPOSITORY, "churn_prediction_job"),
    )


def test_a_tick_asks_for_each_chunk_and_its_runs_are_found_together(
    named: list[str], instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    for most, sizes in {"5": [5, 5, 2], "12": [12], "0": [12], "": [12], "1": [1] * 12}.items():
        monkeypatch.setenv("CHURN_VARIANTS_PER_RUN", most)

        requests = tick(instance)

        assert [len(chunk) for chunk in spans(requests, instance)] == sizes
        assert [key for chunk in spans(requests, instance) for key in chunk] == named
        assert len({request.run_key for request in requests}) == len(sizes)
        assert {(one.tags[TICK_TAG], one.tags[WEEK_TAG], one.tags["dagster/priority"]) for one in requests} == {
            ("2026-12-28", "2026-12-28", "1")
        }


def test_new_data_is_scored_in_chunks_too(site: Site, named: list[str], instance: dg.DagsterInstance) -> None:
    for key in named:
        site.put(f"{Variant.from_key(key).prefix}data/churn/activity.parquet", bundled("activity.parquet"))

    with dg.build_sensor_context(instance=instance, definitions=defs) as context:
        result = new_data_sensor(context, services=Services())

    assert isinstance(result, dg.SensorResult)
    requests = list(result.run_requests or [])
    assert [len(chunk) for chunk in spans(requests, instance)] == [5, 5, 2]
    (tick,) = {request.tags[TICK_TAG] for request in requests}
    assert re.fullmatch("new-data:[0-9a-f]{16}", tick)  # of the inputs' versions


def test_a_tick_taken_up_again_asks_for_each_variant_once_whoever_came_or_went_meanwhile(
    named: list[str], deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    """The daemon died when it had started two of three runs."""
    first = tick(instance)
    for request in first[:2]:
        started(instance, {**request.tags, "dagster/run_key": str(request.run_key)})
    remove(deployment, named[1], named[4], named[11])
    tick(instance)
    add(deployment, named[1], "company-new")

    again = tick(instance)

    assert [request.run_key for request in again[:2]] == [request.run_key for request in first[:2]]
    asked = [key for chunk in spans(again, instance) for key in chunk]
    assert len(asked) == len(set(asked))
    # Who bounds a run that waits is still asked for; who went and came back is, with the new one, behind all others.
    assert set(asked) == set(named) - {named[11]} | {"company-new"}
    assert spans(again, instance)[2:] == [[named[10], "company-new", named[1]]]


def test_who_bounds_a_run_that_is_not_over_keeps_its_partition_until_then(
    named: list[str], deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    requests = tick(instance)
    waiting = started(instance, dict(requests[0].tags))
    failed = started(instance, {**requests[1].tags, RETRIED_TAG: "true"}, dg.DagsterRunStatus.FAILURE)
    remove(deployment, named[2], named[4], named[5])

    def held() -> set[str]:
        sync_partitions(instance, deployment.registry(read_only=True).variants())
        return set(named) - set(instance.get_dynamic_partitions("churn_variants"))

    assert held() == {named[2]}
    assert span(waiting.tags, list(instance.get_dynamic_partitions("churn_variants"))) == [
        key for key in named[:5] if key != named[2]
    ]
    instance.report_run_canceled(waiting)
    assert held() == {named[2], named[4]}
    instance.add_run_tags(failed.run_id, {"dagster/auto_retry_run_id": "the-retry"})
    assert held() == {named[2], named[4], named[5]}


def test_a_failed_chunk_is_made_good_by_runs_that_cover_it_and_by_no_less(
    named: list[str], instance: dg.DagsterInstance
) -> None:
    requests = tick(instance)
    chunks = [dict(request.tags) for request in requests]
    runs = [started(instance, chunk, dg.DagsterRunStatus.FAILURE) for chunk in chunks]

    def told() -> set[str]:
        return {run.dagster_run_id for run in failed_runs(instance, datetime.now(UTC))}

    def done(first: str, last: str) -> None:
        started(instance, {RANGE_START_TAG: first, RANGE_END_TAG: last}, dg.DagsterRunStatus.SUCCESS)

    assert told() == {run.run_id for run in runs}
    done(named[10], named[11])
    assert told() == {run.run_id for run in runs[:2]}
    done(named[0], named[2])
    done(named[4], named[5])
    assert told() == {run.run_id for run in runs[:2]}
    started(instance, {"dagster/partition": named[3]}, dg.DagsterRunStatus.SUCCESS)
    assert told() == {runs[1].run_id}


def test_the_queue_lets_as_many_go_as_are_allowed_and_weekly_chunks_first(
    named: list[str], instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asks Dagster's dequeuer, with the project's dagster.yaml, what it would launch now."""
    requests = tick(instance)
    later = [started(instance, {"dagster/partition": key}, dg.DagsterRunStatus.QUEUED) for key in named[:2]]
    chunks = [started(instance, dict(request.tags), dg.DagsterRunStatus.QUEUED) for request in requests]

    def launched(most: str) -> list[str]:
        monkeypatch.setenv("CHURN_CONCURRENT_RUNS", most)
        with dg.DagsterInstance.from_config(os.environ["DAGSTER_HOME"]) as again:
            choose = QueuedRunCoordinatorDaemon(interval_seconds=5)._get_runs_to_dequeue  # noqa: SLF001 launches none
            found = choose(again, again.get_concurrency_config(), fixed_iteration_time=None)
        return [run.run_id for run in found]

    order = [run.run_id for run in [*chunks, *later]]
    assert [launched(most) for most in ("1", "2", "4")] == [order[:1], order[:2], order[:4]]
    started(instance, {}, dg.DagsterRunStatus.STARTED)
    assert [launched(most) for most in ("1", "2", "9")] == [[], order[:1], order]


def due_now(instance: dg.DagsterInstance) -> None:
    """Let the daemon find that this week's tick of the schedule is due, and leave new data alone."""

    monday = monday_of(datetime.now(UTC).date())
    before = datetime(monday.year, monday.month, monday.day, tzinfo=UTC) - timedelta(hours=1)
    schedule, status = weekly_churn_prediction_schedule, InstigatorStatus.DECLARED_IN_CODE
    data = ScheduleInstigatorData(str(schedule.cron_schedule), before.timestamp())
    for state in (
        (RemoteInstigatorOrigin(REPOSITORY, schedule.name), InstigatorType.SCHEDULE, status, data),
        (
            RemoteInstigatorOrigin(REPOSITORY, new_data_sensor.name),
            InstigatorType.SENSOR,
            InstigatorStatus.STOPPED,
            SensorInstigatorData(),
        ),
    ):
        instance.add_instigator_state(InstigatorState(*state))


@contextmanager
def weekly_runs(instance: dg.DagsterInstance, n_runs: int) -> Iterator[Callable[[], list[dg.DagsterRun]]]:
    """Let a real daemon find the tick due; yields the runs when all are requested, waits until all are over."""
    home = Path(os.environ["DAGSTER_HOME"])
    due_now(instance)

    def runs() -> list[dg.DagsterRun]:
        return list(instance.get_runs(dg.RunsFilter(job_name="churn_prediction_job")))

    with daemon(home) as process:
        wait_for(lambda: len(runs()) >= n_runs, 120, home / "daemon.log")
        yield runs
        wait_for(lambda: all(run.is_finished for run in runs()), 300, home / "daemon.log")
        assert process.poll() is None


def most_at_once(instance: dg.DagsterInstance) -> int:
    """How many runs went on at a time, from launch to end."""
    moments: list[tuple[float, int]] = []
    for run in instance.get_runs():
        stats = instance.get_run_stats(run.run_id)
        assert stats.launch_time
        assert stats.end_time
        moments += [(stats.launch_time, 1), (stats.end_time, -1)]
    going, most = 0, 0
    for _, change in sorted(moments):
        going += change
        most = max(most, going)
    return most


def published(site: Site) -> dict[str, tuple[int, int]]:
    """Of each variant, the batches and the accounts that have more or fewer than one current prediction."""
    batches = dict(site.rows(site.churn, "SELECT variant, count(*) FROM scoring_batches GROUP BY variant"))
    doubled = dict(
        site.rows(
            site.churn,
            "SELECT variant, count(*) - count(DISTINCT account_id) FROM churn_predictions_current GROUP BY variant",
        )
    )
    return {key: (batches[key], doubled[key]) for key in batches.keys() & doubled.keys()}


def launch_at_once(home: Path) -> None:
    """Configure the coordinator that hands runs to the launcher without a queue."""
    config = yaml.safe_load((home / "dagster.yaml").read_text())
    del config["run_queue"]
    config["run_coordinator"] = {"module": "dagster.core.run_coordinator", "class": "DefaultRunCoordinator"}
    (home / "dagster.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.timeout(600)
def test_chunks_wait_in_the_queue_for_their_turn(
    site: Site, fleet: list[str], instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHURN_CONCURRENT_RUNS", "1")
    monkeypatch.setenv("CHURN_VARIANTS_PER_RUN", "6")

    with weekly_runs(instance, 2) as runs:
        pass

    assert [run.status for run in runs()] == [dg.DagsterRunStatus.SUCCESS] * 2
    assert most_at_once(instance) == 1
    assert published(site) == dict.fromkeys(fleet, (1, 0))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("is_queued", [True, False], ids=["queued", "at-once"])
def test_twelve_variants_in_three_runs_are_each_published_once(
    site: Site, fleet: list[str], instance: dg.DagsterInstance, is_queued: bool
) -> None:
    if not is_queued:
        launch_at_once(Path(os.environ["DAGSTER_HOME"]))

    with weekly_runs(instance, 3) as runs:
        pass

    keys = list(instance.get_dynamic_partitions("churn_variants"))
    assert sorted(len(span(run.tags, keys)) for run in runs()) == [2, 5, 5]
    assert [run.status for run in runs()] == [dg.DagsterRunStatus.SUCCESS] * 3
    assert most_at_once(instance) == (2 if is_queued else 3)
    assert published(site) == dict.fromkeys(fleet, (1, 0))


@pytest.mark.timeout(600)
def test_a_run_that_is_killed_goes_on_alone_and_the_others_are_left_alone(
    site: Site, fleet: list[str], instance: dg.DagsterInstance
) -> None:
    by_run = "SELECT dagster_run_id, count(*) FROM scoring_batches GROUP BY 1"

    def victim(runs: list[dg.DagsterRun]) -> dg.DagsterRun | None:
        keys = list(instance.get_dynamic_partitions("churn_variants"))
        n_done = dict(site.rows(site.churn, by_run))
        return next((run for run in runs if 0 < n_done.get(run.run_id, 0) < len(span(run.tags, keys)) - 1), None)

    with weekly_runs(instance, 3) as runs:
        deadline = time.monotonic() + 200
        while (killed := victim(runs())) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        said = " ".join(entry.message + str(entry.dagster_event) for entry in instance.all_logs(killed.run_id))
        found = re.search(r"Started process for run \(pid: (\d+)\)", said)
        assert found
        os.kill(int(found[1]), signal.SIGKILL)
        wait_for(lambda: len(runs()) == 4, 120, Path(os.environ["DAGSTER_HOME"]) / "daemon.log")

    before = dict(site.rows(site.churn, by_run))[killed.run_id]
    (retry,) = [run for run in runs() if run.parent_run_id == killed.run_id]
    others = [run for run in runs() if run.run_id not in (killed.run_id, retry.run_id)]
    assert (retry.tags[RANGE_START_TAG], retry.tags[TICK_TAG]) == (killed.tags[RANGE_START_TAG], killed.tags[TICK_TAG])
    assert {run.run_id: run.status for run in runs()} == {
        killed.run_id: dg.DagsterRunStatus.FAILURE,
        **{run.run_id: dg.DagsterRunStatus.SUCCESS for run in [retry, *others]},
    }
    assert len(others) == 2
    assert not [run for run in others if run.parent_run_id]
    assert 0 < before < 5
    assert published(site) == dict.fromkeys(fleet, (1, 0))
    assert failed_runs(instance, datetime.now(UTC)) == []
