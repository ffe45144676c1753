"""The effect of a campaign: churn and net revenue of the offered accounts against the control group. Pure.

An account counts in the arm that it was drawn into, contacted or not (intention to treat). Arms are compared within
strata (a variant's cohort of a month) and adjusted by what was known before the draw (CUPED, as one regression), with
Neyman's variance of each arm. A look sees whole matured cohorts, so what it sees does not depend on outcomes; e-values
and intervals hold at every look (Lindon et al., "Anytime-valid linear models and regression adjustment", arXiv
2210.08589). Not here: scores less outcomes, or after less before; they measure the model and the season.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import optimize, special

from churn.data.arrays import Doubles, Flags, Longs
from churn.errors import UsageError
from churn.evaluation.sequential import e_benjamini_hochberg, mixture_variance

ALPHA, POWER = 0.05, 0.8
MIN_OF_ARM = 50
"""Degrees of freedom of an arm below which nothing is said, since the intervals are of the central limit theorem."""
MIN_OF_OUTCOME = 10
"""Accounts of an arm that churned, that stayed, or that brought revenue, below which nothing is said."""
_CAPPED = 0.01  # of each tail of revenue, where one account in thousands would decide a mean
_LEAST_VARIANTS = 3  # whose spread says how much variants differ
_MOST_LOG = 690.0  # e-values stay finite, for JSON


@dataclass(frozen=True)
class Sums:
    """Sums of an outcome and k covariates over strata; those of several strata add up. Arms are (control, offered).

    Strata with an arm of fewer than two accounts are counted and not compared.
    """

    n: Doubles  # (..., 2): accounts
    totals: Doubles  # (..., 2): sums of the outcome
    n_hits: Doubles  # (..., 2): accounts whose outcome is not 0
    freedom: Doubles  # (..., 2): degrees of freedom of the arms' variances
    n_compared: Doubles  # (...): accounts of strata that are compared
    weights: Doubles  # (...)
    gaps: Doubles  # (..., 1 + k): weighted differences of means, offered less control
    scatter: Doubles  # (..., 1 + k, 1 + k): products within arms
    noise: Doubles  # (..., 1 + k, 1 + k): weighted covariances of the gaps

    def by(self, groups: Longs, n_groups: int) -> "Sums":
        """Add up strata, shape (n,), by group; the result has shape (n_groups,)."""
        summed = [np.zeros((n_groups, *values.shape[1:])) for values in vars(self).values()]
        for values, into in zip(vars(self).values(), summed, strict=True):
            np.add.at(into, groups, values)
        return Sums(*summed)


def sum_up(strata: Longs, is_offered: Flags, outcomes: Doubles, covariates: Doubles) -> Sums:
    """Sum up accounts by their stratum's number; arrays of shape (n,), and ``covariates`` (n, k)."""
    spread = covariates.std(axis=0)
    scaled = (covariates - covariates.mean(axis=0)) / np.where(spread > 0, spread, 1)
    columns, groups = np.column_stack([outcomes, scaled]).T, 2 * strata + is_offered

    def added(values: Any) -> Doubles:
        return np.bincount(groups, values, 2 * (int(strata.max()) + 1)).reshape(-1, 2).astype(np.float64)

    n, n_hits = added(None), added(outcomes != 0)
    sums = np.array([added(column) for column in columns])
    means = sums / np.maximum(n, 1)
    off = columns - means.reshape(len(columns), -1)[:, groups]
    products = np.array([[added(one * other) for other in off] for one in off]).transpose(2, 3, 0, 1)
    is_compared = np.asarray((n >= 2).all(axis=1), np.float64)
    freedom = is_compared[:, None] * (n - 1)
    weights = is_compared * np.asarray(n.prod(axis=1) / np.maximum(n.sum(axis=1), 1))
    gaps = weights[:, None] * (means[..., 1] - means[..., 0]).T
    scatter = is_compared[:, None, None] * products.sum(axis=1)
    noise = weights[:, None, None] ** 2 * (products / np.maximum(freedom * n, 1)[..., None, None]).sum(axis=1)
    return Sums(n, sums[0], n_hits, freedom, is_compared * n.sum(axis=1), weights, gaps, scatter, noise)


class Estimates(NamedTuple):
    """Differences, offered less control; all of one shape. If not ``is_enough``: unbounded, and an e-value of 1."""

    difference: Doubles
    error: Doubles
    low: Doubles
    high: Doubles
    e_value: Doubles
    is_enough: Flags


