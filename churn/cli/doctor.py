"""``churn doctor``: shows what is set, reached, permitted and missing, without any secret."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Literal

from pydantic import SecretStr

from churn.database.connection import OWNER, READER, require_connection
from churn.database.schema import excess_rights
from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import Settings, load_settings
from churn.errors import AccessDeniedError, ChurnError, UsageError
from churn.storage.history import FOLDER
from churn.storage.places import Bucket, Folder, MissingFileError, Place
from churn.storage.sources import MODEL_NAMES
from churn.wording import counted, listed


def examine() -> Iterator[tuple[str, str, str]]:
    """Yield a status, what it is of, and what was found, or the error and the next step: ``FAILED``, ``denied``."""
    settings = load_settings()
    for name in sorted(settings.model_fields_set & Settings.model_fields.keys()):
        value = getattr(settings, name)
        yield "set", name.upper(), "(not shown)" if isinstance(value, SecretStr) else str(value)
    try:
        with open_deployment(settings) as deployment:
            for what, look in (_LOOKS | _WRITES).items():
                try:
                    found = look(deployment)
                except ChurnError as error:
                    is_denied = what in _WRITES and isinstance(error, AccessDeniedError)
                    yield "denied" if is_denied else "FAILED", what, str(error)
                else:
                    yield ("ok", what, found) if found else ("not set", what, "none is named by the settings")
            yield from _excess(deployment)
    except ChurnError as error:
        yield "FAILED", "settings and credentials", str(error)


def _excess(deployment: Deployment) -> Iterator[tuple[str, str, str]]:
    """Warn if whoever has the password of the job may do everything."""
    with suppress(ChurnError):  # which is shown above
        if rights := excess_rights(deployment.database):
            remedy = 'give set-up a login of its own (CHURN_SETUP_DATABASE_URL; SECURITY.md, "Logins")'
            yield "warning", f"login {deployment.database.username} of the job", f"{listed(rights)}; {remedy}"


def _look_at(user: Literal["setup", "monitoring", "reader"], role: str) -> Callable[[Deployment], str]:
    def look(deployment: Deployment) -> str:
        url = deployment.database_as(user)
        if url == deployment.database:
            return ""
        require_connection(url, role=role)
        return f"{url.username} may act as {role}"

    return look


def _connect(deployment: Deployment) -> str:
    require_connection(deployment.dagster_database)
    return f"{deployment.dagster_database.host}, database {deployment.dagster_database.database!r}"


def _look_at_mlflow(deployment: Deployment) -> str:
    variants = deployment.registry(read_only=deployment.predictions is not None).variants()
    return f"registered are {counted(len(variants), 'variant')}"


def _look_at_receivers(deployment: Deployment) -> str:
    if (receivers := deployment.receivers()).wrong:
        raise UsageError("; ".join([*receivers.wrong, *([f"served are {', '.join(receivers)}"] if receivers else [])]))
    return ", ".join(receivers)


def _look_at_bucket(deployment: Deployment) -> str:
    bucket = deployment.sources().bucket
    if not isinstance(bucket, Bucket):
        return ""
    files = bucket.list("models/churn/")
    try:
        bucket.open(MODEL_NAMES[0])
    except MissingFileError:
        return f"{bucket.uri('')} may be listed; the base variant has no {MODEL_NAMES[0]}"
    return f"{bucket.uri('')} may be listed and read; {len(files)} files of the base variant's models"


def _write_to(place: Place, folder: str) -> str:
    file = f"{folder}doctor.txt"
    place.write(file, b"churn doctor")
    try:
        place.delete(file)
    except AccessDeniedError:
        return f"files may be written to {place.uri(folder)} and not deleted, so that doctor.txt is left there"
    return f"files may be written to {place.uri(folder)} and deleted there"


def _look_at_delivery(deployment: Deployment) -> str:
    if (deliverer := deployment.deliverer()) is None:
        return ""
    return f"{_write_to(deliverer.bucket, deliverer.prefix)}; {counted(len(deliverer.keys()), 'variant')}"


_LOOKS: dict[str, Callable[[Deployment], str]] = {
    "predictions database, as scoring uses it": lambda deployment: deployment.store().identity(),
    "login of set-up": _look_at("setup", OWNER),
    "login of monitoring": _look_at("monitoring", READER),
    "login of readers": _look_at("reader", READER),
    "MLflow, as scoring uses it": _look_at_mlflow,
    "Dagster's database": _connect,
    "bucket": _look_at_bucket,
    "receivers of alerts": _look_at_receivers,
}
_WRITES: dict[str, Callable[[Deployment], str]] = {
    "activity histories, as evaluation and training write them": lambda of: _write_to(of.sources().primary, FOLDER),
    "artifact store, as log_model.py and training write it": lambda of: _write_to(
        of.sources().bucket or Folder(of.settings.churn_home / "artifacts"), "mlflow/"
    ),
    "delivered files": _look_at_delivery,
}
