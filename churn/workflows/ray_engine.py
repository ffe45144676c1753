"""The engine that runs a fleet's work on a Ray cluster: one task for each variant.

Each node opens its services from the node's environment, so no secret is sent. Ray restarts the tasks of a worker or
node that died elsewhere; a batch is published in one transaction, so no half of one remains.
"""

import atexit
import functools
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Generic, TypeVar

from churn.errors import ChurnError, ClusterError, ClusterUnavailableError, TransientError, UsageError
from churn.signals import sigterm_kept
from churn.variants import Variant
from churn.workflows.fleet import Attempts, run_attempt

_Out = TypeVar("_Out")
_Services = TypeVar("_Services")

OpenServices = Callable[[Any], AbstractContextManager[tuple[Mapping[str, str], _Services]]]
"""Opens some of a node's services, with their fingerprint, from the node's environment; pickled by its name."""

MAX_RETRIES = 3  # how often Ray restarts a task whose worker died, in addition to the retries of the job
_CONNECT_TIMEOUT_S = 5.0
_NODES_TIMEOUT_S = 120.0
_POLL_INTERVAL_S = 2.0
_TASKS_PER_CPU = 2  # one runs, one is queued

_RAY_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # or a driver under `uv run` sends its folder to the nodes, .env included
    "RAY_NUM_REDIS_GET_RETRIES": "1",  # a cluster that does not answer is waited for 40 s, not 14 minutes
    "RAY_task_oom_retries": str(MAX_RETRIES),  # or a variant that fits no node is restarted for ever
}


@dataclass(frozen=True)
class Workers(Generic[_Services]):
    """Processes that open services of their own, with the settings that must be the same on all, by name; no secret."""

    address: str | None  # of Ray's head; `None` for `n_processes` processes of this machine
    open_services: OpenServices[_Services]
    fingerprint: Mapping[str, str]
    n_processes: int = 0
    service: Any = None  # which services to open


class UnfitNodeError(ClusterError):
    """A node's settings or code differ from those of the process that sends variants to it."""


class _NodeUnavailableError(ClusterUnavailableError):
    """A node could not open its services now, so the work did not start."""


def work_on_node(cluster: Workers[_Services], work: Callable[[_Services, Variant], _Out], variant: Variant) -> _Out:
    """Work on a variant with the services of the node that this runs on.

    Raises ``UnfitNodeError`` if this node's fingerprint differs from the one needed, ``ClusterUnavailableError`` if its
    services cannot be opened now.
    """
    try:
        actual, services = _open_once(cluster.open_services, cluster.service)
    except TransientError as error:
        raise _NodeUnavailableError(str(error)) from error
    except ChurnError as error:
        raise UnfitNodeError(f"{_worker(cluster)} cannot open its services: {error}") from error
    needed = cluster.fingerprint.items()
    if differing := [f"{name} is {actual[name]} there and {one} here" for name, one in needed if one != actual[name]]:
        remedy = "Start its `ray start` with the same package, and in an environment with the same settings"
        advice = remedy if cluster.address else "They were changed meanwhile: start again"
        raise UnfitNodeError(f"{_worker(cluster)} differs from this process: {'; '.join(differing)}. {advice}")
    return work(services, variant)


@functools.cache
def _open_once(open_services: OpenServices[Any], service: Any) -> tuple[Mapping[str, str], Any]:
    with ExitStack() as stack:
        opened = stack.enter_context(open_services(service))
        atexit.register(stack.pop_all().close)
    return opened


@dataclass(frozen=True)
class RayEngine:
    """Runs attempts as tasks of a Ray cluster; see :data:`churn.workflows.fleet.FleetEngine`."""

    address: str
    # Called with the key, the start and the error of an attempt that could not record its failure: its worker died too
    # often, or no node could start it.
    record_lost: Callable[[str, datetime, BaseException], None]

    def __call__(self, attempt: Callable[[str], _Out | BaseException], keys: Sequence[str]) -> Attempts[_Out]:
        """Run an attempt for each key on all nodes; yields the results as they complete.

        Raises ``ClusterError`` if the cluster does not answer, a node is unfit, or the cluster has had no node for a
        while; running tasks are cancelled.
        """
        with _connected(self.address) as ray:
            yield from _Tasks(ray, self, attempt).run(keys)


