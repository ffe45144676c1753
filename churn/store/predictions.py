"""The predictions table: publish a batch, look at what is published.

A batch is one transaction: readers see the old one or the new one, never both, never half. Running it again adds a
batch and moves ``is_current`` to it; nothing else changes. Earlier batches stay, for audit.
"""

import io
import json
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

from churn.errors import StoreError, TransientError
from churn.store.connection import READER, WRITER, create_engine, errors_translated
from churn.variants import Variant

_LOCK_TIMEOUT = "120s"
_CONNECTIONS = 4
_COPY_BYTES = 1 << 20
_ESCAPED_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")

_ROW = np.dtype(
    [
        ("n_fields", ">i2"),
        ("week_size", ">i4"), ("week", ">i4"),
        ("batch_size", ">i4"), ("batch", ">i8"),
        ("account_size", ">i4"), ("account", ">i8"),
        ("probability_size", ">i4"), ("probability", ">f4"),
    ]
)  # fmt: skip
"""One row of PostgreSQL's binary COPY format: the number of fields, then the size and the bytes of each."""

_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_TRAILER = b"\xff\xff"
_POSTGRES_EPOCH = date(2000, 1, 1)
_COPY = "COPY {partition} (scored_week, batch_id, account_id, churn_probability) FROM STDIN WITH (FORMAT binary)"


@dataclass(frozen=True)
class ScoredRows:
    """Some of a batch's rows.

    Attributes:
        account_ids: Shape (n,), unique over the whole batch.
        probabilities: Shape (n,), in [0, 1].
    """

    account_ids: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]


@dataclass(frozen=True)
class BatchRecord:
    """What is recorded of a batch beside its rows: what ``scoring_batches`` holds and the database does not fill in."""

    variant: Variant
    scored_week: date
    as_of: date
    registered_model: str
    model_version: int
    model_alias: str
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

    def columns(self) -> dict[str, Any]:
        """Return the values by column, as PostgreSQL takes them."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return values | {
            "variant": self.variant.key,
            "geography": self.variant.geography,
            "company": self.variant.company,
            "source_variant": self.source_variant.key,
            "unknown_levels": _without_nul(json.dumps(self.unknown_levels)),
        }


class PredictionStore:
    """The predictions database, as the writer role."""

    def __init__(self, url: sa.URL) -> None:
        self._url = url
        self._engine = create_engine(url, role=WRITER, kept=_CONNECTIONS)
        self._opened: set[date] = set()

    def publish(
        self,
        variant: Variant,
        week: date,
        rows: Iterable[ScoredRows],
        describe: Callable[[], tuple[BatchRecord, pl.DataFrame]],
    ) -> tuple[int, BatchRecord]:
        """Write a batch and make it the current one of its variant and week, in one transaction.

        Args:
            rows: In chunks, consumed once.
            describe: Called when all rows were consumed; returns the batch's record, whose ``n_rows_scored`` is what
                ``rows`` must add up to, and the quarantined rows: ``row_number, account_id, rules, row``.

        Returns:
            The batch id and its record.

        Raises:
            StoreError: If rows were lost on the way, or the database refuses them; nothing is written then.
            DatabaseUnavailableError: If the database went away; whether it committed is then unknown, and
                publishing again is safe.
        """
        self._open_week(week)
        with errors_translated(self._url), self._engine.begin() as connection:
            _lock(connection, variant, week)
            batch_id = _next_batch_id(connection)
            account_ids: list[npt.NDArray[np.int64]] = []
            n_written = _copy(connection, week, batch_id, _noting_ids(rows, account_ids))
            record, quarantined = describe()
            _require_whole(record, n_written, account_ids)
            _insert_batch(connection, record, batch_id)
            _insert_quarantined(connection, batch_id, quarantined)
            _make_current(connection, record, batch_id)
            _insert_attempt(
                connection,
                variant=variant.key,
                scored_week=week,
                dagster_run_id=record.dagster_run_id,
                started_at=record.started_at,
                outcome="published",
                batch_id=batch_id,
            )
        return batch_id, record

    def record_failure(
        self, variant_key: str, week: date, dagster_run_id: str | None, started_at: datetime, error: BaseException
    ) -> None:
        """Keep an attempt that published nothing, with its error."""
        with errors_translated(self._url), self._engine.begin() as connection:
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
            )

    def published_by(self, dagster_run_ids: Sequence[str], week: date) -> set[str]:
        """Return the keys of the variants whose current batch for a week is one of these Dagster runs'."""
        query = sa.text(
            "SELECT variant FROM scoring_batches "
            "WHERE dagster_run_id = ANY(:runs) AND scored_week = :week AND is_current"
        )
        with self._read() as connection:
            return set(connection.scalars(query, {"runs": list(dagster_run_ids), "week": week}))

    def count_rows(self, batch_id: int, week: date) -> int:
        """Count a batch's rows as PostgreSQL holds them."""
        query = sa.text("SELECT count(*) FROM churn_predictions WHERE scored_week = :week AND batch_id = :batch")
        with self._read() as connection:
            return int(connection.execute(query, {"week": week, "batch": batch_id}).scalar_one())

    def index_closed_weeks(self, today: date) -> list[date]:
        """Index by account the weeks that are over, which is cheapest when all their rows are there.

        Returns:
            The weeks indexed now.
        """
        with errors_translated(self._url), self._engine.begin() as connection:
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
        with errors_translated(self._url), self._engine.begin() as connection:
            connection.execute(sa.text("SELECT open_week(:week)"), {"week": week})
        self._opened.add(week)

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with errors_translated(self._url), self._engine.connect() as connection:
            yield connection


