-- The schema of release 0.9.0, from which later ones are migrated.

SET LOCAL check_function_bodies = false; -- functions come before the tables that they read

CREATE FUNCTION public.champion_on(of_variant text, day date) RETURNS integer
    LANGUAGE sql STABLE
    AS $$
    SELECT champion_version FROM public.model_events
    WHERE variant = of_variant AND occurred_at < (day + 1)::timestamp AT TIME ZONE 'UTC'
    ORDER BY occurred_at DESC, event_id DESC LIMIT 1
$$;
COMMENT ON FUNCTION public.champion_on(of_variant text, day date) IS
    'The version that was champion at the end of a day, UTC; null before any event.';

CREATE FUNCTION public.churn_is_assigned(account_id bigint, salt text, share integer) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT ('x' || substr(md5(salt || ':' || account_id::text), 1, 8))::bit(32)::bigint % 10000 < share
$$;
COMMENT ON FUNCTION public.churn_is_assigned(account_id bigint, salt text, share integer) IS
    'Whether an account is served the challenger''s score.';

CREATE TABLE public.churn_predictions (
    scored_week date NOT NULL,
    batch_id bigint NOT NULL,
    account_id bigint NOT NULL,
    churn_probability real NOT NULL,
    total_deposit_contribution real,
    total_deposit_value real,
    total_handle_contribution real,
    total_handle_value real,
    total_ngr_contribution real,
    total_ngr_value real,
    months_active_contribution real,
    months_active_value real,
    brand_id_contribution real,
    brand_id_value real,
    ben_login_id_contribution real,
    ben_login_id_value real,
    player_reg_product_contribution real,
    player_reg_product_value real,
    other_contributions real[],
    other_values real[],
    CONSTRAINT churn_predictions_churn_probability_check CHECK (((churn_probability >= (0)::double precision) AND (churn_probability <= (1)::double precision)))
)
PARTITION BY LIST (scored_week);
COMMENT ON TABLE public.churn_predictions IS
    'Scores and their reasons, partitioned by week. Only the rows of current batches count.';
COMMENT ON COLUMN public.churn_predictions.total_deposit_contribution IS
    'Exact SHAP value in log-odds; null when the batch has no reasons or its model no such feature.';
COMMENT ON COLUMN public.churn_predictions.brand_id_value IS
    'Index of the level in scoring_batches.levels; past the end if unknown.';
COMMENT ON COLUMN public.churn_predictions.other_contributions IS
    'Contributions of the source columns without separate columns, in the order of scoring_batches.other_source_columns.';

CREATE TABLE public.scoring_batches (
    batch_id bigint NOT NULL,
    variant text NOT NULL,
    geography text,
    company text,
    scored_week date NOT NULL,
    as_of date NOT NULL,
    registered_model text NOT NULL,
    model_version integer NOT NULL,
    role text NOT NULL,
    model_sha256 text NOT NULL,
    mlflow_run_id text NOT NULL,
    dagster_run_id text,
    code_version text NOT NULL,
    source text NOT NULL,
    source_uri text NOT NULL,
    source_version text NOT NULL,
    source_sha256 text NOT NULL,
    source_modified_at timestamp with time zone NOT NULL,
    source_variant text NOT NULL,
    fallback_reason text,
    account_ids text NOT NULL,
    n_rows_read bigint NOT NULL,
    n_rows_quarantined bigint NOT NULL,
    n_accounts_withheld bigint NOT NULL,
    n_rows_scored bigint NOT NULL,
    unknown_levels jsonb NOT NULL,
    started_at timestamp with time zone NOT NULL,
    published_at timestamp with time zone NOT NULL,
    is_current boolean NOT NULL,
    scored_by text DEFAULT 'xgboost'::text NOT NULL,
    bias double precision,
    other_source_columns text[],
    levels jsonb,
    importance jsonb,
    ab_share integer DEFAULT 0 NOT NULL,
    ab_salt text DEFAULT ''::text NOT NULL,
    drift jsonb,
    mean_probability double precision,
    score_counts bigint[],
    profile_counts bigint[],
    estimated_auc double precision,
    n_rows_erased bigint DEFAULT 0 NOT NULL,
    CONSTRAINT scoring_batches_ab_share_check CHECK (((ab_share >= 0) AND (ab_share <= 10000))),
    CONSTRAINT scoring_batches_account_ids_check CHECK ((account_ids = ANY (ARRAY['input'::text, 'row_number'::text]))),
    CONSTRAINT scoring_batches_check CHECK (((source = 'local'::text) = (fallback_reason IS NOT NULL))),
    CONSTRAINT scoring_batches_role_check CHECK ((role = ANY (ARRAY['champion'::text, 'challenger'::text]))),
    CONSTRAINT scoring_batches_scored_week_check CHECK ((EXTRACT(isodow FROM scored_week) = (1)::numeric)),
    CONSTRAINT scoring_batches_source_check CHECK ((source = ANY (ARRAY['s3'::text, 'local'::text])))
);
COMMENT ON TABLE public.scoring_batches IS
    'Every published batch with its model, input and code. One per week and role is current.';
