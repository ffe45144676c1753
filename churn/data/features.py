"""Features: from activity known at an as-of date to one row per account, and from those to the model's matrix.

One function makes the rows for training and for scoring alike. Nothing here knows a list of features: names, levels
and order come from the model. Pure: no files, no settings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import numpy.typing as npt
import polars as pl

from churn.errors import InputError

Matrix = npt.NDArray[np.float32]
"""Shape (n_rows, n_features), C order, NaN where a value is missing."""


def features(activity: pl.DataFrame, as_of: date) -> pl.DataFrame:
    """Make one row per account from what was known at the end of ``as_of``.

    An account's row is its latest active month; of a month reported more than once, the report known last, then the
    one later in the file. ``months_active`` counts whole months from the first deposit's month to that month, and is
    missing where the first deposit is; extracts date some deposits later, so it can be negative.

    Args:
        activity: Checked rows with ``account_id``, ``activity_month`` and perhaps ``known_at`` (UTC), ``ftd_date``.

    Returns:
        The rows of ``activity``'s columns and ``months_active``, sorted by ``account_id``, one per account known.
    """
    known = pl.col("activity_month") <= as_of
    order = ["account_id", "activity_month"]
    if "known_at" in activity.columns:
        known &= pl.col("known_at").dt.date() < as_of + timedelta(days=1)
        order.append("known_at")
    latest = (
        activity.filter(known).sort(order, maintain_order=True).unique("account_id", keep="last", maintain_order=True)
    )
    if "ftd_date" not in activity.columns:
        return latest
    return latest.with_columns(months_active=_month_number("activity_month") - _month_number("ftd_date"))


def _month_number(column: str) -> pl.Expr:
    return pl.col(column).dt.year() * 12 + pl.col(column).dt.month().cast(pl.Int32)


@dataclass(frozen=True)
class OneHot:
    """The columns of one categorical parent: ``levels[i]`` sets matrix column ``positions[i]``."""

    parent: str
    levels: tuple[str, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Encoding:
    """How a model's features come from a frame's columns: numbers as they are, levels one-hot."""

    n_features: int
    numbers: tuple[tuple[str, int], ...]
    one_hots: tuple[OneHot, ...]


def plan_encoding(feature_names: Sequence[str], columns: Sequence[str]) -> Encoding:
    """Find where each feature comes from: a column of its name, else ``<column>_<level>`` of the longest such column.

    Raises:
        InputError: If a feature comes from no column; names them.
    """
    available = set(columns)
    numbers: list[tuple[str, int]] = []
    groups: dict[str, list[tuple[str, int]]] = {}
    unexplained: list[str] = []
    for position, name in enumerate(feature_names):
        if name in available:
            numbers.append((name, position))
        elif parent := _parent_of(name, available):
            groups.setdefault(parent, []).append((name.removeprefix(f"{parent}_"), position))
        else:
            unexplained.append(name)
    if unexplained:
        raise InputError(
            f"the activity has columns {sorted(columns)}, from which {len(unexplained)} of the model's features cannot "
            f"be made: {', '.join(unexplained[:8])}; add the columns or correct the variant's feature names"
        )
    one_hots = tuple(OneHot(parent, *map(tuple, zip(*pairs, strict=True))) for parent, pairs in groups.items())
    return Encoding(len(feature_names), tuple(numbers), one_hots)


def _parent_of(name: str, available: set[str]) -> str | None:
    cuts = [i for i, character in enumerate(name) if character == "_"]
    return next((name[:cut] for cut in reversed(cuts) if name[:cut] in available), None)


def encode(rows: pl.DataFrame, encoding: Encoding) -> Matrix:
    """Build the matrix in the model's order. A level the model does not know sets no column.

    Returns:
        Shape (rows.height, encoding.n_features).
    """
    matrix = np.zeros((rows.height, encoding.n_features), dtype=np.float32)
    for name, position in encoding.numbers:
        matrix[:, position] = rows[name].cast(pl.Float32).to_numpy()
    for group in encoding.one_hots:
        codes = _codes(rows, group)
        known = codes.is_not_null().to_numpy()
        matrix[np.flatnonzero(known), np.asarray(group.positions)[codes.drop_nulls().to_numpy()]] = 1
    return matrix


def count_unknown_levels(rows: pl.DataFrame, encoding: Encoding, *, most: int = 20) -> dict[str, dict[str, int]]:
    """Count the rows whose level the model does not know: ``{parent: {level: rows}}``, most frequent first."""
    counts: dict[str, dict[str, int]] = {}
    for group in encoding.one_hots:
        unknown = rows[group.parent].cast(pl.String).filter(_codes(rows, group).is_null())
        if not unknown.is_empty():
            # The character NUL has no place in PostgreSQL's jsonb, where these counts go.
            shown = unknown.fill_null("(missing)").str.replace_all("\0", "\ufffd", literal=True)
            table = shown.value_counts(sort=True).head(most)
            counts[group.parent] = dict(table.iter_rows())
    return counts


def _codes(rows: pl.DataFrame, group: OneHot) -> pl.Series:
    levels = pl.Enum(list(group.levels))
    return rows[group.parent].cast(pl.String).cast(levels, strict=False).to_physical()
