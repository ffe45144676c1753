"""The activity history: an append-only store of the facts about a variant's accounts, and when each became known.

Each extract shows the months as they are at that time. The history stores the facts that each extract added or changed,
as a Parquet part, so that the activity known at any past date can be read again. A part is never changed. It is deleted
when an account in it is erased, or when the parts are compacted into one, so that a history of years reads as fast as
one of weeks; its successor is written first. A compacted part names the parts that it replaces, which readers skip from
then on: one write compacts. Only erasure deletes versions in the bucket. Parts are under ``history/activity/`` below
the variant's prefix, named by the time they were received and the SHA-256 of their content.

A fact is a row with ``known_at``. An extract's own ``known_at`` is used, except where it contradicts the history: a row
that changed and kept its ``known_at`` became known when it was received. Without one, a fact became known when it was
received; in the first extract of a variant, which contains months long past, it is stored with the end of its month,
and read with the feed's delivery delay added (``churn.data.arrivals``). So a month's total never reaches an as-of date
within the month, and a correction reaches only as-of dates after the day it was received. Facts that are missing from a
later extract stay.

A row that was quarantined is stored as its account, its month and when it was received: what it said is unknown, until
a report takes its place.

Processes may append at the same time. Each writes its own part; a fact that two wrote is stored twice and counts once.
"""

import hashlib
import io
import logging
import re
import zlib
from bisect import bisect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial

import numpy as np
import polars as pl
import polars.selectors as cs
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from churn.concurrency import in_threads
from churn.data.activity import KEY, QUARANTINED, is_activity
from churn.data.arrays import Flags, Longs
from churn.data.arrivals import INSTANT, LAST_INSTANT, date_arrivals
from churn.data.erased import Erased
from churn.data.features import in_order, key_columns, keys_of
from churn.errors import AccessDeniedError, InputError, SourceError, UsageError, raised_as
from churn.storage.places import Entry, NoSuchKeyError, Place, with_retries
from churn.variants import Variant

logger = logging.getLogger(__name__)

FOLDER = "history/activity/"
COMPACTED_AT = range(4, 8)
"""Number of parts that are compacted into one: it depends on the variant, so that a fleet is not compacted at once."""
_PART = re.compile(r"(?P<received>\d{8}T\d{6}\.\d{6}Z)-(?P<number>\d{5,})-[0-9a-f]{64}\.parquet")
_READS_AT_ONCE = 8  # a part is small: reading it is mostly waiting
_LISTINGS = 5  # compaction and erasure need a second from writing the successor to deleting the predecessors
_NO_PREDECESSOR = -1
_REPLACES = "replaces"


@dataclass(frozen=True)
class Appended:
    """The result of appending an extract."""

    n_added: int  # facts that were new to the history
    parts: Sequence[pl.DataFrame]  # all facts now, in the order in which their parts are read
    # Dates the first extract's facts, see churn.data.arrivals.date_arrivals
    date: Callable[[pl.DataFrame], pl.DataFrame] = lambda facts: facts

    @cached_property
    def facts(self) -> pl.DataFrame:
        """All facts, as :meth:`ActivityHistory.read` returns them, without reading them again."""
        if QUARANTINED not in self._all.columns:
            return self.date(self._all)
        return self.date(self._all.filter(~pl.col(QUARANTINED).fill_null(value=False)).drop(QUARANTINED))

    @cached_property
    def quarantined(self) -> pl.DataFrame:
        """The keys and ``known_at`` of the rows that broke the contract; see :mod:`churn.data.observed`."""
        rows = self._all.filter(pl.col(QUARANTINED)) if QUARANTINED in self._all.columns else self._all.clear()
        return rows.select(*KEY, "known_at")

    @cached_property
    def _all(self) -> pl.DataFrame:
        return _ordered(self.parts)


