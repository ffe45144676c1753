"""The weekly job and its schedule."""

from collections.abc import Iterator

import dagster as dg

from orchestration.assets.scoring import SPECS, WEEK_TAG
from orchestration.fleet import RUN_TAGS
from orchestration.resources import Services
from orchestration.schedules import requests_for_all

_BEFORE_OTHERS = {"dagster/priority": "1"}
"""In the queue; a run that trains takes minutes, and dozens of them may wait."""

churn_prediction_job = dg.define_asset_job(
    "churn_prediction_job",
    selection=dg.AssetSelection.assets(*(spec.key for spec in SPECS)),
    description="Scores a range of variants for a week and publishes their batches.",
    tags=RUN_TAGS,
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
    yield from requests_for_all(context.instance, services, week, tags={WEEK_TAG: week, **_BEFORE_OTHERS})
