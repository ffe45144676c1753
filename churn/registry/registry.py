"""MLflow's registry: lists the registered variants, resolves aliases to versions, and logs new versions.

A variant exists when a registered model has its tags. A version is resolved once and then named by number. Boosters are
cached on disk (:mod:`churn.registry.cache`), since a version's files never change.
"""

import hashlib
import logging
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import requests
import tenacity
from mlflow.entities import Experiment, LoggedModelOutput, LoggedModelStatus, Metric, Param
from mlflow.entities.model_registry import ModelVersion as MlflowVersion
from mlflow.entities.model_registry import ModelVersionTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature, infer_signature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.types.schema import AnyType, ColSpec, Schema
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from churn.concurrency import in_threads
from churn.errors import AbsentError, ModelFileError, RegistryError, UnregisteredError
from churn.monitoring.profiles import Profile
from churn.registry import tags
from churn.registry.cache import ArrayCache
from churn.registry.errors import errors_translated
from churn.registry.records import LoggedRun, OpenModel, live_metrics
from churn.variants import Variant, nearest
from churn.versions import CHALLENGER, CHAMPION, AliasMove, ModelVersion

logger = logging.getLogger(__name__)
# A uv environment has no pip, and MLflow warns about that for every model.
logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)

_BOOSTER_FILE, _GOLDEN_FILE, _REFERENCE_FILE = "model.ubj", "golden_rows.json", "reference_profile.json"
_DESCRIPTION_FILE = "description.json"  # in the cache only
_Aliases = Mapping[Variant, Mapping[str, int]]
_Versions = Mapping[tuple[Variant, int], ModelVersion]
_NONE: _Versions = MappingProxyType({})
_MODEL_NAME_PREFIX = Variant().registered_model
_MAX_CACHED_BYTES = 4 << 30
_LATELY_S = 30.0
_EXISTS = "RESOURCE_ALREADY_EXISTS"
_UPLOADS_AT_ONCE = 4  # a model has nine files
_AGAIN = "; log the model again"
_LISTED_FROM = 20  # variants with the same version number; fewer are queried one by one


