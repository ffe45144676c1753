"""One way of scoring one variant, in a process of its own so that its peak memory is its own.

``python -m benchmarks.single WAY ROWS`` prints one JSON object. Imports and the model's load are not timed; reading
from S3, everything up to the commit, is.
"""

import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import boto3
import numpy as np
import pandas as pd
import sqlalchemy as sa

from churn.concurrency import in_threads
from churn.data.features import derive, pack, plan_encoding
from churn.database.connection import create_engine
from churn.database.copy_format import ScoredRows
from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import load_settings
from churn.inference.bundle import Bundle
from churn.variants import Variant
from churn.workflows.score import Scorer
from tests.support.batches import week_request
from tests.support.services import BUCKET, NAMES_KEY, WEEK, peak_mb, simulated_rows

_JSON_LINES_KEY = "naive/activity.jsonl"
_CATEGORICAL = ["brand_id", "ben_login_id", "player_reg_product"]


def naive(deployment: Deployment, _: int) -> Callable[[], int]:
    """What one writes first: read_json, get_dummies, MLflow's pyfunc, to_sql(append)."""
    import mlflow

    registry = deployment.registry(read_only=True)
    version = registry.resolve(Variant())
    mlflow.set_tracking_uri(deployment.tracking_uri)
    model = mlflow.pyfunc.load_model(version.uri)
    names = json.loads(boto3.client("s3").get_object(Bucket=BUCKET, Key=NAMES_KEY)["Body"].read())
    engine = sa.create_engine(deployment.database)

    def run() -> int:
        body = boto3.client("s3").get_object(Bucket=BUCKET, Key=_JSON_LINES_KEY)["Body"].read()
        frame = pd.read_json(io.BytesIO(body), lines=True)
        month, first = pd.to_datetime(frame["activity_month"]), pd.to_datetime(frame["ftd_date"])
        frame["months_active"] = (month.dt.year - first.dt.year) * 12 + month.dt.month - first.dt.month
        dummies = pd.get_dummies(frame[[*names[:4], *_CATEGORICAL]], columns=_CATEGORICAL)
        matrix = dummies.reindex(columns=names, fill_value=False).astype("float32")
        frame["churn_probability"] = model.predict(matrix)
        # Without a table of batches, what an analyst needs to know of a row stands in the row.
        rows = frame[["account_id", "churn_probability"]].assign(
            variant="base",
            scored_week=WEEK,
            registered_model=version.registered_model,
            model_version=version.version,
            mlflow_run_id=version.mlflow_run_id,
            source=f"s3://{BUCKET}/{_JSON_LINES_KEY}",
            scored_at=datetime.now(UTC),
        )
        rows.to_sql("naive_predictions", engine, if_exists="append", index=False)
        return len(rows)

    return run


def ours(deployment: Deployment, _n_rows: int, *, with_reasons: bool = False) -> Callable[[], int]:
    """What runs on Monday, for one variant, without reasons."""
    scorer, _ = _ready_scorer(deployment, with_reasons=with_reasons)
    return lambda: scorer.score_variant(week_request(WEEK).of(Variant())).record.n_rows_scored


def with_reasons(deployment: Deployment, n_rows: int) -> Callable[[], int]:
    """The same with an exact reason for every row."""
    return ours(deployment, n_rows, with_reasons=True)


def stages(deployment: Deployment) -> dict[str, float]:
    """Time the steps of the job with reasons one after another, none beside another; returns seconds."""
    from churn.data.scoring_rows import prepare
    from churn.database.copy_format import CopyLayout, encode_rows
    from churn.inference.engine import build_engine

    scorer, bundle = _ready_scorer(deployment, with_reasons=True)
    taken: dict[str, float] = {}

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        taken[step] = time.perf_counter() - started

    with tempfile.TemporaryDirectory() as scratch:
        with timed("fetch from S3, with its sha256"):
            raw = scorer.ingestion.sources.fetch_input(Variant(), Path(scratch))
        with timed("read, check, find each account's row"):
            rows = prepare(raw.path, bundle.feature_names, WEEK, 0.05, origin=raw.provenance.uri)
        chunks = list(rows.chunks())
        n_rows = rows.counts.n_accounts
        with timed("tables of scores"):
            scores = build_engine(bundle, rows.encoding, chunks[0][1], n_rows=n_rows, with_reasons=False)
        with timed("score, two threads"):
            list(in_threads(scores.score, (packed for _, packed in chunks)))
        with timed("tables of reasons, proved against XGBoost"):
            engine = build_engine(bundle, rows.encoding, chunks[0][1], n_rows=n_rows, with_reasons=True)
        with timed("score and explain, two threads"):
            results = list(in_threads(engine.score, (packed for _, packed in chunks)))
    scored = [
        ScoredRows(ids, probabilities, packed.last_active_months, contributions, packed.values)
        for (ids, packed), (probabilities, contributions) in zip(chunks, results, strict=True)
    ]
    layout = CopyLayout(WEEK, rows.encoding.source_columns, has_last_active_month=True)
    with timed("lay out for COPY"):
        blocks = b"".join(encode_rows(layout, scored))
    engine_of_store = create_engine(deployment.database)
    with timed("COPY with reasons"), engine_of_store.begin() as connection:
        connection.exec_driver_sql("CREATE TEMPORARY TABLE bench_copy (LIKE churn_predictions INCLUDING DEFAULTS)")
        connection.exec_driver_sql("SELECT nextval('scoring_batches_batch_id_seq')")
        cursor = connection.connection.cursor()
        columns = ", ".join(layout.columns)
        cursor.copy_expert(f"COPY bench_copy ({columns}) FROM STDIN WITH (FORMAT binary)", io.BytesIO(blocks), 1 << 20)
    return taken


