"""Ingestion: read a variant's newest extract, check it by the contract, and append its new facts to the history."""

import hashlib
import tempfile
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import polars as pl

from churn.data.activity import check_activity, is_activity
from churn.data.formats import read_frame
from churn.errors import InputError
from churn.storage.history import FOLDER, ActivityHistory, Appended
from churn.storage.sources import Provenance, SourceFile, Sources
from churn.variants import Variant


class NoActivityError(InputError):
    """A variant's rows can be scored, but no labels can be built from them, since they are already encoded."""


class ForeignActivityError(NoActivityError):
    """A variant is scored on another variant's rows."""


@dataclass(frozen=True)
class Extract:
    """Checked raw activity, and where it was read from."""

    rows: pl.DataFrame
    provenance: Provenance


def read_extract(sources: Sources, variant: Variant, max_quarantine_share: float) -> Extract:
    """Read a variant's input and check it against the contract.

    Raises:
        NoActivityError: If the input is not raw activity; labels need it.
        ForeignActivityError: If it is not the variant's own.
        QuarantineError: If more rows broke the contract than the limit allows.
        SourceError: If there is none.
    """
    with tempfile.TemporaryDirectory(prefix="churn-ingest-") as scratch:
        raw = sources.fetch_input(variant, Path(scratch))
        if raw.provenance.variant != variant:
            raise ForeignActivityError(f"{variant} has no activity of its own")
        frame = read_frame(raw.path)
    if not is_activity(frame.columns):
        raise NoActivityError(
            f"{raw.provenance.uri} contains rows already encoded, which have no months and so no labels; upload raw "
            f"activity (account_id, activity_month, …) of {variant}"
        )
    checked = check_activity(frame)
    checked.require_share(max_quarantine_share)
    return Extract(checked.rows.drop("row_number"), raw.provenance)


def ingest(sources: Sources, history: ActivityHistory, variant: Variant, max_quarantine_share: float) -> Appended:
    """Append the new facts of a variant's input to its history. Safe to repeat."""
    extract = read_extract(sources, variant, max_quarantine_share)
    return history.append(variant, extract.rows, extract.provenance.modified_at)


def fetch_known(history: ActivityHistory, variant: Variant, as_of: date, into: Path) -> SourceFile:
    """Write what a variant's history knew at the end of a day into a folder, as one Parquet file.

    Raises:
        InputError: If nothing was known, or a part of the history is damaged.
        SourceError: If the history cannot be read.
    """
    version, place = history.version(variant), history.place
    facts = None if version is None else history.read(variant)
    end = datetime.combine(as_of + timedelta(days=1), time.min, UTC)
    known = None if facts is None else facts.filter((pl.col("known_at") < end) & (pl.col("activity_month") <= as_of))
    if version is None or known is None or known.is_empty():
        raise InputError(
            f"the activity history of {variant} has nothing that was known at {as_of}; score the day from today's "
            f"extract with --corrected, which uses what became known since"
        )
    path = into / "activity.parquet"
    known.write_parquet(path)
    content = path.read_bytes()
    newest: datetime = known["known_at"].max()  # type: ignore[assignment]  # a column of instants
    reason = None if place.source == "s3" else "S3 is not configured (MLFLOW_S3_BUCKET)"
    uri, sha256 = place.uri(variant.prefix + FOLDER), hashlib.sha256(content).hexdigest()
    provenance = Provenance(uri, version, sha256, len(content), newest, place.source, variant, reason)
    return SourceFile(path, provenance)
