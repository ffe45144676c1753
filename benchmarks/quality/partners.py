"""What seeing own variants only costs: ``python -m benchmarks.quality.partners``. Exits with 1 if a target is missed.

A fleet of variants with reasons and several weeks; a partner is bound to one of them. Each query runs on the view of
all, with a condition on the variant, as an analyst, and on the view of own predictions, as the partner; in turn.
"""

import argparse
import io
import sys
import time
from collections.abc import Sequence
from datetime import date, timedelta

import numpy as np
import sqlalchemy as sa

from benchmarks.quality import NONE, Target, bootstrap, report
from churn.database.connection import create_engine
from churn.database.copy_format import SOURCE_COLUMNS, ScoredRows
from churn.database.predictions import BatchInProgress, PredictionStore
from churn.database.readers import add_reader
from churn.variants import Variant
from tests.support.batches import NO_ROWS, WEEK, record
from tests.support.services import predictions_database

VARIANTS = [Variant(company=f"c{i}") for i in range(20)]
OWN = VARIANTS[7]
WEEKS = [WEEK - timedelta(weeks=i) for i in range(4)]
N_ROWS, ROUNDS, MAX_RATIO = 10_000, 15, 1.1
QUERIES = {
    "a week's scores": "SELECT account_id, churn_probability FROM {current} WHERE scored_week = '{week}'",
    "the 500 highest of a week, with a reason": (
        "SELECT account_id, churn_probability, reason_1 FROM {current} WHERE scored_week = '{week}' "
        "AND is_at_risk IS NOT FALSE ORDER BY churn_probability DESC LIMIT 500"
    ),
    "all rows of a week with all reasons": "SELECT * FROM {current} WHERE scored_week = '{week}'",
    "the newest week": "SELECT account_id, churn_probability FROM {latest}",
    "means by week": "SELECT scored_week, count(*), avg(churn_probability) FROM {current} GROUP BY 1 ORDER BY 1",
}
LOOKUPS = {
    "an account in a week": "SELECT * FROM {current} WHERE scored_week = '{week}' AND account_id = 4711",
    "an account in all weeks": "SELECT scored_week, churn_probability FROM {current} WHERE account_id = 4711",
}
"""Without a target: a partner's conditions on accounts use no index, which keeps others' accounts apart."""


def fill(url: sa.URL, n_rows: int) -> None:
    """Publish every variant's weeks, and close them."""
    rng, n_columns = np.random.default_rng(0), len(SOURCE_COLUMNS)
    store = PredictionStore(url)
    for week in WEEKS:
        for variant in VARIANTS:
            chunk = ScoredRows(
                account_ids=np.arange(n_rows, dtype=np.int64),
                probabilities=rng.random(n_rows, dtype=np.float32),
                contributions=rng.normal(size=(n_rows, n_columns)).astype(np.float32),
                values=rng.integers(0, 5, (n_columns, n_rows)).astype(np.float32),
            )
            levels = {name: [f"level {i}" for i in range(29)] for name in SOURCE_COLUMNS[4:]}
            made = record(
                n_rows, bias=0.1, other_source_columns=[], levels=levels, variant=variant, scored_week=week,
                source_variant=variant,
            )  # fmt: skip
            store.publish(variant, week, BatchInProgress([chunk], lambda made=made: (made, NO_ROWS), SOURCE_COLUMNS))  # type: ignore[misc]
    store.index_closed_weeks(date.max)
    with create_engine(url).execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")


def seconds_of(connection: sa.Connection, query: str) -> float:
    """Return the time of fetching all rows of a query as text."""
    started = time.perf_counter()
    connection.connection.cursor().copy_expert(f"COPY ({query}) TO STDOUT", io.BytesIO())  # type: ignore[attr-defined]  # psycopg2's
    return time.perf_counter() - started


def measure(n_rows: int) -> dict[str, np.ndarray]:
    """Return the partner's time as a multiple of the analyst's for each query, round by round."""
    taken: dict[str, list[float]] = {}
    with predictions_database("churn-partners-") as url:
        fill(url, n_rows)
        add_reader(url, "acme", [OWN])
        with create_engine(url).connect() as analyst, create_engine(url).connect() as partner:
            analyst.exec_driver_sql("SET ROLE churn_reader")
            partner.exec_driver_sql("SET SESSION AUTHORIZATION acme")
            for _ in range(ROUNDS):
                for name, query in (QUERIES | LOOKUPS).items():
                    mine, all_of = (
                        query.format(
                            week=WEEKS[1], current=f"{whose}_predictions_current", latest=f"{whose}_predictions_latest"
                        )
                        for whose in ("own", "churn")
                    )
                    head, *tail = (
                        part for part in all_of.replace(" GROUP", "|GROUP").replace(" ORDER", "|ORDER").split("|")
                    )
                    where = f" {'AND' if 'WHERE' in head else 'WHERE'} variant = '{OWN.key}' "
                    ratio = seconds_of(partner, mine) / seconds_of(analyst, head + where + " ".join(tail))
                    taken.setdefault(name, []).append(ratio)
    return {name: np.array(ratios) for name, ratios in taken.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="benchmarks.quality.partners", description=__doc__)
    parser.add_argument("--rows", type=int, default=N_ROWS, help="of a variant and week; default: %(default)s")
    n_rows = parser.parse_args(argv).rows
    targets = []
    for name, ratios in measure(n_rows).items():
        low, high = bootstrap(list(ratios), np.median)
        middle, limit = float(np.median(ratios)), MAX_RATIO if name in QUERIES else np.inf
        wanted = f"{limit:g} or less" if name in QUERIES else NONE
        what = f"a partner's time against an analyst's: {name}, {len(ratios)} rounds"
        targets.append(Target(what, wanted, f"{middle:.2f}", f"{low:.2f} to {high:.2f}", middle <= limit))
    return report(f"Partners' queries, {n_rows:,} rows a variant and week", targets)


if __name__ == "__main__":
    sys.exit(main())
