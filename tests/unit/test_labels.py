"""At stake: a label that was not known yet, or that rests on what became known later, flatters the model.

And one that counts an account as churned because its reports are not in yet would teach the model the feed's delay.
"""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from churn.data.labels import Horizon, Reports, at_risk, label
from churn.errors import InputError

HORIZON = Horizon()
AS_OF = date(2025, 3, 31)  # horizon: April to June
MATURE = date(2025, 7, 8)
MONEY = ("total_deposit", "total_handle", "total_ngr")


def at(*instant: int) -> datetime:
    return datetime(*instant, tzinfo=UTC)


def end_of(month: date) -> datetime:
    following = (month + timedelta(days=31)).replace(day=1)
    return at(following.year, following.month, 1) - timedelta(microseconds=1)


def facts_of(*records: dict[str, object]) -> pl.DataFrame:
    """Facts of account 1 in March, known at their month's end, with some of a deposit, if not told otherwise."""
    defaults = {"account_id": 1, "activity_month": date(2025, 3, 1), "total_deposit": 5.0} | dict.fromkeys(
        MONEY[1:], 0.0
    )
    rows = [defaults | record for record in records]
    schema = {"account_id": pl.Int64, "activity_month": pl.Date, "known_at": pl.Datetime("us", "UTC")}
    schema |= dict.fromkeys(MONEY, pl.Float64)
    return pl.DataFrame([{"known_at": end_of(row["activity_month"])} | row for row in rows], schema=schema)


def facts_to_the_end(*records: dict[str, object]) -> pl.DataFrame:
    """The same, with another account whose reports show that all months of the horizon arrived, and the one after."""
    others = [{"account_id": 99, "activity_month": date(2025, month, 1)} for month in (4, 5, 6)]
    others.append({"account_id": 99, "activity_month": date(2025, 7, 1), "known_at": at(2025, 7, 2)})
    return facts_of({}, *others, *records)


def churned(facts: pl.DataFrame, *accounts: int, today: date = MATURE) -> list[bool]:
    labels = label(Reports.of(facts), np.array(accounts or [1]), AS_OF, today=today, horizon=HORIZON)
    assert labels.account_ids.tolist() == sorted(accounts or [1])
    return labels.churned.tolist()


@pytest.mark.parametrize(
    ("as_of", "first", "last", "mature"),
    [
        (date(2025, 3, 31), date(2025, 4, 1), date(2025, 6, 1), date(2025, 7, 8)),
        (date(2025, 3, 1), date(2025, 4, 1), date(2025, 6, 1), date(2025, 7, 8)),
        (date(2025, 9, 30), date(2025, 10, 1), date(2025, 12, 1), date(2026, 1, 8)),
        (date(2025, 12, 28), date(2026, 1, 1), date(2026, 3, 1), date(2026, 4, 8)),
    ],
    ids=str,
)
def test_the_horizon_is_the_whole_months_after_the_as_of_dates_month(as_of, first, last, mature):
    assert (HORIZON.first_month(as_of), HORIZON.last_month(as_of), HORIZON.matures_on(as_of)) == (first, last, mature)


@pytest.mark.parametrize("month", [date(2025, 4, 1), date(2025, 5, 1), date(2025, 6, 1)])
def test_activity_in_any_month_of_the_horizon_means_that_the_account_stayed(month):
    assert churned(facts_to_the_end({"activity_month": month})) == [False]


@pytest.mark.parametrize("month", [date(2025, 2, 1), date(2025, 3, 1), date(2025, 7, 1)])
def test_activity_outside_the_horizon_does_not(month):
    assert churned(facts_to_the_end({"activity_month": month})) == [True]


@pytest.mark.parametrize(
    ("money", "is_activity"),
    [
        ((0.0, 0.0, 0.0), False),
        ((0.0, None, 0.0), False),
        ((None, None, None), False),
        ((0.01, 0.0, 0.0), True),
        ((0.0, 3.0, 0.0), True),
        ((0.0, None, -8.0), True),
        ((-0.0, None, 0.0), False),
    ],
    ids=str,
)
def test_activity_is_money_that_moved_and_what_is_missing_did_not(money, is_activity):
    facts = facts_to_the_end({"activity_month": date(2025, 5, 1)} | dict(zip(MONEY, money, strict=True)))
    assert churned(facts) == [not is_activity]


