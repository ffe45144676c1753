-- From the schema of release 0.9.0 to that of the next release.

-- For which code this schema serves. A migration that only adds leaves it; one that takes something away, or makes it
-- stricter, replaces it by its own number.
CREATE FUNCTION oldest_code() RETURNS text LANGUAGE sql IMMUTABLE AS $$SELECT '0020'$$;
COMMENT ON FUNCTION oldest_code IS 'The oldest migration whose code works on this schema.';

-- Scores: who is at risk, and which of a source column's features over months is shown beside its contribution.

ALTER TABLE churn_predictions
    ADD COLUMN shown_features bytea,
    ADD COLUMN last_active_month date,
    ADD COLUMN account_key text;
ALTER TABLE quarantined_rows ADD COLUMN account_key text;
COMMENT ON COLUMN churn_predictions.shown_features IS
    'A byte for each source column with windows: the index of the feature with the largest contribution, whose value '
    'is stored.';
COMMENT ON COLUMN churn_predictions.last_active_month IS
    'Newest month with activity known at the as-of day; -infinity without any; null if unknown, as of encoded rows.';
COMMENT ON COLUMN churn_predictions.account_key IS
    'The account''s id where it is a text, of which account_id is churn_account_number; null where it is a number.';
COMMENT ON COLUMN quarantined_rows.account_key IS 'As of churn_predictions.';

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
        GENERATED ALWAYS AS (position('/data/churn/X_test_sample_2.json' IN source_uri) > 0) STORED,
    ADD COLUMN is_repeated_input boolean,
    ADD COLUMN published_by text,
    ADD COLUMN published_in xid8,
    ADD COLUMN words text,
    ALTER COLUMN is_current SET DEFAULT false,
    ALTER COLUMN published_at SET DEFAULT clock_timestamp();
-- The login and the transaction are those of batches to come.
ALTER TABLE scoring_batches
    ALTER COLUMN published_by SET DEFAULT session_user,
    ALTER COLUMN published_in SET DEFAULT pg_current_xact_id();
CREATE TABLE feature_words (
    words text NOT NULL,
    feature text NOT NULL,
    name text NOT NULL,
    low text NOT NULL,
    high text NOT NULL,
    missing text NOT NULL,
    PRIMARY KEY (words, feature)
);
GRANT SELECT ON feature_words TO churn_reader, churn_writer;
GRANT INSERT ON feature_words TO churn_writer;
COMMENT ON TABLE feature_words IS
    'What features mean in words: sentences about their values, which batches with equal words share.';
COMMENT ON COLUMN feature_words.words IS 'Digest of all sentences of a batch, as scoring_batches.words has it.';
COMMENT ON COLUMN feature_words.feature IS 'Name of a feature or of a source column.';
COMMENT ON COLUMN feature_words.name IS 'Its name in words.';
COMMENT ON COLUMN feature_words.low IS 'The sentence about a value of 0.';
COMMENT ON COLUMN feature_words.high IS
    'The sentence about any other value; {} is the number in it, {level} the level of a category.';
COMMENT ON COLUMN feature_words.missing IS 'The sentence about a missing value.';
COMMENT ON COLUMN scoring_batches.words IS 'Which rows of feature_words are about the batch''s reasons; null without.';
CREATE INDEX scoring_batches_pending ON scoring_batches (variant, source_sha256) WHERE history_status = 'pending';
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
COMMENT ON COLUMN scoring_batches.is_repeated_input IS
    'Whether the week has no new input: a file of the same content was there a week earlier and was scored. Null of '
    'batches before 1.0.';
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
COMMENT ON COLUMN scoring_batches.published_by IS 'The login that published it; null before the column was added.';
COMMENT ON COLUMN scoring_batches.published_in IS
    'The transaction that published it, which alone can make it current.';

-- Account ids that are text. Inside, an account stays a number of 64 bits; the text stands beside it.

-- The rule of churn.data.account_ids: whole numbers are themselves; other texts have a negative number, which is made
-- of their SHA-256; what is missing, or a number that is rounded or ambiguous, is no id.
CREATE FUNCTION churn_account_number(id text) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    spaces CONSTANT text := '[\u0009-\u000d\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+';
    key text := regexp_replace(regexp_replace(id, '^' || spaces, ''), spaces || '$', '');
    whole text;
    number numeric;
