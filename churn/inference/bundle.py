"""A model as files: an XGBoost booster, its feature names, and golden rows that prove it still predicts the same.

Only native boosters are read: UBJSON or JSON, recognized by their first bytes. Nothing is unpickled and no code of a
file runs. Not here: where the files come from.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost as xgb

from churn.data.features import Matrix
from churn.data.formats import unrepeated
from churn.errors import ModelFileError
from churn.inference.forest import Forest, booster_kind, read_forest
from churn.inference.ubjson import parse_ubjson

MAX_MODEL_BYTES = 512 << 20
MAX_JSON_BYTES = 64 << 20  # parsed, text takes many times its room
_MAX_CONTAINERS, _MAX_VALUES = 1_000_000, 4_000_000
_MAX_CATEGORY = 1 << 24  # XGBoost's own
GOLDEN_ROWS = 64
GOLDEN_TOLERANCE = 1e-5  # float32 sums in another order differ by less; a wrongly read model by much more
_NAMES_SHOWN = 5
_NO_CHILD = -1


@dataclass(frozen=True)
class Golden:
    """Rows and the probabilities the model gave them when it was logged.

    Attributes:
        matrix: Shape (n, n_features), in the model's order.
        scores: Shape (n,), in [0, 1].
    """

    matrix: Matrix
    scores: npt.NDArray[np.float32]

    def to_json(self) -> str:
        """Write as JSON; a missing value is ``null``, and every float32 comes back the same."""
        rows = [[None if np.isnan(value) else float(value) for value in row] for row in self.matrix]
        return json.dumps({"rows": rows, "scores": [float(score) for score in self.scores]})

    @classmethod
    def from_json(cls, text: str | bytes) -> "Golden":
        """Read what :meth:`to_json` wrote.

        Raises:
            ModelFileError: If it is something else, or holds no row, which would prove nothing.
        """
        try:
            held = json.loads(text)
            rows, scores = np.array(held["rows"], dtype=np.float32), np.array(held["scores"], dtype=np.float32)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ModelFileError(
                f"the golden rows are damaged ({type(error).__name__}: {error}); log the model again"
            ) from error
        if rows.ndim != 2 or not len(rows) or scores.shape != (len(rows),) or not ((scores >= 0) & (scores <= 1)).all():
            raise ModelFileError(
                f"the golden rows have shape {rows.shape} and their scores {scores.shape}, or scores that are no "
                f"probabilities; rows with a probability each are needed: log the model again"
            )
        return cls(rows, scores)


@dataclass(frozen=True)
class Bundle:
    """A booster that was checked against its feature names.

    Attributes:
        data: The file's bytes.
        parameters: The model's parameters as stored in the file; empty when loaded without reading them.
    """

    booster: xgb.Booster
    feature_names: tuple[str, ...]
    data: bytes = field(repr=False)
    parameters: dict[str, Any]

    @property
    def sha256(self) -> str:
        """The file's digest, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    def read_forest(self) -> Forest:
        """Read the trees; raises what :func:`churn.inference.forest.read_forest` does."""
        return read_forest(_parse(self.data))

    def predict(self, matrix: Matrix) -> npt.NDArray[np.float32]:
        """Score rows in the model's order.

        Args:
            matrix: Shape (n, len(feature_names)), NaN for missing.

        Returns:
            Churn probabilities, shape (n,), what ``Booster.predict`` gives for the same rows.
        """
        if matrix.shape[1] != len(self.feature_names):
            raise ModelFileError(f"the matrix has {matrix.shape[1]} columns; the model needs {len(self.feature_names)}")
        if not len(matrix):
            return np.empty(0, dtype=np.float32)
        try:
            scores = self.booster.inplace_predict(matrix, validate_features=False)
        except xgb.core.XGBoostError:  # gblinear has no such predictor
            scores = self.booster.predict(xgb.DMatrix(matrix), validate_features=False)
        return np.asarray(scores, dtype=np.float32)

    def contributions(self, matrix: Matrix) -> npt.NDArray[np.float32]:
        """Explain rows by XGBoost's own exact SHAP values, hundreds of times slower than scoring.

        Returns:
            Log-odds by feature, the bias last, shape (n, len(feature_names) + 1).
        """
        data = xgb.DMatrix(matrix, feature_names=list(self.feature_names))
        return np.asarray(self.booster.predict(data, pred_contribs=True), dtype=np.float32)

    def make_golden(self, matrix: Matrix) -> Golden:
        """Keep the first rows of ``matrix`` with their scores."""
        rows = matrix[:GOLDEN_ROWS]
        return Golden(rows, self.predict(rows))

    def require_golden(self, golden: Golden) -> None:
        """Check that this runtime gives the scores that were logged.

        Raises:
            ModelFileError: If any differs by more than ``GOLDEN_TOLERANCE``.
        """
        difference = np.abs(self.predict(golden.matrix) - golden.scores).max(initial=0.0)
        if not difference <= GOLDEN_TOLERANCE:
            raise ModelFileError(
                f"the model gives its golden rows scores that differ by {difference:.2g} from those logged with it "
                f"({GOLDEN_TOLERANCE:g} is allowed); XGBoost here is {xgb.__version__}: use the one it was logged with"
            )


