"""Every comparison in one run, written to ``benchmarks/RESULTS.md`` with a chart: ``python -m benchmarks``.

Figures are ratios against a baseline measured in the same run, each in a process of its own. Four parts are measured:
one variant (``--rows``), reasons (``--reasons``), a fleet (``--variants``), a fleet on Ray (``--cluster``). A part that
a run leaves out (``--rows`` without a number, ``--variants 0``) stays as it was measured last, with its date;
``results.json`` keeps them.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import sqlalchemy as sa

from churn.database.predictions import read_current
from churn.deployment.code_version import code_version
from churn.deployment.services import open_deployment
from churn.deployment.settings import load_settings
from churn.variants import Variant
from churn.wording import markdown_table
from churn.workflows.set_up import set_up_server
from tests.support.ray_nodes import ray_cluster
from tests.support.services import (
    BUCKET,
    WEEK,
    bench_environment,
    model_files,
    parquet_bytes,
    simulated_rows,
    upload_fleet,
    upload_variant,
)

FOLDER = Path(__file__).parent
MILLION = 1_000_000
NAIVE_MOST_ROWS = MILLION
REPEATS = 3
FLEET_ROWS = 5_000
FLEET_DATASETS = 20
LONE_RUNS = 10
CLUSTERS = {"one node": 1, "two nodes": 2}  # the machine's cores shared out among them
LONE_REGISTRATIONS = 3
SMALL_BATCH = 5_000
REASONS_SIZES = (SMALL_BATCH, 10_000, MILLION)


@dataclass(frozen=True)
class Single:
    """One way of scoring one variant; seconds are the median of the repeats."""

    way: str
    rows: int
    seconds: float
    peak_mb: float

    @property
    def us_per_row(self) -> float:
        return self.seconds / self.rows * 1e6


@dataclass(frozen=True)
class Reasons:
    """One way of explaining a batch exactly; the error is the largest difference from XGBoost's values."""

    way: str
    rows: int
    explained: int
    rows_per_second: float
    peak_mb: float
    error: float


@dataclass(frozen=True)
class Results:
    """All that was measured, in this run or an earlier one; what never was is empty.

    Attributes:
        measured: When and how each part was measured, by its name.
    """

    singles: Sequence[Single]
    stages: dict[str, float]
    reasons: Sequence[Reasons]
    fleet: dict[str, float]
    n_variants: int
    cluster: Mapping[str, Any]
    measured: Mapping[str, str]


@dataclass(frozen=True)
class Target:
    """A claim and what was measured of it."""

    claim: str
    needed: str
    measured: str
    is_met: bool | None


