"""Ingestion: read a variant's extracts, check them by the contract, and append their new facts to the history.

Ingested are the current extract and those that batches were scored from, so that a past week can be scored again from
what was known then. An extract that was replaced before it was ingested is gone, and its batches say so.
"""

import hashlib
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import polars as pl

from churn.data.account_ids import ACCOUNT_KEY, key_table
from churn.data.activity import KINDS, check_activity, counts_by_rule, is_activity
from churn.data.columns import Columns
from churn.data.formats import read_frame
from churn.data.windows import windows_of
from churn.database.decisions import Decisions
from churn.database.extracts import HistoryStatus, ScoredExtract, ScoredExtracts
from churn.errors import AccessDeniedError, ChurnError, InputError, SourceError, TransientError
from churn.storage.history import FOLDER, ActivityHistory, Appended
from churn.storage.sources import GoneError, Provenance, SourceFile, Sources
from churn.variants import Variant

logger = logging.getLogger(__name__)

COLUMNS_NAMES = ("data/churn/columns.json",)  # optional: what the columns of the variant's activity mean
EXCLUSIONS_NAMES = ("data/churn/exclusions.csv",)
"""Optional: accounts that no list may hold, as of :func:`churn.decisions.exclusions.parse_exclusions`."""


class NoActivityError(InputError):
    """A variant's rows can be scored, but no labels can be built from them, since they are already encoded."""


class ForeignActivityError(NoActivityError):
    """A variant is scored on another variant's rows."""


@dataclass(frozen=True)
class Extract:
    """Checked raw activity, with quarantined rows marked, where it was read from, and its oldest month."""

    rows: pl.DataFrame
    provenance: Provenance
    first_month: date


def read_extract(sources: Sources, variant: Variant, max_quarantine_share: float) -> Extract:
    """Read a variant's input and check it against the contract.

    Raises ``NoActivityError`` if it is not raw activity, which labels need, ``ForeignActivityError`` if it is not the
    variant's own, ``QuarantineError`` if more rows broke the contract than the limit allows, ``SourceError`` without
    any.
    """
    with tempfile.TemporaryDirectory(prefix="churn-ingest-") as scratch:
        raw = sources.fetch_input(variant, Path(scratch))
        if raw.provenance.variant != variant:
            raise ForeignActivityError(f"{variant} has no activity of its own")
        return _check(raw, sources, max_quarantine_share)


def _check(raw: SourceFile, sources: Sources, max_quarantine_share: float) -> Extract:
    frame = read_frame(raw.path)
    if not is_activity(frame.columns):
        remedy = f"upload raw activity (account_id, activity_month, …) of {raw.provenance.variant}"
        found = f"{raw.provenance.uri} contains rows already encoded, which have no months and so no labels"
        raise NoActivityError(f"{found}; {remedy}")
    checked = check_activity(frame)
    # Only then, since most variants declare no limit of their own, and the declaration is another file.
    if any(rule.endswith("_absurd") for rule in counts_by_rule(checked.quarantined)):
        columns = read_columns(sources, raw.provenance.variant) or Columns()
        checked = check_activity(frame, max_money=columns.max_money)
    checked.require_share(max_quarantine_share)
    key_table(checked.rows, checked.quarantined)  # refuses two ids of one number
    first_month: date = checked.rows["activity_month"].min()  # type: ignore[assignment]  # a column of dates
    return Extract(checked.with_quarantined(), raw.provenance, first_month)


