"""All jobs except the weekly one (``orchestration.job``), and the ops of those that materialize no asset.

Not here: when jobs run (``schedules``, ``sensors``). https://docs.dagster.io/guides/build/jobs
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from functools import partial
from typing import Any

import dagster as dg

from churn.database.events import ModelEvent
from churn.evaluation.comparison import Comparison
from churn.variants import Variant
from churn.weeks import monday_of
from churn.wording import counted
from churn.workflows.collect import collect_versions
from churn.workflows.erase import drop_old_weeks
from churn.workflows.fleet import error_text, for_each_variant
from churn.workflows.promote import Promoter
from orchestration.assets.scoring import deliver_all
from orchestration.checks import DRIFTED, EVALUATED, INCIDENTS, TRAINED
from orchestration.fleet import RUN_TAGS, root_run
from orchestration.resources import Services
from orchestration.upkeep import purge_runs

WEEKS_AHEAD = 5

_EVALUATION = "Evaluates published batches whose labels have matured, and compares challengers with champions."
_TRAINING = "Trains a range of variants, checks the models against the gate, and registers them in MLflow."
_MONITORING = "Detects drift and other problems over the whole fleet, updates the incidents, and writes the report."
_DECISIONS = "Selects the members of the campaigns that have begun, and measures effects, over the whole fleet."

evaluation_job = dg.define_asset_job("evaluation_job", [EVALUATED], description=_EVALUATION, tags=RUN_TAGS)
training_job = dg.define_asset_job("training_job", [TRAINED], description=_TRAINING, tags=RUN_TAGS)
monitoring_job = dg.define_asset_job("monitoring_job", [DRIFTED, INCIDENTS, "fleet_report"], description=_MONITORING)
decisions_job = dg.define_asset_job("decisions_job", dg.AssetSelection.groups("decisions"), description=_DECISIONS)


class PromotionAction(Enum):
    """What to do with each variant."""

    PROMOTE = "promote"
    ROLLBACK = "rollback"


class PromotionConfig(dg.Config, use_attribute_docstrings=True):
    """Configuration of a promotion run."""

    variants: list[str]
    """The keys of the variants, such as geography-us."""
    action: PromotionAction = PromotionAction.PROMOTE
    """PROMOTE makes each challenger the champion, ROLLBACK makes each previous champion the champion."""
    reason: str = ""
    """The reason, which is recorded with each change; it is required with force."""
    to: int | None = None
    """The version to make champion; for one variant only. A rollback right after a rollback needs it."""
    force: bool = False
    """Promote regardless of the test and the guardrails."""
    dry_run: bool = False
    """Decide without moving any alias in MLflow."""


@dg.op(description="Promotes challengers that are proven better, or rolls champions back, for the variants configured.")
def move_champions(context: dg.OpExecutionContext, config: PromotionConfig, services: Services) -> None:
    """Promote or roll back each variant; one that is refused stops no other, and fails the run at the end."""
    moved, refused = {}, {}
    if config.to is not None and len(config.variants) != 1:
        raise dg.Failure(f"to names a version of one variant, not of {len(config.variants)}", allow_retries=False)
    launched = root_run(context)
    with services.open() as deployment:
        decision = f"Dagster run {launched.dagster_run.run_id}"
        promoter = replace(deployment.promoter(), decision=decision, decided_at=launched.create_timestamp)
        for key, result in _move_all(promoter, config):
            if isinstance(result, BaseException | str):
                refused[key] = result if isinstance(result, str) else error_text(result)
                context.log.warning("%s was not changed: %s", key, refused[key])
            else:
                moved[key] = f"champion v{result.champion}, previous v{result.previous}: {result.reason}"
    metadata: dict[str, Any] = {"moved": moved, "is_dry_run": config.dry_run}
    if refused:
        why = f"{len(refused)} of {counted(len(config.variants), 'variant')} not changed: {'; '.join(refused.values())}"
        raise dg.Failure(why, metadata={**metadata, "refused": refused}, allow_retries=False)
    context.add_output_metadata(metadata)


def _move_all(promoter: Promoter, config: PromotionConfig) -> Iterator[tuple[str, ModelEvent | str | BaseException]]:
    """Move each variant's champion; a promotion is decided over the fleet unless a version or force is given."""
    if config.action is PromotionAction.ROLLBACK or config.force or config.to is not None:
        yield from for_each_variant(partial(_move, promoter, config), config.variants)
        return
    known = dict(for_each_variant(lambda variant: variant, config.variants))
    variants = [one for one in known.values() if isinstance(one, Variant)]
    results = promoter.promote_all(variants, reason=config.reason, dry_run=config.dry_run)
    for key, variant in known.items():
        if not isinstance(variant, Variant):
            yield key, variant
        elif (result := results.get(variant)) is None:
            yield key, f"{variant} has no champion and challenger to compare"
        else:
            yield key, f"{variant}: {result.sentence}" if isinstance(result, Comparison) else result


