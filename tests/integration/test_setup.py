"""At stake: set-up is the only thing that makes tables and roles, and people run it at the worst of times: twice, two
at once, after an upgrade, with a wrong secret. It must end in the same deployment each time, or in one clear line.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from churn.cli.up import serve
from churn.database.connection import READER, WRITER, create_engine, locked_alone
from churn.database.embedded import embedded_postgres
from churn.database.predictions import read_current
from churn.database.schema import ensure_roles
from churn.deployment.services import Deployment
from churn.errors import AccessDeniedError, ChurnError, RegistryError, StoreError, UsageError
from churn.variants import Variant
from tests.support import ROOT
from tests.support.site import PASSWORD, Run, Site, change_secret, configure, create_login, require_no_password, run_sql

SETUP = "experiment_tracking/setup.py"


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[sa.URL]:
    """A PostgreSQL without our roles, which a session's other tests have made on the shared one."""
    with embedded_postgres(tmp_path / "own-server") as url:
        yield url


@pytest.fixture
def empty_site(own_server: sa.URL, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Site:
    """An empty server of its own, and a login that is no superuser."""
    return configure(own_server, create_login(own_server), bucket, monkeypatch)


def everything(site: Site) -> dict[str, object]:
    """All that set-up may make: databases, roles, memberships, relations with their grants, functions, rows."""
    relations = (
        "SELECT relname, relkind, relfilenode, relowner::regrole::text, relacl::text FROM pg_class "
        "WHERE relnamespace = 'public'::regnamespace ORDER BY relname"
    )
    found: dict[str, object] = {
        "databases": site.rows("postgres", "SELECT datname, datdba FROM pg_database ORDER BY oid"),
        "roles": site.rows("postgres", "SELECT rolname, rolcanlogin FROM pg_roles ORDER BY oid"),
        "members": site.rows("postgres", "SELECT oid, roleid, member, set_option FROM pg_auth_members ORDER BY oid"),
    }
    for database in (site.mlflow, site.churn, site.dagster):
        found[database] = site.rows(database, relations)
    for database in (site.mlflow, site.churn):
        found[f"{database} revision"] = site.rows(database, "SELECT version_num FROM alembic_version")
    return found | {"experiments": site.rows(site.mlflow, "SELECT * FROM experiments ORDER BY experiment_id")}


def databases(site: Site) -> set[str]:
    held = {name for (name,) in site.rows("postgres", "SELECT datname FROM pg_database")}
    return held & {site.mlflow, site.churn, site.dagster}


def experiments(site: Site) -> dict[str, tuple[str, str]]:
    """Return each experiment's location and life-cycle stage by name."""
    query = "SELECT name, artifact_location, lifecycle_stage FROM experiments WHERE name LIKE 'churn%'"
    return {name: (location, stage) for name, location, stage in site.rows(site.mlflow, query)}


def test_the_command_makes_a_deployment_of_an_empty_server_and_a_second_run_changes_nothing(
    empty_site: Site, set_up: Run
) -> None:
    first = set_up("--geography", "US")

    assert (first.status, first.err) == (0, "")
    assert experiments(empty_site) == {
        "churn_prediction-geography-us": (f"s3://{empty_site.bucket}/geography-us/mlflow", "active")
    }
    in_working_folder = "SELECT count(*) FROM experiments WHERE position('mlruns' in artifact_location) > 0"
    assert empty_site.rows(empty_site.mlflow, in_working_folder) == [(0,)]
    assert databases(empty_site) == {empty_site.mlflow, empty_site.churn, empty_site.dagster}
    made = everything(empty_site)
    assert first.out.count("created") == 7  # three databases, the roles, two schemas, the experiment

    second = set_up("--geography", "US")

    assert (second.status, second.err) == (0, "")
    assert everything(empty_site) == made
    assert [word for word in ("created", "migrated", "restored") if word in second.out] == []
    assert (second.out.count("found"), second.out.count("already at")) == (5, 2)


@pytest.mark.slow
def test_two_at_once_on_an_empty_server_both_succeed(empty_site: Site) -> None:
    command = [sys.executable, SETUP, "--company", "ClientA"]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [process.communicate(timeout=240) for process in both]

    assert [process.returncode for process in both] == [0, 0], said
    require_no_password(*(text for pair in said for text in pair))
    assert list(experiments(empty_site)) == ["churn_prediction-company-clienta"]
    # Whoever was second must have found what the first one made.
    out = "".join(pair[0] for pair in said)
    assert (out.count("schema: created"), out.count("schema: already at")) == (2, 2)
    assert (out.count("): created, artifacts"), out.count("): found, artifacts")) == (1, 1)


def test_an_older_mlflow_schema_is_migrated_and_what_it_held_is_kept(site: Site, set_up: Run) -> None:
    assert set_up("--geography", "us").status == 0
    downgrade_mlflow(site)
    (before,) = site.rows(site.mlflow, "SELECT version_num FROM alembic_version")[0]
    run_sql(site.login.set(database=site.mlflow), "DELETE FROM experiment_tags WHERE key = 'mlflow.experimentKind'")

    said = set_up("--geography", "us")

    assert said.status == 0, said
    (after,) = site.rows(site.mlflow, "SELECT version_num FROM alembic_version")[0]
    assert before != after
    assert f"MLflow schema: migrated from {before} to {after}" in said.out
    assert "experiment churn_prediction-geography-us (id 1): found" in said.out
    kinds = "SELECT value FROM experiment_tags WHERE key = 'mlflow.experimentKind'"
    assert site.rows(site.mlflow, kinds) == [("custom_model_development",)]  # of experiments made before the tag, too


@pytest.mark.parametrize(
    "revision", ["0005", "0013", "0020"], ids=["before the first release", "between releases", "of another 0020"]
)
def test_a_predictions_schema_of_other_code_is_refused_and_left_as_it_is(
    site: Site, set_up: Run, revision: str
) -> None:
    site.rows(site.churn, "UPDATE alembic_version SET version_num = :revision", revision=revision)
    site.rows(site.churn, "DROP FUNCTION oldest_code()")  # which no such schema has

    said = set_up("--geography", "us")

    said.require_one_line(
        f"is at schema {revision}, which this code does not know", "release 0.9.0", f"commit with migration {revision}"
    )
    assert site.rows(site.churn, "SELECT version_num FROM alembic_version") == [(revision,)]


def test_scoring_refuses_an_older_mlflow_schema_and_leaves_it_as_it_is(site: Site, deployment: Deployment) -> None:
    downgrade_mlflow(site)
    before = site.rows(site.mlflow, "SELECT version_num FROM alembic_version")

    with pytest.raises(
        StoreError, match=r"is at schema \w+ and the installed MLflow needs \w+; run experiment_tracking"
    ):
        deployment.registry(read_only=True)

    assert site.rows(site.mlflow, "SELECT version_num FROM alembic_version") == before


def downgrade_mlflow(site: Site) -> None:
    """Take MLflow's schema one revision back, with MLflow's own migration."""
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config

    url = site.login.set(database=site.mlflow)
    config = _get_alembic_config(url.render_as_string(hide_password=False))
    with create_engine(url).begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "-1")


