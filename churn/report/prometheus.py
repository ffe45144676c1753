"""``churn metrics``: the state of the fleet for Prometheus, read from the database at each scrape.

Each scrape runs a few statements as the reader role in one snapshot. If the database does not answer, the scrape
succeeds and ``churn_up`` is 0.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, time

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

# Metrics with a sample for each variant: name, the row's field that holds the value, unit, help.
_OF_BATCHES = (
    ("churn_batch_week", "week", "timestamp_seconds", "Monday of the variant's newest current batch."),
    ("churn_batch", "n_rows", "rows", "Accounts scored in the variant's newest batch."),
    ("churn_batch_at_risk", "n_at_risk", "rows",
     "Accounts at risk in the variant's newest batch; absent if it is unknown who is at risk."),
    ("churn_batch_quarantined", "n_quarantined", "rows",
     "Input rows of the variant's newest batch that were quarantined for breaking the data contract."),
    ("churn_batch_mean_probability", "mean_probability", "ratio",
     "Mean churn probability of the accounts at risk in the variant's newest batch; of all its accounts if it is "
     "unknown who is at risk."),
    ("churn_batch_duration", "duration_s", "seconds", "Time that scoring and publishing the newest batch took."),
    ("churn_batch_is_fallback", "is_fallback", "", "1 if the newest batch was scored from a local copy, else 0."),
    ("churn_input_age", "input_age_s", "seconds", "Time since the input of the newest batch was modified."),
    ("churn_estimated_auc", "estimated_auc", "ratio",
     "ROC AUC of the variant's newest batch, estimated from the scores of its accounts at risk; assumes no concept "
     "drift. Absent if it is unknown whether the scores are calibrated."),
    ("churn_psi_max", "largest_psi", "",
     "Largest population stability index (PSI) of a feature, or of the score, in the variant's newest batch."),
)  # fmt: skip
_OF_EVALUATED = (
    ("churn_evaluated_week", "week", "timestamp_seconds", "Monday of the variant's newest evaluated batch."),
    ("churn_roc_auc", "roc_auc", "ratio", "ROC AUC of the variant's newest batch with matured labels."),
    ("churn_roc_auc_low", "roc_auc_low", "ratio",
     "Lower end of the 95 % confidence interval of the ROC AUC of the variant's newest batch with matured labels."),
    ("churn_roc_auc_high", "roc_auc_high", "ratio",
     "Upper end of the 95 % confidence interval of the ROC AUC of the variant's newest batch with matured labels."),
    ("churn_roc_auc_limit", "auc_limit", "ratio",
     "Minimum ROC AUC of the model version of the variant's newest batch with matured labels."),
)  # fmt: skip


class FleetCollector(Collector):
    """Collects the metrics of one scrape. No connection stays open between scrapes."""

    def __init__(self, url: sa.URL, code_version: str) -> None:
        self._url = url
        self._build = {"version": package_version(), "code_version": code_version}

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of one snapshot; if the database does not answer, only ``churn_build`` and ``churn_up``."""
        yield InfoMetricFamily("churn_build", "Version of the code that answers this scrape.", self._build)
        week = monday_of(datetime.now(UTC).date())
        try:
            fleet = read_metrics(self._url, week)
        except ChurnError as error:
            logger.warning("no metrics: %s", error)
            fleet = None
        yield _gauge("churn_up", "1 if the predictions database answered, else 0.", fleet is not None)
        if fleet is not None:
            yield from _of_fleet(week, fleet)
            yield from _by_variant(_OF_BATCHES, fleet["batches"])
            yield from _by_variant(_OF_EVALUATED, fleet["evaluated"])
            yield from _drift(fleet["flags"])


def _of_fleet(week: date, fleet: Mapping[str, Sequence[Row]]) -> Iterator[Metric]:
    ((last_published_s,),), ((n_undelivered, oldest_undelivered_s),) = fleet["published"], fleet["alerts"]
    monday = datetime.combine(week, time.min, UTC).timestamp()
    yield _gauge("churn_week", "Monday of the current week.", monday, "timestamp_seconds")
    text = (
        "Expected variants by state in the current week: published, failed (attempted, nothing published) or missing "
        "(not attempted). Expected are variants attempted in the four weeks up to the last earlier week with attempts; "
        "variants that were never attempted are not counted."
    )
    yield _family("churn_variants", text, ["state"], (([state], n) for state, n in fleet["states"]))
    if last_published_s is not None:
        text = "Time at which the newest batch of any variant was published."
        yield _gauge("churn_last_published", text, last_published_s, "timestamp_seconds")
    incidents = {(kind.name, kind.severity): 0 for kind in KINDS.values()}
    incidents |= {(kind, severity): n for kind, severity, n in fleet["incidents"]}
    text = "Open incidents by kind and severity."
    yield _family("churn_open_incidents", text, ["kind", "severity"], incidents.items())
    yield _gauge("churn_alerts_waiting", "Alerts that were not delivered to their receiver yet.", n_undelivered)
    text = "Age of the oldest alert that was not delivered to its receiver yet; 0 if there is none."
    yield _gauge("churn_alerts_waiting_oldest", text, oldest_undelivered_s, "seconds")


def _by_variant(gauges: Iterable[tuple[str, str, str, str]], rows: Sequence[Row]) -> Iterator[Metric]:
    for name, field, unit, text in gauges:
        yield _family(name, text, ["variant"], (([row.variant], getattr(row, field)) for row in rows), unit)


def _drift(flags: Sequence[Row]) -> Iterator[Metric]:
    # Only features that drifted: one series for each feature of thousands of variants would be too many.
    text = "Population stability index (PSI) of each feature that drifted in the variant's newest batch."
    yield _family("churn_psi", text, ["variant", "feature"], (([one.variant, one.feature], one.psi) for one in flags))
    confirmed = {flag.variant for flag in flags if flag.is_confirmed}
    n_new = len({flag.variant for flag in flags} - confirmed)
    text = "Variants whose newest batch drifted: new (in this input only) or confirmed (in two different inputs)."
    yield _family("churn_drifted_variants", text, ["state"], [(["confirmed"], len(confirmed)), (["new"], n_new)])


def _family(
    name: str, text: str, labels: Sequence[str], samples: Iterable[tuple[Sequence[str], float | None]], unit: str = ""
) -> Metric:
    """Build a metric from its samples, each with its labels' values; ``None`` is no sample."""
    family = GaugeMetricFamily(name, text, labels=labels, unit=unit)
    for values, value in samples:
        if value is not None:
            family.add_metric(values, float(value))
    return family


def _gauge(name: str, text: str, value: float, unit: str = "") -> Metric:
    return GaugeMetricFamily(name, text, float(value), unit=unit)


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