def read_bundle(data: bytes, feature_names: Sequence[str] | None, origin: str) -> Bundle:
    """Read a booster from outside and check it against its feature names.

    Args:
        data: The file's bytes.
        feature_names: The names in the model's order; ``None`` to take those the booster carries.
        origin: What to call the file in an error.

    Raises:
        ModelFileError: If the file is not a whole UBJSON or JSON model, was saved by a newer XGBoost than this one,
            has another objective than ``binary:logistic``, or does not match the names.
    """
    _require_readable_format(data, origin)
    try:
        # XGBoost's own reader can crash on a file that is cut off, so the whole of it is walked first.
        document = _parse(data)
        parameters = _parameters(document)
        version = [int(part) for part in document["version"]]
    except (ValueError, OverflowError, RecursionError) as error:
        raise ModelFileError(f"{origin} is damaged: {error}; save the model again") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelFileError(
            f"{origin} is not an XGBoost model ({type(error).__name__}: {error}); save one with Booster.save_model"
        ) from error
    _require_known_version(version, origin)
    if parameters.pop("n_outputs") > 1:
        raise ModelFileError(f"{origin} gives several scores a row; one churn probability is needed")
    if parameters["objective"] != "binary:logistic":
        raise ModelFileError(
            f"{origin} has objective {parameters['objective']!r}; churn probabilities need binary:logistic"
        )
    return load_bundle(data, feature_names, origin, parameters)


def load_bundle(
    data: bytes, feature_names: Sequence[str] | None, origin: str, parameters: dict[str, Any] | None = None
) -> Bundle:
    """Load a booster whose bytes were checked before, such as a logged one; see :func:`read_bundle`."""
    booster = xgb.Booster()
    try:
        booster.load_model(bytearray(data))
    except xgb.core.XGBoostError as error:
        raise ModelFileError(f"{origin} is damaged: {_first_line(error)}; save the model again") from error
    names = _agreed_names(booster, feature_names, origin)
    try:
        booster.feature_names = list(names)
    except ValueError as error:
        raise ModelFileError(f"{origin} has feature names that XGBoost refuses ({error}); rename them") from error
    return Bundle(booster, names, data, parameters or {})


def parse_feature_names(data: bytes, origin: str) -> list[str]:
    """Read a JSON array of feature names.

    Raises:
        ModelFileError: If it is anything else, or names repeat.
    """
    try:
        names = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{origin} is not JSON ({error}); an array of feature names is needed") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ModelFileError(f'{origin} is not a JSON array of feature names, such as ["total_deposit", …]')
    # XGBoost ends a name at the character NUL, and two names could become one.
    odd = [name for name in names if not name.isprintable()]
    if odd:
        raise ModelFileError(f"{origin} has names that cannot be printed: {odd[:_NAMES_SHOWN]}; rename the features")
    _require_distinct(names, origin)
    return names


