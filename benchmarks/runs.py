"""Runs of commands and jobs in processes of their own, and what their process trees take."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import psutil

from tests.support.services import WEEK

_SAMPLED_EVERY_S = 0.5


def _mondays() -> Iterator[str]:
    """Yield weeks that nothing was scored for, so that each run writes as the first of its week does."""
    week = WEEK
    while True:
        week -= timedelta(weeks=1)
        yield week.isoformat()


_WEEKS = _mondays()


def next_week() -> str:
    """Return a week of its own for a run."""
    return next(_WEEKS)


def call(*command: str) -> dict[str, float]:
    """Run a Python command to its end; returns the JSON object that it printed last, or none, and what it took."""
    print("  ".join(command), end="  ", flush=True)
    started = time.perf_counter()
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, *command], stdout=pipe, stderr=pipe, text=True) as process:
        watch = Watch(process.pid)
        output, errors = process.communicate()
        taken = watch.end()
    last = (output.strip().splitlines() or [""])[-1]
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}:\n{errors[-3000:]}")
    said: dict[str, float] = json.loads(last) if last.startswith("{") else {}
    said = {"seconds": time.perf_counter() - started} | said | taken
    print(f"{said['seconds']:.1f} s", flush=True)
    return said


def run_fleet(first: str, last: str, week: str, *resumed: str, n_failed: int = 0) -> dict[str, float]:
    """Run the job over a range of variants; a run that did not end as expected is no measurement."""
    said = call("-m", "benchmarks.fleet", first, last, week, *resumed)
    if said["n_failed"] != n_failed:
        raise SystemExit(f"{said['n_failed']} variants of {first} to {last} failed, not {n_failed}; see {said}")
    return said


class Watch(threading.Thread):
    """Samples a process tree: its most memory (proportional set size), and the CPU seconds of it and of the servers."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._ended = pid, threading.Event()
        self._cpu: dict[tuple[int, float], tuple[str, float]] = {}
        self._peak = 0
        self._sample()
        self._before = self._totals()
        self.start()

    def run(self) -> None:
        """Sample until the end."""
        while not self._ended.wait(_SAMPLED_EVERY_S):
            self._sample()

    def end(self) -> dict[str, float]:
        """Return the megabytes, and the CPU seconds by who took them."""
        self._ended.set()
        self.join()
        self._sample()
        taken = {f"cpu_{who}": seconds - self._before[who] for who, seconds in self._totals().items()}
        return {"tree_mb": self._peak / 1024**2, **taken}

    def _totals(self) -> Counter[str]:
        totals: Counter[str] = Counter()
        for who, seconds in self._cpu.values():
            totals[who] += seconds
        return totals

    def _sample(self) -> None:
        memory = 0
        for process, who in self._processes():
            try:
                times = process.cpu_times()
                self._cpu[process.pid, process.create_time()] = who, times.user + times.system
                memory += process.memory_full_info().pss if who in ("job", "workers") else 0
            except psutil.Error:  # it ended
                continue
        self._peak = max(self._peak, memory)

    def _processes(self) -> Iterator[tuple[psutil.Process, str]]:
        try:
            job = psutil.Process(self._pid)
            yield job, "job"
            yield from ((child, "workers") for child in job.children(recursive=True) if child.name() != "postgres")
        except psutil.Error:  # it ended
            pass
        for process in psutil.process_iter(["name"]):
            if process.info["name"] in ("postgres", "weed"):
                yield process, process.info["name"]
