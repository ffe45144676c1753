"""What a person has: a project of their own, a terminal, and a browser.

The tests of this folder use it, and so does ``docs/screenshots.py``. What is seen is not judged here.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import psutil
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from churn.database.predictions import read_current
from churn.deployment.services import open_deployment
from churn.deployment.settings import load_settings
from tests.support import ROOT
from tests.support.children import bound

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

DEMO = {"base": 1000, "company-clienta": 475, "geography-eu.company-clientb": 477, "geography-us": 501}
"""The variants of ``churn demo``, and how many accounts each has."""

_SETTINGS = ("MLFLOW_", "CHURN_", "AWS_", "DAGSTER_")
_QUIET = ("sandbox", "first-run")
_OFF = ("gpu", "quic", "background-networking", "component-update", "sync")
_PATIENCE_S = 150  # a start is 10 s on an idle machine, and a test's machine is not


@dataclass(frozen=True)
class Project:
    """The checkout, with a state folder of its own.

    Attributes:
        home: The ``CHURN_HOME``; the account that root's PostgreSQL runs as must be able to enter it.
        root: Where commands are run.
    """

    home: Path
    root: Path = ROOT

    @property
    def environment(self) -> dict[str, str]:
        """Nothing set but the home, whatever the caller's settings are."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
        own = {"CHURN_HOME": str(self.home), "DAGSTER_DISABLE_TELEMETRY": "yes", "VIRTUAL_ENV": sys.prefix}
        return inherited | own | {"UV_NO_SYNC": "1"}

    @contextmanager
    def running(self, command: str, *arguments: str) -> Iterator["Command"]:
        """Start one of the project's commands, or another one, in the root; on exit, end it and whatever it left."""
        self.home.mkdir(parents=True, exist_ok=True)
        log = self.home / f"{command}-{time.monotonic_ns()}.out"
        with log.open("w") as output:
            process = subprocess.Popen(
                bound([shutil.which(command, path=Path(sys.executable).parent) or command, *arguments]),
                cwd=self.root,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running = Command(process, log)
        try:
            yield running
        finally:
            if process.poll() is None:
                running.stop(signal.SIGTERM)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def run(self, command: str, *arguments: str) -> str:
        """Run a command to its end, which must be a good one; returns what it printed."""
        with self.running(command, *arguments) as running:
            status = running.process.wait(_PATIENCE_S)
            assert status == 0, f"{command} {' '.join(arguments)} ended with {status}:\n{running.printed}"
            return running.printed

    @contextmanager
    def serving(self, *up: str) -> Iterator["Served"]:
        """Run ``churn up``, or ``up``, which is another way to write it, on free ports; yields once it is ready."""
        dagster, mlflow = free_ports(2)
        ports = ("--dagster-port", str(dagster), "--mlflow-port", str(mlflow))
        with self.running(*(up or ("churn", "up")), *ports) as command:
            command.wait_until_printed("Ctrl-C")
            yield Served(command, f"http://127.0.0.1:{dagster}", f"http://127.0.0.1:{mlflow}")

    def processes(self) -> list[str]:
        """Whatever runs for this project: its servers, what they started, its PostgreSQL."""
        return [found for process in psutil.process_iter() if (found := self._belonging(process))]

    def left(self) -> list[str]:
        """Return what still runs for this project; the watcher of its PostgreSQL ends up to two seconds after it."""
        deadline = time.monotonic() + 5
        while (found := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def _belonging(self, process: psutil.Process) -> str | None:
        # PostgreSQL rewrites its environment, and works in its data folder.
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            if any(str(self.home) in value for value in (*process.environ().values(), process.cwd())):
                return f"{process.pid} {' '.join(process.cmdline())[:120]}"
        return None


@dataclass(frozen=True)
class Command:
    """A command that runs, and what it printed so far."""

    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def printed(self) -> str:
        return self.log.read_text()

    def wait_until_printed(self, text: str) -> None:
        eventually(lambda: text in self.printed or self.process.poll() is not None, f"{text!r} in {self.log}")
        assert text in self.printed, f"it ended with {self.process.returncode} before it said {text!r}:\n{self.printed}"

    def stop(self, number: signal.Signals) -> int:
        """Signal it as a terminal would, its whole foreground group at once; returns its exit status."""
        os.killpg(self.process.pid, number)
        return self.process.wait(_PATIENCE_S)


@dataclass(frozen=True)
class Served:
    """``churn up``, and where it serves."""

    command: Command
    dagster: str
    mlflow: str


@dataclass(frozen=True)
class Demo:
    """A project where the demo ran.

    Attributes:
        printed: What the demo printed.
        left: The processes that it left, which are none.
        published: What was current when it had ended: variant, rows, accounts, newest model version.
    """

    project: Project
    printed: str
    left: list[str]
    published: list[tuple[str, int, int, int]]


def read(project: Project, query: str) -> pl.DataFrame:
    """Ask the project's predictions database."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHURN_HOME", str(project.home))
        with open_deployment(load_settings()) as deployment:
            return read_current(deployment.database, query)


def published(project: Project) -> list[tuple[str, int, int, int]]:
    """Return variant, rows, accounts and newest model version of what is current."""
    query = (
        "SELECT variant, count(*) AS n_rows, count(DISTINCT account_id) AS n_accounts, max(model_version) "
        'FROM churn_predictions_current GROUP BY variant ORDER BY variant COLLATE "C"'
    )
    return read(project, query).rows()


def free_ports(n: int) -> list[int]:
    """Pick ports that nobody listens on, all different."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(n)]
        return [probe.getsockname()[1] for probe in probes]


def materialize(page: Page, partition: str) -> None:
    """Launch one partition by hand from a page of assets, and see the run succeed."""
    page.get_by_role("button", name="Materialize all…").click()
    dialog = page.get_by_role("dialog").filter(has_text="Partition selection")
    dialog.get_by_text("Select a partition").click()
    page.get_by_text(partition, exact=True).first.click()
    page.keyboard.press("Escape")
    dialog.get_by_role("button", name="Launch 1 run").click()
    page.get_by_text("View", exact=True).click()
    expect(page.get_by_text("Success", exact=True).first).to_be_visible()


def eventually(claim: Callable[[], object], what: str) -> None:
    """Wait until a claim holds."""
    deadline = time.monotonic() + _PATIENCE_S
    while not claim():
        assert time.monotonic() < deadline, f"waited {_PATIENCE_S} s for {what}"
        time.sleep(0.1)


@contextmanager
def browsing(*, scale: float = 1) -> Iterator[Page]:
    """Open a page in headless Chromium: the system's, as Playwright's own is another download."""
    switches = [f"--no-{name}" for name in _QUIET] + [f"--disable-{name}" for name in _OFF]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=switches)
        page = browser.new_page(
            viewport={"width": 1300, "height": 800}, device_scale_factor=scale, locale="en-US", timezone_id="UTC"
        )
        page.set_default_timeout(_PATIENCE_S * 1000)
        expect.set_options(timeout=_PATIENCE_S * 1000)
        yield page
        browser.close()
