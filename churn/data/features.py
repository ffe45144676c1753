"""Features: from activity known at an as-of date to one row per account, and from those to the model's matrix.

Training and scoring build their rows with the same functions. Names, levels and order of features come from the model.
Pure. Not here: features over several months (``churn.data.windows``).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

import numpy as np
import polars as pl

from churn.data.activity import KINDS, MONEY, Names, parse_value
from churn.data.arrays import Array, Flags, Floats, Ints, Longs, Shorts
from churn.data.spellings import canonical, fold, folded_levels
from churn.data.windows import IS_ACTIVE, KnownRows, Window, check_levels, compute, parse, source_column_of, windows_of
from churn.errors import InputError, UnlabelledError
from churn.weeks import day_start_us, days_since_epoch, month_number, month_numbers
from churn.wording import listed_with_nearest

Matrix = Floats
"""Shape (n_rows, n_features), C order, NaN where a value is missing."""

MAX_OF_COLUMN = 256
"""Maximum number of features of one source column, since a byte stores which of them is shown."""

NEVER = np.iinfo(np.int32).min
"""Last active month of an account without activity; the bits of PostgreSQL's date ``-infinity``."""

DERIVED = "months_active"
"""The feature that is derived from a row's dates, unless the activity has a column of that name."""

MISSING = "(missing)"
"""The level of missing values, where a model treats them otherwise than an unknown level."""

Levels = Mapping[str, tuple[str, ...]]
"""The levels of each categorical feature of a model, in the order of their codes."""

_PHYSICAL = {pl.Date: pl.Int32, pl.Datetime: pl.Int64}


def features(activity: pl.DataFrame, as_of: date, names: Sequence[str] = (), money: Names = MONEY) -> pl.DataFrame:
    """Build one row per account, sorted by ``account_id``, from the activity known at the end of ``as_of``.

    An account's row is its latest active month; of a month reported more than once, the report known last, then the
    one later in the file. ``months_active`` counts whole months from the first deposit's month to that month, and is
    missing where the first deposit is, or lies after ``as_of``, as in some real extracts.

    Without ``known_at`` a month counts as known from its first day: right for scoring, where the extract ends today,
    and wrong at a past date, for which :mod:`churn.storage.history` adds a ``known_at`` to each fact.

    Args:
        activity: Checked rows with ``account_id``, ``activity_month`` and perhaps ``known_at`` (UTC), ``ftd_date``.
        names: The model's feature names; those that are windows are computed, see :mod:`churn.data.windows`.
        money: The columns in which a value other than 0 is activity.

    Raises:
        InputError: If a name looks like a window and is none, or its column has no numbers, or no dates.
    """
    windows = windows_of(names, activity.schema)
    over_months = [window for window in windows if not window.is_of_row]
    known = known_rows(as_of, *keys_of(activity), by_account=bool(over_months))
    rows = derive(activity[known.latest], as_of, windows)
    if not over_months:
        return rows.sort("account_id")

    def column(name: str) -> Array:
        return (is_active(activity, money) if name == IS_ACTIVE else activity[name].cast(pl.Float32)).to_numpy()

    computed = compute(over_months, known, column)
    columns = [pl.Series(window.name, values) for window, values in zip(over_months, computed, strict=True)]
    return rows.with_columns(columns)


def is_active(activity: pl.DataFrame, money: Names = MONEY) -> pl.Series:
    """Return whether a money column of each row is neither missing nor 0; raises ``UnlabelledError`` without any."""
    schema = activity.schema
    columns = [parse_value(name, "number", schema[name]).ne(0.0) for name in money if name in schema]
    if not columns:
        problem = f"the activity has columns {sorted(activity.columns)}, none of which measures activity"
        needed = f"at least one of {', '.join(money)} is needed, or a declaration of others in data/churn/columns.json"
        raise UnlabelledError(f"{problem}; {needed}")
    return activity.select(is_active=pl.any_horizontal(columns).fill_null(value=False)).to_series()


