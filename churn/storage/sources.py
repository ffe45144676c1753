"""The source of a variant's files: the S3 bucket, else the local copy of it, with a record of which one was read.

The local copy has the bucket's layout. A variant's own is used when S3 is not configured, has no credentials, cannot be
reached, keeps failing, or lacks the file; never after access was denied, a checksum failed, or the bucket does not
exist. The bundled simulation is used where S3 is not configured, also for variants without files of their own, and
never else; it is known by its hash. Contents are not interpreted here.
"""

import hashlib
import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Literal

from churn.concurrency import CircuitBreaker
from churn.errors import InputError, SourceError, SourceUnavailableError, UsageError
from churn.storage import inputs, places
from churn.storage.inputs import INPUT_FOLDER, INPUT_KEYS, Found
from churn.storage.places import PATIENCE_S, BusyError, Entry, NoSuchKeyError, OpenFile, Place, with_retries
from churn.variants import Variant, nearest

logger = logging.getLogger(__name__)

Groups = Sequence[Sequence[str]]
# An open circuit breaker repeats the error of another variant's file, with a countdown that passes.
_OF_OTHERS = re.compile(r"(s3://[^/\s]+/)\S*(.*) \(failed .*; next attempt in .*\)")
MODEL_NAMES = ("models/churn/xgb_churn_model_2.bin", "models/churn/xgb_churn_model_2.json")
_MODEL_KEY = re.compile(
    r"(?a)(?:geography-(?P<geography>\w+)/)?(?:company-(?P<company>\w+)/)?"
    rf"(?:{'|'.join(re.escape(name) for name in MODEL_NAMES)})"
)


@dataclass(frozen=True)
class Provenance:
    """The origin of a file."""

    uri: str
    version: str
    sha256: str
    size: int
    modified_at: datetime
    source: Literal["s3", "local", "mlflow"]
    variant: Variant  # owner of the file; the base variant where the bundled simulation was read for another one
    fallback_reason: str | None = None  # why the local copy was read instead of S3; `None` for S3
    version_id: str | None = None  # by which S3 returns it after it was replaced; `None` where no versions are kept


@dataclass(frozen=True)
class SourceFile:
    """A private copy of a file, which does not change while it is used, and its origin."""

    path: Path
    provenance: Provenance


class NoFileError(SourceError):
    """A variant has no such file anywhere; S3, if it is configured, said so."""


class GoneError(SourceError):
    """An input was replaced or deleted after it was read."""


