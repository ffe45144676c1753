"""Champion against challenger in a year with seasons: ``python -m benchmarks.quality.promotion``.

Accounts have a true log-odds of churning, of which each model misses an independent part; both are calibrated, but the
champion's log-odds are 0.1 too high and the challenger's 0.1 too low. A season moves the true log-odds by 0.3 up and
down within a year, from a random phase. A fifth of the accounts is new each month. Each month the product's own
functions look at all labels that have matured: the first time in the fifth month. Of equal models, both miss as much;
of a better challenger, the champion misses so much more that its log-loss is higher by the gain.

An uneven season moves the accounts that the challenger scores higher more, which no calibration removes. One that is
much more uneven than assumed is shown as a limit: it promotes more than a twentieth of equal challengers.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from functools import cache, partial

import numpy as np
from scipy.optimize import brentq

from benchmarks.quality import Target, bootstrap, report, share_interval, without_target
from churn.concurrency import cores
from churn.evaluation.comparison import Limits, PairedCohort, compare, count_once
from churn.evaluation.metrics import compare_roc_auc, log_losses
from churn.evaluation.sequential import PairedSums, confidence_sequence, discount_months, e_value
from churn.weeks import month_end, month_start
from churn.wording import percent

SIZES = (300, 1_000, 3_000, 10_000)
BEFORE = {0.01: (23, 11, 6, 5), 0.03: (8, 5, 5, 5)}  # median months to promotion, with accounts as the unit
N_EQUAL = 400
MONTHS, HORIZON, FIRST_LOOK = 24, 3, 5  # a month's labels mature in the fourth month after it
LONGEST, SHORTER = 36, 15  # months that better challengers are looked at, the latter from 3,000 accounts on
MEAN, SPREAD, NEW, SEASON, OFFSET = -0.5, 1.2, 0.2, 0.3, 0.1
MISSED = 0.06  # variance of the log-odds that each of two equal models misses
UNEVEN = {"season": 0.0, "uneven season": 0.3, "very uneven season": 0.6}
HELD = 0.3
NEVER = math.inf
MOST_LOSS = 0.58  # the models' log-loss is about 0.55
LIMITS = Limits()


@dataclass(frozen=True)
class World:
    """How much of the log-odds' variance the models miss, and how unevenly the season moves accounts.

    Attributes:
        uneven: By which share more it moves an account of which the challenger's score is one deviation higher.
    """

    champion_misses: float = MISSED
    challenger_misses: float = MISSED
    uneven: float = 0.0


def cohorts(world: World, n: int, n_months: int, seed: int) -> Iterator[PairedCohort]:
    """Simulate the accounts at risk of each month, with both models' scores."""
    rng = np.random.Generator(np.random.PCG64([seed, n]))
    phase, ids = rng.uniform(0, 12), np.arange(n)
    for month in range(n_months):
        is_new = rng.random(n) < NEW
        ids = np.where(is_new, (month + 1) * n + np.arange(n), ids)
        known, by_first, by_second = (
            scale * rng.standard_normal(n) + mean
            for mean, scale in (
                (MEAN, SPREAD), (0, math.sqrt(world.challenger_misses)), (0, math.sqrt(world.champion_misses))
            )
        )  # fmt: skip
        ahead = (by_second - by_first) / math.sqrt(world.champion_misses + world.challenger_misses)
        season = SEASON * math.cos(2 * math.pi * (month - phase) / 12) * (1 + world.uneven * ahead)
        yield PairedCohort(
            month_end(month_start(date(2024, 1, 1), month)),
            ids,
            _probability(_shrunk(known + by_first, world.champion_misses) + OFFSET),
            _probability(_shrunk(known + by_second, world.challenger_misses) - OFFSET),
            rng.random(n) < _probability(known + by_first + by_second + season),
        )


@dataclass(frozen=True)
class Course:
    """In which month a challenger was promoted, would have been with accounts as the unit, and ended without gain."""

    promoted: float = NEVER
    by_accounts: float = NEVER
    withdrawn: float = NEVER


def course(world: World, n: int, n_months: int, seed: int) -> Course:
    """Look at a challenger each month for so many months."""
    counted = count_once(list(cohorts(world, n, n_months - FIRST_LOOK + 1, seed)), HORIZON)
    sums, alone, found = [cohort.sums() for cohort in counted], PairedSums(), Course()
    for i, cohort in enumerate(counted):
        losses = [log_losses(cohort.churned, scores) for scores in (cohort.champion, cohort.challenger)]
        alone += PairedSums.of(*losses)
        if e_value(alone, tuned_for=2000) >= 1 / LIMITS.alpha:
            found = replace(found, by_accounts=min(found.by_accounts, i + FIRST_LOOK))
        known = discount_months(sums[: i + 1])
        is_better = e_value(known, tuned_for=LIMITS.tuned_for) >= 1 / LIMITS.alpha
        high = confidence_sequence(known, alpha=LIMITS.alpha, tuned_for=LIMITS.tuned_for).high
        if is_better or high < LIMITS.min_gain * MOST_LOSS:  # the guardrails take longer, and decide only then
            comparison = compare(counted[: i + 1], HORIZON, LIMITS)
            if comparison.is_better and not comparison.broken:
                return replace(found, promoted=i + FIRST_LOOK)
            if comparison.is_hopeless:
                return replace(found, withdrawn=i + FIRST_LOOK)
    return found


