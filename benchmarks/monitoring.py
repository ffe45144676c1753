"""Monitoring a fleet on Mondays: ``python -m benchmarks.monitoring``; writes ``benchmarks/MONITORING.md``.

On a real PostgreSQL, MLflow in it and SeaweedFS on this machine, every variant is registered and a past week of it is
scored; that batch is then copied into the other weeks. Labels cover whole months, so what was scored in a month
matures on one Monday: on that one all its batches are evaluated, on the others none. Two Mondays are measured, one of
each kind. On both, a new extract has arrived, and a process for each core runs the weekly evaluation over a part of the
fleet: it ingests the extract, evaluates what has matured, and logs to MLflow. Then the whole fleet is monitored, and
the report is written. Before that a few variants are evaluated on one thread, each service's calls timed; and counting
rows for drift, which is part of scoring them, is timed by :mod:`benchmarks.drift`.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import sqlalchemy as sa

from benchmarks import drift
from benchmarks.evaluating import fleet
from churn.concurrency import cores, in_threads
from churn.database.connection import OWNER, create_engine
from churn.deployment.code_version import code_version
from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import load_settings
from churn.report import write_report
from churn.variants import Variant
from churn.weeks import monday_of
from churn.wording import markdown_table
from churn.workflows.evaluate import evaluate_variant
from churn.workflows.score import score_fleet
from churn.workflows.set_up import set_up_server
from experiment_tracking.log_model import log_variants
from tests.support.batches import week_request
from tests.support.services import bench_environment, model_files, parquet_bytes, upload_fleet
from tests.support.simulated import simulate_activity

_ALONE = 20
_DATASETS = 20
_PAST_WEEKS = [date(2026, 6, 29), date(2026, 7, 6), date(2026, 7, 13), date(2026, 7, 20)]  # whose Sundays are in July
_NEWEST_MONTH = date(2026, 10, 1)
_ACCOUNTS_PER_ROW = 1.25  # some come only after the week that is scored


class Timed:
    """Wraps a service and sums the seconds that each of its methods takes."""

    def __init__(self, service: Any, seconds: dict[str, float]) -> None:
        self._service, self._seconds = service, seconds

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._service, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                given = method(*args, **kwargs)
                return list(given) if isinstance(given, Iterator) else given
            finally:
                self._seconds[f"{type(self._service).__name__}.{name}"] += time.perf_counter() - started

        return timed


@dataclass(frozen=True)
class Monday:
    """What a Monday's jobs took, in seconds.

    Attributes:
        evaluation: From the start of the processes to the end of the last one.
        ingestion: That part of it in which the extracts were added to the histories.
        processors: CPU time of those processes; the rest is PostgreSQL's, S3's, or idle.
        n_evaluated: Batches.
        new_facts: Per variant.
    """

    evaluation: float
    ingestion: float
    processors: float
    monitoring: float
    reporting: float
    n_evaluated: int
    accounts: float
    matured: float
    new_facts: float
    peak_mb: float


@dataclass(frozen=True)
class Month:
    """What a month of monitoring a fleet took; ``alone`` is milliseconds a variant by part, on one thread."""

    variants: int
    processes: int
    counting: float
    maturing: Monday
    ordinary: Monday
    alone: Mapping[str, float]


def measure(deployment: Deployment, folder: Path, n_variants: int, n_rows: int, n_processes: int) -> Month:
    """Register, score, and run the jobs of a month's Mondays."""
    variants = fleet(n_variants + _ALONE)
    activity = _simulated(n_rows)
    model = model_files()

    def bring(extracts: Sequence[pl.DataFrame]) -> None:
        upload_fleet(variants, [parquet_bytes(one) for one in extracts], model)

    is_newest = pl.col("activity_month") >= _NEWEST_MONTH
    bring([one.filter(~is_newest) for one in activity])
    _register_and_score(deployment, variants, n_processes)
    bring(activity)
    alone = _alone(deployment, variants[n_variants:])
    maturing = _monday(deployment, folder, n_variants, n_processes)
    if maturing.n_evaluated != n_variants * len(_PAST_WEEKS):
        raise RuntimeError(f"{maturing.n_evaluated} batches of {n_variants} variants were evaluated")
    bring(
        [
            one.with_columns(total_handle=pl.col("total_handle") + pl.when(is_newest).then(1.0).otherwise(0.0))
            for one in activity
        ]
    )
    ordinary = _monday(deployment, folder, n_variants, n_processes)
    if ordinary.n_evaluated:
        raise RuntimeError(f"{ordinary.n_evaluated} batches were evaluated twice")
    counted = drift.measure(n_variants, n_rows)
    counting = sum(counted[f"seconds_{part}"] for part in ("read", "profile", "compare"))
    return Month(n_variants, n_processes, counting, maturing, ordinary, alone)


