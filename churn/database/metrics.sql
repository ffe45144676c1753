-- The expected variants are those with an attempt since three weeks before the last week before :week with attempts.
-- The queries of states, batches, evaluated and flags go on from there.

-- expected
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

-- states
, states AS (
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

-- batches
SELECT b.variant,
       extract(epoch FROM b.scored_week::timestamp AT TIME ZONE 'UTC') AS week,
       b.n_rows_scored AS n_rows, b.n_at_risk, b.n_rows_quarantined AS n_quarantined, b.mean_probability,
       extract(epoch FROM b.published_at - b.started_at) AS duration_s,
       (b.fallback_reason IS NOT NULL)::integer AS is_fallback,
       extract(epoch FROM now() - b.source_modified_at) AS input_age_s,
       b.estimated_auc,
       (SELECT max((value ->> 'psi')::float8) FROM jsonb_each(b.drift)) AS largest_psi
FROM newest JOIN scoring_batches AS b USING (batch_id) ORDER BY b.variant

-- evaluated
SELECT DISTINCT ON (b.variant) b.variant,
       extract(epoch FROM b.scored_week::timestamp AT TIME ZONE 'UTC') AS week,
       e.roc_auc, e.roc_auc_low, e.roc_auc_high, e.auc_limit
FROM evaluated_batches AS e JOIN scoring_batches AS b USING (batch_id) JOIN expected USING (variant)
WHERE b.is_current AND b.role = 'champion' AND e.status = 'ok' AND b.as_of > e.evidence_after
ORDER BY b.variant, b.scored_week DESC

-- flags
SELECT b.variant, f.feature, f.is_confirmed, (b.drift -> f.feature ->> 'psi')::float8 AS psi
FROM newest JOIN scoring_batches AS b USING (batch_id) JOIN drift_flags AS f USING (batch_id)
ORDER BY b.variant, f.feature

-- published
SELECT extract(epoch FROM max(published_at)) FROM scoring_batches

-- incidents
SELECT kind, severity, count(*) FROM incidents WHERE resolved_at IS NULL GROUP BY kind, severity

-- alerts
SELECT count(*), coalesce(extract(epoch FROM now() - min(a.created_at)), 0)
FROM alert_deliveries AS d JOIN alerts AS a USING (alert_id) WHERE d.delivered_at IS NULL
