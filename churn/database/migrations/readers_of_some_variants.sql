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
-- everybody's statistics. A volatile function stops them, too. The planner replaces it by its argument later, so that
-- it costs nothing.
CREATE FUNCTION own_value(anyelement) RETURNS anyelement LANGUAGE sql VOLATILE PARALLEL SAFE AS 'SELECT $1';
COMMENT ON FUNCTION own_value IS 'Returns its argument; keeps a reader''s conditions from being evaluated before a view''s.';

CREATE FUNCTION make_own_views() RETURNS void LANGUAGE plpgsql SET search_path = public, pg_temp AS $do$
DECLARE
    own CONSTANT text :=
        'b.variant IN (SELECT g.variant FROM reader_variants AS g WHERE g.reader = session_user)';
    -- Weeks are no secret, and only conditions on weeks can leave partitions out.
    barrier CONSTANT text := 'CREATE VIEW %s WITH (security_barrier) AS %s';
    of_table CONSTANT text :=
        'SELECT string_agg(CASE WHEN attname = ''scored_week'' THEN format(''%1$s.%%I'', attname) '
        'ELSE format(''own_value(%1$s.%%1$I) AS %%1$I'', attname) END, '', '' ORDER BY attnum) '
        'FROM pg_attribute WHERE attrelid = %2$L::regclass AND attnum > 0 AND NOT attisdropped';
    batches text;
    rows text;
    shown record;
    definition text;
    commented record;
BEGIN
    EXECUTE format(of_table, 'b', 'scoring_batches') INTO batches;
    EXECUTE format(of_table, 'p', 'churn_predictions') INTO rows;
    DROP VIEW IF EXISTS own_predictions_by_role, own_predictions_current, own_predictions_latest, own_rows,
        own_newest_rows, own_batches;
    EXECUTE format(barrier, 'own_batches', format('SELECT %s FROM scoring_batches AS b WHERE %s', batches, own));
    EXECUTE format(barrier, 'own_rows', format(
        'SELECT %s FROM scoring_batches AS b JOIN churn_predictions AS p USING (batch_id, scored_week) '
        'WHERE b.is_current AND %s', rows, own
    ));
    EXECUTE format(barrier, 'own_newest_rows', format(
        'SELECT %s FROM scoring_batches AS b JOIN churn_predictions AS p USING (batch_id, scored_week) '
        'WHERE b.is_current AND %s AND b.scored_week = ('
        'SELECT max(n.scored_week) FROM scoring_batches AS n WHERE n.variant = b.variant AND n.is_current)', rows, own
    ));
    FOR shown IN SELECT * FROM (VALUES
        ('own_predictions_by_role', 'churn_predictions_by_role', 'own_rows',
         'The rows of churn_predictions_by_role of the variants that the login is bound to.'),
        ('own_predictions_current', 'churn_predictions_current', 'own_rows',
         'The rows of churn_predictions_current of the variants that the login is bound to.'),
        ('own_predictions_latest', 'churn_predictions_current', 'own_newest_rows',
         'The rows of own_predictions_current of each variant''s newest week.')
    ) AS texts (name, model, source, comment)
    LOOP
        definition := pg_get_viewdef(shown.model::regclass);
        definition := regexp_replace(definition, '\mchurn_predictions p\M', shown.source || ' p');
        definition := regexp_replace(definition, '\mscoring_batches b\M', 'own_batches b');
        IF definition ~ '\m(churn_predictions|scoring_batches)\M' OR definition !~ shown.source THEN
            RAISE EXCEPTION 'view % reads its tables in a way that this function does not know', shown.model;
        END IF;
        EXECUTE format(barrier, shown.name, definition);
        EXECUTE format('COMMENT ON VIEW %I IS %L', shown.name, shown.comment);
        FOR commented IN
            SELECT attname, col_description(attrelid, attnum) AS text FROM pg_attribute
            WHERE attrelid = shown.model::regclass AND attnum > 0
        LOOP
            EXECUTE format('COMMENT ON COLUMN %I.%I IS %L', shown.name, commented.attname, commented.text);
        END LOOP;
        EXECUTE format('GRANT SELECT ON %I TO PUBLIC', shown.name);
    END LOOP;
    COMMENT ON VIEW own_batches IS 'Batches of the variants that the login is bound to, for the views of its predictions.';
    COMMENT ON VIEW own_rows IS 'Current rows of these batches.';
    COMMENT ON VIEW own_newest_rows IS 'Those of each variant''s newest week.';
END
$do$;
COMMENT ON FUNCTION make_own_views IS
    'Makes the views of own predictions anew from those of all; migrations that change these call it.';
REVOKE ALL ON FUNCTION make_own_views() FROM PUBLIC;
SELECT make_own_views();
