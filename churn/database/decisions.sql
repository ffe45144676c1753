-- Statements of decisions.py; the rules are functions of the owner.
-- summaries
SELECT * FROM campaign_summary WHERE CAST(:name AS text) IS NULL OR name = :name ORDER BY created_at, name
-- due
SELECT name FROM campaigns WHERE selected_at IS NULL AND closed_at IS NULL AND starts_on <= :today ORDER BY name
-- listed_variants
SELECT DISTINCT unnest(variants) AS variant FROM campaigns WHERE closed_at IS NULL ORDER BY 1
-- as_ofs
SELECT DISTINCT ON (variant) variant, as_of FROM scoring_batches
WHERE is_current AND role = 'champion' AND variant = ANY(:variants) ORDER BY variant, scored_week DESC
-- exclude
SELECT * FROM exclude_accounts(:companies, :accounts, :reasons, CAST(:untils AS date[]))
-- revoke
SELECT revoke_exclusions(:companies, :accounts, :reasons)
-- record
SELECT rule, row_numbers FROM record_exposures(CAST(:rows AS jsonb))
-- targets
SELECT account_id, company, variant, score, value_at_risk, scored_week, channel, starts_on
FROM campaign_targets WHERE campaign = :campaign ORDER BY coalesce(value_at_risk, score) DESC, company, account_id
-- not_targets
SELECT coalesce(removed_why, replace(arm, '_', ' ')) AS why, count(*) AS n FROM campaign_members
WHERE campaign = :campaign AND (arm <> 'offered' OR removed_at IS NOT NULL) GROUP BY 1 ORDER BY 1
-- newest_week
SELECT max(scored_week) FROM scoring_batches WHERE variant = :variant AND is_current
-- of_variant
SELECT account_id, score, score_before AS score_week_before, rise, place, rise_place, arm
FROM variant_list(:variant, :week, :top) ORDER BY place
-- left_out
SELECT variant_left_out(:variant, :week)
-- exported
SELECT record_export(:campaign, :variant, :week, :n, CAST(:left_out AS jsonb), :file, :accounts, :arms)