def main(argv: Sequence[str] | None = None) -> None:
    """Run everything and write it down."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 1_000_000, 10_000_000])
    parser.add_argument("--variants", type=int, default=2_000, help="variants of the fleet; 0 leaves it out")
    parser.add_argument("--cluster", type=int, default=200, help="variants of the fleet on Ray; 0 leaves it out")
    parser.add_argument("--reasons", type=int, nargs="*", default=list(REASONS_SIZES), help="rows to explain")
    parser.add_argument("--home", type=Path, help="where the services keep their files; default: a temporary folder")
    args = parser.parse_args(argv)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="churn-bench-") as folder:
        Path(folder).chmod(0o755)
        with bench_environment((args.home or Path(folder)) / "home"), open_deployment(load_settings()) as deployment:
            list(set_up_server(*deployment.databases))
            stages: dict[str, float] = {}
            singles = list(bench_singles(args.rows, stages))
            reasons = list(bench_reasons(args.reasons))
            fleet = bench_fleet(args.variants, Path(folder)) if args.variants else {}
            cluster = bench_cluster(args.cluster, Path(folder), deployment.database) if args.cluster else {}
    measured = {
        "one variant": {"singles": [asdict(one) for one in singles], "stages": stages} if singles else None,
        "reasons": [asdict(one) for one in reasons] or None,
        "fleet": fleet | {"n_variants": args.variants} if fleet else None,
        "cluster": cluster or None,
    }
    write_results(keep(measured, minutes=(time.monotonic() - started) / 60))


def keep(parts: Mapping[str, Any], *, minutes: float) -> Results:
    """Put the parts that were measured now beside those measured earlier, and return all of them."""
    path = FOLDER / "results.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    how = (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {code_version()[:12]}, load {os.getloadavg()[0]:.1f} at the "
        f"end of a run of {minutes:.0f} minutes"
    )
    kept |= {name: {"how": how, "figures": figures} for name, figures in parts.items() if figures is not None}
    path.write_text(json.dumps(kept, indent=1) + "\n")
    parts_of = ("one variant", "reasons", "fleet", "cluster")
    single, reasons, fleet, cluster = (kept.get(name, {}).get("figures") for name in parts_of)
    return Results(
        singles=[Single(**one) for one in single["singles"]] if single else [],
        stages=single["stages"] if single else {},
        reasons=[Reasons(**one) for one in reasons or []],
        fleet=fleet or {},
        n_variants=fleet["n_variants"] if fleet else 0,
        cluster=cluster or {},
        measured={name: part["how"] for name, part in kept.items()},
    )


def bench_singles(sizes: Sequence[int], stages: dict[str, float]) -> Iterator[Single]:
    """Time each way at each size, the repeats of the ways taken in turn; and fill in the stages of a million rows."""
    model = model_files()
    for n_rows in sizes:
        _upload_rows(n_rows, model)
        if n_rows == sizes[0]:
            call("experiment_tracking/log_model.py")
        seen: dict[str, list[dict[str, float]]] = {}
        for repeat in range(REPEATS):
            for way in ("limit", "ours", "with reasons", "naive"):
                if way != "naive" or (n_rows <= NAIVE_MOST_ROWS and repeat == 0):
                    seen.setdefault(way, []).append(call("-m", "benchmarks.single", way, str(n_rows)))
        if n_rows == MILLION:
            stages.update(call("-m", "benchmarks.single", "stages", str(n_rows)))
        for way, runs in seen.items():
            seconds = statistics.median(run["seconds"] for run in runs)
            yield Single(way, n_rows, seconds, max(run["peak_mb"] for run in runs))


def _upload_rows(n_rows: int, model: dict[str, bytes]) -> None:
    activity = simulated_rows(n_rows)
    upload_variant(Variant(), activity, model)
    if n_rows <= NAIVE_MOST_ROWS:
        body = activity.write_ndjson().encode()
        boto3.client("s3").put_object(Bucket=BUCKET, Key="naive/activity.jsonl", Body=body)


def bench_reasons(sizes: Sequence[int]) -> Iterator[Reasons]:
    """Time each way of explaining at each size, the repeats in turn."""
    for n_rows in sizes:
        seen: dict[str, list[dict[str, float]]] = {}
        for repeat in range(REPEATS):
            for way in ("ours", "pred_contribs", "shap", "woodelf"):
                if repeat == 0 or way == "ours" or n_rows <= SMALL_BATCH:
                    seen.setdefault(way, []).append(call("-m", "benchmarks.reasons", way, str(n_rows)))
        for way, runs in seen.items():
            speed = statistics.median(run["rows"] / run["seconds"] for run in runs)
            explained = int(runs[0]["rows"])
            yield Reasons(way, n_rows, explained, speed, max(run["peak_mb"] for run in runs), runs[0]["error"])


def bench_fleet(n_variants: int, folder: Path) -> dict[str, float]:
    """Register, score, break and resume a fleet, and do some of it one by one for comparison."""
    variants = [Variant(company=f"c{i:04}") for i in range(n_variants)]
    inputs = _fleet_inputs()
    upload_fleet(variants, inputs, model_files())
    keys = [variant.key for variant in variants]
    lone_registration = [
        timed("experiment_tracking/log_model.py", "--company", str(variant.company))
        for variant in variants[:LONE_REGISTRATIONS]
    ]
    (folder / "fleet").write_text("\n".join(keys))
    registration = timed("experiment_tracking/log_model.py", "--all", str(folder / "fleet"))

    lone = [run_fleet(key, key, next_week()) for key in keys[:LONE_RUNS]]
    tenth = run_fleet(keys[0], keys[n_variants // 10 - 1], next_week())
    whole = run_fleet(keys[0], keys[-1], next_week())

    spoiled = variants[:: max(n_variants // 100, 1)][:100]
    client = boto3.client("s3")
    for variant in spoiled:
        client.put_object(Bucket=BUCKET, Key=f"{variant.prefix}data/churn/activity.parquet", Body=b"PAR1 no more")
    week = next_week()
    failed = run_fleet(keys[0], keys[-1], week, n_failed=len(spoiled))
    for variant in spoiled:
        client.put_object(Bucket=BUCKET, Key=f"{variant.prefix}data/churn/activity.parquet", Body=inputs[0])
    resumed = run_fleet(keys[0], keys[-1], week, str(failed["run_id"]))
    return {
        "n_spoiled": len(spoiled),
        "lone_registration": statistics.mean(lone_registration),
        "registration": registration / max(n_variants - LONE_REGISTRATIONS, 1),
        "lone": statistics.mean(run["seconds"] for run in lone),
        "tenth": tenth["seconds"],
        "tenth_run": tenth["run_seconds"],
        "tenth_peak_mb": tenth["peak_mb"],
        "whole": whole["seconds"],
        "whole_run": whole["run_seconds"],
        "whole_peak_mb": whole["peak_mb"],
        "failed": failed["seconds"],
        "failed_run": failed["run_seconds"],
        "resumed": resumed["seconds"],
        "resumed_run": resumed["run_seconds"],
        "lone_run": statistics.mean(run["run_seconds"] for run in lone),
    }


def _fleet_inputs() -> list[bytes]:
    return [parquet_bytes(simulated_rows(FLEET_ROWS, seed)) for seed in range(FLEET_DATASETS)]


def bench_cluster(n_variants: int, folder: Path, database: sa.URL) -> dict[str, Any]:
    """Score a fleet, and a large variant, by the local engine and on Ray, by the same number of cores."""
    variants, large = [Variant(company=f"r{i:04}") for i in range(n_variants)], Variant(company="rlarge")
    model = model_files()
    upload_fleet(variants, _fleet_inputs(), model)
    upload_variant(large, simulated_rows(MILLION), model)
    keys = [variant.key for variant in variants]
    (folder / "cluster").write_text("\n".join([*keys, large.key]))
    call("experiment_tracking/log_model.py", "--all", str(folder / "cluster"))
    run_fleet(keys[0], large.key, next_week())  # from now on all models are in the cache
    n_cores = os.cpu_count() or 1
    engines = {"local": _bench_engine(keys, large.key, database)}
    for name, n_nodes in CLUSTERS.items():
        with ray_cluster(*[max(n_cores // n_nodes, 1)] * n_nodes) as cluster:
            os.environ["CHURN_RAY_ADDRESS"] = cluster.address
            engines[name] = _bench_engine(keys, large.key, database)
            del os.environ["CHURN_RAY_ADDRESS"]
    return {"n_variants": n_variants, "n_cores": n_cores, "engines": engines}


def _bench_engine(keys: Sequence[str], large: str, database: sa.URL) -> dict[str, float]:
    """Return the seconds of Dagster runs over a fleet and a large variant, and the variants a second once it runs."""
    week = next_week()
    whole, lone = run_fleet(keys[0], keys[-1], week), run_fleet(large, large, next_week())
    query = "SELECT published_at FROM scoring_batches WHERE scored_week = :week ORDER BY 1"
    at = read_current(database, query, week=week)["published_at"].to_list()
    first = len(at) // 4  # the workers' start is over
    rate = (len(at) - 1 - first) / (at[-1] - at[first]).total_seconds()
    return {"whole": whole["run_seconds"], "large": lone["run_seconds"], "rate": rate}


def _mondays() -> Iterator[str]:
    """Yield weeks that nothing was scored for, so that each run writes as the first of its week does."""
    week = WEEK
    while True:
        week -= timedelta(weeks=1)
        yield week.isoformat()


_WEEKS = _mondays()


def next_week() -> str:
    """Return a week of its own for a run."""
    return next(_WEEKS)


def call(*command: str) -> dict[str, float]:
    """Run a Python command to its end; returns the JSON object that it printed last, or none."""
    print("  ".join(command), end="  ", flush=True)
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    said: dict[str, float] = json.loads(last) if last.startswith("{") else {}
    print(f"{said.get('seconds', 0):.1f} s", flush=True)
    return said


def run_fleet(first: str, last: str, week: str, *resumed: str, n_failed: int = 0) -> dict[str, float]:
    """Run the job over a range of variants; a run that did not end as expected is no measurement."""
    said = call("-m", "benchmarks.fleet", first, last, week, *resumed)
    if said["n_failed"] != n_failed:
        raise SystemExit(f"{said['n_failed']} variants of {first} to {last} failed, not {n_failed}; see {said}")
    return said


def timed(*command: str) -> float:
    """Run a Python command to its end; returns its seconds, start-up included."""
    started = time.perf_counter()
    call(*command)
    return time.perf_counter() - started


def targets(results: Results) -> list[Target]:
    """Hold what was measured against what was wanted."""
    return [
        *_single_targets(results.singles),
        *_reasons_targets(results.reasons),
        *_fleet_targets(results),
        *_cluster_targets(results.cluster),
    ]


def _single_targets(singles: Sequence[Single]) -> Iterator[Target]:
    by = {(single.way, single.rows): single for single in singles}
    ten = 10 * MILLION
    if ("ours", MILLION) in by:
        ours, limit = by["ours", MILLION], by["limit", MILLION]
        faster = by["naive", MILLION].seconds / ours.seconds
        yield Target("1 M rows, against the naive way", "at least 30 ×", f"{faster:.1f} ×", faster >= 30)
        over = ours.seconds / limit.seconds
        yield Target("1 M rows, against the limit", "at most 1.25 × its time", f"{over:.2f} ×", over <= 1.25)
        dearer = by["with reasons", MILLION].seconds / ours.seconds
        yield Target("1 M rows, with reasons against without", "at most 3 × its time", f"{dearer:.2f} ×", dearer <= 3)
        if ("ours", ten) in by:
            share = ours.us_per_row / by["ours", ten].us_per_row
            peak = max(by["ours", ten].peak_mb, by["with reasons", ten].peak_mb)
            yield Target("10 M rows, rows/s against 1 M", "at least 0.9 ×", f"{share:.2f} ×", share >= 0.9)
            yield Target("10 M rows, peak memory", "under 1.5 GB", f"{peak / 1024:.2f} GB", peak < 1536)


def _reasons_targets(reasons: Sequence[Reasons]) -> Iterator[Target]:
    by = {(one.way, one.rows): one for one in reasons}
    for rows, least, what in ((MILLION, 100, "1 M rows"), (SMALL_BATCH, 20, "5,000 rows and a fresh model")):
        if ("ours", rows) in by:
            faster = by["ours", rows].rows_per_second / by["pred_contribs", rows].rows_per_second
            yield Target(
                f"explaining {what}, against pred_contribs", f"at least {least} ×", f"{faster:.0f} ×", faster >= least
            )


def _fleet_targets(results: Results) -> list[Target]:
    fleet, n_variants = results.fleet, results.n_variants
    found: list[Target] = []
    if fleet:
        lone = fleet["lone"] * n_variants / fleet["whole"]
        growth = (fleet["whole"] / n_variants) / (fleet["tenth"] / (n_variants // 10))
        resumed = fleet["resumed_run"] / fleet["whole_run"]
        with_start = fleet["resumed"] / fleet["whole"]
        registered = fleet["lone_registration"] / fleet["registration"]
        one_by_one = f"{n_variants:,} variants against a run each ({LONE_RUNS} run, the rest extrapolated)"
        found += [
            Target(one_by_one, "at least 40 × less time", f"{lone:.0f} ×", lone >= 40),
            Target(
                f"{n_variants:,} against {n_variants // 10:,} variants, time per variant",
                "at most 1.15 ×",
                f"{growth:.2f} ×",
                growth <= 1.15,
            ),
            Target(
                f"resume after {fleet['n_spoiled']:.0f} failed",
                "under 10 % of the run",
                f"{resumed:.1%} ({with_start:.1%} with the processes' start)",
                resumed < 0.1,
            ),
            Target(
                f"registering {n_variants:,} variants against a process each", "at least 20 × less time",
                f"{registered:.0f} ×", registered >= 20,
            ),
        ]  # fmt: skip
    return found


def _cluster_targets(cluster: Mapping[str, Any]) -> Iterator[Target]:
    if cluster:
        rates = {name: engine["rate"] for name, engine in cluster["engines"].items()}
        share = rates["one node"] / rates["local"]
        yield Target(
            "variants/s of a Ray node against the local engine", "at least 0.8 ×", f"{share:.2f} ×", share >= 0.8
        )


def _cluster_lines(cluster: Mapping[str, Any]) -> list[str]:
    engines, n_cores = cluster["engines"], cluster["n_cores"]
    return [
        "",
        f"## On Ray: {cluster['n_variants']} variants of {FLEET_ROWS:,} rows, and one of {MILLION:,}",
        "",
        f"Seconds of Dagster runs, with reasons, by the same {n_cores} cores of one machine, on which S3 and "
        "PostgreSQL run as well. Variants a second are counted from the first quarter on: connecting, and the workers' "
        "imports, are paid once a run.",
        "",
        markdown_table(
            ("engine", "whole run", "run of the large one", "variants/s", "against the local engine"),
            [
                (
                    name,
                    f"{engine['whole']:.1f}",
                    f"{engine['large']:.1f}",
                    f"{engine['rate']:.2f}",
                    f"{engine['rate'] / engines['local']['rate']:.2f} ×",
                )
                for name, engine in engines.items()
            ],
            "-rrrr",
        ),
    ]


def _fleet_table(fleet: Mapping[str, float], n_variants: int) -> str:
    one_process, a_process_each = fleet["registration"], fleet["lone_registration"]
    rows: list[tuple[str, str, str, str, str]] = [
        (
            f"{n:,} variants, one run",
            f"{fleet[name]:.0f}",
            f"{fleet[f'{name}_run']:.0f}",
            f"{fleet[name] / n * 1e3:.0f}",
            f"{fleet[f'{name}_peak_mb']:.0f}",
        )
        for name, n in (("whole", n_variants), ("tenth", n_variants // 10))
    ]
    lone, lone_run = fleet["lone"], fleet["lone_run"]
    rows += [
        (f"a run for one variant, mean of {LONE_RUNS}", f"{lone:.1f}", f"{lone_run:.1f}", f"{lone * 1e3:.0f}", ""),
        (
            f"a run of which {fleet['n_spoiled']:.0f} variants failed",
            f"{fleet['failed']:.0f}",
            f"{fleet['failed_run']:.0f}",
            "",
            "",
        ),
        ("resuming it", f"{fleet['resumed']:.0f}", f"{fleet['resumed_run']:.0f}", "", ""),
        ("registering, one process", f"{one_process * n_variants:.0f}", "", f"{one_process * 1e3:.0f}", ""),
        (
            "registering, a process each",
            f"{a_process_each * n_variants:.0f} (extrapolated)",
            "",
            f"{a_process_each * 1e3:.0f}",
            "",
        ),
    ]
    return markdown_table(("what", "process", "run", "process, ms a variant", "peak MB"), rows, "-rrrr")


def write_results(results: Results) -> None:
    """Write the tables and the chart."""
    singles, fleet, n_variants = results.singles, results.fleet, results.n_variants
    lines = [
        "# Benchmark results",
        "",
        f"Written by `just bench` on {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}. "
        "Seconds are noisy, and parts measured in different runs not comparable; read the ratios.",
        "",
        *(f"- {name}: {how}" for name, how in results.measured.items()),
        "",
        markdown_table(
            ("what", "target", "measured", ""),
            [
                (target.claim, target.needed, target.measured, "met" if target.is_met else "not met")
                for target in targets(results)
            ],
        ),
        "",
        "## One variant: Parquet on S3 to published rows",
        "",
        "The limit is the booster over a ready matrix plus COPY of a ready file into a bare table, one after the "
        "other. The naive way is `pandas.read_json`, `get_dummies`, MLflow's pyfunc and `to_sql(append)`, on JSON "
        f"Lines; it was not run above {NAIVE_MOST_ROWS:,} rows, where its frame would not fit the memory.",
        "",
        markdown_table(
            ("rows", "way", "seconds", "µs a row", "peak MB"),
            [
                (f"{one.rows:,}", one.way, f"{one.seconds:.2f}", f"{one.us_per_row:.2f}", f"{one.peak_mb:,.0f}")
                for one in singles
            ],
            "r-rrr",
        ),
    ]
    if results.stages:
        lines += [
            "",
            "Where the time of a million rows goes; each step by itself, where the job does several at once:",
            "",
            markdown_table(
                ("step", "seconds"), [(step, f"{seconds:.3f}") for step, seconds in results.stages.items()], "-r"
            ),
        ]
    if results.reasons:
        lines += [
            "",
            "## A reason for every row: exact SHAP values",
            "",
            "From a loaded model and ready rows to contributions by parent feature, all tables built anew. The slow "
            "ways explained fewer rows; shap hands the work to XGBoost.",
            "",
            markdown_table(
                ("rows", "way", "explained", "rows/s", "peak MB", "largest difference from `pred_contribs`"),
                [
                    (
                        f"{one.rows:,}",
                        one.way,
                        f"{one.explained:,}",
                        f"{one.rows_per_second:,.0f}",
                        f"{one.peak_mb:,.0f}",
                        f"{one.error:.0e}",
                    )
                    for one in results.reasons
                ],
                "r-rrrr",
                is_markup=True,
            ),
        ]
    if fleet:
        lines += [
            "",
            f"## A fleet: {n_variants:,} variants of {FLEET_ROWS:,} rows through the Dagster job",
            "",
            "With reasons. Seconds of whole processes, imports included, and of the Dagster run within.",
            "",
            _fleet_table(fleet, n_variants),
        ]
    else:
        lines += ["", "The fleet was not measured."]
    if results.cluster:
        lines += _cluster_lines(results.cluster)
    lines += ["", "![Microseconds a row](results.png)", ""]
    (FOLDER / "RESULTS.md").write_text("\n".join(lines))
    draw(singles)
    print("\n".join(lines))


def draw(singles: Sequence[Single]) -> None:
    """Draw microseconds a row by way and size."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    sizes = sorted({single.rows for single in singles})
    figure, axes = plt.subplots(figsize=(7, 3.2))
    for offset, way in enumerate(("naive", "with reasons", "ours", "limit")):
        held = {single.rows: single.us_per_row for single in singles if single.way == way}
        places = [sizes.index(size) + (offset - 1.5) * 0.21 for size in held]
        bars = axes.bar(places, list(held.values()), width=0.2, label=way)
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.set(yscale="log", ylabel="µs a row", xticks=range(len(sizes)), xticklabels=[f"{size:,}" for size in sizes])
    axes.set_xlabel("rows")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(FOLDER / "results.png", dpi=110)


if __name__ == "__main__":
    main()
