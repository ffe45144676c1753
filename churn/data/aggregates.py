"""The loops over the months of all accounts, compiled; :mod:`churn.data.windows` calls them. Pure."""

import math

import numpy as np

from churn.compiled import compiled
from churn.data.arrays import Array, Doubles, Floats, Ints, Longs

WEIGHTED_SUM, COUNT, MAX, SINCE = range(4)


@compiled
def aggregate(
    ids: Longs, days: Ints, rows: Longs, values: Array, lags: Longs, windows: Longs, weights: Doubles, into: Floats
) -> None:
    """Aggregate one column over several windows, one account after another.

    Args:
        days: The first days of the months, counted from the first one's.
        rows: The reports that were known, in order of account, month and time; of one month's reports the last counts.
        lags: Months from a row's month to the windows' last one, by day; -1 in the running month, the only later one
            with reports.
        windows: What each is, and its months; shape (n_windows, 2).
        weights: Of weighted sums, by lag from -1; shape (n_windows, at least most months + 1).
        into: Shape (n_windows, n_accounts).
    """
    n = len(rows)
    of_lag = np.zeros(windows[:, 1].max() + 1)  # an account's values, from the running month back
    account, last_active = 0, -1
    for i in range(n):
        row = rows[i]
        is_last = i + 1 == n or ids[rows[i + 1]] != ids[row]
        if is_last or days[rows[i + 1]] != days[row]:
            lag = lags[days[row]]
            value = 0.0 if math.isnan(values[row]) else np.float64(values[row])
            if lag + 1 < len(of_lag):
                of_lag[lag + 1] = value
            if value != 0 and lag >= 0:
                last_active = lag
        if not is_last:
            continue
        for w in range(len(windows)):
            kind, end = windows[w, 0], windows[w, 1] + 1
            total = 0.0
            if kind == WEIGHTED_SUM:
                for k in range(end):
                    total += weights[w, k] * of_lag[k]
            elif kind == COUNT:
                for k in range(1, end):
                    total += of_lag[k] != 0
            elif kind == MAX:
                total = of_lag[1]
                for k in range(2, end):
                    total = max(total, of_lag[k])
            else:
                total = np.float64(last_active) if last_active >= 0 else np.nan
            into[w, account] = total
        of_lag[:] = 0.0
        account, last_active = account + 1, -1


@compiled
def count_accounts(account_ids: Longs, months: Ints, rows: Longs, first_day: int, into: Longs) -> None:
    """Count the accounts with a report of each month, by the month's first day from ``first_day``."""
    account, month = np.int64(0), np.int32(0)
    for i in range(len(rows)):
        row = rows[i]
        if i == 0 or account_ids[row] != account or months[row] != month:
            account, month = account_ids[row], months[row]
            into[month - first_day] += 1
