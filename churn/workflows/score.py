"""Score a variant for a week: load its model, read its rows, score them, publish the batch.

PostgreSQL pulls the rows. ``PredictionStore.publish`` opens the transaction and starts COPY; chunks of rows are scored,
by a few threads, only when COPY reads from the :class:`BatchInProgress` that this module creates. So a batch of any
size needs little memory, an error while scoring rolls everything back, and in a stack trace the model runs below
``publish``. Safe to repeat: the newest batch of a variant's week is the current one.
"""

import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
import tenacity

from churn import errors
from churn.concurrency import CircuitBreaker, Seconds, each_timed, in_threads, timed
from churn.data.feature_words import describe_features
from churn.data.scoring_rows import Chunk, RowCounts, prepare
from churn.database.copy_format import SOURCE_COLUMNS, ScoredRows
from churn.database.predictions import BatchInProgress, BatchRecord, Challenge, PredictionStore
from churn.defaults import HORIZON_MONTHS, MAX_UNKNOWN_LEVEL_SHARE
from churn.errors import ChurnError, InputError, ModelFileError, TransientError, UnregisteredError, UsageError
from churn.monitoring.known_levels import UnknownLevels
from churn.monitoring.profiles import Profile, regrouped
from churn.monitoring.summary import ScoreSummary
from churn.storage.inputs import is_sample
from churn.storage.sources import Provenance, SourceFile
from churn.variants import Variant
from churn.versions import CHALLENGER, CHAMPION, ModelVersion
from churn.weeks import default_as_of, monday_of
from churn.workflows.engines import for_each_on
from churn.workflows.fleet import Attempts
from churn.workflows.ingest import Ingestion
from churn.workflows.ray_engine import Workers

if TYPE_CHECKING:
    from churn.inference.engine import Engine, TableCache
    from churn.registry.records import OpenModel
    from churn.registry.registry import Registry

logger = logging.getLogger(__name__)

_Out = TypeVar("_Out")
_Aliases = Mapping[Variant, Mapping[str, int]]
_Versions = Mapping[tuple[Variant, int], ModelVersion]
ScoredFrom = Literal["extract", "history", "corrected extract"]

_ATTEMPTS = 8
_RETRY_FOR_S = 90


@dataclass(frozen=True)
class FleetRequest:
    """The request to score many variants."""

    week: date  # the Monday of the scored week
    as_of: date  # facts that became known after the end of this day are not used
    dagster_run_id: str | None = None
    # `extract`, the current one; `history`, what was known at the as-of day; or `corrected extract`, the current one
    # for a day that is past.
    scored_from: ScoredFrom = "extract"
    make_current: bool = True  # whether the batches replace the week's current ones
    is_forced: bool = False  # whether they do so even if a newer extract or model has come meanwhile

    @classmethod
    def as_known(
        cls,
        week: date,
        *,
        today: date,
        as_of: date | None = None,
        corrected: bool = False,
        force: bool = False,
        dagster_run_id: str | None = None,
    ) -> "FleetRequest":
        """Return the request to score a week as it was known then: a day that is past from the history.

        The as-of day is by default :func:`churn.weeks.default_as_of`. ``corrected`` scores a past day from today's
        extract instead; ``force`` allows an as-of day outside the week, whose batch is stored and does not become
        current. Raises ``UsageError`` if the day is in the future or, without ``force``, outside the week.
        """
        day = as_of or default_as_of(week, today)
        if day > today:
            raise UsageError(f"as-of day {day} is in the future (today is {today}); give a day up to today")
        is_of_week = monday_of(day) == week
        if not is_of_week and not force:
            days = f"give a day from {week} to {week + timedelta(days=6)}"
            remedy = f"{days}, or --force to store a batch that does not become current"
            raise UsageError(f"as-of day {day} is outside the week of {week}; {remedy}")
        past: ScoredFrom = "corrected extract" if corrected else "history"
        return cls(week, day, dagster_run_id, past if day < today else "extract", is_of_week, force)

    def of(self, variant: Variant) -> "ScoringRequest":
        """Return the request to score one of them."""
        return ScoringRequest(**vars(self), variant=variant)


