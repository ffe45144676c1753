"""Failed runs in Dagster's instance that no later run has made up for, and sensors and schedules that keep failing.

Belongs here: reading runs and their events. Not here: which of them open an incident (``churn.monitoring``).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from typing import Any

import dagster as dg
from dagster._core.scheduler.instigation import InstigatorState, InstigatorType, TickStatus

from churn.monitoring.conditions import FailedRun
from orchestration.assets.scoring import OP_NAME
from orchestration.partitions import BOUND_TAGS, RETRIED_TAG, span, variants_partitions

_LOOK_BACK = timedelta(days=7)
_MAX_RUNS, _MAX_RETURNED = 5000, 200
_MAX_TICKS, _FAILING_FOR_S = 30, 600
_ENDED_TICKS = [TickStatus.SKIPPED, TickStatus.SUCCESS, TickStatus.FAILURE]
_FAILURES = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}


def failed_runs(instance: dg.DagsterInstance, now: datetime) -> list[FailedRun]:
    """Return the last week's failed runs that no later run has made up for, the newest of each job and range.

    Each schedule whose newest tick failed, or could not use a service, counts, and each sensor if for ten minutes.
    """
    newest: dict[tuple[Any, ...], dg.RunRecord] = {}
    for record in _runs(instance, dg.DagsterRunStatus.FAILURE, now - _LOOK_BACK):
        if record.dagster_run.tags.get(RETRIED_TAG) != "true":
            newest.setdefault(_work(record.dagster_run), record)
    runs = [_failed_run(instance, record) for record in islice(_unrepaired(instance, newest.values()), _MAX_RETURNED)]
    return runs + [run for state in instance.all_instigator_state() for run in _failing(instance, state, now)]


def _failing(instance: dg.DagsterInstance, state: InstigatorState, now: datetime) -> Iterator[FailedRun]:
    ids, since = (state.instigator_origin_id, state.selector_id), (now - _LOOK_BACK).timestamp()
    ticks = instance.get_ticks(*ids, after=since, limit=_MAX_TICKS, statuses=_ENDED_TICKS)
    failed = list(takewhile(lambda tick: tick.error or (tick.skip_reason or "").startswith("cannot "), ticks))
    least_s = 0 if state.instigator_type == InstigatorType.SCHEDULE else _FAILING_FOR_S
    if state.is_running and failed and failed[0].timestamp - failed[-1].timestamp >= least_s:
        error = failed[0].error.message if failed[0].error else failed[0].skip_reason
        yield FailedRun(state.name, None, now, f"its ticks keep failing: {error}")


def _runs(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus, since: datetime, job: str | None = None
) -> Sequence[dg.RunRecord]:
    wanted = dg.RunsFilter(statuses=[status], created_after=since, job_name=job)
    return instance.get_run_records(wanted, limit=_MAX_RUNS, order_by="create_timestamp")


def _kind(run: dg.DagsterRun) -> tuple[Any, ...]:
    return (run.job_name, frozenset(run.asset_selection or ()))


def _work(run: dg.DagsterRun) -> tuple[Any, ...]:
    return (*_kind(run), *(run.tags.get(tag) for tag in BOUND_TAGS))


def _unrepaired(instance: dg.DagsterInstance, failed: Collection[dg.RunRecord]) -> Iterator[dg.RunRecord]:
    """Yield the failed runs that no later run for the same range has made up for, nor several that cover it.

    Chunks have other bounds once variants were added or removed, and smaller ones after one was too large.
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
        newer = [(one.dagster_run, covered) for one, covered in done if one.create_timestamp >= record.create_timestamp]
        later = [(one, covered) for one, covered in newer if _kind(one) == _kind(run)]
        left = wanted.difference(*(covered for _, covered in later))
        if left or not (wanted or any(_work(one) == _work(run) for one, _ in later)):
            yield record


def _failed_run(instance: dg.DagsterInstance, record: dg.RunRecord) -> FailedRun:
    run, names = record.dagster_run, list[str]()
    entries = instance.all_logs(run.run_id, of_type=_FAILURES)
    events = [entry.dagster_event for entry in entries if entry.dagster_event is not None]
    steps = [event for event in events if event.is_step_failure]
    if steps:
        sentence, metadata = _step_failure(steps[0])
        if steps[0].step_key == OP_NAME and "failed" in metadata:
            names = list(metadata["failed"].value)
    else:
        messages = [event.message for event in events if event.message]
        sentence = messages[-1] if messages else "the run ended without an error message; see its log in Dagster"
    started_at = datetime.fromtimestamp(record.start_time, UTC) if record.start_time else record.create_timestamp
    return FailedRun(run.job_name, run.run_id, started_at, sentence, names)


def _step_failure(event: dg.DagsterEvent) -> tuple[str, Mapping[str, Any]]:
    data = event.step_failure_data
    if data.user_failure_data is not None:
        return data.user_failure_data.description or event.message or "", data.user_failure_data.metadata
    error = data.error and (data.error.cause or data.error)
    return (error.message if error else event.message or ""), {}
