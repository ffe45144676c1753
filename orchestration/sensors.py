"""Sensors: new input requests scoring, a failing champion requests training, and problems become incidents and alerts.

Belongs here: cursors, run requests and skip reasons. Not here: the rules. https://docs.dagster.io/guides/automate/sensors
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import islice
from typing import TypeVar

import dagster as dg
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from churn.concurrency import in_threads
from churn.deployment.services import Deployment
from churn.errors import ChurnError
from churn.monitoring.conditions import MEMORY
from churn.storage.inputs import is_sample, sample_beside
from churn.variants import Variant
from churn.weeks import monday_of
from churn.wording import counted
from churn.workflows.alert import deliver
from orchestration.assets.scoring import WEEK_TAG, report_again
from orchestration.failed_runs import failed_runs
from orchestration.job import churn_prediction_job
from orchestration.jobs import training_job
from orchestration.partitions import RANGE_END_TAG, RANGE_START_TAG, ranges, span, sync_partitions, variants_partitions
from orchestration.resources import Services
from orchestration.schedules import IS_THROW_AWAY, request

TRIGGER_TAG, REASON_TAG = "churn/trigger", "churn/reason"
_RUNNING = dg.DefaultSensorStatus.STOPPED if IS_THROW_AWAY else dg.DefaultSensorStatus.RUNNING
_LISTINGS_AT_ONCE = 16
_INTERVAL_S = 30
_TAG_LENGTH = 250
_MAX_REQUESTS = 50  # per evaluation; the next one continues
_ABANDONED_AFTER_S = 60
_REPORTED_WITHIN = timedelta(days=7)
_DELIVER_FOR_S = 8
"""A receiver may take 40 s more for an attempt that has begun, and a sensor is killed after 60."""

_Cursor = TypeVar("_Cursor")


class InputState(BaseModel):
    """What ``new_data_sensor`` has seen. It is kept beside the cursor, as its tick's; before 1.0 it was the cursor."""

    model_config = ConfigDict(extra="forbid")

    tick: int = 0  # how often it has changed
    versions: dict[str, str] = {}  # the last version of each variant's input, by key
    stand_ins: dict[str, int] = {}  # the batches of this week from a local copy that are being scored again, by key


class InputCursor(BaseModel):
    """The cursor of ``new_data_sensor``: which state is its own, and the variant whose input it looked up last."""

    model_config = ConfigDict(extra="forbid")

    state: int
    looked_up: str = ""


@dg.sensor(
    job=churn_prediction_job,
    minimum_interval_seconds=_INTERVAL_S,
    default_status=dg.DefaultSensorStatus.RUNNING,  # of a throw-away instance, too, whose partitions it makes
    description="Requests scoring of each variant whose own input file is new, in S3 or, without a bucket, in the "
    "local folder. Dagster's partitions are kept equal to the variants that are registered in MLflow.",
)
def new_data_sensor(context: dg.SensorEvaluationContext, services: Services) -> dg.SensorResult:
    """Compare each variant's input version with the previous one.

    If the cursor is empty, the inputs of the last published batches are the previous ones, so that switching the sensor
    on scores only inputs that were never scored. Batches of this week that were made from a local copy are scored
    again, once S3 answers. Of a large fleet in S3, each evaluation looks up the next CHURN_INPUT_CHECKS_PER_MINUTE.
    """
    week = monday_of(datetime.now(UTC).date())
    try:
        with services.open() as deployment:
            settings = deployment.settings
            registered = deployment.registry(read_only=True).variants()
            keys = sync_partitions(context.instance, registered)
            if IS_THROW_AWAY:
                return dg.SensorResult(skip_reason="only keeps the partitions: DAGSTER_HOME is not set")
            state, looked_up = _read_inputs(context)
            store, sources = deployment.store(), deployment.sources()
            previous: dict[str, str] = state.versions or store.latest_inputs()
            stand_ins = store.stand_ins(week) if sources.bucket else {}
            most = settings.churn_input_checks_per_minute * _INTERVAL_S // 60 if sources.bucket else len(registered)
            chosen = _next(registered, looked_up, max(most, 1))
            # One listing per variant: a listing over all of them would page through every model ever logged.
            versions = zip(chosen, in_threads(sources.input_version, chosen, _LISTINGS_AT_ONCE), strict=True)
            current = {variant.key: version for variant, version in versions if version is not None}
    except ChurnError as error:
        return dg.SensorResult(skip_reason=f"cannot check for new data: {error}", cursor=context.cursor)
    current = {key: version for key, version in current.items() if not _replaces_activity(previous.get(key), version)}
    redone = {key: batch for key, batch in stand_ins.items() if state.stand_ins.get(key) == batch}
    left = stand_ins.keys() - redone.keys()
    new = {key for key, version in current.items() if previous.get(key) != version or key in left}
    # Inputs that are missing now stay in the state: the same file, when it reappears, is not new.
    known = {key: version for key, version in (previous | current).items() if key in set(keys)}
    now = InputState(tick=state.tick, versions=known, stand_ins=redone | {key: stand_ins[key] for key in left & new})
    if now != state:  # the state before stays, as Dagster keeps its cursor if it dies before the runs are requested
        now.tick += 1
        _save_inputs(context, now)
    looked_up = chosen[-1].key if len(chosen) < len(registered) else ""
    tags = {WEEK_TAG: week.isoformat(), TRIGGER_TAG: "new data"}
    seen = [week.isoformat(), now.tick, [(k, previous.get(k), current[k], stand_ins.get(k)) for k in sorted(new)]]
    chunks = ranges(keys, new, settings.churn_variants_per_run)
    requests = [request(f"new-data:{_digest(seen)}", chunk, tags) for chunk in chunks]
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else f"no new input for any of {counted(len(chosen), 'variant')}",
        cursor=InputCursor(state=now.tick, looked_up=looked_up).model_dump_json(),
    )


