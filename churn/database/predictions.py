"""The tables of predictions and scoring batches: publishes the batches of a variant's week.

A variant's week is one transaction: the champion's batch and the challenger's, if there is one. Readers see all the old
batches or all the new ones. Publishing again adds batches and moves ``is_current`` to them; nothing else changes, and
the database lets nobody add a row to a published batch. Earlier batches remain for audit.

PostgreSQL pulls the rows: while COPY runs, psycopg2 reads blocks from a :class:`BatchInProgress`, which scores its rows
only then. So a batch of any size needs little memory, and an error while scoring rolls the transaction back.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import psycopg2
import sqlalchemy as sa

from churn.concurrency import Seconds, timed
from churn.data.erased import Erased
from churn.database.connection import READER, WRITER, Tables, create_engine, errors_translated, read_queries
from churn.database.copy_format import CopyLayout, PulledStream, ScoredRows, encode_rows
from churn.database.deadlines import retry_locked
from churn.database.erasure import read_erased
from churn.database.extracts import HistoryStatus
from churn.errors import ChurnError, DatabaseUnavailableError, StoreError, TransientError
from churn.variants import Variant
from churn.versions import CHALLENGER, CHAMPION
from churn.weeks import month_range

logger = logging.getLogger(__name__)

_LOCK_TIMEOUT, _WEEK_LOCK_TIMEOUT = "45s", "10s"
_ANSWER_WITHIN_S, _INDEX_WITHIN_S = 60.0, 3600.0
_COPY_BYTES = 1 << 20
_ESCAPED_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
_BEGIN_BATCH = sa.text("SELECT n_erasures, batch_id FROM begin_batch(:key, :lock_timeout)")
_MAKE_CURRENT = sa.text("SELECT make_current(:batch, :share, :salt)")
# One statement, since a fleet's batches are small. The reference is stored so that queries can compare batches with it.
_SQL = read_queries("predictions")
_JSON_COLUMNS = ("unknown_levels", "levels", "importance", "drift", "window_features", "untrained_missing")


@dataclass(frozen=True)
class BatchRecord:
    """The columns of a row of ``scoring_batches``, except those that the database fills in."""

    variant: Variant
    scored_week: date
    as_of: date
    registered_model: str
    model_version: int
    model_sha256: str
    mlflow_run_id: str
    dagster_run_id: str | None
    code_version: str
    source: str
    source_uri: str
    source_version: str
    source_sha256: str
    source_modified_at: datetime
    source_variant: Variant
    fallback_reason: str | None
    account_ids: str
    n_rows_read: int
    n_rows_quarantined: int
    n_accounts_withheld: int
    n_rows_scored: int
    unknown_levels: Mapping[str, Mapping[str, int]]
    started_at: datetime
    scored_by: str = "xgboost"
    bias: float | None = None
    other_source_columns: Sequence[str] | None = None
    levels: Mapping[str, Sequence[str]] | None = None
    importance: Mapping[str, float] | None = None
    role: str = CHAMPION
    drift: Mapping[str, Mapping[str, float]] | None = None
    mean_probability: float | None = None
    score_counts: Sequence[int] | None = None
    profile_counts: Sequence[int] | None = None
    estimated_auc: float | None = None
    n_rows_erased: int = 0
    horizon_months: int | None = None
    first_month: date | None = None
    newest_month: date | None = None
    n_at_risk: int | None = None
    scored_from: str = "extract"
    source_version_id: str | None = None
    history_status: HistoryStatus | None = None
    window_features: Mapping[str, Any] | None = None
    untrained_missing: Mapping[str, int] | None = None
    n_short_windows: int = 0
    n_rows_newest_month: int | None = None

    @property
    def months(self) -> str | None:
        """The first and the newest month known at the as-of day; ``None`` of encoded rows."""
        if self.first_month is None or self.newest_month is None:
            return None
        return month_range(self.first_month, self.newest_month)

    @classmethod
    def of_columns(cls, values: Mapping[str, Any]) -> "BatchRecord":
        """Build a record from the columns of its row."""
        return cls(**{**values, **{name: Variant.from_key(values[name]) for name in ("variant", "source_variant")}})

    def columns(self) -> dict[str, Any]:
        """Return the values by column, in the types that PostgreSQL accepts."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in _JSON_COLUMNS:
            values[name] = None if values[name] is None else _without_nul(json.dumps(values[name]))
        variants = {**vars(self.variant), "variant": self.variant.key, "source_variant": self.source_variant.key}
        others = self.other_source_columns
        return values | variants | {"other_source_columns": None if others is None else list(others)}