@dataclass(frozen=True, kw_only=True)
class ScoringRequest(FleetRequest):
    """The request to score one variant."""

    variant: Variant
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC), compare=False)


@dataclass(frozen=True)
class _Scoring:
    """The scoring of one batch; ``counts`` and ``summary`` grow while PostgreSQL pulls the rows."""

    request: ScoringRequest
    model: ModelVersion
    role: str
    provenance: Provenance
    code_version: str
    counts: RowCounts
    engine: "Engine"
    summary: ScoreSummary
    is_stand_in: bool

    @property
    def _is_own_extract(self) -> bool:
        """Whether the rows are raw activity of the variant, from the place where they belong."""
        is_activity = self.counts.first_month is not None and self.request.scored_from != "history"
        return is_activity and self.provenance.variant == self.request.variant and not self.is_stand_in

    def build_record(self) -> BatchRecord:
        request, model, provenance, counts = self.request, self.model, self.provenance, self.counts
        explanation: dict[str, Any] = {}
        if (bias := self.engine.bias) is not None:
            encoding = self.engine.encoding
            explanation = {
                "bias": bias,
                "other_source_columns": [name for name in encoding.source_columns if name not in SOURCE_COLUMNS],
                "levels": {group.source_column: group.levels for group in encoding.one_hots},
                "window_features": {
                    column: {"place": place, "features": names}
                    for place, (column, names) in enumerate(encoding.features_of_windows.items())
                }
                or None,
                "importance": self.summary.importance(encoding.source_columns),
            }
        return BatchRecord(
            variant=request.variant, scored_week=request.week, as_of=request.as_of, started_at=request.started_at,
            dagster_run_id=request.dagster_run_id, scored_from=request.scored_from, role=self.role,
            registered_model=model.registered_model, model_version=model.version, model_sha256=model.sha256,
            mlflow_run_id=model.mlflow_run_id, code_version=self.code_version,
            source=provenance.source, source_uri=provenance.uri, source_version=provenance.version,
            source_sha256=provenance.sha256, source_version_id=provenance.version_id,
            source_modified_at=provenance.modified_at, source_variant=provenance.variant,
            fallback_reason=provenance.fallback_reason, history_status="pending" if self._is_own_extract else None,
            account_ids="input" if counts.has_account_ids else "row_number",
            n_rows_read=counts.n_read, n_rows_quarantined=counts.quarantined.height, n_rows_erased=counts.n_erased,
            n_accounts_withheld=counts.n_withheld, n_rows_scored=counts.n_accounts,
            n_rows_newest_month=counts.n_newest, first_month=counts.first_month, newest_month=counts.newest_month,
            horizon_months=counts.horizon_months, n_short_windows=counts.n_short_windows,
            unknown_levels=counts.unknown_levels, scored_by="xgboost" if self.engine.fallback_reason else "tables",
            **explanation, **self.summary.record_fields(),
        )  # fmt: skip


@dataclass(frozen=True)
class ScoringOutcome(_Scoring):
    """A variant's published week; ``why_not_current`` is why the batch did not replace the current one.

    The challenger's version is ``None`` if there is none, and its batch's record also if it failed.
    """

    record: BatchRecord
    batch_id: int
    feature_names: tuple[str, ...]
    challenger_version: int | None = None
    challenger_record: BatchRecord | None = None
    why_not_current: str | None = None


Report = Callable[[ScoringOutcome, "Scorer"], _Out]
"""Builds the result of a published variant where it was scored: an outcome contains rows, so it is not sent."""


