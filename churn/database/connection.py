"""Connections to PostgreSQL: URLs, roles, timeouts, and the translation of its errors.

Every connection acts as one of three group roles, none of which can log in: the owner creates tables, the writer
publishes batches and reads MLflow's tables, the reader reads. ``experiment_tracking/setup.py`` creates the roles.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from typing import Any

import psycopg2
import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from churn.database.deadlines import DeadlineConnection
from churn.errors import (
    AccessDeniedError,
    ChurnError,
    CredentialsError,
    DatabaseUnavailableError,
    LockTimeoutError,
    StoreError,
    UsageError,
)

ANSWER_WITHIN_S = 600.0
THREADED_POOL_SIZE = 4
"""Pool size for objects that several threads share: opening a connection costs the server more than most queries."""

# The server must release the locks of a client that vanished; its default is two hours. Ours may be idle in a
# transaction for longer than analysts, such as while a challenger's rows are read.
_SERVER_LIMITS = (
    "-c tcp_keepalives_idle=20 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3 -c tcp_user_timeout=60000 "
    "-c client_connection_check_interval=10000 -c idle_in_transaction_session_timeout=3600000"
)
# Starting a parallel worker or JIT compilation takes longer than the queries that threads run for one variant.
_SMALL_QUERIES = "-c max_parallel_workers_per_gather=0 -c jit=off"
OWNER, WRITER, READER = "churn_owner", "churn_writer", "churn_reader"
# Detects a vanished peer within a minute instead of two hours.
LIBPQ_LIMITS = {
    "connect_timeout": 5, "keepalives_idle": 20, "keepalives_interval": 10, "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}  # fmt: skip
_LOCK_OWNER = """
SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND datname = current_database()
  AND (CAST(classid AS bigint) << 32 | CAST(objid AS bigint)) = hashtextextended(:key, 0)
"""
_IS_SET = "SELECT current_setting(s) FROM unnest('{role,timezone,client_connection_check_interval}'::text[]) AS s"
_SETUP = "run experiment_tracking/setup.py, which makes and grants what is missing"

# Connection, serialization, resources, shutdown, cancelled or timed out, lock timeout, a standby after a failover.
_READ_ONLY, _LOCK_TIMEOUT = "25006", "55P03"
_TRANSIENT_STATES = ("08", "40", "53", "57P", "57014", "25P03", "25P04", _LOCK_TIMEOUT, _READ_ONLY)
# What the driver, servers and poolers say, without a SQLSTATE, that may answer later.
_UNANSWERED = re.compile(
    r"(?i)connection refused|is the server running|tim(e|ed).?out|translate host|closed|reset by|broken pipe|EOF|"
    r"unreachable|no route|host is down|(receive|send) data|no (more )?connection|not open|crashed|synchroni[sz]ation|"
    r"terminating|starting up|shutting|recovery|accepting|too many|slots|cannot connect|failing|fork|SSL error|memory"
)
_OURS = (psycopg2.ProgrammingError, psycopg2.DataError, psycopg2.IntegrityError, psycopg2.NotSupportedError)
_WRONG_PASSWORD = ("password authentication failed", "no password supplied")
_TRUST = "correct PGSSLMODE and PGSSLROOTCERT, and use the host name in its certificate"
_POOLER = ("startup parameter", "command-line options")
_PAST_POOLER = "PgBouncer and RDS Proxy pass no role and no limits on, so name the host and port of PostgreSQL itself"
_UNTRUSTED = ("server certificate for", "certificate verify failed", "root certificate", "support SSL", "sslmode")
_DENIED, _REFUSED = "42501", "CH001"
SETUP_NEEDS = (
    "set-up needs a login with CREATEDB, CREATEROLE and, once they exist, ADMIN OPTION on the churn roles; in another "
    "login's database, that must run GRANT ALL ON SCHEMA public TO this login WITH GRANT OPTION"
)
_MISSING = ("42P01", "3D000", "42704", "3F000", "42883", "42703")

_SET_BY: dict[tuple[str | None, str | None, int | None], str] = {}  # where a login was read, by user, host and port


def parse_database_url(text: str, name: str) -> sa.URL:
    """Parse a ``postgresql://`` URL from a setting, and add SQLAlchemy's ``+psycopg2`` if it is missing.

    Raises ``UsageError`` if it is none, without repeating the text, which may contain a password.
    """
    try:
        url = sa.make_url(text)
    except (ArgumentError, ValueError):
        raise UsageError(f"{name} is not a URL; postgresql://user:password@host:port/database is needed") from None
    if (kind := url.get_backend_name()) not in ("postgresql", "postgres") or not url.database:
        raise UsageError(f"{name} is a {kind} URL; postgresql://user:password@host:port/database is needed")
    parts = (url.username, url.password, url.host, url.database, *map(str, url.query.items()))
    if "@" in f"{url.host}{url.database}" or not is_sendable("".join(filter(None, parts))):
        problem = "must be percent-encoded (such as @ in the password) or that PostgreSQL does not accept"
        raise UsageError(f"{name} contains a character that {problem}; correct it")
    name_source(url, name)
    return url.set(drivername="postgresql+psycopg2")


def read_queries(name: str) -> dict[str, str]:
    """Read a file of SQL beside this module; returns its queries by the names in the lines ``-- name`` before each."""
    text = (files("churn.database") / f"{name}.sql").read_text(encoding="utf-8")
    _, *parts = map(str.strip, re.split(r"^-- (\w+)$", text, flags=re.MULTILINE))
    return dict(zip(parts[::2], parts[1::2], strict=True))


def is_sendable(text: str) -> bool:
    """Return whether a text has no control character, and UTF-8 can encode it."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text)


