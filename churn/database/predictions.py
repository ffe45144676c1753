"""The predictions table: publish a variant's week, read what is published.

A variant's week is one transaction: the champion's batch and, where there is a challenger, its batch too. Readers see
the old ones or the new ones, never both, never half. Publishing again adds batches and moves ``is_current`` to them;
nothing else changes. Earlier batches stay, for audit.

PostgreSQL pulls the rows: while COPY runs, psycopg2 reads blocks from a :class:`BatchInProgress`, whose rows are scored
only then. A batch of any size needs little memory so, and an error while scoring rolls the transaction back.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import psycopg2
import sqlalchemy as sa

from churn.data.erased import Erased
from churn.database.connection import READER, THREADED_POOL_SIZE, WRITER, create_engine, errors_translated
from churn.database.copy_format import CopyLayout, PulledStream, ScoredRows, encode_rows
from churn.database.erasure import read_erased
from churn.errors import ChurnError, DatabaseUnavailableError, StoreError, TransientError
from churn.variants import Variant
from churn.versions import CHALLENGER, CHAMPION

logger = logging.getLogger(__name__)

_LOCK_TIMEOUT, _WEEK_LOCK_TIMEOUT = "45s", "10s"
_ANSWER_WITHIN_S, _INDEX_WITHIN_S = 60.0, 3600.0
_COPY_BYTES = 1 << 20
_ESCAPED_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


@dataclass(frozen=True)
class BatchRecord:
    """What is recorded of a batch beside its rows: what ``scoring_batches`` holds and the database does not fill in."""

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

    def columns(self) -> dict[str, Any]:
        """Return the values by column, as PostgreSQL takes them."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return values | {
            "variant": self.variant.key,
            "geography": self.variant.geography,
            "company": self.variant.company,
            "source_variant": self.source_variant.key,
            "unknown_levels": _without_nul(json.dumps(self.unknown_levels)),
            "other_source_columns": None if self.other_source_columns is None else list(self.other_source_columns),
            "levels": None if self.levels is None else _without_nul(json.dumps(self.levels)),
            "importance": None if self.importance is None else json.dumps(self.importance),
            "drift": None if self.drift is None else json.dumps(self.drift),
        }


class BatchInProgress:
    """A batch that is scored while PostgreSQL pulls its rows.

    The order is enforced: first every row is taken from :meth:`rows`, once, then :meth:`finish` gives the record.

    Attributes:
        source_columns: What the rows' contributions are of, in their order; none without reasons.
        reference: What the batch is compared with, as JSON; ``None`` where its model brought nothing.
        n_erasures: How many erasures there were when its rows were read; it is not published over a newer one.
    """

    def __init__(
        self,
        rows: Iterable[ScoredRows],
        make_record: Callable[[], tuple[BatchRecord, pl.DataFrame]],
        *,
        source_columns: Sequence[str] = (),
        reference: str | None = None,
        n_erasures: int = 0,
    ) -> None:
        """Take what gives the rows, in chunks, and what makes the record when all of them were taken.

        Args:
            make_record: Returns the record, whose ``n_rows_scored`` is what the rows must add up to, and the
                quarantined rows: ``row_number, account_id, rules, row``.
        """
        self.source_columns = tuple(source_columns)
        self.reference = reference
        self.n_erasures = n_erasures
        self._rows = rows
        self._make_record = make_record
        self._account_ids: list[npt.NDArray[np.int64]] = []
        self._is_drained = False

    def rows(self) -> Iterator[ScoredRows]:
        """Yield the rows in chunks, for COPY to encode."""
        for chunk in self._rows:
            self._account_ids.append(chunk.account_ids)
            yield chunk
        self._is_drained = True

    def finish(self, n_stored: int) -> tuple[BatchRecord, pl.DataFrame]:
        """Return the record and the quarantined rows, when all rows were taken and stored.

        Args:
            n_stored: Rows that PostgreSQL took.

        Raises:
            RuntimeError: If rows are left: a record of some of them would count too few.
            StoreError: If no row was scored, rows were lost on the way, or an account was scored twice.
        """
        if not self._is_drained:
            raise RuntimeError(f"the batch was finished after {n_stored} rows, before all of its rows were taken")
        record, quarantined = self._make_record()
        if record.n_rows_scored == 0:
            raise StoreError(f"no rows were scored for {record.variant}; refusing to replace a batch with nothing")
        if n_stored != record.n_rows_scored:
            raise StoreError(
                f"{n_stored} rows of {record.variant} reached PostgreSQL and {record.n_rows_scored} were scored; "
                f"nothing was published: run the variant again"
            )
        # What a primary key would do, which costs several times what writing the rows does.
        ids = pl.Series(np.concatenate(self._account_ids))
        if ids.n_unique() < len(ids):
            twice = ids.filter(ids.is_duplicated()).unique().head(3).to_list()
            raise StoreError(
                f"accounts {twice} of {record.variant} were scored twice in one batch; nothing was published"
            )
        return record, quarantined


