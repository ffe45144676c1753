"""At stake: of 2,000 variants nobody looks at each, so what is named must have drifted, and what drifted must be named.

Planted drifts move ten percentage points of the 3,000 rows: of a number from the top fifth of its values to the bottom
fifth, of a category from its most frequent level to the third. They last from the week in which they begin.
"""

import math
from dataclasses import replace
from datetime import date, timedelta
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import roc_auc_score

from churn.errors import InputError
from churn.monitoring.drift import (
    LEAST_FLEET,
    FeatureDrift,
    Flag,
    common_moves,
    compare,
    compare_fleet,
    estimated_auc,
    flag_fleet,
    freshness,
    volume,
)
from churn.monitoring.profiles import Bins, Profile
from tests.support.drifting import CATEGORY, FLEET_BINS, MIXES, NUMBER, make_fleet, move_values, plant


def profile(bins: Bins, counts: object) -> Profile:
    return Profile((bins,), np.array(counts, dtype=np.int64))


def largest_move(drift: FeatureDrift) -> float:
    return max(abs(now - before) for before, now in drift.moves.values())


def compare_counts(reference: object, batch: object, bins: Bins | None = None) -> FeatureDrift:
    bins = bins or Bins("x", edges=tuple(map(float, range(len(batch) - 2))))
    [drift] = compare(profile(bins, reference), profile(bins, batch))
    return drift


def merged(now: list[int], before: list[int]) -> tuple[list[int], list[int]]:
    """The counts with sparse bins merged with the next ones, as the documentation says it, bin by bin."""
    n, m = sum(now), sum(before)
    groups: list[list[int]] = [[]]
    for i in range(len(now)):
        groups[-1].append(i)
        if sum(min(n, m) * (now[j] + before[j]) / (n + m) for j in groups[-1]) >= 5:
            groups.append([])
    rest = groups.pop()
    groups = groups or [[]]
    groups[-1].extend(rest)
    both = [(sum(now[i] for i in group), sum(before[i] for i in group)) for group in groups]
    return tuple(map(list, zip(*((x, y) for x, y in both if x + y), strict=True)))


counts_of_12_bins = st.lists(st.one_of(st.integers(0, 9), st.integers(0, 400)), min_size=12, max_size=12).filter(any)


@given(now=counts_of_12_bins, before=counts_of_12_bins)
@settings(deadline=None, max_examples=100)
def test_psi_and_jensen_shannon_are_the_textbooks(now, before):
    drift = compare_counts(before, now)

    x, y = merged(now, before)
    p, q = [max(c, 0.5) / sum(x) for c in x], [max(c, 0.5) / sum(y) for c in y]
    psi = sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True)) if len(x) > 1 else 0
    assert drift.psi == pytest.approx(psi, abs=1e-6)
    assert drift.jensen_shannon == pytest.approx(jensenshannon(x, y, base=2) if len(x) > 1 else 0, abs=1e-6)
    assert drift.excess_psi == pytest.approx(psi - (len(x) - 1) * (1 / sum(x) + 1 / sum(y)), abs=1e-6)
    assert 0 <= drift.p_value <= 1


def test_for_small_differences_the_p_value_is_psis_own():
    before, now = [10_000] * 10, [1_000 + 12 * (-1) ** i for i in range(10)]

    drift = compare_counts(before, now)

    from_psi = drift.psi / (1 / sum(before) + 1 / sum(now))
    assert drift.p_value == pytest.approx(_chi2_tail(from_psi, 9), rel=1e-3)


def _chi2_tail(x: float, freedom: int) -> float:
    """By integrating the density, for odd freedom."""
    grid = np.linspace(x, x + 200, 400_001)
    density = grid ** (freedom / 2 - 1) * np.exp(-grid / 2) / (2 ** (freedom / 2) * math.gamma(freedom / 2))
    return float(np.trapezoid(density, grid))


