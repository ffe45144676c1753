"""At stake: a model must be trained on exactly what scoring will show it, and on nothing from after the as-of date.

Either slip makes a model that looks good on past dates and disappoints on Monday.
"""

from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from churn.data.features import encode, features, in_order, plan_encoding, unpack
from churn.data.labels import Horizon, Reports, at_risk, label
from churn.data.scoring_rows import prepare
from churn.data.snapshots import Held, Snapshot, snapshots
from churn.errors import InputError
from churn.storage.history import new_facts
from churn.weeks import month_ends, month_start
from tests.support.simulated import simulate_activity
from tests.support.world import HEALTHY_WORLD, simulate_world

HORIZON = Horizon()
TODAY = date(2025, 11, 20)
MONTHS = [date(2025, month, 1) for month in range(1, 11)]
AS_OFS = month_ends(date(2025, 1, 31), date(2025, 10, 31))
MONEY = ("total_deposit", "total_handle", "total_ngr")
NAMES = (
    *MONEY,
    "months_active",
    *(f"brand_id_{level}" for level in ("OH", "PA", "NO")),
    *(f"ben_login_id_{level}" for level in ("BCUSA22L", "actionnetwork")),
    *(f"player_reg_product_{level}" for level in ("BETTING", "CASINO")),
)


def at(*instant: int) -> datetime:
    return datetime(*instant, tzinfo=UTC)


def facts_of(records: list[dict[str, object]]) -> pl.DataFrame:
    schema = {
        "account_id": pl.Int64,
        "activity_month": pl.Date,
        "known_at": pl.Datetime("us", "UTC"),
        "ftd_date": pl.Date,
        "brand_id": pl.String,
        "ben_login_id": pl.String,
        "player_reg_product": pl.String,
    }
    return pl.DataFrame(records, schema=schema | dict.fromkeys(MONEY, pl.Float64))


days = st.integers(0, 330).map(lambda n: at(2025, 1, 1, 12) + timedelta(days=n))
facts_drawn = st.fixed_dictionaries(
    {
        "account_id": st.integers(1, 6),
        "activity_month": st.sampled_from(MONTHS),
        "known_at": days,
        "ftd_date": st.sampled_from([None, date(2024, 11, 3), date(2025, 5, 9)]),
        "brand_id": st.sampled_from(["OH", "PA", "XX"]),
        "ben_login_id": st.sampled_from(["BCUSA22L", "other"]),
        "player_reg_product": st.sampled_from(["BETTING", "CASINO"]),
        "total_deposit": st.sampled_from([0.0, 12.5, 0.1]),
        "total_handle": st.sampled_from([0.0, None, 77.7]),
        "total_ngr": st.sampled_from([0.0, -3.3]),
    }
)
tables = st.lists(facts_drawn, min_size=1, max_size=30).map(facts_of)
horizons = st.builds(Horizon, months=st.integers(1, 3), lag_days=st.integers(0, 20))
as_ofs = st.dates(date(2025, 1, 1), date(2025, 10, 31))
todays = st.dates(date(2025, 3, 1), date(2025, 12, 31))


def matrix_of(rows: pl.DataFrame) -> np.ndarray:
    return encode(rows, plan_encoding(NAMES, rows.columns))


def known_then(facts: pl.DataFrame, as_of: date) -> pl.DataFrame:
    return facts.filter(pl.col("known_at").dt.date() <= as_of)


def scored(path: Path, as_of: date) -> dict[int, bytes]:
    """Each account's row of the matrix, as the weekly job makes it of a file."""
    prepared = prepare(path, NAMES, as_of, 0.0, origin="the same facts")
    return {
        int(account): row.tobytes()
        for ids, packed in prepared.chunks()
        for account, row in zip(ids, unpack(packed, prepared.encoding), strict=True)
    }


