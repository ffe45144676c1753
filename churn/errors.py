"""The errors that this package raises on purpose; entry points print their message without a traceback.

Every message names the offending value, what was needed, and the next step. None contains a secret. An error that is
also a :class:`TransientError` may not occur again, so that a retry makes sense.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from churn.wording import printable

_LONGEST, _KEPT = 2_000, 1_400


class ChurnError(Exception):
    """Base of all errors raised on purpose.

    The message is one line that logs, terminals and PostgreSQL accept, whatever a file contained that it quotes:
    unprintable characters are escaped, and a very long text loses its middle, but not the next step at its end.
    """

    def __init__(self, message: str = "") -> None:
        is_long = len(message) > _LONGEST
        super().__init__(printable(f"{message[:_KEPT]} … {message[_KEPT - _LONGEST :]}" if is_long else message))


class TransientError(ChurnError):
    """The same call may succeed later. An error that is not transient is permanent: no retry helps."""


class UsageError(ChurnError):
    """Invalid argument or setting; exit status 2."""


class CredentialsError(ChurnError):
    """AWS Secrets Manager or the secret has no database credentials."""


class SecretsUnavailableError(CredentialsError, TransientError):
    """Secrets Manager did not answer."""


class AccessDeniedError(ChurnError):
    """S3 or PostgreSQL denied access. A fallback here would hide a wrong permission."""


class SourceError(ChurnError):
    """A variant's file could not be read from S3, nor from the local copy if that is allowed."""


class SourceUnavailableError(SourceError, TransientError):
    """The source timed out or kept failing; the local copy was not allowed or does not exist."""


class InputError(ChurnError):
    """A file was read, and its content is invalid."""


class QuarantineError(InputError):
    """More rows broke the contract than ``CHURN_MAX_QUARANTINE_SHARE`` allows."""


class UnlabelledError(InputError):
    """Activity has no column that shows whether a player was active, so that no label can be built."""


class ModelFileError(ChurnError):
    """A booster file, its feature names or its sample rows cannot be used together."""


class RegistryError(ChurnError):
    """The MLflow registry lacks an object, or its content contradicts ours."""


class AbsentError(RegistryError):
    """MLflow has no such object."""


class UnregisteredError(RegistryError, UsageError):
    """A variant is named that is not registered, so that there is nothing to score, compare or promote."""


class RegistryUnavailableError(RegistryError, TransientError):
    """The MLflow registry did not answer."""


class PromotionError(ChurnError):
    """A model is not proven better, or there is none to promote or to roll back to."""


class ClusterError(ChurnError):
    """A Ray cluster cannot be used with its present set-up."""


class ClusterUnavailableError(ClusterError, TransientError):
    """A Ray cluster did not answer, had no node, or lost a variant's workers repeatedly."""


class WorkerLostError(TransientError):
    """The processes that scored a variant died repeatedly."""


class StoreError(ChurnError):
    """PostgreSQL has no or an outdated schema, or rejected a statement."""


class DatabaseUnavailableError(StoreError, TransientError):
    """PostgreSQL did not answer, or the connection was lost during a call."""


class LockTimeoutError(DatabaseUnavailableError):
    """Another session did not release its lock on a table in time."""


@contextmanager
def raised_as(kind: type[ChurnError], problem: str, *errors: type[BaseException], remedy: str = "") -> Iterator[None]:
    """Raise errors of these types as ``kind``: the problem, the cause in brackets, and the remedy."""
    try:
        yield
    except errors as error:
        raise kind(f"{problem} ({cause_of(error)})" + (f"; {remedy}" if remedy else "")) from error


def cause_of(error: BaseException) -> str:
    """Return the first line of an error; its name where there is none, and before one that says little by itself."""
    line = "".join(str(error).strip().splitlines()[:1])[:200]
    is_clear = line and not isinstance(error, LookupError | TypeError | AttributeError)
    return line if is_clear else ": ".join(filter(None, (type(error).__name__, line)))
