"""At stake: the simulator stands in for an extract nobody may share, so whatever it lacks goes untested everywhere.

The figures are those measured on the reference extract; each tolerance covers the spread between seeds.
"""

import itertools
import os
import subprocess
import sys
from datetime import date

import numpy as np
import polars as pl
import pytest

from churn.errors import UsageError
from churn.variants import Variant
from tests.support.simulated import simulate_activity
from tests.support.simulator import BEN_LOGINS, BRANDS, PRODUCTS

FIRST_MONTH = date(2025, 2, 1)
DEPOSIT, HANDLE, NGR = pl.col("total_deposit"), pl.col("total_handle"), pl.col("total_ngr")
MONTH_END = pl.col("activity_month").dt.month_end()
MONTHS_ACTIVE = (pl.col("activity_month").dt.year() - pl.col("ftd_date").dt.year()) * 12 + (
    pl.col("activity_month").dt.month().cast(pl.Int32) - pl.col("ftd_date").dt.month().cast(pl.Int32)
)


def simulate(n_accounts: int = 400, *, seed: int = 0, n_months: int = 21, variant: str = "base") -> pl.DataFrame:
    return simulate_activity(
        n_accounts=n_accounts, first_month=FIRST_MONTH, n_months=n_months, seed=seed, variant=Variant.from_key(variant)
    )


def with_churned(activity: pl.DataFrame) -> pl.DataFrame:
    """Rows whose three-month horizon has passed, with whether money moved in it."""
    moved = activity.filter((DEPOSIT != 0) | (HANDLE.fill_null(0.0) != 0) | (NGR != 0))
    later = moved.select("account_id", later_month="activity_month")
    horizon = pl.col("activity_month").dt.offset_by("3mo")
    in_horizon = (pl.col("later_month") > pl.col("activity_month")) & (pl.col("later_month") <= horizon)
    stayed = activity.join(later, on="account_id").filter(in_horizon).select("account_id", "activity_month")
    mature = activity.filter(horizon <= pl.col("activity_month").max())
    return mature.join(
        stayed.unique().with_columns(stayed=True), on=["account_id", "activity_month"], how="left"
    ).with_columns(churned=pl.col("stayed").is_null())


def churned_share(activity: pl.DataFrame) -> float:
    return float(with_churned(activity)["churned"].mean())


@pytest.fixture(scope="module")
def extract() -> pl.DataFrame:
    """As large as the reference extract: about 52,500 rows over 21 months."""
    return simulate(15_700, seed=1)


def test_the_extract_has_the_columns_and_types_of_the_raw_table(extract):
    assert dict(extract.schema) == {
        "activity_month": pl.Date,
        "account_id": pl.Int64,
        "brand_id": pl.String,
        "reg_date": pl.Date,
        "ftd_date": pl.Date,
        "qp_date": pl.Date,
        "ben_login_id": pl.String,
        "tracker_id": pl.Int64,
        "player_reg_product": pl.String,
        "total_deposit": pl.Float64,
        "total_handle": pl.Float64,
        "total_ngr": pl.Float64,
    }


def test_the_extract_is_as_large_as_the_reference_and_covers_every_month(extract):
    assert extract.height == pytest.approx(52_500, rel=0.05)
    months = extract["activity_month"].unique().sort().to_list()
    assert months == pl.date_range(FIRST_MONTH, date(2026, 10, 1), "1mo", eager=True).to_list()


def test_rows_are_sorted_by_month_and_account(extract):
    keys = extract.select("activity_month", "account_id")
    assert keys.equals(keys.sort("activity_month", "account_id"))


def test_a_handful_of_account_months_occur_twice_some_of_them_restated(extract):
    keys = ["activity_month", "account_id"]
    repeated = extract.filter(pl.struct(keys).is_duplicated())
    assert 3 <= repeated.height // 2 <= 20
    assert 0 < repeated.unique().height - repeated.unique(keys).height < repeated.height // 2


