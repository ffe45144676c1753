"""Promotion and rollback as one launch, and the sensor that asks for training. No champion changes by itself here."""

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING

import dagster as dg

from churn.database.fleet import FleetTables
from churn.errors import ChurnError
from churn.monitoring.conditions import ScoredBatch
from churn.monitoring.drift import flag_fleet
from churn.monitoring.retraining import EvaluatedCohort, RetrainingPolicy, is_paused, reason_to_retrain
from churn.variants import Variant
from churn.weeks import monday_of
from orchestration.assets.training import training_job
from orchestration.partitions import RANGE_END_TAG, RANGE_START_TAG, sync_partitions
from orchestration.resources import Services

if TYPE_CHECKING:
    from churn.database.events import ModelEvent
    from churn.deployment.services import Deployment
    from churn.workflows.promote import Promoter

REASON_TAG = "churn/reason"
_TAG_LENGTH = 250
# What is worth a look is not yet worth another model: seasons move inputs every year.
_RETRAIN_PSI, _RETRAIN_UNKNOWN_RISE = 0.2, 0.05
_MOST_REQUESTS = 50  # an evaluation; the next one goes on


class PromotionAction(Enum):
    """What to do."""

    PROMOTE = "promote"
    ROLLBACK = "rollback"


class PromotionConfig(dg.Config):
    """What a launch says."""

    variants: list[str]
    """Keys, such as geography-us."""
    action: PromotionAction = PromotionAction.PROMOTE
    reason: str = ""
    """Kept in the trail; needed with force."""
    force: bool = False
    """Promote whatever the test and the guardrails say."""
    dry_run: bool = False
    """Decide and tell, and move nothing."""


@dg.op(description="Promotes challengers that have proved to be better, or rolls champions back.")
def move_champions(context: dg.OpExecutionContext, config: PromotionConfig, services: Services) -> None:
    """Do what is asked for each variant; one that is refused stops no other, and fails the run at the end."""
    moved: dict[str, str] = {}
    refused: dict[str, str] = {}
    with services.open() as deployment:
        promoter = deployment.promoter()
        for key in config.variants:
            try:
                event = _move(promoter, Variant.from_key(key), config)
                moved[key] = f"champion v{event.champion}, previous v{event.previous}: {event.reason}"
            except ChurnError as error:
                refused[key] = str(error)
                context.log.warning("%s stays as it is: %s", key, error)
    metadata = {"moved": dg.MetadataValue.json(moved), "is_dry_run": dg.MetadataValue.bool(config.dry_run)}
    if refused:
        raise dg.Failure(
            f"{len(refused)} of {len(config.variants)} variants stay as they are: {'; '.join(refused.values())}",
            metadata={**metadata, "refused": dg.MetadataValue.json(refused)},
            allow_retries=False,
        )
    context.add_output_metadata(metadata)


def _move(promoter: "Promoter", variant: Variant, config: PromotionConfig) -> "ModelEvent":
    if config.action is PromotionAction.ROLLBACK:
        return promoter.roll_back(variant, config.reason or "asked for in Dagster", dry_run=config.dry_run)
    return promoter.promote(variant, reason=config.reason, is_forced=config.force, dry_run=config.dry_run)[0]


@dg.job(description="Promotes or rolls back the variants that the launch names.")
def promotion_job() -> None:
    """Move champions."""
    move_champions()


@dg.sensor(
    job=training_job,
    minimum_interval_seconds=6 * 3600,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Asks for training where a champion does worse than it must, its input drifts, or it is old.",
)
def retraining_sensor(context: dg.SensorEvaluationContext, services: Services) -> dg.SensorResult:
    """Request a training run for each variant with a reason to; the cursor holds when each was requested last."""
    today = datetime.now(UTC).date()
    requested: dict[str, str] = json.loads(context.cursor) if context.cursor else {}
    try:
        with services.open() as deployment:
            reasons = dict(reasons_to_retrain(deployment, today, requested))
            sync_partitions(context.instance, deployment.registry(read_only=True).variants())
    except ChurnError as error:
        return dg.SensorResult(skip_reason=f"cannot tell what to train: {error}", cursor=context.cursor)
    chosen = dict(list(reasons.items())[:_MOST_REQUESTS])
    requests = [
        dg.RunRequest(
            run_key=f"train:{key}:{today}",
            tags={RANGE_START_TAG: key, RANGE_END_TAG: key, REASON_TAG: reason[:_TAG_LENGTH]},
        )
        for key, reason in chosen.items()
    ]
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else "no champion needs training",
        cursor=json.dumps(requested | dict.fromkeys(chosen, today.isoformat()), sort_keys=True),
    )


def reasons_to_retrain(deployment: "Deployment", today: date, requested: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the variants whose champion should be trained anew, by key, with the reason.

    A variant that has a challenger waits for its comparison; one for which training was requested lately is left alone.
    """
    settings = deployment.settings
    policy = RetrainingPolicy(settings.churn_horizon_months, settings.churn_retrain_after_months)
    evaluator = deployment.evaluator()
    registry, results = evaluator.registry, evaluator.results
    judged = results.evaluated_champions()
    drifted = drifted_weeks(FleetTables(deployment.database), today)
    trained_on = registry.training_dates()
    for variant, aliases in sorted(registry.aliases().items()):
        champion = aliases.get("champion")
        last = requested.get(variant.key)
        if champion is None or "challenger" in aliases:
            continue
        if is_paused(date.fromisoformat(last) if last else None, today, policy):
            continue
        cohorts = [
            EvaluatedCohort(one.batch.as_of, one.measures.get("roc_auc_high"), one.auc_limit)
            for one in judged.get(variant, [])
            if one.batch.model_version == champion
        ]
        reason = reason_to_retrain(
            cohorts, drifted.get((variant, champion), {}), trained_on.get((variant, champion)), today, policy
        )
        if reason is not None:
            yield variant.key, reason


def drifted_weeks(fleet: FleetTables, today: date) -> dict[tuple[Variant, int], dict[date, list[str]]]:
    """Return what drifted in the last three weeks, false discoveries controlled over the fleet, by model version."""
    found: dict[tuple[Variant, int], dict[date, list[str]]] = {}
    by_week: dict[date, dict[str, ScoredBatch]] = {}
    for batch in fleet.batches(monday_of(today) - timedelta(weeks=2)):
        by_week.setdefault(batch.week, {})[batch.variant] = batch
    for week, batches in by_week.items():
        flags = flag_fleet(
            {key: batch.drifts for key, batch in batches.items()},
            least_psi=_RETRAIN_PSI,
            least_unknown_rise=_RETRAIN_UNKNOWN_RISE,
        )
        for flag in sorted(flags):
            version = Variant.from_key(flag.variant), batches[flag.variant].model_version
            found.setdefault(version, {}).setdefault(week, []).append(flag.feature)
    return found
