"""The extracts that batches were scored from, and whether the activity history has them yet.

They are columns of ``scoring_batches``; :mod:`churn.workflows.ingest` reads the extracts.
"""

from dataclasses import dataclass
from datetime import date, datetime
from typing import Literal

from churn.database.connection import Tables
from churn.variants import Variant

HistoryStatus = Literal["pending", "ingested", "gone", "rejected"]

# Of batches that were scored from the same rows, the newest one's file is the most likely to be there.
_PENDING = (
    "SELECT DISTINCT ON (source_sha256) source_uri, source_version, source_version_id, source_sha256, "
    "min(source_modified_at) OVER (PARTITION BY source_sha256) AS modified_at "
    "FROM scoring_batches WHERE variant = :variant AND history_status = 'pending' "
    "ORDER BY source_sha256, batch_id DESC"
)
_FIRST_MONTH = (
    "SELECT first_month FROM scoring_batches WHERE variant = :variant AND source_variant = variant AND as_of <= :as_of "
    "AND scored_from = 'extract' AND first_month IS NOT NULL ORDER BY as_of DESC, batch_id DESC LIMIT 1"
)
_VARIANTS = "SELECT DISTINCT variant FROM scoring_batches WHERE history_status = 'pending' ORDER BY variant"
_MARK = (
    "UPDATE scoring_batches AS b SET history_status = CASE WHEN :status = 'gone' AND EXISTS ("
    "SELECT 1 FROM scoring_batches AS k WHERE k.variant = b.variant AND k.source_sha256 = b.source_sha256 "
    "AND k.history_status = 'ingested') THEN 'ingested' ELSE :status END "
    "WHERE variant = :variant AND source_sha256 = :sha256 AND history_status = 'pending'"
)


@dataclass(frozen=True)
class ScoredExtract:
    """An input that a variant's batches were scored from, and when it was first modified so."""

    variant: Variant
    uri: str
    version: str
    version_id: str | None
    sha256: str
    modified_at: datetime


class ScoredExtracts(Tables):
    """The extracts of the batches in ``scoring_batches``, as the writer role."""

    def variants(self) -> list[str]:
        """Return the keys of the variants with a pending extract."""
        return [key for (key,) in self._rows(_VARIANTS)]

    def pending(self, variant: Variant) -> list[ScoredExtract]:
        """Return a variant's extracts that were scored and are not in its history yet, the oldest first."""
        found = [ScoredExtract(variant, *row) for row in self._rows(_PENDING, variant=variant.key)]
        return sorted(found, key=lambda extract: extract.modified_at)

    def first_month(self, variant: Variant, as_of: date) -> date:
        """Return the oldest month of the variant's extract that was scored last by a day; ``date.min`` if none was."""
        return next((month for (month,) in self._rows(_FIRST_MONTH, variant=variant.key, as_of=as_of)), date.min)

    def mark(self, extract: ScoredExtract, status: HistoryStatus) -> None:
        """Record what became of a pending extract, with all batches that were scored from it. Idempotent."""
        self._execute(_MARK, variant=extract.variant.key, sha256=extract.sha256, status=status)