@dataclass(frozen=True)
class Challenge:
    """A challenger's batch beside the champion's.

    Attributes:
        make: Called once the champion's batch is written.
        share: Of 10000 accounts, how many are served its score; 0 for none.
        salt: Decides which accounts; the same salt always picks the same ones.
    """

    make: Callable[[], BatchInProgress]
    version: int
    share: int
    salt: str


class PredictionStore:
    """The predictions database, as the writer role."""

    def __init__(self, url: sa.URL, *, answer_within_s: float = _ANSWER_WITHIN_S) -> None:
        self._url = url
        self._engine = create_engine(url, role=WRITER, pool_size=THREADED_POOL_SIZE, answer_within_s=answer_within_s)
        self._opened: set[date] = set()

    def publish(
        self, variant: Variant, week: date, champion: BatchInProgress, challenge: Challenge | None = None
    ) -> list[tuple[int, BatchRecord]]:
        """Write the batches of a variant and week and make them the current ones, in one transaction.

        A challenger that fails takes nothing from the champion: its rows are undone and its attempt recorded as failed.

        Returns:
            The batch id and the record of the champion's batch and, where it went well, of the challenger's.

        Raises:
            StoreError: If rows were lost on the way, or the database refuses them; nothing is written then.
            DatabaseUnavailableError: If the database went away; whether it committed is then unknown, and
                publishing again is safe.
        """
        self._open_week(week)
        with errors_translated(self._url), self._engine.begin() as connection:
            _lock(connection, variant, week)
            published = [_write_batch(connection, week, champion)]
            _make_current(connection, variant, week, published[0][0])
            if challenge is not None:
                published += self._publish_challenger(connection, variant, week, published[0], challenge)
        return published

    def _publish_challenger(
        self,
        connection: sa.Connection,
        variant: Variant,
        week: date,
        champion: tuple[int, BatchRecord],
        challenge: Challenge,
    ) -> list[tuple[int, BatchRecord]]:
        try:
            with connection.begin_nested(), errors_translated(self._url):
                batch_id, record = _write_batch(connection, week, challenge.make())
                values = {"share": challenge.share, "salt": challenge.salt, "batches": [champion[0], batch_id]}
                share_out = (
                    "UPDATE scoring_batches SET ab_share = :share, ab_salt = :salt WHERE batch_id = ANY(:batches)"
                )
                connection.execute(sa.text(share_out), values)
                _mark_current(connection, batch_id)
        except DatabaseUnavailableError:
            raise
        except (Exception, pl.exceptions.PanicException) as error:
            if not isinstance(error, ChurnError):
                logger.exception("%s: its challenger failed", variant)
            logger.warning("%s: its challenger, version %d, was not scored: %s", variant, challenge.version, error)
            _insert_failure(
                connection,
                variant_key=variant.key,
                week=week,
                dagster_run_id=champion[1].dagster_run_id,
                started_at=champion[1].started_at,
                error=error,
                role=CHALLENGER,
            )
            return []
        return [(batch_id, record)]

    def record_failure(
        self, variant_key: str, week: date, dagster_run_id: str | None, started_at: datetime, error: BaseException
    ) -> None:
        """Keep an attempt that published nothing, with its error."""
        with errors_translated(self._url), self._engine.begin() as connection:
            _insert_failure(
                connection,
                variant_key=variant_key,
                week=week,
                dagster_run_id=dagster_run_id,
                started_at=started_at,
                error=error,
                role=CHAMPION,
            )

    def published_by(self, dagster_run_ids: Sequence[str], week: date) -> set[str]:
        """Return the keys of the variants whose current batch for a week is one of these Dagster runs'."""
        query = sa.text(
            "SELECT variant FROM scoring_batches "
            "WHERE dagster_run_id = ANY(:runs) AND scored_week = :week AND is_current"
        )
        with self._read() as connection:
            return set(connection.scalars(query, {"runs": list(dagster_run_ids), "week": week}))

    def ab_share(self, variant: Variant, challenger_version: int) -> int:
        """Return how many of 10000 accounts a challenger serves, by the newest word on it; 0 where there is none."""
        query = sa.text(
            "SELECT challenger_version, ab_share FROM model_events WHERE variant = :variant "
            "ORDER BY occurred_at DESC, event_id DESC LIMIT 1"
        )
        with self._read() as connection:
            found = connection.execute(query, {"variant": variant.key}).one_or_none()
        return int(found.ab_share) if found is not None and found.challenger_version == challenger_version else 0

    def identity(self) -> str:
        """Tells this database from any other, one of the same name on another machine as well; holds no secret."""
        digest = hashlib.sha256(b"identity" + self.erased().salt).hexdigest()
        return f"{self._url.host}:{self._url.port or 5432}/{self._url.database} ({digest[:12]})"

    def count_rows(self, batch_id: int, week: date) -> int:
        """Count a batch's rows as PostgreSQL holds them."""
        query = sa.text("SELECT count(*) FROM churn_predictions WHERE scored_week = :week AND batch_id = :batch")
        with self._read() as connection:
            return int(connection.execute(query, {"week": week, "batch": batch_id}).scalar_one())

    def erased(self, *variants: Variant) -> Erased:
        """Return the accounts that were erased of any of these variants, or of all."""
        with self._read() as connection:
            return read_erased(connection, *variants)

    def index_closed_weeks(self, today: date) -> list[date]:
        """Index by account the weeks that are over, which is cheapest when all their rows are there.

        Returns:
            The weeks indexed now.
        """
        engine = create_engine(self._url, role=WRITER, answer_within_s=_INDEX_WITHIN_S)
        with errors_translated(self._url), engine.begin() as connection:
            return list(connection.scalars(sa.text("SELECT index_closed_weeks(:today)"), {"today": today}))

    def latest_inputs(self) -> dict[str, str]:
        """Return, per variant key, the input that its newest batch was made of, as ``uri@version``."""
        query = sa.text(
            "SELECT DISTINCT ON (variant) variant, source_uri || '@' || source_version "
            "FROM scoring_batches ORDER BY variant, batch_id DESC"
        )
        with self._read() as connection:
            return dict(connection.execute(query).tuples().all())

    def _open_week(self, week: date) -> None:
        if week in self._opened:
            return
        # In a transaction of its own: making a partition locks the table, and must not wait for a batch to be written.
        # Whoever waits for it keeps later readers waiting behind, so it is soon given up and tried again.
        with errors_translated(self._url), self._engine.begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_WEEK_LOCK_TIMEOUT}'")
            connection.execute(sa.text("SELECT open_week(:week)"), {"week": week})
        self._opened.add(week)

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with errors_translated(self._url), self._engine.connect() as connection:
            yield connection


