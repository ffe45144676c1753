"""The activity history: an append-only store of what became known of a variant's accounts, and when.

Each extract shows the months as they are at that time. The history stores what each extract added or changed, as a
Parquet part, so that the activity known at any past date can be read again. A part is never changed. It is deleted when
an account in it is erased, or when the parts are compacted into one, which keeps reading a history of years as fast as
one of weeks; its successor is written first. Parts are under ``history/activity/`` below the variant's prefix, named by
the time they were received and the SHA-256 of their content.

A fact is a row with ``known_at``. An extract's own ``known_at`` is used, except where it contradicts the history: a row
that changed and kept its ``known_at`` became known when it was received. Without one, a fact became known when it was
received; in the first extract of a variant, which brings months long past, at the end of its month. So a month's total
never reaches an as-of date within the month, and a correction reaches only as-of dates after the day it was received.
Facts that are missing from a later extract stay.

Processes may append at the same time. Each writes a part of its own; a fact that two of them wrote is stored twice and
counts once.
"""

import hashlib
import io
import logging
import re
import zlib
from bisect import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from churn.concurrency import in_threads
from churn.data.activity import KEY, is_activity
from churn.data.erased import Erased
from churn.data.features import in_order, key_columns, keys_of
from churn.errors import AccessDeniedError, InputError, SourceError, UsageError
from churn.storage.places import Entry, NoSuchKeyError, Place, persistently
from churn.variants import Variant

logger = logging.getLogger(__name__)

FOLDER = "history/activity/"
COMPACTED_AT = range(4, 8)
"""How many parts are compacted into one: by variant, so that a fleet is not compacted on one Monday."""
_PART = re.compile(r"(?P<received>\d{8}T\d{6}\.\d{6}Z)-(?P<number>\d{5,})-[0-9a-f]{64}\.parquet")
_READS_AT_ONCE = 8  # a part is small: reading it is mostly waiting
_LISTINGS = 5  # compaction and erasure take a second between writing the successor and deleting its predecessors
_INSTANT = pl.Datetime("us", "UTC")
_NO_PREDECESSOR = -1

Positions = npt.NDArray[np.int64]
Marks = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Appended:
    """The result of appending an extract.

    Attributes:
        n_added: Facts that were new to the history.
        parts: All facts now, in the order in which their parts are read.
    """

    n_added: int
    parts: Sequence[pl.DataFrame]

    @cached_property
    def facts(self) -> pl.DataFrame:
        """All facts, as :meth:`ActivityHistory.read` gives them, without reading them again."""
        return in_order(_stack(self.parts))


