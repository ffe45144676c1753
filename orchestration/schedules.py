"""Schedules, and the run requests for all registered variants.

Belongs here: when jobs run, and for which variants. Not here: the weekly job's schedule (``orchestration.job``).
https://docs.dagster.io/guides/automate/schedules
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from orchestration.assets.evaluation import VARIANTS_PER_RUN
from orchestration.jobs import decisions_job, evaluation_job, maintenance_job, monitoring_job
from orchestration.partitions import RANGE_END_TAG, RANGE_START_TAG, ranges, span, sync_partitions
from orchestration.resources import Services

IS_THROW_AWAY = "DAGSTER_IS_DEV_CLI" in os.environ and not os.environ.get("DAGSTER_HOME")
"""Whether code is loaded for ``dg dev`` without a home, which scores nothing and alerts nobody unless somebody asks."""

RUNNING: Any = {
    "execution_timezone": "UTC",
    "default_status": dg.DefaultScheduleStatus.STOPPED if IS_THROW_AWAY else dg.DefaultScheduleStatus.RUNNING,
}
Requests = Iterator[dg.RunRequest | dg.SkipReason]
_EVALUATION = "Evaluates all registered variants every Monday at 06:00 UTC, after the week was scored."
TICK_TAG = "churn/tick"  # common to the runs of one tick and their retries; filter the list of runs by it


@dg.schedule(job=evaluation_job, cron_schedule="0 6 * * 1", description=_EVALUATION, **RUNNING)
def weekly_evaluation_schedule(context: dg.ScheduleEvaluationContext, services: Services) -> Requests:
    """Request a run for each chunk of the registered variants."""
    day = context.scheduled_execution_time.date().isoformat()
    yield from requests_for_all(context.instance, services, f"evaluate:{day}", most=VARIANTS_PER_RUN)


_SCHEDULES = (
    ("weekly_monitoring_schedule", monitoring_job, "0 7 * * 1",
     "Monitors the whole fleet every Monday at 07:00 UTC, after the week was scored and past weeks were evaluated."),
    ("maintenance_schedule", maintenance_job, "0 3 * * *",
     "Maintains the predictions database every night at 03:00 UTC."),
    ("decisions_schedule", decisions_job, "0 5 * * *", "Selects the members of campaigns every day at 05:00 UTC."),
)  # fmt: skip
FIXED_SCHEDULES = [
    dg.ScheduleDefinition(name=name, job=job, cron_schedule=cron, **RUNNING, description=text)
    for name, job, cron, text in _SCHEDULES
]
"""The schedules that request one run, without variants."""


def requests_for_all(
    instance: dg.DagsterInstance, services: Services, tick: str, most: int | None = None, tags: Mapping[str, str] = {}
) -> Requests:
    """Yield a request for each chunk of the registered variants, by default of CHURN_VARIANTS_PER_RUN.

    A daemon that died between two runs of a tick evaluates it again. Chunks already requested are then requested again
    unchanged, which Dagster recognizes by the run key, which begins with ``tick``, and the remaining variants in
    separate chunks: variants added or removed in between would shift all bounds, and some would be scored twice.
    """
    with services.open() as deployment:
        registered = deployment.registry(read_only=True).variants()
        most = deployment.settings.churn_variants_per_run if most is None else most
    if not registered:
        yield dg.SkipReason("no variant is registered in MLflow; log one with experiment_tracking/log_model.py")
        return
    keys = sync_partitions(instance, registered)
    requested = _requested(instance, tick)
    left = {variant.key for variant in registered} - {key for chunk in requested for key in span(chunk, keys)}
    for chunk in [*requested, *ranges(keys, left, most)]:
        yield request(tick, chunk, tags)


def request(tick: str, chunk: Mapping[str, str], tags: Mapping[str, str]) -> dg.RunRequest:
    """Request a run for a chunk, which is given by the tags of a range."""
    return dg.RunRequest(run_key=":".join([tick, *chunk.values()]), tags={**chunk, TICK_TAG: tick, **tags})


def _requested(instance: dg.DagsterInstance, tick: str) -> list[dict[str, str]]:
    """Return the chunks that runs of a tick exist for, the oldest first."""
    runs = instance.get_runs(dg.RunsFilter(tags={TICK_TAG: tick}))
    bounds = dict.fromkeys((run.tags[RANGE_START_TAG], run.tags[RANGE_END_TAG]) for run in reversed(runs))
    return [{RANGE_START_TAG: start, RANGE_END_TAG: end} for start, end in bounds]
