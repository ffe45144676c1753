"""Scoring and explaining a batch: by tables compiled from the booster's trees, or otherwise by XGBoost itself.

The tables' results are compared with XGBoost's on rows of a batch before they are used, and kept.
"""

import functools
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_type_hints

import numpy as np
import xgboost as xgb

from churn.data.arrays import Array, Floats
from churn.data.features import Encoding, Packed, pack_matrix, unpack
from churn.errors import ModelFileError
from churn.inference.bundle import GOLDEN_TOLERANCE, Bundle
from churn.inference.explanations import ForestExplainer, build_explainer, sum_by_column
from churn.inference.forest import NotCompilableError
from churn.inference.scoring import ForestScorer, build_scorer

logger = logging.getLogger(__name__)

_LARGE_BATCH = 100_000
_PROVED_SCORES, _PROVED_REASONS = 256, 4
_SCORE_TOLERANCE = 1e-6  # equal bits are expected, but C libraries may round an exponential's last bit differently
_REASON_TOLERANCE = 1e-4  # log-odds

_Tables = ForestExplainer | ForestScorer


@dataclass(frozen=True)
class Engine:
    """Scores rows of one encoding; ``fallback_reason`` is why XGBoost itself does, ``None`` for the compiled tables.

    ``score`` returns churn probabilities, shape (n_rows,), and contributions in log-odds, shape (n_rows, n_columns), in
    the order of the encoding's columns, or ``None`` without reasons; thread-safe. With these, ``bias`` is of all rows.
    """

    score: Callable[[Packed], tuple[Floats, Floats | None]]
    encoding: Encoding
    bias: float | None = None
    fallback_reason: str | None = None


class TableCache(Protocol):
    """Keeps arrays by key."""

    def load(self, key: str) -> dict[str, Array] | None: ...

    def store(self, key: str, arrays: Mapping[str, Array]) -> None: ...


def build_engine(
    bundle: Bundle, encoding: Encoding, few: Packed, *, n_rows: int, with_reasons: bool, cache: TableCache | None = None
) -> Engine:
    """Compile a model for rows of an encoding, and compare it with XGBoost on the first of them.

    ``few`` are some rows of the batch, ``n_rows`` is about their number in all. The cache keeps the tables that gave
    XGBoost's results; those found there need to give the model's golden scores.
    """
    is_large = n_rows >= _LARGE_BATCH
    key = hashlib.sha256(repr((_makers(), bundle.sha256, encoding, is_large, with_reasons)).encode()).hexdigest()
    if cache is not None and (kept := _load(cache, key, bundle, encoding, with_reasons=with_reasons)) is not None:
        return kept
    try:
        build = functools.partial(build_explainer, is_large_batch=is_large) if with_reasons else build_scorer
        tables = build(bundle.read_forest(), encoding)
    except NotCompilableError as error:
        return _use_xgboost(bundle, encoding, str(error), with_reasons=with_reasons)
    compiled = _engine(tables, encoding)
    if difference := _compare(compiled, bundle, encoding, few):
        logger.warning("compiled scores differ from XGBoost's (%s); XGBoost scores this batch", difference)
        return _use_xgboost(bundle, encoding, difference, with_reasons=with_reasons)
    if cache is not None:
        cache.store(key, dict(_flattened(tables)))
    return compiled


def _engine(tables: _Tables, encoding: Encoding) -> Engine:
    if isinstance(tables, ForestExplainer):
        return Engine(tables.explain, encoding, tables.bias)
    return Engine(lambda packed: (tables.score(packed), None), encoding)


@functools.cache
def _makers() -> str:
    """Return a hash of all that decides what tables are made of a model, beside the model itself."""
    code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(code + repr((xgb.__version__, np.__version__)).encode()).hexdigest()


def _load(cache: TableCache, key: str, bundle: Bundle, encoding: Encoding, *, with_reasons: bool) -> Engine | None:
    """Return the engine of tables that were kept, if they give the model's golden scores."""
    golden, arrays = bundle.golden, cache.load(key)
    if golden is None or arrays is None:
        return None
    try:
        engine = _engine(_restored(ForestExplainer if with_reasons else ForestScorer, arrays), encoding)
    except KeyError:
        return None
    scores, _ = engine.score(pack_matrix(golden.matrix, encoding))
    return engine if float(np.abs(scores - golden.scores).max()) <= GOLDEN_TOLERANCE else None


def _flattened(value: Any, name: str = "") -> Iterator[tuple[str, Array]]:
    """Yield the arrays and numbers of nested named tuples by path."""
    if hasattr(value, "_fields"):
        for field, inner in value._asdict().items():
            yield from _flattened(inner, f"{name}.{field}")
    else:
        yield name, np.asarray(value)


def _restored(kind: Any, arrays: Mapping[str, Array], name: str = "") -> Any:
    """Rebuild nested named tuples from the arrays of :func:`_flattened`."""
    if hasattr(kind, "_fields"):
        return kind(*(_restored(inner, arrays, f"{name}.{field}") for field, inner in get_type_hints(kind).items()))
    return kind(arrays[name]) if isinstance(kind, type) and issubclass(kind, int | float | np.float32) else arrays[name]


def _use_xgboost(bundle: Bundle, encoding: Encoding, why: str, *, with_reasons: bool) -> Engine:
    if not with_reasons:
        return Engine(lambda packed: (bundle.predict(unpack(packed, encoding)), None), encoding, None, why)

    def score(packed: Packed) -> tuple[Floats, Floats]:
        matrix = unpack(packed, encoding)
        return bundle.predict(matrix), sum_by_column(bundle.contributions(matrix), encoding)

    bias = float(bundle.contributions(np.zeros((1, encoding.n_features), dtype=np.float32))[0, -1])
    return Engine(score, encoding, bias, why)


def _compare(engine: Engine, bundle: Bundle, encoding: Encoding, rows: Packed) -> str:
    """Return how an engine's results differ from XGBoost's; empty if they do not."""
    some = rows.take(slice(_PROVED_SCORES))
    matrix = unpack(some, encoding)
    scores, contributions = engine.score(some)
    gap = float(np.abs(scores - bundle.predict(matrix)).max())
    if not gap <= _SCORE_TOLERANCE:
        return f"scores by {gap:.2g}"
    if contributions is not None and engine.bias is not None:
        by_feature = bundle.contributions(matrix[:_PROVED_REASONS])
        expected, bias = sum_by_column(by_feature, encoding), float(by_feature[0, -1])
        gap = max(float(np.abs(contributions[:_PROVED_REASONS] - expected).max()), abs(bias - engine.bias))
        if not gap <= _REASON_TOLERANCE:
            return f"contributions by {gap:.2g}"
    return ""


def require_sums(scores: Floats, contributions: Floats, bias: float, origin: str) -> None:
    """Raise ``ModelFileError`` unless each row's contributions and the bias add up to its margin, within tolerance."""
    margins = contributions.sum(axis=1, dtype=np.float64) + bias
    # Compared as probabilities, since a margin cannot be recovered from a score near 0 or 1.
    gap = float(np.abs(1 / (1 + np.exp(-margins)) - scores).max(initial=0.0))
    if not gap <= _REASON_TOLERANCE:
        raise ModelFileError(f"{origin} gave rows reasons that miss their scores by {gap:.2g}; nothing was published")
