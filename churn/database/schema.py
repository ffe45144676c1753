"""Set-up of a PostgreSQL server: creates databases, roles and grants, and migrates both schemas.

Only set-up creates or alters tables. Every function is idempotent and safe to run in several processes at once.
"""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from churn.database.connection import OWNER, READER, WRITER, create_engine, errors_translated
from churn.errors import StoreError

_LOCK = "SELECT pg_advisory_lock(hashtextextended('churn set-up', 0))"
_UNLOCK = "SELECT pg_advisory_unlock(hashtextextended('churn set-up', 0))"
_ALREADY = ("42P04", "42710", "23505")  # duplicate database, duplicate object, unique violation in a race


def ensure_database(url: sa.URL) -> bool:
    """Create the database that ``url`` names, if it is missing.

    Returns:
        Whether it was created now.
    """
    try:
        with errors_translated(url), create_engine(url).connect():
            return False
    except StoreError as error:
        if "does not exist" not in str(error):
            raise
    maintenance = url.set(database="postgres")
    engine = create_engine(maintenance).execution_options(isolation_level="AUTOCOMMIT")
    with errors_translated(maintenance), engine.connect() as connection:
        return _execute_unless_exists(connection, f"CREATE DATABASE {_quoted(connection, url.database or '')}")


def ensure_roles(url: sa.URL) -> list[str]:
    """Create the group roles and grant each of them to the current user.

    Returns:
        The roles created now.
    """
    created: list[str] = []
    engine = create_engine(url).execution_options(isolation_level="AUTOCOMMIT")
    with errors_translated(url), engine.connect() as connection, _set_up_lock(connection):
        for role in (OWNER, WRITER, READER):
            known = connection.scalar(sa.text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role})
            if not known and _execute_unless_exists(connection, f"CREATE ROLE {role} NOLOGIN"):
                created.append(role)
            if not _may_act_as(connection, role):
                connection.exec_driver_sql(f"GRANT {role} TO CURRENT_USER")
    return created


def _may_act_as(connection: sa.Connection, role: str) -> bool:
    # Since version 16 the creator of a role may grant it, but not act as it.
    version = connection.dialect.server_version_info or (0,)
    privilege = "SET" if version >= (16,) else "MEMBER"
    query = sa.text("SELECT pg_has_role(current_user, :role, :privilege)")
    return bool(connection.scalar(query, {"role": role, "privilege": privilege}))


def migrate_predictions(url: sa.URL) -> tuple[str | None, str]:
    """Migrate the predictions database to the newest schema, owned by the owner role.

    Returns:
        The revisions before (``None`` for an empty database) and after.
    """
    config = _alembic_config()
    with errors_translated(url), create_engine(url).connect() as connection, _set_up_lock(connection):
        connection.exec_driver_sql(f"GRANT USAGE, CREATE ON SCHEMA public TO {OWNER}")
        connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA public TO {WRITER}, {READER}")
        connection.commit()
        before = MigrationContext.configure(connection).get_current_revision()
        connection.exec_driver_sql(f"SET ROLE {OWNER}")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.exec_driver_sql(f"GRANT SELECT ON alembic_version TO {WRITER}, {READER}")
        connection.commit()
        connection.exec_driver_sql("RESET ROLE")
        after = MigrationContext.configure(connection).get_current_revision()
    return before, str(after)


def require_predictions_schema(url: sa.URL, *, role: str) -> None:
    """Raise ``StoreError`` unless the predictions database has the schema that this code needs."""
    head = _predictions_head()
    with errors_translated(url), create_engine(url, role=role).connect() as connection:
        exists = connection.scalar(sa.text("SELECT to_regclass('public.alembic_version')"))
        found = connection.scalar(sa.text("SELECT version_num FROM alembic_version")) if exists else None
    if found != head:
        raise StoreError(
            f"database {url.database!r} is at schema {found or 'none'} and this code needs {head}; "
            f"run experiment_tracking/setup.py"
        )


def migrate_mlflow(url: sa.URL) -> tuple[str | None, str]:
    """Migrate MLflow's database to the schema of the installed MLflow, and grant the writer role read access.

    MLflow's own migration crashes when two processes start it at once, so it runs under our lock.

    Returns:
        The revisions before (``None`` for an empty database) and after.
    """
    from mlflow.db import upgrade

    logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)
    with errors_translated(url), create_engine(url).connect() as connection, _set_up_lock(connection):
        before = MigrationContext.configure(connection).get_current_revision()
        connection.commit()
        upgrade.callback(url.render_as_string(hide_password=False))
        connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA public TO {WRITER}")
        connection.exec_driver_sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {WRITER}")
        connection.commit()
        after = MigrationContext.configure(connection).get_current_revision()
        connection.commit()
    return before, str(after)


def require_mlflow_schema(url: sa.URL, *, role: str | None) -> None:
    """Raise ``StoreError`` unless MLflow's database has the installed MLflow's schema: opening it would migrate it."""
    head = _mlflow_head()
    with errors_translated(url), create_engine(url, role=role).connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    if found != head:
        raise StoreError(
            f"MLflow's database {url.database!r} is at schema {found or 'none'} and the installed MLflow needs {head}; "
            f"run experiment_tracking/setup.py"
        )


@functools.cache  # reading all migrations takes a tenth of a second
def _predictions_head() -> str | None:
    return ScriptDirectory.from_config(_alembic_config()).get_current_head()


@functools.cache
def _mlflow_head() -> str:
    # There is no public function for this.
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("churn.database") / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


@contextmanager
def _set_up_lock(connection: sa.Connection) -> Iterator[None]:
    """Hold a session-level lock, which ends with the connection in any case."""
    connection.exec_driver_sql(_LOCK)
    if connection.get_isolation_level() != "AUTOCOMMIT":
        connection.commit()
    try:
        yield
    finally:
        if not connection.invalidated:
            connection.rollback()
            connection.exec_driver_sql(_UNLOCK)


def _execute_unless_exists(connection: sa.Connection, statement: str) -> bool:
    try:
        connection.exec_driver_sql(statement)
    except sa.exc.DBAPIError as error:
        if getattr(error.orig, "pgcode", "") in _ALREADY:
            return False
        raise
    return True


def _quoted(connection: sa.Connection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote_identifier(name)
