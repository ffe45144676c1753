"""Challengers in the realistic world: ``python -m benchmarks.quality.challengers``.

Simulated players with returns, a season, growth and heavy tails; no campaign. Models of the default features are
trained alike, each on other players and on months before those compared. Each is champion and challenger of each other
one, on the players of a simulated variant with so many at risk, and is looked at monthly for two years.

A promotion is false if the challenger is not better over all players and months. Runs share players, so that their
intervals are too narrow. How much months differ is printed in standard deviations of an account's difference, for these
models and for one that is half a year older than the other; the test assumes 0.015.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from itertools import islice, permutations

import numpy as np
import xgboost as xgb

from benchmarks.quality import report, without_target
from benchmarks.quality.promotion import FIRST_LOOK, HORIZON, LIMITS, MONTHS, NEVER, share
from churn.data.features import encode, plan_encoding
from churn.data.labels import Horizon
from churn.data.snapshots import snapshots
from churn.evaluation.comparison import PairedCohort, compare, count_once
from churn.evaluation.sequential import PairedSums, discount_months, e_value
from churn.storage.history import new_facts
from churn.training.default_features import default_feature_names
from churn.weeks import month_ends, month_start
from tests.support.world import World, simulate_world

FIRST_MONTH, N_MONTHS = date(2022, 1, 1), 44
N_WORLDS, N_ACCOUNTS, N_MODELS, N_RUNS = 2, 100_000, 10, 400
SIZES = (300, 1_000, 3_000)
COMPARED = MONTHS - FIRST_LOOK + 1
TRAINED, AGE = 8, 6  # months of training, and by how many the older model is older
WORLD = World(campaign=False)
PARAMETERS = {
    "objective": "binary:logistic", "tree_method": "hist", "nthread": 2, "max_depth": 4, "learning_rate": 0.1,
    "min_child_weight": 10, "subsample": 0.9, "colsample_bytree": 0.9, "seed": 1,
}  # fmt: skip
ROUNDS = 80


class Models:
    """A world's snapshots at month ends, and models of its players."""

    def __init__(self, seed: int) -> None:
        simulation = simulate_world(WORLD, n_accounts=N_ACCOUNTS, first_month=FIRST_MONTH, n_months=N_MONTHS, seed=seed)
        end, horizon = month_start(FIRST_MONTH, N_MONTHS), Horizon(HORIZON)
        today = date(end.year, end.month, 28)
        facts = new_facts(simulation.extract_on(today), None, datetime(end.year, end.month, 3, tzinfo=UTC))
        days = [day for day in month_ends(FIRST_MONTH, today) if horizon.matures_on(day) <= today]
        days = days[-(TRAINED + AGE + HORIZON + COMPARED) :]
        names = default_feature_names(facts)
        shots = snapshots(facts, days, today=today, horizon=horizon, names=names)
        encoding = plan_encoding(names, shots[0].rows.columns)
        self.matrices = [encode(shot.rows, encoding) for shot in shots]
        self.shots, self.compared = shots, range(len(shots) - COMPARED, len(shots))
        rng = np.random.Generator(np.random.PCG64(seed))
        self.ids = [shot.rows["account_id"].to_numpy() for shot in shots]
        largest = max(int(ids.max()) for ids in self.ids)
        self.part_of = rng.integers(0, N_MODELS, largest + 1)
        self.place_of = rng.random(largest + 1)
        newest = range(self.compared[0] - HORIZON - TRAINED, self.compared[0] - HORIZON)
        self.scores = [self._scores(self._trained(part, newest)) for part in range(N_MODELS)]
        self.older = self._scores(self._trained(0, range(newest[0] - AGE, newest[-1] + 1 - AGE)))

    def _trained(self, part: int, months: Sequence[int]) -> xgb.Booster:
        is_of = [self.part_of[self.ids[i]] == part for i in months]
        rows = np.concatenate([self.matrices[i][rows] for i, rows in zip(months, is_of, strict=True)])
        churned = np.concatenate([self.shots[i].churned[rows] for i, rows in zip(months, is_of, strict=True)])
        return xgb.train(PARAMETERS, xgb.DMatrix(rows, churned), ROUNDS)

    def _scores(self, booster: xgb.Booster) -> list[np.ndarray]:
        return [booster.inplace_predict(self.matrices[i]).astype(np.float64) for i in self.compared]

    def cohorts(self, champion: list[np.ndarray], challenger: list[np.ndarray]) -> list[PairedCohort]:
        """Return the months compared of two models, each account once in a horizon."""
        months = zip(self.compared, champion, challenger, strict=True)
        return count_once(
            [PairedCohort(self.shots[i].as_of, self.ids[i], old, new, self.shots[i].churned) for i, old, new in months],
            HORIZON,
        )

    @property
    def n_at_risk(self) -> int:
        """Accounts at risk in the first month compared."""
        return len(self.ids[self.compared[0]])


