"""The services of a deployment, resolved from settings, Secrets Manager and the embedded default.

There is one code path. If nothing is set, an embedded PostgreSQL is started and a folder replaces the bucket; they only
supply values. Entry points open a deployment, and pass workflows the services that they use.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, cast

import sqlalchemy as sa
from pydantic import SecretStr

from churn.concurrency import cores
from churn.data.labels import Horizon
from churn.database.connection import LIBPQ_LIMITS, WRITER, Tables, locked, parse_database_url, require_connection
from churn.database.decisions import Decisions
from churn.database.embedded import embedded_postgres
from churn.database.erasure import Erasures
from churn.database.evaluations import Evaluations
from churn.database.events import ModelEvents, model_lock, this_person
from churn.database.extracts import ScoredExtracts
from churn.database.fleet import FleetTables
from churn.database.incidents import Incidents
from churn.database.predictions import PredictionStore
from churn.deployment.code_version import code_version
from churn.deployment.credentials import read_secret
from churn.deployment.settings import Settings, find_bundled_files, find_project_root, load_settings
from churn.errors import AccessDeniedError, CredentialsError, StoreError, UsageError
from churn.evaluation.comparison import Limits
from churn.monitoring.retraining import RetrainingPolicy
from churn.registry.cache import ArrayCache
from churn.registry.tags import MLFLOW_VIEW
from churn.samples.simulated import SIMULATED
from churn.storage.history import ActivityHistory
from churn.storage.places import Bucket, Folder
from churn.storage.sources import Sources
from churn.variants import Variant
from churn.versions import CHAMPION
from churn.workflows.alert import Links, Receivers, parse_receivers
from churn.workflows.decide import Decider
from churn.workflows.deliver import Deliverer
from churn.workflows.erase import Eraser
from churn.workflows.evaluate import PerformanceEvaluator
from churn.workflows.ingest import Ingestion
from churn.workflows.monitor import FleetMonitor
from churn.workflows.process_engine import start_server
from churn.workflows.promote import Promoter
from churn.workflows.ray_engine import Workers
from churn.workflows.retrain import RetrainingPlanner

if TYPE_CHECKING:  # slow to import, so each is imported where it is used
    from churn.registry.registry import Registry
    from churn.workflows.register import Registrar
    from churn.workflows.score import Scorer
    from churn.workflows.train import FeatureNames, Trainer

_Service = TypeVar("_Service", bound=Sources | Bucket | Tables)
_SomeTables = TypeVar("_SomeTables", bound=Tables)
_Any = TypeVar("_Any")
_LEAST_FOR_PROCESSES = 50  # variants; starting processes takes as long as scoring some ten
_EQUAL_ON_NODES = (
    "churn_local_fallback", "churn_local_max_age", "churn_max_quarantine_share", "churn_max_unknown_level_share",
    "churn_reasons", "churn_horizon_months", "churn_delivery_delay_days",
)  # fmt: skip


@dataclass(frozen=True)
class Deployment:
    """The services of one deployment, resolved but not opened.

    A method that opens a service raises :class:`ChurnError` within seconds if a database or the registry that the
    service uses cannot be reached or is not set up.
    """

    settings: Settings
    predictions: sa.URL | None  # the predictions database; `None` if only MLflow is set, which is enough to log models
    mlflow_database: sa.URL | None  # MLflow's database if this deployment owns it; `None` behind an MLflow server
    tracking_uri: str = field(repr=False)  # for MLflow clients; may contain a password
    local_root: Path
    is_embedded: bool
    _opened: dict[type, Sources | Bucket | Tables] = field(init=False, repr=False, compare=False, default_factory=dict)

    def close(self) -> None:
        """Close the connections to the predictions database and to S3."""
        for opened in self._opened.values():
            opened.close()

    def _once(self, kind: type[_Service], opener: Callable[[], _Service]) -> _Service:
        if kind not in self._opened:
            self._opened[kind] = opener()
        return cast("_Service", self._opened[kind])

    def _tables(self, kind: type[_SomeTables], *, is_checked: bool = False) -> _SomeTables:
        """Open some tables of the predictions database, once; of a schema that :meth:`require_schema` has checked."""
        if is_checked:
            self.require_schema()
        return self._once(kind, lambda: kind(self.database))

    @property
    def code_version(self) -> str:
        return self.settings.churn_code_version or code_version()

    @property
    def database(self) -> sa.URL:
        """The predictions database; raises ``UsageError`` if none is set."""
        if self.predictions is None:
            needed = "set CHURN_DATABASE_URL or MLFLOW_SECRET_NAME"
            raise UsageError(f"MLFLOW_TRACKING_URI is set without a database for predictions; {needed}")
        return self.predictions

    def database_as(self, user: Literal["setup", "monitoring", "reader"]) -> sa.URL:
        """The predictions database with the login of a user's own setting, else with the job's."""
        name = f"churn_{user}_database_url"
        url: SecretStr | None = getattr(self.settings, name)
        return self.database if url is None else parse_database_url(url.get_secret_value(), name.upper())

    @property
    def dagster_database(self) -> sa.URL:
        """Dagster's database, on the same server, with the login of set-up."""
        return self.database_as("setup").set(database=self.settings.churn_dagster_db_name)

    @property
    def databases(self) -> tuple[sa.URL, sa.URL, sa.URL | None]:
        """The databases of predictions, of Dagster and, if this deployment owns it, of MLflow."""
        return self.database_as("setup"), self.dagster_database, self.mlflow_database

    @property
    def horizon(self) -> Horizon:
        """When labels mature."""
        return Horizon(self.settings.churn_horizon_months, self.settings.churn_label_lag_days)

    def sources(self) -> Sources:
        """Open the bucket, if there is one, and its local copy; once."""
        name, local = self.settings.mlflow_s3_bucket, Folder(self.local_root)
        limits = self.settings.churn_local_fallback == "auto", self.settings.churn_local_max_age
        return self._once(Sources, lambda: Sources(Bucket(name) if name else None, local, *limits, simulated=SIMULATED))

    def require_schema(self) -> None:
        """Raise ``ChurnError`` if the predictions database cannot be reached as its writer, or is not set up."""
        from churn.database.schema import require_predictions_schema

        require_predictions_schema(self.database, role=WRITER)

    def store(self) -> PredictionStore:
        """Open the predictions database as its writer."""
        return self._tables(PredictionStore, is_checked=True)

    def registry(self, *, read_only: bool) -> "Registry":
        """Open MLflow's registry; ``read_only`` as a database role that may only read, as scoring does."""
        role, uri = WRITER if read_only else None, self.tracking_uri
        # Of MLflow's own experiment, "Default", which whoever connects first creates; else a folder where they work.
        os.environ.setdefault("_MLFLOW_SERVER_ARTIFACT_ROOT", self.artifact_location(Variant()))
        if self.mlflow_database is not None:
            require_connection(self.mlflow_database, role=role)  # before MLflow is imported
        from churn.database.schema import require_mlflow_schema
        from churn.registry.registry import Registry

        if self.mlflow_database is not None:
            require_mlflow_schema(self.mlflow_database, role=role)
            if role is not None:
                limits = {name: str(value) for name, value in LIBPQ_LIMITS.items()}
                url = self.mlflow_database.update_query_dict({**limits, "options": f"-c role={role}"})
                uri = url.render_as_string(hide_password=False)
        moves = self._tables(ModelEvents).pending_moves if self.predictions is not None else dict
        return Registry(uri, self.settings.churn_home / "cache" / "models", moves, self._registration_lock)

    @contextmanager
    def _registration_lock(self, variant: Variant) -> Iterator[bool]:
        """Lock a variant's models in the predictions database, else in MLflow's; says whether either was possible."""
        with ExitStack() as stack:
            is_locked = False
            for url in (self.predictions, self.mlflow_database):
                if url is not None and not is_locked:
                    with suppress(StoreError, CredentialsError, AccessDeniedError):
                        stack.enter_context(locked(url, model_lock(variant)))
                        is_locked = True
            yield is_locked

    def scorer(self) -> "Scorer":
        from churn.workflows.score import Scorer

        settings, tables = self.settings, ArrayCache(self.settings.churn_home / "cache" / "tables")
        services = self.ingestion(), self.registry(read_only=True), self.store(), self.code_version
        max_shares = settings.churn_max_quarantine_share, settings.churn_max_unknown_level_share
        return Scorer(*services, *max_shares, settings.churn_reasons, settings.churn_horizon_months, tables=tables)

    def registrar(self) -> "Registrar":
        from churn.workflows.register import Registrar

        registry, has_trail = self.registry(read_only=False), self.predictions is not None

        def appoint(variant: Variant, version: int) -> None:
            self.promoter().appoint(variant, version, "logged with --alias champion")

        services = registry, self.sources(), self.artifact_location, self.code_version
        return Registrar(*services, has_trail, appoint if has_trail else None)

    def workers(self, n_variants: int, service: "Callable[[Deployment], _Any]") -> "Workers[_Any] | None":
        """Return where a fleet's work is done: on ``CHURN_RAY_ADDRESS``, in processes, or, ``None``, in this process.

        ``service`` opens what the work needs, once for each worker, such as ``Deployment.scorer``; pickled by its name.
        Processes begin their imports at once, so call this before what else has to be read.
        """
        address, n = self.settings.churn_ray_address, self.settings.churn_workers or cores()
        if self.predictions is None or (address is None and (n == 1 or n_variants < _LEAST_FOR_PROCESSES)):
            return None
        if address is None:
            start_server()
        return Workers(address, open_node, self.fingerprint(), min(n, n_variants), service)

    def fingerprint(self) -> dict[str, str]:
        """Return the values that must be equal wherever a fleet is scored, by a name for people; contains no secret."""
        settings, mlflow = self.settings, self.tracking_uri.rpartition("@")[2].partition("?")[0]
        if (url := self.mlflow_database) is not None:
            mlflow = f"{url.host}:{url.port or 5432}/{url.database}"
        found = {"the code": self.code_version, "the predictions database": self.store().identity(), "MLflow": mlflow}
        found["MLFLOW_S3_BUCKET"] = settings.mlflow_s3_bucket or "not set"
        return found | {name.upper(): str(getattr(settings, name)) for name in _EQUAL_ON_NODES}

    def history(self) -> ActivityHistory:
        """Open the activity histories, which do not store accounts that were erased."""
        delay = timedelta(days=self.settings.churn_delivery_delay_days)
        return ActivityHistory(self.sources().primary, self._tables(Erasures).settled, delay)

    def ingestion(self) -> Ingestion:
        extracts, share = self._tables(ScoredExtracts), self.settings.churn_max_quarantine_share
        return Ingestion(self.sources(), self.history(), extracts, share, self._tables(Decisions))

    def decider(self) -> Decider:
        """Open the services that campaigns and exclusions need."""
        return Decider(self._tables(Decisions, is_checked=True), self.ingestion(), self.settings.churn_horizon_months)

    def events(self) -> ModelEvents:
        """Open the audit trail of the aliases."""
        return self._tables(ModelEvents, is_checked=True)

    def promoter(self) -> Promoter:
        """Open the services that evaluating a variant's batches and moving its aliases need."""
        events, registry, results = self.events(), self.registry(read_only=False), self._tables(Evaluations)
        limits = self.horizon, Limits(), self.settings.churn_min_auc
        evaluator = PerformanceEvaluator(self.ingestion(), registry, results, *limits)
        return Promoter(registry, events, evaluator, this_person())

    def trainer(self, *, n_trials: int | None = None, features: "FeatureNames | None" = None) -> "Trainer":
        """Open the services of training, by default with ``CHURN_TRAINING_TRIALS`` and each variant's own features."""
        from churn.training.gate import GateLimits
        from churn.training.train import TrainingPlan
        from churn.workflows.train import Trainer

        settings, promoter = self.settings, self.promoter()
        n_trials = n_trials or settings.churn_training_trials
        plan = TrainingPlan(horizon=self.horizon, n_trials=n_trials, min_of_class=settings.churn_min_labels)
        limits = GateLimits(settings.churn_min_auc, settings.churn_max_calibration_error)
        services = self.sources(), self.history(), promoter.registry, self.artifact_location, promoter.challenge
        share, results = settings.churn_max_quarantine_share, self._tables(Evaluations)
        return Trainer(*services, self.code_version, share, results, plan, limits, features)

    def fleet(self) -> FleetTables:
        """Open the state of all variants in the predictions database."""
        return self._tables(FleetTables, is_checked=True)

    def fleet_monitor(self) -> FleetMonitor:
        """Open the services that monitoring the fleet needs; the registry is opened when it is queried."""
        grace = timedelta(hours=self.settings.churn_schedule_grace_hours)
        return FleetMonitor(self.fleet(), self.incidents(), self._champions, list(self.receivers()), grace)

    def incidents(self) -> Incidents:
        """Open the incidents and their alerts."""
        return self._tables(Incidents, is_checked=True)

    def retraining_planner(self) -> RetrainingPlanner:
        """Open the services that deciding which champions are retrained needs."""
        policy = RetrainingPolicy(self.settings.churn_horizon_months, self.settings.churn_retrain_after_months)
        return RetrainingPlanner(self.registry(read_only=True), self.fleet(), policy)

    def eraser(self) -> Eraser:
        """Open the places that accounts are erased from."""
        sources = self.sources()
        places = [place for place in (sources.bucket, sources.local) if place is not None]
        return Eraser(self.database_as("setup"), self.dagster_database, places, self.deliverer())

    def deliverer(self) -> Deliverer | None:
        """Open the place that predictions are delivered to; ``None`` if they are not."""
        if self.settings.churn_delivery_prefix is None:
            return None
        name, _, folder = self.settings.churn_delivery_prefix.removeprefix("s3://").partition("/")
        bucket = self._once(Bucket, lambda: Bucket(name))
        return Deliverer(self.database, self._tables(Erasures), bucket, f"{folder.strip('/')}/")

    def receivers(self) -> Receivers:
        """Parse the receivers in ``CHURN_ALERT_URLS``, if it is set."""
        settings = self.settings
        urls = settings.churn_alert_urls.get_secret_value() if settings.churn_alert_urls else ""
        links = Links(settings.churn_environment or "", settings.churn_dagster_ui_url, settings.churn_runbook_url)
        return parse_receivers(urls, links)

    def _champions(self) -> dict[str, int | None]:
        aliases = self.registry(read_only=True).aliases()
        return {variant.key: versions.get(CHAMPION) for variant, versions in aliases.items()}

    def artifact_location(self, variant: Variant) -> str:
        """Return the artifact location of a variant's experiment."""
        if bucket := self.settings.mlflow_s3_bucket:
            return f"s3://{bucket}/{variant.prefix}mlflow"
        return (self.settings.churn_home / "artifacts" / variant.prefix / "mlflow").absolute().as_uri()

    @property
    def model_link(self) -> Callable[[str, int], str]:
        """Builds MLflow UI links; picklable, contains no secret."""
        base = self.settings.churn_mlflow_ui_url.rstrip("/")
        return partial(f"{{}}/#/models/{{}}/versions/{{}}{MLFLOW_VIEW}".format, base)


