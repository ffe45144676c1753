"""Booster files, and what is right of one that is taken: the scores that a walk of its trees gives."""

# ruff: noqa: E501

# Inputs are tables.

import base64
import json
import math
import random
import struct
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from churn.data.activity import ONE_HOT_COLUMNS
from churn.data.features import pack_matrix, plan_encoded
from churn.errors import ModelFileError
from churn.inference.bundle import Bundle, read_bundle
from churn.inference.engine import build_engine
from churn.inference.ubjson import parse_ubjson
from tests.support.hostile import corpus
from tests.support.hostile.documents import mutate_document, to_ubjson
from tests.support.hostile.harness import SAME, require


@cache
def bundle() -> Bundle:
    return read_bundle(corpus.boosters()["gbtree ubj"], corpus.feature_names(), "seed")


def judge_model(payload: object, folder: Path) -> str:
    """Read a booster, score with it, and compare with a walk of its trees by plain Python."""
    assert isinstance(payload, bytes)
    held = read_bundle(payload, corpus.feature_names(), "model.bin")
    matrix = corpus.sample_matrix()
    scores = held.predict(matrix)
    if not np.isfinite(scores).all():
        raise ModelFileError("as log_model.py does: a sample row has no finite score; train the model again")
    document = json.loads(payload) if not payload.startswith(b"{L") else parse_ubjson(payload)
    expected = _walk(document, matrix)
    gap = float(np.abs(scores - expected).max())
    require(gap <= 1e-4, f"XGBoost's scores differ from those of the file's trees by {gap:.3g}")
    encoding = plan_encoded(corpus.feature_names(), ONE_HOT_COLUMNS)
    packed = pack_matrix(matrix, encoding)
    engine = build_engine(held, encoding, packed, n_rows=len(matrix), with_reasons=True)
    gap = float(np.abs(engine.score(packed)[0] - scores).max())
    require(gap <= 1e-5, f"compiled scores differ by {gap:.3g}")
    return SAME


def _walk(document: Any, matrix: np.ndarray) -> np.ndarray:
    """Score rows from a model file's document, split by split."""
    learner = document["learner"]
    base = float(np.float32(str(learner["learner_model_param"]["base_score"]).strip("[]")))
    booster = learner["gradient_booster"]
    start = math.log(base / (1 - base))
    if booster["name"] == "gblinear":
        weights = np.asarray(booster["model"]["weights"], dtype=np.float64)
        margins = np.nan_to_num(matrix).astype(np.float64) @ weights[:-1] + weights[-1] + start
    else:
        model = (booster["gbtree"] if booster["name"] == "dart" else booster)["model"]
        trees = model["trees"]
        # Since 3.4, XGBoost writes the weights of DART's trees into the model of a gbtree.
        shares = model.get("weight_drop", booster.get("weight_drop", [1.0] * len(trees)))
        leaves = [
            [float(share) * _leaf(tree, row) for tree, share in zip(trees, shares, strict=True)] for row in matrix
        ]
        margins = np.array([sum(of_row) for of_row in leaves]) + start
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-margins))


def _leaf(tree: Mapping[str, Any], row: np.ndarray) -> float:
    node = 0
    while int(tree["left_children"][node]) != -1:
        value, threshold = row[int(tree["split_indices"][node])], np.float32(tree["split_conditions"][node])
        goes_left = bool(tree["default_left"][node]) if np.isnan(value) else value < threshold
        node = int(tree["left_children" if goes_left else "right_children"][node])
    return float(tree["split_conditions"][node])


def mutate_model(chance: random.Random) -> bytes:
    name = chance.choice(["gbtree ubj"] * 4 + ["gbtree json"] * 3 + list(corpus.boosters()))
    data = corpus.boosters()[name]
    kind = chance.randrange(8)
    if kind < 3:
        return corpus.damage(data, chance)
    if kind == 3 and name.endswith("json"):
        return corpus.swap_tokens(data, corpus.NUMBERS, chance)
    changed = mutate_document(json.loads(corpus.boosters()[f"{name.split()[0]} json"]), chance)
    if name.endswith("json"):
        return json.dumps(changed).encode()
    return to_ubjson(changed)


def _doubled(key: str) -> Callable[[], bytes]:
    """Make a JSON model with one key twice, the first of which leads out of the tree."""
    return lambda: corpus.boosters()["gbtree json"].replace(
        b'"%s":' % key.encode(), b'"%s":[9999,9999,9999],"%s":' % (key.encode(), key.encode()), 1
    )


