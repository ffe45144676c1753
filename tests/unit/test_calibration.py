"""Calibrated scores: an analyst reads 0.3 as three in ten, and the reasons must add up to what the score says. Folding
the calibration into the booster's file must change nothing else: not the order of accounts, not what compiles.
"""

import json

import numpy as np
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from churn.data.features import pack_matrix, plan_encoded
from churn.evaluation.metrics import roc_auc_interval
from churn.inference.bundle import load_bundle, read_bundle
from churn.inference.engine import build_engine
from churn.inference.forest import NotCompilableError
from churn.training.calibration import MIN_SLOPE, Calibration, apply_to_booster, fit_platt

NAMES = ["a", "b", "c_x", "c_y"]
pytestmark = pytest.mark.filterwarnings("ignore:.*learner.cc")


def make_rows(seed: int = 0, n: int = 600) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(n, 2)).astype(np.float32)
    numbers[rng.random(numbers.shape) < 0.1] = np.nan
    levels = rng.integers(0, 3, n)
    matrix = np.column_stack([numbers, levels == 0, levels == 1]).astype(np.float32)
    log_odds = 1.2 * np.nan_to_num(numbers[:, 0]) - 0.5 * (levels == 0) + 0.3
    return matrix, rng.random(n) < expit(log_odds)


def make_booster(seed: int = 0, n_trees: int = 12, **parameters: object) -> tuple[xgb.Booster, xgb.DMatrix]:
    matrix, churned = make_rows(seed)
    data = xgb.DMatrix(matrix, churned, feature_names=NAMES)
    fixed = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1, "seed": seed}
    return xgb.train({**fixed, **parameters}, data, n_trees), data


def margins(booster: xgb.Booster, data: xgb.DMatrix) -> np.ndarray:
    return booster.predict(data, output_margin=True)


calibrations = st.builds(Calibration, slope=st.floats(0.1, 3), intercept=st.floats(-2, 2))


@given(
    calibrations,
    st.integers(0, 1000),
    st.sampled_from([1, 3]),
    st.sampled_from([{}, {"base_score": 0.3}, {"scale_pos_weight": 3}, {"subsample": 0.6, "grow_policy": "lossguide"}]),
)
@settings(max_examples=20, deadline=None)
def test_a_folded_boosters_scores_are_the_calibrated_ones(
    calibration: Calibration, seed: int, parallel: int, parameters: dict[str, object]
):
    booster, data = make_booster(seed, num_parallel_tree=parallel, **parameters)

    folded = apply_to_booster(booster, calibration)

    expected = expit(calibration.slope * margins(booster, data) + calibration.intercept)
    np.testing.assert_allclose(folded.predict(data), expected, atol=5e-6)  # float32 margins, times the slope


def test_folding_keeps_the_order_of_accounts_and_so_the_auc():
    booster, data = make_booster()
    churned = data.get_label().astype(bool)

    folded = apply_to_booster(booster, Calibration(0.37, 1.1))

    before, after = margins(booster, data), margins(folded, data)
    assert roc_auc_interval(churned, after).value == pytest.approx(roc_auc_interval(churned, before).value, abs=1e-7)
    order = np.argsort(before, kind="stable")
    assert (np.diff(after[order]) >= -1e-6).all()


def test_a_folded_boosters_shap_values_are_scaled_and_add_up_to_the_calibrated_log_odds():
    booster, data = make_booster(n_trees=20)
    calibration = Calibration(1.7, -0.4)

    folded = apply_to_booster(booster, calibration)

    before, after = (one.predict(data, pred_contribs=True) for one in (booster, folded))
    np.testing.assert_allclose(after[:, :-1], calibration.slope * before[:, :-1], atol=1e-5)
    np.testing.assert_allclose(after[:, -1], calibration.slope * before[:, -1] + calibration.intercept, atol=1e-5)
    np.testing.assert_allclose(after.sum(axis=1), margins(folded, data), atol=1e-5)


def test_a_folded_booster_is_a_native_one_that_compiles_and_whose_golden_rows_hold():
    booster, data = make_booster()
    matrix, _ = make_rows()
    folded = apply_to_booster(booster, Calibration(0.8, 0.2))

    bundle = read_bundle(bytes(folded.save_raw("ubj")), NAMES, "a folded booster")
    golden = bundle.make_golden(matrix)
    load_bundle(bundle.data, None, "the same, loaded again").require_golden(golden)
    encoding = plan_encoded(NAMES, ["c"])
    packed = pack_matrix(matrix, encoding)
    engine = build_engine(bundle, encoding, packed, n_rows=len(matrix), with_reasons=True)

    assert engine.fallback_reason is None
    np.testing.assert_allclose(engine.score(packed)[0], folded.predict(data), atol=1e-6)
    assert bundle.parameters["n_trees"] == 12