def estimate(sums: Sums, tuned_for: npt.ArrayLike, *, is_share: bool) -> Estimates:
    """Estimate effects with 95 % intervals valid at every look; ``is_share`` is of outcomes that are 0 or 1.

    ``tuned_for`` is the number of accounts, fixed before the first look, by which intervals are narrowest. The e-value
    is the likelihood ratio of a normal mixture of effects, in Student's form; an interval has those with one below 20.
    """
    rarest = np.minimum(sums.n_hits, sums.n - sums.n_hits) if is_share else sums.n_hits
    slopes = np.linalg.pinv(sums.scatter[..., 1:, 1:], rcond=1e-10, hermitian=True) @ sums.scatter[..., 1:, :1]
    adjusted = np.concatenate([np.ones_like(sums.gaps[..., :1]), -slopes[..., 0]], axis=-1)
    with np.errstate(all="ignore"):  # where there are too few
        difference = (sums.gaps * adjusted).sum(axis=-1) / sums.weights
        variance = np.einsum("...i,...ij,...j", adjusted, sums.noise, adjusted) / sums.weights**2
        freedom = sums.freedom.min(axis=-1)
        is_enough = (freedom >= MIN_OF_ARM) & (rarest.min(axis=-1) >= MIN_OF_OUTCOME) & (variance > 0)
        spread = sums.n_compared * mixture_variance(ALPHA, tuned_for) + 1
        t_squared = difference**2 / variance / freedom
        log_e = ((freedom + 1) * np.log((1 + t_squared) / (1 + t_squared / spread)) - np.log(spread)) / 2
        level = (spread / ALPHA**2) ** (1 / (freedom + 1))
        reach = np.sqrt(variance * freedom * (level - 1) / np.maximum(1 - level / spread, 0))
    reach = np.where(is_enough, reach, np.inf)
    e_value = np.where(is_enough, np.exp(np.minimum(log_e, _MOST_LOG)), 1.0)
    return Estimates(difference, np.sqrt(variance), difference - reach, difference + reach, e_value, is_enough)


def claimed(e_values: Doubles, n_of_all: int) -> list[bool]:
    """Return which effects are claimed, so that at most a share ``ALPHA`` of the claims is false (weighted e-BH).

    The first ``n_of_all`` are over all accounts and share half of the level, those of variants the other half. If there
    are no others they share the whole.
    """
    n, n_others = len(e_values), len(e_values) - n_of_all
    shares = np.repeat([1 / n_of_all, 1 / max(n_others, 1)], [n_of_all, n_others]) / (2 if n_others else 1)
    return e_benjamini_hochberg((n * shares * e_values).tolist(), ALPHA)


def shrunken(differences: Doubles, errors: Doubles) -> Doubles:
    """Return empirical Bayes estimates of variants, shape (n,): what to expect of each if it is done again.

    They are nearer to the mean, the less variants differ beyond chance (DerSimonian and Laird) and the larger the
    error. NaN of fewer than three variants, and of those without an estimate.
    """
    known, result = np.isfinite(differences) & (errors > 0), np.full(len(differences), np.nan)
    if known.sum() >= _LEAST_VARIANTS:
        effects, p = differences[known], errors[known] ** -2.0
        excess = p @ (effects - p @ effects / p.sum()) ** 2 - (len(p) - 1)
        between = max(0.0, excess / (p.sum() - p @ p / p.sum()))
        weights = 1 / (between + 1 / p)
        mean = weights @ effects / weights.sum()
        result[known] = mean + between * weights * (effects - mean)
    return result


def measure(accounts: pl.DataFrame, planned: Mapping[str, int]) -> pl.DataFrame:
    """Return a campaign's effects on churn and net revenue, over all accounts and, of several variants, of each.

    Args:
        accounts: Those whose outcomes are known, once each: ``variant``, ``cohort`` (the month drawn), ``is_offered``,
            ``is_exposed`` (contacted, in either arm), ``churned``, ``net_revenue``; all others are covariates. Revenue
            counts up to quantiles of the first cohort, fixed at the first look.
        planned: The number of accounts drawn of each variant, both arms.

    Returns:
        ``variant`` (null of all), ``outcome``, and of the arms ``n_``, ``mean_`` and ``exposed_offered`` and
        ``_control``; ``difference`` from ``low`` to ``high``, ``shrunken``, ``e_value``, ``is_claimed``, ``status``.
    """
    if accounts.is_empty():
        return pl.DataFrame()
    variants, of_account = sorted(planned), accounts.select("is_exposed", "churned", "net_revenue").cast(pl.Float64)
    months, cohorts = np.unique(accounts["cohort"].to_numpy(), return_inverse=True)
    strata = np.searchsorted(variants, accounts["variant"].to_list()) * len(months) + cohorts
    first, is_offered = of_account.filter(cohorts == 0)["net_revenue"].to_numpy(), accounts["is_offered"].to_numpy()
    of_account = of_account.with_columns(pl.col("net_revenue").clip(*np.quantile(first, [_CAPPED, 1 - _CAPPED])))
    covariates = accounts.drop("variant", "cohort", "is_offered", *of_account.columns).cast(pl.Float64).to_numpy()
    exposures, *outcomes = (sum_up(strata, is_offered, one.to_numpy(), covariates) for one in of_account)
    of_stratum = np.arange(len(exposures.n)) // len(months)
    rows = []
    for names, groups, tuned_for in (
        ([None], of_stratum * 0, [sum(planned.values())]),
        (variants, of_stratum, [planned[variant] for variant in variants]),
    )[: len(variants)]:
        for outcome, one in zip(("churn", "net_revenue"), outcomes, strict=True):
            exposed, sums = (each.by(groups, len(names)) for each in (exposures, one))
            rows.append(_rows(outcome, names, sums, exposed, np.maximum(tuned_for, 1)))
    table = pl.concat(rows)
    return table.with_columns(is_claimed=pl.Series(claimed(table["e_value"].to_numpy(), 2)))