@dataclass(frozen=True)
class ActivityHistory:
    """The histories of all variants in one place: the bucket, or the local folder where there is none.

    Attributes:
        erased: Returns which of a variant's accounts were erased and must not be appended.
    """

    place: Place
    erased: Callable[[Variant], Erased] = lambda _: Erased()

    def append(self, variant: Variant, extract: pl.DataFrame, received_at: datetime) -> Appended:
        """Add the facts of an extract that are new. Appending it again adds nothing.

        Accounts that were erased are left out, also those that are being erased meanwhile.

        Args:
            extract: Checked activity, with or without ``known_at``; columns beyond the contract's are kept.
            received_at: When the extract came in, with its time zone.

        Raises:
            InputError: If ``extract`` is no raw activity, contradicts a column's type, or a part is damaged.
            SourceError: If the place does not answer or refuses; access denied is ``AccessDeniedError``.
            UsageError: If ``received_at`` has no time zone.
        """
        if received_at.tzinfo is None:
            raise UsageError(f"received_at {received_at} has no time zone, so that it is no instant; give it one")
        received_at = received_at.astimezone(UTC)
        erased = self.erased(variant)
        parts, read = self._held(variant)
        held = in_order(_stack(read)) if read else None
        added = new_facts(erased.without(extract), held, received_at)
        if added.is_empty():
            return Appended(0, [added if held is None else held])
        compacted = parts if len(parts) >= max_parts(variant) else []
        written = _once(erased.without(in_order(_stack([*read, added])))) if compacted else added
        content = _as_parquet(written)
        key = variant.prefix + FOLDER + _next_name(parts, received_at, content, comes_last=bool(compacted))
        persistently(lambda: self.place.write(key, content))
        self._delete(variant, compacted)
        at = bisect([part.key for part in parts], key)
        by_part = [written] if compacted else [*read[:at], added, *read[at:]]
        if (by_now := self.erased(variant)) != erased:
            self.erase(variant, by_now)
            by_part = [by_now.without(facts) for facts in by_part]
        return Appended(added.height, by_part)

    def _delete(self, variant: Variant, compacted: Sequence[Entry]) -> None:
        """Delete the parts that were compacted; where that fails, facts are stored in two parts and count once."""
        try:
            for part in compacted:
                persistently(lambda part=part: self.place.delete(part.key))  # type: ignore[misc]
        except AccessDeniedError as error:
            logger.warning(
                "%s: cannot compact the activity history (needs s3:DeleteObject); reads will slow down: %s",
                variant,
                error,
            )

    def erase(self, variant: Variant, erased: Erased, *, dry_run: bool = False) -> int:
        """Rewrite the parts that hold facts of erased accounts without them. Safe to repeat and to interrupt.

        A part's successor is written before the part is deleted, and a fact in both counts once; so readers never miss
        a fact of another account. A part that is compacted meanwhile is filtered by whoever compacts it.

        Returns:
            How many facts were removed.
        """
        return sum(in_threads(lambda part: self._erase_part(part, erased, dry_run=dry_run), self._parts(variant)))

    def _erase_part(self, part: Entry, erased: Erased, *, dry_run: bool) -> int:
        try:
            facts = self._read_part(part)
        except NoSuchKeyError:
            return 0
        kept = erased.without(facts)
        n_removed = facts.height - kept.height
        if not n_removed or dry_run:
            return n_removed
        if not kept.is_empty():
            content = _as_parquet(kept)
            key = f"{part.key.rpartition('-')[0]}-{hashlib.sha256(content).hexdigest()}.parquet"
            persistently(lambda: self.place.write(key, content))
        persistently(lambda: self.place.delete(part.key))
        return n_removed

    def read(self, variant: Variant) -> pl.DataFrame:
        """Read all facts, in order of account, month, ``known_at`` and arrival.

        Raises:
            InputError: If a part is damaged; names it.
            SourceError: If the variant has no history, or the place does not answer.
        """
        _, read = self._held(variant)
        if not read:
            raise SourceError(
                f"{self.place.uri(variant.prefix + FOLDER)} holds no activity; append an extract of {variant} first"
            )
        return in_order(_stack(read))

    def version(self, variant: Variant) -> str | None:
        """Return the version of the history, by one listing; ``None`` where there is none. Every part changes it."""
        parts = self._parts(variant)
        return hashlib.sha256("\n".join(part.key for part in parts).encode()).hexdigest() if parts else None

    def _parts(self, variant: Variant) -> list[Entry]:
        """List the parts, the one received first before the others."""
        prefix = variant.prefix + FOLDER
        held = persistently(lambda: self.place.list(prefix))
        return sorted(
            (entry for entry in held if _PART.fullmatch(entry.key.removeprefix(prefix))), key=lambda entry: entry.key
        )

    @retry(retry=retry_if_exception_type(NoSuchKeyError), stop=stop_after_attempt(_LISTINGS), reraise=True)
    def _held(self, variant: Variant) -> tuple[list[Entry], list[pl.DataFrame]]:
        """List the parts and read them; again where one is deleted meanwhile: the next listing has its successor."""
        parts = self._parts(variant)
        return parts, list(in_threads(self._read_part, parts, threads=_READS_AT_ONCE))

    def _read_part(self, part: Entry) -> pl.DataFrame:
        content = persistently(lambda: b"".join(self.place.open(part.key).chunks))
        uri = self.place.uri(part.key)
        if not part.key.endswith(f"-{hashlib.sha256(content).hexdigest()}.parquet"):
            raise InputError(
                f"{uri} is damaged: its content does not match the SHA-256 in its name; restore it from a "
                f"copy, or delete it and append the extract it came from"
            )
        try:
            return pl.read_parquet(content)
        except pl.exceptions.PolarsError as error:
            raise InputError(f"{uri} cannot be read as Parquet ({str(error)[:200]}); was it written here?") from error


