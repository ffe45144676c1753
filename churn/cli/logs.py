"""The logs of ``churn up``: what its servers print, without colours and without what repeats while they try again.

While PostgreSQL restarts, Dagster prints hundreds of tracebacks a second.
"""

import os
import re
import select
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import IO

_COLOUR = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")
_BEGINS = re.compile(rb"\d{4}[-/]\d\d[-/]\d\d[ T]|(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")
_TRIED_AGAIN = re.compile(rb"(OperationalError|InterfaceError|AdminShutdown|too many retries for DB)[^\n]*")
_VARYING = re.compile(rb"[\d:.+-]+")
_SILENT_S, _AGAIN_AFTER_S = 1.0, 60.0


class LogCopy:
    """Copies the output of a server; a thread calls it, until all processes that write have ended."""

    def __init__(self, source: IO[bytes], target: IO[bytes], *, is_whole: bool = False) -> None:
        self._source, self._target, self._is_whole = source, target, is_whole
        self._written_at: dict[bytes, float] = {}

    def __call__(self) -> None:
        with suppress(OSError), self._source, self._target:
            for message in self._messages():
                with suppress(OSError):  # a full disk must not hold up the server, which waits until this is read
                    self._target.write(message if self._is_whole else b"".join(self._shortened(message)))
                    self._target.flush()

    def _messages(self) -> Iterator[bytes]:
        """Yield each message with its traceback, whose lines follow it at once."""
        lines, rest = list[bytes](), b""
        while True:
            is_silent = not select.select([self._source], [], [], _SILENT_S)[0]
            read = b"" if is_silent else os.read(self._source.fileno(), 1 << 16)
            *whole, rest = _COLOUR.sub(b"", rest + read).split(b"\n") if read else ([rest] if lines or rest else [b""])
            for line in whole:
                if lines and _BEGINS.match(line):
                    yield b"".join(lines)
                    lines.clear()
                lines.append(line + b"\n")
            if not read and lines:
                yield b"".join(lines)
                lines.clear()
            if not read and not is_silent:
                yield rest
                return

    def _shortened(self, message: bytes) -> Sequence[bytes]:
        """Return a message; if the database did not answer, its first line and the error, once a minute."""
        if (error := _TRIED_AGAIN.search(message)) is None:
            return [message]
        first = message.partition(b"\n")[0]
        kind, now = _VARYING.sub(b"", first), time.monotonic()
        if now - self._written_at.get(kind, -_AGAIN_AFTER_S) < _AGAIN_AFTER_S:
            return []
        self._written_at[kind] = now
        return [first, b"" if error[0] in first else b" " + error[0], b"\n"]
