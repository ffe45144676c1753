-- Statements of erasure.py.
-- weeks_of
SELECT DISTINCT variant, scored_week FROM churn_predictions JOIN scoring_batches USING (batch_id, scored_week)
WHERE account_id = :account AND account_ids = 'input' AND :scope IN ('', variant, 'company=' || company)
-- erased
SELECT salt, (SELECT count(*) FROM erased_accounts) AS n_erasures, code, digest
FROM erasure_salt LEFT JOIN erased_accounts ON variant = ANY(:scopes)
-- erase
SELECT place, n_rows, variants, why_left FROM erase_decisions(:account, :scope) UNION ALL
SELECT place, n_rows, variants, '' FROM erase_account(:account, :scope, :code, :digest, :quoted)
-- erase_texts
UPDATE {table} SET {column} = regexp_replace(
    regexp_replace({column}, :listed, '| erased | \1', 'g'), :quoted, '\1erased', 'g'
)
-- LIKE first: it excludes nearly every event at a tenth of the cost.
WHERE {column} LIKE :named AND ({column} ~ :listed OR {column} ~ :quoted)
