"""The gate: it is what stands between a training and the scores that people act on. Each check must fail when what it
checks is not so, or it is worth nothing; and a sound model of few rows must not fail by chance.
"""

from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest
import xgboost as xgb

from churn.data.snapshots import Snapshot, snapshots
from churn.evaluation.metrics import Evaluation, evaluate
from churn.inference.bundle import Bundle, load_bundle
from churn.training.calibration import Calibration, apply_to_booster
from churn.training.checks import GATE_CHECKS, Gate, GateCheck
from churn.training.gate import (
    GateLimits,
    chance_calibration_error,
    check_auc,
    check_calibration,
    check_canary,
    check_compilation,
    check_gate,
    check_golden,
    check_shuffled,
    check_speed,
    compile_for,
    plant_canary,
)
from churn.training.train import Trained, TrainingPlan, train
from churn.weeks import month_ends, training_days
from tests.support.simulated import FEATURE_NAMES, simulate_activity

FIRST, TODAY = date(2025, 2, 1), date(2026, 11, 24)
PLAN = TrainingPlan(n_trials=2)
LIMITS = GateLimits()


@pytest.fixture(scope="module")
def facts() -> pl.DataFrame:
    activity = simulate_activity(n_accounts=2_500, first_month=FIRST, n_months=21, seed=3)
    ends = pl.col("activity_month").dt.offset_by("1mo").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return activity.with_columns(known_at=ends - pl.duration(microseconds=1))


def build(facts: pl.DataFrame, as_of: date) -> Snapshot:
    return snapshots(facts, [as_of], today=TODAY, horizon=PLAN.horizon)[0]


@pytest.fixture(scope="module")
def shots(facts: pl.DataFrame) -> list[Snapshot]:
    return snapshots(facts, training_days(FIRST, TODAY), today=TODAY, horizon=PLAN.horizon)


@pytest.fixture(scope="module")
def trained(shots: list[Snapshot]) -> Trained:
    return train(shots, FEATURE_NAMES, PLAN)


@pytest.fixture(scope="module")
def held_out(facts: pl.DataFrame, trained: Trained) -> list[Snapshot]:
    return [build(facts, as_of) for as_of in trained.held_out.as_ofs]


@pytest.fixture(scope="module")
def evaluation(trained: Trained) -> Evaluation:
    return evaluate(trained.held_out_accounts.churned, trained.bundle.predict(trained.held_out_accounts.matrix))


def served(trained: Trained, booster: xgb.Booster) -> Bundle:
    return load_bundle(bytes(booster.save_raw("ubj")), trained.feature_names, "a model")


def dart(trained: Trained) -> Bundle:
    data = xgb.DMatrix(trained.training.matrix, trained.training.churned, feature_names=list(FEATURE_NAMES))
    settings = {"objective": "binary:logistic", "booster": "dart", "rate_drop": 0.5, "nthread": 1}
    return served(trained, xgb.train(settings, data, 3))


def test_a_sound_model_passes_and_every_check_is_made_once(
    facts: pl.DataFrame, trained: Trained, shots: list[Snapshot], evaluation: Evaluation
):
    passed = check_gate(trained, evaluation, facts=facts, shots=shots, build=build, champion=None, limits=LIMITS)

    assert [check.name for check in passed.checks] == list(GATE_CHECKS)
    assert passed.failures == (), passed.to_markdown()
    assert {check.name for check in passed.checks if check.outcome == "skipped"} == {
        "past_features_are_those_scored", "scoring_is_no_slower",
    }  # fmt: skip


def test_the_floor_is_for_the_lower_end_of_the_interval(evaluation: Evaluation):
    assert evaluation.roc_auc is not None
    between = (evaluation.roc_auc.low + evaluation.roc_auc.value) / 2

    assert check_auc(evaluation, LIMITS).outcome == "holds"
    assert check_auc(evaluation, replace(LIMITS, min_auc=between)).outcome == "fails"


def test_too_few_of_an_outcome_hold_nothing():
    few = evaluate(np.arange(100) < 10, np.linspace(0, 1, 100))

    check = check_auc(few, LIMITS)

    assert (check.outcome, check.value) == ("fails", None)
    assert "10 held-out accounts churned and 90 stayed" in check.sentence