def test_a_deleted_experiment_is_restored(site: Site, set_up: Run) -> None:
    from mlflow import MlflowClient

    assert set_up().status == 0
    client = MlflowClient(site.login.set(database=site.mlflow).render_as_string(hide_password=False))
    client.delete_experiment(client.get_experiment_by_name("churn_prediction").experiment_id)
    assert experiments(site)["churn_prediction"] == (f"s3://{site.bucket}/mlflow", "deleted")

    said = set_up()

    assert "experiment churn_prediction (id 1): restored" in said.out
    assert experiments(site)["churn_prediction"] == (f"s3://{site.bucket}/mlflow", "active")


def test_a_missing_database_is_made_beside_those_that_are_there(site: Site, set_up: Run) -> None:
    assert databases(site) == {site.mlflow, site.churn}

    said = set_up()

    assert said.status == 0, said
    made = [line for line in said.out.splitlines() if line.startswith("database") and line.endswith("created")]
    assert made == [f"database {site.dagster} at 127.0.0.1:{site.server.port}: created"]
    assert databases(site) == {site.mlflow, site.churn, site.dagster}


def test_without_a_bucket_artifacts_go_to_the_deployments_own_folder(
    site: Site, set_up: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_S3_BUCKET")

    assert set_up("--geography", "us", "--company", "clienta").status == 0

    location, _ = experiments(site)["churn_prediction-geography-us-company-clienta"]
    home = Path(os.environ["CHURN_HOME"])
    assert location == (home / "artifacts/geography-us/company-clienta/mlflow").as_uri()


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        (WRITER, "CREATE TABLE notes (text text)"),
        (WRITER, "UPDATE churn_predictions SET churn_probability = 0"),
        (WRITER, "DELETE FROM scoring_batches"),
        (WRITER, "DROP TABLE quarantined_rows"),
        (READER, "CREATE TABLE notes (text text)"),
        (READER, "INSERT INTO quarantined_rows VALUES (1, 1, 1, '{}', '{}')"),
        (READER, "INSERT INTO churn_predictions VALUES ('2026-11-23', 1, 1, 0.5)"),
        (READER, "UPDATE scoring_batches SET is_current = false"),
        (READER, "SELECT open_week('2026-11-23')"),
    ],
)
def test_a_role_may_not_do_more_than_its_work(site: Site, role: str, statement: str) -> None:
    engine = create_engine(site.login.set(database=site.churn), role=role)
    with engine.connect() as connection, pytest.raises(DBAPIError) as refused:
        connection.exec_driver_sql(statement)
    assert getattr(refused.value.orig, "pgcode", None) == "42501", refused.value


