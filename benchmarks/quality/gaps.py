"""What gaps of the feed do to labels: ``python -m benchmarks.quality.gaps``. Exits with 1 if a target is missed.

The same players are simulated with gaps by brand and without: labels with gaps are compared with those that are true.
"""

import sys
from dataclasses import replace
from datetime import UTC, date, datetime

import numpy as np

from benchmarks.quality import Target, bootstrap, report
from churn.data.labels import Horizon, Reports, at_risk, label
from churn.storage.history import new_facts
from churn.weeks import month_start
from tests.support.world import World, simulate_world

N_ACCOUNTS, N_WORLDS = 20_000, 6
FIRST, N_MONTHS, AS_OFS = date(2024, 1, 1), 24, range(8, 18)
RECEIVED, TODAY = datetime(2026, 1, 15, tzinfo=UTC), date(2026, 1, 20)
MAX_BIAS, MAX_WRONG, MIN_LABELLED = 0.005, 0.001, 0.9


def measure(seed: int) -> tuple[float, float, float]:
    """Return the error of the share of churn, and the shares of wrong labels and of accounts with one, of a world."""
    world = World(restated=False, campaign=False)
    histories = []
    for one in (world, replace(world, feed_gaps=False)):
        simulation = simulate_world(one, n_accounts=N_ACCOUNTS, first_month=FIRST, n_months=N_MONTHS, seed=seed)
        histories.append(Reports.of(new_facts(simulation.extract(), None, RECEIVED)))
    n_wrong, n_at_risk, found, true = 0, 0, [], []
    for months in AS_OFS:
        as_of = month_start(FIRST, months)
        candidates = at_risk(histories[0], as_of, Horizon())
        gaps, truth = (label(one, candidates, as_of, today=TODAY, horizon=Horizon()) for one in histories)
        _, here, there = np.intersect1d(gaps.account_ids, truth.account_ids, return_indices=True)
        n_wrong += int((gaps.churned[here] != truth.churned[there]).sum())
        n_at_risk += len(candidates)
        found.append(gaps.churned)
        true.append(truth.churned)
    labels = np.concatenate(found)
    return float(labels.mean() - np.concatenate(true).mean()), n_wrong / len(labels), len(labels) / n_at_risk


def main() -> int:
    """Measure and print the targets."""
    biases, wrong, labelled = np.array([measure(seed) for seed in range(N_WORLDS)]).T
    targets = []
    for name, values, limit, is_met in (
        ("error of the churned share", biases, f"within ± {MAX_BIAS:.3f}", abs(biases.mean()) <= MAX_BIAS),
        ("wrong labels", wrong, f"at most {MAX_WRONG:.3f}", wrong.mean() <= MAX_WRONG),
        ("accounts at risk with a label", labelled, f"at least {MIN_LABELLED:.3f}", labelled.mean() >= MIN_LABELLED),
    ):
        low, high = bootstrap(values, np.mean)
        targets.append(Target(name, limit, f"{values.mean():.4f}", f"{low:.4f} to {high:.4f}", bool(is_met)))
    return report(f"Labels where 2 % of the brands' months do not arrive, {N_WORLDS} worlds", targets)


if __name__ == "__main__":
    sys.exit(main())