def _changed(**changes: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        document = json.loads(corpus.boosters()["gbtree json"])
        document["learner"]["gradient_booster"]["model"]["trees"][0].update(changes)
        return json.dumps(document).encode()

    return make


MODELS: Mapping[str, Callable[[], bytes]] = corpus.GARBAGE | {
    "the old binary format": lambda: b"binf\0\0\0\0" + b"\0" * 1000,
    "UBJSON: a length of 2^63 - 1": lambda: b"{L\x7f" + b"\xff" * 7,
    "UBJSON: a negative length": lambda: b"{L" + b"\xff" * 8,
    "UBJSON: 2^60 values of no room": lambda: b"{L" + struct.pack(">q", 1) + b"a[#L" + struct.pack(">q", 2**60) + b"Z" * 100,
    "UBJSON: a typed array of 2^60": lambda: b"{L" + struct.pack(">q", 1) + b"a[$d#L" + struct.pack(">q", 2**60),
    "UBJSON: a typed array of 2^60 nulls": lambda: b"{L" + struct.pack(">q", 1) + b"a[$Z#L" + struct.pack(">q", 2**60) + b"}",
    "UBJSON: 40,000,000 nulls": lambda: b"{L" + struct.pack(">q", 1) + b"a[" + b"Z" * (40 * corpus.MILLION) + b"]}",
    "UBJSON: 10,000,000 empty arrays": lambda: b"{L" + struct.pack(">q", 1) + b"a[" + b"[]" * (10 * corpus.MILLION) + b"]}",
    "UBJSON: nested 100,000 deep": lambda: b"{L" + struct.pack(">q", 1) + b"a" + b"[" * 100_000,
    "UBJSON: nested 60 deep, valid": lambda: to_ubjson(json.loads(corpus.boosters()["gbtree json"]) | {"a": json.loads("[" * 60 + "]" * 60)}),
    "JSON: 5,000,000 numbers aside": lambda: corpus.boosters()["gbtree json"][:-1] + b',"a":[' + b"0," * (5 * corpus.MILLION) + b"0]}",
    "JSON: 5,000,000 empty arrays aside": lambda: corpus.boosters()["gbtree json"][:-1] + b',"a":[' + b"[]," * (5 * corpus.MILLION) + b"0]}",
    "JSON: 3,000,000 numbers aside": lambda: corpus.boosters()["gbtree json"][:-1] + b',"a":[' + b"0," * (3 * corpus.MILLION) + b"0]}",
    "JSON: nested 900 deep aside": lambda: corpus.boosters()["gbtree json"][:-1] + b',"a":' + b"[" * 900 + b"]" * 900 + b"}",
    "JSON: nested 5,000 deep aside": lambda: corpus.boosters()["gbtree json"][:-1] + b',"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "JSON: with spaces before": lambda: b" \n" + corpus.boosters()["gbtree json"],
    "JSON: with a byte order mark": lambda: b"\xef\xbb\xbf" + corpus.boosters()["gbtree json"],
    "JSON: as UTF-16": lambda: corpus.boosters()["gbtree json"].decode().encode("utf-16"),
    "JSON: in XGBoost's UBJSON suffix, spaces inside": lambda: b"{ " + corpus.boosters()["gbtree json"][1:],
    "a model of no trees": lambda: _edited(lambda document: _model(document).update(trees=[], tree_info=[])),
    "a count of trees that lies": lambda: _edited(lambda document: _model(document)["gbtree_model_param"].update(num_trees="1000000000")),
    "a count of nodes that lies": lambda: _edited(lambda document: _model(document)["trees"][0]["tree_param"].update(num_nodes="2000000000")),
    "a count of features that lies": lambda: _edited(lambda document: document["learner"]["learner_model_param"].update(num_feature="2000000000")),
    "a size of leaves that lies": lambda: _edited(lambda document: _model(document)["trees"][0]["tree_param"].update(size_leaf_vector="2000000000")),
    "categories that lie": _changed(categories=[2**31 - 1], categories_nodes=[0], categories_segments=[0], categories_sizes=[1]),
    "categories beyond their array": _changed(categories=[1], categories_nodes=[0], categories_segments=[10**9], categories_sizes=[10**9]),
    "splits of a kind unknown": _changed(split_type=[7] * 15),
    **{f"{key} twice": _doubled(key) for key in ("left_children", "right_children", "split_indices", "split_conditions", "parents", "trees", "learner", "tree_info", "version")},
    "a whole model in a pickle": lambda: __import__("pickle").dumps(corpus.boosters()["gbtree ubj"]),
    "a model in base64": lambda: base64.b64encode(corpus.boosters()["gbtree ubj"]),
}  # fmt: skip


def _model(document: Any) -> Any:
    return document["learner"]["gradient_booster"]["model"]


def _edited(edit: Callable[[Any], object]) -> bytes:
    document = json.loads(corpus.boosters()["gbtree json"])
    edit(document)
    return json.dumps(document).encode()
