"""Labels: who churned after an as-of date, and when that may be said. Pure: no files, no settings.

A player churned at an as-of date when no month of the horizon after it has activity: a deposit, a handle or net gaming
revenue that is not zero. A label is mature only when the whole horizon and the days that late reports need have passed;
before that nothing is said. What belongs to the features of that date is ``features``' business.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

import numpy as np
import numpy.typing as npt
import polars as pl

from churn.data.activity import KINDS
from churn.data.features import in_order, key_columns, keys_of
from churn.errors import InputError, UsageError

MONEY = tuple(name for name, kind in KINDS.items() if kind in ("money", "balance"))

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Horizon:
    """How far after an as-of date churn is looked for, and how long late reports are waited for.

    Attributes:
        months: The whole months after the as-of date's month.
        lag_days: Days after the last of them until its reports are in.

    >>> Horizon().last_month(date(2025, 11, 30)), Horizon().matures_on(date(2025, 11, 30))
    (datetime.date(2026, 2, 1), datetime.date(2026, 3, 8))
    """

    months: int = 3
    lag_days: int = 7

    def __post_init__(self) -> None:
        if self.months < 1 or self.lag_days < 0:
            raise UsageError(
                f"a horizon of {self.months} months with {self.lag_days} days of lag cannot be; give at least 1 month "
                f"and 0 days"
            )

    def first_month(self, as_of: date) -> date:
        """Return the first day of the horizon."""
        return _month(as_of, 1)

    def last_month(self, as_of: date) -> date:
        """Return the first day of the horizon's last month."""
        return _month(as_of, self.months)

    def matures_on(self, as_of: date) -> date:
        """Return the first day on which labels of ``as_of`` may be used."""
        return _month(as_of, self.months + 1) + timedelta(days=self.lag_days)


@dataclass(frozen=True)
class Labels:
    """What is known of accounts' churn.

    Attributes:
        account_ids: Those with a mature label, ascending; shape (n,).
        churned: Theirs; shape (n,).
        n_immature: Accounts whose horizon, with its lag, has not passed.
        n_missing: Accounts whose horizon has passed, but not for the facts, or which were not known at the as-of date.
    """

    account_ids: Ids
    churned: npt.NDArray[np.bool_]
    n_immature: int
    n_missing: int


def label(facts: pl.DataFrame, account_ids: Ids, as_of: date, *, today: date, horizon: Horizon) -> Labels:
    """Say which accounts churned at ``as_of``, by what is known at the end of ``today``.

    Of the reports of an account's month, the one known last counts, then the one later in the file. Missing money is
    none.

    Args:
        facts: Checked activity with ``known_at`` (UTC) and at least one money column.
        account_ids: Shape (n,), in any order.

    Raises:
        InputError: If ``facts`` lack ``known_at`` or every money column.
    """
    _require_facts(facts)
    asked = _distinct(np.sort(account_ids))
    nobody, nothing = asked[:0], np.zeros(0, dtype=np.bool_)
    if today < horizon.matures_on(as_of):
        return Labels(nobody, nothing, len(asked), 0)
    if not _reach(facts, horizon.last_month(as_of), today):
        return Labels(nobody, nothing, 0, len(asked))
    labelled = asked[np.isin(asked, _known_accounts(facts, as_of), assume_unique=True)]
    active = _active_accounts(facts, horizon.first_month(as_of), horizon.last_month(as_of), known_by=today)
    churned = ~np.isin(labelled, active, assume_unique=True)
    return Labels(labelled, churned, 0, len(asked) - len(labelled))


def at_risk(facts: pl.DataFrame, as_of: date, horizon: Horizon) -> Ids:
    """Find the accounts that can still churn at ``as_of``; the others have already, by the same horizon.

    Those are at risk that have activity, as known at the end of ``as_of``, in the last ``horizon.months`` months that
    were over by then, or since. Where data come in late, the months are counted back from the newest one known.

    Returns:
        Ids, ascending.

    Raises:
        InputError: If ``facts`` lack ``known_at`` or every money column.
    """
    _require_facts(facts)
    known = facts.lazy().filter(pl.col("activity_month") <= as_of, _is_known(as_of))
    newest = known.select(pl.max("activity_month")).collect().item()
    if newest is None:
        return np.empty(0, dtype=np.int64)
    is_running = newest == _month(as_of, 0) and (as_of + timedelta(days=1)).day != 1
    first = _month(newest, -horizon.months + (0 if is_running else 1))
    return _active_accounts(facts, first, newest, known_by=as_of)


def _active_accounts(facts: pl.DataFrame, first_month: date, last_month: date, *, known_by: date) -> Ids:
    """Return the accounts with activity from one month to another, as known at the end of a day; ascending."""
    money = [name for name in MONEY if name in facts.columns]
    window = facts.filter(pl.col("activity_month").is_between(first_month, last_month), _is_known(known_by))
    reports = in_order(
        window.select(*key_columns(window.columns), is_active=pl.any_horizontal(pl.col(money).fill_null(0.0).ne(0.0)))
    )
    accounts, months, _ = keys_of(reports)
    counts = np.ones(len(accounts), dtype=np.bool_)
    counts[:-1] = (accounts[1:] != accounts[:-1]) | (months[1:] != months[:-1])
    return _distinct(accounts[counts & reports["is_active"].to_numpy()])


def _distinct(ordered: Ids) -> Ids:
    is_first = np.ones(len(ordered), dtype=np.bool_)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return ordered[is_first]


def _known_accounts(facts: pl.DataFrame, as_of: date) -> Ids:
    known = facts.lazy().filter(pl.col("activity_month") <= as_of, _is_known(as_of))
    return known.select(pl.col("account_id").unique()).collect()["account_id"].to_numpy()


def _reach(facts: pl.DataFrame, last_month: date, today: date) -> bool:
    """Tell whether the facts known at the end of ``today`` run to the end of a month.

    The last instant of the month counts: a backfill is known then that was received later (``churn.data.history``).
    """
    last_instant = _midnight(_month(last_month, 1)) - timedelta(microseconds=1)
    return bool(facts.select((_is_known(today) & (pl.col("known_at") >= last_instant)).any()).item())


def _is_known(day: date) -> pl.Expr:
    return pl.col("known_at") < _midnight(day + timedelta(days=1))


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time.min, UTC)


def _month(day: date, months_later: int) -> date:
    """Return the first day of the month so many months after a day's."""
    year, month = divmod(day.year * 12 + day.month - 1 + months_later, 12)
    return date(year, month + 1, 1)


def _require_facts(facts: pl.DataFrame) -> None:
    if "known_at" not in facts.columns:
        raise InputError(
            "the activity has no known_at, so nobody can say what was known at a past date; take it from the variant's "
            "history, which gives every fact one"
        )
    if not set(MONEY) & set(facts.columns):
        raise InputError(
            f"the activity has columns {sorted(facts.columns)}, none of which tells activity; at least one of "
            f"{', '.join(MONEY)} is needed"
        )