COMMENT ON COLUMN public.scoring_batches.ab_share IS
    'Accounts per 10,000 served the challenger''s score; 0 without a test.';
COMMENT ON COLUMN public.scoring_batches.ab_salt IS 'Salt of the hash that assigns accounts to the challenger.';
COMMENT ON COLUMN public.scoring_batches.drift IS
    'Differences from the model''s reference, by feature; null without a reference.';
COMMENT ON COLUMN public.scoring_batches.score_counts IS 'Accounts in each twentieth of [0, 1].';
COMMENT ON COLUMN public.scoring_batches.profile_counts IS
    'Rows in the bins of the model''s reference, as model_references.profile has them; null without a reference.';
COMMENT ON COLUMN public.scoring_batches.estimated_auc IS
    'Estimated before labels from the scores alone: assumes calibrated scores and no concept drift.';
COMMENT ON COLUMN public.scoring_batches.n_rows_erased IS 'Rows dropped on read, since their account was erased.';

CREATE FUNCTION public.churn_reason(prediction public.churn_predictions, batch public.scoring_batches, place integer) RETURNS text
    LANGUAGE sql STABLE
    AS $$
    SELECT format(
        '%s = %s (%s)', reason ->> 'feature', reason ->> 'value',
        to_char((reason ->> 'contribution')::numeric, 'FMSG990.00')
    )
    FROM (SELECT public.churn_reasons(prediction, batch) -> (place - 1)) AS found (reason)
    WHERE reason IS NOT NULL
$$;
COMMENT ON FUNCTION public.churn_reason(prediction public.churn_predictions, batch public.scoring_batches, place integer) IS
    'The reason at a place, 1 being the largest, as text.';

CREATE FUNCTION public.churn_reasons(prediction public.churn_predictions, batch public.scoring_batches) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    SELECT jsonb_agg(
        jsonb_build_object('feature', feature, 'value', shown, 'contribution', contribution)
        ORDER BY abs(contribution) DESC, feature
    )
    FROM (
        SELECT feature, contribution,
               CASE WHEN batch.levels ? feature THEN coalesce(batch.levels -> feature ->> value::integer, '(other)')
                    WHEN value = 'NaN' THEN '(missing)'
                    ELSE value::text END AS shown
        FROM (
            VALUES ('total_deposit', prediction.total_deposit_contribution, prediction.total_deposit_value), ('total_handle', prediction.total_handle_contribution, prediction.total_handle_value), ('total_ngr', prediction.total_ngr_contribution, prediction.total_ngr_value), ('months_active', prediction.months_active_contribution, prediction.months_active_value), ('brand_id', prediction.brand_id_contribution, prediction.brand_id_value), ('ben_login_id', prediction.ben_login_id_contribution, prediction.ben_login_id_value), ('player_reg_product', prediction.player_reg_product_contribution, prediction.player_reg_product_value)
            UNION ALL
            SELECT * FROM unnest(batch.other_source_columns, prediction.other_contributions, prediction.other_values)
        ) AS stored (feature, contribution, value)
        WHERE contribution IS NOT NULL
    ) AS readable
$$;
COMMENT ON FUNCTION public.churn_reasons(prediction public.churn_predictions, batch public.scoring_batches) IS
    'All reasons of a prediction, the largest first.';