@dataclass
class BatchInProgress:
    """A batch that is scored while PostgreSQL pulls its rows: read all of :meth:`rows` once, then :meth:`finish`."""

    chunks: Iterable[ScoredRows]
    # Returns the record, which has the number of rows scored, and the quarantined rows with the columns `row_number,
    # account_id, rules, row`. Called after the last chunk.
    make_record: Callable[[], tuple[BatchRecord, pl.DataFrame]]
    source_columns: Sequence[str] = ()  # as of CopyLayout, like `n_shown` and the next two
    n_shown: int = 0
    has_last_active_month: bool = False
    account_keys: pl.DataFrame | None = None
    reference: str | None = None  # the profile that the batch is compared with, as JSON; `None` if its model has none
    words: str | None = None  # what its reasons mean, as of churn.data.feature_words.describe_features
    n_erasures: int = 0  # the number of erasures when its rows were read; a later erasure prevents its publication
    seconds: Seconds = field(default_factory=list)  # what its attempt spent, by stage; threads' are added up
    _account_ids: list[npt.NDArray[np.int64]] = field(default_factory=list, init=False)
    _is_drained: bool = field(default=False, init=False)

    def rows(self) -> Iterator[ScoredRows]:
        """Yield the rows in chunks, for COPY to encode."""
        for chunk in self.chunks:
            self._account_ids.append(chunk.account_ids)
            with timed("publish", self.seconds):
                yield chunk
        self._is_drained = True

    def finish(self, n_stored: int) -> tuple[BatchRecord, pl.DataFrame]:
        """Return the record and the quarantined rows, after PostgreSQL stored ``n_stored`` rows.

        Raises ``StoreError`` if no row was scored, rows were lost on the way, or an account was scored twice.
        """
        if not self._is_drained:
            raise RuntimeError(f"the batch was finished after {n_stored} rows, before all of its rows were read")
        record, quarantined = self.make_record()
        if record.n_rows_scored == 0:
            raise StoreError(f"no rows were scored for {record.variant}; refusing to replace a batch with nothing")
        if n_stored != record.n_rows_scored:
            problem = f"{n_stored} rows of {record.variant} reached PostgreSQL and {record.n_rows_scored} were scored"
            raise StoreError(f"{problem}; nothing was published: run the variant again")
        # Checked here, since a primary key costs several times as much as writing the rows.
        ids = pl.Series(np.concatenate(self._account_ids))
        if ids.n_unique() < len(ids):
            some = ids.filter(ids.is_duplicated()).unique().head(3).to_list()
            raise StoreError(f"accounts {some} of {record.variant} were scored twice in a batch; nothing was published")
        return record, quarantined


_Outdated = Callable[[BatchRecord, str], str | None]


@dataclass(frozen=True)
class Challenge:
    """A challenger's batch for the same week, made after the champion's is written.

    ``share`` is the number of accounts per 10,000 that are served its score; the same ``salt`` always assigns the same.
    """

    make: Callable[[], BatchInProgress]
    version: int
    share: int
    salt: str


