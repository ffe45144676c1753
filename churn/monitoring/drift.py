"""Drift: compares the inputs and scores of a fleet's batches with the references of their models. Pure.

Works on profiles, so that thousands of variants are compared in a second. What moves in most variants is a season, a
holiday or growth, so a variant is compared with the fleet's median movement. Months differ by chance as well, in large
batches too, so a drift must exceed a tolerance by more than sampling error. The false discovery rate is controlled over
the fleet, and a drift of a single input is not reported. Tenure (months since a date of the account) is not compared:
it grows with the age of the business.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import chain, compress, islice, pairwise
from statistics import median
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import special

from churn.data.arrays import Doubles, Flags, Longs
from churn.data.features import DERIVED
from churn.errors import InputError
from churn.evaluation.metrics import discoveries
from churn.monitoring.profiles import Bins, Profile, require_same_bins

LEAST_MOVED = 0.05  # share of the rows that a drift moves at least, beyond what moves in the fleet
LEAST_UNKNOWN_RISE = 0.01
LEAST_BROKEN = 0.5  # rise of the share of unknown or missing values above which the data is broken, not drifted
LEAST_FLEET = 20  # variants that have a feature in common below which the fleet's movement is not estimated
UNKNOWN = "unknown"  # the key of the last bin's move
_TOLERANCE, _UNKNOWN_TOLERANCE = 0.03, 0.005  # shares that move without a cause, from one year's week to the next's
_QUANTILES = np.arange(1, 10) / 10
_DECILES = tuple(f"{quantile:.1f}" for quantile in _QUANTILES)
_LEAST_EXPECTED = 5.0
_DAYS_BETWEEN_DATA = 31
_WEEK_DAYS = 7
_BATCHES_REMEMBERED = 8

_Number = TypeVar("_Number", np.int64, np.float64)
Drifts = Mapping[str, Sequence["FeatureDrift"]]  # by variant
Move = tuple[float, float]
"""A share of the reference's rows, the nearer of season's and year's, and the same share of the batch's."""


@dataclass(frozen=True)
class FeatureDrift:
    """How one feature, or the score, of a batch differs from the reference."""

    feature: str
    n_rows: int
    psi: float  # population stability index
    excess_psi: float  # PSI minus its expectation without drift, (bins - 1) (1/n + 1/m); can be negative
    jensen_shannon: float  # Jensen-Shannon distance, base 2, in [0, 1]
    p_value: float  # probability of a difference at least this large without drift
    unknown_share: float  # share of rows with a missing value or a level that the model does not know
    unknown_rise: float  # increase of that share over the reference's; negative if it decreased
    unknown_p_value: float  # probability of an increase at least this large without drift
    n_reference: int = 0
    # Shift of the mean contribution to the scores in log-odds; 0 if the reference has no contributions
    effect: float = 0.0
    # Of a category the share of each level, of a number the share of the known values at or below each decile of the
    # reference's year, and the share of `unknown` values; by the level's name or the decile, as `0.5`.
    moves: Mapping[str, Move] = field(default_factory=dict)


class Flag(NamedTuple):
    """A feature of a variant that drifted."""

    variant: str
    feature: str


def compare(reference: Profile, batch: Profile, year: Profile | None = None) -> list[FeatureDrift]:
    """Compare one batch with its model's reference; see :func:`compare_fleet`."""
    return compare_fleet({"": (reference, batch, year or reference)})[""]


