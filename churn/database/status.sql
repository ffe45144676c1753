-- What churn status shows. The query of variants goes on from the expected variants of metrics.sql.

-- variants
SELECT e.variant,
       CASE WHEN b.scored_week = :week THEN 'published' WHEN a.error IS NOT NULL THEN 'failed' ELSE 'missing' END AS state,
       b.scored_week AS published_week, b.is_repeated_input AS is_repeated, b.fallback_reason,
       ARRAY(SELECT feature FROM drift_flags WHERE batch_id = b.batch_id AND is_confirmed ORDER BY feature) AS drifting,
       a.error
FROM expected AS e LEFT JOIN newest USING (variant) LEFT JOIN scoring_batches AS b USING (batch_id)
LEFT JOIN LATERAL (
    SELECT left(error, 1000) AS error FROM scoring_attempts
    WHERE variant = e.variant AND scored_week = :week AND role = 'champion' ORDER BY attempt_id DESC LIMIT 1
) AS a ON true
ORDER BY e.variant

-- incidents
SELECT incident_id, severity, kind, title, opened_at, members FROM incidents WHERE resolved_at IS NULL
ORDER BY severity, opened_at, incident_id

-- ticks
SELECT lower(i.instigator_type) AS type, i.instigator_body::jsonb #>> '{origin,job_name}' AS name,
       i.status <> 'STOPPED' AS is_on, t.timestamp AT TIME ZONE 'UTC' AS at, lower(t.status) AS outcome,
       coalesce(t.body #>> '{error,message}', t.body ->> 'skip_reason') AS reason
FROM instigators AS i LEFT JOIN LATERAL (
    SELECT timestamp, status, tick_body::jsonb AS body FROM job_ticks
    WHERE selector_id = i.selector_id AND status <> 'STARTED' ORDER BY timestamp DESC LIMIT 1
) AS t ON true
ORDER BY 1, 2
