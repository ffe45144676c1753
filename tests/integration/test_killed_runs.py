"""At stake: whoever kills a run of tests or benchmarks finds their machine full of servers that nobody uses."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support import ROOT
from tests.support.children import bound
from tests.support.site import wait_until

RUN = """
import time
from tests.support.people import Project
from tests.support.services import bench_environment

def test_that_never_ends(homes, postgres):
    with bench_environment(homes / "bench"), Project(homes / "project").running("sleep", "1000"):
        print("all started", flush=True)
        time.sleep(1000)
"""


STARTED = {"postgres", "embedded_watch.py", "moto_server.py", "sleep 1000"}


def found(folder: Path) -> list[psutil.Process]:
    """Return the processes that name a folder: in their arguments, their environment or their working directory."""

    def belongs(process: psutil.Process) -> bool:
        with suppress(psutil.Error):  # also of one that is just becoming another program
            return str(folder) in " ".join((*process.cmdline(), *process.environ().values(), process.cwd()))
        return False

    return [process for process in psutil.process_iter() if belongs(process)]


def told(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_no_process_behind(homes: Path, tmp_path: Path) -> None:
    folder = homes / "killed"
    folder.mkdir()
    (tmp_path / "test_endless.py").write_text(RUN)
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-n", "0", "-p", "tests.conftest", tmp_path]
    environment = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(bound(command), cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        try:
            assert any("all started" in line for line in run.stdout)
            wait_until(
                lambda: {name for name in STARTED for process in found(folder) if name in told(process)} >= STARTED
            )
            processes = found(folder)
        finally:
            run.send_signal(signal.SIGKILL)

    wait_until(lambda: not any(process.is_running() and process.status() != "zombie" for process in processes))
