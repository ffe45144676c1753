"""Drift in the realistic world: ``python -m benchmarks.quality.drift``. Exits with 1 if a target is missed.

Variants are sets of accounts of a few large simulated markets, each with seasons, growth, gaps in its feed, late rows
and running months. References are of a year, as training makes them; in the year after it an extract is read every four
weeks, and compared and flagged with the product's functions. Nothing is planted at first; then shares of the rows are
moved. A gap of a feed is a real change: alerts of variants of a market that had one lately are counted apart. Variants
of a market share accounts, so that the interval of false alerts is too narrow.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import partial
from itertools import pairwise
from multiprocessing import get_context

import numpy as np
import polars as pl
import xgboost as xgb
from scipy import stats

from benchmarks.quality import Target, report, share_interval
from churn.concurrency import cores
from churn.data.features import Packed, encode, features, is_active, pack_matrix, plan_encoding
from churn.monitoring.conditions import LEAST_COMMON
from churn.monitoring.drift import FeatureDrift, Flag, common_moves, compare_fleet, flag_fleet
from churn.monitoring.profiles import Bins, Profile, reference_profile, season_of
from churn.training.default_features import default_feature_names
from churn.variants import Variant
from churn.weeks import at_risk_since, month_start
from churn.wording import percent
from tests.support.world import World, simulate_world

WORLD = World(restated=False)
FIRST_MONTH, N_MONTHS, HORIZON = date(2022, 1, 1), 36, 3
MONDAYS = [date(2023, 1, 2) + timedelta(weeks=n) for n in range(104)]
N_REFERENCE, N_BLOCKS = 52, 50
N_MARKETS, N_ACCOUNTS, N_VARIANTS, N_READ, EVERY = 8, 90_000, 2_000, 13, 4
N_ALONE = 200
SIZES, LEAST_SIZE, PLANTED = (300, 500, 1_000, 2_000, 3_000, 5_000), 3_000, 10
PLANTED_SHARE = 0.1
SHARES = {0.06: 1, 0.08: 1, PLANTED_SHARE: 4, 0.15: 1, 0.2: 1, 0.3: 1}  # moved, and how many times
MOVED = ("total_handle_sum_3m", "brand_id", "total_deposit_count_6m", "ben_login_id", "total_ngr_sum_3m")
BOOSTER = {"objective": "binary:logistic", "max_depth": 4, "eta": 0.1, "min_child_weight": 10, "nthread": 1}
ROUNDS = 60


@dataclass(frozen=True)
class Market:
    """A market's accounts at risk each week, counted in blocks of accounts: ``counts`` is (weeks, blocks, bins)."""

    bins: tuple[Bins, ...]
    counts: np.ndarray
    gap_weeks: frozenset[int]


@dataclass
class Fleet:
    """Variants of the markets, with a reference each."""

    markets: Sequence[Market]
    members: list[tuple[int, np.ndarray]]
    references: list[Profile] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number, blocks in self.members:
            weeks = self.markets[number].counts[:N_REFERENCE, blocks].sum(axis=1)
            parts: dict[str, np.ndarray] = {}
            for day, counts in zip(MONDAYS, weeks, strict=False):
                parts[season_of(day)] = parts.get(season_of(day), 0) + counts
            self.references.append(Profile(self.markets[number].bins, weeks.sum(axis=0), parts))

    def compare(
        self, week: int, moved: Mapping[int, str] | None = None, share: float = 0.0
    ) -> dict[str, list[FeatureDrift]]:
        """Compare a week's batches; of those ``moved`` after a share of the rows was moved in a feature."""
        profiles = {}
        for i in range(len(self.members)) if moved is None else moved:
            (number, blocks), reference = self.members[i], self.references[i]
            batch = Profile(reference.bins, self.markets[number].counts[week, blocks].sum(axis=0))
            before, year = reference.at(MONDAYS[week])
            profiles[str(i)] = (before, batch if moved is None else move(batch, moved[i], share), year)
        return compare_fleet(profiles)


