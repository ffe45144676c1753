"""At stake: a challenger takes over by this evidence alone, looked at every week for thousands of variants. It must not
mistake chance for improvement however often it is looked at, and it must see improvement that is there.
"""

import math
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from churn.errors import ChurnError
from churn.evaluation.metrics import log_losses
from churn.evaluation.sequential import (
    MIN_PAIRS,
    PairedSums,
    confidence_sequence,
    discount_months,
    e_benjamini_hochberg,
    e_value,
)

N_HALF_YEARS, N_LOOKS, N_PER_LOOK = 200, 26, 300
ALPHA = 0.05

Sums = list[list[PairedSums]]


def simulate_half_years(champion_error: float, challenger_error: float, *, seed: int = 1) -> Sums:
    """Return what is known at each look of each half-year, of two models whose log-odds err by so much.

    They err by Student's t of 3 degrees, so that the differences' tails are as heavy as real ones: kurtosis over 100.
    """
    rng = np.random.default_rng(seed)
    shape = (N_HALF_YEARS, N_LOOKS, N_PER_LOOK)
    log_odds = rng.normal(-1, 1.5, shape)
    churned = (rng.random(shape) < 1 / (1 + np.exp(-log_odds))).ravel()
    losses = [
        log_losses(churned, 1 / (1 + np.exp(-(log_odds + error * rng.standard_t(3, shape))).ravel())).reshape(shape)
        for error in (champion_error, challenger_error)
    ]
    return [list(accumulate(map(PairedSums.of, *half_year))) for half_year in zip(*losses, strict=True)]


@pytest.fixture(scope="module")
def equals() -> Sums:
    return simulate_half_years(0.4, 0.4)


def share_promoted(half_years: Sums) -> float:
    """Share of half-years in which the challenger was promoted at any look."""
    return float(np.mean([any(e_value(sums) >= 1 / ALPHA for sums in looks) for looks in half_years]))


def standard_normal_statistic(sums: PairedSums) -> float:
    return sums.mean / math.sqrt(sums.variance / sums.n)


def one_sided_lower_end(sums: PairedSums, alpha: float, tuned_for: int = 1000) -> float:
    """The one-sided sequence in the closed form of arXiv 2103.06476, which is a little wider than the exact one."""
    level = -2 * math.log(2 * ALPHA)
    rho_squared = (level + math.log(level + 1)) / tuned_for
    spread = sums.n * rho_squared + 1
    inner = 2 * spread / (sums.n**2 * rho_squared) * math.log(1 + math.sqrt(spread) / (2 * alpha))
    return sums.mean - math.sqrt(sums.variance * inner)


def test_a_challenger_that_is_no_better_is_hardly_ever_promoted_in_half_a_year(equals):
    assert share_promoted(equals) <= ALPHA


def test_a_weekly_z_test_promotes_equals_far_more_often(equals):
    limit = stats.norm.ppf(1 - ALPHA)
    share = np.mean([any(standard_normal_statistic(sums) > limit for sums in looks) for looks in equals])
    assert share > 4 * ALPHA


def test_equals_are_covered_at_all_looks_together(equals):
    left = [any(not _covers(sums, 0.0) for sums in looks) for looks in equals]
    assert np.mean(left) <= ALPHA


def _covers(sums: PairedSums, mean: float) -> bool:
    interval = confidence_sequence(sums, alpha=ALPHA)
    return interval.low <= mean <= interval.high


def test_counting_one_outcome_for_every_week_it_was_scored_feigns_evidence(equals):
    weeks = 12
    repeated = [[PairedSums(*(weeks * x for x in (s.n, s.total, s.total_squares))) for s in looks] for looks in equals]
    assert share_promoted(repeated) > 4 * ALPHA


def test_a_real_improvement_is_found():
    assert share_promoted(simulate_half_years(0.6, 0.4)) > 0.95


def test_a_worse_challenger_is_never_promoted():
    assert share_promoted(simulate_half_years(0.4, 0.6)) == 0


@pytest.mark.parametrize("n", [MIN_PAIRS, 2_000, 50_000])
@pytest.mark.parametrize("z", [-40.0, -3.0, 0.0, 1.0, 2.5, 6.0])
def test_the_e_value_is_the_likelihood_ratio_averaged_over_improvements(n, z):
    sums = sums_of(n, mean=z * 0.3 / math.sqrt(n), sd=0.3)
    s = sums.total / math.sqrt(sums.variance)
    level = -2 * math.log(2 * ALPHA)
    prior = stats.halfnorm(scale=math.sqrt((level + math.log(level + 1)) / 1000))

    peak = min(max(s / n, 0.0), prior.isf(1e-12))
    expected, _ = integrate.quad(
        lambda m: math.exp(m * s - m * m * n / 2) * prior.pdf(m),
        0,
        prior.isf(1e-15),
        points=[peak, *(peak + k / math.sqrt(n) for k in (0.1, 1, 3, 6))],
        limit=500,
    )

    assert e_value(sums) == pytest.approx(expected, rel=1e-6)


