"""Versions that others registered in MLflow, as a notebook does: found by name, and read without running their code."""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.models import Model
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from churn.errors import ModelFileError, RegistryError, UnregisteredError, UsageError
from churn.registry.errors import errors_translated
from churn.registry.registry import pages
from churn.versions import CHAMPION

_NAMED = re.compile(r"(?:models:/)?([^/:*]*?)(\*?)(?:@([^@/:*]+)|/([0-9]{1,9}))?")
_NATIVE, _SKLEARN = "xgboost.core.Booster", "xgboost.sklearn."


@dataclass(frozen=True)
class ForeignVersion:
    """A registered model and its version, as MLflow lists them; the ``rest`` of its name follows a prefix, if any."""

    model: Any
    version: Any
    rest: str | None

    @property
    def uri(self) -> str:
        return f"models:/{self.model.name}/{self.version.version}"

    @property
    def identity(self) -> str:
        """Name, version, run and artifacts: a model that was deleted and registered again has others."""
        return f"{self.uri}, run {self.version.run_id or 'none'}, artifacts {self.version.source}"


def find_versions(client: MlflowClient, text: str) -> dict[str, ForeignVersion | RegistryError]:
    """Find ``NAME``, ``NAME@ALIAS``, ``NAME/VERSION``, ``PREFIX*`` or ``PREFIX*@ALIAS`` by two listings; by name.

    Raises ``UsageError`` if the text is none of these, or no registered model has the name or the prefix.
    """
    named = _NAMED.fullmatch(text)
    if named is None or not named[1] + named[2] or (named[2] and named[4]):
        raise UsageError(f"--adopt {text!r} is not NAME, NAME@ALIAS, NAME/VERSION, PREFIX* or PREFIX*@ALIAS")
    name, star, alias, number = named.groups()
    like = f"name LIKE '{name.replace(chr(39), '_')}{star and '%'}'"  # _ stands for any letter

    with errors_translated(f"listing the registered models {text!r}"):
        models = [model for model in pages(client.search_registered_models, like) if model.name.startswith(name)]
        models = models if star else [model for model in models if model.name == name]
        if not models:
            names = [model.name for model in pages(client.search_registered_models, "name LIKE '%'")]
            close = get_close_matches(name, names, 1)
            near = f"; did you mean {close[0]!r}?" if close else ""
            raise UnregisteredError(f"no registered model {'begins with' if star else 'is named'} {name!r}{near}")
        versions = {(one.name, int(one.version)): one for one in pages(client.search_model_versions, like)}
    found: dict[str, ForeignVersion | RegistryError] = {}
    for model in models:
        version = versions.get((model.name, int(number or model.aliases.get(alias or CHAMPION, 0))))
        found[model.name] = ForeignVersion(model, version, model.name.removeprefix(name) if star else None)
        if version is None:
            known = ", ".join(sorted(model.aliases)) or "none"
            problem = f"registered model {model.name!r} has no such version or alias (aliases: {known})"
            found[model.name] = RegistryError(f"{problem}; name one as {model.name}@ALIAS or {model.name}/VERSION")
    return found


def read_version(client: MlflowClient, of: ForeignVersion, folder: Path) -> tuple[bytes, list[str] | None, bool]:
    """Download a version's booster into a folder, with what its ``MLmodel`` says about it.

    Returns the booster; the feature names of the signature, if it has any; whether a class of XGBoost's scikit-learn
    interface was logged. Raises ``ModelFileError`` if it is no XGBoost model, or a file is missing or damaged.
    """
    source = str(of.version.source)
    with errors_translated(f"reading the artifacts of {of.uri}"):
        if source.startswith("models:/m-"):
            source = client.get_logged_model(source.removeprefix("models:/")).artifact_location
        repository = get_artifact_repository(source)
        repository = repository.repo if source.startswith("models:/") else repository  # of the version that it copies
        present = {Path(file.path).name for file in repository.list_artifacts(None)}

    def fetch(name: str) -> Path:
        if name not in present:
            raise ModelFileError(f"{of.uri} lacks {name} in {source}; restore it or log the model again")
        with errors_translated(f"fetching {name} of {of.uri}"):
            return Path(repository.download_artifacts(name, str(folder)))

    path = fetch("MLmodel")
    try:
        about = Model.load(path)
        flavors, inputs = dict(about.flavors), about.signature and about.signature.inputs
        flavor = {"data": "model.xgb", "model_class": _NATIVE} | dict(flavors.get("xgboost", {}))
        names = list(map(str, inputs.input_names())) if inputs is not None and inputs.has_input_names() else None
    except Exception as error:  # whatever MLflow raises on a file that anybody may have written
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ModelFileError(f"the MLmodel of {of.uri} is damaged ({what}); log the model again") from error
    file, kind = str(flavor["data"]), str(flavor["model_class"])
    if "xgboost" not in flavors:
        problem = f"{of.uri} has the flavors {', '.join(sorted(flavors)) or 'none'}, and only XGBoost models are scored"
        remedy = "log the XGBoost model in it by mlflow.xgboost.log_model, with its encoded features, or train one"
        raise ModelFileError(f"{problem}; {remedy}")
    if not (kind == _NATIVE or kind.startswith(_SKLEARN)) or not re.fullmatch(r"\w[\w.-]*", file):
        problem = f"{of.uri} was logged as {kind} in {file!r}, which may predict otherwise than its booster"
        remedy = "as an XGBClassifier or, for all of its rounds, as model.get_booster()"
        raise ModelFileError(f"{problem}; log it by mlflow.xgboost.log_model {remedy}")
    return fetch(file).read_bytes(), names, kind.startswith(_SKLEARN)