def _rows(outcome: str, names: Sequence[str | None], sums: Sums, exposed: Sums, tuned_for: Longs) -> pl.DataFrame:
    found, n = estimate(sums, tuned_for, is_share=outcome == "churn"), np.maximum(sums.n, 1)
    status = np.where(found.is_enough, "ok", np.where(sums.n[:, 0] > 0, "too few", "no control group"))
    values = {"n": sums.n, "mean": sums.totals / n, "exposed": exposed.totals / n}
    arms = {f"{of}_{arm}": values[of][:, i] for i, arm in ((1, "offered"), (0, "control")) for of in values}
    intervals = {name: getattr(found, name) for name in ("difference", "low", "high", "e_value")}
    keys = {"variant": pl.Series(names, dtype=pl.String), "outcome": outcome, "status": status.tolist()}
    table = pl.DataFrame(keys | arms | intervals | {"shrunken": shrunken(found.difference, found.error)})
    return table.cast({"n_offered": pl.Int64, "n_control": pl.Int64})


def inverse_weights(account_ids: Longs, members: pl.DataFrame) -> Doubles | None:
    """Return weights by which accounts that were offered nothing stand for all, shape (n,); ``None`` if all are alike.

    They are 0 for accounts that were offered something, and 1 / p for others, p the probability of staying untreated:
    1 below every cut, and ``h + (1 - h) c`` above one, of holdout share h and control share c. The holdout is the same
    in all campaigns; each draws its control by itself. ``members`` has ``account_id``, ``arm``, ``holdout_share`` and
    ``control_share`` of each campaign above whose cut an account was, held out or not.
    """
    held_out, control = pl.col("holdout_share"), pl.col("control_share")
    untreated = held_out.first() + ((held_out.shift(-1, fill_value=1.0) - held_out) * control.cum_prod()).sum()
    of_account = members.sort("holdout_share").group_by("account_id")
    weights = of_account.agg(weight=pl.when((pl.col("arm") == "offered").any()).then(0.0).otherwise(1 / untreated))
    joined = pl.DataFrame({"account_id": account_ids}).join(weights, "account_id", "left", maintain_order="left")
    found = joined["weight"].fill_null(1.0).to_numpy()
    return None if (found == 1).all() else np.where(np.isfinite(found), found, 0.0)


def needed(churn: float, change: float, control_share: float, n_claims: int = 0) -> int:
    """Return the accounts, both arms, by which a change of churn is found with a power of 80 %.

    ``n_claims`` is how many share the level: 2 of one variant (churn and net revenue), 4 of several (over all, and of
    each). 0 is one z-test at a time fixed before.

    >>> needed(0.60, -0.05, 0.2), needed(0.60, -0.05, 0.2, 2)
    (4739, 10268)
    """
    if not (0 < churn < 1 and 0 < control_share < 1):
        raise UsageError(f"churn {churn} and control share {control_share} allow no plan; give shares between 0 and 1")
    after = min(max(churn + change, 0.0), 1.0)
    variance = churn * (1 - churn) / control_share + after * (1 - after) / (1 - control_share)
    reach, spread = special.ndtri(1 - ALPHA / 2), 1 + float(mixture_variance(ALPHA, 1))
    if n_claims:  # at the size that the intervals are narrowest at
        reach = math.sqrt(spread / (spread - 1) * math.log(spread / (ALPHA / n_claims) ** 2))
    return math.ceil(float(reach + special.ndtri(POWER)) ** 2 * variance / change**2)


def smallest(churn: float, n: int, control_share: float, n_claims: int = 0) -> float | None:
    """Return the smallest decrease of churn that so many accounts show, as :func:`needed`; ``None`` if none."""
    if needed(churn, -churn, control_share, n_claims) > n:
        return None
    return float(optimize.brentq(lambda fall: needed(churn, -fall, control_share, n_claims) - n, 1e-6, churn))
