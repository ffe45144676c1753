"""The gate's checks of the data: a leak in the data makes every other check look good. Each check must find the leak
that is planted for it, and must not refuse honest data, late corrections included.
"""

from dataclasses import replace
from datetime import UTC, date, datetime

import numpy as np
import polars as pl
import pytest

from churn.data.features import encode, features, plan_encoding
from churn.data.snapshots import Snapshot, snapshots
from churn.storage.history import new_facts
from churn.training.data_checks import (
    ScoredBefore,
    check_churn_share,
    check_replay,
    check_restated,
    check_rows_per_account,
    check_simple_models,
)
from churn.training.train import Trained, TrainingPlan, train
from churn.weeks import training_days
from tests.support.simulated import FEATURE_NAMES, simulate_activity
from tests.support.world import HEALTHY_WORLD, Simulation, simulate_world

FIRST, TODAY = date(2025, 2, 1), date(2026, 11, 24)
PLAN = TrainingPlan(n_trials=1)
NUMBERS = ("total_deposit", "total_handle", "total_ngr")


def backfilled(activity: pl.DataFrame) -> pl.DataFrame:
    """Facts of a first extract: each month's row counts as known when the month was over."""
    return new_facts(activity, None, datetime(TODAY.year, TODAY.month, TODAY.day, tzinfo=UTC))


def prepared(facts: pl.DataFrame, names: tuple[str, ...]) -> tuple[list[Snapshot], Trained]:
    days = [day for day in training_days(FIRST, TODAY) if PLAN.horizon.matures_on(day) <= TODAY]
    shots = snapshots(facts, days, today=TODAY, horizon=PLAN.horizon, names=names)
    return shots, train(shots, names, PLAN)


@pytest.fixture(scope="module")
def activity() -> pl.DataFrame:
    return simulate_activity(n_accounts=3_000, first_month=FIRST, n_months=21, seed=3)


@pytest.fixture(scope="module")
def honest(activity: pl.DataFrame) -> tuple[list[Snapshot], Trained]:
    return prepared(backfilled(activity), ("months_since_active", "active_months_6m", *NUMBERS))


@pytest.fixture(scope="module")
def sampled(activity: pl.DataFrame) -> pl.DataFrame:
    """A few rows drawn from each month of many players, as in a real extract: nearly all seem to leave."""
    many = pl.concat([activity.with_columns(pl.col("account_id") + 10**7 * i) for i in range(18)])
    return backfilled(many.sample(fraction=0.06, seed=1))


def test_honest_data_are_plausible(activity: pl.DataFrame, honest: tuple[list[Snapshot], Trained]):
    assert check_churn_share(honest[1]).outcome == "holds"
    assert check_rows_per_account(activity).outcome == "holds"


def test_an_extract_of_sampled_rows_is_found(sampled: pl.DataFrame):
    _, trained = prepared(sampled, NUMBERS)

    share, rows = check_churn_share(trained), check_rows_per_account(sampled)

    assert share.outcome == rows.outcome == "fails"
    assert share.value is not None
    assert share.value > 0.9
    assert rows.value is not None
    assert 1 < rows.value < 1.3
    assert "is the extract a sample of rows?" in share.sentence
    assert "bring all rows of each account" in rows.sentence


def test_a_model_that_knows_more_than_recency_holds(honest: tuple[list[Snapshot], Trained]):
    check = check_simple_models(honest[1], honest[0])

    assert check.outcome == "holds", check.sentence
    assert check.value is not None
    assert check.value > 0.02


def test_a_model_that_knows_nothing_or_less_than_recency_does_not(honest: tuple[list[Snapshot], Trained]):
    shots, trained = honest
    noise = np.random.default_rng(2).normal(size=trained.held_out_accounts.matrix.shape).astype(np.float32)
    blind = replace(trained, held_out_accounts=replace(trained.held_out_accounts, matrix=noise))

    assert check_simple_models(blind, shots).outcome == "fails"

    churned = trained.held_out_accounts.churned
    lags = trained.held_out_accounts.matrix[:, 0]  # months since active
    told = replace(trained.held_out_accounts, churned=np.where(np.isnan(lags), churned, lags > 0))
    parts = {part.name: replace(part, churned=np.nan_to_num(part.matrix[:, 0], nan=1) > 0) for part in trained.parts}
    by_recency = replace(trained, held_out_accounts=told, training=parts["training"], validation=parts["validation"])
    check = check_simple_models(by_recency, shots)
    assert check.outcome == "fails", check.sentence


