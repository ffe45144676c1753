"""Scoring on a Ray cluster: one task for each variant, which does on a node what ``score_fleet`` does in a thread.

A node opens its deployment from its own environment, so nothing that is sent holds a secret. What a killed worker or
node had in hand is scored again elsewhere; since a batch is published in one transaction, nothing of it was half there.
Placing tasks, noticing the dead and starting anew are Ray's.
"""

import atexit
import functools
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import load_settings
from churn.errors import ChurnError, ClusterError, ClusterUnavailableError, TransientError, UsageError
from churn.variants import Variant

if TYPE_CHECKING:
    from churn.workflows.score import Outcome, Scorer

_Then = TypeVar("_Then")

MAX_RETRIES = 3
"""How often Ray begins a variant again whose worker died; the job's own retries come on top."""
_LISTENS_WITHIN_S = 5.0
_NODES_WITHIN_S = 120.0
_LOOK_EVERY_S = 2.0
_IN_HAND_PER_CPU = 2  # one that is scored, one that waits for its place

_RAY_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # or a driver under `uv run` sends its folder to the nodes, .env included
    "RAY_NUM_REDIS_GET_RETRIES": "1",  # a cluster that does not answer is waited for 40 s, not 14 minutes
    "RAY_task_oom_retries": str(MAX_RETRIES),  # or a variant that fits no node is begun for ever
}


def score_fleet(
    deployment: Deployment,
    scorer: "Scorer",
    keys: Sequence[str],
    week: date,
    dagster_run_id: str | None,
    *,
    then: Callable[["Outcome", "Scorer"], _Then],
    as_of: date | None = None,
) -> Iterator[tuple[str, _Then | BaseException]]:
    """Score many variants where the deployment says: in this process, or on the Ray cluster of ``CHURN_RAY_ADDRESS``.

    Args:
        then: Done with each outcome where it was made, in a thread or on a node. On a cluster, it and what it returns
            are pickled: neither may hold a scorer, a deployment or an outcome.
        as_of: See :meth:`churn.workflows.score.Scorer.score_variant`.

    Yields:
        Each key with what ``then`` returned or the error: as they come from a cluster, else in the order of ``keys``.

    Raises:
        ChurnError: If the cluster cannot be reached, has no node, or has one that is set otherwise than this process.
    """
    address = deployment.settings.churn_ray_address
    if address is None:
        yield from scorer.score_fleet(keys, week, dagster_run_id, then, as_of=as_of)
    elif keys:
        listed = scorer.aliases_for(keys)
        asked = set(keys)
        aliases = None if listed is None else {v: held for v, held in listed.items() if v.key in asked}
        job = _Job(week, dagster_run_id, then, as_of, aliases, fingerprint(deployment, scorer))
        with _connected(address) as ray:
            yield from _Fleet(ray, address, scorer, job).score(keys)


def fingerprint(deployment: Deployment, scorer: "Scorer") -> dict[str, str]:
    """Tell what must be the same wherever a fleet is scored, by the name that a person knows it by; holds no secret."""
    settings, mlflow = deployment.settings, deployment.mlflow_database
    return {
        "the code": deployment.code_version,
        "the predictions database": scorer.store.identity(),
        "MLflow": f"{mlflow.host}:{mlflow.port or 5432}/{mlflow.database}"
        if mlflow
        else _address(deployment.tracking_uri),
        "MLFLOW_S3_BUCKET": settings.mlflow_s3_bucket or "not set",
        "CHURN_LOCAL_FALLBACK": settings.churn_local_fallback,
        "CHURN_LOCAL_MAX_AGE": str(settings.churn_local_max_age),
        "CHURN_MAX_QUARANTINE_SHARE": str(settings.churn_max_quarantine_share),
        "CHURN_REASONS": str(settings.churn_reasons),
        "CHURN_HORIZON_MONTHS": str(settings.churn_horizon_months),
    }


def _address(uri: str) -> str:
    return uri.rpartition("@")[2].partition("?")[0]


@dataclass(frozen=True)
class _Job:
    """What a node needs to know of a fleet, sent once."""

    week: date
    dagster_run_id: str | None
    then: Callable[["Outcome", "Scorer"], Any]
    as_of: date | None
    aliases: Mapping[Variant, Mapping[str, int]] | None
    fingerprint: Mapping[str, str]


@dataclass(frozen=True)
class _Reply:
    """What came of a variant.

    Attributes:
        result: What ``then`` returned, or an error.
        is_recorded: Whether a failure is in the predictions database already.
    """

    result: Any
    is_recorded: bool


class _UnfitNodeError(ClusterError):
    """A node is not set up as the process that sends variants to it."""