def test_scores_that_mean_something_else_are_not_calibrated(trained: Trained):
    crooked = replace(trained, bundle=served(trained, apply_to_booster(trained.bundle.booster, Calibration(1.0, 1.5))))
    found = evaluate(crooked.held_out_accounts.churned, crooked.bundle.predict(crooked.held_out_accounts.matrix))

    check = check_calibration(crooked, found, LIMITS)

    assert check.outcome == "fails"
    assert check.value is not None
    assert check.limit is not None
    assert check.value > check.limit > LIMITS.max_calibration_error


@pytest.mark.parametrize("off_by", [0.0, 0.05])
def test_of_few_rows_an_error_that_chance_explains_is_let_pass(trained: Trained, off_by: float):
    scores = trained.bundle.predict(trained.held_out_accounts.matrix)
    limits = replace(LIMITS, max_calibration_error=off_by or 1e-6)
    rng = np.random.default_rng(5)
    outcomes = []
    for _ in range(60):
        true = replace(
            trained,
            held_out_accounts=replace(trained.held_out_accounts, churned=rng.random(len(scores)) < scores + off_by),
        )
        outcomes.append(check_calibration(true, evaluate(true.held_out_accounts.churned, scores), limits).outcome)

    assert outcomes.count("fails") <= 4  # about one in a hundred is expected


def test_what_chance_explains_shrinks_with_the_rows():
    scores = np.random.default_rng(0).uniform(0.1, 0.9, 10_000)

    few, many = (chance_calibration_error(scores[:n], 0.05, seed=1) for n in (500, 10_000))

    assert 0.08 < few < 0.14
    assert 0.05 < many < 0.07


def test_shuffled_labels_that_would_pass_are_an_alarm(trained: Trained):
    assert check_shuffled(trained, LIMITS).outcome == "holds"
    assert check_shuffled(trained, replace(LIMITS, min_auc=0.05)).outcome == "fails"


def latest_of_all(facts: pl.DataFrame, as_of: date) -> Snapshot:
    """Build features as a careless join would: each account's newest row, whenever it became known."""
    shot = build(facts, as_of)
    newest = facts.sort("activity_month").group_by("account_id", maintain_order=True).last()
    return replace(shot, rows=shot.rows.select("account_id").join(newest, on="account_id", how="left"))


def a_month_late(facts: pl.DataFrame, as_of: date) -> Snapshot:
    """Build features of what is known a month after the as-of date."""
    shot = build(facts, as_of)
    later = facts.with_columns(known_at=pl.col("known_at") - pl.duration(days=31)).with_columns(
        activity_month=pl.col("activity_month").dt.offset_by("-1mo")
    )
    moved = build(later, as_of).rows
    kept = shot.rows.join(moved.select("account_id", canary_later="canary"), on="account_id", how="left")
    return replace(shot, rows=kept.with_columns(canary=pl.coalesce("canary_later", "canary")))


def with_corrections(facts: pl.DataFrame) -> pl.DataFrame:
    """Correct each account's month in the month after."""
    late = facts.with_columns(known_at=pl.col("known_at") + timedelta(days=20))
    return pl.concat([facts, late])


def by_month_alone(facts: pl.DataFrame, as_of: date) -> Snapshot:
    """Build features by the month that a fact is of, and not by when it became known."""
    shot = build(facts, as_of)
    of_then = facts.filter(pl.col("activity_month") <= as_of).sort("activity_month", "known_at")
    newest = of_then.group_by("account_id", maintain_order=True).last()
    return replace(shot, rows=shot.rows.select("account_id").join(newest, on="account_id", how="left"))


def test_features_of_what_was_known_show_nothing_of_the_canary(
    facts: pl.DataFrame, trained: Trained, held_out: list[Snapshot]
):
    for seed in range(5):
        check = check_canary(facts, held_out, build, seed)

        assert check.outcome == "holds", check.sentence
        assert check.value == pytest.approx(0.5, abs=0.06)


def test_features_that_take_any_accounts_newest_row_are_caught(facts: pl.DataFrame, held_out: list[Snapshot]):
    check = check_canary(facts, held_out, latest_of_all, seed=1)

    assert check.outcome == "fails"
    assert check.value is not None
    assert check.value > 0.9


def test_features_that_know_a_month_too_much_are_caught(facts: pl.DataFrame, held_out: list[Snapshot]):
    assert check_canary(facts, held_out, a_month_late, seed=1).outcome == "fails"