BEGIN
    IF octet_length(convert_to(key, 'UTF8')) > 256 OR lower(key) IN (
        '', 'null', '\n', 'nan', '<na>', '(null)', 'na', 'n/a', '#n/a', 'nat', 'none', '-nan',
        'true', 'false', 'inf', '+inf', '-inf', 'infinity', '+infinity', '-infinity'
    ) THEN
        RETURN NULL;
    END IF;
    whole := regexp_replace(regexp_replace(key, '^\u2212', '-'), '^([-+]?[0-9]+)\.0*$', '\1');
    IF whole ~ '^[-+]?[0-9]+(\.[0-9]+)?[eE]\+?[0-9]{1,3}$' AND whole !~ '^[0-9]+[eE][0-9]+$' THEN
        number := whole::numeric;
        IF abs(number) < 1e11 AND number::float8 = trunc(number::float8) THEN
            RETURN number::bigint;
        END IF;
    ELSIF whole ~ '^[-+]?(0|[1-9][0-9]*)$' THEN
        number := whole::numeric;
        IF number BETWEEN -9223372036854775808 AND 9223372036854775807 THEN
            RETURN number::bigint;
        END IF;
    END IF;
    IF key ~ ('^[-+\u2212]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+][0-9]+|[0-9]+,[0-9]+'
              '|[0-9]{1,3}([,.'' \u2019\u00a0\u202f][0-9]{3})+([.,][0-9]*)?)$|^(\{["}]|\[)') THEN
        RETURN NULL;
    END IF;
    RETURN ('x' || left(encode(sha256(convert_to(key, 'UTF8')), 'hex'), 16))::bit(64)::bigint
           | (-9223372036854775808)::bigint;
END $$;
COMMENT ON FUNCTION churn_account_number IS
    'The account_id of an id as a company writes it, a number or a text; null if it is no id.';

-- The writer adds batches. Everything that is published, recorded or reported changes through functions of the owner,
-- which set the time and the login, so that whoever has the job's password can add to the record and not falsify it.

CREATE FUNCTION churn_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT clock_timestamp()';
COMMENT ON FUNCTION churn_now IS 'The time that is recorded. Only the owner can replace it, as simulations do.';

-- Batches: a number is drawn, rows are added to it, then the batch itself. The writer cannot name the batch of a row:
-- it is the one whose number the session has drawn and not published. The transaction that published a batch, and no
-- other, can make it current.

ALTER TABLE scoring_attempts ADD COLUMN seconds jsonb, ALTER COLUMN ended_at SET DEFAULT clock_timestamp();
REVOKE INSERT, UPDATE ON scoring_batches, scoring_attempts FROM churn_writer;
GRANT UPDATE (history_status) ON scoring_batches TO churn_writer;
DO $do$
BEGIN
    EXECUTE (
        SELECT format('GRANT INSERT (%s) ON %s TO churn_writer', string_agg(quote_ident(attname), ', '), attrelid)
        FROM (SELECT attname, attrelid::regclass FROM pg_attribute
              WHERE attrelid = 'scoring_batches'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
                AND attname NOT IN ('is_current', 'ab_share', 'ab_salt', 'published_at', 'published_by', 'published_in')
        ) AS batches GROUP BY attrelid
    );
    EXECUTE (
        SELECT format('GRANT INSERT (%s) ON %s TO churn_writer', string_agg(quote_ident(attname), ', '), attrelid)
        FROM (SELECT attname, attrelid::regclass FROM pg_attribute
              WHERE attrelid = 'scoring_attempts'::regclass AND attnum > 0 AND NOT attisdropped
                AND attname NOT IN ('attempt_id', 'ended_at')
        ) AS attempts GROUP BY attrelid
    );
END
$do$;

CREATE FUNCTION begin_batch(key text, lock_timeout text, OUT n_erasures bigint, OUT batch_id bigint)
-- One statement for a client, and one snapshot for each inside: erasures are counted once none can begin.
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM set_config('lock_timeout', begin_batch.lock_timeout, true);
    PERFORM pg_advisory_xact_lock(hashtextextended(key, 0));
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('erasure', 0));
    SELECT count(*) INTO n_erasures FROM public.erased_accounts;
    batch_id := nextval('public.scoring_batches_batch_id_seq');
END
$$;
COMMENT ON FUNCTION begin_batch IS
    'Draws the number of a new batch, and until the transaction ends locks what the key names and lets no erasure '
    'begin; returns how many erasures there were.';

CREATE FUNCTION own_batch() RETURNS bigint
-- It depends on the session. To be called immutable makes it a constant of each COPY or INSERT, where it would cost
-- more than reading the row; such statements that were prepared earlier are planned anew once the number is published.
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN currval('public.scoring_batches_batch_id_seq');
EXCEPTION WHEN object_not_in_prerequisite_state THEN
    RAISE EXCEPTION 'this session has no number of an unpublished batch, and rows can be added to no other; draw one '
        'with nextval(''scoring_batches_batch_id_seq'')';
END
$$;
COMMENT ON FUNCTION own_batch IS
    'The batch that rows are added to: the number that the session drew last, until it is published.';
ALTER TABLE churn_predictions ALTER COLUMN batch_id SET DEFAULT own_batch();

