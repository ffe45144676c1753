-- The writer adds batches. Everything that is published, recorded or reported changes through functions of the owner,
-- which set the time and the login, so that whoever has the job's password can add to the record and not falsify it.

CREATE FUNCTION churn_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT clock_timestamp()';
COMMENT ON FUNCTION churn_now IS 'The time that is recorded. Only the owner can replace it, as simulations do.';

-- Batches: a number is drawn, rows are added to it, then the batch itself. The writer cannot name the batch of a row: it
-- is the one whose number the session has drawn and not published. The transaction that published a batch, and no other,
-- can make it current.

ALTER TABLE scoring_batches
    ADD COLUMN published_by text,
    ADD COLUMN published_in xid8,
    ALTER COLUMN is_current SET DEFAULT false,
    ALTER COLUMN published_at SET DEFAULT clock_timestamp();
ALTER TABLE scoring_batches
    ALTER COLUMN published_by SET DEFAULT session_user,
    ALTER COLUMN published_in SET DEFAULT pg_current_xact_id();
ALTER TABLE scoring_attempts ALTER COLUMN ended_at SET DEFAULT clock_timestamp();
COMMENT ON COLUMN scoring_batches.published_by IS 'The login that published it; null before the column was added.';
COMMENT ON COLUMN scoring_batches.published_in IS
    'The transaction that published it, which alone can make it current.';

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

CREATE FUNCTION own_batch() RETURNS bigint
-- It depends on the session. To be called immutable makes it a constant of each COPY or INSERT, where it would cost more
-- than reading the row; such statements that were prepared earlier are planned anew once the number is published.
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN currval('public.scoring_batches_batch_id_seq');
EXCEPTION WHEN object_not_in_prerequisite_state THEN
    RAISE EXCEPTION 'this session has no number of an unpublished batch, and rows can be added to no other; draw one '
        'with nextval(''scoring_batches_batch_id_seq'')';
END
$$;
COMMENT ON FUNCTION own_batch IS 'The batch that rows are added to: the number that the session drew last, until it is published.';
ALTER TABLE churn_predictions ALTER COLUMN batch_id SET DEFAULT own_batch();

CREATE FUNCTION grant_rows(of_table regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('REVOKE INSERT ON %s FROM churn_writer', of_table);
    EXECUTE (
        SELECT format('GRANT SELECT, INSERT (%s) ON %s TO churn_writer', string_agg(quote_ident(attname), ', '), of_table)
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
    PERFORM pg_advisory_xact_lock(hashtextextended('open_week', 0));
    IF to_regclass(format('public.%I', partition)) IS NULL THEN
        EXECUTE format(
            'CREATE TABLE public.%I PARTITION OF public.churn_predictions FOR VALUES IN (%L)', partition, week
        );
        PERFORM public.grant_rows(format('public.%I', partition));
    END IF;
END
$$;

-- The trail of the aliases. The actor begins with the login; what the client says of itself follows.

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

-- Incidents, alerts and deliveries.

ALTER TABLE incidents ADD COLUMN changed_by text;
ALTER TABLE incidents ALTER COLUMN changed_by SET DEFAULT session_user;
ALTER TABLE alerts ALTER COLUMN created_at SET DEFAULT clock_timestamp();
ALTER TABLE alert_deliveries ADD COLUMN attempted_by text;
COMMENT ON COLUMN incidents.changed_by IS 'The login that opened, updated or resolved it last.';
COMMENT ON COLUMN alert_deliveries.attempted_by IS 'The login of the last attempt; null before the first.';
REVOKE INSERT, UPDATE ON incidents, alerts, alert_deliveries FROM churn_writer;

CREATE FUNCTION open_incident(kind text, subject text, severity text, title text, members jsonb) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO public.incidents AS i (kind, subject, severity, title, members, opened_at, updated_at, changed_by)
    SELECT kind, subject, severity, title, members, clock, clock, session_user FROM public.churn_now() AS clock
    RETURNING i.incident_id
$$;
COMMENT ON FUNCTION open_incident IS 'Opens an incident.';

CREATE FUNCTION update_incident(incident bigint, new_title text, new_members jsonb) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE public.incidents SET members = new_members, title = new_title, updated_at = public.churn_now(),
        changed_by = session_user
    WHERE incident_id = incident AND resolved_at IS NULL
$$;
COMMENT ON FUNCTION update_incident IS 'Sets the title and the members of an open incident.';

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
               opened_at timestamptz, n_attempts integer)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT a.alert_id, a.event, a.title, a.body, i.incident_id, i.severity, i.opened_at, d.n_attempts
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
COMMENT ON FUNCTION record_delivery IS 'Records an attempt to deliver an alert: delivered without an error, else due again.';

-- Drift flags.

ALTER TABLE drift_flags
    ADD COLUMN flagged_at timestamptz,
    ADD COLUMN flagged_by text;
ALTER TABLE drift_flags
    ALTER COLUMN flagged_at SET DEFAULT clock_timestamp(),
    ALTER COLUMN flagged_by SET DEFAULT session_user;
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
    grant_rows(regclass), seal_batch(), require_own_batch(), make_current(bigint, integer, text), record_event(jsonb), open_incident(text, text, text, text, jsonb),
    update_incident(bigint, text, jsonb), resolve_incident(bigint), queue_alert(bigint, text, text, text, text[]),
    next_delivery(text), record_delivery(bigint, text, text, interval), replace_flags(bigint[], jsonb)
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    make_current(bigint, integer, text), record_event(jsonb), open_incident(text, text, text, text, jsonb),
    update_incident(bigint, text, jsonb), resolve_incident(bigint), queue_alert(bigint, text, text, text, text[]),
    next_delivery(text), record_delivery(bigint, text, text, interval), replace_flags(bigint[], jsonb)
TO churn_writer;
