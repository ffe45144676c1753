"""Profiles: histograms of a batch's features and score. They contain no single row. Pure.

A model's reference profile defines the bins; batches are counted into the same bins, chunk by chunk.
:mod:`churn.monitoring.drift` compares the counts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import pairwise
from typing import Any

import numpy as np

from churn.data.arrays import Array, Doubles, Floats, Longs
from churn.data.features import Encoding, Packed
from churn.errors import InputError

SCORE = "churn_probability"
MOST_BINS = 10  # maximum number of bins for a numeric feature's values; one more bin counts missing values
_FREQUENT_SHARE = 0.2  # no more than four values exceed it, so the bins between them stay within MOST_BINS
_FORMAT = 1
_MAX_COUNT = 2**53


@dataclass(frozen=True)
class Bins:
    """The bins of one feature. The last bin counts unknown values."""

    feature: str
    # For a number: bin i counts `edges[i - 1] < value <= edges[i]`; the first and the last value bin are open. One more
    # bin counts missing values. All edges are exact in float32.
    edges: tuple[float, ...] = ()
    # For a category, empty for a number: one bin each, then one for levels unknown to the model
    levels: tuple[str, ...] = ()

    @property
    def n_bins(self) -> int:
        return (len(self.levels) or len(self.edges) + 1) + 1

    @property
    def labels(self) -> tuple[str, ...]:
        """The label of each bin, as people read it; a value that has a bin of its own is its label.

        >>> Bins("total_deposit", edges=(_just_below(0), 0.0, 5.0, _just_below(9), 9.0)).labels
        ('below 0', '0', 'over 0, up to 5', 'over 5, below 9', '9', 'over 9', '(missing)')
        """
        if self.levels:
            return (*self.levels, "(other)")
        if not self.edges:
            return ("any value", "(missing)")
        # An edge just below the next one: the bin before it ends below that value.
        own = {low: high for low, high in pairwise(self.edges) if low == _just_below(high)}
        ends = [f"below {own[edge]:g}" if edge in own else f"up to {edge:g}" for edge in self.edges]
        pairs = zip(pairwise(self.edges), ends[1:], strict=True)
        between = [f"{high:g}" if low in own else f"over {low:g}, {end}" for (low, high), end in pairs]
        return (ends[0], *between, f"over {self.edges[-1]:g}", "(missing)")


@dataclass(frozen=True, eq=False)
class Profile:
    """The counts of a batch's rows in each bin."""

    bins: tuple[Bins, ...]  # those of each of `Encoding.columns`, in that order, then those of the score
    counts: Longs  # rows in each bin, feature by feature; shape (sum of n_bins,)
    # Of a reference, the counts of one week of the year each, by season_of its as-of day
    parts: Mapping[str, Longs] = field(default_factory=dict)
    # Of a reference, the mean contribution of the rows in each bin to their scores, in log-odds; 0 for the score
    # itself. Shape as `counts`; `None` if they were not computed.
    contributions: Doubles | None = None

    def __post_init__(self) -> None:
        n_bins = sum(bins.n_bins for bins in self.bins)
        if any(values.shape != (n_bins,) for values in (self.counts, *self.parts.values())):
            raise InputError(f"a profile has counts of shape {self.counts.shape} for {n_bins} bins; give one for each")

    @property
    def n_rows(self) -> int:
        return int(self.counts[: self.bins[0].n_bins].sum())

    def at(self, as_of: date) -> "tuple[Profile, Profile]":
        """Return what batches of an as-of day are compared with: the same week of the year, and that of all months.

        The week of the month matters: of the players active in a month, few were so by its first Monday. Without the
        season, both are the latter, and without parts the whole profile.
        """
        season = season_of(as_of)
        counts = [of_part for key, of_part in self.parts.items() if key[-2:] == season[-2:]]
        year = replace(self, counts=np.sum(counts, axis=0), parts={}) if counts else self
        return (replace(year, counts=self.parts[season]) if season in self.parts else year), year

    def by_feature(self) -> dict[str, Longs]:
        """Return each feature's counts, shape (n_bins,)."""
        ends = np.cumsum([bins.n_bins for bins in self.bins])
        return dict(zip((bins.feature for bins in self.bins), np.split(self.counts, ends[:-1]), strict=True))

    def count(self, packed: Packed, scores: Floats | Doubles) -> "Profile":
        """Count rows in the encoding of this profile, with their scores, shape (n_rows,), into its bins.

        Raises ``InputError`` if the rows do not fit that encoding, or their number differs from that of the scores.
        """
        categories = [bins for bins in self.bins if bins.levels]
        numbers = [bins for bins in self.bins if not bins.levels][:-1]
        given = (len(packed.numbers), len(packed.levels), len(scores))
        if given != (needed := (len(numbers), len(categories), packed.n_rows)):
            raise InputError(
                f"a chunk has {given[0]} numbers, {given[1]} categories and {given[2]} scores, the reference needs "
                f"{needed[0]}, {needed[1]} and {needed[2]}; count it into the reference of the model that scored it"
            )
        counts = [_count_number(*pair) for pair in zip(packed.numbers, numbers, strict=True)]
        counts += [_count_levels(*pair) for pair in zip(packed.levels, categories, strict=True)]
        score = _count_number(np.asarray(scores, dtype=np.float32), self.bins[-1])
        return Profile(self.bins, np.concatenate([*counts, score]))

    def __add__(self, other: "Profile") -> "Profile":
        """Return the sum of both profiles."""
        require_same_bins(self, other)
        return Profile(self.bins, self.counts + other.counts)

    def to_json(self) -> str:
        """Serialize the profile; :meth:`from_json` restores the same bins and counts."""
        features = []
        for bins, counts in zip(self.bins, self.by_feature().values(), strict=True):
            values = {"levels": bins.levels} if bins.levels else {"edges": bins.edges}
            features.append({"feature": bins.feature, **values, "counts": counts.tolist()})
        more: dict[str, Any] = {"parts": {key: counts.tolist() for key, counts in self.parts.items()}}
        if self.contributions is not None:
            more["contributions"] = self.contributions.round(6).tolist()
        return json.dumps({"format": _FORMAT, "features": features, **more}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Profile":
        """Parse a profile written by :meth:`to_json`; raises an ``InputError`` for any other text."""
        try:
            parsed = json.loads(text)
            if parsed["format"] != _FORMAT:
                raise ValueError(f"it is of format {parsed['format']!r}, and this code reads {_FORMAT}")
            bins = tuple(_parse_bins(item) for item in parsed["features"])
            counts = [np.array(item["counts"]) for item in parsed["features"]]
            if [(each.n_bins,) for each in bins] != [array.shape for array in counts]:
                raise ValueError("it has features with more or fewer counts than bins")
            parts = {str(key): np.array(values) for key, values in parsed.get("parts", {}).items()}
            every = [*counts, *parts.values()]
            if any(array.dtype != np.int64 or array.min() < 0 or array.max() > _MAX_COUNT for array in every):
                raise ValueError(f"it has counts that are no whole numbers of 0 to {_MAX_COUNT}")
            if len({each.feature for each in bins}) != len(bins):
                raise ValueError("it has a feature twice")
            return cls(bins, np.concatenate(counts), parts, _parse_contributions(parsed.get("contributions"), counts))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(f"not a profile ({type(error).__name__}: {error}); profile the rows again") from error


def _parse_contributions(values: Any, counts: Sequence[Longs]) -> Doubles | None:
    if values is None:
        return None
    contributions = np.array(values, dtype=np.float64)
    if contributions.shape != (sum(map(len, counts)),) or not np.isfinite(contributions).all():
        raise ValueError("contributions must be one finite number for each bin")
    return contributions


def _parse_bins(item: dict[str, Any]) -> Bins:
    feature, edges, levels = item["feature"], item.get("edges", []), item.get("levels", [])
    if not isinstance(edges, list) or not isinstance(levels, list):
        raise TypeError("edges and levels must be arrays")
    if not all(isinstance(text, str) for text in (feature, *levels)) or len(set(levels)) != len(levels):
        raise ValueError("a feature and its levels must be different texts")
    cuts = np.array(edges, dtype=np.float64)
    are_numbers = all(type(edge) in (int, float) for edge in edges) and np.isfinite(cuts).all()
    if not are_numbers or (np.diff(cuts) <= 0).any():
        raise ValueError(f"the edges of {feature!r} must be finite numbers in rising order")
    return Bins(feature, tuple(cuts.tolist()), tuple(levels))


def season_of(day: date) -> str:
    """Return the week of the year by which batches are compared with their reference: month, and week of the month.

    >>> season_of(date(2026, 11, 30)), season_of(date(2026, 11, 2))
    ('11.3', '11.0')
    """
    return f"{day.month}.{min((day.day - 1) // 7, 3)}"


def require_same_bins(first: Profile, second: Profile) -> None:
    """Raise an ``InputError`` that names the features unless two profiles have the same bins."""
    if first.bins != second.bins:
        odd = sorted({bins.feature for bins in set(first.bins) ^ set(second.bins)})
        problem = f"two profiles count {', '.join(odd) or 'their features'} in different bins or order"
        raise InputError(f"{problem}; count both into the bins of one reference")


def with_contributions(reference: Profile, packed: Packed, contributions: Floats | Doubles) -> Profile:
    """Return a reference with the mean contribution of the rows in each of its bins, by some of these rows.

    The contributions are by source column, in log-odds; shape (n_rows, n columns).
    """
    means = []
    of_columns = zip([*packed.numbers, *packed.levels], reference.bins, contributions.T, strict=False)
    for values, bins, of_column in of_columns:
        number = np.searchsorted(bins.edges, values)
        codes = values if bins.levels else np.where(np.isnan(values), bins.n_bins - 1, number)
        n, total = (np.bincount(codes, weights, bins.n_bins) for weights in (None, of_column))
        means.append(np.where(n > 0, total / np.maximum(n, 1), of_column.mean()))
    return replace(reference, contributions=np.concatenate([*means, np.zeros(reference.bins[-1].n_bins)]))


def reference_profile(packed: Packed, encoding: Encoding, scores: Floats | Doubles) -> Profile:
    """Derive a model's bins from reference rows, and count these rows.

    The bins of a number contain about equal numbers of rows; a value of more than a fifth of the rows, such as 0, has a
    separate bin. Rows that the model was not trained on are best, since scores of training rows are more extreme;
    ``scores`` are their churn probabilities, shape (n_rows,).
    """
    numbers = [Bins(name, _edges(values)) for (name, _), values in zip(encoding.numbers, packed.numbers, strict=True)]
    categories = [Bins(group.source_column, levels=group.levels) for group in encoding.one_hots]
    bins = (*numbers, *categories, Bins(SCORE, _edges(np.asarray(scores, dtype=np.float32))))
    return Profile(bins, np.zeros(sum(each.n_bins for each in bins), dtype=np.int64)).count(packed, scores)


def spliced(inputs: Profile, scores: Profile) -> Profile:
    """Combine the features of one profile with the score of another, which may have other rows.

    A reference needs rows of all seasons for its features, and rows that the model was not trained on for its scores.
    """
    of_inputs, of_score = inputs.counts[: -inputs.bins[-1].n_bins], scores.counts[-scores.bins[-1].n_bins :]
    return Profile((*inputs.bins[:-1], scores.bins[-1]), np.concatenate([of_inputs, of_score]))


def regrouped(reference: Profile, encoding: Encoding) -> Profile | None:
    """Convert a reference's counts to the columns of another encoding of the same features.

    A reference of one-hot encoded rows has a number of 0 or 1 for each level of a category of raw rows; the category's
    counts follow from those of the numbers. Returns ``None`` if the encoding has a column that the reference lacks.
    Parts and contributions are those of the reference if nothing had to be converted, else none.
    """
    counts = reference.by_feature()
    numbers = {bins.feature: bins for bins in reference.bins if not bins.levels and bins.feature != SCORE}
    categories = {bins for bins in reference.bins if bins.levels}
    if any(name not in numbers for name, _ in encoding.numbers):
        return None
    converted = [(numbers[name], counts[name]) for name, _ in encoding.numbers]
    for group in encoding.one_hots:
        bins = Bins(group.source_column, levels=group.levels)
        level_counts = counts[bins.feature] if bins in categories else _level_counts(bins, numbers, reference)
        if level_counts is None:
            return None
        converted.append((bins, level_counts))
    all_bins, parts = zip(*converted, (reference.bins[-1], counts[SCORE]), strict=True)
    return reference if all_bins == reference.bins else Profile(all_bins, np.concatenate(parts))


def untrained_missing(reference: Profile, batch: Profile) -> dict[str, int]:
    """Return how many rows lack each number that is missing in no row of the reference.

    A model's trees send such rows down branches that no training row took. A reference of few rows may lack missing
    values by chance, of a probability of 1 % or more; then the number is left out.
    """
    before, now = reference.by_feature(), batch.by_feature()
    numbers = [bins.feature for bins in batch.bins[:-1] if not bins.levels]
    new = {name: n for name in numbers if (n := int(now[name][-1])) and not before[name][-1]}
    return {name: n for name, n in new.items() if (1 - n / batch.n_rows) ** reference.n_rows < 0.01}


def _level_counts(category: Bins, numbers: Mapping[str, Bins], reference: Profile) -> Longs | None:
    """Count each level's rows by its number of 0 or 1, and the rows without any of the levels."""
    names, counts = [f"{category.feature}_{level}" for level in category.levels], reference.by_feature()
    if any(name not in numbers for name in names):
        return None
    is_positive = [np.array([-np.inf, *numbers[name].edges]) >= 0 for name in names]
    n_rows = [int(counts[name][:-1][above].sum()) for name, above in zip(names, is_positive, strict=True)]
    n_other = reference.n_rows - sum(n_rows)
    return np.array([*n_rows, n_other], dtype=np.int64) if n_other >= 0 else None


def _count_number(values: Floats, bins: Bins) -> Longs:
    # Comparing all values with each edge runs at memory speed; a binary search for each value is ten times slower.
    at_most = [np.count_nonzero(values <= edge) for edge in bins.edges]
    n_known = len(values) - np.count_nonzero(np.isnan(values))
    up_to = np.array([0, *at_most, n_known, len(values)], dtype=np.int64)
    return up_to[1:] - up_to[:-1]


def _count_levels(levels: Array, bins: Bins) -> Longs:
    counts = np.bincount(levels, minlength=bins.n_bins)
    if len(counts) > bins.n_bins:
        found = f"{bins.feature} has a level with index {len(counts) - 1}, the reference has {len(bins.levels)} levels"
        raise InputError(f"{found}; count it into the reference of the model that scored it")
    return counts


def _edges(values: Floats) -> tuple[float, ...]:
    """Split the values into at most ``MOST_BINS`` bins: one for each frequent value, quantiles between them."""
    values = np.sort(values[np.isfinite(values)])
    distinct, counts = np.unique(values, return_counts=True)
    frequent = distinct[counts > _FREQUENT_SHARE * len(values)] + np.float32(0)  # makes -0 plain 0
    rest = values[~np.isin(values, frequent)]
    stretches = np.split(rest, np.searchsorted(rest, frequent))
    shares = _share_out(MOST_BINS - len(frequent), [len(stretch) for stretch in stretches])
    cuts = [_quantile_cuts(*pair) for pair in zip(stretches, shares, strict=True)]
    below = [_just_below(value) for value in frequent.tolist()]
    edges = np.unique(np.concatenate([below, frequent.astype(np.float64), *cuts]))
    return tuple(edges[np.isfinite(edges)].tolist())


def _share_out(n_bins: int, sizes: Sequence[int]) -> list[int]:
    """Assign one bin to each stretch of values, and each further bin to the stretch whose bins are fullest."""
    shares = [1] * len(sizes)
    for _ in range(n_bins - len(sizes)):
        shares[max(range(len(sizes)), key=lambda i: sizes[i] / shares[i])] += 1
    return shares


def _quantile_cuts(ordered: Floats, n_bins: int) -> Doubles:
    if not len(ordered):
        return np.empty(0)
    cuts = ordered[np.ceil(np.arange(1, n_bins) * len(ordered) / n_bins).astype(np.int64) - 1]  # the last of each bin
    return np.asarray(cuts[cuts < ordered[-1]], dtype=np.float64)


def _just_below(value: float) -> float:
    # Not the denormal next to 0: on a thread that flushes denormals it equals 0.
    if value == 0:
        return -float(np.finfo(np.float32).tiny)
    with np.errstate(over="ignore"):  # below the lowest number is minus infinity
        return float(np.nextafter(np.float32(value), np.float32(-np.inf)))
