"""Real services for the tests: one embedded PostgreSQL a session, one S3 and Secrets Manager over HTTP."""

import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import pytest
import sqlalchemy as sa
from xdist.scheduler import LoadFileScheduling

from churn import MLFLOW_DEFAULTS
from churn.database.embedded import embedded_postgres

pytest.register_assert_rewrite("tests.support")  # before it is imported

from tests.support import ROOT  # noqa: E402
from tests.support.moto_server import ThreadedMotoServer  # noqa: E402
from tests.support.site import Run, Said, require_no_password, run_sql  # noqa: E402

OURS = ("MLFLOW_", "CHURN_", "AWS_", "DAGSTER_")
TOGETHER = {
    "tests/e2e/test_readme.py": "the demo",
    "tests/e2e/test_ui.py": "the demo",
    "tests/faults/test_delivery.py": "faults",
    "tests/faults/test_matrix.py": "faults",
    "tests/faults/test_moves.py": "faults",
    "tests/faults/test_operations.py": "faults",
    "tests/faults/test_registration.py": "faults",
    "tests/faults/test_services.py": "faults",
}
"""Files that share a deployment that takes long to make."""


def pytest_configure() -> None:
    """Drop the caller's settings, and an ignored SIGINT: a shell's background job has it, and children inherit it."""
    for name in _ours():
        del os.environ[name]
    # Threads of OpenMP spin while they wait, which takes the cores from the other test processes.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest file, which waits a lot: begun late, it would be waited for alone."""
    items.sort(key=lambda item: item.path.name != "test_weekly_job.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    return TogetherScheduling(config, log)


class TogetherScheduling(LoadFileScheduling):
    """Hands out whole files, and those that share something to one process."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return TOGETHER.get(file, file)


def _ours() -> list[str]:
    return [name for name in os.environ if name.startswith(OURS) and name not in MLFLOW_DEFAULTS]


@pytest.fixture(scope="session")
def homes() -> Iterator[Path]:
    """A folder for homes with an embedded PostgreSQL: others may enter it, as the account that root runs it as must.

    It is in memory where there is enough of it and ``TMPDIR`` names no other place: hundreds of databases are made and
    dropped.
    """
    memory = Path("/dev/shm")  # noqa: S108
    fits = "TMPDIR" not in os.environ and memory.is_dir() and shutil.disk_usage(memory).free > 4 * 2**30
    with tempfile.TemporaryDirectory(prefix="churn-tests-", dir=memory if fits else None) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(autouse=True)
def clean_environment(homes: Path) -> Iterator[None]:
    """No test sees the caller's settings, nor those of another test, nor writes to the checkout's ``.churn``."""
    before = dict(os.environ)
    for name in _ours():
        del os.environ[name]
    os.environ |= {"CHURN_HOME": str(homes / uuid.uuid4().hex), "DAGSTER_DISABLE_TELEMETRY": "yes"}
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def postgres(homes: Path) -> Iterator[sa.URL]:
    """The superuser's URL of a PostgreSQL that lives as long as the session.

    It never waits for the disk: tests kill processes, not the machine, and hundreds of databases are made and dropped.
    Checking a password costs next to nothing: tests connect thousands of times.
    """
    with embedded_postgres(homes / "session") as url:
        for setting in ("fsync = off", "full_page_writes = off", "scram_iterations = 1"):
            run_sql(url, f"ALTER SYSTEM SET {setting}")
        run_sql(url, "SELECT pg_reload_conf()")
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


@pytest.fixture
def run_main(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Run:
    """Run a script's ``main`` in this process, which saves the seconds that importing MLflow takes."""

    def run(main: Callable[[Sequence[str]], None], *arguments: str) -> Said:
        capsys.readouterr()
        status = 0
        try:
            main(arguments)
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        said = capsys.readouterr()
        require_no_password(said.out, said.err, caplog.text)
        return Said(status, said.out, said.err)

    return run
