"""At stake: what the worlds leave out, no test or benchmark can find wrong in features, labels and models."""

from dataclasses import fields, replace
from datetime import date
from hashlib import sha256

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from churn.data.activity import MONEY
from tests.support.simulated import simulate_activity
from tests.support.world import HEALTHY_WORLD, PLAIN_WORLD, Simulation, World, simulate_world

ARGUMENTS = {"n_accounts": 2_000, "first_month": date(2025, 2, 1), "n_months": 21, "seed": 3}
KEYS = ["account_id", "activity_month"]
MONTH = date(2026, 5, 1)
IS_ACTIVE = pl.any_horizontal(pl.col(name).fill_null(0.0) != 0 for name in MONEY)


def plain_with(switch: str) -> Simulation:
    return simulate_world(replace(PLAIN_WORLD, **{switch: True}), **ARGUMENTS)


@pytest.fixture(scope="module")
def plain() -> pl.DataFrame:
    return simulate_world(PLAIN_WORLD, **ARGUMENTS).extract()


@pytest.fixture(scope="module")
def healthy() -> Simulation:
    return simulate_world(HEALTHY_WORLD, **ARGUMENTS)


def test_the_plain_world_has_the_rows_of_the_plain_simulation(plain):
    assert_frame_equal(plain, simulate_activity(**ARGUMENTS), check_exact=True)
    twisted = simulate_world(PLAIN_WORLD, **ARGUMENTS, twist=MONTH).extract()
    assert_frame_equal(twisted, simulate_activity(**ARGUMENTS, twist=MONTH), check_exact=True)
    assert not twisted.equals(plain)


def test_the_plain_simulation_is_what_it_was_when_figures_were_published():
    csv = simulate_activity(n_accounts=200, first_month=date(2025, 2, 1), n_months=21, seed=7).write_csv()
    assert sha256(csv.encode()).hexdigest() == "b43df7c60cf1ec4b3da0831a97447c3f4729911097716a6fc9efaafa5f68a581"


def test_the_same_arguments_give_the_same_extract():
    first, second = (simulate_world(World(), **ARGUMENTS).extract_on(date(2026, 5, 18)) for _ in range(2))
    assert_frame_equal(first, second, check_exact=True)


def test_the_default_world_has_every_effect_and_the_plain_one_has_none():
    assert all(getattr(World(), field.name) for field in fields(World))
    assert not any(getattr(PLAIN_WORLD, field.name) for field in fields(World))


@pytest.mark.parametrize(
    "switch", ["returns", "season", "growth", "heavy_tails", "feed_gaps", "future_dates", "campaign"]
)
def test_each_switch_changes_the_whole_extract(plain, switch):
    assert not plain_with(switch).extract().equals(plain)


@pytest.mark.parametrize("switch", ["season", "growth", "feed_gaps"])
def test_a_switch_that_hides_rows_leaves_the_others_as_they_are(plain, switch):
    extract = plain_with(switch).extract()
    assert extract.height < plain.height
    assert extract.join(plain, on=plain.columns, nulls_equal=True, how="anti").is_empty()


def test_returning_players_are_active_again_after_a_month_or_more(plain):
    more = plain_with("returns").extract().filter(IS_ACTIVE).join(plain.filter(IS_ACTIVE), on=KEYS, how="anti")
    last = plain.filter(IS_ACTIVE).group_by("account_id").agg(last=pl.col("activity_month").max())
    pauses = more.join(last, on="account_id").select((pl.col("activity_month") - pl.col("last")).dt.total_days())
    assert more.height > 100
    assert pauses.to_series().min() >= 59  # a whole month without activity


def test_a_running_month_is_shown_with_what_has_happened_so_far(healthy):
    handles, n_rows = [], []
    for day in (date(2026, 5, 1), date(2026, 5, 4), date(2026, 5, 18), date(2026, 6, 1)):
        rows = healthy.extract_on(day).filter(pl.col("activity_month") == MONTH)
        handles.append(rows["total_handle"].sum())
        n_rows.append(rows.height)
    assert handles[0] == 0
    assert handles[0] < handles[1] < handles[2] < handles[3]
    assert n_rows == sorted(n_rows)


def test_without_running_months_an_extract_ends_with_a_whole_month():
    extract = simulate_world(PLAIN_WORLD, **ARGUMENTS).extract_on(date(2026, 5, 18))
    assert extract["activity_month"].max() == date(2026, 4, 1)


