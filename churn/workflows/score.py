"""The weekly job for one variant: read, check, make features, score, publish.

``score_variant`` is the unit of everything larger: idempotent, atomic, retried where a retry can help. It knows no
Dagster; ``orchestration`` tells what came of it.
"""

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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

from churn.concurrency import CircuitBreaker, in_threads, without_frames
from churn.data.features import Encoding
from churn.data.scoring_rows import Chunk, RowCounts, prepare
from churn.database.predictions import SOURCE_COLUMNS, BatchRecord, Challenge, PredictionStore, ScoredRows, Unpublished
from churn.errors import ChurnError, ModelFileError, TransientError
from churn.evaluation.charts import draw_importance
from churn.monitoring.drift import compare, estimated_auc
from churn.monitoring.profiles import Profile, ProfileCounter, regrouped
from churn.storage.sources import Provenance, SourceFile, Sources
from churn.variants import Variant
from churn.versions import CHALLENGER, CHAMPION, ModelVersion
from churn.weeks import default_as_of

if TYPE_CHECKING:
    from churn.inference.engine import Engine
    from churn.registry.registry import Registry

logger = logging.getLogger(__name__)

_Then = TypeVar("_Then")

_ATTEMPTS = 8
_RETRY_FOR_S = 90
_BINS, _FINE_BINS = 20, 1000
_TOP = 10