@contextmanager
def open_deployment(settings: Settings | None = None) -> Iterator[Deployment]:
    """Resolve the services, and close them at the end; on the embedded default, run PostgreSQL meanwhile.

    The settings are by default the environment's. Raises ``ChurnError`` if they are wrong or contradict each other, or
    the credentials cannot be read.
    """
    settings, server, is_embedded = settings or load_settings(), None, False
    with ExitStack() as stack:
        if settings.mlflow_secret_name is not None:
            server = read_secret(settings)
        elif settings.mlflow_tracking_uri is None:
            if settings.churn_database_url is not None:
                raise UsageError("CHURN_DATABASE_URL is set without MLFLOW_TRACKING_URI or MLFLOW_SECRET_NAME; set one")
            if {"mlflow_db_host", "mlflow_db_port"} & settings.model_fields_set:
                needed = "set MLFLOW_SECRET_NAME, which has the login, too"
                raise UsageError(f"MLFLOW_DB_HOST or MLFLOW_DB_PORT is set without MLFLOW_SECRET_NAME; {needed}")
            embedded = embedded_postgres(settings.churn_home, bin_dir=settings.churn_postgres_bin)
            server, is_embedded = stack.enter_context(embedded), True
        yield stack.enter_context(closing(_resolve(settings, server, is_embedded=is_embedded)))


