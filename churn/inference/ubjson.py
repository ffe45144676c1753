"""A bounds-checked reader of the UBJSON that XGBoost writes.

XGBoost's reader trusts the lengths in a file: a truncated one can crash the process or exhaust memory. Untrusted files
are therefore parsed here first. Format: https://ubjson.org, with XGBoost's 64-bit lengths and its typed
arrays (``[$<type>#<length>``), which become numpy arrays over the file's bytes, not copies.
"""

import struct
from typing import Any

import numpy as np

_MAX_DEPTH = 64
_MAX_VALUES = 500_000  # besides typed arrays; a value of one byte takes many in memory
_SCALARS = {b"i": ">b", b"U": ">B", b"I": ">h", b"l": ">i", b"L": ">q", b"d": ">f", b"D": ">d"}  # for struct and numpy
_CONSTANTS = {b"T": True, b"F": False, b"Z": None}


def parse_ubjson(data: bytes) -> Any:
    """Read one UBJSON value that fills ``data``.

    Raises ``ValueError``, with the position, if the bytes end early, go on after the value, or have an unknown marker.
    """
    reader = _Reader(data)
    value = reader.read_value(reader.take(1), depth=0)
    if reader.position != len(data):
        raise ValueError(f"{len(data) - reader.position} bytes follow the end of the model at byte {reader.position}")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.position, self.n_values = data, 0, 0

    def take(self, size: int) -> bytes:
        end = self.position + size
        if size < 0 or end > len(self.data):
            raise ValueError(f"it is cut off: {size} bytes are needed at byte {self.position} of {len(self.data)}")
        start, self.position = self.position, end
        return self.data[start:end]

    def read_value(self, marker: bytes, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep at byte {self.position}")
        self.n_values += 1
        if self.n_values > _MAX_VALUES:
            raise ValueError(f"it has more than {_MAX_VALUES} values up to byte {self.position}")
        if marker in _CONSTANTS:
            return _CONSTANTS[marker]
        if marker in _SCALARS:
            return self._read_scalar(marker)
        if marker == b"S":
            return self._read_text(self.take(1))
        if marker == b"[":
            return self._read_array(depth)
        if marker == b"{":
            return self._read_object(depth)
        raise ValueError(f"it has the unknown marker {marker!r} at byte {self.position - 1}")

    def _read_scalar(self, marker: bytes) -> Any:
        code = struct.Struct(_SCALARS[marker])
        return code.unpack(self.take(code.size))[0]

    def _read_length(self, marker: bytes) -> int:
        if marker not in (b"i", b"U", b"I", b"l", b"L"):
            raise ValueError(f"it has {marker!r} for a length at byte {self.position - 1}")
        length = int(self._read_scalar(marker))
        if length < 0:
            raise ValueError(f"it has the negative length {length} at byte {self.position}")
        return length

    def _read_text(self, marker: bytes) -> str:
        return self.take(self._read_length(marker)).decode()

    def _read_array(self, depth: int) -> Any:
        marker = self.take(1)
        if marker == b"$":
            return self._read_typed_array()
        if marker == b"#":
            return [self.read_value(self.take(1), depth + 1) for _ in range(self._read_length(self.take(1)))]
        items = []
        while marker != b"]":
            items.append(self.read_value(marker, depth + 1))
            marker = self.take(1)
        return items

    def _read_typed_array(self) -> Any:
        kind, separator = self.take(1), self.take(1)
        if kind not in _SCALARS or separator != b"#":
            raise ValueError(f"it has a typed array of {kind!r}{separator!r} at byte {self.position}")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.take(self._read_length(self.take(1)) * dtype.itemsize), dtype=dtype)

    def _read_object(self, depth: int) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while (marker := self.take(1)) != b"}":
            key = self._read_text(marker)
            if key in items:  # XGBoost may use the value that was not checked
                raise ValueError(f"it has the key {key[:60]!r} twice in one object at byte {self.position}")
            items[key] = self.read_value(self.take(1), depth + 1)
        return items
