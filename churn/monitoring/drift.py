"""Drift: compares the inputs and scores of a fleet's batches with the references of their models. Pure.

Works on profiles, so that thousands of variants are compared in a second. A threshold on an index alone raises false
alarms in small batches, and one on a p-value alone in large ones, so a drift must be both significant and large. The
false discovery rate is controlled over the fleet, and a drift of a single week is not reported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from statistics import median
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from churn.errors import InputError
from churn.evaluation.metrics import discoveries
from churn.monitoring.profiles import Profile, require_same_bins

LEAST_PSI = 0.02
"""A tenth of the rows in other bins makes a PSI of at least 0.04, as PSI >= 4 (share moved)²; half of it leaves room
for noise at 1,000 rows."""

LEAST_UNKNOWN_RISE = 0.01

_LEAST_EXPECTED = 5.0
_DAYS_BETWEEN_DATA = 31
_GRACE_DAYS = 7
_BATCHES_REMEMBERED = 8

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FeatureDrift:
    """How one feature, or the score, of a batch differs from the reference.

    Attributes:
        psi: Population stability index.
        excess_psi: PSI minus its expectation without drift, (bins - 1) (1/n + 1/m); can be negative.
        jensen_shannon: Jensen-Shannon distance, base 2, in [0, 1].
        p_value: Probability of a difference at least this large without drift.
        unknown_share: Share of rows with a missing value or a level that the model does not know.
        unknown_rise: Increase of that share over the reference's; negative if it decreased.
        unknown_p_value: Probability of an increase at least this large without drift.
    """

    feature: str
    n_rows: int
    psi: float
    excess_psi: float
    jensen_shannon: float
    p_value: float
    unknown_share: float
    unknown_rise: float
    unknown_p_value: float


class Flag(NamedTuple):
    """A feature of a variant that drifted."""

    variant: str
    feature: str


def compare(reference: Profile, batch: Profile) -> list[FeatureDrift]:
    """Compare one batch with its model's reference; see :func:`compare_fleet`."""
    return compare_fleet({"": (reference, batch)})[""]


def compare_fleet(profiles: Mapping[str, tuple[Profile, Profile]]) -> dict[str, list[FeatureDrift]]:
    """Compare each variant's batch with its model's reference, feature by feature, all at once.

    Bins with fewer than 5 expected rows on either side are merged; the two samples together decide that, so it favours
    no outcome. In a PSI a bin empty on one side counts half a row. The p-value is that of the likelihood ratio test.
    Its statistic 2 (n + m) JS, JS weighted by the samples' sizes, equals PSI / (1/n + 1/m) for small differences, but
    follows its chi-squared distribution in the tails as well, where PSI exceeds it tenfold.

    Args:
        profiles: Reference and batch by variant, in the same bins; an empty batch has no drift.

    Raises:
        InputError: If a batch has other bins than its reference.
    """
    for reference, batch in profiles.values():
        require_same_bins(reference, batch)
    n_bins = np.array([bins.n_bins for reference, _ in profiles.values() for bins in reference.bins], dtype=np.int64)
    if not len(n_bins):
        return {variant: [] for variant in profiles}
    before = _padded([reference.counts for reference, _ in profiles.values()], n_bins)
    now = _padded([batch.counts for _, batch in profiles.values()], n_bins)
    columns = (values.tolist() for values in (*_differences(now, before), *_unknown(now, before, n_bins)))
    rows = zip(*columns, strict=True)
    return {
        variant: [FeatureDrift(bins.feature, *next(rows)) for bins in reference.bins]
        for variant, (reference, _) in profiles.items()
    }


def _padded(counts: Sequence[Ints], n_bins: Ints) -> Ints:
    """Stack the features' counts, shape (n features, most bins), with zeros to the right."""
    padded = np.zeros((len(n_bins), n_bins.max()), dtype=np.int64)
    padded[np.arange(n_bins.max()) < n_bins[:, None]] = np.concatenate(counts)
    return padded


