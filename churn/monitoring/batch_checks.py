"""Rules that a published batch is checked by. Pure.

A failed check does not withdraw a batch; problems that must prevent one are errors in the scoring workflow. The names
are those of the asset checks in Dagster, where ``orchestration/checks.toml`` describes each.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta

from churn.monitoring.conditions import History, ScoredBatch, describe_drift, outdated_sentence
from churn.monitoring.drift import flag_fleet
from churn.monitoring.profiles import SCORE


@dataclass(frozen=True)
class CheckResult:
    """The result of one check, with the values that it is based on."""

    name: str
    passed: bool
    values: Mapping[str, str | float | None]  # numbers, or `None` if unknown, so that they can be plotted


@dataclass(frozen=True)
class BatchFigures:
    """The figures that the checks compare, in addition to the batch."""

    n_quarantined: int
    n_scored: int
    n_stored: int  # rows in PostgreSQL
    lowest: float
    highest: float
    source: str
    champion: int | None  # the version that is champion now; `None` if the registry could not be queried
    challenger: int | None
    is_challenger_scored: bool
    max_quarantine_share: float
    is_stand_in: bool = False  # whether a local copy stood in for the bucket
    untrained_missing: Mapping[str, int] | None = None  # accounts by feature that never was missing in its reference


def check_batch(batch: ScoredBatch, figures: BatchFigures, history: History, as_of: date) -> list[CheckResult]:
    """Check a published batch; returns a result for each check that applies.

    ``challenger_was_scored`` needs a challenger, and the checks of drift a reference; ``rows_were_scored`` is the last.
    One cause fails one check: where another file stood in for the variant's input, or last week's was there again, that
    is said, and not that the file is old.
    """
    low, high, n_stored, n_scored = figures.lowest, figures.highest, figures.n_stored, figures.n_scored
    share, limit = figures.n_quarantined / batch.n_rows, figures.max_quarantine_share
    origin = {"source": figures.source, "reason": batch.fallback_reason or "", "data_of_variant": batch.data_of}
    is_own, newest = batch.fallback_reason is None and batch.data_of == batch.variant, batch.newest_month
    is_valid = 0 <= low <= high <= 1 and (low < high or n_scored == 1)
    versions = {"scored_with": batch.model_version, "champion": figures.champion}
    results = [
        CheckResult("probabilities_are_valid", is_valid, {"lowest": low, "highest": high}),
        CheckResult("input_came_from_s3", is_own, origin),
        CheckResult("input_is_activity", newest is not None, {"newest_month": str(newest or "none: encoded rows")}),
        CheckResult("quarantine_is_small", share <= limit / 2, {"share": share, "limit": limit}),
        CheckResult("model_is_the_champion", figures.champion == batch.model_version, versions),
    ]
    if figures.challenger is not None:
        challenger = {"challenger": figures.challenger}
        results.append(CheckResult("challenger_was_scored", figures.is_challenger_scored, challenger))
    if (missing := figures.untrained_missing) is not None:
        found = ", ".join(f"{name} of {n:,} accounts" for name, n in missing.items()) or "none"
        results.append(CheckResult("missing_values_were_trained", not missing, {"missing": found}))
    rows, stale = history.volume_of(batch), outdated_sentence(batch, history, as_of)
    arrived = history.inputs.get(batch.source_sha256, batch.week)
    is_own_file = not figures.is_stand_in and batch.data_of == batch.variant
    is_new = arrived >= batch.week - timedelta(weeks=1) or not is_own_file
    volume = {"n_rows": rows.n_rows, "usual": rows.usual}
    return [
        *results,
        CheckResult("row_count_is_usual", rows.status not in ("low", "high"), volume),
        CheckResult("data_is_fresh", stale is None or not (is_own_file and is_new), {"problem": stale or "none"}),
        CheckResult("input_is_new", is_new, {"first_seen": arrived.isoformat()}),
        *_check_against_reference(batch),
        CheckResult("rows_were_scored", n_stored == n_scored > 0, {"n_stored": n_stored, "n_scored": n_scored}),
    ]


def _check_against_reference(batch: ScoredBatch) -> list[CheckResult]:
    """Compare with the model's reference, with false discoveries controlled over the variant's own features."""
    if not batch.drifts:
        return []
    flagged = {flag.feature for flag in flag_fleet({batch.variant: batch.drifts})}
    drifted = {drift.feature: describe_drift(drift) for drift in batch.drifts if drift.feature in flagged}
    scores = drifted.pop(SCORE, "none")
    inputs = ", ".join(drifted[feature] for feature in sorted(drifted)) or "none"
    return [
        CheckResult("input_matches_its_reference", not drifted, {"drifted": inputs}),
        CheckResult("scores_match_their_reference", SCORE not in flagged, {"drifted": scores}),
    ]


def with_input(history: History, sha256: str, arrived_on: date) -> History:
    """Add a batch's input to the variant's history, unless it is there already."""
    return replace(history, inputs={sha256: arrived_on, **history.inputs})
