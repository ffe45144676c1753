"""Windows: features that see time, declared by their names. Pure.

A window is computed from all of an account's months that were known at the as-of day: the grammar, and the computation
over arrays. Training and scoring call the same :func:`compute`, so their values are the same bytes. Not here: which
reports were known (``churn.data.features``), nor which windows a new model uses (``churn.training.default_features``).

The last month of a window is the last complete month before the as-of day's month or, while no account's row of it is
known, the month before that. Months without a row count as 0, those before an account's first row included. The running
month enters only as a rate a day, so that scores do not change with the day of the month.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from churn.data.activity import KINDS
from churn.errors import InputError
from churn.weeks import month_number, month_start

ACTIVITY = "activity"
"""The source column, in reasons, of the windows over activity in any money column."""

MAX_MONTHS = 120
GRAMMAR = (
    "<column>_{sum,mean,max,count,rate}_<n>m of a column of numbers, <column>_trend_<n>m, active_months_<n>m, "
    f"months_since_active, or months_since_<date column>; n is 1 to {MAX_MONTHS} months, at least 2 for a trend"
)

_AGGREGATES = "sum|mean|max|count|rate|trend"
_OVER_MONTHS = re.compile(rf"(?P<column>.+)_(?P<aggregate>{_AGGREGATES})_(?P<months>[1-9]\d{{0,2}})m")
_ACTIVE_MONTHS = re.compile(r"active_months_(?P<months>[1-9]\d{0,2})m")
_SINCE = "months_since_"
_LOOKS_SO = re.compile(rf"{_SINCE}.*|active_months_.*|.+_({_AGGREGATES})_\d+m|.+_[a-z]+_\d+m")
_Place = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]
"""A month's rows: the index of each one's account, and its position in the file."""

_NUMBERS = ("number", "money", "balance")


@dataclass(frozen=True)
class Window:
    """A feature that is computed from an account's months, or from a date.

    Attributes:
        column: The source column, or ``ACTIVITY``.
        aggregate: ``sum``, ``mean``, ``max``, ``count``, ``rate``, ``trend``; ``since`` for months since activity;
            ``since_date`` for months since the date in ``column``.
        months: Complete months; 0 if the window has no fixed length.
    """

    name: str
    column: str
    aggregate: str
    months: int = 0

    @property
    def is_of_row(self) -> bool:
        """Whether the value follows from the account's latest row alone."""
        return self.aggregate == "since_date"


@dataclass(frozen=True)
class KnownRows:
    """The reports that count at an as-of day, one for each account and month, in order of both.

    Attributes:
        rows: Their positions in the file, shape (n,).
        account: Each one's index among the accounts in rising order of id, shape (n,).
        month: Each one's month number, shape (n,).
        latest: The position in the file of each account's latest row, shape (n_accounts,).
    """

    rows: npt.NDArray[np.int64]
    account: npt.NDArray[np.int32]
    month: npt.NDArray[np.int32]
    latest: npt.NDArray[np.int64]


def parse(name: str, columns: Collection[str]) -> Window | None:
    """Parse a feature's name; ``None`` if it is no window over one of these columns.

    >>> parse("total_handle_sum_3m", ["total_handle"])
    Window(name='total_handle_sum_3m', column='total_handle', aggregate='sum', months=3)
    """
    if name == f"{_SINCE}active":
        return Window(name, ACTIVITY, "since")
    if (match := _ACTIVE_MONTHS.fullmatch(name)) is not None:
        return _within_limits(Window(name, ACTIVITY, "count", int(match["months"])))
    column = name.removeprefix(_SINCE)
    if column != name and column in columns and KINDS.get(column, "date") == "date":
        return Window(name, column, "since_date")
    match = _OVER_MONTHS.fullmatch(name)
    if match is None or match["column"] not in columns or KINDS.get(match["column"], "number") not in _NUMBERS:
        return None
    return _within_limits(Window(name, match["column"], match["aggregate"], int(match["months"])))


def _within_limits(window: Window) -> Window | None:
    is_possible = (2 if window.aggregate == "trend" else 1) <= window.months <= MAX_MONTHS
    return window if is_possible else None


def windows_of(names: Sequence[str], columns: Collection[str]) -> tuple[Window, ...]:
    """Return the windows among a model's features, except those that the activity has a column for.

    Raises:
        InputError: Naming the features that look like windows and are none, with the grammar.
    """
    available = set(columns)
    windows = [window for name in names if name not in available and (window := parse(name, available))]
    parsed = {window.name for window in windows}
    wrong = [name for name in names if name not in available | parsed and looks_like_window(name, available)]
    if wrong:
        raise not_windows(wrong, available)
    return tuple(windows)