CREATE FUNCTION grant_rows(of_table regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('REVOKE INSERT ON %s FROM churn_writer', of_table);
    EXECUTE (
        SELECT format(
            'GRANT SELECT, INSERT (%s) ON %s TO churn_writer', string_agg(quote_ident(attname), ', '), of_table
        )
        FROM pg_attribute WHERE attrelid = of_table AND attnum > 0 AND NOT attisdropped AND attname <> 'batch_id'
    );
END
$$;
COMMENT ON FUNCTION grant_rows IS 'Lets the writer add rows to a table of predictions, without naming their batch.';
SELECT grant_rows('churn_predictions');
SELECT grant_rows(inhrelid) FROM pg_inherits WHERE inhparent = 'churn_predictions'::regclass;

CREATE FUNCTION seal_batch() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NEW.batch_id IS DISTINCT FROM currval('public.scoring_batches_batch_id_seq') THEN
        RAISE EXCEPTION 'batch % has a number that this session did not draw last; draw one with nextval',
            NEW.batch_id USING ERRCODE = 'insufficient_privilege';
    END IF;
    NEW.is_repeated_input := EXISTS (
        SELECT FROM public.scoring_batches
        WHERE variant = NEW.variant AND is_current AND role = NEW.role AND scored_week < NEW.scored_week
          AND source_sha256 = NEW.source_sha256
          AND source_modified_at < (NEW.scored_week - 7)::timestamp AT TIME ZONE 'UTC'
    );
    -- From here on the session has no number, so that it can add no row to this batch.
    DISCARD SEQUENCES;
    DISCARD PLANS;
    RETURN NEW;
END
$$;
CREATE TRIGGER seal BEFORE INSERT ON scoring_batches FOR EACH ROW EXECUTE FUNCTION seal_batch();

CREATE FUNCTION require_own_batch() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM public.scoring_batches WHERE batch_id = NEW.batch_id AND published_in = pg_current_xact_id()
          AND published_at >= transaction_timestamp()
    ) THEN
        RAISE EXCEPTION 'no row can be added to batch %, which is published', NEW.batch_id
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER only_to_a_batch_in_progress AFTER INSERT ON quarantined_rows FOR EACH ROW
EXECUTE FUNCTION require_own_batch();

CREATE FUNCTION make_current(batch bigint, share integer DEFAULT 0, salt text DEFAULT '') RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    made public.scoring_batches;
BEGIN
    -- The time as well, since a restored database counts its transactions anew.
    SELECT * INTO made FROM public.scoring_batches AS b
    WHERE b.batch_id = batch AND b.published_in = pg_current_xact_id() AND b.published_at >= transaction_timestamp();
    IF NOT FOUND THEN
        RAISE EXCEPTION 'batch % was not published by this transaction; a batch is made current when it is published',
            batch USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF made.role = 'champion' THEN
        UPDATE public.scoring_batches AS b SET is_current = false
        WHERE b.variant = made.variant AND b.scored_week = made.scored_week AND b.is_current;
    ELSE
        UPDATE public.scoring_batches AS b SET ab_share = share, ab_salt = salt
        WHERE b.variant = made.variant AND b.scored_week = made.scored_week AND b.role = 'champion' AND b.is_current
          AND b.published_in = pg_current_xact_id() AND b.published_at >= transaction_timestamp();
        IF NOT FOUND THEN
            RAISE EXCEPTION 'batch % has no champion''s batch of the same transaction beside it', batch
                USING ERRCODE = 'insufficient_privilege';
        END IF;
    END IF;
    UPDATE public.scoring_batches AS b SET is_current = true, ab_share = share, ab_salt = salt
    WHERE b.batch_id = batch;
END
$$;
COMMENT ON FUNCTION make_current IS
    'Makes a batch current in the transaction that published it: a champion''s in place of all of its variant and '
    'week; a challenger''s beside the champion''s of that transaction, with the share of accounts that it serves.';

-- Weeks are opened, indexed and dropped without stopping readers, or being stopped by one.

-- CREATE TABLE ... PARTITION OF locks the whole table against everybody; ATTACH PARTITION only against other DDL.
CREATE OR REPLACE FUNCTION open_week(week date) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    partition text := 'churn_predictions_' || to_char(week, 'YYYYMMDD');
BEGIN
    IF extract(isodow FROM week) <> 1 THEN
        RAISE EXCEPTION 'week % does not begin on a Monday', week;
    END IF;
    IF week NOT BETWEEN current_date - 3653 AND current_date + 366 THEN
        RAISE EXCEPTION 'week % is not within ten years before and one year after today, %', week, current_date
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    -- First without waiting for an index of another week. Not by to_regclass, which remembers that it found nothing.
    IF EXISTS (SELECT FROM pg_class WHERE relname = partition AND relnamespace = 'public'::regnamespace) THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('open_week', 0));
    IF NOT EXISTS (SELECT FROM pg_class WHERE relname = partition AND relnamespace = 'public'::regnamespace) THEN
        EXECUTE format(
            'CREATE TABLE public.%I (LIKE public.churn_predictions INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', partition
        );
        PERFORM public.grant_rows(format('public.%I', partition));
        EXECUTE format(
            'ALTER TABLE public.churn_predictions ATTACH PARTITION public.%I FOR VALUES IN (%L)', partition, week
        );
    END IF;