class Registry:
    """The MLflow tracking server and model registry of one deployment."""

    def __init__(
        self,
        tracking_uri: str,
        cache: Path,
        pending_moves: Callable[[], Mapping[Variant, AliasMove]] = dict,
        lock: Callable[[Variant], AbstractContextManager[bool]] = lambda _: nullcontext(enter_result=False),
    ) -> None:
        """Open the registry.

        Args:
            tracking_uri: Server or database; it may contain a password, and is never logged.
            cache: Folder for the files of models; created when needed.
            pending_moves: Returns the moves of aliases that were decided and are not complete in MLflow; whoever asks
                for aliases gets them as decided.
            lock: Locks a variant's registration, if that is possible; says whether it is.
        """
        _set_process_uri(tracking_uri)
        with errors_translated("opening the registry"):
            self.client = mlflow.MlflowClient(tracking_uri, tracking_uri)
        self._cache = ArrayCache(cache, _MAX_CACHED_BYTES)
        self._pending_moves, self._lock = pending_moves, lock
        self._listing_lock, self._listed_at = threading.Lock(), -_LATELY_S
        self._listed: _Aliases = {}

    def variants(self) -> list[Variant]:
        """Return the registered variants, in order of their keys."""
        return sorted(self.aliases(), key=lambda variant: variant.key)

    def aliases(self) -> dict[Variant, Mapping[str, int]]:
        """Return the version that each alias names now, for every registered variant."""
        with errors_translated("listing the registered models"):
            models = pages(self.client.search_registered_models, f"name LIKE '{_MODEL_NAME_PREFIX}%'")
            listed = {variant: _aliases(model) for model in models if (variant := tags.variant_of(model)) is not None}
        # Moves are asked for last: one that was completed meanwhile no longer fits, or changes nothing.
        moves = {variant: move for variant, move in self._pending_moves().items() if variant in listed}
        return listed | {variant: move.applied(listed[variant]) for variant, move in moves.items()}

    def aliases_lately(self, variant: Variant) -> Mapping[str, int]:
        """Return a variant's aliases as they were at most half a minute ago: one listing serves many variants."""
        with self._listing_lock:
            if time.monotonic() - self._listed_at > _LATELY_S:
                self._listed, self._listed_at = self.aliases(), time.monotonic()
            return self._listed.get(variant, {})

    def aliases_of(self, variant: Variant) -> Mapping[str, int]:
        """Return the version that each of a variant's aliases names now; none if it is not registered."""
        aliases = self.aliases_in_mlflow(variant)
        move = self._pending_moves().get(variant) if aliases else None
        return aliases if move is None else move.applied(aliases)

    def aliases_in_mlflow(self, variant: Variant) -> Mapping[str, int]:
        """Return a variant's aliases as MLflow has them, whatever move is pending."""
        model = self._registered(variant)
        return {} if model is None else _aliases(model)

    def resolve(
        self, variant: Variant, alias: str = CHAMPION, listed: _Aliases | None = None, versions: _Versions = _NONE
    ) -> ModelVersion:
        """Return the version that ``alias`` names.

        For many look-ups at one moment, ``listed`` is the result of :meth:`aliases`, and ``versions`` that of
        :meth:`look_up_versions`; what they lack is queried. Raises ``UnregisteredError`` if the variant is not
        registered, ``RegistryError`` if it has no such alias, or another variant has its name.
        """
        name = variant.registered_model
        aliases = self.aliases_of(variant) if listed is None else listed.get(variant, {})
        if not aliases and self._registered(variant) is None:
            problem = f"variant {variant} is not registered (no model {name!r}){nearest(variant, self.variants())}"
            raise UnregisteredError(f"{problem}; log one with experiment_tracking/log_model.py")
        if alias not in aliases:
            others = ", ".join(sorted(aliases)) or "none"
            remedy = f"set one with experiment_tracking/log_model.py --alias {alias}"
            raise RegistryError(f"registered model {name!r} has no alias {alias!r} (it has: {others}); {remedy}")
        if (known := versions.get((variant, aliases[alias]))) is not None:
            return replace(known, alias=alias)
        with errors_translated(f"reading {name!r}"):
            found = self.client.get_model_version(name, str(aliases[alias]))
        return self._describe(variant, found, alias)

    def look_up_versions(self, listed: _Aliases) -> _Versions:
        """Return the versions that champions and challengers are, in a query for each version number that many have."""
        wanted = {
            (variant.registered_model, aliases[alias]): variant
            for variant, aliases in listed.items()
            for alias in {CHAMPION, CHALLENGER} & aliases.keys()
        }
        numbers = Counter(number for _, number in wanted)
        versions: dict[tuple[Variant, int], ModelVersion] = {}
        with errors_translated("listing the model versions"):
            for number in (number for number, n in numbers.items() if n >= _LISTED_FROM):
                condition = f"name LIKE '{_MODEL_NAME_PREFIX}%' AND version_number = {number}"
                for found in pages(self.client.search_model_versions, condition):
                    if (variant := wanted.get((found.name, number))) is not None:
                        with suppress(RegistryError):  # raised again when that variant is scored
                            versions[variant, number] = self._describe(variant, found, None)
        return versions

    def open(
        self, variant: Variant, alias: str = CHAMPION, listed: _Aliases | None = None, versions: _Versions = _NONE
    ) -> OpenModel:
        """Resolve a version (see :meth:`resolve`) and load its booster and reference, from the cache if possible.

        Raises ``ModelFileError`` if the booster differs from the one that was logged, or its golden scores differ.
        """
        version = self.resolve(variant, alias, listed, versions)
        try:
            return self._open(version)
        except ModelFileError as error:
            command = f"uv run python experiment_tracking/log_model.py --variant {variant} --alias {alias}"
            raise ModelFileError(f"{str(error).removesuffix(_AGAIN)}{_AGAIN}: {command}") from error

    def _open(self, version: ModelVersion) -> OpenModel:
        from churn.inference.bundle import Golden, describe_bundle, load_logged, reopen_bundle

        cached = self._cached(version)
        files = cached or self._fetch(version)
        data, golden = files[_BOOSTER_FILE], Golden.from_json(files[_GOLDEN_FILE])
        bundle = reopen_bundle(data, golden, cached[_DESCRIPTION_FILE], version.uri) if cached else None
        reference = Profile.from_json(files[_REFERENCE_FILE]) if version.has_reference else None
        if bundle is None:
            bundle = load_logged(data, golden, version.uri)
            known = {**files, _DESCRIPTION_FILE: describe_bundle(bundle)}
            self._cache.store(_key(version), {name: np.frombuffer(one, np.uint8) for name, one in known.items()})
        return OpenModel(version, bundle, reference)

    def log_live(self, mlflow_run_id: str, points: Sequence[tuple[date, date, Mapping[str, float]]]) -> None:
        """Log weeks' realized performance to a version's run, at once; safe to repeat.

        Each point is a scored week, the day of the metrics' timestamp, and the values without the prefix ``live_``.
        """
        with errors_translated(f"logging {len(points)} weeks' performance to run {mlflow_run_id}"):
            self.client.log_batch(mlflow_run_id, metrics=[one for point in points for one in live_metrics(*point)])

    def ensure_experiment(self, variant: Variant, artifact_location: str) -> tuple[Experiment, str]:
        """Ensure that the variant's experiment exists and is active; returns it and ``created|restored|found``."""
        with errors_translated(f"preparing experiment {variant.experiment!r}"):
            experiment, done = self.client.get_experiment_by_name(variant.experiment), "found"
            about = f"Models of variant {variant}, and their measured performance by week (metrics live_…)."
            wanted = {MLFLOW_RUN_NOTE: about, **tags.KIND_OF_EXPERIMENT}
            if experiment is None:
                with _ignored(_EXISTS):
                    self.client.create_experiment(variant.experiment, artifact_location, wanted)
                    done = "created"
                experiment = self.client.get_experiment_by_name(variant.experiment)
            elif experiment.lifecycle_stage == "deleted":
                self.client.restore_experiment(experiment.experiment_id)
                done = "restored"
            for name in wanted.keys() - experiment.tags.keys():  # made by an earlier release, or by another process
                self.client.set_experiment_tag(experiment.experiment_id, name, wanted[name])
            return experiment, done

    def log(
        self,
        variant: Variant,
        location: str,
        logged: LoggedRun,
        alias: str | None = None,
        *,
        or_champion: bool = True,
        once: bool = False,
    ) -> ModelVersion:
        """Log a run with its model, register the model as the variant's next version, and set the alias.

        On any error the run ends ``FAILED``, and no version is registered. A process that was killed leaves a run that
        is ``RUNNING``: the next call for the variant ends it, deletes its unfinished model and, if its version is of
        the same files, sets that version's alias in place of logging another. A repeat, of the same files by the same
        code, returns the version that has the alias already, or any without ``alias``, if its booster is still whole.
        Raises ``RegistryError`` if MLflow fails, or another variant has the variant's model name.

        Args:
            location: Artifact location of the variant's experiment, if the experiment has to be created.
            alias: Alias of the new version.
            or_champion: Whether the new version becomes ``champion`` if ``alias`` is ``None`` and the variant has none.
            once: Return the version that has the alias, or is champion, if there is one. Of two processes at once that
                could not lock, one keeps its version.
        """
        with self._lock(variant) as is_locked:
            adopted = logged.tags.get(tags.ADOPTED, "").partition(",")[0]
            if adopted.startswith(f"models:/{variant.registered_model}/"):
                self._claim(variant)
            registered = self._registered(variant)
            aliases = {} if registered is None else registered.aliases
            if once and (known := [name for name in (alias, CHAMPION) if name is not None and name in aliases]):
                return self.resolve(variant, known[0])
            # Where the alias names the version that is adopted, which cannot be scored, nobody is champion yet.
            is_vacant = CHAMPION not in aliases or adopted == f"models:/{variant.registered_model}/{aliases[CHAMPION]}"
            given = alias or (CHAMPION if or_champion and is_vacant else None)
            experiment, done = self.ensure_experiment(variant, location)
            with errors_translated(f"logging a model of {variant}"):
                ended = self._end_killed_runs(experiment.experiment_id) if is_locked and done != "created" else set()
                alike = self._alike(variant, logged) if registered is not None else []
                found = [one for one in alike if adopted or CHAMPION not in aliases or one.run_id in ended]
                files = alike if tags.DATA_SHA256 not in logged.tags else ()  # a training that went through is another
                repeats = [one for one in files if given is None or aliases.get(given) == int(one.version)]
                if not found and repeats and self._is_whole(variant, repeats[0]):
                    return replace(self._describe(variant, repeats[0], given), is_repeat=True)
                version = found[0] if found else self._log(variant, experiment.experiment_id, logged, registered)
                keeps_one = (once or adopted) and not is_locked
                if keeps_one and (first := self._alike(variant, logged)[0]).version != version.version:
                    self.client.delete_model_version(variant.registered_model, version.version)
                    version = first
                if given is not None:  # last: a variant that has a champion is registered to the end
                    self.client.set_registered_model_alias(variant.registered_model, given, version.version)
            return self._describe(variant, version, given)

    def _end_killed_runs(self, experiment_id: str) -> set[str]:
        """End the runs that killed processes left, and delete their unfinished models; the lock is ours."""
        ours = f"attributes.status = 'RUNNING' AND tags.`{tags.CODE_VERSION}` LIKE '%'"
        runs = {run.info.run_id for run in self.client.search_runs([experiment_id], ours)}
        for mlflow_run_id in runs:
            for model in self.client.search_logged_models([experiment_id], f"source_run_id = '{mlflow_run_id}'"):
                if model.status != LoggedModelStatus.READY:
                    self.client.delete_logged_model(model.model_id)
            self.client.set_terminated(mlflow_run_id, "KILLED")
        return runs

    def _alike(self, variant: Variant, logged: LoggedRun) -> list[Any]:
        """Return the versions of the same files or source, or trained alike, the oldest first."""
        trained = [name for name, value in logged.tags.items() if value] if tags.DATA_SHA256 in logged.tags else None
        names = (tags.ADOPTED,) if tags.ADOPTED in logged.tags else trained or tags.FILES
        files = {name: logged.tags.get(name) for name in names}
        versions = self.client.search_model_versions(f"name = '{variant.registered_model}'")
        alike = [one for one in versions if files == {name: one.tags.get(name) for name in files}]
        return sorted(alike, key=lambda one: int(one.version)) if all(files.values()) else []

    def _is_whole(self, variant: Variant, version: Any) -> bool:
        with suppress(RegistryError, ModelFileError):
            return bool(self._fetch(self._describe(variant, version, None)))
        return False

    def _log(self, variant: Variant, experiment_id: str, logged: LoggedRun, registered: Any) -> Any:
        variant_tags = tags.tags_of_variant(variant)
        run_tags = variant_tags | dict(logged.tags)
        noted = run_tags | {MLFLOW_RUN_NOTE: logged.about}
        run = self.client.create_run(experiment_id, run_name=logged.name or f"log-{variant.key}", tags=noted)
        mlflow_run_id = run.info.run_id
        try:
            model_id, sha256 = self._log_model(variant, experiment_id, mlflow_run_id, logged)
            has_reference = str(logged.reference is not None).lower()
            self._log_values(mlflow_run_id, logged)
            self._log_artifacts(mlflow_run_id, logged.artifacts)
            if registered is None:
                self._register(variant, variant_tags)
            version_tags = run_tags | variant_tags | {tags.MODEL_SHA256: sha256, tags.HAS_REFERENCE: has_reference}
            of, about = (variant.registered_model, f"models:/{model_id}", mlflow_run_id, version_tags), logged.about
            version = self.client.create_model_version(*of, description=about, model_id=model_id)
        except BaseException:
            with suppress(MlflowException, requests.RequestException):
                self.client.set_terminated(mlflow_run_id, "FAILED")
            raise
        self.client.set_terminated(mlflow_run_id)
        # The answer to a registration lacks the tags.
        known = [ModelVersionTag(name, value) for name, value in version_tags.items()]
        return MlflowVersion.from_dictionary({**dict(version), "tags": known})

    def _register(self, variant: Variant, variant_tags: dict[str, str]) -> None:
        about = f"Weekly churn scores of variant {variant}; the version with the alias champion scores."
        with _ignored(_EXISTS):
            self.client.create_registered_model(variant.registered_model, variant_tags, about)
            return
        self._registered(variant)  # another process was first; perhaps it is another variant's

    def set_aliases(self, variant: Variant, versions: Mapping[str, int | None]) -> None:
        """Move a variant's aliases in the given order; ``None`` deletes one. Each move is atomic, not all together."""
        name = variant.registered_model
        with errors_translated(f"moving the aliases of {name!r}"):
            for alias, version in versions.items():
                if version is None:
                    self.client.delete_registered_model_alias(name, alias)
                else:
                    self.client.set_registered_model_alias(name, alias, str(version))

    def _claim(self, variant: Variant) -> None:
        """Set the variant's tags on the registered model of its name, if that has no tags of a variant."""
        with errors_translated(f"tagging {variant.registered_model!r}"):
            model = self.client.get_registered_model(variant.registered_model)
            if not {tags.GEOGRAPHY, tags.COMPANY} & model.tags.keys():
                for name, value in tags.tags_of_variant(variant).items():
                    self.client.set_registered_model_tag(model.name, name, value)

    def tags_of(self, variant: Variant, version: int) -> dict[str, str]:
        """Return the tags of a version, with the day of its registration if it has no such tag."""
        name = variant.registered_model
        with errors_translated(f"reading version {version} of {name!r}"):
            return _tags(self.client.get_model_version(name, str(version)))

    def version_tags(self) -> dict[tuple[Variant, int], Mapping[str, str]]:
        """Return the tags of every version of every variant, as :meth:`tags_of` does."""
        return {(variant, int(one.version)): _tags(one) for variant, one in self._versions("")}

    def versions_before(self, before: datetime) -> list[tuple[Variant, int]]:
        """Return the versions of ours that were registered before a time and that no alias names."""
        ours = self._versions(f" AND tags.`{tags.MODEL_SHA256}` LIKE '%'")
        old = [(of, int(one.version)) for of, one in ours if one.creation_timestamp < before.timestamp() * 1000]
        listed = self.aliases() if old else {}
        return [(variant, version) for variant, version in old if version not in listed.get(variant, {}).values()]

    def _versions(self, condition: str) -> list[tuple[Variant, Any]]:
        with errors_translated("listing the model versions"):
            found = pages(self.client.search_model_versions, f"name LIKE '{_MODEL_NAME_PREFIX}%'{condition}")
            return [(variant, one) for one in found if (variant := tags.variant_of(one)) is not None]

    def delete_version(self, variant: Variant, version: int) -> bool:
        """Delete a version with its model, its run and their files; returns whether no alias or pending move names it.

        The variant's lock is the caller's. The version goes last, so that a repeat completes what was killed.
        """
        if variant in self._pending_moves() or version in self.aliases_in_mlflow(variant).values():
            return False
        with errors_translated(f"deleting version {version} of {variant.registered_model!r}"):
            old = self._describe(variant, self.client.get_model_version(variant.registered_model, str(version)), None)
            with _ignored("RESOURCE_DOES_NOT_EXIST"):
                get_artifact_repository(self.client.get_logged_model(old.model_id).artifact_location).delete_artifacts()
                self.client.delete_logged_model(old.model_id)
            with _ignored("RESOURCE_DOES_NOT_EXIST"):
                get_artifact_repository(self.client.get_run(old.mlflow_run_id).info.artifact_uri).delete_artifacts()
                self.client.delete_run(old.mlflow_run_id)
            self.client.delete_model_version(variant.registered_model, str(version))
        return True

    def _registered(self, variant: Variant) -> Any:
        """Return the variant's registered model or ``None``; raises if the model of that name is another variant's."""
        name = variant.registered_model
        try:
            with errors_translated(f"reading {name!r}"):
                model = self.client.get_registered_model(name)
        except AbsentError:
            return None
        owner = tags.variant_of(model)
        if owner != variant:
            remedy = "rename the geography or company of one" if owner else f"log_model.py --adopt {name} adopts it"
            problem = f"registered model {name!r} belongs to {owner or 'a model without our tags'}"
            raise RegistryError(f"{problem}, and {variant} would have the same name; {remedy}")
        return model

    def _describe(self, variant: Variant, found: Any, alias: str | None) -> ModelVersion:
        model_id = str(found.source).removeprefix("models:/")
        if tags.MODEL_SHA256 not in found.tags or model_id == found.source:
            remedy = f"adopt it with experiment_tracking/log_model.py --adopt {found.name}/{found.version}"
            lacks = f"has no tag {tags.MODEL_SHA256}, so its file cannot be checked"
            raise RegistryError(f"version {found.version} of {found.name!r} {lacks}; {remedy}")
        ids = found.name, int(found.version), alias, model_id, found.run_id, found.tags[tags.MODEL_SHA256]
        has_reference, columns = found.tags.get(tags.HAS_REFERENCE) == "true", found.tags.get(tags.COLUMNS)
        # Of those trained before the tag, the gate's tells it: training calibrates every model.
        is_calibrated = found.tags.get(tags.IS_CALIBRATED) == "true" or tags.GATE in found.tags
        return ModelVersion(variant, *ids, has_reference, is_calibrated, columns)

    def _cached(self, version: ModelVersion) -> dict[str, bytes] | None:
        """Return a version's files by name, if the cache has those that were logged."""
        files = {name: one.tobytes() for name, one in (self._cache.load(_key(version)) or {}).items()}
        if not files.keys() >= {*_names(version), _DESCRIPTION_FILE}:
            return None
        return files if hashlib.sha256(files[_BOOSTER_FILE]).hexdigest() == version.sha256 else None

    def _fetch(self, version: ModelVersion) -> dict[str, bytes]:
        with errors_translated(f"fetching {version.uri}"), tempfile.TemporaryDirectory() as folder:
            repository = get_artifact_repository(self.client.get_logged_model(version.model_id).artifact_location)
            files = {name: Path(repository.download_artifacts(name, folder)).read_bytes() for name in _names(version)}
        if hashlib.sha256(files[_BOOSTER_FILE]).hexdigest() != version.sha256:
            raise ModelFileError(f"{version.uri} has a booster of another sha256 than was logged{_AGAIN}")
        return files

    def _log_model(self, variant: Variant, experiment: str, mlflow_run_id: str, logged: LoggedRun) -> tuple[str, str]:
        import xgboost as xgb
        from mlflow.xgboost import save_model

        model = self.client.create_logged_model(experiment, variant.registered_model, source_run_id=mlflow_run_id)
        model_id, location = model.model_id, model.artifact_location
        scores = pd.Series(logged.golden.scores[:5], name="churn_probability")
        card = Model(artifact_path=location, run_id=mlflow_run_id, model_uuid=model_id, model_id=model_id)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            needed = [f"xgboost=={xgb.__version__}", f"mlflow=={mlflow.__version__}"]
            options = {"input_example": logged.sample.head(5), "pip_requirements": needed, "model_format": "ubj"}
            signature = _signature(logged.sample, scores)
            save_model(logged.bundle.booster, str(folder), mlflow_model=card, signature=signature, **options)
            (folder / _GOLDEN_FILE).write_text(logged.golden.to_json())
            if logged.reference is not None:
                (folder / _REFERENCE_FILE).write_text(logged.reference.to_json())
            sha256 = hashlib.sha256((folder / _BOOSTER_FILE).read_bytes()).hexdigest()
            files = [str(path) for path in folder.iterdir()]  # MLflow uploads one file after the other
            list(in_threads(get_artifact_repository(location).log_artifact, files, _UPLOADS_AT_ONCE))
        self.client.finalize_logged_model(model_id, "READY")
        self.client.log_outputs(mlflow_run_id, models=[LoggedModelOutput(model_id, 0)])
        return model_id, sha256

    def _log_values(self, mlflow_run_id: str, logged: LoggedRun) -> None:
        now = int(datetime.now(UTC).timestamp() * 1000)
        metrics = [Metric(name, value, now, 0) for name, value in logged.metrics.items()]
        parameters = [Param(name, str(value)) for name, value in logged.parameters.items()]
        self.client.log_batch(mlflow_run_id, metrics, parameters)
        if logged.dataset is not None:
            # Of two registrations at once, one finds that the other has just added the same dataset.
            is_conflict = tenacity.retry_if_exception(lambda error: getattr(error, "error_code", "") == "BAD_REQUEST")
            retrying = tenacity.Retrying(retry=is_conflict, stop=tenacity.stop_after_attempt(2), reraise=True)
            retrying(self.client.log_inputs, mlflow_run_id, datasets=[logged.dataset])

    def _log_artifacts(self, mlflow_run_id: str, artifacts: Mapping[str, str | bytes]) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            for name, content in artifacts.items():
                path = Path(scratch) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.encode() if isinstance(content, str) else content)
            if artifacts:
                self.client.log_artifacts(mlflow_run_id, scratch)


