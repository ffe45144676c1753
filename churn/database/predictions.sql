-- record_batch
WITH batch AS (
    INSERT INTO scoring_batches (batch_id, {names}) OVERRIDING SYSTEM VALUE VALUES (:batch_id, {values})
), reference AS (
    INSERT INTO model_references (registered_model, model_version, profile)
    SELECT :registered_model, :model_version, profile FROM CAST(:reference AS jsonb) AS profile
    WHERE profile IS NOT NULL ON CONFLICT DO NOTHING
), described AS (
    INSERT INTO feature_words (words, feature, name, low, high, missing)
    SELECT :words, t.* FROM jsonb_to_recordset(CAST(:texts AS jsonb))
        AS t (feature text, name text, low text, high text, missing text)
    WHERE NOT EXISTS (SELECT FROM feature_words WHERE words = :words) ON CONFLICT DO NOTHING
), quarantined AS (
    INSERT INTO quarantined_rows (batch_id, row_number, account_id, account_key, rules, row)
    SELECT :batch_id, row_number, account_id, account_key, rules, row::jsonb
    FROM jsonb_to_recordset(CAST(:quarantined AS jsonb))
        AS q (row_number bigint, account_id bigint, account_key text, rules text[], row text)
), attempt AS (
    INSERT INTO scoring_attempts (variant, scored_week, role, dagster_run_id, started_at, outcome, batch_id, seconds)
    VALUES (:variant, :scored_week, :role, :dagster_run_id, :started_at, 'published', :batch_id,
            CAST(:seconds AS jsonb))
)
SELECT max(source) FROM scoring_batches WHERE variant = :variant AND scored_week = :scored_week AND is_current

-- record_failure
INSERT INTO scoring_attempts (
    variant, scored_week, role, dagster_run_id, started_at, outcome, error_type, error, is_transient
) VALUES (:variant, :scored_week, :role, :dagster_run_id, :started_at, 'failed', :error_type, :error, :is_transient)

-- published_by
SELECT variant FROM scoring_batches
WHERE scored_week = :week AND is_current AND role = 'champion'
  AND (dagster_run_id = ANY(:runs) OR published_at > CAST(:since AS timestamptz))

-- published_by_hand
SELECT batch_id, variant, scored_week FROM scoring_batches
WHERE dagster_run_id IS NULL AND is_current AND role = 'champion' AND published_at > :since

-- ab_share
SELECT challenger_version, ab_share FROM model_events WHERE variant = :variant ORDER BY event_id DESC LIMIT 1

-- measure
SELECT count(*), coalesce(min(churn_probability), 0), coalesce(max(churn_probability), 0)
FROM churn_predictions WHERE scored_week = :week AND batch_id = :batch

-- latest_inputs
SELECT DISTINCT ON (variant) variant, source_uri || '@' || source_version
FROM scoring_batches WHERE scored_from <> 'history' ORDER BY variant, batch_id DESC

-- had_activity
SELECT EXISTS (
    SELECT FROM scoring_batches WHERE variant = :variant AND source_variant = variant
        AND NOT is_sample AND (source = 's3' OR source_sha256 <> ALL(:simulated))
)

-- stand_ins
SELECT variant, batch_id FROM (
    SELECT DISTINCT ON (variant) variant, batch_id, source FROM scoring_batches
    WHERE scored_week = :week AND role = 'champion' AND scored_from = 'extract' ORDER BY variant, batch_id DESC
) AS newest WHERE source = 'local'