@pytest.mark.parametrize(
    ("quirk", "expected", "tolerance"),
    [
        (pl.col("ftd_date").is_null(), 0.14, 0.012),
        (pl.col("qp_date").is_null(), 0.40, 0.02),
        (HANDLE.is_null(), 0.003, 0.001),
        (pl.col("reg_date").is_null(), 0.0, 0.0),
        (pl.col("reg_date") > MONTH_END, 0.035, 0.006),
        (pl.col("ftd_date") > MONTH_END, 0.036, 0.006),
        (pl.col("ftd_date") < pl.col("reg_date"), 0.015, 0.005),
        (DEPOSIT == 0, 0.55, 0.02),
        (HANDLE == 0, 0.32, 0.02),
        (NGR == 0, 0.27, 0.015),
        ((DEPOSIT > 0) & (HANDLE > 0), 0.40, 0.02),
        ((DEPOSIT == 0) & (HANDLE > 0), 0.28, 0.015),
        ((DEPOSIT == 0) & (HANDLE == 0), 0.27, 0.02),
        ((DEPOSIT > 0) & (HANDLE == 0), 0.05, 0.01),
        (pl.col("player_reg_product") == "BETTING", 0.85, 0.015),
        (pl.col("player_reg_product") == "CASINO", 0.14, 0.015),
    ],
    ids=lambda value: str(value) if isinstance(value, pl.Expr) else "",
)
def test_the_share_of_rows_with_a_quirk_is_that_of_the_reference(extract, quirk, expected, tolerance):
    share = extract.select(quirk.fill_null(value=False).mean()).item()
    assert share == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(("amount", "mean", "sd"), [("total_deposit", 4.3, 1.8), ("total_handle", 4.8, 2.2)])
def test_positive_amounts_are_log_normal_as_in_the_reference(extract, amount, mean, sd):
    logs = extract[amount].filter(extract[amount] > 0).log()
    assert logs.mean() == pytest.approx(mean, abs=0.1)
    assert logs.std() == pytest.approx(sd, abs=0.07)


@pytest.mark.parametrize(("quantile", "expected"), [(0.05, -0.9), (0.5, 0.2), (0.95, 0.96)])
def test_the_sportsbook_keeps_the_references_share_of_the_handle(extract, quantile, expected):
    ratio = extract.filter(HANDLE > 0).select(NGR / HANDLE).to_series()
    assert ratio.quantile(quantile) == pytest.approx(expected, abs=0.04)


def test_tails_are_as_heavy_as_the_references(extract):
    """The reference: handle up to 4.8 million, ngr from -116,000 to +59,000. Extremes vary by seed."""
    assert 5e5 < extract["total_handle"].max() < 5e7
    assert -6e5 < extract["total_ngr"].min() < -2e4
    assert 1e4 < extract["total_ngr"].max() < 3e5
    top = extract.drop_nulls("total_handle").top_k(extract.height // 100, by="total_handle")
    assert top["total_handle"].sum() > 0.4 * extract["total_handle"].sum()


def test_months_active_runs_from_below_zero_to_almost_four_years(extract):
    months_active = extract.select(MONTHS_ACTIVE).to_series().drop_nulls()
    assert months_active.median() == 3
    assert months_active.quantile(0.75) == pytest.approx(8, abs=1)
    assert months_active.min() == -12
    assert 43 <= months_active.max() <= 46


def test_about_a_thousand_trackers_each_belong_to_one_of_the_affiliates_brands(extract):
    owners = extract.group_by("tracker_id").agg(pl.col("ben_login_id").n_unique())
    assert owners.height == pytest.approx(1_000, rel=0.1)
    assert owners["ben_login_id"].max() == 1


@pytest.mark.parametrize(
    ("column", "levels"), [("brand_id", BRANDS), ("ben_login_id", BEN_LOGINS), ("player_reg_product", PRODUCTS)]
)
def test_every_level_occurs_and_no_other(extract, column, levels):
    assert set(extract[column].unique()) == set(levels)


def test_money_is_in_whole_cents(extract):
    money = extract.select(DEPOSIT, HANDLE, NGR)
    assert money.equals(money.select(pl.all().round(2)))
    assert extract.select(pl.min_horizontal(DEPOSIT.min(), HANDLE.min())).item() == 0.0


def test_who_a_player_is_does_not_change_from_month_to_month(extract):
    fixed = ["brand_id", "reg_date", "ftd_date", "qp_date", "ben_login_id", "tracker_id", "player_reg_product"]
    assert extract.select("account_id", *fixed).n_unique() == extract["account_id"].n_unique() == 15_700


def test_players_without_a_first_deposit_pay_nothing_in(extract):
    assert extract.filter(pl.col("ftd_date").is_null())["total_deposit"].max() == 0.0


def test_players_who_churned_hardly_ever_return(extract):
    churned = with_churned(extract).filter("churned").select("account_id", "activity_month").unique()
    moved = extract.filter((DEPOSIT > 0) | (HANDLE > 0)).select("account_id", later="activity_month")
    returned = churned.join(moved, on="account_id").filter(pl.col("later") > pl.col("activity_month"))
    share = returned.select("account_id", "activity_month").n_unique() / churned.height
    assert 0 < share < 0.03


def test_churn_follows_volume_tenure_and_product(extract):
    rows = with_churned(extract).with_columns(months_active=MONTHS_ACTIVE)
    by = {
        "idle": (HANDLE == 0) & (DEPOSIT == 0),
        "busy": HANDLE > 500,
        "new": pl.col("months_active").is_between(0, 1),
        "old": pl.col("months_active") > 12,
        "betting": pl.col("player_reg_product") == "BETTING",
        "casino": pl.col("player_reg_product") == "CASINO",
    }
    churned = {name: rows.filter(group)["churned"].mean() for name, group in by.items()}
    assert churned["idle"] > churned["busy"] + 0.3
    assert churned["new"] > churned["old"] + 0.1
    assert churned["betting"] > churned["casino"] + 0.05


def test_no_one_group_of_rows_gives_churn_away(extract):
    """Idle rows churn most and the busiest least; neither does so always."""
    rows = with_churned(extract)
    assert rows.filter((HANDLE == 0) & (DEPOSIT == 0))["churned"].mean() < 0.9
    assert rows.filter(HANDLE > 5_000)["churned"].mean() > 0.02


def test_the_same_arguments_give_the_same_frame():
    assert simulate(seed=3).equals(simulate(seed=3))


def test_another_seed_gives_another_frame():
    assert not simulate(seed=3).equals(simulate(seed=4))


def test_a_frame_does_not_depend_on_the_process_that_draws_it():
    """Python salts ``hash()`` per process; a variant's market must not hang on it."""
    program = (
        "from datetime import date; from tests.support.simulated import simulate_activity; "
        "from churn.variants import Variant; print(simulate_activity(n_accounts=50, n_months=6, seed=1, "
        "first_month=date(2025, 2, 1), variant=Variant('eu', 'clientb')).write_csv())"
    )
    drawn = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": salt}, capture_output=True, check=True
        ).stdout
        for salt in ("1", "2")
    }
    assert len(drawn) == 1


