"""The engine that does a fleet's work on a Ray cluster: one task for each variant.

A node opens its services from its own environment, so nothing that is sent holds a secret. What a killed worker or node
had begun is begun again elsewhere; a batch is published in one transaction, so nothing of it was half there. Placing
tasks, noticing the dead and starting again are Ray's.
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
from typing import Any, Generic, TypeVar, cast

from churn.errors import ChurnError, ClusterError, ClusterUnavailableError, TransientError, UsageError
from churn.signals import sigterm_kept
from churn.variants import Variant
from churn.workflows.fleet import Attempts

_Out = TypeVar("_Out")
_Services = TypeVar("_Services")

OpenServices = Callable[[], AbstractContextManager[tuple[Mapping[str, str], _Services]]]
"""Opens a node's services from its own environment, with their fingerprint; pickled by its name."""

MAX_RETRIES = 3
"""How often Ray begins a variant again whose worker died; the job's own retries come on top."""
_LISTENS_WITHIN_S = 5.0
_NODES_WITHIN_S = 120.0
_COUNT_EVERY_S = 2.0
_BEGUN_PER_CPU = 2  # one at work, one queued

_RAY_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # or a driver under `uv run` sends its folder to the nodes, .env included
    "RAY_NUM_REDIS_GET_RETRIES": "1",  # a cluster that does not answer is waited for 40 s, not 14 minutes
    "RAY_task_oom_retries": str(MAX_RETRIES),  # or a variant that fits no node is begun for ever
}


@dataclass(frozen=True)
class RayCluster(Generic[_Services]):
    """A cluster, and what its nodes need to know; holds no secret.

    Attributes:
        fingerprint: What must be the same on every node, by the name that a person knows it by.
    """

    address: str
    open_services: OpenServices[_Services]
    fingerprint: Mapping[str, str]


class UnfitNodeError(ClusterError):
    """A node's settings or code differ from those of the process that sends variants to it."""


class _NodeUnavailableError(ClusterUnavailableError):
    """A node could not open its services now, so the work was not begun."""


@dataclass(frozen=True)
class OnNode(Generic[_Services, _Out]):
    """Work on a variant with the services of the node that it runs on; picklable if ``work`` is."""

    cluster: RayCluster[_Services]
    work: Callable[[_Services, Variant], _Out]

    def __call__(self, variant: Variant) -> _Out:
        """Do the work.

        Raises:
            UnfitNodeError: If this node's fingerprint differs from the one needed.
            ClusterUnavailableError: If its services cannot be opened now.
        """
        return self.work(self._services(), variant)

    def _services(self) -> _Services:
        try:
            found, services = cast("tuple[Mapping[str, str], _Services]", _open_once(self.cluster.open_services))
        except TransientError as error:
            raise _NodeUnavailableError(str(error)) from error
        except ChurnError as error:
            raise UnfitNodeError(f"node {_node()} of the Ray cluster cannot open its services: {error}") from error
        needed = self.cluster.fingerprint
        differing = [f"{name} is {found[name]} there and {needed[name]} here" for name in needed
                     if needed[name] != found[name]]  # fmt: skip
        if differing:
            raise UnfitNodeError(
                f"node {_node()} of the Ray cluster differs from this process: {'; '.join(differing)}. Start its "
                f"`ray start` with the same package, and in an environment with the same settings"
            )
        return services


@functools.cache
def _open_once(open_services: OpenServices[Any]) -> tuple[Mapping[str, str], Any]:
    """Open this worker's services, for as long as the worker lives."""
    with ExitStack() as opened:
        found = opened.enter_context(open_services())
        atexit.register(opened.pop_all().close)
    return found


@dataclass(frozen=True)
class RayEngine:
    """Runs attempts as tasks of a Ray cluster; see :data:`churn.workflows.fleet.FleetEngine`.

    Attributes:
        record_lost: Called with the key, the start and the error of an attempt of which the work could record nothing
            itself: its worker died too often, or no node could begin it.
    """

    address: str
    record_lost: Callable[[str, datetime, BaseException], None]

    def __call__(self, attempt: Callable[[str], _Out | BaseException], keys: Sequence[str]) -> Attempts[_Out]:
        """Keep every node busy until all is done; yields the results as they come.

        Raises:
            ClusterError: If the cluster does not answer, a node is unfit, or there has been none for a while; what was
                begun is given up.
        """
        with _connected(self.address) as ray:
            yield from _Tasks(ray, self, attempt).run(keys)


