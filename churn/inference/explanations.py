"""Reasons: exact SHAP values in log-odds for every row, summed by the columns of packed rows. Pure.

These are the path-dependent TreeSHAP values of ``Booster.predict(pred_contribs=True)``. For a given leaf they
depend only on which of the splits above it the row satisfies, so a part of a tree with ``k`` splits in and above it has
at most ``2**k`` different results: these are tabulated once for a model, and a row costs one look-up in each table. The
margin is summed in a separate column, in XGBoost's order, so the score needs no further work. Method of the values:
Lundberg et al., "Consistent Individualized Feature Attribution for Tree Ensembles", 2018.
"""

from typing import NamedTuple

import numpy as np

from churn.compiled import compiled
from churn.data.arrays import Bits, Bytes, Doubles, Floats, Ints, Longs
from churn.data.features import Encoding, Packed
from churn.inference.cells import BLOCK, WORD_BITS, CellPlan, Cells, Words, gather, goes_left, plan_cells
from churn.inference.forest import LEAF, Forest, NotCompilableError
from churn.inference.scoring import probability

_LANES = 8  # a row of a table is a multiple of it: one instruction adds so many floats
_MOST_SPLITS = 12
_MAX_TABLE_BYTES, _AFFORDABLE_TABLE_BYTES = 256 << 20, 64 << 20


class Parts(NamedTuple):
    """Trees cut into parts of few splits: each one's tree, topmost node, and splits above and in it."""

    tree: Longs
    root: Longs
    n_splits: Longs


class Tables(NamedTuple):
    """What each pattern of a part's splits contributes."""

    rows: Floats  # log-odds by column, the margin last, padded to `_LANES`; shape (patterns of all parts, n_lanes)
    starts: Longs  # each part's first row; shape (n_parts,)
    shifts: Bits  # the part's first bit in its word; shape (n_parts,)
    masks: Bits  # the pattern's bits, shifted down; shape (n_parts,)
    word_starts: Longs  # each word's first part, and the count of parts; shape (n_words + 1,)


class ForestExplainer(NamedTuple):
    """A forest ready to explain rows of one encoding; see :func:`build_explainer`.

    ``bias`` is the mean margin of the training rows, in log-odds.
    """

    plan: CellPlan
    words: Words
    tables: Tables
    n_columns: int
    bias: float
    base_margin: np.float32

    def explain(self, packed: Packed) -> tuple[Floats, Floats]:
        """Return churn probabilities, shape (n_rows,), and contributions in log-odds, shape (n_rows, n_columns).

        They are in the order of ``Encoding.columns``; with ``bias`` they are the margin.
        """
        sums = np.zeros((packed.n_rows, self.tables.rows.shape[1]), dtype=np.float32)
        scores = np.empty(packed.n_rows, dtype=np.float32)
        sums[:, -1] = self.base_margin
        _explain(self.plan.locate(packed), self.plan.starts, self.words, self.tables, sums, scores)
        return scores, sums[:, : self.n_columns]