@dataclass(frozen=True)
class Sources:
    """Reads variants' files, S3 first."""

    bucket: Place | None  # `None` when S3 is not configured
    local: places.Folder
    fallback: bool = True  # whether the local copy may replace S3
    max_age: timedelta | None = None  # maximum age of a local copy that replaces S3; `None` for any
    # Skips a bucket that kept failing for several variants
    circuit: CircuitBreaker = field(default_factory=CircuitBreaker, repr=False, compare=False)
    # The warnings about local copies that were logged
    warned: set[tuple[Variant, Variant, str]] = field(default_factory=set, repr=False, compare=False)
    simulated: frozenset[str] = frozenset()  # the SHA-256 of the files of the bundled simulation
    patience_s: float = PATIENCE_S  # how long a bucket that is busy is tried

    def close(self) -> None:
        """Close the bucket's connections."""
        if isinstance(self.bucket, places.Bucket):
            self.bucket.close()

    @property
    def primary(self) -> Place:
        """The place without fallback: the bucket, or the local folder if there is no bucket."""
        return self.bucket or self.local

    def fetch(self, variant: Variant, groups: Groups, into: Path) -> list[SourceFile]:
        """Copy one file of each group into an existing folder, all from one place and one variant, in order.

        Args:
            groups: For each file, its possible keys below the variant's prefix, the preferred one first.

        Raises:
            AccessDeniedError: If S3 or the file system denies access.
            InputError: If a checksum fails.
            SourceError: If a file does not exist, or only in a local copy that may not be used.
            UsageError: If the bucket does not exist.
        """
        try:
            if self.bucket is None:
                raise places.MissingFileError("S3 is not configured (MLFLOW_S3_BUCKET)")
            fetch = partial(with_retries, partial(_fetch_from, self.bucket, variant, groups, into), self.patience_s)
            return self.circuit.call(fetch, SourceUnavailableError, waits_for=BusyError)
        except (places.MissingFileError, SourceUnavailableError) as error:
            of_bucket = _OF_OTHERS.sub(r"\1\2, as for other variants just before", str(error))
            why = error if of_bucket == str(error) else type(error)(of_bucket)
            return self._fetch_local(variant, groups, into, why)

    def fetch_input(self, variant: Variant, into: Path) -> SourceFile:
        """Copy the variant's input rows into a folder; see :meth:`fetch`."""
        return self.fetch(variant, [INPUT_KEYS], into)[0]

    def fetch_again(self, variant: Variant, uri: str, version: str, version_id: str | None, into: Path) -> SourceFile:
        """Copy an input of the variant as it was when it was read: by its S3 version if it was replaced since.

        Raises ``GoneError`` if it was replaced or deleted, and no version of it is kept; ``SourceError`` if the place
        does not answer or denies access: the file may still be there.
        """
        keys = [variant.prefix + key + form for key in INPUT_KEYS for form in inputs.PACKED]
        read_from = [place for place in (self.bucket, self.local) if place is not None]
        found = next(((place, key) for place in read_from for key in keys if place.uri(key) == uri), None)
        if found is None:
            raise GoneError(f"{uri} is neither in the bucket nor in the local copy that are set now")
        place, key = found

        def copy() -> SourceFile:
            if not version.startswith(inputs.PARTS_VERSION):
                return _copy(place, variant, _open_again(place, key, version, version_id), into)
            parts = inputs.find_folder(_listing(place, f"{key}/"), key)
            if parts is None or parts.version != version:
                raise GoneError(f"the parts in {uri} were replaced, and no versions of them are kept")
            return _copy_parts(place, variant, parts, into)

        return with_retries(copy)

    def input_version(self, variant: Variant) -> str | None:
        """Return the version of the variant's own complete input, if any; raises ``SourceError`` if S3 is silent."""
        with suppress(inputs.UnfinishedError, InputError):
            if found := inputs.find(_listing(self.primary, variant.prefix + INPUT_FOLDER), variant.prefix, INPUT_KEYS):
                return f"{self.primary.uri(found.key)}@{found.version}"
        return None

    def variants_under(self, prefix: str) -> list[Variant]:
        """List the variants with a model file under a prefix; raises ``SourceError`` if S3 does not answer."""
        matches = (_MODEL_KEY.fullmatch(entry.key) for entry in self.primary.list(prefix))
        return list(dict.fromkeys(Variant(match["geography"], match["company"]) for match in matches if match))

    def beside(self, variant: Variant) -> dict[str, Variant]:
        """Return the variants that have a folder where the variant's is, by its prefix as it is spelled."""
        parent, found = variant.prefix[: variant.prefix[:-1].rfind("/") + 1], {}
        for prefix in (f"{parent}{name}/" for name in self.primary.folders(parent)):
            with suppress(UsageError):
                found[prefix] = Variant.from_key(prefix[:-1].replace("/", ".").casefold())
        return found

    def hint(self, variant: Variant) -> str:
        """Return ``"; …"`` naming the folder that may be meant by a variant without files, or ``""``."""
        beside = self.beside(variant)
        spelled = [prefix for prefix, one in beside.items() if one == variant and prefix != variant.prefix]
        if spelled:
            return f"; keys in S3 are case-sensitive, and {spelled[0]} is there: move its files to {variant.prefix}"
        return nearest(variant, beside.values())

    def _fetch_local(self, variant: Variant, groups: Groups, into: Path, why: SourceError) -> list[SourceFile]:
        kind = SourceUnavailableError if isinstance(why, SourceUnavailableError) else SourceError
        if not self.fallback:
            raise kind(f"{why}, and CHURN_LOCAL_FALLBACK=never forbids the local copy") from why
        try:
            files, reason = self._own_or_bundled(variant, groups, into, str(why))
        except places.MissingFileError as error:
            kind = kind if kind is SourceUnavailableError else NoFileError
            raise kind(f"{why}, and there is no local copy: {error}") from why
        simulated = [file.provenance.uri for file in files if file.provenance.sha256 in self.simulated]
        if self.bucket is not None and simulated:
            rule = "which never takes the place of real data"
            remedy = f"upload the file of {variant} to {self.bucket.uri(variant.prefix)}"
            raise kind(f"{why}, and the local copy {simulated[0]} is the bundled simulation, {rule}; {remedy}") from why
        for provenance in (file.provenance for file in files):
            age = datetime.now(UTC) - provenance.modified_at
            if self.max_age is not None and age > self.max_age:
                local = f"the local copy {provenance.uri} is {age} old"
                raise SourceError(f"{why}, and {local}; CHURN_LOCAL_MAX_AGE allows {self.max_age}")
        said = variant, files[0].provenance.variant, reason
        if said not in self.warned:  # once, however many of the variant's files are read
            self.warned.add(said)
            logger.warning("%s: read the local copy of %s, because %s", *said)
        return [SourceFile(file.path, replace(file.provenance, fallback_reason=reason)) for file in files]

    def _own_or_bundled(self, variant: Variant, groups: Groups, into: Path, why: str) -> tuple[list[SourceFile], str]:
        """Copy a variant's own local files, or without a bucket the bundled ones; return the reason, too."""
        try:
            return _fetch_from(self.local, variant, groups, into), why
        except places.MissingFileError:
            names = {variant.prefix + key for keys in groups for key in keys}
            is_own = self.bucket is not None or variant == Variant()
            if is_own or any(entry.key in names for entry in self.local.list(variant.prefix)):
                raise
            files = _fetch_from(self.local, Variant(), groups, into)
            if files[0].provenance.sha256 not in self.simulated:
                raise
            what = "model" if groups[0][0] in MODEL_NAMES else "input"
            return files, f"{variant} has no {what} of its own, and the bundled simulation is used; {why}"


