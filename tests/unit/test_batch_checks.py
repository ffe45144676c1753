"""At stake: a check that passes on a bad batch hides it, and one that fails on a good one is soon ignored."""

from dataclasses import replace
from datetime import date, timedelta

import pytest

from churn.monitoring.batch_checks import BatchFigures, check_batch, with_input
from churn.monitoring.conditions import History, ScoredBatch
from churn.monitoring.drift import FeatureDrift
from churn.monitoring.profiles import SCORE

WEEK = date(2026, 11, 23)
AS_OF = WEEK - timedelta(days=1)
BATCH = ScoredBatch(1, "geography-us", WEEK, 3, 1000, "geography-us", newest_month=date(2026, 10, 1))
FIGURES = BatchFigures(
    n_quarantined=10, n_scored=800, n_stored=800, lowest=0.1, highest=0.9, source="s3", champion=3,
    challenger=None, is_challenger_scored=False, max_quarantine_share=0.1,
)  # fmt: skip
HISTORY = History({WEEK - timedelta(weeks=n): 1000 for n in range(1, 9)}, {"abc": AS_OF - timedelta(days=3)})


def failed(batch: ScoredBatch = BATCH, figures: BatchFigures = FIGURES, history: History = HISTORY) -> set[str]:
    return {result.name for result in check_batch(batch, figures, history, AS_OF) if not result.passed}


def drift(feature: str, excess_psi: float) -> FeatureDrift:
    moves = {"OH": (0.3, 0.3 + excess_psi), "unknown": (0.0, 0.0)}
    return FeatureDrift(feature, 900, excess_psi + 0.01, excess_psi, 0.1, 1e-12, 0.0, 0.0, 1.0, 900, 0.0, moves)


def test_a_sound_batch_passes_every_check_that_applies():
    names = [result.name for result in check_batch(BATCH, FIGURES, HISTORY, AS_OF)]

    assert failed() == set()
    assert names == [
        "probabilities_are_valid", "input_came_from_s3", "input_is_activity",
        "quarantine_is_small", "model_is_the_champion", "row_count_is_usual", "data_is_fresh",
        "input_is_new", "rows_were_scored",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"n_stored": 799}, "rows_were_scored"),
        ({"n_stored": 0, "n_scored": 0}, "rows_were_scored"),
        ({"lowest": -0.1}, "probabilities_are_valid"),
        ({"highest": 1.1}, "probabilities_are_valid"),
        ({"lowest": 0.5, "highest": 0.5}, "probabilities_are_valid"),
        ({"n_quarantined": 51}, "quarantine_is_small"),
        ({"champion": 4}, "model_is_the_champion"),
        ({"champion": None}, "model_is_the_champion"),
        ({"challenger": 4}, "challenger_was_scored"),
    ],
)
def test_figures_that_are_wrong_fail_their_check_and_no_other(changes: dict[str, float | None], name: str):
    assert failed(figures=replace(FIGURES, **changes)) == {name}  # type: ignore[arg-type]


def test_one_account_may_have_the_only_score():
    assert failed(figures=replace(FIGURES, n_scored=1, n_stored=1, lowest=0.5, highest=0.5)) == set()


def test_a_copy_is_not_from_s3_and_may_be_fresh():
    copied = replace(BATCH, fallback_reason="S3 could not be reached")
    old = History(HISTORY.n_rows, {"abc": AS_OF - timedelta(days=60)})

    assert failed(copied) == {"input_came_from_s3"}
    assert failed(copied, history=old) == {"input_came_from_s3", "data_is_fresh"}
    assert failed(replace(BATCH, newest_month=None)) == {"input_is_activity"}


def test_one_cause_fails_one_check():
    copied, repeated = replace(BATCH, fallback_reason="S3 did not answer"), replace(BATCH, source_sha256="abc")
    old = History({}, {"abc": AS_OF - timedelta(days=60)})
    stand_in = replace(FIGURES, is_stand_in=True)

    assert failed(replace(BATCH, data_of="base"), history=old) == {"input_came_from_s3"}
    assert failed(replace(copied, source_sha256="abc"), stand_in, old) == {"input_came_from_s3"}
    assert failed(repeated, history=old) == {"input_is_new"}


def test_volume_and_age_are_compared_with_the_weeks_before():
    old = History(HISTORY.n_rows, {"abc": AS_OF - timedelta(days=60)})

    assert failed(replace(BATCH, n_rows=400)) == {"row_count_is_usual"}
    assert failed(history=old) == {"data_is_fresh"}
    assert failed(history=with_input(old, "def", AS_OF)) == set()
    assert with_input(old, "abc", AS_OF) == old


def test_last_weeks_file_is_told_from_one_that_came_since():
    week = BATCH.week - timedelta(weeks=1)

    for arrived_on, names in ((week, set()), (week - timedelta(days=1), {"input_is_new"})):
        assert failed(replace(BATCH, source_sha256="abc"), history=History({}, {"abc": arrived_on})) == names


def test_drift_of_inputs_and_of_scores_are_separate_checks():
    assert failed(replace(BATCH, drifts=(drift("brand_id", 0.3), drift(SCORE, 0.0)))) == {"input_matches_its_reference"}
    assert failed(replace(BATCH, drifts=(drift("brand_id", 0.0), drift(SCORE, 0.3)))) == {
        "scores_match_their_reference"
    }


def test_a_feature_that_is_missing_though_it_never_was_in_training_is_reported():
    assert failed(figures=replace(FIGURES, untrained_missing={})) == set()
    assert failed(figures=replace(FIGURES, untrained_missing={"total_handle": 3})) == {"missing_values_were_trained"}
