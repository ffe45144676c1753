"""Alerts of performance: ``python -m benchmarks.quality.performance``. Exits with 1 if a target is missed.

A fleet's cohorts of labels, one after another, which share no outcome. Scores are calibrated, but for a season of the
whole fleet. After six sound cohorts some models become worse: their AUC falls by 0.1, or too many accounts churn. All
is judged by the product's functions, after each cohort. In small fleets, whose season is no common movement of many, it
is twice as strong and begins anywhere in the year.
"""

import sys
from collections.abc import Sequence
from datetime import date
from functools import partial

import numpy as np
from scipy import special, stats

from benchmarks.quality import Target, report, share_interval
from churn.evaluation.metrics import MIN_OF_CLASS, log_loss_excess, roc_auc_interval
from churn.monitoring.conditions import EvaluatedChampion, calibration_poor, independent_cohorts, performance_low
from churn.weeks import month_start
from churn.wording import percent

N_VARIANTS, PLANTED, N_COHORTS, HORIZON = 2_000, 40, 6, 3
SIZES, ASKED = (200, 500, 1_000, 3_000), 500
SPREAD, CENTRE = 1.5, -0.6  # of the scores' log-odds: AUC 0.80, 38 % churn
SEASON, TOO_MANY = 0.3, 0.5  # log-odds
SMALL_FLEETS, N_SMALL, STRONG_SEASON = (1, 5, 19), 100, 0.6
FIRST = date(2024, 1, 29)


