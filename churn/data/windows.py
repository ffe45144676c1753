"""Windows: features that see time, declared by their names. Pure.

A window is computed from all of an account's months that were known at the as-of day: the grammar, and the computation
over arrays. Training and scoring call the same :func:`compute`, so their values are the same bytes. Not here: which
reports were known (``churn.data.features``), nor which windows a new model uses (``churn.training.default_features``).

The last month of a window is the one before the as-of day's month or, while its rows have not arrived, the month before
that; a few early rows are no month (``churn.data.observed``). Months without a row count as 0, even before an account's
first row. The running month enters only as a rate a day, so that scores do not change with the day of the month.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

import numpy as np

from churn.data.activity import KINDS
from churn.data.arrays import Array, Doubles, Floats, Ints, Longs
from churn.data.observed import observed_months
from churn.errors import InputError
from churn.weeks import day_from_epoch, days_since_epoch, month_end, month_number, month_start
from churn.wording import listed_with_nearest

ACTIVITY = "activity"
"""The source column, in reasons, of the windows over activity in any money column."""

IS_ACTIVE = "(is active)"
"""What these windows are computed from; an extract may have a column ``activity`` of its own."""

MAX_MONTHS = 120
GRAMMAR = (
    "<column>_{sum,mean,max,count,rate}_<n>m of a column of numbers, <column>_trend_<n>m, active_months_<n>m, "
    f"months_since_active, or months_since_<date column>; n is 1 to {MAX_MONTHS} months, at least 2 for a trend"
)

_AGGREGATES = "sum|mean|max|count|rate|trend"
_OVER_MONTHS = re.compile(rf"(?P<column>.+)_(?P<aggregate>{_AGGREGATES})_(?P<months>[1-9]\d{{0,2}})m")
_ACTIVE_MONTHS = re.compile(r"active_months_(?P<months>[1-9]\d{0,2})m")
_SINCE = "months_since_"
_LOOKS_SO = re.compile(rf"{_SINCE}.*|active_months_.*|.+_({_AGGREGATES})_\d+\w*|.+_[a-z]+_\d+m")
_NO_LEVEL = re.compile(rf"({_AGGREGATES})_\d+\w*|.+_({_AGGREGATES})_\d+m")
_NO_LEVEL_OF_NUMBERS = re.compile(rf"({_AGGREGATES})(_.*)?|.*\d+m", re.IGNORECASE)
_WITHOUT_LEVELS = ("money", "balance", "date", "instant")
_NUMBERS = ("number", "money", "balance")


@dataclass(frozen=True)
class Window:
    """A feature that is computed from an account's months, or from a date."""

    name: str
    column: str  # the column that it is computed from, or `IS_ACTIVE`
    # `sum`, `mean`, `max`, `count`, `rate`, `trend`; `since`: months since activity; `since_date`: since `column`.
    aggregate: str
    months: int = 0  # complete months; 0 if the window has no fixed length

    @property
    def source_column(self) -> str:
        """The column by which reasons are summed."""
        return ACTIVITY if self.column == IS_ACTIVE else self.column

    def fits(self, schema: Mapping[str, Any]) -> bool:
        """Whether its column has numbers, or dates."""
        if (dtype := schema.get(self.column)) is None or self.is_of_row:
            return dtype is None or dtype.is_temporal()
        return dtype.is_numeric() or str(dtype) in ("Boolean", "Null")

    @property
    def is_of_row(self) -> bool:
        """Whether the value follows from the account's latest row alone."""
        return self.aggregate == "since_date"


@dataclass(frozen=True)
class KnownRows:
    """The reports that were known at the end of an as-of day."""

    account_ids: Longs  # of the whole file, shape (n,)
    months: Ints  # likewise, days since 1970
    rows: Longs  # the positions of the known reports, in order of account, month and time
    latest: Longs  # the position of each account's latest row, in order of account; shape (n_accounts,)
    as_of: date

    @cached_property
    def _observed(self) -> list[int]:
        """The months of which the rows arrived (:func:`churn.data.observed.observed_months`), days since 1970."""
        from churn.data.aggregates import count_accounts  # imports Numba

        if not len(self.rows):
            return []
        first = day_from_epoch(int(self.months.min()))
        n_months = month_number(self.as_of) - month_number(first) + 1
        days = [days_since_epoch(month_start(first, i)) for i in range(n_months)]
        counts = np.zeros(days[-1] - days[0] + 1, dtype=np.int64)
        count_accounts(self.account_ids, self.months, self.rows, days[0], counts)
        observed = observed_months(counts[np.array(days) - days[0]], self.as_of.day / month_end(self.as_of).day)
        return [day for day, is_observed in zip(days, observed, strict=True) if is_observed]

    def has_month(self, month: date) -> bool:
        """Return whether a month's rows have arrived, compared with the months before."""
        return days_since_epoch(month) in self._observed

    @cached_property
    def first_month(self) -> date:
        """The first month known; there must be one."""
        return day_from_epoch(int(self.months[self.rows].min()))

    @cached_property
    def newest_month(self) -> date:
        """The newest month whose rows have arrived; there must be one."""
        return day_from_epoch(self._observed[-1])

    @cached_property
    def last_month(self) -> date:
        """The month with which windows end."""
        last = month_start(self.as_of, -1)
        return last if self.has_month(last) else month_start(last, -1)