def _differences(now: Ints, before: Ints) -> tuple[Ints, Floats, Floats, Floats, Floats]:
    """Return rows of the batch, PSI, its excess, JS distance and p-value, each of shape (n features,)."""
    now, before = _merge_sparse(now, before)
    n, m = (np.maximum(counts.sum(axis=1, keepdims=True), 1) for counts in (now, before))
    is_used = now + before > 0
    freedom = is_used.sum(axis=1) - 1
    p, q = (np.where(is_used, np.maximum(counts, 0.5), 1) / total for counts, total in ((now, n), (before, m)))
    psi = np.where(is_used, (p - q) * np.log(p / q), 0).sum(axis=1) * (freedom > 0)
    excess = psi - freedom * (1 / n + 1 / m)[:, 0]

    p, q = now / n, before / m
    both = (now + before) / (n + m)
    divergences = special.rel_entr(now, n * both) + special.rel_entr(before, m * both)
    statistic = 2 * np.maximum(divergences.sum(axis=1), 0)  # rounding may make it negative
    p_value = np.where(freedom > 0, special.chdtrc(np.maximum(freedom, 1), statistic), 1.0)
    halfway = (p + q) / 2
    divergence = (special.rel_entr(p, halfway) + special.rel_entr(q, halfway)).sum(axis=1) / 2 / np.log(2)
    distance = np.sqrt(np.clip(divergence, 0, 1)) * (freedom > 0)
    return now.sum(axis=1), psi, excess, distance, p_value


def _merge_sparse(now: Ints, before: Ints) -> tuple[Ints, Ints]:
    """Merge the sparse bins of each feature into one, in a new last column or, if too sparse, in the next sparsest."""
    n, m = now.sum(axis=1, keepdims=True), before.sum(axis=1, keepdims=True)
    expected = np.minimum(n, m) * (now + before) / np.maximum(n + m, 1)
    is_kept = expected >= _LEAST_EXPECTED
    rest = np.where(is_kept, 0, expected).sum(axis=1)
    sparsest = np.where(is_kept, expected, np.inf).argmin(axis=1)
    is_separate = (rest >= _LEAST_EXPECTED) | ~is_kept.any(axis=1)
    place = np.where(is_separate, now.shape[1], sparsest)

    def merged(counts: Ints) -> Ints:
        wider = np.pad(np.where(is_kept, counts, 0), ((0, 0), (0, 1)))
        wider[np.arange(len(wider)), place] += np.where(is_kept, 0, counts).sum(axis=1)
        return wider

    return merged(now), merged(before)


def _unknown(now: Ints, before: Ints, n_bins: Ints) -> tuple[Floats, Floats, Floats]:
    """Return the share of the last bin, its rise, and that rise's p-value, each of shape (n features,)."""
    n, m = now.sum(axis=1), before.sum(axis=1)
    last = np.arange(len(n_bins)), n_bins - 1
    share = now[last] / np.maximum(n, 1)
    rise = (share - before[last] / np.maximum(m, 1)) * (n > 0)
    # Binomial instead of hypergeometric: the same for small shares, a little cautious for large ones, and closed.
    p_value = special.bdtrc(now[last] - 1, now[last] + before[last], n / np.maximum(n + m, 1))
    return share, rise, p_value


def flag_fleet(
    drifts: Mapping[str, Sequence[FeatureDrift]],
    *,
    fdr: float = 0.01,
    least_psi: float = LEAST_PSI,
    least_unknown_rise: float = LEAST_UNKNOWN_RISE,
) -> frozenset[Flag]:
    """Return the features that drifted, at a false discovery rate of ``fdr`` (Benjamini-Hochberg).

    Args:
        drifts: The whole fleet's, since the threshold depends on all p-values.
        least_psi: Excess PSI below which a change is ignored, however significant.
        least_unknown_rise: Increase of the unknown share below which it is ignored.
    """
    flags: list[Flag] = []
    p_values: list[float] = []
    for variant, of_variant in drifts.items():
        for drift in of_variant:
            flags.append(Flag(variant, drift.feature))
            # Small changes are excluded: many true ones would loosen the threshold for false ones among the large.
            p_values.append(drift.p_value if drift.excess_psi >= least_psi else 1.0)
            p_values.append(drift.unknown_p_value if drift.unknown_rise >= least_unknown_rise else 1.0)
    is_drift = discoveries(p_values, fdr).reshape(-1, 2).tolist()
    return frozenset(flag for flag, either in zip(flags, is_drift, strict=True) if any(either))