CREATE FUNCTION public.drop_weeks(before date) RETURNS SETOF date
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $_$
DECLARE
    week date;
    partition name;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('open_week', 0));
    FOR partition, week IN
        SELECT c.relname, to_date(right(c.relname, 8), 'YYYYMMDD')
        FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'public.churn_predictions'::regclass AND c.relname ~ '^churn_predictions_[0-9]{8}$'
        ORDER BY 2
    LOOP
        IF week < before THEN
            EXECUTE format('DROP TABLE public.%I', partition);
            RETURN NEXT week;
        END IF;
    END LOOP;
    DELETE FROM public.scoring_attempts WHERE scored_week < before;
    DELETE FROM public.scoring_batches WHERE scored_week < before;
END $_$;
COMMENT ON FUNCTION public.drop_weeks(before date) IS 'Drops all weeks before a day (retention).';

CREATE FUNCTION public.erase_account(account bigint, of_variant text, its_code integer, its_digest bytea) RETURNS TABLE(place text, n_rows bigint)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    -- As messages about broken rows quote them; the id alone could be any number.
    quoted text := '(account_id[^-0-9A-Za-z]{1,8})' || account || '(?![0-9])';
BEGIN
    -- Batches on their way are waited for; one that begins later reads that the account was erased.
    PERFORM pg_advisory_xact_lock(hashtextextended('erasure', 0));
    INSERT INTO public.erased_accounts (variant, code, digest) VALUES (of_variant, its_code, its_digest)
    ON CONFLICT DO NOTHING;
    place := 'churn_predictions';
    DELETE FROM public.churn_predictions AS p USING public.scoring_batches AS b
    WHERE p.account_id = account AND b.batch_id = p.batch_id AND b.scored_week = p.scored_week
      AND b.account_ids = 'input' AND of_variant IN ('', b.variant);
    GET DIAGNOSTICS n_rows = ROW_COUNT;
    RETURN NEXT;
    place := 'quarantined_rows';
    DELETE FROM public.quarantined_rows AS q USING public.scoring_batches AS b
    WHERE (q.account_id = account OR q.row ->> 'account_id' IN (account::text, account::text || '.0'))
      AND b.batch_id = q.batch_id AND b.account_ids = 'input' AND of_variant IN ('', b.variant);
    GET DIAGNOSTICS n_rows = ROW_COUNT;
    RETURN NEXT;
    place := 'messages';
    WITH attempts AS (
        UPDATE public.scoring_attempts SET error = regexp_replace(error, quoted, '\1erased', 'g')
        WHERE error ~ quoted AND of_variant IN ('', variant) RETURNING 1
    ), open_or_past AS (
        UPDATE public.incidents SET members = regexp_replace(members::text, quoted, '\1erased', 'g')::jsonb
        WHERE members::text ~ quoted RETURNING 1
    ), sent AS (
        UPDATE public.alerts SET body = regexp_replace(body, quoted, '\1erased', 'g') WHERE body ~ quoted RETURNING 1
    )
    SELECT (SELECT count(*) FROM attempts) + (SELECT count(*) FROM open_or_past) + (SELECT count(*) FROM sent)
    INTO n_rows;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION public.erase_account(account bigint, of_variant text, its_code integer, its_digest bytea) IS
    'Erases an account and blocks it from later batches.';

CREATE FUNCTION public.index_closed_weeks(today date) RETURNS SETOF date
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    week date;
    partition text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('open_week', 0));
    FOR week IN SELECT DISTINCT scored_week FROM public.scoring_batches WHERE scored_week + 7 <= today ORDER BY 1 LOOP
        partition := 'churn_predictions_' || to_char(week, 'YYYYMMDD');
        IF to_regclass(format('public.%I', partition)) IS NOT NULL
           AND to_regclass(format('public.%I', partition || '_account')) IS NULL THEN
            EXECUTE format('CREATE INDEX %I ON public.%I (account_id)', partition || '_account', partition);
            RETURN NEXT week;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION public.index_closed_weeks(today date) IS
    'Indexes by account the partitions of weeks that are over.';

CREATE FUNCTION public.open_week(week date) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    partition text := 'churn_predictions_' || to_char(week, 'YYYYMMDD');
BEGIN
    IF extract(isodow FROM week) <> 1 THEN
        RAISE EXCEPTION 'week % does not begin on a Monday', week;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('open_week', 0));
    IF to_regclass(format('public.%I', partition)) IS NULL THEN
        EXECUTE format(
            'CREATE TABLE public.%I PARTITION OF public.churn_predictions FOR VALUES IN (%L)', partition, week
        );
        EXECUTE format('GRANT SELECT, INSERT ON public.%I TO churn_writer', partition);
    END IF;
