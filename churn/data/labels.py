"""Labels: who churned after an as-of date, and when the label is mature. Pure.

A player has churned at an as-of date if no month of the horizon after it has activity: a deposit, a handle or net
gaming revenue that is not zero. A label is mature when the whole horizon and the days that late reports need have
passed; before that there is none. Not here: the features of that date (``churn.data.features``).
"""

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import numpy.typing as npt
import polars as pl

from churn.data.activity import KINDS
from churn.data.features import are_in_order, key_columns
from churn.defaults import HORIZON_MONTHS, LABEL_LAG_DAYS
from churn.errors import InputError, UsageError
from churn.weeks import day_from_epoch, day_start_us, days_since_epoch, month_end, month_start

MONEY = tuple(name for name, kind in KINDS.items() if kind in ("money", "balance"))

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Horizon:
    """The months after an as-of date that a label covers, and the wait for late reports.

    Attributes:
        months: The whole months after the as-of date's month.
        lag_days: Days after the last of them until its reports are in.

    >>> Horizon().last_month(date(2025, 11, 30)), Horizon().matures_on(date(2025, 11, 30))
    (datetime.date(2026, 2, 1), datetime.date(2026, 3, 8))
    """

    months: int = HORIZON_MONTHS
    lag_days: int = LABEL_LAG_DAYS

    def __post_init__(self) -> None:
        if self.months < 1 or self.lag_days < 0:
            raise UsageError(
                f"a horizon of {self.months} months with {self.lag_days} days of lag cannot be; give at least 1 month "
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
        churned: Theirs; shape (n,).
        n_missing: Accounts whose horizon has passed, but not for the facts, or which were not known at the as-of date.
    """

    account_ids: Ids
    churned: npt.NDArray[np.bool_]
    n_missing: int


@dataclass(frozen=True)
class Reports:
    """A variant's activity as arrays, from which the labels of many dates are made.

    Attributes:
        account_ids: In order of account, month, ``known_at`` and arrival, like the rest; shape (n,).
        months: Days since 1970; shape (n,).
        known_at: Microseconds since 1970, UTC; shape (n,).
        is_active: Whether any money moved, missing money being none; shape (n,).
    """

    account_ids: Ids
    months: npt.NDArray[np.int32]
    known_at: npt.NDArray[np.int64]
    is_active: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, facts: pl.DataFrame) -> "Reports":
        """Build from a variant's facts.

        Args:
            facts: Checked activity with ``known_at`` (UTC) and at least one money column.

        Raises:
            InputError: If ``facts`` lack ``known_at`` or every money column.
        """
        _require_facts(facts)
        money = [pl.col(name).fill_null(0.0).ne(0.0) for name in MONEY if name in facts.columns]
        selected = facts.select(pl.col(key_columns(facts.columns)).to_physical(), is_active=pl.any_horizontal(money))
        columns = [column.to_numpy() for column in selected]
        if are_in_order(columns[:3]):
            return cls(*columns)
        order = np.lexsort(columns[2::-1])
        return cls(*(column[order] for column in columns))


def label(reports: Reports, account_ids: Ids, as_of: date, *, today: date, horizon: Horizon) -> Labels:
    """Return which accounts churned at ``as_of``, by what is known at the end of ``today``.

    Of the reports of an account's month, the one known last counts, then the one later in the file.

    Args:
        account_ids: Shape (n,), in any order.
    """
    asked = _distinct(np.sort(account_ids))
    nobody, nothing = asked[:0], np.zeros(0, dtype=np.bool_)
    if today < horizon.matures_on(as_of):
        return Labels(nobody, nothing, 0)
    if not _reach(reports, horizon.last_month(as_of), today):
        return Labels(nobody, nothing, len(asked))
    labelled = asked[np.isin(asked, reports.account_ids[_known(reports, as_of)])]
    active = _active_accounts(reports, horizon.first_month(as_of), horizon.last_month(as_of), today)
    churned = ~np.isin(labelled, active, assume_unique=True)
    return Labels(labelled, churned, len(asked) - len(labelled))


def at_risk(reports: Reports, as_of: date, horizon: Horizon) -> Ids:
    """Find the accounts that can still churn at ``as_of``; the others have already, by the same horizon.

    Those are at risk that have activity, as known at the end of ``as_of``, in the last ``horizon.months`` months that
    were over by then, or since. Where data come in late, the months are counted back from the newest one known.

    Returns:
        Ids, ascending.
    """
    months = reports.months[_known(reports, as_of)]
    if not len(months):
        return np.empty(0, dtype=np.int64)
    newest = day_from_epoch(int(months.max()))
    is_running = newest == month_start(as_of) and as_of != month_end(as_of)
    first = month_start(newest, -horizon.months + (0 if is_running else 1))
    return _active_accounts(reports, first, newest, as_of)


def _active_accounts(reports: Reports, first_month: date, last_month: date, known_by: date) -> Ids:
    """Return the accounts with activity from one month to another, as known at the end of a day; ascending."""
    months = reports.months
    is_within = (months >= days_since_epoch(first_month)) & (months <= days_since_epoch(last_month))
    rows = np.flatnonzero(is_within & _known_by(reports, known_by))
    accounts, months = reports.account_ids[rows], months[rows]
    counts = np.ones(len(rows), dtype=np.bool_)
    counts[:-1] = (accounts[1:] != accounts[:-1]) | (months[1:] != months[:-1])
    return _distinct(accounts[counts & reports.is_active[rows]])


def _known(reports: Reports, as_of: date) -> npt.NDArray[np.bool_]:
    """Mark the reports of months begun by a day that are known at its end."""
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

    The last instant of the month counts: a backfill is known then that was received later (``churn.storage.history``).
    """
    is_late = reports.known_at >= day_start_us(month_start(last_month, 1)) - 1
    return bool((is_late & _known_by(reports, today)).any())


def _require_facts(facts: pl.DataFrame) -> None:
    if "known_at" not in facts.columns:
        raise InputError(
            "the activity has no known_at, so it is unknown what was known at a past date; take it from the variant's "
            "history, which gives every fact one"
        )
    if not set(MONEY) & set(facts.columns):
        raise InputError(
            f"the activity has columns {sorted(facts.columns)}, none of which tells activity; at least one of "
            f"{', '.join(MONEY)} is needed"
        )