def read_current(url: sa.URL, query: str, **values: object) -> pl.DataFrame:
    """Run any query as the reader role, for notebooks, benchmarks and tests. Product code calls named functions.

    Args:
        query: SQL over ``churn_predictions_current`` and ``scoring_batches`` with ``:name`` parameters.
    """
    with errors_translated(url), create_engine(url, role=READER).connect() as connection:
        result = connection.execute(sa.text(query), values)
        return pl.DataFrame(result.fetchall(), schema=list(result.keys()), orient="row", infer_schema_length=None)


def _lock(connection: sa.Connection, variant: Variant, week: date) -> None:
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
    key = f"{variant.key}|{week.isoformat()}"
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), {"key": key})


def _next_batch_id(connection: sa.Connection) -> int:
    return int(connection.execute(sa.text("SELECT nextval('scoring_batches_batch_id_seq')")).scalar_one())


def _insert_batch(connection: sa.Connection, record: BatchRecord, batch_id: int) -> None:
    values = record.columns() | {"batch_id": batch_id}
    names, slots = ", ".join(values), ", ".join(f":{name}" for name in values)
    statement = sa.text(
        f"INSERT INTO scoring_batches ({names}, published_at, is_current) "  # noqa: S608 our own column names
        f"OVERRIDING SYSTEM VALUE VALUES ({slots}, clock_timestamp(), false)"
    )
    connection.execute(statement, values)


def _keep_reference(connection: sa.Connection, record: BatchRecord, reference: str | None) -> None:
    """Keep what a model's batches are compared with where its profile can be read beside theirs."""
    if reference is None:
        return
    values = {
        "model": record.registered_model,
        "version": record.model_version,
        "profile": _without_nul(reference),
    }
    statement = sa.text(
        "INSERT INTO model_references (registered_model, model_version, profile) "
        "VALUES (:model, :version, :profile) ON CONFLICT DO NOTHING"
    )
    connection.execute(statement, values)