@pytest.mark.parametrize("column", MONEY)
def test_one_money_column_is_enough(column):
    facts = facts_to_the_end({"activity_month": date(2025, 5, 1)} | dict.fromkeys(MONEY, 1.0))
    assert churned(facts.drop(set(MONEY) - {column})) == [False]


@pytest.mark.parametrize(
    ("missing", "why"),
    [
        (MONEY, "at least one of total_deposit, total_handle, total_ngr is needed"),
        (["known_at"], "the activity has no known_at, .*read it from the variant's history"),
    ],
    ids=["money", "known_at"],
)
def test_facts_that_cannot_tell_are_refused(missing, why):
    facts = facts_to_the_end().drop(missing)
    with pytest.raises(InputError, match=why):
        label(Reports.of(facts), np.array([1]), AS_OF, today=MATURE, horizon=HORIZON)
    with pytest.raises(InputError, match=why):
        at_risk(Reports.of(facts), AS_OF, HORIZON)


def test_a_label_is_immature_until_the_horizon_and_the_lag_have_passed():
    facts = facts_to_the_end()
    before = label(Reports.of(facts), np.array([1, 99, 5]), AS_OF, today=MATURE - timedelta(days=1), horizon=HORIZON)
    assert (before.account_ids.tolist(), before.churned.tolist()) == ([], [])
    assert before.n_missing == 0
    assert churned(facts) == [True]


def test_the_lag_is_waited_for_and_no_longer():
    facts = facts_to_the_end()
    for lag_days in (0, 1, 30):
        horizon = Horizon(3, lag_days)
        first_day = date(2025, 7, 1) + timedelta(days=lag_days)
        for today, is_mature in ((first_day - timedelta(days=1), False), (first_day, True)):
            labels = label(Reports.of(facts), np.array([1]), AS_OF, today=today, horizon=horizon)
            assert len(labels.account_ids) + labels.n_missing == is_mature


@pytest.mark.parametrize(
    ("last_known", "is_missing"),
    [
        (at(2025, 6, 30, 23, 59, 59), True),
        (at(2025, 6, 30, 23, 59, 59, 999_999), False),
        (at(2025, 7, 1), False),
        (at(2025, 7, 8, 23, 59, 59), False),
        (at(2025, 7, 9), True),
    ],
    ids=str,
)
def test_labels_are_missing_where_the_facts_known_today_do_not_reach_past_the_horizon(last_known, is_missing):
    others = [{"account_id": 2, "activity_month": date(2025, month, 1), "known_at": at(2025, 6, 1)} for month in (4, 5)]
    facts = facts_of({}, *others, {"account_id": 2, "activity_month": date(2025, 6, 1), "known_at": last_known})
    labels = label(Reports.of(facts), np.array([1]), AS_OF, today=MATURE, horizon=HORIZON)
    assert (labels.n_missing, len(labels.account_ids)) == (is_missing, not is_missing)


@pytest.mark.parametrize(
    "record",
    [{"activity_month": date(2025, 4, 1)}, {"known_at": at(2025, 4, 1)}],
    ids=["its first month is later", "its first report is later"],
)
def test_an_account_that_was_not_known_at_the_as_of_date_has_no_label(record):
    reports = Reports.of(facts_to_the_end({"account_id": 2} | record))
    labels = label(reports, np.array([2, 1, 3]), AS_OF, today=MATURE, horizon=HORIZON)
    assert labels.account_ids.tolist() == [1]
    assert labels.n_missing == 2