def test_folding_leaves_the_booster_and_its_splits_as_they_were():
    booster, _ = make_booster()
    before = bytes(booster.save_raw("json"))

    folded = apply_to_booster(booster, Calibration(2.0, 0.5))

    assert bytes(booster.save_raw("json")) == before
    for old, new in zip(trees_of(booster), trees_of(folded), strict=True):
        is_split = np.array(old["left_children"]) != -1
        np.testing.assert_array_equal(
            np.array(new["split_conditions"])[is_split], np.array(old["split_conditions"])[is_split]
        )
        assert {key for key in old if old[key] != new[key]} <= {"split_conditions", "base_weights"}


def test_folding_with_nothing_to_change_changes_no_byte_of_the_trees():
    booster, _ = make_booster()

    folded = apply_to_booster(booster, Calibration(1.0, 0.0))

    assert trees_of(folded) == trees_of(booster)


def test_folding_twice_gives_the_same_bytes():
    booster, _ = make_booster()
    first, second = (bytes(apply_to_booster(booster, Calibration(1.3, 0.1)).save_raw("ubj")) for _ in range(2))

    assert first == second


def test_what_is_no_booster_of_plain_trees_is_not_folded():
    booster, _ = make_booster(booster="gblinear")

    with pytest.raises(NotCompilableError, match="gblinear"):
        apply_to_booster(booster, Calibration(1.0, 0.0))


@given(slope=st.floats(0.3, 3), intercept=st.floats(-1, 1), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_the_slope_and_intercept_that_made_the_outcomes_are_found(slope: float, intercept: float, seed: int):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=20_000)
    churned = rng.random(x.size) < expit(slope * x + intercept)

    found = fit_platt(x, churned)

    assert found.slope == pytest.approx(slope, abs=0.25)
    assert found.intercept == pytest.approx(intercept, abs=0.15)


@pytest.mark.parametrize("most", [1, 10])
def test_the_fit_is_scikit_learns_without_a_penalty(most: int):
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(1)
    x = rng.normal(size=5_000)
    churned = rng.random(x.size) < expit(0.7 * x - 0.2)
    weights = rng.integers(1, most, x.size, endpoint=True) * 1.0

    found = fit_platt(x, churned, weights)

    theirs = LogisticRegression(C=1e9, tol=1e-10).fit(x[:, None], churned, weights)
    assert found.slope == pytest.approx(float(theirs.coef_[0, 0]), abs=2e-3)
    assert found.intercept == pytest.approx(float(theirs.intercept_[0]), abs=2e-3)


def test_the_mean_of_the_calibrated_scores_is_the_share_that_churned():
    booster, _ = make_booster()
    matrix, _ = make_rows(seed=1)
    judge = xgb.DMatrix(matrix, feature_names=NAMES)
    churned = np.random.default_rng(2).random(len(matrix)) < 0.2

    calibration = fit_platt(margins(booster, judge), churned)

    assert apply_to_booster(booster, calibration).predict(judge).mean() == pytest.approx(churned.mean(), abs=2e-3)


@pytest.mark.parametrize("slope", [-1.0, 0.0])
def test_scores_that_would_have_to_be_turned_round_are_only_shifted(slope: float):
    rng = np.random.default_rng(0)
    x = rng.normal(size=4_000)
    churned = rng.random(x.size) < expit(slope * x + 0.5)

    found = fit_platt(x, churned)

    assert (found.slope, found.is_shift) == (1.0, True)
    assert expit(x + found.intercept).mean() == pytest.approx(churned.mean(), abs=1e-3)


def test_scores_that_part_the_outcomes_perfectly_are_not_sent_to_infinity():
    x = np.concatenate([np.full(100, -3.0), np.full(100, 3.0)])

    found = fit_platt(x, x > 0)

    assert MIN_SLOPE < found.slope < 10
    assert 0.5 < expit(found.slope * x + found.intercept).max() < 1


def test_scores_that_are_all_equal_are_only_shifted():
    churned = np.arange(500) < 100

    found = fit_platt(np.full(500, 0.7), churned)

    assert found.is_shift
    assert expit(0.7 + found.intercept) == pytest.approx(0.2, abs=1e-2)


@pytest.mark.parametrize("outcome", [True, False])
def test_one_outcome_alone_cannot_be_calibrated_on(outcome: bool):
    with pytest.raises(ValueError, match="needs both outcomes"):
        fit_platt(np.zeros(5), np.full(5, outcome))


def trees_of(booster: xgb.Booster) -> list[dict[str, object]]:
    document = json.loads(bytes(booster.save_raw("json")))
    trees: list[dict[str, object]] = document["learner"]["gradient_booster"]["model"]["trees"]
    return trees