@contextmanager
def open_node(service: Callable[[Deployment], _Any]) -> Iterator[tuple[Mapping[str, str], _Any]]:
    """Open some of a worker's services, from its own environment; yields its fingerprint, too."""
    with open_deployment() as deployment:
        yield deployment.fingerprint(), service(deployment)


def _resolve(settings: Settings, server: sa.URL | None, *, is_embedded: bool = False) -> Deployment:
    """Resolve every URL from the settings, else from the server, which is only ``None`` if MLflow's URL is set."""
    explicit, tracking = settings.churn_database_url, settings.mlflow_tracking_uri
    predictions = None if server is None else server.set(database=settings.churn_db_name)
    if explicit is not None:
        predictions = parse_database_url(explicit.get_secret_value(), "CHURN_DATABASE_URL")
    uri = tracking.get_secret_value() if tracking else ""
    mlflow_database = None
    if tracking is None:
        assert server is not None  # noqa: S101
        is_named = "mlflow_db_name" in settings.model_fields_set or server.database in (None, "", "postgres")
        mlflow_database = server.set(database=settings.mlflow_db_name) if is_named else server
    elif uri.startswith("postgres"):
        mlflow_database = parse_database_url(uri, "MLFLOW_TRACKING_URI")
    taken = rf"s3://{settings.mlflow_s3_bucket}/(data|models|history|mlflow|geography-[^/]+|company-[^/]+)(/|$)"
    if re.match(taken, prefix := settings.churn_delivery_prefix or ""):
        problem = f"CHURN_DELIVERY_PREFIX {prefix} is among the files of variants, histories or models"
        raise UsageError(f"{problem}; name a folder of its own, such as s3://{settings.mlflow_s3_bucket}/delivered")
    dagster = None if predictions is None else predictions.set(database=settings.churn_dagster_db_name)
    _require_apart(predictions, mlflow_database, dagster)
    tracking_uri = mlflow_database.render_as_string(hide_password=False) if mlflow_database is not None else uri
    local_root = _local_root(settings, is_embedded=is_embedded)
    return Deployment(settings, predictions, mlflow_database, tracking_uri, local_root, is_embedded)


def _require_apart(*databases: sa.URL | None) -> None:
    """Raise ``UsageError`` if two settings name one database: each use migrates its own."""
    settings = "CHURN_DB_NAME or CHURN_DATABASE_URL", "MLFLOW_DB_NAME or MLFLOW_TRACKING_URI", "CHURN_DAGSTER_DB_NAME"
    names: dict[tuple[str | None, int, str | None], str] = {}
    for name, url in zip(settings, databases, strict=True):
        if url is not None and (other := names.setdefault((url.host, url.port or 5432, url.database), name)) != name:
            raise UsageError(f"{other} and {name} name one database, {url.database!r} at {url.host}; give each its own")


def _local_root(settings: Settings, *, is_embedded: bool) -> Path:
    if settings.churn_local_root is not None:
        return settings.churn_local_root
    if not is_embedded:
        return find_project_root()
    root = settings.churn_home / "local"
    for name in ("data/churn", "models/churn"):
        if not (root / name).exists():
            shutil.copytree(find_bundled_files() / name, root / name, dirs_exist_ok=True)
    return root