END
$$;
COMMENT ON FUNCTION public.open_week(week date) IS 'Creates the partition of a week if it is missing.';

CREATE TABLE public.alert_deliveries (
    alert_id bigint NOT NULL,
    receiver text NOT NULL,
    n_attempts integer DEFAULT 0 NOT NULL,
    next_attempt_at timestamp with time zone NOT NULL,
    delivered_at timestamp with time zone,
    last_error text
);
COMMENT ON TABLE public.alert_deliveries IS 'The delivery of each alert to each receiver.';
COMMENT ON COLUMN public.alert_deliveries.receiver IS
    'Kind and fingerprint of the receiver''s URL, which contains secrets.';

CREATE TABLE public.alerts (
    alert_id bigint NOT NULL,
    incident_id bigint NOT NULL,
    event text NOT NULL,
    created_at timestamp with time zone NOT NULL,
    title text NOT NULL,
    body text NOT NULL,
    CONSTRAINT alerts_event_check CHECK ((event = ANY (ARRAY['opened'::text, 'updated'::text, 'resolved'::text])))
);
COMMENT ON TABLE public.alerts IS 'Alerts about incidents, each with its text.';

ALTER TABLE public.alerts ALTER COLUMN alert_id ADD GENERATED ALWAYS AS IDENTITY;

CREATE VIEW public.churn_predictions_by_role AS
 SELECT b.variant,
    b.geography,
    b.company,
    p.scored_week,
    p.account_id,
    p.churn_probability,
    public.churn_reason(p.*, b.*, 1) AS reason_1,
    public.churn_reason(p.*, b.*, 2) AS reason_2,
    public.churn_reason(p.*, b.*, 3) AS reason_3,
    public.churn_reasons(p.*, b.*) AS reasons,
    b.bias,
    b.role,
    b.registered_model,
    b.model_version,
    b.published_at AS scored_at,
    b.as_of,
    b.source,
    (b.fallback_reason IS NOT NULL) AS is_fallback,
    b.fallback_reason,
    (b.source_variant <> b.variant) AS is_foreign_data,
    b.source_uri,
    b.source_modified_at,
    b.account_ids,
    p.batch_id
   FROM (public.churn_predictions p
     JOIN public.scoring_batches b ON (((b.batch_id = p.batch_id) AND (b.scored_week = p.scored_week))))
  WHERE b.is_current;
COMMENT ON VIEW public.churn_predictions_by_role IS 'One row for each role, variant, week and account.';

CREATE VIEW public.churn_predictions_current AS
 SELECT b.variant,
    b.geography,
    b.company,
    p.scored_week,
    p.account_id,
    p.churn_probability,
    public.churn_reason(p.*, b.*, 1) AS reason_1,
    public.churn_reason(p.*, b.*, 2) AS reason_2,
    public.churn_reason(p.*, b.*, 3) AS reason_3,
    public.churn_reasons(p.*, b.*) AS reasons,
    b.bias,
    b.role,
    b.registered_model,
    b.model_version,
    b.published_at AS scored_at,
    b.as_of,
    b.source,
    (b.fallback_reason IS NOT NULL) AS is_fallback,
    b.fallback_reason,
    (b.source_variant <> b.variant) AS is_foreign_data,
    b.source_uri,
    b.source_modified_at,
    b.account_ids,
    p.batch_id
   FROM (public.churn_predictions p
     JOIN public.scoring_batches b ON (((b.batch_id = p.batch_id) AND (b.scored_week = p.scored_week))))
  WHERE (b.is_current AND ((b.role = 'champion'::text) OR (b.ab_share > 0)) AND ((b.role = 'champion'::text) <> ((b.ab_share > 0) AND public.churn_is_assigned(p.account_id, b.ab_salt, b.ab_share))));
COMMENT ON VIEW public.churn_predictions_current IS 'One row for each variant, week and account: the score to use.';

CREATE TABLE public.drift_flags (
    batch_id bigint NOT NULL,
    feature text NOT NULL,
    is_confirmed boolean NOT NULL
);
COMMENT ON TABLE public.drift_flags IS
    'Features and scores that drifted; the false discovery rate is controlled over the fleet.';
