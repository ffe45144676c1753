"""At stake: what many variants know together may serve each of them, and must not become what only one of them is. So a
pool holds each variant's rows once and apart, sees no label of the days that judge its variants, and a variant without
evidence gets the pool as it is.
"""

import pickle
from dataclasses import replace
from datetime import date
from functools import partial

import numpy as np
import polars as pl
import pytest
from scipy.special import expit, logit

from churn.data.snapshots import Snapshot, snapshots
from churn.evaluation.metrics import log_losses
from churn.training.calibration import fit_shrunken
from churn.training.default_features import default_feature_names
from churn.training.gate import GateLimits
from churn.training.pool import Pool, Sample, adapt, build_pools, draw_sample, kind_of, shift, shortage_in_pool
from churn.training.train import TrainingPlan, Trial, learn_alone
from churn.variants import Variant
from churn.weeks import training_days
from tests.support.simulated import simulate_activity

FIRST, TODAY = date(2025, 2, 1), date(2026, 11, 23)
PLAN = TrainingPlan(n_trials=1)
KEYS = ("company-a", "company-b", "company-c")
SIZES = (500, 700, 900)
ACTIVITY = ("total_deposit", "total_handle", "total_ngr")
TRIAL = Trial({"max_depth": 3, "learning_rate": 0.2, "min_child_weight": 10.0}, 30, 0.5)
LEARN = partial(learn_alone, remember=lambda *_: (TRIAL,))


def simulate(key: str, n_accounts: int) -> tuple[list[str], list[Snapshot]]:
    """A variant's default features, and its snapshots, one a month."""
    activity = simulate_activity(
        n_accounts=n_accounts, first_month=FIRST, n_months=21, seed=3, variant=Variant.from_key(key)
    )
    ends = pl.col("activity_month").dt.offset_by("1mo").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    facts = activity.with_columns(known_at=ends - pl.duration(microseconds=1))
    names = default_feature_names(facts)
    days = training_days(FIRST, PLAN.horizon.newest_mature(TODAY))
    return names, snapshots(facts, days, today=TODAY, horizon=PLAN.horizon, names=names)


def sample(key: str, names: list[str], shots: list[Snapshot], most: int = 100_000) -> Sample:
    labelled = [shot for shot in shots if len(shot.churned)]
    kind = kind_of(names, labelled[0].rows.columns, ACTIVITY, is_default=True)
    return draw_sample(kind, names, labelled, key, most)


@pytest.fixture(scope="module")
def fleet() -> dict[str, tuple[list[str], list[Snapshot]]]:
    return {key: simulate(key, n) for key, n in zip(KEYS, SIZES, strict=True)}


@pytest.fixture(scope="module")
def pool(fleet: dict[str, tuple[list[str], list[Snapshot]]]) -> Pool:
    samples = [sample(key, *of) for key, of in fleet.items()]
    (found,) = build_pools(samples, PLAN, GateLimits(), LEARN)
    return found


def test_a_pool_has_all_levels_of_its_variants_and_its_rows_apart(
    fleet: dict[str, tuple[list[str], list[Snapshot]]], pool: Pool
):
    samples = [sample(key, *of) for key, of in fleet.items()]
    (again,) = build_pools(reversed(samples), PLAN, GateLimits(), LEARN)

    assert set(pool.names) == {name for names, _ in fleet.values() for name in names}
    assert again.trained.bundle.sha256 == pool.trained.bundle.sha256, "the order of the variants matters"
    assert again.trained.data_sha256 == pool.trained.data_sha256
    sent = pickle.loads(pickle.dumps(pool))  # noqa: S301 as between processes
    np.testing.assert_array_equal(*(one.margins(pool.trained.validation.matrix) for one in (sent, pool)))
    assert sent.trained.bundle.sha256 == pool.trained.bundle.sha256
    n_rows = sum(len(shot.churned) for _, shots in fleet.values() for shot in shots)
    assert sum(one.rows.height for one in samples) == n_rows
    ids = [set(one.rows["account_id"]) for one in samples]
    assert len(set.union(*ids)) == sum(map(len, ids)), "two variants' accounts have the same id"
    assert {check.name: check.outcome for check in pool.gate.checks}["scores_are_calibrated"] == "holds"
    assert build_pools(samples[:1], PLAN, GateLimits(), LEARN) == [], "one variant is no pool"


