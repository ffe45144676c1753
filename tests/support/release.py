"""A data directory as a release left it: make it, keep it small, and bring it back somewhere else.

``python -m tests.support.release`` writes ``tests/data/release_<version>.tar.gz`` with the code at hand, once, when a
version is released. Later releases bring it back and upgrade it. It holds a plain dump of each of the three databases
and the other files of ``CHURN_HOME``: the local copy with its activity histories, MLflow's artifacts, the model cache.
MLflow's database has absolute paths in it, so the dumps name the folder by a placeholder.
"""

import gzip
import io
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from unittest.mock import patch

import sqlalchemy as sa

from churn.database.embedded import embedded_postgres
from churn.database.embedded_host import find_programs
from churn.database.predictions import read_current
from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import load_settings
from churn.variants import Variant
from churn.workflows.evaluate import evaluate_fleet
from tests.support import ROOT
from tests.support.simulated import simulate_activity

DATA = ROOT / "tests" / "data"
WEEK = date(2026, 11, 23)
VARIANTS = (Variant(), Variant("us"))
PUBLISHED = "SELECT variant, account_id, churn_probability, reason_1 FROM churn_predictions_current ORDER BY 1, 2"
_HOME = "@CHURN_HOME@"
_FOLDERS = ("artifacts", "cache", "local")


@contextmanager
def home_in_environment(home: Path) -> Iterator[None]:
    """Set ``CHURN_HOME``, and no other setting of ours, meanwhile."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CHURN_", "MLFLOW_", "AWS_"))}
    with patch.dict(os.environ, {**kept, "CHURN_HOME": str(home), "CHURN_CODE_VERSION": "release"}, clear=True):
        yield


def published(deployment: Deployment) -> list[list[object]]:
    """Return what analysts read of the predictions, as JSON holds it."""
    rows = read_current(deployment.database, PUBLISHED).rows()
    return [[key, account, round(score, 6), reason] for key, account, score, reason in rows]


def make(version: str) -> Path:
    """Live a week with two small variants, and write the archive."""
    with tempfile.TemporaryDirectory(prefix="churn-release-") as folder:
        Path(folder).chmod(0o755)  # the account that root runs PostgreSQL as must enter it
        home = Path(folder) / "home"
        with home_in_environment(home):
            expected = _live(home)
            path = DATA / f"release_{version.replace('.', '_')}.tar.gz"
            with open_deployment(load_settings()) as deployment:
                _write(path, home, deployment, expected)
    return path


def restore(path: Path, home: Path, also: str = "") -> list[list[object]]:
    """Bring a data directory back under ``home``; returns the predictions that were published in it.

    Args:
        also: SQL for its predictions database, before the upgrade.
    """
    with tarfile.open(path) as archive:
        archive.extractall(home, filter="data")
    with embedded_postgres(home) as server:
        dumps = [dump.read_text().replace(_HOME, str(home)) for dump in sorted((home / "dumps").glob("*.sql"))]
        for database, script in [*(("postgres", dump) for dump in dumps), ("churn_db", also)]:
            run_program(server, home, "psql", database, "--quiet", "--set=ON_ERROR_STOP=1", given=script)
    expected: list[list[object]] = json.loads((home / "published.json").read_text())
    return expected


def _live(home: Path) -> list[list[object]]:
    import dagster as dg

    from experiment_tracking import log_model, setup
    from orchestration.assets.scoring import OP_NAME
    from orchestration.definitions import defs
    from orchestration.instance import dagster_environment
    from orchestration.partitions import ranges, sync_partitions

    flags = [flag for variant in VARIANTS for flag in ("--variant", variant.key)]
    setup.main(flags)
    for seed, variant in enumerate(VARIANTS):
        rows = simulate_activity(n_accounts=60, first_month=date(2025, 2, 1), n_months=21, seed=seed, variant=variant)
        path = home / "local" / variant.prefix / "data/churn/activity.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.write_parquet(path)
    log_model.main(flags)
    with open_deployment(load_settings()) as deployment:
        os.environ.update(dagster_environment(deployment))
        job = defs.resolve_job_def("churn_prediction_job")
        with dg.DagsterInstance.get() as instance:
            keys = sync_partitions(instance, list(VARIANTS))
            for tags in ranges(keys, {variant.key for variant in VARIANTS}, len(VARIANTS)):
                config = {"ops": {OP_NAME: {"config": {"week": WEEK.isoformat(), "corrected": True}}}}
                assert job.execute_in_process(instance=instance, tags=tags, run_config=config).success
        for _, result in evaluate_fleet(deployment.promoter(), [variant.key for variant in VARIANTS]):
            assert not isinstance(result, BaseException), result
        return published(deployment)


def _write(path: Path, home: Path, deployment: Deployment, expected: list[list[object]]) -> None:
    # Without times, so that what is written again from the same rows differs in little else.
    with gzip.GzipFile(path, "wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for url in (deployment.database, deployment.mlflow_database, deployment.dagster_database):
            assert url is not None
            dump = run_program(url, home, "pg_dump", str(url.database), "--create", "--no-sync")
            roles = "".join(
                f"CREATE ROLE {role} NOLOGIN;\n" for role in ("churn_owner", "churn_writer", "churn_reader")
            )
            first = roles if url == deployment.database else ""
            _add(archive, f"dumps/{'0' if first else '1'}_{url.database}.sql", first + dump.replace(str(home), _HOME))
        _add(archive, "published.json", json.dumps(expected))
        for folder in _FOLDERS:
            for file in sorted((home / folder).rglob("*")):
                if file.is_file():
                    archive.add(file, file.relative_to(home).as_posix(), recursive=False)


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    content = text.encode()
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def run_program(url: sa.URL, copies: Path, program: str, database: str, *flags: str, given: str | None = None) -> str:
    command: Sequence[str] = (str(find_programs(None, None, copies=copies).folder / program), *flags, database)
    environment = {
        "PATH": os.environ["PATH"],
        "PGHOST": str(url.host),
        "PGPORT": str(url.port),
        "PGUSER": str(url.username),
        "PGPASSWORD": str(url.password),
    }
    done = subprocess.run(command, env=environment, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


if __name__ == "__main__":
    import importlib.metadata

    print(make(importlib.metadata.version("churn-scoring")))