def _parse(data: bytes) -> Any:
    if data.startswith(b"{L"):
        return parse_ubjson(data)
    n_containers = data.count(b"[") + data.count(b"{")
    n_values = data.count(b",")
    if len(data) > MAX_JSON_BYTES or n_containers > _MAX_CONTAINERS or n_values > _MAX_VALUES:
        raise ValueError(
            f"as JSON it has {len(data)} bytes, {n_values} values and {n_containers} arrays and objects, of which up "
            f"to {MAX_JSON_BYTES}, {_MAX_VALUES} and {_MAX_CONTAINERS} are read; save it as .ubj"
        )
    return json.loads(data, object_pairs_hook=unrepeated)


def _require_distinct(names: Sequence[str], origin: str) -> None:
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ModelFileError(f"{origin} names features twice: {repeated[:_NAMES_SHOWN]}; each may stand once")


def _require_readable_format(data: bytes, origin: str) -> None:
    if not data:
        raise ModelFileError(f"{origin} is empty; an XGBoost model as UBJSON or JSON is needed")
    if len(data) > MAX_MODEL_BYTES:
        raise ModelFileError(f"{origin} has {len(data)} bytes; models up to {MAX_MODEL_BYTES} are read")
    if data.startswith(b"binf"):
        raise ModelFileError(
            f"{origin} is in XGBoost's old binary format, which version 3.1 removed; load it with XGBoost 2.x and "
            f"save it again as .ubj or .json"
        )
    if not data.lstrip().startswith(b"{"):
        raise ModelFileError(
            f"{origin} begins with {data[:4]!r} and is neither UBJSON nor JSON; save the booster with "
            f"Booster.save_model('model.ubj')"
        )


def _require_known_version(saved: list[int], origin: str) -> None:
    running = [int(part) for part in re.findall(r"\d+", xgb.__version__)[:2]]
    # An older XGBoost reads a newer file without an error and predicts something else.
    if saved[:2] > running:
        raise ModelFileError(
            f"{origin} was saved by XGBoost {'.'.join(map(str, saved))} and this is {xgb.__version__}, which may "
            f"misread it; use XGBoost {'.'.join(map(str, saved[:2]))} here (newer than 3.2: Python 3.12 or newer), "
            f"or save the model with XGBoost {'.'.join(map(str, running))} or older"
        )


def _parameters(document: dict[str, Any]) -> dict[str, Any]:
    """Return what the file stores. Training settings such as eta are not in it."""
    learner = document["learner"]
    gradient_booster = learner["gradient_booster"]
    model = gradient_booster.get("model") or gradient_booster.get("gbtree", {}).get("model", {})
    trees = model.get("trees", [])
    of_learner = learner["learner_model_param"]
    n_features = int(of_learner["num_feature"])
    n_outputs = max(int(of_learner.get("num_target", 1)), int(of_learner["num_class"]), 1)
    if n_outputs == 1 and [int(group) for group in model.get("tree_info", [])] != [0] * len(trees):
        raise ValueError("its trees belong to outputs that it does not have")
    if "weights" in model:
        _require_weights(np.asarray(model["weights"], dtype=np.float32), n_features, n_outputs)
    if (weights := model.get("weight_drop", gradient_booster.get("weight_drop"))) is not None:
        _require_tree_weights(np.asarray(weights, dtype=np.float32), len(trees))
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
        "max_depth": max((_depth(tree, n_features) for tree in trees), default=0) if n_outputs == 1 else None,
        "xgboost_version": ".".join(str(int(part)) for part in document["version"]),
    }


