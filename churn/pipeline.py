"""The weekly job for one variant: read, check, make features, score, publish.

``score_variant`` is the unit of everything larger: idempotent, atomic, retried where a retry can help. It knows no
Dagster; ``orchestration`` tells what came of it.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from churn.data.scoring_rows import RowCounts, ScoringRows, prepare
from churn.data.sources import Provenance, Sources
from churn.errors import ChurnError, ModelFileError, TransientError
from churn.model.versions import CHAMPION, ModelVersion
from churn.store.predictions import BatchRecord, PredictionStore, ScoredRows
from churn.threads import ahead, in_threads
from churn.variants import Variant
from churn.weeks import default_as_of

if TYPE_CHECKING:
    from churn.model.bundle import Bundle
    from churn.model.registry import Registry

logger = logging.getLogger(__name__)

_Then = TypeVar("_Then")

_ATTEMPTS = 8
_RETRY_FOR_S = 90
_BINS = 20
_TOP = 10


@dataclass
class ScoreSummary:
    """What a person looks at of a batch's scores, gathered while they stream by.

    Attributes:
        counts: Accounts per twentieth of [0, 1], shape (20,).
        top: ``(probability, account id)`` of the highest, in falling order.
    """

    n: int = 0
    total: float = 0.0
    lowest: float = 1.0
    highest: float = 0.0
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, dtype=np.int64))
    top: list[tuple[float, int]] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return self.total / max(self.n, 1)

    def add(self, scored: ScoredRows) -> None:
        """Take in a chunk."""
        probabilities = scored.probabilities
        self.n += probabilities.size
        self.total += float(probabilities.sum(dtype=np.float64))
        self.lowest = min(self.lowest, float(probabilities.min()))
        self.highest = max(self.highest, float(probabilities.max()))
        self.counts += np.histogram(probabilities, bins=_BINS, range=(0, 1))[0]
        best = np.argpartition(-probabilities, min(_TOP, probabilities.size) - 1)[:_TOP]
        found = [(float(probabilities[i]), int(scored.account_ids[i])) for i in best]
        self.top = sorted([*self.top, *found], key=lambda pair: (-pair[0], pair[1]))[:_TOP]


@dataclass(frozen=True)
class Outcome:
    """What came of scoring one variant: everything a person may want to see of it."""

    record: BatchRecord
    batch_id: int
    provenance: Provenance
    model: ModelVersion
    counts: RowCounts
    feature_names: tuple[str, ...]
    summary: ScoreSummary


@dataclass(frozen=True)
class Scorer:
    """The services that scoring needs, and its limits.

    Attributes:
        aliases: The registry's aliases as listed once for a fleet; ``None`` looks them up variant by variant.
        model_threads: Threads of each booster; ``None`` for all cores.
    """

    sources: Sources
    registry: "Registry"
    store: PredictionStore
    code_version: str
    max_quarantine_share: float
    aliases: Mapping[Variant, Mapping[str, int]] | None = None
    model_threads: int | None = None

    def score_fleet(
        self,
        keys: Sequence[str],
        week: date,
        dagster_run_id: str | None,
        then: Callable[[Outcome, "Scorer"], _Then],
    ) -> Iterator[tuple[str, _Then | BaseException]]:
        """Score many variants, a few at once; a failed one stops no other, and is recorded.

        Args:
            keys: The variants' keys.
            then: Done with each outcome in the thread that made it.

        Yields:
            Each key with what ``then`` returned or the error, in the order of ``keys``.
        """
        aliases = self.registry.aliases() if len(keys) > 1 else None
        # Small batches gain nothing from a booster's own threads, which would wait for each other.
        one = replace(self, aliases=aliases, model_threads=1 if len(keys) > 1 else None)

        def attempt(key: str) -> tuple[str, _Then | BaseException]:
            started_at = datetime.now(UTC)
            try:
                variant = Variant.from_key(key)
                return key, then(one.score_variant(variant, week, dagster_run_id=dagster_run_id), one)
            except (Exception, pl.exceptions.PanicException) as error:
                if not isinstance(error, ChurnError):
                    logger.exception("%s failed", key)
                self._record_failure(key, week, dagster_run_id, started_at, error)
                return key, error

        yield from in_threads(attempt, keys)

    def _record_failure(
        self, key: str, week: date, dagster_run_id: str | None, started_at: datetime, error: BaseException
    ) -> None:
        try:
            self.store.record_failure(key, week, dagster_run_id, started_at, error)
        except ChurnError as unrecorded:
            logger.warning("%s: its failure could not be recorded: %s", key, unrecorded)

    def score_variant(
        self, variant: Variant, week: date, *, as_of: date | None = None, dagster_run_id: str | None = None
    ) -> Outcome:
        """Score a variant's week and publish the batch. Safe to repeat: each time the newest batch is the current one.

        Args:
            week: The Monday of the scored week.
            as_of: The day at whose end things must have been known; default: see :func:`churn.weeks.default_as_of`.

        Raises:
            ChurnError: With the reason. Nothing is published then; transient errors were retried first.
        """
        known_at_end_of = as_of or default_as_of(week, datetime.now(UTC).date())
        for attempt in Retrying(
            retry=retry_if_exception_type(TransientError),
            stop=stop_after_attempt(_ATTEMPTS) | stop_after_delay(_RETRY_FOR_S),
            wait=wait_random_exponential(multiplier=0.5, max=15),
            before_sleep=_tell_retry,
            reraise=True,
        ):
            with attempt, tempfile.TemporaryDirectory(prefix="churn-score-") as scratch:
                return self._score(variant, week, known_at_end_of, dagster_run_id, Path(scratch))
        raise AssertionError  # Retrying reraises

    def _score(self, variant: Variant, week: date, as_of: date, dagster_run_id: str | None, scratch: Path) -> Outcome:
        started_at = datetime.now(UTC)
        model = self.registry.resolve(variant, CHAMPION, self.aliases)
        bundle = self.registry.load(model)
        if self.model_threads is not None:
            bundle.booster.set_param({"nthread": self.model_threads})
        raw = self.sources.fetch_input(variant, scratch)
        rows = prepare(raw.path, bundle.feature_names, as_of, self.max_quarantine_share, origin=raw.provenance.uri)
        summary = ScoreSummary()

        def describe() -> BatchRecord:
            return self._describe(
                variant=variant,
                week=week,
                as_of=as_of,
                dagster_run_id=dagster_run_id,
                model=model,
                provenance=raw.provenance,
                counts=rows.counts,
                started_at=started_at,
            )

        batch_id, record = self.store.publish(
            variant,
            week,
            ahead(predict(bundle, rows, model, summary)),
            lambda: (describe(), rows.counts.quarantined),
        )
        return Outcome(record, batch_id, raw.provenance, model, rows.counts, bundle.feature_names, summary)

    def _describe(
        self,
        *,
        variant: Variant,
        week: date,
        as_of: date,
        dagster_run_id: str | None,
        model: ModelVersion,
        provenance: Provenance,
        counts: RowCounts,
        started_at: datetime,
    ) -> BatchRecord:
        return BatchRecord(
            variant=variant,
            scored_week=week,
            as_of=as_of,
            registered_model=model.registered_model,
            model_version=model.version,
            model_alias=CHAMPION,
            model_sha256=model.sha256,
            mlflow_run_id=model.mlflow_run_id,
            dagster_run_id=dagster_run_id,
            code_version=self.code_version,
            source=provenance.source,
            source_uri=provenance.uri,
            source_version=provenance.version,
            source_sha256=provenance.sha256,
            source_modified_at=provenance.modified_at,
            source_variant=provenance.variant,
            fallback_reason=provenance.fallback_reason,
            account_ids="input" if counts.has_account_ids else "row_number",
            n_rows_read=counts.n_read,
            n_rows_quarantined=counts.quarantined.height,
            n_accounts_withheld=counts.n_withheld,
            n_rows_scored=counts.n_accounts,
            unknown_levels=counts.unknown_levels,
            started_at=started_at,
        )


def predict(bundle: "Bundle", rows: ScoringRows, model: ModelVersion, summary: ScoreSummary) -> Iterator[ScoredRows]:
    """Score every account, chunk by chunk.

    Raises:
        ModelFileError: If a score is not a probability.
    """
    for account_ids, matrix in rows.chunks():
        probabilities = bundle.predict(matrix)
        wrong = np.flatnonzero(~((probabilities >= 0) & (probabilities <= 1)))
        if wrong.size:
            raise ModelFileError(
                f"{model.uri} gave {wrong.size} of {probabilities.size} rows no probability "
                f"(first: {probabilities[wrong[0]]}); nothing was published: log the model again"
            )
        scored = ScoredRows(account_ids, probabilities)
        summary.add(scored)
        yield scored


def _tell_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    logger.warning("attempt %d failed and will be repeated: %s", state.attempt_number, error)
