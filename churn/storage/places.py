"""Storage of files: an S3 bucket, and a folder with the same layout. Contents are not interpreted here."""

import ctypes
import fcntl
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
from typing import Any, BinaryIO, Literal, TypeVar

import boto3
import botocore.exceptions as aws
import tenacity
from botocore.config import Config

from churn.concurrency import within
from churn.errors import AccessDeniedError, InputError, SourceError, SourceUnavailableError, UsageError, raised_as

FETCH_DEADLINE_S, ANSWER_DEADLINE_S = 300.0, 60.0  # of a whole file, and of one request
ATTEMPTS = 3
PATIENCE_S = 30.0  # with a place that asks for fewer requests, or has an error of its own
_CHUNK_BYTES = 1 << 20
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "AllAccessDisabled", "403"}
_MISSING = {"NoSuchKey", "NoSuchVersion", "404", "NotFound"}
_REMEDIES = (
    (("kms:", "KMS"), "the role needs kms:Decrypt (to write: kms:GenerateDataKey) on the key that encrypts it"),
    (("RequestTimeTooSkewed", "too skewed"), "this machine's clock is wrong: synchronize it"),
    (("InvalidObjectState", "storage class"), "it is archived in Glacier: restore it, or exclude it from archiving"),
    (("ExpiredToken", "TokenRefreshRequired"), "the session has ended: renew the credentials"),
    (("InvalidAccessKeyId", "SignatureDoesNotMatch"), "the AWS access key or its secret is wrong: correct them"),
    (("RequestLimit", "AllAccessDisabled"), "the bucket is disabled: ask its owner"),
)
_REPLACED = {"PreconditionFailed", "ConditionalRequestConflict"}
_TRANSIENT = {"SlowDown", "RequestTimeout", "Throttling"}
_UNVERSIONED = "null"  # the version of an object that was written while the bucket kept none
_MD5 = re.compile(r"[0-9a-f]{32}")
_UNFINISHED = ".unfinished"

_Out = TypeVar("_Out")


@dataclass(frozen=True)
class Entry:
    """One file in a place; its ``version`` changes when the content does: ETag, or mtime and size.

    By ``version_id`` S3 returns the file after it was replaced; ``None`` where no versions are kept.
    """

    key: str
    version: str
    size: int
    modified_at: datetime
    version_id: str | None = None


@dataclass(frozen=True)
class OpenFile:
    """A file being read: its version, and its bytes, which can be iterated once."""

    entry: Entry
    chunks: Iterator[bytes]


class MissingFileError(SourceError):
    """The place has no such file, or lacks settings or credentials to read it; raised and caught in this folder."""


class NoSuchKeyError(MissingFileError):
    """The place exists and has no such file."""


class BusyError(SourceUnavailableError):
    """The place throttles requests or has an error of its own, which may pass within tens of seconds."""


class ReplacedError(SourceUnavailableError):
    """The file is no longer the version asked for; another listing finds the one that it is now."""


