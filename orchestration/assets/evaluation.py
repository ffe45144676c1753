"""Delayed performance: what the batches of past weeks were worth, and whether challengers are better.

One op takes a range of variants: it adds each one's activity to its history, judges the batches whose labels have
matured, and holds its challenger against its champion. Champions change only where that is configured.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from typing import TYPE_CHECKING

import dagster as dg

from churn.concurrency import in_threads, without_frames
from churn.errors import ChurnError, InputError
from churn.evaluation.metrics import Interval
from churn.evaluation.segments import below_limit
from churn.markdown import markdown_table
from churn.variants import Variant
from churn.versions import CHAMPION
from churn.workflows.evaluate import reliability_picture
from orchestration.assets.metadata import Metadata, picture
from orchestration.fleet import RETRY_POLICY, RUN_TAGS, FleetRun, failure_of_all, materialized_by, runs_gone_on_from
from orchestration.partitions import variants_partitions
from orchestration.resources import Services
from orchestration.schedules import requests_for_all

if TYPE_CHECKING:
    from churn.database.evaluations import EvaluatedBatch
    from churn.workflows.promote import Promoter, VariantStatus

ASSET = "evaluated_batches"
VARIANTS_PER_RUN = 1_000
"""Whatever scoring does: promotions control false discoveries over a run's variants, which must not be few."""
_THREADS = 2  # more of them wait for one another

SPEC = dg.AssetSpec(
    ASSET,
    description="Batches whose labels have matured, with what their scores were worth: AUC, calibration, lift.",
    kinds={"postgres", "table"},
    deps=["store_predictions"],
    group_name="learning",
    owners=["team:retention"],
    skippable=True,
)
AUC_CHECK, SEGMENT_CHECK = "auc_is_not_below_its_limit", "no_segment_is_below_its_limit"
CLAIMS = {
    AUC_CHECK: "No judged batch of the champion has a ROC AUC that lies under its limit for sure.",
    SEGMENT_CHECK: "Nor has any state, product or source in it; false discoveries controlled over the variant's own.",
}
CHECKS = [dg.AssetCheckSpec(name, asset=ASSET, description=claim) for name, claim in CLAIMS.items()]
SEVERITIES = {(ASSET, name): dg.AssetCheckSeverity.WARN for name in CLAIMS}
_MOST_SEGMENTS = 20


@dataclass(frozen=True)
class Told:
    """What a person sees of a variant that was judged."""

    sentence: str
    metadata: Metadata
    checks: list[dg.AssetCheckEvaluation]


@dg.multi_asset(
    name="evaluate_batches",
    specs=[SPEC],
    check_specs=CHECKS,
    partitions_def=variants_partitions,
    backfill_policy=dg.BackfillPolicy.multi_run(VARIANTS_PER_RUN),
    retry_policy=RETRY_POLICY,
)
def evaluation_assets(context: dg.AssetExecutionContext, services: Services) -> Iterator[dg.AssetCheckResult]:
    """Judge every variant of the run's partitions that the runs it goes on from have not judged."""
    run = FleetRun(context, [SPEC], SEVERITIES)
    today = datetime.now(UTC).date()
    try:
        with services.open() as deployment:
            done = materialized_by(runs_gone_on_from(context), context.instance)
            missing = dict.fromkeys(key for key in context.partition_keys if key not in done)
            promoter = deployment.promoter()
            aliases = promoter.registry.aliases()
            promoter.observe(aliases)
            registered = [variant for variant in aliases if variant.key in missing]
            attempt = partial(_attempt, promoter.for_fleet(registered, aliases), today)
            for key, result in in_threads(lambda key: (key, attempt(key)), missing, _THREADS):
                if isinstance(result, BaseException):
                    run.note_failure(key, result)
                    continue
                report(context, key, result)
                run.checks.add(key, result.checks)
            if deployment.settings.churn_auto_promote:
                _promote(context, promoter, [key for key in missing if key not in run.failed])
    except ChurnError as error:
        raise failure_of_all(error, context) from error
    yield from run.finish()


def report(context: dg.AssetExecutionContext, key: str, told: Told) -> None:
    """Log what came of a variant: its materialization and its checks."""
    context.log_event(dg.AssetMaterialization(ASSET, description=told.sentence, partition=key, metadata=told.metadata))
    for evaluation in told.checks:
        context.log_event(evaluation)


evaluation_job = dg.define_asset_job(
    "evaluation_job",
    selection=dg.AssetSelection.assets(ASSET),
    description="Judges the batches whose labels have matured, and challengers against champions.",
    tags=RUN_TAGS,
)


