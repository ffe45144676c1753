"""How long we wait for others: a limit by the clock for what may hang, and no waiting where others waited in vain.

Retries are where the work is; here is what bounds them. Pure: knows no service.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from churn.errors import TransientError

_Out = TypeVar("_Out")

FAILURES_IN_A_ROW = 3
PAUSE_S = 30.0


def within(seconds: float, work: Callable[[], _Out]) -> _Out:
    """Do something that may hang, by the clock: a peer that sends a byte now and then resets every socket's timeout.

    What hangs is left behind in a daemon thread, so it must do no harm when it goes on: read, not write.

    Raises:
        TimeoutError: If it is not done in time.
    """
    outcome: Future[_Out] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 raised where it is waited for
            outcome.set_exception(error)

    threading.Thread(target=run, name="within", daemon=True).start()
    return outcome.result(timeout=seconds)


class Circuit:
    """Spares callers a service that is down, so that not every one of thousands waits for it in vain.

    After a few failed calls in a row, later ones fail at once with the last error, for a while; then one of them tries
    for all. A call that succeeds ends it. Safe to share among threads.
    """

    def __init__(self, *, failures: int = FAILURES_IN_A_ROW, pause_s: float = PAUSE_S) -> None:
        self._most = failures
        self._pause_s = pause_s
        self._lock = threading.Lock()
        self._failures = 0
        self._closed_until = 0.0
        self._last: TransientError | None = None

    def call(self, work: Callable[[], _Out], failing: type[TransientError]) -> _Out:
        """Do it, unless it would be in vain.

        Args:
            failing: What ``work`` raises when the service is down; other errors say nothing about it.

        Raises:
            TransientError: What ``work`` raised, or the kind of error that others' calls ended with.
        """
        self._require_hope()
        try:
            result = work()
        except failing as error:
            with self._lock:
                self._failures += 1
                self._last = type(error)(str(error))  # without the frames, which hold a variant's rows
                self._closed_until = time.monotonic() + self._pause_s
            raise
        with self._lock:
            self._failures, self._last = 0, None
        return result

    def _require_hope(self) -> None:
        with self._lock:
            if self._last is None or self._failures < self._most:
                return
            now = time.monotonic()
            if now >= self._closed_until:  # this caller tries for all
                self._closed_until = now + self._pause_s
                return
            raise type(self._last)(
                f"{self._last} (so it was {self._failures} times in a row; it is not tried again for "
                f"{self._closed_until - now:.0f} s)"
            )
