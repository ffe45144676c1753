"""PostgreSQL's binary COPY format, in both directions: blocks of rows to write, and fields of rows that were read.

https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-BINARY-FORMAT: a header, then for each row its number of
fields and the size and bytes of each, then a trailer.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from churn.data.account_ids import ACCOUNT_KEY, keys_of
from churn.data.arrays import Bytes, Floats, Ints, Longs
from churn.data.features import NEVER

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_FIELD = struct.Struct(">hi")  # a row's number of fields, and the size of its first one
_POSTGRES_EPOCH = date(2000, 1, 1)
_EPOCHS_APART = (_POSTGRES_EPOCH - date(1970, 1, 1)).days
_REAL_OID = 700

SOURCE_COLUMNS = (
    "total_deposit", "total_handle", "total_ngr", "months_active", "brand_id", "ben_login_id", "player_reg_product",
)  # fmt: skip
"""Source columns with table columns for their contributions; those of all others share two array columns."""


@dataclass(frozen=True)
class ScoredRows:
    """A chunk of a batch's rows."""

    account_ids: Longs  # shape (n,), unique over the whole batch
    probabilities: Floats  # shape (n,), in [0, 1]
    last_active_months: Ints | None = None  # days since 1970, `NEVER` without activity, shape (n,); `None` if unknown
    contributions: Floats | None = None  # log-odds by source column, (n, n_source_columns); `None` without reasons
    values: Floats | None = None  # of these columns, a level by its index, NaN if missing; shape (n_source_columns, n)
    shown: Bytes | None = None  # of each source column with windows, the index of the feature shown; (n, n of these)


@dataclass(frozen=True)
class CopyLayout:
    """The columns of one batch's rows, of which all have the same week; the database adds the batch's number."""

    week: date
    source_columns: tuple[str, ...] = ()  # the source columns of the rows' contributions; empty without reasons
    n_shown: int = 0  # the number of them with windows, of which the index of the shown feature is stored
    has_last_active_month: bool = False
    # See churn.data.account_ids.key_table; texts have no fixed size, and are the last field
    account_keys: pl.DataFrame | None = None

    @property
    def separate(self) -> list[str]:
        """The source columns with table columns for their contributions."""
        return [name for name in self.source_columns if name in SOURCE_COLUMNS]

    @property
    def other(self) -> list[str]:
        """The source columns that share the arrays."""
        return [name for name in self.source_columns if name not in SOURCE_COLUMNS]

    @property
    def columns(self) -> list[str]:
        """The table columns written, in the fields' order."""
        reals = [f"{name}_{part}" for name in self.separate for part in ("contribution", "value")]
        arrays = ["other_contributions", "other_values"] if self.other else []
        arrays += ["shown_features"] if self.n_shown else []
        months = ["last_active_month"] if self.has_last_active_month else []
        keys = [] if self.account_keys is None else [ACCOUNT_KEY]
        return ["scored_week", "account_id", "churn_probability", *months, *reals, *arrays, *keys]

    def blank_row(self) -> npt.NDArray[np.void]:
        """Return one row but for a text, shape (1,), with the values that all rows of the batch share."""
        n_other = len(self.other)
        element = np.dtype([("size", ">i4"), ("value", ">f4")])
        array = np.dtype([("n_dims", ">i4"), ("nulls", ">i4"), ("oid", ">i4"), ("length", ">i4"), ("lower", ">i4"),
                          ("elements", element, (n_other,))])  # fmt: skip
        types: dict[str, Any] = {"scored_week": ">i4", "account_id": ">i8", "last_active_month": ">i4"}
        types |= {"other_contributions": array, "other_values": array, "shown_features": ("u1", (self.n_shown,))}
        sized = [name for name in self.columns if name != ACCOUNT_KEY]
        fields = [(name, [("size", ">i4"), ("value", types.get(name, ">f4"))]) for name in sized]
        row = np.zeros(1, dtype=[("n_fields", ">i2"), *fields])
        row["n_fields"] = len(self.columns)
        for name in sized:
            value = row[name]["value"]
            row[name]["size"] = value.nbytes
            if name.startswith("other_"):
                value["n_dims"], value["oid"], value["length"], value["lower"] = 1, _REAL_OID, n_other, 1
                value["elements"]["size"] = 4
        row["scored_week"]["value"] = (self.week - _POSTGRES_EPOCH).days
        return row


def encode_rows(layout: CopyLayout, rows: Iterable[ScoredRows]) -> Iterator[bytes]:
    """Encode rows for ``COPY … FROM STDIN``, one block of bytes for each chunk."""
    yield _HEADER
    blank = layout.blank_row()
    others = [layout.source_columns.index(name) for name in layout.other]
    for chunk in rows:
        block = np.repeat(blank, len(chunk.account_ids))
        block["account_id"]["value"] = chunk.account_ids
        block["churn_probability"]["value"] = chunk.probabilities
        if layout.has_last_active_month and (months := chunk.last_active_months) is not None:
            block["last_active_month"]["value"] = np.where(months == NEVER, NEVER, months - _EPOCHS_APART)
        if chunk.contributions is not None and chunk.values is not None:
            for name in layout.separate:
                i = layout.source_columns.index(name)
                block[f"{name}_contribution"]["value"] = chunk.contributions[:, i]
                block[f"{name}_value"]["value"] = chunk.values[i]
            if others:
                block["other_contributions"]["value"]["elements"]["value"] = chunk.contributions[:, others]
                block["other_values"]["value"]["elements"]["value"] = chunk.values[others].T
            if layout.n_shown:
                block["shown_features"]["value"] = chunk.shown
        keys = layout.account_keys
        yield block.tobytes() if keys is None else _with_texts(block, keys_of(keys, chunk.account_ids))
    yield _TRAILER


def _with_texts(block: npt.NDArray[np.void], texts: pl.Series) -> bytes:
    """Return the bytes of rows, each followed by the field of a text, which may be null."""
    values = [text.encode() for text in texts.fill_null("")]
    sizes = np.array([len(value) or -1 for value in values], dtype=">i4")  # no key is empty
    rows, of_sizes = (part.view(f"V{part.itemsize}").tolist() for part in (block, sizes))
    return b"".join(chain.from_iterable(zip(rows, of_sizes, values, strict=True)))


def decode_single_fields(content: memoryview) -> Sequence[memoryview]:
    """Decode the output of ``COPY (SELECT one_column …) TO STDOUT``: the one field of each row."""
    fields, start = [], len(_HEADER)
    while start < len(content) - len(_TRAILER):
        _, size = _FIELD.unpack_from(content, start)
        start += _FIELD.size
        fields.append(content[start : start + size])
        start += size
    return fields


class PulledStream:
    """A readable file over blocks of bytes, which are computed when psycopg2's COPY reads them.

    ``error`` is the one that a block's computation raised, which psycopg2 replaces by another.
    """

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")
        self.error: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        while not self._rest:
            try:
                block = next(self._blocks, None)
            except Exception as error:
                self.error = error
                raise
            if block is None:
                return b""
            self._rest = memoryview(block)
        part, self._rest = self._rest[:size], self._rest[size:]
        return bytes(part)
