"""Connections to PostgreSQL: URLs, roles, deadlines, and what its errors mean.

Three group roles, none of which can log in, are taken on by whoever connects: the owner makes tables, the writer
publishes batches and reads MLflow's tables, the reader reads. ``experiment_tracking/setup.py`` makes them.
"""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
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
    StoreError,
    UsageError,
)

ANSWER_WITHIN_S = 600.0
OF_THREADS = 4
"""Connections to keep where that many threads work on a fleet: opening one costs the server more than most queries."""

# The server must let go of the locks of a client that vanished; its own default is two hours.
_SERVER_LIMITS = (
    "-c tcp_keepalives_idle=20 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3 -c tcp_user_timeout=60000 "
    "-c client_connection_check_interval=10000"
)
# To start a parallel worker, or to compile, takes longer than the queries that threads ask of a variant.
_SMALL_QUERIES = "-c max_parallel_workers_per_gather=0 -c jit=off"
OWNER, WRITER, READER = "churn_owner", "churn_writer", "churn_reader"
# A peer that vanished is noticed within a minute, not two hours.
LIBPQ_LIMITS = {
    "connect_timeout": 5,
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
_SETUP = "run experiment_tracking/setup.py"

# Connection, serialization, resources, shutdown, cancelled or timed out, lock timeout.
_TRANSIENT_STATES = ("08", "40", "53", "57P", "57014", "25P03", "25P04", "55P03")
_OURS = (psycopg2.ProgrammingError, psycopg2.DataError, psycopg2.IntegrityError, psycopg2.NotSupportedError)
_UNTRUSTED = ("server certificate for", "certificate verify failed", "root certificate", "support SSL", "sslmode")
_DENIED = "42501"
_SETUP_NEEDS = "set-up needs a login with CREATEDB, CREATEROLE and, once they exist, ADMIN OPTION on the churn roles"
_MISSING = ("42P01", "3D000", "42704", "3F000", "42883", "42703")


def parse_database_url(text: str, name: str) -> sa.URL:
    """Read a ``postgresql://`` URL from a setting; SQLAlchemy's ``+psycopg2`` is added where it is not given.

    Raises:
        UsageError: If it is not such a URL. The text is not repeated, since it may hold a password.
    """
    try:
        url = sa.make_url(text)
    except (ArgumentError, ValueError):
        raise UsageError(f"{name} is not a URL; postgresql://user:password@host:port/database is needed") from None
    if url.get_backend_name() not in ("postgresql", "postgres") or not url.database:
        raise UsageError(
            f"{name} is a {url.get_backend_name()} URL; postgresql://user:password@host:port/database is needed"
        )
    parts = (url.username, url.password, url.host, url.database, *map(str, url.query.items()))
    letters = {letter for part in parts if part for letter in part}
    if "@" in f"{url.host}{url.database}" or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in letters):
        raise UsageError(
            f"{name} holds a character that must be percent-encoded (such as @ in the password) or that "
            f"PostgreSQL cannot be sent; correct it"
        )
    return url.set(drivername="postgresql+psycopg2")


def create_engine(
    url: sa.URL, *, role: str | None = None, kept: int = 0, answer_within_s: float = ANSWER_WITHIN_S
) -> sa.Engine:
    """Make an engine whose connections act as ``role`` and use UTC.

    Args:
        role: ``None`` is for set-up, whose statements may take as long as they need.
        kept: Connections to keep open between uses, each tried before it is used again; 0 keeps none. Several are
            for threads that ask small queries.
        answer_within_s: The longest that a statement may take, or PostgreSQL to take a block of COPY; the connection is
            ended then. What PostgreSQL or the network does not end, a silent peer, ends so.
    """
    options = f"-c timezone=UTC {_SERVER_LIMITS}" + (f" -c role={role}" if role else "")
    options += f" {_SMALL_QUERIES}" if kept > 1 else ""
    pool: dict[str, Any] = {"pool_size": kept, "pool_pre_ping": True} if kept else {"poolclass": NullPool}
    return sa.create_engine(
        url,
        **pool,
        connect_args={
            **LIBPQ_LIMITS,
            "application_name": "churn",
            "options": options,
            **({"connection_factory": partial(DeadlineConnection, answer_within_s=answer_within_s)} if role else {}),
        },
    )


def require_connection(url: sa.URL, *, role: str | None = None) -> None:
    """Connect once, so that a wrong host, password or database is told at the start and in seconds.

    Raises:
        ChurnError: See :func:`errors_translated`.
    """
    with errors_translated(url), create_engine(url, role=role).connect():
        pass


@contextmanager
def errors_translated(url: sa.URL) -> Iterator[None]:
    """Turn driver errors into ours; transient ones into :class:`DatabaseUnavailableError`.

    No message repeats a statement, its parameters or the password.
    """
    try:
        yield
    except DBAPIError as error:
        raise _meaning_of(error.orig or error, url) from error
    except psycopg2.Error as error:  # COPY goes past SQLAlchemy
        raise _meaning_of(error, url) from error


def _meaning_of(error: BaseException, url: sa.URL) -> ChurnError:
    where = f"PostgreSQL at {url.host}:{url.port or 5432}, database {url.database!r}"
    state = getattr(error, "pgcode", None) or ""
    text = " ".join(str(error).split()) or type(error).__name__
    if not state and isinstance(error, _OURS):
        return StoreError(f"{where} was asked something that cannot be asked: {text}")
    if not state:
        return _meaning_of_refusal(text, where, url)
    if state.startswith(_TRANSIENT_STATES):
        return DatabaseUnavailableError(f"{where} could not go on ({text}); try again")
    if state == _DENIED:
        is_setup = text.startswith(("permission denied to create", "permission denied to grant"))
        remedy = _SETUP_NEEDS if is_setup else f"{_SETUP}, which grants it"
        return AccessDeniedError(f"{where} denied access to user {url.username!r} ({text}); {remedy}")
    if state in _MISSING:
        return StoreError(f"{where} lacks what set-up makes ({text}); {_SETUP}")
    return StoreError(f"{where} refused: {text}")


def _meaning_of_refusal(text: str, where: str, url: sa.URL) -> ChurnError:
    """Tell apart why a connection was refused: such errors carry no SQLSTATE, only the server's words."""
    if "password authentication failed" in text or "no password supplied" in text:
        return CredentialsError(
            f"{where} refused the password of user {url.username!r}; correct username and password in the secret"
        )
    if "pg_hba.conf" in text:
        return AccessDeniedError(f"{where} does not let user {url.username!r} in from here; correct its pg_hba.conf")
    if any(words in text for words in _UNTRUSTED):
        return StoreError(
            f"{where} is not trusted ({text}); correct PGSSLMODE and PGSSLROOTCERT, and name the server as its "
            f"certificate does"
        )
    if "does not exist" in text:
        return StoreError(f"{where} lacks what set-up makes ({text}); {_SETUP}")
    if "permission denied to set role" in text:
        return AccessDeniedError(f"{where}: user {url.username!r} lacks a role ({text}); {_SETUP}, which grants it")
    return DatabaseUnavailableError(f"{where} did not answer ({text}); check MLFLOW_DB_HOST, and that it runs")
