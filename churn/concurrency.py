"""Threads that keep order, timeouts, and a circuit breaker. Retries are where the work is; here is what bounds them."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from churn.errors import TransientError

_In = TypeVar("_In")
_Out = TypeVar("_Out")

CORES = 2
FAILURES_IN_A_ROW = 3
PAUSE_S = 30.0


def without_frames(error: BaseException) -> BaseException:
    """Drop the traceback: its frames pin a variant's model and rows in memory."""
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    return error


def in_threads(work: Callable[[_In], _Out], items: Iterable[_In], threads: int = CORES) -> Iterator[_Out]:
    """Map in order on a few threads, with bounded read-ahead."""
    if isinstance(items, Sized) and len(items) == 1:  # starting a thread for it takes longer than small work does
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        begun: deque[Future[_Out]] = deque()
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) > threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def within(seconds: float, work: Callable[[], _Out]) -> _Out:
    """Call ``work`` with a timeout by the clock: a peer that sends a byte now and then resets every socket's timeout.

    Work that hangs stays behind in a daemon thread, so it must do no harm when it goes on: read, not write.

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


class CircuitBreaker:
    """Opens after a few failed calls in a row, lest thousands of variants wait for a service that is down.

    While open, calls fail at once with the last error. After the pause one call is let through: its success closes
    the breaker, its failure starts another pause. Safe to share among threads.
    """

    def __init__(self, *, failures: int = FAILURES_IN_A_ROW, pause_s: float = PAUSE_S) -> None:
        self._opens_after = failures
        self._pause_s = pause_s
        self._lock = threading.Lock()
        self._failures = 0
        self._open_until = 0.0
        self._last: TransientError | None = None

    def call(self, work: Callable[[], _Out], failing: type[TransientError]) -> _Out:
        """Call ``work``, or fail at once while the breaker is open.

        Args:
            failing: What ``work`` raises when the service is down; other errors leave the breaker as it is.

        Raises:
            TransientError: What ``work`` raised, or the kind of error that opened the breaker.
        """
        self._require_closed()
        try:
            result = work()
        except failing as error:
            with self._lock:
                self._failures += 1
                self._last = type(error)(str(error))  # without the frames, which pin a variant's rows
                self._open_until = time.monotonic() + self._pause_s
            raise
        with self._lock:
            self._failures, self._last = 0, None
        return result

    def _require_closed(self) -> None:
        with self._lock:
            if self._last is None or self._failures < self._opens_after:
                return
            now = time.monotonic()
            if now >= self._open_until:  # this call tries for all
                self._open_until = now + self._pause_s
                return
            raise type(self._last)(
                f"{self._last} (failed {self._failures} times in a row; next attempt in {self._open_until - now:.0f} s)"
            )