COMMENT ON COLUMN public.drift_flags.is_confirmed IS 'Whether the feature drifted in the week before as well.';

CREATE TABLE public.erased_accounts (
    erasure_id bigint NOT NULL,
    variant text NOT NULL,
    code integer NOT NULL,
    digest bytea NOT NULL,
    erased_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT erased_accounts_digest_check CHECK ((length(digest) = 32))
);
COMMENT ON TABLE public.erased_accounts IS
    'Tombstones of erased accounts: salted hashes, no ids. Their rows are dropped on read.';
COMMENT ON COLUMN public.erased_accounts.variant IS 'The variant that the account was erased from; empty for all.';

ALTER TABLE public.erased_accounts ALTER COLUMN erasure_id ADD GENERATED ALWAYS AS IDENTITY;

CREATE TABLE public.erasure_salt (
    is_only boolean DEFAULT true NOT NULL,
    salt bytea NOT NULL,
    CONSTRAINT erasure_salt_is_only_check CHECK (is_only),
    CONSTRAINT erasure_salt_salt_check CHECK ((length(salt) = 32))
);
COMMENT ON TABLE public.erasure_salt IS
    'The secret salt of the tombstones. With it, erased account ids can be found by trial.';

CREATE TABLE public.evaluated_batches (
    batch_id bigint NOT NULL,
    evaluated_at timestamp with time zone NOT NULL,
    labels_as_of date NOT NULL,
    horizon_months integer NOT NULL,
    n_accounts bigint NOT NULL,
    n_at_risk bigint NOT NULL,
    n_matured bigint NOT NULL,
    n_missing bigint NOT NULL,
    n_churned bigint NOT NULL,
    status text NOT NULL,
    auc_limit double precision,
    roc_auc double precision,
    roc_auc_low double precision,
    roc_auc_high double precision,
    average_precision double precision,
    log_loss double precision,
    brier_score double precision,
    calibration_error double precision,
    lift_at_10 double precision,
    mean_score double precision,
    reliability jsonb,
    logged_at timestamp with time zone,
    CONSTRAINT evaluated_batches_check CHECK (((status = 'ok'::text) = (roc_auc IS NOT NULL))),
    CONSTRAINT evaluated_batches_status_check CHECK ((status = ANY (ARRAY['ok'::text, 'insufficient'::text])))
);
COMMENT ON TABLE public.evaluated_batches IS 'Realized performance of a batch, measured when its labels have matured.';
COMMENT ON COLUMN public.evaluated_batches.n_at_risk IS
    'Scored accounts at risk at the as-of date; only these are evaluated.';
COMMENT ON COLUMN public.evaluated_batches.n_missing IS
    'Accounts at risk whose horizon has passed, but is not in the data.';
COMMENT ON COLUMN public.evaluated_batches.status IS
    'ok, or insufficient if too few labels matured: all measures are null then.';
COMMENT ON COLUMN public.evaluated_batches.auc_limit IS 'Minimum ROC AUC of the model version; null if unknown.';
COMMENT ON COLUMN public.evaluated_batches.reliability IS
    'Bins of about as many accounts each: {"n": […], "mean_score": […], "churned_share": […]}; null when insufficient.';
COMMENT ON COLUMN public.evaluated_batches.logged_at IS 'When the figures were logged to MLflow; null before.';

CREATE TABLE public.evaluated_segments (
    batch_id bigint NOT NULL,
    segment text NOT NULL,
    level text NOT NULL,
    n_matured bigint NOT NULL,
    n_churned bigint NOT NULL,
    status text NOT NULL,
    roc_auc double precision,
    roc_auc_low double precision,
    roc_auc_high double precision,
    brier_score double precision,
    calibration_error double precision,
    mean_score double precision,
    p_below_limit double precision,
    CONSTRAINT evaluated_segments_check CHECK (((status = 'ok'::text) = (roc_auc IS NOT NULL))),
    CONSTRAINT evaluated_segments_status_check CHECK ((status = ANY (ARRAY['ok'::text, 'insufficient'::text])))
);
COMMENT ON TABLE public.evaluated_segments IS
    'Realized performance of a batch by segment, such as a state, product or source.';
COMMENT ON COLUMN public.evaluated_segments.status IS
    'ok, or insufficient if too few labels matured: all measures are null then.';
