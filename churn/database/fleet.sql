-- newest_inputs
WITH inputs AS (
    SELECT DISTINCT ON (variant, model_version, source_sha256) batch_id, variant, scored_week FROM scoring_batches
    WHERE is_current AND role = 'champion' AND scored_week BETWEEN :since AND :week
    ORDER BY variant, model_version, source_sha256, scored_week DESC
), ranked AS (
    SELECT batch_id, row_number() OVER (PARTITION BY variant ORDER BY scored_week DESC) AS place FROM inputs
)
SELECT batch_id, variant, scored_week AS week, model_version, n_rows_read AS n_rows, source_variant AS data_of,
       fallback_reason, drift::text AS drifts, as_of, newest_month, source_sha256, n_rows_newest_month AS n_newest
FROM scoring_batches JOIN ranked USING (batch_id) WHERE place <= 2

-- attempts
SELECT DISTINCT ON (variant, role) attempt_id, variant, scored_week, role, ended_at, error,
       is_transient IS TRUE AS is_transient,
       count(error) OVER (PARTITION BY variant, role, scored_week) AS n_failed,
       COALESCE(error_type, '') AS error_type, dagster_run_id
FROM scoring_attempts WHERE scored_week >= :since
ORDER BY variant, role, scored_week DESC, attempt_id DESC

-- histories
SELECT variant, array_agg(scored_week ORDER BY scored_week) AS weeks,
       array_agg(n_rows_read ORDER BY scored_week) AS n_rows,
       array_agg(LEAST(newest_month, (date_trunc('month', as_of) - interval '1 month')::date) ORDER BY scored_week)
           FILTER (WHERE n_rows_newest_month IS NOT NULL) AS months,
       array_agg(n_rows_newest_month ORDER BY scored_week)
           FILTER (WHERE n_rows_newest_month IS NOT NULL) AS n_newest
FROM scoring_batches
WHERE is_current AND role = 'champion' AND scored_week >= :since AND (:of_all OR variant = ANY(:variants))
GROUP BY variant

-- arrivals
SELECT variant, array_agg(source_sha256) AS digests, array_agg(arrived_on) AS days
FROM (
    SELECT variant, source_sha256, min(source_modified_at)::date AS arrived_on FROM scoring_batches
    WHERE role = 'champion' AND scored_week >= :since AND fallback_reason IS NULL AND source_variant = variant
          AND scored_from <> 'history' AND (:of_all OR variant = ANY(:variants))
    GROUP BY variant, source_sha256
) AS inputs
GROUP BY variant

-- evaluated
SELECT DISTINCT ON (b.variant, b.model_version, date_trunc('month', b.as_of)) batch_id, b.variant,
       b.scored_week AS week, b.model_version, ARRAY[e.roc_auc, e.roc_auc_low, e.roc_auc_high] AS roc_auc,
       e.auc_limit AS "limit", b.as_of, e.horizon_months, e.n_matured AS n, e.n_churned, e.mean_score,
       ARRAY[e.log_loss_excess, e.log_loss_excess_low, e.log_loss_excess_high] AS log_loss_excess,
       b.estimated_auc IS NOT NULL AS is_calibrated
FROM evaluated_batches AS e JOIN scoring_batches AS b USING (batch_id)
WHERE b.role = 'champion' AND e.status = 'ok' AND b.as_of > e.evidence_after AND e.auc_limit IS NOT NULL
ORDER BY b.variant, b.model_version, date_trunc('month', b.as_of), b.scored_week DESC, batch_id DESC

-- segments
SELECT b.variant, s.segment, s.level, s.roc_auc, e.auc_limit, s.p_below_limit
FROM evaluated_segments AS s
JOIN evaluated_batches AS e USING (batch_id)
JOIN scoring_batches AS b USING (batch_id)
WHERE s.batch_id = ANY(:batches) AND s.p_below_limit <= :at_most ORDER BY b.variant, s.p_below_limit

-- n_segments
SELECT count(p_below_limit) FROM evaluated_segments WHERE batch_id = ANY(:batches)

-- categories
SELECT b.batch_id, array_agg(f->>'feature')
FROM scoring_batches AS b
JOIN model_references AS r USING (registered_model, model_version), jsonb_array_elements(r.profile->'features') f
WHERE b.batch_id = ANY(:batches) AND f ? 'levels'
GROUP BY b.batch_id

-- watched
SELECT variant, since, acknowledged_at IS NULL FROM watched_variants

-- watch
INSERT INTO watched_variants (variant, since) SELECT unnest(CAST(:added AS text[])), :now
ON CONFLICT (variant) DO UPDATE SET since = excluded.since, acknowledged_at = NULL

-- flags
SELECT batch_id, feature, is_confirmed FROM drift_flags WHERE batch_id = ANY(:batches)

-- replace_flags
SELECT replace_flags(:batches, CAST(:flags AS jsonb))
