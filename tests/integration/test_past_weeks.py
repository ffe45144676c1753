"""At stake: a past week must be what could have been known then; whole months and corrections that came later must not
slip in, or a replay looks better than the week was.
"""

from datetime import UTC, date, datetime, timedelta
from functools import partial

import pandas as pd
import polars as pl
import pytest

from churn.cli.main import main
from churn.deployment.services import Deployment
from churn.variants import Variant
from tests.support.inputs import activity, as_parquet, encoded, expected, monday, put_input, register_bundled
from tests.support.site import Run, Site

US = Variant("us")
WEEK = monday(1)
SUNDAY = WEEK + timedelta(days=6)
MONEY = ["total_deposit", "total_handle", "total_ngr"]


@pytest.fixture
def churn(run_main: Run) -> Run:
    return partial(run_main, main)


def at(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, 12, tzinfo=UTC)


def scores(site: Site) -> dict[int, float]:
    return dict(site.current().select("account_id", "churn_probability").iter_rows())


def facts(rows: pd.DataFrame) -> pl.DataFrame:
    typed = pl.from_pandas(rows)
    return typed.with_columns(pl.col("activity_month", "reg_date", "ftd_date", "qp_date").cast(pl.Date))


def test_a_past_week_is_what_was_known_then_and_a_corrected_one_says_so(
    site: Site, log_model: Run, deployment: Deployment, churn: Run
) -> None:
    register_bundled(site, log_model, US.key)
    then = activity()
    now = then.copy()
    now[MONEY] *= 3  # every month was corrected afterwards, and new players came
    new = then[then["account_id"] == then["account_id"].min()].assign(account_id=1)
    now = pd.concat([now, new])
    history = deployment.history()
    history.append(US, facts(then), at(WEEK - timedelta(days=3)))
    history.append(US, facts(now), at(SUNDAY + timedelta(days=1)))
    put_input(site, US.key, as_parquet(now))

    said = churn("score", US.key, "--week", str(WEEK))

    assert said.status == 0, said
    assert scores(site) == pytest.approx(expected(then, SUNDAY), abs=1e-6)
    row = site.current().row(0, named=True)
    assert (row["scored_from"], row["as_of"], row["is_foreign_data"]) == ("history", SUNDAY, False)
    assert row["source_uri"].endswith("/geography-us/history/activity/")
    query = "SELECT count(*) FROM scoring_batches WHERE scored_from = 'history' AND source_modified_at < :end"
    assert site.rows(site.churn, query, end=at(SUNDAY)) == [(1,)]

    churn("score", US.key, "--week", str(WEEK), "--corrected")

    assert scores(site) == pytest.approx(expected(now, SUNDAY), abs=1e-6)
    assert set(site.current()["scored_from"]) == {"corrected extract"}
    assert deployment.store().latest_inputs()[US.key] == deployment.sources().input_version(US)


def test_what_no_history_knows_is_refused_with_the_way_to_go_on(site: Site, log_model: Run, churn: Run) -> None:
    register_bundled(site, log_model, US.key)
    put_input(site, US.key, as_parquet(encoded(activity(), monday())))

    refused = churn("score", US.key, "--week", str(WEEK))

    assert (refused.status, "--corrected" in refused.err, str(SUNDAY) in refused.err) == (1, True, True)
    assert churn("score", US.key, "--week", str(WEEK), "--corrected").status == 0


def test_a_day_outside_its_week_is_refused_and_never_becomes_current(site: Site, log_model: Run, churn: Run) -> None:
    register_bundled(site, log_model, US.key)
    put_input(site, US.key, as_parquet(activity()))
    assert churn("score", US.key, "--week", str(WEEK), "--corrected").status == 0
    before = scores(site)
    outside = ("score", US.key, "--week", str(WEEK), "--as-of", str(WEEK - timedelta(days=60)), "--corrected")

    churn(*outside).require_one_line("is outside the week", "--force", status=2)
    forced = churn(*outside, "--force")

    assert (forced.status, "not made current" in forced.out) == (0, True)
    assert scores(site) == before
    query = "SELECT is_current, as_of < scored_week FROM scoring_batches ORDER BY batch_id"
    assert site.rows(site.churn, query) == [(True, False), (False, True)]
    tomorrow = str(date.today() + timedelta(days=2))  # noqa: DTZ011 later than any clock's today
    churn("score", US.key, "--as-of", tomorrow).require_one_line("is in the future", status=2)