def confirmed(this_week: frozenset[Flag], last_week: frozenset[Flag]) -> list[Flag]:
    """Return the flags of two consecutive weeks: unlike a drift, a faulty extract does not last."""
    return sorted(this_week & last_week)


@dataclass(frozen=True)
class Volume:
    """A batch's number of rows and the median of the earlier batches; ``None`` if there are too few."""

    n_rows: int
    usual: float | None
    status: Literal["ok", "low", "high", "insufficient"]


def volume(n_rows: int, previous: Sequence[int]) -> Volume:
    """Compare a batch's number of rows with those of earlier batches.

    A number is unusual if it is more than 1.5 times higher or lower than the median, and by more than four times the
    spread of the earlier batches.

    Args:
        previous: Rows of earlier batches, the latest last; at least 3 are needed, the last 8 are used.
    """
    if len(previous) < 3:
        return Volume(n_rows, None, "insufficient")
    logs = np.log(np.array(previous[-_BATCHES_REMEMBERED:]) + 0.5)
    middle = np.median(logs)
    usual = float(np.exp(middle) - 0.5)
    spread = max(1.4826 * float(np.median(np.abs(logs - middle))), (usual + 0.5) ** -0.5)  # no less than Poisson's
    change = float(np.log(n_rows + 0.5) - middle)
    if abs(change) <= max(np.log(1.5), 4 * spread):
        return Volume(n_rows, usual, "ok")
    return Volume(n_rows, usual, "low" if change < 0 else "high")


@dataclass(frozen=True)
class Freshness:
    """The age of a variant's newest data, and its limit."""

    age_days: int
    limit_days: int

    @property
    def is_stale(self) -> bool:
        return self.age_days > self.limit_days


def freshness(arrived_on: Sequence[date], as_of: date) -> Freshness:
    """Compare the age of the newest data with its limit: the usual gap between new data plus a week.

    Args:
        arrived_on: Days on which the variant's input was new, in any order; days after ``as_of`` are ignored.

    Raises:
        InputError: If nothing had arrived by ``as_of``.
    """
    days = sorted({day for day in arrived_on if day <= as_of})
    if not days:
        raise InputError(f"no data had arrived by {as_of}; give the days on which the variant's input was new")
    gaps = [(later - earlier).days for earlier, later in pairwise(days)][-_BATCHES_REMEMBERED:]
    usual = round(median(gaps)) if len(gaps) >= 3 else _DAYS_BETWEEN_DATA
    return Freshness((as_of - days[-1]).days, usual + _GRACE_DAYS)


def estimated_auc(scores: npt.NDArray[np.floating], counts: Ints | None = None) -> float:
    """Estimate the ROC AUC of scores, in [0.5, 1], without labels (confidence-based performance estimation, CBPE).

    Assumes calibrated scores and no concept drift: the estimate does not change when the same inputs lead to other
    outcomes. It does not replace labels.

    Args:
        scores: Churn probabilities, shape (n,), or the middles of a histogram's bins.
        counts: Rows at each score, shape (n,); by default one each.

    Raises:
        InputError: If there is no row, or all scores are 0 or all are 1.
    """
    order = np.argsort(-scores)
    p, n = np.asarray(scores[order], dtype=np.float64), np.ones(len(scores)) if counts is None else counts[order]
    hits, false_alarms = (np.concatenate([[0.0], np.cumsum(share * n)]) for share in (p, 1 - p))
    if not hits[-1] * false_alarms[-1] > 0:
        raise InputError(f"{len(scores)} scores are all 0 or all 1, or there is none; give scores between 0 and 1")
    return float(np.trapezoid(hits, false_alarms) / (hits[-1] * false_alarms[-1]))
