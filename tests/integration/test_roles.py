"""At stake: the weekly job and the analysts connect for years. A stolen connection, or a slip in a query, must not be
able to rewrite a prediction, drop a table, read a password or hide what it did. Each right is tried, not looked up.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from churn.database.connection import READER, WRITER, create_engine
from churn.database.schema import ensure_roles
from tests.support.site import Site, create_login, run_sql

DENIED = "42501"
NEVER = ("55000", "42809")  # nobody can change what these views show, nor truncate a view
READ, ADD = "SELECT", "INSERT"
PARTITIONED = "churn_predictions_20260105"

MAY_WRITE: Mapping[str, set[str]] = {
    "alembic_version": {READ},
    "scoring_batches": {READ, ADD, "UPDATE is_current", "UPDATE ab_share", "UPDATE ab_salt", "UPDATE history_status"},
    "scoring_attempts": {READ, ADD},
    "churn_predictions": {READ, ADD},
    PARTITIONED: {READ, ADD},
    "quarantined_rows": {READ, ADD},
    "evaluated_batches": {READ, ADD, "UPDATE logged_at", "UPDATE evidence_after"},
    "replaced_evaluations": {READ},
    "evaluated_segments": {READ, ADD},
    "model_events": {READ, ADD},
    "model_references": {READ, ADD},
    "drift_flags": {READ, ADD, "DELETE"},
    "incidents": {READ, ADD, "UPDATE"},
    "watched_variants": {READ, ADD, "UPDATE"},
    "alerts": {READ, ADD},
    "alert_deliveries": {READ, ADD, "UPDATE"},
    "erasure_salt": {READ},
    "erased_accounts": {READ},
    "churn_predictions_current": {READ},
    "churn_predictions_by_role": {READ},
    "churn_predictions_latest": {READ},
}
"""All that the writer may do: what is not named is denied."""

MAY_NOT_READ = {"erasure_salt", "erased_accounts", PARTITIONED}
"""What the reader may not even read; a partition is read through its table."""

ATTEMPTS = {
    READ: 'SELECT * FROM "{name}" LIMIT 0',
    ADD: 'INSERT INTO "{name}" DEFAULT VALUES',
    "DELETE": 'DELETE FROM "{name}" WHERE false',
    "TRUNCATE": 'TRUNCATE "{name}"',
    "LOCK": 'LOCK TABLE "{name}" IN ACCESS EXCLUSIVE MODE',
}
UPDATE = 'UPDATE "{name}" SET "{column}" = DEFAULT'
BEYOND_TABLES = (
    "CREATE TABLE public.mine (n integer)",
    "CREATE SCHEMA mine",
    "CREATE FUNCTION public.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    "ALTER TABLE churn_predictions DROP CONSTRAINT churn_predictions_churn_probability_check",
    "ALTER TABLE scoring_batches ADD COLUMN mine integer",
    "DROP TABLE scoring_attempts",
    "DROP VIEW churn_predictions_current",
    "CREATE INDEX mine ON scoring_batches (as_of)",
    "CREATE RULE mine AS ON INSERT TO scoring_batches DO INSTEAD NOTHING",
    "ALTER FUNCTION open_week(date) SECURITY INVOKER",
    "ALTER DEFAULT PRIVILEGES FOR ROLE churn_owner GRANT ALL ON TABLES TO PUBLIC",
    "CREATE ROLE mine",
    "SET ROLE churn_owner",
    "SET SESSION AUTHORIZATION churn",
    "SELECT * FROM pg_authid",
    "SELECT pg_read_file('/etc/hostname')",
    "SELECT pg_ls_dir('/')",
    "COPY scoring_batches TO PROGRAM 'cat'",
    "COPY scoring_batches TO '/tmp/mine'",
    "SELECT lo_import('/etc/hostname')",
    "ALTER ROLE churn_owner SUPERUSER",
    "SELECT pg_reload_conf()",
    "SELECT setval('scoring_batches_batch_id_seq', 1)",
    "SELECT * FROM erase_account(1, '', 0, decode(repeat('00', 32), 'hex'))",
    "SELECT drop_weeks('2027-01-04')",
)
READERS_TOO = (
    "SELECT end_move('base', 'done')",
    "SELECT archive_evaluation(1, '2026-01-05')",
    "SELECT open_week('2026-01-05')",
    "SELECT index_closed_weeks('2026-01-05')",
)


@pytest.fixture
def member(site: Site) -> Iterator[dict[str, sa.URL]]:
    """Logins that have one role each, and no other way in; the database has a week."""
    ensure_roles(site.login)
    run_sql(site.login.set(database=site.churn), "SELECT open_week('2026-01-05')")
    logins = {}
    for role in (READER, WRITER):
        logins[role] = create_login(site.server, "")
        run_sql(site.server, f"GRANT {role} TO {logins[role].username}")
    yield {role: login.set(database=site.churn) for role, login in logins.items()}
    for login in logins.values():
        run_sql(site.server, f"DROP ROLE {login.username}")


@contextmanager
def connected(url: sa.URL) -> Iterator[sa.Connection]:
    engine = create_engine(url)
    with engine.connect() as connection:
        yield connection


def failure(connection: sa.Connection, statement: str) -> str | None:
    """Try a statement and undo it; returns the SQLSTATE it failed with, if it did."""
    try:
        connection.exec_driver_sql(statement)
    except DBAPIError as error:
        return str(getattr(error.orig, "pgcode", None))
    finally:
        connection.rollback()
    return None


def columns(site: Site, database: str) -> dict[str, list[str]]:
    """All relations that hold rows, with their columns."""
    query = """
        SELECT c.relname, array_agg(a.attname::text ORDER BY a.attnum) FROM pg_class AS c
        JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f') GROUP BY 1
    """
    return dict(site.rows(database, query))  # type: ignore[arg-type]


def rights(url: sa.URL, relations: Mapping[str, list[str]]) -> dict[str, set[str]]:
    """Try everything on every relation; returns what was not denied."""
    allowed: dict[str, set[str]] = {}
    with connected(url) as connection:
        for name, held in relations.items():
            tried = {what: template.format(name=name) for what, template in ATTEMPTS.items()}
            tried |= {f"UPDATE {column}": UPDATE.format(name=name, column=column) for column in held}
            found = {
                what for what, statement in tried.items() if failure(connection, statement) not in (DENIED, *NEVER)
            }
            updates = {what for what in found if what.startswith("UPDATE ")}
            allowed[name] = found - updates | {"UPDATE"} if len(updates) == len(held) else found
    return allowed


def test_the_writer_may_do_what_the_weekly_job_needs_and_nothing_else(site: Site, member: Mapping[str, sa.URL]) -> None:
    found = rights(member[WRITER], columns(site, site.churn))

    locks = {name for name, held in found.items() if "LOCK" in held}
    assert locks <= {
        "drift_flags",
        "incidents",
        "watched_variants",
        "alert_deliveries",
    }  # where rows may be changed, the table may be locked
    assert {name: held - {"LOCK"} for name, held in found.items()} == MAY_WRITE


def test_the_reader_may_read_predictions_and_change_nothing(site: Site, member: Mapping[str, sa.URL]) -> None:
    found = rights(member[READER], columns(site, site.churn))

    assert found == {name: set() if name in MAY_NOT_READ else {READ} for name in MAY_WRITE}


@pytest.mark.parametrize("role", [READER, WRITER])
def test_neither_role_reaches_beyond_its_tables(member: Mapping[str, sa.URL], role: str) -> None:
    statements = BEYOND_TABLES + (READERS_TOO if role == READER else ())

    with connected(member[role]) as connection:
        told = {statement: failure(connection, statement) for statement in statements}

    assert told == dict.fromkeys(statements, DENIED)


def test_scoring_may_read_mlflow_and_change_nothing_of_it(site: Site, member: Mapping[str, sa.URL]) -> None:
    url = member[WRITER].set(database=site.mlflow)
    relations = columns(site, site.mlflow)
    assert len(relations) > 20

    assert rights(url, relations) == {name: {READ} for name in relations}
    with connected(url) as connection:
        for statement in ("CREATE TABLE public.mine (n integer)", "ALTER TABLE experiments ADD COLUMN mine integer"):
            assert failure(connection, statement) == DENIED


def test_the_reader_knows_nothing_of_mlflow(site: Site, member: Mapping[str, sa.URL]) -> None:
    relations = columns(site, site.mlflow)
    assert rights(member[READER].set(database=site.mlflow), relations) == {name: set() for name in relations}


OVERLOADS = """
CREATE FUNCTION public.to_char(date, text) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN EXECUTE 'GRANT churn_owner TO ' || session_user; RETURN 'mine'; END $$;
CREATE FUNCTION public.format(text, text) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'hijacked by format'; END $$;
CREATE FUNCTION public.hashtextextended(text, integer) RETURNS bigint LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'hijacked as %%', current_user; END $$;
"""
IMPOSTORS = """
CREATE TEMP TABLE scoring_batches (scored_week date, batch_id bigint, variant text, account_ids text);
INSERT INTO scoring_batches VALUES ('2001-01-01', 1, '', 'input');
CREATE TEMP TABLE churn_predictions (scored_week date);
CREATE TEMP TABLE erased_accounts (variant text, code integer, digest bytea);
CREATE FUNCTION pg_temp.to_char(date, text) RETURNS text LANGUAGE sql AS 'SELECT ''mine''';
SET search_path = pg_temp, public;
"""
CALLS = (
    "SELECT public.open_week('2026-01-12')",
    "SELECT public.index_closed_weeks('2026-02-02')",
    "SELECT count(*) FROM public.erase_account(1, '', 0, decode(repeat('00', 32), 'hex'))",
    "SELECT public.drop_weeks('2020-01-06')",
    "SELECT public.end_move('base', 'done')",
    "SELECT public.archive_evaluation(1, '2026-01-05')",
)


def test_what_a_caller_puts_in_the_way_does_not_run_as_the_owner(site: Site, member: Mapping[str, sa.URL]) -> None:
    """On PostgreSQL 14 everybody may create in ``public``; here the right is granted, and so is calling the rest."""
    caller = member[WRITER]
    run_sql(site.server.set(database=site.churn), f"GRANT CREATE ON SCHEMA public TO {caller.username}")
    everything = "erase_account(bigint, text, integer, bytea), drop_weeks(date)"
    run_sql(site.server.set(database=site.churn), f"GRANT EXECUTE ON FUNCTION {everything} TO {caller.username}")
    with connected(caller) as connection:
        connection.exec_driver_sql(OVERLOADS)
        connection.commit()
        connection.exec_driver_sql(IMPOSTORS)
        for call in CALLS:
            connection.exec_driver_sql(call)
            connection.commit()
        assert connection.exec_driver_sql("SELECT count(*) FROM pg_temp.erased_accounts").scalar() == 0

    assert site.rows(site.churn, "SELECT to_regclass('public.churn_predictions_20260112') IS NOT NULL") == [(True,)]
    assert site.rows(site.churn, "SELECT count(*) FROM public.erased_accounts") == [(1,)]
    run_sql(site.server.set(database=site.churn), f"DROP OWNED BY {caller.username}")


def test_every_function_that_runs_as_the_owner_searches_no_schema_that_others_may_fill(site: Site) -> None:
    query = "SELECT proname, proconfig FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace"
    found = dict(site.rows(site.churn, query))

    owned = {"open_week", "index_closed_weeks", "erase_account", "drop_weeks", "end_move", "archive_evaluation"}
    assert set(found) == owned
    assert all("search_path=pg_catalog, pg_temp" in settings for settings in found.values())
