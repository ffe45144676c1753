"""Effects of campaigns, and challengers while campaigns run: ``python -m benchmarks.quality.campaigns``.

Every week a campaign draws accounts of four variants, a fifth of them as control, and every week one more cohort has
matured. A season of 0.3 log-odds goes on meanwhile. Revenue is what accounts bring that stay, with tails as heavy as in
real extracts. Contact helps some accounts and makes others leave ("sleeping dogs"): by how much depends on the world.

For challengers, the world is that of the recipe ``promotion``. Each month a campaign contacts those of the champion's
top tenth that are neither held out nor control, and keeps two fifths of those that would leave.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import polars as pl
from scipy.special import expit
from scipy.stats import binomtest, norm

from benchmarks.quality import Target, promotion, report, without_target
from benchmarks.quality.promotion import HORIZON, LIMITS, MONTHS, World, cohorts
from churn.concurrency import cores
from churn.decisions.effects import ALPHA, Estimates, Sums, claimed, estimate, inverse_weights, needed, sum_up
from churn.evaluation.comparison import PairedCohort, compare, count_once
from churn.evaluation.sequential import discount_months, e_value
from churn.wording import percent

N_NOTHING, N_EFFECTS, N_RUNS, AT_ONCE = 2_000, 400, 400, 100
WEEKS, VARIANTS, CONTROL, BASE, SEASON, CAPPED = 26, 4, 0.2, 0.4, 0.3, 0.01
SIZES = (10, 80)  # accounts that a variant's campaign draws in a week, the least and the most
TOP, HELD_OUT, KEPT = 0.1, 0.1, 0.4
PROMOTION_SIZES = (1_000, 3_000, 10_000)


@dataclass(frozen=True)
class Contact:
    """Whom contact moves, as shares of the accounts, and by how many log-odds."""

    name: str
    helped: float = 0.0
    by: float = 0.0
    dogs: float = 0.0
    dogs_by: float = 0.0


NOTHING = Contact("no effect")
WORLDS = (
    Contact("helps 40 %", 0.4, -0.7),
    Contact("helps 50 %, 15 % sleeping dogs", 0.5, -0.7, 0.15, 0.9),
    Contact("helps 10 %, 40 % sleeping dogs", 0.1, -0.7, 0.4, 0.9),
)
BALANCED = Contact("helps as much as its sleeping dogs lose", 0.4, -0.7, 0.4, 0.772)


@dataclass(frozen=True)
class Looks:
    """What is known of campaigns at each look: sums of shape (n_campaigns, n_variants, n_looks), and the truth."""

    churn: Sums
    revenue: Sums
    effects: np.ndarray
    """True effects on churn and revenue, the mean of the accounts; shape (2, n_campaigns)."""
    planned: np.ndarray
    before: np.ndarray
    """The z of the offered's churn less that of the list of the half-year before; shape (n_campaigns,)."""


