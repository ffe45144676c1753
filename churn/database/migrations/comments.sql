-- What columns mean, where the migration that made them does not say it. Each set-up runs this, which changes only what
-- differs. A view's column has the text of the table's column that it shows; a column without any, that of '*'.
DO $$
DECLARE
    meanings CONSTANT jsonb := (
        SELECT jsonb_object_agg(of_table || '.' || of_column, text) FROM (VALUES
            ('*', 'variant', 'Key of the variant, such as base, geography-us or geography-eu.company-clientb.'),
            ('*', 'scored_week', 'Monday of the scored week.'),
            ('*', 'week', 'Monday of the scored week.'),
            ('*', 'company', 'Company of the variant, in lower case; empty or null if it has none.'),
            ('*', 'account_id', 'The account''s number: its id, or churn_account_number of an id that is a text.'),
            ('*', 'batch_id', 'The batch in scoring_batches.'),
            ('*', 'registered_model', 'Registered model in MLflow.'),
            ('*', 'model_version', 'Version of the registered model.'),
            ('*', 'campaign', 'Name of the campaign.'),
            ('*', 'channel', 'How accounts are contacted, such as mail.'),
            ('*', 'is_only', 'Always true: the table has one row.'),
            ('*', 'horizon_months', 'Months without activity after which a player has churned.'),
            ('*', 'role', 'champion or challenger.'),
            ('*', 'created_at', 'When the row was added.'),
            ('*', 'created_by', 'The login that added it.'),
            ('*', 'dagster_run_id', 'Run in Dagster; null if there was none.'),
            ('*', 'started_at', 'When the work began.'),
            ('alembic_version', 'version_num', 'Number of the migration.'),
            ('alert_deliveries', 'alert_id', 'The alert in alerts.'),
            ('alert_deliveries', 'n_attempts', 'How often delivery was tried.'),
            ('alert_deliveries', 'next_attempt_at', 'When it is tried next, unless it was delivered.'),
            ('alert_deliveries', 'delivered_at', 'When the receiver accepted it; null before.'),
            ('alert_deliveries', 'last_error', 'Why the last attempt failed; null if none did.'),
            ('alerts', 'alert_id', 'Number of the alert.'),
            ('alerts', 'incident_id', 'The incident in incidents.'),
            ('alerts', 'event', 'What happened to the incident: opened, updated or resolved.'),
            ('alerts', 'title', 'First line of the message.'),
            ('alerts', 'body', 'The message''s further lines.'),
            ('campaign_exposures', 'exposed_at', 'When the account was contacted.'),
            ('campaign_exposures', 'recorded_at', 'When the report of the contact was recorded.'),
            ('campaign_exposures', 'recorded_by', 'The login that recorded it.'),
            ('campaign_members', 'added_at', 'When the account was drawn.'),
            ('campaign_summary', 'n_offered', 'Members that are or were on the list.'),
            ('campaign_summary', 'n_control', 'Members drawn not to be contacted by this campaign.'),
            ('campaign_summary', 'n_held_out', 'Members that no campaign contacts.'),
            ('campaign_summary', 'n_removed', 'Members that left the list.'),
            ('campaign_summary', 'n_exposed', 'Offered members that a contact reached.'),
            ('campaign_summary', 'n_control_exposed',
             'Control and held-out members that a contact reached, which none should have.'),
            ('campaign_summary', 'n_removed_exposed', 'Members that a contact reached after they had left the list.'),
            ('campaign_summary', 'n_exports', 'How often its list was exported.'),
            ('campaigns', 'name', 'Name of the campaign.'),
            ('campaigns', 'variants', 'Keys of the variants whose accounts may be members.'),
            ('campaigns', 'starts_on', 'First day of the campaign.'),
            ('campaigns', 'note', 'What its author wrote about it.'),
            ('campaigns', 'selected_by', 'The login that drew the members.'),
            ('campaigns', 'closed_by', 'The login that closed the campaign.'),
            ('churn_predictions', 'account_id',
             'The account''s number: its id, or churn_account_number of an id that is a text; the number of an ' ||
             'input row if scoring_batches.account_ids is row_number.'),
            ('churn_predictions', 'churn_probability',
             'Probability, 0 to 1, that the account has no activity in the whole calendar months of the ' ||
             'horizon after the month of scoring_batches.as_of.'),
            ('churn_predictions', 'other_values', 'Values of the same source columns; NaN if missing.'),
            ('churn_predictions', 'total_deposit_value',
             'Value of the feature of total_deposit with the largest contribution; NaN if missing.'),
            ('churn_predictions', 'total_handle_value',
             'Value of the feature of total_handle with the largest contribution; NaN if missing.'),
            ('churn_predictions', 'total_ngr_value',
             'Value of the feature of total_ngr with the largest contribution; NaN if missing.'),
            ('churn_predictions', 'months_active_value',
             'Value of the feature of months_active with the largest contribution; NaN if missing.'),
            ('churn_predictions', 'ben_login_id_value',
             'Value of the feature of ben_login_id with the largest contribution; NaN if missing. Of a ' ||
             'category, the index of the level in scoring_batches.levels.'),
            ('churn_predictions', 'player_reg_product_value',
             'Value of the feature of player_reg_product with the largest contribution; NaN if missing. Of a ' ||
             'category, the index of the level in scoring_batches.levels.'),
            ('churn_predictions', 'total_handle_contribution', 'As total_deposit_contribution.'),
            ('churn_predictions', 'total_ngr_contribution', 'As total_deposit_contribution.'),
            ('churn_predictions', 'months_active_contribution', 'As total_deposit_contribution.'),
            ('churn_predictions', 'brand_id_contribution', 'As total_deposit_contribution.'),
            ('churn_predictions', 'ben_login_id_contribution', 'As total_deposit_contribution.'),
            ('churn_predictions', 'player_reg_product_contribution', 'As total_deposit_contribution.'),
            ('drift_flags', 'feature', 'Name of the feature, or of a score.'),
            ('erased_accounts', 'erasure_id', 'Number of the erasure.'),
            ('erased_accounts', 'code', 'Short hash of the account, by which candidates are found.'),
            ('erased_accounts', 'digest', 'Salted SHA-256 of the account; the id itself is not stored.'),
            ('erased_accounts', 'erased_at', 'When it was erased.'),
            ('erasure_salt', 'salt', 'The secret that is hashed with each account.'),
            ('evaluated_segments', 'segment', 'Column that the segment is from.'),
            ('evaluated_segments', 'level', 'Level of the column.'),
            ('evaluated_segments', 'n_matured', 'Accounts at risk of the level whose label has matured.'),
            ('evaluated_segments', 'n_churned', 'Those that churned, of n_matured.'),
            ('evaluated_segments', 'roc_auc',
             'Probability that an account that churned had a higher score than one that stayed.'),
            ('evaluated_segments', 'roc_auc_low', 'Lower end of its 95 % interval.'),
            ('evaluated_segments', 'roc_auc_high', 'Upper end of its 95 % interval.'),
            ('evaluated_segments', 'brier_score', 'Mean squared difference between score and outcome.'),
            ('evaluated_segments', 'calibration_error', 'Mean absolute difference between scores and churned shares.'),
            ('evaluated_segments', 'mean_score', 'Mean score of these accounts.'),
            ('exclusions', 'exclusion_id', 'Number of the exclusion.'),
            ('exclusions', 'since', 'When it began.'),
            ('exclusions', 'excluded_by', 'The login that excluded the account.'),
            ('exclusions', 'revoked_at', 'When it was revoked; null while it holds.'),
            ('exclusions', 'revoked_by', 'The login that revoked it.'),
            ('incidents', 'incident_id', 'Number of the incident.'),
            ('incidents', 'kind', 'Kind of incident, such as run_failed; docs/runbook.md has a section about each.'),
            ('incidents', 'subject', 'What the incident is about, if there may be several of a kind; else empty.'),
            ('incidents', 'severity', 'warning or error.'),
            ('incidents', 'title', 'What is wrong, in a sentence.'),
            ('incidents', 'opened_at', 'When it was found.'),
            ('incidents', 'updated_at', 'When it was last changed.'),
            ('incidents', 'resolved_at', 'When it was over; null while it is open.'),
            ('list_exports', 'export_id', 'Number of the export.'),
            ('list_exports', 'variant', 'The variant whose list it is; null for the list of a campaign.'),
            ('list_exports', 'week', 'The scored week of a variant''s list; null for the list of a campaign.'),
            ('list_exports', 'exported_at', 'When it was exported.'),
            ('list_exports', 'exported_by', 'The login that exported it.'),
            ('model_events', 'event_id', 'Number of the event.'),
            ('model_events', 'action', 'observed, challenged, promoted, rolled_back or shared.'),
            ('model_events', 'champion_version', 'Version that scores after the event; null if there is none.'),
            ('model_events', 'previous_version', 'Version that a rollback returns to; null if there is none.'),
            ('model_events', 'challenger_version', 'Version that is compared; null if there is none.'),
            ('model_events', 'ab_share', 'Accounts per 10,000 that are served the challenger''s score.'),
            ('model_events', 'is_forced', 'Whether a person overruled the rules.'),
            ('model_events', 'reason', 'Why, in a sentence.'),
            ('model_events', 'evidence', 'Figures that the decision rests on.'),
            ('model_events', 'from_previous', 'Version that rollback returned to before; null if there was none.'),
            ('model_events', 'from_challenger', 'Version that was compared before; null if there was none.'),
            ('model_references', 'profile', 'Counts of inputs and scores in bins, as JSON.'),
            ('quarantined_rows', 'row_number', 'Number of the row in the input file.'),
            ('quarantined_rows', 'rules', 'Names of the rules that the row broke.'),
            ('quarantined_rows', 'row', 'The row as it was read.'),
            ('reader_variants', 'granted_at', 'When the reader was bound to the variant.'),
            ('reader_variants', 'granted_by', 'The login that bound it.'),
            ('replaced_evaluations', 'evaluation_id', 'Number of the replaced evaluation.'),
            ('replaced_evaluations', 'replaced_at', 'When a newer one replaced it.'),
            ('scoring_attempts', 'attempt_id', 'Number of the attempt.'),
            ('scoring_attempts', 'outcome', 'published or failed.'),
            ('scoring_attempts', 'batch_id', 'The batch that it published; null if it failed.'),
            ('scoring_attempts', 'error_type', 'Class of the error; null if none occurred.'),
            ('scoring_attempts', 'error', 'What failed, with the next step; null if nothing did.'),
            ('scoring_attempts', 'is_transient', 'Whether trying again may help; null if nothing failed.'),
            ('scoring_attempts', 'seconds',
             'Seconds by stage: read (model, input), features, score, explain, publish; of threads the sum; null if '
             'it failed.'),
            ('scoring_attempts', 'started_at', 'When the attempt began.'),
            ('scoring_attempts', 'ended_at', 'When it ended.'),
            ('scoring_batches', 'batch_id', 'Number of the batch.'),
            ('scoring_batches', 'geography', 'Geography of the variant, in lower case; null if it has none.'),
            ('scoring_batches', 'as_of', 'Only what was known at the end of this day was used.'),
            ('scoring_batches', 'model_sha256', 'SHA-256 of the model''s file.'),
            ('scoring_batches', 'mlflow_run_id', 'Run in MLflow that logged the model.'),
            ('scoring_batches', 'code_version', 'Version of the code that scored, by its commit.'),
            ('scoring_batches', 'source', 'Where the input was read: s3 or local.'),
            ('scoring_batches', 'source_uri', 'The input file that was scored.'),
            ('scoring_batches', 'source_version', 'The file''s ETag, or a stand-in for one.'),
            ('scoring_batches', 'source_sha256', 'SHA-256 of the input file.'),
            ('scoring_batches', 'source_modified_at', 'When the input file was last modified.'),
            ('scoring_batches', 'source_variant',
             'The variant whose input it is; another one''s if this variant has none.'),
            ('scoring_batches', 'fallback_reason', 'Why a local copy of the input was read; null if none was.'),
            ('scoring_batches', 'account_ids', 'Where account ids are from: input or row_number.'),
            ('scoring_batches', 'n_rows_read', 'Rows in the input file.'),
            ('scoring_batches', 'n_rows_quarantined', 'Rows that broke the contract.'),
            ('scoring_batches', 'n_accounts_withheld',
             'Accounts that were not scored, since a row of theirs is quarantined.'),
            ('scoring_batches', 'n_rows_scored', 'Accounts that were scored.'),
            ('scoring_batches', 'unknown_levels',
             'Accounts with levels that the model does not know, by column and level.'),
            ('scoring_batches', 'started_at', 'When scoring began.'),
            ('scoring_batches', 'published_at', 'When readers could see it.'),
            ('scoring_batches', 'is_current', 'Whether readers see it; the others are kept for audit.'),
            ('scoring_batches', 'scored_by', 'tables, or xgboost where tables could not be used.'),
            ('scoring_batches', 'bias', 'Log-odds that every account starts from; null without reasons.'),
            ('scoring_batches', 'other_source_columns',
             'Source columns whose contributions share arrays; null without reasons.'),
            ('scoring_batches', 'levels',
             'Levels of each category, in the order of their codes; null without reasons.')
        ) AS texts (of_table, of_column, text)
    );
    shown CONSTANT jsonb :=
        '{"exclusions_in_force": ["exclusions"],
         "campaign_summary": ["campaigns"],
         "campaign_targets": ["campaign_members", "campaigns"],
         "own_campaign_targets": ["campaign_targets", "campaign_members", "campaigns"],
         "own_batches": ["scoring_batches"],
         "own_newest_batches": ["scoring_batches"]}';
    stated record;
