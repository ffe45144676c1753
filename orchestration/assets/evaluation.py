"""Evaluated batches: the realized performance of published batches whose labels have matured.

One op evaluates a range of variants. Not here: the evaluation, which also compares and promotes challengers
(``churn.workflows.evaluate``).
"""

from collections.abc import Sequence

import dagster as dg

from churn.database.evaluations import EvaluatedBatch
from churn.deployment.services import Deployment
from churn.evaluation.metrics import Interval
from churn.wording import counted
from churn.workflows.evaluate import VariantEvaluation, evaluate_fleet
from churn.workflows.promote import VariantStatus
from orchestration import checks
from orchestration.assets import asset_of_variants
from orchestration.assets.metadata import Metadata, table
from orchestration.checks import EVALUATED
from orchestration.fleet import AssetReport, FleetRun, fleet_assets
from orchestration.resources import Services

VARIANTS_PER_RUN = 1_000
"""Regardless of scoring: promotions control false discoveries over a run's variants, which must not be few."""

SPEC = asset_of_variants(EVALUATED, "learning", "store_predictions", kinds={"postgres", "table"})


@fleet_assets("evaluate_batches", [SPEC], backfill_variants=VARIANTS_PER_RUN)
def evaluation_assets(context: dg.AssetExecutionContext, services: Services) -> checks.Results:
    """Evaluate every variant of the run's partitions that this run, or one that it resumes, has not evaluated."""
    run = FleetRun(context, [SPEC])
    with run.open(services) as deployment:
        auto_promote, promoter = deployment.settings.churn_auto_promote, deployment.promoter()
        workers = deployment.workers(len(keys := run.left()), Deployment.promoter)
        attempts = evaluate_fleet(promoter, keys, auto_promote=auto_promote, log=context.log, workers=workers)
        run.log(attempts, _report)
    yield from run.finish()


def _report(key: str, evaluation: VariantEvaluation) -> AssetReport:
    if evaluation.status is None:
        reason = str(evaluation.not_evaluated)
        return AssetReport({EVALUATED: {"not_evaluated": reason}}, (), f"The variant was not evaluated: {reason}")
    comparison = evaluation.status.comparison
    n_batches = counted(len(evaluation.batches), "batch", "batches")
    sentence = f"{n_batches} evaluated, {counted(evaluation.n_new_facts, 'new fact')} of activity ingested"
    sentence += f"; {comparison.sentence}" if comparison else ""
    metadata = {EVALUATED: _metadata(evaluation, evaluation.status)}
    return AssetReport(metadata, checks.of_evaluation(key, evaluation), sentence)


def _metadata(evaluation: VariantEvaluation, status: VariantStatus) -> Metadata:
    counts = {"facts_added_to_history": evaluation.n_new_facts, "batches_evaluated": len(evaluation.batches)}
    metadata: dict[str, object] = {**counts, "champion": str(status.event.champion)}
    if evaluation.batches:
        metadata["evaluated"] = _table(evaluation.batches)
    if evaluation.of_champion:
        newest = evaluation.of_champion[-1]
        metadata |= {name: float(value) for name, value in newest.measures.items()}
        if (bins := newest.reliability) is not None:
            columns = zip(bins["n"], bins["mean_score"], bins["churned_share"], strict=True)
            rows = [(f"{n:,.0f}", f"{score:.3f}", f"{share:.3f}") for n, score, share in columns]
            metadata["reliability"] = table(("accounts", "mean score", "share that churned"), rows, "rrr")
    if status.comparison is not None:
        metadata["challenger"] = str(status.event.challenger)
        metadata["comparison"] = status.comparison.sentence
    return metadata


def _table(evaluated: Sequence[EvaluatedBatch]) -> dg.MarkdownMetadataValue:
    rows = [
        (one.batch.scored_week, f"{one.batch.role} v{one.batch.model_version}", f"{one.n_matured:,}",
         f"{one.n_churned:,}", _roc_auc(one), "" if one.auc_limit is None else f"{one.auc_limit:.3f}")
        for one in evaluated
    ]  # fmt: skip
    return table(("week", "model", "matured", "churned", "ROC AUC", "limit"), rows, "--rr-r")


def _roc_auc(evaluated: EvaluatedBatch) -> str:
    if evaluated.status != "ok":
        return evaluated.status
    return f"{Interval(*(evaluated.measures[name] for name in ('roc_auc', 'roc_auc_low', 'roc_auc_high'))):.3f}"