def max_parts(variant: Variant) -> int:
    """Return how many parts a variant's history may have before the next append compacts them."""
    return COMPACTED_AT[zlib.crc32(variant.key.encode()) % len(COMPACTED_AT)]


def _next_name(parts: Sequence[Entry], received_at: datetime, content: bytes, *, comes_last: bool) -> str:
    """Name a part that comes after those received before or at the same time, or after all."""
    names = [match for part in parts if (match := _PART.search(part.key))]
    received = f"{received_at:%Y%m%dT%H%M%S.%f}Z"
    if comes_last:
        received = max(received, *(name["received"] for name in names))
    number = max((int(name["number"]) + 1 for name in names), default=0)
    return f"{received}-{number:05d}-{hashlib.sha256(content).hexdigest()}.parquet"


def _once(facts: pl.DataFrame) -> pl.DataFrame:
    """Leave out of ordered facts those stored twice, by parts that were compacted and not deleted."""
    return facts.unique(keep="last", maintain_order=True) if _follow(keys_of(facts)).any() else facts


def _as_parquet(facts: pl.DataFrame) -> bytes:
    body = io.BytesIO()
    facts.write_parquet(body, compression="zstd")
    return body.getvalue()


def new_facts(extract: pl.DataFrame, held: pl.DataFrame | None, received_at: datetime) -> pl.DataFrame:
    """Return the facts of an extract that are not known yet, and when they became known. Pure.

    A row is compared with the report of its account and month that counted at the row's own ``known_at``, in the
    columns that the extract has. Of rows of one account, month and ``known_at``, the one later in the file counts.

    Args:
        extract: Checked activity.
        held: Facts so far; ``None`` if there are none, which makes the extract a backfill.
        received_at: UTC.

    Returns:
        Facts in order of account, month and ``known_at``.

    Raises:
        InputError: If ``extract`` is no raw activity, or a column is of another type than that of ``held``.
    """
    if not is_activity(extract.columns):
        raise InputError(
            f"the extract has columns {sorted(extract.columns)[:8]}; a history is of raw activity, with "
            f"{' and '.join(KEY)}; bring that"
        )
    typed = _typed(extract)
    has_own = "known_at" in typed.columns
    facts = typed if has_own else typed.with_columns(known_at=_received(received_at, is_backfill=held is None))
    facts = _deciding(in_order(facts))
    so_far = facts.clear() if held is None else held
    if has_own:
        facts = in_order(_dated_by_contradiction(facts, so_far, received_at))
    _, differs = _compare(facts, so_far)
    return facts.filter(differs)


def _received(received_at: datetime, *, is_backfill: bool) -> pl.Expr:
    instant = pl.lit(received_at, dtype=_INSTANT)
    if not is_backfill:
        return instant
    next_month = pl.col("activity_month").dt.offset_by("1mo").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return pl.min_horizontal(instant, next_month - pl.duration(microseconds=1))


def _deciding(facts: pl.DataFrame) -> pl.DataFrame:
    """Keep the last of ordered rows that share account, month and ``known_at``."""
    is_last = np.ones(facts.height, dtype=np.bool_)
    is_last[:-1] = ~_follow(keys_of(facts))
    return facts if is_last.all() else facts.filter(is_last)


