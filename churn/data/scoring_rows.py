"""From a file of input rows to chunks of the model's matrix, in memory that does not grow with the rows.

The file is read twice. The first pass holds every row to the contract and keeps keys alone, from which each account's
row is told; the second encodes those rows. A file of few chunks is kept between the passes. Pure.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from churn.data.activity import (
    KINDS,
    CheckedRows,
    check_activity,
    check_encoded,
    is_activity,
    repeated_ids,
    require_features,
)
from churn.data.features import (
    Encoding,
    Matrix,
    count_unknown_levels,
    derive,
    encode,
    key_columns,
    latest_known,
    plan_encoding,
)
from churn.data.formats import RowFile, open_rows
from churn.errors import InputError

CHUNK_ROWS = 65_536  # small chunks make the booster several times dearer a row; larger ones only cost memory
_KEPT_CHUNKS = 2


@dataclass(frozen=True)
class ScoringRows:
    """One row per account of a file, ready to be encoded for a model.

    Attributes:
        checked: What the contract said; of the rows that hold, only the keys.
        n_accounts: Rows that :meth:`chunks` will give in all.
        n_later: Rows of the file not known yet at the as-of date.
        n_withheld: Accounts left out because their newest row was quarantined; an older one would be stale.
        unknown_levels: ``{parent: {level: rows}}`` of the chunks given so far.
    """

    feature_names: tuple[str, ...]
    checked: CheckedRows
    n_accounts: int
    n_later: int
    n_withheld: int
    has_account_ids: bool
    _reader: "_Reader"
    _marks: npt.NDArray[np.bool_]
    unknown_levels: dict[str, dict[str, int]] = field(default_factory=dict)

    def chunks(self) -> Iterator[tuple[npt.NDArray[np.int64], Matrix]]:
        """Yield account ids, shape (n,), and their matrix, shape (n, n_features), n ≤ ``CHUNK_ROWS``.

        The matrix is overwritten by the next chunk.
        """
        self.unknown_levels.clear()
        buffer = np.empty((min(CHUNK_ROWS, max(self.n_accounts, 1)), len(self.feature_names)), dtype=np.float32)
        taken = 0
        for checked in self._reader.checked_chunks():
            rows = checked.rows.filter(pl.Series(self._marks[taken : taken + checked.rows.height]))
            taken += checked.rows.height
            if rows.height:
                yield rows["account_id"].to_numpy(), self._reader.encode(rows, buffer, self.unknown_levels)


def prepare(
    path: Path, feature_names: tuple[str, ...], as_of: date, max_quarantine_share: float, origin: str
) -> ScoringRows:
    """Read a file of either shape once, hold it to the contract, and find each account's row.

    Args:
        origin: What to call the file in an error.

    Raises:
        InputError: If the file is not rows, the model's features cannot be made of them, or no account is known.
        QuarantineError: If more than ``max_quarantine_share`` of the rows break the contract.
    """
    file = open_rows(path, feature_names)
    if is_activity(file.columns):
        return _prepare_activity(_Activity(file, feature_names), feature_names, as_of, max_quarantine_share, origin)
    require_features(file.columns, feature_names)
    encoded = _Encoded(file, feature_names)
    checked = _first_pass(encoded, file.n_rows, max_quarantine_share)
    marks = np.ones(checked.rows.height, dtype=np.bool_)
    return ScoringRows(feature_names, checked, checked.rows.height, 0, 0, encoded.has_ids, encoded, marks)


def _prepare_activity(
    reader: "_Activity", feature_names: tuple[str, ...], as_of: date, max_quarantine_share: float, origin: str
) -> ScoringRows:
    checked = _first_pass(reader, reader.file.n_rows, max_quarantine_share)
    keys = [checked.rows[name].to_physical().to_numpy() for name in key_columns(checked.rows.columns)]
    marks = latest_known(as_of, *keys)
    latest = checked.rows.filter(pl.Series(marks))
    withheld = stale_accounts(latest, checked.quarantined, as_of)
    if withheld.height:
        marks &= ~checked.rows["account_id"].is_in(withheld["account_id"].implode()).to_numpy()
    n_accounts = int(marks.sum())
    if not n_accounts:
        first, last = checked.rows.select(first=pl.min("activity_month"), last=pl.max("activity_month")).row(0)
        raise InputError(
            f"no account of {origin} was known at {as_of}: its months run from {first} to {last}; "
            f"score a later week or bring an earlier extract"
        )
    n_later = int((checked.rows["activity_month"] > as_of).sum())
    return ScoringRows(feature_names, checked, n_accounts, n_later, withheld.height, True, reader, marks)  # noqa: FBT003


def stale_accounts(latest: pl.DataFrame, quarantined: pl.DataFrame, as_of: date) -> pl.DataFrame:
    """Find the accounts whose newest row was quarantined, so that an older one would stand in for it.

    Returns:
        ``account_id``, one row each.
    """
    known = pl.col("activity_month").is_null() | (pl.col("activity_month") <= as_of)
    broken = quarantined.filter(pl.col("account_id").is_not_null() & known)
    newest = broken.group_by("account_id").agg(
        pl.col("activity_month").max(), undated=pl.col("activity_month").is_null().any()
    )
    held = latest.select("account_id", held_month="activity_month")
    is_newer = pl.col("undated") | pl.col("held_month").is_null() | (pl.col("activity_month") >= pl.col("held_month"))
    return newest.join(held, on="account_id", how="left").filter(is_newer).select("account_id")


class _Reader:
    """A file's rows, checked chunk by chunk; kept after the first reading when they are few."""

    def __init__(self, file: RowFile, columns: list[str]) -> None:
        self.file = file
        self._columns = columns
        self._kept: list[CheckedRows] | None = None

    def checked_chunks(self) -> Iterator[CheckedRows]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[CheckedRows] = []
        first_row = 1
        for chunk in self.file.chunks(self._columns, CHUNK_ROWS):
            checked = self.check(chunk, first_row)
            first_row += chunk.height
            if self.file.n_rows <= _KEPT_CHUNKS * CHUNK_ROWS:
                kept.append(checked)
            yield checked
        self._kept = kept or None

    def check(self, chunk: pl.DataFrame, first_row: int) -> CheckedRows:
        raise NotImplementedError

    def keys(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.select(key_columns(rows.columns))

    def encode(self, rows: pl.DataFrame, into: Matrix, unknown: dict[str, dict[str, int]]) -> Matrix:
        """Encode rows into the first rows of ``into``, and count their unknown levels."""
        raise NotImplementedError


class _Activity(_Reader):
    """Raw activity."""

    def __init__(self, file: RowFile, feature_names: Sequence[str]) -> None:
        derived = ["months_active"] if "ftd_date" in file.columns else []
        self._encoding: Encoding = plan_encoding(feature_names, [*file.columns, *derived])
        self._numbers = [name for name, _ in self._encoding.numbers]
        needed = {*KINDS, *self._numbers, *(group.parent for group in self._encoding.one_hots)}
        super().__init__(file, [name for name in file.columns if name in needed])

    def check(self, chunk: pl.DataFrame, first_row: int) -> CheckedRows:
        return check_activity(chunk, self._numbers, first_row=first_row)

    def encode(self, rows: pl.DataFrame, into: Matrix, unknown: dict[str, dict[str, int]]) -> Matrix:
        derived = derive(rows)
        for parent, counts in count_unknown_levels(derived, self._encoding).items():
            so_far = unknown.setdefault(parent, {})
            for level, count in counts.items():
                so_far[level] = so_far.get(level, 0) + count
        return encode(derived, self._encoding, into)


class _Encoded(_Reader):
    """Rows that came encoded; where they have ids, those that stand twice in the whole file are known first."""

    def __init__(self, file: RowFile, feature_names: tuple[str, ...]) -> None:
        self.has_ids = "account_id" in file.columns
        self._names = feature_names
        ids = (chunk["account_id"] for chunk in file.chunks(["account_id"], CHUNK_ROWS)) if self.has_ids else None
        self._repeated = repeated_ids(ids) if ids is not None else None
        super().__init__(file, [*feature_names, *(["account_id"] if self.has_ids else [])])

    def check(self, chunk: pl.DataFrame, first_row: int) -> CheckedRows:
        return check_encoded(chunk, self._names, repeated=self._repeated, first_row=first_row)

    def keys(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.select("account_id")

    def encode(self, rows: pl.DataFrame, into: Matrix, unknown: dict[str, dict[str, int]]) -> Matrix:
        del unknown  # levels are gone here
        matrix = into[: rows.height]
        for position, name in enumerate(self._names):
            matrix[:, position] = rows[name].cast(pl.Float32).to_numpy()
        return matrix


def _first_pass(reader: _Reader, n_rows: int, max_quarantine_share: float) -> CheckedRows:
    keys: list[pl.DataFrame] = []
    quarantined: list[pl.DataFrame] = []
    n_read = n_broken = 0
    for checked in reader.checked_chunks():
        keys.append(reader.keys(checked.rows))
        quarantined.append(checked.quarantined)
        n_read += checked.n_read
        n_broken += checked.quarantined.height
        if n_broken > max_quarantine_share * n_rows:
            break  # no need to hold them all
    whole = CheckedRows(pl.concat(keys), pl.concat(quarantined), n_read)
    whole.require_share(max_quarantine_share)
    return whole