COMMENT ON COLUMN public.evaluated_segments.p_below_limit IS
    'p-value of a ROC AUC this low if the true one were evaluated_batches.auc_limit.';

CREATE TABLE public.incidents (
    incident_id bigint NOT NULL,
    kind text NOT NULL,
    subject text DEFAULT ''::text NOT NULL,
    severity text NOT NULL,
    title text NOT NULL,
    members jsonb NOT NULL,
    opened_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    resolved_at timestamp with time zone,
    CONSTRAINT incidents_check CHECK ((resolved_at >= opened_at)),
    CONSTRAINT incidents_severity_check CHECK ((severity = ANY (ARRAY['warning'::text, 'error'::text])))
);
COMMENT ON TABLE public.incidents IS
    'Problems of the fleet, one row for each kind and subject from opening to resolution.';
COMMENT ON COLUMN public.incidents.members IS 'The affected variants or runs, each with a sentence.';

ALTER TABLE public.incidents ALTER COLUMN incident_id ADD GENERATED ALWAYS AS IDENTITY;

CREATE TABLE public.model_events (
    event_id bigint NOT NULL,
    occurred_at timestamp with time zone NOT NULL,
    variant text NOT NULL,
    registered_model text NOT NULL,
    action text NOT NULL,
    champion_version integer,
    previous_version integer,
    challenger_version integer,
    ab_share integer DEFAULT 0 NOT NULL,
    is_forced boolean DEFAULT false NOT NULL,
    reason text NOT NULL,
    actor text NOT NULL,
    evidence jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT model_events_ab_share_check CHECK (((ab_share >= 0) AND (ab_share <= 10000))),
    CONSTRAINT model_events_action_check CHECK ((action = ANY (ARRAY['observed'::text, 'challenged'::text, 'promoted'::text, 'rolled_back'::text, 'shared'::text]))),
    CONSTRAINT model_events_check CHECK (((NOT is_forced) OR (reason <> ''::text)))
);
COMMENT ON TABLE public.model_events IS
    'Audit trail of the aliases champion, challenger and previous: who changed them, and why.';

ALTER TABLE public.model_events ALTER COLUMN event_id ADD GENERATED ALWAYS AS IDENTITY;

CREATE TABLE public.model_references (
    registered_model text NOT NULL,
    model_version integer NOT NULL,
    profile jsonb NOT NULL
);
COMMENT ON TABLE public.model_references IS
    'Reference counts of each feature and the score by bin, for each model version.';

CREATE TABLE public.quarantined_rows (
    batch_id bigint NOT NULL,
    row_number bigint NOT NULL,
    account_id bigint,
    rules text[] NOT NULL,
    "row" jsonb NOT NULL
);
COMMENT ON TABLE public.quarantined_rows IS
    'Input rows that were not scored because they break the data contract, with the rules.';

CREATE TABLE public.scoring_attempts (
    attempt_id bigint NOT NULL,
    variant text NOT NULL,
    scored_week date NOT NULL,
    dagster_run_id text,
    outcome text NOT NULL,
    batch_id bigint,
    error_type text,
    error text,
    is_transient boolean,
    started_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone NOT NULL,
    role text DEFAULT 'champion'::text NOT NULL,
    CONSTRAINT scoring_attempts_check CHECK (((outcome = 'published'::text) = (batch_id IS NOT NULL))),
    CONSTRAINT scoring_attempts_check1 CHECK (((outcome = 'failed'::text) = (error IS NOT NULL))),
    CONSTRAINT scoring_attempts_outcome_check CHECK ((outcome = ANY (ARRAY['published'::text, 'failed'::text]))),
    CONSTRAINT scoring_attempts_role_check CHECK ((role = ANY (ARRAY['champion'::text, 'challenger'::text])))
);
COMMENT ON TABLE public.scoring_attempts IS 'Every attempt to score a variant''s week, published or failed.';

ALTER TABLE public.scoring_attempts ALTER COLUMN attempt_id ADD GENERATED ALWAYS AS IDENTITY;
ALTER TABLE public.scoring_batches ALTER COLUMN batch_id ADD GENERATED ALWAYS AS IDENTITY;
ALTER TABLE ONLY public.alert_deliveries
    ADD CONSTRAINT alert_deliveries_pkey PRIMARY KEY (alert_id, receiver);