def drifts_without_cause(mix: object, bins: Bins, n: int, m: int, *, n_times: int, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    batches, references = (rng.multinomial(size, np.array(mix) / sum(mix), n_times) for size in (n, m))
    return compare_fleet(
        {
            str(i): (profile(bins, reference), profile(bins, batch), profile(bins, reference))
            for i, (reference, batch) in enumerate(zip(references, batches, strict=True))
        }
    )


@pytest.mark.parametrize("n", [50, 200, 1_000])
@pytest.mark.parametrize("m", [500, 50_000])
@pytest.mark.parametrize("bins", [NUMBER, CATEGORY], ids=["number", "category"])
def test_without_drift_p_values_are_as_rare_as_they_say_at_any_size(n, m, bins):
    found = drifts_without_cause(MIXES[bins.feature], bins, n, m, n_times=3_000, seed=n + m)

    p_values = np.array([drift.p_value for [drift] in found.values()])
    assert 0.5 * 0.05 < (p_values <= 0.05).mean() < 1.5 * 0.05
    assert (p_values <= 0.001).mean() < 0.005
    excess = np.array([drift.excess_psi for [drift] in found.values()])
    assert abs(excess.mean()) < 0.25 * excess.std()


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 100, 200, 500, 1_000])
@pytest.mark.parametrize("m", [500, 5_000, 50_000])
@pytest.mark.parametrize("bins", FLEET_BINS, ids=[bins.feature for bins in FLEET_BINS])
def test_without_drift_p_values_keep_far_into_the_tail(n, m, bins):
    found = drifts_without_cause(MIXES[bins.feature], bins, n, m, n_times=50_000, seed=n + m)

    p_values = np.array([drift.p_value for [drift] in found.values()])
    for level in (0.01, 0.001, 0.0001):
        noise = 3 * math.sqrt(level / len(p_values))
        assert (p_values <= level).mean() < 2.5 * level + noise


def test_a_limit_on_psi_alone_would_cry_wolf_in_small_batches():
    found = drifts_without_cause(MIXES["brand_id"], CATEGORY, 100, 5_000, n_times=2_000, seed=5)

    assert sum(drift.psi >= 0.1 for [drift] in found.values()) > 100
    assert flag_fleet(found) == frozenset()


def test_a_certain_but_tiny_change_is_no_drift():
    drift = compare_counts([5_000_000] * 10, [505_000] * 5 + [495_000] * 5)

    assert drift.p_value < 1e-50
    assert not flag_fleet({"us": [drift]}, least_moved=0.0)


