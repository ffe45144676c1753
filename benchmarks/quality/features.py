"""Features over months: what they are worth and what they cost, against the 45 features of one month.

Worth: boosters of fixed parameters, trained and evaluated on the same rows of variants of the plain simulator: 60 at
month ends, as the target was set, and 10 each on Mondays as scoring sees them, with extracts of whole months and with
month-to-date ones. Cost: building the features of a million accounts with 24 months each, for training and for scoring,
in processes of their own.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import xgboost as xgb

from benchmarks.quality import NONE, Target, bootstrap, report
from benchmarks.quality.live import snapshot_of
from churn.concurrency import cores
from churn.data.features import encode, features, plan_encoding
from churn.data.labels import Horizon
from churn.data.scoring_rows import prepare
from churn.data.snapshots import Snapshot, snapshots
from churn.evaluation.metrics import roc_auc_interval
from churn.storage.history import new_facts
from churn.training.default_features import default_feature_names
from churn.training.train import TrainingPlan, split
from churn.variants import Variant
from churn.weeks import month_ends, month_start, training_days
from churn.wording import percent
from tests.support.services import peak_mb
from tests.support.simulated import FEATURE_NAMES
from tests.support.simulator import BEN_LOGINS, BRANDS, PRODUCTS
from tests.support.world import PLAIN_WORLD, Simulation, simulate_world

FIRST_MONTH, N_MONTHS = date(2024, 1, 1), 24
N_ACCOUNTS = 8_000
LEVELS = {"brand_id": BRANDS, "ben_login_id": BEN_LOGINS, "player_reg_product": PRODUCTS}
MONTH_ENDS = "month ends"
PHASES = {
    MONTH_ENDS: (PLAIN_WORLD, 60),
    "Mondays, whole months": (PLAIN_WORLD, 10),
    "Mondays, month to date": (replace(PLAIN_WORLD, month_to_date=True), 10),
}
"""Worlds, and the number of variants of each."""
N_LARGE, BLOCK, REPEATS = 1_000_000, 50_000, 3
AS_OF = date(2026, 1, 14)
ROUNDS = 100
PARAMETERS = {
    "objective": "binary:logistic", "tree_method": "hist", "nthread": 1, "max_depth": 4, "learning_rate": 0.1,
    "min_child_weight": 10, "subsample": 0.9, "colsample_bytree": 0.9, "seed": 1,
}  # fmt: skip
"""One thread each, as there is a process per core: several threads in each take ten times the processor's time."""


def worth(i: int, phase: str) -> dict[str, tuple[float, float]]:
    """Return the held-out ROC AUC and log loss of both feature sets, on the same rows of one variant."""
    variant = Variant(f"g{i}" if i % 2 else None, f"c{i}" if i % 3 else None)
    simulation = simulate_world(
        PHASES[phase][0],
        n_accounts=N_ACCOUNTS,
        first_month=FIRST_MONTH,
        n_months=N_MONTHS,
        seed=1_000 + i,
        variant=variant,
    )
    activity = simulation.extract()
    sets = {"month": list(FEATURE_NAMES), "windows": default_feature_names(activity)}
    shots = [shot for shot in snapshots_in(simulation, activity, phase, sets["windows"]) if len(shot.churned)]
    parts = split(shots, TrainingPlan())
    return {
        name: _evaluate(names, [*parts.training, *parts.validation], parts.held_out) for name, names in sets.items()
    }


def snapshots_in(
    simulation: Simulation, activity: pl.DataFrame, phase: str, names: Sequence[str]
) -> Iterable[Snapshot]:
    """Return the snapshots at month ends, of months known at their end, or those of Mondays as scoring sees them."""
    end, horizon = month_start(FIRST_MONTH, N_MONTHS), Horizon()
    today = date(end.year, end.month, 28)
    if phase == MONTH_ENDS:
        facts = new_facts(activity, None, datetime(end.year, end.month, 3, tzinfo=UTC))
        days = [day for day in month_ends(FIRST_MONTH, today) if horizon.matures_on(day) <= today]
        return snapshots(facts, days, today=today, horizon=horizon, names=names)
    days = training_days(month_start(FIRST_MONTH, 1), horizon.newest_mature(today), TrainingPlan().n_held_out)
    return (snapshot_of(simulation.extract_on(day), day, names, activity, today) for day in days)


def _evaluate(names: Sequence[str], training: Sequence[Snapshot], held_out: Sequence[Snapshot]) -> tuple[float, float]:
    encoding = plan_encoding(names, held_out[0].rows.columns)
    booster = xgb.train(PARAMETERS, xgb.DMatrix(*_examples(training, encoding)), ROUNDS)
    matrix, churned = _examples(held_out, encoding)
    scores = booster.inplace_predict(matrix).astype(np.float64)
    log_loss = -np.mean(np.where(churned, np.log(scores), np.log1p(-scores)))
    return roc_auc_interval(churned, scores).value, float(log_loss)


def _examples(shots: Sequence[Snapshot], encoding: object) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([encode(shot.rows, encoding) for shot in shots]), np.concatenate([s.churned for s in shots])


