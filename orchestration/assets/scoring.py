"""The weekly graph: input and model become features, predictions, and rows in PostgreSQL.

One op materializes the five assets for a range of variants, in its process or on a Ray cluster. A published variant
gets its five materializations and its checks together; variants that failed are named once all others are done. Then
what was published is delivered, as an asset of its own that makes no published variant a failed one. Not here: how a
variant is scored (``churn.workflows.score``) or delivered (``churn.workflows.deliver``).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, date, datetime
from functools import partial
from typing import Any

import dagster as dg

from churn.deployment.services import Deployment
from churn.monitoring.conditions import MEMORY, History
from churn.variants import Variant
from churn.versions import CHALLENGER, CHAMPION
from churn.weeks import parse_week
from churn.workflows.check import check_published
from churn.workflows.fleet import error_text, for_each_variant
from churn.workflows.score import FleetRequest, Scorer, ScoringOutcome, score_fleet
from orchestration import checks
from orchestration.assets import asset_of_variants
from orchestration.assets.metadata import describe
from orchestration.fleet import AssetReport, FleetRun, build_report, fleet_assets, log_report, resumed_runs, root_run
from orchestration.partitions import variants_partitions
from orchestration.resources import Services

WEEK_TAG = "churn/week"
OP_NAME = "score_variants"

_GROUP, _FILES = "weekly_scoring", {"s3", "parquet"}
SPECS = [
    asset_of_variants("raw_churn_data", _GROUP, kinds=_FILES),
    asset_of_variants("transformed_features", _GROUP, "raw_churn_data", kinds={"polars"}),
    asset_of_variants("load_model_from_mlflow", _GROUP, kinds={"mlflow", "xgboost"}),
    asset_of_variants(
        "generate_predictions", _GROUP, "transformed_features", "load_model_from_mlflow", kinds={"xgboost"}
    ),
    asset_of_variants("store_predictions", _GROUP, "generate_predictions", kinds={"postgres", "table"}),
]
ASSETS = [spec.key.to_user_string() for spec in SPECS]
EXPORT = asset_of_variants(
    "delivered_predictions", "delivery", "store_predictions", kinds=_FILES, partitions_def=variants_partitions
)


class WeeklyConfig(dg.Config, use_attribute_docstrings=True):
    """Configuration of a scoring run."""

    week: str | None = None
    """The Monday of the week to score, as YYYY-MM-DD; by default that of the run's tag churn/week, else of this week. A
    past week is scored as it was known then, from the activity history."""
    corrected: bool = False
    """Whether a past week is scored from today's extract, with what became known since."""


@fleet_assets(OP_NAME, SPECS, backfill_variants=500)
def weekly_assets(context: dg.AssetExecutionContext, config: WeeklyConfig, services: Services) -> checks.Results:
    """Score every variant of the run's partitions that is not published by this run, or since the one it resumes."""
    run = FleetRun(context, SPECS)
    with run.open(services) as deployment:
        workers = deployment.workers(len(list(context.partition_keys)), Deployment.scorer)  # imports meanwhile
        today, run_id = datetime.now(UTC).date(), context.run.run_id
        named = config.week or context.run.tags.get(WEEK_TAG)
        week = parse_week(named, today if named else root_run(context).create_timestamp.date())
        scorer = deployment.scorer()
        resumed = resumed_runs(context)
        since = root_run(context).create_timestamp if len(resumed) > 1 else None  # whoever published it
        published = scorer.store.published_by(resumed, week, since)
        keys, untold = run.left(published), run.untold(published)
        histories = deployment.fleet().histories(week - MEMORY, [*keys, *untold])
        run.log(for_each_variant(partial(report_again, week, scorer, histories), untold), lambda _, report: report)
        report = partial(report_batch, histories=histories, model_link=deployment.model_link)
        request = FleetRequest.as_known(week, today=today, corrected=config.corrected, dagster_run_id=run_id)
        run.log(score_fleet(scorer, keys, request, report, workers), lambda _, finished: finished)
        deliver_all(context, deployment, list(context.partition_keys), [week])
    yield from run.finish()


def deliver_all(
    context: Any, deployment: Deployment, keys: Sequence[str] = (), weeks: Collection[date] | None = None
) -> dict[str, str]:
    """Deliver what is due of many variants, by default all; returns the errors of those that failed."""
    deliverer, failed = deployment.deliverer(), dict[str, str]()
    attempts = for_each_variant(partial(deliverer.deliver, weeks=weeks), keys or deliverer.keys()) if deliverer else ()
    for key, done in attempts:
        if isinstance(done, BaseException):
            failed[key] = error_text(done)
            context.log.warning("%s was not delivered, which the nightly maintenance repeats: %s", key, failed[key])
        elif done:
            log_report(context, key, AssetReport({EXPORT.key.to_user_string(): {"delivered": done}}))
    return failed


def report_batch(
    outcome: ScoringOutcome, scorer: Scorer, *, histories: Mapping[str, History], model_link: Callable[[str, int], str]
) -> AssetReport:
    """Describe and check a published batch in the process that scored it; the report is small and picklable."""

    def build() -> AssetReport:
        challenger, is_scored = outcome.challenger_version, outcome.challenger_record is not None
        batch = outcome.batch_id, outcome.record
        stored = outcome.record.n_rows_scored, outcome.summary.lowest, outcome.summary.highest
        results = check_published(*batch, scorer, histories, challenger, is_challenger_scored=is_scored, stored=stored)
        return AssetReport(describe(outcome, model_link), checks.of_batch(outcome.record.variant.key, results))

    return build_report(ASSETS, build)


def report_again(week: date, scorer: Scorer, histories: Mapping[str, History], variant: Variant) -> AssetReport:
    """Describe and check, from PostgreSQL, a batch that was published by a run that ended before it logged all."""

    def build() -> AssetReport:
        current = scorer.store.current(variant, week)
        batch_id, record = current[CHAMPION]
        challenger = current[CHALLENGER][1].model_version if CHALLENGER in current else None
        is_scored = challenger is not None
        results = check_published(batch_id, record, scorer, histories, challenger, is_challenger_scored=is_scored)
        by = record.dagster_run_id or "no Dagster run"
        about = {"dagster/row_count": record.n_rows_scored, "batch_id": batch_id, "published_by": by}
        about |= {"scored_week": week.isoformat(), "model_version": record.model_version}
        return AssetReport(dict.fromkeys(ASSETS, about), checks.of_batch(variant.key, results))

    return build_report(ASSETS, build)
