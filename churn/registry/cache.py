"""A cache of model files on disk. Nothing in it can make a variant fail: what is damaged is fetched again."""

import hashlib
import io
import os
import uuid
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_UNFINISHED = "."
MAX_BYTES = 4 << 30
_CHECKED_EVERY = 32  # entries; listing thousands of them takes longer than writing one


class ModelCache:
    """Entries are ``<model id>/<SHA-256 of the content>``; the content is a ZIP file of the model's files.

    Args:
        max_bytes: The entries that were not used for longest are deleted beyond this size.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def load(self, model_id: str) -> dict[str, bytes] | None:
        """Return a model's files by name; ``None`` if the cache lacks them or they are damaged, which deletes them."""
        with suppress(OSError):
            entries = (self._folder / model_id).iterdir()
            for path in (entry for entry in entries if not entry.name.startswith(_UNFINISHED)):
                content = path.read_bytes()
                if hashlib.sha256(content).hexdigest() == path.name:
                    os.utime(path)
                    with zipfile.ZipFile(io.BytesIO(content)) as archive:
                        return {name: archive.read(name) for name in archive.namelist()}
                path.unlink(missing_ok=True)
        return None

    def store(self, model_id: str, files: Mapping[str, bytes]) -> None:
        """Store a model's files, safe against a power cut; does nothing if the disk is full or may not be written."""
        body = io.BytesIO()
        with zipfile.ZipFile(body, "w") as archive:
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(name), data)
        digest = hashlib.sha256(body.getvalue()).hexdigest()
        with suppress(OSError):
            folder = self._folder / model_id
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = folder / f"{_UNFINISHED}{uuid.uuid4().hex}"
            with unfinished.open("xb") as file:
                file.write(body.getvalue())
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(folder / digest)
            if int(digest[:8], 16) % _CHECKED_EVERY == 0:
                self.shrink()

    def shrink(self) -> None:
        """Delete the entries that were not used for longest until the rest is small enough."""
        found = [(path.stat(), path) for path in self._folder.glob("*/*")]
        size = sum(stat.st_size for stat, _ in found)
        for stat, path in sorted(found, key=lambda one: one[0].st_mtime):
            if size <= self._max_bytes:
                break
            path.unlink(missing_ok=True)
            size -= stat.st_size
