"""Metadata of materializations: counts, links, tables and pictures that an asset's page shows.

Belongs here: the metadata of a published batch, and the Markdown that several assets share. Not here: how anything is
measured.
"""

import base64
from collections.abc import Callable, Mapping, Sequence

import dagster as dg

from churn.database.evaluations import EvaluatedBatch
from churn.evaluation.charts import Distribution, draw_distributions, draw_importance
from churn.markdown import markdown_table
from churn.monitoring.profiles import SCORE
from churn.monitoring.summary import ScoreSummary
from churn.workflows.score import ScoringOutcome

Metadata = Mapping[str, dg.MetadataValue]

_BAR_WIDTH = 30
_FEATURES_DRAWN = 2
_MAX_ROWS, _MAX_SEGMENTS = 50, 20


def describe(outcome: ScoringOutcome, model_link: Callable[[str, int], str]) -> dict[str, Metadata]:
    """Return each asset's metadata."""
    return {
        "raw_churn_data": _of_raw(outcome),
        "transformed_features": _of_features(outcome),
        "load_model_from_mlflow": _of_model(outcome, model_link),
        "generate_predictions": _of_predictions(outcome),
        "store_predictions": _of_batch(outcome),
    }


def _of_raw(outcome: ScoringOutcome) -> Metadata:
    provenance, record = outcome.provenance, outcome.record
    return {
        "dagster/row_count": dg.MetadataValue.int(record.n_rows_read),
        "source": dg.MetadataValue.text(provenance.source),
        "fallback": dg.MetadataValue.text(provenance.fallback_reason or "no"),
        "data_of_variant": dg.MetadataValue.text(provenance.variant.key),
        "uri": dg.MetadataValue.text(provenance.uri),
        "version": dg.MetadataValue.text(provenance.version),
        "sha256": dg.MetadataValue.text(provenance.sha256),
        "size_bytes": dg.MetadataValue.int(provenance.size),
        "modified_at": dg.MetadataValue.timestamp(provenance.modified_at),
    }


def _of_features(outcome: ScoringOutcome) -> Metadata:
    counts, record = outcome.counts, outcome.record
    return {
        "dagster/row_count": dg.MetadataValue.int(record.n_rows_scored),
        "n_features": dg.MetadataValue.int(len(outcome.feature_names)),
        "as_of": dg.MetadataValue.text(record.as_of.isoformat()),
        "n_rows_quarantined": dg.MetadataValue.int(record.n_rows_quarantined),
        "quarantined_by_rule": dg.MetadataValue.json(counts.quarantined_by_rule),
        "n_rows_not_yet_known": dg.MetadataValue.int(counts.n_later),
        "n_accounts_withheld": dg.MetadataValue.int(counts.n_withheld),
        "unknown_levels": dg.MetadataValue.json(dict(record.unknown_levels)),
        **_of_distributions(outcome),
    }


def _of_distributions(outcome: ScoringOutcome) -> Metadata:
    """Draw the features that differ most from the model's reference."""
    drift, reference, batch = outcome.record.drift, outcome.summary.reference, outcome.summary.profile
    if not drift or reference is None or batch is None:
        return {}
    inputs = {feature: measures["excess_psi"] for feature, measures in drift.items() if feature != SCORE}
    most = sorted(inputs, key=lambda feature: -inputs[feature])[:_FEATURES_DRAWN]
    labels = {bins.feature: bins.labels for bins in reference.bins}
    before, now = reference.by_feature(), batch.by_feature()
    drawn = [
        Distribution(f"{name}, PSI {drift[name]['psi']:.3f}", labels[name], before[name].tolist(), now[name].tolist())
        for name in most
    ]
    title = "Features that differ most from the reference"
    return {"distributions": dg.MetadataValue.md(picture(draw_distributions(drawn, title)))}


def _of_model(outcome: ScoringOutcome, model_link: Callable[[str, int], str]) -> Metadata:
    model = outcome.model
    return {
        "registered_model": dg.MetadataValue.text(model.registered_model),
        "model_version": dg.MetadataValue.int(model.version),
        "alias": dg.MetadataValue.text(str(model.alias)),
        "mlflow": dg.MetadataValue.url(model_link(model.registered_model, model.version)),
        "mlflow_run_id": dg.MetadataValue.text(model.mlflow_run_id),
        "sha256": dg.MetadataValue.text(model.sha256),
    }