ALTER TABLE ONLY public.alerts
    ADD CONSTRAINT alerts_pkey PRIMARY KEY (alert_id);
ALTER TABLE ONLY public.drift_flags
    ADD CONSTRAINT drift_flags_pkey PRIMARY KEY (batch_id, feature);
ALTER TABLE ONLY public.erased_accounts
    ADD CONSTRAINT erased_accounts_pkey PRIMARY KEY (erasure_id);
ALTER TABLE ONLY public.erased_accounts
    ADD CONSTRAINT erased_accounts_variant_digest_key UNIQUE (variant, digest);
ALTER TABLE ONLY public.erasure_salt
    ADD CONSTRAINT erasure_salt_pkey PRIMARY KEY (is_only);
ALTER TABLE ONLY public.evaluated_batches
    ADD CONSTRAINT evaluated_batches_pkey PRIMARY KEY (batch_id);
ALTER TABLE ONLY public.evaluated_segments
    ADD CONSTRAINT evaluated_segments_pkey PRIMARY KEY (batch_id, segment, level);
ALTER TABLE ONLY public.incidents
    ADD CONSTRAINT incidents_pkey PRIMARY KEY (incident_id);
ALTER TABLE ONLY public.model_events
    ADD CONSTRAINT model_events_pkey PRIMARY KEY (event_id);
ALTER TABLE ONLY public.model_references
    ADD CONSTRAINT model_references_pkey PRIMARY KEY (registered_model, model_version);
ALTER TABLE ONLY public.quarantined_rows
    ADD CONSTRAINT quarantined_rows_pkey PRIMARY KEY (batch_id, row_number);
ALTER TABLE ONLY public.scoring_attempts
    ADD CONSTRAINT scoring_attempts_pkey PRIMARY KEY (attempt_id);
ALTER TABLE ONLY public.scoring_batches
    ADD CONSTRAINT scoring_batches_pkey PRIMARY KEY (batch_id);

CREATE INDEX alert_deliveries_waiting ON public.alert_deliveries USING btree (next_attempt_at) WHERE (delivered_at IS NULL);
CREATE INDEX alerts_incident ON public.alerts USING btree (incident_id);
CREATE INDEX churn_predictions_batch ON ONLY public.churn_predictions USING brin (batch_id, account_id) WITH (pages_per_range='16');
CREATE INDEX evaluated_batches_unlogged ON public.evaluated_batches USING btree (labels_as_of) WHERE (logged_at IS NULL);
CREATE UNIQUE INDEX incidents_open ON public.incidents USING btree (kind, subject) WHERE (resolved_at IS NULL);
CREATE INDEX model_events_variant ON public.model_events USING btree (variant, occurred_at);
CREATE INDEX quarantined_rows_account ON public.quarantined_rows USING btree (account_id);
CREATE INDEX scoring_attempts_week ON public.scoring_attempts USING btree (scored_week, variant);
CREATE UNIQUE INDEX scoring_batches_current ON public.scoring_batches USING btree (variant, scored_week, role) WHERE is_current;
CREATE INDEX scoring_batches_dagster_run ON public.scoring_batches USING btree (dagster_run_id);

ALTER TABLE ONLY public.alert_deliveries
    ADD CONSTRAINT alert_deliveries_alert_id_fkey FOREIGN KEY (alert_id) REFERENCES public.alerts(alert_id) ON DELETE CASCADE;
ALTER TABLE ONLY public.alerts
    ADD CONSTRAINT alerts_incident_id_fkey FOREIGN KEY (incident_id) REFERENCES public.incidents(incident_id) ON DELETE CASCADE;
ALTER TABLE ONLY public.drift_flags
    ADD CONSTRAINT drift_flags_batch_id_fkey FOREIGN KEY (batch_id) REFERENCES public.scoring_batches(batch_id) ON DELETE CASCADE;
ALTER TABLE ONLY public.evaluated_batches
    ADD CONSTRAINT evaluated_batches_batch_id_fkey FOREIGN KEY (batch_id) REFERENCES public.scoring_batches(batch_id) ON DELETE CASCADE;
ALTER TABLE ONLY public.evaluated_segments
    ADD CONSTRAINT evaluated_segments_batch_id_fkey FOREIGN KEY (batch_id) REFERENCES public.evaluated_batches(batch_id) ON DELETE CASCADE;
