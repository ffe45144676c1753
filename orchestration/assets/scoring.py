"""The weekly graph: raw data and a model from MLflow become features, predictions, and rows in PostgreSQL.

One op makes the five assets for a range of variants, in its own process or on a Ray cluster. A variant that is
published gets its five materializations and its checks together; one that fails is named at the end, when all the
others are done.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import dagster as dg

from churn.database.fleet import FleetTables
from churn.errors import ChurnError
from churn.monitoring.conditions import MEMORY, History
from churn.weeks import parse_week
from churn.workflows.score import FleetRequest, Scorer, ScoringOutcome, score_fleet
from orchestration.assets.metadata import Metadata, describe
from orchestration.checks import CHECKS, SEVERITIES, evaluate
from orchestration.fleet import RETRY_POLICY, FleetRun, failure_of_all, runs_gone_on_from
from orchestration.partitions import variants_partitions
from orchestration.resources import Services

WEEK_TAG = "churn/week"
OP_NAME = "score_variants"

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


@dataclass(frozen=True)
class Told:
    """What a person sees of a variant that was published: each asset's metadata, and the checks."""

    metadata: Mapping[str, Metadata]
    checks: list[dg.AssetCheckEvaluation]


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
    retry_policy=RETRY_POLICY,
)
def weekly_assets(
    context: dg.AssetExecutionContext, config: WeeklyConfig, services: Services
) -> Iterator[dg.AssetCheckResult]:
    """Score every variant of the run's partitions that the runs it goes on from have not published."""
    run = FleetRun(context, SPECS, SEVERITIES)
    try:
        week = parse_week(config.week or context.run.tags.get(WEEK_TAG), datetime.now(UTC).date())
        with services.open() as deployment:
            scorer = deployment.scorer()
            done = scorer.store.published_by(runs_gone_on_from(context), week)
            missing = [key for key in context.partition_keys if key not in done]
            context.log.info("%d variants to score for %s, %d already published", len(missing), week, len(done))
            histories = FleetTables(deployment.database).histories(week - MEMORY, missing)
            told = partial(tell, histories=histories, model_link=deployment.model_link)
            asked = FleetRequest.for_week(week, dagster_run_id=context.run.run_id)
            for key, result in score_fleet(scorer, missing, asked, told, deployment.cluster()):
                if isinstance(result, BaseException):
                    run.note_failure(key, result)
                    continue
                report(context, key, result)
                run.checks.add(key, result.checks)
    except ChurnError as error:
        raise failure_of_all(error, context) from error
    yield from run.finish()


def tell(
    outcome: ScoringOutcome, scorer: Scorer, *, histories: Mapping[str, History], model_link: Callable[[str, int], str]
) -> Told:
    """Describe and check a published variant where it was scored: what is returned is small and can be sent."""
    return Told(describe(outcome, model_link), evaluate(outcome, scorer, histories))


def report(context: dg.AssetExecutionContext, key: str, told: Told) -> None:
    """Log a published variant's five materializations and its checks."""
    for asset, metadata in told.metadata.items():
        context.log_event(dg.AssetMaterialization(asset, partition=key, metadata=metadata))
    for evaluation in told.checks:
        context.log_event(evaluation)