@dataclass(frozen=True)
class Scorer:
    """The services that scoring needs, and its limits."""

    ingestion: Ingestion
    registry: "Registry"
    store: PredictionStore
    code_version: str
    max_quarantine_share: float
    max_unknown_level_share: float = MAX_UNKNOWN_LEVEL_SHARE
    with_reasons: bool = True  # whether each row's contributions are stored
    # The horizon by which accounts are at risk; only these are summarized and compared with the model's reference
    horizon_months: int = HORIZON_MONTHS
    # The registry's aliases as listed once for a fleet; `None` queries them variant by variant
    aliases: _Aliases | None = None
    versions: _Versions = field(default_factory=dict)  # the champions and challengers looked up with them
    tables: "TableCache | None" = None  # keeps the tables compiled from models; `None` compiles them for each batch
    # Opens while a service is down, so that a fleet waits for it a few times and not once per variant
    circuit: CircuitBreaker = field(default_factory=CircuitBreaker, repr=False, compare=False)

    def score_variant(self, request: ScoringRequest) -> ScoringOutcome:
        """Score a variant's week and publish the batch; if it raises ``ChurnError``, nothing is published.

        Transient errors were retried first, unless the circuit breaker is open.
        """
        retry = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransientError),
            stop=tenacity.stop_after_attempt(_ATTEMPTS) | tenacity.stop_after_delay(_RETRY_FOR_S),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=15),
            before_sleep=tenacity.before_sleep_log(logger, logging.WARNING),
            reraise=True,
        )
        # A folder that is being written is of its variant alone, and no reason to skip others.
        return self.circuit.call(
            lambda: retry(self._score, request),
            errors.SourceUnavailableError, errors.RegistryUnavailableError, errors.DatabaseUnavailableError,
        )  # fmt: skip

    def record_failure(self, request: FleetRequest, key: str, started_at: datetime, error: BaseException) -> None:
        """Record an attempt that published nothing; if that fails, log a warning.

        A name that no registered variant has is a mistake of whoever typed it, and no failure of a variant.
        """
        if isinstance(error, UnregisteredError):
            return
        try:
            self.store.record_failure(key, request.week, request.dagster_run_id, started_at, error)
        except ChurnError as unrecorded:
            logger.warning("%s: its failure could not be recorded: %s", key, unrecorded)

    def _score(self, request: ScoringRequest) -> ScoringOutcome:
        request = replace(request, started_at=datetime.now(UTC))
        variant = request.variant
        aliases = self.aliases if self.aliases is not None else {variant: self.registry.aliases_of(variant)}
        seconds: Seconds = []
        with tempfile.TemporaryDirectory(prefix="churn-score-") as scratch:
            with timed("read", seconds):
                model = self.registry.open(variant, CHAMPION, aliases, self.versions)
                raw = self._fetch(request, Path(scratch))
            batch, scoring = self._begin(request, model, raw, CHAMPION, seconds)
            challenge = self._challenge(request, raw, aliases) if request.make_current else None
            reasons: list[str] = []

            def outdated(record: BatchRecord, current_source: str) -> str | None:
                found = [] if request.is_forced else list(self._outdated(request, record, current_source))
                for why in found:
                    logger.warning("%s: its %s's batch is stored, not made current: %s", variant, record.role, why)
                reasons.extend(found if record.role == CHAMPION else [])
                return found[0] if found else None

            published = self.store.publish(
                variant, request.week, batch, challenge, make_current=request.make_current, outdated=outdated
            )
        batch_id, record = published[0]
        return ScoringOutcome(
            **vars(scoring), record=record, batch_id=batch_id, feature_names=model.bundle.feature_names,
            challenger_version=challenge.version if challenge else None,
            challenger_record=published[1][1] if len(published) > 1 else None,
            why_not_current="; ".join(reasons) or None,
        )  # fmt: skip

    def _outdated(self, request: ScoringRequest, record: BatchRecord, current_source: str) -> Iterator[str]:
        """Yield why a batch must not replace another: a newer model, newer input, or S3.

        What a slow run read may have been replaced, scored and published by a faster one since.
        """
        version = self.registry.aliases_of(request.variant).get(record.role)
        if version != record.model_version:
            yield f"the {record.role} is version {version} now, not {record.model_version}"
        if request.scored_from == "history":
            if self.ingestion.history.version(request.variant) != record.source_version:
                with tempfile.TemporaryDirectory() as folder:
                    known = self.ingestion.fetch_known(request.variant, request.as_of, Path(folder)).provenance
                if known.sha256 != record.source_sha256:
                    yield f"the history has other facts that were known at {request.as_of} than it was made from"
            return
        if record.source != current_source == "s3":
            yield f"it was made from a local copy ({record.fallback_reason}), and the week's batch from S3"
        if record.fallback_reason or record.source_variant != request.variant:
            return
        input_version = self.ingestion.sources.input_version(request.variant)
        if input_version != f"{record.source_uri}@{record.source_version}":
            yield f"the input is {input_version} now, not {record.source_uri}@{record.source_version}"

    def _fetch(self, request: ScoringRequest, into: Path) -> SourceFile:
        if request.scored_from == "history":
            return self.ingestion.fetch_known(request.variant, request.as_of, into)
        raw = self.ingestion.sources.fetch_input(request.variant, into)
        if is_sample(uri := raw.provenance.uri) and not request.is_forced:
            sources, history, variant = self.ingestion.sources, self.ingestion.history, request.variant
            had_activity = self.store.had_activity(variant, sources.simulated)
            # The history, where S3 answers, lasts longer than batches.
            if had_activity or (raw.provenance.source == sources.primary.source and history.version(variant)):
                problem = f"{variant} had activity before, and only the sample {uri} is left"
                remedy = "wait for whoever replaces the activity, upload it, or use --force to score the sample"
                raise InputError(f"{problem}; {remedy}")
        return raw

    def _challenge(self, request: ScoringRequest, raw: SourceFile, aliases: _Aliases) -> Challenge | None:
        """Prepare the challenger's batch, if there is a challenger; it begins after the champion's."""
        variant, version = request.variant, aliases[request.variant].get(CHALLENGER)
        if version is None:
            return None

        def begin() -> BatchInProgress:
            model = self.registry.open(variant, CHALLENGER, aliases, self.versions)
            return self._begin(request, model, raw, CHALLENGER, [])[0]

        # The salt decides which accounts a challenger serves: always the same ones while it is challenger.
        return Challenge(begin, version, self.store.ab_share(variant, version), salt=f"{variant.key}:{version}")

    def _begin(
        self, request: ScoringRequest, model: "OpenModel", raw: SourceFile, role: str, seconds: Seconds
    ) -> tuple[BatchInProgress, "_Scoring"]:
        """Read and check the rows, compile the model for them, and begin a batch that COPY can pull."""
        from churn.inference.engine import build_engine  # imports XGBoost and Numba

        erased = self.store.erased(request.variant, raw.provenance.variant)
        with timed("features", seconds):
            rows = prepare(
                raw.path, model.bundle.feature_names, request.as_of, self.max_quarantine_share, raw.provenance.uri,
                horizon_months=self.horizon_months, erased=erased, declared=model.columns,
            )  # fmt: skip
        counts = rows.counts  # not the rows, whose memory is freed as they are consumed
        if counts.own_columns:
            message = "%s: the extract's own %s is used, not computed from its other columns"
            logger.warning(message, request.variant, " and ".join(counts.own_columns))
        chunks = each_timed("features", seconds, rows.chunks())
        first = next(chunks)
        encoding, with_reasons = rows.encoding, self.with_reasons
        with timed("score", seconds):
            engine = build_engine(
                model.bundle, encoding, first[1], n_rows=counts.n_read, with_reasons=with_reasons, cache=self.tables
            )
        reference = None if model.reference is None else regrouped(model.reference, encoding)
        summary = ScoreSummary(as_of=request.as_of, reference=reference, is_calibrated=model.version.is_calibrated)
        is_stand_in = raw.provenance.source != self.ingestion.sources.primary.source
        scoring = _Scoring(
            request, model.version, role, raw.provenance, self.code_version, counts, engine, summary, is_stand_in
        )
        unknown = UnknownLevels(encoding, reference)

        def finish() -> tuple[BatchRecord, pl.DataFrame]:
            unknown.require(self.max_unknown_level_share, counts.unknown_levels)
            return scoring.build_record(), counts.quarantined

        rows_scored = score_rows(unknown.counted(chain([first], chunks)), engine, model.version, summary, seconds)
        batch = BatchInProgress(
            rows_scored, finish, account_keys=counts.account_keys, n_erasures=erased.n_erasures, seconds=seconds,
            source_columns=encoding.source_columns if with_reasons else (),
            has_last_active_month=first[1].last_active_months is not None,
            n_shown=len(encoding.features_of_windows) if with_reasons else 0,
            reference=replace(reference, parts={}).to_json() if reference else None,
            words=describe_features(encoding, json.dumps(model.columns.words)) if with_reasons else None,
        )  # fmt: skip
        return batch, scoring


