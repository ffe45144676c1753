"""Training together, against alone: ``python -m benchmarks.quality.pooled``. Exits with 1 if a target is missed.

A fleet of simulated variants of 300 to 12,000 accounts is trained together, and each variant alone as well. Log-loss is
compared on held-out weeks after all that was trained on, one row an account. A second fleet, of 1,000 accounts each, is
trained, gated and registered by a deployment with MLflow, PostgreSQL and S3, and the time of 2,000 is extrapolated: the
pool's fit, whose rows are limited, once, and the rest by variant.

``--variants N`` sets the size of the first fleet, ``--timed N`` that of the second; 0 leaves one out.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import date, datetime
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from scipy import special, stats

from benchmarks.quality import Target, bootstrap, report, share_interval, without_target
from churn.concurrency import cores
from churn.data.snapshots import Snapshot, snapshots
from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import load_settings
from churn.evaluation.metrics import log_losses
from churn.storage.history import new_facts
from churn.training import pool as pooling
from churn.training.default_features import default_feature_names
from churn.training.gate import GateLimits
from churn.training.train import TrainingPlan, learn_alone, shortage, train
from churn.variants import Variant
from churn.weeks import training_days
from churn.wording import percent
from churn.workflows.set_up import set_up_server
from churn.workflows.train import TrainingOutcome
from tests.support.services import bench_environment, upload_variant
from tests.support.simulated import simulate_activity

SMALLEST, LARGEST, TIMED = 300, 12_000, 1_000
FIRST, N_MONTHS, TODAY = date(2025, 2, 1), 21, date(2026, 11, 23)
PLAN = TrainingPlan()
FLEET, MINUTES = 2_000, 30.0
ACTIVITY = ("total_deposit", "total_handle", "total_ngr")

Losses = dict[str, np.ndarray]


def variant_of(place: int) -> Variant:
    """Name a variant: companies in twenty geographies, each with a mix of players, stays and stakes of its own."""
    return Variant(f"g{place % 20:02}", f"c{place:04}")


def simulate(place: int, n_accounts: int, n_held_out: int) -> tuple[list[str], list[Snapshot]]:
    """Return a variant's default features and its snapshots, with all Mondays of the last ``n_held_out`` months."""
    activity = simulate_activity(
        n_accounts=n_accounts, first_month=FIRST, n_months=N_MONTHS, seed=place, variant=variant_of(place)
    )
    ends = pl.col("activity_month").dt.offset_by("1mo").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    facts = new_facts(
        activity.with_columns(known_at=ends - pl.duration(microseconds=1)), None, datetime.fromisoformat(f"{TODAY}T00Z")
    )
    days = training_days(FIRST, PLAN.horizon.newest_mature(TODAY), n_held_out)
    names = default_feature_names(facts)
    return names, snapshots(facts, days, today=TODAY, horizon=PLAN.horizon, names=names)


def sample(most: int, variant: tuple[int, int]) -> pooling.Sample:
    """Return a variant's rows for the pool."""
    names, shots = simulate(*variant, 0)
    labelled = [shot for shot in shots if len(shot.churned)]
    kind = pooling.kind_of(names, labelled[0].rows.columns, ACTIVITY, is_default=True)
    return pooling.draw_sample(kind, names, labelled, variant_of(variant[0]).key, most)


def compare(pool: pooling.Pool, variant: tuple[int, int]) -> Losses | None:
    """Return the losses of a variant's held-out accounts by each model; ``None`` if it cannot be evaluated."""
    names, shots = simulate(*variant, PLAN.n_held_out)
    if pooling.shortage_in_pool(pool, shots, PLAN) or shortage(shots, TrainingPlan(min_of_class=50)):
        return None
    adapted = pooling.adapt(pool, shots, PLAN)
    alone = train(shots, names, TrainingPlan(min_of_class=50))
    accounts, of = adapted.held_out_accounts, adapted.calibration
    pooled = pool.trained.bundle.predict(accounts.matrix).astype(np.float64)
    scores = {
        "alone": alone.bundle.predict(alone.held_out_accounts.matrix),
        "pool": pooled,
        "base rate": special.expit(of.slope * special.logit(pooled) + of.intercept),
        "adapted": adapted.bundle.predict(accounts.matrix),
    }
    found = {name: log_losses(accounts.churned, of_model) for name, of_model in scores.items()}
    return found | {"rounds": np.array([adapted.chosen.n_rounds]), "size": np.array([variant[1]])}


