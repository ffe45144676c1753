"""``churn metrics``: the state of the fleet for Prometheus, read from the database at each scrape.

Each scrape runs a few statements as the reader role in one snapshot. If the database does not answer, the scrape
succeeds and ``churn_up`` is 0.
"""

import importlib.metadata
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import NamedTuple

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from churn.database.metrics import BatchMetrics, DriftMetrics, EvaluationMetrics, FleetMetrics, read_metrics
from churn.errors import ChurnError, UsageError
from churn.monitoring.incidents import KINDS
from churn.weeks import monday_of

logger = logging.getLogger(__name__)


class _Gauge(NamedTuple):
    """A metric with a sample for each variant; ``field`` names the field of the row that holds its value."""

    name: str
    field: str
    unit: str
    help: str


_OF_BATCHES = (
    _Gauge("churn_batch_week", "week", "timestamp_seconds", "Monday of the variant's newest current batch."),
    _Gauge("churn_batch", "n_rows", "rows", "Accounts scored in the variant's newest current batch."),
    _Gauge(
        "churn_batch_quarantined",
        "n_quarantined",
        "rows",
        "Rows of the newest batch's input that were quarantined because they break the data contract.",
    ),
    _Gauge(
        "churn_batch_mean_probability",
        "mean_probability",
        "ratio",
        "Mean churn probability in the variant's newest current batch.",
    ),
    _Gauge(
        "churn_batch_duration",
        "duration_s",
        "seconds",
        "Time from the start of the scoring attempt to the publication of the variant's newest batch.",
    ),
    _Gauge(
        "churn_batch_is_fallback",
        "is_fallback",
        "",
        "1 if the variant's newest batch was scored from the local copy because S3 was not available, else 0.",
    ),
    _Gauge(
        "churn_input_age", "input_age_s", "seconds", "Time since the input of the variant's newest batch was modified."
    ),
    _Gauge(
        "churn_estimated_auc",
        "estimated_auc",
        "ratio",
        "ROC AUC of the newest batch, estimated before labels mature from the scores alone; assumes no concept drift.",
    ),
    _Gauge(
        "churn_psi_max",
        "largest_psi",
        "",
        "Largest population stability index (PSI) over the features and the score of the variant's newest batch.",
    ),
)
_OF_EVALUATED = (
    _Gauge(
        "churn_evaluated_week",
        "week",
        "timestamp_seconds",
        "Monday of the variant's newest batch that was evaluated with matured labels.",
    ),
    _Gauge("churn_roc_auc", "roc_auc", "ratio", "ROC AUC of the variant's newest evaluated batch."),
    _Gauge("churn_roc_auc_low", "roc_auc_low", "ratio", "Lower end of the 95 % confidence interval of churn_roc_auc."),
    _Gauge(
        "churn_roc_auc_high", "roc_auc_high", "ratio", "Upper end of the 95 % confidence interval of churn_roc_auc."
    ),
    _Gauge("churn_roc_auc_limit", "auc_limit", "ratio", "Minimum ROC AUC required of the evaluated model version."),
)


class FleetCollector(Collector):
    """Collects the metrics of one scrape. Holds no connection between scrapes."""

    def __init__(self, url: sa.URL, code_version: str) -> None:
        self._url = url
        self._build = {"version": importlib.metadata.version("churn-scoring"), "code_version": code_version}

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of one snapshot; if the database does not answer, only ``churn_build`` and ``churn_up``."""
        yield InfoMetricFamily("churn_build", "Version of the code that answers this scrape.", self._build)
        week = monday_of(datetime.now(UTC).date())
        try:
            fleet = read_metrics(self._url, week)
        except ChurnError as error:
            logger.warning("no metrics: %s", error)
            fleet = None
        yield _gauge("churn_up", 0 if fleet is None else 1, "1 if the predictions database answered, else 0.")
        if fleet is not None:
            yield from _of_fleet(week, fleet)
            yield from _by_variant(_OF_BATCHES, fleet.batches)
            yield from _by_variant(_OF_EVALUATED, fleet.evaluated)
            yield from _drift(fleet.flags)
            yield from _incidents(fleet)


def _of_fleet(week: date, fleet: FleetMetrics) -> Iterator[Metric]:
    monday = datetime(week.year, week.month, week.day, tzinfo=UTC)
    yield _gauge("churn_week", monday.timestamp(), "Monday of the current week.", "timestamp_seconds")
    variants = GaugeMetricFamily(
        "churn_variants",
        "Expected variants by state in the current week: published, failed (attempted, nothing published) or missing "
        "(not attempted). Expected are variants attempted in the four weeks up to the last earlier week with attempts; "
        "variants that were never attempted are not counted.",
        labels=["state"],
    )
    for state, n in fleet.n_by_state.items():
        variants.add_metric([state], n)
    yield variants
    if fleet.last_published_s is not None:
        published = float(fleet.last_published_s)
        yield _gauge("churn_last_published", published, "Time of the newest publication.", "timestamp_seconds")


def _by_variant(
    gauges: Sequence[_Gauge], rows: Sequence[BatchMetrics] | Sequence[EvaluationMetrics]
) -> Iterator[Metric]:
    for gauge in gauges:
        family = GaugeMetricFamily(gauge.name, gauge.help, labels=["variant"], unit=gauge.unit)
        for row in rows:
            value = getattr(row, gauge.field)
            if value is not None:
                family.add_metric([row.variant], float(value))
        yield family


def _drift(flags: Sequence[DriftMetrics]) -> Iterator[Metric]:
    # Only features that drifted: one series for each feature of thousands of variants would be too many.
    psi = GaugeMetricFamily(
        "churn_psi",
        "Population stability index (PSI) of each feature that drifted in the variant's newest batch.",
        labels=["variant", "feature"],
    )
    for flag in flags:
        if flag.psi is not None:
            psi.add_metric([flag.variant, flag.feature], flag.psi)
    yield psi
    drifted = GaugeMetricFamily(
        "churn_drifted_variants",
        "Variants whose newest batch drifted: new (in this batch only) or confirmed (in the week before as well).",
        labels=["state"],
    )
    confirmed = {flag.variant for flag in flags if flag.is_confirmed}
    drifted.add_metric(["confirmed"], len(confirmed))
    drifted.add_metric(["new"], len({flag.variant for flag in flags} - confirmed))
    yield drifted


def _incidents(fleet: FleetMetrics) -> Iterator[Metric]:
    family = GaugeMetricFamily(
        "churn_open_incidents", "Open incidents by kind and severity.", labels=["kind", "severity"]
    )
    none_open = {(kind.name, kind.severity): 0 for kind in KINDS.values()}
    for labels, n in (none_open | dict(fleet.n_incidents)).items():
        family.add_metric(labels, n)
    yield family
    yield _gauge("churn_alerts_waiting", fleet.n_undelivered, "Alerts that were not delivered to their receiver yet.")
    oldest = float(fleet.oldest_undelivered_s)
    help_text = "Age of the oldest undelivered alert; 0 if there is none."
    yield _gauge("churn_alerts_waiting_oldest", oldest, help_text, "seconds")


def _gauge(name: str, value: float, help_text: str, unit: str = "") -> Metric:
    return GaugeMetricFamily(name, help_text, value, unit=unit)


@contextmanager
def metrics_server(url: sa.URL, code_version: str, *, host: str, port: int) -> Iterator[str]:
    """Serve metrics until the end of the block; yields the address.

    Args:
        port: 0 picks a free port.

    Raises:
        UsageError: If the address cannot be bound.
    """
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
