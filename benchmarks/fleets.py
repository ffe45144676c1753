"""Parts of the benchmark that are about a fleet: its weekly job, all cores, and training; and the targets they have.

A fleet's time counts against one variant with as many rows, and at the margin: what each variant adds to a run.
"""

import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import boto3
import polars as pl
import psutil
import sqlalchemy as sa

from benchmarks.runs import call, run_fleet
from churn.data.features import derive, is_active, pack, plan_encoding, unpack
from churn.database.predictions import read_current
from churn.variants import Variant
from churn.wording import markdown_table
from tests.support.services import (
    BUCKET,
    NAMES_KEY,
    SAMPLE_KEY,
    model_files,
    parquet_bytes,
    simulated_rows,
    upload_fleet,
    upload_variant,
)
from tests.support.simulated import simulate_activity

FLEET_ROWS = 5_000
FLEET_DATASETS = 20
LONE_RUNS = 3
TRAINED_ACCOUNTS = 1_000
MANY_CORES = (16, 64)
_MONTH = date(2026, 9, 1)
_WEEKS = (date(2026, 10, 26), date(2026, 10, 19), date(2026, 10, 12), date(2026, 10, 5))
_LOG, _TRAIN = "experiment_tracking/log_model.py", "experiment_tracking/train_model.py"


@dataclass(frozen=True)
class Target:
    """A claim and what was measured of it."""

    claim: str
    needed: str
    measured: str
    is_met: bool | None


def fleet_inputs() -> list[bytes]:
    """Make the inputs that a fleet's variants have in turn: the last month that was over before the weeks scored."""
    return [parquet_bytes(_rows(seed)) for seed in range(FLEET_DATASETS)]


def _rows(seed: int) -> pl.DataFrame:
    return simulated_rows(FLEET_ROWS, seed).with_columns(activity_month=pl.lit(_MONTH))


def fleet_model() -> dict[str, bytes]:
    """Return model files whose sample is of the fleet's own accounts at risk, as a trained model's: nothing drifted."""
    files = model_files()
    names = json.loads(files[NAMES_KEY])
    drawn = pl.concat([rows.filter(is_active(rows)).sample(100, seed=0) for rows in map(_rows, range(FLEET_DATASETS))])
    rows = derive(drawn.with_columns(account_id=pl.arange(pl.len()) + 1), _WEEKS[0])
    encoding = plan_encoding(names, rows.columns)
    matrix = unpack(pack(rows, encoding), encoding)
    return files | {SAMPLE_KEY: pl.DataFrame(matrix, schema=names, orient="row").write_ndjson().encode()}


def register(variants: Sequence[Variant], folder: Path, name: str = "fleet") -> dict[str, float]:
    """Upload and register variants; returns what the registration took, without the upload."""
    upload_fleet(variants, fleet_inputs(), fleet_model())
    (folder / name).write_text("\n".join(variant.key for variant in variants))
    return call(_LOG, "--all", str(folder / name))


