"""Years of a fleet in an hour: ``python -m benchmarks.years``. Exits with 1 if a size or a time grows over the years.

Each week is a run of the real weekly job over all variants, with what maintenance does after it: the runs of half a
year and the predictions of a year are kept. Prints sizes and the time of a week, quarter by quarter.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import sqlalchemy as sa

from benchmarks.__main__ import call
from churn.database.connection import create_engine
from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import load_settings
from churn.variants import Variant
from churn.weeks import monday_of
from churn.workflows.erase import drop_old_weeks
from churn.workflows.set_up import set_up_server
from tests.support.services import bench_environment, model_files, parquet_bytes, simulated_rows, upload_fleet

KEPT_RUNS, KEPT_WEEKS, QUARTER = 26, 52, 13
MOST_GROWTH, MOST_SLOWER = 1.1, 1.25
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the weeks, print a line each quarter, and compare the last year with the one before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", type=int, default=20)
    parser.add_argument("--weeks", type=int, default=156, help="more than a year and a half")
    parser.add_argument("--rows", type=int, default=200, help="of each variant; events do not depend on it")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="churn-years-") as folder:
        Path(folder).chmod(0o755)
        with bench_environment(Path(folder) / "home"), open_deployment(load_settings()) as deployment:
            list(set_up_server(*deployment.databases))
            variants = [Variant(company=f"c{i:04}") for i in range(args.variants)]
            before = monday_of(datetime.now(UTC).date()).replace(day=1) - timedelta(weeks=args.weeks + 10)
            rows = simulated_rows(args.rows).with_columns(pl.lit(before.replace(day=1)).alias("activity_month"))
            upload_fleet(variants, [parquet_bytes(rows)], model_files())
            listed = Path(folder) / "fleet"
            listed.write_text("\n".join(variant.key for variant in variants))
            call("experiment_tracking/log_model.py", "--all", str(listed))
            return live(deployment, variants, args.weeks)


def live(deployment: Deployment, variants: Sequence[Variant], n_weeks: int) -> int:
    """Score and maintain week by week; returns 1 if the last year's size or time is above the year's before."""
    from orchestration.instance import dagster_environment

    os.environ.update(dagster_environment(deployment))
    import dagster as dg

    from orchestration.assets.scoring import OP_NAME, WEEK_TAG
    from orchestration.definitions import defs
    from orchestration.partitions import RANGE_END_TAG, RANGE_START_TAG, sync_partitions
    from orchestration.upkeep import purge_runs

    job = defs.resolve_job_def("churn_prediction_job")
    config = {**QUIET, "ops": {OP_NAME: {"config": {"corrected": True}}}}
    monday, began, took, events = monday_of(datetime.now(UTC).date()), [], [], []
    print("| week | events | runs | Dagster, MB | predictions, MB | MLflow, MB | a week, s |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with dg.DagsterInstance.get() as instance:
        sync_partitions(instance, variants)
        for i in range(n_weeks):
            week = monday - timedelta(weeks=n_weeks - 1 - i)
            began.append(datetime.now(UTC))
            started = time.perf_counter()
            tags = {RANGE_START_TAG: variants[0].key, RANGE_END_TAG: variants[-1].key, WEEK_TAG: str(week)}
            job.execute_in_process(instance=instance, tags=tags, run_config=config)
            took.append(time.perf_counter() - started)
            if i >= KEPT_RUNS:
                purge_runs(instance, began[i - KEPT_RUNS])
            drop_old_weeks(deployment.database, week, n_weeks=KEPT_WEEKS, horizon=deployment.horizon)
            events.append(_count(deployment.dagster_database, "SELECT count(*) FROM event_logs"))
            if i % QUARTER == QUARTER - 1:
                urls = (deployment.dagster_database, deployment.database, deployment.mlflow_database)
                sizes = [_count(url, "SELECT pg_database_size(current_database())") / 1e6 for url in urls if url]
                n_runs = _count(deployment.dagster_database, "SELECT count(*) FROM runs")
                shown = " | ".join(f"{size:.1f}" for size in sizes)
                print(
                    f"| {i + 1} | {events[-1]} | {n_runs} | {shown} | {statistics.median(took[-QUARTER:]):.2f} |",
                    flush=True,
                )
    growth = events[-1] / events[-1 - KEPT_WEEKS]
    slower = statistics.median(took[-QUARTER:]) / statistics.median(took[QUARTER : 2 * QUARTER])
    print(f"events over the last year: {growth:.2f} x, at most {MOST_GROWTH} x")
    print(f"a week of the last quarter against the second: {slower:.2f} x, at most {MOST_SLOWER} x")
    return int(growth > MOST_GROWTH or slower > MOST_SLOWER)


def _count(url: sa.URL, query: str) -> int:
    engine = create_engine(url)
    with engine.connect() as connection:
        return int(connection.execute(sa.text(query)).scalar_one())


if __name__ == "__main__":
    sys.exit(main())
