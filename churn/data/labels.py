"""Labels: who churned after an as-of date, and when the label is mature. Pure.

A player has churned at an as-of date if no month of its horizon has activity: a deposit, a handle or net gaming revenue
that is not zero. The horizon is whole calendar months, beginning with the one after the as-of date's month: activity is
known by the month, so the days left in the as-of date's month count for neither side. A label exists once it is mature:
when the whole horizon and the days that late reports need have passed. Not here: the features of that date
(``churn.data.features``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import numpy.typing as npt
import polars as pl

from churn.data.activity import MONEY
from churn.data.features import are_in_order, is_active, key_columns
from churn.data.observed import are_observed, count_rows
from churn.defaults import HORIZON_MONTHS, LABEL_LAG_DAYS
from churn.errors import InputError, UsageError
from churn.weeks import at_risk_since, day_start_us, days_since_epoch, month_start

Ids = npt.NDArray[np.int64]
_GROUP = "brand_id"
_MONTHS_BEFORE = 6  # up to the as-of date's, with which the months of the horizon are compared


@dataclass(frozen=True)
class Horizon:
    """The months after an as-of date that a label covers, and the wait for late reports.

    Attributes:
        months: The whole calendar months after the as-of date's month.
        lag_days: Days after the last of them until its reports have arrived.

    >>> Horizon().last_month(date(2025, 11, 30)), Horizon().matures_on(date(2025, 11, 30))
    (datetime.date(2026, 2, 1), datetime.date(2026, 3, 8))
    """

    months: int = HORIZON_MONTHS
    lag_days: int = LABEL_LAG_DAYS

    def __post_init__(self) -> None:
        if self.months < 1 or self.lag_days < 0:
            raise UsageError(
                f"a horizon of {self.months} months with {self.lag_days} days of lag is invalid; give at least 1 month "
                f"and 0 days"
            )

    def first_month(self, as_of: date) -> date:
        """Return the first day of the horizon."""
        return month_start(as_of, 1)

    def last_month(self, as_of: date) -> date:
        """Return the first day of the horizon's last month."""
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
    """Accounts' labels.

    Attributes:
        account_ids: Those with a mature label, ascending; shape (n,).
        churned: Their labels; shape (n,).
        n_missing: Accounts without a label although the horizon has passed, because the facts do not reach its end,
            because the account was not known at the as-of date, or because it has no activity in the horizon and a
            month of it was not observed (:mod:`churn.data.observed`).
    """

    account_ids: Ids
    churned: npt.NDArray[np.bool_]
    n_missing: int


@dataclass(frozen=True)
class Reports:
    """A variant's activity as arrays of shape (n,), sorted by account, month, ``known_at`` and arrival.

    Attributes:
        months: Days since 1970.
        known_at: Microseconds since 1970, UTC.
        is_active: Whether any money column is neither missing nor zero.
        groups: The number of the account's brand, by which :mod:`churn.data.observed` compares months; 0 without one.
    """

    account_ids: Ids
    months: npt.NDArray[np.int32]
    known_at: npt.NDArray[np.int64]
    is_active: npt.NDArray[np.bool_]
    groups: npt.NDArray[np.int64]

    @classmethod
    def of(cls, facts: pl.DataFrame, money: Sequence[str] = MONEY) -> "Reports":
        """Build from checked activity; raises ``InputError`` if it lacks ``known_at`` or every money column."""
        if "known_at" not in facts.columns:
            raise InputError(
                "the activity has no known_at, so it is unknown what was known at a past date; read it from the "
                "variant's history, which adds known_at to every fact"
            )
        group = pl.col(_GROUP).cast(pl.String).rank("dense").fill_null(0) if _GROUP in facts.columns else pl.lit(0)
        selected = facts.select(
            pl.col(key_columns(facts.columns)).to_physical(),
            is_active(facts, money),
            groups=group.cast(pl.Int64) + pl.repeat(0, pl.len(), dtype=pl.Int64),
        )
        columns = [column.to_numpy() for column in selected]
        if are_in_order(columns[:3]):
            return cls(*columns)
        order = np.lexsort(columns[2::-1])
        return cls(*(column[order] for column in columns))