def name_source(url: sa.URL, source: str) -> None:
    """Record where a login was read, so that the message about its refused password names what to correct."""
    _SET_BY[url.username, url.host, url.port] = source


def create_engine(
    url: sa.URL, *, role: str | None = None, pool_size: int = 0, answer_within_s: float = ANSWER_WITHIN_S
) -> sa.Engine:
    """Create an engine whose connections act as ``role`` and use UTC.

    Args:
        role: ``None`` is for set-up, whose statements have no time limit.
        pool_size: Connections kept open between uses; each is tested before reuse. 0 disables pooling. More than one
            is meant for threads that run small queries.
        answer_within_s: Time limit for each statement and each block of COPY, seconds. At the limit the connection is
            closed, which also ends the wait for a peer that is connected but silent.
    """
    options = f"-c timezone=UTC {_SERVER_LIMITS}" + (f" -c role={role}" if role else "")
    options += f" {_SMALL_QUERIES}" if pool_size > 1 else ""
    pool: dict[str, Any] = {"pool_size": pool_size, "pool_pre_ping": True} if pool_size else {"poolclass": NullPool}
    arguments = {**LIBPQ_LIMITS, "application_name": "churn", "options": options}
    if role:
        arguments["connection_factory"] = partial(DeadlineConnection, answer_within_s=answer_within_s)
    engine = sa.create_engine(url, **pool, connect_args=arguments)
    sa.event.listen(engine, "first_connect", partial(_verify, role))  # once for each pool
    sa.event.listen(engine, "handle_error", _discard_read_only)
    return engine


def _verify(role: str | None, connection: Any, _record: object) -> None:
    """Raise unless the server set what the connection asked for, which poolers may ignore."""
    with connection.cursor() as cursor:
        cursor.execute(_IS_SET)
        found = [value for (value,) in cursor]
    connection.rollback()
    if found != [role or found[0], "UTC", "10s"]:
        raise psycopg2.OperationalError(f"startup parameters were ignored; role, time zone and limit are {found}")


def _discard_read_only(context: sa.engine.ExceptionContext) -> None:
    # After a failover, the pool's connections may lead to what is a standby now.
    if getattr(context.original_exception, "pgcode", None) == _READ_ONLY:
        context.is_disconnect = True


def require_connection(url: sa.URL, *, role: str | None = None) -> None:
    """Connect once, so that a wrong host, password or database is reported at start-up and within seconds."""
    with errors_translated(url), create_engine(url, role=role).connect():
        pass