def _next(registered: Sequence[Variant], looked_up: str, most: int) -> Sequence[Variant]:
    """Return the next variants in turn, which are sorted by key."""
    start = bisect_right(registered, looked_up, key=lambda variant: variant.key)
    return [*registered[start:], *registered[:start]][:most]


def _read_inputs(context: dg.SensorEvaluationContext) -> tuple[InputState, str]:
    """Return the state that the cursor names, and the variant whose input was looked up last."""
    kind: TypeAdapter[InputState | InputCursor] = TypeAdapter(InputState | InputCursor)
    cursor = _read_cursor(context, kind, InputState())
    if isinstance(cursor, InputState):
        _save_inputs(context, cursor)
        return cursor, ""
    name = _state_name(cursor.state)
    stored = context.instance.daemon_cursor_storage.get_cursor_values({name}).get(name)
    state = InputState.model_validate_json(stored or "{}")
    if state.tick != cursor.state:
        context.log.warning("the state of the cursor %r is gone, so the sensor starts without one", context.cursor)
        state = InputState(tick=cursor.state)
    return state, cursor.looked_up


def _save_inputs(context: dg.SensorEvaluationContext, state: InputState) -> None:
    """Store a state, which Dagster keeps once, and would keep with every tick as a cursor."""
    context.instance.daemon_cursor_storage.set_cursor_values({_state_name(state.tick): state.model_dump_json()})


def _state_name(tick: int) -> str:
    return f"{variants_partitions.name}/new_data_sensor/{tick % 2}"


def _read_cursor(context: dg.SensorEvaluationContext, kind: TypeAdapter[_Cursor], empty: _Cursor) -> _Cursor:
    """Return a sensor's cursor; an empty one in place of one that something else wrote."""
    try:
        return kind.validate_json(context.cursor) if context.cursor else empty
    except ValidationError:
        context.log.warning("the cursor %.80r is not this sensor's, so the sensor starts without one", context.cursor)
        return empty


def _digest(seen: list[object]) -> str:
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


def _replaces_activity(previous: str | None, version: str) -> bool:
    """Return whether the sample is all that is left of an input that was activity, as while that is replaced."""
    is_beside = previous is not None and sample_beside(previous) == sample_beside(version)
    return is_beside and is_sample(version) and not is_sample(str(previous))


@dg.sensor(
    job=churn_prediction_job,
    minimum_interval_seconds=120,
    default_status=_RUNNING,
    description="Requests scoring again of variants whose week failed for a cause that may pass, with pauses that grow "
    "from ten minutes to four hours, or was never attempted, until it is published or the next week begins.",
)
def unpublished_week_sensor(context: dg.SensorEvaluationContext, services: Services) -> dg.SensorResult:
    """Request the variants that are due and in no unfinished run; one request an hour if nothing comes of it."""
    now = datetime.now(UTC)
    week = monday_of(now.date()).isoformat()
    try:
        with services.open() as deployment:
            most = deployment.settings.churn_variants_per_run
            due = deployment.fleet_monitor().to_repeat(now)
            keys = sync_partitions(context.instance, deployment.registry(read_only=True).variants()) if due else []
    except ChurnError as error:
        return dg.SensorResult(skip_reason=f"cannot tell which variants to score again: {error}")
    unfinished = dg.RunsFilter(job_name=churn_prediction_job.name, statuses=NOT_FINISHED_STATUSES)
    busy = {key for run in context.instance.get_runs(unfinished) for key in span(run.tags, keys)} if due else set()
    left = due.keys() - busy
    digest = _digest([sorted((key, due[key]) for key in left), now.hour])
    tags = {WEEK_TAG: week, TRIGGER_TAG: "unpublished week"}
    requests = [request(f"again:{week}:{now.day}:{digest}", chunk, tags) for chunk in ranges(keys, left, most)]
    waiting = f"{counted(len(busy & due.keys()), 'variant')} in runs that are not finished"
    why = f"no variant has to be scored again for the week of {week}; {waiting}"
    return dg.SensorResult(run_requests=requests, skip_reason=None if requests else why)


