"""Every comparison in one run, written to ``benchmarks/RESULTS.md`` with a chart: ``python -m benchmarks``.

Figures are ratios against a baseline measured in the same run, each in a process of its own. Six parts are measured:
one variant (``--rows``), reasons (``--reasons``), a fleet (``--variants``), a fleet on one core and on all
(``--cores``), training a fleet (``--training``), and a fleet on Ray (``--cluster``). ``--only fleet`` measures that
part alone. A part that a run leaves out (``--rows`` without a number, ``--variants 0``) stays as it was measured last,
with its date; ``results.json`` keeps them. S3 is SeaweedFS, which takes little of the cores that are measured.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import boto3
import sqlalchemy as sa

from benchmarks.fleets import (
    FLEET_ROWS,
    Target,
    bench_cores,
    bench_fleet,
    bench_training,
    cores_lines,
    cores_targets,
    fleet_inputs,
    fleet_lines,
    fleet_targets,
    run_with_rate,
    training_targets,
)
from benchmarks.runs import call, next_week, run_fleet
from churn.deployment.code_version import code_version
from churn.deployment.services import open_deployment
from churn.deployment.settings import load_settings
from churn.variants import Variant
from churn.wording import markdown_table
from churn.workflows.set_up import set_up_server
from tests.support.ray_nodes import ray_cluster
from tests.support.services import BUCKET, bench_environment, model_files, simulated_rows, upload_fleet, upload_variant

FOLDER = Path(__file__).parent
MILLION = 1_000_000
NAIVE_MOST_ROWS = MILLION
REPEATS = 3
CLUSTERS = {"one node": 1, "two nodes": 2}  # the machine's cores shared out among them
SMALL_BATCH = 5_000
PARTS = ("one variant", "reasons", "fleet", "cores", "training", "cluster")
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
    fleet: dict[str, Any]
    n_variants: int
    cores: Mapping[str, Any]
    training: dict[str, float]
    cluster: Mapping[str, Any]
    measured: Mapping[str, str]


def main(argv: Sequence[str] | None = None) -> None:
    """Run everything and write it down."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 1_000_000, 10_000_000])
    parser.add_argument("--variants", type=int, default=2_000, help="variants of the fleet; 0 leaves it out")
    parser.add_argument("--cores", type=int, default=200, help="variants scored on one core and on all; 0: none")
    parser.add_argument("--training", type=int, default=100, help="variants that are trained; 0 leaves it out")
    parser.add_argument("--cluster", type=int, default=200, help="variants of the fleet on Ray; 0 leaves it out")
    parser.add_argument("--reasons", type=int, nargs="*", default=list(REASONS_SIZES), help="rows to explain")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), help="the parts to measure")
    parser.add_argument("--home", type=Path, help="where the services keep their files; default: a temporary folder")
    args = parser.parse_args(argv)
    started = time.monotonic()
    sizes = args.rows if "one variant" in args.only else []
    n_of = {part: size if part in args.only else 0 for part, size in (
        ("fleet", args.variants), ("cores", args.cores), ("training", args.training), ("cluster", args.cluster),
    )}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="churn-bench-") as folder:
        Path(folder).chmod(0o755)
        home = (args.home or Path(folder)) / "home"
        with bench_environment(home, "seaweedfs"), open_deployment(load_settings()) as deployment:
            list(set_up_server(*deployment.databases))
            stages: dict[str, float] = {}
            singles = list(bench_singles(sizes, stages))
            reasons = list(bench_reasons(args.reasons if "reasons" in args.only else []))
            database, files = deployment.database, Path(folder)
            parts: dict[str, Any] = {
                "one variant": {"singles": [asdict(one) for one in singles], "stages": stages} if singles else None,
                "reasons": [asdict(one) for one in reasons] or None,
            }
            if n := n_of["fleet"]:
                parts["fleet"] = bench_fleet(n, files) | {"n_variants": n}
            if n := n_of["training"]:
                parts["training"] = bench_training(n, files)
            if n := n_of["cluster"]:
                parts["cluster"] = bench_cluster(n, files, database)
            if n := n_of["cores"]:  # last, since it pins processes
                parts["cores"] = bench_cores(n, files, database)
    write_results(keep(parts, minutes=(time.monotonic() - started) / 60))


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
    single, reasons, fleet, cores, training, cluster = (kept.get(name, {}).get("figures") for name in PARTS)
    return Results(
        singles=[Single(**one) for one in single["singles"]] if single else [],
        stages=single["stages"] if single else {},
        reasons=[Reasons(**one) for one in reasons or []],
        fleet=fleet or {},
        n_variants=fleet["n_variants"] if fleet else 0,
        cores=cores or {},
        training=training or {},
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
            for way in ("limit", "ours", "limit with reasons", "with reasons", "naive"):
                is_long = n_rows > NAIVE_MOST_ROWS
                if not (way == "naive" and (is_long or repeat)) and not (way == "limit with reasons" and is_long):
                    seen.setdefault(way, []).append(call("-m", "benchmarks.single", way, str(n_rows)))
        if n_rows == MILLION:
            found = call("-m", "benchmarks.single", "stages", str(n_rows))
            stages.update({step: s for step, s in found.items() if " " in step})  # the others are of the process
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


def bench_cluster(n_variants: int, folder: Path, database: sa.URL) -> dict[str, Any]:
    """Score a fleet, and a large variant, by the local engine and on Ray, by the same number of cores."""
    variants, large = [Variant(company=f"r{i:04}") for i in range(n_variants)], Variant(company="rlarge")
    model = model_files()
    upload_fleet(variants, fleet_inputs(), model)
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
    whole = run_with_rate(keys, date.fromisoformat(next_week()), database)
    lone = run_fleet(large, large, next_week())
    return {"whole": whole["run_seconds"], "large": lone["run_seconds"], "rate": whole["rate"]}


def targets(results: Results) -> list[Target]:
    """Hold what was measured against what was wanted."""
    return [
        *fleet_targets(results.fleet, results.n_variants),
        *cores_targets(results.cores),
        *training_targets(results.training),
        *_single_targets(results.singles),
        *_reasons_targets(results.reasons),
        *_cluster_targets(results.cluster),
    ]


def _single_targets(singles: Sequence[Single]) -> Iterator[Target]:
    by = {(single.way, single.rows): single for single in singles}
    ten = 10 * MILLION
    if ("ours", MILLION) in by:
        ours, explained = by["ours", MILLION], by["with reasons", MILLION]
        if ("limit with reasons", MILLION) in by:
            over = explained.seconds / by["limit with reasons", MILLION].seconds
            yield Target(
                "one variant, 1 M rows with reasons, against the limit", "≤ 1.4 ×", f"{over:.2f} ×", over <= 1.4
            )
        faster = by["naive", MILLION].seconds / ours.seconds
        yield Target("1 M rows, against the naive way", "≥ 30 ×", f"{faster:.1f} ×", faster >= 30)
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
        "other; with reasons, it is scoring and explaining ready rows and COPY of a ready file with reasons into the "
        "week's partition, both at once on the same cores. The naive way is `pandas.read_json`, `get_dummies`, "
        "MLflow's pyfunc and `to_sql(append)`, on JSON Lines; it was not run above "
        f"{NAIVE_MOST_ROWS:,} rows, where its frame would not fit the memory.",
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
    lines += fleet_lines(fleet, n_variants) if fleet else ["", "The fleet was not measured."]
    if results.cores:
        lines += cores_lines(results.cores)
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
