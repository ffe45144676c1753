"""Erasure and retention: erase one account everywhere, and drop weeks older than the retention period.

Erasure is safe to repeat and to interrupt: the account is first excluded from everything that is read from now on, and
then stored data is erased. Extracts in the bucket are not changed, since they belong to the team that uploads them: the
account's rows in them are counted, and dropped whenever an extract is read.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path

import polars as pl
import sqlalchemy as sa

from churn.data.activity import parse_ids
from churn.data.erased import Erased
from churn.data.file_kinds import codec_of, head_of, is_part, pack, sniff, unpacked
from churn.data.formats import NoRowsError, read_frame
from churn.data.labels import Horizon
from churn.database.erasure import Erasures, drop_weeks, erase_from_dagster, erase_rows
from churn.errors import InputError, UsageError
from churn.storage.history import FOLDER, ActivityHistory
from churn.storage.inputs import INPUT_FOLDER, INPUT_NAMES
from churn.storage.places import Folder, NoSuchKeyError, Place, with_retries
from churn.variants import Variant
from churn.weeks import monday_of
from churn.workflows.deliver import Deliverer

_PREFIXES = (FOLDER, INPUT_FOLDER, "geography-", "company-")
_PART = r"(?=\w{1,64}/)(?ai:[a-z0-9]+(?:_[a-z0-9]+)*)"  # others are no variant's
_KEY = re.compile(
    rf"(?:(?i:geography)-(?P<geography>{_PART})/)?(?:(?i:company)-(?P<company>{_PART})/)?"
    rf"(?:(?P<history>{FOLDER})"
    rf"|{INPUT_FOLDER}(?:{'|'.join(map(re.escape, INPUT_NAMES))})(?:\.gz|\.zst|/(?P<part>.+))?$)"
)
_ARRAYS = re.compile(rb"\s*\[\s*\[")
_NO_IDS = pl.Series("account_id", [], pl.Int64)
_MOST_WEEKS = 10_000


@dataclass(frozen=True)
class Removed:
    """The rows, facts or texts of an account in one place."""

    place: str
    n: int
    why_left: str = ""  # why they are still there, or cannot be counted; empty if they were erased
    variants: Sequence[str] = ()  # the keys of the variants that they are of, if known


@dataclass(frozen=True)
class Eraser:
    """Where accounts are stored: two databases, the places of files, and what is delivered."""

    database: sa.URL
    dagster_database: sa.URL
    places: Sequence[Place]
    deliverer: Deliverer | None = None

    def erase_account(self, account: str, scope: str = "", *, dry_run: bool = False) -> Iterator[Removed]:
        """Erase an account from predictions, quarantine, messages, histories and local copies, and exclude it for good.

        ``scope`` is what it is erased from, one of :attr:`churn.variants.Variant.scopes`, by default everything; a dry
        run only counts. Yields the account's data in each place once it is erased; files without any are omitted.
        Raises ``ChurnError`` if a place does not answer or refuses: what was yielded is erased; repeat to erase the
        rest.
        """
        withdrawn: dict[str, tuple[Variant, date]] = {}

        def withdraw(key: str, week: date) -> None:
            of = Variant.from_key(key), week
            if self.deliverer and (uri := self.deliverer.withdraw(*of, dry_run=dry_run)):
                withdrawn[uri] = of

        # The database first, so that no concurrent ingestion stores the account again.
        for row in erase_rows(self.database, account, scope, dry_run=dry_run, withdraw=withdraw):
            yield Removed(f"{self.database.database}: {row.place}", row.n_rows, row.why_left, row.variants or ())
        texts = erase_from_dagster(self.dagster_database, account, dry_run=dry_run)
        yield Removed(f"{self.dagster_database.database}: texts in Dagster", texts)
        with closing(Erasures(self.database)) as erasures:
            erased = erasures.only(account)
        for place_of_files in self.places:
            if isinstance(place_of_files, Folder) and not dry_run:
                place_of_files.erase_versions("")  # what processes that died left unfinished
            yield from _erase_files(place_of_files, scope, erased, dry_run=dry_run)
        for uri, (owner, week) in withdrawn.items():
            if self.deliverer and not dry_run:
                self.deliverer.deliver(owner, [week], force=True)
            yield Removed(uri, 1, variants=[owner.key])


def _erase_files(place: Place, scope: str, erased: Erased, *, dry_run: bool) -> Iterator[Removed]:
    with_history: set[Variant] = set()
    for entry in with_retries(lambda: [file for prefix in _PREFIXES for file in place.list(prefix)]):
        if (match := _KEY.match(entry.key)) is None:
            continue
        owner = Variant(match["geography"], match["company"])
        if scope not in owner.scopes or (match["part"] and not (is_part(match["part"]) and entry.size)):
            continue
        if not match["history"]:
            for removed in with_retries(partial(_erase_input, place, entry.key, erased, dry_run=dry_run)):
                yield replace(removed, variants=[owner.key])
        elif owner not in with_history:
            with_history.add(owner)
            if n := ActivityHistory(place).erase(owner, erased, dry_run=dry_run):
                yield Removed(place.uri(owner.prefix + FOLDER), n, variants=[owner.key])


def _erase_input(place: Place, key: str, erased: Erased, *, dry_run: bool) -> list[Removed]:
    """Rewrite a local copy without the account; of an extract in the bucket, only count its rows.

    Raises ``ReplacedError`` if an extract was delivered meanwhile, which is left as it is.
    """
    uri = place.uri(key)
    with tempfile.TemporaryDirectory(prefix="churn-erase-") as scratch:
        copy = Path(scratch) / Path(key).name
        try:
            before = with_retries(lambda: b"".join(place.open(key).chunks))
            copy.write_bytes(before)
            if _ARRAYS.match(head_of(unpacked(copy))):  # rows without account ids
                return []
            frame = read_frame(copy)
        except (NoRowsError, NoSuchKeyError):
            return []
        except InputError as error:
            return [Removed(uri, 0, f"it cannot be read: {error}")]
        is_erased = erased.marks(parse_ids(frame.get_column("account_id", default=_NO_IDS))["account_id"])
        if not (n := int(is_erased.sum())):
            return []
        if not isinstance(place, Folder):
            reason = "the account must be removed at the source; until then its rows are dropped at every read"
            return [Removed(uri, n, reason)]
        if not dry_run:
            place.replace(key, _serialize(frame.filter(pl.Series(~is_erased)), copy), before)
        return [Removed(uri, n)]


def _serialize(frame: pl.DataFrame, source: Path) -> bytes:
    """Write rows in the format of the file that they were read from, packed as it is."""
    codec, kind = codec_of(head_of(source)), sniff(head_of(unpacked(source)), source.name)
    if kind == "parquet":
        frame.write_parquet(source, compression="zstd")
    elif kind == "csv":
        source.write_text(frame.write_csv())
    else:
        lines = frame.write_ndjson()
        if kind == "json_array":
            lines = "[" + ",".join(lines.removesuffix("\n").split("\n")) + "]"
        source.write_text(lines)
    if codec is not None:
        pack(source, codec)
    return source.read_bytes()


def first_kept_week(today: date, n_weeks: int, horizon: Horizon) -> date | None:
    """Return the Monday of the first week that is kept; ``None`` if all are.

    Raises ``UsageError`` if weeks would be dropped before their labels have matured, so that none is ever evaluated.
    """
    if not 0 <= n_weeks <= _MOST_WEEKS:
        raise UsageError(f"{n_weeks} weeks cannot be kept; use 1 to {_MOST_WEEKS}, or 0 to keep all")
    if n_weeks == 0:
        return None
    first = monday_of(today) - timedelta(weeks=n_weeks - 1)
    # Batches are evaluated in the week after their labels have matured.
    if horizon.matures_on(first - timedelta(days=1)) + timedelta(days=7) > today:
        later = f"{horizon.months} months and {horizon.lag_days} days later; keep more weeks, or 0 for all"
        raise UsageError(f"CHURN_KEEP_WEEKS={n_weeks} drops weeks before their labels have matured, {later}")
    return first


def drop_old_weeks(url: sa.URL, today: date, *, n_weeks: int, horizon: Horizon, dry_run: bool = False) -> list[date]:
    """Drop the weeks of predictions older than the newest ``n_weeks``, 0 for none; returns the weeks dropped."""
    first = first_kept_week(today, n_weeks, horizon)
    return [] if first is None else drop_weeks(url, first, dry_run=dry_run)
