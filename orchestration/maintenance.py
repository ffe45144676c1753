"""Upkeep of the predictions database, away from the weekly job's hours."""

from datetime import UTC, datetime

import dagster as dg

from churn.workflows.erase import drop_old_weeks
from orchestration.resources import Services


@dg.op(description="Indexes by account the weeks that are over, for look-up and erasure.")
def index_closed_weeks(context: dg.OpExecutionContext, services: Services) -> None:
    """Index what is not indexed yet; once a week is over all its rows are there, and an index is cheapest."""
    with services.open() as deployment:
        indexed = deployment.store().index_closed_weeks(datetime.now(UTC).date())
    context.log.info("weeks indexed now: %s", ", ".join(map(str, indexed)) or "none")
    context.add_output_metadata({"weeks": dg.MetadataValue.json([week.isoformat() for week in indexed])})


@dg.op(description="Drops the weeks of predictions that CHURN_KEEP_WEEKS does not keep.")
def drop_weeks_not_kept(context: dg.OpExecutionContext, services: Services) -> None:
    """Drop whole partitions, and what is recorded of their batches; nothing where all weeks are kept."""
    with services.open() as deployment:
        dropped = drop_old_weeks(deployment, datetime.now(UTC).date())
    context.log.info("weeks dropped now: %s", ", ".join(map(str, dropped)) or "none")
    context.add_output_metadata({"weeks": dg.MetadataValue.json([week.isoformat() for week in dropped])})


@dg.job(description="Upkeep of the predictions database.")
def maintenance_job() -> None:
    """Do all upkeep."""
    index_closed_weeks()
    drop_weeks_not_kept()


@dg.schedule(
    job=maintenance_job,
    cron_schedule="0 3 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every night at 03:00 UTC.",
)
def maintenance_schedule() -> dg.RunRequest:
    """Request the upkeep."""
    return dg.RunRequest()
