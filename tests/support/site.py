"""A deployment of its own for a test: databases, a login with a hostile password, its secret, its bucket."""

import functools
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import boto3
import dagster as dg
import polars as pl
import pytest
import sqlalchemy as sa

from churn.database.connection import create_engine
from tests.support import ROOT

PASSWORD = "p@ss:w/o%rd'\" x"  # noqa: S105
"""Every character that a URL, a shell, a format string or a libpq connection string could trip over."""


@dataclass(frozen=True)
class Site:
    """One deployment's names, and its services as its superuser sees them.

    Attributes:
        server: The superuser's URL of the server.
        login: The URL that the secret describes, with the database ``postgres``.
    """

    server: sa.URL
    login: sa.URL
    mlflow: str
    churn: str
    dagster: str
    bucket: str

    def rows(self, database: str, query: str, **values: object) -> list[tuple[Any, ...]]:
        """Run a statement as the superuser, who sees everything; returns its rows."""
        return run_sql(self.server.set(database=database), query, **values)

    def current(self, where: str = "true") -> pl.DataFrame:
        """Return the current predictions, in order of variant and account."""
        query = f"SELECT * FROM churn_predictions_current WHERE {where} ORDER BY variant, scored_week, account_id"  # noqa: S608
        with create_engine(self.server.set(database=self.churn)).connect() as connection:
            result = connection.execute(sa.text(query))
            rows = [dict(row) for row in result.mappings()]
        for reason in (reason for row in rows for reason in row["reasons"] or ()):
            reason["contribution"] = float(reason["contribution"])  # JSON writes 0 for 0.0
        return pl.DataFrame(rows, schema=list(result.keys()), infer_schema_length=None)

    def put(self, key: str, body: bytes) -> None:
        """Write an object to the bucket."""
        client("s3").put_object(Bucket=self.bucket, Key=key, Body=body)


def client(service: str) -> Any:
    """Return the client of an AWS service at the endpoint that is set; making one takes longer than a call does."""
    return _client(service, os.environ["AWS_ENDPOINT_URL"], os.environ.get("AWS_ENDPOINT_URL_S3"))


@functools.cache
def _client(service: str, _endpoint: str, _endpoint_of_s3: str | None) -> Any:
    return boto3.client(service)


def run_sql(url: sa.URL, query: str, **values: object) -> list[tuple[Any, ...]]:
    with _engine(url).connect() as connection:
        result = connection.execute(sa.text(query), values)
        return [tuple(row) for row in result] if result.returns_rows else []


@functools.lru_cache(maxsize=64)
def _engine(url: sa.URL) -> sa.Engine:
    """Return a URL's engine; a new one asks the server four questions before the first statement."""
    return create_engine(url).execution_options(isolation_level="AUTOCOMMIT")


def n_rows_naming(site: Site, database: str, account: int | str) -> dict[str, int]:
    """Read every table of a database as text; returns how many rows of which name the account."""
    tables = "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    query = "SELECT count(*) FROM {table} AS t WHERE t::text ~ :whole"
    counts = {
        table: site.rows(database, query.format(table=table), whole=rf"\m{account}\M")[0][0]
        for (table,) in site.rows(database, tables)
    }
    assert len(counts) > 10
    return {table: count for table, count in counts.items() if count}


def create_login(server: sa.URL, attributes: str = "CREATEDB CREATEROLE") -> sa.URL:
    """Make a login that is no superuser, whose password holds everything awkward."""
    name = f"app_{uuid.uuid4().hex[:8]}"
    literal = PASSWORD.replace("'", "''").replace(":", "\\:")
    run_sql(server, f"CREATE ROLE {name} LOGIN NOSUPERUSER {attributes} PASSWORD '{literal}'")
    return server.set(username=name, password=PASSWORD)


def require_no_password(*texts: str) -> None:
    """Fail when a text holds the password, as it is or as a URL, a repr or JSON would write it."""
    spellings = {PASSWORD, quote(PASSWORD), quote(PASSWORD, safe=""), quote_plus(PASSWORD), repr(PASSWORD)[1:-1]}
    url = sa.URL.create("x", "user", PASSWORD, "host").render_as_string(hide_password=False)
    spellings |= {json.dumps(PASSWORD)[1:-1], url.removeprefix("x://user:").removesuffix("@host")}
    for text in texts:
        assert not [spelling for spelling in spellings if spelling in text]


