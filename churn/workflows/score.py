"""Score a variant for a week: open its model, read its rows, score them, publish the batch.

PostgreSQL pulls the rows. ``PredictionStore.publish`` opens the transaction and starts COPY; chunks of rows are scored,
by a few threads, only when COPY reads from the :class:`BatchInProgress` made here. So a batch of any size needs little
memory, an error while scoring rolls everything back, and in a stack trace the model runs below ``publish``.

Safe to repeat: the newest batch of a variant's week is the current one. Knows no Dagster.
"""

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import polars as pl
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from churn.concurrency import CircuitBreaker, in_threads
from churn.data.scoring_rows import Chunk, RowCounts, prepare
from churn.database.copy_format import SOURCE_COLUMNS, ScoredRows
from churn.database.predictions import BatchInProgress, BatchRecord, Challenge, PredictionStore
from churn.defaults import HORIZON_MONTHS
from churn.errors import ChurnError, ModelFileError, TransientError
from churn.evaluation.charts import draw_importance
from churn.monitoring.profiles import Profile, ProfileCounter, regrouped
from churn.monitoring.summary import ScoreSummary
from churn.storage.sources import Provenance, SourceFile, Sources
from churn.variants import Variant
from churn.versions import CHALLENGER, CHAMPION, ModelVersion
from churn.weeks import default_as_of
from churn.workflows.fleet import Attempts, FleetEngine, for_each_variant
from churn.workflows.ray_engine import OnNode, RayCluster, RayEngine

if TYPE_CHECKING:
    from churn.inference.engine import Engine
    from churn.registry.records import OpenModel
    from churn.registry.registry import Registry

logger = logging.getLogger(__name__)

_Out = TypeVar("_Out")

_ATTEMPTS = 8
_RETRY_FOR_S = 90


@dataclass(frozen=True)
class FleetRequest:
    """What is asked of many variants.

    Attributes:
        week: The Monday of the scored week.
        as_of: The day at whose end things must have been known.
    """

    week: date
    as_of: date
    dagster_run_id: str | None = None

    @classmethod
    def for_week(cls, week: date, *, as_of: date | None = None, dagster_run_id: str | None = None) -> "FleetRequest":
        """Fill in the as-of day: see :func:`churn.weeks.default_as_of`."""
        return cls(week, as_of or default_as_of(week, datetime.now(UTC).date()), dagster_run_id)

    def of(self, variant: Variant) -> "ScoringRequest":
        """Return what is asked of one of them."""
        return ScoringRequest(variant, self.week, self.as_of, self.dagster_run_id)


@dataclass(frozen=True)
class ScoringRequest:
    """What is asked of one variant; see :class:`FleetRequest`. Made once and handed on."""

    variant: Variant
    week: date
    as_of: date
    dagster_run_id: str | None = None
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC), compare=False)


