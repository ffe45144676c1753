"""Connections to PostgreSQL: URLs, roles, deadlines, and what its errors mean.

Three group roles, none of which can log in, are taken on by whoever connects: the owner makes tables, the writer
publishes batches and reads MLflow's tables, the reader reads. ``experiment_tracking/setup.py`` makes them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from churn.errors import (
    AccessDeniedError,
    ChurnError,
    CredentialsError,
    DatabaseUnavailableError,
    StoreError,
    UsageError,
)

OWNER, WRITER, READER = "churn_owner", "churn_writer", "churn_reader"
CONNECT_TIMEOUT_S = 5
_SETUP = "run experiment_tracking/setup.py"

_TRANSIENT_STATES = ("08", "40", "53", "57P", "55P03")  # connection, serialization, resources, shutdown, lock timeout
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
    return url.set(drivername="postgresql+psycopg2")


def create_engine(url: sa.URL, *, role: str | None = None, kept: int = 0) -> sa.Engine:
    """Make an engine whose connections act as ``role`` and use UTC.

    Args:
        kept: Connections to keep open between uses, each tried before it is used again; 0 keeps none.
    """
    options = "-c timezone=UTC" + (f" -c role={role}" if role else "")
    pool: dict[str, Any] = {"pool_size": kept, "pool_pre_ping": True} if kept else {"poolclass": NullPool}
    return sa.create_engine(
        url,
        **pool,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": "churn",
            "options": options,
            # A peer that vanished is noticed within a minute, not two hours.
            "keepalives_idle": 20,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 60_000,
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
    if "does not exist" in text:
        return StoreError(f"{where} lacks what set-up makes ({text}); {_SETUP}")
    if "permission denied to set role" in text:
        return AccessDeniedError(f"{where}: user {url.username!r} lacks a role ({text}); {_SETUP}, which grants it")
    return DatabaseUnavailableError(f"{where} did not answer ({text}); check MLFLOW_DB_HOST, and that it runs")
