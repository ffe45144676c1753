"""The engine that runs a fleet's work in processes of this machine, one for each core.

Small batches are held by the interpreter's lock, so threads use little more than one core. The processes are forked
from a server that has the imports done, and each opens its services once. One that dies costs a new set of them, and
what it worked on is tried again: a batch is published in one transaction, so no half of one remains.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from churn.errors import WorkerLostError
from churn.workflows.fleet import Attempts, run_attempt

_Out = TypeVar("_Out")
_Running = dict[Future[Any], tuple[str, datetime]]  # the keys, and when they began

MAX_RETRIES = 3  # how often a variant is tried again whose process died
_TASKS_PER_PROCESS = 2  # one runs, one is queued
_PRELOADED = (
    *("churn.deployment.services", "churn.inference.engine", "churn.registry.registry", "churn.workflows.check"),
    *("mlflow.store.model_registry.sqlalchemy_store", "mlflow.store.tracking.sqlalchemy_store"),
)

_attempt: Callable[[str], Any]  # what this process does, if it is a worker


def start_server() -> None:
    """Start the process that forks the workers, unless it runs: its imports take seconds, best while work is listed."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(_PRELOADED))
    multiprocessing.forkserver.ensure_running()


@dataclass(frozen=True)
class ProcessEngine:
    """Runs attempts in ``n`` processes; see :data:`churn.workflows.fleet.FleetEngine`."""

    n: int
    # Called with the key, the start and the error of an attempt whose process died too often.
    record_lost: Callable[[str, datetime, BaseException], None]

    def __call__(self, attempt: Callable[[str], _Out | BaseException], keys: Sequence[str]) -> Attempts[_Out]:
        """Run an attempt for each key; yields the results as they complete."""
        queue, deaths = deque(keys), Counter[str]()
        context = multiprocessing.get_context("forkserver")
        start_server()
        while queue:
            running: _Running = {}
            pool = ProcessPoolExecutor(self.n, context, _begin, (attempt,))
            try:
                yield from self._drain(pool, queue, running, deaths)
            except BrokenProcessPool:
                for key, started_at in running.values():
                    deaths[key] += 1
                    if deaths[key] <= MAX_RETRIES:
                        queue.appendleft(key)
                        continue
                    see = "in the kernel's log whether memory ran out; then set CHURN_WORKERS lower, and score it again"
                    lost = WorkerLostError(f"{key}: its process died {deaths[key]} times; see {see}")
                    self.record_lost(key, started_at, lost)
                    yield key, lost
            finally:
                for process in multiprocessing.active_children() if running else ():
                    process.terminate()  # nobody waits for what it does
                pool.shutdown(cancel_futures=True)

    def _drain(
        self, pool: ProcessPoolExecutor, queue: deque[str], running: _Running, deaths: Counter[str]
    ) -> Attempts[Any]:
        """Yield results until all keys are done; those of a process that died stay in ``running``.

        A key whose process died, if only beside another's, runs alone.
        """
        while queue or running:
            while queue and len(running) < _TASKS_PER_PROCESS * self.n:
                if running and any(deaths[key] for key in (queue[0], *(key for key, _ in running.values()))):
                    break
                future = pool.submit(run_attempt, _work, queue[0])
                running[future] = queue.popleft(), datetime.now(UTC)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                result = future.result()
                yield running.pop(future)[0], result


def _begin(attempt: Callable[[str], Any]) -> None:
    global _attempt  # noqa: PLW0603 sent once, not with each key
    _attempt = attempt
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches the whole group; the parent ends this process


def _end_with_parent() -> None:
    """End when the process that gives the work dies, which the queue of work does not tell."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101 this is a worker
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _work(key: str) -> Any:
    return _attempt(key)
