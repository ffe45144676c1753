"""Labels: who churned after an as-of date, and when the label is mature. Pure.

A player has churned at an as-of date if no month of its horizon has activity: a deposit, a handle or net gaming revenue
that is not zero. The horizon is whole calendar months, beginning with the one after the as-of date's month: activity is
known by the month, so the days left in the as-of date's month count for neither side. A label exists once it is mature:
when the whole horizon and the days that late reports need have passed. Not here: features (``churn.data.features``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import polars as pl

from churn.data.activity import MONEY, ONE_HOT_COLUMNS
from churn.data.arrays import Flags, Ints, Longs
from churn.data.features import are_in_order, is_active, key_columns
from churn.data.observed import observed_accounts, unknown_accounts, unreadable_reports
from churn.data.windows import KnownRows
from churn.defaults import HORIZON_MONTHS, LABEL_LAG_DAYS
from churn.errors import InputError
from churn.weeks import at_risk_since, day_start_us, days_since_epoch, month_start

Ids = Longs
_MONTHS_BEFORE = 6  # up to the as-of date's, with which the months of the horizon are compared
_MONTHS_AFTER = 3  # after the horizon, which show whether accounts came back


@dataclass(frozen=True)
class Horizon:
    """The whole calendar months after an as-of date's month that a label covers, and the days of wait for late reports.

    At least 1 month and 0 days, as the settings require.

    >>> Horizon().last_month(date(2025, 11, 30)), Horizon().matures_on(date(2025, 11, 30))
    (datetime.date(2026, 2, 1), datetime.date(2026, 3, 8))
    """

    months: int = HORIZON_MONTHS
    lag_days: int = LABEL_LAG_DAYS

    def first_month(self, as_of: date) -> date:
        return month_start(as_of, 1)

    def last_month(self, as_of: date) -> date:
        return month_start(as_of, self.months)

    def matures_on(self, as_of: date) -> date:
        """Return the first day on which labels of ``as_of`` may be used."""
        return month_start(as_of, self.months + 1) + timedelta(days=self.lag_days)

    def newest_mature(self, today: date) -> date:
        """Return the latest as-of date whose labels may be used today.

        >>> Horizon().newest_mature(date(2026, 3, 7)), Horizon().newest_mature(date(2026, 3, 8))
        (datetime.date(2025, 10, 31), datetime.date(2025, 11, 30))
        """
        return month_start(today - timedelta(days=self.lag_days), -self.months) - timedelta(days=1)


@dataclass(frozen=True)
class Labels:
    """Accounts' labels."""

    account_ids: Ids  # those with a mature label, ascending; shape (n,)
    churned: Flags  # their labels; shape (n,)
    # Accounts without a label although the horizon has passed: the facts do not reach its end, the account was not
    # known at the as-of date, or a month was not observed (churn.data.observed). Activity in another makes no
    # difference, or those who stay would have labels more often than those who leave.
    n_missing: int


@dataclass(frozen=True)
class Reports:
    """A variant's activity as arrays of shape (n,), sorted by account, month, ``known_at`` and arrival."""

    account_ids: Ids
    months: Ints  # days since 1970
    known_at: Longs  # microseconds since 1970, UTC
    is_active: Flags  # whether any money column is neither missing nor zero
    segments: pl.DataFrame  # the account's levels of the segments whose rows are watched, shape (n, n_segments)
    unreadable: pl.DataFrame | None = None  # rows that were quarantined, see churn.data.observed.unreadable_reports

    @classmethod
    def of(
        cls,
        facts: pl.DataFrame,
        money: Sequence[str] = MONEY,
        segments: Sequence[str] = ONE_HOT_COLUMNS,
        quarantined: pl.DataFrame | None = None,
    ) -> "Reports":
        """Build from checked activity, and from the keys and ``known_at`` of the rows that broke the contract.

        Raises ``InputError`` if ``facts`` lack ``known_at`` or every money column.
        """
        if "known_at" not in facts.columns:
            remedy = "read it from the variant's history, which adds known_at to every fact"
            raise InputError(f"the activity has no known_at, so it is unknown what was known at a past date; {remedy}")
        selected = facts.select(pl.col(key_columns(facts.columns)).to_physical(), is_active(facts, money))
        columns = [column.to_numpy() for column in selected]
        levels = facts.select(name for name in segments if name in facts.columns)
        if not are_in_order(columns[:3]):
            order = np.lexsort(columns[2::-1])
            columns = [column[order] for column in columns]
            levels = levels.select(pl.all().gather(order))
        unreadable = None if quarantined is None or quarantined.is_empty() else unreadable_reports(quarantined, facts)
        accounts, months, known_at, activity = columns
        return cls(accounts, months, known_at, activity, levels, unreadable)