def _monday(deployment: Deployment, folder: Path, n_variants: int, n_processes: int) -> Monday:
    started, children = time.perf_counter(), os.times()
    parts = _in_processes(["benchmarks.evaluating"], n_variants, n_processes)
    evaluated, ended = time.perf_counter(), os.times()
    deployment.fleet_monitor().reconcile(datetime.now(UTC), [])
    monitored = time.perf_counter()
    write_report(deployment.database, folder / "report.html", week=None, now=datetime.now(UTC), mlflow_ui="")
    reported = time.perf_counter()
    totals = {name: sum(part[name] for part in parts) for name in parts[0]}
    n_evaluated = int(totals["evaluated"])
    return Monday(
        evaluation=evaluated - started,
        ingestion=totals["ingestion"] / n_processes / cores(),
        processors=sum(getattr(ended, name) - getattr(children, name) for name in ("children_user", "children_system")),
        monitoring=monitored - evaluated,
        reporting=reported - monitored,
        n_evaluated=n_evaluated,
        accounts=totals["accounts"] / (n_evaluated or 1),
        matured=totals["matured"] / (n_evaluated or 1),
        new_facts=totals["new_facts"] / n_variants,
        peak_mb=max(part["peak_mb"] for part in parts),
    )


def _in_processes(command: Sequence[str], n_variants: int, n_processes: int) -> list[dict[str, float]]:
    """Have processes do something with a part of the fleet each; returns what they printed."""
    bounds = [n_variants * i // n_processes for i in range(n_processes + 1)]
    environment = os.environ | {"POLARS_MAX_THREADS": "1"}  # as Dagster's processes have it
    begun = [
        subprocess.Popen([sys.executable, "-m", *command, str(low), str(high)], stdout=subprocess.PIPE, env=environment)
        for low, high in itertools.pairwise(bounds)
    ]
    return [json.loads(process.communicate()[0]) for process in begun]


def _alone(deployment: Deployment, variants: Sequence[Variant]) -> dict[str, float]:
    promoter = deployment.promoter()
    promoter = promoter.for_fleet(variants, promoter.registry.aliases())
    parts: dict[str, float] = defaultdict(float)
    services = {name: Timed(getattr(promoter.evaluator, name), parts) for name in ("sources", "history", "results")}
    registry = Timed(promoter.registry, parts)
    timed = replace(promoter, evaluator=replace(promoter.evaluator, registry=registry, **services))
    started = time.perf_counter()
    for variant in variants:
        evaluate_variant(timed, variant)
    parts["rest"] = time.perf_counter() - started - sum(parts.values())
    return {name: took * 1e3 / len(variants) for name, took in parts.items()}


def _simulated(n_rows: int) -> list[pl.DataFrame]:
    n_accounts = round(n_rows * _ACCOUNTS_PER_ROW)
    return [
        simulate_activity(n_accounts=n_accounts, first_month=date(2025, 2, 1), n_months=21, seed=seed)
        for seed in range(_DATASETS)
    ]


def _register_and_score(deployment: Deployment, variants: Sequence[Variant], n_processes: int) -> None:
    """Register the variants, score a past week, copy it into the others, and ingest all activity."""
    _in_processes(["benchmarks.monitoring", "--prepare"], len(variants), n_processes)
    first, *others = _PAST_WEEKS
    this_week = monday_of(datetime.now(UTC).date())
    for week in [*others, this_week - timedelta(weeks=1), this_week]:
        _copy_week(deployment.database, first, week)
    list(in_threads(deployment.promoter().evaluator.ingest, variants))
    # What was loaded just now has long been vacuumed when its labels mature; here PostgreSQL would do it meanwhile.
    for url, role in ((deployment.database, OWNER), (deployment.mlflow_database, None)):
        with create_engine(url, role=role).execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.exec_driver_sql("VACUUM (ANALYZE)")


def prepare(deployment: Deployment, variants: Sequence[Variant]) -> dict[str, float]:
    """Register some variants and score a past week of them."""
    with contextlib.redirect_stdout(io.StringIO()):
        log_variants(deployment, variants, None)
    keys = [variant.key for variant in variants]
    for _, result in score_fleet(
        deployment.scorer(), keys, week_request(_PAST_WEEKS[0]), lambda outcome, _: outcome.batch_id
    ):
        if isinstance(result, BaseException):
            raise result
    return {}


def _copy_week(url: sa.URL, first: date, week: date) -> None:
    """Publish every batch of a week for another one, as if it had been scored then."""
    engine = create_engine(url)
    own = {"batch_id", "scored_week", "as_of", "at_risk_since", "is_sample"}  # the last two are computed
    batch, row = (
        [column["name"] for column in sa.inspect(engine).get_columns(table) if column["name"] not in own]
        for table in ("scoring_batches", "churn_predictions")
    )
    statements = (
        "SET LOCAL enable_nestloop = off",  # nobody has analyzed the new batches yet
        "SET LOCAL session_replication_role = replica",  # no trigger: nobody else may add rows to a published batch
        "SELECT open_week(:week)",
        f"INSERT INTO scoring_batches (scored_week, as_of, {', '.join(batch)}) "  # noqa: S608 the table's own names
        f"SELECT :week, :week + 6, {', '.join(batch)} FROM scoring_batches WHERE scored_week = :first",
        f"INSERT INTO churn_predictions (scored_week, batch_id, {', '.join(row)}) "  # noqa: S608
        f"SELECT :week, new.batch_id, {', '.join(f'p.{name}' for name in row)} "
        "FROM churn_predictions AS p JOIN scoring_batches AS old USING (batch_id) "
        "JOIN scoring_batches AS new ON new.variant = old.variant AND new.scored_week = :week "
        "WHERE p.scored_week = :first ORDER BY new.batch_id",
    )
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement), {"week": week, "first": first})