def sums_of(n: int, *, mean: float, sd: float) -> PairedSums:
    return PairedSums(n, n * mean, n * mean * mean + (n - 1) * sd * sd)


@given(n=st.integers(MIN_PAIRS, 10**6), z=st.floats(-5, 8), sd=st.floats(1e-3, 10), alpha=st.floats(0.001, 0.2))
@settings(max_examples=200)
def test_an_e_value_passes_the_level_when_the_one_sided_sequence_is_above_zero(n, z, sd, alpha):
    sums = sums_of(n, mean=z * sd / math.sqrt(n), sd=sd)
    if one_sided_lower_end(sums, alpha) > 0:
        assert e_value(sums) >= 1 / alpha
    if one_sided_lower_end(sums, 1.4 * alpha) < 0:  # the closed form's slack, 1.383 at most
        assert e_value(sums) < 1 / alpha


def test_the_closed_form_of_the_one_sided_sequence_lies_just_below_the_exact_one():
    n, sd = 2_000, 0.3
    exact = optimize.brentq(lambda mean: e_value(sums_of(n, mean=mean, sd=sd)) - 20, 0, 1)
    reach = -one_sided_lower_end(sums_of(n, mean=0.0, sd=sd), ALPHA)
    assert exact <= reach <= 1.02 * exact


@pytest.mark.parametrize("n", [500, 2_000, 20_000])
def test_the_confidence_sequence_is_the_papers(n):
    sums = sums_of(n, mean=0.02, sd=0.3)
    rho = math.sqrt((-2 * math.log(ALPHA) + math.log(-2 * math.log(ALPHA) + 1)) / 1_000)
    reach = 0.3 * math.sqrt(2 * (n * rho**2 + 1) / (n**2 * rho**2) * math.log(math.sqrt(n * rho**2 + 1) / ALPHA))

    interval = confidence_sequence(sums)

    assert (interval.low, interval.value, interval.high) == pytest.approx((0.02 - reach, 0.02, 0.02 + reach))
    assert reach > 1.3 * stats.norm.ppf(0.975) * 0.3 / math.sqrt(n), "looking always costs width"


def test_the_sequence_is_narrowest_near_the_number_of_pairs_it_is_tuned_for():
    at = sums_of(5_000, mean=0.0, sd=1.0)
    widths = {tuned: confidence_sequence(at, tuned_for=tuned).high for tuned in (500, 5_000, 50_000)}
    assert min(widths, key=lambda tuned: widths[tuned]) == 5_000


def test_sums_of_parts_are_the_sums_of_the_whole():
    rng = np.random.default_rng(0)
    champion, challenger = rng.random((2, 900))
    parts = [PairedSums.of(champion[rows], challenger[rows]) for rows in np.split(np.arange(900), 3)]

    whole = sum(parts, PairedSums())

    differences = champion - challenger
    assert whole.n == 900
    assert whole.mean == pytest.approx(differences.mean())
    assert whole.variance == pytest.approx(differences.var(ddof=1))


@pytest.mark.parametrize(
    ("means", "most"),
    [([0.02] * 6, 1), ([0.02] * 24, 1), ([0.05, -0.05] * 3, 0.3), ([0.05, -0.05] * 12, 0.05)],
    ids=["alike", "alike for two years", "differing", "differing for two years"],
)
def test_accounts_of_months_that_differ_are_fewer_than_they_seem(means, most):
    months = [sums_of(3_000, mean=mean, sd=0.3) for mean in means]

    found = discount_months(months)

    assert MIN_PAIRS < found.n <= most * 3_000 * len(means)
    assert found.mean == pytest.approx(np.mean(means))


def test_one_month_of_many_accounts_tells_no_more_than_a_months_surprise_allows():
    found = [discount_months([sums_of(n, mean=0.0, sd=0.3)]).n for n in (300, 10_000, 1_000_000)]

    assert found == pytest.approx([280, 3_100, 4_400], rel=0.02)


def test_surprises_that_accounts_of_a_month_share_promote_equals_only_if_months_are_not_counted():
    rng = np.random.default_rng(2)
    shares = {"accounts": 0, "months": 0}
    for _ in range(100):
        surprises = 0.3 * rng.normal(0, 0.02, 20) + 0.3 / 100 * rng.normal(size=20)
        looks = list(accumulate([[sums_of(10_000, mean=mean, sd=0.3)] for mean in surprises]))
        shares["accounts"] += any(e_value(sum(months, PairedSums())) >= 20 for months in looks)
        shares["months"] += any(e_value(discount_months(months)) >= 20 for months in looks)

    assert shares["months"] <= 5
    assert shares["accounts"] > 20


def test_weights_of_zero_leave_accounts_out_and_equal_ones_change_nothing():
    rng = np.random.default_rng(0)
    champion, challenger = rng.random((2, 900))
    kept = np.arange(900) < 600

    of_kept = PairedSums.of(champion[kept], challenger[kept])

    assert vars(PairedSums.of(champion, challenger, 3.0 * kept)) == pytest.approx(vars(of_kept))