ALTER TABLE ONLY public.quarantined_rows
    ADD CONSTRAINT quarantined_rows_batch_id_fkey FOREIGN KEY (batch_id) REFERENCES public.scoring_batches(batch_id) ON DELETE CASCADE;
ALTER TABLE ONLY public.scoring_attempts
    ADD CONSTRAINT scoring_attempts_batch_id_fkey FOREIGN KEY (batch_id) REFERENCES public.scoring_batches(batch_id) ON DELETE CASCADE;

GRANT SELECT,INSERT ON TABLE public.churn_predictions TO churn_writer;
GRANT SELECT ON TABLE public.churn_predictions TO churn_reader;
GRANT SELECT,INSERT ON TABLE public.scoring_batches TO churn_writer;
GRANT SELECT ON TABLE public.scoring_batches TO churn_reader;
GRANT UPDATE(is_current) ON TABLE public.scoring_batches TO churn_writer;
GRANT UPDATE(ab_share) ON TABLE public.scoring_batches TO churn_writer;
GRANT UPDATE(ab_salt) ON TABLE public.scoring_batches TO churn_writer;
REVOKE ALL ON FUNCTION public.drop_weeks(before date) FROM PUBLIC;
REVOKE ALL ON FUNCTION public.erase_account(account bigint, of_variant text, its_code integer, its_digest bytea) FROM PUBLIC;
REVOKE ALL ON FUNCTION public.index_closed_weeks(today date) FROM PUBLIC;
GRANT ALL ON FUNCTION public.index_closed_weeks(today date) TO churn_writer;
REVOKE ALL ON FUNCTION public.open_week(week date) FROM PUBLIC;
GRANT ALL ON FUNCTION public.open_week(week date) TO churn_writer;
GRANT SELECT,INSERT,UPDATE ON TABLE public.alert_deliveries TO churn_writer;
GRANT SELECT ON TABLE public.alert_deliveries TO churn_reader;
GRANT SELECT,INSERT ON TABLE public.alerts TO churn_writer;
GRANT SELECT ON TABLE public.alerts TO churn_reader;
GRANT SELECT ON TABLE public.churn_predictions_by_role TO churn_reader;
GRANT SELECT ON TABLE public.churn_predictions_by_role TO churn_writer;
GRANT SELECT ON TABLE public.churn_predictions_current TO churn_reader;
GRANT SELECT ON TABLE public.churn_predictions_current TO churn_writer;
GRANT SELECT,INSERT,DELETE ON TABLE public.drift_flags TO churn_writer;
GRANT SELECT ON TABLE public.drift_flags TO churn_reader;
GRANT SELECT ON TABLE public.erased_accounts TO churn_writer;
GRANT SELECT ON TABLE public.erasure_salt TO churn_writer;
GRANT SELECT,INSERT ON TABLE public.evaluated_batches TO churn_writer;
GRANT SELECT ON TABLE public.evaluated_batches TO churn_reader;
GRANT UPDATE(logged_at) ON TABLE public.evaluated_batches TO churn_writer;
GRANT SELECT,INSERT ON TABLE public.evaluated_segments TO churn_writer;
GRANT SELECT ON TABLE public.evaluated_segments TO churn_reader;
GRANT SELECT,INSERT,UPDATE ON TABLE public.incidents TO churn_writer;
GRANT SELECT ON TABLE public.incidents TO churn_reader;
GRANT SELECT,INSERT ON TABLE public.model_events TO churn_writer;
GRANT SELECT ON TABLE public.model_events TO churn_reader;
GRANT SELECT,INSERT ON TABLE public.model_references TO churn_writer;
GRANT SELECT ON TABLE public.model_references TO churn_reader;
GRANT SELECT,INSERT ON TABLE public.quarantined_rows TO churn_writer;
GRANT SELECT ON TABLE public.quarantined_rows TO churn_reader;
GRANT SELECT,INSERT ON TABLE public.scoring_attempts TO churn_writer;
GRANT SELECT ON TABLE public.scoring_attempts TO churn_reader;
GRANT USAGE ON SEQUENCE public.scoring_batches_batch_id_seq TO churn_writer;

INSERT INTO public.erasure_salt (salt)
VALUES (decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex'));

SET LOCAL check_function_bodies = true;
