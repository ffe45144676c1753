"""Benchmarks of how good the scores are, and of what that costs: one module a subject, each with targets.

Each runs alone as ``python -m benchmarks.quality.<name>``, prints its targets with intervals and exits with 1 if one is
missed. ``python -m benchmarks.quality`` runs all and writes ``benchmarks/QUALITY.md``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_DRAWS, _SEED = 2_000, 1
NONE = "none"
"""The target of a figure that is printed for comparison."""


@dataclass(frozen=True)
class Target:
    """A figure, its 95 % interval as text, and whether it meets its target."""

    name: str
    target: str
    figure: str
    interval: str
    is_met: bool


def without_target(name: str, figure: str, interval: str = "–") -> Target:
    """Return a figure that is shown and has nothing to meet."""
    return Target(name, NONE, figure, interval, is_met=True)


def bootstrap(values: Sequence[float], statistic: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a statistic of independent values."""
    rng, numbers = np.random.Generator(np.random.PCG64(_SEED)), np.asarray(values)
    drawn = [statistic(numbers[rng.integers(0, len(numbers), len(numbers))]) for _ in range(_DRAWS)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def share_interval(n: int, of: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share, ``n`` of ``of``."""
    found = stats.binomtest(int(n), of).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def report(title: str, targets: Sequence[Target]) -> int:
    """Print targets as a table; return 1 if one is missed."""
    print(f"## {title}\n\n| figure | target | measured | 95 % interval | met |\n|---|---|---:|---:|---|")
    for one in targets:
        met = "–" if one.target == NONE else "yes" if one.is_met else "**no**"
        print(f"| {one.name} | {one.target} | {one.figure} | {one.interval} | {met} |")
    print(flush=True)
    return 0 if all(one.is_met for one in targets) else 1
