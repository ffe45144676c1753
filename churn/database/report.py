"""Reads the rows of the report, as the reader role in one snapshot: a few statements for all variants.

:mod:`churn.report.content` turns the rows into what the page shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import sqlalchemy as sa

from churn.database.connection import open_snapshot
from churn.errors import UsageError

Row = Mapping[str, Any]

EVALUATED_MEASURES = (
    "roc_auc", "roc_auc_low", "roc_auc_high", "auc_limit", "brier_score", "calibration_error", "lift_at_10",
)  # fmt: skip
LINEAGE = (
    "batch_id", "scored_week", "as_of", "published_at", "registered_model", "model_version", "mlflow_run_id",
    "model_sha256", "dagster_run_id", "code_version", "source", "source_uri", "source_version", "source_sha256",
    "source_modified_at", "source_variant", "fallback_reason", "n_rows_read", "n_rows_quarantined",
    "n_accounts_withheld", "n_rows_scored", "n_at_risk", "first_month", "newest_month", "scored_by",
    "scored_from", "history_status",
)  # fmt: skip
SEGMENT_MEASURES = ("roc_auc", "roc_auc_low", "roc_auc_high", "calibration_error", "mean_score")
WEEKS_SHOWN = 26
_LONGEST_ERROR = 2000
_RESOLVED_FOR = timedelta(days=14)

_WEEKS = """
SELECT scored_week FROM scoring_attempts UNION SELECT scored_week FROM scoring_batches ORDER BY scored_week DESC
"""


def _short(table: str, *names: str) -> str:
    """Select columns as 4-byte numbers, with NaN as null, to keep the page small."""
    return ", ".join(f"nullif({table}.{name}, 'NaN')::real AS {name}" for name in names)


_NEWEST_EVALUATED = """
SELECT DISTINCT ON (b.variant) b.variant, b.batch_id, b.scored_week, b.model_version, e.reliability, e.auc_limit
FROM evaluated_batches AS e JOIN scoring_batches AS b USING (batch_id)
WHERE b.is_current AND b.role = 'champion' AND b.scored_week BETWEEN :first AND :week
      AND e.status = 'ok' AND b.as_of > e.evidence_after
ORDER BY b.variant, b.scored_week DESC
"""

# By the attribute of FleetRows.
_QUERIES = {
    "batches": f"""
SELECT b.variant, b.scored_week, b.role, b.model_version, b.n_rows_scored, b.n_at_risk,
       {_short("b", "mean_probability", "estimated_auc")},
       b.fallback_reason IS NOT NULL AS is_fallback, b.source_variant <> b.variant AS is_foreign_data, b.is_sample,
       e.status, e.n_matured, e.n_churned, {_short("e", *EVALUATED_MEASURES)}
FROM scoring_batches AS b
LEFT JOIN evaluated_batches AS e ON e.batch_id = b.batch_id AND b.as_of > e.evidence_after
WHERE b.is_current AND b.scored_week BETWEEN :first AND :week
ORDER BY b.variant, b.scored_week
""",  # noqa: S608 our own text
    "newest": f"""
SELECT b.variant, {", ".join(f"b.{name}" for name in LINEAGE)},
       b.score_counts, b.profile_counts, b.drift, b.importance, r.profile::text AS reference
FROM (
    SELECT DISTINCT ON (variant) * FROM scoring_batches
    WHERE is_current AND role = 'champion' AND scored_week BETWEEN :first AND :week
    ORDER BY variant, scored_week DESC
) AS b
LEFT JOIN model_references AS r USING (registered_model, model_version)
ORDER BY b.variant
""",  # noqa: S608 our own text
    "evaluated": _NEWEST_EVALUATED,
    "segments": f"""
SELECT newest.variant, s.segment, s.level, s.n_matured, s.n_churned, {_short("s", *SEGMENT_MEASURES)}
FROM evaluated_segments AS s JOIN ({_NEWEST_EVALUATED}) AS newest USING (batch_id)
ORDER BY newest.variant, s.segment, s.n_matured DESC, s.level
""",  # noqa: S608 our own text
    "flags": """
SELECT b.variant, b.scored_week, f.feature, f.is_confirmed
FROM drift_flags AS f JOIN scoring_batches AS b USING (batch_id)
WHERE b.is_current AND b.role = 'champion' AND b.scored_week BETWEEN :first AND :week
ORDER BY b.variant, b.scored_week, f.feature
""",
    "attempts": f"""
SELECT DISTINCT ON (variant, role) variant, role, outcome, error_type, left(error, {_LONGEST_ERROR}) AS error, ended_at
FROM scoring_attempts WHERE scored_week = :week
ORDER BY variant, role, attempt_id DESC
""",  # noqa: S608 a number
    "champions": """