def parse(name: str, columns: Collection[str]) -> Window | None:
    """Parse a feature's name; ``None`` if it is no window over one of these columns.

    >>> parse("total_handle_sum_3m", ["total_handle"])
    Window(name='total_handle_sum_3m', column='total_handle', aggregate='sum', months=3)
    """
    if name == f"{_SINCE}active":
        return Window(name, IS_ACTIVE, "since")
    column = name.removeprefix(_SINCE)
    if column != name and column in columns and KINDS.get(column, "date") == "date":
        return Window(name, column, "since_date")
    if match := _ACTIVE_MONTHS.fullmatch(name):
        window = Window(name, IS_ACTIVE, "count", int(match["months"]))
    elif (match := _OVER_MONTHS.fullmatch(name)) and match["column"] in columns:
        window = Window(name, match["column"], match["aggregate"], int(match["months"]))
    else:
        return None
    is_of_numbers = KINDS.get(window.column, "number") in _NUMBERS
    least = 2 if window.aggregate == "trend" else 1
    return window if is_of_numbers and least <= window.months <= MAX_MONTHS else None


def windows_of(names: Sequence[str], columns: Collection[str]) -> tuple[Window, ...]:
    """Return the windows among a model's features, except those that the activity has a column for; checks its types.

    Raises ``InputError`` naming the features that look like windows and are none, with the grammar.
    """
    available = set(columns)
    windows = [window for name in names if name not in available and (window := parse(name, available))]
    parsed = {window.name for window in windows if not isinstance(columns, Mapping) or window.fits(columns)}
    wrong = [name for name in names if name not in available | parsed and looks_like_window(name, available)]
    if wrong:
        raise not_windows(wrong, available)
    return tuple(windows)


def looks_like_window(name: str, columns: Collection[str]) -> bool:
    """Return whether a name resembles the grammar and is no level of a text column."""
    column = source_column_of(name, columns)
    if column is None or name.startswith((_SINCE, "active_months_")):
        return _LOOKS_SO.fullmatch(name) is not None
    # A level such as gold_12m of the column plan resembles an aggregate, too.
    return _NO_LEVEL.fullmatch(name.removeprefix(f"{column}_")) is not None or KINDS.get(column) in _WITHOUT_LEVELS


def check_levels(column: str, levels: Sequence[str], columns: Collection[str]) -> None:
    """Raise :func:`not_windows` if levels of a column of numbers are endings of windows."""
    if wrong := [f"{column}_{level}" for level in levels if _NO_LEVEL_OF_NUMBERS.fullmatch(level)]:
        raise not_windows(wrong, columns)


def source_column_of(name: str, columns: Collection[str]) -> str | None:
    """Return the longest column of which a name ``<column>_<level>`` would be a level."""
    cuts = [i for i, character in enumerate(name) if character == "_"]
    return next((name[:cut] for cut in reversed(cuts) if name[:cut] in columns), None)


def not_windows(names: Sequence[str], columns: Collection[str]) -> InputError:
    """Return the error for features that look like windows and are none."""
    meant = [column for column in sorted(columns) if not any(name.startswith(f"{column}_") for name in names)]
    shown, none_of = listed_with_nearest(list(map(repr, names)), meant), f"none of the columns {sorted(columns)}"
    remedy = f"a window is {GRAMMAR}: correct the variant's feature names"
    return InputError(f"{shown} look like windows over past months and are {none_of}; {remedy}")


def compute(windows: Sequence[Window], known: KnownRows, column: Callable[[str], Array]) -> Floats:
    """Compute windows for all accounts at once; shape (len(windows), n_accounts), in the order of ``windows``.

    The sums are made in the same order whatever the order of the file, so equal facts give equal bytes. ``column``
    gives a source column's values in the file's order, NaN if missing; of ``IS_ACTIVE``, whether a row is active.
    """
    from churn.data.aggregates import aggregate  # imports Numba

    first = int(known.months.min())
    months = np.arange(first, int(known.months.max()) + 1).astype("M8[D]").astype("M8[M]")
    # By day from the first of any month, the months to the windows' last month; -1 after it.
    lags = np.maximum((np.datetime64(known.last_month, "M") - months).astype(np.int64), -1)
    computed, days = np.empty((len(windows), len(known.latest)), dtype=np.float32), known.months - first
    for source_column in dict.fromkeys(window.column for window in windows):
        chosen = [i for i, window in enumerate(windows) if window.column == source_column]
        kinds, weights = _plan([windows[i] for i in chosen], known)
        into, values = np.empty((len(chosen), len(known.latest)), dtype=np.float32), column(source_column)
        aggregate(known.account_ids, days, known.rows, values, lags, kinds, weights, into)
        computed[chosen] = into
    since = [window.aggregate == "since" for window in windows]
    computed[since] += month_number(known.as_of) - 1 - month_number(known.last_month)
    return computed


def _plan(windows: Sequence[Window], known: KnownRows) -> tuple[Longs, Doubles]:
    """Return what each window is, and its weights, for :func:`churn.data.aggregates.aggregate`."""
    from churn.data.aggregates import COUNT, MAX, SINCE, WEIGHTED_SUM

    end = known.last_month
    days_of_running = known.as_of.day if known.has_month(month_start(known.as_of)) else 0
    weights = np.zeros((len(windows), max(window.months for window in windows) + 1))
    for window, of_lag in zip(windows, weights, strict=True):
        n = window.months
        match window.aggregate:
            case "sum":
                of_lag[1 : n + 1] = 1
            case "mean":
                of_lag[1 : n + 1] = 1 / n
            case "rate":
                n_days = (month_start(end, 1) - month_start(end, 1 - n)).days + days_of_running
                of_lag[0 if days_of_running else 1 : n + 1] = 1 / n_days
            case "trend":  # least squares over months that are evenly spaced
                of_lag[1 : n + 1] = ((n - 1) / 2 - np.arange(n)) / (n * (n * n - 1) / 12)
    kinds = {"count": COUNT, "max": MAX, "since": SINCE}
    plan = [(kinds.get(window.aggregate, WEIGHTED_SUM), window.months) for window in windows]
    return np.array(plan, dtype=np.int64), weights