@dg.sensor(
    minimum_interval_seconds=120,
    default_status=_RUNNING,
    description="Reports to Dagster the batches that churn score published without it, with the checks that failed.",
)
def published_batches_sensor(context: dg.SensorEvaluationContext, services: Services) -> dg.SensorResult:
    """Report up to 50 of the last week's batches; the cursor has those that were."""
    kind, events = TypeAdapter(list[int]), list[dg.AssetMaterialization]()
    try:
        with services.open() as deployment:
            found = deployment.store().published_by_hand(datetime.now(UTC) - _REPORTED_WITHIN)
            reported: list[int] = _read_cursor(context, kind, [])
            told, scorer = found.keys() & set(reported), cache(deployment.scorer)  # opened once, for the first batch
            for batch in islice(sorted(found.keys() - told), _MAX_REQUESTS):
                key, week = found[batch]
                histories = deployment.fleet().histories(week - MEMORY, [key])
                report = report_again(week, scorer(), histories, Variant.from_key(key))
                failed = [check.check_name for check in report.checks if not check.passed]
                about = {"checks_failed": ", ".join(failed) or "none"}  # Dagster stores checks without a run once
                for asset, metadata in report.metadata.items():
                    events.append(dg.AssetMaterialization(asset, None, {**metadata, **about}, partition=key))
                told.add(batch)
    except ChurnError as error:
        return dg.SensorResult(skip_reason=f"cannot compare with PostgreSQL: {error}", cursor=context.cursor)
    cursor, left = kind.dump_json(sorted(told)).decode(), counted(len(found.keys() - told), "batch", "batches")
    reason = f"{counted(len({one.partition for one in events}), 'variant')} reported; {left} of no run left"
    return dg.SensorResult(asset_events=events, skip_reason=reason, cursor=cursor)


@dg.sensor(
    job=training_job,
    minimum_interval_seconds=6 * 3600,
    default_status=_RUNNING,
    description="Requests training of a variant when its champion underperforms, its input drifts, or it is too old.",
)
def retraining_sensor(context: dg.SensorEvaluationContext, services: Services) -> dg.SensorResult:
    """Request training for each variant with a reason; the cursor is the day of each variant's last request."""
    today, kind = datetime.now(UTC).date(), TypeAdapter(dict[str, date])
    days = _read_cursor(context, kind, {})
    try:
        with services.open() as deployment:
            planner = deployment.retraining_planner()
            reasons = dict(islice(planner.reasons(today, days), _MAX_REQUESTS))
            sync_partitions(context.instance, planner.registry.variants())
    except ChurnError as error:
        return dg.SensorResult(skip_reason=f"cannot decide which champions to retrain: {error}", cursor=context.cursor)
    tags = {key: {RANGE_START_TAG: key, RANGE_END_TAG: key, REASON_TAG: reasons[key][:_TAG_LENGTH]} for key in reasons}
    requests = [dg.RunRequest(run_key=f"train:{key}:{today}", tags=of) for key, of in tags.items()]
    skip, cursor = None if requests else "no champion needs retraining", days | dict.fromkeys(reasons, today)
    return dg.SensorResult(run_requests=requests, skip_reason=skip, cursor=kind.dump_json(cursor).decode())


@dg.sensor(
    minimum_interval_seconds=300,
    default_status=_RUNNING,
    description="Opens and resolves incidents for failures, missed weeks, stale data, drift and low performance, and "
    "sends their alerts. It starts no run: its ticks show as skipped, with the incidents that changed.",
)
def incident_sensor(context: dg.SensorEvaluationContext, services: Services) -> dg.SkipReason:
    """Reconcile the incidents, and deliver every alert that is due; requests no run.

    It does not depend on the jobs that it monitors, so a run that never started is noticed, too.
    """
    now = datetime.now(UTC)
    with services.open() as deployment:
        completed = _complete_moves(deployment)
        receivers, monitor = deployment.receivers(), deployment.fleet_monitor()
        try:
            status = monitor.reconcile(now, failed_runs(context.instance, now))
            changes = ", ".join(f"{change.event}: {change.title}" for change in status.changes) or "no change"
        except ChurnError as error:
            changes = f"cannot examine the fleet: {error}"
        sent = deliver(monitor.incidents, receivers, _DELIVER_FOR_S)
    return dg.SkipReason(
        f"{completed}{changes}; {counted(sent.n_sent, 'alert')} sent, {counted(sent.n_failed, 'attempt')} failed, "
        f"{counted(sent.n_waiting, 'alert')} waiting{''.join(f'; {problem}' for problem in receivers.wrong)}"
    )


def _complete_moves(deployment: Deployment) -> str:
    try:
        if not deployment.events().pending(_ABANDONED_AFTER_S):
            return ""
        moved = deployment.promoter().complete(_ABANDONED_AFTER_S)
    except ChurnError as error:
        return f"cannot complete a move of aliases: {error}; "
    return f"completed for {', '.join(event.variant.key for event in moved)}: a move of aliases; "


ALL = [new_data_sensor, unpublished_week_sensor, published_batches_sensor, retraining_sensor, incident_sensor]
