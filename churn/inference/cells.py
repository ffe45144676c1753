"""Where a row falls between a forest's thresholds: its cells.

A tree only compares a row with thresholds, or looks its code up in a set. A number is therefore replaced by the number
of the forest's thresholds at or below it, and a categorical value by its level: a few small integers a row, its cells.
Compiled code then looks answers up instead of comparing. Pure.
"""

import math
from typing import NamedTuple

import numba
import numpy as np

from churn.compiled import compiled
from churn.data.arrays import Bits, Flags, Floats, Ints, Longs, Shorts
from churn.data.features import Encoding, Packed
from churn.inference.forest import Forest, NotCompilableError

# Numba leaves this pass of LLVM's out by default; with it, sums over a row's source columns take one instruction each.
numba.config.SLP_VECTORIZE = 1

BLOCK = 16_384
"""Rows that go through all trees together: enough that each tree's tables are loaded rarely."""

WORD_BITS = 64
_MAX_CELLS = 1 << 16

Cells = Shorts
"""Shape (n_columns, n_rows): per column of the encoding, numbers first, the cell of each row."""


class Splits(NamedTuple):
    """Each node's comparison; see :func:`goes_left`. Shape (n_nodes,) each, but for ``by_level``."""

    column: Ints  # the encoding's column
    cell: Longs  # of a number, the last cell below the threshold; of levels, where the split's cells are in `by_level`
    is_default_left: Flags  # whether a missing number goes left
    by_level: Flags  # whether each cell of levels goes left, split after split


class Words(NamedTuple):
    """Answers to 64 yes-or-no questions at a time: the OR of a word's bits over the cells of a row."""

    bits: Bits  # shape (n_words, n_cells)
    columns: Ints  # the columns with bits in each word, then the others; shape (n_words, n_columns)
    n_columns: Ints  # the number of columns with bits in each word, shape (n_words,)


class CellPlan(NamedTuple):
    """How rows of one encoding become cells of one forest."""

    n_numbers: int
    thresholds: Floats  # the numbers' distinct thresholds in rising order, number after number
    threshold_starts: Longs  # shape (n_numbers + 1,)
    starts: Longs  # each column's first cell among all cells, and their count; shape (n_columns + 1,)
    splits: Splits

    def locate(self, packed: Packed) -> Cells:
        """Find each row's cells."""
        cells = np.empty((len(self.starts) - 1, packed.n_rows), dtype=np.uint16)
        _locate(packed.numbers, self.thresholds, self.threshold_starts, cells)
        cells[self.n_numbers :] = packed.levels
        return cells

    def build_words(self, bits: Bits) -> Words:
        """Find the columns that each word depends on; ``bits`` has shape (n_words, n_cells)."""
        has_bits = np.logical_or.reduceat(bits, self.starts[:-1], axis=1)
        columns = np.argsort(~has_bits, axis=1, kind="stable").astype(np.int32)
        return Words(bits, columns, has_bits.sum(axis=1, dtype=np.int32))


def plan_cells(forest: Forest, encoding: Encoding) -> CellPlan:
    """Cut each column at the thresholds with which the forest compares it.

    Raises ``NotCompilableError`` if a column has more cells than 16 bits number, or is compared by code and has none.
    """
    n_numbers = len(encoding.numbers)
    column = encoding.column_of_feature[forest.features]
    cell = np.zeros(len(column), dtype=np.int64)
    thresholds: list[Floats] = []
    for i in range(n_numbers):
        splits = ~forest.is_leaf & (column == i)
        thresholds.append(np.unique(forest.values[splits]))
        cell[splits] = np.searchsorted(thresholds[i], forest.values[splits])
    n_cells = [len(cuts) + 2 for cuts in thresholds] + [len(group.levels) + 1 for group in encoding.one_hots]
    if max(n_cells) > _MAX_CELLS:
        raise NotCompilableError(f"{max(n_cells)} thresholds of one feature")
    by_level = _split_by_level(forest, encoding, column, np.array(n_cells, dtype=np.int64), cell)
    joined = np.concatenate([*thresholds, np.empty(0, dtype=np.float32)])
    threshold_starts, starts = np.cumsum([0, *map(len, thresholds)]), np.cumsum([0, *n_cells])
    splits = Splits(column, cell, forest.is_default_left, by_level)
    return CellPlan(n_numbers, joined, threshold_starts, starts, splits)


