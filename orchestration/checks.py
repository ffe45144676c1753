"""Asset checks: their specifications, and the conversion of results into Dagster's events.

Belongs here: the description, asset and severity of each check. Not here: the rules, which are in ``churn.monitoring``,
``churn.evaluation`` and ``churn.training``. https://docs.dagster.io/guides/test/asset-checks
"""

from collections.abc import Iterable, Mapping
from functools import partial

import dagster as dg

from churn.monitoring.batch_checks import CheckResult
from churn.monitoring.conditions import FDR
from churn.monitoring.drift import LEAST_BROKEN, LEAST_MOVED, LEAST_UNKNOWN_RISE
from churn.training.checks import GATE_CHECKS, GateCheck
from churn.wording import counted, percent
from churn.workflows.evaluate import VariantEvaluation
from orchestration.assets.metadata import Metadata, segment_table, table

EVALUATED, TRAINED = "evaluated_batches", "trained_models"
DRIFTED, INCIDENTS = "drifted_features", "fleet_incidents"

_FDR = f"at a false discovery rate of {percent(FDR)}"
_DRIFT = f"by a move of at least {percent(LEAST_MOVED)} of the rows"

_DESCRIPTIONS: Mapping[str, Mapping[str, str]] = {
    "raw_churn_data": {
        "input_came_from_s3": "The variant's own input was read from S3, not from a local copy or another variant.",
        "input_is_activity": "The input is activity by month, not encoded rows such as the sample's.",
        "row_count_is_usual": "The number of input rows differs from the median of the previous eight weeks by at "
        "most half, or by at most four times its usual variation.",
        "data_is_fresh": "The input is the variant's own and no older than the usual interval between two inputs "
        "plus one week.",
    },
    "transformed_features": {
        "quarantine_is_small": "The share of input rows that were quarantined is at most half of "
        "CHURN_MAX_QUARANTINE_SHARE, above which scoring fails.",
        "input_matches_its_reference": f"No input feature has drifted from the model's reference {_DRIFT}, or has "
        f"unknown values in at least {percent(LEAST_UNKNOWN_RISE)} more of the rows, {_FDR}.",
        "missing_values_were_trained": "No feature is missing in the batch that was never missing in the model's "
        "reference.",
    },
    "load_model_from_mlflow": {
        "model_is_the_champion": "The model version that scored the batch is still the variant's champion in MLflow."
    },
    "generate_predictions": {
        "probabilities_are_valid": "All churn probabilities lie between 0 and 1 and are not all equal.",
        "challenger_was_scored": "The variant's challenger, if there is one, scored the same rows as the champion.",
        "scores_match_their_reference": f"The scores have not drifted from the model's reference {_DRIFT}, {_FDR}.",
    },
    "store_predictions": {
        "rows_were_scored": "PostgreSQL holds at least one row of the batch, and exactly as many as accounts were "
        "scored."
    },
    EVALUATED: {
        "auc_is_not_below_its_limit": "No evaluated batch of the champion has a ROC AUC whose 95 % confidence "
        "interval lies entirely below the limit.",
        "no_segment_is_below_its_limit": "No segment (state, product, source) of a champion's batch has a ROC AUC "
        f"below the limit, {_FDR} over the variant's segments.",
    },
    TRAINED: GATE_CHECKS,
    DRIFTED: {
        "no_data_is_broken": f"No feature of a variant's newest batch has a share of unknown or missing values that is "
        f"{percent(LEAST_BROKEN)} or more above the reference's.",
        "no_input_drifts": "No variant has an input feature that drifted from the model's reference, beyond what moved "
        "in the whole fleet, in two different inputs.",
        "no_scores_drift": "No variant has scores that drifted from the model's reference, beyond what moved in the "
        "whole fleet, in two different inputs.",
        "missing_values_are_usual": "No feature of a variant's newest batch has a larger share of missing values "
        "than the model's reference.",
        "levels_are_known": "No categorical feature of a variant's newest batch has a larger share of unknown levels "
        "than the model's reference.",
    },
    INCIDENTS: {
        "volumes_are_usual": "Every variant's newest batch has about as many rows as its previous batches.",
        "data_is_fresh": "Every variant was scored on its own input from S3, no older than the usual interval "
        "between two inputs plus one week.",
        "every_variant_was_scored": "Every registered variant has a batch of the week that is due, and its last "
        "attempt succeeded; none has left the registry that nobody has acknowledged as gone.",
        "performance_holds": "Every champion's ROC AUC reaches its limit in up to six evaluated batches that share no "
        f"outcome, {_FDR} over the fleet.",
        "scores_match_outcomes": "As many accounts churned as every calibrated champion's scores lead one to expect, "
        f"and its log-loss is as they imply, {_FDR} over the fleet.",
        "segments_hold": "No segment (state, product, source) of a champion's newest evaluated batch has a ROC AUC "
        f"below the limit, where the whole batch reaches it, {_FDR} over the fleet.",
    },
}
_ERRORS = {
    "rows_were_scored",
    "probabilities_are_valid",
    "every_variant_was_scored",
    "performance_holds",
    "no_data_is_broken",
}
_FLEET_ASSETS = (EVALUATED, TRAINED, DRIFTED, INCIDENTS)
_ASSET_OF = {name: asset for asset in _DESCRIPTIONS if asset not in _FLEET_ASSETS for name in _DESCRIPTIONS[asset]}
"""The asset of each check of a published batch."""


