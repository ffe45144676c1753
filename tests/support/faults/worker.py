"""What a child process does before it is killed: it scores a variant with the product's own ``Scorer``, or a command.

Importing and loading cost seconds, so one process does them once, and forks a child for each kill. ``POINTS`` names the
places where a child kills itself, by the function it has entered or left.
"""

import gc
import importlib
import logging
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from datetime import date
from functools import wraps
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import pytest
import sqlalchemy as sa
from botocore.client import BaseClient

from churn.deployment.services import Deployment
from churn.inference.engine import build_engine
from churn.variants import Variant
from churn.workflows.score import Scorer
from tests.support.batches import week_request
from tests.support.faults.house import VARIANTS, Warmth, open_scorer
from tests.support.faults.naive import publish_naively

Step = tuple[str, str, str] | tuple[str, str, str, int]
"""A module, a function in it, whether it is entered or left, and how many calls of it come before."""

_PREDICTIONS, _PROMOTE = "churn.database.predictions", "churn.workflows.promote"
POINTS: Mapping[str, Step] = {
    "it has read nothing yet": ("churn.storage.sources", "Sources.fetch_input", "entered"),
    "the input is read": ("churn.storage.sources", "Sources.fetch_input", "left"),
    "the model is loaded": ("churn.registry.registry", "Registry.open", "left"),
    "the week is open": (_PREDICTIONS, "PredictionStore._open_week", "left"),
    "the lock is held": (_PREDICTIONS, "_begin_batch", "left"),
    "rows are half sent": ("churn.database.copy_format", "PulledStream.read", "left", 2),
    "rows are all sent": (_PREDICTIONS, "_copy", "left"),
    "the batch is recorded": (_PREDICTIONS, "_record_batch", "left"),
    "the batch is to become current": (_PREDICTIONS, "_make_current", "entered"),
    "the new batch is current": (_PREDICTIONS, "_make_current", "left"),
    "commit is asked for": ("churn.database.deadlines", "DeadlineConnection.commit", "entered", 1),
    "it is committed": (_PREDICTIONS, "PredictionStore.publish", "left"),
}
"""Where a child may kill itself: the module, the function, and whether it dies on the way in or out."""

MOVES: Mapping[str, Step] = {
    "nothing is decided": (_PROMOTE, "Promoter._move", "entered"),
    "the decision is written": ("churn.database.events", "Trail.record", "left"),
    "the decision is committed": (_PROMOTE, "Promoter._finish", "entered"),
    "moving begins": (_PROMOTE, "Promoter._complete", "entered"),
    "one alias is moved": ("churn.registry.registry", "Registry.set_aliases", "left"),
    "two aliases are moved": ("churn.registry.registry", "Registry.set_aliases", "left", 1),
    "the move is ended": ("churn.database.events", "Trail.end", "left"),
    "the end is committed": (_PROMOTE, "Promoter._finish", "left"),
}
"""Likewise for a process that moves aliases."""

REGISTERING: Mapping[str, Step] = {
    "the run is created": ("mlflow", "MlflowClient.create_run", "left"),
    "the model is created": ("mlflow", "MlflowClient.create_logged_model", "left"),
    "the model is logged": ("churn.registry.registry", "Registry._log_model", "left"),
    "the name is registered": ("mlflow", "MlflowClient.create_registered_model", "left"),
    "the version is registered": ("mlflow", "MlflowClient.create_model_version", "left"),
    "the run is ended": ("mlflow", "MlflowClient.set_terminated", "left"),
    "the alias is set": ("mlflow", "MlflowClient.set_registered_model_alias", "left"),
}
"""Likewise for a process that registers a model."""

_DELIVER = "churn.workflows.deliver"
DELIVERING: Mapping[str, Step] = {
    "nothing is delivered": (_DELIVER, "Deliverer._deliver", "entered"),
    "the rows are read": (_DELIVER, "export_week", "left"),
    "the object is written": ("churn.storage.places", "Bucket.upload", "left"),
    "the manifest is written": ("churn.storage.places", "Bucket.swap", "left"),
    "an old object is deleted": ("churn.storage.places", "Bucket.erase", "left"),
    "everything is delivered": (_DELIVER, "Deliverer._deliver", "left"),
    "a week is withdrawn": (_DELIVER, "Deliverer.withdraw", "left"),
    "an account is erased": ("churn.workflows.erase", "erase_rows", "left"),
}
"""Likewise for a process that delivers what is published, or erases an account from it."""