def test_of_the_reports_of_a_month_the_one_known_last_decides_and_none_that_is_known_later():
    reports = [
        {"activity_month": date(2025, 5, 1), "total_deposit": deposit, "known_at": known_at}
        for deposit, known_at in ((7.0, at(2025, 6, 1)), (0.0, at(2025, 7, 20)), (3.0, at(2025, 9, 1)))
    ]
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        facts = facts_to_the_end(*(reports[i] for i in order))
        by_day = [churned(facts, today=today) for today in (date(2025, 7, 19), date(2025, 7, 20), date(2025, 9, 1))]
        assert by_day == [[False], [True], [False]]


def test_of_reports_known_alike_the_later_in_the_file_decides():
    reports = [{"activity_month": date(2025, 5, 1), "total_deposit": deposit} for deposit in (7.0, 0.0)]
    assert churned(facts_to_the_end(*reports)) == [True]
    assert churned(facts_to_the_end(*reversed(reports))) == [False]


def test_accounts_may_be_asked_for_in_any_order_and_twice():
    facts = facts_to_the_end({"account_id": 7}, {"account_id": 7, "activity_month": date(2025, 4, 1)})
    labels = label(Reports.of(facts), np.array([7, 1, 7]), AS_OF, today=MATURE, horizon=HORIZON)
    assert labels.account_ids.tolist() == [1, 7]
    assert labels.churned.tolist() == [True, False]


def test_nobody_asked_for_is_nobody_labelled():
    for today in (MATURE, AS_OF):
        labels = label(
            Reports.of(facts_to_the_end()), np.array([], dtype=np.int64), AS_OF, today=today, horizon=HORIZON
        )
        assert (len(labels.account_ids), labels.n_missing) == (0, 0)


@pytest.mark.parametrize(
    ("as_of", "months"),
    [
        (date(2025, 7, 1), [4, 5, 6, 7]),
        (date(2025, 6, 30), [3, 4, 5, 6]),
        (date(2025, 6, 1), [3, 4, 5, 6]),
        (date(2025, 5, 31), [2, 3, 4, 5]),
        (date(2025, 10, 31), [7, 8]),
        (date(2025, 12, 1), []),
    ],
    ids=str,
)
def test_those_are_at_risk_that_were_active_in_the_months_of_the_horizon_before_the_as_of_month_or_since(as_of, months):
    # Account n was active in month n, and had a report of nothing in the month after.
    active = [{"account_id": n, "activity_month": date(2025, n, 1), "known_at": at(2025, n, 1)} for n in range(1, 9)]
    quiet = [
        report | {"activity_month": date(2025, report["account_id"] + 1, 1), "total_deposit": 0.0} for report in active
    ]
    assert at_risk(Reports.of(facts_of(*active, *quiet)), as_of, HORIZON).tolist() == months


def test_where_reports_come_in_late_the_months_are_still_counted_from_the_as_of_day():
    late = [{"account_id": n, "activity_month": date(2025, n, 1), "known_at": at(2025, n + 1, 5)} for n in range(1, 9)]

    assert at_risk(Reports.of(facts_of(*late)), date(2025, 6, 30), HORIZON).tolist() == [3, 4, 5]
    assert at_risk(Reports.of(facts_of(*late)), date(2025, 7, 4), HORIZON).tolist() == [4, 5]
    assert at_risk(Reports.of(facts_of(*late)), date(2025, 7, 5), HORIZON).tolist() == [4, 5, 6]


def test_a_correction_to_nothing_ends_the_risk_from_when_it_is_known():
    facts = facts_of({}, {"total_deposit": 0.0, "known_at": at(2025, 4, 20)})
    assert at_risk(Reports.of(facts), date(2025, 4, 19), HORIZON).tolist() == [1]
    assert at_risk(Reports.of(facts), date(2025, 4, 20), HORIZON).tolist() == []


MONTHS = [date(2025, month, 1) for month in range(1, 9)]
days = st.integers(0, 240).map(lambda n: at(2025, 1, 1, 12) + timedelta(days=n))
amounts = st.sampled_from([0.0, None, 4.0, -4.0])
reports = st.fixed_dictionaries(
    {"account_id": st.integers(1, 5), "activity_month": st.sampled_from(MONTHS), "known_at": days}
    | dict.fromkeys(MONEY, amounts)
)
tables = st.lists(reports, min_size=1, max_size=25).map(lambda records: facts_of(*records))
horizons = st.builds(Horizon, months=st.integers(1, 3), lag_days=st.integers(0, 40))
as_ofs = st.dates(date(2025, 1, 1), date(2025, 6, 30))
todays = st.dates(date(2025, 1, 1), date(2025, 12, 31))
ACCOUNTS = np.arange(1, 7)