def _of_predictions(outcome: ScoringOutcome) -> Metadata:
    summary, engine = outcome.summary, outcome.engine
    scores: dict[str, dg.MetadataValue] = {
        "dagster/row_count": dg.MetadataValue.int(summary.n),
        "mean_churn_probability": dg.MetadataValue.float(summary.mean),
        "histogram": dg.MetadataValue.md(histogram(summary)),
        "scored_by": dg.MetadataValue.text(
            f"XGBoost itself: {engine.fallback_reason}" if engine.fallback_reason else "tables compiled from its trees"
        ),
    }
    if summary.estimated_auc is not None:
        scores["estimated_auc_assuming_no_concept_drift"] = dg.MetadataValue.float(summary.estimated_auc)
    if outcome.challenger_version is not None:
        scored = "scored beside it" if outcome.challenger_record else "could not score"
        scores["challenger"] = dg.MetadataValue.text(f"version {outcome.challenger_version} {scored}")
    if engine.reasons is None:
        return scores
    importance = summary.importance(engine.reasons.source_columns)
    return scores | {
        "bias": dg.MetadataValue.float(engine.reasons.bias),
        "importance": dg.MetadataValue.md(picture(draw_importance(importance, "mean |contribution|, log-odds"))),
    }


def _of_batch(outcome: ScoringOutcome) -> Metadata:
    record = outcome.record
    return {
        "dagster/row_count": dg.MetadataValue.int(record.n_rows_scored),
        "dagster/relation_identifier": dg.MetadataValue.text("churn_predictions"),
        "batch_id": dg.MetadataValue.int(outcome.batch_id),
        "scored_week": dg.MetadataValue.text(record.scored_week.isoformat()),
        "highest_risk": dg.MetadataValue.md(preview(outcome.summary)),
    }


def histogram(summary: ScoreSummary) -> str:
    """Draw the distribution as a Markdown table, one row per twentieth."""
    longest = max(int(summary.counts.max()), 1)
    width = 1 / len(summary.counts)
    rows = [
        (f"{i * width:.2f}-{(i + 1) * width:.2f}", f"{count:,}", "█" * round(_BAR_WIDTH * count / longest))
        for i, count in enumerate(summary.counts.tolist())
    ]
    return table(("churn probability", "accounts", ""), rows, "-rl")


def preview(summary: ScoreSummary) -> str:
    """Show the accounts with the highest churn probabilities as a Markdown table."""
    rows = [(account_id, f"{probability:.3f}") for probability, account_id in summary.top]
    return table(("account_id", "churn_probability"), rows, "rr")


def segment_table(evaluated: EvaluatedBatch) -> str:
    """Show a batch's segments that have enough labels, the lowest ROC AUC first, and count the others."""
    measured = [(auc, one) for one in evaluated.segments if (auc := one.roc_auc) is not None]
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
        for auc, one in measured[:_MAX_SEGMENTS]
    ]
    columns = ("segment", "level", "matured", "churned", "ROC AUC", "calibration error")
    limit = "" if evaluated.auc_limit is None else f", limit {evaluated.auc_limit:.3f}"
    rest = f"{evaluated.batch.scored_week}{limit}; {len(evaluated.segments) - len(measured)} levels with too few labels"
    return f"{table(columns, rows, '--rr-r')}\n\n{rest}"


def picture(svg: str) -> str:
    """Embed a picture in Markdown."""
    return f"![picture](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], align: str = "") -> str:
    """Write a Markdown table of at most 50 rows, and the number of the others; ``none`` without a row.

    Args:
        align: See :func:`churn.markdown.markdown_table`.
    """
    if not rows:
        return "none"
    more = len(rows) - _MAX_ROWS
    return markdown_table(columns, rows[:_MAX_ROWS], align) + (f"\n\nand {more} more" if more > 0 else "")