@contextmanager
def _ignored(code: str) -> Iterator[None]:
    """Ignore an error of MLflow, such as that another process created or deleted the same object first."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != code:
            raise


def pages(search: Callable[..., Any], condition: str) -> Iterator[Any]:
    """Yield all results of one of MLflow's searches, page by page."""
    page = search(filter_string=condition, max_results=1000)
    yield from page
    while page.token:
        page = search(filter_string=condition, max_results=1000, page_token=page.token)
        yield from page


def _set_process_uri(uri: str) -> None:
    """Set the URI that MLflow resolves ``models:/`` sources with, in addition to the client's.

    MLflow exports it to child processes, too; that is undone, as it may contain a password or a restricted role.
    """
    exported = {name: value for name, value in os.environ.items() if name == "MLFLOW_TRACKING_URI"}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ.update(exported)


def _key(version: ModelVersion) -> str:
    return hashlib.sha256(version.model_id.encode()).hexdigest()


def _names(version: ModelVersion) -> set[str]:
    return {_BOOSTER_FILE, _GOLDEN_FILE} | ({_REFERENCE_FILE} if version.has_reference else set())


def _tags(version: Any) -> dict[str, str]:
    registered = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).date()
    return {tags.LOGGED_ON: registered.isoformat()} | dict(version.tags)


def _aliases(model: Any) -> dict[str, int]:
    return {alias: int(version) for alias, version in model.aliases.items()}


def _signature(sample: pd.DataFrame, scores: "pd.Series[float]") -> ModelSignature:
    """Name the features, and leave their types open.

    Pandas reads a sample's flags as truth values and its counts as integers, which MLflow would refuse for numbers.
    """
    inputs = Schema([ColSpec(AnyType(), str(name)) for name in sample.columns])
    return ModelSignature(inputs, infer_signature(sample, scores).outputs)
