"""What Dagster keeps of a fleet stays small: sensors' state in place of long cursors, and old runs with their events.

Dagster stores a sensor's cursor with every tick, and purges ticks, but neither runs nor events.
https://github.com/dagster-io/dagster/issues/33785
"""

from datetime import datetime

import dagster as dg
import sqlalchemy as sa
from dagster_postgres import PostgresEventLogStorage

_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_RUNS_AT_ONCE = 20

# Of each asset, partition and check the newest is kept, of every kind: the UI tells a partition's state from these.
_FORGET_CHECKS = """
DELETE FROM asset_check_executions old WHERE run_id IN :runs AND EXISTS (
    SELECT FROM asset_check_executions WHERE asset_key = old.asset_key AND check_name = old.check_name
        AND partition IS NOT DISTINCT FROM old.partition AND id > old.id
        AND (execution_status <> 'PLANNED' OR old.execution_status = 'PLANNED'))
"""
_FORGET_EVENTS = """
WITH gone AS (
    DELETE FROM event_logs old WHERE run_id IN :runs
        AND id NOT IN (SELECT evaluation_event_storage_id FROM asset_check_executions
            WHERE run_id IN :runs AND evaluation_event_storage_id IS NOT NULL)
        AND (asset_key IS NULL OR dagster_event_type IS NULL
            OR dagster_event_type NOT LIKE 'ASSET\\_%' OR dagster_event_type LIKE 'ASSET\\_CHECK\\_%'
            OR CASE WHEN partition IS NULL
                THEN EXISTS (SELECT FROM event_logs WHERE asset_key = old.asset_key AND partition IS NULL
                    AND dagster_event_type = old.dagster_event_type AND id > old.id)
                ELSE EXISTS (SELECT FROM event_logs WHERE asset_key = old.asset_key AND partition = old.partition
                    AND dagster_event_type = old.dagster_event_type AND id > old.id) END)
    RETURNING id), tags AS (DELETE FROM asset_event_tags USING gone WHERE event_id = gone.id)
SELECT count(*) FROM gone
"""
_STILL_NAMED = "SELECT DISTINCT run_id FROM event_logs WHERE run_id IN :runs"


def purge_runs(instance: dg.DagsterInstance, before: datetime) -> tuple[int, int]:
    """Delete the events of ended runs that began before a time, and the runs of which nothing is left.

    The newest event of each kind of each asset and partition, and the newest evaluation of each check, stay, with their
    runs. A repeat goes on where a killed purge ended. Returns the numbers of runs and events deleted. A log that is not
    in PostgreSQL, as that of a throw-away instance, is left as it is.
    """
    storage = instance.event_log_storage
    n_runs = n_events = 0
    if not isinstance(storage, PostgresEventLogStorage):
        return n_runs, n_events
    old = [run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=_ENDED, created_before=before))]
    for start in range(0, len(old), _RUNS_AT_ONCE):
        runs = old[start : start + _RUNS_AT_ONCE]
        with storage.index_connection() as connection:
            for statement in (_FORGET_CHECKS, _FORGET_EVENTS):
                found = connection.execute(_with(statement), {"runs": runs})
            n_events += found.scalar_one()
            left = set(connection.scalars(_with(_STILL_NAMED), {"runs": runs}))
        for run_id in set(runs) - left:
            instance.delete_run(run_id)
            n_runs += 1
    return n_runs, n_events


def _with(statement: str) -> sa.TextClause:
    return sa.text(statement).bindparams(sa.bindparam("runs", expanding=True))


def load_state(instance: dg.DagsterInstance, name: str) -> str | None:
    """Return a sensor's state, which Dagster keeps once, in place of a cursor that it stores with every tick."""
    return instance.daemon_cursor_storage.get_cursor_values({name}).get(name)


def save_state(instance: dg.DagsterInstance, name: str, state: str) -> None:
    """Replace a sensor's state."""
    instance.daemon_cursor_storage.set_cursor_values({name: state})
