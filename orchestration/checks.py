"""Asset checks: their specifications, and the conversion of results into Dagster's events.

``checks.toml`` describes each check. Not here: the rules, which are in ``churn.monitoring``, ``churn.evaluation`` and
``churn.training``. https://docs.dagster.io/guides/test/asset-checks
"""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from importlib.resources import files

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

_SHARES = {"fdr": FDR, "moved": LEAST_MOVED, "unknown": LEAST_UNKNOWN_RISE, "broken": LEAST_BROKEN}
_LIMITS = {name: percent(share) for name, share in _SHARES.items()}
_TEXT = files("orchestration").joinpath("checks.toml").read_text(encoding="utf-8").format(**_LIMITS)
_DESCRIPTIONS: Mapping[str, Mapping[str, str]] = tomllib.loads(_TEXT) | {TRAINED: GATE_CHECKS}
_ERRORS = {
    "rows_were_scored", "probabilities_are_valid", "every_variant_was_scored", "performance_holds", "no_data_is_broken",
}  # fmt: skip
Results = Iterator[dg.AssetCheckResult]
_FLEET_ASSETS = (EVALUATED, TRAINED, DRIFTED, INCIDENTS)
_ASSET_OF = {name: asset for asset in _DESCRIPTIONS if asset not in _FLEET_ASSETS for name in _DESCRIPTIONS[asset]}
"""The asset of each check of a published batch."""


def specs(assets: Iterable[str]) -> list[dg.AssetCheckSpec]:
    """Return the specifications of some assets' checks."""
    described = ((asset, *one) for asset in assets for one in _DESCRIPTIONS[asset].items())
    return [dg.AssetCheckSpec(name, asset=asset, description=text) for asset, name, text in described]


def of_batch(key: str, results: Iterable[CheckResult]) -> list[dg.AssetCheckEvaluation]:
    """Convert the check results of a published batch."""
    return [_evaluation(_ASSET_OF[one.name], one.name, key, one.values, passed=one.passed) for one in results]


def of_evaluation(key: str, evaluation: VariantEvaluation) -> list[dg.AssetCheckEvaluation]:
    """Convert the evaluation of a variant; it has no check if no batch was evaluated."""
    if not evaluation.batches:
        return []
    weeks = [one.batch.scored_week.isoformat() for one in evaluation.of_champion if one.is_below_limit]
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
        severity=severity(name),
        description=f"The check failed for {counted(len(members), 'variant')}." if members else None,
        metadata={"variants_failing": len(members), "variants": table(("variant", "problem"), sorted(members.items()))},
    )


def severity(name: str) -> dg.AssetCheckSeverity:
    """Return the severity of a check."""
    return dg.AssetCheckSeverity.ERROR if name in _ERRORS else dg.AssetCheckSeverity.WARN


def _evaluation(
    asset: str, name: str, key: str, metadata: Metadata, *, passed: bool, description: str | None = None
) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(asset),
        check_name=name,
        passed=passed,
        severity=severity(name),
        partition=key,
        description=f"{key}: {description or ('passed' if passed else 'failed')}",
        metadata={"variant": key} | {label: value for label, value in metadata.items() if value is not None},
    )
