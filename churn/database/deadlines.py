"""Connections that are ended when their server does not answer in time.

A peer that vanished is noticed by TCP. One that takes what it is sent and says nothing (a stuck pooler, a proxy whose
other side is gone) is not, nor does ``statement_timeout`` end it, which is the server's. So one thread of the process
shuts the socket of each connection that is overdue; whoever waits for it gets an error then, as for a lost connection.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg2
import psycopg2.extensions

_LOOK_EVERY_S = 0.5


class _Watchman:
    """Knows until when each connection that is waited for may stay silent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._due: dict[Any, float] = {}
        self._thread: threading.Thread | None = None

    @contextmanager
    def waiting(self, connection: "DeadlineConnection") -> Iterator[None]:
        self._expect(connection)
        try:
            yield
        finally:
            with self._lock:
                self._due.pop(connection, None)

    @contextmanager
    def not_waiting(self, connection: "DeadlineConnection") -> Iterator[None]:
        with self._lock:
            self._due.pop(connection, None)
        try:
            yield
        finally:
            self._expect(connection)

    def _expect(self, connection: "DeadlineConnection") -> None:
        with self._lock:
            self._due[connection] = time.monotonic() + connection.answer_within_s
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._look, name="database watch", daemon=True)
                self._thread.start()

    def _look(self) -> None:
        while True:
            time.sleep(_LOOK_EVERY_S)
            with self._lock:  # so that no connection is closed, and its descriptor another's, meanwhile
                now = time.monotonic()
                for connection in [connection for connection, due in self._due.items() if now > due]:
                    del self._due[connection]
                    with suppress(OSError, psycopg2.Error), socket.socket(fileno=os.dup(connection.fileno())) as peer:
                        peer.shutdown(socket.SHUT_RDWR)


_watchman = _Watchman()
os.register_at_fork(after_in_child=_watchman.__init__)  # type: ignore[misc] # its thread and lock stay behind


class DeadlineConnection(psycopg2.extensions.connection):  # type: ignore[misc] # psycopg2 is untyped
    """A connection each of whose statements, and each block of COPY, must be answered in time."""

    def __init__(self, dsn: str, *, answer_within_s: float) -> None:
        super().__init__(dsn)
        self.answer_within_s = answer_within_s
        self.cursor_factory = _DeadlineCursor

    def commit(self) -> None:
        with _watchman.waiting(self):
            super().commit()

    def rollback(self) -> None:
        with _watchman.waiting(self):
            super().rollback()


class _DeadlineCursor(psycopg2.extensions.cursor):  # type: ignore[misc]
    def execute(self, *arguments: Any) -> None:
        with _watchman.waiting(self.connection):
            super().execute(*arguments)

    def executemany(self, query: Any, rows: Any) -> None:
        for row in rows:  # each in time, not all together
            self.execute(query, row)

    def copy_expert(self, sql: str, file: Any, size: int = 8192) -> None:
        with _watchman.waiting(self.connection):
            super().copy_expert(sql, _Unhurried(file, self.connection), size)


class _Unhurried:
    """A file of COPY whose own time is not the server's."""

    def __init__(self, file: Any, connection: DeadlineConnection) -> None:
        self._file = file
        self._connection = connection

    def read(self, size: int) -> bytes:
        with _watchman.not_waiting(self._connection):
            return bytes(self._file.read(size))

    def write(self, block: bytes) -> None:
        with _watchman.not_waiting(self._connection):
            self._file.write(block)