def _fetch_from(place: Place, variant: Variant, groups: Groups, into: Path) -> list[SourceFile]:
    return [_copy_first(place, variant, keys, into) for keys in groups]


def _copy_first(place: Place, variant: Variant, keys: Sequence[str], into: Path) -> SourceFile:
    """Copy the first of some files that exists. The preferred one is requested at once, which saves a listing."""
    prefix = variant.prefix
    try:
        return _copy(place, variant, place.open(prefix + keys[0]), into)
    except NoSuchKeyError:
        folders = sorted({key.rpartition("/")[0] + "/" for key in keys})
        entries = {key: entry for folder in folders for key, entry in _listing(place, prefix + folder).items()}
    if (found := inputs.find(entries, prefix, keys)) is None:
        raise places.MissingFileError(f"{place.uri(prefix)} has none of {', '.join(keys)}")
    if found.version.startswith(inputs.PARTS_VERSION):
        return _copy_parts(place, variant, found, into)
    return _copy(place, variant, place.open(found.key, found.version), into)


def _listing(place: Place, prefix: str) -> dict[str, Entry]:
    return {entry.key: entry for entry in place.list(prefix)}


def _copy_parts(place: Place, variant: Variant, found: Found, into: Path) -> SourceFile:
    """Copy a folder of parts; its hash is that of its parts' names and hashes."""
    to, files = into / Path(found.key).name, []
    for entry in found.entries:
        folder = (into / Path(entry.key).relative_to(Path(found.key).parent)).parent
        folder.mkdir(parents=True, exist_ok=True)
        files.append(_copy(place, variant, place.open(entry.key, entry.version), folder).provenance)
    names = (entry.key.removeprefix(found.key) for entry in found.entries)
    listed = "\n".join(f"{file.sha256}  {name}" for file, name in zip(files, names, strict=True))
    sha256, modified_at = hashlib.sha256(listed.encode()).hexdigest(), max(file.modified_at for file in files)
    content = found.version, sha256, sum(file.size for file in files), modified_at
    return SourceFile(to, Provenance(place.uri(found.key), *content, place.source, variant))


def _open_again(place: Place, key: str, version: str, version_id: str | None) -> OpenFile:
    """Open the current file if it is still that version, which needs fewer rights than to read an older one."""
    try:
        return place.open(key, version)
    except (NoSuchKeyError, places.ReplacedError) as error:
        if version_id is None:
            raise GoneError(f"{error}, and no versions of it are kept") from error
    try:
        return place.open(key, version_id=version_id)
    except NoSuchKeyError as error:
        raise GoneError(f"version {version_id} is gone: {error}") from error


def _copy(place: Place, variant: Variant, file: OpenFile, into: Path) -> SourceFile:
    """Copy and hash in one pass, so that the hash is that of the bytes used."""
    entry, sha256, size, to = file.entry, hashlib.sha256(), 0, into / Path(file.entry.key).name
    with to.open("wb") as copy:
        for chunk in file.chunks:
            sha256.update(chunk)
            size += copy.write(chunk)
    if size != entry.size:
        raise SourceUnavailableError(f"{place.uri(entry.key)} returned {size} of {entry.size} bytes")
    content = entry.version, sha256.hexdigest(), size, entry.modified_at
    return SourceFile(to, Provenance(place.uri(entry.key), *content, place.source, variant, None, entry.version_id))
