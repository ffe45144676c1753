"""The weekly job for one variant: read, check, make features, score, publish.

``score_variant`` is the unit of everything larger: idempotent, atomic, retried where a retry can help. It knows no
Dagster; ``orchestration`` tells what came of it.
"""

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

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

from churn.data.activity import CheckedRows, check_activity, check_encoded, is_activity, require_features
from churn.data.features import Encoding, Matrix, count_unknown_levels, encode, features, plan_encoding
from churn.data.formats import read_frame
from churn.data.sources import Provenance, SourceFile, Sources
from churn.errors import InputError, ModelFileError, TransientError
from churn.model.bundle import Bundle
from churn.model.registry import CHAMPION, ModelVersion, Registry
from churn.store.predictions import BatchRecord, PredictionStore, ScoredRows
from churn.variants import Variant
from churn.weeks import default_as_of

logger = logging.getLogger(__name__)

CHUNK_ROWS = 65_536  # small chunks make the booster several times dearer a row; larger ones only cost memory
_ATTEMPTS = 8
_RETRY_FOR_S = 90


@dataclass(frozen=True)
class FeatureRows:
    """One row per account, ready to be encoded for a model.

    Attributes:
        rows: ``account_id`` and what the features come from, one row per account.
        encoding: How to encode; ``None`` for rows that came encoded.
        n_later: Rows of the file not known yet at the as-of date.
        n_withheld: Accounts not scored because their latest row was quarantined; an older row would be stale.
    """

    rows: pl.DataFrame
    encoding: Encoding | None
    feature_names: tuple[str, ...]
    checked: CheckedRows
    n_later: int
    n_withheld: int
    has_account_ids: bool

    def matrices(self) -> Iterator[Matrix]:
        """Encode chunk by chunk, each of shape (≤ CHUNK_ROWS, n_features)."""
        for chunk in self.rows.iter_slices(CHUNK_ROWS):
            if self.encoding is not None:
                yield encode(chunk, self.encoding)
            else:
                yield np.ascontiguousarray(chunk.select(self.feature_names).cast(pl.Float32).to_numpy())

    def unknown_levels(self) -> dict[str, dict[str, int]]:
        return count_unknown_levels(self.rows, self.encoding) if self.encoding else {}


@dataclass(frozen=True)
class Outcome:
    """What came of scoring one variant: everything a person may want to see of it."""

    record: BatchRecord
    batch_id: int
    provenance: Provenance
    model: ModelVersion
    feature_rows: FeatureRows
    predictions: ScoredRows


@dataclass(frozen=True)
class Scorer:
    """The services that scoring needs, and its limits."""

    sources: Sources
    registry: Registry
    store: PredictionStore
    code_version: str
    max_quarantine_share: float

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
        model = self.registry.resolve(variant, CHAMPION)
        bundle = self.registry.load(model)
        raw = self.sources.fetch_input(variant, scratch)
        feature_rows = make_features(raw, bundle.feature_names, as_of)
        feature_rows.checked.require_share(self.max_quarantine_share)
        predictions = predict(bundle, feature_rows, model)
        record = BatchRecord(
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
            source=raw.provenance.source,
            source_uri=raw.provenance.uri,
            source_version=raw.provenance.version,
            source_sha256=raw.provenance.sha256,
            source_modified_at=raw.provenance.modified_at,
            source_variant=raw.provenance.variant,
            fallback_reason=raw.provenance.fallback_reason,
            account_ids="input" if feature_rows.has_account_ids else "row_number",
            n_rows_read=feature_rows.checked.n_read,
            n_rows_quarantined=feature_rows.checked.quarantined.height,
            n_accounts_withheld=feature_rows.n_withheld,
            n_rows_scored=len(predictions.account_ids),
            unknown_levels=feature_rows.unknown_levels(),
            started_at=started_at,
        )
        batch_id = self.store.publish(record, [predictions], feature_rows.checked.quarantined)
        return Outcome(record, batch_id, raw.provenance, model, feature_rows, predictions)


def make_features(raw: SourceFile, feature_names: tuple[str, ...], as_of: date) -> FeatureRows:
    """Read a file of either shape, hold it to the contract, and make one row per account.

    Raises:
        InputError: If the file is not rows, or the model's features cannot be made of them.
    """
    frame = read_frame(raw.path, feature_names)
    if not is_activity(frame.columns):
        require_features(frame.columns, feature_names)
        checked = check_encoded(frame, feature_names)
        return FeatureRows(
            checked.rows.sort("account_id"), None, feature_names, checked, 0, 0, "account_id" in frame.columns
        )
    derived = ["months_active"] if "ftd_date" in frame.columns else []
    encoding = plan_encoding(feature_names, [*frame.columns, *derived])
    checked = check_activity(frame, [name for name, _ in encoding.numbers])
    latest = features(checked.rows, as_of)
    n_later = checked.rows.select((pl.col("activity_month") > as_of).sum()).item()
    withheld = stale_accounts(latest, checked.quarantined, as_of)
    rows = latest.join(withheld, on="account_id", how="anti", maintain_order="left")
    if rows.is_empty() and not checked.rows.is_empty():
        first, last = checked.rows.select(first=pl.min("activity_month"), last=pl.max("activity_month")).row(0)
        raise InputError(
            f"no account of {raw.provenance.uri} was known at {as_of}: its months run from {first} to "
            f"{last}; score a later week or bring an earlier extract"
        )
    return FeatureRows(rows, encoding, feature_names, checked, n_later, withheld.height, has_account_ids=True)


def stale_accounts(latest: pl.DataFrame, quarantined: pl.DataFrame, as_of: date) -> pl.DataFrame:
    """Find the accounts whose newest row was quarantined, so that an older one would stand in for it.

    Returns:
        ``account_id``, one row each.
    """
    known = pl.col("activity_month").is_null() | (pl.col("activity_month") <= as_of)
    broken = quarantined.filter(pl.col("account_id").is_not_null() & known)
    newest = broken.group_by("account_id").agg(
        pl.col("activity_month").max(), undated=pl.col("activity_month").is_null().any()
    )
    held = latest.select("account_id", held_month="activity_month")
    is_newer = pl.col("undated") | pl.col("held_month").is_null() | (pl.col("activity_month") >= pl.col("held_month"))
    return newest.join(held, on="account_id", how="left").filter(is_newer).select("account_id")


def predict(bundle: Bundle, feature_rows: FeatureRows, model: ModelVersion) -> ScoredRows:
    """Score every account.

    Raises:
        ModelFileError: If a score is not a probability.
    """
    chunks = [bundle.predict(matrix) for matrix in feature_rows.matrices()]
    probabilities: npt.NDArray[np.float32] = np.concatenate([np.empty(0, dtype=np.float32), *chunks])
    wrong = np.flatnonzero(~((probabilities >= 0) & (probabilities <= 1)))
    if wrong.size:
        raise ModelFileError(
            f"{model.uri} gave {wrong.size} of {probabilities.size} rows no probability "
            f"(first: {probabilities[wrong[0]]}); nothing was published: log the model again"
        )
    return ScoredRows(feature_rows.rows["account_id"].to_numpy(), probabilities)


def _tell_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    logger.warning("attempt %d failed and will be repeated: %s", state.attempt_number, error)
