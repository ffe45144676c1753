"""``churn metrics``: the fleet's state for Prometheus, read from the database at each scrape.

A scrape takes a few statements over whole tables as the reader role, in one snapshot. A database that does not answer
is a metric, ``churn_up 0``, and no failed scrape. What the tables hold is decided elsewhere.
"""

import importlib.metadata
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from churn.database.connection import READER, create_engine, errors_translated
from churn.errors import ChurnError, UsageError
from churn.monitoring.incidents import KINDS
from churn.weeks import monday_of

logger = logging.getLogger(__name__)

_STATEMENT_TIMEOUT, _ANSWER_WITHIN_S = "5s", 6.0  # Prometheus gives a scrape 10 s
_WEEKS_IN_VIEW = 4

# The variants that should be there: those attempted in the four weeks up to the last that ran before this one.
_IN_VIEW = """
WITH view AS (
    SELECT coalesce(max(scored_week) FILTER (WHERE scored_week < :week), :week) - :days AS since FROM scoring_attempts
), expected AS (
    SELECT DISTINCT a.variant FROM scoring_attempts AS a, view
    WHERE a.scored_week BETWEEN view.since AND :week AND a.role = 'champion'
), newest AS (
    SELECT DISTINCT ON (b.variant) b.variant, b.batch_id, b.scored_week FROM scoring_batches AS b, view
    WHERE b.is_current AND b.role = 'champion' AND b.scored_week BETWEEN view.since AND :week
    ORDER BY b.variant, b.scored_week DESC
)
"""
_STATES = f"""
{_IN_VIEW}, states AS (
    SELECT CASE WHEN EXISTS (SELECT FROM newest AS b WHERE b.variant = e.variant AND b.scored_week = :week)
                THEN 'published'
                WHEN EXISTS (SELECT FROM scoring_attempts AS a
                             WHERE a.variant = e.variant AND a.scored_week = :week AND a.role = 'champion')
                THEN 'failed'
                ELSE 'missing' END AS state
    FROM expected AS e
)
SELECT state, count(states.state) AS n
FROM (VALUES ('published'), ('failed'), ('missing')) AS known (state) LEFT JOIN states USING (state) GROUP BY state
"""  # noqa: S608 our own text, here and below
_BATCHES = f"""
{_IN_VIEW}
SELECT b.variant,
       extract(epoch FROM b.scored_week::timestamp AT TIME ZONE 'UTC') AS week,
       b.n_rows_scored AS n_rows, b.n_rows_quarantined AS n_quarantined, b.mean_probability,
       extract(epoch FROM b.published_at - b.started_at) AS duration,
       (b.fallback_reason IS NOT NULL)::integer AS is_fallback,
       extract(epoch FROM now() - b.source_modified_at) AS input_age,
       b.estimated_auc,
       (SELECT max((value ->> 'psi')::float8) FROM jsonb_each(b.drift)) AS psi
FROM newest JOIN scoring_batches AS b USING (batch_id) ORDER BY b.variant
"""  # noqa: S608
_EVALUATED = f"""
{_IN_VIEW}
SELECT DISTINCT ON (b.variant) b.variant,
       extract(epoch FROM b.scored_week::timestamp AT TIME ZONE 'UTC') AS week,
       j.roc_auc, j.roc_auc_low, j.roc_auc_high, j.auc_limit
FROM evaluated_batches AS j JOIN scoring_batches AS b USING (batch_id) JOIN expected USING (variant)
WHERE b.is_current AND b.role = 'champion' AND j.status = 'ok'
ORDER BY b.variant, b.scored_week DESC
"""  # noqa: S608
_FLAGS = f"""
{_IN_VIEW}
SELECT b.variant, f.feature, f.is_confirmed, (b.drift -> f.feature ->> 'psi')::float8 AS psi
FROM newest JOIN scoring_batches AS b USING (batch_id) JOIN drift_flags AS f USING (batch_id)
ORDER BY b.variant, f.feature
"""  # noqa: S608
_PUBLISHED = "SELECT extract(epoch FROM max(published_at)) AS at FROM scoring_batches"
_INCIDENTS = "SELECT kind, severity, count(*) AS n FROM incidents WHERE resolved_at IS NULL GROUP BY kind, severity"
_ALERTS = """
SELECT count(*) AS n, coalesce(extract(epoch FROM now() - min(a.created_at)), 0) AS oldest
FROM alert_deliveries AS d JOIN alerts AS a USING (alert_id) WHERE d.delivered_at IS NULL
"""


class _Gauge(NamedTuple):
    """A metric with a sample for each variant: a column of a statement."""

    name: str
    column: str
    unit: str
    help: str


_OF_BATCHES = (
    _Gauge("churn_batch_week", "week", "timestamp_seconds", "Monday of the variant's newest current batch"),
    _Gauge("churn_batch", "n_rows", "rows", "Accounts scored in that batch"),
    _Gauge("churn_batch_quarantined", "n_quarantined", "rows", "Rows of its input that broke the contract"),
    _Gauge("churn_batch_mean_probability", "mean_probability", "ratio", "Mean churn probability in that batch"),
    _Gauge("churn_batch_duration", "duration", "seconds", "From the start of the attempt to its publication"),
    _Gauge("churn_batch_is_fallback", "is_fallback", "", "1 when the local copy stood in for S3"),
    _Gauge("churn_input_age", "input_age", "seconds", "Time since the input of that batch was modified"),
    _Gauge("churn_estimated_auc", "estimated_auc", "ratio", "ROC AUC expected before labels; assumes no concept drift"),
    _Gauge("churn_psi_max", "psi", "", "Largest population stability index over the features and the score"),
)
_OF_EVALUATED = (
    _Gauge("churn_evaluated_week", "week", "timestamp_seconds", "Monday of the newest batch judged by matured labels"),
    _Gauge("churn_roc_auc", "roc_auc", "ratio", "ROC AUC of that batch"),
    _Gauge("churn_roc_auc_low", "roc_auc_low", "ratio", "Lower end of its 95 % interval"),
    _Gauge("churn_roc_auc_high", "roc_auc_high", "ratio", "Upper end of its 95 % interval"),
    _Gauge("churn_roc_auc_limit", "auc_limit", "ratio", "What the ROC AUC must not lie under"),
)