class _Fleet:
    """A fleet on its way over a cluster's nodes."""

    def __init__(self, ray: Any, address: str, scorer: "Scorer", job: _Job) -> None:
        self._ray, self._address = ray, address
        self._scorer, self._job = scorer, job
        self._n_cpus, self._looked_at = 0, -_LOOK_EVERY_S
        self._seen_at = time.monotonic()

    def score(self, keys: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """Keep every node busy until all is done.

        Raises:
            ClusterError: If a node is unfit, or there has been none for a while; what is in hand is given up.
        """
        sent = self._ray.put(self._job)
        task = self._ray.remote(num_cpus=1, max_retries=MAX_RETRIES, retry_exceptions=False)(_attempt)
        left = iter(keys)
        in_hand: dict[Future[_Reply], tuple[str, datetime, object]] = {}
        while True:
            for key in islice(left, max(self._room() - len(in_hand), 0)):
                begun = task.options(name=key).remote(sent, key)
                # Waited for as a future: in Ray's own wait, what a signal raises becomes another error.
                in_hand[begun.future()] = key, datetime.now(UTC), begun
            if not in_hand:
                return
            for future in wait(in_hand, _LOOK_EVERY_S, FIRST_COMPLETED).done:
                key, started_at, _ = in_hand.pop(future)
                yield key, self._took(key, started_at, future)

    def _room(self) -> int:
        """Return how many variants may be in hand: nodes come and go, so they are counted now and then."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_EVERY_S:
            self._n_cpus, self._looked_at = int(self._ray.cluster_resources().get("CPU", 0)), now
        if self._n_cpus:
            self._seen_at = now
        elif now - self._seen_at > _NODES_WITHIN_S:
            raise ClusterUnavailableError(
                f"the Ray cluster at {self._address} has had no CPU to score on for {_NODES_WITHIN_S:.0f} s; start a "
                f"node with `ray start`, or look why its nodes are gone"
            )
        return _IN_HAND_PER_CPU * max(self._n_cpus, 1)

    def _took(self, key: str, started_at: datetime, future: Future[_Reply]) -> Any:
        reply = self._reply(future)
        if isinstance(reply.result, _UnfitNodeError):
            raise reply.result
        if isinstance(reply.result, BaseException) and not reply.is_recorded:
            self._scorer.record_failure(key, self._job.week, self._job.dagster_run_id, started_at, reply.result)
        return reply.result

    def _reply(self, future: Future[_Reply]) -> _Reply:
        errors = self._ray.exceptions
        try:
            return future.result()
        except errors.RayTaskError as error:  # not of scoring, of which every error is returned
            unsent = RuntimeError(f"Ray could not run the task or send what came of it: {error.cause!r}")
            return _Reply(unsent, is_recorded=False)
        except errors.RayError as error:
            said = str(error).strip().partition("\n")[0][:400]
            return _Reply(
                ClusterUnavailableError(
                    f"Ray gave the variant up after {MAX_RETRIES + 1} tries ({type(error).__name__}: {said}); nothing "
                    f"of it is half published. See `ray status` and the nodes' logs, perhaps it needs a node with "
                    f"more memory; then score it again"
                ),
                is_recorded=False,
            )


def _attempt(job: _Job, key: str) -> _Reply:
    """Score a variant on this node."""
    try:
        scorer = _fit_scorer(job.fingerprint)
    except ChurnError as error:
        if isinstance(error, TransientError | _UnfitNodeError):
            return _Reply(error, is_recorded=False)
        return _Reply(_UnfitNodeError(f"node {_node()} of the Ray cluster cannot score: {error}"), is_recorded=False)
    one = replace(scorer, aliases=job.aliases)
    result = one.attempt(key, job.week, job.dagster_run_id, job.then, as_of=job.as_of)
    if isinstance(result, BaseException) and not isinstance(result, ChurnError):
        result = RuntimeError(f"{type(result).__name__}: {result}")  # another kind need not survive pickling
    return _Reply(result, is_recorded=True)


def _fit_scorer(needed: Mapping[str, str]) -> "Scorer":
    """Return this worker's scorer if it scores as the fleet needs it."""
    found, scorer = _services()
    differing = [
        f"{name} is {found[name]} there and {value} here" for name, value in needed.items() if value != found[name]
    ]
    if differing:
        raise _UnfitNodeError(
            f"node {_node()} of the Ray cluster is set otherwise than this process: {'; '.join(differing)}. Start its "
            f"`ray start` with the same package, and in an environment with the same settings"
        )
    return scorer


@functools.cache
def _services() -> tuple[dict[str, str], "Scorer"]:
    """Open the deployment of this worker's own environment, for as long as the worker lives."""
    with ExitStack() as opened:
        deployment = opened.enter_context(open_deployment(load_settings()))
        scorer = deployment.scorer()
        found = fingerprint(deployment, scorer), scorer
        atexit.register(opened.pop_all().close)
    return found


def _node() -> str:
    import ray

    return str(ray.util.get_node_ip_address())


def load_ray() -> Any:
    """Import Ray, told beforehand what it reads then.

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
    """Connect this process to a cluster; on the way out, what it still has in hand there ends."""
    ray = load_ray()
    _require_listener(address)
    try:
        with _own_sigterm():
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
        f"the Ray cluster at {address} did not answer ({said}); correct CHURN_RAY_ADDRESS, or look with "
        f"`ray status` whether it runs. host:6379 and auto are for its own machines, ray://host:10001 for others"
    )


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep what this process does on SIGTERM: Ray would have it exit, where Dagster ends a run in order."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