def label(reports: Reports, account_ids: Ids, as_of: date, *, today: date, horizon: Horizon) -> Labels:
    """Return which accounts churned at ``as_of``, by the facts known at the end of ``today``; ids in any order.

    Of the reports of an account's month, the one known last counts, then the one later in the file.
    """
    requested = np.unique(account_ids)
    first_month, last_month = horizon.first_month(as_of), horizon.last_month(as_of)
    is_mature = today >= horizon.matures_on(as_of)
    if not is_mature or not _reach(reports, last_month, today):
        return Labels(requested[:0], np.zeros(0, dtype=np.bool_), len(requested) if is_mature else 0)
    labelled = requested[np.isin(requested, reports.account_ids[_known(reports, as_of)])]
    active = _active_accounts(reports, first_month, last_month, today)
    labelled = labelled[_are_observed(reports, labelled, as_of, today, horizon)]
    return Labels(labelled, ~np.isin(labelled, active, assume_unique=True), len(requested) - len(labelled))


def _are_observed(reports: Reports, account_ids: Ids, as_of: date, today: date, horizon: Horizon) -> Flags:
    """Return whether all months of the horizon were observed for accounts known at ``as_of``; ids ascending."""
    first, end = 1 - _MONTHS_BEFORE, horizon.months + _MONTHS_AFTER + 1
    months = np.array([days_since_epoch(month_start(as_of, i)) for i in range(first, end)])
    rows = np.flatnonzero(_known_by(reports, today))
    accounts, is_first = reports.account_ids[rows], np.ones(len(rows), dtype=np.bool_)
    is_first[1:] = accounts[1:] != accounts[:-1]
    is_within = np.isin(reports.months[rows], months)
    present = np.zeros((int(is_first.sum()), len(months)), dtype=np.bool_)
    present[(np.cumsum(is_first) - 1)[is_within], np.searchsorted(months, reports.months[rows[is_within]])] = True
    levels = reports.segments.select(pl.all().gather(_rows_at(reports, rows[is_first], as_of)))
    # Arrow encodes in a fraction of the time of ranks.
    numbers = [one.to_arrow().dictionary_encode().indices.fill_null(-1).to_numpy() for one in levels]
    of_horizon = slice(_MONTHS_BEFORE, _MONTHS_BEFORE + horizon.months)
    are_all = observed_accounts(present, [number.astype(np.int64) + 1 for number in numbers], of_horizon)
    observed = np.asarray(are_all[np.searchsorted(accounts[is_first], account_ids)])
    if reports.unreadable is None:
        return observed
    unknown = unknown_accounts(reports.unreadable, horizon.first_month(as_of), horizon.last_month(as_of), today)
    return observed & ~np.isin(account_ids, unknown)


def _rows_at(reports: Reports, first_rows: Longs, as_of: date) -> Longs:
    """Return each account's row as known at ``as_of``; the first of those that were not known then."""
    known = np.flatnonzero(_known(reports, as_of))
    accounts = reports.account_ids[first_rows]
    last = np.searchsorted(reports.account_ids[known], accounts, side="right") - 1
    is_known = last >= 0
    is_known[is_known] = reports.account_ids[known[last[is_known]]] == accounts[is_known]
    rows = first_rows.copy()
    rows[is_known] = known[last[is_known]]
    return rows


def at_risk(reports: Reports, as_of: date, horizon: Horizon) -> Ids:
    """Return the ids of accounts at risk at ``as_of``, ascending: those that can still churn; the others already have.

    They have activity, as known at the end of ``as_of``, in or after the month :func:`churn.weeks.at_risk_since`. Where
    no month that new is known, nobody is returned, since it is unknown who is at risk.
    """
    known = KnownRows(reports.account_ids, reports.months, rows := np.flatnonzero(_known(reports, as_of)), rows, as_of)
    since = at_risk_since(as_of, horizon.months)
    if not len(rows) or known.newest_month < since:
        return reports.account_ids[:0]
    return _active_accounts(reports, since, month_start(as_of), as_of)


def _active_accounts(reports: Reports, first_month: date, last_month: date, known_by: date) -> Ids:
    """Return the ids of accounts with activity from one month to another, as known at the end of a day; ascending."""
    months = reports.months
    is_within = (months >= days_since_epoch(first_month)) & (months <= days_since_epoch(last_month))
    rows = np.flatnonzero(is_within & _known_by(reports, known_by))
    accounts, months = reports.account_ids[rows], months[rows]
    counts = np.ones(len(rows), dtype=np.bool_)
    counts[:-1] = (accounts[1:] != accounts[:-1]) | (months[1:] != months[:-1])
    return np.unique(accounts[counts & reports.is_active[rows]])


def _known(reports: Reports, as_of: date) -> Flags:
    """Mark the reports, known at the end of a day, of months that have begun by then."""
    return (reports.months <= days_since_epoch(as_of)) & _known_by(reports, as_of)


def _known_by(reports: Reports, day: date) -> Flags:
    return reports.known_at < day_start_us(day + timedelta(days=1))


def _reach(reports: Reports, last_month: date, today: date) -> bool:
    """Return whether the facts known at the end of ``today`` reach the end of a month.

    The last instant of the month counts: ``churn.storage.history`` dates a backfill then, though it was received later.
    """
    is_late = reports.known_at >= day_start_us(month_start(last_month, 1)) - 1
    return bool((is_late & _known_by(reports, today)).any())
