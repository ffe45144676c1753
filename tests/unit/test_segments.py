"""At stake: a good total must not hide a state, product or source that is scored badly, a segment is what was known of
an account when it was scored, and a level with too few labels has no figure at all.
"""

from datetime import UTC, date, datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MLstatkit import Delong_test
from scipy import stats
from sklearn import metrics
from sklearn.calibration import calibration_curve

from churn.data.activity import ONE_HOT_COLUMNS
from churn.data.features import MISSING
from churn.evaluation.metrics import MIN_OF_CLASS, calibration_bins, roc_auc_interval
from churn.evaluation.segments import MOST_LEVELS, EvaluatedSegment, Levels, below_limit, evaluate_segments

AGREEMENT = 1e-6
LIMIT = 0.7


def draw(seed: int, n: int = 1_500) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
    """Levels of one segment, outcomes, and scores that foretell them about as well in each."""
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(-0.3, 1.2, n)
    churned = rng.random(n) < 1 / (1 + np.exp(-log_odds))
    scores = (1 / (1 + np.exp(-(log_odds + rng.normal(0, 0.5, n))))).astype(np.float32)
    return pl.DataFrame({"brand_id": rng.choice(["OH", "PA", "MI"], n, p=[0.5, 0.3, 0.2])}), churned, scores


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_a_levels_figures_are_those_of_independent_libraries_on_its_rows(seed):
    levels, churned, scores = draw(seed)

    found = evaluate_segments(levels, churned, scores, LIMIT)

    assert {one.level for one in found} == {"OH", "PA", "MI"}
    for one in found:
        rows = (levels["brand_id"] == one.level).to_numpy()
        outcomes, theirs = churned[rows], scores[rows].astype(np.float64)
        assert (one.segment, one.n_matured, one.n_churned) == ("brand_id", rows.sum(), outcomes.sum())
        noise = np.random.default_rng(1).random(len(theirs))
        _, _, (low, high), _, auc, _, info = Delong_test(outcomes.astype(int), theirs, noise)
        assert info["method"] == "delong"
        assert 0 < low < high < 1, "theirs is cut off, and does not tell its variance"
        error = (high - low) / 2 / stats.norm.ppf(0.975) / (auc * (1 - auc))
        centre = np.log(auc / (1 - auc))
        expected = 1 / (1 + np.exp(-(centre + np.array([-1, 1]) * stats.norm.ppf(0.975) * error)))
        assert (one.roc_auc.low, one.roc_auc.high) == pytest.approx(tuple(expected), abs=AGREEMENT)
        assert one.roc_auc.value == pytest.approx(metrics.roc_auc_score(outcomes, theirs), abs=AGREEMENT)
        p_value = stats.norm.cdf((centre - np.log(LIMIT / (1 - LIMIT))) / error)
        assert one.p_below_limit == pytest.approx(p_value, abs=AGREEMENT)
        assert one.brier_score == pytest.approx(metrics.brier_score_loss(outcomes, theirs), abs=AGREEMENT)
        assert one.mean_score == pytest.approx(theirs.mean(), abs=AGREEMENT)
        share, mean = calibration_curve(outcomes, theirs, n_bins=10, strategy="quantile")
        n = calibration_bins(outcomes, theirs)[0]
        assert one.calibration_error == pytest.approx(n @ np.abs(share - mean) / n.sum(), abs=AGREEMENT)


def test_a_good_total_does_not_hide_a_level_whose_players_do_the_opposite():
    levels, churned, scores = draw(1, n=6_000)
    is_turned = (levels["brand_id"] == "MI").to_numpy()
    churned = np.where(is_turned, ~churned, churned)
    assert roc_auc_interval(churned, scores).value > 0.65

    segments = evaluate_segments(levels, churned, scores, 0.65)

    named = [one.level for one, is_low in zip(segments, below_limit(segments), strict=True) if is_low]
    assert named == ["MI"]


def test_where_every_level_is_right_at_its_limit_hardly_one_is_named():
    rng = np.random.default_rng(5)
    limit = stats.norm.cdf(0.8 / np.sqrt(2))
    n_named, p_values = 0, []
    for _ in range(200):
        churned = rng.random(1_000) < 0.4
        shift = rng.normal(size=1_000) + 0.8 * churned
        levels = pl.DataFrame({"brand_id": rng.choice(["OH", "PA", "MI"], 1_000)})
        segments = evaluate_segments(levels, churned, 1 / (1 + np.exp(-shift)), limit)
        n_named += any(below_limit(segments))
        p_values += [one.p_below_limit for one in segments]
    assert n_named <= 8, "of 200, at 1 %"
    assert 0.03 <= np.mean(np.array(p_values) <= 0.05) <= 0.075


