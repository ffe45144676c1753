"""Observed months: whether the rows of a group of accounts arrived. Pure.

A brand that left the feed, or a feed of one row, says nothing about its players: they are unknown, not churned. A month
is observed if it has a plausible number of rows, compared with the months before. Groups that are too small to tell are
compared as one: the whole feed.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MIN_SHARE = 0.2
"""Share of a group's usual rows below which a month is not observed; no season takes four fifths of all players."""
MIN_ROWS = 30
"""Usual rows a month of a group whose months are compared; of fewer, chance alone may take most."""


def count_rows(
    groups: npt.NDArray[np.int64], months: npt.NDArray[np.int32], n_groups: int, columns: Sequence[int]
) -> npt.NDArray[np.int64]:
    """Count the rows of each group and month, shape (n_groups, len(columns)).

    Args:
        groups: Each row's group, shape (n,), below ``n_groups``.
        months: Each row's month, shape (n,).
        columns: The months counted, ascending.
    """
    places = np.searchsorted(columns, months)
    is_counted = (places < len(columns)) & (np.asarray(columns)[np.minimum(places, len(columns) - 1)] == months)
    cells = groups[is_counted] * len(columns) + places[is_counted]
    return np.bincount(cells, minlength=n_groups * len(columns)).reshape(n_groups, len(columns))


def are_observed(volumes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which months of which groups were observed.

    The usual number of rows is that of the last observed month, so that a group may shrink or grow over the months.

    Args:
        volumes: Rows of each group and month, in order of time; shape (n_groups, n_months).

    >>> are_observed(np.array([[100, 90, 4, 0, 95], [40, 41, 40, 38, 39]])).tolist()
    [[True, True, False, False, True], [True, True, True, True, True]]
    """
    of_groups, of_all = _have_usual_volume(volumes), _have_usual_volume(volumes.sum(axis=0, keepdims=True))
    return of_groups & of_all


def _have_usual_volume(volumes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    usual = volumes[:, 0]
    is_usual = np.ones(volumes.shape, dtype=np.bool_)
    for i, volume in enumerate(volumes.T):
        is_low = (usual >= MIN_ROWS) & (volume < MIN_SHARE * usual)
        is_usual[:, i] = ~is_low
        usual = np.where(is_low, usual, volume)
    return is_usual
