"""Translation of errors of MLflow and its services into ours, with the cause and the next step."""

import contextlib
from collections.abc import Iterator

import botocore.exceptions as aws
import requests
import sqlalchemy.exc
from boto3.exceptions import Boto3Error
from mlflow.exceptions import MlflowException

from churn.errors import AbsentError, AccessDeniedError, ChurnError, RegistryError, RegistryUnavailableError

_ABSENT = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}


@contextlib.contextmanager
def errors_translated(doing: str) -> Iterator[None]:
    """Turn errors of MLflow, its database and its artifact store into ours; transient ones stay transient."""
    try:
        yield
    except MlflowException as error:
        text = (error.message.splitlines() or [error.error_code])[0]  # the other lines are a statement and its values
        if error.error_code in _ABSENT:
            raise AbsentError(f"MLflow failed at {doing}: {text}") from error
        if error.error_code == "PERMISSION_DENIED":
            raise RegistryError(f"MLflow denied {doing}: {text}") from error
        if isinstance(error.__cause__, sqlalchemy.exc.OperationalError) or "API request to" in text:
            raise _unavailable(doing, error) from error
        raise RegistryError(f"MLflow failed at {doing}: {text}") from error
    except (Boto3Error, aws.BotoCoreError, aws.ClientError) as error:  # first: some are requests' errors as well
        raise _translate_artifact_error(doing, error) from error
    except (requests.RequestException, sqlalchemy.exc.OperationalError) as error:
        raise _unavailable(doing, error) from error


def _translate_artifact_error(doing: str, error: Exception) -> ChurnError:
    """Translate S3's error; a failed upload has it only as its context."""
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
    return RegistryError(f"{what} ({code}); restore the bucket and its objects, or log the model again")


def _unavailable(doing: str, error: Exception) -> RegistryUnavailableError:
    return RegistryUnavailableError(
        f"the MLflow registry did not answer while {doing} ({type(error).__name__}); "
        f"check MLFLOW_TRACKING_URI or MLFLOW_DB_HOST, and that it runs"
    )
