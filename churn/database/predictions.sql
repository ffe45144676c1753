-- record_batch
WITH batch AS (
    INSERT INTO scoring_batches (batch_id, {names}) OVERRIDING SYSTEM VALUE VALUES (:batch_id, {values})
), reference AS (
    INSERT INTO model_references (registered_model, model_version, profile)
    SELECT :registered_model, :model_version, profile FROM CAST(:reference AS jsonb) AS profile
    WHERE profile IS NOT NULL ON CONFLICT DO NOTHING
), quarantined AS (
    INSERT INTO quarantined_rows (batch_id, row_number, account_id, account_key, rules, row)
    SELECT :batch_id, row_number, account_id, account_key, rules, row::jsonb
    FROM jsonb_to_recordset(CAST(:quarantined AS jsonb))
        AS q (row_number bigint, account_id bigint, account_key text, rules text[], row text)
), attempt AS (
    INSERT INTO scoring_attempts (variant, scored_week, role, dagster_run_id, started_at, outcome, batch_id)
    VALUES (:variant, :scored_week, :role, :dagster_run_id, :started_at, 'published', :batch_id)
)
SELECT max(source) FROM scoring_batches WHERE variant = :variant AND scored_week = :scored_week AND is_current