@dataclass(frozen=True)
class ScoringOutcome:
    """A variant's published week: everything a person may want to see of it.

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


Report = Callable[[ScoringOutcome, "Scorer"], _Out]
"""Makes what is returned of a published variant, where it was scored. An outcome holds rows, so it stays there."""


@dataclass(frozen=True)
class Scorer:
    """The services that scoring needs, and its limits.

    Attributes:
        with_reasons: Whether each row's contributions are stored.
        recent_months: Accounts with a row of this many newest months are compared with the model's reference.
        aliases: The registry's aliases as listed once for a fleet; ``None`` looks them up variant by variant.
        circuit: Opens while a service is down, so that a fleet waits for it a few times and not once a variant.
    """

    sources: Sources
    registry: "Registry"
    store: PredictionStore
    code_version: str
    max_quarantine_share: float
    with_reasons: bool = True
    recent_months: int = HORIZON_MONTHS
    aliases: Mapping[Variant, Mapping[str, int]] | None = None
    circuit: CircuitBreaker = field(default_factory=CircuitBreaker, repr=False, compare=False)

    def score_variant(self, request: ScoringRequest) -> ScoringOutcome:
        """Score a variant's week and publish the batch.

        Raises:
            ChurnError: With the reason. Nothing is published then; transient errors were retried first, unless the
                circuit breaker is open.
        """
        return self.circuit.call(lambda: self._score_with_retries(request), TransientError)

    def record_failure(
        self, key: str, asked: FleetRequest | ScoringRequest, started_at: datetime, error: BaseException
    ) -> None:
        """Record an attempt that published nothing; where that fails, log a warning."""
        try:
            self.store.record_failure(key, asked.week, asked.dagster_run_id, started_at, error)
        except ChurnError as unrecorded:
            logger.warning("%s: its failure could not be recorded: %s", key, unrecorded)

    def _score_with_retries(self, request: ScoringRequest) -> ScoringOutcome:
        for attempt in Retrying(
            retry=retry_if_exception_type(TransientError),
            stop=stop_after_attempt(_ATTEMPTS) | stop_after_delay(_RETRY_FOR_S),
            wait=wait_random_exponential(multiplier=0.5, max=15),
            before_sleep=_log_retry,
            reraise=True,
        ):
            with attempt, tempfile.TemporaryDirectory(prefix="churn-score-") as scratch:
                return self._score(replace(request, started_at=datetime.now(UTC)), Path(scratch))
        raise AssertionError  # Retrying reraises

    def _score(self, request: ScoringRequest, scratch: Path) -> ScoringOutcome:
        variant = request.variant
        aliases = self.aliases if self.aliases is not None else {variant: self.registry.aliases_of(variant)}
        model = self.registry.open(variant, CHAMPION, aliases)
        raw = self.sources.fetch_input(variant, scratch)
        champion = self._begin(request, model, raw, CHAMPION)
        challenge = self._challenge(request, raw, aliases)
        published = self.store.publish(variant, request.week, champion.batch, challenge)
        batch_id, record = published[0]
        if record.importance:
            self._attach_importance(record, model.version)
        return ScoringOutcome(
            record=record,
            batch_id=batch_id,
            provenance=raw.provenance,
            model=model.version,
            counts=champion.counts,
            feature_names=model.bundle.feature_names,
            summary=champion.summary,
            engine=champion.engine,
            challenger_version=challenge.version if challenge else None,
            challenger_record=published[1][1] if len(published) > 1 else None,
        )

    def _challenge(
        self, request: ScoringRequest, raw: SourceFile, aliases: Mapping[Variant, Mapping[str, int]]
    ) -> Challenge | None:
        """Prepare the challenger's batch, where there is a challenger; it is begun after the champion's."""
        version = aliases[request.variant].get(CHALLENGER)
        if version is None:
            return None

        def begin() -> BatchInProgress:
            model = self.registry.open(request.variant, CHALLENGER, aliases)
            return self._begin(request, model, raw, CHALLENGER).batch

        share = self.store.ab_share(request.variant, version)
        return Challenge(begin, version, share, ab_salt(request.variant, version))

    def _begin(self, request: ScoringRequest, model: "OpenModel", raw: SourceFile, role: str) -> "_Begun":
        """Read and check the rows, compile the model for them, and begin a batch that COPY can pull."""
        from churn.inference.engine import build_engine  # not when it is only declared: it brings XGBoost and Numba

        erased = self.store.erased(request.variant, raw.provenance.variant)
        rows = prepare(
            raw.path,
            model.bundle.feature_names,
            request.as_of,
            self.max_quarantine_share,
            origin=raw.provenance.uri,
            recent_months=self.recent_months,
            erased=erased,
        )
        counts = rows.counts  # not the rows, whose memory is freed as they are taken
        chunks = rows.chunks()
        first = next(chunks)
        engine = build_engine(
            model.bundle, rows.encoding, first[1], n_rows=counts.n_read, with_reasons=self.with_reasons
        )
        reference = None if model.reference is None else regrouped(model.reference, rows.encoding)
        summary = ScoreSummary(reference=reference)

        def make_record() -> tuple[BatchRecord, pl.DataFrame]:
            record = self._record(
                request,
                model.version,
                role,
                provenance=raw.provenance,
                counts=counts,
                summary=summary,
                engine=engine,
            )
            return record, counts.quarantined

        batch = BatchInProgress(
            score_rows(chain([first], chunks), engine, model.version, summary),
            make_record,
            source_columns=engine.reasons.source_columns if engine.reasons else (),
            reference=reference.to_json() if reference else None,
            n_erasures=erased.n_erasures,
        )
        return _Begun(batch, counts, summary, engine)

    def _record(
        self,
        request: ScoringRequest,
        model: ModelVersion,
        role: str,
        *,
        provenance: Provenance,
        counts: RowCounts,
        summary: ScoreSummary,
        engine: "Engine",
    ) -> BatchRecord:
        reasons = engine.reasons
        columns = reasons.source_columns if reasons else ()
        return BatchRecord(
            variant=request.variant,
            scored_week=request.week,
            as_of=request.as_of,
            registered_model=model.registered_model,
            model_version=model.version,
            model_sha256=model.sha256,
            mlflow_run_id=model.mlflow_run_id,
            dagster_run_id=request.dagster_run_id,
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
            started_at=request.started_at,
            scored_by="xgboost" if engine.fallback_reason else "tables",
            bias=reasons.bias if reasons else None,
            other_source_columns=[name for name in columns if name not in SOURCE_COLUMNS] if reasons else None,
            levels=reasons.levels if reasons else None,
            importance=summary.importance(columns) if reasons else None,
            role=role,
            **summary.record_fields(),
        )

    def _attach_importance(self, record: BatchRecord, model: ModelVersion) -> None:
        """Log the picture of the batch's importances to MLflow; the batch is published with or without it."""
        title = f"{record.variant}, week of {record.scored_week}: mean |log-odds|"
        picture = draw_importance(record.importance or {}, title)
        try:
            self.registry.attach(model, f"scoring/{record.scored_week}/{record.variant}.svg", picture)
        except ChurnError as error:
            logger.warning("%s: the picture of its importances is not in MLflow: %s", record.variant, error)