def simulate(contact: Contact, n_campaigns: int, n_variants: int, seed: int, sizes: tuple[int, int] = SIZES) -> Looks:
    """Draw campaigns of half a year."""
    rng = np.random.Generator(np.random.PCG64([seed, n_campaigns]))
    shape = (n_campaigns, n_variants, WEEKS)
    per_week = np.exp(rng.uniform(*np.log(sizes), shape[:2])).round().astype(np.int64)
    of_stratum = np.repeat(per_week.ravel(), WEEKS)
    strata = np.repeat(np.arange(of_stratum.size), of_stratum)
    campaign, week, n = strata // (n_variants * WEEKS), strata % WEEKS, len(strata)
    phase = rng.uniform(0, 12, n_campaigns)
    season = SEASON * np.cos(2 * np.pi * (np.arange(-WEEKS, WEEKS) / 4.35 - phase[:, None]) / 12)
    known, kind = rng.standard_normal(n), rng.random(n)
    by = np.where(kind < contact.helped, contact.by, np.where(kind > 1 - contact.dogs, contact.dogs_by, 0.0))
    log_odds = BASE + known + 0.5 * rng.standard_normal(n)
    alone = log_odds + season[campaign, week + WEEKS]
    is_offered = rng.random(n) >= CONTROL
    churned = rng.random(n) < expit(alone + by * is_offered)
    could_bring = np.exp(4.8 + 2.2 * rng.standard_normal(n)) * rng.normal(0.2, 0.5, n)
    limits = [
        np.quantile(np.where(churned, 0, could_bring)[(campaign == i) & (week == 0)], [CAPPED, 1 - CAPPED])
        for i in range(n_campaigns)
    ]
    could_bring = could_bring.clip(*np.array(limits)[campaign].T)
    of_contact = expit(alone + by) - expit(alone)
    sums = (
        sum_up(strata, is_offered, one, np.column_stack([expit(BASE + known), known]))
        for one in (churned * 1.0, np.where(churned, 0.0, could_bring))
    )
    looks = [Sums(*(np.cumsum(one.reshape(*shape, *one.shape[1:]), 2) for one in vars(each).values())) for each in sums]
    counts = np.bincount(campaign)
    effects = [np.bincount(campaign, one) / counts for one in (of_contact, -of_contact * could_bring)]
    earlier = rng.random(n) < expit(log_odds + season[campaign, week])
    gap, both = (
        np.bincount(campaign[is_offered], one[is_offered]) for one in (churned * 1.0 - earlier, churned + earlier)
    )
    n_offered = np.bincount(campaign[is_offered])
    share = both / n_offered / 2
    before = gap / n_offered / np.sqrt(2 * share * (1 - share) / n_offered)
    return Looks(*looks, np.array(effects), per_week * WEEKS, before)


def _pooled(sums: Sums) -> Sums:
    return Sums(*(one.sum(axis=1) for one in vars(sums).values()))


@dataclass(frozen=True)
class Found:
    """What a campaign's looks led to; arrays of shape (n_campaigns,)."""

    claims: np.ndarray  # whether anything was claimed at any look
    claims_churn: np.ndarray  # whether an effect on churn over all accounts was, at any look
    claims_sign: np.ndarray  # the sign that was claimed of it first
    covers: dict[str, np.ndarray]  # whether intervals held the truth at all looks together
    z_claims: np.ndarray  # whether a z-test was significant at any look
    z_last: np.ndarray  # and at the last one


def look(looks: Looks) -> Found:
    """Look at campaigns every week by the product's functions."""
    n_campaigns, n_variants, _ = looks.churn.weights.shape
    tuned_for = looks.planned[..., None]
    blocks: list[tuple[Estimates, np.ndarray]] = []
    for of_all in (True, False):
        for sums, effects, is_share in (
            (looks.churn, looks.effects[0], True),
            (looks.revenue, looks.effects[1], False),
        ):
            one, tuned = (_pooled(sums), tuned_for.sum(axis=1)) if of_all else (sums, tuned_for)
            blocks.append((estimate(one, tuned, is_share=is_share), effects))
    if n_variants == 1:
        blocks = blocks[:2]
    e_values = np.concatenate([one.e_value.reshape(n_campaigns, -1, WEEKS) for one, _ in blocks], axis=1)
    are_claimed = np.zeros(e_values.shape, np.bool_)
    for i, at in zip(*np.nonzero(e_values.max(axis=1) >= 1 / ALPHA), strict=True):
        are_claimed[i, :, at] = claimed(e_values[i, :, at], 2)
    churn, of_churn = blocks[0][0], are_claimed[:, 0]
    first = of_churn.argmax(axis=1)
    covers = {}
    for (one, effects), name in zip(
        blocks, ("churn", "revenue", "churn of a variant", "revenue of a variant"), strict=False
    ):
        truth = effects.reshape(n_campaigns, *[1] * (one.low.ndim - 1))
        misses = ((truth < one.low) | (one.high < truth)).any(axis=-1)
        covers[name] = ~misses[one.is_enough.any(axis=-1)]  # of which anything was ever said
    z = _naive(_pooled(looks.churn))
    return Found(
        are_claimed.any(axis=(1, 2)), of_churn.any(axis=1), np.sign(churn.difference[np.arange(n_campaigns), first]),
        covers, (z > norm.ppf(1 - ALPHA / 2)).any(axis=1), z[:, -1] > norm.ppf(1 - ALPHA / 2),
    )  # fmt: skip


