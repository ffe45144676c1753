"""Where a variant's files come from: the S3 bucket, else the local copy of it, with a record of which one it was.

The local copy has the bucket's layout and stands in when S3 is not configured, has no credentials, cannot be reached,
keeps failing, or lacks the file. It is never used after access denied or a failed checksum. :class:`Provenance` records
what was read; what the bytes mean is decided elsewhere.
"""

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from churn.concurrency import CircuitBreaker
from churn.errors import SourceError, SourceUnavailableError
from churn.storage.places import Folder, NoSuchKeyError, NotThereError, OpenFile, Place, persistently
from churn.variants import Variant

logger = logging.getLogger(__name__)

# A variant's input is the first of these that its data folder holds; the content tells the format.
INPUT_FOLDER = "data/churn/"
INPUT_NAMES = ("activity.parquet", "activity.csv", "activity.jsonl", "activity.json", "X_test_sample_2.json")

MODEL_NAMES = ("models/churn/xgb_churn_model_2.bin", "models/churn/xgb_churn_model_2.json")
_MODEL_KEY = re.compile(
    r"(?:geography-(?P<geography>\w+)/)?(?:company-(?P<company>\w+)/)?"
    rf"(?:{'|'.join(re.escape(name) for name in MODEL_NAMES)})"
)


@dataclass(frozen=True)
class Provenance:
    """Where bytes came from.

    Attributes:
        variant: Whose file it is; the base variant's may stand in for another's, locally, and says so here.
        fallback_reason: Why the local copy was read in place of S3; ``None`` for S3.
    """

    uri: str
    version: str
    sha256: str
    size: int
    modified_at: datetime
    source: Literal["s3", "local"]
    variant: Variant
    fallback_reason: str | None = None


@dataclass(frozen=True)
class SourceFile:
    """A private copy of a file, unchanging while it is used, and where it came from."""

    path: Path
    provenance: Provenance