@dataclass
class ScoreSummary:
    """What a person looks at of a batch's scores, gathered while they stream by.

    Attributes:
        fine_counts: Accounts per thousandth of [0, 1], shape (1000,).
        top: ``(probability, account id)`` of the highest, in falling order.
        absolute: Sums of the contributions' absolute values, by source column; ``None`` without reasons.
        reference: What the rows are compared with; ``None`` where the model brought nothing.
        profile: The rows counted into the bins of the model's reference; ``None`` without one.
    """

    n: int = 0
    total: float = 0.0
    lowest: float = 1.0
    highest: float = 0.0
    fine_counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_FINE_BINS, dtype=np.int64))
    top: list[tuple[float, int]] = field(default_factory=list)
    absolute: npt.NDArray[np.float64] | None = None
    reference: Profile | None = None
    profile: Profile | None = None

    @property
    def mean(self) -> float:
        return self.total / max(self.n, 1)

    @property
    def estimated_auc(self) -> float | None:
        """What the ROC AUC is if each score is the probability it claims; assumes no concept drift."""
        middles = (np.arange(_FINE_BINS) + 0.5) / _FINE_BINS
        return estimated_auc(middles, self.fine_counts) if self.n else None

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Accounts per twentieth of [0, 1], shape (20,)."""
        return np.asarray(self.fine_counts.reshape(_BINS, -1).sum(axis=1), dtype=np.int64)

    def importance(self, source_columns: Sequence[str]) -> dict[str, float]:
        """Return the mean absolute contribution of each source column in log-odds, the largest first."""
        means = (
            {} if self.absolute is None else dict(zip(source_columns, (self.absolute / self.n).tolist(), strict=True))
        )
        return dict(sorted(means.items(), key=lambda pair: (-pair[1], pair[0])))

    def add(self, scored: ScoredRows, profile: Profile | None = None) -> None:
        """Take in a chunk."""
        if profile is not None:
            self.profile = profile if self.profile is None else self.profile + profile
        probabilities = scored.probabilities
        self.n += probabilities.size
        self.total += float(probabilities.sum(dtype=np.float64))
        self.lowest = min(self.lowest, float(probabilities.min()))
        self.highest = max(self.highest, float(probabilities.max()))
        self.fine_counts += np.histogram(probabilities, bins=_FINE_BINS, range=(0, 1))[0]
        best = np.argpartition(-probabilities, min(_TOP, probabilities.size) - 1)[:_TOP]
        found = [(float(probabilities[i]), int(scored.account_ids[i])) for i in best]
        if scored.contributions is not None:
            sums = np.abs(scored.contributions).sum(axis=0, dtype=np.float64)
            self.absolute = sums if self.absolute is None else self.absolute + sums
        self.top = sorted([*self.top, *found], key=lambda pair: (-pair[0], pair[1]))[:_TOP]


@dataclass(frozen=True)
class Outcome:
    """What came of scoring one variant: everything a person may want to see of it.

    Attributes:
        challenger_version: The challenger there is; ``None`` when there is none.
        challenger_record: Of the challenger's batch; ``None`` when there is none, or it failed.
    """

    record: BatchRecord
    batch_id: int
    provenance: Provenance
    model: ModelVersion
    counts: RowCounts
    feature_names: tuple[str, ...]
    summary: ScoreSummary
    engine: "Engine"
    challenger_version: int | None = None
    challenger_record: BatchRecord | None = None


@dataclass(frozen=True)
class Scorer:
    """The services that scoring needs, and its limits.

    Attributes:
        with_reasons: Whether each row's contributions are stored.
        recent_months: Accounts with a row of this many newest months are compared with the model's reference.
        aliases: The registry's aliases as listed once for a fleet; ``None`` looks them up variant by variant.
        circuit: Lets a fleet wait for a service that is down a few times, not once for every variant.
    """

    sources: Sources
    registry: "Registry"
    store: PredictionStore
    code_version: str
    max_quarantine_share: float
    with_reasons: bool = True
    recent_months: int = 3
    aliases: Mapping[Variant, Mapping[str, int]] | None = None
    circuit: CircuitBreaker = field(default_factory=CircuitBreaker, repr=False, compare=False)

    def score_fleet(
        self,
        keys: Sequence[str],
        week: date,
        dagster_run_id: str | None,
        then: Callable[[Outcome, "Scorer"], _Then],
        *,
        as_of: date | None = None,
    ) -> Iterator[tuple[str, _Then | BaseException]]:
        """Score many variants, a few at once; a failed one stops no other, and is recorded.

        Args:
            keys: The variants' keys.
            then: Done with each outcome in the thread that made it.
            as_of: See :meth:`score_variant`.

        Yields:
            Each key with what ``then`` returned or the error, in the order of ``keys``.
        """
        one = replace(self, aliases=self.aliases_for(keys))
        if one.aliases is not None:
            self.registry.look_up_locations()
        yield from in_threads(lambda key: (key, one.attempt(key, week, dagster_run_id, then, as_of=as_of)), keys)

    def aliases_for(self, keys: Sequence[str]) -> Mapping[Variant, Mapping[str, int]] | None:
        """List the aliases once for a fleet; a lone variant looks up its own."""
        return self.registry.aliases() if len(keys) > 1 else None

    def attempt(
        self,
        key: str,
        week: date,
        dagster_run_id: str | None,
        then: Callable[[Outcome, "Scorer"], _Then],
        *,
        as_of: date | None = None,
    ) -> _Then | BaseException:
        """Score a variant of a fleet; returns what ``then`` made of the outcome, or the error, which is recorded."""
        started_at = datetime.now(UTC)
        try:
            variant = Variant.from_key(key)
            return then(self.score_variant(variant, week, as_of=as_of, dagster_run_id=dagster_run_id), self)
        except (Exception, pl.exceptions.PanicException) as error:
            if not isinstance(error, ChurnError):
                logger.exception("%s failed", key)
            self.record_failure(key, week, dagster_run_id, started_at, error)
            return without_frames(error)

    def record_failure(
        self, key: str, week: date, dagster_run_id: str | None, started_at: datetime, error: BaseException
    ) -> None:
        """Keep an attempt that published nothing; where that cannot be done, a warning tells."""
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
            ChurnError: With the reason. Nothing is published then; transient errors were retried first, unless several
                variants in a row ended with one a moment ago.
        """
        known_at_end_of = as_of or default_as_of(week, datetime.now(UTC).date())
        return self.circuit.call(
            lambda: self._score_persistently(variant, week, known_at_end_of, dagster_run_id), TransientError
        )

    def _score_persistently(self, variant: Variant, week: date, as_of: date, dagster_run_id: str | None) -> Outcome:
        for attempt in Retrying(
            retry=retry_if_exception_type(TransientError),
            stop=stop_after_attempt(_ATTEMPTS) | stop_after_delay(_RETRY_FOR_S),
            wait=wait_random_exponential(multiplier=0.5, max=15),
            before_sleep=_tell_retry,
            reraise=True,
        ):
            with attempt, tempfile.TemporaryDirectory(prefix="churn-score-") as scratch:
                return self._score(variant, week, as_of, dagster_run_id, Path(scratch))
        raise AssertionError  # Retrying reraises

    def _attach_importance(self, record: BatchRecord, model: ModelVersion, importance: Mapping[str, float]) -> None:
        """Put the picture of what drove the batch's scores into MLflow; the batch is published with or without it."""
        picture = draw_importance(importance, f"{record.variant}, week of {record.scored_week}: mean |log-odds|")
        try:
            self.registry.attach(model, f"scoring/{record.scored_week}/{record.variant}.svg", picture)
        except ChurnError as error:
            logger.warning("%s: the picture of its importances is not in MLflow: %s", record.variant, error)

    def _score(self, variant: Variant, week: date, as_of: date, dagster_run_id: str | None, scratch: Path) -> Outcome:
        aliases = self.aliases if self.aliases is not None else {variant: self.registry.aliases_of(variant)}
        job = _Job(variant, week, as_of, dagster_run_id, datetime.now(UTC))
        model = self.registry.resolve(variant, CHAMPION, aliases)
        raw = self.sources.fetch_input(variant, scratch)
        champion = self._pass(job, model, raw, CHAMPION)
        challenge = self._challenge(job, raw, aliases)
        published = self.store.publish(variant, week, champion.batch, challenge)
        batch_id, record = published[0]
        if record.importance:
            self._attach_importance(record, model, record.importance)
        return Outcome(
            record=record,
            batch_id=batch_id,
            provenance=raw.provenance,
            model=model,
            counts=champion.counts,
            feature_names=champion.feature_names,
            summary=champion.summary,
            engine=champion.engine,
            challenger_version=challenge.version if challenge else None,
            challenger_record=published[1][1] if len(published) > 1 else None,
        )

    def _challenge(
        self, job: "_Job", raw: SourceFile, aliases: Mapping[Variant, Mapping[str, int]]
    ) -> Challenge | None:
        """Say how the challenger's batch is made, where there is one; nothing of it is done before the champion's."""
        version = aliases[job.variant].get(CHALLENGER)
        if version is None:
            return None

        def make() -> Unpublished:
            model = self.registry.resolve(job.variant, CHALLENGER, aliases)
            return self._pass(job, model, raw, CHALLENGER).batch

        return Challenge(make, version, self.store.ab_share(job.variant, version), ab_salt(job.variant, version))

    def _pass(self, job: "_Job", model: ModelVersion, raw: SourceFile, role: str) -> "_Pass":
        """Load a model and make ready to score a file's rows with it."""
        from churn.inference.engine import build_engine  # not when it is only declared: it brings XGBoost and Numba

        bundle = self.registry.load(model)
        origin = raw.provenance.uri
        erased = self.store.erased(job.variant, raw.provenance.variant)
        rows = prepare(
            raw.path,
            bundle.feature_names,
            job.as_of,
            self.max_quarantine_share,
            origin=origin,
            recent_months=self.recent_months,
            erased=erased,
        )
        counts = rows.counts  # not the rows, which are let go of as they are taken
        chunks = rows.chunks()
        first = next(chunks)
        engine = build_engine(bundle, rows.encoding, first[1], n_rows=counts.n_read, with_reasons=self.with_reasons)
        reference = self._reference(model, rows.encoding)
        summary = ScoreSummary(reference=reference)
        scored = score_rows(chain([first], chunks), engine, model, summary, reference)

        def describe() -> tuple[BatchRecord, pl.DataFrame]:
            record = self._record(
                job, model, role, provenance=raw.provenance, counts=counts, summary=summary, engine=engine
            )
            return replace(record, **looks_of(summary, reference)), counts.quarantined

        source_columns = engine.reasons.source_columns if engine.reasons else ()
        kept = reference.to_json() if reference else None
        batch = Unpublished(scored, describe, source_columns, kept, erased.n_erasures)
        return _Pass(batch, bundle.feature_names, counts, summary, engine)

    def _reference(self, model: ModelVersion, encoding: Encoding) -> Profile | None:
        """Return what to compare the batch with, by the source columns that its features come from."""
        reference = self.registry.reference(model)
        return None if reference is None else regrouped(reference, encoding)

    def _record(
        self,
        job: "_Job",
        model: ModelVersion,
        role: str,
        *,
        provenance: Provenance,
        counts: RowCounts,
        summary: ScoreSummary,
        engine: "Engine",
    ) -> BatchRecord:
        reasons = engine.reasons
        source_columns = reasons.source_columns if reasons else ()
        return BatchRecord(
            variant=job.variant,
            scored_week=job.week,
            as_of=job.as_of,
            registered_model=model.registered_model,
            model_version=model.version,
            model_sha256=model.sha256,
            mlflow_run_id=model.mlflow_run_id,
            dagster_run_id=job.dagster_run_id,
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
            n_rows_erased=counts.n_erased,
            unknown_levels=counts.unknown_levels,
            started_at=job.started_at,
            scored_by="xgboost" if engine.fallback_reason else "tables",
            bias=reasons.bias if reasons else None,
            other_source_columns=[
                source_column for source_column in source_columns if source_column not in SOURCE_COLUMNS
            ]
            if reasons
            else None,
            levels=reasons.levels if reasons else None,
            importance=summary.importance(source_columns) if reasons else None,
            role=role,
        )


