"""The weekly graph: raw data and a model from MLflow become features, predictions, and rows in PostgreSQL.

One op makes the five assets for a range of variants in one process. A variant that is published gets its five
materializations and its checks together; one that fails is named at the end, when all the others are done.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import dagster as dg
from dagster._core.events import AssetMaterializationPlannedData, DagsterEvent

from churn.errors import ChurnError, TransientError
from churn.pipeline import Outcome
from churn.weeks import parse_week
from orchestration.assets.metadata import describe
from orchestration.checks import CHECKS, WeeklyChecks, evaluate
from orchestration.partitions import variants_partitions
from orchestration.resources import Services

WEEK_TAG = "churn/week"
RESUME_TAGS = ("dagster/is_resume_retry", "dagster/is_asset_resume_retry")
OP_NAME = "score_variants"
MAX_RETRIES = 2

_GROUP = "weekly_scoring"
_OWNERS = ["team:retention"]


def _spec(name: str, description: str, kinds: set[str], deps: list[str]) -> dg.AssetSpec:
    return dg.AssetSpec(
        name, description=description, kinds=kinds, deps=deps, group_name=_GROUP, owners=_OWNERS, skippable=True
    )


SPECS = [
    _spec(
        "raw_churn_data",
        "A variant's input as read from S3, or, flagged, from the local copy: player-month activity or encoded rows.",
        {"s3", "parquet"},
        [],
    ),
    _spec(
        "transformed_features",
        "One row per account from what was known at the as-of date; rows that break the contract are quarantined.",
        {"polars"},
        ["raw_churn_data"],
    ),
    _spec(
        "load_model_from_mlflow",
        "The variant's champion, resolved to a version once, its bytes and golden scores checked.",
        {"mlflow", "xgboost"},
        [],
    ),
    _spec(
        "generate_predictions",
        "The probability that each account churns within the horizon.",
        {"xgboost"},
        ["transformed_features", "load_model_from_mlflow"],
    ),
    _spec(
        "store_predictions",
        "The batch, published to churn_predictions in one transaction; churn_predictions_current shows it.",
        {"postgres", "table"},
        ["generate_predictions"],
    ),
]


class WeeklyConfig(dg.Config):
    """What a launch may set."""

    week: str | None = None
    """The Monday to score, as YYYY-MM-DD; default: the run's churn/week tag, else this week's."""


@dg.multi_asset(
    name=OP_NAME,
    specs=SPECS,
    check_specs=CHECKS,
    partitions_def=variants_partitions,
    backfill_policy=dg.BackfillPolicy.multi_run(500),
    retry_policy=dg.RetryPolicy(
        max_retries=MAX_RETRIES, delay=10, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.FULL
    ),
)
def weekly_assets(
    context: dg.AssetExecutionContext, config: WeeklyConfig, services: Services
) -> Iterator[dg.AssetCheckResult]:
    """Score every variant of the run's partitions that the runs it goes on from have not published."""
    failed: dict[str, BaseException] = {}
    checks = WeeklyChecks()
    try:
        week = parse_week(config.week or context.run.tags.get(WEEK_TAG), datetime.now(UTC).date())
        with services.open() as deployment:
            scorer = deployment.scorer()
            keep_connections(context.instance)
            done = scorer.store.published_by(runs_gone_on_from(context), week)
            missing = [key for key in context.partition_keys if key not in done]
            context.log.info("%d variants to score for %s, %d already published", len(missing), week, len(done))
            for key, result in scorer.score_fleet(missing, week, context.run.run_id, then=evaluate):
                if isinstance(result, BaseException):
                    failed[key] = result
                    context.log.error("%s: %s", key, result)
                else:
                    outcome, evaluations = result
                    report(context, outcome, evaluations, deployment.model_link)
                    checks.add(key, evaluations)
    except ChurnError as error:
        raise _failure(dict.fromkeys(context.partition_keys, error), context) from error
    if failed and _can_retry(failed, context):
        raise _failure(failed, context)
    yield from checks.summaries()
    if failed:
        mark_failed(context, list(failed))
        raise _failure(failed, context)


def keep_connections(instance: dg.DagsterInstance) -> None:
    """Let this process's event log keep its connection, as a webserver's does; by default each event makes three."""
    instance.optimize_for_webserver(statement_timeout=60_000, pool_recycle=3600, max_overflow=8)


def runs_gone_on_from(context: dg.AssetExecutionContext) -> list[str]:
    """Return the ids of this run and of those that it resumes, by hand or automatically; not of those it repeats."""
    run: dg.DagsterRun | None = context.run
    ids: list[str] = []
    while run is not None:
        ids.append(run.run_id)
        resumes = run.parent_run_id is not None and any(run.tags.get(tag) == "true" for tag in RESUME_TAGS)
        run = context.instance.get_run_by_id(str(run.parent_run_id)) if resumes else None
    return ids


def report(
    context: dg.AssetExecutionContext,
    outcome: Outcome,
    evaluations: list[dg.AssetCheckEvaluation],
    model_link: Callable[[str, int], str],
) -> None:
    """Log a published variant's five materializations and its checks."""
    key = outcome.record.variant.key
    for asset, metadata in describe(outcome, model_link).items():
        context.log_event(dg.AssetMaterialization(asset, partition=key, metadata=metadata))
    for evaluation in evaluations:
        context.log_event(evaluation)


def mark_failed(context: dg.AssetExecutionContext, keys: list[str]) -> None:
    """Make the UI show the failed variants' partitions as failed.

    Dagster does so for partitions that a failed run planned and did not materialize. Planning each of thousands of
    partitions costs as much as scoring them, so runs plan ranges (``churn.dagster_home``), and only the failed ones are
    planned one by one, here. It is the only use of an event that Dagster does not document.
    """
    for key in keys:
        for spec in SPECS:
            event = DagsterEvent.build_asset_materialization_planned_event(
                context.job_name,
                OP_NAME,
                AssetMaterializationPlannedData(spec.key, partition=key),
            )
            context.instance.report_dagster_event(event, context.run.run_id)


def _can_retry(failed: dict[str, BaseException], context: dg.AssetExecutionContext) -> bool:
    is_transient = any(isinstance(error, TransientError) for error in failed.values())
    return is_transient and context.retry_number < MAX_RETRIES


def _failure(failed: dict[str, BaseException], context: dg.AssetExecutionContext) -> dg.Failure:
    n_variants = len(list(context.partition_keys))
    reasons = {key: str(error) if isinstance(error, ChurnError) else repr(error) for key, error in failed.items()}
    first = next(iter(reasons.items()))
    return dg.Failure(
        f"{len(failed)} of {n_variants} variants failed: {', '.join(list(reasons)[:20])}; {first[0]}: {first[1]}",
        metadata={"failed": dg.MetadataValue.json(reasons)},
        allow_retries=_can_retry(failed, context),
    )
