"""From a file of input rows to chunks of rows to score. Pure.

Of raw activity, each account's row is known only when the whole file is: one pass holds every row to the contract and
keeps it packed, in some 30 bytes, and the chunks are taken from that. Rows that came encoded need no such pass and
stream through.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from churn.concurrency import in_threads
from churn.data.activity import (
    KINDS,
    ONE_HOT_COLUMNS,
    CheckedRows,
    check_activity,
    check_encoded,
    is_activity,
    repeated_ids,
    require_features,
)
from churn.data.erased import Erased
from churn.data.features import (
    Encoding,
    Packed,
    derive,
    first_recent_month,
    key_columns,
    latest_known,
    pack,
    pack_matrix,
    plan_encoded,
    plan_encoding,
)
from churn.data.formats import RowFile, open_rows
from churn.defaults import HORIZON_MONTHS
from churn.errors import InputError

CHUNK_ROWS = 65_536  # small chunks cost more calls a row; larger ones only cost memory
_MOST_LEVELS = 20

Chunk = tuple[npt.NDArray[np.int64], Packed]
"""Account ids, shape (n,), and their rows."""


@dataclass
class RowCounts:
    """Counts of a file's rows; complete when all chunks were consumed.

    Attributes:
        n_accounts: Rows given to be scored, one an account.
        n_later: Rows not known yet at the as-of date.
        n_withheld: Accounts left out because their newest row was quarantined; an older one would be stale.
        n_erased: Rows dropped because their account was erased.
        quarantined: ``row_number, account_id, activity_month, rules, row``.
        unknown_levels: ``{source_column: {level: rows}}``, of the rows that hold; the most frequent
            levels of each source column.
    """

    n_read: int
    n_accounts: int
    n_later: int
    n_withheld: int
    has_account_ids: bool
    quarantined: pl.DataFrame
    unknown_levels: dict[str, dict[str, int]]
    n_erased: int = 0

    @property
    def quarantined_by_rule(self) -> dict[str, int]:
        """Rows per broken rule, most frequent first."""
        return CheckedRows(self.quarantined.clear(), self.quarantined, self.n_read).counts_by_rule()


class ScoringRows(Protocol):
    """One row per account, ready for a model."""

    counts: RowCounts
    encoding: Encoding

    def chunks(self) -> Iterator[Chunk]:
        """Yield at least one chunk of 1 to ``CHUNK_ROWS`` rows; once.

        Raises:
            QuarantineError: If more rows break the contract than the limit allows, at the latest after the last chunk.
        """
        ...


def prepare(
    path: Path,
    feature_names: tuple[str, ...],
    as_of: date,
    max_quarantine_share: float,
    origin: str,
    *,
    recent_months: int = HORIZON_MONTHS,
    erased: Erased | None = None,
) -> ScoringRows:
    """Open a file of either shape, and find each account's row.

    Args:
        origin: What to call the file in an error.
        recent_months: How many of the newest months count as recent.
        erased: Accounts whose rows are dropped and counted.

    Raises:
        InputError: If the file is not rows, the model's features cannot be made of them, or no account is known.
        QuarantineError: If more than ``max_quarantine_share`` of the rows break the contract.
    """
    file = open_rows(path, feature_names)
    if is_activity(file.columns):
        return _Activity(
            file,
            feature_names,
            as_of,
            max_quarantine_share,
            origin,
            recent_months=recent_months,
            erased=erased or Erased(),
        )
    require_features(file.columns, feature_names)
    return _Encoded(file, feature_names, max_quarantine_share, erased=erased or Erased())


class _Activity:
    """Raw activity, read and packed on entry."""

    def __init__(
        self,
        file: RowFile,
        feature_names: tuple[str, ...],
        as_of: date,
        max_quarantine_share: float,
        origin: str,
        *,
        recent_months: int,
        erased: Erased,
    ) -> None:
        self._erased = erased
        derived = ["months_active"] if "ftd_date" in file.columns else []
        self.encoding = plan_encoding(feature_names, [*file.columns, *derived])
        self._numbers = [name for name, _ in self.encoding.numbers]
        needed = {*KINDS, *self._numbers, *(group.source_column for group in self.encoding.one_hots)}
        keys: list[pl.DataFrame] = []
        quarantined: list[pl.DataFrame] = []
        unknown: dict[str, dict[str, int]] = {}
        n_broken = n_erased = 0
        self._packed: list[Packed] = []
        chunks = numbered(file.chunks([name for name in file.columns if name in needed], CHUNK_ROWS))
        for checked, packed in in_threads(self._check_and_pack, chunks):
            n_erased += checked.n_read - checked.rows.height - checked.quarantined.height
            keys.append(checked.rows.select(key_columns(checked.rows.columns)))
            quarantined.append(checked.quarantined)
            self._packed.append(packed)
            _add_counts(unknown, packed.unknown_levels)
            n_broken += checked.quarantined.height
            if n_broken > max_quarantine_share * file.n_rows:
                break  # the file is refused anyway
        checked = CheckedRows(pl.concat(keys), pl.concat(quarantined), file.n_rows)
        checked.require_share(max_quarantine_share)
        self._marks, n_withheld = _mark(checked, as_of)
        n_accounts = int(self._marks.sum())
        if not n_accounts:
            first, last = checked.rows.select(first=pl.min("activity_month"), last=pl.max("activity_month")).row(0)
            raise InputError(
                f"no account of {origin} was known at {as_of}: its months run from {first} to {last}; "
                f"score a later week or bring an earlier extract"
            )
        n_later = int((checked.rows["activity_month"] > as_of).sum())
        self._ids = checked.rows["account_id"].to_numpy()
        months = checked.rows["activity_month"].to_physical().to_numpy()
        self._is_recent = months >= first_recent_month(months[self._marks], recent_months)
        self.counts = RowCounts(
            n_read=file.n_rows,
            n_accounts=n_accounts,
            n_later=n_later,
            n_withheld=n_withheld,
            has_account_ids=True,
            quarantined=checked.quarantined,
            unknown_levels=_most_frequent(unknown),
            n_erased=n_erased,
        )

    def _check_and_pack(self, chunk: tuple[int, pl.DataFrame]) -> tuple[CheckedRows, Packed]:
        first_row, frame = chunk
        checked = _without(self._erased, check_activity(frame, self._numbers, first_row=first_row))
        return checked, pack(derive(checked.rows), self.encoding)

    def chunks(self) -> Iterator[Chunk]:
        end = 0
        for packed in self._packed:
            start, end = end, end + packed.n_rows
            marks, is_recent = self._marks[start:end], self._is_recent[start:end]
            if marks.all():
                yield self._ids[start:end], replace(packed, is_recent=is_recent)
            elif marks.any():
                yield self._ids[start:end][marks], replace(packed.take(marks), is_recent=is_recent[marks])


class _Encoded:
    """Rows that came encoded, checked as they are consumed; repeated ids are found in a pass before."""

    def __init__(
        self, file: RowFile, feature_names: tuple[str, ...], max_quarantine_share: float, *, erased: Erased
    ) -> None:
        self._erased = erased
        self._file = file
        self._names = feature_names
        self._limit = max_quarantine_share
        self.encoding = plan_encoded(feature_names, ONE_HOT_COLUMNS)
        self._has_ids = "account_id" in file.columns
        ids = (chunk["account_id"] for chunk in file.chunks(["account_id"], CHUNK_ROWS)) if self._has_ids else None
        self._repeated = repeated_ids(ids) if ids is not None else None
        self.counts = RowCounts(file.n_rows, 0, 0, 0, self._has_ids, pl.DataFrame(), {})

    def chunks(self) -> Iterator[Chunk]:
        columns = [*self._names, *(["account_id"] if self._has_ids else [])]
        quarantined: list[pl.DataFrame] = []
        n_broken = 0
        last = pl.DataFrame()
        for checked, packed in in_threads(self._check_and_pack, numbered(self._file.chunks(columns, CHUNK_ROWS))):
            last = checked.rows
            quarantined.append(checked.quarantined)
            n_broken += checked.quarantined.height
            if n_broken > self._limit * self._file.n_rows:
                break
            self.counts.n_accounts += checked.rows.height
            self.counts.n_erased += checked.n_read - checked.rows.height - checked.quarantined.height
            if checked.rows.height:
                yield checked.rows["account_id"].to_numpy(), packed
        self.counts.quarantined = pl.concat(quarantined)
        rows = last if self.counts.n_accounts else last.clear()
        CheckedRows(rows, self.counts.quarantined, self._file.n_rows).require_share(self._limit)

    def _check_and_pack(self, chunk: tuple[int, pl.DataFrame]) -> tuple[CheckedRows, Packed]:
        first_row, frame = chunk
        checked = check_encoded(frame, self._names, repeated=self._repeated, first_row=first_row)
        if self._has_ids:  # else the row number is the id
            checked = _without(self._erased, checked)
        matrix = checked.rows.select(self._names).cast(pl.Float32).to_numpy()
        return checked, pack_matrix(matrix, self.encoding)


def _without(erased: Erased, checked: CheckedRows) -> CheckedRows:
    return replace(checked, rows=erased.without(checked.rows), quarantined=erased.without(checked.quarantined))


def numbered(chunks: Iterable[pl.DataFrame]) -> Iterator[tuple[int, pl.DataFrame]]:
    """Pair each chunk with the number of its first row, from 1."""
    first_row = 1
    for chunk in chunks:
        yield first_row, chunk
        first_row += chunk.height


def stale_accounts(latest: pl.DataFrame, quarantined: pl.DataFrame, as_of: date) -> pl.DataFrame:
    """Find the accounts whose newest row was quarantined, so that an older row would be scored instead.

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


def _mark(checked: CheckedRows, as_of: date) -> tuple[npt.NDArray[np.bool_], int]:
    """Mark the rows to score, and count the accounts withheld."""
    marks = latest_known(as_of, *(column.to_physical().to_numpy() for column in checked.rows))
    if checked.quarantined.is_empty():
        return marks, 0
    withheld = stale_accounts(checked.rows.filter(pl.Series(marks)), checked.quarantined, as_of)
    is_withheld = checked.rows["account_id"].is_in(withheld["account_id"].implode()).to_numpy()
    return marks & ~is_withheld, withheld.height


def _most_frequent(counts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    return {
        source_column: dict(sorted(levels.items(), key=lambda pair: -pair[1])[:_MOST_LEVELS])
        for source_column, levels in counts.items()
    }


def _add_counts(to: dict[str, dict[str, int]], counts: dict[str, dict[str, int]]) -> None:
    for source_column, levels in counts.items():
        so_far = to.setdefault(source_column, {})
        for level, count in levels.items():
            so_far[level] = so_far.get(level, 0) + count
