"""A booster's trees as flat arrays, which compiled code can walk. Pure.

Only ``gbtree`` boosters are read; for all others the caller uses XGBoost itself, which is slower.
Format: https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from churn.data.arrays import Array, Flags, Floats, Ints, Longs

LEAF = -1


class NotCompilableError(ValueError):
    """The trees are of a kind that only XGBoost itself can walk."""


class Forest(NamedTuple):
    """Trees node after node, a tree's root first. All but ``starts`` and the sets have shape (n_nodes,)."""

    starts: Longs  # each tree's first node, and the number of nodes; shape (n_trees + 1,)
    left: Ints  # the child of rows whose value is below the threshold, or `LEAF`
    right: Ints  # the child of the others
    parents: Ints  # the node above; of a root, itself
    features: Ints  # the matrix column of a split
    values: Floats  # a split's threshold; a leaf's share of the margin, in log-odds
    is_categorical: Flags  # whether a split sends the codes of a set right, and all other codes left
    set_sizes: Longs  # the number of codes in each of these sets; shape (n categorical nodes,)
    categories: Longs  # the codes in all of these sets, set after set
    is_default_left: Flags  # where a missing value goes
    covers: Floats  # the weight of the training rows that reached the node
    base_margin: np.float32  # the margin before any tree, in log-odds

    @property
    def is_leaf(self) -> Flags:
        return np.equal(self.left, LEAF)

    @property
    def depth(self) -> int:
        """The number of splits above the deepest leaf."""
        depth, level = 0, self.starts[:-1]
        while (inner := level[self.left[level] != LEAF]).size:
            depth, level = depth + 1, np.concatenate([self.left[inner], self.right[inner]])
        return depth


def booster_kind(gradient_booster: dict[str, Any]) -> str:
    """Return the booster's name; XGBoost 3.4 and later write DART as a ``gbtree`` with weights of its trees."""
    return "dart" if "weight_drop" in gradient_booster.get("model", {}) else gradient_booster["name"]


def read_forest(document: dict[str, Any], n_rounds: int | None = None) -> Forest:
    """Read the trees of a parsed model file that :func:`churn.inference.bundle.read_bundle` has checked.

    ``n_rounds`` boosting rounds predict, by default all. Raises ``NotCompilableError`` if it is no ``gbtree`` booster.
    """
    learner = document["learner"]
    booster = learner["gradient_booster"]
    if (kind := booster_kind(booster)) != "gbtree":
        raise NotCompilableError(f"booster {kind}")
    trees = booster["model"]["trees"][: _n_trees(booster["model"], n_rounds)]
    if not trees:
        raise NotCompilableError("no trees")

    def join(name: str, dtype: npt.DTypeLike) -> Array:
        return np.concatenate([np.asarray(tree[name]) for tree in trees]).astype(dtype)

    sets = [codes for tree in trees for _, codes in sets_of(tree)]
    starts = np.cumsum([0, *(len(tree["left_children"]) for tree in trees)])
    first = np.repeat(starts[:-1], np.diff(starts)).astype(np.int32)
    left = join("left_children", np.int32)
    is_leaf = left == LEAF
    parents = join("parents", np.int64) + first
    parents[starts[:-1]] = starts[:-1]
    return Forest(
        starts=starts,
        left=np.where(is_leaf, LEAF, left + first),
        right=np.where(is_leaf, LEAF, join("right_children", np.int32) + first),
        parents=parents.astype(np.int32),
        features=np.where(is_leaf, 0, join("split_indices", np.int32)),  # a leaf's has no meaning
        values=join("split_conditions", np.float32),
        is_categorical=join("split_type", np.bool_) & ~is_leaf,
        set_sizes=np.array([len(codes) for codes in sets], dtype=np.int64),
        categories=np.concatenate([np.arange(0), *sets]),
        is_default_left=join("default_left", np.bool_),
        covers=join("sum_hessian", np.float32),
        base_margin=base_margin(str(learner["learner_model_param"]["base_score"])),
    )


def sets_of(tree: dict[str, Any]) -> list[tuple[int, Longs]]:
    """Return a tree's categorical splits: each one's node, and the codes that it sends right."""
    nodes, starts, sizes = (tree.get(f"categories_{name}", ()) for name in ("nodes", "segments", "sizes"))
    if not len(nodes):  # at once, since most models have none
        return []
    codes, left = np.asarray(tree["categories"], dtype=np.int64), tree["left_children"]
    places = zip(nodes, starts, sizes, strict=True)
    return [(int(node), codes[i : i + n]) for node, i, n in places if left[node] != LEAF]


def _n_trees(model: dict[str, Any], n_rounds: int | None) -> int | None:
    if n_rounds is None:
        return None
    if (starts := model.get("iteration_indptr")) is not None:
        return int(starts[n_rounds])
    return n_rounds * max(int(model["gbtree_model_param"].get("num_parallel_tree", 1)), 1)  # XGBoost before 2.0


def base_margin(base_score: str) -> np.float32:
    """Turn the file's base score, a probability, into log-odds in float32, as XGBoost does; ``ValueError`` if odd."""
    score = np.float32(base_score.strip("[]"))
    if not 0 < score < 1:
        raise NotCompilableError(f"base score {base_score}")
    odds_against = np.float32(1) / score - np.float32(1)
    return np.float32(-math.log(odds_against))  # NumPy's own float32 logarithm rounds less well than C's
