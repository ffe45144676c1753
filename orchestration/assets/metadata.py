"""Metadata of materializations: counts, links, tables and pictures that an asset's page shows.

Belongs here: the metadata of a published batch, and the Markdown that several assets share.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg
import polars as pl

from churn.data.account_ids import keys_of
from churn.data.activity import counts_by_rule
from churn.database.evaluations import EvaluatedBatch
from churn.monitoring.profiles import SCORE
from churn.monitoring.summary import ScoreSummary
from churn.versions import ModelVersion
from churn.wording import markdown_table, percent
from churn.workflows.score import ScoringOutcome

Metadata = Mapping[str, Any]
"""Values by label: texts, numbers, lists and dictionaries as they are, everything else as a ``dg.MetadataValue``."""

_BAR_WIDTH = 30
_MOST_VALUES = 12
_MAX_ROWS, _MAX_SEGMENTS = 50, 20


def describe(outcome: ScoringOutcome, model_link: Callable[[str, int], str]) -> dict[str, Metadata]:
    """Return each asset's metadata."""
    provenance, record, model, counts = outcome.provenance, outcome.record, outcome.model, outcome.counts
    return {
        "raw_churn_data": {
            "dagster/row_count": record.n_rows_read,
            "source": provenance.source,
            "local_copy_because": provenance.fallback_reason or "no local copy was read",
            "input_of_variant": provenance.variant.key,
            "uri": provenance.uri,
            "version": provenance.version,
            "sha256": provenance.sha256,
            "size_bytes": provenance.size,
            "modified_at": dg.MetadataValue.timestamp(provenance.modified_at),
        },
        "transformed_features": {
            "dagster/row_count": record.n_rows_scored,
            "features": len(outcome.feature_names),
            "as_of": record.as_of.isoformat(),
            "months": record.months or "none: the rows were already encoded",
            "rows_quarantined": record.n_rows_quarantined,
            "rows_quarantined_by_rule": counts_by_rule(counts.quarantined),
            "rows_not_known_by_then": counts.n_later,
            "accounts_withheld": counts.n_withheld,
            "levels_unknown_to_the_model": dict(record.unknown_levels),
            "accounts_with_newly_missing_feature": dict(record.untrained_missing or {}),
            **_distributions(outcome),
        },
        "load_model_from_mlflow": {**describe_model(model, model_link), "sha256": model.sha256},
        "generate_predictions": _predictions(outcome),
        "store_predictions": {
            "dagster/row_count": record.n_rows_scored,
            "batch_id": outcome.batch_id,
            "is_current": f"no: {outcome.why_not_current}" if outcome.why_not_current else "yes",
            "scored_week": record.scored_week.isoformat(),
            "highest_risk": _preview(outcome.summary, outcome.counts.account_keys),
        },
    }


def describe_model(version: ModelVersion, model_link: Callable[[str, int], str]) -> dict[str, Any]:
    """Return the metadata of a model version, with a link to its page in MLflow."""
    link = dg.MetadataValue.url(model_link(version.registered_model, version.version))
    named = {"registered_model": version.registered_model, "model_version": version.version}
    return {**named, "alias": version.alias or "none", "mlflow": link, "mlflow_run_id": version.mlflow_run_id}


def _distributions(outcome: ScoringOutcome) -> Metadata:
    reference, batch = outcome.summary.reference, outcome.summary.profile
    if not outcome.record.drift or reference is None or batch is None:
        return {}
    before, now = ({name: of / max(of.sum(), 1) for name, of in one.by_feature().items()} for one in (reference, batch))
    inputs = [(one.feature, one.labels) for one in reference.bins if one.feature != SCORE]
    shares = [(of, *pair) for of, names in inputs for pair in zip(names, before[of], now[of], strict=True)]
    most = sorted(shares, key=lambda one: -abs(one[2] - one[3]))[:_MOST_VALUES]
    rows = [(feature, label, percent(was, 1), percent(is_now, 1)) for feature, label, was, is_now in most]
    note = "The table has the values whose shares of the rows differ most."
    return {"distributions": table(("feature", "value", "reference", "this batch"), rows, "--rr", note)}


