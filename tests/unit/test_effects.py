"""At stake: a company spends money because a campaign is said to work. Chance, a season and looking often must not."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import polars as pl
import pytest

from churn.decisions.effects import (
    ALPHA,
    Sums,
    claimed,
    estimate,
    inverse_weights,
    measure,
    needed,
    shrunken,
    smallest,
    sum_up,
)
from churn.errors import ChurnError
from churn.evaluation.sequential import PairedSums, confidence_sequence

N_CAMPAIGNS, N_LOOKS, PER_LOOK = 200, 26, 40


def draw(n: int, *, offered: float = 0.8, change: float = 0.0, seed: int = 0, churn: float = 0.6) -> pl.DataFrame:
    """One cohort of one variant; contact changes churn by ``change``, and the score knows a part of it."""
    rng = np.random.default_rng(seed)
    is_offered = rng.random(n) < offered
    score = np.clip(rng.normal(churn, 0.15, n), 0.05, 0.95)
    churned = rng.random(n) < np.clip(score + change * is_offered, 0, 1)
    known = {"variant": "base", "cohort": 0, "is_offered": is_offered, "is_exposed": is_offered & (rng.random(n) < 0.7)}
    return pl.DataFrame(
        known | {"churned": churned, "net_revenue": np.where(churned, 0, rng.lognormal(3, 1, n)), "score": score}
    )


def sums_of(one: pl.DataFrame, covariates: tuple[str, ...] = ("score",)) -> Sums:
    strata, is_offered, churned = (one[name].to_numpy() for name in ("cohort", "is_offered", "churned"))
    return sum_up(strata, is_offered, churned * 1.0, one.select(covariates).to_numpy().reshape(len(one), -1))


def of_churn(effects: pl.DataFrame) -> list[dict[str, Any]]:
    return effects.filter(outcome="churn").to_dicts()


@pytest.fixture(scope="module")
def nothing() -> Sums:
    """Campaigns without any effect, as known at each look."""
    rng, n = np.random.default_rng(1), N_CAMPAIGNS * N_LOOKS * PER_LOOK
    is_offered, score = rng.random(n) < 0.8, rng.random((n, 1))
    strata = np.repeat(np.arange(N_CAMPAIGNS * N_LOOKS), PER_LOOK)
    churned = (rng.random(n) < score[:, 0]) * 1.0
    sums = vars(sum_up(strata, is_offered, churned, score)).values()
    return Sums(*(np.cumsum(one.reshape(N_CAMPAIGNS, N_LOOKS, *one.shape[1:]), axis=1) for one in sums))


def test_without_an_effect_half_a_year_of_weekly_looks_hardly_ever_claims_one_where_a_z_test_does(nothing):
    found = estimate(nothing, np.full((N_CAMPAIGNS, 1), N_LOOKS * PER_LOOK), is_share=True)

    assert np.mean(((found.low > 0) | (found.high < 0)).any(axis=1)) <= ALPHA
    assert np.mean((np.abs(found.difference / found.error) > 1.96).any(axis=1)) > 3 * ALPHA


def test_the_interval_holds_the_effects_whose_e_value_is_below_one_over_alpha(nothing):
    found = estimate(nothing, 1000, is_share=True)

    assert np.array_equal((found.low > 0) | (found.high < 0), found.e_value > 1 / ALPHA)


def test_one_cohort_is_adjusted_as_a_regression_adjusts_it():
    one = draw(400)
    columns = np.column_stack([np.ones(400), one["is_offered"], one["score"]])
    coefficients, *_ = np.linalg.lstsq(columns, one["churned"].to_numpy() * 1.0, rcond=None)

    found, unadjusted = (estimate(sums_of(one, names), 400, is_share=True) for names in (("score",), ()))
    assert found.difference[0] == pytest.approx(coefficients[1], abs=1e-12)
    assert found.error[0] < unadjusted.error[0]
    of_arms = [one.filter(is_offered=arm)["churned"].to_numpy() for arm in (True, False)]
    assert unadjusted.difference[0] == pytest.approx(of_arms[0].mean() - of_arms[1].mean())
    assert unadjusted.error[0] ** 2 == pytest.approx(sum(arm.var(ddof=1) / len(arm) for arm in of_arms))


def test_of_many_accounts_the_interval_is_the_confidence_sequence():
    n = 200_000
    found = estimate(sums_of(draw(n), ()), n, is_share=True)
    mean, variance = found.difference[0], found.error[0] ** 2 * n
    sequence = confidence_sequence(PairedSums(n, n * mean, (n - 1) * variance + n * mean**2), tuned_for=n)

    assert (found.low[0], found.high[0]) == pytest.approx((sequence.low, sequence.high), abs=1e-5)


def test_a_season_with_another_control_share_in_each_month_moves_no_estimate():
    second = draw(4_000, churn=0.8, offered=0.5, seed=1).with_columns(cohort=pl.lit(1, pl.Int32))
    (effect,) = of_churn(measure(pl.concat([draw(4_000, churn=0.3, offered=0.9), second]), {"base": 8_000}))

    assert effect["mean_offered"] - effect["mean_control"] < -0.1
    assert abs(effect["difference"]) < 0.03
    assert not effect["is_claimed"]


@pytest.mark.parametrize("change", [-0.08, 0.08], ids=["it helps", "sleeping dogs leave"])
def test_an_effect_is_found_in_either_direction_whoever_was_contacted(change):
    (effect,) = of_churn(measure(draw(10_000, change=change), {"base": 10_000}))

    assert effect["is_claimed"]
    assert effect["low"] <= change <= effect["high"]
    assert (effect["exposed_offered"], effect["exposed_control"]) == (pytest.approx(0.7, abs=0.02), 0)


@pytest.mark.parametrize(
    ("one", "status"),
    [
        (draw(100), "too few"),
        (draw(2_000).with_columns(churned=pl.int_range(2_000) < 20), "too few"),
        (draw(3_000, offered=1.0), "no control group"),
    ],
    ids=["a small arm", "a rare outcome", "nobody is control"],
)
def test_too_few_or_no_control_are_said_in_place_of_an_interval(one, status):
    (effect,) = of_churn(measure(one, {"base": 1_000}))

    assert (effect["status"], effect["e_value"], effect["is_claimed"]) == (status, 1, False)
    assert not math.isfinite(effect["high"])


def test_several_variants_are_measured_over_all_and_each():
    changes = {"a": -0.25, "b": 0, "c": 0, "d": 0}
    parts = [draw(4_000, change=by, seed=ord(name)).with_columns(variant=pl.lit(name)) for name, by in changes.items()]
    whole, first, *others = of_churn(measure(pl.concat(parts), dict.fromkeys(changes, 4_000)))

    assert [one["variant"] for one in (whole, first, *others)] == [None, *changes]
    assert [one["is_claimed"] for one in (whole, first, *others)] == [True, True, False, False, False]
    assert first["difference"] < first["shrunken"] < whole["difference"]
    assert math.isnan(whole["shrunken"])


def test_nothing_that_matured_has_no_effects():
    assert measure(draw(0), {"base": 1_000}).is_empty()


@pytest.mark.parametrize(
    ("of_all", "of_variants", "expected"),
    [
        ([39, 1], [], [False, False]),
        ([41, 1], [], [True, False]),
        ([21, 21], [], [True, True]),
        ([79, 1], [1, 1], [False, False, False, False]),
        ([81, 1], [1, 1], [True, False, False, False]),
        ([1, 1], [81, 1], [False, False, True, False]),
        ([1, 1], [81, 1, 1, 1], [False] * 6),
        ([1, 1], [161, 1, 1, 1], [False, False, True, False, False, False]),
    ],
)
def test_the_evidence_that_is_needed_grows_with_what_is_shown(of_all, of_variants, expected):
    assert claimed(np.array([*of_all, *of_variants]), 2) == expected


def test_variants_that_differ_by_chance_only_are_expected_to_be_alike():
    assert shrunken(np.array([0.1, 0.0, -0.1]), np.full(3, 0.1)) == pytest.approx([0, 0, 0])
    assert shrunken(np.array([1.0, 0.0, -1.0]), np.full(3, 0.1)) == pytest.approx([0.99, 0, -0.99])
    assert np.isnan(shrunken(np.array([1.0, 0.0]), np.full(2, 0.1))).all()


def test_a_plan_says_what_a_size_can_show():
    n_at_one_look, *n_at_any = (needed(0.60, -0.05, 0.2, n_claims) for n_claims in (0, 2, 4))

    assert 4_600 < n_at_one_look < 4_800 < n_at_any[0] < n_at_any[1]
    assert smallest(0.60, n_at_any[0], 0.2, 2) == pytest.approx(0.05, rel=1e-3)
    assert smallest(0.60, 20, 0.2, 2) is None


@pytest.mark.parametrize(("churn", "control_share"), [(0, 0.2), (1, 0.2), (0.6, 0), (0.6, 1)])
def test_a_plan_without_a_control_group_is_refused(churn, control_share):
    with pytest.raises(ChurnError, match="allow no plan"):
        needed(churn, -0.05, control_share)


HELD_OUT, CONTROL = 0.1, 0.2


def members(*rows: tuple[int, str, float, float]) -> pl.DataFrame:
    return pl.DataFrame(rows, ["account_id", "arm", "holdout_share", "control_share"], orient="row")


@pytest.mark.parametrize(
    ("of_account", "weight"),
    [
        ([], 1),
        ([("offered", HELD_OUT, CONTROL)], 0),
        ([("control", HELD_OUT, CONTROL)], 1 / 0.28),
        ([("held_out", HELD_OUT, CONTROL)], 1 / 0.28),
        ([("control", HELD_OUT, CONTROL), ("offered", HELD_OUT, CONTROL)], 0),
        ([("control", HELD_OUT, CONTROL), ("control", HELD_OUT, 0.5)], 1 / (0.1 + 0.9 * 0.2 * 0.5)),
        ([("held_out", HELD_OUT, CONTROL), ("control", 0.0, 0.5)], 1 / (0.1 * 0.5 + 0.9 * 0.2 * 0.5)),
        ([("held_out", HELD_OUT, 0.0)], 1 / 0.1),
        ([("control", 0.0, 0.0)], 0),
    ],
)
def test_an_account_stands_for_those_that_were_as_likely_to_be_contacted(of_account, weight):
    others = members((1, "control", HELD_OUT, CONTROL), *((5, *one) for one in of_account))

    weights = inverse_weights(np.array([3, 5, 9]), others)
    assert (np.ones(3) if weights is None else weights).tolist() == pytest.approx([1, weight, 1])


def test_where_nobody_was_above_a_cut_all_weigh_alike():
    assert inverse_weights(np.array([3, 5]), members((4, "offered", HELD_OUT, CONTROL))) is None
    assert inverse_weights(np.array([3, 5]), members((4, "offered", HELD_OUT, CONTROL)).clear()) is None


@pytest.mark.slow
def test_the_recipe_meets_its_targets_with_a_twentieth_of_its_runs():
    command = [sys.executable, "-m", "benchmarks.quality.campaigns", "--share", "0.05"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("| yes |") >= 15
