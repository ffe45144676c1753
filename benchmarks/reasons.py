"""One way of explaining every row of a batch exactly, in a process of its own so that its peak memory is its own.

``python -m benchmarks.reasons WAY ROWS`` prints one JSON object. Timed is all that a model that was just loaded and
rows that are ready still need; imports and loading compiled code are not. Ways that take minutes explain fewer rows,
and the rows a second are of those.
"""

import json
import sys
import time
from collections.abc import Callable

import numpy as np

from churn.concurrency import cores, in_threads
from churn.data.features import Encoding, Packed, derive, pack, plan_encoding, unpack
from churn.inference.bundle import Bundle, read_bundle
from churn.inference.engine import build_engine
from churn.inference.explanations import sum_by_column
from tests.support.services import MODEL_KEY, NAMES_KEY, WEEK, model_files, peak_mb, simulated_rows

_CHUNK = 65_536
_MOST_ROWS = {"pred_contribs": 10_000, "shap": 10_000}
_COMPARED = 500

Explain = Callable[[Bundle, Encoding, Packed], np.ndarray]


def ours(bundle: Bundle, encoding: Encoding, packed: Packed) -> np.ndarray:
    """What runs on Monday: tables, then look-ups."""
    engine = build_engine(bundle, encoding, packed, n_rows=packed.n_rows, with_reasons=True)
    chunks = [packed.take(slice(start, start + _CHUNK)) for start in range(0, packed.n_rows, _CHUNK)]
    return np.concatenate([contributions for _, contributions in in_threads(engine.score, chunks)])


def pred_contribs(bundle: Bundle, encoding: Encoding, packed: Packed) -> np.ndarray:
    """XGBoost's own, on all cores."""
    bundle.booster.set_param({"nthread": cores()})
    return sum_by_column(bundle.contributions(unpack(packed, encoding)), encoding)


def shap_package(bundle: Bundle, encoding: Encoding, packed: Packed) -> np.ndarray:
    """The shap package, which hands the work to XGBoost."""
    import shap

    return sum_by_column(shap.TreeExplainer(bundle.booster).shap_values(unpack(packed, encoding)), encoding)


def woodelf(bundle: Bundle, encoding: Encoding, packed: Packed) -> np.ndarray:
    """The woodelf-explainer package."""
    import pandas as pd
    from woodelf import WoodelfExplainer

    matrix = pd.DataFrame(unpack(packed, encoding), columns=list(bundle.feature_names))
    return sum_by_column(np.asarray(WoodelfExplainer(bundle.booster).shap_values(matrix)), encoding)


WAYS: dict[str, Explain] = {"ours": ours, "pred_contribs": pred_contribs, "shap": shap_package, "woodelf": woodelf}


def main() -> None:
    """Run one way and print what it took."""
    way, n_rows = sys.argv[1], int(sys.argv[2])
    n_explained = min(n_rows, _MOST_ROWS.get(way, n_rows))
    files = model_files()
    bundle = read_bundle(files[MODEL_KEY], json.loads(files[NAMES_KEY]), "the model")
    rows = derive(simulated_rows(n_explained), WEEK)
    encoding = plan_encoding(bundle.feature_names, rows.columns)
    packed = pack(rows, encoding)
    WAYS[way](bundle, encoding, packed.take(slice(100)))
    started = time.perf_counter()
    contributions = WAYS[way](bundle, encoding, packed)
    seconds = time.perf_counter() - started
    peak = peak_mb()
    few = packed.take(slice(_COMPARED))
    error = float(np.abs(contributions[:_COMPARED] - pred_contribs(bundle, encoding, few)).max())
    print(json.dumps({"way": way, "rows": n_explained, "seconds": seconds, "peak_mb": peak, "error": error}))


if __name__ == "__main__":
    main()
