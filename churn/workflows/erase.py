"""Letting go of what is known of people: one account, everywhere; and weeks that are older than they are kept.

Erasing is safe to repeat and to break off: first the account is kept out of what is read from now on, then what is
there goes. The extracts in the bucket are their maker's. They are left as they are, counted, and their rows of the
account dropped whenever they are read.
"""

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import polars as pl

from churn.data.erased import Erased
from churn.data.formats import read_frame, sniff
from churn.data.labels import Horizon
from churn.database.erasure import Erasures, drop_weeks, erase_from_dagster, erase_rows
from churn.deployment.services import Deployment
from churn.errors import InputError, UsageError
from churn.storage.history import FOLDER, ActivityHistory
from churn.storage.places import Entry, Folder, Place, persistently
from churn.storage.sources import INPUT_FOLDER, INPUT_NAMES
from churn.variants import Variant
from churn.weeks import monday_of

_PREFIXES = (FOLDER, INPUT_FOLDER, "geography-", "company-")
_KEY = re.compile(
    r"(?:geography-(?P<geography>\w+)/)?(?:company-(?P<company>\w+)/)?"
    rf"(?:(?P<history>{FOLDER})|{INPUT_FOLDER}(?:{'|'.join(map(re.escape, INPUT_NAMES))})$)"
)
_ARRAYS = re.compile(rb"\s*\[\s*\[")
_SNIFFED_BYTES = 65_536
_MOST_WEEKS = 10_000


@dataclass(frozen=True)
class Removed:
    """What one place held of an account.

    Attributes:
        n: Rows, facts or texts.
        why_left: Empty where they are gone; else why they are still there, or cannot be told.
    """

    place: str
    n: int
    why_left: str = ""


def erase_account(
    deployment: Deployment, account_id: int, variant: Variant | None, *, dry_run: bool = False
) -> Iterator[Removed]:
    """Erase an account: predictions, quarantine, messages, histories, local copies; and keep it out from now on.

    Args:
        variant: Of which it is erased; ``None`` for all.
        dry_run: Only count.

    Yields:
        What each place held, as soon as it is done; of files only those that held something.

    Raises:
        ChurnError: If a place does not answer or refuses. What was yielded is erased; running it again goes on.
    """
    database, dagster = deployment.database, deployment.dagster_database
    # First, so that nothing takes the account in again behind our back.
    for place, n in erase_rows(database, account_id, variant, dry_run=dry_run).items():
        yield Removed(f"{database.database}: {place}", n)
    yield Removed(f"{dagster.database}: what Dagster shows", erase_from_dagster(dagster, account_id, dry_run=dry_run))
    erased = Erasures(database).only(account_id)
    sources = deployment.sources()
    for files in (sources.bucket, sources.local):
        if files is not None:
            yield from _erase_files(files, variant, erased, dry_run=dry_run)


def _erase_files(place: Place, variant: Variant | None, erased: Erased, *, dry_run: bool) -> Iterator[Removed]:
    prefixes = _PREFIXES if variant is None else [variant.prefix + folder for folder in (FOLDER, INPUT_FOLDER)]
    with_history: set[Variant] = set()
    for entry in _listed(place, prefixes):
        match = _KEY.match(entry.key)
        owner = Variant(match["geography"], match["company"]) if match else None
        if match is None or owner is None or (variant is not None and owner != variant):
            continue
        if not match["history"]:
            yield from _erase_input(place, entry, erased, dry_run=dry_run)
        elif owner not in with_history:
            with_history.add(owner)
            n = ActivityHistory(place).erase(owner, erased, dry_run=dry_run)
            if n:
                yield Removed(place.uri(owner.prefix + FOLDER), n)


def _listed(place: Place, prefixes: Sequence[str]) -> list[Entry]:
    return persistently(lambda: [entry for prefix in prefixes for entry in place.list(prefix)])