def bench_fleet(n_variants: int, folder: Path) -> dict[str, Any]:
    """Register, score, break and resume a fleet; score one variant of as many rows, and a few in runs of their own."""
    variants = [Variant(company=f"c{i:04}") for i in range(n_variants)]
    n_few, keys = n_variants // 10, [variant.key for variant in variants]
    few = register(variants[:n_few], folder, "few")
    every = register(variants, folder)

    spoiled = variants[:: max(n_variants // 100, 1)][:100]
    client, inputs = boto3.client("s3"), fleet_inputs()

    def put(variant: Variant, body: bytes) -> None:
        client.put_object(Bucket=BUCKET, Key=f"{variant.prefix}data/churn/activity.parquet", Body=body)

    for variant in spoiled:
        put(variant, b"PAR1 no more")
    first, second, third, last = (week.isoformat() for week in _WEEKS)
    failed = run_fleet(keys[0], keys[-1], first, n_failed=len(spoiled))  # also fills the caches
    for variant in spoiled:
        put(variant, inputs[0])
    resumed = run_fleet(keys[0], keys[-1], first, str(failed["run_id"]))
    runs = {"few": run_fleet(keys[0], keys[n_few - 1], second), "all": run_fleet(keys[0], keys[-1], third)}
    lone = [run_fleet(key, key, last) for key in keys[:LONE_RUNS]]
    return {
        "n_few": n_few,
        "n_spoiled": len(spoiled),
        "registration": every["seconds"] / (n_variants - n_few),
        "few_registration": few["seconds"] / n_few,
        "lone": statistics.mean(run["seconds"] for run in lone),
        "lone_run": statistics.mean(run["run_seconds"] for run in lone),
        "runs": runs | {"failed": failed, "resumed": resumed},
        "one": _one_variant(n_variants * FLEET_ROWS),
    }


def _one_variant(n_rows: int) -> dict[str, float]:
    """Score one variant of so many rows with reasons."""
    upload_variant(Variant(), simulated_rows(n_rows), model_files())
    call(_LOG)
    return call("-m", "benchmarks.single", "with reasons", str(n_rows))


def bench_cores(n_variants: int, folder: Path, database: sa.URL) -> dict[str, Any]:
    """Score a fleet with everything, PostgreSQL and S3 included, on one core, and on as many as there are."""
    variants = [Variant(company=f"p{i:04}") for i in range(n_variants)]
    keys = [variant.key for variant in variants]
    register(variants, folder, "pinned")
    weeks = iter(_WEEKS)
    run_fleet(keys[0], keys[-1], next(weeks).isoformat())  # fills the caches
    every = sorted(os.sched_getaffinity(0))
    found: dict[str, Any] = {"n_variants": n_variants, "n_cores": len(every)}
    for name, used in (("one", every[:1]), ("all", every)):
        with_servers = [*psutil.Process().children(recursive=True), *_postgres()]
        for process in (psutil.Process(), *with_servers):
            process.cpu_affinity(used)
        found[name] = run_with_rate(keys, next(weeks), database)
    return found


def _postgres() -> Iterator[psutil.Process]:
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "postgres":
            yield process


def run_with_rate(keys: Sequence[str], week: date, database: sa.URL) -> dict[str, float]:
    """Run the job over some variants; returns what it took, and the variants a second once its workers had started."""
    run = run_fleet(keys[0], keys[-1], week.isoformat())
    query = "SELECT published_at FROM scoring_batches WHERE scored_week = :week AND variant = ANY(:keys) ORDER BY 1"
    at = read_current(database, query, week=week, keys=list(keys))["published_at"].to_list()
    start = len(at) // 4
    return run | {"rate": (len(at) - 1 - start) / (at[-1] - at[start]).total_seconds()}


def bench_training(n_variants: int, folder: Path) -> dict[str, float]:
    """Train, gate and register a fleet of small variants."""
    variants = [Variant(company=f"t{i:04}") for i in range(n_variants)]
    histories = [
        parquet_bytes(simulate_activity(n_accounts=TRAINED_ACCOUNTS, first_month=date(2025, 1, 1), n_months=21, seed=i))
        for i in range(FLEET_DATASETS)
    ]
    upload_fleet(variants, histories, {})
    (folder / "trained").write_text("\n".join(variant.key for variant in variants))
    return {"n_variants": n_variants} | call(_TRAIN, "--all", str(folder / "trained"))


def serial_share(speedup: float, n_cores: int) -> float:
    """Return the share of the time on one core that more cores do not shorten, by Amdahl's law.

    >>> serial_share(2.0, 2), round(serial_share(1.6, 2), 3)
    (0.0, 0.25)
    """
    return max((n_cores / speedup - 1) / (n_cores - 1), 0.0)


def speedup_on(n_cores: int, share: float) -> float:
    """Return how many times faster so many cores are than one, if such a share of the work is serial.

    >>> speedup_on(2, 0.0), round(speedup_on(16, 0.05), 2)
    (2.0, 9.14)
    """
    return 1 / (share + (1 - share) / n_cores)


def margin(fleet: Mapping[str, Any], n_variants: int, what: str = "run_seconds") -> float:
    """Return the seconds that each variant beyond the few adds to a run."""
    runs = fleet["runs"]
    return float((runs["all"][what] - runs["few"][what]) / (n_variants - fleet["n_few"]))


def fleet_targets(fleet: Mapping[str, Any], n_variants: int) -> Iterator[Target]:
    """Compare a fleet's figures with the targets."""
    if not fleet:
        return
    runs, one = fleet["runs"], fleet["one"]
    whole, each = runs["all"]["run_seconds"], margin(fleet, n_variants)
    against = whole / one["seconds"]
    claim = f"{n_variants:,} × {FLEET_ROWS:,} rows with reasons, warm, through the Dagster job, against one variant"
    yield Target(f"{claim} of {one['rows'] / 1e6:g} M rows", "≤ 4 ×", f"{against:.1f} ×", against <= 4)
    between = f"({fleet['n_few']:,} against {n_variants:,})"
    yield Target(
        f"time per variant of {FLEET_ROWS:,} rows at the margin {between}",
        "≤ 50 ms",
        f"{each * 1e3:.0f} ms",
        each <= 0.05,
    )
    less = fleet["lone"] / each
    yield Target("the same against a Dagster run per variant", "≥ 250 × less", f"{less:.0f} × less", less >= 250)
    took = fleet["registration"]
    yield Target(f"registering {n_variants:,}", "≤ 200 ms each", f"{took * 1e3:.0f} ms each", took <= 0.2)
    share, start = runs["resumed"]["run_seconds"] / whole, fleet["lone"] - fleet["lone_run"]
    needed = "≤ 6 % of the run, plus one process's start"
    measured = f"{share:.1%}; with the start of {start:.1f} s {runs['resumed']['seconds'] / whole:.1%}"
    yield Target(f"resume after {fleet['n_spoiled']} of {n_variants:,} failed", needed, measured, share <= 0.06)


def cores_targets(pinned: Mapping[str, Any]) -> Iterator[Target]:
    """Compare the speed on all cores with that on one."""
    if pinned and pinned["n_cores"] == 2:
        faster = pinned["all"]["rate"] / pinned["one"]["rate"]
        yield Target("two cores against one", "≥ 1.7 ×", f"{faster:.2f} ×", faster >= 1.7)


def training_targets(training: Mapping[str, float]) -> Iterator[Target]:
    """Extrapolate the training of 2,000 variants, from start to end."""
    if training:
        minutes = training["seconds"] / training["n_variants"] * 2_000 / 60
        claim = f"training, gating and registering 2,000 variants of {TRAINED_ACCOUNTS:,} accounts"
        n = f"{training['n_variants']:.0f} measured"
        yield Target(f"{claim} ({n})", "≤ 30 minutes", f"{minutes:.0f} minutes", minutes <= 30)


def fleet_lines(fleet: Mapping[str, Any], n_variants: int) -> list[str]:
    """Return the page's tables about a fleet."""
    sizes = {"all": n_variants, "few": fleet["n_few"], "failed": n_variants, "resumed": fleet["n_spoiled"]}
    names = {"failed": f"the first, of which {fleet['n_spoiled']} failed", "resumed": "resuming that one"}
    rows = [
        (
            names.get(name, f"{n:,} variants, warm"),
            f"{run['seconds']:.1f}",
            f"{run['run_seconds']:.1f}",
            f"{run['run_seconds'] / n * 1e3:.0f}",
            *(f"{run.get(f'cpu_{who}', 0) / n * 1e3:.0f}" for who in ("job", "workers", "postgres", "weed")),
            f"{run['tree_mb']:,.0f}",
        )
        for name, n in sizes.items()
        for run in (fleet["runs"][name],)
    ]
    heads = ("run", "process s", "run s", "ms a variant", "CPU ms: job", "workers", "PostgreSQL", "S3", "tree MB")
    one, lone = fleet["one"], fleet["lone"]
    return [
        "",
        f"## A fleet: {n_variants:,} variants of {FLEET_ROWS:,} rows through the Dagster job",
        "",
        "With reasons. Seconds of whole processes, imports included, and of the Dagster run within; CPU milliseconds a "
        "variant by who took them, the start included; the most memory that the tree of processes had at once (PSS).",
        "",
        markdown_table(heads, rows, "-rrrrrrrr"),
        "",
        f"One variant of {one['rows']:,} rows takes {one['seconds']:.1f} s and {one['tree_mb']:,.0f} MB. A run for one "
        f"variant takes {lone:.1f} s, {fleet['lone_run']:.1f} s of them in the run. Registering takes "
        f"{fleet['few_registration'] * 1e3:.0f} ms a variant for {fleet['n_few']:,}, and "
        f"{fleet['registration'] * 1e3:.0f} ms for the others.",
    ]


def cores_lines(pinned: Mapping[str, Any]) -> list[str]:
    """Return the page's part about cores."""
    one, every, n = pinned["one"], pinned["all"], pinned["n_cores"]
    faster = every["rate"] / one["rate"]
    share = serial_share(faster, n)
    job_ms = every["cpu_job"] / pinned["n_variants"] * 1e3
    rows = [
        (name, f"{run['run_seconds']:.1f}", f"{run['rate']:.1f}", f"{run['tree_mb']:,.0f}")
        for name, run in (("1", one), (str(n), every))
    ]
    predicted = ", ".join(f"{speedup_on(many, share):.1f} × on {many}" for many in MANY_CORES)
    return [
        "",
        f"## Cores: {pinned['n_variants']} variants of {FLEET_ROWS:,} rows, everything pinned",
        "",
        "S3 and PostgreSQL share the cores with the job; variants a second are counted from the first quarter on.",
        "",
        markdown_table(("cores", "run s", "variants/s", "tree MB"), rows, "rrrr"),
        "",
        f"{faster:.2f} × on {n} cores is a serial share of {share:.1%}, which predicts {predicted}. The one process "
        f"that writes Dagster's events takes {job_ms:.0f} ms of CPU a variant with its start: with databases and S3 on "
        "other machines, no number of cores makes a run faster than that.",
    ]
