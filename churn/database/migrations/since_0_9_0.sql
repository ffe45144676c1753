-- From the schema of release 0.9.0 to that of the next release.

-- Scores: who is at risk, and which of a source column's features over months is shown beside its contribution.

ALTER TABLE churn_predictions
    ADD COLUMN shown_features bytea,
    ADD COLUMN last_active_month date;
COMMENT ON COLUMN churn_predictions.shown_features IS
    'A byte for each source column with windows: the index of the feature with the largest contribution, whose value '
    'is stored.';
COMMENT ON COLUMN churn_predictions.last_active_month IS
    'Newest month with activity known at the as-of day; -infinity without any; null if unknown, as of encoded rows.';

-- Batches: what they were scored from, who is at risk, and what their input lacks. Those published before have no
-- windows, nothing to ingest, and it is unknown who is at risk.

ALTER TABLE scoring_batches
    ADD COLUMN window_features jsonb,
    ADD COLUMN n_short_windows integer NOT NULL DEFAULT 0,
    ADD COLUMN horizon_months integer CHECK (horizon_months >= 1),
    ADD COLUMN first_month date,
    ADD COLUMN newest_month date,
    ADD COLUMN n_at_risk bigint,
    ADD COLUMN scored_from text NOT NULL DEFAULT 'extract'
        CHECK (scored_from IN ('extract', 'history', 'corrected extract'));
ALTER TABLE scoring_batches
    -- The rule of churn.weeks.at_risk_since.
    ADD COLUMN at_risk_since date GENERATED ALWAYS AS (
        CASE WHEN newest_month >= date_trunc('month', as_of::timestamp) - make_interval(months => horizon_months)
             THEN (date_trunc('month', as_of::timestamp) - make_interval(months => horizon_months))::date END
    ) STORED,
    ADD COLUMN source_version_id text,
    ADD COLUMN history_status text CHECK (history_status IN ('pending', 'ingested', 'gone', 'rejected')),
    ADD COLUMN untrained_missing jsonb,
    ADD COLUMN n_rows_newest_month bigint,
    ADD COLUMN is_sample boolean NOT NULL
        GENERATED ALWAYS AS (position('/data/churn/X_test_sample_2.json' IN source_uri) > 0) STORED;
CREATE INDEX scoring_batches_pending ON scoring_batches (variant, source_sha256) WHERE history_status = 'pending';
GRANT UPDATE (history_status) ON scoring_batches TO churn_writer;
COMMENT ON COLUMN scoring_batches.window_features IS
    'Features of each source column with windows, and the place of its byte in churn_predictions.shown_features.';
COMMENT ON COLUMN scoring_batches.n_short_windows IS
    'Features over more months than the activity has; earlier months count as 0.';
COMMENT ON COLUMN scoring_batches.horizon_months IS 'Horizon by which accounts are at risk, in months.';
COMMENT ON COLUMN scoring_batches.first_month IS 'First month known at the as-of day; null of encoded rows.';
COMMENT ON COLUMN scoring_batches.newest_month IS 'Newest month known at the as-of day; null of encoded rows.';
COMMENT ON COLUMN scoring_batches.n_at_risk IS 'Scored accounts at risk; null if unknown.';
COMMENT ON COLUMN scoring_batches.scored_from IS
    'extract: the newest one when the week was scored; history: what was known at the as-of day; '
    'corrected extract: a later one, with what became known since.';
COMMENT ON COLUMN scoring_batches.at_risk_since IS
    'First month in which activity puts an account at risk; null if no month that new is known.';
COMMENT ON COLUMN scoring_batches.source_version_id IS 'S3 version; null if the bucket keeps none.';
COMMENT ON COLUMN scoring_batches.history_status IS
    'Whether the activity history has the extract: pending until the next night; gone if it was replaced '
    'before, so that what was known then is unknown; rejected if it breaks the contract. Null where nothing '
    'is ingested: encoded rows, another variant''s data, a copy in place of S3, the history itself.';
COMMENT ON COLUMN scoring_batches.untrained_missing IS
    'Accounts by feature whose value is missing, of the features that were never missing in the model''s '
    'reference; their scores follow branches that no training row took. Null without a reference.';
COMMENT ON COLUMN scoring_batches.n_rows_newest_month IS
    'Rows of the newest whole month known at the as-of day, by which the volume is checked. Null of encoded rows.';
