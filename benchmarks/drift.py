"""Drift of a fleet, in a process of its own so that its peak memory is its own: ``python -m benchmarks.drift``.

Prints one JSON object. Timed are reading every variant's reference from JSON, counting its batch from rows packed and
scored as the weekly job has them, and comparing and flagging all of them.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from churn.data.features import Packed, derive, pack, plan_encoding
from churn.monitoring.drift import compare_fleet, flag_fleet
from churn.monitoring.profiles import Profile, reference_profile
from tests.support.services import NAMES_KEY, WEEK, peak_mb, simulated_rows

_ROOT = Path(__file__).resolve().parents[1]
_DATASETS = 20
_REFERENCE_ROWS = 20_000
_LARGE_ROWS, _CHUNK = 1_000_000, 65_536


def measure(n_variants: int, n_rows: int) -> dict[str, float]:
    """Profile, compare and flag a fleet; ``us_large`` is a row and parent feature of one batch of a million rows."""
    names = json.loads((_ROOT / NAMES_KEY).read_bytes())
    frame = derive(simulated_rows(_REFERENCE_ROWS), WEEK)
    encoding = plan_encoding(names, frame.columns)
    sample = pack(frame, encoding)
    stored = reference_profile(sample, encoding, _scores(sample, seed=0)).to_json()
    batches = [_drawn(sample, n_rows, seed) for seed in range(_DATASETS)]

    started = time.perf_counter()
    references = [Profile.from_json(stored) for _ in range(n_variants)]
    read = time.perf_counter()
    profiles = {}
    for i, reference in enumerate(references):
        profiles[f"company-c{i:04}"] = (reference, reference.count(*batches[i % _DATASETS]), reference)
    profiled = time.perf_counter()
    flags = flag_fleet(compare_fleet(profiles))
    compared = time.perf_counter()

    n_counted = len(encoding.columns) + 1
    return {
        "variants": n_variants,
        "rows": n_rows,
        "features": len(names),
        "seconds_read": read - started,
        "seconds_profile": profiled - read,
        "seconds_compare": compared - profiled,
        "us_per_row_and_feature": (profiled - read) * 1e6 / (n_variants * n_rows * n_counted),
        "us_large": _large(references[0], sample) / n_counted,
        "flags": len(flags),
        "peak_mb": peak_mb(),
    }


def _large(reference: Profile, sample: Packed) -> float:
    """Return the microseconds a row of one large batch takes, in chunks as it is scored."""
    packed, scores = _drawn(sample, _LARGE_ROWS, seed=1)
    started = time.perf_counter()
    for low in range(0, _LARGE_ROWS, _CHUNK):
        part = slice(low, low + _CHUNK)
        reference.count(packed.take(part), scores[part])
    return (time.perf_counter() - started) * 1e6 / _LARGE_ROWS


def _drawn(sample: Packed, n_rows: int, seed: int) -> tuple[Packed, np.ndarray]:
    rows = np.random.default_rng(seed).integers(0, sample.n_rows, n_rows)
    packed = Packed(sample.numbers[:, rows], sample.levels[:, rows])
    return packed, _scores(packed, seed)


def _scores(packed: Packed, seed: int) -> np.ndarray:
    """Make probabilities that follow from the rows; which ones costs the same."""
    noise = np.random.default_rng(seed).normal(0, 0.5, packed.n_rows)
    amounts = np.log1p(np.abs(np.nan_to_num(packed.numbers))).sum(axis=0)
    return (1 / (1 + np.exp(0.3 * amounts - 2 + noise))).astype(np.float32)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.drift", description=__doc__)
    parser.add_argument("--variants", type=int, default=2_000)
    parser.add_argument("--rows", type=int, default=1_000, help="of each variant's batch")
    args = parser.parse_args(argv)
    print(json.dumps(measure(args.variants, args.rows)))


if __name__ == "__main__":
    main()
