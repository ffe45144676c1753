-- forget_checks
DELETE FROM asset_check_executions old WHERE run_id IN :runs AND EXISTS (
    SELECT FROM asset_check_executions WHERE asset_key = old.asset_key AND check_name = old.check_name
        AND partition IS NOT DISTINCT FROM old.partition AND id > old.id
        AND (execution_status <> 'PLANNED' OR old.execution_status = 'PLANNED'))

-- forget_events
WITH gone AS (
    DELETE FROM event_logs old WHERE run_id IN :runs
        AND id NOT IN (SELECT evaluation_event_storage_id FROM asset_check_executions
            WHERE run_id IN :runs AND evaluation_event_storage_id IS NOT NULL)
        AND (asset_key IS NULL OR dagster_event_type IS NULL
            OR dagster_event_type NOT LIKE 'ASSET\_%' OR dagster_event_type LIKE 'ASSET\_CHECK\_%'
            OR CASE WHEN partition IS NULL
                THEN EXISTS (SELECT FROM event_logs WHERE asset_key = old.asset_key AND partition IS NULL
                    AND dagster_event_type = old.dagster_event_type AND id > old.id)
                ELSE EXISTS (SELECT FROM event_logs WHERE asset_key = old.asset_key AND partition = old.partition
                    AND dagster_event_type = old.dagster_event_type AND id > old.id) END)
    RETURNING id), tags AS (DELETE FROM asset_event_tags USING gone WHERE event_id = gone.id)
SELECT count(*) FROM gone

-- still_named
SELECT DISTINCT run_id FROM event_logs WHERE run_id IN :runs