def test_a_variants_name_is_case_folded_before_it_moves_anything():
    upper = simulate_activity(
        n_accounts=50, first_month=FIRST_MONTH, n_months=3, seed=0, variant=Variant("EU", "ClientB")
    )
    assert upper.equals(simulate(50, n_months=3, variant="geography-eu.company-clientb"))


def test_leaving_out_the_variant_means_the_base_variant():
    left_out = simulate_activity(n_accounts=50, first_month=FIRST_MONTH, n_months=3, seed=0)
    assert left_out.equals(simulate(50, n_months=3))


def test_geographies_and_companies_differ_in_churn_stakes_and_mix_of_brands():
    keys = ["base", "geography-us", "geography-eu", "company-clienta", "company-clientb", "company-us"]
    drawn = [simulate(4_000, variant=key) for key in keys]
    shares = [churned_share(activity) for activity in drawn]
    assert max(shares[1:]) - min(shares[1:]) > 0.1
    assert 0.1 < min(shares) < max(shares) < 0.8

    stakes = [activity.filter(HANDLE > 0)["total_handle"].log().mean() for activity in drawn]
    assert max(stakes[1:]) - min(stakes[1:]) > 0.4

    mixes = np.array([[(activity["brand_id"] == brand).mean() for brand in BRANDS] for activity in drawn])
    for one, other in itertools.combinations(mixes, 2):
        assert np.abs(one - other).sum() > 0.2


def test_both_parts_of_a_variant_move_what_is_drawn():
    both, geography, company = (
        simulate(200, variant=key) for key in ("geography-eu.company-clientb", "geography-eu", "company-clientb")
    )
    assert not both.equals(geography)
    assert not both.equals(company)


def test_one_player_in_one_month_is_enough():
    activity = simulate(1, n_months=1)
    assert activity["account_id"].n_unique() == 1
    assert activity["activity_month"].unique().to_list() == [FIRST_MONTH]


@pytest.mark.parametrize("wrong", [{"n_accounts": 0}, {"n_months": 0}, {"seed": -1}, {"first_month": date(2025, 2, 2)}])
def test_arguments_that_mean_nothing_are_refused_with_their_values(wrong):
    arguments = {"n_accounts": 5, "first_month": FIRST_MONTH, "n_months": 3, "seed": 0, **wrong}
    with pytest.raises(UsageError, match=str(next(iter(wrong.values())))):
        simulate_activity(**arguments)
