"""Make the deployment's logins and databases on a managed server; safe to run again, which also changes passwords.

What infra/compose/databases.sql does on an empty volume, as an administrator who is no superuser. Runs in the image by
``python -c``; the server and the passwords come from the environment. PostgreSQL is sent no password, only what it
stores of one, so that no log of its statements holds any.
"""

import os
import sys
from contextlib import closing

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection, encrypt_password

GROUPS = ("churn_owner", "churn_writer", "churn_reader")
# A login may do what those named beside it may: docs/adr/0006, infra/compose/databases.sql.
LOGINS = {
    "dagster": (),
    "mlflow": ("churn_writer",),
    "setup": (*GROUPS, "dagster"),
    "churn": ("churn_writer", "churn_reader"),
    "analyst": ("churn_reader",),
    "watch": ("churn_reader",),
}
DATABASES = {"churn_db": "setup", "mlflow_db": "mlflow", "dagster_db": "dagster"}


def make(server: connection, kind: str, name: str) -> None:
    """Make a role or a database, unless it is there."""
    catalog = {
        "ROLE": "SELECT 1 FROM pg_roles WHERE rolname = %s",
        "DATABASE": "SELECT 1 FROM pg_database WHERE datname = %s",
    }
    with server.cursor() as cursor:
        cursor.execute(catalog[kind], [name])
        is_there = cursor.fetchone() is not None
        if not is_there:
            cursor.execute(sql.SQL(f"CREATE {kind} {{}}").format(sql.Identifier(name)))
    sys.stdout.write(f"{kind.lower()} {name}: {'found' if is_there else 'created'}\n")


def set_up(server: connection) -> None:
    """Make all that is missing, and set every login's password."""
    for group in GROUPS:
        make(server, "ROLE", group)
    with server.cursor() as cursor:
        for login, memberships in LOGINS.items():
            make(server, "ROLE", login)
            password = encrypt_password(os.environ[f"{login.upper()}_DB_PASSWORD"], login, server, "scram-sha-256")
            cursor.execute(
                sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(login), sql.Literal(password))
            )
            for group in memberships:
                cursor.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), sql.Identifier(login)))
        cursor.execute("ALTER ROLE setup CREATEROLE")  # which makes readers
        cursor.execute("REVOKE churn_owner, dagster FROM churn")  # as earlier releases had it
        for database, owner in DATABASES.items():
            make(server, "DATABASE", database)
            names = {"database": sql.Identifier(database), "owner": sql.Identifier(owner)}
            # Who gives a database away must be a member of whom it is given to.
            cursor.execute(sql.SQL("GRANT {owner} TO CURRENT_USER").format(**names))
            cursor.execute(sql.SQL("ALTER DATABASE {database} OWNER TO {owner}").format(**names))
            cursor.execute(sql.SQL("REVOKE CONNECT ON DATABASE {database} FROM PUBLIC").format(**names))
        cursor.execute("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")
        cursor.execute("GRANT CONNECT ON DATABASE churn_db TO churn, analyst, watch")
        cursor.execute("GRANT CONNECT ON DATABASE dagster_db TO churn")


if __name__ == "__main__":
    # Not psycopg2's own `with`, which opens a transaction: databases are made outside of any.
    with closing(psycopg2.connect(dbname="postgres", connect_timeout=10)) as administration:
        administration.autocommit = True
        set_up(administration)
