"""The cost of knowing who is at risk: ``python -m benchmarks.quality.population``. Exits with 1 if a target is missed.

A million rows are scored from a file into a PostgreSQL of their own, as the weekly job does it without S3 and MLflow,
with and without ``last_active_month``. Without it, no column is declared to be activity, so that nothing is computed of
it, no row has it in COPY, and no figure is of accounts at risk. Both ways alternate; a ratio is of a pair.

The target is that of scoring as it is by default, with reasons. Without them a million rows take half the time, and
there is no target: one more column in COPY costs PostgreSQL some 90 ns a row whatever else is scored.
"""

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from itertools import chain
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np

from benchmarks.quality import Target, bootstrap, report, without_target
from churn.data.columns import Columns
from churn.data.scoring_rows import prepare
from churn.database.predictions import BatchInProgress, PredictionStore
from churn.inference.bundle import Bundle, read_bundle
from churn.inference.engine import build_engine
from churn.monitoring.summary import ScoreSummary
from churn.workflows.score import score_rows
from tests.support.batches import NO_ROWS, record
from tests.support.services import WEEK, model_files, parquet_bytes, predictions_database, simulated_rows
from tests.support.simulated import FEATURE_NAMES

N_ROWS, PAIRS, MAX_RATIO = 1_000_000, 9, 1.05
WAYS = {"without": Columns(activity=()), "with": Columns()}


def score(path: Path, bundle: Bundle, store: PredictionStore, declared: Columns, *, with_reasons: bool) -> None:
    """Score a file of activity and publish the batch."""
    rows = prepare(path, FEATURE_NAMES, WEEK, 0.05, "the file", declared=declared)
    chunks = rows.chunks()
    first = next(chunks)
    engine = build_engine(bundle, rows.encoding, first[1], n_rows=rows.counts.n_read, with_reasons=with_reasons)
    summary = ScoreSummary(is_calibrated=True)
    made = record(
        rows.counts.n_read, scored_week=WEEK, as_of=WEEK + timedelta(days=6), newest_month=rows.counts.newest_month,
        bias=engine.bias,
    )  # fmt: skip
    batch = BatchInProgress(
        score_rows(chain([first], chunks), engine, SimpleNamespace(uri="the bundled model"), summary, []),  # type: ignore[arg-type]  # named in errors only
        lambda: (made, NO_ROWS),
        source_columns=engine.encoding.source_columns if engine.bias is not None else (),
        has_last_active_month=first[1].last_active_months is not None,
    )
    store.publish(made.variant, WEEK, batch)


def measure(n_rows: int, pairs: int, *, with_reasons: bool) -> dict[str, list[float]]:
    """Return the seconds of each way, pair by pair; a first pair warms up."""
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder, predictions_database("churn-population-") as url:
        path, store = Path(folder) / "activity.parquet", PredictionStore(url)
        path.write_bytes(parquet_bytes(simulated_rows(n_rows)))
        bundle = read_bundle(model_files()["models/churn/xgb_churn_model_2.bin"], FEATURE_NAMES, "the bundled model")
        for pair in range(-1, pairs):
            for way in sorted(WAYS, reverse=bool(pair % 2)):
                gc.collect()
                started = time.perf_counter()
                score(path, bundle, store, WAYS[way], with_reasons=with_reasons)
                if pair >= 0:
                    took[way].append(time.perf_counter() - started)
    return took


def target(name: str, took: dict[str, list[float]], *, is_default: bool) -> Target:
    """Compare the ways by their median ratio, which has a limit as scoring is by default."""
    ratios = np.divide(took["with"], took["without"])
    low, high = bootstrap(ratios, np.median)
    seconds = f"{median(took['without']):.2f} to {median(took['with']):.2f} s"
    ratio, interval = float(np.median(ratios)), f"{low:.3f} to {high:.3f}"
    title = f"{name}, {seconds}, {len(ratios)} pairs"
    if not is_default:
        return without_target(title, f"{ratio:.3f}", interval)
    return Target(title, f"{MAX_RATIO:g} × or less", f"{ratio:.3f}", interval, ratio <= MAX_RATIO)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the targets."""
    parser = argparse.ArgumentParser(prog="benchmarks.quality.population", description=__doc__)
    parser.add_argument("--rows", type=int, default=N_ROWS)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    chosen = parser.parse_args(argv)
    targets = [
        target(
            f"time of scoring {chosen.rows:,} rows {reasons} reasons, with who is at risk against without",
            measure(chosen.rows, chosen.pairs, with_reasons=reasons == "with"),
            is_default=reasons == "with",
        )
        for reasons in ("with", "without")
    ]
    return report("Accounts at risk: cost", targets)


if __name__ == "__main__":
    sys.exit(main())