def simulate_fleet(n_variants: int) -> tuple[list[Losses], pooling.Pool]:
    """Train a fleet together and alone; sizes are spread evenly by their logarithm."""
    sizes = np.geomspace(SMALLEST, LARGEST, n_variants).astype(int).tolist()
    fleet = list(enumerate(sizes))
    with ProcessPoolExecutor(cores()) as workers:
        samples = list(workers.map(partial(sample, pooling.MAX_ROWS // n_variants), fleet))
        (pool,) = pooling.build_pools(samples, PLAN, GateLimits(), learn_alone)
        found = workers.map(partial(compare, pool), reversed(fleet))
        return [losses for losses in found if losses is not None], pool


def quality(losses: Sequence[Losses]) -> list[Target]:
    """Compare the models over the variants."""
    means = {name: np.array([of[name].mean() for of in losses]) for name in ("alone", "pool", "base rate", "adapted")}
    sizes, rounds = (np.array([of[name][0] for of in losses]) for name in ("size", "rounds"))
    targets = []
    for name, wanted in (("adapted", "at least 80 %"), ("base rate", None), ("pool", None)):
        n_better = int((means[name] < means["alone"]).sum())
        share, (low, high) = (n_better / len(losses), share_interval(n_better, len(losses)))
        title, figure, interval = f"{name}: variants better than alone", percent(share), f"{low:.0%} to {high:.0%}"
        targets.append(
            Target(title, wanted, figure, interval, share >= 0.8) if wanted else without_target(title, figure, interval)
        )
    for name, base in (("adapted", "alone"), ("base rate", "alone"), ("adapted", "pool"), ("base rate", "pool")):
        change = means[name] / means[base] - 1
        low, high = bootstrap(change.tolist(), np.mean)
        title = f"{name} against {base}: log-loss"
        if name == "adapted":
            targets.append(Target(title, "below 0", f"{change.mean():+.1%}", f"{low:+.1%} to {high:+.1%}", high < 0))
        else:
            targets.append(without_target(title, f"{change.mean():+.1%}", f"{low:+.1%} to {high:+.1%}"))
    for low_size, high_size in ((300, 1_000), (1_000, 3_500), (3_500, 12_001)):
        here = (sizes >= low_size) & (sizes < high_size)
        change = (means["adapted"] / means["alone"] - 1)[here]
        low, high = bootstrap(change.tolist(), np.mean)
        title = f"adapted against alone, {low_size:,} to {high_size:,} accounts"
        figure = f"{change.mean():+.1%}, better in {percent(float((change < 0).mean()))}"
        targets.append(without_target(title, figure, f"{low:+.1%} to {high:+.1%}"))
    targets.append(without_target("variants with trees of their own", percent(float((rounds > 0).mean()))))
    return [*targets, *against_pool(losses)]


def against_pool(losses: Sequence[Losses]) -> list[Target]:
    """Test whether any variant, or more than chance makes, is worse than by the pool as it is."""
    pairs = [of["adapted"] - of["pool"] for of in losses]
    z = np.array([gap.mean() / (gap.std() / np.sqrt(len(gap))) for gap in pairs])
    n_worse, limit = int((z > stats.norm.isf(0.025)).sum()), float(stats.norm.isf(0.05 / len(z)))
    at_most = int(stats.binom.isf(0.05, len(z), 0.025))
    return [
        Target(
            "variants worse than by the pool at a level of 2.5 %", f"at most {at_most} of {len(z)}, as by chance",
            str(n_worse), f"p = {stats.binom.sf(n_worse - 1, len(z), 0.025):.2f}", n_worse <= at_most,
        ),
        Target(
            "worst variant against the pool, in standard errors", f"below {limit:.1f} (5 % over all)",
            f"{z.max():.1f}", "–", bool(z.max() < limit),
        ),
    ]  # fmt: skip


def time_fleet(n_variants: int) -> list[Target]:
    """Train, gate and register a fleet, and extrapolate."""
    variants = [variant_of(place) for place in range(n_variants)]
    with tempfile.TemporaryDirectory(prefix="churn-pooled-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        os.environ["CHURN_LOCAL_FALLBACK"] = "never"
        with bench_environment(Path(folder), "seaweedfs"), open_deployment(load_settings()) as deployment:
            list(set_up_server(*deployment.databases))
            for place, variant in enumerate(variants):
                activity = simulate_activity(
                    n_accounts=TIMED, first_month=FIRST, n_months=N_MONTHS, seed=place, variant=variant
                )
                upload_variant(variant, activity, {})
            trainer, keys = deployment.trainer(), [variant.key for variant in variants]
            started = time.perf_counter()
            trainer.draw_samples(keys, TODAY)
            drawn = time.perf_counter()
            trainer = replace(trainer.with_pools(keys, TODAY), least_pooled=n_variants + 1)
            pooled = time.perf_counter()
            workers = deployment.workers(n_variants, Deployment.trainer)
            trained = trainer.train_fleet(keys, TODAY, has_passed, workers=workers)
            outcomes = [passed for _, passed in trained if not raised(passed)]
            ended = time.perf_counter()
    draw_s, fit_s, each_s = (drawn - started) / n_variants, pooled - 2 * drawn + started, (ended - pooled) / n_variants
    minutes = (fit_s + FLEET * (draw_s + each_s)) / 60
    limit = f"at most {MINUTES:.0f} min"
    return [
        without_target(f"pooling {n_variants} variants, reading their rows", f"{draw_s:.2f} s each"),
        without_target("pooling them, fitting", f"{fit_s:.0f} s"),
        without_target("adapting, gating and registering", f"{each_s:.2f} s each"),
        without_target("variants that passed the gate", f"{sum(outcomes)} of {n_variants}"),
        Target(f"{FLEET:,} of {TIMED:,} accounts, extrapolated", limit, f"{minutes:.1f} min", "–", minutes <= MINUTES),
    ]


def has_passed(outcome: TrainingOutcome) -> bool:
    """Return whether a model passed the gate."""
    return outcome.gate.is_passed


def raised(outcome: object) -> bool:
    """Raise an error in place of an outcome."""
    if isinstance(outcome, BaseException):
        raise outcome
    return False


def main() -> int:
    """Measure and print the targets."""
    parser = argparse.ArgumentParser(prog="benchmarks.quality.pooled", description=__doc__)
    parser.add_argument("--variants", type=int, default=140)
    parser.add_argument("--timed", type=int, default=120)
    args = parser.parse_args()
    targets: list[Target] = []
    title = "Training together"
    if args.variants:
        losses, pool = simulate_fleet(args.variants)
        n_trees, n_rows = pool.trained.bundle.parameters["n_trees"], sum(part.n for part in pool.trained.parts)
        title += (
            f": {len(losses)} variants of {SMALLEST} to {LARGEST:,} accounts; pooled {n_rows:,} rows, {n_trees} trees"
        )
        targets += quality(losses)
    if args.timed:
        targets += time_fleet(args.timed)
    return report(title, targets)


if __name__ == "__main__":
    sys.exit(main())
