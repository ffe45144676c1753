"""At stake: the weekly job and the analysts connect for years. A stolen connection, or a slip in a query, must not be
able to rewrite a prediction, drop a table, read a password or hide what it did. Each right is tried, not looked up.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from string import Template

import psycopg2
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from churn.cli.psql import reader_dsn, run_psql
from churn.database.connection import READER, WRITER, create_engine
from churn.database.events import ModelEvent, ModelEvents
from churn.database.incidents import Incidents
from churn.database.predictions import BatchInProgress, BatchRecord, Challenge, PredictionStore
from churn.database.schema import ensure_roles
from churn.deployment.services import Deployment
from churn.errors import UsageError
from churn.monitoring.incidents import Condition
from churn.variants import Variant
from tests.support.batches import NO_ROWS, WEEK, record, scored
from tests.support.site import Site, create_login, run_sql

DENIED = "42501"
NEVER = ("55000", "42809", "0A000")  # nobody can change what these views show, nor truncate a view
READ, ADD = "SELECT", "INSERT"
PARTITIONED = "churn_predictions_20260105"

MAY_WRITE: Mapping[str, set[str]] = {
    "alembic_version": {READ},
    "scoring_batches": {READ, ADD, "UPDATE history_status"},
    "scoring_attempts": {READ, ADD},
    "churn_predictions": {READ, ADD},
    PARTITIONED: {READ, ADD},
    "quarantined_rows": {READ, ADD},
    "evaluated_batches": {READ, ADD, "UPDATE logged_at", "UPDATE evidence_after"},
    "replaced_evaluations": {READ},
    "evaluated_segments": {READ, ADD},
    "model_events": {READ},
    "model_references": {READ, ADD},
    "feature_words": {READ, ADD},
    "drift_flags": {READ},
    "incidents": {READ},
    "watched_variants": {READ, ADD, "UPDATE"},
    "alerts": {READ},
    "alert_deliveries": {READ},
    "erasure_salt": {READ},
    "erased_accounts": {READ},
    "churn_predictions_current": {READ},
    "churn_predictions_by_role": {READ},
    "churn_predictions_latest": {READ},
    "own_predictions_current": {READ},
    "own_predictions_by_role": {READ},
    "own_predictions_latest": {READ},
    "campaigns": {READ},
    "campaign_members": {READ},
    "campaign_exposures": {READ},
    "campaign_summary": {READ},
    "campaign_targets": {READ},
    "own_campaign_targets": {READ},
    "list_exports": {READ},
    "list_members": {READ},
    "exclusions": set(),
    "exclusions_in_force": set(),
    "own_batches": set(),
    "own_newest_batches": set(),
    "reader_variants": set(),
    "retention": {READ},
}
"""All that the writer may do: what is not named is denied."""

HIDDEN = {"own_batches", "own_newest_batches", "reader_variants", "exclusions", "exclusions_in_force"}
MAY_NOT_READ = {"erasure_salt", "erased_accounts", PARTITIONED} | HIDDEN
"""What the reader may not even read; a partition is read through its table."""

ATTEMPTS = {
    READ: 'SELECT * FROM "{name}" LIMIT 0',
    ADD: 'INSERT INTO "{name}" DEFAULT VALUES',
    "DELETE": 'DELETE FROM "{name}" WHERE false',
    "TRUNCATE": 'TRUNCATE "{name}"',
    "LOCK": 'LOCK TABLE "{name}" IN ACCESS EXCLUSIVE MODE',
}
UPDATE = 'UPDATE "{name}" SET "{column}" = DEFAULT'
DRAW = "SELECT nextval('scoring_batches_batch_id_seq')"
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
WRITING = (
    "SELECT make_current(1)",
    "SELECT record_event('{}')",
    "SELECT open_incident('data_stale', '', 'warning', 'x', '{}', '{}')",
    "SELECT update_incident(1, 'x', '{}', '{}')",
    "SELECT resolve_incident(1)",
    "SELECT queue_alert(1, 'opened', 'x', 'x', ARRAY['json-1'])",
    "SELECT * FROM next_delivery('json-1')",
    "SELECT record_delivery(1, 'json-1', NULL, '1 s')",
    "SELECT replace_flags(ARRAY[1], '[]')",
)
DECIDING = (
    'SELECT create_campaign(\'{"name": "x", "variants": ["us"], "policy": "risk", "control_share": 0, '
    '"holdout_share": 0, "allows_overlap": false, "starts_on": "2026-01-05", "channel": "m", "note": ""}\')',
    "SELECT stage_revenue()",
    "SELECT close_campaign('x')",
    "SELECT select_members('x')",
    "SELECT * FROM exclude_accounts(ARRAY[''], ARRAY[1]::bigint[], ARRAY['harm'], ARRAY[NULL]::date[])",
    "SELECT revoke_exclusions(ARRAY[''], ARRAY[1]::bigint[], ARRAY['harm'])",
    "SELECT * FROM record_exposures('[{}]')",
)
READERS_TOO = (
    *WRITING,
    *DECIDING,
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
        failure(connection, DRAW)  # or the default of a row's batch is an error before the right is looked at
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
    assert locks <= {"watched_variants"}  # where rows may be changed, the table may be locked
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


# The columns of a batch that may not be null, and its rows.
BATCH = (
    "variant", "scored_week", "as_of", "registered_model", "model_version", "role", "model_sha256", "mlflow_run_id",
    "code_version", "source", "source_uri", "source_version", "source_sha256", "source_modified_at", "source_variant",
    "account_ids", "n_rows_read", "n_rows_quarantined", "n_accounts_withheld", "n_rows_scored", "unknown_levels",
    "started_at",
)  # fmt: skip
NEWEST = "(SELECT max(batch_id) FROM scoring_batches)"


def batch(number: str = "currval('scoring_batches_batch_id_seq')", **changed: str) -> str:
    """The statement that adds a batch like another one, but for these columns."""
    columns = {"batch_id": number} | {name: name for name in BATCH} | changed
    return (
        f"INSERT INTO scoring_batches ({', '.join(columns)}) OVERRIDING SYSTEM VALUE "  # noqa: S608
        f"SELECT {', '.join(columns.values())} FROM scoring_batches LIMIT 1"
    )


def row(number: str | None = None, table: str = f"churn_predictions_{WEEK:%Y%m%d}") -> str:
    """The statement that adds a row to a batch, or to the one that the session has drawn a number for."""
    columns = {"scored_week": f"'{WEEK}'", "account_id": "99", "churn_probability": "1"}
    columns |= {} if number is None else {"batch_id": number}
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(columns.values())})"  # noqa: S608


FORGERIES: Mapping[str, tuple[str, ...]] = {
    "somebody else's name in the trail": (
        "INSERT INTO model_events (variant, registered_model, action, champion_version, reason, actor) "
        "VALUES ('us', 'm', 'promoted', 9, 'x', 'ceo@headquarters')",
    ),
    "no batch is current": ("UPDATE scoring_batches SET is_current = false",),
    "another share of an A/B test": ("UPDATE scoring_batches SET ab_share = 10000",),
    "a week of another time": ("SELECT open_week('2999-12-30')",),
    "a Monday of another time": ("SELECT open_week('2998-12-31')",),
    "a Monday before our time": ("SELECT open_week('1999-12-27')",),
    "a row in a published batch": (row("$batch"),),
    "through its table": (row("$batch", "churn_predictions"),),
    "with another number drawn": (DRAW, row("$batch")),
    "without a number": (row(),),
    "in one's own batch, once it is added": (DRAW, batch(), row()),
    "in one's own batch, in the next transaction": (DRAW, batch(), "COMMIT", row()),
    "by a statement that was prepared before": (
        DRAW, f"PREPARE more AS {row()}", *["EXECUTE more"] * 9, batch(), "EXECUTE more",
    ),
    "by a function that was planned before": (
        DRAW, f"CREATE FUNCTION pg_temp.more() RETURNS void LANGUAGE plpgsql AS $$$$BEGIN {row()}; END$$$$",
        *["SELECT pg_temp.more()"] * 9, batch(), "SELECT pg_temp.more()",
    ),
    "a quarantined row": ("INSERT INTO quarantined_rows VALUES ($batch, 9, 9, '{}', '{}')",),
    "in one's own batch of another transaction": (
        DRAW, batch(), "COMMIT",
        "INSERT INTO quarantined_rows SELECT max(batch_id), 9, 9, '{}', '{}' FROM scoring_batches",
    ),
    "a batch under another's number": (DRAW, batch("777")),
    "a batch that is current at once": (DRAW, batch(is_current="true")),
    "a batch of another time": (DRAW, batch(published_at="now()")),
    "a batch of another login": (DRAW, batch(published_by="'ceo'")),
    "an earlier batch made current": ("SELECT make_current($old)",),
    "beside a new one": (DRAW, batch(), "SELECT make_current($old)"),
    "one's own of an earlier transaction": (DRAW, batch(), "COMMIT", f"SELECT make_current({NEWEST})"),
    "a challenger beside an earlier champion": (
        DRAW, batch(role="'challenger'"), f"SELECT make_current({NEWEST}, 10000, 'x')",
    ),
    "an incident": (
        "INSERT INTO incidents (kind, severity, title, members, opened_at, updated_at) "
        "VALUES ('data_stale', 'error', 'x', '{}', now(), now())",
    ),
    "an incident's end": ("UPDATE incidents SET resolved_at = now()",),
    "an alert": (
        "INSERT INTO alerts (incident_id, event, created_at, title, body) VALUES (1, 'opened', now(), '', '')",
    ),
    "a delivery": ("UPDATE alert_deliveries SET delivered_at = now()",),
    "a flag": ("INSERT INTO drift_flags (batch_id, feature, is_confirmed) VALUES ($batch, 'x', true)",),
    "no flags": ("DELETE FROM drift_flags",),
    "the clock": ("CREATE OR REPLACE FUNCTION churn_now() RETURNS timestamptz LANGUAGE sql AS 'SELECT now()'",),
    "no triggers": ("ALTER TABLE churn_predictions DISABLE TRIGGER ALL",),
    "no triggers in this session": ("SET session_replication_role = replica",),
}  # fmt: skip
"""What the writer may not do: the statements of one session, the last of which is refused."""


def test_the_writer_cannot_falsify_what_is_published_or_recorded(site: Site, member: Mapping[str, sa.URL]) -> None:
    store = PredictionStore(member[WRITER])
    old, current = (publish(store)[0][0] for _ in range(2))
    before = site.rows(site.churn, "SELECT batch_id, is_current, ab_share FROM scoring_batches ORDER BY 1")

    refused = {what: _refusal(member[WRITER], statements, old, current) for what, statements in FORGERIES.items()}

    # P0001: the session has drawn no number, or has it no more.
    assert {what: state for what, state in refused.items() if state not in (DENIED, "P0001")} == {}
    after = site.rows(site.churn, "SELECT batch_id, is_current, ab_share FROM scoring_batches ORDER BY 1")
    assert after[: len(before)] == before
    assert [is_current for _, is_current, _ in after[len(before) :]] == [False] * 3  # what it may add for itself
    assert site.rows(site.churn, "SELECT count(*), max(account_id) FROM churn_predictions") == [(4, 2)]
    assert site.rows(site.churn, "SELECT count(*) FROM quarantined_rows") == [(0,)]


def _refusal(url: sa.URL, statements: Sequence[str], old: int, current: int) -> str | None:
    with connected(url) as connection:
        for statement in statements[:-1]:
            if statement == "COMMIT":
                connection.commit()
            else:
                connection.exec_driver_sql(Template(statement).substitute(batch=current, old=old))
        return failure(connection, Template(statements[-1]).substitute(batch=current, old=old))


def publish(store: PredictionStore, challenge: Challenge | None = None) -> list[tuple[int, BatchRecord]]:
    return store.publish(Variant("us"), WEEK, in_progress(), challenge)


def in_progress(**changed: object) -> BatchInProgress:
    return BatchInProgress([scored(2)], lambda: (record(2, **changed), NO_ROWS))


def test_what_the_writer_records_bears_its_login_and_the_databases_time(
    site: Site, member: Mapping[str, sa.URL]
) -> None:
    url, login = member[WRITER], member[WRITER].username
    challenge = Challenge(lambda: in_progress(role="challenger", model_version=2), version=2, share=2500, salt="x")
    (champion, _), (challenger, _) = publish(PredictionStore(url), challenge)
    event = ModelEvent(Variant("us"), "promoted", 9, 1, None, "x", "ceo@headquarters", datetime(2001, 1, 1, tzinfo=UTC))
    with ModelEvents(url).recording(Variant("us")) as trail:
        recorded = trail.record(event)
    incidents = Incidents(url)
    incidents.reconcile([Condition("data_stale", {"us": "old"})], ["data_stale"], ["json-1"])
    assert incidents.deliver_next("json-1", lambda _: None)
    with create_engine(url, role=WRITER).begin() as connection:
        flags = f'[{{"batch_id": {champion}, "feature": "total_ngr", "is_confirmed": true, "flagged_by": "ceo"}}]'
        connection.execute(sa.text("SELECT replace_flags(ARRAY[:batch], :flags)"), {"batch": champion, "flags": flags})

    assert recorded.actor == f"{login} (ceo@headquarters)"
    query = """
        SELECT actor, occurred_at FROM model_events UNION ALL SELECT changed_by, opened_at FROM incidents
        UNION ALL SELECT attempted_by, delivered_at FROM alert_deliveries
        UNION ALL SELECT flagged_by, flagged_at FROM drift_flags
        UNION ALL SELECT published_by, published_at FROM scoring_batches
    """
    found = site.rows(site.churn, query)
    assert [name for name, _ in found] == [recorded.actor, *[login] * 5]
    assert all(abs((datetime.now(UTC) - at).total_seconds()) < 60 for _, at in found)
    shares = "SELECT batch_id, is_current, ab_share, ab_salt FROM scoring_batches ORDER BY 1"
    assert site.rows(site.churn, shares) == [(champion, True, 2500, "x"), (challenger, True, 2500, "x")]


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
    *(
        call.replace("SELECT ", "SELECT public.").replace("public.* FROM ", "* FROM public.")
        for call in (*WRITING[2:], *(one for one in DECIDING if "select_members" not in one))
    ),
    "SELECT public.variant_left_out('us', '2026-01-05')",
    "SELECT public.record_export(NULL, 'us', NULL, 0, '{}', 'x', '{}', '{}')",
    "SELECT * FROM public.variant_list('us', '2026-01-05', 1)",
    "SELECT * FROM public.erase_decisions(1, '')",
)


def test_what_a_caller_puts_in_the_way_does_not_run_as_the_owner(site: Site, member: Mapping[str, sa.URL]) -> None:
    """On PostgreSQL 14 everybody may create in ``public``; here the right is granted, and so is calling the rest."""
    caller = member[WRITER]
    run_sql(site.server.set(database=site.churn), f"GRANT CREATE ON SCHEMA public TO {caller.username}")
    everything = "erase_account(bigint, text, integer, bytea, text), drop_weeks(date), erase_decisions(bigint, text)"
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
    called = (*WRITING, *DECIDING)
    owned |= {call.replace("* FROM ", "").removeprefix("SELECT ").partition("(")[0] for call in called}
    owned |= {"variant_list", "variant_left_out", "record_export", "decision_salt", "erase_decisions"}
    assert set(found) == owned | {"require_own_batch", "retain_weeks"}
    assert all("search_path=pg_catalog, pg_temp" in settings for settings in found.values())


def test_an_analyst_connects_by_command_or_by_an_address_without_a_password(
    deployment: Deployment, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = deployment.settings.model_copy(update={"churn_home": tmp_path, "churn_postgres_bin": tmp_path})
    as_embedded = replace(deployment, settings=settings, is_embedded=True)

    dsn = reader_dsn(as_embedded)

    assert str(deployment.database.password) not in dsn
    assert (tmp_path / "pgpass").stat().st_mode & 0o777 == 0o600
    with psycopg2.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT current_role")
        assert cursor.fetchone() == (READER,)
    connection.close()
    assert run_psql(deployment, ["-At", "-c", "SELECT current_role"]) == 0
    assert capfd.readouterr().out == f"{READER}\n"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"no psql here; install it \(.*\), or use postgresql://"):
        run_psql(as_embedded, [])