def _move(promoter: Promoter, config: PromotionConfig, variant: Variant) -> ModelEvent:
    if config.action is PromotionAction.ROLLBACK:
        reason = config.reason or "requested in Dagster"
        return promoter.roll_back(variant, reason, to=config.to, dry_run=config.dry_run)
    reason, force = config.reason, config.force
    return promoter.promote(variant, to=config.to, reason=reason, force=force, dry_run=config.dry_run)[0]


@dg.job(description="Promotes the challengers, or rolls back the champions, of the variants in the run configuration.")
def promotion_job() -> None:
    """Move champions."""
    move_champions()


@dg.op(description=f"Opens the partitions of this week and of the next {WEEKS_AHEAD}, so that no weekly run has to.")
def open_weeks_ahead(context: dg.OpExecutionContext, services: Services) -> None:
    """Open each week once."""
    with services.open() as deployment:
        weeks = deployment.store().open_weeks(monday_of(datetime.now(UTC).date()), 1 + WEEKS_AHEAD)
        _log_weeks(context, "open", weeks)


@dg.op(description="Indexes the weeks that are over by account, for account look-up and erasure.")
def index_closed_weeks(context: dg.OpExecutionContext, services: Services) -> None:
    """Index each week once: building the index is cheapest when all rows of the week are there."""
    with services.open() as deployment:
        _log_weeks(context, "indexed", deployment.store().index_closed_weeks(datetime.now(UTC).date()))


@dg.op(description="Drops the weeks of predictions that are older than the retention period, CHURN_KEEP_WEEKS.")
def drop_weeks_not_kept(context: dg.OpExecutionContext, services: Services) -> None:
    """Drop whole partitions and the records of their batches; nothing if all weeks are kept."""
    with services.open() as deployment:
        database, n_weeks, today = deployment.database, deployment.settings.churn_keep_weeks, datetime.now(UTC).date()
        weeks = drop_old_weeks(database, today, n_weeks=n_weeks, horizon=deployment.horizon)
        _log_weeks(context, "dropped", weeks)


@dg.op(
    description="Delivers the batches that are not delivered, and withdraws weeks that were dropped.",
    tags={"dagster/priority": "-1"},  # after weeks are dropped
)
def complete_deliveries(context: dg.OpExecutionContext, services: Services) -> None:
    """Deliver what is due of all variants; one that fails stops no other, and fails the run at the end."""
    with services.open() as deployment:
        if failed := deliver_all(context, deployment):
            raise dg.Failure(f"not delivered: {'; '.join(failed.values())}", metadata={"failed": failed})


@dg.op(description="Deletes runs, their events and model versions that are older than CHURN_KEEP_RUN_DAYS.")
def purge_old_runs(context: dg.OpExecutionContext, services: Services) -> None:
    """Purge Dagster's log and MLflow's registry; nothing if all is kept."""
    with services.open() as deployment:
        if n_days := deployment.settings.churn_keep_run_days:
            before = datetime.now(UTC) - timedelta(days=n_days)
            n_runs, n_events = purge_runs(context.instance, before)
            registry, store, events = deployment.registry(read_only=False), deployment.store(), deployment.events()
            versions = collect_versions(registry, store, events, before)
            context.add_output_metadata({"runs": n_runs, "events": n_events, "model_versions": versions})


def _log_weeks(context: dg.OpExecutionContext, done: str, weeks: list[date]) -> None:
    context.log.info("weeks %s: %s", done, ", ".join(map(str, weeks)) or "none")
    context.add_output_metadata({"weeks": [week.isoformat() for week in weeks]})


@dg.op
def ingest_scored_extracts(context: dg.OpExecutionContext, services: Services) -> None:
    """Adds the extracts that batches were scored from to the activity histories, with the exclusions beside them.

    Exclusions of the variants of open campaigns are taken, too. A variant that fails stops no other, and fails the run.
    """
    n, failed = Counter[str](), {}
    with services.open() as deployment:
        ingestion = deployment.ingestion()
        keys = {*ingestion.extracts.variants(), *deployment.decider().decisions.listed_variants()}
        for key, result in for_each_variant(ingestion.ingest_scored, sorted(keys)):
            if isinstance(result, BaseException):
                failed[key] = error_text(result)
            else:
                n.update(result)
    context.add_output_metadata(dict(n))
    if failed:
        why = f"scored extracts not ingested, of {counted(len(failed), 'variant')}: {'; '.join(failed.values())}"
        raise dg.Failure(why, metadata={"failed": failed})


@dg.job
def maintenance_job() -> None:
    """Opens coming weeks of predictions, ingests extracts that were scored, and indexes closed weeks by account.

    Then drops weeks older than the retention period, CHURN_KEEP_WEEKS, completes what is delivered, and purges old
    runs, events and model versions, CHURN_KEEP_RUN_DAYS.
    """
    open_weeks_ahead()
    ingest_scored_extracts()
    index_closed_weeks()
    drop_weeks_not_kept()
    complete_deliveries()
    purge_old_runs()