def test_unequal_weights_have_the_variance_of_fewer_accounts():
    rng = np.random.default_rng(0)
    differences, weights = rng.normal(0.1, 1, (2_000, 500)), rng.exponential(size=500)
    errors = np.std(differences @ weights / weights.sum())

    found = PairedSums.of(differences[0], np.zeros(500), weights)

    assert math.sqrt(1 / found.n) == pytest.approx(errors, rel=0.1)
    assert found.mean == pytest.approx(differences[0] @ weights / weights.sum())


def test_the_challenger_is_better_where_its_losses_are_lower():
    champion = np.random.default_rng(0).random(1_000) + 0.1
    assert e_value(PairedSums.of(champion, champion * 0.5)) > 1e6
    assert e_value(PairedSums.of(champion * 0.5, champion)) < 0.1


def test_few_pairs_are_no_evidence_however_clear_they_look():
    few = sums_of(MIN_PAIRS - 1, mean=10.0, sd=0.1)
    assert e_value(few) == 1
    interval = confidence_sequence(few)
    assert (interval.low, interval.high) == (-math.inf, math.inf)
    assert e_value(sums_of(MIN_PAIRS, mean=10.0, sd=0.1)) > 1e6


def test_no_pairs_have_no_mean_and_are_no_evidence():
    assert math.isnan(PairedSums().mean)
    assert math.isnan(PairedSums().variance)
    assert e_value(PairedSums()) == 1


def test_two_models_that_score_alike_are_no_evidence():
    losses = np.random.default_rng(0).random(5_000)
    assert e_value(PairedSums.of(losses, losses)) == 1
    assert e_value(PairedSums.of(losses + 0.1, losses)) == 1, "the same difference on every account, but for rounding"


def test_overwhelming_evidence_stays_a_finite_number():
    value = e_value(sums_of(10**6, mean=1.0, sd=0.1))
    assert 1e250 < value <= 1e300
    assert 0 <= e_value(sums_of(10**6, mean=-1.0, sd=0.1)) < 1e-3


@pytest.mark.parametrize("shared", [0.0, 0.7], ids=["independent", "all variants share the season's surprises"])
def test_of_two_thousand_equals_and_a_hundred_improvements_few_promotions_are_false(shared):
    n_nulls, n_effects, n_pairs = 2_000, 100, 4_000
    rng = np.random.default_rng(4)
    is_effect = np.arange(n_nulls + n_effects) >= n_nulls
    false_shares, found = [], []
    for _ in range(20):
        z = math.sqrt(1 - shared) * rng.normal(size=len(is_effect)) + math.sqrt(shared) * rng.normal() + 7 * is_effect
        chosen = np.array(
            e_benjamini_hochberg([e_value(sums_of(n_pairs, mean=x / math.sqrt(n_pairs), sd=1.0)) for x in z], ALPHA)
        )
        false_shares.append((chosen & ~is_effect).sum() / max(chosen.sum(), 1))
        found.append(chosen[is_effect].mean())

    assert np.mean(false_shares) <= ALPHA
    assert np.mean(found) > 0.75


def test_e_benjamini_hochberg_on_a_hand_made_case():
    # 4 hypotheses at 0.1: the k-th largest must reach 40 / k. 19 fails at k = 2; 14 passes at k = 3 and takes it in.
    assert e_benjamini_hochberg([19, 1, 14, 39], 0.1) == [True, False, True, True]
    assert e_benjamini_hochberg([39, 19, 13, 9], 0.1) == [False] * 4
    assert e_benjamini_hochberg([40, 0, 0, 0], 0.1) == [True, False, False, False]
    assert e_benjamini_hochberg([], 0.1) == []


@given(values=st.lists(st.floats(0, 1e6), min_size=1, max_size=40), alpha=st.floats(0.01, 0.5))
def test_e_benjamini_hochberg_rejects_the_largest_and_treats_equals_alike(values, alpha):
    chosen = e_benjamini_hochberg(values, alpha)
    kept = [value for value, is_rejected in zip(values, chosen, strict=True) if not is_rejected]
    rejected = [value for value, is_rejected in zip(values, chosen, strict=True) if is_rejected]
    assert max(kept, default=-1) < min(rejected, default=math.inf)
    assert all(value >= len(values) / alpha / len(rejected) * (1 - 1e-12) for value in rejected)


@pytest.mark.parametrize("values", [[1.0, -0.5], [math.nan]])
def test_what_is_no_e_value_is_refused(values):
    with pytest.raises(ChurnError, match="are not 0 or more"):
        e_benjamini_hochberg(values, 0.05)


def test_a_sequence_tuned_for_no_pairs_is_refused():
    with pytest.raises(ChurnError, match="tuned_for is 0"):
        e_value(sums_of(500, mean=0, sd=1), tuned_for=0)


@pytest.mark.parametrize("second", [np.ones(3), np.array([1.0, np.nan])], ids=["another length", "NaN"])
def test_losses_that_are_no_pairs_are_refused(second):
    with pytest.raises(ChurnError, match="give one loss of each model per account"):
        PairedSums.of(np.ones(2), second)