class Tables:
    """Base class of the objects that read and write our tables, each as one role."""

    role, pool_size = WRITER, THREADED_POOL_SIZE

    def __init__(self, url: sa.URL, *, answer_within_s: float = ANSWER_WITHIN_S) -> None:
        self._url = url
        self._engine = create_engine(url, role=self.role, pool_size=self.pool_size, answer_within_s=answer_within_s)

    def close(self) -> None:
        """Close the pool's connections; a later statement opens others."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """Open a connection, and commit at the end of the block."""
        with errors_translated(self._url), self._engine.begin() as connection:
            yield connection

    def _execute(self, statement: str, **values: object) -> None:
        """Execute a statement with ``:name`` parameters, and commit."""
        with self._transaction() as connection:
            connection.execute(sa.text(statement), values)

    def _rows(self, query: str, **values: object) -> Sequence[sa.Row[Any]]:
        with errors_translated(self._url), self._engine.connect() as connection:
            return connection.execute(sa.text(query), values).all()


def lock(connection: sa.Connection, key: str, timeout: str | None = None) -> None:
    """Wait for the exclusive advisory lock of ``key``, which the transaction then owns until it ends."""
    if timeout:
        connection.execute(sa.text("SELECT set_config('lock_timeout', :timeout, true)"), {"timeout": timeout})
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), {"key": key})


@contextmanager
def locked(url: sa.URL, key: str) -> Iterator[None]:
    """Wait for the exclusive advisory lock of ``key``, and own it during the block on a connection of its own."""
    with errors_translated(url), create_engine(url).begin() as connection:
        lock(connection, key)
        yield


@contextmanager
def locked_alone(url: sa.URL, key: str, owner: str) -> Iterator[None]:
    """Own the advisory lock of ``key`` during the block, in which no transaction is open.

    If another process owns it, this raises ``UsageError``, which shows the other's ``owner``.
    """
    with errors_translated(url), create_engine(url).connect() as connection:
        connection.execute(sa.text("SELECT set_config('application_name', :owner, false)"), {"owner": owner})
        if not connection.scalar(sa.text("SELECT pg_try_advisory_lock(hashtextextended(:key, 0))"), {"key": key}):
            other = connection.scalar(sa.text(_LOCK_OWNER), {"key": key}) or "another process"
            raise UsageError(f"{other} runs on {url.host}, database {url.database!r}; stop it, or use another instance")
        connection.commit()
        yield


@contextmanager
def open_snapshot(url: sa.URL, *, answer_within_s: float = ANSWER_WITHIN_S) -> Iterator[sa.Connection]:
    """Open a read-only connection as the reader role; all its queries see the same state of the database."""
    engine = create_engine(url, role=READER, answer_within_s=answer_within_s)
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with errors_translated(url), snapshot.connect() as connection:
        yield connection


@contextmanager
def errors_translated(url: sa.URL, *, remedy: str = _SETUP) -> Iterator[None]:
    """Translate driver errors into ours; transient ones into :class:`DatabaseUnavailableError`.

    No message repeats a statement, its parameters or the password; none of set-up advises to run set-up.
    """
    try:
        yield
    except DBAPIError as error:
        raise _translate(error.orig or error, url, remedy) from error
    except psycopg2.Error as error:  # COPY bypasses SQLAlchemy
        raise _translate(error, url, remedy) from error


def _translate(error: BaseException, url: sa.URL, remedy: str) -> ChurnError:
    where = f"PostgreSQL at {url.host}:{url.port or 5432}, database {url.database!r}"
    state = getattr(error, "pgcode", None) or ""
    text = " ".join(str(error).split()) or type(error).__name__
    if not state and not isinstance(error, _OURS):
        return _translate_refusal(text, where, url, remedy)
    if state == _REFUSED:
        return UsageError(text.partition(" CONTEXT: ")[0])
    text = f"{state}: {text}" if state else text
    if state == _LOCK_TIMEOUT:
        idle = "SELECT * FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        return LockTimeoutError(f"{where} is locked by another session ({text}); try again, or see {idle}")
    if state.startswith(_TRANSIENT_STATES):
        return DatabaseUnavailableError(f"{where} hit a transient error ({text}); try again")
    if state == _DENIED:
        return AccessDeniedError(f"{where} denied access to user {url.username!r} ({text}); {remedy}")
    outdated = f"has no or an outdated schema ({text}); {remedy}"
    return StoreError(f"{where} {outdated if state in _MISSING else f'rejected the statement: {text}'}")


def _translate_refusal(text: str, where: str, url: sa.URL, remedy: str) -> ChurnError:
    """Classify a refused connection by the server's message, since such errors carry no SQLSTATE."""
    user, setting = f"user {url.username!r}", _SET_BY.get((url.username, url.host, url.port), "the secret")
    password = f" refused the password of {user} ({text}); correct username and password in {setting}"
    refusals: Sequence[tuple[Sequence[str], type[ChurnError], str]] = (
        (_WRONG_PASSWORD, CredentialsError, password),
        (["pg_hba.conf"], AccessDeniedError, f" rejects {user} from this host ({text}); correct its pg_hba.conf"),
        (_POOLER, StoreError, f" is behind a pooler ({text}); {_PAST_POOLER} in {setting}"),
        (_UNTRUSTED, StoreError, f" is not trusted ({text}); {_TRUST}"),
        (["does not exist"], StoreError, f" has no or an outdated schema ({text}); {remedy}"),
        (["permission denied to set role"], AccessDeniedError, f": {user} lacks a role ({text}); {remedy}"),
    )
    for words, error, message in refusals:
        if any(word in text for word in words):
            return error(f"{where}{message}")
    if _UNANSWERED.search(text):
        return DatabaseUnavailableError(f"{where} did not answer ({text}); check MLFLOW_DB_HOST, and that it runs")
    return StoreError(f"{where} refused the connection ({text}); correct the server, or what {setting} says of it")
