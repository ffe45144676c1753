"""Places that hold files: an S3 bucket, and a folder with the same layout. What the bytes mean is decided elsewhere."""

import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, TypeVar

import boto3
import botocore.exceptions as aws
from botocore.config import Config
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, stop_after_delay, wait_random_exponential

from churn.concurrency import within
from churn.errors import AccessDeniedError, ChurnError, InputError, SourceError, SourceUnavailableError, UsageError

FETCH_DEADLINE_S = 300.0  # both by the clock: a whole file, and one request
ANSWER_DEADLINE_S = 60.0
ATTEMPTS = 3
_CHUNK_BYTES = 1 << 20
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "AllAccessDisabled", "403"}
_MISSING = {"NoSuchKey", "NoSuchBucket", "404", "NotFound"}
_PASSING = {"PreconditionFailed", "SlowDown", "RequestTimeout", "Throttling"}
_MD5 = re.compile(r"[0-9a-f]{32}")
_UNFINISHED = ".unfinished"

_Out = TypeVar("_Out")


@dataclass(frozen=True)
class Entry:
    """One file that a place holds. ``version`` changes when the content does: ETag, or mtime and size."""

    key: str
    version: str
    size: int
    modified_at: datetime


@dataclass(frozen=True)
class OpenFile:
    """A file that a place began to give: which version of it, and its bytes, once."""

    entry: Entry
    chunks: Iterator[bytes]


class NotThereError(SourceError):
    """The place lacks the file; raised and caught in this module."""


class NoSuchKeyError(NotThereError):
    """The place itself is there."""


class Place(Protocol):
    """Somewhere files are: a bucket or a folder."""

    source: Literal["s3", "local"]

    def uri(self, key: str) -> str: ...
    def list(self, prefix: str) -> list[Entry]: ...

    def open(self, key: str, version: str | None = None) -> OpenFile:
        """Begin to read a file: that version of it, or the one there is now."""
        ...

    def write(self, key: str, body: bytes) -> None:
        """Put a file there, whole or not at all, in place of any of that key."""
        ...

    def delete(self, key: str) -> None:
        """Remove a file for good, with all versions that the place kept of it; one that is gone is no error."""
        ...


class Folder:
    """The local copy."""

    source: Literal["s3", "local"] = "local"

    def __init__(self, root: Path) -> None:
        self.root = root

    def uri(self, key: str) -> str:
        return (self.root / key).absolute().as_uri()

    def list(self, prefix: str) -> list[Entry]:
        if prefix.startswith("/") or ".." in prefix.split("/"):
            return []  # no key is so named, and a path would lead out of the folder
        folder = self.root / prefix.rpartition("/")[0]
        # The suffix first: such a file may be gone by the time it is asked about.
        paths = (path for path in sorted(folder.rglob("*")) if path.suffix != _UNFINISHED and path.is_file())
        keys = ((path.relative_to(self.root).as_posix(), path) for path in paths)
        return [_local_entry(key, path.stat()) for key, path in keys if key.startswith(prefix)]

    def open(self, key: str, version: str | None = None) -> OpenFile:
        path = self.root / key
        try:
            file = path.open("rb")
        except PermissionError as error:
            raise AccessDeniedError(f"{self.uri(key)} may not be read by this user; correct its mode") from error
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            if version is None:
                raise NoSuchKeyError(f"{self.uri(key)} does not exist") from error
            raise SourceUnavailableError(f"{self.uri(key)} went away while it was read") from error
        entry = _local_entry(key, os.fstat(file.fileno()))
        if version not in (None, entry.version):
            file.close()
            raise SourceUnavailableError(f"{self.uri(key)} changed before it was read")
        return OpenFile(entry, _chunks_of(file))

    def write(self, key: str, body: bytes) -> None:
        path = self.root / key
        unfinished = path.with_name(f"{uuid.uuid4().hex}{_UNFINISHED}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("xb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except PermissionError as error:
            raise AccessDeniedError(f"{self.uri(key)} may not be written by this user; correct its mode") from error
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink()
            raise SourceError(f"{self.uri(key)} could not be written: {error}") from error

    def delete(self, key: str) -> None:
        try:
            (self.root / key).unlink(missing_ok=True)
        except OSError as error:
            raise AccessDeniedError(f"{self.uri(key)} may not be removed by this user ({error})") from error


def _local_entry(key: str, stat: os.stat_result) -> Entry:
    version = f"{stat.st_mtime_ns}-{stat.st_size}"
    return Entry(key, version, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))


