"""Observed months: of whom a month's rows arrived. Pure.

A brand that left the feed, half of a brand's rows, or a row that could not be read say nothing about the players: they
are unknown, not churned. A group's month is observed if a plausible number of its accounts have a row, compared with
the months before; an account's month is not, if its row was quarantined and none arrived in its place. Groups that are
too small to compare are compared together. By the same rule, a feed's newest month is known.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from churn.data.activity import UNDATED
from churn.data.arrays import Flags, Longs

GONE = 0.2
"""Share of a group's usual accounts below which a month is not observed; no season takes four fifths of all players."""
REDUCED = 0.6
"""Share below which a month is observed only if others show that the accounts really left."""
STEADY = 0.5
"""Of the accounts seen before and after a month, more than this share is seen in it unless rows are missing; usual are
0.65 to 0.85 in the simulated worlds."""
FADE = 0.9
"""What each month that is not observed leaves of the usual number, so that a feed that shrank is known again."""
MIN_ACCOUNTS = 10
"""Usual accounts of a group whose months are compared; of fewer, chance alone may take four fifths."""
MONTHS_OF_FEW, MONTHS_COMPARED = 3, 12
"""Months of a feed with fewer accounts that are compared together, and how far back with."""
MIN_REDUCED = 30
"""Usual accounts of a group in which a month of less than ``REDUCED`` is no chance."""


def observed_months(volumes: npt.NDArray[np.number[Any]], elapsed: float = 1.0) -> Flags:
    """Return which months of a whole feed were observed: those with a share ``GONE`` of its usual accounts.

    Months of fewer than ``MIN_ACCOUNTS`` count with the two before, which are compared with the last three observed
    ones within a year. After an observed month, one that is not over needs as much less as is missing of it.

    Args:
        volumes: The accounts with a row in each month, in order of time; shape (n_months,).
        elapsed: The share of the last month that is over.

    >>> observed_months(np.array([500, 480, 0, 80, 490, 1])).tolist()
    [True, True, False, False, True, False]
    """
    of_few = np.convolve(volumes, np.ones(MONTHS_OF_FEW))
    observed: Flags = (volumes > 0) & _are_usual(volumes[None], np.zeros((1, len(volumes)), dtype=np.bool_), 0.0)[0]
    for i in np.flatnonzero(observed & (volumes < MIN_ACCOUNTS)).tolist():
        first = max(i - MONTHS_COMPARED, 0)
        before = first + np.flatnonzero(observed[first : max(i - MONTHS_OF_FEW + 1, 0)])
        usual = of_few[before[-1]] if len(before) else 0
        observed[i] = usual < MIN_ACCOUNTS or of_few[i] >= GONE * usual
    if elapsed < 1 and observed[-2:-1].all():
        return observed_months(np.append(volumes[:-1], volumes[-1] / elapsed))
    return observed


def observed_accounts(present: Flags, segments: Sequence[Longs], horizon: slice) -> Flags:
    """Return of which accounts all months of a horizon were observed, shape (n_accounts,).

    The usual number of a group's accounts is that of its last observed month, so that a group may shrink or grow over
    the months. A month with less than ``REDUCED`` of it is observed if most of the accounts seen before and after it
    were seen in it: players who leave do not come back, rows that are missing do. Groups that are gone are found first,
    so that a brand that left does not make its product look reduced.

    Args:
        present: Which accounts have a row in which months, in order of time; shape (n_accounts, n_months).
        segments: Each account's group in each segment, from 0, which is the rest; shape (n_accounts,) each.
        horizon: The places of its months; by those before, the size of a group is known.
    """
    observed: Flags = np.ones(len(present), dtype=np.bool_)
    whole_feed = np.zeros(len(present), dtype=np.int64)
    for groupings, reduced in ((segments, 0.0), ([*segments, whole_feed], REDUCED)):
        rest = np.flatnonzero(observed)
        for groups in groupings:
            observed[rest] &= _are_observed(present[rest], groups[rest], horizon, reduced)
    return observed & observed_months(present[observed, : horizon.stop].sum(axis=0))[horizon].all()