def simulate_market(number: int, *, n_accounts: int, weeks: Sequence[int]) -> Market:
    """Simulate a market, train a model on its first year, and count its accounts at risk at the weeks' Mondays."""
    variant = Variant(f"g{number}", f"c{number % 5}")
    world = simulate_world(
        WORLD, n_accounts=n_accounts, first_month=FIRST_MONTH, n_months=N_MONTHS, seed=100 + number, variant=variant
    )
    names = default_feature_names(world.extract())
    matrices, accounts = [], []
    for week in weeks:
        extract, as_of = world.extract_on(MONDAYS[week]), MONDAYS[week]
        month = pl.col("activity_month")
        active = extract.filter(is_active(extract)).filter(month.is_between(at_risk_since(as_of, HORIZON), as_of))
        rows = features(extract, as_of, names)
        rows = rows.filter(pl.col("account_id").is_in(active["account_id"].unique().implode()))
        encoding = plan_encoding(names, rows.columns)
        matrices.append(encode(rows, encoding))
        accounts.append(rows["account_id"].to_numpy())
    of_reference = [i for i, week in enumerate(weeks) if week < N_REFERENCE]
    active = world.truth.filter(is_active(world.truth)).select("account_id", "activity_month")

    def churned(i: int) -> np.ndarray:
        first, last = (month_start(MONDAYS[weeks[i]], n) for n in (1, HORIZON))
        later = active.filter(pl.col("activity_month").is_between(first, last))["account_id"]
        return ~np.isin(accounts[i], later.to_numpy())

    trained = of_reference[::4]
    data = xgb.DMatrix(np.concatenate([matrices[i] for i in trained]), np.concatenate([churned(i) for i in trained]))
    booster = xgb.train(BOOSTER, data, ROUNDS)
    year = np.concatenate([matrices[i] for i in of_reference])
    profile = reference_profile(pack_matrix(year, encoding), encoding, booster.inplace_predict(year))
    counts = np.zeros((len(MONDAYS), N_BLOCKS, len(profile.counts)), dtype=np.int64)
    for week, matrix, ids in zip(weeks, matrices, accounts, strict=True):
        packed, scores, block = (
            pack_matrix(matrix, encoding),
            booster.inplace_predict(matrix),
            (ids * 40_503 >> 4) % N_BLOCKS,
        )
        for i in range(N_BLOCKS):
            rows = np.flatnonzero(block == i)
            some = Packed(packed.numbers[:, rows], packed.levels[:, rows])
            counts[week, i] = profile.count(some, scores[rows]).counts
    return Market(profile.bins, counts, gap_weeks(world.truth))


def gap_weeks(truth: pl.DataFrame) -> frozenset[int]:
    """Return the weeks within four months after a month in which a brand of 2 % of the rows or more did not arrive."""
    of_month = truth.group_by("activity_month").agg(n_month=pl.len())
    lost = truth.group_by("activity_month", "brand_id").agg(n=pl.len(), n_lost=(~pl.col("ever_arrives")).sum())
    lost = lost.join(of_month, on="activity_month").filter(pl.col("n_lost") >= 0.02 * pl.col("n_month"))
    months = lost["activity_month"].to_list()
    return frozenset(
        week for week, day in enumerate(MONDAYS) if any(month <= day < month_start(month, 5) for month in months)
    )


def move(batch: Profile, feature: str, share: float) -> Profile:
    """Move a share of the rows: of a number from its highest values to its lowest, of a category between two levels."""
    counts = {name: values.astype(float) for name, values in batch.by_feature().items()}
    values, bins = counts[feature], next(one for one in batch.bins if one.feature == feature)
    n, known = values.sum() * share, values[:-1]
    order = np.argsort(-known) if bins.levels else np.arange(len(known))[::-1]
    taken = np.zeros(len(known))
    for place in order:
        taken[place] = min(known[place] * (1.0 if bins.levels else 0.5), n - taken.sum())
    into = order[min(2, len(order) - 1)] if bins.levels else 0
    known -= taken
    known[into] += taken.sum()
    return replace(batch, counts=np.concatenate([np.rint(counts[one.feature]).astype(np.int64) for one in batch.bins]))


def draw_members(rng: np.random.Generator, markets: Sequence[Market], n_variants: int) -> list[tuple[int, np.ndarray]]:
    """Draw variants of 1 to 50 blocks, so that small ones are as many as large ones."""
    sizes = np.exp(rng.uniform(0, np.log(N_BLOCKS + 1), n_variants)).astype(int)
    return [(i % len(markets), rng.choice(N_BLOCKS, size, replace=False)) for i, size in enumerate(sizes)]


@dataclass
class Year:
    """What a year of inputs led to, nothing planted."""

    false: list[set[int]]
    of_gaps: set[int] = field(default_factory=set)
    fleet_moved: set[str] = field(default_factory=set)
    flagged: set[str] = field(default_factory=set)


def live_through(fleet: Fleet, compared: Mapping[int, Mapping[str, list[FeatureDrift]]]) -> Year:
    """Flag and confirm the inputs of each week that is read, one after another."""
    year = Year([set() for _ in fleet.markets])
    last: frozenset[Flag] = frozenset()
    moved_before: set[str] = set()
    for week, drifts in compared.items():
        flags, moved = flag_fleet(drifts), set(common_moves(drifts, LEAST_COMMON))
        for flag in flags & last:
            number = fleet.members[int(flag.variant)][0]
            alerts = year.of_gaps if week in fleet.markets[number].gap_weeks else year.false[number]
            alerts.add(int(flag.variant))
        year.flagged |= {flag.variant for flag in flags}
        year.fleet_moved |= moved & moved_before
        last, moved_before = flags, moved
    return year


def alerts_alone(compared: Mapping[int, Mapping[str, list[FeatureDrift]]], n_variants: int) -> int:
    """Return how many of the first variants are ever reported when each is compared without a fleet."""
    n_alerts = 0
    for key in map(str, range(n_variants)):
        flags = [flag_fleet({key: drifts[key]}) for drifts in compared.values()]
        n_alerts += any(this & last for last, this in pairwise(flags))
    return n_alerts


