"""Asset checks: claims about a published batch, evaluated per variant.

A failed check does not unpublish a batch: what must stop one is an error in the core. Checks tell where to look.
"""

from collections.abc import Mapping

import dagster as dg

from churn.errors import ChurnError
from churn.monitoring.conditions import History, ScoredBatch, describe_drift, read_drifts, stale_sentence
from churn.monitoring.drift import flag_fleet, volume
from churn.monitoring.profiles import SCORE
from churn.versions import CHAMPION
from churn.workflows.score import Scorer, ScoringOutcome

_SEVERITY = {
    "rows_were_scored": dg.AssetCheckSeverity.ERROR,
    "probabilities_are_valid": dg.AssetCheckSeverity.ERROR,
    "input_came_from_s3": dg.AssetCheckSeverity.WARN,
    "quarantine_is_small": dg.AssetCheckSeverity.WARN,
    "model_is_the_champion": dg.AssetCheckSeverity.WARN,
    "challenger_was_scored": dg.AssetCheckSeverity.WARN,
    "row_count_is_usual": dg.AssetCheckSeverity.WARN,
    "data_is_fresh": dg.AssetCheckSeverity.WARN,
    "input_matches_its_reference": dg.AssetCheckSeverity.WARN,
    "scores_match_their_reference": dg.AssetCheckSeverity.WARN,
}
_CLAIMS = {
    "rows_were_scored": ("store_predictions", "PostgreSQL holds as many rows of the batch as accounts were scored."),
    "probabilities_are_valid": ("generate_predictions", "Scores lie in [0, 1] and are not all the same."),
    "input_came_from_s3": ("raw_churn_data", "The variant's own data was read from S3, not a local stand-in."),
    "quarantine_is_small": ("transformed_features", "Fewer than half of the rows allowed to break the contract did."),
    "model_is_the_champion": ("load_model_from_mlflow", "The version that scored is still the variant's champion."),
    "challenger_was_scored": ("generate_predictions", "Where there is a challenger, it scored the batch as well."),
    "row_count_is_usual": ("raw_churn_data", "There are about as many rows as in the weeks before."),
    "data_is_fresh": ("raw_churn_data", "The data is the variant's own and no older than it usually becomes."),
    "input_matches_its_reference": (
        "transformed_features",
        "No feature is distributed otherwise than in the model's reference, by more than chance and a little.",
    ),
    "scores_match_their_reference": ("generate_predictions", "Neither are the scores."),
}
CHECKS = [dg.AssetCheckSpec(name, asset=asset, description=claim) for name, (asset, claim) in _CLAIMS.items()]
SEVERITIES = {(asset, name): _SEVERITY[name] for name, (asset, _) in _CLAIMS.items()}


def evaluate(
    outcome: ScoringOutcome, scorer: Scorer, histories: Mapping[str, History]
) -> list[dg.AssetCheckEvaluation]:
    """Evaluate every check for one published variant.

    Args:
        histories: What the variants' earlier weeks were like, by key.
    """
    record, summary = outcome.record, outcome.summary
    n_stored = scorer.store.count_rows(outcome.batch_id, record.scored_week)
    low, high = summary.lowest, summary.highest
    share = record.n_rows_quarantined / record.n_rows_read
    is_own = outcome.provenance.variant == record.variant
    champion = _champion_version(outcome, scorer)
    return [
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
        *_of_history(outcome, histories.get(record.variant.key, History({}))),
        *_of_reference(outcome),
    ]


def _of_challenger(outcome: ScoringOutcome) -> list[dg.AssetCheckEvaluation]:
    version = outcome.challenger_version
    if version is None:
        return []
    is_scored = outcome.challenger_record is not None
    return [_evaluation(outcome, "challenger_was_scored", passed=is_scored, challenger=version)]


def _of_history(outcome: ScoringOutcome, history: History) -> list[dg.AssetCheckEvaluation]:
    record = outcome.record
    rows = volume(record.n_rows_read, history.before(record.scored_week))
    arrived = {record.source_sha256: record.source_modified_at.date(), **history.inputs}
    batch = ScoredBatch(
        batch_id=outcome.batch_id,
        variant=record.variant.key,
        week=record.scored_week,
        model_version=record.model_version,
        n_rows=record.n_rows_read,
        data_of=record.source_variant.key,
        fallback_reason=record.fallback_reason,
    )
    stale = stale_sentence(batch, History(history.n_rows, arrived), record.as_of)
    return [
        _evaluation(
            outcome,
            "row_count_is_usual",
            passed=rows.status not in ("low", "high"),
            n_rows=rows.n_rows,
            usual="not known yet" if rows.usual is None else rows.usual,
        ),
        _evaluation(outcome, "data_is_fresh", passed=stale is None, stale=stale or "no"),
    ]


def _of_reference(outcome: ScoringOutcome) -> list[dg.AssetCheckEvaluation]:
    """Compare with the reference, false discoveries controlled over the variant's own features."""
    if outcome.record.drift is None:
        return []
    found = read_drifts(outcome.record.drift)
    flagged = {flag.feature for flag in flag_fleet({"": found})}
    names = {"input_matches_its_reference": flagged - {SCORE}, "scores_match_their_reference": flagged & {SCORE}}
    told = {drift.feature: describe_drift(drift) for drift in found}
    return [
        _evaluation(outcome, name, passed=not features, drifted=", ".join(told[f] for f in sorted(features)) or "none")
        for name, features in names.items()
    ]


def _champion_version(outcome: ScoringOutcome, scorer: Scorer) -> int:
    try:
        return scorer.registry.aliases_of(outcome.record.variant).get(CHAMPION, -1)
    except ChurnError:
        return -1


def _evaluation(outcome: ScoringOutcome, name: str, *, passed: bool, **values: str | float) -> dg.AssetCheckEvaluation:
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
