"""At stake: whoever kills a run of tests or benchmarks finds their machine full of servers that nobody uses."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

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


def belongs_to(folder: Path) -> Callable[[psutil.Process], bool]:
    """Return whether a process names a folder: in its arguments, its environment or its working directory."""

    def belongs(process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return str(folder) in " ".join((*process.cmdline(), *process.environ().values(), process.cwd()))
        return False

    return belongs


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
            processes = [process for process in psutil.process_iter(["cmdline"]) if belongs_to(folder)(process)]
        finally:
            run.send_signal(signal.SIGKILL)
        names = " ".join(" ".join(process.info["cmdline"]) for process in processes)
        assert all(name in names for name in ("postgres", "embedded_watch.py", "moto.server", "sleep 1000"))

    wait_until(lambda: not any(process.is_running() and process.status() != "zombie" for process in processes))
