"""The tables of evaluated batches: the realized performance of published scores, overall and by segment.

:mod:`churn.workflows.evaluate` compares the scores with the labels; this module reads the scores and stores the result.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime
from io import BytesIO
from typing import Any

import numpy as np
import polars as pl
import sqlalchemy as sa

from churn.data.arrays import Doubles, Floats, Longs
from churn.data.labels import Horizon
from churn.database.connection import Tables, errors_translated, read_queries
from churn.database.copy_format import decode_single_fields
from churn.decisions.effects import inverse_weights
from churn.evaluation.segments import EvaluatedSegment
from churn.variants import Variant
from churn.weeks import month_start

_ID = struct.Struct(">q")
_ROW = np.dtype([("id", ">i8"), ("score", ">f4")])
_OF_BATCH = "b.batch_id, b.variant, b.scored_week, b.as_of, b.model_version, b.role, b.mlflow_run_id"
_MEASURES = (
    "roc_auc", "roc_auc_low", "roc_auc_high", "average_precision", "log_loss", "log_loss_excess", "log_loss_excess_low",
    "log_loss_excess_high", "brier_score", "calibration_error", "lift_at_10", "mean_score",
)  # fmt: skip
_SEGMENT = ", ".join(("batch_id", *EvaluatedSegment.__dataclass_fields__, "roc_auc_low", "roc_auc_high"))
_SQL = read_queries("evaluations")
_ABOVE_CUTS = read_queries("effects")["above_cuts"]
_MEMBER = {"account_id": pl.Int64, "arm": pl.String, "holdout_share": pl.Float64, "control_share": pl.Float64}
_MOST_AT_ONCE = 5  # a month has no more weeks, and a variant may have millions of accounts
_MOST_CHARACTERS = 200  # a level is part of a key, and an input file may contain levels of any length

Reliability = Mapping[str, Sequence[float]]
Scored = tuple[Longs, Floats]
"""Account ids and their churn probabilities, shape (n,) both."""


@dataclass(frozen=True)
class PublishedBatch:
    """A current batch of a variant's week; ``mlflow_run_id`` is the run of its model version."""

    batch_id: int
    variant: Variant
    scored_week: date
    as_of: date
    model_version: int
    role: str
    mlflow_run_id: str


@dataclass(frozen=True)
class EvaluatedBatch:
    """A batch and its realized performance.

    Batches that are read back have no ``segments``, and ``reliability`` only to be logged.
    """

    batch: PublishedBatch
    labels_as_of: date
    horizon_months: int
    n_accounts: int
    n_at_risk: int  # accounts at risk at the as-of date; only these are evaluated
    n_matured: int
    n_missing: int
    n_churned: int
    status: str  # `insufficient` if too few labels matured; `measures` is empty then
    auc_limit: float | None  # minimum ROC AUC of its model version; `None` if unknown
    measures: dict[str, float]  # values by name, as in `churn.evaluation.metrics.Evaluation.metrics`
    reliability: Reliability | None = None  # `n`, `mean_score`, `churned_share` of bins of about equal size, by score
    segments: Sequence[EvaluatedSegment] = ()
    evidence_after: date | None = None  # the last as-of day that is no evidence about its model version
    replaces_because: str | None = None  # why it was evaluated again; `None` if it was not

    @property
    def is_below_limit(self) -> bool:
        """Whether the whole confidence interval of the ROC AUC is below the limit."""
        high = self.measures.get("roc_auc_high")
        return self.auc_limit is not None and high is not None and high < self.auc_limit


_COUNTS = [one for one in EvaluatedBatch.__annotations__ if one not in ("batch", "measures", "reliability", "segments")]


@dataclass(frozen=True)
class Pair:
    """The champion's and the challenger's batch of one week."""

    champion: PublishedBatch
    challenger: PublishedBatch


