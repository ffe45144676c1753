"""All of MLflow: which variants are registered, which version an alias names, and the logging of a new one.

Rules kept here: a variant exists when a registered model carries its tags; a version is resolved once and then named by
number; boosters are cached on disk by model id, since a version's files never change.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.exceptions as aws
import mlflow
import pandas as pd
import requests
import sqlalchemy.exc
from boto3.exceptions import Boto3Error
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, ViewType
from mlflow.exceptions import MlflowException
from mlflow.models import Model, infer_signature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.uri import append_to_uri_path

from churn.errors import (
    AccessDeniedError,
    ChurnError,
    ModelFileError,
    RegistryError,
    RegistryUnavailableError,
    UsageError,
)
from churn.monitoring.profiles import Profile
from churn.variants import Variant, nearest
from churn.versions import CHAMPION, ModelVersion

if TYPE_CHECKING:  # XGBoost takes a second to import, which whoever loads no model need not wait for
    from churn.inference.bundle import Bundle, Golden

logger = logging.getLogger(__name__)
# A uv environment has no pip, of which MLflow warns for every model.
logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)

GEOGRAPHY_TAG = "geography"
COMPANY_TAG = "company_id"
_SHA256_TAG = "churn.model_sha256"
_BOOSTER_FILE = "model.ubj"
_GOLDEN_FILE = "golden_rows.json"
_REFERENCE_FILE = "reference_profile.json"
_REFERENCE_TAG = "churn.has_reference"
_MODEL_NAME_PREFIX = Variant().registered_model
_DAY = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")
_FIRST_MONDAY = date(1970, 1, 5)
_DIGEST_LENGTH = 36  # MLflow's column holds no more
_ABSENT = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}


@dataclass(frozen=True)
class LoggedDataset:
    """The data that a run's model comes from, by what MLflow lists of it.

    Attributes:
        sha256: Of the very rows, in hexadecimal.
        source: Where they were kept.
        profile: Counts that tell one such data set from another.
    """

    name: str
    sha256: str
    source: str
    profile: Mapping[str, Any]


@dataclass(frozen=True)
class LoggedRun:
    """What a new version's run records.

    Attributes:
        tags: Beside the variant's own, which are always set.
        metrics: Real ones only; empty where there are no labels.
        artifacts: Texts and pictures by their path, such as ``model_card.md``.
        name: What the run is called; ``None`` for ``log-<variant>``.
        dataset: ``None`` where it is not known.
        reference: Inputs and scores that batches are compared with, of rows the model was not trained on; ``None``
            where there are none.
    """

    bundle: "Bundle"
    golden: "Golden"
    sample: pd.DataFrame
    parameters: Mapping[str, Any]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    artifacts: Mapping[str, str | bytes] = field(default_factory=dict)
    name: str | None = None
    dataset: LoggedDataset | None = None
    reference: Profile | None = None


@dataclass(frozen=True)
class LivePoint:
    """What a version's scores of one week turned out to be worth.

    Attributes:
        n_matured: Accounts it is known of; every point has them, whatever else there is.
        metrics: By name, without the prefix ``live_``.
        artifacts: Texts by their path below the week's folder.
    """

    scored_week: date
    as_of: date
    n_matured: int
    metrics: Mapping[str, float]
    artifacts: Mapping[str, str]


class Registry:
    """The MLflow tracking server and model registry of one deployment."""

    def __init__(self, tracking_uri: str, cache: Path) -> None:
        """Open the registry.

        Args:
            tracking_uri: Server or database; it may hold a password, and is never logged.
            cache: Folder for boosters by model id; made when needed.
        """
        _set_process_uri(tracking_uri)
        with _errors_translated("opening the registry"):
            self._client = MlflowClient(tracking_uri, tracking_uri)
        self._cache = cache
        self._locations: dict[str, str] = {}  # by experiment; MLflow never moves one

    def variants(self) -> list[Variant]:
        """Return the variants that are registered, in order of their keys."""
        return sorted(self.aliases(), key=lambda variant: variant.key)

    def aliases(self) -> dict[Variant, Mapping[str, int]]:
        """List the registered variants, each with the version that each of its aliases names now."""
        with _errors_translated("listing the registered models"):
            models = _pages(self._client.search_registered_models, f"name LIKE '{_MODEL_NAME_PREFIX}%'")
            return {variant: _aliases(model) for model in models if (variant := _variant_of(model)) is not None}

    def aliases_of(self, variant: Variant) -> Mapping[str, int]:
        """Return the version that each of a variant's aliases names now; none when it is not registered."""
        model = self._registered(variant)
        return {} if model is None else _aliases(model)

    def resolve(
        self, variant: Variant, alias: str = CHAMPION, listed: Mapping[Variant, Mapping[str, int]] | None = None
    ) -> ModelVersion:
        """Find the version that ``alias`` names.

        Args:
            listed: What :meth:`aliases` returned, for many look-ups at one moment; ``None`` asks now.

        Raises:
            RegistryError: If the variant is not registered or has no such alias, or another variant holds its name.
        """
        name = variant.registered_model
        aliases = self.aliases_of(variant) if listed is None else listed.get(variant, {})
        if alias not in aliases:
            raise self._unresolved(variant, alias, aliases)
        with _errors_translated(f"reading {name!r}"):
            found = self._client.get_model_version(name, str(aliases[alias]))
        return self._describe(variant, found, alias)

    def _unresolved(self, variant: Variant, alias: str, aliases: Mapping[str, int]) -> RegistryError:
        name = variant.registered_model
        if not aliases and self._registered(variant) is None:
            return RegistryError(
                f"variant {variant} is not registered (no model {name!r}){nearest(variant, self.variants())}; "
                f"log one with experiment_tracking/log_model.py"
            )
        held = ", ".join(sorted(aliases)) or "none"
        return RegistryError(
            f"registered model {name!r} has no alias {alias!r} (it has: {held}); "
            f"set one with experiment_tracking/log_model.py --alias {alias}"
        )

    def load(self, version: ModelVersion) -> "Bundle":
        """Load a version's booster, from the cache if it was read before, and check it.

        Raises:
            ModelFileError: If its bytes are not those that were logged, or its golden scores differ.
        """
        from churn.inference.bundle import Golden, load_bundle

        folder = self._fetch(version)
        data = (folder / _BOOSTER_FILE).read_bytes()
        if hashlib.sha256(data).hexdigest() != version.sha256:
            shutil.rmtree(folder)
            raise ModelFileError(
                f"{version.uri} has a booster file whose sha256 is not the one that was logged; log the model again"
            )
        bundle = load_bundle(data, None, version.uri)
        bundle.require_golden(Golden.from_json((folder / _GOLDEN_FILE).read_bytes()))
        return bundle

    def reference(self, version: ModelVersion) -> Profile | None:
        """Return what the version's batches are compared with; ``None`` where it was logged without."""
        return (
            Profile.from_json((self._fetch(version) / _REFERENCE_FILE).read_bytes()) if version.has_reference else None
        )

    def attach(self, version: ModelVersion, path: str, text: str) -> None:
        """Put a small text file beside what the version's run logged; only the artifact store is written.

        Args:
            path: Such as ``scoring/2026-11-16/importance.svg``; what is there already is replaced.

        Raises:
            RegistryError: If that fails.
        """
        with _errors_translated(f"writing {path} of {version.uri}"):
            self._log_artifacts(version.variant, version.mlflow_run_id, {path: text})

    def log_live(self, variant: Variant, mlflow_run_id: str, points: Sequence[LivePoint]) -> None:
        """Add weeks' points to the time series ``live_…`` of a version's run; logging them again changes nothing.

        The step is the scored week, counted from 1970-01-05, the time the as-of date. Artifacts come first, since all
        metrics are written in one transaction: a week that has them has everything.

        Raises:
            RegistryError: If that fails.
        """
        with _errors_translated(f"logging {len(points)} weeks' performance to run {mlflow_run_id}"):
            texts = {
                f"performance/{point.scored_week}/{name}": text
                for point in points
                for name, text in point.artifacts.items()
            }
            self._log_artifacts(variant, mlflow_run_id, texts)
            metrics = [metric for point in points for metric in _metrics_of(point)]
            if metrics:
                self._client.log_batch(mlflow_run_id, metrics=metrics)

    def look_up_locations(self) -> None:
        """Ask once where the experiments of all variants keep their artifacts, which :meth:`log_live` has to know."""
        search = partial(self._client.search_experiments, ViewType.ALL)
        with _errors_translated("listing the experiments"):
            experiments = _pages(search, f"name LIKE '{Variant().experiment}%'")
            self._locations |= {one.name: one.artifact_location for one in experiments}

    def ensure_experiment(self, variant: Variant, artifact_location: str) -> tuple[str, str]:
        """Make sure that the variant's experiment exists and is active.

        Returns:
            Its id, and what was done: ``created``, ``restored`` or ``found``.
        """
        with _errors_translated(f"preparing experiment {variant.experiment!r}"):
            experiment = self._client.get_experiment_by_name(variant.experiment)
            if experiment is None:
                try:
                    return self._client.create_experiment(variant.experiment, artifact_location), "created"
                except MlflowException as error:  # another process was first
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
                    return self._client.get_experiment_by_name(variant.experiment).experiment_id, "found"
            if experiment.lifecycle_stage == "deleted":
                self._client.restore_experiment(experiment.experiment_id)
                return experiment.experiment_id, "restored"
            return experiment.experiment_id, "found"

    def artifact_location(self, experiment_id: str) -> str:
        """Return where an experiment keeps its artifacts."""
        with _errors_translated(f"reading experiment {experiment_id}"):
            location: str = self._client.get_experiment(experiment_id).artifact_location
        return location

    def log(
        self, variant: Variant, experiment_id: str, logged: LoggedRun, alias: str | None, *, or_champion: bool = True
    ) -> ModelVersion:
        """Log a run with its model, and register the model as the variant's next version.

        The run ends ``FAILED`` when anything goes wrong on the way, and no version is registered.

        Args:
            alias: Given to the new version.
            or_champion: Whether ``alias`` ``None`` gives it ``champion`` when the variant has none.
        """
        with _errors_translated(f"logging a model of {variant}"):
            registered = self._registered(variant)
            tags = _variant_tags(variant) | dict(logged.tags)
            run = self._client.create_run(experiment_id, run_name=logged.name or f"log-{variant.key}", tags=tags)
            mlflow_run_id = run.info.run_id
            try:
                model_id, sha256 = self._log_model(experiment_id, mlflow_run_id, logged)
                self._log_values(mlflow_run_id, logged)
                self._log_artifacts(variant, mlflow_run_id, logged.artifacts)
                if registered is None:
                    self._register(variant)
                version = self._client.create_model_version(
                    variant.registered_model,
                    source=f"models:/{model_id}",
                    run_id=mlflow_run_id,
                    model_id=model_id,
                    tags=tags | {_SHA256_TAG: sha256, _REFERENCE_TAG: str(logged.reference is not None).lower()},
                )
            except BaseException:
                with contextlib.suppress(MlflowException, requests.RequestException):
                    self._client.set_terminated(mlflow_run_id, "FAILED")
                raise
            self._client.set_terminated(mlflow_run_id)
            is_first = registered is None or CHAMPION not in registered.aliases
            given = alias or (CHAMPION if or_champion and is_first else None)
            if given is not None:
                self._client.set_registered_model_alias(variant.registered_model, given, version.version)
        number = int(version.version)
        return ModelVersion(variant, variant.registered_model, number, given, model_id, mlflow_run_id, sha256)

    def set_aliases(self, variant: Variant, versions: Mapping[str, int | None]) -> None:
        """Move a variant's aliases, in the order given; ``None`` takes one away. Each move is atomic, all are not."""
        name = variant.registered_model
        with _errors_translated(f"moving the aliases of {name!r}"):
            for alias, version in versions.items():
                if version is None:
                    self._client.delete_registered_model_alias(name, alias)
                else:
                    self._client.set_registered_model_alias(name, alias, str(version))

    def tags_of(self, variant: Variant, version: int) -> dict[str, str]:
        """Return what was written down of a version when it was logged."""
        name = variant.registered_model
        with _errors_translated(f"reading version {version} of {name!r}"):
            return dict(self._client.get_model_version(name, str(version)).tags)

    def version_tags(self) -> dict[tuple[Variant, int], Mapping[str, str]]:
        """Return :meth:`tags_of` every version of every variant."""
        with _errors_translated("listing the model versions"):
            versions = _pages(self._client.search_model_versions, f"name LIKE '{_MODEL_NAME_PREFIX}%'")
            return {
                (variant, int(version.version)): version.tags
                for version in versions
                if (variant := _variant_of(version)) is not None
            }

    def training_dates(self) -> dict[tuple[Variant, int], date]:
        """Return when each version was trained, as far as it was written down, by variant and version."""
        days = {key: tags.get("training_date", "") for key, tags in self.version_tags().items()}
        return {key: date.fromisoformat(day) for key, day in days.items() if _DAY.fullmatch(day)}

    def require_free_or_own(self, variant: Variant) -> None:
        """Raise ``RegistryError`` when another variant holds this one's model name."""
        self._registered(variant)

    def _registered(self, variant: Variant) -> Any:
        """Return the variant's registered model, or ``None``."""
        name = variant.registered_model
        try:
            with _errors_translated(f"reading {name!r}"):
                model = self._client.get_registered_model(name)
        except _AbsentError:
            return None
        holder = _variant_of(model)
        if holder != variant:
            raise RegistryError(
                f"registered model {name!r} belongs to {holder or 'something without our tags'}, and {variant} would "
                f"have the same name; rename the geography or company of one of them"
            )
        return model

    def _register(self, variant: Variant) -> None:
        try:
            self._client.create_registered_model(variant.registered_model, tags=_variant_tags(variant))
        except MlflowException as error:  # another process was first: see whose it is
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            self.require_free_or_own(variant)

    def _describe(self, variant: Variant, found: Any, alias: str | None) -> ModelVersion:
        model_id = str(found.source).removeprefix("models:/")
        if _SHA256_TAG not in found.tags or model_id == found.source:
            raise RegistryError(
                f"version {found.version} of {found.name!r} was not logged by experiment_tracking/log_model.py (no "
                f"{_SHA256_TAG} tag), so its file cannot be checked; log it again with that script"
            )
        sha256 = found.tags[_SHA256_TAG]
        has_reference = found.tags.get(_REFERENCE_TAG) == "true"
        return ModelVersion(
            variant, found.name, int(found.version), alias, model_id, found.run_id, sha256, has_reference
        )

    def _fetch(self, version: ModelVersion) -> Path:
        folder = self._cache / version.model_id
        if folder.is_dir():
            return folder
        self._cache.mkdir(parents=True, exist_ok=True)
        with _errors_translated(f"fetching {version.uri}"), tempfile.TemporaryDirectory(dir=self._cache) as partial:
            location = self._client.get_logged_model(version.model_id).artifact_location
            repository = get_artifact_repository(location)
            for name in (_BOOSTER_FILE, _GOLDEN_FILE, *([_REFERENCE_FILE] if version.has_reference else [])):
                repository.download_artifacts(name, partial)
            with contextlib.suppress(OSError):  # another process put the same files there first
                Path(partial).rename(folder)
                Path(partial).mkdir()
        return folder

    def _log_model(self, experiment_id: str, mlflow_run_id: str, logged: LoggedRun) -> tuple[str, str]:
        import xgboost as xgb
        from mlflow.xgboost import save_model

        model = self._client.create_logged_model(experiment_id, name="model", source_run_id=mlflow_run_id)
        scores = pd.Series(logged.golden.scores[:5], name="churn_probability")
        card = Model(
            artifact_path=model.artifact_location,
            run_id=mlflow_run_id,
            model_uuid=model.model_id,
            model_id=model.model_id,
        )
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            save_model(
                logged.bundle.booster,
                str(folder),
                mlflow_model=card,
                signature=infer_signature(logged.sample, scores),
                input_example=logged.sample.head(5),
                pip_requirements=[f"xgboost=={xgb.__version__}", f"mlflow=={mlflow.__version__}"],
                model_format="ubj",
            )
            (folder / _GOLDEN_FILE).write_text(logged.golden.to_json())
            if logged.reference is not None:
                (folder / _REFERENCE_FILE).write_text(logged.reference.to_json())
            sha256 = hashlib.sha256((folder / _BOOSTER_FILE).read_bytes()).hexdigest()
            self._client.log_model_artifacts(model.model_id, str(folder))
        self._client.finalize_logged_model(model.model_id, "READY")
        self._client.log_outputs(mlflow_run_id, models=[LoggedModelOutput(model.model_id, 0)])
        return model.model_id, sha256

    def _log_values(self, mlflow_run_id: str, logged: LoggedRun) -> None:
        now = int(datetime.now(UTC).timestamp() * 1000)
        self._client.log_batch(
            mlflow_run_id,
            metrics=[Metric(name, value, now, 0) for name, value in logged.metrics.items()],
            params=[Param(name, str(value)) for name, value in logged.parameters.items()],
        )
        if logged.dataset is not None:
            self._client.log_inputs(mlflow_run_id, datasets=[_dataset_input(logged.dataset)])

    def _location(self, variant: Variant) -> str | None:
        """Say where the variant's experiment keeps its artifacts; ``None`` if somebody gave it another name."""
        if variant.experiment not in self._locations:
            experiment = self._client.get_experiment_by_name(variant.experiment)
            if experiment is None:
                return None
            self._locations[variant.experiment] = experiment.artifact_location
        return self._locations[variant.experiment]

    def _log_artifacts(self, variant: Variant, mlflow_run_id: str, artifacts: Mapping[str, str | bytes]) -> None:
        """Put texts and pictures by their path among a run's artifacts, at the place that MLflow gives them.

        MLflow itself would read all that the run ever logged to find that place; the experiment tells it as well.
        """
        if not artifacts:
            return
        location = self._location(variant)
        with tempfile.TemporaryDirectory() as scratch:
            for name, content in artifacts.items():
                path = Path(scratch) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.encode() if isinstance(content, str) else content)
            if location is None:
                self._client.log_artifacts(mlflow_run_id, scratch)
            else:
                place = append_to_uri_path(location, mlflow_run_id, "artifacts")
                get_artifact_repository(place).log_artifacts(scratch)