def test_any_move_of_a_tenth_of_the_rows_is_larger_than_the_least_that_counts():
    for n_bins in (2, 4, 10):
        half = n_bins // 2
        now = [60_000 // half] * half + [40_000 // half] * half

        drift = compare_counts([*[100_000 // n_bins] * n_bins, 0], [*now, 0])

        assert drift.excess_psi > 0.04
        assert largest_move(drift) == pytest.approx(0.1)
        assert flag_fleet({"us": [drift]})


def test_an_excess_psi_of_0_02_is_no_measure_of_the_rows_moved():
    drift = compare_counts([99_000, 900, 100, 0], [98_100, 900, 1_000, 0], Bins("x", levels=("a", "b", "c")))

    assert drift.excess_psi > 0.02
    assert largest_move(drift) == pytest.approx(0.009)
    assert not flag_fleet({"us": [drift]})


def test_a_level_the_model_does_not_know_is_a_drift_though_its_psi_is_small():
    before = [5_000] * 10 + [0] * 20
    now = [98] * 10 + [0] * 19 + [20]

    drift = compare_counts(before, now, CATEGORY)

    assert (drift.unknown_share, drift.unknown_rise) == (0.02, 0.02)
    assert drift.unknown_p_value < 1e-20
    assert flag_fleet({"us": [drift]}, least_moved=1.0) == {Flag("us", "brand_id")}
    assert not flag_fleet({"us": [drift]}, least_moved=1.0, least_unknown_rise=0.03)


def test_more_missing_values_are_a_drift_and_fewer_are_none():
    often, seldom = [97] * 10 + [30], [4_985] * 10 + [150]

    rising = compare_counts(seldom, often, NUMBER)
    falling = compare_counts([9_700] * 10 + [3_000], [99] * 10 + [3], NUMBER)

    assert rising.unknown_rise == pytest.approx(0.03 - 0.003, abs=1e-4)
    assert rising.unknown_p_value < 1e-10
    assert falling.unknown_rise < 0
    assert falling.unknown_p_value > 0.99


def test_without_drift_unknown_values_are_as_rare_as_they_say():
    mix = [0.098] * 10 + [0.02]

    found = drifts_without_cause(mix, NUMBER, 500, 5_000, n_times=4_000, seed=3)

    assert 0.005 < np.mean([drift.unknown_p_value <= 0.05 for [drift] in found.values()]) < 0.06


@pytest.mark.parametrize("batch", [[0] * 11, [1] + [0] * 10, [0] * 10 + [3]])
def test_next_to_no_rows_are_no_drift(batch):
    drift = compare_counts([500] * 10 + [0], batch, NUMBER)

    assert (drift.n_rows, drift.psi, drift.jensen_shannon, drift.p_value) == (sum(batch), 0, 0, 1)
    assert not any(math.isnan(value) for value in vars(drift).values() if isinstance(value, float))


def test_a_batch_in_other_bins_than_its_reference_is_refused():
    other = Bins("total_deposit", edges=(*NUMBER.edges[:-1], 99.0))

    with pytest.raises(InputError, match="total_deposit"):
        compare(profile(NUMBER, [1] * 11), profile(other, [1] * 11))


def test_a_fleet_of_none_and_a_variant_alone_are_compared_too():
    assert compare_fleet({}) == {}
    assert flag_fleet({}) == frozenset()
    one = {"us": (profile(NUMBER, [9] * 11), profile(NUMBER, range(11)), profile(NUMBER, [9] * 11))}
    assert compare_fleet(one) == {"us": compare(*one["us"])}


@pytest.mark.slow
@pytest.mark.parametrize("weeks_of_an_extract", [2, 4], ids=["two weeks an extract", "four weeks an extract"])
def test_in_a_quarter_without_drift_at_most_one_feature_of_2000_variants_is_ever_confirmed(weeks_of_an_extract):
    fleet = make_fleet(seed=11)
    flagged: list[frozenset[Flag]] = []

    for week in range(13):
        is_new = week % weeks_of_an_extract == 0
        flagged.append(flag_fleet(fleet.compare(fleet.batches())) if is_new else flagged[-1])

    ever = {flag for last, this in pairwise(flagged) for flag in this & last}
    assert len(ever) <= 1


def test_a_tenth_of_the_rows_moved_in_twenty_variants_is_confirmed_within_two_weeks_and_little_else():
    fleet = make_fleet(seed=12)
    plant(fleet)

    weeks = [flag_fleet(fleet.compare(fleet.batches())) for _ in range(2)]

    named = {flag.variant for flag in weeks[1] & weeks[0]}
    planted = {f"company-c{i:04}" for i in range(20)}
    assert planted <= named
    assert len(named - planted) <= 2


def test_what_moves_in_most_variants_is_no_drift_of_any_and_is_reported_once():
    fleet = make_fleet(seed=15, n_variants=100)
    plant(fleet, n_variants=3)
    for variant in range(100):
        fleet.mixes["total_ngr"][variant] = move_values(fleet.mixes["total_ngr"][variant], share=0.15)

    drifts = fleet.compare(fleet.batches())

    assert {flag.variant for flag in flag_fleet(drifts)} == {f"company-c{i:04}" for i in range(3)}
    (moved,) = common_moves(drifts, least=0.1).items()
    assert moved[0] == "total_ngr"
    assert moved[1][1] == pytest.approx(0.15, abs=0.01)
    few = dict(list(drifts.items())[50 : 50 + LEAST_FLEET - 1])
    assert not common_moves(few, least=1e-9)


def test_what_broke_in_most_variants_at_once_is_found_in_each():
    fleet = make_fleet(seed=15, n_variants=40)
    for variant in range(30):
        fleet.mixes["total_ngr"][variant] = [*[0.0] * 10, 1.0]

    drifts = fleet.compare(fleet.batches())

    assert flag_fleet(drifts) == {Flag(f"company-c{i:04}", "total_ngr") for i in range(30)}


def test_tenure_is_not_compared_but_its_missing_values_are():
    before = [0] + [500] * 10
    drifts = {
        name: compare(profile(Bins(name, NUMBER.edges), before[::-1]), profile(Bins(name, NUMBER.edges), now))[0]
        for name, now in (
            ("months_active", [1_400, *[400] * 9, 0]),
            ("months_since_reg_date", [*[410] * 10, 900]),
            ("months_since_active", [1_400, *[400] * 9, 0]),
        )
    }

    flags = flag_fleet({"us": list(drifts.values())})

    assert {flag.feature for flag in flags} == {"months_since_reg_date", "months_since_active"}


def test_a_share_moves_only_beyond_its_season_and_its_year():
    season, year, levels = [500, 500, 0], [7_000, 3_000, 0], Bins("x", levels=("a", "b"))

    for now, is_drift in (([600, 400, 0], False), ([400, 600, 0], True), ([800, 200, 0], True)):
        drifts = compare(*(profile(levels, np.array(counts) * 10) for counts in (season, now, year)))
        assert bool(flag_fleet({"us": drifts})) == is_drift, now


def test_the_effect_is_the_shift_of_the_mean_contribution():
    reference = replace(profile(Bins("x", levels=("a", "b")), [600, 400, 0]), contributions=np.array([0.5, -1.0, 0.0]))

    (drift,) = compare(reference, profile(Bins("x", levels=("a", "b")), [30, 70, 0]))

    assert drift.effect == pytest.approx((0.3 * 0.5 + 0.7 * -1.0) - (0.6 * 0.5 + 0.4 * -1.0))


def test_what_was_there_for_one_week_only_is_not_confirmed():
    fleet = make_fleet(seed=13, n_variants=40)
    quiet = flag_fleet(fleet.compare(fleet.batches()))
    usual = {feature: mix.copy() for feature, mix in fleet.mixes.items()}
    plant(fleet, n_variants=5)
    faulty = flag_fleet(fleet.compare(fleet.batches()))
    fleet.mixes = usual
    again = flag_fleet(fleet.compare(fleet.batches()))

    assert len(faulty) >= 5
    assert faulty & quiet == again & faulty == set()


def test_false_flags_stay_a_small_share_when_many_variants_drift():
    fleet = make_fleet(seed=14)
    for variant in range(500):
        fleet.sizes[variant] = 5_000
    plant(fleet, n_variants=500)

    flags = flag_fleet(fleet.compare(fleet.batches()), fdr=0.05)

    false = [flag for flag in flags if int(flag.variant.removeprefix("company-c")) >= 500]
    assert len(flags) >= 470  # a reference of 500 rows tells less
    assert len(false) <= 0.06 * len(flags)


@pytest.mark.parametrize(
    ("n_rows", "previous", "status"),
    [
        (1_000, [990, 1_010, 1_000], "ok"),
        (400, [990, 1_010, 1_000], "low"),
        (2_000, [990, 1_010, 1_000], "high"),
        (0, [990, 1_010, 1_000], "low"),
        (5, [10, 12, 9, 11], "ok"),
        (1_000, [500, 2_000, 700, 1_500, 900], "ok"),
        (0, [0, 0, 0], "ok"),
        (1_000, [9, 9, 9, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000], "ok"),
        (1_000, [1_000, 1_000], "insufficient"),
    ],
)
def test_the_volume_is_told_by_what_batches_had_before(n_rows, previous, status):
    assert volume(n_rows, previous).status == status


def test_steady_volumes_are_seldom_called_unusual_at_any_size():
    rng = np.random.default_rng(4)

    verdicts = [
        volume(batches[-1], batches[:-1]).status for batches in rng.poisson([[5], [50], [5_000]] * 300, (900, 9))
    ]

    assert verdicts.count("ok") >= 895


def test_data_is_stale_a_week_after_it_usually_comes_and_at_once_if_that_is_weekly():
    monthly = [date(2026, month, 3) for month in range(1, 7)]
    weekly = [date(2026, 6, 1) + timedelta(weeks=week) for week in range(6)]

    assert freshness(monthly, date(2026, 7, 9)) == (36, 38)
    assert freshness(monthly, date(2026, 7, 12)) == (39, 38)
    assert freshness(weekly, date(2026, 7, 13)) == (7, 7)
    assert freshness(weekly, date(2026, 7, 14)) == (8, 7)
    assert freshness(weekly[:1], date(2026, 7, 9))[1] == 38


def test_data_that_came_later_is_not_known_yet():
    arrived_on = [date(2026, 6, 1), date(2026, 7, 1)]

    assert freshness(arrived_on, date(2026, 6, 30))[0] == 29
    assert freshness(arrived_on, date(2026, 5, 31))[0] == 0


@pytest.mark.parametrize("shape", [(2, 5), (0.5, 0.5), (20, 30)])
def test_the_estimated_auc_is_the_auc_when_scores_are_the_probabilities_they_claim(shape):
    rng = np.random.default_rng(6)
    scores = rng.beta(*shape, 200_000).astype(np.float32)
    churned = rng.random(len(scores)) < scores

    assert estimated_auc(scores) == pytest.approx(roc_auc_score(churned, scores), abs=0.004)


def test_the_estimated_auc_of_a_histogram_is_that_of_its_rows():
    rng = np.random.default_rng(7)
    scores = np.round(rng.beta(2, 5, 5_000), 2).clip(0.01, 0.99)
    distinct, counts = np.unique(scores, return_counts=True)
    churned = rng.random(len(scores)) < scores

    assert estimated_auc(distinct, counts) == pytest.approx(estimated_auc(scores), abs=1e-9)
    assert estimated_auc(scores) == pytest.approx(roc_auc_score(churned, scores), abs=0.03)
    assert estimated_auc(np.array([0.3, 0.3, 0.3])) == pytest.approx(0.5)


def test_the_estimated_auc_does_not_see_that_the_same_inputs_came_to_mean_something_else():
    rng = np.random.default_rng(8)
    scores = rng.beta(0.5, 0.5, 20_000)
    churned = rng.random(len(scores)) < np.where(rng.random(len(scores)) < 0.7, 1 - scores, scores)

    assert roc_auc_score(churned, scores) < 0.5
    assert estimated_auc(scores) > 0.85


@pytest.mark.parametrize("scores", [[], [0.0, 0.0], [1.0]])
def test_there_is_no_estimate_where_nobody_is_in_doubt(scores):
    with pytest.raises(InputError, match=f"{len(scores)} scores"):
        estimated_auc(np.array(scores))