def test_features_that_take_a_later_correction_are_caught(facts: pl.DataFrame):
    corrected = with_corrections(facts)
    shots = [build(corrected, as_of) for as_of in month_ends(date(2026, 5, 1), date(2026, 7, 31))]

    assert check_canary(corrected, shots, build, seed=1).outcome == "holds"
    assert check_canary(corrected, shots, by_month_alone, seed=1).outcome == "fails"


def test_the_canary_gives_the_label_away_on_later_facts_only(facts: pl.DataFrame, held_out: list[Snapshot]):
    shot = held_out[0]
    planted = plant_canary(facts, shot, seed=1)
    later = (planted["activity_month"] > shot.as_of) | (planted["known_at"].dt.date() > shot.as_of)
    of_account = dict(zip(shot.rows["account_id"], shot.churned, strict=True))

    assert planted.drop("canary").equals(facts)
    assert planted.filter(~later)["canary"].is_between(0, 1).all()
    told = planted.filter(later & planted["account_id"].is_in(list(of_account)))
    assert told.height > 500
    assert [value > 1 for value in told["canary"]] == [of_account[account] for account in told["account_id"]]


def test_the_noise_of_one_day_says_nothing_of_anothers(facts: pl.DataFrame, held_out: list[Snapshot]):
    known = facts.filter(pl.col("activity_month") <= held_out[0].as_of)

    first, second = (plant_canary(known, shot, seed=1)["canary"].to_numpy() for shot in held_out[:2])

    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


def test_golden_rows_must_be_the_saved_models_own(trained: Trained):
    other = served(trained, apply_to_booster(trained.bundle.booster, Calibration(1.0, 0.001)))

    assert check_golden(trained).outcome == "holds"
    assert check_golden(replace(trained, bundle=replace(trained.bundle, data=other.data))).outcome == "fails"


def test_trees_that_only_xgboost_can_walk_are_no_candidates(trained: Trained, held_out: list[Snapshot]):
    ours, _ = compile_for(trained.bundle, held_out)
    theirs, _ = compile_for(dart(trained), held_out)

    assert check_compilation(ours).outcome == "holds"
    check = check_compilation(theirs)
    assert check.outcome == "fails"
    assert "booster dart" in check.sentence


@pytest.mark.parametrize(("most", "outcome"), [(1e6, "holds"), (1e-6, "fails")])
def test_time_is_held_against_the_champions(trained: Trained, held_out: list[Snapshot], most: float, outcome: str):
    engine, packed = compile_for(trained.bundle, held_out)

    check = check_speed(engine, packed, trained.bundle, held_out, replace(LIMITS, max_slowdown=most, fast_enough_us=0))

    assert check.outcome == outcome
    assert check.value is not None
    assert check.value > 0


def test_a_champion_that_does_not_compile_is_not_raced(trained: Trained, held_out: list[Snapshot]):
    engine, packed = compile_for(trained.bundle, held_out)

    check = check_speed(engine, packed, dart(trained), held_out, LIMITS)

    assert check.outcome == "skipped"
    assert "does not compile" in check.sentence


def test_a_champion_of_other_columns_is_not_compared_with(trained: Trained, held_out: list[Snapshot]):
    matrix = trained.training.matrix[:, :1]
    data = xgb.DMatrix(matrix, trained.training.churned, feature_names=["n_logins"])
    champion = load_bundle(
        bytes(xgb.train({"objective": "binary:logistic", "nthread": 1}, data, 2).save_raw("ubj")), None, "a champion"
    )
    engine, packed = compile_for(trained.bundle, held_out)

    check = check_speed(engine, packed, champion, held_out, LIMITS)

    assert check.outcome == "skipped"
    assert "n_logins" in check.sentence


def test_one_failed_check_fails_the_gate_and_a_skipped_one_does_not():
    checks = [GateCheck(name, 0.5, 0.6, outcome, name) for name, outcome in (("a", "holds"), ("b", "skipped"))]
    failed = GateCheck("c", None, 0.6, "fails", "it is not so")

    assert Gate(tuple(checks)).is_passed
    assert Gate((*checks, failed)).failures == (failed,)
    assert "| c | fails |  | 0.6 | it is not so |" in Gate((failed,)).to_markdown()