def compare_fleet(profiles: Mapping[str, tuple[Profile, Profile, Profile]]) -> dict[str, list[FeatureDrift]]:
    """Compare each variant's batch with its model's reference, feature by feature, all at once.

    Bins with fewer than 5 expected rows on either side are merged with their neighbours, levels in order of their rows;
    the two samples together decide that, so it favours no outcome. In a PSI a bin empty on one side counts half a row.
    The p-value is that of the likelihood ratio test. Its statistic 2 (n + m) JS, JS weighted by the samples' sizes,
    equals PSI / (1/n + 1/m) for small differences, but follows its chi-squared distribution in the tails as well, where
    PSI exceeds it tenfold.

    ``profiles`` are by variant the reference, the batch and the reference's whole year, in the same bins, else it
    raises ``InputError``; an empty batch has no drift. A share moved only as far as it lies beyond both the reference's
    and the year's: one week of the reference may have had a gap in its feed, and a year has seasons.
    """
    references = [reference for reference, _, _ in profiles.values()]
    for reference, other in ((one, other) for one, *others in profiles.values() for other in others):
        require_same_bins(reference, other)
    bins = [bins for reference in references for bins in reference.bins]
    if not bins:
        return {variant: [] for variant in profiles}
    n_bins = np.array([one.n_bins for one in bins], dtype=np.int64)
    before, now, year = (_padded([one.counts for one in side], n_bins) for side in zip(*profiles.values(), strict=True))
    of_bins = [np.zeros(len(one.counts)) if one.contributions is None else one.contributions for one in references]
    is_category = np.array([bool(one.levels) for one in bins])
    measures = [*_differences(now, before, is_category), *_unknown(now, before, n_bins)]
    measures += [before.sum(axis=1), _effects(now, before, _padded(of_bins, n_bins))]
    rows = zip(bins, *(values.tolist() for values in measures), _moves(bins, before, now, year), strict=True)
    drifts = (FeatureDrift(one.feature, *of_one) for one, *of_one in rows)
    return {variant: list(islice(drifts, len(reference.bins))) for variant, (reference, _, _) in profiles.items()}


def _effects(now: Longs, before: Longs, means: Doubles) -> Doubles:
    """Return the shift of the mean contribution, if that of each bin's rows stays as it was."""
    n, m = (np.maximum(counts.sum(axis=1, keepdims=True), 1) for counts in (now, before))
    shift = ((now / n - before / m) * means).sum(axis=1)
    return np.where((now.sum(axis=1) > 0) & (before.sum(axis=1) > 0), shift, 0.0)


def _moves(bins: Sequence[Bins], before: Longs, now: Longs, year: Longs) -> list[dict[str, Move]]:
    """Return the shares by which a fleet is compared, whatever its models' bins; see :class:`FeatureDrift`."""
    rows, last = np.arange(len(bins)), np.array([one.n_bins - 1 for one in bins])
    three = before, now, year
    is_empty = np.any([counts.sum(axis=1) == 0 for counts in three], axis=0)
    has_known = np.all([counts.sum(axis=1) > counts[rows, last] for counts in three], axis=0)
    shares = _nearest(*(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) for counts in three))
    known = [np.where(np.arange(now.shape[1]) < last[:, None], counts, 0) for counts in three]
    upto = [np.pad(of.cumsum(axis=1) / np.maximum(of.sum(axis=1, keepdims=True), 1), ((0, 0), (1, 0))) for of in known]
    bin_of = (upto[2][:, None, 1:] > _QUANTILES[:, None]).argmax(axis=2)  # of each decile, shape (n features, 9)
    low, high = ([np.take_along_axis(of_one, bin_of + i, axis=1) for of_one in upto] for i in (0, 1))
    part = (_QUANTILES - low[2]) / np.where(high[2] > low[2], high[2] - low[2], 1)
    deciles = _nearest(*(below * (1 - part) + above * part for below, above in zip(low, high, strict=True)))
    unknown = shares[rows, last].tolist()
    moves: list[dict[str, Move]] = [{} for _ in bins]
    for i, one in compress(enumerate(bins), ~is_empty):
        pairs, keys = (shares[i, : last[i]], one.levels) if one.levels else (deciles[i], _DECILES)
        of_values = zip(keys, map(tuple, pairs.tolist()), strict=True) if one.levels or has_known[i] else ()
        moves[i] = {**dict(of_values), UNKNOWN: tuple(unknown[i])}
    return moves


