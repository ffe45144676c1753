"""Real services for the tests: one embedded PostgreSQL a session, one S3 and Secrets Manager over HTTP."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import sqlalchemy as sa
from moto.server import ThreadedMotoServer

from churn import MLFLOW_DEFAULTS
from churn.database.embedded import embedded_postgres
from tests.support import ROOT

OURS = ("MLFLOW_", "CHURN_", "AWS_", "DAGSTER_")


@pytest.fixture(scope="session")
def homes() -> Iterator[Path]:
    """A folder for homes with an embedded PostgreSQL: others may enter it, as the account that root runs it as must."""
    with tempfile.TemporaryDirectory(prefix="churn-tests-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, homes: Path) -> None:
    """No test sees the caller's settings, nor writes to the checkout's ``.churn``."""
    for name in list(os.environ):
        if name.startswith(OURS) and name not in MLFLOW_DEFAULTS:
            monkeypatch.delenv(name)
    monkeypatch.setenv("CHURN_HOME", str(homes / uuid.uuid4().hex))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "yes")


@pytest.fixture(scope="session")
def postgres(homes: Path) -> Iterator[sa.URL]:
    """The superuser's URL of a PostgreSQL that lives as long as the session."""
    with embedded_postgres(homes / "session") as url:
        yield url


@pytest.fixture(scope="session")
def aws_endpoint() -> Iterator[str]:
    """S3 and Secrets Manager over HTTP."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(aws_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Point boto3 and MLflow at that server."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return aws_endpoint


@pytest.fixture
def bucket(aws: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket, configured."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=name)
    monkeypatch.setenv("MLFLOW_S3_BUCKET", name)
    return name


@pytest.fixture
def local_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local copy that holds the bundled base artifacts."""
    root = tmp_path / "local"
    for name in ("data", "models"):
        shutil.copytree(ROOT / name, root / name)
    monkeypatch.setenv("CHURN_LOCAL_ROOT", str(root))
    return root
