-- variants
SELECT DISTINCT variant FROM scoring_batches WHERE is_current ORDER BY variant

-- variants_of
SELECT DISTINCT variant FROM churn_predictions_current
WHERE account_id = churn_account_number(:account) AND (:week IS NULL OR scored_week = CAST(:week AS date))
ORDER BY variant

-- prediction
SELECT variant, scored_week, account_key AS account, churn_probability, last_active_month, is_at_risk, bias, reasons,
       reason_1_text, reason_2_text, reason_3_text, registered_model, model_version, is_fallback, is_foreign_data, is_sample, batch_id
FROM churn_predictions_current
WHERE variant = :variant AND account_id = churn_account_number(:account)
  AND (:week IS NULL OR scored_week = CAST(:week AS date))
ORDER BY scored_week DESC LIMIT 1

-- batches
SELECT variant, batch_id, count(*) AS n_accounts, count(*) FILTER (WHERE is_at_risk) AS n_at_risk,
       bool_or(is_at_risk IS NOT NULL) AS is_at_risk_known,
       avg(churn_probability) FILTER (WHERE is_at_risk IS NOT FALSE) AS mean_probability, model_version, source,
       is_foreign_data, is_sample, fallback_reason
FROM churn_predictions_current WHERE scored_week = :week AND variant = ANY(:variants)
GROUP BY variant, batch_id, model_version, source, is_foreign_data, is_sample, fallback_reason
ORDER BY variant

-- highest
SELECT variant, account_key, churn_probability, reason_1, reason_1_text, reason_2, reason_2_text
FROM churn_predictions_current JOIN (
    SELECT variant, account_id,
           row_number() OVER (PARTITION BY variant ORDER BY churn_probability DESC, account_id) AS place
    FROM churn_predictions_current
    WHERE scored_week = :week AND variant = ANY(:variants) AND is_at_risk IS NOT FALSE
) AS ranked USING (variant, account_id)
WHERE place <= :n AND scored_week = :week ORDER BY variant, place

-- current
SELECT scored_week, batch_id FROM scoring_batches WHERE variant = :v AND is_current AND role = 'champion'

-- rows
SELECT variant, geography, company, scored_week, account_id, churn_probability, last_active_month, is_at_risk, reason_1,
       reason_2, reason_3, reasons, bias, role, registered_model, model_version, scored_at, as_of, newest_month,
       scored_from, source, is_fallback, fallback_reason, is_foreign_data, source_uri, source_modified_at, account_ids,
       batch_id, is_sample, account_key, is_repeated_input, reason_1_text, reason_2_text, reason_3_text
FROM churn_predictions_current WHERE variant = :variant AND scored_week = :week
