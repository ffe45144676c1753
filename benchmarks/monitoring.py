"""Watching a fleet for a week: ``python -m benchmarks.monitoring``; writes ``benchmarks/MONITORING.md``.

On a real PostgreSQL, MLflow in it and SeaweedFS on this machine, every variant is registered, this week and a past one
of it are scored, and a new extract comes in. Then is done what the jobs of Monday morning do: in a process for each
core, over a part of the fleet each, the extract is added to the history, the batch is judged and MLflow told; and at
last the whole fleet is looked at for drift and everything else that is wrong. Before that a few variants go through
alone on one thread, each service's calls timed, and counting the rows for drift, which is part of scoring them, is
timed by :mod:`benchmarks.drift`.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks import drift
from benchmarks.services import bench_environment, model_files, parquet_bytes, peak_mb, upload_fleet
from churn.bootstrap import set_up_server
from churn.data.simulate import simulate_activity
from churn.deployment import Deployment, open_deployment
from churn.promotion import Promoter
from churn.provenance import code_version
from churn.settings import load_settings
from churn.threads import in_threads
from churn.variants import Variant
from churn.weeks import monday_of
from experiment_tracking.log_model import log_all

THREADS = 4  # as the op has them
_ALONE = 20
_DATASETS = 20
_PAST_WEEK = date(2026, 6, 29)
_NEWEST_MONTH = date(2026, 10, 1)
_ACCOUNTS_PER_ROW = 1.25  # some come only after the week that is scored


class Timed:
    """Stands before a service and sums up the seconds that each of its methods takes."""

    def __init__(self, service: Any, seconds: dict[str, float]) -> None:
        self._service, self._seconds = service, seconds

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._service, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self._seconds[f"{type(self._service).__name__}.{name}"] += time.perf_counter() - started

        return timed


@dataclass(frozen=True)
class Week:
    """What a week's watching of a fleet took.

    Attributes:
        seconds_counting: Reading references, counting batches into their bins, comparing and flagging.
        seconds_judging: From the start of the processes to the end of the last one.
        taking_in: The share of that in which extracts were added to histories.
        alone: Microseconds a variant by part, on one thread.
    """

    variants: int
    accounts: float
    matured: float
    new_facts: float
    processes: int
    seconds_counting: float
    seconds_judging: float
    taking_in: float
    seconds_looking: float
    alone: Mapping[str, int]
    peak_mb: float

    @property
    def seconds(self) -> float:
        return self.seconds_counting + self.seconds_judging + self.seconds_looking


def measure(deployment: Deployment, n_variants: int, n_rows: int, n_processes: int) -> Week:
    """Register, score, and do what a Monday's jobs do about it."""
    variants = _fleet(n_variants + _ALONE)
    _prepare(deployment, variants, n_rows)
    parts = _alone(deployment, variants[n_variants:])

    started = time.perf_counter()
    bounds = [n_variants * i // n_processes for i in range(n_processes + 1)]
    command = [sys.executable, "-m", "benchmarks.monitoring", "--judge"]
    judging = [
        subprocess.Popen([*command, str(low), str(high)], stdout=subprocess.PIPE)
        for low, high in itertools.pairwise(bounds)
    ]
    told = [json.loads(process.communicate()[0]) for process in judging]
    judged = time.perf_counter()
    deployment.watch().look(datetime.now(UTC), [])
    ended = time.perf_counter()
    n_judged = sum(one["judged"] for one in told)
    if n_judged != n_variants:
        raise RuntimeError(f"{n_judged} of {n_variants} variants were judged")
    counted = drift.measure(n_variants, n_rows)
    at_work = sum(one["seconds"] for one in told)
    return Week(
        variants=n_variants,
        accounts=sum(one["accounts"] for one in told) / n_variants,
        matured=sum(one["matured"] for one in told) / n_variants,
        new_facts=sum(one["new_facts"] for one in told) / n_variants,
        processes=n_processes,
        seconds_counting=sum(counted[f"seconds_{part}"] for part in ("read", "profile", "compare")),
        seconds_judging=judged - started,
        taking_in=sum(one["taking_in"] for one in told) / at_work,
        seconds_looking=ended - judged,
        alone=parts,
        peak_mb=max(one["peak_mb"] for one in told),
    )


def judge(deployment: Deployment, variants: Sequence[Variant]) -> dict[str, float]:
    """Take in, judge and compare some variants, as one run of the weekly job does; seconds are all threads'."""
    promoter, today = _for_fleet(deployment, variants), datetime.now(UTC).date()

    def one(variant: Variant) -> tuple[float, ...]:
        started = time.perf_counter()
        taken = promoter.judge.take_in(variant)
        taken_in = time.perf_counter()
        (judged,) = promoter.judge.judge_batches(variant, today, taken.facts)
        promoter.standing(variant, taken.facts)
        counts = 1, judged.n_accounts, judged.n_matured, taken.n_added
        return *counts, taken_in - started, time.perf_counter() - started

    totals = [sum(column) for column in zip(*in_threads(one, variants, THREADS), strict=True)]
    names = ("judged", "accounts", "matured", "new_facts", "taking_in", "seconds")
    return dict(zip(names, totals, strict=True)) | {"peak_mb": peak_mb()}


def _for_fleet(deployment: Deployment, variants: Sequence[Variant]) -> Promoter:
    promoter = deployment.promoter()
    return promoter.for_fleet(variants, promoter.registry.aliases())


def _alone(deployment: Deployment, variants: Sequence[Variant]) -> dict[str, int]:
    promoter = _for_fleet(deployment, variants)
    parts: dict[str, float] = defaultdict(float)
    services = {name: Timed(getattr(promoter.judge, name), parts) for name in ("sources", "history", "results")}
    registry = Timed(promoter.registry, parts)
    timed = replace(promoter, judge=replace(promoter.judge, registry=registry, **services))
    today = datetime.now(UTC).date()
    started = time.perf_counter()
    for variant in variants:
        taken = timed.judge.take_in(variant)
        timed.judge.judge_batches(variant, today, taken.facts)
        timed.standing(variant, taken.facts)
    parts["rest"] = time.perf_counter() - started - sum(parts.values())
    return {name: round(took * 1e6 / len(variants)) for name, took in sorted(parts.items())}


def _fleet(n_variants: int) -> list[Variant]:
    return [Variant(company=f"c{i:04}") for i in range(n_variants)]


def _prepare(deployment: Deployment, variants: Sequence[Variant], n_rows: int) -> None:
    """Register the variants, score both weeks on what came before the newest month and take it in; then all comes."""
    activity = [
        simulate_activity(
            n_accounts=round(n_rows * _ACCOUNTS_PER_ROW), first_month=date(2025, 2, 1), n_months=21, seed=seed
        )
        for seed in range(_DATASETS)
    ]
    before = pl.col("activity_month") < _NEWEST_MONTH
    model = model_files()
    upload_fleet(variants, [parquet_bytes(one.filter(before)) for one in activity], model)
    with contextlib.redirect_stdout(io.StringIO()):
        failed = log_all(deployment, variants, None)
    if failed:
        raise RuntimeError(f"{failed} were not registered")
    keys = [variant.key for variant in variants]
    for week in (_PAST_WEEK, monday_of(datetime.now(UTC).date())):
        for _, result in deployment.scorer().score_fleet(keys, week, None, lambda outcome, _: outcome.batch_id):
            if isinstance(result, BaseException):
                raise result
    list(in_threads(deployment.judge().take_in, variants, THREADS))
    upload_fleet(variants, [parquet_bytes(one) for one in activity], model)


def report(week: Week, took_s: float) -> str:
    """Write down what was measured."""
    when, load = datetime.now(UTC), os.getloadavg()[0]
    rows = [
        ("counting rows into bins, comparing and flagging", week.seconds_counting),
        (f"the judging job, {week.processes} processes", week.seconds_judging),
        ("looking at the fleet", week.seconds_looking),
        ("**all**", week.seconds),
    ]
    parts = sorted(week.alone.items(), key=lambda pair: -pair[1])
    return "\n".join(
        [
            "# Watching a fleet for a week",
            "",
            f"Written by `python -m benchmarks.monitoring` on {when:%Y-%m-%d %H:%M} UTC, {code_version()}, load "
            f"{load:.1f} at the end of a run of {took_s / 60:.0f} minutes on {os.cpu_count()} cores: "
            f"{week.variants:,} variants of {week.accounts:,.0f} accounts, of which {week.matured:,.0f} had a label; "
            f"{week.new_facts:,.0f} new facts each.",
            "",
            "| what | seconds |",
            "|---|---:|",
            *(f"| {name} | {seconds:.1f} |" for name, seconds in rows),
            "",
            f"Of the judging job, {week.taking_in:.0%} went into adding the week's extracts to the histories, which "
            f"training reads too, and {1 - week.taking_in:.0%}, {(1 - week.taking_in) * week.seconds_judging:.1f} s, "
            f"into judging. No process took more than {week.peak_mb:,.0f} MB. Without others beside it, on one thread:",
            "",
            "| part | ms a variant |",
            "|---|---:|",
            *(f"| {name} | {us / 1000:.1f} |" for name, us in parts),
            "",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write down and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.monitoring", description=__doc__)
    parser.add_argument("--variants", type=int, default=2_000)
    parser.add_argument("--rows", type=int, default=1_000, help="accounts of each variant's batch, about")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--judge", type=int, nargs=2, metavar=("FIRST", "END"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.judge:
        first, end = args.judge
        with open_deployment(load_settings()) as deployment:
            print(json.dumps(judge(deployment, _fleet(end)[first:])))
        return
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="churn-bench-") as folder:
        Path(folder).chmod(0o755)
        with bench_environment(Path(folder) / "home", "seaweedfs"), open_deployment(load_settings()) as deployment:
            list(set_up_server(deployment))
            week = measure(deployment, args.variants, args.rows, args.processes)
    text = report(week, time.monotonic() - started)
    (Path(__file__).parent / "MONITORING.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