def label(reports: Reports, account_ids: Ids, as_of: date, *, today: date, horizon: Horizon) -> Labels:
    """Return which accounts churned at ``as_of``, by the facts known at the end of ``today``.

    Of the reports of an account's month, the one known last counts, then the one later in the file.

    Args:
        account_ids: Shape (n,), in any order.
    """
    requested = _distinct(np.sort(account_ids))
    first_month, last_month = horizon.first_month(as_of), horizon.last_month(as_of)
    is_mature = today >= horizon.matures_on(as_of)
    if not is_mature or not _reach(reports, last_month, today):
        return Labels(requested[:0], np.zeros(0, dtype=np.bool_), len(requested) if is_mature else 0)
    labelled = requested[np.isin(requested, reports.account_ids[_known(reports, as_of)])]
    active = _active_accounts(reports, first_month, last_month, today)
    churned = ~np.isin(labelled, active, assume_unique=True)
    is_observed = ~churned | _are_observed(reports, labelled, as_of, today, horizon)
    labelled, churned = labelled[is_observed], churned[is_observed]
    return Labels(labelled, churned, len(requested) - len(labelled))


def _are_observed(
    reports: Reports, account_ids: Ids, as_of: date, today: date, horizon: Horizon
) -> npt.NDArray[np.bool_]:
    """Return whether all months of the horizon were observed for accounts known at ``as_of``; ids ascending."""
    months = [days_since_epoch(month_start(as_of, i)) for i in range(1 - _MONTHS_BEFORE, horizon.months + 1)]
    known_today = np.flatnonzero(_known_by(reports, today))
    n_groups = int(reports.groups.max(initial=0)) + 1
    volumes = count_rows(reports.groups[known_today], reports.months[known_today], n_groups, months)
    is_observed = np.logical_and.reduce(are_observed(volumes)[:, _MONTHS_BEFORE:], axis=1)
    if is_observed.all():
        return np.ones(len(account_ids), dtype=np.bool_)
    known = np.flatnonzero(_known(reports, as_of))
    last = np.searchsorted(reports.account_ids[known], account_ids, side="right") - 1
    return np.asarray(is_observed[reports.groups[known[last]]])


def at_risk(reports: Reports, as_of: date, horizon: Horizon) -> Ids:
    """Return the ids of accounts at risk at ``as_of``, ascending: those that can still churn; the others already have.

    They have activity, as known at the end of ``as_of``, in or after the month :func:`churn.weeks.at_risk_since`. Where
    no month that new is known, nobody is returned, since it is unknown who is at risk.
    """
    return _active_accounts(reports, at_risk_since(as_of, horizon.months), month_start(as_of), as_of)


def _active_accounts(reports: Reports, first_month: date, last_month: date, known_by: date) -> Ids:
    """Return the ids of accounts with activity from one month to another, as known at the end of a day; ascending."""
    months = reports.months
    is_within = (months >= days_since_epoch(first_month)) & (months <= days_since_epoch(last_month))
    rows = np.flatnonzero(is_within & _known_by(reports, known_by))
    accounts, months = reports.account_ids[rows], months[rows]
    counts = np.ones(len(rows), dtype=np.bool_)
    counts[:-1] = (accounts[1:] != accounts[:-1]) | (months[1:] != months[:-1])
    return _distinct(accounts[counts & reports.is_active[rows]])


def _known(reports: Reports, as_of: date) -> npt.NDArray[np.bool_]:
    """Mark the reports, known at the end of a day, of months that have begun by then."""
    return (reports.months <= days_since_epoch(as_of)) & _known_by(reports, as_of)


def _known_by(reports: Reports, day: date) -> npt.NDArray[np.bool_]:
    """Mark the reports that are known at the end of a day."""
    return reports.known_at < day_start_us(day + timedelta(days=1))


def _distinct(ordered: Ids) -> Ids:
    is_first = np.ones(len(ordered), dtype=np.bool_)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return ordered[is_first]


def _reach(reports: Reports, last_month: date, today: date) -> bool:
    """Return whether the facts known at the end of ``today`` reach the end of a month.

    The last instant of the month counts: ``churn.storage.history`` dates a backfill then, though it was received later.
    """
    is_late = reports.known_at >= day_start_us(month_start(last_month, 1)) - 1
    return bool((is_late & _known_by(reports, today)).any())