def _require_no_newer_erasure(connection: sa.Connection, n_erasures: int) -> None:
    """Hold erasures off until the batch is committed, and refuse it when there was one since its rows were read."""
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock_shared(hashtextextended('erasure', 0))")
    found = connection.execute(sa.text("SELECT count(*) FROM erased_accounts")).scalar_one()
    if found != n_erasures:
        raise DatabaseUnavailableError("an account was erased after the rows were read; they must be read again")


def _write_batch(connection: sa.Connection, week: date, batch: BatchInProgress) -> tuple[int, BatchRecord]:
    _require_no_newer_erasure(connection, batch.n_erasures)
    batch_id = _next_batch_id(connection)
    n_stored = _copy(connection, CopyLayout(week, batch_id, batch.source_columns), batch.rows())
    record, quarantined = batch.finish(n_stored)
    _insert_batch(connection, record, batch_id)
    _keep_reference(connection, record, batch.reference)
    _insert_quarantined(connection, batch_id, quarantined)
    _insert_attempt(
        connection,
        variant=record.variant.key,
        scored_week=week,
        dagster_run_id=record.dagster_run_id,
        started_at=record.started_at,
        outcome="published",
        batch_id=batch_id,
        role=record.role,
    )
    return batch_id, record


def _insert_failure(
    connection: sa.Connection,
    *,
    variant_key: str,
    week: date,
    dagster_run_id: str | None,
    started_at: datetime,
    error: BaseException,
    role: str,
) -> None:
    _insert_attempt(
        connection,
        variant=variant_key,
        scored_week=week,
        dagster_run_id=dagster_run_id,
        started_at=started_at,
        outcome="failed",
        error_type=type(error).__name__,
        error=str(error).replace("\0", "\\0"),
        is_transient=isinstance(error, TransientError),
        role=role,
    )


def _make_current(connection: sa.Connection, variant: Variant, week: date, batch_id: int) -> None:
    """Put a champion's batch in the place of what was current, a challenger's included: it was of other input."""
    keys = {"variant": variant.key, "week": week}
    connection.execute(
        sa.text(
            "UPDATE scoring_batches SET is_current = false "
            "WHERE variant = :variant AND scored_week = :week AND is_current"
        ),
        keys,
    )
    _mark_current(connection, batch_id)


def _mark_current(connection: sa.Connection, batch_id: int) -> None:
    statement = sa.text("UPDATE scoring_batches SET is_current = true WHERE batch_id = :batch")
    connection.execute(statement, {"batch": batch_id})


def _insert_attempt(connection: sa.Connection, **values: object) -> None:
    names, slots = ", ".join(values), ", ".join(f":{name}" for name in values)
    statement = f"INSERT INTO scoring_attempts ({names}, ended_at) VALUES ({slots}, clock_timestamp())"  # noqa: S608 ours
    connection.execute(sa.text(statement), values)


def _insert_quarantined(connection: sa.Connection, batch_id: int, quarantined: pl.DataFrame) -> None:
    rows = quarantined.select("row_number", "account_id", "rules", "row").to_dicts()
    if rows:
        statement = sa.text(
            "INSERT INTO quarantined_rows (batch_id, row_number, account_id, rules, row) "
            "VALUES (:batch_id, :row_number, :account_id, :rules, :row)"
        )
        connection.execute(statement, [row | {"batch_id": batch_id, "row": _without_nul(row["row"])} for row in rows])


def _without_nul(text: str) -> str:
    """Write NUL characters of a JSON text as U+FFFD: PostgreSQL's ``jsonb`` can hold every other one."""
    return _ESCAPED_NUL.sub(r"\1\\ufffd", text)


def _copy(connection: sa.Connection, layout: CopyLayout, rows: Iterable[ScoredRows]) -> int:
    """Stream the rows into the week's partition, past the routing of the table; returns how many PostgreSQL took."""
    cursor: Any = connection.connection.cursor()
    partition = f"churn_predictions_{layout.week:%Y%m%d}"
    statement = f"COPY {partition} ({', '.join(layout.columns)}) FROM STDIN WITH (FORMAT binary)"
    stream = PulledStream(encode_rows(layout, rows))
    with closing(cursor):
        try:
            cursor.copy_expert(statement, stream, size=_COPY_BYTES)
        except psycopg2.Error as error:
            # psycopg2 puts an error of its own over one from the rows.
            if stream.error is not None:
                raise stream.error from None
            raise sa.exc.DBAPIError.instance(statement, None, error, psycopg2.Error) from error
        return int(cursor.rowcount)
