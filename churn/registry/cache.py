"""The caches on disk: of model files, and of the tables made of them.

Nothing in one can make a variant fail: what is damaged is replaced.
"""

import json
import os
import shutil
import uuid
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

import numpy as np

from churn.data.arrays import Array

MAX_SHARE = 0.5
_ALIGNED = 64
_CHECKED_EVERY = 32  # entries; listing thousands of them takes longer than writing one


class ArrayCache:
    """Arrays by key, a digest in hexadecimal, each entry a file that is mapped into memory; damaged ones are absent.

    Beyond ``max_bytes``, by default :data:`MAX_SHARE` of the free disk, the entries unused for longest are deleted.
    """

    def __init__(self, folder: Path, max_bytes: int | None = None) -> None:
        self._folder, self._max_bytes = folder, max_bytes

    def load(self, key: str) -> dict[str, Array] | None:
        """Return an entry's arrays by name, which may be changed in memory only; ``None`` if it is absent."""
        path = self._folder / key
        with suppress(OSError, ValueError, KeyError, TypeError):
            with path.open("rb") as file:
                header = file.readline()
            known, body = json.loads(header), np.memmap(path, np.uint8, "c", len(header)).view(np.ndarray)
            if zlib.crc32(body.data) != known["crc"]:
                return None
            os.utime(path)
            return {name: body[at : at + n].view(kind).reshape(shape) for name, kind, shape, at, n in known["arrays"]}
        return None

    def store(self, key: str, arrays: Mapping[str, Array]) -> None:
        """Store an entry; does nothing if the disk is full or may not be written."""
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            unfinished = self._folder / f".{uuid.uuid4().hex}"
            unfinished.write_bytes(_packed(arrays))
            unfinished.replace(self._folder / key)
            if int(key[:8], 16) % _CHECKED_EVERY == 0:
                shrink(self._folder, self._max_bytes)


def _packed(arrays: Mapping[str, Array]) -> bytes:
    """Return a line of JSON that says what the arrays are, and the arrays, each on a line of the processor's cache."""
    entries: list[object] = []
    body = bytearray()
    for name, array in arrays.items():
        content = array.tobytes()
        entries.append((name, array.dtype.str, array.shape, len(body), len(content)))
        body += content + bytes(-len(content) % _ALIGNED)
    header = json.dumps({"crc": zlib.crc32(body), "arrays": entries}).encode()
    return b"%s%s\n%s" % (header, b" " * (-(len(header) + 1) % _ALIGNED), body)


def shrink(folder: Path, max_bytes: int | None) -> None:
    """Delete the entries that were not used for longest until the rest is small enough."""
    found = [(stat, path) for path in folder.rglob("*") if S_ISREG((stat := path.stat()).st_mode)]
    size = sum(stat.st_size for stat, _ in found)
    most = MAX_SHARE * (size + shutil.disk_usage(folder).free) if max_bytes is None else max_bytes
    for stat, path in sorted(found, key=lambda one: one[0].st_mtime):
        if size <= most:
            break
        path.unlink(missing_ok=True)
        size -= stat.st_size
