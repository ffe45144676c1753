"""Database credentials from AWS Secrets Manager. No message repeats a secret's content."""

import json
import logging
import re
from contextlib import closing

import boto3
import botocore.exceptions as aws
import sqlalchemy as sa
from botocore.config import Config

from churn.concurrency import within
from churn.database.connection import is_sendable, name_source
from churn.deployment.settings import Settings
from churn.errors import AccessDeniedError, ChurnError, CredentialsError, SecretsUnavailableError, UsageError

_DEADLINE_S = 90.0
_DENIED = (
    "AccessDeniedException", "UnrecognizedClientException", "InvalidSignatureException", "ExpiredTokenException",
    "InvalidClientTokenId", "MissingAuthenticationTokenException",
)  # fmt: skip
_THROTTLED = ("ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded")

_KEYS = {"username", "password", "host", "port", "dbname"}


def read_secret(settings: Settings) -> sa.URL:
    """Return the URL of the database server in Secrets Manager, with the secret's ``dbname``, else ``postgres``.

    Raises ``CredentialsError`` if there is no such secret, or it lacks ``username`` or ``password``.
    """
    name = str(settings.mlflow_secret_name)
    return parse_secret(_fetch_secret(name, settings.mlflow_secret_region), name, settings)


def parse_secret(text: str, name: str, settings: Settings) -> sa.URL:
    """Build the URL from a secret and the settings that override it; see :func:`read_secret`."""
    try:
        secret = json.loads(text)
    except (ValueError, RecursionError):
        secret = None
    need = 'a JSON object such as {"username": "…", "password": "…"} is needed'
    if not isinstance(secret, dict):
        raise CredentialsError(f"secret {name!r} is not a JSON object; {need}")
    missing = [key for key in ("username", "password") if not isinstance(secret.get(key), str) or not secret[key]]
    if missing:
        present = sorted(_KEYS & secret.keys())  # no other key: it may be a value in the wrong place
        raise CredentialsError(f"secret {name!r} lacks {' and '.join(missing)} (it has: {present}); {need}")
    given = {key: secret[key] for key in sorted((_KEYS - {"port"}) & secret.keys())}
    invalid = [key for key, one in given.items() if not isinstance(one, str | int | None) or not is_sendable(f"{one}")]
    if invalid:
        needed = "text without control characters is needed"
        raise CredentialsError(f"secret {name!r} has an invalid {' and '.join(invalid)}; {needed}")
    host = _chosen(settings, "mlflow_db_host", secret.get("host"))
    stored = secret.get("port")
    if stored is not None and not (re.fullmatch(r"[0-9]{1,5}", f"{stored}") and 0 < int(f"{stored}") < 65536):
        raise CredentialsError(f"secret {name!r} has a port that is not a number from 1 to 65535; correct it")
    port = int(_chosen(settings, "mlflow_db_port", stored))
    login, database = (secret["username"], secret["password"]), str(secret.get("dbname") or "postgres")
    url = sa.URL.create("postgresql+psycopg2", *login, host, port, database)
    name_source(url, "the secret")
    return url


def _chosen(settings: Settings, field_name: str, in_secret: object) -> str:
    """Return a setting that is set, else the secret's value, else the setting's default."""
    setting = getattr(settings, field_name)
    return str(setting if field_name in settings.model_fields_set or not in_secret else in_secret)


def _fetch_secret(name: str, region: str) -> str:
    logging.getLogger("botocore.parsers").setLevel(logging.INFO)  # at DEBUG it logs the answer, which is the secret
    # Botocore's standard mode waits with full jitter, and does not retry permanent errors.
    config = Config(connect_timeout=3, read_timeout=10, retries={"total_max_attempts": 4, "mode": "standard"})
    try:
        client = boto3.client("secretsmanager", region_name=region, config=config)
        with closing(client):
            answer = within(_DEADLINE_S, lambda: client.get_secret_value(SecretId=name))
    except aws.ClientError as error:
        raise _translate(error, f"secret {name!r} in {region}") from error
    except (aws.NoCredentialsError, aws.PartialCredentialsError) as error:
        told = f"no AWS credentials were found to read secret {name!r} with"
        raise CredentialsError(f"{told}; set AWS_PROFILE or a role") from error
    except (aws.ProfileNotFound, aws.ParamValidationError, ValueError) as error:
        remedy = "correct AWS_PROFILE, AWS_ENDPOINT_URL or MLFLOW_SECRET_NAME"
        raise UsageError(f"the AWS settings are wrong ({error}); {remedy}") from error
    except (aws.BotoCoreError, OSError) as error:
        raise SecretsUnavailableError(f"Secrets Manager in {region} did not answer ({type(error).__name__})") from error
    text = answer.get("SecretString")
    if text is None:
        raise CredentialsError(f"secret {name!r} is binary; a JSON object with username and password is needed")
    return str(text)


def _translate(error: aws.ClientError, secret: str) -> ChurnError:
    code = error.response.get("Error", {}).get("Code", "")
    if code == "ResourceNotFoundException":
        return CredentialsError(f"there is no {secret}; correct MLFLOW_SECRET_NAME or MLFLOW_SECRET_REGION")
    if code in _DENIED:
        needed = "the role needs secretsmanager:GetSecretValue"
        return AccessDeniedError(f"access to {secret} was denied ({code}); {needed}")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status >= 500 or status == 429 or code in _THROTTLED:
        return SecretsUnavailableError(f"Secrets Manager kept failing ({code}) at the read of {secret}")
    return CredentialsError(f"{secret} could not be read: {code}")