class PredictionStore(Tables):
    """The predictions and their batches, as the writer role."""

    def __init__(self, url: sa.URL, *, answer_within_s: float = _ANSWER_WITHIN_S) -> None:
        super().__init__(url, answer_within_s=answer_within_s)
        self._opened: set[date] = set()

    def publish(
        self,
        variant: Variant,
        week: date,
        champion: BatchInProgress,
        challenge: Challenge | None = None,
        *,
        make_current: bool = True,
        outdated: _Outdated = lambda _, __: None,
    ) -> list[tuple[int, BatchRecord]]:
        """Write the batches of a variant and week and make them the current ones, in one transaction.

        Without ``make_current`` they are stored beside the current ones, and readers do not see them; so is a batch
        that would replace another if ``outdated``, which gets its record and the other's source, returns why it should
        not. A challenger's always is, since it may have been withdrawn. If the challenger fails, its rows are rolled
        back and its attempt is recorded as failed. Returns batch id and record of the champion's batch and, if it
        succeeded, of the challenger's.

        Raises:
            StoreError: If rows were lost on the way, or the database rejects them; nothing is written then.
            DatabaseUnavailableError: If the connection was lost; whether it committed is then unknown, and publishing
                again is safe.
        """
        self._open_week(week)
        with self._transaction() as connection:
            batch_id, record, replaced = _write_batch(connection, variant, week, champion)
            published = [(batch_id, record)]
            if make_current and replaced is not None and outdated(record, replaced):
                return published
            if make_current:
                _make_current(connection, batch_id)
            if challenge is not None:
                published += self._publish_challenger(connection, record, challenge, outdated)
        return published

    def _publish_challenger(
        self, connection: sa.Connection, champion: BatchRecord, challenge: Challenge, outdated: _Outdated
    ) -> list[tuple[int, BatchRecord]]:
        variant, week = champion.variant, champion.scored_week
        try:
            with connection.begin_nested(), errors_translated(self._url):
                batch_id, record, replaced = _write_batch(connection, variant, week, challenge.make())
                if outdated(record, replaced or record.source):  # a withdrawn challenger serves nobody
                    return []
                _make_current(connection, batch_id, challenge.share, challenge.salt)
        except DatabaseUnavailableError:
            raise
        except (Exception, pl.exceptions.PanicException) as error:
            if not isinstance(error, ChurnError):
                logger.exception("%s: its challenger failed", variant)
            logger.warning("%s: its challenger, version %d, was not scored: %s", variant, challenge.version, error)
            run = {"dagster_run_id": champion.dagster_run_id, "started_at": champion.started_at}
            _insert_failure(connection, error, variant=variant.key, scored_week=week, role=CHALLENGER, **run)
            return []
        return [(batch_id, record)]

    def record_failure(
        self, variant_key: str, week: date, dagster_run_id: str | None, started_at: datetime, error: BaseException
    ) -> None:
        """Record an attempt that published nothing, with its error."""
        with self._transaction() as connection:
            run = {"dagster_run_id": dagster_run_id, "started_at": started_at}
            _insert_failure(connection, error, variant=variant_key, scored_week=week, role=CHAMPION, **run)

    def published_by(self, dagster_run_ids: Sequence[str], week: date, since: datetime | None = None) -> set[str]:
        """Return the keys of the variants with a current batch of a week from these Dagster runs, or since a time."""
        values = {"runs": list(dagster_run_ids), "week": week, "since": since}
        return {key for (key,) in self._rows(_SQL["published_by"], **values)}

    def published_by_hand(self, since: datetime) -> dict[int, tuple[str, date]]:
        """Return variant and week of the current champions' batches that no Dagster run published since, by number."""
        return {batch: (key, week) for batch, key, week in self._rows(_SQL["published_by_hand"], since=since)}

    def ab_share(self, variant: Variant, challenger_version: int) -> int:
        """Return the number of accounts per 10,000 that the newest event assigns to a challenger; 0 if none does."""
        rows = self._rows(_SQL["ab_share"], variant=variant.key)
        return sum(int(share) for version, share in rows if version == challenger_version)

    def identity(self) -> str:
        """Return a text that identifies this database among all servers, without any secret."""
        digest = hashlib.sha256(b"identity" + self.erased().salt).hexdigest()
        return f"{self._url.host}:{self._url.port or 5432}/{self._url.database} ({digest[:12]})"

    def measure(self, batch_id: int, week: date) -> tuple[int, float, float]:
        """Return the number of rows of a batch in the table, and the lowest and the highest score (0 without a row)."""
        ((n_rows, lowest, highest),) = self._rows(_SQL["measure"], week=week, batch=batch_id)
        return n_rows, lowest, highest

    def current(self, variant: Variant, week: date) -> dict[str, tuple[int, BatchRecord]]:
        """Return id and record of the current batches of a variant's week, by role."""
        query = (
            f"SELECT batch_id, {', '.join(BatchRecord.__dataclass_fields__)} FROM scoring_batches "  # noqa: S608 our names
            "WHERE variant = :variant AND scored_week = :week AND is_current"
        )
        rows = [row._asdict() for row in self._rows(query, variant=variant.key, week=week)]
        return {row["role"]: (row.pop("batch_id"), BatchRecord.of_columns(row)) for row in rows}

    def erased(self, *variants: Variant) -> Erased:
        """Return the accounts erased from any of these variants, or from all."""
        with errors_translated(self._url), self._engine.connect() as connection:
            return read_erased(connection, *variants)

    def open_weeks(self, first: date, n: int) -> list[date]:
        """Open the partitions of ``n`` weeks, so that no weekly run has to; returns the weeks. Idempotent."""
        weeks = [first + timedelta(weeks=i) for i in range(n)]
        for week in weeks:
            self._open_week(week)
        return weeks

    @retry_locked
    def index_closed_weeks(self, today: date) -> list[date]:
        """Index the weeks that are over by account, which is cheapest when they are complete; returns those indexed."""
        engine = create_engine(self._url, role=WRITER, answer_within_s=_INDEX_WITHIN_S)
        with errors_translated(self._url), engine.begin() as connection:
            return list(connection.scalars(sa.text("SELECT index_closed_weeks(:today)"), {"today": today}))

    def latest_inputs(self) -> dict[str, str]:
        """Return the input of each variant's newest batch as ``uri@version``, by variant key."""
        return dict(map(tuple, self._rows(_SQL["latest_inputs"])))

    def versions_named(self) -> set[tuple[str, int]]:
        """Return the versions, each with its variant's key, that stored batches name."""
        return {tuple(row) for row in self._rows("SELECT DISTINCT variant, model_version FROM scoring_batches")}

    def had_activity(self, variant: Variant, simulated: Collection[str]) -> bool:
        """Return whether a batch of a variant was scored from activity of its own, not from these simulated files."""
        ((found,),) = self._rows(_SQL["had_activity"], variant=variant.key, simulated=list(simulated))
        return bool(found)

    def stand_ins(self, week: date) -> dict[str, int]:
        """Return the newest batches of a week that were made from a local copy of the extract, by variant key."""
        return dict(map(tuple, self._rows(_SQL["stand_ins"], week=week)))

    def _open_week(self, week: date) -> None:
        if week in self._opened:
            return
        # In a separate transaction: creating a partition excludes other DDL, which must not wait for a batch to be
        # written. Nor may the batch wait long for other DDL; the caller tries again.
        with self._transaction() as connection:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_WEEK_LOCK_TIMEOUT}'")
            connection.execute(sa.text("SELECT open_week(:week)"), {"week": week})
        if week > datetime.now(UTC).date() - timedelta(weeks=4):  # retention may drop an older one at any time
            self._opened.add(week)