class Evaluations(Tables):
    """The tables ``evaluated_batches`` and ``evaluated_segments``, and the published scores, as the writer role."""

    def unevaluated(self, variants: Sequence[Variant], until: date = date.max) -> list[PublishedBatch]:
        """Return the current batches with account ids, as of ``until`` or earlier, not evaluated yet; oldest first."""
        rows = self._rows(_SQL["unevaluated"], variants=[variant.key for variant in variants], until=until)
        return list(map(_batch, rows))

    def pairs(self, variant: Variant, champion_version: int, challenger_version: int) -> list[Pair]:
        """Return the batches of the weeks that both versions scored in these roles, oldest first."""
        versions = {"champion": champion_version, "challenger": challenger_version}
        by_week: dict[date, dict[str, PublishedBatch]] = {}
        for batch in map(_batch, self._rows(_SQL["pairs"], variant=variant.key, **versions)):
            by_week.setdefault(batch.scored_week, {})[batch.role] = batch
        return [Pair(**roles) for roles in by_week.values() if len(roles) == 2]

    def newest_in_history(
        self, variant: Variant, version: int, before: date
    ) -> tuple[PublishedBatch, datetime, date] | None:
        """Return a champion version's newest batch as of an earlier day, if the history has the extract scored.

        With it, when its extract had arrived, UTC, and the extract's first month.
        """
        rows = self._rows(_SQL["newest_in_history"], variant=variant.key, version=version, before=before)
        return next(((_batch(row), row.source_modified_at, row.first_month) for row in rows), None)

    def scores(self, batches: Sequence[PublishedBatch]) -> Iterator[Scored]:
        """Yield each batch's account ids, ascending, and their churn probabilities; reads five batches at a time."""
        for start in range(0, len(batches), _MOST_AT_ONCE):
            yield from self._scores(batches[start : start + _MOST_AT_ONCE])

    def _scores(self, batches: Sequence[PublishedBatch]) -> list[Scored]:
        # A batch in one field: psycopg2 passes COPY's rows one by one, which takes longer than evaluating them.
        query = " UNION ALL ".join(
            f"SELECT int8send({one.batch_id:d}) || "  # noqa: S608 our own numbers
            "coalesce(string_agg(int8send(account_id) || float4send(churn_probability), ''), '') "
            f"FROM churn_predictions WHERE scored_week = '{one.scored_week}' AND batch_id = {one.batch_id:d}"
            for one in batches
        )
        buffer = BytesIO()
        with (
            errors_translated(self._url),
            self._engine.connect() as opened,
            closing(opened.connection.cursor()) as cursor,
        ):
            cursor.copy_expert(f"COPY ({query}) TO STDOUT WITH (FORMAT binary)", buffer)
        by_id = dict(map(_decode_scores, decode_single_fields(buffer.getbuffer())))
        return [by_id[one.batch_id] for one in batches]

    def weights(self, variant: Variant, as_of: date, account_ids: Longs, horizon: Horizon) -> Doubles | None:
        """Return the accounts' weights, as of ``churn.decisions.effects.inverse_weights``, for labels of an as-of day.

        Campaigns count that ran within a horizon before the as-of day or until the labels' last month.
        """
        since, until = (month_start(as_of, months) for months in (-horizon.months, horizon.months + 1))
        rows = self._rows(_ABOVE_CUTS, company=variant.company or "", since=since, until=until)
        return inverse_weights(account_ids, pl.DataFrame(rows, _MEMBER, orient="row"))

    def record(self, evaluated: Sequence[EvaluatedBatch], replaced: Sequence[EvaluatedBatch] = ()) -> None:
        """Store evaluated batches, except those that another process has stored meanwhile.

        ``replaced`` are their earlier evaluations, which are moved to the table ``replaced_evaluations``.
        """
        if not evaluated:
            return
        columns = ", ".join(("batch_id", "evaluated_at", *_COUNTS, *_MEASURES, "reliability", "replaces"))
        record = sa.text(_SQL["record"].format(columns=columns, segment=_SEGMENT))
        archive = sa.text("SELECT archive_evaluation(:batch_id, :labels_as_of)")
        segments = [_segment_columns(one, level) for one in evaluated for level in one.segments]
        with self._transaction() as connection:
            archived = {}
            for one in replaced:
                key = {"batch_id": one.batch.batch_id, "labels_as_of": one.labels_as_of}
                archived[one.batch.batch_id] = connection.scalar(archive, key)
            rows = [_columns(one) | {"replaces": archived.get(one.batch.batch_id)} for one in evaluated]
            connection.execute(record, {"evaluated": json.dumps(rows, default=str), "segments": json.dumps(segments)})

    def evaluated_since(self, variant: Variant, since: date) -> list[EvaluatedBatch]:
        """Return a variant's current batches that were evaluated from ``since`` on, by week."""
        where = "b.variant = :variant AND b.is_current AND e.labels_as_of >= :since"
        return self._evaluated(where, variant=variant.key, since=since)

    def date_evidence(self, variant: Variant, version: int, after: date) -> None:
        """Set ``evidence_after`` of all evaluations of a model version."""
        self._execute(_SQL["date_evidence"], variant=variant.key, version=version, after=after)

    def unlogged(self, variants: Sequence[Variant], since: date = date.min) -> list[EvaluatedBatch]:
        """Return the batches evaluated from ``since`` on that were not logged to MLflow yet, by week."""
        where = "b.variant = ANY(:variants) AND e.logged_at IS NULL AND e.labels_as_of >= :since"
        return self._evaluated(where, ", e.reliability", variants=[variant.key for variant in variants], since=since)

    def mark_logged(self, evaluated: Sequence[EvaluatedBatch]) -> None:
        """Mark evaluated batches as logged to MLflow."""
        self._execute(_SQL["mark_logged"], ids=[one.batch.batch_id for one in evaluated])

    def _evaluated(self, where: str, more: str = "", **values: object) -> list[EvaluatedBatch]:
        query = (
            f"SELECT {_OF_BATCH}, {', '.join(f'e.{name}' for name in (*_COUNTS, *_MEASURES))}{more} "  # noqa: S608 ours
            f"FROM evaluated_batches AS e JOIN scoring_batches AS b USING (batch_id) WHERE {where} "
            "ORDER BY b.scored_week, b.batch_id"
        )
        return list(map(_read, self._rows(query, **values)))