def promoted_in(cohorts: list[PairedCohort]) -> float:
    """Return the month in which the challenger is promoted."""
    sums: list[PairedSums] = []
    for i, cohort in enumerate(cohorts):
        sums.append(cohort.sums())
        is_better = e_value(discount_months(sums), tuned_for=LIMITS.tuned_for) >= 1 / LIMITS.alpha
        if is_better and not compare(cohorts[: i + 1], HORIZON, LIMITS).broken:
            return i + FIRST_LOOK
    return NEVER


def deviation_of_months(cohorts: list[PairedCohort]) -> float:
    """Return how much months differ beyond chance, in standard deviations of an account's difference (moments)."""
    sums = [cohort.sums() for cohort in cohorts]
    whole, n = sum(sums, PairedSums()), np.array([one.n for one in sums])
    observed = float(n @ (np.array([one.mean for one in sums]) - whole.mean) ** 2) / whole.variance
    variance = (observed - len(n) + 1) / (whole.n - float(n @ n) / whole.n)
    return float(np.sign(variance) * np.sqrt(abs(variance)))


def runs_of(models: Models, size: int, equals: Sequence[list[PairedCohort]]) -> Iterator[bool]:
    """Yield whether an equal challenger is promoted, for each pair of models and each variant of that size."""
    n_variants = models.n_at_risk // size
    for variant in range(n_variants):
        for cohorts in equals:
            is_of = [(models.place_of[one.account_ids] * n_variants).astype(int) == variant for one in cohorts]
            yield promoted_in([one.select(rows) for one, rows in zip(cohorts, is_of, strict=True)]) <= MONTHS


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="benchmarks.quality.challengers", description=__doc__)
    parser.add_argument("--worlds", type=int, default=N_WORLDS)
    n_worlds = parser.parse_args(argv).worlds
    promoted: dict[int, list[bool]] = {size: [] for size in SIZES}
    of_equals, of_older = [], []
    for seed in range(n_worlds):
        models = Models(seed)
        pairs = [models.cohorts(*two) for two in permutations(models.scores, 2)]
        of_equals += [deviation_of_months(pair) for pair in pairs[::2]]
        of_older.append(deviation_of_months(models.cohorts(models.older, models.scores[0])))
        equals = [pair for pair in pairs if sum((one.sums() for one in pair), PairedSums()).mean <= 0]
        for size, found in promoted.items():
            found.extend(islice(runs_of(models, size, equals), N_RUNS // n_worlds))
    middle, high = np.quantile(of_equals, [0.5, 0.95])
    name = "deviation of months of the difference in log loss, below 0 if less than chance"
    of_age = f"{min(of_older):.4f} to {max(of_older):.4f} (range)"
    targets = [
        without_target(f"{name}: median of equals", f"{middle:.4f}", f"95 % quantile {high:.4f}"),
        without_target(f"{name}: of a model that is {AGE} months older", f"{np.mean(of_older):.4f}", of_age),
    ]
    targets += [
        share(f"{size:,} at risk, {len(found)} runs: promoted in {MONTHS} months", "lower end at most 5 %", found, 0.05)
        for size, found in promoted.items()
    ]
    return report("Equal challengers in the realistic world", targets)


if __name__ == "__main__":
    sys.exit(main())
