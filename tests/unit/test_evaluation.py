"""At stake: models are admitted and promoted by these figures, so each must be what an independent library gives, with
intervals that cover what they say, and where there is too little to go by there must be no figure at all.
"""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MLstatkit import Delong_test
from scipy import stats
from sklearn import metrics
from sklearn.calibration import calibration_curve

from churn.errors import ChurnError
from churn.evaluation.metrics import (
    MIN_OF_CLASS,
    Interval,
    average_precision_interval,
    calibration_bins,
    calibration_error,
    compare_roc_auc,
    evaluate,
    lift,
    log_losses,
    p_at_least,
    roc_auc_interval,
)

AGREEMENT = 1e-6
Z = stats.norm.ppf(0.975)

seeds = st.integers(0, 2**32 - 1)
tie_decimals = st.sampled_from([1, 2, 3, 8])


def draw(seed: int, *, n: int = 400, decimals: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes drawn by the scores' own log-odds, a little off; fewer decimals make more ties."""
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(-0.8, 1.2, n)
    churned = rng.random(n) < 1 / (1 + np.exp(-log_odds))
    churned[:2] = True, False
    scores = 1 / (1 + np.exp(-(1.2 * log_odds + rng.normal(0, 0.3, n))))
    return churned, np.round(scores, decimals).astype(np.float32)


def logit_interval(value: float, variance: float) -> tuple[float, float]:
    reach = Z * np.sqrt(variance) / (value * (1 - value))
    return tuple(1 / (1 + np.exp(-(np.log(value / (1 - value)) + side * reach))) for side in (-1, 1))


@given(seed=seeds, decimals=tie_decimals)
@settings(max_examples=25, deadline=None)
def test_metrics_are_scikit_learns(seed, decimals):
    churned, scores = draw(seed, decimals=decimals)

    assert roc_auc_interval(churned, scores).value == pytest.approx(
        metrics.roc_auc_score(churned, scores), abs=AGREEMENT
    )
    assert average_precision_interval(churned, scores).value == pytest.approx(
        metrics.average_precision_score(churned, scores), abs=AGREEMENT
    )
    assert log_losses(churned, scores).mean() == pytest.approx(metrics.log_loss(churned, scores), abs=AGREEMENT)


@given(seed=seeds, decimals=tie_decimals, n_bins=st.integers(1, 20))
@settings(max_examples=25, deadline=None)
def test_calibration_bins_are_scikit_learns_bins_by_quantile(seed, decimals, n_bins):
    churned, scores = draw(seed, decimals=decimals)
    scores = scores.astype(np.float64)
    n, mean_score, share = calibration_bins(churned, scores, n_bins)

    their_share, their_mean = calibration_curve(churned, scores, n_bins=n_bins, strategy="quantile")

    assert mean_score == pytest.approx(their_mean, abs=AGREEMENT)
    assert share == pytest.approx(their_share, abs=AGREEMENT)
    assert n.sum() == len(scores)
    # How many rows they have is not told by theirs; only the right counts give back both means over all rows.
    assert n @ their_share / len(scores) == pytest.approx(churned.mean(), abs=AGREEMENT)
    assert n @ their_mean / len(scores) == pytest.approx(scores.mean(), abs=AGREEMENT)
    expected = n @ np.abs(their_mean - their_share) / len(scores)
    assert calibration_error(churned, scores, n_bins) == pytest.approx(expected, abs=AGREEMENT)


def test_without_ties_a_tenth_of_the_rows_is_in_each_calibration_bin():
    churned, _ = draw(3, n=1_000)
    scores = np.random.default_rng(3).permutation(np.linspace(0.01, 0.99, 1_000))
    assert calibration_bins(churned, scores)[0].tolist() == [100] * 10


def test_the_figures_of_one_hand_made_case():
    churned = np.array([True, True, False, True, False, False, False, False, False, False])
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])

    assert roc_auc_interval(churned, scores).value == pytest.approx(20 / 21)
    assert average_precision_interval(churned, scores).value == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert lift(churned, scores, 0.1) == pytest.approx(1 / 0.3)
    assert lift(churned, scores, 0.4) == pytest.approx(0.75 / 0.3)
    assert calibration_error(churned, scores, n_bins=2) == pytest.approx((abs(3.5 / 5 - 3 / 5) + abs(1.0 / 5 - 0)) / 2)