def _dated_by_contradiction(facts: pl.DataFrame, held: pl.DataFrame, received_at: datetime) -> pl.DataFrame:
    """Date rows that contradict the history at the same ``known_at`` by when they were received.

    One that a later report of the same extract supersedes adds nothing, and is left out.
    """
    predecessors, differs = _compare(facts, held)
    known_at = pl.concat([held["known_at"], facts["known_at"]])
    has_one = predecessors != _NO_PREDECESSOR
    is_same_instant = (known_at.gather(np.maximum(predecessors, 0)) == facts["known_at"]).to_numpy()
    contradicts = has_one & differs & is_same_instant
    is_superseded = np.zeros(facts.height, dtype=np.bool_)
    is_superseded[:-1] = _follow(keys_of(facts.select(KEY)))
    received = pl.max_horizontal("known_at", pl.lit(received_at, dtype=_INSTANT))
    return facts.with_columns(known_at=pl.when(pl.Series(contradicts)).then(received).otherwise("known_at")).filter(
        ~(contradicts & is_superseded)
    )


def _compare(facts: pl.DataFrame, held: pl.DataFrame) -> tuple[Positions, Marks]:
    """Find each fact's predecessor of its account and month, and whether the two differ.

    Returns:
        Positions of the predecessors in ``held`` followed by ``facts``, or ``_NO_PREDECESSOR``; and whether there is
        none or it differs, shape (facts.height,) both.
    """
    keys = [np.concatenate(pair) for pair in zip(keys_of(held), keys_of(facts), strict=True)]
    order = np.lexsort(keys[::-1])  # stable: what is held comes before what is new
    before, after = order[:-1], order[1:]
    chosen = (after >= held.height) & (keys[0][before] == keys[0][after]) & (keys[1][before] == keys[1][after])
    predecessors = np.full(facts.height, _NO_PREDECESSOR, dtype=np.int64)
    predecessors[after[chosen] - held.height] = before[chosen]
    rows = np.flatnonzero(predecessors != _NO_PREDECESSOR)
    differs = np.ones(facts.height, dtype=np.bool_)
    told = [name for name in facts.columns if name not in key_columns(facts.columns)]
    differs[rows] = _differ(_stack([held, facts]), told, held.height + rows, predecessors[rows])
    return predecessors, differs


def _differ(rows: pl.DataFrame, columns: Iterable[str], said: Positions, said_before: Positions) -> Marks:
    """Mark the rows at the first positions that differ from those at the second; shape (n positions,)."""
    first, second = pl.Series(said), pl.Series(said_before)
    differs = [pl.col(name).gather(first).ne_missing(pl.col(name).gather(second)) for name in columns]
    nowhere = pl.repeat(value=False, n=len(said))
    return rows.select(pl.any_horizontal(nowhere, *differs)).to_series().to_numpy()


def _follow(keys: Iterable[npt.NDArray[Any]]) -> Marks:
    """Mark the rows whose next one has the same keys; shape (n - 1,)."""
    return np.asarray(np.logical_and.reduce([key[:-1] == key[1:] for key in keys]))


def _typed(extract: pl.DataFrame) -> pl.DataFrame:
    """Drop the row number of the file, and cast categories to text."""
    rows = extract.drop("row_number") if "row_number" in extract.columns else extract
    categories = [name for name, dtype in rows.schema.items() if dtype in (pl.Categorical, pl.Enum)]
    return rows.with_columns(pl.col(categories).cast(pl.String)) if categories else rows


def _stack(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Concatenate facts; columns that some lack are null there."""
    if len(frames) == 1:
        return frames[0]
    try:
        return pl.concat(frames, how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        types: dict[str, set[str]] = {}
        for frame in frames:
            for name, dtype in frame.schema.items():
                types.setdefault(name, set()).add(str(dtype))
        mixed = {name: sorted(kinds) for name, kinds in types.items() if len(kinds) > 1}
        raise InputError(
            f"columns changed their type from one extract to another: {mixed}; write the extract as the ones before"
        ) from error