def read_current(url: sa.URL, query: str, **values: object) -> pl.DataFrame:
    """Run any query with ``:name`` parameters as the reader role, for notebooks, benchmarks and tests."""
    with errors_translated(url), create_engine(url, role=READER).connect() as connection:
        result = connection.execute(sa.text(query), values)
        return pl.DataFrame(result.fetchall(), schema=list(result.keys()), orient="row", infer_schema_length=None)


def _begin_batch(connection: sa.Connection, variant: Variant, week: date, n_erasures: int) -> int:
    """Lock the variant's week and block erasures until the transaction ends; returns the batch's number."""
    values = {"key": f"{variant.key}|{week.isoformat()}", "lock_timeout": _LOCK_TIMEOUT}
    found = connection.execute(_BEGIN_BATCH, values).one()
    if found.n_erasures != n_erasures:
        raise DatabaseUnavailableError("an account was erased after the rows were read; they must be read again")
    return int(found.batch_id)


def _write_batch(
    connection: sa.Connection, variant: Variant, week: date, batch: BatchInProgress
) -> tuple[int, BatchRecord, str | None]:
    """Write a batch that is not current; returns its number and record, and the source of the current one, if any."""
    with timed("publish", batch.seconds):
        batch_id = _begin_batch(connection, variant, week, batch.n_erasures)
    months, keys = batch.has_last_active_month, batch.account_keys
    layout = CopyLayout(week, tuple(batch.source_columns), batch.n_shown, months, keys)
    record, quarantined = batch.finish(_copy(connection, layout, batch.rows()))
    return batch_id, record, _record_batch(connection, batch_id, record, batch, quarantined)


