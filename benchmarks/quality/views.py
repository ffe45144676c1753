"""How long analysts' queries take: ``python -m benchmarks.quality.views``. Exits with 1 if a target is missed.

A PostgreSQL of its own holds one batch with reasons. Timed are reading all of its scores, all of its rows with all
reasons, and counting rows by their first reason.
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np
import sqlalchemy as sa

from churn.database.connection import READER, create_engine
from churn.database.copy_format import SOURCE_COLUMNS, ScoredRows
from churn.database.predictions import BatchInProgress, PredictionStore
from tests.support.batches import NO_ROWS, WEEK, record
from tests.support.services import predictions_database

N_ROWS, ROUNDS = 200_000, 3
MAX_RATIO, MAX_SECONDS = 15.0, 30.0
VIEW = "churn_predictions_current"

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
        last_active_months=np.full(n_rows, 20_500, dtype=np.int32),
        contributions=rng.normal(size=(n_rows, n_columns)).astype(np.float32),
        values=rng.integers(0, 5, (n_columns, n_rows)).astype(np.float32),
    )
    levels = {name: [f"level {i}" for i in range(29)] for name in SOURCE_COLUMNS[4:]}
    made = record(n_rows, bias=0.1, other_source_columns=[], levels=levels, horizon_months=3)
    batch = BatchInProgress([chunk], lambda: (made, NO_ROWS), SOURCE_COLUMNS, has_last_active_month=True)
    PredictionStore(url).publish(made.variant, WEEK, batch)


def seconds_of(url: sa.URL, query: str) -> float:
    """Return the median time of fetching all rows of a query as text, as the reader."""
    took = []
    for _ in range(ROUNDS):
        with create_engine(url, role=READER).connect() as connection:
            started = time.perf_counter()
            connection.connection.cursor().copy_expert(f"COPY ({query}) TO STDOUT", io.BytesIO())  # type: ignore[attr-defined]  # psycopg2's
            took.append(time.perf_counter() - started)
    return statistics.median(took)


def measure(n_rows: int) -> dict[str, float]:
    """Return the seconds of each query."""
    with predictions_database("churn-views-") as url:
        fill(url, n_rows)
        return {name: seconds_of(url, query) for name, query in QUERIES.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="benchmarks.quality.views", description=__doc__)
    parser.add_argument("--rows", type=int, default=N_ROWS)
    n_rows = parser.parse_args(argv).rows
    took = measure(n_rows)
    for name, seconds in took.items():
        print(f"{name}: {seconds:.2f} s for {n_rows:,} rows")
    whole = took["all rows with all reasons"]
    ratio, limit = whole / took["scores"], MAX_SECONDS * n_rows / N_ROWS
    is_met = ratio <= MAX_RATIO and whole <= limit
    print(f"reasons / scores: {ratio:.1f} (at most {MAX_RATIO:g}); all rows in at most {limit:g} s: ", end="")
    print("met" if is_met else "missed")
    return int(not is_met)


if __name__ == "__main__":
    sys.exit(main())
