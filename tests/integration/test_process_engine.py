"""At stake: a process that dies must cost a fleet neither a variant nor a second result, and leave none behind."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path

import psutil
import pytest

from churn.errors import WorkerLostError
from churn.workflows.process_engine import MAX_RETRIES, ProcessEngine


def members(session: int) -> list[int]:
    """The living processes of a session."""
    living = (process.pid for process in psutil.process_iter(["status"]) if process.info["status"] != "zombie")
    found = []
    for pid in living:
        with suppress(ProcessLookupError):
            found += [pid] if os.getsid(pid) == session else []
    return found


KEYS = [f"company-{i}" for i in range(12)]


def attempt(folder: Path, key: str) -> str | BaseException:
    """Die at a key as often as a file says, return an error of another, and the name of the process of the rest."""
    deaths = folder / key
    if deaths.exists() and (left := int(deaths.read_text())):
        deaths.write_text(str(left - 1))
        os.kill(os.getpid(), signal.SIGKILL)
    if key == "company-3":
        return ValueError("no such input")
    time.sleep(0.02)
    return f"{key} done by {os.getpid()}"


@pytest.fixture
def lost() -> list[tuple[str, BaseException]]:
    return []


@pytest.fixture
def engine(lost: list[tuple[str, BaseException]]) -> ProcessEngine:
    def record(key: str, _started_at: datetime, error: BaseException) -> None:
        lost.append((key, error))

    return ProcessEngine(2, record)


def test_each_key_has_one_result_whichever_process_died(
    tmp_path: Path, engine: ProcessEngine, lost: list[tuple[str, BaseException]]
) -> None:
    (tmp_path / "company-5").write_text("1")  # its process dies once
    (tmp_path / "company-7").write_text("99")  # and that of this one always

    results = list(engine(partial(attempt, tmp_path), KEYS))

    assert sorted(key for key, _ in results) == sorted(KEYS)
    by_key = dict(results)
    assert isinstance(by_key["company-7"], WorkerLostError)
    assert lost == [("company-7", by_key["company-7"])]
    assert f"died {MAX_RETRIES + 1} times" in str(by_key["company-7"])
    assert str(by_key["company-3"]) == "ValueError: no such input"
    done = [text for key, text in results if key not in ("company-3", "company-7")]
    assert all(text.startswith(f"{key} done by ") for key, text in results if text in done)
    assert len({text.rpartition(" ")[2] for text in done}) >= 2  # both processes worked


@pytest.mark.slow
@pytest.mark.parametrize("end", ["the reader stops", "SIGKILL"])
def test_no_process_is_left(tmp_path: Path, engine: ProcessEngine, end: str) -> None:
    code = (
        "import sys, time; from functools import partial; from pathlib import Path\n"
        "from churn.workflows.process_engine import ProcessEngine\n"
        "from tests.integration.test_process_engine import attempt\n"
        "results = ProcessEngine(2, print)(partial(attempt, Path(sys.argv[1])), [f'c{i}' for i in range(10**6)])\n"
        "if __name__ == '__main__':\n"
        "    print(next(results), flush=True)\n"
        "    if sys.argv[2] == 'SIGKILL': time.sleep(60)\n"
        "    results.close()\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), end],
        env=environment,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert b"done by" in process.stdout.readline()
        if end == "SIGKILL":
            assert len(members(process.pid)) >= 3
            process.kill()
        process.wait(20)
    deadline = time.monotonic() + 10
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert members(process.pid) == []
