"""Connections that are closed when their server does not answer in time, and retries after a lock timeout.

TCP detects a peer that vanished, but not one that accepts data and never answers (a stuck pooler, a proxy that has lost
its server), and ``statement_timeout`` runs on the server. So one thread of the process shuts down the socket of each
overdue connection. The thread that waits for it then gets the error of a lost connection.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import psycopg2
import psycopg2.extensions
import tenacity

from churn.errors import LockTimeoutError

_CHECK_EVERY_S = 0.5


retry_locked = tenacity.retry(
    retry=tenacity.retry_if_exception_type(LockTimeoutError),
    stop=tenacity.stop_after_delay(600),  # by then a reader that forgot its transaction was disconnected
    wait=tenacity.wait_random_exponential(multiplier=0.5, max=15),
    before_sleep=tenacity.before_sleep_log(logging.getLogger(__name__), logging.WARNING),
    reraise=True,
)
"""Decorates a function whose strong locks have a short timeout: others queue behind it only that long at a time."""


class _Watchdog:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._due: dict[Any, float] = {}
        self._thread: threading.Thread | None = None

    @contextmanager
    def limit(self, connection: "DeadlineConnection", *, pauses: bool = False) -> Iterator[None]:
        """Run a connection's clock during the block, or stop it meanwhile."""
        start, stop = self._start_clock, self._stop_clock
        at_start, at_end = (stop, start) if pauses else (start, stop)
        at_start(connection)
        try:
            yield
        finally:
            at_end(connection)

    def _stop_clock(self, connection: "DeadlineConnection") -> None:
        with self._lock:
            self._due.pop(connection, None)

    def _start_clock(self, connection: "DeadlineConnection") -> None:
        with self._lock:
            self._due[connection] = time.monotonic() + connection.answer_within_s
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._close_overdue, name="database deadlines", daemon=True)
                self._thread.start()

    def _close_overdue(self) -> None:
        while True:
            time.sleep(_CHECK_EVERY_S)
            with self._lock:  # no connection is closed, and its descriptor reused, in between
                now = time.monotonic()
                for connection in [connection for connection, due in self._due.items() if now > due]:
                    del self._due[connection]
                    with suppress(OSError, psycopg2.Error), socket.socket(fileno=os.dup(connection.fileno())) as peer:
                        peer.shutdown(socket.SHUT_RDWR)


_watchdog = _Watchdog()
os.register_at_fork(after_in_child=_watchdog.__init__)  # type: ignore[misc] # a child has no thread


class DeadlineConnection(psycopg2.extensions.connection):  # type: ignore[misc] # psycopg2 is untyped
    """A connection with a time limit for each statement and each block of COPY."""

    def __init__(self, dsn: str, *, answer_within_s: float) -> None:
        super().__init__(dsn)
        self.answer_within_s = answer_within_s
        self.cursor_factory = _DeadlineCursor

    def commit(self) -> None:
        with _watchdog.limit(self):
            super().commit()

    def rollback(self) -> None:
        with _watchdog.limit(self):
            super().rollback()


class _DeadlineCursor(psycopg2.extensions.cursor):  # type: ignore[misc]
    def execute(self, *arguments: Any) -> None:
        with _watchdog.limit(self.connection):
            super().execute(*arguments)

    def copy_expert(self, sql: str, file: Any, size: int = 8192) -> None:
        paused = _watchdog.limit(self.connection, pauses=True)  # time in the file's methods is not the server's
        methods = {name: paused(getattr(file, name)) for name in ("read", "write") if hasattr(file, name)}
        with _watchdog.limit(self.connection):
            super().copy_expert(sql, SimpleNamespace(**methods), size)