OPERATIONS_WARM = (
    "apprise", "dagster_postgres", "matplotlib.pyplot", "mlflow.db", "orchestration.upkeep", "churn.workflows.alert",
    "churn.workflows.deliver", "churn.workflows.erase", "churn.workflows.monitor", "churn.workflows.promote",
    "churn.workflows.set_up", "churn.workflows.train", "experiment_tracking.log_model",
)  # fmt: skip
"""What a nursery for other operations than scoring imports before it forks a child."""


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str | Step) -> None:
    """Make this process kill itself when it comes to a point."""
    step = {**POINTS, **MOVES, **REGISTERING, **DELIVERING}[point] if isinstance(point, str) else point
    module_name, path, when, calls_left = step if len(step) == 4 else (*step, 0)
    owner: Any = importlib.import_module(module_name)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    original: Callable[..., Any] = getattr(owner, name)

    @wraps(original)
    def deadly(*arguments: Any, **named: Any) -> Any:
        nonlocal calls_left
        is_time, calls_left = calls_left <= 0, calls_left - 1
        if is_time and when == "entered":
            _die()
        result = original(*arguments, **named)
        if is_time:
            _die()
        return result

    setattr(owner, name, deadly)


@dataclass(frozen=True)
class Order:
    """What a child is to do.

    Attributes:
        point: Where it kills itself; ``None`` leaves the killing to others.
        scores: What it publishes the naive way; ``None`` scores with the product.
        command: What it does instead of scoring; picklable.
        may_fail: Whether its errors are not worth a traceback.
    """

    key: str
    week: date
    run_id: str
    point: str | Step | None = None
    scores: dict[int, float] | None = None
    command: Callable[[Deployment], object] | None = None
    may_fail: bool = False


class Nursery:
    """A process that has imported and loaded everything, opened nothing, and forks a child for each order.

    It imports from its start on, so start it before the house is built that it works in.
    """

    def __init__(self, modules: Sequence[str] = ()) -> None:
        context = multiprocessing.get_context("spawn")
        self._orders, theirs = context.Pipe()
        self._process = context.Process(target=_nurse, args=(modules, theirs), daemon=True)
        with pytest.MonkeyPatch.context() as patch:  # OpenMP reads it when it is loaded; its threads survive no fork
            patch.setenv("OMP_THREAD_LIMIT", "1")
            self._process.start()

    def begin(self, environment: Mapping[str, str], deployment: Deployment, warmth: Warmth) -> None:
        """Send the process the deployment whose services it opens before it is forked."""
        self._orders.send((dict(environment), replace(deployment), warmth))  # nothing is open in it

    def wait(self) -> None:
        """Wait until it is warm."""
        self._orders.recv()

    def bear(self, order: Order) -> int:
        """Fork a child and return its process id; it is at work by then."""
        self._orders.send(order)
        return int(self._orders.recv())

    def outlive(self, child: int = 0) -> int:
        """Wait for the end of a child, by default the last; returns its exit status, or minus the signal's number."""
        self._orders.send(child)
        return int(self._orders.recv())

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def _nurse(modules: Sequence[str], orders: Connection) -> None:
    logging.getLogger("churn").setLevel(logging.ERROR)
    for name in modules:
        importlib.import_module(name)
    environment, deployment, warmth = orders.recv()
    os.environ.update(environment)
    scorer = _warm_scorer(deployment, warmth)
    orders.send(None)
    child = 0
    while True:
        order = orders.recv()
        if isinstance(order, int):
            orders.send(os.waitstatus_to_exitcode(os.waitpid(order or child, 0)[1]))
            continue
        child = os.fork()
        if child == 0:
            _live(order, scorer, deployment)
        orders.send(child)


def _live(order: Order, scorer: Scorer, deployment: Deployment) -> NoReturn:
    status = 1
    try:
        if order.point is not None:
            arm(order.point)
        if order.command is not None:
            with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
                order.command(deployment)
        elif order.scores is not None:
            publish_naively(deployment.database, order.key, order.week, order.scores)
        else:
            scorer.score_variant(week_request(order.week, dagster_run_id=order.run_id).of(Variant.from_key(order.key)))
        status = 0
    except BaseException:  # noqa: BLE001 the nursery's own life must not go on in its child
        if not order.may_fail:
            traceback.print_exc()
    os._exit(status)


def _warm_scorer(deployment: Deployment, warmth: Warmth) -> Scorer:
    scorer = open_scorer(deployment)
    model = scorer.registry.open(VARIANTS[0])
    build_engine(model.bundle, warmth.encoding, warmth.chunk[1], n_rows=100, with_reasons=True).score(warmth.chunk[1])
    for opened in gc.get_objects():  # several children must not speak on one connection
        if isinstance(opened, sa.Engine):
            opened.dispose()
        elif isinstance(opened, BaseClient):
            opened.close()
    return scorer