BEGIN
    FOR step IN 1..3 LOOP
        FOR stated IN
            SELECT c.relname, a.attname, col_description(a.attrelid, a.attnum) AS before, CASE step
                WHEN 1 THEN meanings ->> (c.relname || '.' || a.attname)
                WHEN 2 THEN (
                    SELECT col_description(b.attrelid, b.attnum)
                    FROM jsonb_array_elements_text(shown -> c.relname) WITH ORDINALITY AS base (name, place)
                    JOIN pg_attribute AS b ON b.attrelid = to_regclass('public.' || base.name)
                    WHERE b.attname = a.attname AND col_description(b.attrelid, b.attnum) IS NOT NULL
                    ORDER BY base.place LIMIT 1
                )
                ELSE meanings ->> ('*.' || a.attname) END AS text
            FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
              AND c.relowner = current_user::regrole
        LOOP
            IF stated.text <> stated.before AND step = 1 OR stated.text IS NOT NULL AND stated.before IS NULL THEN
                EXECUTE format('COMMENT ON COLUMN public.%I.%I IS %L', stated.relname, stated.attname, stated.text);
            END IF;
        END LOOP;
    END LOOP;
    COMMENT ON TABLE public.alembic_version IS 'The migration that the schema is at.';
END
$$;
COMMENT ON FUNCTION seal_batch IS
    'Refuses a batch whose number the session did not draw last, and marks one of repeated input.';
COMMENT ON FUNCTION require_own_batch IS 'Refuses rows for a batch that another transaction published.';
COMMENT ON FUNCTION archive_evaluation IS 'Moves an evaluation that will be replaced to replaced_evaluations.';