def _nearest(reference: Doubles, batch: Doubles, year: Doubles) -> Doubles:
    """Return pairs: the nearer of the reference's and the year's shares, or the batch's between them; the batch's."""
    nearest = np.clip(batch, np.minimum(reference, year), np.maximum(reference, year))
    return np.stack([nearest, batch], axis=-1).round(5)


def _padded(counts: Sequence[npt.NDArray[_Number]], n_bins: Longs) -> npt.NDArray[_Number]:
    """Stack the features' counts, shape (n features, most bins), with zeros to the right."""
    padded = np.zeros((len(n_bins), n_bins.max()), dtype=counts[0].dtype)
    padded[np.arange(n_bins.max()) < n_bins[:, None]] = np.concatenate(counts)
    return padded


def _differences(now: Longs, before: Longs, is_category: Flags) -> tuple[Longs, Doubles, Doubles, Doubles, Doubles]:
    """Return rows of the batch, PSI, its excess, JS distance and p-value, each of shape (n features,)."""
    now, before = _merge_sparse(now, before, is_category)
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
    return now.sum(axis=1), psi, excess, np.sqrt(np.clip(divergence, 0, 1)) * (freedom > 0), p_value


def _merge_sparse(now: Longs, before: Longs, is_category: Flags) -> tuple[Longs, Longs]:
    """Merge each feature's sparse bins with the next ones; levels, which have no order, from the most frequent down."""
    n, m = now.sum(axis=1, keepdims=True), before.sum(axis=1, keepdims=True)
    expected = np.minimum(n, m) * (now + before) / np.maximum(n + m, 1)
    order = np.where(is_category[:, None], np.argsort(-expected, axis=1, kind="stable"), np.arange(now.shape[1]))
    group, filled = (np.zeros(len(now), dtype=kind) for kind in (np.int64, np.float64))
    groups = np.empty_like(now)
    for place in order.T:
        groups[np.arange(len(now)), place] = group
        filled += expected[np.arange(len(now)), place]
        is_full = filled >= _LEAST_EXPECTED
        group, filled = group + is_full, np.where(is_full, 0.0, filled)
    groups = np.minimum(groups, np.maximum(group - 1, 0)[:, None])  # what is left at the end joins the bin before
    cells = (np.arange(len(now))[:, None] * now.shape[1] + groups).ravel()

    def merged(counts: Longs) -> Longs:
        return np.bincount(cells, counts.ravel(), counts.size).astype(np.int64).reshape(counts.shape)

    return merged(now), merged(before)


def _unknown(now: Longs, before: Longs, n_bins: Longs) -> tuple[Doubles, Doubles, Doubles]:
    """Return the share of the last bin, its rise, and that rise's p-value, each of shape (n features,)."""
    n, m = now.sum(axis=1), before.sum(axis=1)
    last = np.arange(len(n_bins)), n_bins - 1
    share = now[last] / np.maximum(n, 1)
    rise = (share - before[last] / np.maximum(m, 1)) * (n > 0)
    # Binomial instead of hypergeometric: the same for small shares, a little cautious for large ones, and closed.
    p_value = special.bdtrc(now[last] - 1, now[last] + before[last], n / np.maximum(n + m, 1))
    return share, rise, p_value