def test_the_reader_sees_the_view_and_a_stranger_sees_nothing(site: Site) -> None:
    query = "SELECT count(*) AS n FROM churn_predictions_current"

    assert read_current(site.login.set(database=site.churn), query)["n"].to_list() == [0]

    stranger = create_login(site.server, attributes="NOCREATEDB").set(database=site.churn)
    with pytest.raises(DBAPIError, match="permission denied"):
        run_sql(stranger, query)
    with pytest.raises(AccessDeniedError, match="lacks a role"):
        read_current(stranger, query)


def test_scoring_cannot_write_to_mlflow(deployment: Deployment) -> None:
    registry = deployment.registry(read_only=True)
    assert registry.variants() == []

    with pytest.raises(RegistryError, match="permission denied"):
        registry.ensure_experiment(Variant("us"), "s3://elsewhere")


def test_nothing_shows_the_password(deployment: Deployment, site: Site) -> None:
    require_no_password(repr(deployment), str(deployment), repr(deployment.settings))

    wrong = site.login.set(database="absent")
    with pytest.raises(ChurnError) as missing:
        read_current(wrong, "SELECT 1")
    require_no_password(str(missing.value), repr(missing.value))


@pytest.mark.parametrize(
    ("held", "parts"),
    [
        (None, ["there is no secret", "us-east-1", "MLFLOW_SECRET_NAME"]),
        ("postgresql://user:hunter2@host", ["is not a JSON object", "username"]),
        ('["user", "hunter2"]', ["is not a JSON object", "username"]),
        ('{"user": "u", "password": "hunter2"}', ["lacks username", "it has: ['password']"]),
        ('{"username": "u", "password": ""}', ["lacks password"]),
        ('{"username": "u", "password": "hunter2", "port": "five"}', ["a port that is not a number", "1 to 65535"]),
        (b"hunter2", ["is binary"]),
    ],
)
def test_a_secret_that_does_not_do_is_told_in_one_line_and_nothing_is_written(
    bare_site: Site, set_up: Run, monkeypatch: pytest.MonkeyPatch, held: str | bytes | None, parts: list[str]
) -> None:
    monkeypatch.setenv("MLFLOW_SECRET_NAME", f"{bare_site.churn}/other")
    if held is not None:
        value = {"SecretBinary": held} if isinstance(held, bytes) else {"SecretString": held}
        boto3.client("secretsmanager").create_secret(Name=f"{bare_site.churn}/other", **value)

    said = set_up()

    said.require_one_line("setup.py: ", f"{bare_site.churn}/other", *parts)
    assert "hunter2" not in said.err
    assert databases(bare_site) == set()