def require_same(found: list[Snapshot], expected: list[Snapshot]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.rows.equals(other.rows)
        assert one.churned.tolist() == other.churned.tolist()


@pytest.fixture(scope="module")
def history() -> pl.DataFrame:
    """A variant's facts as its history gives them: a backfill, and three weeks with corrections after it."""
    activity = simulate_activity(n_accounts=400, first_month=date(2025, 1, 1), n_months=10, seed=5)
    facts = new_facts(activity.filter(pl.col("activity_month") < MONTHS[8]), None, at(2025, 9, 2, 6))
    for week in range(3):
        is_corrected = pl.Series(np.random.default_rng(week).random(activity.height) < 0.1)
        corrected = pl.when(is_corrected).then(pl.col("total_deposit") + 1).otherwise("total_deposit")
        extract = activity.with_columns(total_deposit=corrected)
        facts = pl.concat([facts, new_facts(extract, facts, at(2025, 11, 3, 6) + timedelta(days=7 * week))])
    return in_order(facts)


def test_month_ends_are_those_from_the_first_day_to_the_last():
    assert month_ends(date(2024, 1, 31), date(2024, 4, 29)) == [date(2024, 1, 31), date(2024, 2, 29), date(2024, 3, 31)]
    assert month_ends(date(2025, 1, 1), date(2025, 1, 30)) == []
    assert month_ends(date(2025, 2, 1), date(2025, 1, 1)) == []


def test_a_snapshot_has_the_accounts_that_could_still_churn_and_whether_they_did():
    def fact(account: int, month: int, deposit: float = 5.0) -> dict[str, object]:
        return {"account_id": account, "activity_month": date(2025, month, 1), "total_deposit": deposit} | {
            "known_at": at(2025, month, 28)
        }

    facts = facts_of(
        [
            fact(1, 6),  # stays
            fact(1, 8),
            fact(2, 6),  # churns, with a trailing row of zeros
            fact(2, 7, 0.0),
            fact(3, 1),  # had churned before
            fact(4, 7),  # comes later
            fact(5, 9),
            fact(5, 10),
        ]
    )

    (snapshot,) = snapshots(facts, [date(2025, 6, 30)], today=TODAY, horizon=HORIZON)

    assert snapshot.as_of == date(2025, 6, 30)
    assert snapshot.rows["account_id"].to_list() == [1, 2]
    assert snapshot.churned.tolist() == [False, True]


def test_dates_whose_labels_are_immature_or_missing_give_no_examples(history):
    early = history.filter(pl.col("known_at") < at(2025, 8, 1))
    made = snapshots(early, AS_OFS, today=TODAY, horizon=HORIZON)

    for snapshot in made:
        n_at_risk = len(at_risk(Reports.of(early), snapshot.as_of, HORIZON))
        is_reached = snapshot.as_of <= date(2025, 4, 30)  # labels to 2025-07-31 are mature, but the facts end before
        assert snapshot.rows.height == (n_at_risk if is_reached else 0)
        assert len(snapshot.churned) == snapshot.rows.height
    assert sum(snapshot.rows.height for snapshot in made) > 200


def test_both_outcomes_are_found_in_simulated_activity(history):
    for snapshot in snapshots(history, AS_OFS[2:7], today=TODAY, horizon=HORIZON):
        assert snapshot.rows.height > 100
        assert 0.2 < snapshot.churned.mean() < 0.8


def test_facts_without_known_at_are_refused_because_a_month_would_be_known_on_its_first_day(history):
    with pytest.raises(InputError, match="the activity has no known_at, so it is unknown what was known"):
        snapshots(history.drop("known_at"), AS_OFS, today=TODAY, horizon=HORIZON)


def test_no_total_of_a_month_reaches_an_as_of_date_within_it_from_a_backfill(history):
    within = features(history, date(2025, 5, 15))
    assert within["activity_month"].max() == date(2025, 4, 1)
    assert features(history, date(2025, 5, 31))["activity_month"].max() == date(2025, 5, 1)


def test_a_late_correction_reaches_only_later_as_of_dates(history):
    dates = [*AS_OFS[:7], date(2025, 11, 2)]
    before = history.filter(pl.col("known_at") < at(2025, 11, 3))
    assert before.height < history.height - 100
    for as_of in dates:
        assert features(history, as_of).equals(features(before, as_of))
    assert not features(history, date(2025, 11, 3)).equals(features(before, date(2025, 11, 3)))


def test_training_again_later_sees_the_same_examples_of_the_same_day(history):
    then = date(2025, 11, 12)
    before = history.filter(pl.col("known_at") < at(2025, 11, 13))
    assert before.height < history.height
    require_same(
        snapshots(history, AS_OFS, today=then, horizon=HORIZON), snapshots(before, AS_OFS, today=then, horizon=HORIZON)
    )


def test_of_rolling_extracts_a_day_has_the_examples_that_its_own_extract_gave():
    names = ("total_handle_sum_12m", "active_months_6m", "months_since_active", "total_ngr_trend_12m")
    world = simulate_world(HEALTHY_WORLD, n_accounts=300, first_month=date(2025, 1, 1), n_months=12, seed=2)
    mondays = [date(2025, 6, 2) + timedelta(weeks=4 * i) for i in range(5)]

    def extract_on(day: date) -> pl.DataFrame:
        return world.extract_on(day).filter(pl.col("activity_month") >= month_start(day, -4))

    facts = new_facts(extract_on(mondays[0]), None, at(2025, 6, 2, 6))
    for day in mondays[1:]:
        facts = in_order(pl.concat([facts, new_facts(extract_on(day), facts, at(day.year, day.month, day.day, 6))]))
    held, horizon = Held(date(2025, 5, 1), mondays[-1]), Horizon(months=1)
    build = partial(snapshots, facts, mondays[:3], today=mondays[-1], horizon=horizon, names=names)

    for shot in build(held=held):
        extract = extract_on(shot.as_of).with_columns(known_at=pl.lit(at(2025, 1, 1)))
        is_at_risk = pl.col("account_id").is_in(at_risk(Reports.of(extract), shot.as_of, horizon).tolist())
        scored = features(extract, shot.as_of, names).filter(is_at_risk)
        assert shot.rows.height > 0.8 * scored.height > 30
        is_labelled = pl.col("account_id").is_in(shot.rows["account_id"].implode())
        assert shot.rows.select("account_id", *names).equals(scored.filter(is_labelled).select("account_id", *names))
    assert not build()[-1].rows.equals(shot.rows), "the history has months that no extract holds any more"
    late, newest = (held.seen(facts, day, MONEY)[0] for day in (date(2026, 6, 1), mondays[-1]))
    assert late.equals(newest), "an old extract has what it had"


def test_the_order_of_the_facts_does_not_matter(history):
    shuffled = history.sample(fraction=1.0, shuffle=True, seed=1)
    require_same(
        snapshots(shuffled, AS_OFS, today=TODAY, horizon=HORIZON),
        snapshots(history, AS_OFS, today=TODAY, horizon=HORIZON),
    )


@settings(deadline=None, max_examples=30)
@given(facts=tables, as_of=as_ofs)
def test_features_are_of_exactly_the_accounts_known_at_the_as_of_date(facts, as_of):
    known = {
        row["account_id"]
        for row in facts.to_dicts()
        if row["known_at"].date() <= as_of and row["activity_month"] <= as_of
    }
    assert features(facts, as_of)["account_id"].to_list() == sorted(known)


@settings(deadline=None, max_examples=30)
@given(facts=tables, others=tables, as_of=as_ofs, horizon=horizons)
def test_nothing_that_became_known_later_changes_an_example_or_who_is_one(facts, others, as_of, horizon):
    later = others.filter(pl.col("known_at").dt.date() > as_of)
    # Both tables must reach past the horizon, or there would be no examples to compare.
    months = [month_start(as_of, i) for i in (1, 2, 3)] + [date(2026, 2, 1)]
    end = [{"account_id": 99, "activity_month": month, "known_at": at(2026, 2, 1)} for month in months]
    known = pl.concat([known_then(facts, as_of), facts_of(end)])
    for more in (pl.concat([later, known]), pl.concat([known, later])):
        assert features(more, as_of).equals(features(known, as_of))
        assert at_risk(Reports.of(more), as_of, horizon).tolist() == at_risk(Reports.of(known), as_of, horizon).tolist()
        (found,) = snapshots(more, [as_of], today=date(2026, 3, 1), horizon=horizon)
        (expected,) = snapshots(known, [as_of], today=date(2026, 3, 1), horizon=horizon)
        assert found.rows.equals(expected.rows)


@settings(deadline=None, max_examples=30)
@given(facts=tables, others=tables, today=todays, horizon=horizons)
def test_nothing_that_becomes_known_after_today_changes_anything_until_then(facts, others, today, horizon):
    dates = [as_of for as_of in AS_OFS if as_of <= today][-4:]
    later = others.filter(pl.col("known_at").dt.date() > today)
    expected = snapshots(known_then(facts, today), dates, today=today, horizon=horizon)
    require_same(snapshots(pl.concat([later, known_then(facts, today)]), dates, today=today, horizon=horizon), expected)


@settings(deadline=None, max_examples=30)
@given(facts=tables, today=todays, horizon=horizons)
def test_no_label_is_used_before_it_is_mature_and_each_is_what_label_says(facts, today, horizon):
    for snapshot in snapshots(facts, AS_OFS[::3], today=today, horizon=horizon):
        accounts = snapshot.rows["account_id"].to_numpy()
        if today < horizon.matures_on(snapshot.as_of):
            assert len(accounts) == len(snapshot.churned) == 0
        candidates = at_risk(Reports.of(facts), snapshot.as_of, horizon)
        labels = label(Reports.of(facts), candidates, snapshot.as_of, today=today, horizon=horizon)
        assert labels.account_ids.tolist() == accounts.tolist()
        assert labels.churned.tolist() == snapshot.churned.tolist()


@settings(deadline=None, max_examples=40)
@given(facts=tables, as_of=as_ofs)
def test_the_matrix_of_the_examples_is_to_the_byte_what_scoring_makes_of_the_same_facts(tmp_path_factory, facts, as_of):
    # One account at risk at least, and reports that show that the facts of all months arrived.
    one = {"account_id": 50, "activity_month": as_of.replace(day=1), "known_at": at(as_of.year, as_of.month, as_of.day)}
    months = [month_start(as_of, i) for i in (1, 2, 3)] + [date(2026, 2, 1)]
    end = [{"account_id": 99, "activity_month": month, "known_at": at(2026, 2, 1)} for month in months]
    rest = {"brand_id": "OH", "ben_login_id": "other", "player_reg_product": "CASINO", "total_deposit": 0.3}
    whole = pl.concat([facts, facts_of([record | rest | {"total_ngr": 0.0} for record in (one, *end)])])
    (snapshot,) = snapshots(whole, [as_of], today=date(2026, 3, 1), horizon=HORIZON)
    path = tmp_path_factory.mktemp("facts") / "activity.parquet"
    whole.write_parquet(path)

    rows = scored(path, as_of)

    accounts = snapshot.rows["account_id"].to_list()
    assert 50 in accounts
    assert matrix_of(snapshot.rows).tobytes() == b"".join(rows[account] for account in accounts)
    assert sorted(rows) == features(whole, as_of)["account_id"].to_list()


def test_so_it_is_of_a_whole_history_with_its_corrections_at_every_date(tmp_path, history):
    path = tmp_path / "activity.parquet"
    history.sample(fraction=1.0, shuffle=True, seed=2).write_parquet(path)
    names = (*MONEY, "months_active", "brand_id_OH", "brand_id_PA", "ben_login_id_actionnetwork", "tracker_id")
    for snapshot in snapshots(history, [*AS_OFS[:7], date(2025, 5, 11)], today=TODAY, horizon=HORIZON):
        prepared = prepare(path, names, snapshot.as_of, 0.0, origin="the history")
        chunks = [(ids, unpack(packed, prepared.encoding)) for ids, packed in prepared.chunks()]
        accounts = np.concatenate([ids for ids, _ in chunks])
        order = np.argsort(accounts)
        is_example = np.isin(accounts[order], snapshot.rows["account_id"].to_numpy())
        matrix = np.concatenate([rows for _, rows in chunks])[order][is_example]
        assert matrix.tobytes() == encode(snapshot.rows, plan_encoding(names, snapshot.rows.columns)).tobytes()
        assert 0 < len(matrix) <= len(accounts)