@dataclass(frozen=True)
class ActivityHistory:
    """The histories of all variants in one place: the bucket, or the local folder if there is no bucket."""

    place: Place
    # Returns which of a variant's accounts were erased and must not be appended; no erasure begins within
    erased: Callable[[Variant], AbstractContextManager[Erased]] = lambda _: nullcontext(Erased())
    delay: timedelta = timedelta(0)  # delivery delay of the first extract's months while later extracts show none

    def append(self, variant: Variant, rows: pl.DataFrame, received_at: datetime, *, dry_run: bool = False) -> Appended:
        """Add the facts of an extract that are new. Appending it again adds nothing, and ``dry_run`` writes nothing.

        Accounts that were erased are excluded; an erasure waits for the end of the call. Raises as the place does, too.

        Args:
            rows: Checked activity, with or without ``known_at``; columns beyond the contract's are stored, too.
                Quarantined rows are marked, see :meth:`churn.data.activity.CheckedRows.with_quarantined`.
            received_at: When the extract was received.

        Raises:
            InputError: If ``rows`` are no raw activity, contradict a column's type, or a part is damaged.
            UsageError: If ``received_at`` has no time zone.
        """
        if received_at.tzinfo is None:
            raise UsageError(f"received_at {received_at} has no time zone; add one")
        received_at = received_at.astimezone(UTC)
        with self.erased(variant) as erased:
            parts, read, replaced, first = self._read_parts(variant)
            if not dry_run and any(erased.without(facts).height < facts.height for facts in read):
                self.erase(variant, erased)  # written by an append that lost its connection meanwhile
                parts, read, replaced, first = self._read_parts(variant)
            stored = _ordered(read) if read else None
            added = new_facts(erased.without(rows), stored, received_at)
            date = self._date(first, received_at)
            if added.is_empty():
                return Appended(0, [added if stored is None else stored], date)
            if dry_run:
                return Appended(added.height, [*read, added], date)
            compacted = [*parts, *replaced] if len(parts) >= max_parts(variant) else []
            written = _ordered([*read, added]) if compacted else added
            # The first name is that of the variant's first part, which dates the first extract's facts.
            content = _as_parquet(written, [first, *(part.key for part in compacted)] if compacted else [])
            key = variant.prefix + FOLDER + _next_name(parts, received_at, content, comes_last=bool(compacted))
            with_retries(partial(self.place.write, key, content))
            if compacted:  # it is read back before its predecessors are deleted
                try:
                    self._read_part(key)
                except InputError:
                    self.place.delete(key)
                    raise
            self._delete(variant, compacted or replaced)
            at = bisect([part.key for part in parts], key)
            return Appended(added.height, [written] if compacted else [*read[:at], added, *read[at:]], date)

    def _date(self, first: str, received_at: datetime) -> Callable[[pl.DataFrame], pl.DataFrame]:
        """Return what dates the facts of the first extract, by its part's key, or received now if that is empty."""
        if match := _PART.search(first):
            received_at = datetime.strptime(match["received"], "%Y%m%dT%H%M%S.%f%z")
        return partial(date_arrivals, default=self.delay, received_at=received_at)

    def _delete(self, variant: Variant, compacted: Sequence[Entry]) -> None:
        """Delete parts that were compacted, now or by a killed process; if that is denied, readers skip them."""
        try:
            for part in compacted:
                with_retries(partial(self.place.delete, part.key))
        except AccessDeniedError as error:
            message = "%s: cannot compact the activity history (needs s3:DeleteObject); reads will slow down: %s"
            logger.warning(message, variant, error)

    def erase(self, variant: Variant, erased: Erased, *, dry_run: bool = False) -> int:
        """Rewrite parts without the facts of erased accounts; returns the number of facts removed.

        Safe to repeat and to interrupt: a part's successor is written before the part is deleted, and a fact in both
        counts once, so readers never miss a fact of another account. Versions of earlier parts are deleted with it.
        """
        found = {}
        for part in self._parts(variant):
            with suppress(NoSuchKeyError):
                found[part.key] = self._read_part(part.key)
        kept = {key: erased.without(facts) for key, (facts, _) in found.items()}
        n_removed = {key: facts.height - kept[key].height for key, (facts, _) in found.items()}
        if dry_run or not any(n_removed.values()):
            return sum(n_removed.values())
        # First, as an erasure that is repeated does so while a part still has the account.
        with_retries(partial(self.place.erase_versions, variant.prefix + FOLDER))
        replaced = {key for _, names in found.values() for key in names}
        for key in (key for key, n in n_removed.items() if n):
            if not kept[key].is_empty() and key not in replaced:
                content = _as_parquet(kept[key], found[key][1])
                successor = f"{key.rpartition('-')[0]}-{hashlib.sha256(content).hexdigest()}.parquet"
                with_retries(partial(self.place.write, successor, content))
            with_retries(partial(self.place.erase, key))
        return sum(n_removed.values())

    def read(self, variant: Variant) -> pl.DataFrame:
        """Read all facts, in order of account, month, ``known_at`` and arrival; raises as :meth:`open` does."""
        return self.open(variant).facts

    def open(self, variant: Variant) -> Appended:
        """Read all facts and quarantined rows; nothing is added.

        Raises ``InputError`` naming a damaged part, ``SourceError`` without a history, or if the place does not answer.
        """
        _, read, _, first = self._read_parts(variant)
        if not read:
            uri = self.place.uri(variant.prefix + FOLDER)
            raise SourceError(f"{uri} has no activity; append an extract of {variant} first")
        return Appended(0, read, self._date(first, datetime.now(UTC)))

    def version(self, variant: Variant) -> str | None:
        """Return a hash of the parts' names; ``None`` if the variant has no history."""
        parts = self._parts(variant)
        return hashlib.sha256("\n".join(part.key for part in parts).encode()).hexdigest() if parts else None

    def _parts(self, variant: Variant) -> list[Entry]:
        prefix = variant.prefix + FOLDER
        entries = with_retries(lambda: self.place.list(prefix))
        parts = (entry for entry in entries if _PART.fullmatch(entry.key.removeprefix(prefix)))
        return sorted(parts, key=lambda entry: entry.key)

    @retry(retry=retry_if_exception_type(NoSuchKeyError), stop=stop_after_attempt(_LISTINGS), reraise=True)
    def _read_parts(self, variant: Variant) -> tuple[list[Entry], list[pl.DataFrame], list[Entry], str]:
        """List and read the parts that no other replaces, list those that one does, and name the variant's first part.

        Tries again if a part was deleted in between, as the next listing has its successor.
        """
        parts = self._parts(variant)
        read = list(in_threads(self._read_part, [part.key for part in parts], threads=_READS_AT_ONCE))
        names = {key for _, replaces in read for key in replaces}
        live = [(part, facts) for part, (facts, _) in zip(parts, read, strict=True) if part.key not in names]
        gone = [part for part in parts if part.key in names]
        firsts = (replaces[0] if replaces else part.key for part, (_, replaces) in zip(parts, read, strict=True))
        return [part for part, _ in live], [facts for _, facts in live], gone, min(firsts, default="")

    def _read_part(self, key: str) -> tuple[pl.DataFrame, list[str]]:
        """Return a part's facts, and the keys of the parts that it replaces."""
        content = with_retries(lambda: b"".join(self.place.open(key).chunks))
        uri = self.place.uri(key)
        if not key.endswith(f"-{hashlib.sha256(content).hexdigest()}.parquet"):
            remedy = "restore it from a backup, or delete it and append its extract again"
            raise InputError(f"{uri} is damaged: its content does not match the SHA-256 in its name; {remedy}")
        problem = f"{uri} cannot be read as Parquet"
        with raised_as(InputError, problem, pl.exceptions.PolarsError, remedy="was it written here?"):
            return pl.read_parquet(content), pl.read_parquet_metadata(io.BytesIO(content)).get(_REPLACES, "").split()


