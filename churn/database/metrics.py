"""Reads the state of the fleet for Prometheus: a few statements over all variants, in one snapshot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import sqlalchemy as sa

from churn.database.connection import open_snapshot

_STATEMENT_TIMEOUT, _ANSWER_WITHIN_S = "5s", 6.0  # Prometheus allows 10 s for a scrape
EXPECTED_DAYS = 3 * 7

# The expected variants: those with an attempt since three weeks before the last week before ``:week`` with attempts.
_EXPECTED = """
WITH period AS (
    SELECT coalesce(max(scored_week) FILTER (WHERE scored_week < :week), :week) - :days AS since FROM scoring_attempts
), expected AS (
    SELECT DISTINCT a.variant FROM scoring_attempts AS a, period
    WHERE a.scored_week BETWEEN period.since AND :week AND a.role = 'champion'
), newest AS (
    SELECT DISTINCT ON (b.variant) b.variant, b.batch_id, b.scored_week FROM scoring_batches AS b, period
    WHERE b.is_current AND b.role = 'champion' AND b.scored_week BETWEEN period.since AND :week
    ORDER BY b.variant, b.scored_week DESC
)
"""
STATES = f"""
{_EXPECTED}, states AS (
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
"""  # noqa: S608 our own text
"""The number of variants in each state of the week ``:week``; infra/make_alert_rules.py uses it for Grafana, too."""
_BATCHES = f"""
{_EXPECTED}
SELECT b.variant,
       extract(epoch FROM b.scored_week::timestamp AT TIME ZONE 'UTC') AS week,
       b.n_rows_scored AS n_rows, b.n_at_risk, b.n_rows_quarantined AS n_quarantined, b.mean_probability,
       extract(epoch FROM b.published_at - b.started_at) AS duration_s,
       (b.fallback_reason IS NOT NULL)::integer AS is_fallback,
       extract(epoch FROM now() - b.source_modified_at) AS input_age_s,
       b.estimated_auc,
       (SELECT max((value ->> 'psi')::float8) FROM jsonb_each(b.drift)) AS largest_psi
FROM newest JOIN scoring_batches AS b USING (batch_id) ORDER BY b.variant
"""  # noqa: S608 our own text
_EVALUATED = f"""
{_EXPECTED}
SELECT DISTINCT ON (b.variant) b.variant,
       extract(epoch FROM b.scored_week::timestamp AT TIME ZONE 'UTC') AS week,
       e.roc_auc, e.roc_auc_low, e.roc_auc_high, e.auc_limit
FROM evaluated_batches AS e JOIN scoring_batches AS b USING (batch_id) JOIN expected USING (variant)
WHERE b.is_current AND b.role = 'champion' AND e.status = 'ok' AND b.as_of > e.evidence_after
ORDER BY b.variant, b.scored_week DESC
"""  # noqa: S608 our own text
_FLAGS = f"""
{_EXPECTED}
SELECT b.variant, f.feature, f.is_confirmed, (b.drift -> f.feature ->> 'psi')::float8 AS psi
FROM newest JOIN scoring_batches AS b USING (batch_id) JOIN drift_flags AS f USING (batch_id)
ORDER BY b.variant, f.feature
"""  # noqa: S608 our own text
_PUBLISHED = "SELECT extract(epoch FROM max(published_at)) FROM scoring_batches"
_INCIDENTS = "SELECT kind, severity, count(*) FROM incidents WHERE resolved_at IS NULL GROUP BY kind, severity"
_ALERTS = """
SELECT count(*), coalesce(extract(epoch FROM now() - min(a.created_at)), 0)
FROM alert_deliveries AS d JOIN alerts AS a USING (alert_id) WHERE d.delivered_at IS NULL
"""

Row = sa.Row[Any]


@dataclass(frozen=True)
class FleetMetrics:
    """The state of the fleet in one week.

    Attributes:
        n_by_state: The number of expected variants that are published, failed and missing.
        last_published_s: The newest publication, seconds since the epoch; ``None`` before the first.
        batches: Each variant's newest current batch; times in seconds, ``week`` since the epoch.
        evaluated: Each variant's newest batch with enough labels; ``week`` in seconds since the epoch.
        flags: Features, and the score, that drifted in each variant's newest batch.
        n_incidents: Open incidents by kind and severity.
        n_undelivered: Alerts not delivered to their receiver yet.
        oldest_undelivered_s: Age of the oldest of these alerts, seconds; 0 if there is none.
    """

    n_by_state: Mapping[str, int]
    last_published_s: float | None
    batches: Sequence[Row]
    evaluated: Sequence[Row]
    flags: Sequence[Row]
    n_incidents: Mapping[tuple[str, str], int]
    n_undelivered: int
    oldest_undelivered_s: float


def read_metrics(url: sa.URL, week: date) -> FleetMetrics:
    """Read the fleet in the week that begins on a Monday; raises ``ChurnError`` if that takes longer than a scrape."""
    with open_snapshot(url, answer_within_s=_ANSWER_WITHIN_S) as connection:
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{_STATEMENT_TIMEOUT}'")

        def rows(statement: str) -> Sequence[Row]:
            values = {"week": week, "days": EXPECTED_DAYS} if ":week" in statement else {}
            return connection.execute(sa.text(statement), values).all()

        ((published,),), ((n_undelivered, oldest),) = rows(_PUBLISHED), rows(_ALERTS)
        return FleetMetrics(
            n_by_state=dict(map(tuple, rows(STATES))),
            last_published_s=published,
            batches=rows(_BATCHES),
            evaluated=rows(_EVALUATED),
            flags=rows(_FLAGS),
            n_incidents={(kind, severity): n for kind, severity, n in rows(_INCIDENTS)},
            n_undelivered=n_undelivered,
            oldest_undelivered_s=oldest,
        )