def test_a_wrong_password_is_told_in_one_line_and_nothing_is_written(bare_site: Site, set_up: Run) -> None:
    change_secret(bare_site, password=PASSWORD + "!")

    set_up().require_one_line("setup.py: ", "refused the password", str(bare_site.login.username), "in the secret")

    assert databases(bare_site) == set()


def test_a_server_that_is_down_is_told_in_seconds(bare_site: Site, set_up: Run) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        change_secret(bare_site, port=port)
        started = time.monotonic()

        said = set_up()

    said.require_one_line("setup.py: ", f"127.0.0.1:{port}", "did not answer", "MLFLOW_DB_HOST")
    assert time.monotonic() - started < 20


def test_a_server_that_accepts_and_says_nothing_is_told_in_seconds(bare_site: Site, set_up: Run) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        change_secret(bare_site, port=silent.getsockname()[1])
        started = time.monotonic()

        said = set_up()

    said.require_one_line("setup.py: ", "did not answer", "timeout")
    assert time.monotonic() - started < 20


def test_a_secrets_manager_that_is_down_is_told_in_seconds(
    bare_site: Site, set_up: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    started = time.monotonic()

    set_up().require_one_line("setup.py: ", "Secrets Manager in us-east-1 did not answer")

    assert time.monotonic() - started < 20
    assert databases(bare_site) == set()


@pytest.mark.parametrize(
    "geography", ["us; DROP DATABASE x", "../us", "u-s", "us'", "", "\uff35\uff33", "x" * 65, "us\n", "company/us"]
)
def test_an_unsafe_geography_is_wrong_usage_and_nothing_is_written(
    bare_site: Site, set_up: Run, geography: str
) -> None:
    set_up("--geography", geography).require_one_line("setup.py: ", "geography", "is not allowed", status=2)

    assert databases(bare_site) == set()


def test_a_login_that_may_not_create_databases_is_told_what_set_up_needs(
    own_server: sa.URL, bucket: str, monkeypatch: pytest.MonkeyPatch, set_up: Run
) -> None:
    configure(own_server, create_login(own_server, "NOCREATEDB CREATEROLE"), bucket, monkeypatch)

    set_up().require_one_line("permission denied to create database", "a login with CREATEDB, CREATEROLE")


def test_a_login_that_may_not_create_roles_is_told_what_set_up_needs(
    own_server: sa.URL, bucket: str, monkeypatch: pytest.MonkeyPatch, set_up: Run
) -> None:
    configure(own_server, create_login(own_server, "CREATEDB NOCREATEROLE"), bucket, monkeypatch)

    set_up().require_one_line("permission denied to create role", "a login with CREATEDB, CREATEROLE")


def test_roles_that_another_login_made_are_not_taken_without_leave(
    empty_site: Site, set_up: Run, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ensure_roles(empty_site.login) == ["churn_owner", "churn_writer", "churn_reader"]
    second = configure(empty_site.server, create_login(empty_site.server), bucket, monkeypatch)

    set_up().require_one_line("permission denied to grant role", "ADMIN OPTION on the churn roles")

    for role in ("churn_owner", "churn_writer", "churn_reader"):
        run_sql(second.server, f"GRANT {role} TO {second.login.username}")
    assert ensure_roles(second.login) == []  # now a member, though it may not hand them on


def test_a_registry_that_was_never_opened_as_its_owner_is_refused_in_one_line(
    site: Site, deployment: Deployment
) -> None:
    site.rows(site.mlflow, "DELETE FROM experiments")

    with pytest.raises(RegistryError, match="permission denied") as refused:
        deployment.registry(read_only=True)

    assert "\n" not in str(refused.value)


def test_a_second_churn_up_of_an_instance_is_refused_and_names_the_first(site: Site, dagster_database: str) -> None:
    database = site.login.set(database=dagster_database)
    refusal = pytest.raises(UsageError, match=r"^churn up \(process 7 of ann@one\) runs on .*; stop it")
    with locked_alone(database, "churn up", "churn up (process 7 of ann@one)"), refusal:
        serve(dagster_port=0, mlflow_port=0)

    with locked_alone(database, "churn up", "another"):
        pass