END
$$;

-- Readers queue behind a DROP TABLE that waits for another reader, so it gives up soon and is tried again. What takes
-- long, the records of the batches, is deleted before.
CREATE OR REPLACE FUNCTION drop_weeks(before date) RETURNS SETOF date
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '400ms' AS $$
DECLARE
    week date;
    partition name;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('open_week', 0));
    DELETE FROM public.scoring_attempts WHERE scored_week < before;
    DELETE FROM public.scoring_batches WHERE scored_week < before;
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
END $$;

-- An index keeps no reader waiting, but who scores the week again.
ALTER FUNCTION index_closed_weeks(date) SET lock_timeout = '5s';

-- Moves of aliases: decided before they begin, completed by whoever comes next, in the order of the database. Those
-- recorded before are done. The writer may neither choose a row's time nor end an event except once. The actor begins
-- with the login; what the client says of itself follows.

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

REVOKE INSERT ON model_events FROM churn_writer;
CREATE FUNCTION record_event(event jsonb, OUT event_id bigint, OUT occurred_at timestamptz, OUT actor text)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO public.model_events AS e (
        variant, registered_model, action, champion_version, previous_version, challenger_version, ab_share, is_forced,
        reason, actor, evidence, from_champion, from_previous, from_challenger, state, decision
    )
    SELECT n.variant, n.registered_model, n.action, n.champion_version, n.previous_version, n.challenger_version,
           n.ab_share, n.is_forced, n.reason, format('%s (%s)', session_user, n.actor), n.evidence, n.from_champion,
           n.from_previous, n.from_challenger, CASE n.state WHEN 'pending' THEN 'pending' ELSE 'done' END, n.decision
    FROM jsonb_populate_record(NULL::public.model_events, event) AS n
    RETURNING e.event_id, e.occurred_at, e.actor
$$;
COMMENT ON FUNCTION record_event IS 'Adds an event to the trail, with the database''s time and the caller''s login.';
COMMENT ON COLUMN model_events.actor IS
    'The login that recorded it, as the database knows it, and in parentheses whom the client named.';

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

-- Incidents, alerts and deliveries.

ALTER TABLE incidents ADD COLUMN changed_by text, ADD COLUMN reported jsonb NOT NULL DEFAULT '{}';
ALTER TABLE incidents ALTER COLUMN changed_by SET DEFAULT session_user;
ALTER TABLE alerts ALTER COLUMN created_at SET DEFAULT clock_timestamp();
ALTER TABLE alert_deliveries ADD COLUMN attempted_by text;
COMMENT ON COLUMN incidents.changed_by IS 'The login that opened, updated or resolved it last.';
COMMENT ON COLUMN incidents.reported IS
    'By member what was reported of it: its causes, its worst figure, its newest Dagster run. Worse is reported again.';
COMMENT ON COLUMN alert_deliveries.attempted_by IS 'The login of the last attempt; null before the first.';
REVOKE INSERT, UPDATE ON incidents, alerts, alert_deliveries FROM churn_writer;

CREATE FUNCTION open_incident(kind text, subject text, severity text, title text, members jsonb, reported jsonb)
RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO public.incidents AS i
        (kind, subject, severity, title, members, reported, opened_at, updated_at, changed_by)
    SELECT kind, subject, severity, title, members, reported, clock, clock, session_user FROM public.churn_now() AS clock
    RETURNING i.incident_id
$$;
COMMENT ON FUNCTION open_incident IS 'Opens an incident.';

CREATE FUNCTION update_incident(incident bigint, new_title text, new_members jsonb, new_reported jsonb) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE public.incidents SET members = new_members, title = new_title, reported = new_reported,
        updated_at = public.churn_now(), changed_by = session_user
    WHERE incident_id = incident AND resolved_at IS NULL
$$;
COMMENT ON FUNCTION update_incident IS 'Sets the title and the members of an open incident, and what was reported of them.';

