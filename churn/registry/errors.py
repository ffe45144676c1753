"""Translation of errors of MLflow and its services into ours, with the cause and the next step."""

import contextlib
import re
from collections.abc import Iterator

import botocore.exceptions as aws
import requests
import sqlalchemy.exc
from boto3.exceptions import Boto3Error
from mlflow.exceptions import MlflowException

from churn.errors import AbsentError, AccessDeniedError, ChurnError, RegistryError, RegistryUnavailableError

_TLS_WORDS = ("SSLError", "SSLCertVerificationError", "CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER")
_LONGEST = 300
_ABSENT = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}


@contextlib.contextmanager
def errors_translated(doing: str) -> Iterator[None]:
    """Turn errors of MLflow, its database and its artifact store into ours; transient ones stay transient."""
    try:
        yield
    except MlflowException as error:
        raise _translate_mlflow_error(doing, error) from error
    except (Boto3Error, aws.BotoCoreError, aws.ClientError) as error:  # first: some are requests' errors as well
        raise _translate_artifact_error(doing, error) from error
    except requests.exceptions.SSLError as error:
        raise _translate_answer(doing, str(error)) from error
    except (requests.RequestException, sqlalchemy.exc.OperationalError) as error:
        raise _unavailable(doing, type(error).__name__) from error


def _translate_mlflow_error(doing: str, error: MlflowException) -> RegistryError:
    text = (error.message.splitlines() or [error.error_code])[0]  # the other lines are a statement and its values
    if "API request to" in error.message:  # no answer of MLflow's API, whatever code the client gave it
        return _translate_answer(doing, error.message)
    if error.error_code in _ABSENT:
        return AbsentError(f"MLflow failed at {doing}: {text}")
    if error.error_code == "PERMISSION_DENIED":
        return RegistryError(f"MLflow denied {doing}: {text}")
    if isinstance(error.__cause__, sqlalchemy.exc.OperationalError):
        return _unavailable(doing, type(error).__name__)
    return RegistryError(f"MLflow failed at {doing}: {text}")


def _translate_answer(doing: str, message: str) -> RegistryError:
    """Translate what an MLflow server answered; only the absence of an answer, 429 and 5xx are worth a retry."""
    text = re.sub(r"//[^/@\s]+@", "//", message)  # without logins
    status = re.search(r"failed with error code (\d+)|too many (\d+) error responses", text)
    code = int(status[1] or status[2]) if status else 0
    told = re.sub(r"<[!?a-zA-Z].*", "a page", (text.splitlines() or [""])[0])[:_LONGEST]
    if any(word in text for word in _TLS_WORDS):
        authority = "that MLFLOW_TRACKING_SERVER_CERT_PATH names its certificate authority"
        remedy = f"check http:// or https:// in MLFLOW_TRACKING_URI, and {authority}"
        return RegistryError(f"TLS with the MLflow server failed at {doing} ({_cause(text)}); {remedy}")
    if code in (401, 403, 407):
        login = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN,"
        remedy = f"set {login} of a user who may do it"
        return RegistryError(f"the MLflow server refused the login at {doing} (HTTP {code}): {told}; {remedy}")
    if "not in a valid JSON format" in text or "<html" in text.lower():
        title = re.search(r"<title>([^<]{1,80})", text, re.IGNORECASE)
        page = f"a page{f' {title[1].strip()!r}' if title else ''} at {doing}, which is no MLflow API"
        remedy = "Set the address of the API, and MLFLOW_TRACKING_TOKEN if it needs a login"
        problem = f"the address of MLFLOW_TRACKING_URI answered with {page} (HTTP {code or 200})"
        return RegistryError(f"{problem}; is it a login page or a proxy? {remedy}")
    if code == 404:
        remedy = "check the path in MLFLOW_TRACKING_URI"
        return RegistryError(f"the server has no MLflow API at {doing} (HTTP 404): {told}; {remedy}")
    if code == 429 or code >= 500 or (not code and "API request to" in text):
        return _unavailable(doing, f"HTTP {code}" if code else _cause(text))
    return RegistryError(f"MLflow failed at {doing}: {told}")


def _cause(text: str) -> str:
    """Return the innermost of nested errors, as urllib3 and requests write them."""
    found = re.findall(r"(\w*(?:Error|Exception|Timeout)\w*)\b[('\":, ]*([^'\"()]{0,120})", text)
    return ": ".join(part.strip() for part in found[-1] if part.strip()) if found else text[:_LONGEST]


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


def _unavailable(doing: str, cause: str) -> RegistryUnavailableError:
    remedy = "check MLFLOW_TRACKING_URI or MLFLOW_DB_HOST, and that it runs"
    return RegistryUnavailableError(f"the MLflow registry did not answer while {doing} ({cause}); {remedy}")
