"""The weekly job and its schedule."""

from collections.abc import Iterator

import dagster as dg

from orchestration.assets.weekly import SPECS, WEEK_TAG
from orchestration.partitions import ranges, sync_partitions
from orchestration.resources import Services

VARIANTS_PER_RUN = 500

churn_prediction_job = dg.define_asset_job(
    "churn_prediction_job",
    selection=dg.AssetSelection.assets(*(spec.key for spec in SPECS)),
    description="Scores a range of variants for a week and publishes their batches.",
)


@dg.schedule(
    job=churn_prediction_job,
    cron_schedule="0 0 * * 1",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every Monday at 00:00 UTC: all registered variants, for the week that begins.",
)
def weekly_churn_prediction_schedule(
    context: dg.ScheduleEvaluationContext, services: Services
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Request a run for each chunk of the registered variants."""
    week = context.scheduled_execution_time.date().isoformat()
    with services.open() as deployment:
        registered = deployment.registry(read_only=True).variants()
    if not registered:
        yield dg.SkipReason("no variant is registered in MLflow; log one with experiment_tracking/log_model.py")
        return
    keys = sync_partitions(context.instance, registered)
    for tags in ranges(keys, set(keys), VARIANTS_PER_RUN):
        start, end = tags.values()
        yield dg.RunRequest(run_key=f"{week}:{start}:{end}", tags={**tags, WEEK_TAG: week})