def draw(rng: np.random.Generator, n: int, shift: float, shuffled: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw who churned, and the scores; of a share of the accounts the score is another's."""
    log_odds = CENTRE + SPREAD * rng.standard_normal(n)
    truth = np.where(rng.random(n) < shuffled, rng.permutation(log_odds), log_odds)
    return rng.random(n) < special.expit(truth + shift), special.expit(log_odds)


def share_that_costs(auc: float) -> float:
    """Return the share of other accounts' scores at which AUC falls by ``auc``, by bisection on a large sample."""
    sound = roc_auc_interval(*draw(np.random.default_rng(1), 200_000, 0.0, 0.0)).value
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        fell = sound - roc_auc_interval(*draw(np.random.default_rng(1), 200_000, 0.0, middle)).value
        low, high = (middle, high) if fell < auc else (low, middle)
    return low


def evaluate_cohort(
    key: str, place: int, limit: float, churned: np.ndarray, scores: np.ndarray
) -> EvaluatedChampion | None:
    """Return a cohort as it is evaluated; ``None`` if an outcome is too rare."""
    if min(churned.sum(), (~churned).sum()) < MIN_OF_CLASS:
        return None
    as_of = month_start(FIRST, HORIZON * place)
    return EvaluatedChampion(
        place, key, as_of, 1, roc_auc_interval(churned, scores), limit, as_of=as_of, horizon_months=HORIZON,
        n=len(churned), n_churned=int(churned.sum()), mean_score=float(scores.mean()), is_calibrated=True,
        log_loss_excess=log_loss_excess(churned, scores),
    )  # fmt: skip


def live_through(
    rng: np.random.Generator,
    size: int,
    shuffled: float,
    shift: float,
    *,
    n_variants: int = N_VARIANTS,
    planted: int = PLANTED,
    season_of: tuple[float, float] = (SEASON, 0.0),
) -> dict[str, list[set[str]]]:
    """Return the variants that are reported after each cohort since some became worse, by kind of incident.

    Args:
        size: Labels of each of the planted variants; the others have all sizes in turn.
        shuffled: Share of the planted variants' scores that are other accounts'.
        shift: Log-odds by which more of the planted variants' accounts churn.
        season_of: The season's log-odds, and its phase.
    """
    keys = [f"v{i:04}" for i in range(n_variants)]
    sizes = {key: size if i < planted else SIZES[i % len(SIZES)] for i, key in enumerate(keys)}
    limits = {key: roc_auc_interval(*draw(rng, n, 0.0, 0.0)).low for key, n in sizes.items()}
    champions = dict.fromkeys(keys, 1)
    told: dict[str, list[set[str]]] = {"performance_low": [], "calibration_poor": []}
    evaluated: list[EvaluatedChampion] = []
    for place in range(2 * N_COHORTS):
        season = season_of[0] * np.sin(place * np.pi / 2 + season_of[1])
        for i, (key, n) in enumerate(sizes.items()):
            is_worse = i < planted and place >= N_COHORTS
            drawn = draw(rng, n, season + shift * is_worse, shuffled * is_worse)
            if (one := evaluate_cohort(key, place, limits[key], *drawn)) is not None:
                evaluated.append(one)
        cohorts = independent_cohorts(evaluated, champions)
        if place >= N_COHORTS:
            for condition in (performance_low(cohorts), calibration_poor(cohorts)):
                told[condition.kind].append(set(condition.members))
    return told


def found(told: Sequence[set[str]]) -> tuple[int, int]:
    """Return how many of the planted variants, and of the others, were ever reported."""
    ever = set().union(*told)
    planted = {f"v{i:04}" for i in range(PLANTED)}
    return len(ever & planted), len(ever - planted)


def small_fleets(rng: np.random.Generator) -> list[Target]:
    """Measure sound fleets, too few variants to show a season, and fleets in which too many of one's accounts churn."""
    rows: list[Target] = []
    n_looks = N_SMALL * N_COHORTS
    for n_variants in SMALL_FLEETS:
        n_false = n_found = 0
        for _ in range(N_SMALL):
            season_of = (STRONG_SEASON, rng.random() * 2 * np.pi)
            live = partial(live_through, rng, ASKED, 0.0, n_variants=n_variants, season_of=season_of)
            n_false += sum(bool(told) for told in live(0.0, planted=0)["calibration_poor"])
            n_found += any("v0000" in told for told in live(TOO_MANY, planted=1)["calibration_poor"])
        fleet = f"fleets of {n_variants}, season of {STRONG_SEASON} log-odds:"
        rows.append(
            _share(
                f"{fleet} looks with a false alert", n_false, n_looks, "1 % or less", is_met=n_false <= n_looks / 100
            )
        )
        rows.append(_share(f"{fleet} {TOO_MANY} more found, {ASKED} labels", n_found, N_SMALL, "none", is_met=True))
    return rows


def _share(name: str, n: int, of: int, target: str, *, is_met: bool) -> Target:
    low, high = share_interval(n, of)
    return Target(name, target, f"{percent(n / of, 1)} of {of}", f"{percent(low, 1)} to {percent(high, 1)}", is_met)


def targets() -> list[Target]:
    """Measure each size."""
    rng, shuffled = np.random.default_rng(5), share_that_costs(0.1)
    rows: list[Target] = []
    n_false = {"performance_low": 0, "calibration_poor": 0}
    for size in SIZES:
        worse = live_through(rng, size, shuffled, 0.0)
        n, others = found(worse["performance_low"])
        low, high = share_interval(n, PLANTED)
        first = next(
            (i + 1 for i, told in enumerate(worse["performance_low"]) if found([told])[0] >= PLANTED / 2), None
        )
        target, is_met = ("80 % or more", n / PLANTED >= 0.8) if size == ASKED else ("none", True)
        name = (
            f"AUC 0.80 → 0.70, {size:,} labels: found within {N_COHORTS} cohorts (half of them after {first or 'more'})"
        )
        rows.append(
            Target(name, target, f"{percent(n / PLANTED)} of {PLANTED}", f"{percent(low)} to {percent(high)}", is_met)
        )
        n_false["performance_low"] += others
        n_false["calibration_poor"] += found(worse["calibration_poor"])[1]
    for size in SIZES:
        n, _ = found(live_through(rng, size, 0.0, TOO_MANY)["calibration_poor"])
        low, high = share_interval(n, PLANTED)
        name = f"{TOO_MANY} log-odds more churn than expected, {size:,} labels: found within {N_COHORTS} cohorts"
        rows.append(
            Target(
                name, "none", f"{percent(n / PLANTED)} of {PLANTED}", f"{percent(low)} to {percent(high)}", is_met=True
            )
        )
    quarters = len(SIZES) * N_COHORTS
    for kind, n in n_false.items():
        low = stats.chi2.ppf(0.025, 2 * n) / 2 / quarters if n else 0.0
        high = stats.chi2.ppf(0.975, 2 * n + 2) / 2 / quarters
        name = f"false alerts of {kind}, {N_VARIANTS - PLANTED:,} variants, a quarter with seasons"
        rows.append(Target(name, "1 or fewer", f"{n / quarters:.2f}", f"{low:.2f} to {high:.2f}", n / quarters <= 1))
    return rows + small_fleets(np.random.default_rng(5))


def main() -> int:
    """Measure, and print the targets."""
    return report("Alerts of performance", targets())


if __name__ == "__main__":
    sys.exit(main())