class Folder:
    """The local copy."""

    source: Literal["s3", "local"] = "local"

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, key: str) -> Path:
        """Return a key's path. A variant's folder may be spelled in any case, as its name may; the very name wins."""
        path = self.root
        for part in key.split("/"):
            exact = path / part
            if part.startswith(("geography-", "company-")) and not exact.exists():
                alike = (one for one in sorted(path.glob("*")) if one.name.isascii() and one.name.casefold() == part)
                exact = next(alike, exact)
            path = exact
        return path

    def uri(self, key: str) -> str:
        return self._path(key).absolute().as_uri()

    def list(self, prefix: str) -> list[Entry]:
        if prefix.startswith("/") or ".." in prefix.split("/"):
            return []  # no such key exists, and the path would lead out of the folder
        base = prefix.rpartition("/")[0]
        folder = self._path(base)
        start = prefix.lower() if prefix.isascii() else prefix  # a letter that lower() makes another's names nothing
        # The suffix is tested first: an unfinished file may vanish before is_file().
        paths = (path for path in sorted(folder.rglob("*")) if path.suffix != _UNFINISHED and path.is_file())
        keys = (((Path(base) / path.relative_to(folder)).as_posix(), path) for path in paths)
        return [_local_entry(key, path.stat()) for key, path in keys if key.lower().startswith(start)]

    def folders(self, prefix: str) -> Iterator[str]:
        """Yield the names of the folders right below a prefix, which is empty or ends with a slash."""
        yield from (path.name for path in sorted(self._path(prefix).glob("*")) if path.is_dir())

    def open(self, key: str, version: str | None = None, *, version_id: str | None = None) -> OpenFile:  # noqa: ARG002 a folder keeps no versions
        """Begin to read a file: the current one, which must have ``version`` if that is given, or ``version_id``."""
        try:
            file = self._path(key).open("rb")
        except PermissionError as error:
            raise AccessDeniedError(f"{self.uri(key)} may not be read by this user; correct its mode") from error
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            if version is None:
                raise NoSuchKeyError(f"{self.uri(key)} does not exist") from error
            raise ReplacedError(f"{self.uri(key)} was deleted before it was read") from error
        entry = _local_entry(key, os.fstat(file.fileno()))
        if version not in (None, entry.version):
            file.close()
            raise ReplacedError(f"{self.uri(key)} changed before it was read")
        return OpenFile(entry, _chunks_of(file))

    def write(self, key: str, body: bytes) -> None:
        """Write a file atomically, replacing any of that key."""
        path = self._path(key)
        with self._written(path, body) as unfinished:
            unfinished.replace(path)

    def replace(self, key: str, body: bytes, before: bytes) -> None:
        """Replace a file whose content is ``before``, and keep its mode and modification time.

        Raises ``ReplacedError`` if the file changed meanwhile; it stays as it is now. A system that cannot exchange two
        files atomically has a moment in which that is not noticed.
        """
        path = self._path(key)
        with self._written(path, body) as unfinished:
            stat = path.stat()
            unfinished.chmod(stat.st_mode & 0o777)
            os.utime(unfinished, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            put, expected = body, before
            if self.exchange(unfinished, path):
                # What comes out was delivered meanwhile, so it goes back in, until what went in before comes out.
                while (found := unfinished.read_bytes()) != expected:
                    put, expected = found, put
                    self.exchange(unfinished, path)
            elif (put := path.read_bytes()) == before:
                put = body
                unfinished.replace(path)
        if put is not body:
            raise ReplacedError(f"{self.uri(key)} changed before it was written")

    def exchange(self, one: Path, other: Path) -> bool:
        """Exchange two files atomically; returns whether the system and its file system can."""
        renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # of Linux
        here, exchange = -100, 2
        return renameat2 is not None and not renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange)

    @contextmanager
    def _written(self, path: Path, body: bytes) -> Iterator[Path]:
        """Write a file beside ``path``, for the block to put in its place."""
        key = path.relative_to(self.root).as_posix()
        unfinished = path.with_name(f"{uuid.uuid4().hex}{_UNFINISHED}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.parent, fcntl.LOCK_SH):
                with unfinished.open("xb") as file:
                    file.write(body)
                    file.flush()
                    os.fsync(file.fileno())
                yield unfinished
        except PermissionError as error:
            raise AccessDeniedError(f"{self.uri(key)} may not be written by this user; correct its mode") from error
        except OSError as error:
            raise SourceError(f"{self.uri(key)} could not be written: {error}") from error
        finally:
            with suppress(OSError):
                unfinished.unlink()

    def delete(self, key: str) -> None:
        """Delete a file; one that does not exist is no error. A bucket with versions keeps its versions."""
        with raised_as(AccessDeniedError, f"{self.uri(key)} may not be deleted by this user", OSError):
            self._path(key).unlink(missing_ok=True)

    erase = delete

    def erase_versions(self, prefix: str) -> None:
        """Delete what processes that died left unfinished; a folder keeps no versions."""
        for path in self._path(prefix.rpartition("/")[0]).rglob("[0-9a-f]" * 32 + _UNFINISHED):
            with suppress(OSError), _locked(path.parent, fcntl.LOCK_EX | fcntl.LOCK_NB):
                path.unlink()


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """Lock a folder: shared by those who write into it, until their process ends, however it does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _local_entry(key: str, stat: os.stat_result) -> Entry:
    return Entry(key, f"{stat.st_mtime_ns}-{stat.st_size}", stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))


def _chunks_of(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


class Bucket:
    """An S3 bucket, accessed with boto3's credential chain and ``AWS_ENDPOINT_URL``."""

    source: Literal["s3", "local"] = "s3"

    def __init__(self, name: str) -> None:
        self.name = name
        # Our retries cover request and body together, which botocore's do not. boto3 composes the default user agent
        # for every request, which takes a tenth of the request.
        limits = {"connect_timeout": 3, "read_timeout": 20, "max_pool_connections": 16}
        config = Config(**limits, retries={"total_max_attempts": 1}, user_agent="churn")
        remedy = "correct AWS_PROFILE or AWS_ENDPOINT_URL"
        with raised_as(UsageError, "the AWS settings are wrong", aws.BotoCoreError, ValueError, remedy=remedy):
            self._client: Any = boto3.client("s3", config=config)

    def close(self) -> None:
        """Close the connections; a later request opens others."""
        self._client.close()

    def uri(self, key: str) -> str:
        return f"s3://{self.name}/{key}"

    def list(self, prefix: str) -> list[Entry]:
        with self._errors_translated(prefix):
            pages = iter(self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix))
            items: list[Any] = []
            try:
                while page := within(ANSWER_DEADLINE_S, lambda: next(pages, None)):
                    items += page.get("Contents", [])
                    if not page.get("IsTruncated"):
                        break  # a call of within() only to end the iterator would cost as much as a request
            except aws.ClientError as error:  # only a bucket can be missing from a listing, whatever a proxy answers
                raise _absent(self.uri(""), _code(error)) if _code(error) in _MISSING else error from None
        return [Entry(item["Key"], item["ETag"].strip('"'), item["Size"], item["LastModified"]) for item in items]

    def folders(self, prefix: str) -> Iterator[str]:
        lister = self._client.get_paginator("list_objects_v2")
        with self._errors_translated(prefix):
            for page in lister.paginate(Bucket=self.name, Prefix=prefix, Delimiter="/"):
                yield from (one["Prefix"][len(prefix) : -1] for one in page.get("CommonPrefixes", ()))

    def open(self, key: str, version: str | None = None, *, version_id: str | None = None) -> OpenFile:
        deadline = time.monotonic() + FETCH_DEADLINE_S
        with self._errors_translated(key):
            response, first = within(ANSWER_DEADLINE_S, lambda: self._begin(key, version, version_id))
        try:
            version, kept = response["ETag"].strip('"'), response.get("VersionId")
            kept = None if kept == _UNVERSIONED else kept
            entry = Entry(key, version, response["ContentLength"], response["LastModified"], kept)
        except KeyError as error:
            raise SourceError(f"{self.uri(key)} came without {error}; is AWS_ENDPOINT_URL that of an S3?") from error
        return OpenFile(entry, self._chunks(entry, response, first, deadline))

    def _begin(self, key: str, version: str | None, version_id: str | None) -> tuple[Any, bytes]:
        """Request a file, and read its first chunk, or all of a small one: another call of within() costs as much."""
        given = {name: value for name, value in {"IfMatch": version, "VersionId": version_id}.items() if value}
        response = self._client.get_object(Bucket=self.name, Key=key, **given)
        return response, response["Body"].read(None if response["ContentLength"] <= _CHUNK_BYTES else _CHUNK_BYTES)

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
        # An ETag is the MD5 of an object uploaded in one part and not encrypted with a customer's key.
        is_md5 = response.get("ServerSideEncryption", "AES256") == "AES256" and _MD5.fullmatch(entry.version)
        if is_md5 and md5.hexdigest() != entry.version:
            raise InputError(f"{self.uri(entry.key)} does not match its ETag {entry.version}; upload it again")

    def write(self, key: str, body: bytes, **condition: str) -> None:
        with self._errors_translated(key, needs="s3:PutObject"):
            self._client.put_object(Bucket=self.name, Key=key, Body=body, **condition)

    def upload(self, key: str, path: Path) -> None:
        """Write an object of any size from a file."""
        with self._errors_translated(key, needs="s3:PutObject"), path.open("rb") as file:
            self._client.upload_fileobj(file, self.name, key)

    def swap(self, key: str, body: bytes, version: str | None) -> None:
        """Write an object in place of this version, ``None`` where there is none; else raise ``ReplacedError``."""
        self.write(key, body, **({"IfNoneMatch": "*"} if version is None else {"IfMatch": version}))

    def delete(self, key: str) -> None:
        with self._errors_translated(key, needs="s3:DeleteObject"):
            self._client.delete_object(Bucket=self.name, Key=key)

    def erase(self, key: str) -> None:
        """Delete a file with all of its versions."""
        self._erase(key, lambda item: item["Key"] == key)

    def erase_versions(self, prefix: str) -> None:
        """Delete the versions below a prefix of files that were replaced or deleted."""
        self._erase(prefix, lambda item: not item["IsLatest"] or "ETag" not in item)  # a marker has no ETag

    def _erase(self, prefix: str, is_wanted: Callable[[Any], bool]) -> None:
        # In a bucket without versioning, the only version is named "null".
        with self._errors_translated(prefix, needs="s3:ListBucketVersions, s3:DeleteObject and s3:DeleteObjectVersion"):
            pages = self._client.get_paginator("list_object_versions").paginate(Bucket=self.name, Prefix=prefix)
            items = (item for page in pages for kind in ("Versions", "DeleteMarkers") for item in page.get(kind, []))
            for item in [item for item in items if is_wanted(item)]:
                self._client.delete_object(Bucket=self.name, Key=item["Key"], VersionId=item["VersionId"])

    @contextmanager
    def _errors_translated(self, key: str, needs: str = "s3:ListBucket and s3:GetObject") -> Iterator[None]:
        uri = self.uri(key)
        try:
            yield
        except aws.FlexibleChecksumError as error:
            raise InputError(f"{uri} failed its checksum; upload it again") from error
        except aws.ClientError as error:
            raise _translate(error, uri, needs) from error
        except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError) as error:
            raise MissingFileError("no AWS credentials were found") from error
        except aws.ParamValidationError as error:
            raise UsageError(f"MLFLOW_S3_BUCKET {self.name!r} cannot be a bucket's name; correct it") from error
        except TimeoutError as error:
            raise SourceUnavailableError(f"{uri} was not read in time") from error
        except (aws.ConnectionError, aws.HTTPClientError, aws.IncompleteReadError, OSError) as error:
            raise SourceUnavailableError(f"{uri} could not be reached ({type(error).__name__})") from error
        except aws.BotoCoreError as error:
            raise SourceError(f"{uri} could not be read: {error}") from error