def looks_like_window(name: str, columns: Collection[str]) -> bool:
    """Return whether a name resembles the grammar and is no level of a text column."""
    if any(name.startswith(f"{column}_") and KINDS.get(column) in ("money", "balance") for column in columns):
        return True
    if _LOOKS_SO.fullmatch(name) is None:
        return False
    is_aggregate = _OVER_MONTHS.fullmatch(name) is not None or name.startswith((_SINCE, "active_months_"))
    # A level such as gold_12m of the column plan resembles an aggregate, too.
    return is_aggregate or not any(name.startswith(f"{column}_") for column in columns)


def not_windows(names: Sequence[str], columns: Collection[str]) -> InputError:
    """Return the error for features that look like windows and are none."""
    return InputError(
        f"{', '.join(map(repr, names[:8]))} look like windows over past months and are none of the columns "
        f"{sorted(columns)}; a window is {GRAMMAR}: correct the variant's feature names"
    )


def compute(
    windows: Sequence[Window], known: KnownRows, as_of: date, column: Callable[[str], npt.NDArray[Any]]
) -> npt.NDArray[np.float32]:
    """Compute windows for all accounts at once, month by month.

    The sums are made in the same order whatever the order of the file, so equal facts give equal bytes.

    Args:
        column: From a source column to its values in the file's order, NaN if missing; from ``ACTIVITY`` to whether a
            row is active.

    Returns:
        Shape (len(windows), n_accounts), in the order of ``windows``.
    """
    end, longest = last_month(known, as_of), max((window.months for window in windows), default=0)
    places = [_place(known, end - lag) for lag in range(longest)]
    running = _place(known, month_number(as_of))
    computed = np.empty((len(windows), len(known.latest)), dtype=np.float32)
    for source_column in dict.fromkeys(window.column for window in windows):
        values = column(source_column)
        chosen = [i for i, window in enumerate(windows) if window.column == source_column]
        sums = _sum_up([windows[i] for i in chosen], values, places, len(known.latest))
        for i, total in zip(chosen, sums, strict=True):
            match windows[i].aggregate:
                case "rate":
                    days = _days(end, windows[i].months, as_of, has_running=len(running[0]) > 0)
                    computed[i] = (total + _spread(values, running, len(total))) / days
                case "since":
                    computed[i] = _months_since(known, values, end)
                case _:
                    computed[i] = total
    return computed


def last_month(known: KnownRows, as_of: date) -> int:
    """Return the number of the month with which windows end."""
    last = month_number(as_of) - 1
    return last if (known.month == last).any() else last - 1


def count_short(windows: Sequence[Window], known: KnownRows, as_of: date) -> int:
    """Count the windows that begin before the first month of the activity."""
    first, end = int(known.month.min()), last_month(known, as_of)
    return sum(end - window.months + 1 < first for window in windows)


def _place(known: KnownRows, month: int) -> _Place:
    chosen = np.flatnonzero(known.month == month)
    return known.account[chosen], known.rows[chosen]


def _spread(values: npt.NDArray[Any], place: _Place, n_accounts: int) -> npt.NDArray[np.float64]:
    """Return each account's value in a month, 0 without one."""
    accounts, rows = place
    month = np.zeros(n_accounts)
    month[accounts] = np.nan_to_num(values[rows])
    return month


def _sum_up(
    windows: Sequence[Window], values: npt.NDArray[Any], places: Sequence[_Place], n_accounts: int
) -> npt.NDArray[np.float64]:
    """Aggregate the complete months of windows over one column, the newest first; shape (len(windows), n_accounts)."""
    totals = np.zeros((len(windows), n_accounts))
    for lag in range(max(window.months for window in windows)):
        month = _spread(values, places[lag], n_accounts)
        for total, window in zip(totals, windows, strict=True):
            if lag < window.months:
                _add(total, window, lag, month)
    return totals


def _add(total: npt.NDArray[np.float64], window: Window, lag: int, month: npt.NDArray[np.float64]) -> None:
    n = window.months
    match window.aggregate:
        case "sum" | "rate":
            total += month
        case "mean":
            total += month / n
        case "count":
            total += month != 0
        case "max":
            np.maximum(total, month, out=total) if lag else np.copyto(total, month)
        case "trend":  # least squares over months that are evenly spaced
            total += ((n - 1) / 2 - lag) / (n * (n * n - 1) / 12) * month


def _days(end: int, n_months: int, as_of: date, *, has_running: bool) -> int:
    """Return the days of the window's complete months, and those of the running month so far if it has rows."""
    last = month_start(as_of, end - month_number(as_of))
    n_days = (month_start(last, 1) - month_start(last, 1 - n_months)).days
    return n_days + (as_of - month_start(as_of) + timedelta(days=1)).days * has_running


def _months_since(known: KnownRows, is_active: npt.NDArray[np.bool_], end: int) -> npt.NDArray[np.float64]:
    """Return the months from each account's last active month to the windows' end; NaN if there is none by then."""
    rows = np.flatnonzero(is_active[known.rows] & (known.month <= end))
    last = np.full(len(known.latest), np.nan)
    last[known.account[rows]] = known.month[rows]  # in rising order, so the last one stays
    return end - last