def _split_by_level(forest: Forest, encoding: Encoding, column: Ints, n_cells: Longs, cell: Longs) -> Flags:
    """Tabulate which cells of levels go left, split after split; set ``cell`` to where those of each split begin."""
    level = np.zeros(encoding.n_features, dtype=np.int64)
    for group in encoding.one_hots:
        level[list(group.positions)] = range(len(group.positions))
    is_coded = np.array([*(False for _ in encoding.numbers), *(group.is_coded for group in encoding.one_hots)])
    if (forest.is_categorical != is_coded[column])[~forest.is_leaf].any():
        raise NotCompilableError("categorical splits by levels that are not known")
    nodes = np.flatnonzero(~forest.is_leaf & (column >= len(encoding.numbers)))
    sizes = n_cells[column[nodes]]
    ends = np.cumsum(sizes)
    cell[nodes] = ends - sizes
    is_set = forest.is_categorical[nodes]
    sets, flags = nodes[is_set], nodes[~is_set]
    if (forest.categories >= np.repeat(sizes[is_set] - 2, forest.set_sizes)).any():
        raise NotCompilableError("categorical splits by codes without a level")
    by_level = np.repeat(is_set | (forest.values[nodes] > 0), sizes)
    by_level[cell[flags] + level[forest.features[flags]]] = forest.values[flags] > 1
    by_level[np.repeat(cell[sets], forest.set_sizes) + forest.categories] = False  # a code that is in no set goes left
    by_level[ends[is_set] - 2] = forest.is_default_left[sets]
    return by_level


@compiled
def goes_left(plan: CellPlan, node: int, cell: int, n_cells: int) -> bool:
    """Return whether rows in a cell of the node's column go left there; the last cell of a number is "missing"."""
    splits = plan.splits
    if splits.column[node] >= plan.n_numbers:
        return bool(splits.by_level[splits.cell[node] + cell])
    return bool(splits.is_default_left[node]) if cell == n_cells - 1 else cell <= splits.cell[node]


@compiled
def gather(words: Words, word: int, starts: Longs, cells: Cells, into: Bits) -> None:
    """OR one word's bits over its columns, for each row. Four columns at a time, to save passes."""
    bits, columns, n = words.bits[word], words.columns[word], words.n_columns[word]
    n_rows = cells.shape[1]
    into[:n_rows] = 0
    i = 0
    while i + 3 < n:
        a, b, c, d = columns[i], columns[i + 1], columns[i + 2], columns[i + 3]
        of_a, of_b, of_c, of_d = bits[starts[a] :], bits[starts[b] :], bits[starts[c] :], bits[starts[d] :]
        in_a, in_b, in_c, in_d = cells[a], cells[b], cells[c], cells[d]
        for row in range(n_rows):
            into[row] |= of_a[in_a[row]] | of_b[in_b[row]] | of_c[in_c[row]] | of_d[in_d[row]]
        i += 4
    while i < n:
        of_a, in_a = bits[starts[columns[i]] :], cells[columns[i]]
        for row in range(n_rows):
            into[row] |= of_a[in_a[row]]
        i += 1


@compiled
def _locate(numbers: Floats, thresholds: Floats, starts: Longs, into: Cells) -> None:
    for number in range(len(starts) - 1):
        cuts = thresholds[starts[number] : starts[number + 1]]
        for row in range(numbers.shape[1]):
            value = numbers[number, row]
            if math.isnan(value):
                into[number, row] = len(cuts) + 1
                continue
            low, left = 0, len(cuts)
            while left > 0:
                half = left >> 1
                if cuts[low + half] <= value:
                    low, left = low + half + 1, left - half - 1
                else:
                    left = half
            into[number, row] = low
