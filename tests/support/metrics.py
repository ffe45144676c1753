"""A fleet in every state that monitoring knows, and its metrics."""

import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial

import sqlalchemy as sa
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from churn.deployment.services import Deployment
from churn.errors import InputError
from churn.report.prometheus import metrics_server
from churn.variants import Variant
from tests.support.batches import week_request
from tests.support.inputs import activity, as_parquet, monday, put_input, register_bundled
from tests.support.site import Run, Site, run_sql

OPENMETRICS = "application/openmetrics-text; version=1.0.0"

LABELS = "variant", "state", "kind", "severity", "feature"

Samples = Mapping[tuple[str, ...], float]


@dataclass(frozen=True)
class Scrape:
    """What a scrape answered, and how long that took."""

    status: int
    content_type: str
    text: str
    seconds: float

    @property
    def samples(self) -> Samples:
        """Values by name and label values, as an OpenMetrics parser reads them, which is strict."""
        return {
            (sample.name, *(sample.labels[name] for name in LABELS if name in sample.labels)): sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
        }


def scrape(address: str, accept: str = OPENMETRICS) -> Scrape:
    request = urllib.request.Request(address, headers={"Accept": accept})  # noqa: S310 our own loopback address
    began = time.monotonic()
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        text = answer.read().decode()
    return Scrape(answer.status, answer.headers["Content-Type"], text, time.monotonic() - began)


@contextmanager
def served(url: sa.URL) -> Iterator[str]:
    with metrics_server(url, "v1+test", host="127.0.0.1", port=0) as address:
        yield address


@dataclass(frozen=True)
class Fleet:
    """Four variants: ``us`` published and watched, ``eu`` failed, ``ca`` missing, ``uk`` published and gone since."""

    site: Site
    week: date
    batch_id: int
    judged_batch_id: int


def seed_watching(site: Site, batch_id: int, judged_batch_id: int) -> None:
    """Add what drift, judging and alerting keep."""
    run = partial(run_sql, site.server.set(database=site.churn), batch=batch_id, judged=judged_batch_id)
    run(
        """
        UPDATE scoring_batches SET drift =
            '{"total_deposit": {"psi": 0.31, "jensen_shannon": 0.2}, "churn_probability": {"psi": 0.07}}'
        WHERE batch_id = :batch
    """.replace(": ", r"\: ")
    )
    run("INSERT INTO drift_flags VALUES (:batch, 'total_deposit', true), (:batch, 'churn_probability', false)")
    run("""
        INSERT INTO evaluated_batches
            (evidence_after,
             batch_id, evaluated_at, labels_as_of, horizon_months, n_accounts, n_at_risk, n_matured, n_missing,
             n_churned, status, auc_limit, roc_auc, roc_auc_low, roc_auc_high, average_precision, log_loss, brier_score,
             calibration_error, lift_at_10, mean_score)
        VALUES (date '2000-01-01',
               :judged, now(), current_date, 3, 60, 50, 50, 0, 20, 'ok', 0.7, 0.6, 0.52, 0.68, 0.5, 0.6, 0.2, 0.04,
                1.5, 0.4)
    """)
    run("""
        INSERT INTO evaluated_segments (batch_id, segment, level, n_matured, n_churned, status, roc_auc, p_below_limit)
        VALUES (:judged, 'brand_id', 'OH', 30, 12, 'ok', 0.55, 0.001), (:judged, 'brand_id', 'PA', 20, 8,
                'insufficient', NULL, NULL)
    """)
    run("""
        INSERT INTO model_events (occurred_at, variant, registered_model, action, champion_version, reason, actor)
        VALUES (now(), 'geography-us', 'churn-prediction-model-us', 'promoted', 1, 'it proved better', 'test')
    """)
    quarantined = "INSERT INTO quarantined_rows VALUES (:batch, 3, 7, ARRAY['account_id_is_missing'], '{}')"
    run(f"SET session_replication_role = replica; {quarantined}")  # no trigger, since the batch is published
    run("""
        WITH incident AS (
            INSERT INTO incidents (kind, severity, title, members, opened_at, updated_at)
            VALUES ('variants_failed', 'error', 'Scoring failed', '{"geography-eu"\\: "no account_id"}', now(), now())
            RETURNING incident_id
        ), alert AS (
            INSERT INTO alerts (incident_id, event, created_at, title, body)
            SELECT incident_id, 'opened', now() - interval '2 hours', 'Scoring failed', '' FROM incident
            RETURNING alert_id
        )
        INSERT INTO alert_deliveries (alert_id, receiver, next_attempt_at, last_error)
        SELECT alert_id, 'json-1f2e', now(), 'it answered 500' FROM alert
    """)


def make_monitored_fleet(site: Site, log_model: Run, deployment: Deployment) -> Fleet:
    """A fleet in every state: batches scored by the code under test, the rest of what watching keeps by SQL."""
    us, week = Variant("us"), monday()
    register_bundled(site, log_model, us.key)
    put_input(site, us.key, as_parquet(activity()))
    scorer = deployment.scorer()
    judged = scorer.score_variant(week_request(monday(1)).of(us)).batch_id
    now = datetime.now(UTC)
    store = deployment.store()
    store.record_failure("geography-us", week, None, now, InputError("no input; it was there on the second attempt"))
    batch = scorer.score_variant(week_request(week).of(us)).batch_id
    store.record_failure("geography-eu", week, None, now, InputError("the file holds no 'account_id'"))
    store.record_failure("geography-ca", monday(2), None, now, InputError("the file holds no 'account_id'"))
    store.record_failure("geography-uk", monday(9), None, now, InputError("the file holds no 'account_id'"))
    seed_watching(site, batch, judged)
    return Fleet(site, week, batch, judged)