def _are_observed(present: Flags, groups: Longs, horizon: slice, reduced: float) -> Flags:
    is_small = _count(present[:, : horizon.start], groups).max(axis=1) < MIN_ACCOUNTS
    groups = np.where(is_small[groups], 0, groups)
    volumes = _count(present[:, : horizon.stop], groups)
    is_usual = _are_usual(volumes, np.zeros(volumes.shape, dtype=np.bool_), reduced)
    if not is_usual.all():
        is_usual = _are_usual(volumes, _are_steady(present, groups), reduced)
    are_all: Flags = np.logical_and.reduce(is_usual[:, horizon], axis=1)
    return are_all[groups]


def _are_usual(volumes: npt.NDArray[np.number[Any]], are_steady: Flags, reduced: float) -> Flags:
    usual = size = volumes[:, 0]  # without fading: else a small group that is gone is soon too small to be compared
    are_usual = np.ones(volumes.shape, dtype=np.bool_)
    for i, volume in enumerate(volumes.T):
        is_gone = (size >= MIN_ACCOUNTS) & (volume < GONE * usual)
        is_reduced = (usual >= MIN_REDUCED) & (volume < reduced * usual) & ~are_steady[:, i]
        are_usual[:, i] = ~(is_gone | is_reduced)
        usual, size = np.where(are_usual[:, i], volume, FADE * usual), np.where(are_usual[:, i], volume, size)
    return are_usual


def _are_steady(present: Flags, groups: Longs) -> Flags:
    """Return in which groups' months enough of the accounts are present that are so before and after."""
    is_between = np.zeros(present.shape, dtype=np.bool_)
    seen_before = np.logical_or.accumulate(present, axis=1)
    seen_after = np.logical_or.accumulate(present[:, ::-1], axis=1)[:, ::-1]
    is_between[:, 1:-1] = seen_before[:, :-2] & seen_after[:, 2:]
    n = _count(is_between, groups)
    return (n >= MIN_ACCOUNTS) & (_count(is_between & present, groups) > STEADY * n)


def _count(flags: Flags, groups: Longs) -> Longs:
    """Count the flags of each group and month; shape (n_groups, n_months)."""
    n_groups = int(groups.max(initial=0)) + 1
    return np.stack([np.bincount(groups[of_month], minlength=n_groups) for of_month in flags.T], axis=1)


def unreadable_reports(quarantined: pl.DataFrame, facts: pl.DataFrame) -> pl.DataFrame:
    """Return, of each quarantined row, the months that it may be about and when a report took its place.

    A row whose month could not be read, ``UNDATED``, may be about any month that had begun when it arrived. The columns
    are ``account_id, first_month, last_month, known_at, replaced_at``; the last is null if there is none.
    """
    month, is_undated = pl.col("activity_month"), pl.col("activity_month") == UNDATED
    arrived_on = pl.col("known_at").dt.date()
    rows = quarantined.with_row_index().select(
        ["index", "account_id", "known_at"],
        first_month="activity_month",
        last_month=pl.when(is_undated).then(arrived_on).otherwise(month),
        # Later reports of the month in which it arrived may be those of every week.
        replaceable=pl.when(is_undated).then(arrived_on.dt.month_start().dt.offset_by("-1d")).otherwise(month),
    )
    reports = facts.lazy().select("account_id", "activity_month", replaced_at="known_at")
    takes_its_place = month.is_between("first_month", "replaceable") & (pl.col("replaced_at") > pl.col("known_at"))
    replacing = rows.lazy().join(reports, on="account_id").filter(takes_its_place)
    replaced = replacing.group_by("index").agg(pl.col("replaced_at").min()).collect()
    return rows.join(replaced, on="index", how="left").drop("index", "replaceable")


def unknown_accounts(unreadable: pl.DataFrame, first_month: date, last_month: date, today: date) -> Longs:
    """Return the accounts with a month of these that could not be read, as known at the end of ``today``."""
    end = datetime.combine(today, time.max, UTC)
    concerns = (pl.col("first_month") <= last_month) & (pl.col("last_month") >= first_month)
    is_open = (pl.col("known_at") <= end) & ~(pl.col("replaced_at") <= end).fill_null(value=False)
    return unreadable.filter(concerns & is_open)["account_id"].to_numpy()
