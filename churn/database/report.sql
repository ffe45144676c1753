-- batches
SELECT b.variant, b.scored_week, b.role, b.model_version, b.n_rows_scored, b.n_at_risk,
       nullif(b.mean_probability, 'NaN')::real AS mean_probability,
       nullif(b.estimated_auc, 'NaN')::real AS estimated_auc,
       b.fallback_reason IS NOT NULL AS is_fallback, b.source_variant <> b.variant AS is_foreign_data, b.is_sample,
       e.status, e.n_matured, e.n_churned,
       nullif(e.roc_auc, 'NaN')::real AS roc_auc,
       nullif(e.roc_auc_low, 'NaN')::real AS roc_auc_low,
       nullif(e.roc_auc_high, 'NaN')::real AS roc_auc_high,
       nullif(e.auc_limit, 'NaN')::real AS auc_limit,
       nullif(e.brier_score, 'NaN')::real AS brier_score,
       nullif(e.calibration_error, 'NaN')::real AS calibration_error,
       nullif(e.lift_at_10, 'NaN')::real AS lift_at_10
FROM scoring_batches AS b
LEFT JOIN evaluated_batches AS e ON e.batch_id = b.batch_id AND b.as_of > e.evidence_after
WHERE b.is_current AND b.scored_week BETWEEN :first AND :week
ORDER BY b.variant, b.scored_week

-- newest
SELECT b.variant, b.batch_id, b.scored_week, b.as_of, b.published_at, b.registered_model, b.model_version,
       b.mlflow_run_id, b.model_sha256, b.dagster_run_id, b.code_version, b.source, b.source_uri, b.source_version,
       b.source_sha256, b.source_modified_at, b.source_variant, b.fallback_reason, b.n_rows_read, b.n_rows_quarantined,
       b.n_accounts_withheld, b.n_rows_scored, b.n_at_risk, b.first_month, b.newest_month, b.scored_by,
       b.scored_from, b.history_status,
       b.score_counts, b.profile_counts, b.drift, b.importance, r.profile::text AS reference
FROM (
    SELECT DISTINCT ON (variant) * FROM scoring_batches
    WHERE is_current AND role = 'champion' AND scored_week BETWEEN :first AND :week
    ORDER BY variant, scored_week DESC
) AS b
LEFT JOIN model_references AS r USING (registered_model, model_version)
ORDER BY b.variant

-- evaluated
SELECT DISTINCT ON (b.variant) b.variant, b.batch_id, b.scored_week, b.model_version, e.reliability, e.auc_limit
FROM evaluated_batches AS e JOIN scoring_batches AS b USING (batch_id)
WHERE b.is_current AND b.role = 'champion' AND b.scored_week BETWEEN :first AND :week
      AND e.status = 'ok' AND b.as_of > e.evidence_after
ORDER BY b.variant, b.scored_week DESC

-- segments
SELECT newest.variant, s.segment, s.level, s.n_matured, s.n_churned,
       nullif(s.roc_auc, 'NaN')::real AS roc_auc,
       nullif(s.roc_auc_low, 'NaN')::real AS roc_auc_low,
       nullif(s.roc_auc_high, 'NaN')::real AS roc_auc_high,
       nullif(s.calibration_error, 'NaN')::real AS calibration_error,
       nullif(s.mean_score, 'NaN')::real AS mean_score
FROM evaluated_segments AS s JOIN (
    SELECT DISTINCT ON (b.variant) b.variant, b.batch_id
    FROM evaluated_batches AS e JOIN scoring_batches AS b USING (batch_id)
    WHERE b.is_current AND b.role = 'champion' AND b.scored_week BETWEEN :first AND :week
          AND e.status = 'ok' AND b.as_of > e.evidence_after
    ORDER BY b.variant, b.scored_week DESC
) AS newest USING (batch_id)
ORDER BY newest.variant, s.segment, s.n_matured DESC, s.level

-- flags
SELECT b.variant, b.scored_week, f.feature, f.is_confirmed
FROM drift_flags AS f JOIN scoring_batches AS b USING (batch_id)
WHERE b.is_current AND b.role = 'champion' AND b.scored_week BETWEEN :first AND :week
ORDER BY b.variant, b.scored_week, f.feature

-- attempts
SELECT DISTINCT ON (variant, role) variant, role, outcome, error_type, left(error, 2000) AS error, ended_at
FROM scoring_attempts WHERE scored_week = :week
ORDER BY variant, role, attempt_id DESC

-- champions
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

-- registered
SELECT variant FROM watched_variants WHERE acknowledged_at IS NULL AND since < :end
UNION SELECT variant FROM model_events WHERE occurred_at < :end
EXCEPT SELECT variant FROM watched_variants WHERE acknowledged_at IS NOT NULL

-- changes
SELECT variant, occurred_at, action, champion_version, previous_version, reason, actor FROM model_events
WHERE action IN ('promoted', 'rolled_back') AND occurred_at >= :first AND occurred_at < :end
ORDER BY event_id DESC LIMIT 20

-- incidents
SELECT incident_id, kind, subject, severity, title, members, opened_at, updated_at, resolved_at FROM incidents
WHERE resolved_at IS NULL OR resolved_at > :resolved_since
ORDER BY resolved_at IS NOT NULL, severity, opened_at DESC, incident_id

-- campaigns
SELECT name, cardinality(variants) AS n_variants, policy, channel, starts_on, closed_at, n_offered, n_control, n_held_out,
       n_removed, n_exposed, n_control_exposed, n_removed_exposed
FROM campaign_summary WHERE created_at < :end AND (closed_at IS NULL OR closed_at >= :first)
ORDER BY closed_at IS NOT NULL, starts_on DESC, name