class _Tasks:
    def __init__(self, ray: Any, engine: RayEngine, attempt: Callable[[str], Any]) -> None:
        self._ray, self._engine, self._attempt = ray, engine, attempt
        self._n_cpus, self._counted_at = 0, -_POLL_INTERVAL_S
        self._available_at = time.monotonic()

    def run(self, keys: Sequence[str]) -> Iterator[tuple[str, Any]]:
        attempt = self._ray.put(self._attempt)
        task = self._ray.remote(num_cpus=1, max_retries=MAX_RETRIES, retry_exceptions=False)(run_attempt)
        queue = iter(keys)
        running: dict[Future[Any], tuple[str, datetime, object]] = {}
        while True:
            for key in islice(queue, max(self._capacity() - len(running), 0)):
                reference = task.options(name=key).remote(attempt, key)
                # Waited for as a future: Ray's wait would turn an exception of a signal handler into another error.
                running[reference.future()] = key, datetime.now(UTC), reference
            if not running:
                return
            for future in wait(running, _POLL_INTERVAL_S, FIRST_COMPLETED).done:
                key, started_at, _ = running.pop(future)
                yield key, self._result(key, started_at, future)

    def _capacity(self) -> int:
        """Return how many tasks may run or be queued; counts the CPUs every few seconds, since nodes come and go."""
        now = time.monotonic()
        if now - self._counted_at >= _POLL_INTERVAL_S:
            self._n_cpus, self._counted_at = int(self._ray.cluster_resources().get("CPU", 0)), now
        if self._n_cpus:
            self._available_at = now
        elif now - self._available_at > _NODES_TIMEOUT_S:
            problem = f"the Ray cluster at {self._engine.address} has had no CPU for {_NODES_TIMEOUT_S:.0f} s"
            remedy = "start a node with `ray start`, or find out why its nodes stopped"
            raise ClusterUnavailableError(f"{problem}; {remedy}")
        return _TASKS_PER_CPU * max(self._n_cpus, 1)

    def _result(self, key: str, started_at: datetime, future: Future[Any]) -> Any:
        errors = self._ray.exceptions
        try:
            result = future.result()
        except errors.RayTaskError as error:  # not of the work, whose errors are returned
            result = RuntimeError(f"Ray could not run the task or send its result: {error.cause!r}")
        except errors.RayError as error:
            reason = f"{type(error).__name__}: {_first_line(error)[:400]}"
            problem = f"Ray gave the variant up after {MAX_RETRIES + 1} tries ({reason})"
            outcome = "its batch was published either entirely or not at all. See `ray status` and the nodes' logs"
            remedy = "perhaps it needs a node with more memory; then score it again"
            result = ClusterUnavailableError(f"{problem}; {outcome}, {remedy}")
        else:
            if isinstance(result, UnfitNodeError):
                raise result
            if not isinstance(result, _NodeUnavailableError):
                return result
        self._engine.record_lost(key, started_at, result)
        return result


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _worker(cluster: Workers[Any]) -> str:
    if cluster.address is None:
        return "a process of this machine"
    import ray

    return f"node {ray.util.get_node_ip_address()} of the Ray cluster"


def load_ray() -> Any:
    """Import Ray, which then reads our defaults from the environment; raises a ``UsageError`` if it is missing."""
    for name, value in _RAY_DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        remedy = "run `uv sync --extra ray`, or `pip install 'churn-scoring[ray]'`"
        raise UsageError(f"CHURN_RAY_ADDRESS is set and Ray is not installed; {remedy}") from error
    return ray


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Connect this process to a cluster; leaving the context cancels its tasks."""
    ray = load_ray()
    _require_listener(address)
    try:
        with sigterm_kept():  # Ray's handler exits at once, Dagster's ends the run in order
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:
        ray.shutdown()
        if "ersion mismatch" in str(error):
            raise ClusterError(f"the Ray cluster at {address} is of another version ({error}); use the same") from error
        raise _unavailable(address, _first_line(error)) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Fail in seconds if no process listens; Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise _unavailable(address, str(error)) from error


def _unavailable(address: str, reason: str) -> ClusterUnavailableError:
    remedy = "correct CHURN_RAY_ADDRESS, or check with `ray status` whether it runs"
    forms = "host:6379 and auto are for the cluster's machines, ray://host:10001 for others"
    return ClusterUnavailableError(f"the Ray cluster at {address} did not answer ({reason}); {remedy}. {forms}")
