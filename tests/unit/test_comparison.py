"""At stake: a challenger becomes champion since it is better, not since one looked often or counted a player twice."""

from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from churn.errors import ChurnError
from churn.evaluation.comparison import Comparison, Guardrail, Limits, PairedCohort, choose, compare, count_once
from churn.evaluation.metrics import Interval, log_losses, recalibrated
from churn.evaluation.sequential import PairedSums, e_value

LIMITS = Limits()


def probability(log_odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-log_odds))


def equals(n: int, *, season: float = 0.0, offset: float = 0.0, seed: int = 0) -> PairedCohort:
    """Two models that miss as much, one with log-odds too high by ``offset`` and one too low, in a season."""
    rng = np.random.default_rng(seed)
    known, first, second = rng.normal(-0.5, 1.2, n), 0.25 * rng.normal(size=n), 0.25 * rng.normal(size=n)
    churned = rng.random(n) < probability(known + first + second + season)
    scores = probability(known + first + offset), probability(known + second - offset)
    return PairedCohort(date(2026, 1, 31), np.arange(n), *scores, churned)


def campaign(n: int, weights: str, month: int) -> PairedCohort:
    """Equal models; most of those whom the champion scores highest were contacted, and hardly any of them churned."""
    cohort, rng = equals(n, seed=month), np.random.default_rng(100 + month)
    is_high = cohort.champion > np.quantile(cohort.champion, 0.8)
    is_contacted = is_high & (rng.random(n) < 0.8)
    churned = cohort.churned & ~(is_contacted & (rng.random(n) < 0.9))
    by_chance = {"none": None, "without": (~is_contacted).astype(float), "inverse": ~is_contacted / (1 - 0.8 * is_high)}
    return replace(cohort, as_of=date(2026, month, 28), churned=churned, weights=by_chance[weights])


def cohort(as_of: date, ids: range, *, better: float, seed: int = 0) -> PairedCohort:
    """Accounts that churn by a known chance; only the champion's scores are blurred, by ``better``."""
    rng = np.random.default_rng([seed, as_of.toordinal()])
    logit = rng.normal(0, 1.5, len(ids))
    blurred = logit + better * rng.normal(0, 1, len(ids))
    churned = rng.random(len(ids)) < 1 / (1 + np.exp(-logit))
    scores = [(1 / (1 + np.exp(-margin))).astype(np.float32) for margin in (blurred, logit)]
    return PairedCohort(as_of, np.array(ids), *scores, churned)


def test_a_better_challenger_is_found_and_breaks_no_guardrail():
    comparison = compare([cohort(date(2026, 1, 31), range(3000), better=1.0)], 3, LIMITS)

    assert comparison.is_better
    assert not comparison.broken
    assert comparison.improvement.low > 0
    assert comparison.sentence.endswith("the challenger is better")
    assert comparison.evidence()["n"] == 3000


def test_the_same_scores_are_no_evidence():
    same = cohort(date(2026, 1, 31), range(3000), better=0.0)

    comparison = compare([same], 3, LIMITS)

    assert not comparison.is_better
    assert comparison.improvement.value == pytest.approx(0, abs=1e-7)


def test_a_worse_challenger_is_said_to_be_worse():
    good = cohort(date(2026, 1, 31), range(3000), better=1.0)
    swapped = PairedCohort(good.as_of, good.account_ids, good.challenger, good.champion, good.churned)

    comparison = compare([swapped], 3, LIMITS)

    assert not comparison.is_better
    assert "auc_holds" in {guardrail.name for guardrail in comparison.broken}
    assert comparison.improvement.high < 0
    assert "log-loss worse by 0." in comparison.sentence


def test_without_matured_accounts_it_is_too_early():
    comparison = compare([], 3, LIMITS)

    assert (comparison.n, comparison.is_better) == (0, False)
    assert comparison.sentence == "no account that both models scored has a matured label yet"


def test_few_labels_break_a_guardrail_whatever_the_test_says():
    comparison = compare([cohort(date(2026, 1, 31), range(60), better=3.0)], 3, LIMITS)

    assert [guardrail.name for guardrail in comparison.broken] == ["labels_are_enough"]


def test_a_challenger_that_ranks_as_well_but_is_ill_calibrated_is_not_allowed():
    good = cohort(date(2026, 1, 31), range(5000), better=0.0)
    shifted = (1 / (1 + np.exp(-(np.log(good.champion / (1 - good.champion)) + 1)))).astype(np.float32)

    comparison = compare([PairedCohort(good.as_of, good.account_ids, good.champion, shifted, good.churned)], 3, LIMITS)

    assert "calibration_holds" in {guardrail.name for guardrail in comparison.broken}


def test_an_account_counts_again_only_when_its_outcomes_do_not_overlap():
    january = cohort(date(2026, 1, 31), range(100), better=1.0)
    february = cohort(date(2026, 2, 28), range(150), better=1.0)
    april = cohort(date(2026, 4, 30), range(150), better=1.0)

    counted = count_once([january, february, april], 3)

    assert [kept.account_ids.tolist() for kept in counted] == [
        list(range(100)),
        list(range(100, 150)),
        list(range(100)),
    ]
    assert np.array_equal(counted[1].challenger, february.challenger[100:])
    assert np.array_equal(counted[2].churned, april.churned[:100])


def test_the_order_of_cohorts_does_not_matter():
    cohorts = [cohort(date(2026, month, 28), range(200), better=1.0) for month in (1, 2, 3, 4)]

    assert compare(cohorts, 3, LIMITS) == compare(cohorts[::-1], 3, LIMITS)


