"""Where operations are killed: a lane with a predictions database of its own, a variant in each place, a receiver."""

import json
import re
import shutil
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import boto3
import sqlalchemy as sa
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from pydantic import SecretStr

from churn.database.connection import create_engine
from churn.database.predictions import PredictionStore
from churn.database.schema import ensure_database, migrate_predictions
from churn.deployment.services import Deployment
from churn.registry.tags import EVIDENCE_AFTER
from churn.storage.places import Bucket, Folder
from churn.variants import Variant
from churn.workflows.deliver import Deliverer
from churn.workflows.register import log_variant
from tests.support import ROOT
from tests.support.delivered import read_delivered
from tests.support.faults import naive_operations
from tests.support.faults.house import BUCKET, FIRST_WEEK, INPUT_KEY, MODEL_FILES, House
from tests.support.faults.ledger import execute
from tests.support.faults.worker import Nursery
from tests.support.release import run_program

Place = Literal["S3", "folder"]
INPUT, N_ACCOUNTS = INPUT_KEY, 40
_KEPT = ("alembic_version", "erasure_salt", "retention")
_TABLES = """
SELECT relname FROM pg_class
WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace AND NOT relispartition
"""
_CATALOG = """
SELECT 'column', attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull::text,
    coalesce(attacl::text, '') FROM pg_attribute
    WHERE attnum > 0 AND NOT attisdropped AND attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = :public)
UNION ALL SELECT 'relation', relname, relkind::text, coalesce(relacl::text, ''), relowner::regrole::text, ''
    FROM pg_class WHERE relnamespace = :public
UNION ALL SELECT 'constraint', conname, conrelid::regclass::text, pg_get_constraintdef(oid), '', ''
    FROM pg_constraint WHERE connamespace = :public
UNION ALL SELECT 'function', oid::regprocedure::text, md5(prosrc), coalesce(proacl::text, ''), proowner::text, ''
    FROM pg_proc WHERE pronamespace = :public
UNION ALL SELECT 'trigger', tgname, tgrelid::regclass::text, '', '', '' FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT 'view', viewname, md5(definition), '', '', '' FROM pg_views WHERE schemaname = 'public'
""".replace(":public", "'public'::regnamespace")
_RUNS = """
SELECT status FROM runs JOIN experiments AS e USING (experiment_id) WHERE e.name = :name AND status = 'RUNNING'
UNION ALL SELECT 'PENDING' FROM logged_models AS m JOIN experiments AS e USING (experiment_id)
WHERE e.name = :name AND m.lifecycle_stage = 'active' AND status = 1
"""
_LOGGED = "FROM metrics WHERE key LIKE 'live%' AND run_uuid IN (SELECT run_id FROM model_versions WHERE name = :name)"


@dataclass(frozen=True)
class Case:
    """What one kill is about; it is sent to children.

    Attributes:
        server: The superuser's URL of the predictions database; ``login`` is that of the job.
        given: What else the operation needs.
    """

    place: Place
    variants: Sequence[Variant]
    server: sa.URL
    login: sa.URL
    alert_url: str
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def variant(self) -> Variant:
        return self.variants[0]

    @property
    def week(self) -> date:
        """The week that is scored beside the operation."""
        week: date = self.given.get("week", FIRST_WEEK)
        return week

    def at(self, deployment: Deployment) -> Deployment:
        """Return the deployment with the case's database, and its bucket or none."""
        of_place = {} if self.place == "S3" else {"mlflow_s3_bucket": None}
        changed = {
            "churn_setup_database_url": SecretStr(self.server.render_as_string(hide_password=False)),
            "churn_alert_urls": SecretStr(self.alert_url),
            "churn_delivery_prefix": f"s3://{BUCKET}/delivered/{self.server.database}",
            **of_place,
        }
        return replace(deployment, settings=deployment.settings.model_copy(update=changed), predictions=self.login)