def latest_reports(facts: pl.DataFrame, day: date) -> dict[tuple[int, date], bool]:
    """Whether there was activity, of each account's month as known at the end of a day; the slow and plain way."""
    active: dict[tuple[int, date], bool] = {}
    for row in sorted(facts.to_dicts(), key=lambda row: row["known_at"]):
        if row["known_at"].date() <= day:
            active[row["account_id"], row["activity_month"]] = any(row[name] for name in MONEY)
    return active


def require_same(found, expected) -> None:
    assert found.account_ids.tolist() == expected.account_ids.tolist()
    assert found.churned.tolist() == expected.churned.tolist()
    assert found.n_missing == expected.n_missing


@settings(deadline=None, max_examples=100)
@given(facts=tables, as_of=as_ofs, today=todays, horizon=horizons)
def test_labels_are_what_the_slow_and_plain_way_gives(facts, as_of, today, horizon):
    labels = label(Reports.of(facts), ACCOUNTS, as_of, today=today, horizon=horizon)

    known = {account for account, month in latest_reports(facts, as_of) if month <= as_of}
    first, last = horizon.first_month(as_of), horizon.last_month(as_of)
    active = {
        account
        for (account, month), is_active in latest_reports(facts, today).items()
        if is_active and first <= month <= last
    }
    reach = any(end_of(last) <= known_at and known_at.date() <= today for known_at in facts["known_at"])
    reach &= {month for month in MONTHS if first <= month <= last} <= {
        month for _, month in latest_reports(facts, today)
    }
    is_mature = today >= horizon.matures_on(as_of)
    expected = sorted(known) if is_mature and reach else []
    assert labels.account_ids.tolist() == expected
    assert labels.churned.tolist() == [account not in active for account in expected]
    assert labels.n_missing == (len(ACCOUNTS) - len(expected) if is_mature else 0)


@settings(deadline=None, max_examples=30)
@given(facts=tables, changed=tables, as_of=as_ofs, today=todays, horizon=horizons)
def test_no_fact_that_becomes_known_after_today_changes_a_label(facts, changed, as_of, today, horizon):
    is_known = pl.col("known_at").dt.date() <= today
    others = pl.concat([changed.filter(~is_known), facts.filter(is_known)])
    require_same(
        label(Reports.of(others), ACCOUNTS, as_of, today=today, horizon=horizon),
        label(Reports.of(facts), ACCOUNTS, as_of, today=today, horizon=horizon),
    )


@settings(deadline=None, max_examples=30)
@given(facts=tables, as_of=as_ofs, today=todays, horizon=horizons)
def test_no_label_is_given_before_it_is_mature(facts, as_of, today, horizon):
    assume(today < horizon.matures_on(as_of))
    labels = label(Reports.of(facts), ACCOUNTS, as_of, today=today, horizon=horizon)
    assert (len(labels.account_ids), len(labels.churned), labels.n_missing) == (0, 0, 0)


@settings(deadline=None, max_examples=30)
@given(facts=tables, changed=tables, as_of=as_ofs, horizon=horizons)
def test_who_is_at_risk_is_what_the_plain_way_gives_and_nothing_known_later_changes_it(facts, changed, as_of, horizon):
    last = as_of.year * 12 + as_of.month
    active = {
        account
        for (account, month), is_active in latest_reports(facts, as_of).items()
        if is_active and last - horizon.months <= month.year * 12 + month.month <= last
    }
    later = changed.filter(pl.col("known_at").dt.date() > as_of)
    for table in (facts, pl.concat([later, facts]), pl.concat([facts, later])):
        assert at_risk(Reports.of(table), as_of, horizon).tolist() == sorted(active)
