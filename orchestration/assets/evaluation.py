"""Evaluated batches: the realized performance of published batches whose labels have matured.

One op evaluates a range of variants. Belongs here: the asset and what Dagster logs of an evaluation. Not here: the
evaluation, which also compares and promotes challengers (``churn.workflows.evaluate``).
"""

from collections.abc import Iterator, Sequence

import dagster as dg

from churn.database.evaluations import EvaluatedBatch
from churn.evaluation.metrics import Interval
from churn.workflows.evaluate import VariantEvaluation, evaluate_fleet, reliability_picture
from orchestration import checks
from orchestration.assets.metadata import Metadata, picture, table
from orchestration.checks import EVALUATED
from orchestration.fleet import RETRY_POLICY, AssetReport, FleetRun
from orchestration.partitions import variants_partitions
from orchestration.resources import Services

VARIANTS_PER_RUN = 1_000
"""Regardless of scoring: promotions control false discoveries over a run's variants, which must not be few."""

SPEC = dg.AssetSpec(
    EVALUATED,
    description="The realized performance (ROC AUC, calibration, lift) of each published batch whose labels have "
    "matured.",
    kinds={"postgres", "table"},
    deps=["store_predictions"],
    group_name="learning",
    owners=["team:retention"],
    skippable=True,
)


@dg.multi_asset(
    name="evaluate_batches",
    specs=[SPEC],
    check_specs=checks.specs([EVALUATED]),
    partitions_def=variants_partitions,
    backfill_policy=dg.BackfillPolicy.multi_run(VARIANTS_PER_RUN),
    retry_policy=RETRY_POLICY,
)
def evaluation_assets(context: dg.AssetExecutionContext, services: Services) -> Iterator[dg.AssetCheckResult]:
    """Evaluate every variant of the run's partitions that this run, or one that it resumes, has not evaluated."""
    run = FleetRun(context, [SPEC])
    with run.open(services) as deployment:
        auto_promote = deployment.settings.churn_auto_promote
        promoter, keys = deployment.promoter(), run.left()
        run.log(evaluate_fleet(promoter, keys, auto_promote=auto_promote, log=context.log), _report)
    yield from run.finish()


def _report(key: str, evaluation: VariantEvaluation) -> AssetReport:
    if evaluation.status is None:
        reason = str(evaluation.not_evaluated)
        metadata = {EVALUATED: {"not_evaluated": dg.MetadataValue.text(reason)}}
        return AssetReport(metadata, description=f"The variant was not evaluated: {reason}")
    comparison = evaluation.status.comparison
    sentence = f"{evaluation.n_new_facts} new facts, {len(evaluation.batches)} batches evaluated"
    return AssetReport(
        {EVALUATED: _metadata(evaluation)},
        checks.of_evaluation(key, evaluation),
        f"{sentence}; {comparison.sentence}" if comparison else sentence,
    )


def _metadata(evaluation: VariantEvaluation) -> Metadata:
    status = evaluation.status
    metadata: dict[str, dg.MetadataValue] = {
        "n_new_facts": dg.MetadataValue.int(evaluation.n_new_facts),
        "n_batches_evaluated": dg.MetadataValue.int(len(evaluation.batches)),
    }
    if evaluation.batches:
        metadata["evaluated"] = dg.MetadataValue.md(_table(evaluation.batches))
    if evaluation.of_champion:
        metadata |= _of_newest(evaluation.of_champion[-1])
    if status is not None:
        metadata["champion"] = dg.MetadataValue.text(str(status.event.champion))
    if status is not None and status.comparison is not None:
        metadata["challenger"] = dg.MetadataValue.text(str(status.event.challenger))
        metadata["comparison"] = dg.MetadataValue.text(status.comparison.sentence)
        metadata["e_value"] = dg.MetadataValue.float(status.comparison.e_value)
    return metadata


def _of_newest(evaluated: EvaluatedBatch) -> Metadata:
    """Show the figures of the newest batch, and its calibration."""
    shown = {name: dg.MetadataValue.float(float(value)) for name, value in evaluated.measures.items()}
    drawn = reliability_picture(evaluated)
    return shown if drawn is None else shown | {"reliability": dg.MetadataValue.md(picture(drawn))}


def _table(evaluated: Sequence[EvaluatedBatch]) -> str:
    rows = [
        (
            str(one.batch.scored_week),
            f"{one.batch.role} v{one.batch.model_version}",
            f"{one.n_matured:,}",
            f"{one.n_churned:,}",
            _roc_auc(one),
            "" if one.auc_limit is None else f"{one.auc_limit:.3f}",
        )
        for one in evaluated
    ]
    columns = ("week", "model", "matured", "churned", "ROC AUC", "limit")
    return table(columns, rows, "--rr-r")


def _roc_auc(evaluated: EvaluatedBatch) -> str:
    if evaluated.status != "ok":
        return evaluated.status
    return f"{Interval(*(evaluated.measures[name] for name in ('roc_auc', 'roc_auc_low', 'roc_auc_high'))):.3f}"
