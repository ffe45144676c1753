"""Ingestion: read a variant's newest extract, check it by the contract, and append its new facts to the history."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from churn.data.activity import check_activity, is_activity
from churn.data.formats import read_frame
from churn.errors import InputError
from churn.storage.history import ActivityHistory, Appended
from churn.storage.sources import Provenance, Sources
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
