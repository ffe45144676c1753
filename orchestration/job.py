"""The weekly job and its schedule; the other jobs are in ``orchestration.jobs``."""

from importlib import import_module

import dagster as dg

from orchestration.assets.scoring import ASSETS, WEEK_TAG
from orchestration.fleet import RUN_TAGS
from orchestration.resources import Services
from orchestration.schedules import RUNNING, Requests, requests_for_all

_PRIORITY = {"dagster/priority": "1"}
"""Before other runs in the queue: a training run takes minutes, and dozens of them may be queued."""

_RANGE = "Scores a range of variants for one week, and publishes their batches to PostgreSQL."
_WEEKLY = "Scores all registered variants for the week that begins, every Monday at 00:00 UTC."

churn_prediction_job = dg.define_asset_job("churn_prediction_job", ASSETS, description=_RANGE, tags=RUN_TAGS)


@dg.schedule(job=churn_prediction_job, cron_schedule="0 0 * * 1", description=_WEEKLY, **RUNNING)
def weekly_churn_prediction_schedule(context: dg.ScheduleEvaluationContext, services: Services) -> Requests:
    """Request a run for each chunk of the registered variants."""
    week = context.scheduled_execution_time.date().isoformat()
    yield from requests_for_all(context.instance, services, week, tags={WEEK_TAG: week, **_PRIORITY})


if __name__ != "orchestration.job":  # `dagster dev -f orchestration/job.py` loads this file by itself
    defs = import_module("orchestration.definitions").defs