Rows = Sequence[sa.Row[Any]]


class FleetCollector(Collector):
    """What Prometheus is told at a scrape. Holds no connection between scrapes."""

    def __init__(self, url: sa.URL, code_version: str) -> None:
        self._url = url
        self._engine = create_engine(url, role=READER, answer_within_s=_ANSWER_WITHIN_S)
        self._build = {"version": importlib.metadata.version("churn-scoring"), "code_version": code_version}

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics of one snapshot; without an answer of the database, that alone."""
        yield InfoMetricFamily("churn_build", "The code that answers this scrape", self._build)
        try:
            metrics = self._read(monday_of(datetime.now(UTC).date()))
        except ChurnError as error:
            logger.warning("no metrics: %s", error)
            metrics = None
        yield GaugeMetricFamily("churn_up", "1 when the database answered", 0 if metrics is None else 1)
        yield from metrics or ()

    def _read(self, week: date) -> list[Metric]:
        snapshot = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        days = timedelta(weeks=_WEEKS_IN_VIEW - 1).days
        with errors_translated(self._url), snapshot.connect() as connection:
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{_STATEMENT_TIMEOUT}'")

            def rows(statement: str) -> Rows:
                values = {"week": week, "days": days} if ":week" in statement else {}
                return connection.execute(sa.text(statement), values).all()

            return [
                *_fleet(week, rows(_STATES), rows(_PUBLISHED)),
                *_by_variant(_OF_BATCHES, rows(_BATCHES)),
                *_by_variant(_OF_EVALUATED, rows(_EVALUATED)),
                *_drift(rows(_FLAGS)),
                *_trouble(rows(_INCIDENTS), rows(_ALERTS)[0]),
            ]


def _fleet(week: date, states: Rows, published: Rows) -> Iterator[Metric]:
    monday = datetime(week.year, week.month, week.day, tzinfo=UTC)
    yield _one("churn_week", monday.timestamp(), "The current week's Monday", "timestamp_seconds")
    variants = GaugeMetricFamily(
        "churn_variants",
        "Variants in the current week: published; failed, with nothing published; missing, attempted in the four weeks "
        "up to the last one that ran and not in this",
        labels=["state"],
    )
    for row in states:
        variants.add_metric([row.state], row.n)
    yield variants
    if published[0].at is not None:
        yield _one("churn_last_published", float(published[0].at), "The newest publication", "timestamp_seconds")


def _by_variant(gauges: Sequence[_Gauge], rows: Rows) -> Iterator[Metric]:
    for gauge in gauges:
        family = GaugeMetricFamily(gauge.name, gauge.help, labels=["variant"], unit=gauge.unit)
        for row in rows:
            value = getattr(row, gauge.column)
            if value is not None:
                family.add_metric([row.variant], float(value))
        yield family


def _drift(flags: Rows) -> Iterator[Metric]:
    # Of the features that drifted only: a series for every feature of thousands of variants would be too many.
    psi = GaugeMetricFamily(
        "churn_psi",
        "Population stability index of each feature that drifted in the variant's newest batch",
        labels=["variant", "feature"],
    )
    for flag in flags:
        if flag.psi is not None:
            psi.add_metric([flag.variant, flag.feature], flag.psi)
    yield psi
    drifted = GaugeMetricFamily(
        "churn_drifted_variants",
        "Variants whose newest batch drifted: new, in this week only; confirmed, in the week before, too",
        labels=["state"],
    )
    confirmed = {flag.variant for flag in flags if flag.is_confirmed}
    drifted.add_metric(["confirmed"], len(confirmed))
    drifted.add_metric(["new"], len({flag.variant for flag in flags} - confirmed))
    yield drifted


def _trouble(incidents: Rows, alerts: sa.Row[Any]) -> Iterator[Metric]:
    family = GaugeMetricFamily("churn_open_incidents", "Incidents that are open", labels=["kind", "severity"])
    counts = {(kind.name, kind.severity): 0 for kind in KINDS.values()}
    for key, n in (counts | {(row.kind, row.severity): row.n for row in incidents}).items():
        family.add_metric(key, n)
    yield family
    yield _one("churn_alerts_waiting", alerts.n, "Alerts that a receiver has not taken yet")
    oldest = float(alerts.oldest)
    yield _one("churn_alerts_waiting_oldest", oldest, "Age of the oldest of them; 0 without any", "seconds")


def _one(name: str, value: float, described: str, unit: str = "") -> Metric:
    return GaugeMetricFamily(name, described, value, unit=unit)


@contextmanager
def metrics_server(url: sa.URL, code_version: str, *, host: str, port: int) -> Iterator[str]:
    """Answer scrapes meanwhile; yields the address.

    Args:
        port: 0 for any that is free.

    Raises:
        UsageError: If nothing can listen there.
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