def in_order(activity: pl.DataFrame) -> pl.DataFrame:
    """Sort rows by account, month and ``known_at`` if present, stably; :func:`features` are then faster, and equal."""
    keys = keys_of(activity)
    return activity if are_in_order(keys) else activity[np.lexsort(keys[::-1])]


def keys_of(activity: pl.DataFrame) -> list[Array]:
    """Return the columns that :func:`key_columns` names, shape (activity.height,) each."""
    # Column by column: an expression over all of them takes 15 times as long, more than the rest of small batches.
    columns = (activity.get_column(name) for name in key_columns(activity.columns))
    return [column.cast(_PHYSICAL.get(column.dtype.base_type(), column.dtype)).to_numpy() for column in columns]


def are_in_order(keys: Iterable[Array]) -> bool:
    """Return whether rows are sorted by their keys, the first key first."""
    tied: bool | Flags = True
    for key in keys:
        if (tied & (key[:-1] > key[1:])).any():
            return False
        tied &= key[:-1] == key[1:]
    return True


def key_columns(columns: Sequence[str]) -> list[str]:
    """Return the columns that :func:`known_rows` sorts rows by, as integers: id, day, and microsecond."""
    return ["account_id", "activity_month", *(["known_at"] if "known_at" in columns else [])]


def known_rows(
    as_of: date, account_ids: Longs, months: Ints, known_at: Longs | None = None, *, by_account: bool = True
) -> KnownRows:
    """Return the reports known at the end of ``as_of``, by the rules of :func:`features`; arrays of shape (n,).

    Args:
        months: Days since 1970.
        known_at: Microseconds since 1970, UTC; ``None`` when all rows were always known.
        by_account: Whether accounts must be in order, as for windows. Otherwise those with one report stay as they are.
    """
    is_known = months <= days_since_epoch(as_of)
    if known_at is not None:
        is_known &= known_at < day_start_us(as_of + timedelta(days=1))
    rows = np.flatnonzero(is_known)
    keys: list[Array] = [account_ids, months, *([] if known_at is None else [known_at])]
    if not are_in_order(key[rows] for key in keys):
        if not by_account and pl.Series(account_ids[rows]).n_unique() == len(rows):
            # As in most weekly files; this check takes a tenth of the time of sorting.
            return KnownRows(account_ids, months, rows, rows, as_of)
        rows = rows[np.lexsort([key[rows] for key in reversed(keys)])]  # stable: equals stay in the file's order
    accounts = account_ids[rows]
    is_latest = np.ones(len(rows), dtype=np.bool_)
    is_latest[:-1] = accounts[1:] != accounts[:-1]
    return KnownRows(account_ids, months, rows, rows[is_latest], as_of)


def last_active_months(known: KnownRows, is_active: Flags) -> Ints:
    """Return the account's newest month with activity at each account's latest row; any value at other rows.

    Days since 1970, ``NEVER`` where no month has activity; shape (n,) like ``is_active``, which is that of each row.
    """
    rows = known.rows
    if known.latest is rows:  # each account has one row, as in most weekly files
        return np.where(is_active, known.months.astype(np.int32, copy=False), np.int32(NEVER))
    accounts, months = known.account_ids[rows], known.months[rows]
    is_first = np.ones(len(rows), dtype=np.bool_)
    is_first[1:] = accounts[1:] != accounts[:-1]
    counts = is_active[rows]  # of the reports of a month, the last one counts
    counts[:-1] &= is_first[1:] | (months[1:] != months[:-1])
    newest = np.full(len(is_active), NEVER, dtype=np.int32)
    newest[known.latest] = np.maximum.reduceat(np.where(counts, months, NEVER), np.flatnonzero(is_first))
    return newest