class _Tasks:
    """The tasks of one fleet."""

    def __init__(self, ray: Any, engine: RayEngine, attempt: Callable[[str], Any]) -> None:
        self._ray, self._engine, self._attempt = ray, engine, attempt
        self._n_cpus, self._counted_at = 0, -_COUNT_EVERY_S
        self._seen_at = time.monotonic()

    def run(self, keys: Sequence[str]) -> Iterator[tuple[str, Any]]:
        sent = self._ray.put(self._attempt)
        task = self._ray.remote(num_cpus=1, max_retries=MAX_RETRIES, retry_exceptions=False)(_run_attempt)
        left = iter(keys)
        begun: dict[Future[Any], tuple[str, datetime, object]] = {}
        while True:
            for key in islice(left, max(self._room() - len(begun), 0)):
                reference = task.options(name=key).remote(sent, key)
                # Waited for as a future: in Ray's own wait, what a signal raises becomes another error.
                begun[reference.future()] = key, datetime.now(UTC), reference
            if not begun:
                return
            for future in wait(begun, _COUNT_EVERY_S, FIRST_COMPLETED).done:
                key, started_at, _ = begun.pop(future)
                yield key, self._result(key, started_at, future)

    def _room(self) -> int:
        """Return how many variants may be begun at once: nodes come and go, so they are counted now and then."""
        now = time.monotonic()
        if now - self._counted_at >= _COUNT_EVERY_S:
            self._n_cpus, self._counted_at = int(self._ray.cluster_resources().get("CPU", 0)), now
        if self._n_cpus:
            self._seen_at = now
        elif now - self._seen_at > _NODES_WITHIN_S:
            raise ClusterUnavailableError(
                f"the Ray cluster at {self._engine.address} has had no CPU for {_NODES_WITHIN_S:.0f} s; start a node "
                f"with `ray start`, or find out why its nodes are gone"
            )
        return _BEGUN_PER_CPU * max(self._n_cpus, 1)

    def _result(self, key: str, started_at: datetime, future: Future[Any]) -> Any:
        errors = self._ray.exceptions
        try:
            result = future.result()
        except errors.RayTaskError as error:  # not of the work, of which every error is returned
            result = RuntimeError(f"Ray could not run the task or send its result: {error.cause!r}")
        except errors.RayError as error:
            said = str(error).strip().partition("\n")[0][:400]
            result = ClusterUnavailableError(
                f"Ray gave the variant up after {MAX_RETRIES + 1} tries ({type(error).__name__}: {said}); nothing "
                f"of it is half published. See `ray status` and the nodes' logs, perhaps it needs a node with "
                f"more memory; then score it again"
            )
        else:
            if isinstance(result, UnfitNodeError):
                raise result
            if not isinstance(result, _NodeUnavailableError):
                return result
        self._engine.record_lost(key, started_at, result)
        return result


def _run_attempt(attempt: Callable[[str], Any], key: str) -> Any:
    """Run an attempt on this node; returns its result or error."""
    result = attempt(key)
    if isinstance(result, BaseException) and not isinstance(result, ChurnError):
        return RuntimeError(f"{type(result).__name__}: {result}")  # another kind need not survive pickling
    return result


def _node() -> str:
    import ray

    return str(ray.util.get_node_ip_address())


def load_ray() -> Any:
    """Import Ray, with our settings in its environment, which it reads then.

    Raises:
        UsageError: If it is not installed.
    """
    for name, value in _RAY_DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            "CHURN_RAY_ADDRESS is set and Ray is not installed; run `uv sync --extra ray`, or "
            "`pip install 'churn-scoring[ray]'`"
        ) from error
    return ray


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Connect this process to a cluster; on the way out, its tasks that still run there end."""
    ray = load_ray()
    _require_listener(address)
    try:
        with sigterm_kept():  # Ray would have the process exit, where Dagster ends a run in order
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:
        ray.shutdown()
        if "ersion mismatch" in str(error):
            raise ClusterError(f"the Ray cluster at {address} is of another version ({error}); use the same") from error
        raise _unavailable(address, str(error).strip().partition("\n")[0]) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Fail in seconds where nobody listens; Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_LISTENS_WITHIN_S).close()
    except OSError as error:
        raise _unavailable(address, str(error)) from error


def _unavailable(address: str, said: str) -> ClusterUnavailableError:
    return ClusterUnavailableError(
        f"the Ray cluster at {address} did not answer ({said}); correct CHURN_RAY_ADDRESS, or find out with "
        f"`ray status` whether it runs. host:6379 and auto are for its own machines, ray://host:10001 for others"
    )