@pytest.mark.parametrize(("n_churned", "n_stayed"), [(MIN_OF_CLASS - 1, 400), (400, MIN_OF_CLASS - 1), (0, 400)])
def test_too_few_of_an_outcome_in_a_level_is_insufficient_and_gives_no_figure(n_churned, n_stayed):
    n = n_churned + n_stayed
    levels = pl.DataFrame({"player_reg_product": ["POKER"] * n})

    (found,) = evaluate_segments(levels, np.arange(n) < n_churned, np.full(n, 0.3), LIMIT)

    assert found == EvaluatedSegment("player_reg_product", "POKER", n, n_churned, "insufficient")
    assert below_limit([found]) == [False]


def test_just_enough_of_both_outcomes_is_measured():
    levels = pl.DataFrame({"brand_id": ["OH"] * 2 * MIN_OF_CLASS})
    churned = np.arange(2 * MIN_OF_CLASS) < MIN_OF_CLASS
    (found,) = evaluate_segments(levels, churned, np.linspace(0, 1, 2 * MIN_OF_CLASS), LIMIT)
    assert (found.status, found.roc_auc.value) == ("ok", 0)
    assert below_limit([found]) == [True]


def test_without_a_limit_a_level_has_figures_and_cannot_be_below_it():
    levels, churned, scores = draw(1)
    found = evaluate_segments(levels, churned, scores, None)
    assert {one.status for one in found} == {"ok"}
    assert {one.p_below_limit for one in found} == {None}
    assert below_limit(found) == [False] * 3
    assert below_limit([]) == []


def test_the_largest_levels_are_kept_and_those_without_a_value_are_a_level():
    names = [f"L{i:02}" for i in range(60) for _ in range(60 - i)]
    levels = pl.DataFrame({"ben_login_id": [*names, *[None] * 70]})
    n = levels.height

    found = evaluate_segments(levels, np.zeros(n, dtype=bool), np.full(n, 0.2), LIMIT)

    assert [one.level for one in found] == [MISSING, *[f"L{i:02}" for i in range(MOST_LEVELS - 1)]]
    assert [one.n_matured for one in found[:3]] == [70, 60, 59]


def fact(account: int, month: date, known: datetime, brand: str) -> dict[str, object]:
    return {"account_id": account, "activity_month": month, "known_at": known, "brand_id": brand}


def test_a_level_is_what_was_known_when_the_account_was_scored():
    april, may, june = (date(2026, month, 1) for month in (4, 5, 6))
    early, late = datetime(2026, 5, 10, tzinfo=UTC), datetime(2026, 6, 10, tzinfo=UTC)
    facts = pl.DataFrame(
        [
            fact(1, april, early, "OH"),
            fact(1, april, late, "PA"),  # a correction that came later
            fact(2, april, early, "OH"),
            fact(2, may, early, "MI"),
            fact(2, june, late, "WV"),
            fact(3, april, early, "NJ"),
        ],
        schema_overrides={"known_at": pl.Datetime("us", "UTC")},
    )

    def known(as_of: date) -> list[str]:
        levels = Levels(facts).known(np.array([1, 2]), as_of)
        assert levels.columns == ["brand_id"], "of the contract's columns, the ones that are there"
        return levels["brand_id"].to_list()

    assert known(date(2026, 5, 31)) == ["OH", "MI"]
    assert known(date(2026, 6, 30)) == ["PA", "WV"]


def test_segments_are_the_contracts_categories():
    n = 10
    facts = pl.DataFrame(
        {
            "account_id": range(n),
            "activity_month": [date(2026, 1, 1)] * n,
            "known_at": [datetime(2026, 1, 2, tzinfo=UTC)] * n,
        }
        | {name: ["x"] * n for name in (*ONE_HOT_COLUMNS, "tracker_id")}
    )
    assert Levels(facts).known(np.arange(n), date(2026, 2, 1)).columns == list(ONE_HOT_COLUMNS)