def disconnect(server: sa.URL, database: str) -> None:
    """End every connection to a database; pools leave some behind."""
    query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name AND pid <> pg_backend_pid()"
    run_sql(server, query, name=database)


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def open_instance(home: Path, database: sa.URL, patch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """Open the Dagster instance that the project's own ``dagster.yaml`` describes.

    Contexts made of it enter an instance of their own and must be left, or later tests find theirs.
    """
    shutil.copyfile(ROOT / "orchestration" / "config" / "dagster.yaml", home / "dagster.yaml")
    url = database.set(drivername="postgresql").render_as_string(hide_password=False)
    patch.setenv("CHURN_DAGSTER_DATABASE_URL", url)
    patch.setenv("CHURN_CONCURRENT_RUNS", "2")
    patch.setenv("DAGSTER_HOME", str(home))
    opened = dg.DagsterInstance.from_config(str(home))
    # Else it connects for each event, which costs more than the event.
    opened.optimize_for_webserver(statement_timeout=60_000, pool_recycle=3600, max_overflow=20)
    try:
        yield opened
    finally:
        opened.dispose()


def configure(server: sa.URL, login: sa.URL, bucket: str, patch: pytest.MonkeyPatch) -> Site:
    """Store the secret, and set the environment variables of a real deployment."""
    unique = uuid.uuid4().hex[:8]
    site = Site(server, login, f"MLflow-{unique}", f"churn-{unique}", f"dagster_{unique}", bucket)
    secret = {"username": login.username, "password": login.password, "host": login.host, "port": login.port}
    client("secretsmanager").create_secret(Name=f"churn/{unique}", SecretString=json.dumps(secret))
    patch.setenv("MLFLOW_SECRET_NAME", f"churn/{unique}")
    patch.setenv("MLFLOW_DB_NAME", site.mlflow)
    patch.setenv("CHURN_DB_NAME", site.churn)
    patch.setenv("CHURN_DAGSTER_DB_NAME", site.dagster)
    return site


@contextmanager
def databases_of(site: Site, schemas: Mapping[str, str]) -> Iterator[None]:
    """Make a deployment's databases but Dagster's, and drop all on the way out."""
    create_database(site, site.mlflow, schemas["mlflow"])
    create_database(site, site.churn, schemas["churn"])
    yield
    for name in (site.mlflow, site.churn, site.dagster):  # dozens would fill disks, and make the server slow to stop
        run_sql(site.server, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def create_database(site: Site, name: str, template: str) -> None:
    """Make a database as another one is that nobody is connected to."""
    how = f'TEMPLATE "{template}" OWNER {site.login.username} STRATEGY file_copy'  # half the time of the default
    run_sql(site.server, f'CREATE DATABASE "{name}" {how}')


@dataclass(frozen=True)
class Said:
    """What a command came to: its exit status and what it wrote."""

    status: int
    out: str
    err: str

    def require_one_line(self, *parts: str, status: int = 1) -> None:
        """Fail unless the command ended with ``status`` and one line on stderr that holds ``parts``."""
        assert (self.status, self.err.count("\n")) == (status, 1), self
        assert not [part for part in parts if part not in self.err], self.err
        assert "Traceback" not in self.err
        require_no_password(self.out, self.err)


Run = Callable[..., Said]


def run_script(script: str, *arguments: str, folder: Path = ROOT) -> Said:
    """Run one of the project's scripts as a person does, in a process of its own."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    require_no_password(done.stdout, done.stderr)
    return Said(done.returncode, done.stdout, done.stderr)


def bundled(name: str) -> bytes:
    """Read one of the repository's own sample artifacts."""
    folder = "models" if name.startswith("xgb") else "data"
    return (ROOT / folder / "churn" / name).read_bytes()


def put_model_files(site: Site, prefix: str = "", **replaced: bytes | None) -> None:
    """Upload a variant's three files to the bucket: the bundled ones, or those given; ``None`` leaves one out."""
    files = {
        "model": ("models/churn/xgb_churn_model_2.bin", bundled("xgb_churn_model_2.bin")),
        "names": ("data/churn/feature_names_3.json", bundled("feature_names_3.json")),
        "sample": ("data/churn/X_test_sample_2.json", bundled("X_test_sample_2.json")),
    }
    for part, (key, body) in files.items():
        content = replaced.get(part, body)
        if content is not None:
            site.put(prefix + key, content)


def change_secret(site: Site, **values: object) -> None:
    secret = {"username": site.login.username, "password": PASSWORD, "host": site.login.host, "port": site.login.port}
    name = f"churn/{site.churn.removeprefix('churn-')}"
    boto3.client("secretsmanager").put_secret_value(SecretId=name, SecretString=json.dumps(secret | values))