@dataclass(frozen=True)
class _Job:
    """What is asked of one variant."""

    variant: Variant
    week: date
    as_of: date
    dagster_run_id: str | None
    started_at: datetime


@dataclass(frozen=True)
class _Pass:
    """One model's way over a variant's rows, ready to be taken by publishing its batch."""

    batch: Unpublished
    feature_names: tuple[str, ...]
    counts: RowCounts
    summary: ScoreSummary
    engine: "Engine"


def ab_salt(variant: Variant, challenger_version: int) -> str:
    """Return what decides which accounts a challenger serves: the same ones as long as it is the challenger."""
    return f"{variant.key}:{challenger_version}"


def score_rows(
    chunks: Iterable[Chunk],
    engine: "Engine",
    model: ModelVersion,
    summary: ScoreSummary,
    reference: Profile | None = None,
) -> Iterator[ScoredRows]:
    """Score every account, a few chunks at a time.

    Raises:
        ModelFileError: If a score is not a probability, or its reasons do not add up to it.
    """
    from churn.inference.engine import require_sums

    def of_chunk(chunk: Chunk) -> tuple[ScoredRows, Profile | None]:
        scored = scores_of(chunk)
        if reference is None:
            return scored, None
        counter, packed = ProfileCounter(reference), chunk[1]
        if packed.is_recent is None:
            counter.add(packed, scored.probabilities)
        else:
            counter.add(packed.take(packed.is_recent), scored.probabilities[packed.is_recent])
        return scored, counter.profile()

    def scores_of(chunk: Chunk) -> ScoredRows:
        account_ids, packed = chunk
        probabilities, contributions = engine.score(packed)
        wrong = np.flatnonzero(~((probabilities >= 0) & (probabilities <= 1)))
        if wrong.size:
            raise ModelFileError(
                f"{model.uri} gave {wrong.size} of {probabilities.size} rows no probability "
                f"(first: {probabilities[wrong[0]]}); nothing was published: log the model again"
            )
        if contributions is None or engine.reasons is None:
            return ScoredRows(account_ids, probabilities)
        require_sums(probabilities, contributions, engine.reasons.bias, model.uri)
        return ScoredRows(account_ids, probabilities, contributions, packed.values)

    for scored, profile in in_threads(of_chunk, chunks):
        summary.add(scored, profile)
        yield scored


def looks_of(summary: ScoreSummary, reference: Profile | None) -> dict[str, Any]:
    """Return what a batch's record keeps of how its rows look, so that it can be drawn and compared later."""
    return {
        "drift": drift_of(reference, summary.profile),
        "mean_probability": summary.mean,
        "score_counts": summary.counts.tolist(),
        "profile_counts": None if summary.profile is None else summary.profile.counts.tolist(),
        "estimated_auc": summary.estimated_auc,
    }


def drift_of(reference: Profile | None, profile: Profile | None) -> dict[str, dict[str, float]] | None:
    """Compare a batch with its model's reference; returns the measures by feature, for the batch's record."""
    if reference is None or profile is None:
        return None
    measured = [asdict(drift) for drift in compare(reference, profile)]
    return {str(drift.pop("feature")): drift for drift in measured}


def _tell_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    logger.warning("attempt %d failed and will be repeated: %s", state.attempt_number, error)