def _naive(sums: Sums) -> np.ndarray:
    """Return the z of two proportions at each look, without strata and covariates."""
    shares, pooled = sums.totals / sums.n, sums.totals.sum(axis=-1) / sums.n.sum(axis=-1)
    with np.errstate(all="ignore"):
        error = np.sqrt(pooled * (1 - pooled) * (1 / sums.n).sum(axis=-1))
        return np.nan_to_num(np.abs(shares[..., 1] - shares[..., 0]) / error)


def _joined(parts: Sequence[Found]) -> Found:
    covers = {name: np.concatenate([one.covers[name] for one in parts]) for name in parts[0].covers}
    arrays = {name: np.concatenate([vars(one)[name] for one in parts]) for name in vars(parts[0]) if name != "covers"}
    return Found(**arrays, covers=covers)


def _run(contact: Contact, n_variants: int, sizes: tuple[int, int], seed: int) -> tuple[Found, np.ndarray, np.ndarray]:
    looks = simulate(contact, AT_ONCE, n_variants, seed, sizes)
    return look(looks), looks.effects, looks.before


def run(
    contact: Contact, n: int, n_variants: int = 1, sizes: tuple[int, int] = SIZES
) -> tuple[Found, np.ndarray, np.ndarray]:
    """Simulate many campaigns, on all cores; returns what was found, true effects and before-and-after's z."""
    with ProcessPoolExecutor(cores()) as pool:
        found, effects, before = zip(
            *pool.map(partial(_run, contact, n_variants, sizes), range(-(-n // AT_ONCE))), strict=True
        )
    return _joined(found), np.concatenate(effects, axis=1), np.concatenate(before)


def _share(
    name: str, target: str, hits: np.ndarray, *, most: float | None = None, least: float | None = None
) -> Target:
    """Return a share with its exact binomial interval; what chance allows meets the target."""
    n, k = len(hits), int(hits.sum())
    ends = binomtest(k, n).proportion_ci()
    is_met = (most is None or ends.low <= most) and (least is None or ends.high >= least)
    interval = f"{percent(ends.low, 1)} to {percent(ends.high, 1)}"
    if most is None and least is None:
        return without_target(name, percent(k / n, 1), interval)
    return Target(f"{name} ({n:,})", target, percent(k / n, 1), interval, is_met)


def targets_of_nothing(n: int) -> Iterator[Target]:
    """Campaigns whose contact changes nothing, or nothing on average."""
    found, _, before = run(NOTHING, n, VARIANTS)
    yield _share("no effect: any effect claimed within half a year", "at most 5 %", found.claims, most=ALPHA)
    for name, holds in found.covers.items():
        yield _share(f"no effect: intervals of {name} hold at all looks", "at least 95 %", holds, least=1 - ALPHA)
    yield _share("no effect: a z-test of churn each week is significant once", "none", found.z_claims)
    yield _share("no effect: churn of the list, after against before, is significant", "none", np.abs(before) > 1.96)
    found, effects, _ = run(BALANCED, n // 5, VARIANTS)
    yield without_target(f"{BALANCED.name}: true effect", f"{100 * effects[0].mean():+.2f} points")
    yield _share(f"{BALANCED.name}: an effect on churn claimed", "at most 5 %", found.claims_churn, most=ALPHA)
    yield _share(f"{BALANCED.name}: intervals of churn hold", "at least 95 %", found.covers["churn"], least=1 - ALPHA)


def targets_of_effects(n: int) -> Iterator[Target]:
    """Campaigns with an effect, as large as the plan asks for a power of 80 %."""
    for world in WORLDS:
        draft = simulate(world, AT_ONCE, 1, 0, (800, 800))
        effect = float(draft.effects[0].mean())
        last = Sums(*(one[:, 0, -1] for one in vars(draft.churn).values()))
        churn = float(last.totals[:, 0].sum() / last.n[:, 0].sum())
        per_week = round(needed(churn, effect, CONTROL, 2) / WEEKS)
        found, _, before = run(world, n, 1, (per_week, per_week))
        size = f"{100 * effect:+.1f} points, {per_week * WEEKS:,} accounts"
        is_found = found.claims_churn & (found.claims_sign == np.sign(effect))
        yield _share(f"{world.name}: {size}: found", "at least 80 %", is_found, least=0.8)
        for name, holds in found.covers.items():
            yield _share(
                f"{world.name}: intervals of {name} hold at all looks", "at least 95 %", holds, least=1 - ALPHA
            )
        is_wrong = (np.abs(before) > 1.96) & (np.sign(before) != np.sign(effect))
        yield _share(f"{world.name}: after against before is significant with the wrong sign", "none", is_wrong)


def contacted(n: int, seed: int) -> Iterator[PairedCohort]:
    """Simulate months in which a campaign contacts the champion's top tenth."""
    held_out = np.random.Generator(np.random.PCG64(seed)).random(n * (MONTHS + 1)) < HELD_OUT
    for month, cohort in enumerate(cohorts(World(), n, MONTHS - promotion.FIRST_LOOK + 1, seed)):
        rng, ids = np.random.Generator(np.random.PCG64([seed, n, month])), cohort.account_ids
        is_top = cohort.champion >= np.quantile(cohort.champion, 1 - TOP)
        arms = np.where(held_out[ids], "held_out", np.where(rng.random(n) < CONTROL, "control", "offered"))
        is_kept = is_top & (arms == "offered") & (rng.random(n) < KEPT)
        members = pl.DataFrame({"account_id": ids, "arm": arms}).filter(pl.Series(is_top))
        members = members.with_columns(holdout_share=pl.lit(HELD_OUT), control_share=pl.lit(CONTROL))
        yield replace(cohort, churned=cohort.churned & ~is_kept, weights=inverse_weights(ids, members))


def is_promoted(known: Sequence[PairedCohort]) -> bool:
    """Return whether a challenger is promoted at any monthly look; guardrails take longer, and decide only then."""
    counted = count_once(known, HORIZON)
    sums = [one.sums() for one in counted]
    for i in range(len(counted)):
        if e_value(discount_months(sums[: i + 1]), tuned_for=LIMITS.tuned_for) >= 1 / LIMITS.alpha:
            comparison = compare(counted[: i + 1], HORIZON, LIMITS)
            if comparison.is_better and not comparison.broken:
                return True
    return False


def promoted(n: int, seed: int) -> tuple[bool, bool]:
    """Return whether an equal challenger is promoted within two years, by weighted accounts and by all alike."""
    known = list(contacted(n, seed))
    weighted = [one if one.weights is None else one.select(one.weights > 0) for one in known]
    return is_promoted(weighted), is_promoted([replace(one, weights=None) for one in known])


def targets_of_promotion(n_runs: int) -> Iterator[Target]:
    """Equal challengers that are promoted while campaigns act on the champion's list."""
    for n in PROMOTION_SIZES:
        with ProcessPoolExecutor(cores()) as pool:
            found = np.array(list(pool.map(partial(promoted, n), range(n_runs), chunksize=10)))
        label = f"{n:,} at risk, campaigns each month: equals promoted in {MONTHS} months"
        yield _share(f"{label}, all accounts alike", "none", found[:, 1])
        yield _share(f"{label}, treated ones left out", "lower end at most 5 %", found[:, 0], most=0.05)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="benchmarks.quality.campaigns", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the runs, for a shorter look")
    share = parser.parse_args(argv).share
    numbers = [max(round(n * share), AT_ONCE) for n in (N_NOTHING, N_EFFECTS)]
    n_runs = max(round(N_RUNS * share), 10)
    groups = (targets_of_nothing(numbers[0]), targets_of_effects(numbers[1]), targets_of_promotion(n_runs))
    return report("Effects of campaigns", [target for group in groups for target in group])


if __name__ == "__main__":
    sys.exit(main())