def delivered(simulation: Simulation, days: list[date]) -> pl.DataFrame:
    """The history after one extract on each of some days."""
    facts = None
    for day in days:
        received_at = datetime(day.year, day.month, day.day, 6, tzinfo=UTC)
        added = new_facts(simulation.extract_on(day), facts, received_at)
        facts = added if facts is None else pl.concat([facts, added]).sort("account_id", "activity_month", "known_at")
    assert facts is not None
    return facts


@pytest.fixture(scope="module")
def history() -> pl.DataFrame:
    """Four months of extracts, with late rows, corrections, running months and a restated column."""
    world = simulate_world(HEALTHY_WORLD, n_accounts=2_000, first_month=FIRST, n_months=21, seed=5)
    return delivered(world, [date(2026, month, 20) for month in (6, 7, 8, 9)])


def test_late_corrections_running_months_and_later_dates_restate_nothing(history: pl.DataFrame):
    columns = [*NUMBERS, "months_active", "brand_id", "ftd_date", "activity"]

    check = check_restated(history, columns, has_known_at=False)

    assert check.outcome == "holds", check.sentence
    assert check.value is not None
    assert 0 < check.value < 0.03


def test_a_column_that_is_written_anew_in_past_months_is_found_by_name(history: pl.DataFrame):
    columns = [*NUMBERS, "lifetime_months"]

    check = check_restated(history, columns, has_known_at=False)

    assert check.outcome == "fails", check.sentence
    assert "lifetime_months in" in check.sentence
    assert "total_deposit" not in check.sentence
    assert "--features" in check.sentence
    assert check_restated(history, columns, has_known_at=True).outcome == "skipped"


def test_a_status_that_is_written_into_all_past_months_of_a_few_accounts_is_found(history: pl.DataFrame):
    with_status = history.with_columns(status=pl.lit("open"))
    closed = pl.col("activity_month") < date(2026, 9, 1), pl.col("account_id") % 40 == 0
    again = with_status.filter(closed).unique(["account_id", "activity_month"], keep="last")
    again = again.with_columns(status=pl.lit("closed"), known_at=pl.lit(datetime(2026, 9, 20, 7, tzinfo=UTC)))
    restated = pl.concat([with_status, again]).sort("account_id", "activity_month", "known_at")

    check = check_restated(restated, [*NUMBERS, "status"], has_known_at=False)

    assert check.outcome == "fails", check.sentence
    assert check.value is not None
    assert 0.01 < check.value < 0.05
    assert "months that were over 90 days before" in check.sentence
    assert "status in" in check.sentence
    assert "total_deposit" not in check.sentence


def test_a_damaged_extract_is_found_until_a_later_one_repairs_it(history: pl.DataFrame):
    past = history.filter(pl.col("activity_month") < date(2026, 8, 1))
    past = past.unique(["account_id", "activity_month"], keep="last", maintain_order=True)
    twice, as_before = (
        past.with_columns(pl.col("total_handle") * times, known_at=pl.lit(datetime(2026, 9, day, 7, tzinfo=UTC)))
        for day, times in ((21, 2), (28, 1))
    )
    damaged = pl.concat([history, twice])

    found = check_restated(damaged, NUMBERS, has_known_at=False)
    repaired = check_restated(pl.concat([damaged, as_before]), NUMBERS, has_known_at=False)

    assert found.outcome == "fails", found.sentence
    assert "total_handle in" in found.sentence
    assert repaired.outcome == "holds", repaired.sentence


def test_windows_over_activity_are_checked_by_the_columns_that_measure_it(history: pl.DataFrame):
    months = pl.col("activity_month") < date(2026, 6, 1)
    again = history.filter(months).with_columns(total_ngr=0.5, known_at=pl.lit(datetime(2026, 9, 20, 7, tzinfo=UTC)))
    restated = pl.concat([history, again]).sort("account_id", "activity_month", "known_at")

    check = check_restated(restated, ["activity"], has_known_at=False)

    assert check.outcome == "fails", check.sentence
    assert "total_ngr in" in check.sentence
    assert check_restated(history, ["activity"], has_known_at=False).outcome == "holds"


