"""What Dagster keeps of a fleet stays small: purge old runs with their events.

Dagster purges ticks, but neither runs nor events.
https://github.com/dagster-io/dagster/issues/33785
"""

from datetime import datetime

import dagster as dg
import sqlalchemy as sa
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster_postgres import PostgresEventLogStorage

from churn.database.connection import read_queries

_RUNS_AT_ONCE = 20

# Of each asset, partition and check the newest is kept, of every kind: the UI tells a partition's state from these.
_SQL = read_queries("dagster_log")


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
    old = [run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=FINISHED_STATUSES, created_before=before))]
    for start in range(0, len(old), _RUNS_AT_ONCE):
        runs = old[start : start + _RUNS_AT_ONCE]
        with storage.index_connection() as connection:
            connection.execute(_with("forget_checks"), {"runs": runs})
            n_events += connection.execute(_with("forget_events"), {"runs": runs}).scalar_one()
            left = set(connection.scalars(_with("still_named"), {"runs": runs}))
        for run_id in set(runs) - left:
            instance.delete_run(run_id)
            n_runs += 1
    return n_runs, n_events


def _with(name: str) -> sa.TextClause:
    return sa.text(_SQL[name]).bindparams(sa.bindparam("runs", expanding=True))