def _pages(search: Callable[..., Any], wanted: str) -> Iterator[Any]:
    """Yield all that one of MLflow's searches finds, page by page."""
    token: str | None = None
    while True:
        page = search(filter_string=wanted, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _dataset_input(dataset: LoggedDataset) -> DatasetInput:
    described = Dataset(
        name=dataset.name,
        digest=dataset.sha256[:_DIGEST_LENGTH],
        source_type="churn",
        source=json.dumps({"uri": dataset.source, "sha256": dataset.sha256}),
        profile=json.dumps(dict(dataset.profile)),
    )
    return DatasetInput(described, [InputTag("mlflow.data.context", "training")])


class _AbsentError(RegistryError):
    """MLflow has no such thing; raised and caught in this module."""


@contextlib.contextmanager
def _errors_translated(doing: str) -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        said = (error.message.splitlines() or [error.error_code])[0]  # a statement and its values follow
        if error.error_code in _ABSENT:
            raise _AbsentError(f"MLflow failed at {doing}: {said}") from error
        if error.error_code == "PERMISSION_DENIED":
            raise RegistryError(f"MLflow denied {doing}: {said}") from error
        if isinstance(error.__cause__, sqlalchemy.exc.OperationalError) or "API request to" in said:
            raise _unavailable(doing, error) from error
        raise RegistryError(f"MLflow failed at {doing}: {said}") from error
    except (Boto3Error, aws.BotoCoreError, aws.ClientError) as error:  # first: some are requests' errors as well
        raise _meaning_of_artifact_error(doing, error) from error
    except (requests.RequestException, sqlalchemy.exc.OperationalError) as error:
        raise _unavailable(doing, error) from error


def _meaning_of_artifact_error(doing: str, error: Exception) -> ChurnError:
    """Tell what S3's answer to MLflow means; a failed upload has it only as the context of its error."""
    cause = error.__context__ if isinstance(error, Boto3Error) else error
    what = f"MLflow's artifacts in S3 failed at {doing}"
    if isinstance(cause, (aws.ConnectionError, aws.HTTPClientError, aws.IncompleteReadError)):
        return RegistryUnavailableError(f"{what} ({type(cause).__name__}); check the network, and that S3 runs")
    if not isinstance(cause, aws.ClientError):
        return RegistryError(f"{what}: {error}; check the AWS credentials")
    code = cause.response.get("Error", {}).get("Code", "")
    status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status in (401, 403):
        return AccessDeniedError(f"{what}: access was denied ({code}); the role needs s3:GetObject and s3:PutObject")
    if status >= 500 or status == 429:
        return RegistryUnavailableError(f"{what}: it kept failing ({code}); try again")
    return RegistryError(f"{what} ({code}); bring the bucket and its objects back, or log the model again")


def _set_process_uri(uri: str) -> None:
    """Tell MLflow the URI that ``models:/`` sources are resolved through, whatever a client's own is.

    MLflow exports it to child processes too; a URI with a password, and perhaps a lesser role, is not theirs to have.
    """
    exported = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    if exported is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = exported


def _unavailable(doing: str, error: Exception) -> RegistryUnavailableError:
    return RegistryUnavailableError(
        f"the MLflow registry did not answer while {doing} ({type(error).__name__}); "
        f"check MLFLOW_TRACKING_URI or MLFLOW_DB_HOST, and that it runs"
    )


def _variant_tags(variant: Variant) -> dict[str, str]:
    parts = {GEOGRAPHY_TAG: variant.geography, COMPANY_TAG: variant.company}
    return {tag: value for tag, value in parts.items() if value is not None}


def _metrics_of(point: LivePoint) -> list[Metric]:
    step = (point.scored_week - _FIRST_MONDAY).days // 7
    at = int(datetime.combine(point.as_of, time.min, UTC).timestamp() * 1000)
    values = {f"live_{name}": value for name, value in point.metrics.items()} | {"live_n_matured": point.n_matured}
    return [Metric(name, float(value), at, step) for name, value in values.items()]


def _aliases(model: Any) -> dict[str, int]:
    return {alias: int(version) for alias, version in model.aliases.items()}


def _variant_of(model: Any) -> Variant | None:
    """Read a registered model's variant from its tags; ``None`` for a model that is none of ours."""
    try:
        variant = Variant(model.tags.get(GEOGRAPHY_TAG), model.tags.get(COMPANY_TAG))
    except UsageError:
        return None
    return variant if variant.registered_model == model.name else None