def _chunks_of(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


class Bucket:
    """An S3 bucket, reached with boto3's own credential chain and ``AWS_ENDPOINT_URL``."""

    source: Literal["s3", "local"] = "s3"

    def __init__(self, name: str) -> None:
        self.name = name
        # Our own attempts cover request and body together, which botocore's do not.
        config = Config(
            connect_timeout=3,
            read_timeout=20,
            retries={"total_max_attempts": 1},
            max_pool_connections=16,
            user_agent="churn",  # boto3's own is composed anew for every request, which takes a tenth of it
        )
        try:
            self._client: Any = boto3.client("s3", config=config)
        except (aws.BotoCoreError, ValueError) as error:
            raise UsageError(
                f"the AWS settings are wrong ({error}); correct AWS_PROFILE or AWS_ENDPOINT_URL"
            ) from error

    def uri(self, key: str) -> str:
        return f"s3://{self.name}/{key}"

    def list(self, prefix: str) -> list[Entry]:
        with self._errors_translated(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
            answers = iter(pages)
            found: list[Any] = []
            while page := within(ANSWER_DEADLINE_S, lambda: next(answers, None)):
                found += page.get("Contents", [])
                if not page.get("IsTruncated"):
                    break  # being watched to the end of the iterator costs as much as a call
        return [Entry(item["Key"], item["ETag"].strip('"'), item["Size"], item["LastModified"]) for item in found]

    def open(self, key: str, version: str | None = None) -> OpenFile:
        deadline = time.monotonic() + FETCH_DEADLINE_S
        with self._errors_translated(key):
            response, first = within(ANSWER_DEADLINE_S, lambda: self._begin(key, version))
        try:
            entry = Entry(key, response["ETag"].strip('"'), response["ContentLength"], response["LastModified"])
        except KeyError as error:
            raise SourceError(f"{self.uri(key)} came without {error}; is AWS_ENDPOINT_URL that of an S3?") from error
        return OpenFile(entry, self._chunks(entry, response, first, deadline))

    def _begin(self, key: str, version: str | None) -> tuple[Any, bytes]:
        """Ask for a file, and read its first chunk, or all where it is no larger: being watched costs as much."""
        wanted = {} if version is None else {"IfMatch": version}
        response = self._client.get_object(Bucket=self.name, Key=key, **wanted)
        is_whole = response["ContentLength"] <= _CHUNK_BYTES
        return response, response["Body"].read(None if is_whole else _CHUNK_BYTES)

    def _chunks(self, entry: Entry, response: Any, first: bytes, deadline: float) -> Iterator[bytes]:
        md5 = hashlib.md5(usedforsecurity=False)
        chunk = first
        with self._errors_translated(entry.key):
            while chunk:
                md5.update(chunk)
                yield chunk
                left_s = max(deadline - time.monotonic(), 0)
                is_whole = entry.size <= _CHUNK_BYTES
                chunk = b"" if is_whole else within(left_s, lambda: response["Body"].read(_CHUNK_BYTES))
        # An ETag is the MD5 of an object put whole and not encrypted with a customer's key.
        is_md5 = response.get("ServerSideEncryption", "AES256") == "AES256" and _MD5.fullmatch(entry.version)
        if is_md5 and md5.hexdigest() != entry.version:
            raise InputError(f"{self.uri(entry.key)} does not match its ETag {entry.version}; upload it again")

    def write(self, key: str, body: bytes) -> None:
        with self._errors_translated(key, needs="s3:PutObject"):
            self._client.put_object(Bucket=self.name, Key=key, Body=body)

    def delete(self, key: str) -> None:
        # Of a bucket without versions there is one, named "null".
        with self._errors_translated(key, needs="s3:ListBucketVersions, s3:DeleteObject and s3:DeleteObjectVersion"):
            pages = self._client.get_paginator("list_object_versions").paginate(Bucket=self.name, Prefix=key)
            held = [item for page in pages for kind in ("Versions", "DeleteMarkers") for item in page.get(kind, [])]
            for item in (item for item in held if item["Key"] == key):
                self._client.delete_object(Bucket=self.name, Key=key, VersionId=item["VersionId"])

    @contextmanager
    def _errors_translated(self, key: str, needs: str = "s3:ListBucket and s3:GetObject") -> Iterator[None]:
        uri = self.uri(key)
        try:
            yield
        except aws.FlexibleChecksumError as error:
            raise InputError(f"{uri} failed its checksum; upload it again") from error
        except aws.ClientError as error:
            raise _meaning_of(error, uri, needs) from error
        except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError) as error:
            raise NotThereError("no AWS credentials were found") from error
        except aws.ParamValidationError as error:
            raise UsageError(f"MLFLOW_S3_BUCKET {self.name!r} cannot be a bucket's name; correct it") from error
        except TimeoutError as error:
            raise SourceUnavailableError(f"{uri} did not answer, or not end, in time") from error
        except (aws.ConnectionError, aws.HTTPClientError, aws.IncompleteReadError, OSError) as error:
            raise SourceUnavailableError(f"{uri} could not be reached ({type(error).__name__})") from error
        except aws.BotoCoreError as error:
            raise SourceError(f"{uri} could not be read: {error}") from error


def _meaning_of(error: aws.ClientError, uri: str, needs: str) -> ChurnError:
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _MISSING:
        missing = NotThereError if code == "NoSuchBucket" else NoSuchKeyError
        return missing(f"{uri} does not exist ({code})")
    if code in _DENIED or status in (401, 403):
        return AccessDeniedError(
            f"access to {uri} was denied ({code}); the role needs {needs} on it. "
            f"The local copy is not used in its place"
        )
    if status >= 500 or status == 429 or code in _PASSING:
        return SourceUnavailableError(f"{uri} kept failing ({code or status})")
    return SourceError(f"{uri} could not be read: {code} {error.response.get('Error', {}).get('Message', '')}")


def persistently(work: Callable[[], _Out]) -> _Out:
    """Do it again, a few times, when the other side does not answer or what it gave is damaged."""
    for attempt in Retrying(
        retry=retry_if_exception_type((SourceUnavailableError, InputError)),
        stop=stop_after_attempt(ATTEMPTS) | stop_after_delay(FETCH_DEADLINE_S),
        wait=wait_random_exponential(multiplier=0.2, max=2),
        reraise=True,
    ):
        with attempt:
            return work()
    raise AssertionError  # Retrying reraises
