"""What a person sees of a published variant in the Dagster UI: counts, links, a histogram, a preview."""

from collections.abc import Callable, Mapping

import dagster as dg
import numpy as np
import numpy.typing as npt

from churn.pipeline import Outcome

Metadata = Mapping[str, dg.MetadataValue]

_BINS = 10
_BAR_WIDTH = 30
_PREVIEW_ROWS = 10


def describe(outcome: Outcome, model_link: Callable[[str, int], str]) -> dict[str, Metadata]:
    """Return each asset's metadata."""
    return {
        "raw_churn_data": _of_raw(outcome),
        "transformed_features": _of_features(outcome),
        "load_model_from_mlflow": _of_model(outcome, model_link),
        "generate_predictions": _of_predictions(outcome),
        "store_predictions": _of_batch(outcome),
    }


def _of_raw(outcome: Outcome) -> Metadata:
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


def _of_features(outcome: Outcome) -> Metadata:
    rows, record = outcome.feature_rows, outcome.record
    return {
        "dagster/row_count": dg.MetadataValue.int(record.n_rows_scored),
        "n_features": dg.MetadataValue.int(len(rows.feature_names)),
        "as_of": dg.MetadataValue.text(record.as_of.isoformat()),
        "n_rows_quarantined": dg.MetadataValue.int(record.n_rows_quarantined),
        "quarantined_by_rule": dg.MetadataValue.json(rows.checked.counts_by_rule()),
        "n_rows_not_yet_known": dg.MetadataValue.int(rows.n_later),
        "n_accounts_withheld": dg.MetadataValue.int(rows.n_withheld),
        "unknown_levels": dg.MetadataValue.json(dict(record.unknown_levels)),
    }


def _of_model(outcome: Outcome, model_link: Callable[[str, int], str]) -> Metadata:
    model = outcome.model
    return {
        "registered_model": dg.MetadataValue.text(model.registered_model),
        "model_version": dg.MetadataValue.int(model.version),
        "alias": dg.MetadataValue.text(str(model.alias)),
        "mlflow": dg.MetadataValue.url(model_link(model.registered_model, model.version)),
        "mlflow_run_id": dg.MetadataValue.text(model.mlflow_run_id),
        "sha256": dg.MetadataValue.text(model.sha256),
    }


def _of_predictions(outcome: Outcome) -> Metadata:
    probabilities = outcome.predictions.probabilities
    return {
        "dagster/row_count": dg.MetadataValue.int(probabilities.size),
        "mean_churn_probability": dg.MetadataValue.float(float(probabilities.mean(dtype=np.float64))),
        "histogram": dg.MetadataValue.md(histogram(probabilities)),
    }


def _of_batch(outcome: Outcome) -> Metadata:
    record = outcome.record
    return {
        "dagster/row_count": dg.MetadataValue.int(record.n_rows_scored),
        "dagster/relation_identifier": dg.MetadataValue.text("churn_predictions"),
        "batch_id": dg.MetadataValue.int(outcome.batch_id),
        "scored_week": dg.MetadataValue.text(record.scored_week.isoformat()),
        "highest_risk": dg.MetadataValue.md(preview(outcome)),
    }


def histogram(probabilities: npt.NDArray[np.float32]) -> str:
    """Draw the distribution as a Markdown table, one row per tenth.

    Args:
        probabilities: Shape (n,), in [0, 1].
    """
    counts, edges = np.histogram(probabilities, bins=_BINS, range=(0, 1))
    longest = max(int(counts.max()), 1)
    rows = [
        f"| {low:.1f} - {high:.1f} | {count:,} | {'█' * round(_BAR_WIDTH * count / longest)} |"
        for low, high, count in zip(edges[:-1], edges[1:], counts.tolist(), strict=True)
    ]
    return "\n".join(["| churn probability | accounts | |", "|---|---:|:---|", *rows])


def preview(outcome: Outcome) -> str:
    """Show the accounts most likely to churn as a Markdown table."""
    scored = outcome.predictions
    top = np.argsort(-scored.probabilities, kind="stable")[:_PREVIEW_ROWS]
    rows = [f"| {scored.account_ids[i]} | {scored.probabilities[i]:.3f} |" for i in top]
    return "\n".join(["| account_id | churn_probability |", "|---:|---:|", *rows])