def test_late_rows_and_corrections_come_after_their_month_and_end_in_the_whole_extract(plain):
    simulation = plain_with("late_rows")
    early = simulation.extract_on(date(2026, 6, 2)).filter(pl.col("activity_month") == MONTH)
    whole = plain.filter(pl.col("activity_month") == MONTH)
    assert 0 < whole.height - early.height < 0.05 * whole.height
    assert not early.join(whole, on=plain.columns, nulls_equal=True, how="anti").is_empty()
    assert_frame_equal(simulation.extract(), plain, check_exact=True)


def test_a_gap_takes_whole_months_of_a_brand_and_the_truth_names_them():
    simulation = plain_with("feed_gaps")
    missing = simulation.truth.filter(~pl.col("ever_arrives"))
    gaps = missing.select("brand_id", "activity_month").unique()
    assert gaps.height > 3
    assert simulation.extract().join(gaps, on=["brand_id", "activity_month"]).is_empty()


def test_half_of_the_gaps_are_filled_months_later(plain):
    simulation = plain_with("feed_gaps")
    on_time, later = (simulation.extract_on(day) for day in (date(2026, 6, 1), date(2026, 9, 1)))
    late = later.filter(pl.col("activity_month") <= MONTH).join(on_time, on=KEYS, how="anti")
    filled = late.select("brand_id", "activity_month").unique()
    assert filled.height > 0
    assert on_time.join(filled, on=["brand_id", "activity_month"]).is_empty()
    assert late.height == plain.join(filled, on=["brand_id", "activity_month"]).unique(KEYS).height


def test_a_first_deposit_after_a_row_reveals_that_the_player_came_back():
    extract = simulate_world(HEALTHY_WORLD, **{**ARGUMENTS, "n_accounts": 10_000}).extract()
    horizon = pl.col("activity_month").dt.offset_by("3mo")
    future = extract.filter(pl.col("ftd_date") > pl.col("activity_month").dt.month_end(), horizon <= date(2026, 10, 1))
    later = extract.filter(IS_ACTIVE).select("account_id", later="activity_month")
    came_back = future.join(later, on="account_id").filter(
        pl.col("later") > pl.col("activity_month"), pl.col("later") <= horizon
    )
    assert future.height / extract.height == pytest.approx(0.036, abs=0.006)
    assert future.select(KEYS).unique().join(came_back, on=KEYS, how="anti").is_empty()


def test_a_first_deposit_is_unknown_until_it_happened(healthy):
    day = date(2026, 5, 18)
    extract = healthy.extract_on(day)
    assert extract["ftd_date"].max() < day
    assert healthy.extract().filter(pl.col("ftd_date") >= day).height > 0


def test_a_registration_does_not_tell_who_comes_back(healthy):
    """A day in the future is missing to features, so that of depositors must not depend on what they do later."""
    months_late = (
        pl.col("reg_date").dt.month_start() - pl.col("activity_month").min().over("account_id")
    ).dt.total_days()
    depositors = healthy.extract().filter(pl.col("ftd_date").is_not_null())
    assert depositors.select(months_late.max()).item() <= 31  # a first deposit may lie 29 days before it


def test_a_restated_column_of_a_past_month_changes_between_extracts(healthy):
    earlier, later = (healthy.extract_on(day).unique(KEYS) for day in (date(2026, 3, 2), date(2026, 9, 7)))
    both = earlier.join(later, on=KEYS, suffix="_later")
    grown = both.select((pl.col("lifetime_months_later") - pl.col("lifetime_months")).alias("by"))["by"]
    assert grown.min() == 0
    assert (grown > 0).mean() > 0.1


def test_a_campaign_prolongs_the_stays_of_those_contacted_and_of_nobody_else(plain):
    simulation = plain_with("campaign")
    more = simulation.extract().join(plain, on=KEYS, how="anti")
    contacted = simulation.campaign.filter("is_contacted")
    assert 0.4 < contacted.height / simulation.campaign.height < 0.6
    assert more.height > 100
    assert more.join(contacted, on="account_id", how="anti").is_empty()
    assert more["activity_month"].min() >= simulation.campaign_month
    assert simulation.campaign["effect_months"].mean() == pytest.approx(2.0, abs=0.3)