def targets_of_worth(phase: str, n_variants: int) -> list[Target]:
    """Compare the sets over all variants."""
    with ProcessPoolExecutor(cores(), get_context("spawn")) as pool:  # polars' threads do not survive a fork
        results = list(pool.map(worth, range(n_variants), repeat(phase)))
    month, windows = (np.array([result[name] for result in results]) for name in ("month", "windows"))
    gains, savings = windows[:, 0] - month[:, 0], 1 - windows[:, 1] / month[:, 1]
    is_better = (gains > 0) & (savings > 0)
    of_auc, of_loss = bootstrap(gains, np.mean), bootstrap(savings, np.mean)
    of_share = _wilson(int(is_better.sum()), n_variants)
    means = [f"{array[:, i].mean():.4f}" for i in (0, 1) for array in (month, windows)]
    found = [
        Target(
            f"{phase}: held-out ROC AUC, {means[0]} to {means[1]}, mean gain of {n_variants} variants", "+0.06 or more",
            f"{gains.mean():+.4f}", f"{of_auc[0]:.4f} to {of_auc[1]:.4f}", gains.mean() >= 0.06,
        ),
        Target(
            f"{phase}: held-out log loss, {means[2]} to {means[3]}, mean saving", "15 % or more",
            percent(savings.mean(), 1), f"{percent(of_loss[0], 1)} to {percent(of_loss[1], 1)}", savings.mean() >= 0.15,
        ),
        Target(
            f"{phase}: variants with a higher AUC and a lower log loss", "95 % or more",
            percent(is_better.mean()), f"{percent(of_share[0])} to {percent(of_share[1])}", is_better.mean() >= 0.95,
        ),
    ]  # fmt: skip
    # The targets are of month ends, when all of a month is known; Mondays are shown for comparison.
    return found if phase == MONTH_ENDS else [replace(one, target=NONE, is_met=True) for one in found]


def _wilson(n: int, of: int) -> tuple[float, float]:
    z, share = 1.96, n / of
    middle, half = share + z * z / (2 * of), z * np.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return (middle - half) / (1 + z * z / of), (middle + half) / (1 + z * z / of)


def write_activity(path: Path, n_accounts: int) -> None:
    """Write activity of 24 months for each account, in order of account and month."""
    rng = np.random.Generator(np.random.PCG64(1))
    months = np.array([month_start(AS_OF, -N_MONTHS + i) for i in range(N_MONTHS)], dtype="M8[D]")
    writers: list[pq.ParquetWriter] = []
    for first in range(0, n_accounts, BLOCK):
        n = min(BLOCK, n_accounts - first)
        texts = {
            name: pl.Series(levels, dtype=pl.String).gather(np.repeat(rng.integers(0, len(levels), n), N_MONTHS))
            for name, levels in LEVELS.items()
        }
        money = {
            name: np.where(rng.random(n * N_MONTHS) < 0.5, 0, rng.lognormal(4, 2, n * N_MONTHS)).round(2)
            for name in ("total_deposit", "total_handle", "total_ngr")
        }
        dates = {
            name: np.datetime64("2023-06-01") + rng.integers(0, 200, n) for name in ("reg_date", "ftd_date", "qp_date")
        }
        frame = pl.DataFrame(
            {"account_id": np.repeat(10_000_000 + first + np.arange(n), N_MONTHS), "activity_month": np.tile(months, n)}
            | {name: np.repeat(days, N_MONTHS) for name, days in dates.items()}
            | {"tracker_id": np.full(n * N_MONTHS, 1_000)} | texts | money
        )  # fmt: skip
        table = frame.to_arrow()
        writers = writers or [pq.ParquetWriter(path, table.schema)]
        writers[0].write_table(table)
    writers[0].close()


def cost(way: str, step: str, path: Path) -> dict[str, float]:
    """Build features once; returns seconds and the process's peak memory in MB, the activity in memory included."""
    names = list(FEATURE_NAMES)
    if way == "windows":
        names = default_feature_names(pl.read_parquet(path, n_rows=BLOCK))
    small = pl.read_parquet(path, n_rows=2_400)
    features(small, AS_OF, names)  # compiled code is loaded before
    if step == "scoring":
        started = time.perf_counter()
        rows = prepare(path, tuple(names), AS_OF, 0.0, "the file")
        n = sum(len(account_ids) for account_ids, _ in rows.chunks())
    else:
        month_end = pl.col("activity_month").dt.month_end().cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        activity = pl.read_parquet(path, low_memory=True).with_columns(known_at=month_end)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of reading the file
        started = time.perf_counter()
        n = features(activity, AS_OF, names).height
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_mb": peak_mb(), "n": n}


def targets_of_cost(n_accounts: int = N_LARGE) -> list[Target]:
    """Time both sets alternately."""
    with tempfile.TemporaryDirectory() as folder:
        path, targets = Path(folder) / "activity.parquet", []
        write_activity(path, n_accounts)
        for step in ("training", "scoring"):
            runs = {"month": [], "windows": []}
            for _ in range(REPEATS):
                for way, of_way in runs.items():
                    command = [sys.executable, "-m", "benchmarks.quality.features", way, step, str(path)]
                    run = subprocess.run(command, capture_output=True, text=True, check=True)
                    of_way.append(json.loads(run.stdout))
            for measure, unit, limit in (("seconds", "s", 2.0), ("peak_mb", "MB", 1.5)):
                month, windows = ([run[measure] for run in runs[way]] for way in ("month", "windows"))
                ratios = [with_windows / without for with_windows, without in zip(windows, month, strict=True)]
                ratio = median(windows) / median(month)
                figure = f"{ratio:.2f} ({median(month):,.1f} to {median(windows):,.1f} {unit})"
                span = f"{min(ratios):.2f} to {max(ratios):.2f} (range of {REPEATS} pairs)"
                name = (
                    f"{step}: {'time' if unit == 's' else 'peak memory'}, {n_accounts:,} accounts of {N_MONTHS} months"
                )
                targets.append(Target(name, f"{limit:g} × or less", figure, span, ratio <= limit))
    return targets


def main() -> int:
    """Measure, and print the targets."""
    if len(sys.argv) == 4:
        print(json.dumps(cost(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
        return 0
    worths = [target for phase, (_, n) in PHASES.items() for target in targets_of_worth(phase, n)]
    return report("Features over months", [*worths, *targets_of_cost()])


if __name__ == "__main__":
    sys.exit(main())
