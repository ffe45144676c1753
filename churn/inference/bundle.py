"""A model as files: an XGBoost booster, its feature names, and golden rows that prove that its scores are unchanged.

Only native boosters are read: UBJSON or JSON, recognized by their first bytes. Nothing is unpickled, and no code in a
file runs. Not here: where the files come from.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import xgboost as xgb

from churn.data.arrays import Floats, Longs
from churn.data.columns import parse_levels
from churn.data.features import Levels, Matrix
from churn.data.formats import unrepeated
from churn.data.spellings import is_pattern
from churn.errors import ModelFileError, raised_as
from churn.inference.categories import agree, read_levels
from churn.inference.forest import Forest, base_margin, booster_kind, read_forest
from churn.inference.ubjson import parse_ubjson
from churn.wording import listed

MAX_MODEL_BYTES = 512 << 20
MAX_JSON_BYTES = 64 << 20  # parsed, text takes many times its size
_MAX_CONTAINERS, _MAX_VALUES = 1_000_000, 4_000_000
_MAX_CATEGORY = 1 << 24  # XGBoost's limit
GOLDEN_ROWS = 64
GOLDEN_TOLERANCE = 1e-5  # float32 sums in another order differ by less; a wrongly read model by much more
_NAMES_SHOWN = 5
_LEVELS = "churn_categories"  # XGBoost drops the levels that it stores when it cuts rounds; an attribute stays
_LEARNER_FIELDS = {
    "attributes", "feature_names", "feature_types", "gradient_booster", "learner_model_param", "objective", "metrics",
    "learner_train_param", "generic_param",
}  # fmt: skip
_PARAMETER_FIELDS = {"base_score", "boost_from_average", "num_class", "num_feature", "num_target"}
_MODEL_FIELDS = {
    "cats", "gbtree_model_param", "iteration_indptr", "tree_info", "trees", "weight_drop", "weights", "boosted_rounds",
    "param",
}  # fmt: skip
_TREE_FIELDS = {
    "base_weights", "categories", "categories_nodes", "categories_segments", "categories_sizes", "default_left", "id",
    "leaf_child_counts", "left_children", "loss_changes", "parents", "right_children", "split_conditions",
    "split_indices", "split_type", "sum_hessian", "tree_param",
}  # fmt: skip
_SIZE_FIELDS = {"num_deleted", "num_feature", "num_nodes", "size_leaf_vector"}
_NODE_FIELDS = ("left_children", "right_children", "parents", "split_indices", "split_conditions", "default_left")
_NO_CHILD = -1
_BAD_CONTENT = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Golden:
    """Rows in the model's order, shape (n, n_features), and their scores, shape (n,), from when it was logged."""

    matrix: Matrix
    scores: Floats

    def to_json(self) -> str:
        """Write as JSON; a missing value is ``null``, and every float32 is read back unchanged."""
        rows = [[None if np.isnan(value) else float(value) for value in row] for row in self.matrix]
        return json.dumps({"rows": rows, "scores": [float(score) for score in self.scores]})

    @classmethod
    def from_json(cls, text: str | bytes) -> "Golden":
        """Read the output of :meth:`to_json`; raises ``ModelFileError`` if it is damaged or has no row."""
        with raised_as(ModelFileError, "the golden rows are damaged", *_BAD_CONTENT, remedy="log the model again"):
            document = json.loads(text)
            rows, scores = (np.array(document[name], dtype=np.float32) for name in ("rows", "scores"))
        if rows.ndim != 2 or not len(rows) or scores.shape != (len(rows),) or not ((scores >= 0) & (scores <= 1)).all():
            problem = f"shape {rows.shape} and their scores {scores.shape}, or scores that are not probabilities"
            needed = "rows with a probability each are needed; log the model again"
            raise ModelFileError(f"the golden rows have {problem}; {needed}")
        return cls(rows, scores)