def specs(assets: Iterable[str]) -> list[dg.AssetCheckSpec]:
    """Return the specifications of some assets' checks."""
    return [
        dg.AssetCheckSpec(name, asset=asset, description=text)
        for asset in assets
        for name, text in _DESCRIPTIONS[asset].items()
    ]


def severities(assets: Iterable[str]) -> dict[tuple[str, str], dg.AssetCheckSeverity]:
    """Return the severity of each check of some assets, by asset and name."""
    return {(asset, name): _severity(name) for asset in assets for name in _DESCRIPTIONS[asset]}


def of_batch(key: str, results: Iterable[CheckResult]) -> list[dg.AssetCheckEvaluation]:
    """Convert the check results of a published batch."""
    return [_evaluation(_ASSET_OF[one.name], one.name, key, one.values, passed=one.passed) for one in results]


def of_evaluation(key: str, evaluation: VariantEvaluation) -> list[dg.AssetCheckEvaluation]:
    """Convert the evaluation of a variant; it has no check if no batch was evaluated."""
    if not evaluation.batches:
        return []
    weeks = [week.isoformat() for week in evaluation.weeks_below_limit]
    low = [f"{week}: {segment.segment} {segment.level}" for week, segment in evaluation.segments_below_limit]
    figures: dict[str, object] = {"below": low}
    if evaluation.of_champion:
        figures["segments"] = segment_table(evaluation.of_champion[-1])
    return [
        _evaluation(EVALUATED, "auc_is_not_below_its_limit", key, {"weeks": weeks}, passed=not weeks),
        _evaluation(EVALUATED, "no_segment_is_below_its_limit", key, figures, passed=not low),
    ]


def of_gate(key: str, results: Iterable[GateCheck]) -> list[dg.AssetCheckEvaluation]:
    """Convert the gate's checks of a trained model."""
    pairs = ((one, {"outcome": one.outcome, "value": one.value, "limit": one.limit}) for one in results)
    return [
        _evaluation(TRAINED, one.name, key, figures, passed=one.outcome != "fails", description=one.sentence)
        for one, figures in pairs
    ]


def of_fleet(asset: str, members: Mapping[str, Mapping[str, str] | None]) -> list[dg.AssetCheckResult]:
    """Convert the variants that fail each check of a fleet, by check; ``None`` for one that could not be evaluated."""
    return [_fleet_result(asset, name, found) for name, found in members.items()]


def _fleet_result(asset: str, name: str, members: Mapping[str, str] | None) -> dg.AssetCheckResult:
    result = partial(dg.AssetCheckResult, asset_key=asset, check_name=name, passed=members is not None and not members)
    if members is None:  # Dagster requires a result of each check, and one that was not evaluated has not passed
        description = "The check was not evaluated, because the MLflow registry did not answer."
        return result(severity=dg.AssetCheckSeverity.WARN, description=description)
    return result(
        severity=_severity(name),
        description=f"The check failed for {counted(len(members), 'variant')}." if members else None,
        metadata={"variants_failing": len(members), "variants": table(("variant", "problem"), sorted(members.items()))},
    )


def _severity(name: str) -> dg.AssetCheckSeverity:
    return dg.AssetCheckSeverity.ERROR if name in _ERRORS else dg.AssetCheckSeverity.WARN


def _evaluation(
    asset: str, name: str, key: str, metadata: Metadata, *, passed: bool, description: str | None = None
) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(asset),
        check_name=name,
        passed=passed,
        severity=_severity(name),
        partition=key,
        description=description,
        metadata={label: value for label, value in metadata.items() if value is not None},
    )
