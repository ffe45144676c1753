"""Erased accounts, and how their rows are recognized when they are delivered again. Pure.

No account id is stored. A tombstone is a SHA-256 of the deployment's salt and the id, and a code of 20 bits. The code
rules out nearly all rows of a file at a nanosecond each, and only the rest are hashed.
"""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

from churn.data.arrays import Flags, Ints, Longs

_CODE_BITS = 20


class Tombstone(NamedTuple):
    """The record of an erased account."""

    code: int
    digest: bytes


@dataclass(frozen=True)
class Erased:
    """The erased accounts of some variants."""

    salt: bytes = b""  # 32 bytes; empty if nothing was ever erased
    tombstones: frozenset[Tombstone] = frozenset()
    n_erasures: int = 0  # the number of erasures in the deployment when this was read, of all variants

    def marks(self, account_ids: pl.Series) -> Flags:
        """Mark the erased accounts; ids may be missing. Shape (n,)."""
        if not self.tombstones:
            return np.zeros(len(account_ids), dtype=np.bool_)
        ids = account_ids.fill_null(0).to_numpy()
        is_suspect = np.isin(_codes(self.salt, ids), [stone.code for stone in self.tombstones], kind="table")
        digests = {stone.digest for stone in self.tombstones}
        erased = [one for one in np.unique(ids[is_suspect]).tolist() if _digest(self.salt, one) in digests]
        return np.asarray(np.isin(ids, erased) & account_ids.is_not_null().to_numpy())

    def without(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Drop the rows of erased accounts; returns the same frame if it has none."""
        if not self.tombstones or "account_id" not in rows.columns:
            return rows
        marks = self.marks(rows["account_id"])
        return rows.filter(pl.Series(~marks)) if marks.any() else rows


def tombstone(salt: bytes, account_id: int) -> Tombstone:
    """Build the record that replaces an account's id.

    >>> tombstone(bytes(32), 7) == tombstone(bytes(32), 7) != tombstone(bytes(32), 8)
    True
    """
    return Tombstone(int(_codes(salt, np.array([account_id], dtype=np.int64))[0]), _digest(salt, account_id))


def _codes(salt: bytes, ids: Longs) -> Ints:
    multiplier = np.uint64(int.from_bytes(salt[:8], "big") | 1)
    return ((ids.view(np.uint64) * multiplier) >> np.uint64(64 - _CODE_BITS)).astype(np.int32)  # wraps, as it should


def _digest(salt: bytes, account_id: int) -> bytes:
    return hashlib.sha256(salt + str(account_id).encode()).digest()