def report(month: Month, took_s: float) -> str:
    """Write down what was measured."""
    when, load = datetime.now(UTC), os.getloadavg()[0]
    maturing, ordinary = month.maturing, month.ordinary

    def row(name: str, on_maturing: float, on_ordinary: float) -> tuple[str, ...]:
        mean = (on_maturing + 3 * on_ordinary) / 4
        return name, f"{on_ordinary:.1f}", f"{on_maturing:.1f}", f"{mean:.1f}"

    mondays = (maturing, ordinary)
    evaluation = [one.evaluation - one.ingestion for one in mondays]
    in_all = [
        month.counting + own + one.monitoring + one.reporting for own, one in zip(evaluation, mondays, strict=True)
    ]
    with_ingestion = [own + one.ingestion for own, one in zip(in_all, mondays, strict=True)]
    parts = [(name, f"{ms:.1f}") for name, ms in sorted(month.alone.items(), key=lambda pair: -pair[1])]
    seconds = [
        row("counting rows into bins, comparing and flagging", month.counting, month.counting),
        row("evaluating, and starting the processes for it", *evaluation),
        row("detecting drift and problems", *(one.monitoring for one in mondays)),
        row("writing the report", *(one.reporting for one in mondays)),
        row("**in all**", *in_all),
        row("**the same, with ingesting the extracts**", *with_ingestion),
        row("CPU time of the evaluating processes", *(one.processors for one in mondays)),
    ]
    columns = ("seconds", "an ordinary Monday", "the Monday on which a month matures", "mean of the four")
    return "\n".join(
        [
            "# Monitoring a fleet for a month",
            "",
            f"Written by `python -m benchmarks.monitoring` on {when:%Y-%m-%d %H:%M} UTC, {code_version()}, load "
            f"{load:.1f} at the end of a run of {took_s / 60:.0f} minutes on {os.cpu_count()} cores, which PostgreSQL, "
            f"S3 and {month.processes} evaluating processes share: {month.variants:,} variants, their batches of "
            f"{maturing.accounts:,.0f} accounts, of which {maturing.matured:,.0f} had a label. Labels cover months: "
            f"all {maturing.n_evaluated:,} batches of one matured on one Monday, none on the three others.",
            "",
            markdown_table(columns, seconds, "-rrr"),
            "",
            f"Ingestion added {ordinary.new_facts:,.0f} and {maturing.new_facts:,.0f} facts to each variant's history, "
            "which training reads too; it is part of the evaluation job. What Dagster logs of each "
            "variant is in none of these figures. No process took more than "
            f"{max(one.peak_mb for one in mondays):,.0f} MB. On the Monday on which a month matures, on one thread "
            "with nothing beside it:",
            "",
            markdown_table(("part", "ms a variant"), parts, "-r"),
            "",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write down and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.monitoring", description=__doc__)
    parser.add_argument("--variants", type=int, default=2_000)
    parser.add_argument("--rows", type=int, default=1_000, help="accounts of each variant's batch, about")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--prepare", type=int, nargs=2, metavar=("FIRST", "END"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.prepare:
        with open_deployment(load_settings()) as deployment:
            print(json.dumps(prepare(deployment, fleet(args.prepare[1])[args.prepare[0] :])))
        return
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="churn-bench-") as folder:
        Path(folder).chmod(0o755)
        with bench_environment(Path(folder) / "home", "seaweedfs"), open_deployment(load_settings()) as deployment:
            list(set_up_server(*deployment.databases))
            month = measure(deployment, Path(folder), args.variants, args.rows, args.processes)
    text = report(month, time.monotonic() - started)
    (Path(__file__).parent / "MONITORING.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