def test_weighted_metrics_are_scikit_learns_and_those_of_rows_repeated():
    churned, scores = draw(5, n=600, decimals=2)
    weights = np.random.default_rng(5).integers(1, 6, 600).astype(float)
    rows = np.repeat(np.arange(600), weights.astype(int))
    ours, repeated = evaluate(churned, scores, weights), evaluate(churned[rows], scores[rows])

    theirs = metrics.roc_auc_score(churned, scores, sample_weight=weights)
    assert ours.roc_auc.value == pytest.approx(theirs, abs=AGREEMENT)
    theirs = metrics.average_precision_score(churned, scores, sample_weight=weights)
    assert ours.average_precision.value == pytest.approx(theirs, abs=AGREEMENT)
    for name in ("log_loss", "log_loss_excess", "brier_score"):
        assert getattr(ours, name).value == pytest.approx(getattr(repeated, name).value, abs=AGREEMENT)
    assert ours.mean_score == pytest.approx(repeated.mean_score, abs=AGREEMENT)
    assert ours.lift_at_10 == pytest.approx(repeated.lift_at_10, rel=1e-2)
    assert ours.n_churned / ours.n == pytest.approx(churned[rows].mean(), abs=1e-3)
    assert ours.n == round(weights.sum() ** 2 / (weights**2).sum())
    assert (
        ours.roc_auc.high - ours.roc_auc.low
        > evaluate(churned, scores).roc_auc.high - evaluate(churned, scores).roc_auc.low
    )


def test_where_a_few_weigh_most_it_is_insufficient():
    churned, scores = draw(5, n=600)
    weights = np.where(np.arange(600) < 20, 100.0, 1.0)
    assert evaluate(churned, scores, weights).status == "insufficient"


@pytest.mark.parametrize("weights", [np.zeros(10), np.full(10, np.nan), np.ones(9)], ids=["0", "NaN", "too few"])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ChurnError, match="weights"):
        evaluate(np.arange(10) < 5, np.full(10, 0.5), weights)


@given(seed=seeds, decimals=tie_decimals)
@settings(max_examples=25, deadline=None)
def test_paired_comparison_and_variance_are_mlstatkits(seed, decimals):
    churned, first = draw(seed, decimals=decimals)
    noise = np.random.default_rng(seed + 1).normal(0, 0.15, len(first))
    second = np.round(np.clip(first + noise, 0, 1), decimals).astype(np.float32)

    z, p_value, ci_first, ci_second, auc_first, auc_second, info = Delong_test(churned.astype(int), first, second)
    ours = compare_roc_auc(churned, first, second)

    assert info["method"] == "delong"
    assert ours.p_value == pytest.approx(p_value, abs=AGREEMENT)
    assert ours.difference == pytest.approx(auc_second - auc_first, abs=AGREEMENT)
    assert ours.standard_error**2 == pytest.approx(info["var_diff"], abs=AGREEMENT)
    assert ours.difference / ours.standard_error == pytest.approx(z, abs=AGREEMENT)
    for scores, auc, (low, high) in ((first, auc_first, ci_first), (second, auc_second, ci_second)):
        assert 0 < low < high < 1, "theirs is cut off, and does not tell its variance"
        expected = logit_interval(auc, ((high - low) / 2 / Z) ** 2)
        interval = roc_auc_interval(churned, scores)
        assert (interval.low, interval.high) == pytest.approx(expected, abs=AGREEMENT)
        assert interval.value == pytest.approx(auc, abs=AGREEMENT)


def test_a_comparison_has_two_sides():
    churned, first = draw(1)
    _, second = draw(2)
    forth, back = compare_roc_auc(churned, first, second), compare_roc_auc(churned, second, first)
    assert forth.difference == -back.difference
    assert forth.p_value == back.p_value


def test_a_model_does_not_differ_from_itself():
    churned, scores = draw(1)
    same = compare_roc_auc(churned, scores, scores)
    assert (same.difference, same.standard_error, same.p_value) == (0, 0, 1)


def test_perfect_against_constant_scores_differ_though_neither_varies():
    churned = np.arange(200) % 4 == 0
    ours = compare_roc_auc(churned, np.full(200, 0.5), churned.astype(float))
    assert (ours.difference, ours.standard_error) == (0.5, 0)
    assert ours.p_value == pytest.approx(2 * np.exp(-50 / 8))