@dataclass
class Bench:
    """A lane.

    Attributes:
        told: The numbers of the alerts that the receiver was sent.
    """

    house: House
    nursery: Nursery
    number: int
    alert_url: str
    told: list[int]
    _opened: dict[Place, Deployment] = field(default_factory=dict)
    _n_fresh: int = 0

    @cached_property
    def server(self) -> sa.URL:
        """The lane's database, with the tables of the naive ways."""
        url = self.house.server.set(database=f"lane_{self.number}")
        ensure_database(url)
        migrate_predictions(url)
        with create_engine(url).begin() as connection:
            connection.exec_driver_sql(naive_operations.TABLES)
            for (name,) in connection.exec_driver_sql(_TABLES + " AND relname LIKE 'naive%%'").all():
                connection.exec_driver_sql(f"GRANT ALL ON {name} TO PUBLIC")
        return url

    @cached_property
    def _clear(self) -> str:
        names = [name for (name,) in execute(self.server, _TABLES) if name not in _KEPT]
        deleting = (f"DELETE FROM {name}" for name in names)  # noqa: S608 our own names
        return f"SET session_replication_role = replica; {'; '.join(deleting)}; RESET session_replication_role"

    def variant(self, place: Place) -> Variant:
        """The lane's registered variant in a place."""
        return Variant(company=f"lane{self.number}{place.lower()}")

    def case(self, place: Place, *variants: Variant) -> Case:
        login = self.house.deployment.database.set(database=self.server.database)
        return Case(place, variants or (self.variant(place),), self.server, login, self.alert_url)

    def deployment(self, case: Case) -> Deployment:
        """Open the deployment of a case's place in this process, once."""
        if case.place not in self._opened:
            self._opened[case.place] = case.at(self.house.deployment)
        return self._opened[case.place]

    @contextmanager
    def store(self) -> Iterator[PredictionStore]:
        """Open the predictions, knowing of no week that was opened before: others may have dropped it."""
        with closing(PredictionStore(self.case("S3").login)) as store:
            yield store

    def close(self) -> None:
        for deployment in self._opened.values():
            deployment.close()

    # Files

    def place(self, case: Case) -> Bucket | Folder:
        return Bucket(BUCKET) if case.place == "S3" else self.local(case)

    def local(self, _case: Case) -> Folder:
        return Folder(self.house.deployment.local_root)

    def put(self, case: Case, key: str, body: bytes) -> None:
        self.place(case).write(case.variant.prefix + key, body)

    def files(self, case: Case, folder: str) -> dict[str, bytes]:
        """Read all files of the case's variant below a folder."""
        prefix = case.variant.prefix + folder
        if case.place == "folder":
            root = self.house.deployment.local_root
            paths = [root / prefix, *(root / prefix).rglob("*")]
            return {str(path): path.read_bytes() for path in paths if path.is_file()}
        client = boto3.client("s3")
        keys = [item["Key"] for item in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])]
        return {key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}

    def older_versions(self, case: Case) -> Iterator[bytes]:
        """Yield the versions of parts that were replaced or deleted."""
        if case.place == "S3":
            client, prefix = boto3.client("s3"), f"{case.variant.prefix}history/"
            for item in client.list_object_versions(Bucket=BUCKET, Prefix=prefix).get("Versions", []):
                yield client.get_object(Bucket=BUCKET, Key=item["Key"], VersionId=item["VersionId"])["Body"].read()

    def _wipe(self, variant: Variant) -> None:
        for folder in ("data", "history", "mlflow"):
            shutil.rmtree(self.house.deployment.local_root / variant.prefix / folder, ignore_errors=True)
        bucket = Bucket(BUCKET)
        for prefix in (
            f"{variant.prefix}data/churn/activity",
            f"{variant.prefix}history/",
            f"delivered/{self.server.database}/",
        ):
            for entry in bucket.list(prefix):
                bucket.erase(entry.key)
            bucket.erase_versions(prefix)

    # Before a kill

    def fresh(self, place: Place, aliases: Mapping[str, int] | None = None) -> Case:
        """Return a case of the lane's variant, of which nothing is known, published or decided."""
        case = self.case(place)
        execute(self.server, self._clear)
        self._wipe(case.variant)
        mlflow, name = self._mlflow, case.variant.registered_model
        execute(mlflow, "DELETE FROM registered_model_aliases WHERE name = :name", name=name)
        for alias, version in (aliases or {"champion": 1}).items():
            statement = "INSERT INTO registered_model_aliases (name, alias, version) VALUES (:name, :alias, :version)"
            execute(mlflow, statement, name=name, alias=alias, version=version)
        execute(mlflow, f"DELETE {_LOGGED}", name=name)
        return case

    def fresh_variants(self, place: Place, n: int, files: Mapping[str, bytes]) -> Case:
        """Return a case of variants with model files that are not registered."""
        self.fresh(place)
        variants = []
        for _ in range(n):
            self._n_fresh += 1
            variants.append(Variant(company=f"lane{self.number}n{self._n_fresh}"))
        self._put_model(place, *variants)
        case = self.case(place, *variants)
        for variant in variants:
            for key, body in files.items():
                self.put(self.case(place, variant), key, body)
        return case

    def forget(self, case: Case) -> None:
        """Unregister the variants of a case that were not registered before it, so that listings stay short."""
        if case.variant != self.variant(case.place):
            client = MlflowClient(self.house.deployment.tracking_uri)
            for variant in case.variants:
                with suppress(MlflowException):  # not registered, where nothing is
                    client.delete_registered_model(variant.registered_model)
        for name in case.given.get("databases", ()):
            self._drop(name)

    def with_databases(self, case: Case, *kinds: str) -> Case:
        names = [f"lane_{self.number}_{kind}" for kind in kinds]
        for name in names:
            self._drop(name)
        return replace(case, given={**case.given, "databases": names})

    def _drop(self, name: str) -> None:
        execute(self.house.server.set(database="postgres"), f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def copy_release(self, name: str) -> None:
        """Make a database as release 0.9.0 left it."""
        template, server = f"lane_{self.number}_template", self.house.server
        postgres = server.set(database="postgres")
        if not execute(postgres, "SELECT FROM pg_database WHERE datname = :name", name=template):
            with tarfile.open(ROOT / "tests/data/release_0_9_0.tar.gz") as archive:
                member = archive.extractfile("dumps/0_churn_db.sql")
                assert member is not None
                dump = re.sub(r"^CREATE ROLE .*$", "", member.read().decode(), flags=re.MULTILINE)
            home = self.house.deployment.settings.churn_home
            run_program(
                server,
                home,
                "psql",
                "postgres",
                "--quiet",
                "--set=ON_ERROR_STOP=1",
                given=dump.replace("churn_db", template),
            )
        execute(postgres, f"CREATE DATABASE {name} TEMPLATE {template}")

    def register(self, place: Place) -> None:
        """Register the lane's variant, twice the bundled model."""
        case = self.case(place)
        self._put_model(place, case.variant)
        deployment = self.deployment(case)
        registry = deployment.registry(read_only=False)
        log_variant(registry, deployment.sources(), case.variant, deployment.artifact_location, "faults")
        client, name = MlflowClient(deployment.tracking_uri), case.variant.registered_model
        first = client.get_model_version(name, "1")
        client.set_model_version_tag(name, "1", EVIDENCE_AFTER, "2017-01-01")
        client.create_model_version(name, first.source, first.run_id, first.tags, model_id=first.model_id)

    def _put_model(self, place: Place, *variants: Variant) -> None:
        for variant in variants:
            for key in MODEL_FILES:
                self.put(self.case(place, variant), key, (ROOT / key).read_bytes())

    # Afterwards

    @property
    def _mlflow(self) -> sa.URL:
        url = self.house.deployment.mlflow_database
        assert url is not None
        return url

    def rows(self, database: str, query: str) -> list[Any]:
        engine = sa.create_engine(self.house.server.set(database=database), poolclass=sa.NullPool)
        with engine.connect() as connection:
            return list(connection.exec_driver_sql(query))

    def catalog(self, database: str) -> Counter[object]:
        """Count the tables, columns, constraints, functions, triggers and rights in a database."""
        return Counter(tuple(row) for row in self.rows(database, _CATALOG))

    def aliases(self, case: Case) -> Counter[object]:
        query = "SELECT alias, version FROM registered_model_aliases WHERE name = :name"
        return Counter(tuple(row) for row in execute(self._mlflow, query, name=case.variant.registered_model))

    def registered(self, variant: Variant) -> Iterator[tuple[str, int]]:
        """Yield a variant's versions, aliases, and what is not ended, as MLflow's tables have them."""
        name = variant.registered_model
        versions = "SELECT version FROM model_versions WHERE name = :name AND current_stage <> 'Deleted_Internal'"
        yield from (("version", number) for (number,) in execute(self._mlflow, versions, name=name))
        yield from self.aliases(Case("S3", [variant], self.server, self.server, ""))  # type: ignore[misc]
        yield from ((row[0], i) for i, row in enumerate(execute(self._mlflow, _RUNS, name=variant.experiment)))

    def model_hashes(self, variant: Variant) -> set[str]:
        query = "SELECT value FROM model_version_tags WHERE name = :name AND key = 'churn.model_sha256'"
        return {value for (value,) in execute(self._mlflow, query, name=variant.registered_model)}

    def mlflow_run_id(self, case: Case) -> str:
        query = "SELECT run_id FROM model_versions WHERE name = :name AND version = 1"
        return str(execute(self._mlflow, query, name=case.variant.registered_model)[0][0])

    def live_metrics(self, case: Case) -> Counter[object]:
        query = f"SELECT key, step, round(value::numeric, 9) {_LOGGED}"
        return Counter(tuple(row) for row in execute(self._mlflow, query, name=case.variant.registered_model))

    def deliverer(self, case: Case) -> Deliverer:
        deliverer = self.deployment(case).deliverer()
        assert deliverer is not None
        return deliverer

    def delivered(self, case: Case) -> Counter[object]:
        """Count the accounts of each week that a manifest names, and the objects, but for the week that is scored."""
        prefix = f"delivered/{self.server.database}/"
        read = {week: rows for (_, week), rows in read_delivered(BUCKET, prefix).items() if week != case.week}
        objects = boto3.client("s3").list_object_versions(Bucket=BUCKET, Prefix=f"{prefix}variant=").get("Versions", [])
        n = sum(f"week={case.week}" not in item["Key"] for item in objects)
        rows = Counter(("delivered", week, one) for week, frame in read.items() for one in frame["account_id"])
        return rows + Counter({"objects": n})


_ALERT = re.compile(r"alert (\d+)")


@contextmanager
def open_bench(house: House, nursery: Nursery, number: int) -> Iterator[Bench]:
    """Open a lane: its database, its variants, and a receiver of alerts."""
    told: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            match = _ALERT.search(message["message"])
            assert match
            told.append(int(match[1]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ExitStack() as stack:
        receiver = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        stack.callback(receiver.shutdown)
        bench = Bench(house, nursery, number, f"ops=json://127.0.0.1:{receiver.server_port}", told)
        stack.callback(bench.close)
        for place in ("S3", "folder"):
            bench.register(place)
        yield bench
