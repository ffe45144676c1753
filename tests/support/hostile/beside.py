"""What lies beside a booster: feature names, golden rows and reference profiles."""

import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np

from churn.data.activity import ONE_HOT_COLUMNS
from churn.data.features import pack_matrix, plan_encoded
from churn.inference.bundle import Golden, parse_feature_names, read_bundle
from churn.monitoring.profiles import Profile, reference_profile
from tests.support.hostile import corpus
from tests.support.hostile.boosters import bundle
from tests.support.hostile.harness import SAME, require


def judge_names(payload: object, folder: Path) -> str:
    assert isinstance(payload, bytes)
    names = parse_feature_names(payload, "names.json")
    require(names == json.loads(payload), "the names are not the file's")
    if len(names) == len(corpus.feature_names()):
        held = read_bundle(corpus.boosters()["gbtree ubj"], names, "model.bin")
        require(list(held.booster.feature_names) == names, "the booster took other names")
    return SAME


@cache
def golden() -> bytes:
    return bundle().make_golden(corpus.sample_matrix()[:6]).to_json().encode()


def judge_golden(payload: object, folder: Path) -> str:
    assert isinstance(payload, bytes)
    held = Golden.from_json(payload)
    bundle().require_golden(held)
    plain = json.loads(payload)
    rows = np.array(
        [[math.nan if value is None else value for value in row] for row in plain["rows"]], dtype=np.float32
    )
    require(len(rows) > 0, "no row proves anything")
    gap = np.abs(bundle().predict(rows) - np.array(plain["scores"], dtype=np.float32)).max()
    require(gap <= 2e-5, f"golden rows differ by {gap:.3g} and were accepted")
    return SAME


@cache
def profile() -> bytes:
    encoding = plan_encoded(corpus.feature_names(), ONE_HOT_COLUMNS)
    matrix = corpus.sample_matrix()
    return reference_profile(pack_matrix(matrix, encoding), encoding, bundle().predict(matrix)).to_json().encode()


def judge_profile(payload: object, folder: Path) -> str:
    assert isinstance(payload, bytes)
    held = Profile.from_json(payload)
    plain = json.loads(payload)["features"]
    require([bins.feature for bins in held.bins] == [item["feature"] for item in plain], "other features")
    counts = [count for item in plain for count in item["counts"]]
    require(held.counts.tolist() == counts, "other counts")
    require(held.n_rows == sum(plain[0]["counts"]), "another number of rows")
    for bins, item in zip(held.bins, plain, strict=True):
        require(list(bins.edges) == item.get("edges", []) and list(bins.levels) == item.get("levels", []), "other bins")
        require(all(low < high for low, high in zip(bins.edges, bins.edges[1:], strict=False)), "edges out of order")
        require(len(bins.labels) == bins.n_bins, "other labels")
    require(json.loads(held.to_json())["features"][0]["counts"] == plain[0]["counts"], "it is not written as read")
    require((held + held).n_rows == 2 * held.n_rows, "it cannot be added")
    return SAME


BESIDE: Mapping[str, Callable[[], bytes]] = corpus.GARBAGE | {
    "null": lambda: b"null",
    "a number": lambda: b"1e999",
    "an array": lambda: b"[]",
    "an object": lambda: b"{}",
    "no rows": lambda: b'{"rows":[],"scores":[]}',
    "rows of no width": lambda: b'{"rows":[[]],"scores":[0.5]}',
    "no features": lambda: b'{"format":1,"features":[]}',
    "counts beyond int64": lambda: profile().replace(b'"counts": [', b'"counts": [9223372036854775807, ', 1),
    "names with NULs": lambda: json.dumps([f"a\0{i}" for i in range(45)]).encode(),
    "names with line ends": lambda: json.dumps([f"a\n{i}" for i in range(45)]).encode(),
    "names with brackets": lambda: json.dumps([f"a[{i}]<" for i in range(45)]).encode(),
    "names with surrogates": lambda: json.dumps([f"\ud800{i}" for i in range(45)]).encode(),
    "names of 1 MB": lambda: json.dumps(["a" * corpus.MB + str(i) for i in range(45)]).encode(),
    "names in another order": lambda: json.dumps(list(reversed(corpus.feature_names()))).encode(),
    "1,000,000 names": lambda: json.dumps([f"f{i}" for i in range(corpus.MILLION)]).encode(),
}