def _erase_input(place: Place, entry: Entry, erased: Erased, *, dry_run: bool) -> Iterator[Removed]:
    """Write a local copy anew; of an extract in the bucket, only say what it holds."""
    uri = place.uri(entry.key)
    with tempfile.TemporaryDirectory(prefix="churn-erase-") as scratch:
        copy = Path(scratch) / Path(entry.key).name
        persistently(lambda: copy.write_bytes(b"".join(place.open(entry.key, entry.version).chunks)))
        try:
            frame = _rows_with_ids(copy)
        except InputError as error:
            yield Removed(uri, 0, f"it cannot be read: {error}")
            return
        is_erased = erased.marks(_account_ids(frame)) if frame is not None else None
        if frame is None or is_erased is None or not is_erased.any():
            return
        if not isinstance(place, Folder):
            why = "the extract is its maker's, who must leave the account out; it is dropped at every reading"
            yield Removed(uri, int(is_erased.sum()), why)
            return
        if not dry_run:
            _replace(place.root / entry.key, place, entry.key, _as_before(frame.filter(pl.Series(~is_erased)), copy))
        yield Removed(uri, int(is_erased.sum()))


def _rows_with_ids(path: Path) -> pl.DataFrame | None:
    """Read a file of rows; ``None`` where they have no account ids."""
    with path.open("rb") as file:
        if _ARRAYS.match(file.read(_SNIFFED_BYTES)):
            return None
    frame = read_frame(path)
    return frame if "account_id" in frame.columns else None


def _account_ids(frame: pl.DataFrame) -> pl.Series:
    ids = frame["account_id"]
    text = ids.cast(pl.String, strict=False).str.strip_chars().str.replace(r"\.0+$", "")
    return text.cast(pl.Int64, strict=False)


def _as_before(frame: pl.DataFrame, like: Path) -> bytes:
    """Write rows in the format of a file that they were read from."""
    with like.open("rb") as file:
        kind = sniff(file.read(_SNIFFED_BYTES), like.name)
    if kind == "parquet":
        frame.write_parquet(like, compression="zstd")
        return like.read_bytes()
    if kind == "csv":
        return frame.write_csv().encode()
    lines = frame.write_ndjson()
    if kind == "json_array":
        lines = "[" + ",".join(lines.removesuffix("\n").split("\n")) + "]"
    return lines.encode()


def _replace(path: Path, folder: Folder, key: str, content: bytes) -> None:
    """Put a copy in a copy's place that is as old as it, and as open."""
    before = path.stat()
    folder.write(key, content)
    path.chmod(before.st_mode & 0o777)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def first_kept_week(today: date, n_weeks: int, horizon: Horizon) -> date | None:
    """Return the Monday of the first week that is kept; ``None`` where all are.

    Raises:
        UsageError: If weeks would go before their labels have matured, so that none would ever be judged.
    """
    if not 0 <= n_weeks <= _MOST_WEEKS:
        raise UsageError(f"{n_weeks} weeks cannot be kept; give 1 to {_MOST_WEEKS}, or 0 for all")
    if n_weeks == 0:
        return None
    first = monday_of(today) - timedelta(weeks=n_weeks - 1)
    # Batches are judged in the week after their labels have matured.
    if horizon.matures_on(first - timedelta(days=1)) + timedelta(days=7) > today:
        raise UsageError(
            f"CHURN_KEEP_WEEKS={n_weeks} drops weeks before their labels have matured, {horizon.months} months and "
            f"{horizon.lag_days} days later; keep more weeks, or 0 for all"
        )
    return first


def drop_old_weeks(
    deployment: Deployment, today: date, *, n_weeks: int | None = None, dry_run: bool = False
) -> list[date]:
    """Drop the weeks of predictions that are older than ``CHURN_KEEP_WEEKS``; returns them.

    Args:
        n_weeks: In place of ``CHURN_KEEP_WEEKS``.
    """
    settings = deployment.settings
    horizon = Horizon(settings.churn_horizon_months, settings.churn_label_lag_days)
    first = first_kept_week(today, settings.churn_keep_weeks if n_weeks is None else n_weeks, horizon)
    return [] if first is None else drop_weeks(deployment.database, first, dry_run=dry_run)