@dataclass(frozen=True)
class _Begun:
    """A batch in progress, and what its rows are counted into while PostgreSQL pulls them."""

    batch: BatchInProgress
    counts: RowCounts
    summary: ScoreSummary
    engine: "Engine"


def score_fleet(
    scorer: Scorer,
    keys: Sequence[str],
    asked: FleetRequest,
    report: Report[_Out],
    cluster: RayCluster[Scorer] | None = None,
) -> Attempts[_Out]:
    """Score many variants, several at once; one that fails stops no other, and its attempt is recorded.

    Args:
        keys: The variants' keys.
        report: Called with each outcome where it was made, in a thread or on a node, after it was published: an error
            of it is the variant's result and is not recorded as a failed attempt. For a cluster, it and what it
            returns are pickled: neither may hold a scorer, a deployment or an outcome.
        cluster: Where to score; ``None`` for threads of this process.

    Yields:
        Each key with what ``report`` returned or the error: as they come from a cluster, else in the order of ``keys``.

    Raises:
        ChurnError: If the cluster cannot be reached, has no node, or has one whose settings differ from this process's.
    """
    if not keys:
        return
    # A fleet's aliases and locations are listed once; a lone variant looks up its own.
    listed = scorer.registry.aliases() if len(keys) > 1 else None
    work = partial(_score_and_report, asked=asked, report=report)
    if cluster is None:
        if listed is not None:
            scorer.registry.look_up_locations()
        yield from for_each_variant(partial(work, replace(scorer, aliases=listed)), keys)
        return
    wanted = set(keys)
    aliases = None if listed is None else {variant: held for variant, held in listed.items() if variant.key in wanted}

    def record_lost(key: str, started_at: datetime, error: BaseException) -> None:
        scorer.record_failure(key, asked, started_at, error)

    on_node: OnNode[Scorer, _Out] = OnNode(cluster, partial(_with_aliases, work, aliases))
    engine: FleetEngine[_Out] = RayEngine(cluster.address, record_lost)
    yield from for_each_variant(on_node, keys, engine)


def _score_and_report(scorer: Scorer, variant: Variant, *, asked: FleetRequest, report: Report[_Out]) -> _Out:
    request = asked.of(variant)
    try:
        outcome = scorer.score_variant(request)
    except (Exception, pl.exceptions.PanicException) as error:
        scorer.record_failure(variant.key, request, request.started_at, error)
        raise
    return report(outcome, scorer)


def _with_aliases(
    work: Callable[[Scorer, Variant], _Out],
    aliases: Mapping[Variant, Mapping[str, int]] | None,
    scorer: Scorer,
    variant: Variant,
) -> _Out:
    return work(replace(scorer, aliases=aliases), variant)


def ab_salt(variant: Variant, challenger_version: int) -> str:
    """Return the salt that decides which accounts a challenger serves: always the same ones while it is challenger."""
    return f"{variant.key}:{challenger_version}"


def score_rows(
    chunks: Iterable[Chunk], engine: "Engine", model: ModelVersion, summary: ScoreSummary
) -> Iterator[ScoredRows]:
    """Score every account, a few chunks ahead of what is taken, and count the scores into ``summary``.

    Raises:
        ModelFileError: If a score is not a probability, or its reasons do not add up to it.
    """
    for scored, profile in in_threads(partial(_score_chunk, engine, model, summary.reference), chunks):
        summary.add(scored.account_ids, scored.probabilities, scored.contributions, profile)
        yield scored


def _score_chunk(
    engine: "Engine", model: ModelVersion, reference: Profile | None, chunk: Chunk
) -> tuple[ScoredRows, Profile | None]:
    from churn.inference.engine import require_sums

    account_ids, packed = chunk
    probabilities, contributions = engine.score(packed)
    wrong = np.flatnonzero(~((probabilities >= 0) & (probabilities <= 1)))
    if wrong.size:
        raise ModelFileError(
            f"{model.uri} gave {wrong.size} of {probabilities.size} rows no probability "
            f"(first: {probabilities[wrong[0]]}); nothing was published: log the model again"
        )
    scored = ScoredRows(account_ids, probabilities)
    if contributions is not None and engine.reasons is not None:
        require_sums(probabilities, contributions, engine.reasons.bias, model.uri)
        scored = replace(scored, contributions=contributions, values=packed.values)
    if reference is None:
        return scored, None
    counter = ProfileCounter(reference)
    if packed.is_recent is None:
        counter.add(packed, probabilities)
    else:
        counter.add(packed.take(packed.is_recent), probabilities[packed.is_recent])
    return scored, counter.profile()


def _log_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    logger.warning("attempt %d failed and will be repeated: %s", state.attempt_number, error)
