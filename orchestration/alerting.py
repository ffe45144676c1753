"""The sensor that watches: it looks at the fleet every few minutes, and sends what people must be told.

It runs beside the jobs it watches, so a run that never started is noticed as well.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import dagster as dg

from churn.errors import ChurnError
from churn.monitoring.conditions import FailedRun
from churn.workflows.alert import deliver
from orchestration.assets.scoring import OP_NAME
from orchestration.partitions import BOUND_TAGS, RETRIED_TAG, span, variants_partitions
from orchestration.resources import Services

_DELIVER_FOR_S = 8
"""A receiver may take 40 s more for what has begun, and a sensor is killed after 60."""

_LOOK_BACK = timedelta(days=7)
_MOST_RUNS, _MOST_TOLD = 5000, 200
_FAILURES = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}


@dg.sensor(
    minimum_interval_seconds=300,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks for failures, missed weeks, stale data, drift and low performance, and sends alerts.",
)
def incident_sensor(context: dg.SensorEvaluationContext, services: Services) -> dg.SkipReason:
    """Settle what is wrong now as incidents, and deliver every alert that is waiting; requests no run."""
    now = datetime.now(UTC)
    with services.open() as deployment:
        receivers = deployment.receivers()
        watch = deployment.watch()
        try:
            looked = watch.look(now, failed_runs(context.instance, now))
            told = ", ".join(f"{change.event}: {change.title}" for change in looked.changes) or "nothing new"
        except ChurnError as error:
            told = f"could not look: {error}"
        sent = deliver(watch.incidents, receivers, datetime.now(UTC), _DELIVER_FOR_S)
    return dg.SkipReason(f"{told}; {sent.n_sent} alerts sent, {sent.n_failed} attempts failed, {sent.n_waiting} wait")


def failed_runs(instance: dg.DagsterInstance, now: datetime) -> list[FailedRun]:
    """Return the runs of the last week that failed, the newest of each job and range that no later ones made good."""
    newest: dict[tuple[Any, ...], dg.RunRecord] = {}
    for record in _runs(instance, dg.DagsterRunStatus.FAILURE, now - _LOOK_BACK):
        if record.dagster_run.tags.get(RETRIED_TAG) != "true":
            newest.setdefault(_work(record.dagster_run), record)
    told = islice(_not_made_good(instance, list(newest.values())), _MOST_TOLD)
    return [_described(instance, record) for record in told]


def _runs(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus, since: datetime, job: str | None = None
) -> Sequence[dg.RunRecord]:
    """Return runs, the newest first."""
    wanted = dg.RunsFilter(statuses=[status], created_after=since, job_name=job)
    return instance.get_run_records(wanted, limit=_MOST_RUNS, order_by="create_timestamp")


def _kind(run: dg.DagsterRun) -> tuple[Any, ...]:
    return (run.job_name, frozenset(run.asset_selection or ()))


def _work(run: dg.DagsterRun) -> tuple[Any, ...]:
    """Return what a run was for."""
    return (*_kind(run), *(run.tags.get(tag) for tag in BOUND_TAGS))


def _not_made_good(instance: dg.DagsterInstance, failed: Sequence[dg.RunRecord]) -> Iterator[dg.RunRecord]:
    """Yield the failed runs whose work no later runs did: one for the same, or several that cover its range.

    Chunks are cut anew when variants come or go, and smaller ones are what helps where one was too large.
    """
    if not failed:
        return
    keys = instance.get_dynamic_partitions(str(variants_partitions.name))
    since = min(record.create_timestamp for record in failed)
    jobs = {record.dagster_run.job_name for record in failed}
    successes = [record for job in jobs for record in _runs(instance, dg.DagsterRunStatus.SUCCESS, since, job)]
    done = [(record, set(span(record.dagster_run.tags, keys))) for record in successes]
    for record in failed:
        run, wanted = record.dagster_run, set(span(record.dagster_run.tags, keys))
        later = [
            (one.dagster_run, covered)
            for one, covered in done
            if one.create_timestamp >= record.create_timestamp and _kind(one.dagster_run) == _kind(run)
        ]
        left = wanted.difference(*(covered for _, covered in later))
        if left or not (wanted or any(_work(one) == _work(run) for one, _ in later)):
            yield record


def _described(instance: dg.DagsterInstance, record: dg.RunRecord) -> FailedRun:
    run = record.dagster_run
    names: list[str] = []
    sentence = "it ended without saying why; see its log in Dagster"
    for entry in instance.all_logs(run.run_id, of_type=_FAILURES):
        event = entry.dagster_event
        if event is None:
            continue
        if not event.is_step_failure:
            sentence = event.message or sentence
            continue
        sentence, metadata = _of_step(event)
        if event.step_key == OP_NAME and "failed" in metadata:
            names = list(metadata["failed"].value)
        break
    started_at = datetime.fromtimestamp(record.start_time, UTC) if record.start_time else record.create_timestamp
    return FailedRun(run.job_name, run.run_id, started_at, sentence, names)


def _of_step(event: dg.DagsterEvent) -> tuple[str, Mapping[str, Any]]:
    data = event.step_failure_data
    told = data.user_failure_data
    if told is not None:
        return told.description or event.message or "", told.metadata
    error = data.error.cause or data.error if data.error else None
    return (error.message if error else event.message or ""), {}