def _predictions(outcome: ScoringOutcome) -> Metadata:
    summary, engine, challenger = outcome.summary, outcome.engine, outcome.challenger_version
    why = engine.fallback_reason
    scores = {
        "dagster/row_count": summary.n_scored,
        **({"accounts_at_risk": summary.n} if summary.is_at_risk_known else {}),  # numbers only, which Dagster plots
        "mean_churn_probability": summary.mean,
        "histogram": histogram(summary),
        "computed_by": f"XGBoost itself: {why}" if why else "tables compiled from the model's trees",
    }
    if (estimated := summary.estimated_auc) is not None:
        scores["estimated_auc"] = estimated
    elif not summary.is_calibrated:
        scores["why_no_estimated_auc"] = "it is unknown whether the scores are calibrated"
    if challenger is not None:
        result = "scored the same rows" if outcome.challenger_record else "could not score"
        scores["challenger"] = f"version {challenger} {result}"
    if engine.bias is not None:
        importance = summary.importance(engine.encoding.source_columns)
        scores["bias"] = engine.bias
        scores["importance"] = _bars(("column", "mean |log-odds|"), importance, f"The mean is of {summary.population}.")
    return scores


def histogram(summary: ScoreSummary) -> dg.MarkdownMetadataValue:
    """Draw the distribution as a table, one row per twentieth."""
    width = 1 / len(summary.counts)
    counts = {f"{i * width:.2f}-{(i + 1) * width:.2f}": n for i, n in enumerate(summary.counts.tolist())}
    return _bars(("churn probability", "accounts"), counts, f"The table counts {summary.population}.")


def _bars(columns: tuple[str, str], sizes: Mapping[str, float], note: str) -> dg.MarkdownMetadataValue:
    longest = max([*sizes.values()], default=0) or 1
    shown = {name: f"{size:,}" if isinstance(size, int) else f"{size:.3f}" for name, size in sizes.items()}
    rows = [(name, shown[name], "█" * round(_BAR_WIDTH * size / longest)) for name, size in sizes.items()]
    return table((*columns, ""), rows, "-rl", note=note)


def _preview(summary: ScoreSummary, keys: pl.DataFrame | None) -> dg.MarkdownMetadataValue:
    ids = [account_id for _, account_id in summary.top]
    shown = ids if keys is None else (key or number for key, number in zip(keys_of(keys, ids), ids, strict=True))
    rows = [(account, f"{probability:.3f}") for account, (probability, _) in zip(shown, summary.top, strict=True)]
    return table(("account_id", "churn_probability"), rows, "rr", note=f"The ranking is of {summary.population}.")


def segment_table(evaluated: EvaluatedBatch) -> dg.MarkdownMetadataValue:
    """Show a batch's segments that have enough labels, the lowest ROC AUC first, and count the others."""
    measured = [(auc, one) for one in evaluated.segments if (auc := one.roc_auc) is not None]
    measured.sort(key=lambda pair: pair[0].value)
    rows = []
    for auc, one in measured[:_MAX_SEGMENTS]:
        counts, measures = (one.n_matured, one.n_churned), (auc, one.calibration_error)
        rows.append((one.segment, one.level, *(f"{n:,}" for n in counts), *(f"{value:.3f}" for value in measures)))
    limit = "" if evaluated.auc_limit is None else f", limit {evaluated.auc_limit:.3f}"
    note = f"{evaluated.batch.scored_week}{limit}; {len(evaluated.segments) - len(measured)} levels with too few labels"
    return table(("segment", "level", "matured", "churned", "ROC AUC", "calibration error"), rows, "--rr-r", note)


def table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], align: str = "", note: str = ""
) -> dg.MarkdownMetadataValue:
    """Write a Markdown table of at most 50 rows, the number of the others, and a note; ``none`` without a row."""
    more = len(rows) - _MAX_ROWS
    text = markdown_table(columns, rows[:_MAX_ROWS], align) if rows else "none"
    return dg.MetadataValue.md("\n\n".join(filter(None, (text, f"and {more} more" if more > 0 else "", note))))
