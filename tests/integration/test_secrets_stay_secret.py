"""At stake: passwords and alert URLs are handled by every command and every run. One that lands in a log, a table, a
message or a process list is read by all who may read that; and a UI that listens to the network shows it to everybody.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import psutil
import pytest

from churn.database.incidents import Incidents
from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import load_settings
from churn.variants import Variant
from churn.workflows.alert import deliver
from orchestration.failed_runs import failed_runs
from orchestration.partitions import sync_partitions
from tests.support import ROOT
from tests.support.children import bound
from tests.support.inputs import activity, as_parquet, put_input
from tests.support.site import Run, Site, put_model_files, require_no_password

TOKEN = "al3rt-t0ken-0f-a-receiver"  # noqa: S105
AWS_KEY = "aws-s3cret-key-0f-the-r0le"
UP_WITHIN_S = 120


def require_no_secret(where: str, text: str) -> None:
    require_no_password(text)
    for secret in (TOKEN, AWS_KEY):
        assert secret not in text, where


class CommandLines:
    """What ``ps`` shows of the processes that this one started, and of those that they did."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._is_over = threading.Event()

    @contextmanager
    def watched(self) -> Iterator[None]:
        watcher = threading.Thread(target=self._watch)
        watcher.start()
        try:
            yield
        finally:
            self._is_over.set()
            watcher.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._is_over.wait(0.4):
            for process in me.children(recursive=True):
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    self.seen.add(" ".join(process.cmdline()))


@pytest.fixture
def secretive(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A deployment with a secret of every kind, and a receiver of alerts that is down; returns Dagster's home."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setenv("CHURN_ALERT_URLS", f"json://someone:{TOKEN}@127.0.0.1:{port}/{TOKEN}?+X-Token={TOKEN}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", AWS_KEY)
    monkeypatch.setenv("CHURN_LOCAL_FALLBACK", "never")
    put_model_files(site)
    put_model_files(site, "geography-us/")
    put_input(site, "base", as_parquet(activity()))
    put_input(site, "geography-us", b"PAR1 and no more")
    return tmp_path / "dagster-home"


def texts_of(site: Site) -> Iterator[tuple[str, str]]:
    """Every row of every table of the three databases, and what their connections asked last."""
    tables = "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    whole = "SELECT t::text FROM {} AS t"
    n_rows = 0
    for database in (site.churn, site.mlflow, site.dagster):
        for (table,) in site.rows(database, tables):
            for (row,) in site.rows(database, whole.format(table)):
                n_rows += 1
                yield f"{database}.{table}", row
    assert n_rows > 200
    for (query,) in site.rows("postgres", "SELECT query FROM pg_stat_activity WHERE query IS NOT NULL"):
        yield "pg_stat_activity", query


def files_of(*folders: Path) -> Iterator[tuple[str, str]]:
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        yield str(path), path.read_bytes().decode("latin-1")


def test_a_deployment_at_work_and_in_trouble_shows_no_secret(  # noqa: PLR0917 fixtures
    site: Site,
    secretive: Path,
    instance: dg.DagsterInstance,
    set_up: Run,
    log_model: Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    lines = CommandLines()
    with lines.watched():
        said = [set_up("--geography", "us"), log_model("--variant", "base", "--variant", "geography-us")]
        assert [one.status for one in said] == [0, 0], said
        sync_partitions(instance, [Variant(), Variant("us")])
        job = [sys.executable, str(ROOT / "tests" / "support" / "run_job.py"), "base", "geography-us", "2026-11-16"]
        run = subprocess.run(job, capture_output=True, text=True, check=False, timeout=200)
        assert run.returncode == 1  # one variant's file is damaged
        with open_deployment(load_settings()) as deployment:
            refuse_an_alert(deployment, instance)

    assert site.rows(site.churn, "SELECT count(*) FROM alert_deliveries WHERE last_error IS NOT NULL")[0][0] > 0
    assert any("run_job.py" in line for line in lines.seen)
    shown = [("output", one.out + one.err) for one in said]
    shown += [("output", run.stdout + run.stderr), ("log", caplog.text), ("deployment", repr(deployment))]
    shown += [("ps", line) for line in lines.seen]
    for where, text in (*shown, *texts_of(site), *files_of(deployment.settings.churn_home, secretive)):
        require_no_secret(where, text)


def refuse_an_alert(deployment: Deployment, instance: dg.DagsterInstance) -> None:
    """Find what is wrong with the fleet, and fail to tell it."""
    now = datetime.now(UTC)
    changes = deployment.fleet_monitor().reconcile(now, failed_runs(instance, now)).changes
    assert changes
    told = deliver(Incidents(deployment.database), deployment.receivers(), 20)
    require_no_secret("deliveries", repr(told) + repr(deployment.receivers()))


@pytest.mark.slow
def test_the_uis_listen_on_loopback_alone_and_their_processes_show_no_secret(
    site: Site, secretive: Path, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = [str(held.getsockname()[1]) for held in (one, two)]
    main = "from churn.cli.main import main; main()"
    command = [sys.executable, "-c", main, "up", "--dagster-port", ports[0], "--mlflow-port", ports[1]]
    log = tmp_path / "up.log"
    with log.open("w") as output:
        process = subprocess.Popen(bound(command), cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = datetime.now(UTC).timestamp() + UP_WITHIN_S
        while "Ctrl-C" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert datetime.now(UTC).timestamp() < deadline, log.read_text()
            threading.Event().wait(0.2)
        everything = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        listening = [held.laddr for one in everything for held in one.net_connections() if held.status == "LISTEN"]
        lines = [" ".join(one.cmdline()) for one in everything]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)

    assert {str(address.port) for address in listening} >= set(ports)
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert len(lines) >= 4
    require_no_secret("ps", "\n".join(lines))
    for where, text in (*files_of(load_settings().churn_home / "logs"), (str(log), log.read_text())):
        require_no_secret(where, text)
