"""At stake: Dagster's code server scores, ticks and reports for months in one process. What each of them opens it must
close, and not leave to the garbage collector: PostgreSQL has 100 connections, a process 1,024 descriptors.
"""

import gc
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path

import dagster as dg
import psutil
import pytest

from churn.deployment.services import open_deployment
from churn.deployment.settings import load_settings
from churn.report import write_report
from churn.weeks import monday_of
from churn.workflows.score import FleetRequest, score_fleet
from orchestration.definitions import defs
from orchestration.resources import Services
from tests.support.inputs import register_bundled
from tests.support.site import Run, Site, bundled

CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname IN (:mlflow, :churn)"
MOST_MEMORY = 30 * 2**20
"""Growth in the second half of the calls; nothing but chance in the allocator adds to it."""


def score() -> None:
    today = datetime.now(UTC).date()
    request = FleetRequest.as_known(monday_of(today), today=today)
    with open_deployment(load_settings()) as deployment:
        ((_, n_rows),) = score_fleet(
            deployment.scorer(), ["base"], request, lambda outcome, _: outcome.record.n_rows_scored
        )
    assert n_rows == 1000


def report(folder: Path) -> None:
    with open_deployment(load_settings()) as deployment:
        written = write_report(
            deployment.database, folder / "report.html", week=None, now=datetime.now(UTC), mlflow_ui="http://mlflow"
        )
    assert written.n_variants == 1


def ticks(instance: dg.DagsterInstance) -> Iterator[Callable[[], None]]:
    """Evaluate each sensor in turn."""
    repository = defs.get_repository_def()

    def tick(sensor: dg.SensorDefinition) -> None:
        with dg.build_sensor_context(
            instance=instance, repository_def=repository, resources={"services": Services()}
        ) as context:
            assert "cannot" not in (sensor.evaluate_tick(context).skip_message or "")

    for sensor in cycle(repository.sensor_defs):
        yield lambda sensor=sensor: tick(sensor)  # type: ignore[misc]


@contextmanager
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def held(site: Site) -> dict[str, int]:
    """What this process holds: its connections, as the server counts them, its descriptors and its threads."""
    return {
        "connections": site.rows(site.churn, CONNECTIONS, mlflow=site.mlflow, churn=site.churn)[0][0],
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
    }


def require_no_more(site: Site, before: Mapping[str, int], name: str) -> None:
    """Fail if this process holds more than before, also when threads that had done their work have ended."""
    deadline = time.monotonic() + 5
    while more := {what: (n, before[what]) for what, n in held(site).items() if n > before[what]}:
        assert time.monotonic() < deadline, f"after {name}: {more}"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("n_scorings", "n_ticks", "n_reports"), [(2, 2, 2), (200, 200, 50)])
def test_scorings_ticks_and_reports_leave_nothing_open(
    site: Site,
    *,
    log_model: Run,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    n_scorings: int,
    n_ticks: int,
    n_reports: int,
) -> None:
    register_bundled(site, log_model, "base")
    site.put("data/churn/activity.parquet", bundled("activity.parquet"))
    n_sensors = min(n_ticks, len(defs.get_repository_def().sensor_defs))
    for once in (score, *islice(ticks(instance), n_sensors), lambda: report(tmp_path)):  # imports, caches, shared pools
        once()
    work = {
        "scorings": [score] * n_scorings,
        "ticks": list(islice(ticks(instance), n_ticks)),
        "reports": [lambda: report(tmp_path)] * n_reports,
    }
    gc.collect()
    before = held(site)

    for name, calls in work.items():
        with without_collector():
            for call in calls[: len(calls) // 2]:
                call()
            require_no_more(site, before, name)
    memory = psutil.Process().memory_info().rss
    for calls in work.values():
        for call in calls[len(calls) // 2 :]:
            call()

    require_no_more(site, before, "all")
    gc.collect()
    assert psutil.Process().memory_info().rss - memory < MOST_MEMORY