def read_current(url: sa.URL, query: str, **values: object) -> pl.DataFrame:
    """Run a query as the reader role, for people: ``churn demo`` and tests.

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


def _noting_ids(rows: Iterable[ScoredRows], into: list[npt.NDArray[np.int64]]) -> Iterator[ScoredRows]:
    for chunk in rows:
        into.append(chunk.account_ids)
        yield chunk


def _require_whole(record: BatchRecord, n_written: int, account_ids: list[npt.NDArray[np.int64]]) -> None:
    if record.n_rows_scored == 0:
        raise StoreError(f"no rows were scored for {record.variant}; refusing to replace a batch with nothing")
    if n_written != record.n_rows_scored:
        raise StoreError(
            f"{n_written} rows of {record.variant} reached PostgreSQL and {record.n_rows_scored} were scored; "
            f"nothing was published: run the variant again"
        )
    # What a primary key would do, which costs several times what writing the rows does.
    ids = pl.Series(np.concatenate(account_ids))
    if ids.n_unique() < len(ids):
        twice = ids.filter(ids.is_duplicated()).unique().head(3).to_list()
        raise StoreError(f"accounts {twice} of {record.variant} were scored twice in one batch; nothing was published")


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


def _make_current(connection: sa.Connection, record: BatchRecord, batch_id: int) -> None:
    keys = {"variant": record.variant.key, "week": record.scored_week, "batch": batch_id}
    connection.execute(
        sa.text(
            "UPDATE scoring_batches SET is_current = false "
            "WHERE variant = :variant AND scored_week = :week AND is_current"
        ),
        keys,
    )
    connection.execute(sa.text("UPDATE scoring_batches SET is_current = true WHERE batch_id = :batch"), keys)


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


def _copy(connection: sa.Connection, week: date, batch_id: int, rows: Iterable[ScoredRows]) -> int:
    """Stream the rows into the week's partition, past the routing of the table; returns how many PostgreSQL took."""
    cursor: Any = connection.connection.cursor()
    statement = _COPY.format(partition=f"churn_predictions_{week:%Y%m%d}")
    stream = _CopyStream(copy_bytes(week, batch_id, rows))
    with closing(cursor):
        try:
            cursor.copy_expert(statement, stream, size=_COPY_BYTES)
        except psycopg2.Error as error:
            # psycopg2 puts an error of its own over one from the rows.
            if stream.error is not None:
                raise stream.error from None
            raise sa.exc.DBAPIError.instance(statement, None, error, psycopg2.Error) from error
        return int(cursor.rowcount)


def copy_bytes(week: date, batch_id: int, rows: Iterable[ScoredRows]) -> Iterator[bytes]:
    """Write rows in PostgreSQL's binary COPY format, a block for each chunk."""
    yield _COPY_HEADER
    for chunk in rows:
        block = np.empty(len(chunk.account_ids), dtype=_ROW)
        block["n_fields"] = 4
        block["week_size"], block["week"] = 4, (week - _POSTGRES_EPOCH).days
        block["batch_size"], block["batch"] = 8, batch_id
        block["account_size"], block["account"] = 8, chunk.account_ids
        block["probability_size"], block["probability"] = 4, chunk.probabilities
        yield block.tobytes()
    yield _COPY_TRAILER


class _CopyStream(io.RawIOBase):
    """A readable file over blocks of bytes, which is what psycopg2's COPY reads from."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")
        self.error: Exception | None = None

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while not self._rest:
            try:
                block = next(self._blocks, None)
            except Exception as error:
                self.error = error
                raise
            if block is None:
                return b""
            self._rest = memoryview(block)
        taken, self._rest = self._rest[:size], self._rest[size:]
        return bytes(taken)
