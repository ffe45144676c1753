"""``churn metrics``: the state of the fleet for Prometheus, read from the database at each scrape.

``metrics.toml`` describes each metric. A scrape runs a few statements as the reader role in one snapshot. If the
database does not answer, it succeeds and ``churn_up`` is 0.
"""

import logging
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, time
from importlib.resources import files

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from churn.database.metrics import Row, read_metrics
from churn.errors import ChurnError, UsageError
from churn.monitoring.incidents import KINDS
from churn.versions import package_version
from churn.weeks import monday_of

logger = logging.getLogger(__name__)

_METRICS: dict[str, dict[str, str]] = tomllib.loads(files("churn.report").joinpath("metrics.toml").read_text("utf-8"))


class FleetCollector(Collector):
    """Collects the metrics of one scrape. No connection stays open between scrapes."""

    def __init__(self, url: sa.URL, code_version: str) -> None:
        self._url = url
        self._build = {"version": package_version(), "code_version": code_version}

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of one snapshot; if the database does not answer, only ``churn_build`` and ``churn_up``."""
        yield InfoMetricFamily("churn_build", _METRICS["churn_build"]["help"], self._build)
        week = monday_of(datetime.now(UTC).date())
        try:
            fleet = read_metrics(self._url, week)
        except ChurnError as error:
            logger.warning("no metrics: %s", error)
            fleet = None
        yield _metric("churn_up", fleet is not None)
        if fleet is not None:
            yield from _of_fleet(week, fleet)
            for name in (name for name, about in _METRICS.items() if "field" in about):
                rows, field = fleet[_METRICS[name]["rows"]], _METRICS[name]["field"]
                yield _family(name, ["variant"], (([row.variant], getattr(row, field)) for row in rows))
            yield from _drift(fleet["flags"])


def _of_fleet(week: date, fleet: Mapping[str, Sequence[Row]]) -> Iterator[Metric]:
    ((last_published_s,),), ((n_undelivered, oldest_undelivered_s),) = fleet["published"], fleet["alerts"]
    yield _metric("churn_week", datetime.combine(week, time.min, UTC).timestamp())
    yield _family("churn_variants", ["state"], (([state], n) for state, n in fleet["states"]))
    if last_published_s is not None:
        yield _metric("churn_last_published", last_published_s)
    incidents = {(kind.name, kind.severity): 0 for kind in KINDS.values()}
    incidents |= {(kind, severity): n for kind, severity, n in fleet["incidents"]}
    yield _family("churn_open_incidents", ["kind", "severity"], incidents.items())
    yield _metric("churn_alerts_waiting", n_undelivered)
    yield _metric("churn_alerts_waiting_oldest", oldest_undelivered_s)


def _drift(flags: Sequence[Row]) -> Iterator[Metric]:
    # Only features that drifted: one series for each feature of thousands of variants would be too many.
    yield _family("churn_psi", ["variant", "feature"], (([one.variant, one.feature], one.psi) for one in flags))
    confirmed = {flag.variant for flag in flags if flag.is_confirmed}
    n_new = len({flag.variant for flag in flags} - confirmed)
    yield _family("churn_drifted_variants", ["state"], [(["confirmed"], len(confirmed)), (["new"], n_new)])


def _family(name: str, labels: Sequence[str], samples: Iterable[tuple[Sequence[str], float | None]]) -> Metric:
    """Build a metric from its samples, each with its labels' values; ``None`` is no sample."""
    about = _METRICS[name]
    family = GaugeMetricFamily(name, about["help"], labels=labels, unit=about.get("unit", ""))
    for values, value in samples:
        if value is not None:
            family.add_metric(values, float(value))
    return family


def _metric(name: str, value: float) -> Metric:
    return _family(name, (), [((), value)])


@contextmanager
def metrics_server(url: sa.URL, code_version: str, *, host: str, port: int) -> Iterator[str]:
    """Serve metrics at a port, 0 for a free one, and yield the address; raises ``UsageError`` if it cannot be bound."""
    registry = CollectorRegistry()
    registry.register(FleetCollector(url, code_version))
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except (OSError, OverflowError) as error:
        raise UsageError(f"--host {host} --port {port} cannot be used ({error}); name others") from None
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