def _depth(tree: dict[str, Any], n_features: int) -> int:
    """Return a tree's depth and check its indices: XGBoost follows them unchecked, even out of memory."""
    left, right, parents, features = (
        np.asarray(tree[name], dtype=np.int64)
        for name in ("left_children", "right_children", "parents", "split_indices")
    )
    others = (len(tree["split_conditions"]), len(tree["default_left"]))
    if not left.size or {right.size, parents.size, features.size, *others} != {left.size}:
        raise ValueError("one of its trees has arrays of different lengths")
    if not np.isfinite(np.asarray(tree["split_conditions"], dtype=np.float32)).all():
        raise ValueError("one of its trees has thresholds or leaves that are not finite")
    _require_categories(tree, left.size)
    depth, n_seen, level = 0, 1, np.zeros(1, dtype=np.int64)
    while (inner := level[left[level] != _NO_CHILD]).size:
        children = np.concatenate([left[inner], right[inner]])
        n_seen += children.size
        if n_seen > left.size or children.min() < 0 or children.max() >= left.size:
            raise ValueError("one of its trees has children that are not its nodes")
        if (parents[children] != np.concatenate([inner, inner])).any():
            raise ValueError("one of its trees has nodes that disagree about their parents")
        if features[inner].min() < 0 or features[inner].max() >= n_features:
            raise ValueError(f"one of its trees asks for features beyond its {n_features}")
        depth, level = depth + 1, children
    return depth


def _require_weights(weights: npt.NDArray[np.float32], n_features: int, n_outputs: int) -> None:
    if weights.shape != ((n_features + 1) * n_outputs,) or not np.isfinite(weights).all():
        raise ValueError(
            f"it has {weights.size} weights, some perhaps not finite, for {n_features} features and a bias"
        )


def _require_tree_weights(weights: npt.NDArray[np.float32], n_trees: int) -> None:
    if weights.shape != (n_trees,) or not np.isfinite(weights).all():
        raise ValueError(f"it has {weights.size} weights of trees, some perhaps not finite, for {n_trees} trees")


def _require_categories(tree: dict[str, Any], n_nodes: int) -> None:
    """Check a tree's categorical splits and leaf vectors, which XGBoost reads unchecked."""
    if int(tree["tree_param"].get("size_leaf_vector", 0)) > 1:
        raise ValueError("one of its trees has leaves of several values")
    kinds = np.asarray(tree.get("split_type", []), dtype=np.int64)
    nodes, segments, sizes, categories = (
        np.asarray(tree.get(f"categories{name}", []), dtype=np.int64) for name in ("_nodes", "_segments", "_sizes", "")
    )
    if not {nodes.size} == {segments.size, sizes.size} or kinds.size not in (0, n_nodes):
        raise ValueError("one of its trees has categories of different lengths")
    if not np.isin(kinds, (0, 1)).all() or not np.array_equal(np.flatnonzero(kinds), nodes):
        raise ValueError("one of its trees has categorical splits without categories")
    all_of_it = np.concatenate([segments, sizes, categories])
    if (all_of_it < 0).any() or (segments + sizes > categories.size).any() or (categories >= _MAX_CATEGORY).any():
        raise ValueError("one of its trees has categories that are not its own")


def _agreed_names(booster: xgb.Booster, given: Sequence[str] | None, origin: str) -> tuple[str, ...]:
    carried = booster.feature_names
    names = list(given) if given is not None else carried
    if names is None:
        raise ModelFileError(f"{origin} carries no feature names and none were given; add its feature names file")
    n_features = booster.num_features()
    if len(names) != n_features:
        raise ModelFileError(
            f"{origin} was trained on {n_features} features and its feature names file has {len(names)}; "
            f"export both from the same training run"
        )
    _require_distinct(names, origin)
    if carried is not None and list(carried) != names:
        if len(carried) != len(names):
            raise ModelFileError(
                f"{origin} carries {len(carried)} feature names for its {n_features} features; train it again"
            )
        differing = [(i, a, b) for i, (a, b) in enumerate(zip(carried, names, strict=True)) if a != b]
        shown = ", ".join(f"{i}: {a!r} against {b!r}" for i, a, b in differing[:_NAMES_SHOWN])
        raise ModelFileError(
            f"{origin} and its feature names file disagree at {len(differing)} positions ({shown}); "
            f"export both from the same training run"
        )
    return tuple(names)


def _first_line(error: Exception) -> str:
    lines: list[str] = [line for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^\[[\d:]+\] \S+: ", "", lines[0])[:200] if lines else "unreadable"
