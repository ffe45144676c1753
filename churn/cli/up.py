"""``churn up``: the MLflow and Dagster UIs on loopback, over the deployment's services, until interrupted."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from churn.cli.logs import LogCopy
from churn.cli.psql import reader_dsn
from churn.database.connection import locked_alone
from churn.database.events import this_person
from churn.deployment.services import Deployment, open_deployment
from churn.errors import ChurnError, UsageError
from churn.registry.tags import MLFLOW_VIEW
from churn.signals import stop_request
from churn.variants import Variant
from orchestration.instance import CONFIG, dagster_environment

HOST = "127.0.0.1"
_REMIND_EVERY_S = 30
_START_PAGES = {"mlflow": f"/#/experiments{MLFLOW_VIEW}", "dagster": ""}
_STOP_WITHIN_S, _COPIED_WITHIN_S = 15, 2


def serve(*, dagster_port: int, mlflow_port: int) -> None:
    """Run MLflow's server, Dagster's webserver and its daemon until interrupted, then stop them all.

    Raises ``UsageError`` if a port is in use, or another ``churn up`` serves the instance; ``ChurnError`` if one ends.
    """
    for port, flag in ((dagster_port, "--dagster-port"), (mlflow_port, "--mlflow-port")):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except (OSError, OverflowError) as error:
                raise UsageError(f"{flag} {port} cannot be used ({error}); use another port") from None
    with ExitStack() as stack:
        deployment = stack.enter_context(open_deployment())
        deployment.registry(read_only=True)  # fails at once if set-up is missing
        deployment.receivers()  # warns of those that cannot be sent to
        owner = f"churn up (process {os.getpid()} of {this_person()})"
        stack.enter_context(locked_alone(deployment.dagster_database, "churn up", owner))
        stop_request.raise_if_set()
        logs, is_whole = deployment.settings.churn_home / "logs", deployment.settings.churn_log_level == "debug"
        logs.mkdir(parents=True, exist_ok=True)
        servers = {
            name: stack.enter_context(_Server(name, command, environment, logs / f"{name}.log", is_whole))
            for name, (command, environment) in _commands(deployment, dagster_port, mlflow_port).items()
        }
        addresses = {"mlflow": f"http://{HOST}:{mlflow_port}", "dagster": f"http://{HOST}:{dagster_port}"}
        for name, address in addresses.items():
            print(f"{name:8} starting …", flush=True)
            servers[name].wait_until_ready(f"{address}/{'server_info' if name == 'dagster' else 'health'}")
            print(f"{name:8} {address}{_START_PAGES[name]}", flush=True)
        print(f"analysts {reader_dsn(deployment)}\nlogs     {logs}\nCtrl-C stops both.", flush=True)
        while not stop_request.wait(1):
            for server in servers.values():
                server.require_running()
        print("stopping …", flush=True)


def _commands(of: Deployment, dagster_port: int, mlflow_port: int) -> dict[str, tuple[list[str], Mapping[str, str]]]:
    """Return each server's command line and environment; passwords are only in the environment."""
    mlflow = {
        "MLFLOW_BACKEND_STORE_URI": of.tracking_uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ARTIFACTS_DESTINATION": of.artifact_location(Variant()),
        "MLFLOW_CONFIGURE_LOGGING": "true",
    }
    dagster = {
        **dagster_environment(of),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "CHURN_MLFLOW_UI_URL": os.environ.get("CHURN_MLFLOW_UI_URL", f"http://{HOST}:{mlflow_port}"),
        "CHURN_DAGSTER_UI_URL": os.environ.get("CHURN_DAGSTER_UI_URL", f"http://{HOST}:{dagster_port}"),
    }
    python, workspace = [sys.executable, "-m"], ["--workspace", str(CONFIG / "workspace.yaml")]
    return {
        "mlflow": ([*python, "mlflow", "server", "--host", HOST, "--port", str(mlflow_port), "--workers", "1"], mlflow),
        "dagster": ([*python, "orchestration.webserver", "--port", str(dagster_port), *workspace], dagster),
        "daemon": ([*python, "dagster._daemon", "run", *workspace], dagster),
    }


@dataclass
class _Server:
    """One server process: started on entry; on exit it and its child processes are stopped."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    log: Path
    is_whole: bool  # whether the log has every traceback

    def __enter__(self) -> "_Server":
        self._process = subprocess.Popen(
            self.command,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # servers are stopped in order, not all at once by Ctrl-C
        )
        assert self._process.stdout is not None  # noqa: S101 it is a pipe
        copy = LogCopy(self._process.stdout, self.log.open("wb"), is_whole=self.is_whole)
        self._copying = threading.Thread(target=copy, daemon=True)
        self._copying.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._signal(signal.SIGTERM)
        try:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_WITHIN_S)
        finally:  # also when a second Ctrl-C interrupts the wait
            self._signal(signal.SIGKILL)  # child processes that are still running
            self._process.wait()
            self._copying.join(_COPIED_WITHIN_S)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def require_running(self) -> None:
        if (status := self._process.poll()) is not None:
            self._copying.join(_COPIED_WITHIN_S)
            last = "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
            raise ChurnError(f"{self.name} ended with status {status}; the end of {self.log}:\n{last}")

    def wait_until_ready(self, address: str) -> None:
        """Wait as long as the process lives: a machine that is busy, or a migration, may take minutes."""
        started = remind_at = time.monotonic()
        while True:
            stop_request.raise_if_set()
            self.require_running()
            try:
                with urllib.request.urlopen(address, timeout=2):  # noqa: S310 our own loopback address
                    return
            except OSError:
                stop_request.wait(0.3)
            if (now := time.monotonic()) - remind_at > _REMIND_EVERY_S:
                remind_at = now
                print(f"{self.name:8} starting … {now - started:.0f} s, see {self.log}", flush=True)
