"""At stake: a company that has models, data and servers of its own takes the project into use, and what stands in its
way is said at each step. Nothing is as the demo makes it: others made the databases, a pooler and a login stand before
them, the models are from notebooks, the data from Spark, and players have text for ids.
"""

import os
import shutil
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
import xgboost as xgb

from churn.cli.main import main as churn
from churn.database.connection import OWNER, READER, WRITER
from churn.registry.registry import Registry
from experiment_tracking.log_model import main as log_model
from experiment_tracking.setup import main as set_up
from tests.support.children import bound
from tests.support.daemons import wait_for
from tests.support.inputs import activity, as_parquet
from tests.support.services import free_port
from tests.support.site import PASSWORD, Run, client, create_login, disconnect, run_sql

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
ADMIN = "data-science"
Company = tuple[sa.URL, sa.URL, dict[str, str]]
NAMES = ["total_deposit", "total_handle", "total_ngr", "brand_id_OH", "brand_id_PA"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PGBOUNCER is None, reason="needs PgBouncer (Debian: apt-get install pgbouncer)"),
]


@contextmanager
def pgbouncer(folder: Path, server: sa.URL, login: sa.URL, ignored: str) -> Iterator[int]:
    """Run PgBouncer before a server, as its account may be no root; yields the port."""
    folder.mkdir()
    port, password = free_port(), PASSWORD.replace('"', '""')
    (folder / "users.txt").write_text(f'"{login.username}" "{password}"\n')
    (folder / "pgbouncer.ini").write_text(
        textwrap.dedent(f"""
        [databases]
        * = host=127.0.0.1 port={server.port}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = scram-sha-256
        auth_file = {folder}/users.txt
        ignore_startup_parameters = extra_float_digits{ignored}
        """)
    )
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    command = bound([str(PGBOUNCER), *user, str(folder / "pgbouncer.ini")])
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            wait_for(lambda: b"process up" in (folder / "log").read_bytes(), 20, folder / "log")
            yield port
        finally:
            process.terminate()