def derive(rows: pl.DataFrame, as_of: date, windows: Sequence[Window] = ()) -> pl.DataFrame:
    """Set dates after ``as_of`` to null, and add the features that follow from a row's dates.

    These are ``months_active``, if ``ftd_date`` is present, and the windows ``months_since_<date column>``. A column
    of such a name that the rows have is used as it is.
    """
    since = [window for window in windows if window.is_of_row]
    dates = {name for name, kind in KINDS.items() if kind == "date"} - {"activity_month"}
    dates |= {window.column for window in since}
    rows = rows.with_columns(pl.when(pl.col(name) <= as_of).then(name) for name in rows.columns if name in dates)
    months = [(month_number(as_of) - month_numbers(pl.col(window.column))).alias(window.name) for window in since]
    if "ftd_date" in rows.columns and DERIVED not in rows.columns:
        months.append((month_numbers(pl.col("activity_month")) - month_numbers(pl.col("ftd_date"))).alias(DERIVED))
    return rows.with_columns(months)


def own_columns(names: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Return the features that could be computed, and for which the activity has a column, which is used."""
    available = set(columns)
    own = [name for name in names if name in available]
    return [name for name in own if (name == DERIVED and "ftd_date" in available) or parse(name, available)]


@dataclass(frozen=True)
class OneHot:
    """The columns of one categorical source column: ``levels[i]`` sets matrix column ``positions[i]``.

    If ``is_coded``, the matrix has one column with the level's index, its code, in place of one for each level. The
    last of ``levels`` is then that of missing values, which are NaN in the matrix.
    """

    source_column: str
    levels: tuple[str, ...]
    positions: tuple[int, ...]
    is_coded: bool = False

    @property
    def n_known(self) -> int:
        """The number of levels, without that of missing values."""
        return len(self.levels) - self.is_coded


@dataclass(frozen=True)
class Encoding:
    """How a frame's columns become a model's features: numbers unchanged, levels one-hot or by their codes.

    ``windows`` are the numbers that are windows, each with the source column that it is computed from.
    """

    n_features: int
    numbers: tuple[tuple[str, int], ...]
    one_hots: tuple[OneHot, ...]
    windows: tuple[tuple[str, str], ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of packed rows: the numbers, then the one-hot source columns."""
        return (*(name for name, _ in self.numbers), *(group.source_column for group in self.one_hots))

    @property
    def source_columns(self) -> tuple[str, ...]:
        """The columns that features come from, by which reasons are summed."""
        return tuple(dict.fromkeys(self.sources))

    @property
    def sources(self) -> list[str]:
        """The source column of each of ``columns``."""
        windows = dict(self.windows)
        return [windows.get(name, name) for name in self.columns]

    @property
    def features_of_windows(self) -> dict[str, tuple[str, ...]]:
        """The features of each source column that has a window."""
        features: dict[str, list[str]] = {}
        for name, source in zip(self.columns, self.sources, strict=True):
            features.setdefault(source, []).append(name)
        return {source: tuple(names) for source, names in features.items() if names != [source]}

    @property
    def column_of_feature(self) -> Ints:
        """The index of each feature's column in ``columns``, shape (n_features,)."""
        columns = np.empty(self.n_features, dtype=np.int32)
        positions = [(position,) for _, position in self.numbers] + [group.positions for group in self.one_hots]
        for i, features_of_column in enumerate(positions):
            columns[list(features_of_column)] = i
        return columns


def plan_encoding(feature_names: Sequence[str], columns: Sequence[str], levels: Levels | None = None) -> Encoding:
    """Find each feature's source: a column of its name, a window, else ``<column>_<level>`` of the longest such column.

    Raises ``InputError`` naming the features that come from no column, or that look like windows and are none.
    """
    available, levels = set(columns), levels or {}
    windows = {window.name for window in windows_of(feature_names, available)}
    by_code: list[OneHot] = []
    numbers: list[tuple[str, int]] = []
    groups: dict[str, list[tuple[str, int]]] = {}
    unexplained: list[str] = []
    for position, name in enumerate(feature_names):
        if name in levels:
            by_code.append(OneHot(name, (*levels[name], MISSING), (position,), is_coded=True))
            unexplained += {name} - available
        elif name in available or name in windows:
            numbers.append((name, position))
        elif source_column := source_column_of(name, available):
            groups.setdefault(source_column, []).append((name.removeprefix(f"{source_column}_"), position))
        else:
            unexplained.append(name)
    if unexplained:
        shown, remedy = listed_with_nearest(unexplained, columns), "add the columns or correct the feature names"
        problem = f"from which {len(unexplained)} of the model's features cannot be built: {shown}"
        raise InputError(f"the activity has columns {sorted(columns)}, {problem}; {remedy}")
    one_hots = (OneHot(name, tuple(a for a, _ in of), tuple(b for _, b in of)) for name, of in groups.items())
    # Encoded rows have windows as columns, and lack the columns that these were computed from.
    parsed = (parse(name, available | KINDS.keys()) for name, _ in numbers)
    sources = tuple((window.name, window.source_column) for window in parsed if window)
    most = max(Counter(column for _, column in sources).values(), default=0)
    if most >= MAX_OF_COLUMN:
        raise InputError(f"a column has {most} windows; use fewer than {MAX_OF_COLUMN}")
    return Encoding(len(feature_names), tuple(numbers), (*one_hots, *by_code), sources)


def plan_encoded(feature_names: Sequence[str], source_columns: Sequence[str], levels: Levels | None = None) -> Encoding:
    """Plan for encoded rows: ``<source column>_<level>`` are the one-hot columns of these source columns."""
    columns, coded = set(source_columns), levels or {}
    plain = [name for name in feature_names if name in coded or source_column_of(name, columns) is None]
    return plan_encoding(feature_names, [*plain, *source_columns], levels)


@dataclass(frozen=True)
class Packed:
    """A model's input rows, in a tenth of the matrix's memory."""

    numbers: Floats  # shape (n numbers, n_rows), in the encoding's order
    # Per one-hot source column, the index of the row's level in `OneHot.levels`, or their count if the model does not
    # know the level; shape (n source columns, n_rows).
    levels: Shorts
    # `{source_column: {level: rows}}` of levels that the model does not know, most frequent first
    unknown_levels: dict[str, dict[str, int]] = field(default_factory=dict)
    # Each account's newest month with activity, days since 1970, `NEVER` without one; shape (n_rows,). `None`: unknown.
    last_active_months: Ints | None = None
    is_at_risk: Flags | None = None  # which accounts are at risk of churning, shape (n_rows,); if unknown, all count

    @property
    def n_rows(self) -> int:
        return int(self.numbers.shape[1])

    @property
    def values(self) -> Floats:
        """Each column's values, a level by its index; shape (n columns, n_rows)."""
        return np.concatenate([self.numbers, self.levels.astype(np.float32)])

    def take(self, rows: slice | Flags) -> "Packed":
        """Return some of the rows."""
        return Packed(self.numbers[:, rows], self.levels[:, rows])


def pack(rows: pl.DataFrame, encoding: Encoding) -> Packed:
    """Pack rows into the arrays from which :func:`unpack` builds the matrix."""
    numbers = np.empty((len(encoding.numbers), rows.height), dtype=np.float32)
    for i, (name, _) in enumerate(encoding.numbers):
        numbers[i] = rows[name].cast(pl.Float32).to_numpy()
    levels = np.empty((len(encoding.one_hots), rows.height), dtype=np.uint16)
    unknown: dict[str, dict[str, int]] = {}
    for i, group in enumerate(encoding.one_hots):
        codes = _codes(rows, group)
        levels[i] = codes.fill_null(len(group.levels)).to_numpy()
        if codes.null_count():
            unknown[group.source_column] = _count_levels(rows[group.source_column].filter(codes.is_null()))
    return Packed(numbers, levels, unknown)


def pack_matrix(matrix: Matrix, encoding: Encoding) -> Packed:
    """Pack encoded rows, whose one-hot columns are 0 except for at most one 1; a level with a code is that code."""
    numbers = np.ascontiguousarray(matrix[:, [position for _, position in encoding.numbers]].T)
    levels = np.empty((len(encoding.one_hots), len(matrix)), dtype=np.uint16)
    for i, group in enumerate(encoding.one_hots):
        if group.is_coded:
            codes = matrix[:, group.positions[0]]
            levels[i] = np.where(np.isnan(codes), group.n_known, np.minimum(codes, len(group.levels)))
            continue
        is_set = matrix[:, group.positions] == 1
        levels[i] = np.where(is_set.any(axis=1), is_set.argmax(axis=1), len(group.levels))
    return Packed(numbers, levels)


def unpack(packed: Packed, encoding: Encoding) -> Matrix:
    """Build the matrix, in the model's order. A level that the model does not know sets no column, or has no code."""
    matrix = np.zeros((packed.n_rows, encoding.n_features), dtype=np.float32)
    for values, (_, position) in zip(packed.numbers, encoding.numbers, strict=True):
        matrix[:, position] = values
    rows = np.arange(packed.n_rows)
    for levels, group in zip(packed.levels, encoding.one_hots, strict=True):
        if group.is_coded:
            # XGBoost treats every code beyond those that it was trained on alike: it is in no split's set.
            matrix[:, group.positions[0]] = np.where(levels == group.n_known, np.float32(np.nan), levels)
            continue
        is_known = levels < len(group.levels)
        matrix[rows[is_known], np.array(group.positions)[levels[is_known]]] = 1
    return matrix


def encode(rows: pl.DataFrame, encoding: Encoding) -> Matrix:
    """Build the matrix of a frame's rows, in the model's order."""
    return unpack(pack(rows, encoding), encoding)


def with_codes(frame: pl.DataFrame, levels: Levels) -> pl.DataFrame:
    """Replace the levels in encoded rows by their codes: null where one is missing, beyond all codes if unknown."""
    names = [name for name in levels if name in frame.columns]
    codes = (encode(frame.select(name), plan_encoding([name], [name], levels))[:, 0] for name in names)
    return frame.with_columns(pl.Series(*pair).fill_nan(None) for pair in zip(names, codes, strict=True))


def _count_levels(unknown: pl.Series) -> dict[str, int]:
    # PostgreSQL's jsonb, where these counts are stored, rejects the character NUL.
    shown = unknown.cast(pl.String).fill_null(MISSING).str.replace_all("\0", "\ufffd", literal=True)
    return dict(shown.value_counts(sort=True).iter_rows())


def _codes(rows: pl.DataFrame, group: OneHot) -> pl.Series:
    column = rows[group.source_column]
    if column.dtype.is_numeric() and column.name not in KINDS:
        check_levels(column.name, () if group.is_coded else group.levels, rows.columns)
    text = column if column.dtype in (pl.String, pl.Categorical) else column.cast(pl.String)
    known = group.levels[: group.n_known]
    codes = text.cast(pl.Enum(known), strict=False).to_physical()
    if codes.null_count() > text.null_count():
        # Outer spaces and case are no part of a level, unless the model has two levels that differ in nothing else.
        unknown = text.filter(codes.is_null()).unique().cast(pl.String).drop_nulls()
        folded = folded_levels(known)
        codes_of = dict(zip(unknown, (folded.get(level) for level in fold(unknown)), strict=True))
        codes = codes.fill_null(text.cast(pl.String).replace_strict(codes_of, default=None, return_dtype=codes.dtype))
    if group.is_coded and codes.null_count():
        codes = codes.cast(pl.UInt32).set(codes.is_null() & canonical(text, "text").is_null(), group.n_known)
    return codes