def _record_batch(
    connection: sa.Connection, batch_id: int, record: BatchRecord, batch: BatchInProgress, quarantined: pl.DataFrame
) -> str | None:
    """Record a batch with all that belongs to it; returns the source of the variant's current batch, if there is one.

    Bound as text, for the database to parse: the reference, the words and the rows are JSON.
    """
    values = record.columns() | {"words": batch.words and hashlib.sha256(batch.words.encode()).hexdigest()[:32]}
    names, slots = ", ".join(values), ", ".join(f":{name}" for name in values)
    rows = [row | {"row": _without_nul(row["row"])} for row in quarantined.drop("activity_month").to_dicts()]
    values |= {"batch_id": batch_id, "texts": batch.words, "quarantined": json.dumps(rows)}
    stages = {stage: round(sum(s for one, s in batch.seconds if one == stage), 4) for stage in dict(batch.seconds)}
    values["seconds"] = json.dumps(stages)
    values["reference"] = batch.reference and _without_nul(batch.reference)
    source: str | None = connection.scalar(sa.text(_SQL["record_batch"].format(names=names, values=slots)), values)
    return source


def _insert_failure(connection: sa.Connection, error: BaseException, **attempt: object) -> None:
    message = str(error).replace("\0", "\\0")
    failure = {"error_type": type(error).__name__, "error": message, "is_transient": isinstance(error, TransientError)}
    connection.execute(sa.text(_SQL["record_failure"]), attempt | failure)


def _make_current(connection: sa.Connection, batch_id: int, share: int = 0, salt: str = "") -> None:
    """Replace all current batches by a champion's, a challenger's included, since they scored other input.

    A challenger's becomes current beside the champion's, and both get its share and salt.
    """
    connection.execute(_MAKE_CURRENT, {"batch": batch_id, "share": share, "salt": salt})


def _without_nul(text: str) -> str:
    """Replace NUL characters of a JSON text by U+FFFD: PostgreSQL's ``jsonb`` rejects them."""
    return _ESCAPED_NUL.sub(r"\1\\ufffd", text)


def _copy(connection: sa.Connection, layout: CopyLayout, rows: Iterable[ScoredRows]) -> int:
    """Stream the rows into the week's partition, without the table's row routing; returns the number of rows stored.

    They belong to the batch whose number this session has drawn last.
    """
    partition = f"churn_predictions_{layout.week:%Y%m%d}"
    statement = f"COPY {partition} ({', '.join(layout.columns)}) FROM STDIN WITH (FORMAT binary)"
    stream = PulledStream(encode_rows(layout, rows))
    with closing(connection.connection.cursor()) as cursor:
        try:
            cursor.copy_expert(statement, stream, size=_COPY_BYTES)
        except psycopg2.Error as error:
            if stream.error is not None:  # psycopg2 replaces an error from the rows by an error about the stream
                raise stream.error from None
            raise sa.exc.DBAPIError.instance(statement, None, error, psycopg2.Error) from error
        return int(cursor.rowcount)