def build_explainer(forest: Forest, encoding: Encoding, *, is_large_batch: bool) -> ForestExplainer:
    """Tabulate the contributions; for a large batch in tables that take longer to build and less time to use.

    Raises ``NotCompilableError`` if the trees are too deep or too many for tables.
    """
    plan = plan_cells(forest, encoding)
    depth = forest.depth
    if not (forest.covers > 0).all():
        raise NotCompilableError("nodes that no training row reached")
    n_columns = len(encoding.columns)
    n_lanes = -(-(n_columns + 1) // _LANES) * _LANES
    parts = _cut(forest, depth, 10 if is_large_batch else 9, n_lanes)
    shifts, word_of = _pack_words(parts.n_splits)
    n_words = int(word_of[-1]) + 1
    bits = np.zeros((n_words, plan.starts[-1]), dtype=np.uint64)
    sizes = 1 << parts.n_splits
    starts = np.cumsum([0, *sizes])
    rows, word_starts = np.zeros((starts[-1], n_lanes), np.float32), np.searchsorted(word_of, np.arange(n_words + 1))
    tables = Tables(rows, starts[:-1], shifts.astype(np.uint64), (sizes - 1).astype(np.uint64), word_starts)
    bias = _tabulate(forest, plan, _weights(depth), parts, word_of, bits, tables) + float(forest.base_margin)
    return ForestExplainer(plan, plan.build_words(bits), tables, n_columns, bias, forest.base_margin)


def sum_by_column(values: Floats, encoding: Encoding) -> Floats:
    """Sum contributions by feature, shape (n, at least n_features), by column, (n, n_columns)."""
    sums = np.zeros((len(values), len(encoding.columns)), dtype=np.float32)
    for feature, column in enumerate(encoding.column_of_feature):
        sums[:, column] += values[:, feature]
    return sums


def sum_by_source_column(contributions: Floats, values: Floats, encoding: Encoding) -> tuple[Floats, Floats, Bytes]:
    """Sum contributions by column, shape (n_rows, n_columns), by source column, and find the feature to show.

    Args:
        values: Shape (n_columns, n_rows).

    Returns:
        The sums, shape (n_rows, n_source_columns); the value of each source column's feature with the largest
        contribution, (n_source_columns, n_rows); and, of source columns with windows only, the index of that feature
        among the source column's, (n_rows, n of these).
    """
    if not (windowed := encoding.features_of_windows):
        return contributions, values, np.empty((len(contributions), 0), dtype=np.uint8)
    sources, rows = np.array(encoding.sources), np.arange(len(contributions))
    sums, of_shown, shown = [], [], []
    for source in encoding.source_columns:
        columns = np.flatnonzero(sources == source)
        of_source = contributions[:, columns]
        largest = np.abs(of_source).argmax(axis=1)
        sums.append(of_source.sum(axis=1))
        of_shown.append(values[columns[largest], rows])
        if source in windowed:
            shown.append(largest.astype(np.uint8))
    return np.stack(sums, axis=1), np.stack(of_shown), np.stack(shown, axis=1)


def _weights(depth: int) -> Doubles:
    """Return Shapley's weights: ``[u, k]`` is that of a coalition of ``k`` out of the ``u - 1`` other features."""
    weights = np.zeros((depth + 1, depth + 1))
    for u in range(1, depth + 1):
        weights[u, 0] = 1 / u
        for k in range(1, u):
            weights[u, k] = weights[u, k - 1] * k / (u - k)
    return weights


def _cut(forest: Forest, depth: int, n_splits: int, n_lanes: int) -> Parts:
    """Cut the trees into parts of at most ``n_splits`` splits, or fewer if the tables would take too much memory."""
    if depth > _MOST_SPLITS:
        raise NotCompilableError(f"trees of depth {depth}")
    for most in range(max(n_splits, depth), max(depth, 1) - 1, -1):
        parts = _cut_trees(forest.starts, forest.left, forest.right, most)
        n_bytes = int((1 << parts.n_splits).sum()) * n_lanes * 4
        if n_bytes <= _AFFORDABLE_TABLE_BYTES:
            return parts
    if n_bytes > _MAX_TABLE_BYTES:
        raise NotCompilableError(f"{n_bytes >> 20} MB of tables")
    return parts


def _pack_words(n_splits: Longs) -> tuple[Longs, Longs]:
    """Place the parts' patterns one after another into words; return each one's shift and word."""
    shifts, word_of = np.zeros_like(n_splits), np.zeros_like(n_splits)
    word, used = 0, 0
    for part, n in enumerate(n_splits.tolist()):
        if used + n > WORD_BITS:
            word, used = word + 1, 0
        shifts[part], word_of[part] = used, word
        used += n
    return shifts, word_of


@compiled
def _cut_trees(starts: Longs, left: Ints, right: Ints, most: int) -> Parts:
    below, above, order = np.zeros((3, len(left)), dtype=np.int64)  # splits at and below a node, and above it
    tree_of, root, n_splits = np.zeros((3, len(left)), dtype=np.int64)
    n_parts = 0
    for tree in range(len(starts) - 1):
        order[0] = starts[tree]
        n_seen, i = 1, 0
        while i < n_seen:  # from the top, level by level
            node = order[i]
            if left[node] != LEAF:
                order[n_seen], order[n_seen + 1] = left[node], right[node]
                n_seen += 2
                above[left[node]] = above[right[node]] = above[node] + 1
            i += 1
        for i in range(n_seen - 1, -1, -1):
            node = order[i]
            if left[node] != LEAF:
                below[node] = 1 + below[left[node]] + below[right[node]]
        n_open = 1
        order[0] = starts[tree]
        while n_open:
            n_open -= 1
            node = order[n_open]
            if left[node] == LEAF or above[node] + below[node] <= most:
                tree_of[n_parts], root[n_parts], n_splits[n_parts] = tree, node, above[node] + below[node]
                n_parts += 1
            else:
                order[n_open], order[n_open + 1] = right[node], left[node]
                n_open += 2
    return Parts(tree_of[:n_parts].copy(), root[:n_parts].copy(), n_splits[:n_parts].copy())


@compiled
def _tabulate(
    forest: Forest, plan: CellPlan, weights: Doubles, parts: Parts, word_of: Longs, bits: Bits, tables: Tables
) -> float:
    """Fill ``bits``, shape (n_words, n_cells), and ``tables``; return the trees' mean margin over the training rows."""
    left, above, features, covers = forest.left, forest.parents, forest.features, forest.covers
    n_lanes, depth = tables.rows.shape[1], len(weights) - 1
    sums = np.zeros((1 << (parts.n_splits.max() if len(parts.n_splits) else 0), n_lanes))
    of_leaf = np.zeros((1 << depth, n_lanes))
    place = np.zeros(len(left), dtype=np.int64)  # of a split in its part's pattern
    stack = np.zeros(len(left) + 1, dtype=np.int64)
    used, lanes, splits_of, goes = np.zeros((4, depth + 1), dtype=np.int64)
    shares, polynomial = np.zeros((2, depth + 2))
    bias = 0.0
    for part in range(len(parts.root)):
        top, root, word = forest.starts[parts.tree[part]], parts.root[part], bits[word_of[part]]
        n_patterns = 1 << parts.n_splits[part]
        sums[:n_patterns] = 0.0

        n_placed = 0
        node = root
        while node != top:
            node = above[node]
            place[node] = n_placed
            _set_bits(plan, node, tables.shifts[part] + np.uint64(n_placed), word)
            n_placed += 1
        stack[0] = root
        n_open = 1
        while n_open:
            n_open -= 1
            leaf = stack[n_open]
            if left[leaf] != LEAF:
                place[leaf] = n_placed
                _set_bits(plan, leaf, tables.shifts[part] + np.uint64(n_placed), word)
                n_placed += 1
                stack[n_open], stack[n_open + 1] = forest.right[leaf], left[leaf]
                n_open += 2
                continue
            n_used = 0
            node = leaf
            while node != top:
                split = above[node]
                i = 0
                while i < n_used and used[i] != features[split]:
                    i += 1
                if i == n_used:
                    used[i], lanes[i] = features[split], plan.splits.column[split]
                    splits_of[i], goes[i], shares[i] = 0, 0, 1.0
                    n_used += 1
                splits_of[i] |= 1 << place[split]
                if left[split] == node:
                    goes[i] |= 1 << place[split]
                shares[i] *= np.float64(covers[node]) / np.float64(covers[split])
                node = split
            value = np.float64(forest.values[leaf])
            bias += value * np.prod(shares[:n_used])
            _tabulate_leaf(n_used, shares, lanes, value, weights, of_leaf, polynomial)
            for pattern in range(n_patterns):
                satisfied = 0
                for i in range(n_used):
                    if pattern & splits_of[i] == goes[i]:
                        satisfied |= 1 << i
                for lane in range(n_lanes):
                    sums[pattern, lane] += of_leaf[satisfied, lane]
        tables.rows[tables.starts[part] : tables.starts[part] + n_patterns] = sums[:n_patterns]
    return bias


@compiled
def _set_bits(plan: CellPlan, node: int, shift: np.uint64, word: Bits) -> None:
    """Set a bit of the word in the cells that go left at a split."""
    column = plan.splits.column[node]
    first, end = plan.starts[column], plan.starts[column + 1]
    for cell in range(end - first):
        if goes_left(plan, node, cell, end - first):
            word[first + cell] |= np.uint64(1) << shift


@compiled
def _tabulate_leaf(
    n: int, shares: Doubles, lanes: Longs, value: float, weights: Doubles, into: Doubles, polynomial: Doubles
) -> None:
    """Compute a leaf's SHAP values for each set of satisfied features, and its value if all are satisfied.

    A feature's value sums over the coalitions of the others. Coalitions with an unsatisfied member are worth nothing;
    those of ``k`` satisfied ones have the coefficient of ``x**k`` in the product of ``(x + share)`` over the
    satisfied, times the shares of the unsatisfied.

    Args:
        n: Distinct features above the leaf.
        shares: The share of training rows that satisfy each; shape (n,).
        lanes: Each feature's column in ``into``; shape (n,).
        into: Shape (at least 2**n, n_lanes).
    """
    for satisfied in range(1 << n):
        into[satisfied] = 0.0
        others, n_in = 1.0, 0  # the shares of the unsatisfied; the satisfied
        polynomial[0] = 1.0
        for i in range(n):
            if (satisfied >> i) & 1 == 0:
                others *= shares[i]
                continue
            n_in += 1
            polynomial[n_in] = polynomial[n_in - 1]
            for k in range(n_in - 1, 0, -1):
                polynomial[k] = polynomial[k - 1] + polynomial[k] * shares[i]
            polynomial[0] *= shares[i]
        for i in range(n):
            total = 0.0
            if (satisfied >> i) & 1:
                quotient = 0.0  # divide (x + share) out again, from the top
                for k in range(n_in, 0, -1):
                    quotient = polynomial[k] - quotient * shares[i]
                    total += weights[n, k - 1] * quotient
                into[satisfied, lanes[i]] += value * (1.0 - shares[i]) * total * others
            else:
                for k in range(n_in + 1):
                    total += weights[n, k] * polynomial[k]
                rest = 1.0
                for j in range(n):
                    if j != i and (satisfied >> j) & 1 == 0:
                        rest *= shares[j]
                into[satisfied, lanes[i]] -= value * shares[i] * total * rest
    into[(1 << n) - 1, -1] = value


@compiled
def _explain(cells: Cells, starts: Longs, words: Words, tables: Tables, sums: Floats, scores: Floats) -> None:
    patterns = np.empty(BLOCK, dtype=np.uint64)
    for first in range(0, cells.shape[1], BLOCK):
        block = cells[:, first : first + BLOCK]
        for word in range(len(words.n_columns)):
            gather(words, word, starts, block, patterns)
            for lane in range(0, sums.shape[1], 8):
                _add_parts(tables, tables.word_starts[word], tables.word_starts[word + 1], patterns, lane,
                           sums[first : first + BLOCK])  # fmt: skip
    for row in range(len(scores)):
        scores[row] = probability(sums[row, -1])


@compiled
def _add_parts(tables: Tables, first: int, end: int, patterns: Bits, lane: int, sums: Floats) -> None:
    """Add what a word's parts contribute to eight lanes; written out so that the sums stay in one register."""
    for row in range(len(sums)):
        pattern, to = patterns[row], sums[row, lane : lane + 8]
        a, b, c, d, e, f, g, h = to[0], to[1], to[2], to[3], to[4], to[5], to[6], to[7]
        for part in range(first, end):
            index = tables.starts[part] + np.int64((pattern >> tables.shifts[part]) & tables.masks[part])
            of_part = tables.rows[index, lane : lane + 8]
            a += of_part[0]
            b += of_part[1]
            c += of_part[2]
            d += of_part[3]
            e += of_part[4]
            f += of_part[5]
            g += of_part[6]
            h += of_part[7]
        to[0], to[1], to[2], to[3], to[4], to[5], to[6], to[7] = a, b, c, d, e, f, g, h
