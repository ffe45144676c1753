-- A made-up migration of a next release that only adds: columns to every table, a table, columns to the views, and a
-- value to every list of values.

DO $do$
DECLARE
    one record;
BEGIN
    FOR one IN SELECT oid::regclass AS name FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
    LOOP
        EXECUTE format('ALTER TABLE %s ADD COLUMN next_note text', one.name);
        EXECUTE format('ALTER TABLE %s ADD COLUMN next_day date NOT NULL DEFAULT current_date', one.name);
        EXECUTE format('ALTER TABLE %s ADD COLUMN next_facts jsonb NOT NULL DEFAULT ''{"n": 1}''', one.name);
    END LOOP;
    FOR one IN SELECT conrelid::regclass AS name, conname, pg_get_constraintdef(oid) AS definition FROM pg_constraint
        WHERE contype = 'c' AND connamespace = 'public'::regnamespace AND pg_get_constraintdef(oid) LIKE '%ARRAY[%'
    LOOP
        EXECUTE format(
            'ALTER TABLE %s DROP CONSTRAINT %I, ADD CONSTRAINT %2$I %s', one.name, one.conname,
            replace(one.definition, 'ARRAY[', 'ARRAY[''next''::text, ')
        );
    END LOOP;
    FOR one IN SELECT unnest(ARRAY['by_role', 'current', 'latest']) AS name LOOP
        EXECUTE format('CREATE OR REPLACE VIEW churn_predictions_%s AS %s', one.name, regexp_replace(
            pg_get_viewdef(format('churn_predictions_%s', one.name)::regclass), '\s+FROM \(*churn_predictions p\s',
            ', p.next_note, b.next_facts\&'
        ));
    END LOOP;
END
$do$;
SELECT make_own_views();

CREATE TABLE next_things (
    thing_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    batch_id bigint NOT NULL REFERENCES scoring_batches ON DELETE CASCADE,
    account_id bigint
);
GRANT SELECT ON next_things TO churn_reader, churn_writer;
CREATE FUNCTION next_function(thing bigint) RETURNS bigint LANGUAGE sql AS 'SELECT thing';

UPDATE alembic_version SET version_num = 'next';