def _ready_scorer(deployment: Deployment, *, with_reasons: bool) -> tuple[Scorer, Bundle]:
    """Return a scorer whose model, imports and compiled code are loaded, and its bundle."""
    from churn.inference.engine import build_engine

    scorer = replace(deployment.scorer(), with_reasons=with_reasons)
    bundle = scorer.registry.open(Variant()).bundle
    few = derive(simulated_rows(1_000), WEEK)
    encoding = plan_encoding(bundle.feature_names, few.columns)
    packed = pack(few, encoding)
    build_engine(bundle, encoding, packed, n_rows=packed.n_rows, with_reasons=with_reasons).score(packed)
    return scorer, bundle


def limit(deployment: Deployment, n_rows: int) -> Callable[[], int]:
    """The parts that nobody can leave out: the booster over a ready matrix, then COPY of a ready file."""
    from churn.database.copy_format import CopyLayout, encode_rows

    registry = deployment.registry(read_only=True)
    bundle = registry.open(Variant()).bundle
    matrix = _ready_matrix(min(n_rows, 1_000_000), len(bundle.feature_names))
    rng = np.random.default_rng(0)
    account_ids, scores = rng.permutation(n_rows), rng.random(n_rows, dtype=np.float32)
    ready = Path(str(deployment.settings.churn_home)) / f"ready-{n_rows}.bin"
    ready.write_bytes(b"".join(encode_rows(CopyLayout(WEEK), [ScoredRows(account_ids, scores)])))
    engine = create_engine(deployment.database)
    columns = "scored_week date, account_id bigint, churn_probability real"

    def run() -> int:
        for start in range(0, n_rows, len(matrix)):
            for low in range(0, min(len(matrix), n_rows - start), 65_536):
                bundle.predict(matrix[low : low + 65_536])
        with engine.begin() as connection, ready.open("rb") as file:
            connection.exec_driver_sql("DROP TABLE IF EXISTS bench_limit")
            connection.exec_driver_sql(f"CREATE TABLE bench_limit ({columns})")
            cursor = connection.connection.cursor()
            cursor.copy_expert("COPY bench_limit FROM STDIN WITH (FORMAT binary)", file, size=1 << 20)
        return n_rows

    return run


def limit_with_reasons(deployment: Deployment, n_rows: int) -> Callable[[], int]:
    """The parts that nobody can leave out: ready rows scored and explained beside COPY of a ready file with reasons."""
    from churn.database.copy_format import CopyLayout, encode_rows
    from churn.inference.engine import build_engine

    _, bundle = _ready_scorer(deployment, with_reasons=True)
    rows = derive(simulated_rows(n_rows), WEEK)
    encoding = plan_encoding(bundle.feature_names, rows.columns)
    chunks = [pack(rows.slice(low, 65_536), encoding) for low in range(0, n_rows, 65_536)]
    engine = build_engine(bundle, encoding, chunks[0], n_rows=n_rows, with_reasons=True)
    layout = CopyLayout(WEEK, encoding.source_columns)
    ready = Path(str(deployment.settings.churn_home)) / f"ready-reasons-{n_rows}.bin"
    account_ids = np.random.default_rng(0).permutation(n_rows)

    def scored() -> Iterator[ScoredRows]:
        for i, (probabilities, contributions) in enumerate(in_threads(engine.score, chunks)):
            ids = account_ids[i * 65_536 : (i + 1) * 65_536]
            yield ScoredRows(ids, probabilities, contributions=contributions, values=chunks[i].values)

    with ready.open("wb") as file:
        file.writelines(encode_rows(layout, scored()))
    deployment.store().open_weeks(WEEK, 1)
    database = create_engine(deployment.database)
    statement = f"COPY churn_predictions_{WEEK:%Y%m%d} ({', '.join(layout.columns)}) FROM STDIN WITH (FORMAT binary)"

    def copy() -> None:
        with database.begin() as connection, ready.open("rb") as file:
            connection.exec_driver_sql("SELECT nextval('scoring_batches_batch_id_seq')")
            connection.connection.cursor().copy_expert(statement, file, size=1 << 20)

    def run() -> int:
        with ThreadPoolExecutor(1) as beside:
            copied = beside.submit(copy)
            n_scored = sum(len(probabilities) for probabilities, _ in in_threads(engine.score, chunks))
            copied.result()
        return n_scored

    return run


def _ready_matrix(n_rows: int, n_features: int) -> np.ndarray:
    rng = np.random.default_rng(2)
    matrix = np.zeros((n_rows, n_features), dtype=np.float32)
    matrix[:, :4] = rng.lognormal(3, 2, (n_rows, 4)) * rng.integers(0, 2, (n_rows, 4))
    for low, high in ((4, 33), (33, 40), (40, 45)):
        matrix[np.arange(n_rows), rng.integers(low, high, n_rows)] = 1
    return matrix


def main() -> None:
    """Run one way and print what it took."""
    way, n_rows = sys.argv[1], int(sys.argv[2])
    ways = {"naive": naive, "ours": ours, "with reasons": with_reasons, "limit": limit}
    ways["limit with reasons"] = limit_with_reasons
    with open_deployment(load_settings()) as deployment:
        if way == "stages":
            print(json.dumps(stages(deployment)))
            return
        run = ways[way](deployment, n_rows)
        started_at, started = datetime.now(UTC), time.perf_counter()
        scored = run()
        seconds = time.perf_counter() - started
    said = {"way": way, "rows": scored, "seconds": seconds, "peak_mb": peak_mb(), "at": started_at.isoformat()}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
