"""Set-up of a PostgreSQL server: creates databases, roles and grants, and migrates both schemas.

Only set-up creates or alters tables. Every function is idempotent and safe to run in several processes at once.
"""

import functools
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.resources import files

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from churn.database.connection import OWNER, READER, SETUP_NEEDS, WRITER, create_engine, errors_translated
from churn.database.deadlines import retry_locked
from churn.errors import StoreError

logger = logging.getLogger(__name__)

_LOCK = "SELECT pg_advisory_lock(hashtextextended('churn set-up', 0))"
_UNLOCK = "SELECT pg_advisory_unlock(hashtextextended('churn set-up', 0))"
_setting_up = functools.partial(errors_translated, remedy=SETUP_NEEDS)  # which does not advise to run set-up
_LOCK_WITHIN = "400ms"  # readers queue behind a migration that waits for another reader
_EXCESS = """
SELECT what FROM pg_roles AS r, pg_database AS d, LATERAL (VALUES
    (r.rolsuper, 'is a superuser'),
    (r.rolcreaterole, 'may create roles'),
    (pg_has_role(r.oid, (SELECT oid FROM pg_roles WHERE rolname = :owner), 'MEMBER'), 'may drop tables'),
    (d.datdba = r.oid, 'owns the database')
) AS rights (is_held, what) WHERE r.rolname = session_user AND d.datname = current_database() AND is_held
"""
_SET_UP = "run experiment_tracking/setup.py"
_ALREADY = ("42P04", "42710", "23505")  # duplicate database, duplicate object, unique violation in a race


def ensure_database(url: sa.URL) -> bool:
    """Create the database of ``url`` if it is missing; returns whether it was."""
    try:
        with _setting_up(url), create_engine(url).connect():
            return False
    except StoreError as error:
        if "does not exist" not in str(error):
            raise
    maintenance = url.set(database="postgres")
    engine = create_engine(maintenance).execution_options(isolation_level="AUTOCOMMIT")
    with _setting_up(maintenance), engine.connect() as connection:
        name = connection.dialect.identifier_preparer.quote_identifier(url.database or "")
        return _execute_unless_exists(connection, f"CREATE DATABASE {name}")


def ensure_roles(url: sa.URL) -> list[str]:
    """Create the missing group roles, grant all of them to the current user, and return those created."""
    created: list[str] = []
    engine = create_engine(url).execution_options(isolation_level="AUTOCOMMIT")
    with _setting_up(url), engine.connect() as connection, _set_up_lock(connection):
        # Since version 16 the creator of a role may grant it, but not act as it.
        privilege = "SET" if (connection.dialect.server_version_info or (0,)) >= (16,) else "MEMBER"
        may_act = sa.text("SELECT pg_has_role(current_user, :role, :privilege)")
        for role in (OWNER, WRITER, READER):
            known = connection.scalar(sa.text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role})
            if not known and _execute_unless_exists(connection, f"CREATE ROLE {role} NOLOGIN"):
                created.append(role)
            if not connection.scalar(may_act, {"role": role, "privilege": privilege}):
                connection.exec_driver_sql(f"GRANT {role} TO CURRENT_USER")
    return created


@retry_locked
def migrate_predictions(url: sa.URL) -> tuple[str | None, str]:
    """Migrate the predictions database as the owner role; returns the revisions before, if any, and after.

    A newer schema that serves this code stays as it is. Raises ``StoreError`` if its schema is none that this code can
    migrate, and ``LockTimeoutError`` if readers blocked its tables whenever it was tried; nothing is migrated then.
    """
    config = _alembic_config()
    with _setting_up(url), create_engine(url).connect() as connection, _set_up_lock(connection):
        connection.exec_driver_sql(f"GRANT USAGE, CREATE ON SCHEMA public TO {OWNER}")
        connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA public TO {WRITER}, {READER}")
        connection.commit()
        before = MigrationContext.configure(connection).get_current_revision()
        if before and _is_newer(connection, before):
            return before, before
        with closing(connection.connection.cursor()) as cursor:  # SQLAlchemy drops warnings
            cursor.execute(_statements("limit_idle_readers"))
            for notice in cursor.connection.notices:
                logger.warning(" ".join(notice.split()))
        connection.commit()
        connection.exec_driver_sql(f"SET ROLE {OWNER}")
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_WITHIN}'")
        if before != _known_revisions()[0]:
            connection.exec_driver_sql(_statements("lock_views").replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.exec_driver_sql(_statements("comments").replace("%", "%%"))
        connection.exec_driver_sql(f"GRANT SELECT ON alembic_version TO {WRITER}, {READER}")
        connection.commit()
        connection.exec_driver_sql("RESET ROLE")
        after = MigrationContext.configure(connection).get_current_revision()
    return before, str(after)


@retry_locked
def migrate_mlflow(url: sa.URL) -> tuple[str | None, str]:
    """Migrate MLflow's database, and grant the writer role read access; returns the revisions before and after.

    MLflow's migration crashes when two processes start it at once, so it runs under our lock.
    """
    from mlflow.db import upgrade

    logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)
    with _setting_up(url), create_engine(url).connect() as connection, _set_up_lock(connection):
        before = MigrationContext.configure(connection).get_current_revision()
        connection.commit()
        limited = url.update_query_dict({"options": f"-c lock_timeout={_LOCK_WITHIN}"})
        upgrade.callback(limited.render_as_string(hide_password=False))
        connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA public TO {WRITER}")
        connection.exec_driver_sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {WRITER}")
        connection.commit()
        after = MigrationContext.configure(connection).get_current_revision()
        connection.commit()
    return before, str(after)