def power(
    fleet: Fleet, compared: Mapping[int, Mapping[str, list[FeatureDrift]]], rng: np.random.Generator
) -> dict[tuple[int, float], tuple[int, int]]:
    """Return how many planted moves are confirmed within three inputs, and of how many, by size and share moved."""
    weeks = list(compared)[:3]
    sizes = np.array([reference.at(MONDAYS[weeks[0]])[0].n_rows for reference in fleet.references])
    found: dict[tuple[int, float], tuple[int, int]] = {}
    for share, n_rounds in SHARES.items():
        for round_ in range(n_rounds):
            size_of: dict[int, int] = {}
            for size in SIZES:
                near = np.flatnonzero(np.abs(sizes / size - 1.1) < 0.2)  # of 3,000 those with 2,700 to 3,900
                size_of |= dict.fromkeys(rng.choice(near, PLANTED, replace=False).tolist(), size)
            chosen = {i: MOVED[(round_ + place) % len(MOVED)] for place, i in enumerate(size_of)}
            planted = {week: fleet.compare(week, chosen, share) for week in weeks}
            flags = [flag_fleet({**compared[week], **planted[week]}) for week in weeks]
            for i, size in size_of.items():
                hits = [Flag(str(i), chosen[i]) in of_week for of_week in flags]
                n, of = found.get((size, share), (0, 0))
                found[size, share] = n + ((hits[0] and hits[1]) or (hits[1] and hits[2])), of + 1
    return found


def _targets(
    year: Year, n_alone: int, found: Mapping[tuple[int, float], tuple[int, int]], n_variants: int
) -> list[Target]:
    quarters, n_false = N_READ * EVERY / 13, sum(map(len, year.false))
    low = stats.chi2.ppf(0.025, 2 * n_false) / 2 / quarters if n_false else 0.0
    high = stats.chi2.ppf(0.975, 2 * n_false + 2) / 2 / quarters
    a_quarter = n_false / quarters
    name = f"false alerts of {n_variants:,} variants a quarter, nothing planted"
    moved = ", ".join(sorted(year.fleet_moved)) or "none"
    return [
        Target(name, "1 or fewer", f"{a_quarter:.2f}", f"{low:.2f} to {high:.2f}", a_quarter <= 1),
        _told("alerts in that year of variants with a gap of the feed", str(len(year.of_gaps))),
        _told("features that moved in the fleet in that year", moved),
        _told(f"of {N_ALONE} variants compared without a fleet, those with an alert in that year", str(n_alone)),
        *(_found(found, size) for size in SIZES),
        *(_smallest(found, size) for size in SIZES),
    ]


def _told(name: str, figure: str) -> Target:
    return Target(name, "none", figure, "", is_met=True)


def _found(found: Mapping[tuple[int, float], tuple[int, int]], size: int) -> Target:
    n, of = found[size, PLANTED_SHARE]
    low, high = share_interval(n, of)
    target, is_met = ("95 % or more", n / of >= 0.95) if size >= LEAST_SIZE else ("none", True)
    name = f"a tenth of the rows moved, about {size:,} rows: found within three inputs"
    return Target(name, target, f"{percent(n / of)} of {of}", f"{percent(low)} to {percent(high)}", is_met)


def _smallest(found: Mapping[tuple[int, float], tuple[int, int]], size: int) -> Target:
    shares = [share for share in sorted(SHARES) if found[size, share][0] >= 0.8 * found[size, share][1]]
    figure = percent(shares[0]) if shares else f"over {percent(max(SHARES))}"
    return _told(f"smallest share moved of which 80 % are found, about {size:,} rows", figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the targets."""
    parser = argparse.ArgumentParser(prog="benchmarks.quality.drift", description=__doc__)
    parser.add_argument("--variants", type=int, default=N_VARIANTS)
    parser.add_argument("--markets", type=int, default=N_MARKETS)
    parser.add_argument("--accounts", type=int, default=N_ACCOUNTS)
    args = parser.parse_args(argv)
    read = [N_REFERENCE + EVERY * n for n in range(N_READ)]
    simulate = partial(simulate_market, n_accounts=args.accounts, weeks=[*range(N_REFERENCE), *read])
    with ProcessPoolExecutor(cores(), mp_context=get_context("spawn")) as pool:
        markets = list(pool.map(simulate, range(args.markets)))
    rng = np.random.default_rng(7)
    fleet = Fleet(markets, draw_members(rng, markets, args.variants))
    compared = {week: fleet.compare(week) for week in read}
    n_alone = alerts_alone(compared, min(N_ALONE, args.variants))
    targets = _targets(live_through(fleet, compared), n_alone, power(fleet, compared, rng), args.variants)
    return report("Drift in the realistic world", targets)


if __name__ == "__main__":
    sys.exit(main())