def test_intervals_are_wider_the_more_confidence_is_asked_for():
    narrow, wide = (roc_auc_interval(*draw(1), confidence) for confidence in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_perfect_scores_have_an_interval_that_says_how_few_they_were():
    churned = np.arange(100) < 50
    assert roc_auc_interval(churned, churned.astype(float)) == Interval(1.0, 0.025 ** (1 / 50), 1.0)
    assert roc_auc_interval(churned, 1 - churned.astype(float)) == Interval(0.0, 0.0, 1 - 0.025 ** (1 / 50))
    assert average_precision_interval(churned, churned.astype(float)) == Interval(1.0, 0.025 ** (1 / 50), 1.0)


def test_tied_scores_know_nothing_and_their_interval_says_so():
    churned = np.arange(100) < 50
    interval = roc_auc_interval(churned, np.full(100, 0.3))
    assert interval.value == 0.5
    assert (interval.low, interval.high) == pytest.approx(logit_interval(0.5, 0.25 / 50))


@given(seed=seeds, decimals=tie_decimals, limit=st.floats(0.5, 0.99))
@settings(max_examples=25, deadline=None)
def test_the_chance_of_an_auc_this_low_is_the_normals_on_the_logit_scale(seed, decimals, limit):
    churned, scores = draw(seed, decimals=decimals)
    noise = np.random.default_rng(seed).random(len(scores))
    _, _, (low, high), _, auc, _, _ = Delong_test(churned.astype(int), scores, noise)
    assert 0 < low < high < 1, "theirs is cut off, and does not tell its variance"
    error = (high - low) / 2 / Z / (auc * (1 - auc))
    interval = roc_auc_interval(churned, scores)

    p_value = p_at_least(interval, limit)

    expected = stats.norm.cdf((np.log(auc / (1 - auc)) - np.log(limit / (1 - limit))) / error)
    assert p_value == pytest.approx(expected, abs=AGREEMENT)
    assert (p_value < 0.025) == (interval.high < limit)


def test_perfect_scores_are_below_no_limit_and_those_all_wrong_by_the_chance_of_as_many_wrong_pairs():
    churned = np.arange(100) < 50
    assert p_at_least(roc_auc_interval(churned, churned.astype(float)), 0.99) == 1
    assert p_at_least(roc_auc_interval(churned, 1 - churned.astype(float)), 0.6) == pytest.approx(0.4**50)


@pytest.mark.parametrize(("limit", "p_value"), [(0.0, 1.0), (1.0, 0.0)])
def test_limits_at_the_ends_are_always_and_never_held(limit, p_value):
    churned, scores = draw(1)
    assert p_at_least(roc_auc_interval(churned, scores), limit) == p_value


@pytest.mark.parametrize("n", [2, 3])
def test_an_interval_exists_down_to_one_row_of_each_outcome(n):
    churned = np.arange(n) == 0
    interval = roc_auc_interval(churned, np.array([0.5, 0.4, 0.6])[:n])
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_the_auc_interval_covers_the_true_auc_where_the_plain_normal_one_does_not():
    # Two normals 2.6 apart, 50 churned of 200: AUC 0.967, where an interval of equal arms fails.
    rng, true = np.random.default_rng(7), stats.norm.cdf(2.6 / np.sqrt(2))
    churned = np.arange(200) < 50
    covered = {"logit": 0, "normal": 0}
    for _ in range(1_000):
        scores = rng.normal(size=200) + 2.6 * churned
        interval = roc_auc_interval(churned, scores)
        error = np.log(interval.high / (1 - interval.high)) - np.log(interval.low / (1 - interval.low))
        reach = error / 2 * interval.value * (1 - interval.value)
        covered["logit"] += interval.low <= true <= interval.high
        covered["normal"] += abs(interval.value - true) <= reach
    assert 920 <= covered["logit"] <= 975, "of 1,000; at 50 churned rows the variance itself is uncertain"
    assert covered["normal"] < covered["logit"] - 20


def test_the_average_precision_interval_is_a_bootstraps():
    churned, scores = draw(11, n=1_000, decimals=2)
    rng = np.random.default_rng(0)
    samples = [rng.integers(0, len(scores), len(scores)) for _ in range(300)]
    drawn = np.array([metrics.average_precision_score(churned[rows], scores[rows]) for rows in samples])
    interval = average_precision_interval(churned, scores)

    expected = logit_interval(interval.value, drawn.var())

    assert (interval.low, interval.high) == pytest.approx(expected, abs=0.08 * (expected[1] - expected[0]))


def test_intervals_of_log_loss_and_brier_score_are_those_of_a_mean():
    churned, scores = draw(5)
    evaluation = evaluate(churned, scores)
    for interval, per_row in (
        (evaluation.log_loss, log_losses(churned, scores)),
        (evaluation.brier_score, (scores.astype(float) - churned) ** 2),
    ):
        low, high = stats.norm.interval(0.95, per_row.mean(), stats.sem(per_row))
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=AGREEMENT)