COMMENT ON COLUMN scoring_batches.is_sample IS 'Whether the encoded sample was scored, for want of any activity.';
COMMENT ON COLUMN scoring_batches.mean_probability IS
    'Mean score of the accounts at risk, or of all accounts if it is unknown who is at risk.';
COMMENT ON COLUMN scoring_batches.score_counts IS
    'Accounts at risk in each twentieth of [0, 1]; all accounts if it is unknown who is at risk.';
COMMENT ON COLUMN scoring_batches.importance IS
    'Mean absolute contribution by source column, in log-odds, over the accounts that mean_probability is of.';
COMMENT ON COLUMN scoring_batches.estimated_auc IS
    'Estimated from the scores of the accounts at risk before labels mature; assumes no concept drift. Null if the '
    'scores are not calibrated.';
COMMENT ON COLUMN drift_flags.is_confirmed IS 'Whether the feature drifted in the variant''s input before as well.';

-- Moves of aliases: decided before they begin, completed by whoever comes next, in the order of the database. Those
-- recorded before are done. The writer may neither choose a row's time nor end an event except once.

ALTER TABLE model_events
    DROP CONSTRAINT model_events_action_check,
    ADD CONSTRAINT model_events_action_check
        CHECK (action IN ('observed', 'challenged', 'promoted', 'rolled_back', 'shared', 'withdrawn')),
    ADD COLUMN from_champion integer,
    ADD COLUMN from_previous integer,
    ADD COLUMN from_challenger integer,
    ADD COLUMN state text NOT NULL DEFAULT 'done' CHECK (state IN ('pending', 'done', 'overtaken')),
    ADD COLUMN decision text,
    ALTER COLUMN occurred_at SET DEFAULT clock_timestamp();
COMMENT ON COLUMN model_events.occurred_at IS 'When it was recorded, by the database''s clock; event_id is the order.';
COMMENT ON COLUMN model_events.from_champion IS 'The version of the alias before; likewise previous and challenger.';
COMMENT ON COLUMN model_events.state IS
    'pending until all aliases are moved; overtaken if somebody else moved one before that.';
COMMENT ON COLUMN model_events.decision IS
    'What the event decides once and for all, such as a Dagster run with its retries; null for a command.';
DROP INDEX model_events_variant;
CREATE INDEX model_events_variant ON model_events (variant, event_id);
CREATE UNIQUE INDEX model_events_pending ON model_events (variant) WHERE state = 'pending';
CREATE UNIQUE INDEX model_events_decision ON model_events (variant, decision) WHERE decision IS NOT NULL;
REVOKE INSERT ON model_events FROM churn_writer;
GRANT INSERT (
    variant, registered_model, action, champion_version, previous_version, challenger_version, ab_share, is_forced,
    reason, actor, evidence, from_champion, from_previous, from_challenger, state, decision
) ON model_events TO churn_writer;