def test_a_sample_is_bounded_and_of_whole_accounts(fleet: dict[str, tuple[list[str], list[Snapshot]]]):
    names, shots = fleet[KEYS[2]]
    whole, part = sample(KEYS[2], names, shots), sample(KEYS[2], names, shots, most=400)

    assert 300 < part.rows.height < 500
    drawn = whole.rows.filter(pl.col("account_id").is_in(part.rows["account_id"].unique().implode()))
    assert drawn.equals(part.rows)


def test_features_that_somebody_named_are_pooled_with_the_same_names_only():
    names, columns = ["total_deposit", "brand_id_OH"], ["account_id", "total_deposit", "brand_id"]
    kinds = {
        is_default: [
            kind_of([*names, *more], columns, ACTIVITY, is_default=is_default) for more in ([], ["brand_id_NJ"])
        ]
        for is_default in (True, False)
    }

    assert kinds[True][0] == kinds[True][1] != kinds[False][0] != kinds[False][1]
    assert kind_of(names, columns, ("bets",), is_default=True) != kinds[True][0]


def test_a_variant_makes_one_native_booster_of_the_pool_that_suits_it_better(
    fleet: dict[str, tuple[list[str], list[Snapshot]]], pool: Pool
):
    shots = fleet[KEYS[1]][1]
    adapted = adapt(pool, shots, PLAN)

    assert shortage_in_pool(pool, shots, PLAN) is None
    assert adapted.bundle.sha256 == adapt(pool, shots, PLAN).bundle.sha256
    assert adapted.bundle.parameters["objective"] == "binary:logistic"
    n_pooled = pool.trained.bundle.parameters["n_trees"]
    assert adapted.bundle.parameters["n_trees"] == n_pooled + adapted.chosen.n_rounds
    accounts = adapted.held_out
    own, pooled = (log_losses(accounts.churned, of.bundle.predict(accounts.matrix)) for of in (adapted, pool.trained))
    assert own.mean() < pooled.mean() + 0.01
    if not adapted.chosen.n_rounds:
        margins = logit(pool.trained.bundle.predict(accounts.matrix).astype(np.float64))
        expected = expit(adapted.calibration.slope * margins + adapted.calibration.intercept)
        np.testing.assert_allclose(adapted.bundle.predict(accounts.matrix), expected, atol=1e-5)


def test_trees_of_its_own_continue_the_pool(fleet: dict[str, tuple[list[str], list[Snapshot]]], pool: Pool):
    # What no pool can know:
    turned = [replace(shot, churned=shot.rows["total_deposit"].to_numpy() > 0) for shot in fleet[KEYS[2]][1]]

    adapted = adapt(pool, turned, PLAN)

    assert adapted.chosen.n_rounds > 10
    first, second = adapted.trials
    assert second.log_loss < first.log_loss
    loss = log_losses(adapted.held_out.churned, adapted.bundle.predict(adapted.held_out.matrix)).mean()
    assert loss < second.log_loss + 0.05


def test_few_labels_move_the_base_rate_a_little_and_none_leave_the_pool_as_it_is(
    fleet: dict[str, tuple[list[str], list[Snapshot]]], pool: Pool
):
    matrix = pool.trained.held_out.matrix
    few = [
        replace(shot, rows=shot.rows.head(5), churned=np.ones(5, dtype=np.bool_), weights=np.ones(5))
        for shot in fleet[KEYS[1]][1][9:12]
    ]

    assert shift(pool, []) is pool.trained
    one, two = (shift(pool, few[:n]).bundle.predict(matrix).mean() for n in (1, 3))
    assert pool.trained.bundle.predict(matrix).mean() < one < two < 1


def test_a_variant_whose_newest_labels_are_older_than_the_pools_is_not_served(
    fleet: dict[str, tuple[list[str], list[Snapshot]]], pool: Pool
):
    shots = fleet[KEYS[1]][1]

    reason = shortage_in_pool(pool, [shot for shot in shots if shot.as_of < date(2026, 6, 1)], PLAN)
    assert reason == "no labels since 2026-05-04, from which the pool is evaluated"


@pytest.mark.parametrize(
    ("n", "shift_by", "low", "high"), [(0, 0.0, 0.0, 0.0), (20, 1.0, 0.05, 0.6), (20_000, 1.0, 0.9, 1.1)]
)
def test_a_base_rate_is_shrunken_by_its_labels(n: int, shift_by: float, low: float, high: float):
    rng = np.random.Generator(np.random.PCG64(1))
    margins = rng.normal(0, 1.5, n)

    fitted = fit_shrunken(margins, rng.random(n) < expit(margins + shift_by))

    assert low <= fitted.intercept <= high
    assert 0.8 < fitted.slope < 1.2
