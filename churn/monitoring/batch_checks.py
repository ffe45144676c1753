"""Rules that a published batch is checked by. Pure.

A failed check does not withdraw a batch: what must stop one is an error in the scoring workflow. The names are those of
the asset checks in Dagster, where ``orchestration.checks`` describes each.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date

from churn.monitoring.conditions import History, ScoredBatch, describe_drift, stale_sentence
from churn.monitoring.drift import flag_fleet, volume
from churn.monitoring.profiles import SCORE


@dataclass(frozen=True)
class CheckResult:
    """The result of one check, with the values that it is based on."""

    name: str
    passed: bool
    values: Mapping[str, str | float]


@dataclass(frozen=True)
class BatchFigures:
    """What the checks compare, beside the batch itself.

    Attributes:
        n_stored: Rows of the batch in PostgreSQL.
        lowest: Lowest churn probability.
        champion: The model version that is champion now; ``None`` if the registry could not be queried.
        challenger: The challenger's version; ``None`` if there is none.
    """

    n_read: int
    n_quarantined: int
    n_scored: int
    n_stored: int
    lowest: float
    highest: float
    source: str
    champion: int | None
    challenger: int | None
    is_challenger_scored: bool
    max_quarantine_share: float


def check_batch(batch: ScoredBatch, figures: BatchFigures, history: History, as_of: date) -> list[CheckResult]:
    """Check a published batch.

    Args:
        history: The variant's earlier batches and inputs; it may or may not contain this batch.

    Returns:
        A result for each check that applies: there may be no challenger, and no reference to compare with.
    """
    low, high = figures.lowest, figures.highest
    share = figures.n_quarantined / figures.n_read
    return [
        _result(
            "rows_were_scored",
            passed=figures.n_stored == figures.n_scored > 0,
            n_stored=figures.n_stored,
            n_scored=figures.n_scored,
        ),
        _result(
            "probabilities_are_valid",
            passed=0 <= low <= high <= 1 and (low < high or figures.n_scored == 1),
            lowest=low,
            highest=high,
        ),
        _result(
            "input_came_from_s3",
            passed=batch.fallback_reason is None and batch.data_of == batch.variant,
            source=figures.source,
            reason=batch.fallback_reason or "",
            data_of_variant=batch.data_of,
        ),
        _result(
            "quarantine_is_small",
            passed=share <= figures.max_quarantine_share / 2,
            share=share,
            limit=figures.max_quarantine_share,
        ),
        _result(
            "model_is_the_champion",
            passed=figures.champion == batch.model_version,
            scored_with=batch.model_version,
            champion="unknown" if figures.champion is None else figures.champion,
        ),
        *_check_challenger(figures),
        *_check_against_history(batch, history, as_of),
        *_check_against_reference(batch),
    ]


def _check_challenger(figures: BatchFigures) -> list[CheckResult]:
    if figures.challenger is None:
        return []
    return [_result("challenger_was_scored", passed=figures.is_challenger_scored, challenger=figures.challenger)]


def _check_against_history(batch: ScoredBatch, history: History, as_of: date) -> list[CheckResult]:
    rows = volume(batch.n_rows, history.before(batch.week))
    stale = stale_sentence(batch, history, as_of)
    usual = "not known yet" if rows.usual is None else rows.usual
    return [
        _result("row_count_is_usual", passed=rows.status not in ("low", "high"), n_rows=rows.n_rows, usual=usual),
        _result("data_is_fresh", passed=stale is None, stale=stale or "no"),
    ]


def _check_against_reference(batch: ScoredBatch) -> list[CheckResult]:
    """Compare with the model's reference, with false discoveries controlled over the variant's own features."""
    if not batch.drifts:
        return []
    flagged = {flag.feature for flag in flag_fleet({batch.variant: batch.drifts})}
    sentences = {drift.feature: describe_drift(drift) for drift in batch.drifts}
    names = {"input_matches_its_reference": flagged - {SCORE}, "scores_match_their_reference": flagged & {SCORE}}
    return [
        _result(name, passed=not features, drifted=", ".join(sentences[one] for one in sorted(features)) or "none")
        for name, features in names.items()
    ]


def with_input(history: History, sha256: str, arrived_on: date) -> History:
    """Add a batch's own input to the variant's history, unless it is known already."""
    return replace(history, inputs={sha256: arrived_on, **history.inputs})


def _result(name: str, *, passed: bool, **values: str | float) -> CheckResult:
    return CheckResult(name, passed, values)