@dataclass(frozen=True)
class _Moves:
    """All moves of a fleet as arrays of shape (n,), one element for each variant, feature and key."""

    of_flag: Longs
    of_key: Longs
    is_unknown: Flags
    before: Doubles
    now: Doubles
    n: Doubles
    m: Doubles
    keys: Sequence[tuple[str, str]]

    @classmethod
    def of(cls, drifts: Sequence[FeatureDrift]) -> "_Moves":
        places: dict[tuple[str, str], int] = {}
        layouts: dict[tuple[str, tuple[str, ...]], Longs] = {}  # few, as most variants have the same features and keys
        of_each = [(drift.feature, tuple(drift.moves)) for drift in drifts]
        for feature, names in dict.fromkeys(of_each):
            layouts[feature, names] = np.array([places.setdefault((feature, name), len(places)) for name in names], int)
        keys = np.concatenate([np.empty(0, dtype=np.int64), *(layouts[layout] for layout in of_each)])
        shares = chain.from_iterable(chain.from_iterable(drift.moves.values()) for drift in drifts)
        pairs = np.fromiter(shares, dtype=np.float64).reshape(-1, 2)
        columns = [(len(one.moves), one.n_rows, one.n_reference, is_tenure(one.feature)) for one in drifts]
        sizes, n_rows, n_reference, are_tenure = np.array(columns, dtype=np.int64).reshape(-1, 4).T
        is_unknown = np.array([key == UNKNOWN for _, key in places], dtype=np.bool_)[keys]
        of_flag = np.repeat(np.arange(len(drifts)), sizes)
        watched = np.flatnonzero(is_unknown | (are_tenure[of_flag] == 0))
        of_flag, (before, now) = of_flag[watched], pairs[watched].T
        n, m = n_rows[of_flag].astype(np.float64), n_reference[of_flag].astype(np.float64)
        return cls(of_flag, keys[watched], is_unknown[watched], before, now, n, m, list(places))

    def medians(self) -> Doubles:
        """Return the fleet's movement by key: the variants' median, 0 where too few variants have the key."""
        n_keys, moved = len(self.keys), self.now - self.before
        order, sizes = np.lexsort((moved, self.of_key)), np.bincount(self.of_key, minlength=n_keys)
        starts = np.cumsum(sizes) - sizes
        middles = moved[order][[starts + (sizes - 1) // 2, starts + sizes // 2]].mean(axis=0)
        return np.where(sizes >= LEAST_FLEET, middles, 0.0)

    def p_values(self, fleet: Doubles, least_moved: float, least_unknown_rise: float) -> Doubles:
        """Return, for each move, the probability of one this far beyond the fleet's and the tolerance.

        It is 1 if the move is too small to matter: many true small ones would loosen the threshold for false ones among
        the large. Both samples' errors are those of one sample of their harmonic size, whose binomial tail holds for
        rare levels as well. What broke in most variants at once is broken in each, so it is not the fleet's movement.
        """
        are_broken = self.is_unknown & (self.now - self.before >= LEAST_BROKEN)
        expected = self.before + np.where(are_broken, 0.0, fleet)
        is_rise = self.now >= expected
        now, expected = (np.where(is_rise, share, 1 - share) for share in (self.now, expected))
        size, n = now - expected, 1 / (1 / np.maximum(self.n, 1) + 1 / np.maximum(self.m, 1))
        limit = np.clip(expected + np.where(self.is_unknown, _UNKNOWN_TOLERANCE, _TOLERANCE), 0, 1)
        is_large = size >= np.where(self.is_unknown, least_unknown_rise, least_moved)
        large = np.flatnonzero(is_large & (is_rise | ~self.is_unknown))
        n, now, limit = n[large], now[large], limit[large]
        p_values = np.ones(len(size))
        p_values[large] = np.minimum(2 * special.betainc(np.maximum(n * now, 1e-9), n * (1 - now) + 1, limit), 1)
        return p_values


def is_tenure(feature: str) -> bool:
    """Return whether a feature is an age of the account, which grows with that of the business."""
    return feature == DERIVED or (feature.startswith("months_since_") and feature != "months_since_active")


def flag_fleet(
    drifts: Drifts, fdr: float = 0.01, least_moved: float = LEAST_MOVED, least_unknown_rise: float = LEAST_UNKNOWN_RISE
) -> frozenset[Flag]:
    """Return the features that drifted, at a false discovery rate of ``fdr`` (Benjamini-Hochberg), in the whole fleet.

    A feature's p-value is that of its largest move beyond the fleet's and the tolerance, times the number of its moves.
    Ignored are moves below ``least_moved`` of the rows, and rises of the unknown share below ``least_unknown_rise``.
    """
    flags = [Flag(variant, drift.feature) for variant, of_variant in drifts.items() for drift in of_variant]
    moves = _Moves.of([drift for of_variant in drifts.values() for drift in of_variant])
    p_values = np.ones(len(flags))
    of_move = moves.p_values(moves.medians()[moves.of_key], least_moved, least_unknown_rise)
    np.minimum.at(p_values, moves.of_flag, of_move)
    n_moves = np.bincount(moves.of_flag, minlength=len(flags))
    return frozenset(compress(flags, discoveries(np.minimum(p_values * n_moves, 1), fdr)))


def common_moves(drifts: Drifts, least: float) -> dict[str, tuple[str, float]]:
    """Return the features that moved in most variants: the key that moved most, and by how much, at least ``least``."""
    moves = _Moves.of([drift for of_variant in drifts.values() for drift in of_variant])
    by_size = sorted(zip(moves.keys, moves.medians().tolist(), strict=True), key=lambda pair: abs(pair[1]))
    return {feature: (key, moved) for (feature, key), moved in by_size if abs(moved) >= least}


def is_broken(drift: FeatureDrift) -> bool:
    """Return whether most values are unknown or missing that were not so in the reference."""
    return drift.unknown_rise >= LEAST_BROKEN


@dataclass(frozen=True)
class Volume:
    """A batch's number of rows and the median of the earlier batches; ``None`` if there are too few."""

    n_rows: int
    usual: float | None
    status: Literal["ok", "low", "high", "insufficient"]


def volume(n_rows: int, previous: Sequence[int]) -> Volume:
    """Compare a batch's number of rows with those of earlier batches.

    A number is unusual if it is more than 1.5 times higher or lower than the median, and by more than four times the
    spread of the earlier batches. Of these, the latest last, at least 3 are needed, and the last 8 are used.
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


def freshness(arrived_on: Iterable[date], as_of: date) -> tuple[int, int]:
    """Return the age of the newest data in days, and its limit: a week, or a longer usual gap plus a week.

    ``arrived_on`` are the days on which the variant's input was new; those after ``as_of`` are ignored. Without any,
    the age is 0.
    """
    days = sorted({day for day in arrived_on if day <= as_of})
    gaps = [(later - earlier).days for earlier, later in pairwise(days)][-_BATCHES_REMEMBERED:]
    usual = round(median(gaps)) if len(gaps) >= 3 else _DAYS_BETWEEN_DATA
    return (as_of - max(days, default=as_of)).days, _WEEK_DAYS if usual <= _WEEK_DAYS else usual + _WEEK_DAYS


def estimated_auc(scores: npt.NDArray[np.floating], counts: Longs | None = None) -> float:
    """Estimate the ROC AUC of scores, in [0.5, 1], without labels (confidence-based performance estimation, CBPE).

    Assumes calibrated scores and no concept drift: the estimate does not change when the same inputs lead to other
    outcomes. It does not replace labels. ``scores`` are churn probabilities, shape (n,), or the middles of a
    histogram's bins; ``counts`` the rows at each, by default one. Raises ``InputError`` if there is no row, or all
    scores are 0 or all are 1.
    """
    order = np.argsort(-scores)
    p, n = np.asarray(scores[order], dtype=np.float64), np.ones(len(scores)) if counts is None else counts[order]
    hits, false_alarms = (np.concatenate([[0.0], np.cumsum(share * n)]) for share in (p, 1 - p))
    if not hits[-1] * false_alarms[-1] > 0:
        raise InputError(f"{len(scores)} scores are all 0 or all 1, or there is none; give scores between 0 and 1")
    return float(np.trapezoid(hits, false_alarms) / (hits[-1] * false_alarms[-1]))