def score_fleet(
    scorer: Scorer,
    keys: Sequence[str],
    request: FleetRequest,
    report: Report[_Out],
    workers: Workers[Scorer] | None = None,
) -> Attempts[_Out]:
    """Score many variants, several at once; one that fails stops no other, and its attempt is recorded.

    Yields each key with the result of ``report`` or the error: as they complete from workers, in the order of ``keys``
    in threads of this process, the default. ``report`` is called with each outcome after it was published, where it was
    scored: an error of it is the variant's result and is not recorded as a failed attempt. For workers, ``report``
    and its result are pickled: neither may contain a scorer, a deployment or an outcome. Raises ``ChurnError`` if the
    cluster cannot be reached, has no node, or has one whose settings differ from this process's.
    """
    if not keys:
        return
    # A fleet's aliases and versions are listed once; those of a single variant are queried.
    aliases = scorer.registry.aliases() if len(keys) > 1 else None
    if aliases is not None:
        requested = set(keys)
        aliases = {variant: versions for variant, versions in aliases.items() if variant.key in requested}
    versions = scorer.registry.look_up_versions(aliases) if aliases is not None else {}
    work = partial(_score_and_report, aliases=aliases, versions=versions, request=request, report=report)
    yield from for_each_on(workers, scorer, work, keys, record_lost=partial(scorer.record_failure, request))