Place = Bucket | Folder


def _translate(error: aws.ClientError, uri: str, needs: str) -> Exception:
    code = _code(error)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "NoSuchBucket":
        return _absent("/".join(uri.split("/")[:3]), code)
    if code in _MISSING:
        return NoSuchKeyError(f"{uri} does not exist ({code})")
    if code in _REPLACED:
        return ReplacedError(f"{uri} changed before it was read")
    text = " ".join(str(error.response.get("Error", {}).get("Message", "")).split())[:300]
    if code in _DENIED or status in (401, 403):
        remedy = next((one for words, one in _REMEDIES if any(word in f"{code} {text}" for word in words)), "")
        remedy += f"{'. It also' if remedy else 'the role'} needs {needs} on it"
        return AccessDeniedError(f"access to {uri} was denied ({code}: {text}); {remedy}. The local copy is not used")
    if status >= 500 or status == 429 or code in _TRANSIENT:
        return BusyError(f"{uri} kept failing ({code or status})")
    return SourceError(f"{uri} could not be read: {code or f'HTTP {status}'} {text}")


def _code(error: aws.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _absent(uri: str, code: str) -> UsageError:
    remedy = "correct MLFLOW_S3_BUCKET, CHURN_DELIVERY_PREFIX or AWS_ENDPOINT_URL, or create it"
    return UsageError(f"the bucket {uri} does not exist ({code}); {remedy}. The local copy is not used")


def with_retries(work: Callable[[], _Out], patience_s: float = PATIENCE_S) -> _Out:
    """Call ``work`` up to ``ATTEMPTS`` times while its source does not answer or returns damaged data.

    A source that is busy is called for ``patience_s`` seconds, and at least as often.
    """
    attempts, deadline = tenacity.stop_after_attempt(ATTEMPTS), tenacity.stop_after_delay(FETCH_DEADLINE_S)

    def stop(state: tenacity.RetryCallState) -> bool:
        is_busy = state.outcome is not None and isinstance(state.outcome.exception(), BusyError)
        return deadline(state) or (attempts(state) and (not is_busy or tenacity.stop_after_delay(patience_s)(state)))

    retry = tenacity.retry_if_exception_type((SourceUnavailableError, InputError))
    wait = tenacity.wait_random_exponential(multiplier=0.2, max=8)
    return tenacity.Retrying(retry=retry, stop=stop, wait=wait, reraise=True)(work)