def test_a_months_last_days_that_arrive_after_it_are_no_corrections(history: pl.DataFrame):
    months = history.filter(pl.col("activity_month").is_between(date(2026, 1, 1), date(2026, 7, 1)))
    month_end = pl.col("activity_month").dt.offset_by("1mo").cast(pl.Datetime("us", "UTC"))
    lacking, whole = (
        months.unique(["account_id", "activity_month"], keep="last", maintain_order=True).with_columns(
            pl.col("total_handle") + days, known_at=month_end + pl.duration(days=days)
        )
        for days in (1, 9)
    )
    late = pl.concat([lacking, whole]).sort("account_id", "activity_month", "known_at")

    assert check_restated(late, ["total_handle"], has_known_at=False).outcome == "holds"


def test_amounts_whose_last_digits_change_are_no_corrections(history: pl.DataFrame):
    again = history.filter(pl.col("activity_month") < date(2026, 6, 1)).unique(["account_id", "activity_month"])
    again = again.with_columns(
        pl.col("total_handle") * (1 + 1e-15), known_at=pl.lit(datetime(2026, 9, 20, 7, tzinfo=UTC))
    )
    added_up_anew = pl.concat([history, again]).sort("account_id", "activity_month", "known_at")

    assert check_restated(added_up_anew, ["total_handle"], has_known_at=False).outcome == "holds"


@pytest.mark.parametrize("source_columns", [[], ["reg_date", "ftd_date"]])
def test_features_of_dates_alone_have_no_column_that_could_be_restated(
    history: pl.DataFrame, activity: pl.DataFrame, source_columns: list[str]
):
    assert check_restated(history, source_columns, has_known_at=False).outcome == "holds"
    assert check_restated(backfilled(activity), source_columns, has_known_at=False).outcome == "skipped"


def test_one_extract_cannot_show_what_is_restated(activity: pl.DataFrame):
    assert check_restated(backfilled(activity), NUMBERS, has_known_at=False).outcome == "skipped"


def replayed(history: pl.DataFrame, trained: Trained, as_of: date, first_month: date = FIRST) -> ScoredBefore:
    """The batch that was published as of a day, from the extract of that morning."""
    received_at = datetime(as_of.year, as_of.month, as_of.day, 6, tzinfo=UTC)
    known = history.filter(pl.col("known_at") <= received_at, pl.col("activity_month") >= first_month)
    rows = features(known, as_of, FEATURE_NAMES)
    scores = trained.bundle.predict(encode(rows, plan_encoding(FEATURE_NAMES, rows.columns)))
    return ScoredBefore(as_of, received_at, rows["account_id"].to_numpy(), scores, first_month)


def test_last_months_scores_come_out_again_unless_the_past_was_rewritten(history: pl.DataFrame):
    trained = prepared(history, FEATURE_NAMES)[1]
    before = replayed(history, trained, date(2026, 8, 20))

    assert check_replay(history, before, trained.bundle).outcome == "holds"
    of_six_months = replayed(history, trained, date(2026, 8, 20), date(2026, 3, 1))
    assert len(of_six_months.account_ids) < 0.9 * len(before.account_ids)
    assert check_replay(history, of_six_months, trained.bundle).outcome == "holds"

    rewritten = history.with_columns(pl.col("total_handle").last().over("account_id"))
    found = check_replay(rewritten, before, trained.bundle)
    assert found.outcome == "fails"
    assert "get another score" in found.sentence
    assert check_replay(rewritten, of_six_months, trained.bundle).outcome == "fails"
    later = history.with_columns(known_at=pl.col("known_at") - pl.duration(days=31))
    assert check_replay(later, before, trained.bundle).outcome == "fails"
    some = history.filter(pl.col("account_id") % 10 > 0)
    assert check_replay(some, before, trained.bundle).outcome == "fails"
    assert check_replay(history, None, trained.bundle).outcome == "skipped"
    lacking = history.drop("total_handle")
    assert check_replay(lacking, before, trained.bundle).outcome == "skipped"
