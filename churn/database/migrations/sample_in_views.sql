-- The views of predictions say which rows were scored from the encoded sample.

DO $do$
DECLARE
    view regclass;
BEGIN
    FOREACH view IN ARRAY ARRAY[
        'churn_predictions_by_role', 'churn_predictions_current', 'churn_predictions_latest'
    ]::regclass[]
    LOOP
        -- A column can be added behind the others only, so the views stay what they are.
        EXECUTE format('CREATE OR REPLACE VIEW %s AS %s', view, regexp_replace(
            pg_get_viewdef(view), '\s+FROM \(*churn_predictions p\s', ', b.is_sample\&'
        ));
        EXECUTE format('COMMENT ON COLUMN %s.is_sample IS %L', view,
            'Whether the encoded sample was scored, because the variant never had activity.');
    END LOOP;
END
$do$;