def test_a_certain_score_that_is_wrong_costs_what_float32_can_tell_from_certainty():
    losses = log_losses(np.array([True, False, True]), np.array([0, 1, 1], dtype=np.float32))
    assert losses[:2] == pytest.approx(-np.log(np.finfo(np.float32).eps))
    assert 0 < losses[2] < 1e-6


@given(seed=seeds, decimals=tie_decimals)
@settings(max_examples=25, deadline=None)
def test_no_figure_depends_on_the_order_of_rows(seed, decimals):
    churned, scores = draw(seed, decimals=decimals)
    order = np.random.default_rng(seed).permutation(len(scores))
    shuffled = evaluate(churned[order], scores[order]).metrics()
    assert shuffled == pytest.approx(evaluate(churned, scores).metrics(), rel=1e-9)


def test_rows_tied_at_the_cut_of_the_lift_count_by_their_mean():
    churned = np.array([True, False, True, False, False, False, False, False, False, False])
    scores = np.array([0.9, 0.5, 0.5, 0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    assert lift(churned, scores, 0.3) == pytest.approx((1 + 2 * 0.25) / 3 / 0.2)


@pytest.mark.parametrize(("n_churned", "n_stayed"), [(MIN_OF_CLASS - 1, 500), (500, MIN_OF_CLASS - 1), (0, 500)])
def test_too_few_of_an_outcome_is_insufficient_and_gives_no_figure(n_churned, n_stayed):
    churned = np.arange(n_churned + n_stayed) < n_churned
    evaluation = evaluate(churned, np.full(len(churned), 0.25))

    assert evaluation.status == "insufficient"
    assert evaluation.metrics() == {"n": n_churned + n_stayed, "n_churned": n_churned, "mean_score": 0.25}
    assert evaluation.roc_auc is evaluation.lift_at_10 is evaluation.calibration_error is None


def test_just_enough_of_both_outcomes_is_measured():
    evaluation = evaluate(np.arange(2 * MIN_OF_CLASS) < MIN_OF_CLASS, np.linspace(0, 1, 2 * MIN_OF_CLASS))
    assert evaluation.status == "ok"
    assert len(evaluation.metrics()) == 3 + 5 * 3 + 2


def test_no_rows_at_all_are_insufficient_and_give_no_mean():
    evaluation = evaluate(np.zeros(0, dtype=bool), np.zeros(0))
    assert evaluation.status == "insufficient"
    assert evaluation.metrics() == {"n": 0, "n_churned": 0}


@pytest.mark.parametrize(
    ("churned", "scores", "match"),
    [
        ([True, True], [0.1, 0.2], "2 of 2 rows churned"),
        ([True, False], [0.1, 0.2, 0.3], r"shape \(2,\) do not match scores of shape \(3,\)"),
        ([True, False], [0.1, np.nan], "1 scores are NaN"),
        ([1, 0], [0.1, 0.2], "outcomes are int64"),
    ],
)
@pytest.mark.parametrize("measure", [roc_auc_interval, average_precision_interval, lift])
def test_what_cannot_be_measured_is_refused_with_the_reason(measure, churned, scores, match):
    with pytest.raises(ChurnError, match=match):
        measure(np.array(churned), np.array(scores))


def test_log_odds_are_not_taken_for_probabilities():
    with pytest.raises(ChurnError, match=r"scores run from -1.0 to 2.0; give probabilities"):
        evaluate(np.array([True, False]), np.array([-1.0, 2.0]))


def test_no_rows_have_no_mean():
    with pytest.raises(ChurnError, match="there are no rows"):
        calibration_error(np.zeros(0, dtype=bool), np.zeros(0))


def test_fifty_thousand_rows_are_evaluated_in_no_time():
    churned, scores = draw(1, n=50_000)
    evaluate(churned, scores)
    started = time.process_time()
    evaluate(churned, scores)
    assert time.process_time() - started < 0.25, "it takes 30 ms; the limit leaves room for a busy machine"


def test_an_interval_is_written_with_its_ends():
    assert f"{Interval(0.71234, 0.6901, 0.7329):.3f}" == "0.712 (0.690 to 0.733)"
