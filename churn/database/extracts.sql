-- Statements of extracts.py. Of batches scored from the same rows, the newest one's file is the likeliest to be there.
-- pending
SELECT DISTINCT ON (source_sha256)
    source_uri, source_version, source_version_id, source_sha256,
    min(source_modified_at) OVER (PARTITION BY source_sha256) AS modified_at
FROM scoring_batches WHERE variant = :variant AND history_status = 'pending'
ORDER BY source_sha256, batch_id DESC
-- first_month
SELECT first_month FROM scoring_batches
WHERE variant = :variant AND source_variant = variant AND as_of <= :as_of
    AND scored_from = 'extract' AND first_month IS NOT NULL
ORDER BY as_of DESC, batch_id DESC LIMIT 1
-- variants
SELECT DISTINCT variant FROM scoring_batches WHERE history_status = 'pending' ORDER BY variant
-- mark
UPDATE scoring_batches AS b SET history_status = CASE
    WHEN :status = 'gone' AND EXISTS (
        SELECT 1 FROM scoring_batches AS k
        WHERE k.variant = b.variant AND k.source_sha256 = b.source_sha256 AND k.history_status = 'ingested'
    ) THEN 'ingested' ELSE :status END
WHERE variant = :variant AND source_sha256 = :sha256 AND history_status = 'pending'