def courses(world: World, n: int, n_months: int, n_runs: int) -> list[Course]:
    """Simulate many challengers, on all cores."""
    with ProcessPoolExecutor(cores()) as pool:
        return list(pool.map(partial(course, world, n, n_months), range(n_runs), chunksize=10))


@cache
def misses_for(gain: float) -> float:
    """Return the variance that a champion misses if a perfect challenger's log-loss is lower by a share."""
    rng = np.random.Generator(np.random.PCG64(0))
    known, missed = MEAN + SPREAD * rng.standard_normal(400_000), rng.standard_normal(400_000)

    def saving(variance: float) -> float:
        truth = _probability(known + math.sqrt(variance) * missed)
        scores = _probability(_shrunk(known, variance))
        perfect, champion = (-(truth * np.log(p) + (1 - truth) * np.log1p(-p)).mean() for p in (truth, scores))
        return float(1 - perfect / champion) - gain

    return float(brentq(saving, 1e-4, 2))


def _shrunk(log_odds: np.ndarray, variance: float) -> np.ndarray:
    """Return log-odds that stay calibrated though a normal part of that variance is missing."""
    return log_odds / math.sqrt(1 + math.pi * variance / 8)


def _probability(log_odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-log_odds))


def share(name: str, target: str, found: Sequence[bool], most: float) -> Target:
    """Return a share of runs, which meets its target if the interval's lower end is at most ``most``."""
    low, high = share_interval(sum(found), len(found))
    return Target(name, target, percent(np.mean(found), 1), f"{percent(low, 1)} to {percent(high, 1)}", low <= most)


def targets_of_equals(n_runs: int) -> Iterator[Target]:
    """Promotions of challengers that are no better; those of a season beyond what the test assumes have no target."""
    for name, uneven in UNEVEN.items():
        for n in SIZES:
            found = courses(World(uneven=uneven), n, MONTHS, n_runs if uneven <= HELD else n_runs // 4)
            promoted = [one.promoted <= MONTHS for one in found]
            alone = np.mean([one.by_accounts <= MONTHS for one in found])
            ended = np.mean([one.withdrawn <= MONTHS for one in found])
            label = f"{name}, {n:,} at risk: equals promoted in {MONTHS} months"
            if uneven > HELD:
                yield without_target(f"{label}, which the test does not hold for", percent(np.mean(promoted), 1))
                continue
            yield without_target(f"{label}, with accounts as the unit", percent(alone, 1))
            yield without_target(f"{label}: withdrawn by then", percent(ended, 1))
            yield share(label, "lower end at most 5 %", promoted, 0.05)


def targets_of_better(n_runs: int) -> Iterator[Target]:
    """Months until a better challenger is promoted, and those that are withdrawn by mistake."""
    for gain, before in BEFORE.items():
        world = World(misses_for(gain), 0.0)
        for n, median_before in zip(SIZES, before, strict=True):
            found = courses(world, n, LONGEST if n < 3_000 else SHORTER, n_runs)
            months, most = [min(one.promoted, LONGEST + 1) for one in found], median_before * 4 / 3
            low, high = bootstrap(months, np.median)
            name = f"{percent(gain)} better log-loss, {n:,} at risk: median months to promotion"
            median = float(np.median(months))
            yield Target(name, f"at most {most:.1f}", f"{median:g}", f"{low:g} to {high:g}", median <= most)
            withdrawn = [one.withdrawn < NEVER for one in found]
            yield share(f"{percent(gain)} better, {n:,} at risk: withdrawn", "lower end at most 5 %", withdrawn, 0.05)


def targets_of_guardrails(n_runs: int) -> Iterator[Target]:
    """Equal challengers that the guardrail of ROC AUC blocks, at one look at so many accounts."""
    for n in SIZES:
        first = [next(cohorts(World(), n, 1, seed)) for seed in range(n_runs)]
        results = [compare([cohort], HORIZON, LIMITS) for cohort in first]
        blocked = ["auc_holds" in {rail.name for rail in result.broken} for result in results]
        changes = [compare_roc_auc(one.churned, one.champion, one.challenger).difference for one in first]
        point = np.mean(np.array(changes) < -LIMITS.max_auc_loss)
        yield without_target(f"equals that a bare point of ROC AUC would block, {n:,} accounts", percent(point, 1))
        yield share(f"equals blocked by ROC AUC, {n:,} accounts", "lower end at most 5 %", blocked, 0.05)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="benchmarks.quality.promotion", description=__doc__)
    parser.add_argument("--runs", type=int, default=N_EQUAL)
    runs = parser.parse_args(argv).runs
    groups = (targets_of_equals(runs), targets_of_better(runs // 2), targets_of_guardrails(runs))
    return report("Champion against challenger", [target for group in groups for target in group])


if __name__ == "__main__":
    sys.exit(main())