@dataclass(frozen=True)
class Sources:
    """Reads variants' files, S3 first.

    Attributes:
        bucket: ``None`` when S3 is not configured.
        fallback: Whether the local copy may stand in for S3.
        max_age: Oldest local copy that may; ``None`` for any.
        circuit: Spares later variants a bucket that kept failing for several.
    """

    bucket: Place | None
    local: Folder
    fallback: bool = True
    max_age: timedelta | None = None
    circuit: CircuitBreaker = field(default_factory=CircuitBreaker, repr=False, compare=False)

    @property
    def primary(self) -> Place:
        """Where variants' own files are, with no fallback: the bucket, or the local folder when there is none."""
        return self.bucket or self.local

    def fetch(self, variant: Variant, groups: Sequence[Sequence[str]], into: Path) -> list[SourceFile]:
        """Copy one file of each group into a folder, all from one place and one variant.

        Args:
            groups: Per file wanted, its possible keys below the variant's prefix, the preferred one first.
            into: An existing folder of the caller's.

        Returns:
            A file per group, in order.

        Raises:
            AccessDeniedError: If S3 or the file system says no.
            InputError: If a checksum fails.
            SourceError: If a file is nowhere, or only in a local copy that may not be used.
        """
        try:
            if self.bucket is None:
                raise NotThereError("S3 is not configured (MLFLOW_S3_BUCKET)")
            bucket = self.bucket
            return self.circuit.call(
                lambda: persistently(lambda: _fetch_from(bucket, variant, groups, into)), SourceUnavailableError
            )
        except (NotThereError, SourceUnavailableError) as error:
            return self._fetch_local(variant, groups, into, error)

    def fetch_input(self, variant: Variant, into: Path) -> SourceFile:
        """Copy the variant's input rows into a folder; see :meth:`fetch`."""
        return self.fetch(variant, [[INPUT_FOLDER + name for name in INPUT_NAMES]], into)[0]

    def input_version(self, variant: Variant) -> str | None:
        """Name the version of the variant's own input without reading it; ``None`` when it has none.

        Raises:
            SourceError: If S3 is configured and does not answer.
        """
        place = self.primary
        keys = [variant.prefix + INPUT_FOLDER + name for name in INPUT_NAMES]
        held = {entry.key: entry for entry in place.list(variant.prefix + INPUT_FOLDER)}
        return next((f"{place.uri(key)}@{held[key].version}" for key in keys if key in held), None)

    def variants_under(self, prefix: str) -> list[Variant]:
        """Find the variants that have a model file under a key prefix, by one listing of it.

        Raises:
            SourceError: If S3 is configured and does not answer.
        """
        matches = (_MODEL_KEY.fullmatch(entry.key) for entry in self.primary.list(prefix))
        return list(dict.fromkeys(Variant(match["geography"], match["company"]) for match in matches if match))

    def _fetch_local(
        self, variant: Variant, groups: Sequence[Sequence[str]], into: Path, why: SourceError
    ) -> list[SourceFile]:
        if not self.fallback:
            again = SourceUnavailableError if isinstance(why, SourceUnavailableError) else SourceError
            raise again(f"{why}, and CHURN_LOCAL_FALLBACK=never forbids the local copy") from why
        try:
            files = self._first_owner(variant, groups, into)
        except NotThereError as error:
            raise SourceError(f"{why}, and there is no local copy: {error}") from why
        reason = str(why)
        for file in files:
            self._require_fresh(file.provenance, reason)
        logger.warning("%s: read the local copy of %s, because %s", variant, files[0].provenance.variant, reason)
        return [SourceFile(file.path, replace(file.provenance, fallback_reason=reason)) for file in files]

    def _first_owner(self, variant: Variant, groups: Sequence[Sequence[str]], into: Path) -> list[SourceFile]:
        try:
            return _fetch_from(self.local, variant, groups, into)
        except NotThereError as error:
            if variant == Variant():
                raise
            try:
                return _fetch_from(self.local, Variant(), groups, into)
            except NotThereError:
                raise error from None

    def _require_fresh(self, provenance: Provenance, reason: str) -> None:
        age = datetime.now(UTC) - provenance.modified_at
        if self.max_age is not None and age > self.max_age:
            raise SourceError(
                f"{reason}, and the local copy {provenance.uri} is {age} old; CHURN_LOCAL_MAX_AGE allows {self.max_age}"
            )


def _fetch_from(place: Place, variant: Variant, groups: Sequence[Sequence[str]], into: Path) -> list[SourceFile]:
    return [_copy(place, variant, _open_first(place, variant.prefix, keys), into) for keys in groups]


def _open_first(place: Place, prefix: str, keys: Sequence[str]) -> OpenFile:
    """Open the first of some files that there is. The preferred one is asked for at once, which spares a listing."""
    try:
        return place.open(prefix + keys[0])
    except NoSuchKeyError:
        folders = sorted({key.rpartition("/")[0] + "/" for key in keys})
        held = {entry.key: entry for folder in folders for entry in place.list(prefix + folder)}
    entry = next((held[prefix + key] for key in keys if prefix + key in held), None)
    if entry is None:
        raise NotThereError(f"{place.uri(prefix)} holds none of {', '.join(keys)}")
    return place.open(entry.key, entry.version)


def _copy(place: Place, variant: Variant, file: OpenFile, into: Path) -> SourceFile:
    """Copy and hash in one pass, so that the bytes hashed are the bytes used."""
    entry, sha256, size = file.entry, hashlib.sha256(), 0
    to = into / Path(entry.key).name
    with to.open("wb") as copy:
        for chunk in file.chunks:
            sha256.update(chunk)
            size += copy.write(chunk)
    if size != entry.size:
        raise SourceUnavailableError(f"{place.uri(entry.key)} gave {size} of {entry.size} bytes")
    provenance = Provenance(
        place.uri(entry.key), entry.version, sha256.hexdigest(), size, entry.modified_at, place.source, variant
    )
    return SourceFile(to, provenance)
