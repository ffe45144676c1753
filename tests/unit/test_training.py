"""Training: what it reports of a model must be what the model will do. So no label may look past the day from which it
is judged, nothing may be chosen on the rows that judge it, and the same data must give the same bytes.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date

import numpy as np
import polars as pl
import pytest
import xgboost as xgb
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from churn.data.features import encode, features
from churn.data.labels import Horizon
from churn.data.snapshots import Snapshot, snapshots
from churn.errors import InputError
from churn.evaluation.metrics import evaluate, log_losses
from churn.training.train import Trained, TrainingPlan, fit, shortage, split, train
from churn.weeks import mondays_of, month_ends, training_days
from churn.workflows.train import describe_months
from tests.support.simulated import FEATURE_NAMES, simulate_activity

FIRST, TODAY = date(2025, 2, 1), date(2026, 11, 24)
PLAN = TrainingPlan(n_trials=3)


def make_facts(n_accounts: int = 2_500, seed: int = 3) -> pl.DataFrame:
    """Simulated activity, each month known at its end."""
    activity = simulate_activity(n_accounts=n_accounts, first_month=FIRST, n_months=21, seed=seed)
    ends = pl.col("activity_month").dt.offset_by("1mo").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return activity.with_columns(known_at=ends - pl.duration(microseconds=1))


def make_snapshots(facts: pl.DataFrame, horizon: Horizon = PLAN.horizon, today: date = TODAY) -> list[Snapshot]:
    return snapshots(facts, month_ends(FIRST, today), today=today, horizon=horizon)


@pytest.fixture(scope="module")
def facts() -> pl.DataFrame:
    return make_facts()


@pytest.fixture(scope="module")
def shots(facts: pl.DataFrame) -> list[Snapshot]:
    return make_snapshots(facts)


@pytest.fixture(scope="module")
def trained(shots: list[Snapshot]) -> Trained:
    return train(shots, FEATURE_NAMES, PLAN)


@pytest.mark.parametrize(("months", "lag"), [(3, 7), (1, 0), (2, 45)])
def test_every_label_of_a_part_is_known_by_the_first_day_of_the_next(facts: pl.DataFrame, months: int, lag: int):
    horizon = Horizon(months, lag)
    plan = replace(PLAN, horizon=horizon)

    parts = split(make_snapshots(facts, horizon), plan)

    for earlier, later in ((parts.training, parts.validation), (parts.validation, parts.held_out)):
        assert earlier
        assert max(horizon.matures_on(shot.as_of) for shot in earlier) <= later[0].as_of


def test_the_newest_labels_evaluate_and_those_before_choose(trained: Trained):
    assert trained.held_out.as_ofs == (date(2026, 5, 31), date(2026, 6, 30), date(2026, 7, 31))
    assert trained.validation.as_ofs == (date(2025, 11, 30), date(2025, 12, 31), date(2026, 1, 31))
    assert trained.training.as_ofs == tuple(month_ends(date(2025, 2, 1), date(2025, 7, 31)))


def test_all_mondays_of_the_newest_months_evaluate(facts: pl.DataFrame):
    last = PLAN.horizon.newest_mature(TODAY)
    days = training_days(FIRST, last, PLAN.n_held_out)
    parts = split(snapshots(facts, days, today=TODAY, horizon=PLAN.horizon), PLAN)

    held_out = [day for month in (5, 6, 7) for day in mondays_of(date(2026, month, 1))]
    assert [shot.as_of for shot in parts.held_out] == held_out
    assert [shot.as_of.month for shot in parts.validation] == [10, 11, 12]


def test_held_out_figures_by_week_are_of_the_days_of_that_week(trained: Trained):
    part, scores = trained.held_out, trained.bundle.predict(trained.held_out.matrix)

    found = trained.roc_auc_by_week()

    assert set(found) == {5}  # the month ends of this module
    assert found[5] == pytest.approx(roc_auc_score(part.churned, scores), abs=1e-9)


def test_a_model_learns_what_there_is_to_learn_and_its_scores_are_calibrated(trained: Trained):
    found = evaluate(trained.held_out_accounts.churned, trained.bundle.predict(trained.held_out_accounts.matrix))

    assert found.roc_auc is not None
    assert found.roc_auc.low > 0.65
    assert found.mean_score == pytest.approx(
        trained.held_out_accounts.n_churned / trained.held_out_accounts.n, abs=0.08
    )


def test_the_same_data_and_seed_give_the_same_bytes_and_the_same_digest(trained: Trained, shots: list[Snapshot]):
    again = train(shots[::-1], FEATURE_NAMES, PLAN)

    assert again.bundle.data == trained.bundle.data
    assert again.data_sha256 == trained.data_sha256
    assert again.trials == trained.trials


def test_another_seed_and_another_label_are_told_apart(trained: Trained, shots: list[Snapshot]):
    other_seed = train(shots, FEATURE_NAMES, replace(PLAN, seed=2))
    changed = [replace(shot, churned=shot.churned.copy()) for shot in shots]
    changed[0].churned[0] ^= True

    other_label = train(changed, FEATURE_NAMES, replace(PLAN, n_trials=1))

    assert other_seed.bundle.data != trained.bundle.data
    assert other_seed.data_sha256 == trained.data_sha256
    assert other_label.data_sha256 != trained.data_sha256


def test_nothing_is_chosen_on_the_held_out_rows(trained: Trained, shots: list[Snapshot]):
    upside_down = [
        replace(shot, churned=~shot.churned) if shot.as_of in trained.held_out.as_ofs else shot for shot in shots
    ]

    again = train(upside_down, FEATURE_NAMES, PLAN)

    assert again.bundle.data == trained.bundle.data


def test_the_best_of_the_trials_by_validation_loss_is_chosen(trained: Trained):
    losses = [trial.log_loss for trial in trained.trials]

    assert len(losses) == PLAN.n_trials
    assert len({tuple(trial.parameters.values()) for trial in trained.trials}) == PLAN.n_trials
    assert trained.chosen.log_loss == min(losses)


def test_the_rounds_are_those_up_to_the_best_one_and_the_loss_is_that_of_these_rounds(trained: Trained):
    alone = fit([trained.training], trained.chosen, FEATURE_NAMES, PLAN)
    validation = xgb.DMatrix(trained.validation.matrix, feature_names=list(FEATURE_NAMES))

    loss = log_losses(trained.validation.churned, alone.predict(validation)).mean()
    longer = fit([trained.training], replace(trained.chosen, n_rounds=trained.chosen.n_rounds + 5), FEATURE_NAMES, PLAN)

    assert alone.num_boosted_rounds() == trained.chosen.n_rounds == trained.bundle.parameters["n_trees"]
    assert loss == pytest.approx(trained.chosen.log_loss, abs=1e-6)
    assert log_losses(trained.validation.churned, longer.predict(validation)).mean() > loss


def test_what_is_served_is_the_refitted_model_with_its_calibration_applied(trained: Trained):
    booster = fit([trained.training, trained.validation], trained.chosen, FEATURE_NAMES, PLAN)
    rows = xgb.DMatrix(trained.held_out_accounts.matrix, feature_names=list(FEATURE_NAMES))

    calibration = trained.calibration
    expected = expit(calibration.slope * booster.predict(rows, output_margin=True) + calibration.intercept)

    np.testing.assert_allclose(trained.bundle.predict(trained.held_out_accounts.matrix), expected, atol=1e-6)


def test_training_rows_are_what_scoring_would_have_made_on_that_day(trained: Trained, facts: pl.DataFrame):
    part = trained.validation

    for place, as_of in enumerate(part.as_ofs):
        rows = features(facts, as_of).filter(pl.col("account_id").is_in(part.account_ids[part.places == place]))
        assert encode(rows, trained.encoding).tobytes() == part.matrix[part.places == place].tobytes()


def test_an_account_is_evaluated_once_at_a_month_end_that_does_not_depend_on_what_it_did(trained: Trained):
    judged, held_out = trained.held_out_accounts, trained.held_out

    assert len(np.unique(judged.account_ids)) == judged.n
    assert judged.n > held_out.n / 4
    assert judged.n_churned / judged.n == pytest.approx(held_out.n_churned / held_out.n, abs=0.06)
    assert set(zip(judged.account_ids, judged.places, strict=True)) <= set(
        zip(held_out.account_ids, held_out.places, strict=True)
    )


def test_features_are_in_the_order_that_was_asked_for(shots: list[Snapshot]):
    names = FEATURE_NAMES[::-1]

    bundle = train(shots, names, replace(PLAN, n_trials=1)).bundle

    assert bundle.feature_names == names
    assert bundle.booster.feature_names == list(names)


def test_a_feature_that_cannot_be_made_is_named(shots: list[Snapshot]):
    with pytest.raises(InputError, match="n_logins"):
        train(shots, [*FEATURE_NAMES, "n_logins"], PLAN)


def only(shots: Sequence[Snapshot], churned: bool, n: int) -> list[Snapshot]:
    """Leave ``n`` rows of an outcome in each snapshot."""
    kept = [(shot.churned != churned) | (np.cumsum(shot.churned == churned) <= n) for shot in shots]
    return [
        replace(shot, rows=shot.rows.filter(pl.Series(keep)), churned=shot.churned[keep], weights=shot.weights[keep])
        for shot, keep in zip(shots, kept, strict=True)
    ]


def test_there_is_no_shortage_of_enough(shots: list[Snapshot]):
    assert shortage(shots, PLAN) is None


@pytest.mark.parametrize("churned", [True, False])
def test_too_few_labels_of_an_outcome_are_counted(shots: list[Snapshot], churned: bool):
    few = only(shots, churned, 20)

    reason = shortage(few, PLAN)

    assert reason is not None
    counts = [sum(int((s.churned == outcome).sum()) for s in (*split(few, PLAN).training, *split(few, PLAN).validation))
              for outcome in (True, False)]  # fmt: skip
    assert reason == (
        f"{counts[0]} matured labels of churn and {counts[1]} of staying to train on, where 200 of each are needed"
    )
    with pytest.raises(InputError, match="to train on, where 200 of each are needed; bring more of it"):
        train(few, FEATURE_NAMES, PLAN)


def test_too_few_labels_to_be_evaluated_on_are_a_shortage_too(shots: list[Snapshot]):
    held_out = split(shots, PLAN).held_out
    few = [*(shot for shot in shots if shot not in held_out), *only(held_out, True, 30)]

    assert "to be evaluated on, where 50 of each are needed" in str(shortage(few, PLAN))


def test_a_history_too_short_to_be_parted_says_how_long_it_must_be(facts: pl.DataFrame):
    early = date(2026, 1, 20)
    short = make_snapshots(facts.filter(pl.col("activity_month") < early), today=early)

    assert "months, which cannot be split" in str(shortage(short, PLAN))


def test_without_a_single_label_there_is_a_shortage():
    assert "matured labels of 0 months" in str(shortage([], PLAN))


@pytest.mark.parametrize(
    ("newest", "late"),
    [
        (date(2026, 10, 1), ""),
        (date(2026, 11, 1), ""),
        (date(2024, 12, 1), ", though 2026-10 should have arrived: train with --as-of 2025-01-08"),
    ],
)
def test_an_old_extract_names_its_months_and_a_day_to_train_as_of(newest: date, late: str):
    assert describe_months((FIRST, newest), TODAY, Horizon()) == f"2025-02 to {newest:%Y-%m}{late}"