@dataclass(frozen=True)
class Bundle:
    """A booster that was checked against its feature names."""

    # Returns the booster, which is needed only where its tables cannot be used
    load: Callable[[], xgb.Booster] = field(repr=False)
    feature_names: tuple[str, ...]
    data: bytes = field(repr=False)
    parameters: dict[str, Any]  # the model's parameters as stored in the file; empty when loaded without reading them
    categories: Levels = field(default_factory=dict)  # each categorical feature's levels, in the order of their codes
    # Rows and the scores that were logged with the model; `None` if it was not logged
    golden: Golden | None = field(default=None, repr=False)

    @cached_property
    def booster(self) -> xgb.Booster:
        return self.load()

    @property
    def sha256(self) -> str:
        """The file's digest, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    def with_levels(self, categories: Levels) -> "Bundle":
        """Return the model with these levels, which stay with its booster."""
        if categories:
            self.booster.set_attr(**{_LEVELS: json.dumps(categories)})
        return replace(self, categories=categories)

    def read_forest(self) -> Forest:
        """Read the trees that predict; see :func:`churn.inference.forest.read_forest`."""
        return read_forest(_parse(self.data), self.booster.num_boosted_rounds())

    def predict(self, matrix: Matrix) -> Floats:
        """Return the churn probabilities of ``Booster.predict``, shape (n,), of rows of shape (n, n_features)."""
        if matrix.shape[1] != len(self.feature_names):
            raise ModelFileError(f"the matrix has {matrix.shape[1]} columns; the model needs {len(self.feature_names)}")
        if not len(matrix):
            return np.empty(0, dtype=np.float32)
        try:
            scores = self.booster.inplace_predict(matrix, validate_features=False)
        except xgb.core.XGBoostError:  # gblinear has no such predictor
            scores = self.booster.predict(xgb.DMatrix(matrix), validate_features=False)
        return np.asarray(scores, dtype=np.float32)

    def contributions(self, matrix: Matrix) -> Floats:
        """Explain rows by XGBoost's exact SHAP values, hundreds of times slower than scoring.

        Returns log-odds by feature, the bias last, shape (n, n_features + 1).
        """
        data = xgb.DMatrix(matrix, feature_names=list(self.feature_names))
        return np.asarray(self.booster.predict(data, pred_contribs=True), dtype=np.float32)

    def make_golden(self, matrix: Matrix) -> Golden:
        """Score the first rows of ``matrix``."""
        return Golden(matrix[:GOLDEN_ROWS], self.predict(matrix[:GOLDEN_ROWS]))

    def require_golden(self, golden: Golden) -> None:
        """Raise ``ModelFileError`` if any score differs from the logged one by more than ``GOLDEN_TOLERANCE``."""
        difference = np.abs(self.predict(golden.matrix) - golden.scores).max(initial=0.0)
        if not difference <= GOLDEN_TOLERANCE:
            gap = f"{difference:.2g} from those logged with it ({GOLDEN_TOLERANCE:g} is allowed)"
            remedy = f"XGBoost here is {xgb.__version__}: use the one it was logged with"
            raise ModelFileError(f"the model gives its golden rows scores that differ by {gap}; {remedy}")


def read_bundle(data: bytes, names: Sequence[str] | None, origin: str, declared: Levels | None = None) -> Bundle:
    """Read an untrusted booster and check it against its feature names.

    The ``names``, in the model's order, are by default those in the booster; ``origin`` names the file in an error.
    ``declared`` are the levels of categorical features by their author, for files that do not store them.

    Raises:
        ModelFileError: If the file is not a whole UBJSON or JSON model, was saved by a newer XGBoost than this one,
            has another objective than ``binary:logistic``, or does not match the names.
    """
    _require_readable_format(data, origin)
    damage, kinds = f"{origin} is damaged", (ValueError, OverflowError, RecursionError)
    other, fields = f"{origin} is not an XGBoost model", (LookupError, TypeError, AttributeError)
    with (
        raised_as(ModelFileError, damage, *kinds, remedy="save the model again"),
        raised_as(ModelFileError, other, *fields, remedy="save one with Booster.save_model"),
    ):
        document = _parse(data)  # XGBoost's reader can crash on a truncated file, so the whole file is parsed first
        parameters = _parameters(document)
        version = [int(part) for part in document["version"]]
        levels = read_levels(document, parameters["n_features"])
    _require_known_version(version, origin)
    if parameters.pop("n_outputs") > 1:
        raise ModelFileError(f"{origin} has several scores per row; one churn probability is needed")
    if (objective := parameters["objective"]) != "binary:logistic":
        raise ModelFileError(f"{origin} has objective {objective!r}; churn probabilities need binary:logistic")
    needed = "one number between 0 and 1 is needed: train it again"
    with raised_as(ModelFileError, f"{origin} has no probability to begin with", ValueError, remedy=needed):
        base_margin(parameters["base_score"])
    _require_known_fields(document, origin)
    bundle = load_bundle(data, names, origin, parameters)
    named = ((bundle.feature_names[i], most, stored) for i, (most, stored) in levels.items())
    found = {name: (most, stored or bundle.categories.get(name, ())) for name, most, stored in named}
    return bundle.with_levels(agree(found, declared or {}, origin))


def load_bundle(data: bytes, names: Sequence[str] | None, origin: str, stored: dict[str, Any] | None = None) -> Bundle:
    """Load a booster that was checked before, such as a logged one; see :func:`read_bundle`."""
    booster = xgb.Booster()
    try:
        booster.load_model(bytearray(data))
    except xgb.core.XGBoostError as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or ["unreadable"]
        cause = re.sub(r"^\[[\d:]+\] \S+: ", "", lines[0])[:200]
        raise ModelFileError(f"{origin} is damaged: {cause}; save the model again") from error
    agreed = _agreed_names(booster, names, origin)
    booster = _rounds_that_predict(booster, origin)
    with raised_as(ModelFileError, f"{origin} has another attribute {_LEVELS} than is written here", *_BAD_CONTENT):
        levels = parse_levels(json.loads(booster.attr(_LEVELS) or "{}"))
    with raised_as(ModelFileError, f"{origin} has feature names XGBoost rejects", ValueError, remedy="rename them"):
        booster.feature_names = list(agreed)
    return Bundle(partial(_given, booster), agreed, data, stored or {}, levels)


def _given(booster: xgb.Booster) -> xgb.Booster:
    return booster  # picklable, as a lambda is not


def load_logged(data: bytes, golden: Golden, origin: str) -> Bundle:
    """Load a booster that was logged with golden rows; raises ``ModelFileError`` if its scores of these differ."""
    bundle = replace(load_bundle(data, None, origin), golden=golden)
    bundle.require_golden(golden)
    return bundle


def describe_bundle(bundle: Bundle) -> bytes:
    """Return what :func:`reopen_bundle` needs to know of a booster, as JSON, for this version of XGBoost."""
    names, levels = bundle.feature_names, bundle.categories
    return json.dumps({"xgboost": xgb.__version__, "feature_names": names, "categories": levels}).encode()


def reopen_bundle(data: bytes, golden: Golden, description: bytes, origin: str) -> Bundle | None:
    """Return a booster that was loaded and described before, and load it only when it is needed; ``None`` if unfit."""
    known = json.loads(description)
    if known["xgboost"] != xgb.__version__:
        return None
    names, levels = tuple(known["feature_names"]), parse_levels(known["categories"])
    return Bundle(lambda: load_logged(data, golden, origin).booster, names, data, {}, levels, golden)


def _rounds_that_predict(booster: xgb.Booster, origin: str) -> xgb.Booster:
    """Return the booster that the class which saved the file predicts with.

    ``XGBClassifier`` stops at its best iteration, and marks the file; a native booster uses all of its rounds.
    """
    attributes, n_rounds = booster.attributes(), booster.num_boosted_rounds()
    best = attributes.get("best_iteration")
    if "scikit_learn" not in attributes or best is None:
        return booster
    if json.loads(booster.save_config())["learner"]["gradient_booster"]["name"] == "gblinear":
        return booster
    if not best.isdecimal() or int(best) >= n_rounds:
        saved = f"saved by scikit-learn's interface with best_iteration {best[:20]!r} of {n_rounds} rounds"
        problem = f"{origin} was {saved}, so that it cannot be decided which of them predict"
        meant = "booster[:n] of model.get_booster(), or all of them after set_attr(best_iteration=None)"
        raise ModelFileError(f"{problem}; save the rounds meant: {meant}")
    return booster if int(best) + 1 == n_rounds else booster[: int(best) + 1]


def parse_feature_names(data: bytes, origin: str) -> list[str]:
    """Read a JSON array of distinct feature names; raises ``ModelFileError`` if it is anything else."""
    needed = "an array of feature names is needed"
    with raised_as(ModelFileError, f"{origin} is not JSON", ValueError, RecursionError, remedy=needed):
        names = json.loads(data)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ModelFileError(f'{origin} is not a JSON array of feature names, such as ["total_deposit", …]')
    # XGBoost ends a name at the character NUL, and two names could become one.
    if odd := [name for name in names if not name.isprintable()]:
        raise ModelFileError(f"{origin} has names that cannot be printed: {odd[:_NAMES_SHOWN]}; rename the features")
    _require_usable_names(names, origin)
    return names


def _parse(data: bytes) -> Any:
    if data.startswith(b"{L"):
        return parse_ubjson(data)
    n_containers, n_values = data.count(b"[") + data.count(b"{"), data.count(b",")
    if len(data) > MAX_JSON_BYTES or n_containers > _MAX_CONTAINERS or n_values > _MAX_VALUES:
        problem = f"as JSON it has {len(data)} bytes, {n_values} values and {n_containers} arrays and objects"
        remedy = f"the limits are {MAX_JSON_BYTES}, {_MAX_VALUES} and {_MAX_CONTAINERS}; save it as .ubj"
        raise ValueError(f"{problem}; {remedy}")
    return json.loads(data, object_pairs_hook=unrepeated)


def _require_usable_names(names: Sequence[str], origin: str) -> None:
    if repeated := sorted(name for name, count in Counter(names).items() if count > 1):
        raise ModelFileError(f"{origin} has repeated feature names: {repeated[:_NAMES_SHOWN]}; each may occur once")
    if patterns := [name for name in names if is_pattern(name)]:
        raise ModelFileError(f"{origin} has feature names that are patterns: {patterns[:_NAMES_SHOWN]}; rename them")


def _require_readable_format(data: bytes, origin: str) -> None:
    if not data:
        raise ModelFileError(f"{origin} is empty; an XGBoost model as UBJSON or JSON is needed")
    if len(data) > MAX_MODEL_BYTES:
        raise ModelFileError(f"{origin} has {len(data)} bytes; models up to {MAX_MODEL_BYTES} are read")
    if data.startswith(b"binf"):
        remedy = "load it with XGBoost 2.x and save it again as .ubj or .json"
        raise ModelFileError(f"{origin} is in XGBoost's old binary format, which version 3.1 removed; {remedy}")
    if not data.lstrip().startswith(b"{"):
        remedy = "save the booster with Booster.save_model('model.ubj')"
        raise ModelFileError(f"{origin} begins with {data[:4]!r} and is neither UBJSON nor JSON; {remedy}")


def _require_known_version(saved: list[int], origin: str) -> None:
    running = [int(part) for part in re.findall(r"\d+", xgb.__version__)[:2]]
    if saved[:2] > running:  # an older XGBoost reads a newer file without an error and predicts something else
        theirs, minor, ours = (".".join(map(str, version)) for version in (saved, saved[:2], running))
        problem = f"{origin} was saved by XGBoost {theirs} and this is {xgb.__version__}, which may misread it"
        remedy = f"use XGBoost {minor} here (newer than 3.2: Python 3.12 or newer)"
        raise ModelFileError(f"{problem}; {remedy}, or save the model with XGBoost {ours} or older")


def _parameters(document: dict[str, Any]) -> dict[str, Any]:
    """Check the model and return its parameters; training settings such as eta are not stored in the file."""
    learner = document["learner"]
    gradient_booster = learner["gradient_booster"]
    model = gradient_booster.get("model") or gradient_booster.get("gbtree", {}).get("model", {})
    trees = model.get("trees", [])
    of_learner = learner["learner_model_param"]
    n_features = int(of_learner["num_feature"])
    n_outputs = max(int(of_learner.get("num_target", 1)), int(of_learner["num_class"]), 1)
    if n_outputs == 1 and [int(group) for group in model.get("tree_info", [])] != [0] * len(trees):
        raise ValueError("its trees belong to outputs that it does not have")
    _require_weights(model.get("weights"), (n_features + 1) * n_outputs, "features and biases")
    _require_weights(model.get("weight_drop", gradient_booster.get("weight_drop")), len(trees), "trees")
    texts = (booster_kind(gradient_booster), learner["objective"]["name"], of_learner["base_score"])
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("its booster, objective and base score must be texts")
    return {
        "booster": texts[0],
        "objective": texts[1],
        "base_score": texts[2],
        "scale_pos_weight": learner["objective"].get("reg_loss_param", {}).get("scale_pos_weight"),
        "n_features": n_features,
        "n_outputs": n_outputs,
        "n_trees": len(trees),
        "n_leaves": sum(int((np.asarray(tree["left_children"]) == -1).sum()) for tree in trees),
        "max_depth": _depth(trees, n_features) if n_outputs == 1 else None,
        "xgboost_version": ".".join(str(int(part)) for part in document["version"]),
    }


def _require_known_fields(document: Any, origin: str) -> None:
    """Reject a field that is not known: it could change what the model predicts, and would be passed over."""
    learner = document["learner"]
    gradient_booster = learner["gradient_booster"]
    model = gradient_booster.get("model") or gradient_booster["gbtree"]["model"]
    parts = {
        "the file": (document, {"learner", "version", "Config", "config"}),
        "its learner": (learner, _LEARNER_FIELDS),
        "its parameters": (learner["learner_model_param"], _PARAMETER_FIELDS),
        "its objective": (learner["objective"], {"name", "reg_loss_param"}),
        "its loss": (learner["objective"].get("reg_loss_param", {}), {"scale_pos_weight"}),
        "its booster": (gradient_booster, {"name", "model", "gbtree", "weight_drop"}),
        "its model": (model, _MODEL_FIELDS),
        "its forest": (model.get("gbtree_model_param", {}), {"num_parallel_tree", "num_trees", "size_leaf_vector"}),
    }
    trees = model.get("trees", [])
    parts |= {f"its tree {i}": (tree, _TREE_FIELDS) for i, tree in enumerate(trees)}
    parts |= {f"the size of its tree {i}": (tree["tree_param"], _SIZE_FIELDS) for i, tree in enumerate(trees)}
    for where, (fields, known) in parts.items():
        if unknown := sorted(set(fields) - known):
            problem = f"{origin}: {where} has {unknown[0]!r}, which is not known here and may change what it predicts"
            remedy = "train it without that setting, or use a version of this software that knows it"
            raise ModelFileError(f"{problem}; {remedy}")


def _require_weights(weights: Any, n: int, what: str) -> None:
    if weights is None:
        return
    numbers = np.asarray(weights, dtype=np.float32)
    if numbers.shape != (n,) or not np.isfinite(numbers).all():
        raise ValueError(f"it has {numbers.size} weights of {what}, and {n} finite ones are needed")


def _require_tree(holds: object, problem: str) -> None:
    if not holds:
        raise ValueError(f"one of its trees has {problem}")


def _depth(trees: Sequence[dict[str, Any]], n_features: int) -> int:
    """Return the depth of the deepest tree and check the indices of all: XGBoost follows them, even out of memory.

    All trees are walked down at once, level by level, their nodes numbered on.
    """
    if not trees:
        return 0
    lengths = np.array([[len(tree[name]) for name in _NODE_FIELDS] for tree in trees])
    sizes = lengths[:, 0]
    _require_tree((sizes > 0).all() and (lengths == sizes[:, None]).all(), "arrays of different lengths")
    left, right, parents, features = (
        np.concatenate([np.asarray(tree[name], dtype=np.int64) for tree in trees]) for name in _NODE_FIELDS[:4]
    )
    values = np.concatenate([np.asarray(tree["split_conditions"], dtype=np.float32) for tree in trees])
    shapes = {left.shape, right.shape, parents.shape, features.shape, values.shape}
    _require_tree(shapes == {(sizes.sum(),)}, "arrays of arrays")
    kinds = np.concatenate([_require_categories(tree, n_nodes) for tree, n_nodes in zip(trees, sizes, strict=True)])
    is_number = (kinds == 0) | (left == _NO_CHILD)  # XGBoost before 3 wrote NaN as a categorical split's threshold
    _require_tree(np.isfinite(values[is_number]).all(), "thresholds or leaves that are not finite")
    first, tree_of = np.cumsum(sizes) - sizes, np.repeat(np.arange(len(sizes)), sizes)
    depth, n_seen, level = 0, np.ones(len(sizes), dtype=np.int64), first
    while (inner := level[left[level] != _NO_CHILD]).size:
        children, of_tree = np.concatenate([left[inner], right[inner]]), np.tile(tree_of[inner], 2)
        n_seen += np.bincount(of_tree, minlength=len(sizes))
        is_node = (n_seen <= sizes).all() and (children >= 0).all() and (children < sizes[of_tree]).all()
        _require_tree(is_node, "children that are not its nodes")
        depth, level = depth + 1, children + first[of_tree]
        agree = parents[level] == np.tile(inner - first[tree_of[inner]], 2)
        _require_tree(agree.all(), "nodes that disagree about their parents")
        is_feature = features[inner].min() >= 0 and features[inner].max() < n_features
        _require_tree(is_feature, f"splits on features that are not among its {n_features}")
    return depth


def _require_categories(tree: dict[str, Any], n_nodes: int) -> Longs:
    """Check a tree's categorical splits and leaf vectors, which XGBoost reads unchecked; returns each node's kind."""
    _require_tree(int(tree["tree_param"].get("size_leaf_vector", 0)) <= 1, "leaves of several values")
    kinds, nodes, segments, sizes, categories = (
        np.asarray(tree.get(name, []), dtype=np.int64)
        for name in ("split_type", "categories_nodes", "categories_segments", "categories_sizes", "categories")
    )
    has_lengths = {nodes.size} == {segments.size, sizes.size} and kinds.size in (0, n_nodes)
    _require_tree(has_lengths, "categories of different lengths")
    if not kinds.any() and not nodes.size and not categories.size:  # most trees, and each check takes as long as a tree
        return np.zeros(n_nodes, dtype=np.int64)
    has_categories = np.isin(kinds, (0, 1)).all() and np.array_equal(np.flatnonzero(kinds), nodes)
    _require_tree(has_categories, "categorical splits without categories")
    is_positive = (np.concatenate([segments, sizes, categories]) >= 0).all()
    is_within = (segments + sizes <= categories.size).all() and (categories < _MAX_CATEGORY).all()
    _require_tree(is_positive and is_within, "categories out of range")
    return kinds if kinds.size else np.zeros(n_nodes, dtype=np.int64)


def _agreed_names(booster: xgb.Booster, given: Sequence[str] | None, origin: str) -> tuple[str, ...]:
    """Return the feature names, which must be those stored in the booster, if any."""
    stored = booster.feature_names
    names = list(given) if given is not None else stored
    if names is None:
        remedy = "train it on a DataFrame, or log it in MLflow with a DataFrame of its features as input_example"
        raise ModelFileError(f"{origin} has no feature names and none were given; {remedy}")
    n_features = booster.num_features()
    if len(names) != n_features:
        problem = f"{origin} was trained on {n_features} features and its feature names file has {len(names)}"
        raise ModelFileError(f"{problem}; export both from the same training run")
    _require_usable_names(names, origin)
    if stored is not None and len(stored) != len(names):
        raise ModelFileError(f"{origin} has {len(stored)} feature names for its {n_features} features; train it again")
    if differing := [(i, a, b) for i, (a, b) in enumerate(zip(stored or names, names, strict=True)) if a != b]:
        shown = listed([f"{i}: {a!r} against {b!r}" for i, a, b in differing], _NAMES_SHOWN)
        problem = f"{origin} and its feature names file disagree at {len(differing)} positions ({shown})"
        raise ModelFileError(f"{problem}; export both from the same training run")
    return tuple(names)