def _batch(row: sa.Row[Any]) -> PublishedBatch:
    return PublishedBatch(row.batch_id, Variant.from_key(row.variant), *row[2:7])


def _decode_scores(field: memoryview) -> tuple[int, Scored]:
    (batch_id,) = _ID.unpack_from(field)
    rows = np.frombuffer(field[_ID.size :], dtype=_ROW)
    order = np.argsort(rows["id"], kind="stable")
    return batch_id, (rows["id"][order].astype(np.int64), rows["score"][order].astype(np.float32))


def _columns(evaluated: EvaluatedBatch) -> dict[str, Any]:
    values = {name: getattr(evaluated, name) for name in (*_COUNTS, "reliability")}
    batch = {"batch_id": evaluated.batch.batch_id, "evaluated_at": datetime.now(UTC)}
    return {name: evaluated.measures.get(name) for name in _MEASURES} | values | batch


def _segment_columns(evaluated: EvaluatedBatch, segment: EvaluatedSegment) -> dict[str, Any]:
    auc, level = segment.roc_auc, segment.level.replace("\0", "\ufffd")[:_MOST_CHARACTERS]
    keys = {"batch_id": evaluated.batch.batch_id, "level": level, "roc_auc": auc and auc.value}
    return vars(segment) | keys | {"roc_auc_low": auc and auc.low, "roc_auc_high": auc and auc.high}


def _read(row: sa.Row[Any]) -> EvaluatedBatch:
    measures = {name: getattr(row, name) for name in _MEASURES if getattr(row, name) is not None}
    counts = {name: getattr(row, name) for name in _COUNTS}
    return EvaluatedBatch(_batch(row), measures=measures, reliability=getattr(row, "reliability", None), **counts)
