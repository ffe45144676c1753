-- Readers that are bound to variants: partners, each of whom may see the players of their own companies alone.

CREATE TABLE reader_variants (
    reader text NOT NULL,
    variant text NOT NULL,
    granted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    granted_by text NOT NULL DEFAULT session_user,
    PRIMARY KEY (reader, variant)
);
COMMENT ON TABLE reader_variants IS 'The variants that a reader is bound to; own_predictions_… show these to that login.';
COMMENT ON COLUMN reader_variants.reader IS 'The login.';

-- Row-level security would stop the writer's COPY, and reach readers through views from PostgreSQL 15 on only. A
-- security_barrier view evaluates a reader's conditions after its own, but for those that "cannot leak", such as
-- equality. These would be evaluated on everybody's rows, whose number EXPLAIN ANALYZE shows, and be estimated from
-- everybody's statistics. So conditions on batches are kept out of own_batches by a volatile function, which the planner
-- replaces by its argument later; and a column of a row is null without one of these batches, so that conditions on it
-- are evaluated on rows of own batches alone. Weeks are no secret, and conditions on them leave partitions out.
CREATE FUNCTION own_value(anyelement) RETURNS anyelement LANGUAGE sql VOLATILE PARALLEL SAFE AS 'SELECT $1';
COMMENT ON FUNCTION own_value IS 'Returns its argument; keeps a reader''s conditions from being evaluated before a view''s.';

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