CREATE FUNCTION resolve_incident(incident bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE public.incidents SET resolved_at = greatest(opened_at, public.churn_now()), changed_by = session_user
    WHERE incident_id = incident AND resolved_at IS NULL
$$;
COMMENT ON FUNCTION resolve_incident IS 'Resolves an open incident.';

CREATE FUNCTION queue_alert(incident bigint, event text, title text, body text, receivers text[]) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH alert AS (
        INSERT INTO public.alerts (incident_id, event, created_at, title, body)
        VALUES (incident, event, public.churn_now(), title, body) RETURNING alert_id, created_at
    )
    INSERT INTO public.alert_deliveries (alert_id, receiver, next_attempt_at)
    SELECT alert_id, receiver, created_at FROM alert, unnest(receivers) AS receiver
$$;
COMMENT ON FUNCTION queue_alert IS 'Queues an alert about an incident for each receiver.';

-- Of each incident only the oldest undelivered alert, so that a receiver gets the alerts of an incident in order.
CREATE FUNCTION next_delivery(of_receiver text)
RETURNS TABLE (alert_id bigint, event text, title text, body text, incident_id bigint, severity text,
               opened_at timestamptz, resolved_at timestamptz, kind text, members jsonb, reported jsonb,
               n_attempts integer)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT a.alert_id, a.event, a.title, a.body, i.incident_id, i.severity, i.opened_at, i.resolved_at, i.kind,
           i.members, i.reported, d.n_attempts
    FROM public.alert_deliveries AS d JOIN public.alerts AS a USING (alert_id)
    JOIN public.incidents AS i USING (incident_id)
    WHERE d.receiver = of_receiver AND d.delivered_at IS NULL
      AND d.next_attempt_at <= (SELECT public.churn_now()) AND NOT EXISTS (
        SELECT FROM public.alert_deliveries AS before JOIN public.alerts AS b USING (alert_id)
        WHERE b.incident_id = a.incident_id AND b.alert_id < a.alert_id
          AND before.receiver = d.receiver AND before.delivered_at IS NULL
    )
    ORDER BY d.next_attempt_at, d.alert_id LIMIT 1
    FOR UPDATE OF d SKIP LOCKED
$$;
COMMENT ON FUNCTION next_delivery IS 'Locks a receiver''s next due delivery for the transaction and returns its alert.';

CREATE FUNCTION record_delivery(alert bigint, of_receiver text, error text, retry_after interval) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE public.alert_deliveries SET n_attempts = n_attempts + 1, last_error = error,
        delivered_at = CASE WHEN error IS NULL THEN clock END, next_attempt_at = clock + retry_after,
        attempted_by = session_user
    FROM public.churn_now() AS clock
    WHERE alert_id = alert AND receiver = of_receiver AND delivered_at IS NULL
$$;
COMMENT ON FUNCTION record_delivery IS
    'Records an attempt to deliver an alert: delivered without an error, else due again.';

-- Drift flags.

ALTER TABLE drift_flags
    ADD COLUMN flagged_at timestamptz,
    ADD COLUMN flagged_by text;
ALTER TABLE drift_flags
    ALTER COLUMN flagged_at SET DEFAULT clock_timestamp(),
    ALTER COLUMN flagged_by SET DEFAULT session_user;
COMMENT ON COLUMN drift_flags.is_confirmed IS 'Whether the feature drifted in the variant''s input before as well.';
COMMENT ON COLUMN drift_flags.flagged_at IS 'When the flag was set; null before the column was added.';
COMMENT ON COLUMN drift_flags.flagged_by IS 'The login that set it; null before the column was added.';
REVOKE INSERT, DELETE ON drift_flags FROM churn_writer;

CREATE FUNCTION replace_flags(batches bigint[], flags jsonb) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DELETE FROM public.drift_flags WHERE batch_id = ANY(batches);
    INSERT INTO public.drift_flags (batch_id, feature, is_confirmed)
    SELECT n.batch_id, n.feature, n.is_confirmed
    FROM jsonb_populate_recordset(NULL::public.drift_flags, flags) AS n
    WHERE n.batch_id = ANY(batches)
$$;
COMMENT ON FUNCTION replace_flags IS 'Replaces all flags of some batches.';

REVOKE ALL ON FUNCTION
    begin_batch(text, text), grant_rows(regclass), seal_batch(), require_own_batch(),
    make_current(bigint, integer, text), record_event(jsonb),
    open_incident(text, text, text, text, jsonb, jsonb), update_incident(bigint, text, jsonb, jsonb),
    resolve_incident(bigint),
    queue_alert(bigint, text, text, text, text[]),
    next_delivery(text), record_delivery(bigint, text, text, interval), replace_flags(bigint[], jsonb)
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    begin_batch(text, text), make_current(bigint, integer, text), record_event(jsonb),
    open_incident(text, text, text, text, jsonb, jsonb), update_incident(bigint, text, jsonb, jsonb),
    resolve_incident(bigint),
    queue_alert(bigint, text, text, text, text[]),
    next_delivery(text), record_delivery(bigint, text, text, interval), replace_flags(bigint[], jsonb)
TO churn_writer;

-- Erasure: of one variant, of a company's, or of all; it returns where the account was found.
DROP FUNCTION erase_account(bigint, text, integer, bytea);
CREATE FUNCTION erase_account(
    account bigint, of_scope text, its_code integer, its_digest bytea, quoted text DEFAULT NULL
) RETURNS TABLE (place text, n_rows bigint, variants text[])
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- As messages about broken rows quote them; the id alone could be any number.
    pattern text := coalesce(quoted, '(account_id[^-0-9A-Za-z]{1,8})' || account || '(?![0-9])');
BEGIN
    -- Batches on their way are waited for; one that begins later reads that the account was erased.
    PERFORM pg_advisory_xact_lock(hashtextextended('erasure', 0));
    INSERT INTO public.erased_accounts (variant, code, digest) VALUES (of_scope, its_code, its_digest)
    ON CONFLICT DO NOTHING;
    place := 'churn_predictions';
    WITH deleted AS (
        DELETE FROM public.churn_predictions AS p USING public.scoring_batches AS b
        WHERE p.account_id = account AND b.batch_id = p.batch_id AND b.scored_week = p.scored_week
          AND b.account_ids = 'input' AND of_scope IN ('', b.variant, 'company=' || b.company)
        RETURNING b.variant
    )
    SELECT count(*), array_agg(DISTINCT variant) FROM deleted INTO n_rows, variants;
    RETURN NEXT;
    place := 'quarantined_rows';
    WITH deleted AS (
        DELETE FROM public.quarantined_rows AS q USING public.scoring_batches AS b
        WHERE (q.account_id = account
               OR q.account_id IS NULL AND public.churn_account_number(q.row ->> 'account_id') = account)
          AND b.batch_id = q.batch_id AND b.account_ids = 'input'
          AND of_scope IN ('', b.variant, 'company=' || b.company)
        RETURNING b.variant
    )
    SELECT count(*), array_agg(DISTINCT variant) FROM deleted INTO n_rows, variants;
    RETURN NEXT;
    place := 'messages';
    WITH attempts AS (
        UPDATE public.scoring_attempts SET error = regexp_replace(error, pattern, '\1erased', 'g')
        WHERE error ~ pattern
          AND of_scope IN ('', variant, 'company=' || substring(variant FROM '(?:^|[.])company-(.*)$'))
        RETURNING variant
    ), open_or_past AS (
        UPDATE public.incidents SET members = regexp_replace(members::text, pattern, '\1erased', 'g')::jsonb
        WHERE members::text ~ pattern RETURNING NULL
    ), sent AS (
        UPDATE public.alerts SET body = regexp_replace(body, pattern, '\1erased', 'g')
        WHERE body ~ pattern RETURNING NULL
    )
    SELECT count(*), array_agg(DISTINCT variant) FILTER (WHERE variant IS NOT NULL) FROM (
        SELECT variant FROM attempts UNION ALL SELECT NULL FROM open_or_past UNION ALL SELECT NULL FROM sent
    ) AS named
    INTO n_rows, variants;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION erase_account IS 'Erases an account and blocks it from later batches.';
COMMENT ON COLUMN erased_accounts.variant IS
    'The variant that the account was erased from, or company=<company> for all of a company; empty for all.';
REVOKE ALL ON FUNCTION erase_account(bigint, text, integer, bytea, text) FROM PUBLIC;

-- Retention by a login that owns nothing: it drops what set-up has recorded that is not kept, and nothing else.

CREATE TABLE retention (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    keep_weeks integer NOT NULL CHECK (keep_weeks >= 0)
);
INSERT INTO retention (keep_weeks) VALUES (0);
GRANT SELECT ON retention TO churn_reader, churn_writer;
COMMENT ON TABLE retention IS 'How many weeks of predictions are kept.';
COMMENT ON COLUMN retention.keep_weeks IS 'CHURN_KEEP_WEEKS when set-up ran last; the job drops no newer week. 0: all.';

CREATE FUNCTION retain_weeks(before date) RETURNS SETOF date
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    kept integer := (SELECT keep_weeks FROM public.retention);
BEGIN
    IF NOT pg_has_role(session_user, 'churn_owner', 'MEMBER')
       AND (kept = 0 OR before > date_trunc('week', current_date)::date - 7 * (kept - 1)) THEN
        RAISE EXCEPTION 'weeks before % are not dropped by login %: set-up recorded CHURN_KEEP_WEEKS=%', before,
            session_user, kept USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN QUERY SELECT public.drop_weeks(before);
END
$$;
COMMENT ON FUNCTION retain_weeks IS
    'Drops all weeks before a day; for a login without churn_owner, only those that retention does not keep.';
REVOKE ALL ON FUNCTION retain_weeks(date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION retain_weeks(date) TO churn_writer;

-- The views of predictions differ in their rows only.

DROP VIEW churn_predictions_current, churn_predictions_by_role;
DO $do$
DECLARE
    -- An aggregate is one row, so that a query without reasons leaves the join out, and one with several sorts them
    -- once.
    by_role text := $$
SELECT b.variant, b.geography, b.company, p.scored_week, p.account_id, p.churn_probability,
       nullif(p.last_active_month, '-infinity') AS last_active_month,
       p.last_active_month >= b.at_risk_since AS is_at_risk,
@reasons@,
       r.reasons, b.bias, b.role,
       b.registered_model, b.model_version, b.published_at AS scored_at, b.as_of, b.newest_month,
       b.scored_from, b.source, b.fallback_reason IS NOT NULL AS is_fallback, b.fallback_reason,
       b.source_variant <> b.variant AS is_foreign_data, b.source_uri, b.source_modified_at,
       b.account_ids, p.batch_id, b.is_sample, coalesce(p.account_key, p.account_id::text) AS account_key,
       b.is_repeated_input,
@texts@
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
    -- Of the reason at a place: what it is, and what it says in words. Levels are inserted last, since they may be any
    -- text. A query that does not select the words looks nothing up.
    reason CONSTANT text := $$CASE WHEN r.reasons -> @place@ IS NOT NULL THEN format(
           '%s = %s (%s)', coalesce(r.reasons -> @place@ ->> 'window', r.reasons -> @place@ ->> 'feature'),
           r.reasons -> @place@ ->> 'value', to_char((r.reasons -> @place@ ->> 'contribution')::numeric, 'FMSG990.00')
       ) END$$;
    in_words CONSTANT text := $$(
           SELECT replace(regexp_replace(replace(
                      CASE r.reasons -> @place@ ->> 'value'
                      WHEN '(missing)' THEN w.missing WHEN '0' THEN w.low WHEN '-0' THEN w.low ELSE w.high END,
                      '{}', CASE WHEN r.reasons -> @place@ ->> 'value' ~ '^-?[0-9.]+(e[-+]?[0-9]+)?\Z' THEN rtrim(
                          to_char((r.reasons -> @place@ ->> 'value')::numeric, 'FM999,999,999,999,990.99'), '.'
                      ) ELSE '' END
                  ), '(^| )1 months\M', '\11 month'), '{level}', r.reasons -> @place@ ->> 'value')
                  || CASE WHEN (r.reasons -> @place@ ->> 'contribution')::float8 > 0 THEN ' (raises risk)'
                     ELSE ' (lowers risk)' END
           FROM feature_words AS w WHERE w.words = b.words
             AND w.feature = coalesce(r.reasons -> @place@ ->> 'window', r.reasons -> @place@ ->> 'feature')
       )$$;
    reasons text[] := '{}';
    texts text[] := '{}';
    about_reason CONSTANT text :=
        'One of the three largest contributions to the score: feature = value (contribution), in log-odds.';
    about_words CONSTANT text := 'The reason in words, and whether it raises or lowers the risk; as the reason itself '
        'where nobody has words for the column.';
    commented record;
BEGIN
    FOR i IN 0..2 LOOP
        reasons := reasons || format('       %s AS reason_%s', replace(reason, '@place@', i::text), i + 1);
        texts := texts || format('       coalesce(%s, %s) AS reason_%s_text', replace(in_words, '@place@', i::text),
            replace(reason, '@place@', i::text), i + 1);
    END LOOP;
    by_role := replace(replace(by_role, '@reasons@', array_to_string(reasons, E',\n')), '@texts@',
        array_to_string(texts, E',\n'));
    EXECUTE 'CREATE VIEW churn_predictions_by_role AS ' || by_role;
    EXECUTE 'CREATE VIEW churn_predictions_current AS ' || by_role || served;
    EXECUTE 'CREATE VIEW churn_predictions_latest AS ' || by_role || served || latest;
    FOR commented IN
        SELECT * FROM unnest(ARRAY['current', 'latest', 'by_role']) AS name, (VALUES
            ('variant', 'Key of the variant, such as base, geography-us or geography-eu.company-clientb.'),
            ('geography', 'Geography of the variant, in lower case; null if it has none.'),
            ('company', 'Company of the variant, in lower case; null if it has none.'),
            ('scored_week', 'Monday of the scored week.'),
            ('account_id', 'The account''s number: its id, or churn_account_number of an id that is a text; the number '
                'of an input row if account_ids is row_number.'),
            ('churn_probability', 'Probability, 0 to 1, that the account has no activity in the whole calendar months '
                'of the horizon (3 by default) after the month of as_of.'),
            ('last_active_month',
                'Newest month with a deposit, handle or revenue; null without any, or if it is unknown.'),
            ('is_at_risk', 'Whether the account can still churn; null if that is unknown.'),
            ('reason_1', about_reason),
            ('reason_1_text', about_words),
            ('reason_2', about_reason),
            ('reason_2_text', about_words),
            ('reason_3', about_reason),
            ('reason_3_text', about_words),
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
            ('batch_id', 'The batch in scoring_batches, which has its hashes, counts, code version and run ids.'),
            ('is_sample', 'Whether the encoded sample was scored, because the variant never had activity.'),
            ('is_repeated_input', 'Whether the week has no new input: the file was there a week earlier, and scored.'),
            ('account_key', 'The account''s id as the company writes it, as text. Search by account_id, which has an '
                'index.')
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

-- Readers that are bound to variants: partners, each of whom may see the players of their own companies alone.

CREATE TABLE reader_variants (
    reader text NOT NULL,
    variant text NOT NULL,
    granted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    granted_by text NOT NULL DEFAULT session_user,
    PRIMARY KEY (reader, variant)
);
COMMENT ON TABLE reader_variants IS
    'The variants that a reader is bound to; own_predictions_… show these to that login.';
COMMENT ON COLUMN reader_variants.reader IS 'The login.';

-- Row-level security would stop the writer's COPY, and reach readers through views from PostgreSQL 15 on only. A
-- security_barrier view evaluates a reader's conditions after its own, but for those that "cannot leak", such as
-- equality. These would be evaluated on everybody's rows, whose number EXPLAIN ANALYZE shows, and be estimated from
-- everybody's statistics. So conditions on batches are kept out of own_batches by a volatile function, which the
-- planner replaces by its argument later; and a column of a row is null without one of these batches, so that conditions
-- on it are evaluated on rows of own batches alone. Weeks are no secret, and conditions on them leave partitions out.
CREATE FUNCTION own_value(anyelement) RETURNS anyelement LANGUAGE sql VOLATILE PARALLEL SAFE AS 'SELECT $1';
COMMENT ON FUNCTION own_value IS
    'Returns its argument; keeps a reader''s conditions from being evaluated before a view''s.';

CREATE FUNCTION make_own_views() RETURNS void LANGUAGE plpgsql SET search_path = public, pg_temp AS $do$
DECLARE
    barrier CONSTANT text := 'CREATE VIEW %s WITH (security_barrier) AS %s';
    batches text := 'SELECT %s FROM scoring_batches AS b WHERE b.is_current AND '
        'b.variant IN (SELECT g.variant FROM reader_variants AS g WHERE g.reader = session_user)';
    newest CONSTANT text := ' AND b.scored_week = '
        '(SELECT max(n.scored_week) FROM scoring_batches AS n WHERE n.variant = b.variant AND n.is_current)';
    columns text;
    definition text;
    selected text;
    header text;
    shown record;
    commented record;
BEGIN
    DROP VIEW IF EXISTS own_predictions_by_role, own_predictions_current, own_predictions_latest, own_batches,
        own_newest_batches;
    SELECT string_agg(format('own_value(b.%1$I) AS %1$I', attname), ', ') INTO columns FROM pg_attribute
    WHERE attrelid = 'scoring_batches'::regclass AND attnum > 0 AND NOT attisdropped AND attname <> 'scored_week';
    batches := format(batches, 'b.scored_week, ' || columns);
    EXECUTE format(barrier, 'own_batches', batches);
    EXECUTE format(barrier, 'own_newest_batches', batches || newest);
    FOR shown IN SELECT * FROM (VALUES
        ('own_predictions_by_role', 'churn_predictions_by_role', 'own_batches',
         'The rows of churn_predictions_by_role of the variants that the login is bound to.'),
        ('own_predictions_current', 'churn_predictions_current', 'own_batches',
         'The rows of churn_predictions_current of the variants that the login is bound to.'),
        ('own_predictions_latest', 'churn_predictions_current', 'own_newest_batches',
         'The rows of own_predictions_current of each variant''s newest week.')
    ) AS texts (name, model, source, comment)
    LOOP
        definition := regexp_replace(
            pg_get_viewdef(shown.model::regclass), '\mscoring_batches b\M', shown.source || ' b'
        );
        selected := split_part(definition, 'churn_predictions p', 1);
        definition := regexp_replace(
            selected, '\m(p\.(?!scored_week\M)\w+)', '(CASE WHEN b.batch_id IS NOT NULL THEN \1 END)', 'g'
        ) || substr(definition, length(selected) + 1);
        IF definition ~ '\mscoring_batches\M' OR selected !~ 'FROM \(*$' THEN
            RAISE EXCEPTION 'view % reads its tables in a way that this function does not know', shown.model;
        END IF;
        SELECT format('%s (%s)', shown.name, string_agg(quote_ident(attname), ', ' ORDER BY attnum)) INTO header
        FROM pg_attribute WHERE attrelid = shown.model::regclass AND attnum > 0;
        EXECUTE format(barrier, header, definition);
        EXECUTE format('COMMENT ON VIEW %I IS %L', shown.name, shown.comment);
        FOR commented IN
            SELECT attname, col_description(attrelid, attnum) AS text FROM pg_attribute
            WHERE attrelid = shown.model::regclass AND attnum > 0
        LOOP
            EXECUTE format('COMMENT ON COLUMN %I.%I IS %L', shown.name, commented.attname, commented.text);
        END LOOP;
        EXECUTE format('GRANT SELECT ON %I TO PUBLIC', shown.name);
    END LOOP;
    COMMENT ON VIEW own_batches IS 'Current batches of the variants that the login is bound to.';
    COMMENT ON VIEW own_newest_batches IS 'Those of each variant''s newest week.';
END
$do$;
COMMENT ON FUNCTION make_own_views IS
    'Rebuilds the views of own predictions from those of all; migrations that change these call it.';
REVOKE ALL ON FUNCTION make_own_views() FROM PUBLIC;
SELECT make_own_views();
