"""At stake: the commands that this project began with. Whoever types them, from a clone, gets what they got."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import boto3
import dagster as dg
import pytest
import sqlalchemy as sa

from orchestration.definitions import defs
from tests.support import ROOT
from tests.support.children import bound
from tests.support.services import free_port
from tests.support.site import run_sql, wait_until


def test_dagster_dev_can_load_the_file_of_the_weekly_job() -> None:
    """``dagster dev -f orchestration/job.py`` loads the file by itself, and takes its only ``Definitions``."""
    spec = importlib.util.spec_from_file_location("job", ROOT / "orchestration/job.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert [name for name, value in vars(module).items() if isinstance(value, dg.Definitions)] == ["defs"]
    assert module.defs is defs


INSTALLERS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "uv": (
        ["uv", "venv", "--quiet", "--python", sys.executable],
        ["uv", "pip", "install", "-e", "experiment_tracking"],
    ),
    "pip": (
        [sys.executable, "-m", "venv"],
        ["python", "-m", "pip", "install", "-r", "experiment_tracking/requirements.txt"],
    ),
}
"""The commands that make an environment and install into it, as people type them."""
SHELL = ("PATH", "LANG", "TMPDIR", "UV_CACHE_DIR", "UV_INDEX_URL", "PIP_INDEX_URL", "PIP_CACHE_DIR", "SSL_CERT_FILE")


@pytest.fixture(scope="module", params=INSTALLERS)
def clone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clone, as far as git has its files, with an environment of its own, ``venv``, that has all dependencies."""
    make, install = INSTALLERS[request.param]
    if shutil.which(make[0]) is None:
        pytest.skip(f"{make[0]} is not installed")
    folder = tmp_path_factory.mktemp(request.param) / "clone"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    subprocess.run([*make, folder / "venv"], check=True)
    subprocess.run(install, cwd=folder, env=shell(folder), check=True, timeout=1500)
    yield folder
    shutil.rmtree(folder)  # gigabytes, which pytest would keep


def shell(clone: Path, **variables: str) -> dict[str, str]:
    """The environment of a fresh shell in which the clone's environment was activated."""
    kept = {name: os.environ[name] for name in SHELL if name in os.environ}
    path = f"{clone / 'venv/bin'}{os.pathsep}{kept['PATH']}"
    home = {"HOME": str(Path.home()), "VIRTUAL_ENV": str(clone / "venv"), "DAGSTER_DISABLE_TELEMETRY": "yes"}
    return {**kept, **home, "PATH": path, **variables}


def type_in(clone: Path, command: str, environment: Mapping[str, str]) -> str:
    """Run a command in the folder of scripts; returns what it printed."""
    words, folder = command.split(), clone / "experiment_tracking"
    words[0] = str(clone / "venv/bin" / words[0])
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow  # it needs the package index, and gigabytes
@pytest.mark.timeout(1800)
def test_the_commands_run_in_a_fresh_clone_and_environment(
    clone: Path, homes: Path, postgres: sa.URL, bucket: str, aws: str
) -> None:
    embedded = shell(clone, CHURN_HOME=str(homes / uuid.uuid4().hex))
    created = type_in(clone, "python setup.py --geography US", embedded)
    assert "experiment churn_prediction-geography-us (id 1): created" in created
    registered = type_in(clone, "python log_model.py --company ClientA", embedded)
    assert "models:/churn-prediction-model-clienta/1" in registered

    # A fresh shell with only these two, on a server that a colleague set up.
    name = f"fresh_{uuid.uuid4().hex[:8]}"
    urls = [postgres.set(drivername="postgresql", database=f"{name}{end}") for end in ("", "_churn")]
    uri, predictions = (url.render_as_string(hide_password=False) for url in urls)
    keys = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    fresh = shell(clone, MLFLOW_TRACKING_URI=uri, MLFLOW_S3_BUCKET=bucket, **keys)
    type_in(
        clone, "python setup.py", fresh | {"CHURN_DATABASE_URL": predictions, "CHURN_DAGSTER_DB_NAME": f"{name}_dg"}
    )
    for key in (
        "models/churn/xgb_churn_model_2.bin",
        "data/churn/feature_names_3.json",
        "data/churn/X_test_sample_2.json",
    ):
        boto3.client("s3").upload_file(str(ROOT / key), bucket, key)
    assert "version   1, alias champion" in type_in(clone, "python log_model.py", fresh)
    for end in ("", "_churn", "_dg"):
        run_sql(postgres, f"DROP DATABASE {name}{end} WITH (FORCE)")

    assert "churn_prediction_job" in jobs_of_dagster_dev(clone, embedded)


def jobs_of_dagster_dev(clone: Path, environment: Mapping[str, str]) -> list[str]:
    """Return the jobs that ``dagster dev -f orchestration/job.py`` shows in its UI's API."""
    port = free_port()
    query = "{repositoriesOrError{... on RepositoryConnection{nodes{jobs{name}}} ... on PythonError{message}}}"
    body = json.dumps({"query": query}).encode()
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"})
    command = [clone / "venv/bin/dagster", "dev", "-f", "orchestration/job.py", "-p", str(port)]
    found: list[str] = []

    def answers() -> bool:
        with suppress(OSError), urllib.request.urlopen(asked, timeout=10) as answer:  # noqa: S310 loopback
            repositories = json.load(answer)["data"]["repositoriesOrError"]["nodes"]
            found.extend(job["name"] for repository in repositories for job in repository["jobs"])
        return bool(found)

    with (clone / "dagster.log").open("wb") as log:
        process = subprocess.Popen(
            bound(command), cwd=clone, env=dict(environment), stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_until(answers, 120)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            process.wait(timeout=60)
    return found
