"""At stake: one day the server's disk is gone, in the middle of a week. What was published must come back to the bit,
what was not must then be done, and the commands that people will type that day must be the ones that were tried.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest
import sqlalchemy as sa

from churn.database.embedded import embedded_postgres
from churn.deployment.services import open_deployment
from churn.deployment.settings import load_settings
from churn.variants import Variant
from orchestration.partitions import sync_partitions
from tests.support import ROOT
from tests.support.backup import commands, environment
from tests.support.site import (
    PASSWORD,
    Run,
    Site,
    configure,
    create_login,
    open_instance,
    put_model_files,
    require_no_password,
    run_sql,
)

WEEK = "2026-11-16"
PUBLISHED = "SELECT * FROM churn_predictions_current ORDER BY variant, account_id"
TRAIL = "SELECT * FROM model_events ORDER BY event_id"


def run_as_written(name: str, administrator: sa.URL, site: Site, backup: Path) -> str:
    done = subprocess.run(
        ["bash", "-e", "-c", commands(name)],
        env=environment(administrator, site, backup),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def score_week(expected: int, *resumed: str) -> None:
    """Run the weekly job in a process of its own, over both variants."""
    script = ROOT / "tests" / "support" / "run_job.py"
    command = [sys.executable, str(script), "base", "geography-us", WEEK, *resumed]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == expected, done.stderr[-2000:]


def held(server: sa.URL, site: Site) -> Mapping[str, list[tuple[Any, ...]]]:
    """What must come back: every table's rows of predictions, and who was champion."""
    url = server.set(database=site.churn)
    return {
        query: run_sql(url, query)
        for query in (PUBLISHED, TRAIL, "SELECT p::text FROM churn_predictions AS p ORDER BY 1")
    }


@pytest.mark.slow
def test_a_week_goes_on_after_its_server_was_lost_and_restored(  # noqa: PLR0917 fixtures
    homes: Path, bucket: str, set_up: Run, log_model: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHURN_LOCAL_FALLBACK", "never")
    home, backup = tmp_path / "dagster", tmp_path / "backup"
    home.mkdir()
    lost = homes / "to-be-lost"
    with embedded_postgres(lost) as server:
        site = configure(server, create_login(server), bucket, monkeypatch)
        site.put("data/churn/activity.parquet", (ROOT / "data/churn/activity.parquet").read_bytes())
        put_model_files(site)
        put_model_files(site, "geography-us/")
        site.put("geography-us/data/churn/activity.parquet", b"PAR1 and no more")
        assert set_up().status == 0
        assert log_model("--variant", "base", "--variant", "geography-us").status == 0
        with open_instance(home, site.login.set(database=site.dagster), monkeypatch) as instance:
            sync_partitions(instance, [Variant(), Variant("us")])
            score_week(1)
            run = instance.get_runs(limit=1)[0]
        before = held(server, site)
        assert {row[0] for row in before[PUBLISHED]} == {"base"}
        run_as_written("back up", server, site, backup)
    require_no_secrets(backup)
    shutil.rmtree(lost / "postgres")

    with embedded_postgres(homes / "restored") as server:
        said = run_as_written("restore", server, site, backup)
        assert said.count("ERROR") == 1, said  # the administrator's own role
        take_over(site, server, monkeypatch)
        assert "schema: already at" in set_up().out

        assert held(server, site) == before
        site.put("geography-us/data/churn/activity.parquet", (ROOT / "data/churn/activity.parquet").read_bytes())
        with open_instance(
            home, site.login.set(host=server.host, port=server.port, database=site.dagster), monkeypatch
        ) as instance:
            score_week(0, run.run_id)
            assert instance.get_runs(limit=1)[0].parent_run_id == run.run_id
        after = held(server, site)
        assert [row for row in after[PUBLISHED] if row[0] == "base"] == before[PUBLISHED]
        assert len(after[PUBLISHED]) == 2 * len(before[PUBLISHED])
        require_rights(server, site)


def take_over(site: Site, server: sa.URL, patch: pytest.MonkeyPatch) -> None:
    """Give the login its password again, and the secret the new address."""
    literal = PASSWORD.replace("'", "''").replace(":", "\\:")
    run_sql(server, f"ALTER ROLE {site.login.username} PASSWORD '{literal}'")
    secret = {"username": site.login.username, "password": PASSWORD, "host": server.host, "port": server.port}
    name = os.environ["MLFLOW_SECRET_NAME"]
    boto3.client("secretsmanager").put_secret_value(SecretId=name, SecretString=json.dumps(secret))


def require_no_secrets(backup: Path) -> None:
    files = list(backup.iterdir())
    assert len(files) == 4
    for file in files:
        assert file.stat().st_mode & 0o077 == 0
        require_no_password(file.read_bytes().decode("latin-1"))
    assert "SCRAM" not in (backup / "globals.sql").read_text()


def require_rights(server: sa.URL, site: Site) -> None:
    """Fail unless the roles came back with their rights, and no more than those."""
    url = server.set(database=site.churn)
    query = (
        "SELECT has_any_column_privilege('churn_writer', 'churn_predictions', 'INSERT'), "
        "has_table_privilege('churn_writer', 'churn_predictions', 'DELETE'), "
        "has_table_privilege('churn_reader', 'churn_predictions_current', 'SELECT'), "
        "has_function_privilege('churn_writer', 'drop_weeks(date)', 'EXECUTE')"
    )
    assert run_sql(url, query) == [(True, False, True, False)]
    with open_deployment(load_settings()) as deployment:
        deployment.scorer()