def _score_and_report(
    scorer: Scorer, variant: Variant, request: FleetRequest, report: Report[_Out], **listed: Any
) -> _Out:
    scorer, of_variant = replace(scorer, **listed), request.of(variant)
    try:
        outcome = scorer.score_variant(of_variant)
    except (Exception, pl.exceptions.PanicException) as error:
        scorer.record_failure(of_variant, variant.key, of_variant.started_at, error)
        raise
    return report(outcome, scorer)


def score_rows(
    chunks: Iterable[Chunk], engine: "Engine", model: ModelVersion, summary: ScoreSummary, seconds: Seconds
) -> Iterator[ScoredRows]:
    """Score every account, with bounded read-ahead, and count the scores into ``summary``, time into ``seconds``.

    Raises ``ModelFileError`` if a score is not a probability, or its reasons do not add up to it.
    """
    for rows, at_risk, profile in in_threads(partial(_score_chunk, engine, model, summary.reference, seconds), chunks):
        summary.add(rows.account_ids, rows.probabilities, rows.contributions, at_risk, profile)
        yield rows


def _score_chunk(
    engine: "Engine", model: ModelVersion, reference: Profile | None, seconds: Seconds, chunk: Chunk
) -> tuple[ScoredRows, npt.NDArray[np.bool_] | None, Profile | None]:
    from churn.inference.engine import require_sums
    from churn.inference.explanations import sum_by_source_column

    account_ids, packed = chunk
    with timed("score", seconds):  # compiled tables give the contributions in the same pass
        probabilities, contributions = engine.score(packed)
    wrong = np.flatnonzero(~((probabilities >= 0) & (probabilities <= 1)))
    if wrong.size:
        problem = f"{wrong.size} of {probabilities.size} rows no probability (first: {probabilities[wrong[0]]})"
        raise ModelFileError(f"{model.uri} gave {problem}; nothing was published: log the model again")
    scored = ScoredRows(account_ids, probabilities, last_active_months=packed.last_active_months)
    if contributions is not None and engine.bias is not None:
        with timed("explain", seconds):
            require_sums(probabilities, contributions, engine.bias, model.uri)
            sums, values, shown = sum_by_source_column(contributions, packed.values, engine.encoding)
        scored = replace(scored, contributions=sums, values=values, shown=shown)
    is_at_risk = packed.is_at_risk
    if reference is None:
        return scored, is_at_risk, None
    if is_at_risk is not None:
        packed, probabilities = packed.take(is_at_risk), probabilities[is_at_risk]
    return scored, is_at_risk, reference.count(packed, probabilities)