def max_parts(variant: Variant) -> int:
    """Return the number of parts of a variant's history at which the next append compacts them."""
    return COMPACTED_AT[zlib.crc32(variant.key.encode()) % len(COMPACTED_AT)]


def _next_name(parts: Sequence[Entry], received_at: datetime, content: bytes, *, comes_last: bool) -> str:
    """Return a name that sorts after the parts received before or at the same time, or after all parts."""
    names = [match for part in parts if (match := _PART.search(part.key))]
    received = f"{received_at:%Y%m%dT%H%M%S.%f}Z"
    if comes_last:
        received = max(received, *(name["received"] for name in names))
    number = max((int(name["number"]) + 1 for name in names), default=0)
    return f"{received}-{number:05d}-{hashlib.sha256(content).hexdigest()}.parquet"


def _ordered(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Sort the facts of some parts; one that is stored twice, by parts that were compacted and not deleted, is one."""
    facts = in_order(_stack(parts))
    return facts.unique(keep="last", maintain_order=True) if _are_followed(facts).any() else facts


def _as_parquet(facts: pl.DataFrame, replaces: Sequence[str] = ()) -> bytes:
    body = io.BytesIO()
    facts.write_parquet(body, compression="zstd", metadata={_REPLACES: " ".join(replaces)})
    return body.getvalue()


def new_facts(extract: pl.DataFrame, stored: pl.DataFrame | None, received_at: datetime) -> pl.DataFrame:
    """Return the facts of an extract that are not known yet, and when they became known; in order of the keys. Pure.

    A row is compared with the report of its account and month that counted at the row's ``known_at``, in the columns
    that the extract has. Of rows of one account, month and ``known_at``, the one later in the file counts. Without any
    ``stored`` facts, the extract is a backfill.

    Raises ``InputError`` if ``extract`` is no raw activity, or a column's type differs from that of ``stored``.
    """
    if not is_activity(extract.columns):
        needed = f"a history needs raw activity, with {' and '.join(KEY)}"
        raise InputError(f"the extract has columns {sorted(extract.columns)[:8]}; {needed}")
    typed = extract.drop("row_number", strict=False).with_columns(cs.by_dtype(pl.Categorical, pl.Enum).cast(pl.String))
    has_known_at = "known_at" in typed.columns
    instant = pl.lit(received_at, dtype=INSTANT)
    known_at = pl.min_horizontal(instant, LAST_INSTANT) if stored is None else instant
    facts = typed if has_known_at else typed.with_columns(known_at=known_at)
    earlier = facts.clear() if stored is None else stored
    if QUARANTINED in facts.columns or QUARANTINED in earlier.columns:
        facts = _date_quarantined(facts, earlier, received_at)
    facts = in_order(facts)
    facts = facts.filter(~_are_followed(facts))  # of rows with the same keys, the last counts
    if has_known_at:
        facts = in_order(_date_contradictions(facts, earlier, received_at))
    _, differs = _compare(facts, earlier)
    return facts.filter(differs)


def _date_quarantined(facts: pl.DataFrame, stored: pl.DataFrame, received_at: datetime) -> pl.DataFrame:
    """Set ``known_at`` to the time of receipt in quarantined rows, and to that or later in those that replace them."""
    broken, received = pl.col(QUARANTINED).fill_null(value=False), pl.lit(received_at, dtype=INSTANT)
    if QUARANTINED not in facts.columns:
        facts = facts.with_columns(pl.lit(None, dtype=pl.Boolean).alias(QUARANTINED))
    if QUARANTINED not in stored.columns:
        return facts.with_columns(known_at=pl.when(broken).then(received).otherwise("known_at"))
    # S3 dates extracts to the second: two may seem to be received at once.
    replaced = stored.filter(broken).group_by(KEY).agg(_after=pl.col("known_at").max() + pl.duration(microseconds=1))
    joined = facts.join(replaced, on=KEY, how="left", maintain_order="left")
    late = pl.when(pl.col("_after").is_not_null()).then(pl.max_horizontal("known_at", "_after", received))
    known_at = pl.when(broken).then(received).otherwise(late.otherwise("known_at"))
    return joined.with_columns(known_at=known_at).drop("_after")


def _date_contradictions(facts: pl.DataFrame, stored: pl.DataFrame, received_at: datetime) -> pl.DataFrame:
    """Set ``known_at`` to the time of receipt in rows that contradict the history at the same ``known_at``.

    Rows of these that a later report of the same extract supersedes are dropped.
    """
    predecessors, differs = _compare(facts, stored)
    known_at = pl.concat([stored["known_at"], facts["known_at"]])
    is_same_instant = (known_at.gather(np.maximum(predecessors, 0)) == facts["known_at"]).to_numpy()
    contradicts = (predecessors != _NO_PREDECESSOR) & differs & is_same_instant
    received = pl.max_horizontal("known_at", pl.lit(received_at, dtype=INSTANT))
    dated = facts.with_columns(known_at=pl.when(pl.Series(contradicts)).then(received).otherwise("known_at"))
    return dated.filter(~(contradicts & _are_followed(facts.select(KEY))))


def _compare(facts: pl.DataFrame, stored: pl.DataFrame) -> tuple[Longs, Flags]:
    """Find each fact's predecessor of its account and month, and whether it has none or differs from it.

    A predecessor is a position in ``stored`` followed by ``facts``, or ``_NO_PREDECESSOR``; shape (facts.height,) both.
    """
    keys = [np.concatenate(pair) for pair in zip(keys_of(stored), keys_of(facts), strict=True)]
    order = np.lexsort(keys[::-1])  # stable: stored facts come before new ones
    before, after = order[:-1], order[1:]
    chosen = (after >= stored.height) & (keys[0][before] == keys[0][after]) & (keys[1][before] == keys[1][after])
    predecessors = np.full(facts.height, _NO_PREDECESSOR, dtype=np.int64)
    predecessors[after[chosen] - stored.height] = before[chosen]
    rows = np.flatnonzero(predecessors != _NO_PREDECESSOR)
    differs = np.ones(facts.height, dtype=np.bool_)
    here, there = pl.Series(stored.height + rows), pl.Series(predecessors[rows])
    values = [pl.col(name) for name in facts.columns if name not in key_columns(facts.columns)]
    unequal = [value.gather(here).ne_missing(value.gather(there)) for value in values]
    never = pl.repeat(value=False, n=len(rows))  # for facts without values
    differs[rows] = _stack([stored, facts]).select(pl.any_horizontal(never, *unequal)).to_series().to_numpy()
    return predecessors, differs


def _are_followed(facts: pl.DataFrame) -> Flags:
    """Mark the rows that are followed by a row with the same keys; shape (facts.height,)."""
    is_followed = np.zeros(facts.height, dtype=np.bool_)
    is_followed[:-1] = np.logical_and.reduce([key[:-1] == key[1:] for key in keys_of(facts)])
    return is_followed


def _stack(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Concatenate facts; a column that some frames lack is null in their rows."""
    if len(frames) == 1:
        return frames[0]
    try:
        return pl.concat(frames, how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        names = dict.fromkeys(name for frame in frames for name in frame.columns)
        types = {name: {str(frame.schema[name]) for frame in frames if name in frame.columns} for name in names}
        mixed = {name: sorted(kinds) for name, kinds in types.items() if len(kinds) > 1}
        remedy = "write the extract like the earlier ones"
        raise InputError(f"columns changed their type from one extract to another: {mixed}; {remedy}") from error
