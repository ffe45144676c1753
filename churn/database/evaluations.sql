-- Statements of evaluations.py. Batches of a corrected extract are no evidence: they know what came later.
-- unevaluated
SELECT b.batch_id, b.variant, b.scored_week, b.as_of, b.model_version, b.role, b.mlflow_run_id
FROM scoring_batches AS b LEFT JOIN evaluated_batches AS e USING (batch_id)
WHERE e.batch_id IS NULL AND b.is_current AND b.account_ids = 'input' AND b.scored_from <> 'corrected extract'
    AND b.variant = ANY(:variants) AND b.as_of <= :until
ORDER BY b.scored_week, b.batch_id
-- pairs
SELECT b.batch_id, b.variant, b.scored_week, b.as_of, b.model_version, b.role, b.mlflow_run_id
FROM scoring_batches AS b
WHERE b.is_current AND b.account_ids = 'input' AND b.scored_from <> 'corrected extract' AND b.variant = :variant
    AND (b.role, b.model_version) IN (('champion', :champion), ('challenger', :challenger))
ORDER BY b.scored_week
-- newest_in_history
SELECT b.batch_id, b.variant, b.scored_week, b.as_of, b.model_version, b.role, b.mlflow_run_id,
    b.source_modified_at, b.first_month
FROM scoring_batches AS b
WHERE b.is_current AND b.account_ids = 'input' AND b.variant = :variant AND b.role = 'champion'
    AND b.model_version = :version AND b.as_of < :before AND b.scored_from = 'extract'
    AND b.history_status = 'ingested' AND b.first_month IS NOT NULL
ORDER BY b.as_of DESC LIMIT 1
-- record
WITH new AS (
    INSERT INTO evaluated_batches ({columns})
    SELECT {columns} FROM jsonb_populate_recordset(NULL::evaluated_batches, CAST(:evaluated AS jsonb))
    ON CONFLICT DO NOTHING RETURNING batch_id
)
INSERT INTO evaluated_segments ({segment})
SELECT {segment} FROM jsonb_populate_recordset(NULL::evaluated_segments, CAST(:segments AS jsonb)) AS s
JOIN new USING (batch_id) ON CONFLICT DO NOTHING
-- date_evidence
UPDATE evaluated_batches AS e SET evidence_after = :after FROM scoring_batches AS b
WHERE b.batch_id = e.batch_id AND b.variant = :variant AND b.model_version = :version
-- mark_logged
UPDATE evaluated_batches SET logged_at = now() WHERE batch_id = ANY(:ids) AND logged_at IS NULL
