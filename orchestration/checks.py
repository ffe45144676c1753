"""Asset checks: claims about a published batch, evaluated per variant.

A failed check does not unpublish a batch: what must stop one is an error in the core. Checks tell where to look.
"""

import dagster as dg

from churn.errors import ChurnError
from churn.model.versions import CHAMPION
from churn.pipeline import Outcome, Scorer

_SEVERITY = {
    "rows_were_scored": dg.AssetCheckSeverity.ERROR,
    "probabilities_are_valid": dg.AssetCheckSeverity.ERROR,
    "input_came_from_s3": dg.AssetCheckSeverity.WARN,
    "quarantine_is_small": dg.AssetCheckSeverity.WARN,
    "model_is_the_champion": dg.AssetCheckSeverity.WARN,
    "challenger_was_scored": dg.AssetCheckSeverity.WARN,
}
_CLAIMS = {
    "rows_were_scored": ("store_predictions", "PostgreSQL holds as many rows of the batch as accounts were scored."),
    "probabilities_are_valid": ("generate_predictions", "Scores lie in [0, 1] and are not all the same."),
    "input_came_from_s3": ("raw_churn_data", "The variant's own data was read from S3, not a local stand-in."),
    "quarantine_is_small": ("transformed_features", "Fewer than half of the rows allowed to break the contract did."),
    "model_is_the_champion": ("load_model_from_mlflow", "The version that scored is still the variant's champion."),
    "challenger_was_scored": ("generate_predictions", "Where there is a challenger, it scored the batch as well."),
}
CHECKS = [dg.AssetCheckSpec(name, asset=asset, description=claim) for name, (asset, claim) in _CLAIMS.items()]
SEVERITIES = {(asset, name): _SEVERITY[name] for name, (asset, _) in _CLAIMS.items()}


def evaluate(outcome: Outcome, scorer: Scorer) -> tuple[Outcome, list[dg.AssetCheckEvaluation]]:
    """Evaluate every check for one published variant; returns the outcome with them."""
    record, summary = outcome.record, outcome.summary
    n_stored = scorer.store.count_rows(outcome.batch_id, record.scored_week)
    low, high = summary.lowest, summary.highest
    share = record.n_rows_quarantined / record.n_rows_read
    is_own = outcome.provenance.variant == record.variant
    champion = _champion_version(outcome, scorer)
    return outcome, [
        _evaluation(
            outcome,
            "rows_were_scored",
            passed=n_stored == record.n_rows_scored > 0,
            n_stored=n_stored,
            n_scored=record.n_rows_scored,
        ),
        _evaluation(
            outcome,
            "probabilities_are_valid",
            passed=0 <= low <= high <= 1 and (low < high or record.n_rows_scored == 1),
            lowest=low,
            highest=high,
        ),
        _evaluation(
            outcome,
            "input_came_from_s3",
            passed=record.fallback_reason is None and is_own,
            source=record.source,
            reason=record.fallback_reason or "",
            data_of_variant=outcome.provenance.variant.key,
        ),
        _evaluation(
            outcome,
            "quarantine_is_small",
            passed=share <= scorer.max_quarantine_share / 2,
            share=share,
            limit=scorer.max_quarantine_share,
        ),
        _evaluation(
            outcome,
            "model_is_the_champion",
            passed=champion == outcome.model.version,
            scored_with=outcome.model.version,
            champion=champion,
        ),
        *_of_challenger(outcome),
    ]


def _of_challenger(outcome: Outcome) -> list[dg.AssetCheckEvaluation]:
    version = outcome.challenger_version
    if version is None:
        return []
    is_scored = outcome.challenger_record is not None
    return [_evaluation(outcome, "challenger_was_scored", passed=is_scored, challenger=version)]


def _champion_version(outcome: Outcome, scorer: Scorer) -> int:
    try:
        return scorer.registry.aliases_of(outcome.record.variant).get(CHAMPION, -1)
    except ChurnError:
        return -1


def _evaluation(outcome: Outcome, name: str, *, passed: bool, **values: str | float) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(_CLAIMS[name][0]),
        check_name=name,
        passed=passed,
        severity=_SEVERITY[name],
        partition=outcome.record.variant.key,
        metadata={
            key: dg.MetadataValue.float(value) if isinstance(value, float) else value for key, value in values.items()
        },
    )