@contextmanager
def mlflow_with_login(folder: Path, database: sa.URL) -> Iterator[str]:
    """Run MLflow's own server, which keeps its artifacts in a folder, behind its own login; yields the address."""
    pytest.importorskip("flask_wtf", reason="needs the development dependencies as locked")
    folder.mkdir()
    address = f"http://127.0.0.1:{(port := free_port())}"
    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\nadmin_username = data-science\n"
        f"auth_cache_ttl_seconds = 60\ndatabase_uri = sqlite:///{folder}/auth.db\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {
        **os.environ, "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"), "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": uuid.uuid4().hex, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_BACKEND_STORE_URI": database.set(drivername="postgresql").render_as_string(hide_password=False),
    }  # fmt: skip
    command = [
        sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1",
        "--port", str(port), "--workers", "1", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(bound(command), env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for(lambda: b"Application startup complete" in (folder / "log").read_bytes(), 90, folder / "log")
            yield address
        finally:
            process.terminate()
            process.wait(timeout=20)


@pytest.fixture
def company(postgres: sa.URL, schemas: Mapping[str, str]) -> Iterator[Company]:
    """What a DBA made: a login that may create nothing, and databases of the DBA's own role."""
    dba, login = create_login(postgres), create_login(postgres, "NOCREATEDB NOCREATEROLE")
    names = {kind: f"{kind}_{uuid.uuid4().hex[:8]}" for kind in ("tracking", "players", "runs")}
    run_sql(postgres, f"CREATE DATABASE {names['tracking']} TEMPLATE {schemas['mlflow']}")
    for kind in ("players", "runs"):
        run_sql(postgres, f"CREATE DATABASE {names[kind]} OWNER {dba.username}")
    yield dba, login, names
    for name in names.values():
        disconnect(postgres, name)
        run_sql(postgres, f"DROP DATABASE {name} WITH (FORCE)")


def train(seed: int) -> xgb.XGBClassifier:
    """Train as a notebook does: a classifier that stops early."""
    rows = pd.DataFrame(np.random.default_rng(seed).gamma(1.0, 50.0, (400, len(NAMES))), columns=NAMES)
    rows["brand_id_OH"] = (rows["brand_id_OH"] > 40).astype(float)
    rows["brand_id_PA"] = 1 - rows["brand_id_OH"]
    churned = (rows["total_deposit"] + 30 * rows["brand_id_OH"] < 60).astype(int)
    model = xgb.XGBClassifier(n_estimators=40, max_depth=3, random_state=seed, early_stopping_rounds=3)
    return model.fit(rows[:300], churned[:300], eval_set=[(rows[300:], churned[300:])], verbose=False)


def register(model: xgb.XGBClassifier, name: str) -> None:
    import mlflow

    with mlflow.start_run():
        logged = mlflow.xgboost.log_model(model, name="model", pip_requirements=["xgboost"])
    version = mlflow.register_model(logged.model_uri, name).version
    mlflow.MlflowClient().set_registered_model_alias(name, "champion", version)


def of_players(rows: pd.DataFrame) -> pd.DataFrame:
    """Give players the ids that a company has: UUIDs, and numbers with zeros before them."""
    texts = {one: str(uuid.UUID(int=one)) if one % 2 else f"{one:012}" for one in rows["account_id"].unique().tolist()}
    return rows.assign(account_id=rows["account_id"].map(texts))


def scores_of(model: xgb.XGBClassifier, rows: pd.DataFrame) -> dict[str, float]:
    """Each player's score by pandas and the notebook's own model."""
    newest = rows.sort_values("activity_month", kind="stable").groupby("account_id").tail(1)
    matrix = pd.get_dummies(newest, columns=["brand_id"]).reindex(columns=NAMES, fill_value=0).astype("float32")
    return dict(zip(newest["account_id"], model.predict_proba(matrix)[:, 1].tolist(), strict=True))


def test_a_company_with_models_data_and_servers_of_its_own(
    company: Company, postgres: sa.URL, bucket: str, run_main: Run, *, local_root: Path, homes: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    dba, login, names = company
    folder = homes / f"adoption-{uuid.uuid4().hex[:8]}"
    folder.mkdir(mode=0o755)
    url = login.set(drivername="postgresql", database=names["players"])
    setup, log, command = (partial(run_main, main) for main in (set_up, log_model, churn))
    us = ("--geography", "us")
    monkeypatch.setenv("CHURN_DAGSTER_DB_NAME", names["runs"])
    with ExitStack() as stack:
        tracking = postgres.set(database=names["tracking"])  # with the login of those who run it
        address = stack.enter_context(mlflow_with_login(folder / "mlflow", tracking))

        # PostgreSQL behind PgBouncer, which drops what a connection sets: each form of it is told, with the next step.
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        for ignored, why in (("", "unsupported startup parameter"), (", options", "startup parameters were ignored")):
            port = stack.enter_context(pgbouncer(folder / f"pooler{len(ignored)}", postgres, login, ignored))
            monkeypatch.setenv("CHURN_DATABASE_URL", url.set(port=port).render_as_string(hide_password=False))
            setup(*us).require_one_line(
                why, "name the host and port of PostgreSQL itself in CHURN_DATABASE_URL", f"127.0.0.1:{port}"
            )
        monkeypatch.setenv("CHURN_DATABASE_URL", url.render_as_string(hide_password=False))

        # A DBA's databases: what the DBA must grant is told until it is granted.
        setup(*us).require_one_line("42501: permission denied", "ADMIN OPTION on the churn roles")
        for role in (OWNER, WRITER, READER):
            run_sql(postgres, f"GRANT {role} TO {login.username}")
        setup(*us).require_one_line("GRANT ALL ON SCHEMA public TO this login WITH GRANT OPTION")
        for kind in ("players", "runs"):
            grant = f"GRANT ALL ON SCHEMA public TO {login.username} WITH GRANT OPTION"
            run_sql(dba.set(database=names[kind]), grant)

        # MLflow behind a login.
        setup(*us).require_one_line("refused the login", "MLFLOW_TRACKING_USERNAME")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", quote(PASSWORD))
        setup(*us).require_one_line("refused the login", "HTTP 401")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        assert "experiment churn_prediction-geography-us" in setup(*us).out

        # Models from notebooks.
        Registry(address, tmp_path / "unused")  # sets MLflow's address, as a notebook does
        models = {key: train(seed) for seed, key in enumerate(("US", "UK"))}
        for key, model in models.items():
            register(model, f"risk_{key}")
        adopted = log("--adopt", "risk_*", "--geography", "*")
        assert adopted.status == 0, adopted
        assert adopted.out.count("version   1, alias champion") == 2, adopted.out

        # A folder of Spark's parts, of players with text for ids.
        rows = of_players(activity())
        key, half, s3 = "geography-us/data/churn/activity.parquet", len(rows) // 2, client("s3")
        for part, some in enumerate((rows[:half], rows[half:])):
            s3.put_object(Bucket=bucket, Key=f"{key}/part-0000{part}-c000.snappy.parquet", Body=as_parquet(some))
        monkeypatch.setattr("churn.workflows.score._RETRY_FOR_S", 0)
        unfinished = command("score", "geography-us")
        assert (unfinished.status, "activity.parquet/ has 2 parts and no _SUCCESS" in unfinished.err) == (1, True)
        s3.put_object(Bucket=bucket, Key=f"{key}/_SUCCESS", Body=b"")
        scored = command("score", "geography-us")
        assert scored.status == 0, scored

        query = "SELECT account_key, churn_probability, is_sample FROM churn_predictions_current"
        found = run_sql(postgres.set(database=names["players"]), query)
        assert {key: score for key, score, _ in found} == pytest.approx(scores_of(models["US"], rows), abs=1e-6)
        assert {is_sample for *_, is_sample in found} == {False}
        player = rows["account_id"].iloc[0]
        assert player in command("explain", "--account", player, "--variant", "geography-us").out
        checked = command("doctor")
        assert (checked.status, "FAILED" in checked.out) == (0, False), checked.out
