"""The errors that this package raises on purpose.

ChurnError                    base: one clear message, no traceback needed at the entry points
├── UsageError                invalid argument or setting (exit status 2)
├── CredentialsError          Secrets Manager or its secret gave no database credentials
├── AccessDeniedError         access denied; never answered by a fallback
├── SourceError               a variant's file could not be read, or not whole
├── InputError                a file was read and its content is invalid
│   └── QuarantineError       more rows broke the contract than the limit allows
├── ModelFileError            a booster file or its feature names cannot be used
├── RegistryError             MLflow's registry lacks what is needed, or contradicts it
├── PromotionError            a model must not, or cannot, become champion
├── ClusterError              a Ray cluster could not be reached, or did not score a variant
└── StoreError                PostgreSQL rejected a statement, or has no or an outdated schema
    └── DatabaseUnavailableError
TransientError                mixed in: the same call may succeed later, so it is worth a retry

Every message names the offending value, what was needed, and the next step. None holds a secret.
"""

_LONGEST, _KEPT = 2_000, 1_400


class ChurnError(Exception):
    """Base of all errors raised on purpose; its text is meant for a person.

    It is one line that logs, terminals and PostgreSQL can take, whatever of a foreign file it repeats: what cannot be
    printed is escaped, and a very long text loses its middle, so that the next step at its end stays.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(_printable(message))


def _printable(text: str) -> str:
    if len(text) > _LONGEST:
        text = f"{text[:_KEPT]} … {text[_KEPT - _LONGEST :]}"
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in " ".join(text.splitlines())
    )


class TransientError(ChurnError):
    """The same call may succeed later. An error that is not transient is permanent: no retry helps."""


class UsageError(ChurnError):
    """A flag or a setting is not one of the forms allowed."""


class CredentialsError(ChurnError):
    """AWS Secrets Manager, or the secret in it, gave no database credentials."""


class SecretsUnavailableError(CredentialsError, TransientError):
    """Secrets Manager did not answer."""


class AccessDeniedError(ChurnError):
    """S3 or PostgreSQL denied access. A fallback here would hide a wrong permission."""


class SourceError(ChurnError):
    """A variant's file could not be read from S3 nor, where allowed, from the local copy."""


class SourceUnavailableError(SourceError, TransientError):
    """The source timed out or kept failing; the local copy was not allowed or not there."""


class InputError(ChurnError):
    """A file was read, and its content is invalid."""


class QuarantineError(InputError):
    """More rows broke the contract than ``CHURN_MAX_QUARANTINE_SHARE`` allows."""


class ModelFileError(ChurnError):
    """A booster file, its feature names or its sample rows cannot be used together."""


class RegistryError(ChurnError):
    """The MLflow registry lacks what is needed, or holds something that contradicts it."""


class RegistryUnavailableError(RegistryError, TransientError):
    """The MLflow registry did not answer."""


class PromotionError(ChurnError):
    """A model has not been shown to be better, or there is none to promote or to roll back to."""


class ClusterError(ChurnError):
    """A Ray cluster cannot be used with its present set-up."""


class ClusterUnavailableError(ClusterError, TransientError):
    """A Ray cluster did not answer, had no node, or lost a variant's workers repeatedly."""


class StoreError(ChurnError):
    """PostgreSQL has no or an outdated schema, or rejected a statement."""


class DatabaseUnavailableError(StoreError, TransientError):
    """PostgreSQL did not answer, or the connection was lost during a call."""
