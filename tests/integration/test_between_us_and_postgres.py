"""At stake: what stands between scoring and PostgreSQL. A pooler that drops the role and the limits lets scoring run as
its login, unnoticed; a failover leaves connections to a standby; a DBA makes the databases and grants what is asked.
"""

import pytest
import sqlalchemy as sa

from churn.database.connection import OWNER, READER, WRITER, create_engine, errors_translated, require_connection
from churn.database.schema import ensure_database, ensure_roles, migrate_predictions, require_predictions_schema
from churn.errors import AccessDeniedError, DatabaseUnavailableError, StoreError
from tests.support.pooler import pooler
from tests.support.site import Site, create_login, run_sql

SETTINGS = r"role|timezone|tcp\w+|client\w+|max\w+|jit"


# What the pooler drops, the role, and what the message says.
DROPPED: list[tuple[str, str | None, str | None]] = [
    ("nothing", WRITER, None),
    ("nothing", None, None),
    ("tcp_keepalives_idle", WRITER, None),
    (SETTINGS, WRITER, r"\['none', .*'0'\]"),
    (SETTINGS, READER, "'none'"),
    (SETTINGS, None, "'0'"),
    ("role", WRITER, r"\['none', 'UTC', '10s'\]"),
    ("role", READER, "'none'"),
    ("role", OWNER, "'none'"),
    ("timezone", WRITER, "Europe/Rome"),
    ("timezone", None, "Europe/Rome"),
    ("client_connection_check_interval", WRITER, "'0'"),
    ("role|client_connection_check_interval", WRITER, r"\['none', 'UTC', '0'\]"),
]


def test_a_pooler_that_drops_settings_is_refused_each_time(site: Site) -> None:
    run_sql(site.server, f'ALTER DATABASE "{site.churn}" SET timezone = "Europe/Rome"')
    for dropped, role, told in DROPPED:
        with pooler(site.login.port or 5432, dropped) as port:
            url = site.login.set(database=site.churn, port=port)
            engine = create_engine(url, role=role, pool_size=2)
            for _ in range(2):
                if told is None:
                    with engine.connect() as connection:
                        assert connection.scalar(sa.text("SELECT 1")) == 1
                else:
                    with pytest.raises(StoreError, match=f"{told}.*PgBouncer and RDS Proxy"), errors_translated(url):
                        engine.connect()
            engine.dispose()


def test_a_server_that_became_a_standby_is_waited_for_on_new_connections(site: Site) -> None:
    url = site.login.set(database=site.churn)
    engine = create_engine(url, role=WRITER, pool_size=1)
    read_only = f'ALTER DATABASE "{site.churn}" SET default_transaction_read_only ='

    def add(number: int) -> None:
        with errors_translated(url), engine.begin() as connection:
            connection.execute(sa.text("INSERT INTO watched_variants VALUES (:v, now())"), {"v": str(number)})

    run_sql(site.server, f"{read_only} on")
    with pytest.raises(DatabaseUnavailableError, match="25006: cannot execute INSERT in a read-only transaction"):
        add(1)
    run_sql(site.server, f"{read_only} off")
    add(2)

    assert site.rows(site.churn, "SELECT variant FROM watched_variants") == [("2",)]
    engine.dispose()


def test_a_schema_of_other_code_is_not_told_to_be_set_up_again(site: Site) -> None:
    site.rows(site.churn, "UPDATE alembic_version SET version_num = '9999'")
    site.rows(site.churn, "DROP FUNCTION oldest_code()")

    with pytest.raises(StoreError, match=r"is at schema 9999, .*use the code that made it") as refused:
        require_predictions_schema(site.login.set(database=site.churn), role=WRITER)

    assert "setup.py" not in str(refused.value)


def test_databases_of_a_dba_say_what_the_dba_must_grant(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    dba, login = create_login(site.server), create_login(site.server, "NOCREATEDB NOCREATEROLE")
    name = f"of_{dba.username}"
    run_sql(site.server, f"CREATE DATABASE {name} OWNER {dba.username}")
    url = login.set(database=name)

    with pytest.raises(
        AccessDeniedError, match=r"42501: permission denied.*ADMIN OPTION on the churn roles"
    ) as missing:
        ensure_roles(url)
    for role in (OWNER, WRITER, READER):
        run_sql(site.server, f"GRANT {role} TO {login.username}")
    assert (ensure_database(url), ensure_roles(url)) == (False, [])
    with pytest.raises(AccessDeniedError, match="42501: permission denied for schema public") as denied:
        migrate_predictions(url)
    assert not [error for error in (missing, denied) if "setup.py" in str(error.value)]

    statement = f"GRANT ALL ON SCHEMA public TO {login.username} WITH GRANT OPTION"
    assert statement.replace(str(login.username), "this login") in str(denied.value)
    run_sql(dba.set(database=name), statement)
    before, after = migrate_predictions(url)
    assert f"limit them by ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '5min'" in caplog.text

    assert (before, bool(after)) == (None, True)
    require_connection(url, role=WRITER)
    run_sql(site.server, f"DROP DATABASE {name} WITH (FORCE)")
