"""The house that faults are made in: a deployment of its own, real and whole, that a program can break.

An embedded PostgreSQL, MLflow's registry in it, an S3 over HTTP, and a few variants with the bundled model. Each
variant's input is one of two files, so that a reader can tell which one a batch was made of, and a mixture from either.
"""

import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Literal

import boto3
import sqlalchemy as sa

from churn.concurrency import CircuitBreaker
from churn.data.features import Encoding
from churn.data.scoring_rows import Chunk, prepare
from churn.database.connection import READER, WRITER, create_engine
from churn.database.predictions import PredictionStore
from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import Settings
from churn.storage.places import Bucket, Folder
from churn.storage.sources import Sources
from churn.variants import Variant
from churn.workflows.register import log_variant
from churn.workflows.score import Scorer
from churn.workflows.set_up import set_up_server
from tests.support import ROOT
from tests.support.faults.naive import TABLE as NAIVE_TABLE
from tests.support.faults.naive import score_naively
from tests.support.services import BUCKET, bench_environment, parquet_bytes
from tests.support.simulated import simulate_activity

VARIANTS = tuple(Variant(company=f"f{i}") for i in range(4))
LOGIN = "faults_login"
FIRST_WEEK = date(2018, 1, 1)  # 400 weeks until now: none that is far ahead can be opened
INPUT_KEY = "data/churn/activity.parquet"
MODEL_FILES = (
    "models/churn/xgb_churn_model_2.bin",
    "data/churn/feature_names_3.json",
    "data/churn/X_test_sample_2.json",
)


def week_of(n: int) -> date:
    """Name the n-th week that faults are made in; all of them see the same activity."""
    return FIRST_WEEK + timedelta(weeks=n)


@dataclass(frozen=True)
class Input:
    """One of the two inputs, and the scores it must lead to."""

    body: bytes
    scores: Mapping[int, float] = field(repr=False)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


@dataclass(frozen=True)
class Warmth:
    """Rows to warm up with, made elsewhere: reading them would start Polars' threads, which no fork survives."""

    chunk: Chunk
    encoding: Encoding


@dataclass(frozen=True)
class House:
    """A deployment to be broken.

    Attributes:
        environment: What a process of it needs in its environment.
        inputs: The two that a variant's input alternates between.
        server: The superuser's URL of the predictions database, with nothing in between. The deployment's own is that
            of a login with the roles and no more.
    """

    deployment: Deployment
    environment: Mapping[str, str]
    inputs: tuple[Input, Input]

    server: sa.URL

    def scorer(
        self, *, database: sa.URL | None = None, bucket: Bucket | None = None, fallback: bool = True, tracking: str = ""
    ) -> Scorer:
        """Open what scoring needs, as the product does; parts of it perhaps by way of a proxy."""
        return open_scorer(self.deployment, database=database, bucket=bucket, fallback=fallback, tracking=tracking)

    def put(self, variant: Variant, which: int) -> Input:
        """Make one of the two files a variant's input in S3, and the other its local copy."""
        stale = self.deployment.local_root / variant.prefix / INPUT_KEY
        stale.parent.mkdir(parents=True, exist_ok=True)
        stale.write_bytes(self.inputs[1 - which].body)
        boto3.client("s3").put_object(Bucket=BUCKET, Key=variant.prefix + INPUT_KEY, Body=self.inputs[which].body)
        return self.inputs[which]


def open_scorer(
    deployment: Deployment,
    *,
    database: sa.URL | None = None,
    bucket: Bucket | None = None,
    fallback: bool = True,
    tracking: str = "",
) -> Scorer:
    """Open what scoring needs, as :meth:`churn.deployment.services.Deployment.scorer` does."""
    from churn.registry.registry import Registry

    place, circuit = bucket or Bucket(BUCKET), CircuitBreaker(pause_s=4)  # it is waited for once
    sources = Sources(place, Folder(deployment.local_root), fallback=fallback, circuit=circuit, patience_s=0)
    return Scorer(
        ingestion=replace(deployment.ingestion(), sources=sources),
        registry=Registry(tracking or deployment.tracking_uri, deployment.settings.churn_home / "cache" / "models"),
        store=PredictionStore(database or deployment.database),
        code_version="faults",
        max_quarantine_share=0.05,
    )


@contextmanager
def open_house(home: Path, s3: Literal["moto", "seaweedfs"] = "moto") -> Iterator[House]:
    """Build the house; its environment is this process's meanwhile."""
    before = dict(os.environ)
    try:
        with bench_environment(home, s3) as environment:
            settings = Settings(_env_file=None, churn_home=home, mlflow_s3_bucket=BUCKET)  # type: ignore[call-arg]
            with open_deployment(settings) as deployment:
                list(set_up_server(*deployment.databases))
                yield _furnished(deployment, environment)
    finally:
        os.environ.clear()
        os.environ.update(before)


def _furnished(deployment: Deployment, environment: Mapping[str, str]) -> House:
    bodies = [
        parquet_bytes(simulate_activity(n_accounts=n, first_month=date(2017, 6, 1), n_months=4, seed=n))
        for n in (400, 350)
    ]
    inputs = [Input(body, score_naively(body)) for body in bodies]
    server = deployment.database
    deployment = replace(deployment, predictions=_login(server))
    house = House(deployment, dict(environment), (inputs[0], inputs[1]), server)
    registry, sources = deployment.registry(read_only=False), deployment.sources()
    client = boto3.client("s3")
    for variant in VARIANTS:
        for key in MODEL_FILES:
            client.put_object(Bucket=BUCKET, Key=variant.prefix + key, Body=(ROOT / key).read_bytes())
        log_variant(registry, sources, variant, deployment.artifact_location, deployment.code_version)
        house.put(variant, 0)
    return house


def _login(server: sa.URL) -> sa.URL:
    """Make the login that scores: a superuser is exempt from limits on connections."""
    password = secrets.token_hex(16)
    with create_engine(server).begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {LOGIN} LOGIN PASSWORD '{password}' IN ROLE {WRITER}, {READER}")
        connection.exec_driver_sql(NAIVE_TABLE)
        connection.exec_driver_sql(f"GRANT SELECT, INSERT ON naive_predictions TO {LOGIN}")
    return server.set(username=LOGIN, password=password)


def warmth_of(house: House) -> Warmth:
    """Read some rows for a nursery to warm up with."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "activity.parquet"
        path.write_bytes(house.inputs[0].body)
        names = json.loads((ROOT / MODEL_FILES[1]).read_bytes())
        rows = prepare(path, names, FIRST_WEEK, 0.05, origin="warmth", horizon_months=3)
        return Warmth(next(rows.chunks()), rows.encoding)


def through(url: sa.URL, port: int) -> sa.URL:
    """Reach the same database by way of a proxy on this machine."""
    return url.set(port=port)