def test_an_intercept_does_not_decide():
    cohort = equals(20_000)
    shifted = probability(np.log(cohort.champion / (1 - cohort.champion)) + 0.3)

    comparison = compare([replace(cohort, champion=shifted, challenger=cohort.champion)], 3, LIMITS)

    assert not comparison.is_better
    assert comparison.improvement.value == pytest.approx(0, abs=1e-6)


def test_a_season_promotes_no_equal_challenger_although_its_accounts_alone_would():
    cohort = equals(20_000, season=-0.3, offset=0.1)

    comparison = compare([cohort], 3, LIMITS)

    losses = [log_losses(cohort.churned, scores) for scores in (cohort.champion, cohort.challenger)]
    assert e_value(PairedSums.of(*losses)) > 1 / LIMITS.alpha
    assert comparison.e_value < 1


@pytest.mark.parametrize(("weights", "is_better"), [("none", True), ("without", False), ("inverse", False)], ids=str)
def test_whoever_acts_on_the_champions_list_favours_its_challenger_unless_the_accounts_are_weighted(weights, is_better):
    cohorts = [campaign(5_000, weights, month) for month in (1, 4, 7, 10)]

    comparison = compare(cohorts, 3, LIMITS)

    assert comparison.is_better == is_better
    assert comparison.n == sum(5_000 if one.weights is None else np.count_nonzero(one.weights) for one in cohorts)


def test_where_campaigns_left_too_few_alone_the_comparison_says_how_many():
    weights = np.where(np.arange(400) < 20, 50.0, 1.0)
    comparison = compare([replace(equals(400), weights=weights)], 3, LIMITS)

    assert [rail.name for rail in comparison.broken] == ["labels_are_enough"]
    assert "of 400 accounts that were not contacted, which weigh as much as 38, " in comparison.sentence


def test_an_account_that_was_left_out_counts_in_the_next_month():
    january, february = equals(500), replace(equals(500, seed=1), as_of=date(2026, 2, 28))
    weights = np.repeat([0.0, 1.0], [200, 300])

    assert compare([replace(january, weights=weights), february], 3, LIMITS).n == 500


@pytest.mark.parametrize("n", [300, 1_000])
def test_chance_alone_rarely_blocks_an_equal_challenger_by_its_auc(n):
    blocked = [
        "auc_holds" in {rail.name for rail in compare([equals(n, seed=seed)], 3, LIMITS).broken} for seed in range(40)
    ]

    assert np.mean(blocked) <= 0.05


def test_a_challenger_that_cannot_gain_what_is_worth_having_is_hopeless():
    small, large = (compare([equals(n)], 3, replace(LIMITS, min_gain=0.05)) for n in (300, 20_000))

    assert (small.is_hopeless, large.is_hopeless) == (False, True)
    assert not compare([], 3, LIMITS).is_hopeless


def test_recalibration_makes_the_mean_score_that_of_the_outcomes_and_keeps_the_order():
    cohort = equals(5_000, season=0.5)

    found = recalibrated(cohort.churned, cohort.champion)

    assert found.mean() == pytest.approx(cohort.churned.mean(), abs=1e-3)
    assert np.array_equal(np.argsort(found), np.argsort(cohort.champion))


@pytest.mark.parametrize("score", [0.0, 1e-4, 0.5, 1.0])
@pytest.mark.parametrize("churned", [True, False])
def test_recalibration_of_one_outcome_stays_finite(score, churned):
    found = recalibrated(np.full(20, churned), np.full(20, score))

    assert np.isfinite(log_losses(np.full(20, churned), found)).all()
    assert found[0] >= score - 1e-6 if churned else found[0] <= score + 1e-6


def test_recalibration_by_weights_is_that_of_the_rows_repeated():
    cohort, weights = equals(400), np.arange(400) % 3

    repeated = recalibrated(np.repeat(cohort.churned, weights), np.repeat(cohort.champion, weights))

    assert np.repeat(recalibrated(cohort.churned, cohort.champion, weights), weights) == pytest.approx(repeated)


def test_evidence_is_told_as_odds_that_people_read():
    found = compare([cohort(date(2026, 1, 31), range(50_000), better=3.0)], 3, LIMITS)

    assert found.e_value > 1e6
    assert "evidence over 1,000,000 to 1, 20 to 1 needed" in found.sentence
    assert "e+" not in found.sentence


@pytest.mark.parametrize("weight", [-0.5, np.nan, np.inf])
def test_weights_that_are_none_are_refused(weight):
    with pytest.raises(ChurnError, match="give finite numbers of 0 or more"):
        replace(equals(10), weights=np.full(10, weight))


def test_what_a_guardrail_forbids_does_not_loosen_the_evidence_that_a_fleet_asks_for():
    gain = Interval(0.1, 0.05, 0.15)
    rails = {name: Guardrail(name, name, holds) for name, holds in (("holds", True), ("broken", False))}
    forbidden, weak, strong = (
        Comparison(900, 300, gain, e_value, (rails[name],), 0.05)
        for e_value, name in ((1e9, "broken"), (60.0, "holds"), (100.0, "holds"))
    )

    assert choose([forbidden, forbidden, forbidden, weak], 0.05) == [False] * 4
    assert choose([forbidden, forbidden, forbidden, strong], 0.05) == [False, False, False, True]
