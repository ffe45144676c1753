"""The services a benchmark runs on: an embedded PostgreSQL, S3 over HTTP on this machine, and a model to score with."""

import io
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Literal

import boto3
import numpy as np
import polars as pl
import sqlalchemy as sa
from tenacity import Retrying, stop_after_delay, wait_fixed

from churn.database.embedded import embedded_postgres
from churn.database.schema import ensure_database, ensure_roles, migrate_predictions
from churn.variants import Variant
from tests.support import ROOT
from tests.support.children import bound
from tests.support.simulated import simulate_activity

BUCKET = "bench"
WEEK = date(2026, 11, 16)
MONTH = date(2026, 7, 1)  # before every week that is scored, each run of a fleet taking the Monday before the last
MODEL_KEY = "models/churn/xgb_churn_model_2.bin"
NAMES_KEY = "data/churn/feature_names_3.json"
SAMPLE_KEY = "data/churn/X_test_sample_2.json"
TREES, DEPTH = 150, 6

_BELOW = 55_000


@contextmanager
def bench_environment(home: Path, s3: Literal["moto", "seaweedfs"] = "moto") -> Iterator[dict[str, str]]:
    """Start S3, and yield the environment of a deployment on it whose PostgreSQL is the embedded one.

    Args:
        s3: moto answers in Python, on the cores that are measured; SeaweedFS takes little of them, as S3 itself none.
    """
    home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = _moto(port) if s3 == "moto" else _seaweedfs(port, home / "s3")
    key = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
    silent = subprocess.DEVNULL
    with subprocess.Popen(bound(command), env={**os.environ, **key}, stdout=silent, stderr=silent) as server:
        _wait_for(endpoint)
        environment = {
            **key,
            "CHURN_HOME": str(home),
            "MLFLOW_S3_BUCKET": BUCKET,
            "AWS_ENDPOINT_URL": endpoint,
            # MLflow keeps its S3 clients by this one alone: another endpoint in the same process must not get ours.
            "MLFLOW_S3_ENDPOINT_URL": endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "DAGSTER_DISABLE_TELEMETRY": "yes",
        }
        os.environ.update(environment)
        _make_bucket()
        try:
            yield environment
        finally:
            server.kill()  # SeaweedFS takes 25 s to leave, and nobody reads its files any more


@contextmanager
def predictions_database(prefix: str) -> Iterator[sa.URL]:
    """A PostgreSQL of its own with an empty predictions database; yields the superuser's URL of that."""
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        Path(folder).chmod(0o755)
        with embedded_postgres(Path(folder) / "home") as server:
            url = server.set(database="churn_db")
            ensure_database(url)
            ensure_roles(url)
            migrate_predictions(url)
            yield url


def simulated_rows(n_rows: int, seed: int = 3) -> pl.DataFrame:
    """Make activity of one month with one row per account, drawn from the simulator's rows.

    Returns:
        ``n_rows`` rows in the contract's columns, accounts in random order.
    """
    source = simulate_activity(n_accounts=min(20_000, n_rows), first_month=date(2025, 2, 1), n_months=21, seed=seed)
    rng = np.random.default_rng(seed)
    drawn = source[rng.integers(0, source.height, n_rows)]
    return drawn.with_columns(account_id=pl.Series(rng.permutation(n_rows) + 10_000_000), activity_month=pl.lit(MONTH))


def upload_variant(variant: Variant, activity: pl.DataFrame | bytes, files: dict[str, bytes]) -> None:
    """Put a variant's model files and its input, as Parquet, into the bucket."""
    client = boto3.client("s3")
    for key, body in files.items():
        client.put_object(Bucket=BUCKET, Key=variant.prefix + key, Body=body)
    body = activity if isinstance(activity, bytes) else parquet_bytes(activity)
    client.put_object(Bucket=BUCKET, Key=variant.prefix + "data/churn/activity.parquet", Body=body)


def upload_fleet(variants: Sequence[Variant], inputs: Sequence[bytes], files: dict[str, bytes]) -> None:
    """Put the same model files into the bucket for each variant, and the inputs in turn."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: upload_variant(variants[i], inputs[i % len(inputs)], files), range(len(variants))))


def parquet_bytes(activity: pl.DataFrame) -> bytes:
    """Write activity as Parquet in row groups of 131,072 rows."""
    buffer = io.BytesIO()
    activity.write_parquet(buffer, row_group_size=131_072)
    return buffer.getvalue()


def model_files() -> dict[str, bytes]:
    """Train a booster of the size that is customary, on the bundled sample's 45 features; return its artifact files."""
    import xgboost as xgb

    names = json.loads((ROOT / NAMES_KEY).read_bytes())
    sample = (ROOT / SAMPLE_KEY).read_bytes()
    rng = np.random.default_rng(1)
    matrix = np.zeros((20_000, len(names)), dtype=np.float32)
    matrix[:, :4] = rng.lognormal(3, 2, (20_000, 4)) * rng.integers(0, 2, (20_000, 4))
    for low, high in ((4, 33), (33, 40), (40, 45)):
        matrix[np.arange(20_000), rng.integers(low, high, 20_000)] = 1
    churned = rng.random(20_000) < 1 / (1 + np.exp(np.log1p(matrix[:, 0]) - matrix[:, 7] - 1))
    data = xgb.DMatrix(matrix, churned.astype(np.float32), feature_names=names)
    booster = xgb.train({"objective": "binary:logistic", "max_depth": DEPTH, "eta": 0.1, "seed": 1}, data, TREES)
    return {MODEL_KEY: bytes(booster.save_raw("ubj")), NAMES_KEY: json.dumps(names).encode(), SAMPLE_KEY: sample}


def peak_mb() -> float:
    """Return the most memory that this process ever had resident; ``ru_maxrss`` would tell its parent's as well."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def free_port() -> int:
    """Pick a port that nobody listens on, and that leaves room for another 10,000 above it, as SeaweedFS needs it."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < _BELOW:
            return port


def _moto(port: int) -> list[str]:
    return [sys.executable, "-P", str(ROOT / "tests/support/moto_server.py"), "-H", "127.0.0.1", "-p", str(port)]


def _seaweedfs(port: int, folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True)
    master, volume, filer = (free_port() for _ in range(3))
    ports = [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={port}"]
    unused = ["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false", "-master.telemetry=false"]
    limits = ["-volume.max=0", "-master.volumePreallocate=false", "-master.volumeSizeLimitMB=1024"]
    return ["weed", "server", f"-dir={folder}", "-ip=127.0.0.1", "-filer", "-s3", *ports, *unused, *limits]


def _wait_for(endpoint: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(endpoint, timeout=2).close()  # noqa: S310 our own loopback server
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"S3 at {endpoint} did not start")


def _make_bucket() -> None:
    """Make the bucket; SeaweedFS answers a moment before it can."""
    for attempt in Retrying(wait=wait_fixed(0.3), stop=stop_after_delay(30), reraise=True):
        with attempt:
            boto3.client("s3").create_bucket(Bucket=BUCKET)
