"""The extracts that batches were scored from, and whether the activity history has them yet.

They are columns of ``scoring_batches``; :mod:`churn.workflows.ingest` reads the extracts.
"""

from dataclasses import dataclass
from datetime import date, datetime
from typing import Literal

from churn.database.connection import Tables, read_queries
from churn.variants import Variant

HistoryStatus = Literal["pending", "ingested", "gone", "rejected"]

_SQL = read_queries("extracts")


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
        return [key for (key,) in self._rows(_SQL["variants"])]

    def pending(self, variant: Variant) -> list[ScoredExtract]:
        """Return a variant's extracts that were scored and are not in its history yet, the oldest first."""
        found = [ScoredExtract(variant, *row) for row in self._rows(_SQL["pending"], variant=variant.key)]
        return sorted(found, key=lambda extract: extract.modified_at)

    def first_month(self, variant: Variant, as_of: date) -> date:
        """Return the oldest month of the variant's extract that was scored last by a day; ``date.min`` if none was."""
        return next((month for (month,) in self._rows(_SQL["first_month"], variant=variant.key, as_of=as_of)), date.min)

    def mark(self, extract: ScoredExtract, status: HistoryStatus) -> None:
        """Record what became of a pending extract, with all batches that were scored from it. Idempotent."""
        self._execute(_SQL["mark"], variant=extract.variant.key, sha256=extract.sha256, status=status)
