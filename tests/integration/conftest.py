"""A deployment for each test: databases of its own, a login with a hostile password, its secret, its bucket.

Schemas cost seconds to make, so each is made once a session by the code under test, and cloned for every test.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from churn.database.connection import OWNER, READER, WRITER
from churn.database.schema import ensure_database, ensure_roles, migrate_mlflow, migrate_predictions
from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import load_settings
from tests.support.site import (
    Run,
    Site,
    configure,
    create_database,
    create_login,
    databases_of,
    disconnect,
    open_instance,
    run_sql,
)


@pytest.fixture(scope="session")
def login(postgres: sa.URL) -> sa.URL:
    """A login that may create databases and roles, and no more."""
    # A power cut is not what these tests are about, and databases that live for a second need no vacuum.
    for setting in ("fsync", "full_page_writes", "synchronous_commit", "autovacuum"):
        run_sql(postgres, f"ALTER SYSTEM SET {setting} = off")
    for setting, value in (("checkpoint_timeout", "1h"), ("max_wal_size", "1GB")):
        run_sql(postgres, f"ALTER SYSTEM SET {setting} = '{value}'")
    run_sql(postgres, "SELECT pg_reload_conf()")
    url = create_login(postgres)
    for role in (OWNER, WRITER, READER):
        if run_sql(postgres, "SELECT 1 FROM pg_roles WHERE rolname = :role", role=role):
            run_sql(postgres, f"GRANT {role} TO {url.username} WITH ADMIN OPTION")
    return url


@pytest.fixture(scope="session")
def schemas(postgres: sa.URL, login: sa.URL, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """One database of each kind, set up, to be cloned: its name by ``mlflow``, ``churn`` and ``dagster``."""
    from churn.registry.registry import Registry

    names = {kind: f"template_{kind}" for kind in ("mlflow", "churn", "dagster")}
    for name in names.values():
        assert ensure_database(login.set(database=name))
    ensure_roles(login.set(database=names["churn"]))
    mlflow_url = login.set(database=names["mlflow"])
    migrate_mlflow(mlflow_url)
    Registry(mlflow_url.render_as_string(hide_password=False), Path("unused"))  # its first opening adds rows
    migrate_predictions(login.set(database=names["churn"]))
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("dagster-template")
        with open_instance(home, login.set(database=names["dagster"]), patch) as instance:
            assert instance.get_dynamic_partitions("churn_variants") == []
    for name in names.values():
        disconnect(postgres, name)
    return names


@pytest.fixture
def bare_site(postgres: sa.URL, login: sa.URL, bucket: str, local_root: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A configured deployment before set-up: a server, a secret, a bucket, and none of its databases."""
    return configure(postgres, login, bucket, monkeypatch)


@pytest.fixture
def site(bare_site: Site, schemas: Mapping[str, str]) -> Iterator[Site]:
    """A deployment whose server is set up; no experiment and no model yet."""
    with databases_of(bare_site, schemas):
        yield bare_site


@pytest.fixture
def dagster_database(site: Site, schemas: Mapping[str, str]) -> str:
    """The deployment's Dagster database, which half of the tests do without."""
    create_database(site, site.dagster, schemas["dagster"])
    return site.dagster


@pytest.fixture
def instance(
    site: Site, dagster_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """The deployment's Dagster instance, on PostgreSQL."""
    home = tmp_path / "dagster-home"
    home.mkdir()
    with open_instance(home, site.login.set(database=dagster_database), monkeypatch) as opened:
        yield opened


@pytest.fixture
def deployment(site: Site) -> Iterator[Deployment]:
    """The deployment as the entry points open it."""
    with open_deployment(load_settings()) as opened:
        yield opened


@pytest.fixture
def set_up(run_main: Run) -> Run:
    """Run ``setup.py`` with these arguments."""
    from experiment_tracking.setup import main

    return partial(run_main, main)


@pytest.fixture
def log_model(run_main: Run) -> Run:
    """Run ``log_model.py`` with these arguments."""
    from experiment_tracking.log_model import main

    return partial(run_main, main)
