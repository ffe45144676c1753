"""Deliver predictions: make the Parquet files below an S3 prefix equal to the current batches in PostgreSQL.

``variant=KEY/week=MONDAY/batch-ID-HASH.parquet`` has the rows of the analysts' view, and
``manifests/variant=KEY/week=MONDAY.json`` names it. Readers go by manifests: an object is written before its manifest,
and what it replaces is deleted after that, with all versions, so they see one batch or the other. What is due is
derived from both sides: any delivery completes one that was killed, and does nothing if nothing is due.
"""

import hashlib
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import sqlalchemy as sa

from churn.database.connection import locked, open_snapshot
from churn.database.erasure import Erasures
from churn.database.published import PublishedPredictions, current_batches, export_week
from churn.storage.places import Bucket, Entry, ReplacedError, with_retries
from churn.variants import Variant
from churn.wording import counted

_WEEK = re.compile(r"/week=(\d{4}-\d\d-\d\d)[./]")


@dataclass(frozen=True)
class Deliverer:
    """Delivers to a bucket, below a prefix that ends with a slash."""

    database: sa.URL
    erasures: Erasures
    bucket: Bucket
    prefix: str

    def keys(self) -> list[str]:
        """Return the keys of the variants that have a current batch or anything delivered."""
        names = with_retries(lambda: list(self.bucket.folders(self.prefix)))
        stored = {name.removeprefix("variant=") for name in names if name.startswith("variant=")}
        return sorted(stored.union(variant.key for variant in PublishedPredictions(self.database).variants()))

    def deliver(self, variant: Variant, weeks: Collection[date] | None = None, *, force: bool = False) -> list[str]:
        """Deliver the weeks whose batch is not delivered, and withdraw those without one; returns what was done.

        It does so for all weeks by default; with ``force`` also what is delivered, since rows of it were erased.
        """
        with open_snapshot(self.database) as snapshot:
            current = current_batches(snapshot, variant)
        stored = with_retries(partial(self._stored, variant))
        known = current.keys() | stored.keys()
        wanted = sorted(known if weeks is None else known & set(weeks))
        due = [week for week in wanted if force or not _is_delivered(stored[week], current.get(week))]
        return [with_retries(partial(self._deliver, variant, week)) for week in due]

    def _deliver(self, variant: Variant, week: date) -> str:
        # An erasure waits for the week, so that no row is delivered that it erases; so do others who deliver it.
        with (
            locked(self.database, f"delivery|{variant.key}"),
            self.erasures.settled(variant) as erased,
            open_snapshot(self.database) as snapshot,
            tempfile.TemporaryDirectory(prefix="churn-deliver-") as scratch,
        ):
            batch_id, found = current_batches(snapshot, variant).get(week), self._stored(variant)[week]
            if batch_id is None:
                self.withdraw(variant, week)
                return f"{variant.key}, week of {week}: withdrawn"
            path = Path(scratch) / "rows.parquet"
            n_rows = export_week(snapshot, variant, week, path)
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            key, manifest = self._keys(variant, week, f"batch-{batch_id}-{sha256[:16]}.parquet")
            if key not in found:  # a delivery that was killed has written it
                self.bucket.upload(key, path)
            named = {"variant": variant.key, "scored_week": str(week), "object": key.removeprefix(self.prefix)}
            figures = {"batch_id": batch_id, "n_rows": n_rows, "n_bytes": path.stat().st_size, "sha256": sha256}
            body = json.dumps({"schema_version": 1, **named, **figures}).encode()
            if self.erasures.count() != erased.n_erasures:  # the connection, and with it the lock, was lost
                raise ReplacedError(f"an account was erased while {self.bucket.uri(key)} was written")
            self.bucket.swap(manifest, body, found[manifest].version if manifest in found else None)
            for other in found.keys() - {manifest, key}:
                self.bucket.erase(other)
        return f"{variant.key}, week of {week}: {counted(n_rows, 'account')} delivered, {self.bucket.uri(key)}"

    def withdraw(self, variant: Variant, week: date, *, dry_run: bool = False) -> str | None:
        """Delete a week with all versions, while no delivery runs; returns its URI, ``None`` if there is nothing."""
        found = with_retries(partial(self._stored, variant))[week]
        for key in sorted(found) if not dry_run else ():  # the manifest first
            with_retries(partial(self.bucket.erase, key))
        return self.bucket.uri(self._keys(variant, week, "")[0]) if found else None

    def _stored(self, variant: Variant) -> defaultdict[date, dict[str, Entry]]:  # by week and key
        stored: defaultdict[date, dict[str, Entry]] = defaultdict(dict)
        for folder in ("", "manifests/"):
            for entry in self.bucket.list(f"{self.prefix}{folder}variant={variant.key}/"):
                if match := _WEEK.search(entry.key, len(self.prefix)):
                    stored[date.fromisoformat(match[1])][entry.key] = entry
        return stored

    def _keys(self, variant: Variant, week: date, name: str) -> tuple[str, str]:
        of = f"variant={variant.key}/week={week}"
        return f"{self.prefix}{of}/{name}", f"{self.prefix}manifests/{of}.json"


def _is_delivered(found: Collection[str], batch_id: int | None) -> bool:
    """Return whether a week's keys are those of a manifest, which comes first, and of one object, of the batch."""
    return len(found) == 2 and min(found).endswith(".json") and f"/batch-{batch_id}-" in max(found)