WITH events AS (
    SELECT variant, champion_version, challenger_version, ab_share, occurred_at,
           row_number() OVER newest_first AS place,
           first_value(champion_version) OVER newest_first AS champion_now
    FROM model_events WHERE occurred_at < :end
    WINDOW newest_first AS (PARTITION BY variant ORDER BY event_id DESC)
), changed AS (
    SELECT variant, min(place) AS place FROM events
    WHERE champion_version IS DISTINCT FROM champion_now GROUP BY variant
)
SELECT e.variant, max(champion_now) AS champion_version, min(e.occurred_at) AS since,
       max(challenger_version) FILTER (WHERE e.place = 1) AS challenger_version,
       max(ab_share) FILTER (WHERE e.place = 1) AS ab_share
FROM events AS e LEFT JOIN changed AS c USING (variant)
WHERE c.place IS NULL OR e.place < c.place
GROUP BY e.variant
""",
    "registered": """
SELECT variant FROM watched_variants WHERE acknowledged_at IS NULL AND since < :end
UNION SELECT variant FROM model_events WHERE occurred_at < :end
EXCEPT SELECT variant FROM watched_variants WHERE acknowledged_at IS NOT NULL
""",
    "changes": """
SELECT variant, occurred_at, action, champion_version, previous_version, reason, actor FROM model_events
WHERE action IN ('promoted', 'rolled_back') AND occurred_at >= :first AND occurred_at < :end
ORDER BY event_id DESC LIMIT 20
""",
    "incidents": """
SELECT incident_id, kind, subject, severity, title, members, opened_at, updated_at, resolved_at FROM incidents
WHERE resolved_at IS NULL OR resolved_at > :resolved_since
ORDER BY resolved_at IS NOT NULL, severity, opened_at DESC, incident_id
""",
}


@dataclass(frozen=True)
class FleetRows:
    """The rows of one report.

    Attributes:
        week: The reported week; ``None`` if nothing was ever scored.
        weeks: The weeks shown, ascending; the last is ``week``.
        batches: Current batches of these weeks, both roles, with the results of their evaluation if there are any.
        newest: The champion's newest batch of each variant, with all columns.
        evaluated: The champion's newest batch of each variant that had enough labels to be evaluated.
        segments: The segments of the batches in ``evaluated``.
        flags: Drift flags of these weeks.
        attempts: The last attempt of each variant and role in ``week``.
        champions: Each variant's champion and challenger at the end of ``week``, and the champion's first day.
        registered: The variants that were registered by the end of ``week``, scored or not.
        changes: Promotions and rollbacks in these weeks, newest first.
        incidents: Open incidents, then recently resolved ones.
    """

    week: date | None
    weeks: Sequence[date] = ()
    batches: Sequence[Row] = ()
    newest: Sequence[Row] = ()
    evaluated: Sequence[Row] = ()
    segments: Sequence[Row] = ()
    flags: Sequence[Row] = ()
    attempts: Sequence[Row] = ()
    champions: Sequence[Row] = ()
    registered: Sequence[Row] = ()
    changes: Sequence[Row] = ()
    incidents: Sequence[Row] = ()


def read_fleet(url: sa.URL, week: date | None, now: datetime) -> FleetRows:
    """Read the rows of the report on a week, by its Monday; ``None`` is the newest week with an attempt.

    Raises:
        UsageError: If ``week`` has neither a batch nor an attempt; names the newest week.
        ChurnError: If the database cannot be read.
    """
    with open_snapshot(url) as connection:
        known = list(connection.scalars(sa.text(_WEEKS)))
        if week is not None and week not in known:
            remedy = f"the newest week is {known[0]}" if known else "nothing was scored yet; run churn score"
            raise UsageError(f"the week of {week} has no batch and no attempt; {remedy}")
        values: dict[str, object] = {"resolved_since": now - _RESOLVED_FOR}
        if not known:
            return FleetRows(None, incidents=_rows(connection, _QUERIES["incidents"], values))
        reported = week or known[0]
        shown = sorted(one for one in known if reported - timedelta(weeks=WEEKS_SHOWN) < one <= reported)
        end = datetime.combine(reported, time(), UTC) + timedelta(weeks=1)
        values |= {"week": reported, "first": shown[0], "end": end}
        rows = {name: _rows(connection, query, values) for name, query in _QUERIES.items()}
    return FleetRows(reported, shown, **rows)


def _rows(connection: sa.Connection, query: str, values: Mapping[str, object]) -> list[Row]:
    used = {name: value for name, value in values.items() if f":{name}" in query}
    return [dict(row) for row in connection.execute(sa.text(query), used).mappings()]