CREATE FUNCTION end_move(of_variant text, ended_as text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE public.model_events SET state = ended_as WHERE variant = of_variant AND state = 'pending'
$$;
COMMENT ON FUNCTION end_move IS 'Ends the pending move of a variant''s aliases as done or overtaken.';
REVOKE ALL ON FUNCTION end_move(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION end_move(text, text) TO churn_writer;

CREATE OR REPLACE FUNCTION champion_on(of_variant text, day date) RETURNS integer
LANGUAGE sql STABLE AS $$
    SELECT champion_version FROM public.model_events
    WHERE variant = of_variant AND occurred_at < (day + 1)::timestamp AT TIME ZONE 'UTC'
    ORDER BY event_id DESC LIMIT 1
$$;

-- Evaluations: again after a repaired feed, with the earlier one beside; from which day on they are evidence; and
-- log-loss against its expectation.

CREATE TABLE replaced_evaluations (
    evaluation_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    batch_id bigint NOT NULL REFERENCES scoring_batches ON DELETE CASCADE,
    replaced_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    evaluation jsonb NOT NULL,
    segments jsonb NOT NULL
);
CREATE INDEX replaced_evaluations_batch ON replaced_evaluations (batch_id);
GRANT SELECT ON replaced_evaluations TO churn_reader, churn_writer;
COMMENT ON TABLE replaced_evaluations IS
    'Evaluations in whose place the batch was evaluated again, because activity arrived that changed its labels.';
COMMENT ON COLUMN replaced_evaluations.evaluation IS 'The row that evaluated_batches had.';
COMMENT ON COLUMN replaced_evaluations.segments IS 'The rows that evaluated_segments had.';

ALTER TABLE evaluated_batches
    ADD COLUMN evidence_after date,
    ADD COLUMN replaces bigint REFERENCES replaced_evaluations ON DELETE SET NULL,
    ADD COLUMN replaces_because text,
    ADD COLUMN log_loss_excess double precision,
    ADD COLUMN log_loss_excess_low double precision,
    ADD COLUMN log_loss_excess_high double precision;
GRANT UPDATE (evidence_after) ON evaluated_batches TO churn_writer;

-- What the tags of a version say is unknown here, but it was registered before it scored.
UPDATE evaluated_batches AS e SET evidence_after = version.first_scored_on - 1
FROM scoring_batches AS b, (
    SELECT variant, model_version, min(published_at AT TIME ZONE 'UTC')::date AS first_scored_on
    FROM scoring_batches GROUP BY variant, model_version
) AS version
WHERE b.batch_id = e.batch_id AND version.variant = b.variant AND version.model_version = b.model_version;

-- The writer may not delete evaluations, but replace one that it has read.
CREATE FUNCTION archive_evaluation(of_batch bigint, of_labels_as_of date) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH segments AS (
        SELECT coalesce(jsonb_agg(to_jsonb(s)), '[]') AS rows FROM public.evaluated_segments AS s
        WHERE s.batch_id = of_batch
    ), evaluation AS (
        DELETE FROM public.evaluated_batches AS e WHERE e.batch_id = of_batch AND e.labels_as_of = of_labels_as_of
        RETURNING to_jsonb(e) AS row
    )
    INSERT INTO public.replaced_evaluations (batch_id, evaluation, segments)
    SELECT of_batch, evaluation.row, segments.rows FROM evaluation, segments RETURNING evaluation_id
$$;
REVOKE ALL ON FUNCTION archive_evaluation(bigint, date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION archive_evaluation(bigint, date) TO churn_writer;

COMMENT ON COLUMN evaluated_batches.evaluated_at IS 'When the batch was evaluated.';
COMMENT ON COLUMN evaluated_batches.labels_as_of IS
    'Day by whose end the activity was known that the labels were built from.';
COMMENT ON COLUMN evaluated_batches.n_accounts IS 'Accounts scored in the batch.';
COMMENT ON COLUMN evaluated_batches.n_matured IS
    'Accounts at risk whose label has matured; the figures are of these.';
COMMENT ON COLUMN evaluated_batches.n_churned IS 'Accounts with a matured label that churned.';
COMMENT ON COLUMN evaluated_batches.roc_auc IS
    'Probability that an account that churned had a higher score than one that stayed.';
COMMENT ON COLUMN evaluated_batches.roc_auc_low IS 'Lower end of the 95 % confidence interval of roc_auc.';
COMMENT ON COLUMN evaluated_batches.roc_auc_high IS 'Upper end of the 95 % confidence interval of roc_auc.';
COMMENT ON COLUMN evaluated_batches.average_precision IS 'Area under the curve of precision and recall.';
COMMENT ON COLUMN evaluated_batches.log_loss IS
    'Mean negative log-likelihood of the outcomes under the scores, in nats.';
COMMENT ON COLUMN evaluated_batches.brier_score IS 'Mean squared difference of score and outcome.';
COMMENT ON COLUMN evaluated_batches.calibration_error IS
    'Mean difference of score and share that churned, over bins of the scores.';
COMMENT ON COLUMN evaluated_batches.lift_at_10 IS
    'Share that churned of the tenth of accounts with the highest scores, divided by the share of all.';
COMMENT ON COLUMN evaluated_batches.mean_score IS 'Mean churn probability of the accounts with a matured label.';
COMMENT ON COLUMN evaluated_batches.evidence_after IS
    'The last day whose outcomes the model has seen: the evaluation counts if the batch is as of a later day. Null if '
    'unknown; it does not count then.';
COMMENT ON COLUMN evaluated_batches.replaces IS 'The earlier evaluation of the batch; null if there is none.';
COMMENT ON COLUMN evaluated_batches.replaces_because IS 'Why the batch was evaluated again; null if it was not.';
COMMENT ON COLUMN evaluated_batches.log_loss_excess IS
    'Log-loss less its expectation if the scores were calibrated probabilities; above 0 if they were too sure.';
COMMENT ON COLUMN evaluated_batches.log_loss_excess_low IS 'Lower end of its 95 % confidence interval.';
COMMENT ON COLUMN evaluated_batches.log_loss_excess_high IS 'Upper end of its 95 % confidence interval.';

-- Variants that are watched until somebody acknowledges that one is gone. Monitoring fills the table.

CREATE TABLE watched_variants (variant text PRIMARY KEY, since timestamptz NOT NULL, acknowledged_at timestamptz);
GRANT SELECT ON watched_variants TO churn_reader;
GRANT SELECT, INSERT, UPDATE ON watched_variants TO churn_writer;
COMMENT ON TABLE watched_variants IS 'Variants seen in the registry or in a batch; monitoring reports those that left.';
COMMENT ON COLUMN watched_variants.since IS 'When monitoring first saw the variant, or saw it again.';
COMMENT ON COLUMN watched_variants.acknowledged_at IS 'When somebody acknowledged that it is gone; null if watched.';

-- The views of predictions differ in their rows only.

DROP VIEW churn_predictions_current, churn_predictions_by_role;
DO $do$
DECLARE
    -- An aggregate is one row, so that a query without reasons leaves the join out, and one with several sorts them
    -- once.
    by_role CONSTANT text := $$
SELECT b.variant, b.geography, b.company, p.scored_week, p.account_id, p.churn_probability,
       nullif(p.last_active_month, '-infinity') AS last_active_month,
       p.last_active_month >= b.at_risk_since AS is_at_risk,
       CASE WHEN (r.reasons -> 0) IS NOT NULL THEN format(
           '%s = %s (%s)', coalesce((r.reasons -> 0) ->> 'window', (r.reasons -> 0) ->> 'feature'),
           (r.reasons -> 0) ->> 'value', to_char(((r.reasons -> 0) ->> 'contribution')::numeric, 'FMSG990.00')
       ) END AS reason_1,
       CASE WHEN (r.reasons -> 1) IS NOT NULL THEN format(
           '%s = %s (%s)', coalesce((r.reasons -> 1) ->> 'window', (r.reasons -> 1) ->> 'feature'),
           (r.reasons -> 1) ->> 'value', to_char(((r.reasons -> 1) ->> 'contribution')::numeric, 'FMSG990.00')
       ) END AS reason_2,
       CASE WHEN (r.reasons -> 2) IS NOT NULL THEN format(
           '%s = %s (%s)', coalesce((r.reasons -> 2) ->> 'window', (r.reasons -> 2) ->> 'feature'),
           (r.reasons -> 2) ->> 'value', to_char(((r.reasons -> 2) ->> 'contribution')::numeric, 'FMSG990.00')
       ) END AS reason_3,
       r.reasons, b.bias, b.role,
       b.registered_model, b.model_version, b.published_at AS scored_at, b.as_of, b.newest_month,
       b.scored_from, b.source, b.fallback_reason IS NOT NULL AS is_fallback, b.fallback_reason,
       b.source_variant <> b.variant AS is_foreign_data, b.source_uri, b.source_modified_at,
       b.account_ids, p.batch_id
FROM churn_predictions AS p
JOIN scoring_batches AS b ON b.batch_id = p.batch_id AND b.scored_week = p.scored_week
LEFT JOIN LATERAL (
    SELECT jsonb_agg(reason) AS reasons
    FROM (
        SELECT CASE WHEN name <> feature
                    THEN jsonb_build_object(
                        'feature', feature, 'value', shown, 'contribution', contribution, 'window', name
                    )
                    ELSE jsonb_build_object('feature', feature, 'value', shown, 'contribution', contribution)
               END AS reason
        FROM (
            SELECT feature, contribution, name,
                   CASE WHEN value = 'NaN' THEN '(missing)'
                        WHEN name IS NULL AND b.levels ? feature
                            THEN coalesce(b.levels -> feature ->> value::integer, '(other)')
                        ELSE value::text END AS shown
            FROM (
                SELECT feature, contribution, value,
                       CASE WHEN b.window_features ? feature
                            THEN b.window_features -> feature -> 'features' ->> get_byte(
                                p.shown_features, (b.window_features -> feature ->> 'place')::integer
                            ) END AS name
                FROM (
                    VALUES ('total_deposit', p.total_deposit_contribution, p.total_deposit_value),
                           ('total_handle', p.total_handle_contribution, p.total_handle_value),
                           ('total_ngr', p.total_ngr_contribution, p.total_ngr_value),
                           ('months_active', p.months_active_contribution, p.months_active_value),
                           ('brand_id', p.brand_id_contribution, p.brand_id_value),
                           ('ben_login_id', p.ben_login_id_contribution, p.ben_login_id_value),
                           ('player_reg_product', p.player_reg_product_contribution, p.player_reg_product_value)
                    UNION ALL
                    SELECT * FROM unnest(b.other_source_columns, p.other_contributions, p.other_values)
                ) AS stored (feature, contribution, value)
                WHERE contribution IS NOT NULL
            ) AS named
        ) AS readable
        ORDER BY abs(contribution) DESC, feature
    ) AS sorted
) AS r ON true
WHERE b.is_current
$$;
    -- One row an account: the champion's, or the challenger's where it is served to this account.
    served CONSTANT text := $$
    AND (b.role = 'champion' OR b.ab_share > 0)
    AND (b.role = 'champion') <> (b.ab_share > 0 AND churn_is_assigned(p.account_id, b.ab_salt, b.ab_share))
$$;
    latest CONSTANT text := $$
    AND p.scored_week = (
        SELECT max(n.scored_week) FROM scoring_batches AS n WHERE n.variant = b.variant AND n.is_current
    )
$$;
    reason CONSTANT text :=
        'One of the three largest contributions to the score: feature = value (contribution), in log-odds.';
    commented record;
BEGIN
    EXECUTE 'CREATE VIEW churn_predictions_by_role AS ' || by_role;
    EXECUTE 'CREATE VIEW churn_predictions_current AS ' || by_role || served;
    EXECUTE 'CREATE VIEW churn_predictions_latest AS ' || by_role || served || latest;
    FOR commented IN
        SELECT * FROM unnest(ARRAY['current', 'latest', 'by_role']) AS name, (VALUES
            ('variant', 'Key of the variant, such as base, geography-us or geography-eu.company-clientb.'),
            ('geography', 'Geography of the variant, in lower case; null if it has none.'),
            ('company', 'Company of the variant, in lower case; null if it has none.'),
            ('scored_week', 'Monday of the scored week.'),
            ('account_id', 'The account; the number of an input row if account_ids is row_number.'),
            ('churn_probability', 'Probability, 0 to 1, that the account has no activity in the whole calendar months '
                'of the horizon (3 by default) after the month of as_of.'),
            ('last_active_month',
                'Newest month with a deposit, handle or revenue; null without any, or if it is unknown.'),
            ('is_at_risk', 'Whether the account can still churn; null if that is unknown.'),
            ('reason_1', reason),
            ('reason_2', reason),
            ('reason_3', reason),
            ('reasons', 'Contribution of every feature to the score, the largest first, with the feature''s value; '
                'null if reasons were not computed.'),
            ('bias', 'Log-odds that every account of the batch starts from; with all contributions, the log-odds of '
                'the score.'),
            ('role', 'champion, or challenger if the account is served the challenger''s score.'),
            ('registered_model', 'Registered model in MLflow that scored the account.'),
            ('model_version', 'Version of the registered model that scored the account.'),
            ('scored_at', 'When the batch was published.'),
            ('as_of', 'Only what was known at the end of this day was used.'),
            ('newest_month', 'Newest month in the data as known then; null of rows that came encoded.'),
            ('scored_from',
                'extract; of past weeks history, or corrected extract, which has what became known since.'),
            ('source', 'Where the input was read: s3 or local.'),
            ('is_fallback', 'Whether a local copy of the input was read in place of S3.'),
            ('fallback_reason', 'Why a local copy of the input was read; null if none was.'),
            ('is_foreign_data', 'Whether the base variant''s input was scored, because this variant has none.'),
            ('source_uri', 'The input file that was scored.'),
            ('source_modified_at', 'When the input file was last modified.'),
            ('account_ids', 'Where account_id is from: input or row_number.'),
            ('batch_id', 'The batch in scoring_batches, which has its hashes, counts, code version and run ids.')
        ) AS texts (of_column, text)
    LOOP
        EXECUTE format(
            'COMMENT ON COLUMN churn_predictions_%s.%I IS %L', commented.name, commented.of_column, commented.text
        );
    END LOOP;
END
$do$;
COMMENT ON VIEW churn_predictions_by_role IS 'One row for each role, variant, week and account.';
COMMENT ON VIEW churn_predictions_current IS 'One row for each variant, week and account: the score to use.';
COMMENT ON VIEW churn_predictions_latest IS 'The rows of churn_predictions_current of each variant''s newest week.';
GRANT SELECT ON churn_predictions_current, churn_predictions_by_role, churn_predictions_latest
    TO churn_reader, churn_writer;