def with_numbers(
    facts: pl.DataFrame, names: Sequence[str], columns: Columns, max_quarantine_share: float
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Convert the columns beyond the contract that a model or the labels use to numbers and dates.

    ``names`` are the model's features. Returns the facts, and those left out because they have other values. Raises
    ``QuarantineError`` if these are more than the limit allows.
    """
    windows = windows_of(names, facts.columns)
    dates = {window.column for window in windows if window.is_of_row} - KINDS.keys()
    used = {*names, *columns.activity, *(window.column for window in windows)}
    numbers = used & set(facts.columns) - KINDS.keys() - dates
    if not numbers and not dates:
        return facts, facts.clear()
    checked = check_activity(facts, numbers, dates=dates, max_money=columns.max_money)
    checked.require_share(max_quarantine_share)
    return checked.rows.drop("row_number"), facts[checked.quarantined["row_number"] - 1]


def read_columns(sources: Sources, variant: Variant) -> Columns | None:
    """Read what a variant declares about its columns; ``None`` if it has no such file."""
    with tempfile.TemporaryDirectory(prefix="churn-columns-") as scratch:
        file = fetch_own(sources, variant, COLUMNS_NAMES, Path(scratch))
        return None if file is None else Columns.from_json(file.path.read_bytes(), file.provenance.uri)


def fetch_own(sources: Sources, variant: Variant, names: Sequence[str], into: Path) -> SourceFile | None:
    """Copy a variant's own file, the first of these names that exists; ``None`` if it has none."""
    try:
        (file,) = sources.fetch(variant, [names], into)
    except TransientError:
        raise
    except SourceError:
        return None
    return file if file.provenance.variant == variant else None


@dataclass(frozen=True)
class Ingestion:
    """The services that ingestion needs, and its limit."""

    sources: Sources
    history: ActivityHistory
    extracts: ScoredExtracts
    max_quarantine_share: float
    decisions: Decisions | None = None

    def exclude(self, variant: Variant) -> None:
        """Exclude the accounts that a variant's file of exclusions names, if it has one. Idempotent.

        Raises ``InputError`` if a row of it cannot be read; the others are excluded then.
        """
        with tempfile.TemporaryDirectory(prefix="churn-exclusions-") as scratch:
            file = fetch_own(self.sources, variant, EXCLUSIONS_NAMES, Path(scratch))
            if self.decisions is not None and file is not None:
                self.decisions.exclude_rows(read_frame(file.path), file.provenance.uri, variant.company or "")

    def ingest(self, variant: Variant) -> Appended:
        """Append the new facts of extracts that were scored and of the current one to the history. Safe to repeat.

        A scored extract that cannot be ingested is logged and stays pending. Raises ``NoActivityError`` if the current
        input is not the variant's own raw activity, ``ChurnError`` if it cannot be read or breaks the contract, or the
        history cannot be written.
        """
        extract = read_extract(self.sources, variant, self.max_quarantine_share)
        received_at, current = extract.provenance.modified_at, None
        for scored in self.extracts.pending(variant):
            if scored.sha256 == extract.provenance.sha256:
                received_at, current = scored.modified_at, scored
                continue
            try:
                self._ingest(scored)
            except ChurnError as error:
                logger.warning("%s: an extract that was scored is not ingested yet: %s", variant, error)
        appended = self.history.append(variant, extract.rows, received_at)
        if current is not None:
            self.extracts.mark(current, "ingested")
        return appended

    def ingest_scored(self, variant: Variant) -> list[HistoryStatus]:
        """Append the new facts of the extracts that a variant's batches were scored from; returns what became of each.

        Safe to repeat, to interrupt, and in several processes at once. Raises ``ChurnError`` if an extract may still be
        there and cannot be read now; it stays pending.
        """
        ingested = [self._ingest(scored) for scored in self.extracts.pending(variant)]
        self.exclude(variant)
        return ingested

    def _ingest(self, scored: ScoredExtract) -> HistoryStatus:
        variant, of = scored.variant, (scored.uri, scored.version, scored.version_id)
        status: HistoryStatus = "ingested"
        try:
            with tempfile.TemporaryDirectory(prefix="churn-ingest-") as scratch:
                raw = self.sources.fetch_again(variant, *of, Path(scratch))
                if raw.provenance.sha256 != scored.sha256:
                    raise GoneError(f"{scored.uri} has other bytes than those that were scored")
                extract = _check(raw, self.sources, self.max_quarantine_share)
            self.history.append(variant, extract.rows, scored.modified_at)
        except GoneError as error:
            logger.warning("%s: an extract that was scored is gone before it was ingested: %s", variant, error)
            status = "gone"
        except InputError as error:
            logger.warning("%s: an extract that was scored cannot be ingested: %s", variant, error)
            status = "rejected"
        self.extracts.mark(scored, status)  # after the facts are stored: an interrupted call is repeated
        return status

    def fetch_known(self, variant: Variant, as_of: date, into: Path) -> SourceFile:
        """Write what was known about a variant's accounts at the end of a day into a folder, as one Parquet file.

        Extracts that have arrived by now are ingested first; their facts count if they became known by that day. Months
        that the extract scored by then no longer held do not. Raises ``InputError`` if nothing was known, or a part of
        the history is damaged, ``SourceError`` if it cannot be read.
        """
        facts, why = self._facts(variant)
        end = datetime.combine(as_of + timedelta(days=1), time.min, UTC)
        first, month = self.extracts.first_month(variant, as_of), pl.col("activity_month")
        known = None if facts is None else facts.filter(pl.col("known_at") < end, month.is_between(first, as_of))
        if known is None or known.is_empty():
            problem = f"the activity history of {variant} has nothing that was known at {as_of}{why}"
            flag = "--corrected (in Dagster corrected: true), which uses what became known since"
            raise InputError(f"{problem}; score the day from today's extract with {flag}")
        if ACCOUNT_KEY in known.columns:
            known = known.with_columns(account_id=pl.coalesce(ACCOUNT_KEY, pl.col("account_id").cast(pl.String)))
        path = into / "activity.parquet"
        known.write_parquet(path)
        content, place = path.read_bytes(), self.history.place
        newest: datetime = known["known_at"].max()  # type: ignore[assignment]  # a column of instants
        reason = None if place.source == "s3" else "S3 is not configured (MLFLOW_S3_BUCKET)"
        uri, version = place.uri(variant.prefix + FOLDER), self.history.version(variant) or ""
        sha256 = hashlib.sha256(content).hexdigest()
        return SourceFile(path, Provenance(uri, version, sha256, len(content), newest, place.source, variant, reason))

    def _facts(self, variant: Variant) -> tuple[pl.DataFrame | None, str]:
        """Return all facts, or ``None`` and why there are none. A history outlives the extracts."""
        # A local copy in place of S3 is nothing that was known.
        sources = self.sources if self.sources.bucket is None else replace(self.sources, fallback=False)
        try:
            return replace(self, sources=sources).ingest(variant).facts, ""
        except (TransientError, AccessDeniedError):
            raise
        except ChurnError as error:
            if self.history.version(variant) is None:
                return None, f" ({error})"
            logger.warning("%s: its current extract is not ingested: %s", variant, error)
            return self.history.read(variant), ""
