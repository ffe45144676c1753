"""How long analysts' queries take: ``python -m benchmarks.quality.views``. Exits with 1 if a target is missed.

A PostgreSQL of its own holds one batch with reasons, of accounts of which three quarters are at risk. Timed are reading
all of its scores, all of its rows with all reasons, and counting rows by their first reason.
"""

import argparse
import io
import sys
import time
from collections.abc import Sequence
from datetime import date

import numpy as np
import sqlalchemy as sa

from benchmarks.quality import NONE, Target, bootstrap, report
from churn.database.connection import READER, create_engine
from churn.database.copy_format import SOURCE_COLUMNS, ScoredRows
from churn.database.predictions import BatchInProgress, PredictionStore
from tests.support.batches import NO_ROWS, WEEK, record
from tests.support.services import predictions_database

N_ROWS, ROUNDS = 200_000, 5
MAX_RATIO, MAX_SECONDS = 15.0, 30.0
VIEW = "churn_predictions_current"
NEWEST_MONTH = date(2026, 10, 1)
LAST_ACTIVE = ["2026-10", "2026-08", "2026-07", "2025-11"]  # the first three are at risk as of a day in November 2026

QUERIES = {
    "scores": f"SELECT account_id, churn_probability FROM {VIEW}",  # noqa: S608 our own view
    "all rows with all reasons": f"SELECT * FROM {VIEW}",  # noqa: S608 our own view
    "rows by first reason": f"SELECT left(reason_1, 12), count(*) FROM {VIEW} GROUP BY 1",  # noqa: S608 our own view
}


def fill(url: sa.URL, n_rows: int) -> None:
    """Publish one batch with reasons of seven source columns."""
    rng = np.random.default_rng(0)
    n_columns = len(SOURCE_COLUMNS)
    chunk = ScoredRows(
        account_ids=np.arange(n_rows, dtype=np.int64),
        probabilities=rng.random(n_rows).astype(np.float32),
        last_active_months=np.array(LAST_ACTIVE, "M8[M]").astype("M8[D]").astype(np.int32)[rng.integers(0, 4, n_rows)],
        contributions=rng.normal(size=(n_rows, n_columns)).astype(np.float32),
        values=rng.integers(0, 5, (n_columns, n_rows)).astype(np.float32),
    )
    levels = {name: [f"level {i}" for i in range(29)] for name in SOURCE_COLUMNS[4:]}
    made = record(n_rows, bias=0.1, other_source_columns=[], levels=levels, horizon_months=3, newest_month=NEWEST_MONTH)
    batch = BatchInProgress([chunk], lambda: (made, NO_ROWS), SOURCE_COLUMNS, has_last_active_month=True)
    PredictionStore(url).publish(made.variant, WEEK, batch)


def seconds_of(url: sa.URL, query: str) -> float:
    """Return the time of fetching all rows of a query as text, as the reader."""
    with create_engine(url, role=READER).connect() as connection:
        started = time.perf_counter()
        connection.connection.cursor().copy_expert(f"COPY ({query}) TO STDOUT", io.BytesIO())  # type: ignore[attr-defined]  # psycopg2's
        return time.perf_counter() - started


def measure(n_rows: int) -> dict[str, np.ndarray]:
    """Return the seconds of each query, round by round."""
    with predictions_database("churn-views-") as url:
        fill(url, n_rows)
        rounds = [[seconds_of(url, query) for query in QUERIES.values()] for _ in range(ROUNDS)]
    return dict(zip(QUERIES, np.transpose(rounds), strict=True))


def targets_of(took: dict[str, np.ndarray], n_rows: int) -> list[Target]:
    """Compare the medians with the targets; a ratio is of one round."""
    limits = {"all rows with all reasons": MAX_SECONDS * n_rows / N_ROWS}
    made = [
        _target(f"seconds of {name}, {n_rows:,} rows", seconds, limits.get(name, np.inf), "s")
        for name, seconds in took.items()
    ]
    ratios = took["all rows with all reasons"] / took["scores"]
    return [*made, _target("all rows with all reasons, against scores alone", ratios, MAX_RATIO, "×")]


def _target(name: str, values: np.ndarray, limit: float, unit: str) -> Target:
    low, high = bootstrap(list(values), np.median)
    middle = float(np.median(values))
    target = f"{limit:g} {unit} or less" if np.isfinite(limit) else NONE
    return Target(f"{name}, {len(values)} rounds", target, f"{middle:.2f}", f"{low:.2f} to {high:.2f}", middle <= limit)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="benchmarks.quality.views", description=__doc__)
    parser.add_argument("--rows", type=int, default=N_ROWS)
    n_rows = parser.parse_args(argv).rows
    return report("Analysts' queries", targets_of(measure(n_rows), n_rows))


if __name__ == "__main__":
    sys.exit(main())