def excess_rights(url: sa.URL) -> list[str]:
    """Return what a login may do that the weekly job need not."""
    with errors_translated(url), create_engine(url).connect() as connection:
        return list(connection.scalars(sa.text(_EXCESS), {"owner": OWNER}))


def require_predictions_schema(url: sa.URL, *, role: str) -> None:
    """Raise ``StoreError`` unless the predictions database has this code's schema, or a newer one that serves it."""
    newest = _known_revisions()[0]
    with errors_translated(url), create_engine(url, role=role).connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
        is_served = revision and (revision == newest or _is_newer(connection, revision))
    if not is_served:
        found = f"database {url.database!r} is at schema {revision or 'none'}"
        raise StoreError(f"{found} and this code needs {newest}; {_SET_UP}")


def require_mlflow_schema(url: sa.URL, *, role: str | None) -> None:
    """Raise ``StoreError`` unless MLflow's database has the installed MLflow's schema: opening it would migrate it."""
    known = _mlflow_revisions()
    with errors_translated(url), create_engine(url, role=role).connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
    if revision != known[0]:
        unknown = "it does not know that one: use the code that made it"
        found, remedy = revision or "none", _SET_UP if revision in (None, *known) else unknown
        problem = f"MLflow's database {url.database!r} is at schema {found} and the installed MLflow needs {known[0]}"
        raise StoreError(f"{problem}; {remedy}")


def _is_newer(connection: sa.Connection, revision: str) -> bool:
    """Return whether a schema is newer than this code.

    Raises ``StoreError`` if it says that it does not serve this code, or is none of a release and so says nothing.
    """
    known, name = _known_revisions(), connection.engine.url.database
    says = connection.scalar(sa.text("SELECT to_regprocedure('oldest_code()')"))
    oldest = connection.scalar(sa.text("SELECT oldest_code()")) if says else None
    if revision in known and (oldest or revision == known[-1]):
        return False
    if oldest is None:
        problem = "which this code does not know: it is of a commit between releases; use the code that made it"
        newer = f"if it was made later, the last commit with migration {revision} (docs/adr/0039)"
        remedy = f"first set it up with release 0.9.0 or, {newer}"
        raise StoreError(f"database {name!r} is at schema {revision}, {problem}, or {remedy}")
    if oldest not in known:
        serves = f"which serves code of schema {oldest} or newer, and this code is of {known[0]}"
        remedy = "install the release that made it, or restore the backup from before its upgrade"
        raise StoreError(f"database {name!r} is at schema {revision}, {serves}; {remedy}")
    return True


@functools.cache  # reading all migrations takes a tenth of a second
def _known_revisions() -> tuple[str, ...]:
    """Return the revisions of the predictions database, the newest first."""
    return tuple(script.revision for script in ScriptDirectory.from_config(_alembic_config()).walk_revisions())


@functools.cache
def _mlflow_revisions() -> tuple[str, ...]:
    from mlflow.store.db.utils import _get_alembic_config  # there is no public function for this

    return tuple(script.revision for script in ScriptDirectory.from_config(_get_alembic_config("")).walk_revisions())


def _statements(name: str) -> str:
    return (files("churn.database") / "migrations" / f"{name}.sql").read_text(encoding="utf-8")


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("churn.database") / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


@contextmanager
def _set_up_lock(connection: sa.Connection) -> Iterator[None]:
    """Own a session-level lock during the block; it ends with the connection in any case."""
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
