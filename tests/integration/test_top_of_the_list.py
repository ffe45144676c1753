"""At stake: analysts act on the top of the list, so nobody there may have left already.

What an account did is read from the rows of the extract, not from ``is_at_risk``, which is what is tested.
"""

import io
import re
from datetime import date, timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import polars as pl
import polars.selectors as cs
import pytest
from polars.testing import assert_frame_equal

from churn.cli.demo import VARIANTS, _predictions_table, demo_activity, is_outdated_sample
from churn.cli.explain import build_console
from churn.data.activity import MONEY
from churn.database.published import PublishedPredictions
from churn.defaults import HORIZON_MONTHS
from churn.deployment.services import Deployment
from churn.deployment.settings import find_bundled_files
from churn.variants import Variant
from churn.weeks import monday_of, month_end, month_start
from churn.workflows.score import score_fleet
from tests.support.batches import week_request
from tests.support.inputs import put_input, register_bundled
from tests.support.site import Run, Site
from tests.support.world import World, simulate_world

FIRST_WEEK, N_WEEKS, N_TOP = date(2026, 4, 27), 26, 100
KEYS = [variant.key for variant in VARIANTS]
BUNDLED = pl.read_parquet(find_bundled_files() / "data" / "churn" / "activity.parquet")
NEWEST = date(2026, 10, 1)


@pytest.mark.slow
def test_nobody_in_the_top_100_of_26_weeks_had_left(site: Site, log_model: Run, deployment: Deployment) -> None:
    register_bundled(site, log_model, *KEYS)
    worlds = {
        key: simulate_world(
            World(), n_accounts=2_500, first_month=date(2025, 2, 1), n_months=21, seed=7, variant=Variant.from_key(key)
        )
        for key in KEYS
    }
    published = PublishedPredictions(deployment.database)
    n_gone = 0
    for week in (FIRST_WEEK + timedelta(weeks=i) for i in range(N_WEEKS)):
        as_of = week + timedelta(days=6)
        extracts = {key: world.extract_on(as_of + timedelta(days=1)) for key, world in worlds.items()}
        for key, extract in extracts.items():
            put_input(site, key, as_parquet(extract))
        outcomes = dict(score_fleet(deployment.scorer(), KEYS, week_request(week), lambda *_: None))
        assert outcomes == dict.fromkeys(KEYS), week
        highest = published.highest(week, KEYS, N_TOP)
        for key, extract in extracts.items():
            there = active_accounts(extract, as_of)
            top = [int(row.account_id) for row in highest if row.variant == key]
            assert len(top) == N_TOP
            assert set(top) <= there, f"{week}, {key}: {set(top) - there} had left"
            n_gone += extract["account_id"].n_unique() - len(there)
    assert n_gone > N_WEEKS * len(KEYS) * N_TOP, "most accounts of an extract have left, so the list could hold them"


@pytest.mark.parametrize("week", [date(2026, 11, 30), date(2031, 3, 3)])
def test_the_demo_of_any_year_has_more_players_at_risk_than_it_shows(week: date) -> None:
    activity = {variant: demo_activity(BUNDLED, variant, week) for variant in VARIANTS}
    for months in activity.values():
        assert months["activity_month"].max() == month_start(week, -1)
        assert len(active_accounts(months, week)) > N_TOP
    accounts = [set(months["account_id"]) for months in activity.values()]
    assert accounts[0] == set(BUNDLED["account_id"])
    assert all(len(one - other) > N_TOP for one, other in permutations(accounts[1:], 2))


@pytest.mark.parametrize("n", [-22, 0, 1, 4, 13])
def test_all_dates_of_the_demo_move_by_the_same_months(n: int) -> None:
    moved = demo_activity(BUNDLED, Variant(), month_start(NEWEST, n + 1))
    days = BUNDLED.select(cs.temporal())
    for before, after in zip(days, moved.select(cs.temporal()), strict=True):
        assert [None if day is None else later(day, n) for day in before] == after.to_list(), before.name
    assert days.width == 4
    assert_frame_equal(moved.select(~cs.temporal()), BUNDLED.select(~cs.temporal()))


def test_the_demo_replaces_the_bundled_activity_once_nobody_in_it_is_at_risk(tmp_path: Path) -> None:
    bundled = find_bundled_files() / "data" / "churn" / "activity.parquet"
    weeks = [monday_of(month_start(NEWEST, months) + timedelta(days=6)) for months in (1, 3, 4)]
    assert [is_outdated_sample(bundled, week) for week in weeks] == [False, False, True]
    assert len(active_accounts(BUNDLED, weeks[1])) > N_TOP
    own = tmp_path / "activity.parquet"
    BUNDLED.head(100).write_parquet(own)
    assert not is_outdated_sample(own, weeks[2])


def active_accounts(extract: pl.DataFrame, as_of: date) -> set[int]:
    """Return the accounts with money moved in the months of the horizon before the as-of day's month, or since."""
    moved = pl.any_horizontal(pl.col(name).fill_null(0.0) != 0 for name in MONEY)
    since = pl.col("activity_month") >= month_start(as_of, -HORIZON_MONTHS)
    return set(
        extract.unique(["account_id", "activity_month"], keep="last", maintain_order=True).filter(moved, since)[
            "account_id"
        ]
    )


def later(day: date, n_months: int) -> date:
    """Return the same day of a later month, or that month's last day."""
    month = month_start(day, n_months)
    return month.replace(day=min(day.day, month_end(month).day))


def as_parquet(extract: pl.DataFrame) -> bytes:
    body = io.BytesIO()
    extract.write_parquet(body)
    return body.getvalue()


def test_the_demo_shows_no_reason_of_0(capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["a = 1 (+0.01)", "b = 1 (+0.00)", "c = 1 (-0.00)", "d = 1 (+10.00)", None]
    rows: Any = [("base", "7", 0.5, *(one for text in texts for one in (text, f"{text} in words")))]
    build_console().print(_predictions_table(rows, FIRST_WEEK, []))
    assert re.findall(r"([a-d]) = 1 \(\S+ in words", capsys.readouterr().out) == ["a", "d"]
