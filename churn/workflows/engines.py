"""Where the work of a fleet runs: in threads of this process, in processes of this machine, or on a Ray cluster."""

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import TypeVar

from churn.variants import Variant
from churn.workflows.fleet import Attempts, FleetEngine, for_each_variant
from churn.workflows.process_engine import ProcessEngine
from churn.workflows.ray_engine import RayEngine, Workers, work_on_node

_Out = TypeVar("_Out")
_Services = TypeVar("_Services")
RecordLost = Callable[[str, datetime, BaseException], None]


def for_each_on(
    workers: Workers[_Services] | None,
    services: _Services,
    work: Callable[[_Services, Variant], _Out],
    keys: Sequence[str],
    *,
    record_lost: RecordLost = lambda *_: None,
    n_threads: int | None = None,
) -> Attempts[_Out]:
    """Do some work for many variants with the services of each worker, or in threads here with ``services``.

    As :func:`churn.workflows.fleet.for_each_variant`; from workers, results come as they complete, and ``work`` and its
    result are pickled. ``record_lost`` is called with the key, the start and the error of an attempt whose worker died
    too often. Raises ``ChurnError`` if a cluster cannot be reached, or has a node whose settings differ.
    """
    if workers is None:
        yield from for_each_variant(partial(work, services), keys, n_threads=n_threads)
        return
    address, n = workers.address, workers.n_processes
    engine: FleetEngine[_Out] = RayEngine(address, record_lost) if address else ProcessEngine(n, record_lost)
    yield from for_each_variant(partial(work_on_node, workers, work), keys, engine)