@dg.schedule(
    job=evaluation_job,
    cron_schedule="0 6 * * 1",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every Monday at 06:00 UTC, after the week was scored: all registered variants.",
)
def weekly_evaluation_schedule(
    context: dg.ScheduleEvaluationContext, services: Services
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Request a run for each chunk of the registered variants."""
    day = context.scheduled_execution_time.date().isoformat()
    yield from requests_for_all(context.instance, services, f"judge:{day}", most=VARIANTS_PER_RUN)


def _attempt(promoter: "Promoter", today: date, key: str) -> Told | BaseException:
    try:
        variant = Variant.from_key(key)
        try:
            taken = promoter.evaluator.ingest(variant)
        except InputError as error:
            # Encoded rows, or a parent's: a variant without activity of its own is scored, and never judged.
            return Told(f"not judged: {error}", {"not_evaluated": dg.MetadataValue.text(str(error))}, [])
        judged = promoter.evaluator.evaluate_batches(variant, today, taken)
        return _tell(key, taken.n_added, judged, promoter.status(variant, taken))
    except Exception as error:  # noqa: BLE001 one variant's error stops no other; it is told at the end
        return without_frames(error)


def _tell(key: str, n_new: int, judged: "list[EvaluatedBatch]", status: "VariantStatus") -> Told:
    comparison = status.comparison
    metadata: dict[str, dg.MetadataValue] = {
        "n_new_facts": dg.MetadataValue.int(n_new),
        "n_batches_evaluated": dg.MetadataValue.int(len(judged)),
        "champion": dg.MetadataValue.text(str(status.event.champion)),
    }
    champions = [one for one in judged if one.batch.role == CHAMPION]
    if judged:
        metadata["judged"] = dg.MetadataValue.md(_table(judged))
    if champions:
        metadata |= _of_newest(champions[-1])
    if comparison is not None:
        metadata["challenger"] = dg.MetadataValue.text(str(status.event.challenger))
        metadata["comparison"] = dg.MetadataValue.text(comparison.sentence)
        metadata["e_value"] = dg.MetadataValue.float(comparison.e_value)
    sentence = f"{n_new} new facts, {len(judged)} batches judged{f'; {comparison.sentence}' if comparison else ''}"
    return Told(sentence, metadata, _checks(key, champions) if judged else [])


def _of_newest(judged: "EvaluatedBatch") -> Metadata:
    """Show the figures of the newest batch, and its calibration."""
    shown = {name: dg.MetadataValue.float(float(value)) for name, value in judged.measures.items()}
    drawn = reliability_picture(judged)
    return shown if drawn is None else shown | {"reliability": dg.MetadataValue.md(picture(drawn))}


def _checks(key: str, champions: "list[EvaluatedBatch]") -> list[dg.AssetCheckEvaluation]:
    below = [one.batch.scored_week.isoformat() for one in champions if one.is_below_limit]
    segments = [(one.batch.scored_week, segment) for one in champions for segment in one.segments]
    is_low = below_limit([segment for _, segment in segments])
    low = [f"{week}: {one.segment} {one.level}" for (week, one), is_one in zip(segments, is_low, strict=True) if is_one]
    shown: dict[str, dg.MetadataValue] = {"below": dg.MetadataValue.json(low)}
    if champions:
        shown["segments"] = dg.MetadataValue.md(_segment_table(champions[-1]))
    return [
        _check(key, AUC_CHECK, passed=not below, metadata={"weeks": dg.MetadataValue.json(below)}),
        _check(key, SEGMENT_CHECK, passed=not low, metadata=shown),
    ]


def _check(key: str, name: str, *, passed: bool, metadata: Metadata) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(ASSET),
        check_name=name,
        passed=passed,
        severity=SEVERITIES[ASSET, name],
        partition=key,
        metadata=metadata,
    )


def _table(judged: "list[EvaluatedBatch]") -> str:
    rows = [
        (
            one.batch.scored_week,
            f"{one.batch.role} v{one.batch.model_version}",
            f"{one.n_matured:,}",
            f"{one.n_churned:,}",
            _interval(one),
            "" if one.auc_limit is None else f"{one.auc_limit:.3f}",
        )
        for one in judged
    ]
    return markdown_table(("week", "model", "matured", "churned", "ROC AUC", "limit"), rows, "--rr-r")


def _interval(judged: "EvaluatedBatch") -> str:
    if judged.status != "ok":
        return judged.status
    return f"{Interval(*(judged.measures[name] for name in ('roc_auc', 'roc_auc_low', 'roc_auc_high'))):.3f}"


def _segment_table(judged: "EvaluatedBatch") -> str:
    """Show the segments with figures, the lowest AUC first, and count the others."""
    measured = [(auc, one) for one in judged.segments if (auc := one.roc_auc) is not None]
    measured.sort(key=lambda pair: pair[0].value)
    rows = [
        (
            one.segment,
            one.level,
            f"{one.n_matured:,}",
            f"{one.n_churned:,}",
            f"{auc:.3f}",
            f"{one.calibration_error:.3f}",
        )
        for auc, one in measured[:_MOST_SEGMENTS]
    ]
    columns = ("segment", "level", "matured", "churned", "ROC AUC", "calibration error")
    limit = "" if judged.auc_limit is None else f", limit {judged.auc_limit:.3f}"
    rest = f"{judged.batch.scored_week}{limit}; {len(judged.segments) - len(measured)} levels with too few labels"
    return f"{markdown_table(columns, rows, '--rr-r')}\n\n{rest}"


def _promote(context: dg.AssetExecutionContext, promoter: "Promoter", keys: list[str]) -> None:
    """Promote the challengers that have proved to be better, false discoveries controlled over this run's variants."""
    results = promoter.promote_all([Variant.from_key(key) for key in keys], reason="CHURN_AUTO_PROMOTE")
    for variant, result in results.items():
        context.log.info("%s: %s", variant, getattr(result, "sentence", None) or result)
