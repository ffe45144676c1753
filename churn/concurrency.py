"""An ordered map in threads, timers of stages, a timeout, and a circuit breaker."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

from churn.errors import TransientError

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_Failure = type[TransientError]
Seconds = list[tuple[str, float]]

FAILURES_IN_A_ROW, PAUSE_S = 3, 30.0


def without_frames(error: BaseException) -> BaseException:
    """Drop the traceback: its frames pin a variant's model and rows in memory."""
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    return error


@cache
def cores() -> int:
    """Return the processor cores that this process may use, by its affinity and its control group's quota."""
    from joblib import cpu_count  # its import takes 0.1 s

    return int(cpu_count())


def in_threads(work: Callable[[_In], _Out], items: Iterable[_In], threads: int | None = None) -> Iterator[_Out]:
    """Map in order on threads, as many as there are cores by default, with bounded read-ahead."""
    if isinstance(items, Sized) and len(items) == 1:  # starting a thread takes longer than a small task
        yield from map(work, items)
        return
    threads = threads or cores()
    with ThreadPoolExecutor(threads) as pool:
        started: deque[Future[_Out]] = deque()
        for item in items:
            started.append(pool.submit(work, item))
            if len(started) > threads:
                yield started.popleft().result()
        while started:
            yield started.popleft().result()


@contextmanager
def timed(stage: str, into: Seconds) -> Iterator[None]:
    """Add the seconds that the block takes; threads may add to one list."""
    started = time.perf_counter()
    yield
    into.append((stage, time.perf_counter() - started))


def each_timed(stage: str, into: Seconds, items: Iterable[_In]) -> Iterator[_In]:
    """Yield items, and add the seconds that each took to come."""
    iterator = iter(items)
    while True:
        with timed(stage, into):
            item = next(iterator, None)
        if item is None:
            return
        yield item


def within(seconds: float, work: Callable[[], _Out]) -> _Out:
    """Call ``work`` with a total timeout: a peer that sends a byte now and then resets every socket's timeout.

    Work that hangs continues in a daemon thread, so it may only read, not write; here, ``TimeoutError`` is raised.
    """
    outcome: Future[_Out] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 raised by result()
            outcome.set_exception(error)

    threading.Thread(target=run, name="within", daemon=True).start()
    return outcome.result(timeout=seconds)


class CircuitBreaker:
    """Opens after a few failed calls in a row, so that not every variant of a fleet waits for a service that is down.

    While it is open, calls fail at once with the last error. After the pause one call is tried: its success closes the
    breaker, its failure starts another pause. Thread-safe.
    """

    def __init__(self, *, failures: int = FAILURES_IN_A_ROW, pause_s: float = PAUSE_S) -> None:
        self._opens_after, self._pause_s = failures, pause_s
        self._lock = threading.Lock()
        self._failures, self._open_until = 0, 0.0
        self._last: TransientError | None = None
        self._wait_until: float | None = None

    def call(self, work: Callable[[], _Out], *failing: _Failure, waits_for: _Failure | None = None) -> _Out:
        """Call ``work``, or fail at once with the last error's type while the breaker is open.

        Args:
            failing: The errors that ``work`` raises when the service is down; other errors do not count.
            waits_for: If an error of this type opened the breaker, wait until it tries again, once for all callers:
                what passes within the pause then costs a fleet one wait, and what lasts longer does not cost it more.
        """
        if not (waits_for and self._has_waited(waits_for)):
            self._require_closed()
        try:
            result = work()
        except failing as error:
            with self._lock:
                self._failures += 1
                self._last = type(error)(str(error))  # without frames, which pin a variant's rows
                self._open_until = time.monotonic() + self._pause_s
            raise
        with self._lock:
            self._failures, self._last, self._wait_until = 0, None, None
        return result

    def _has_waited(self, failing: _Failure) -> bool:
        with self._lock:
            if not isinstance(self._last, failing) or self._failures < self._opens_after:
                return False
            self._wait_until = self._wait_until or self._open_until
            left_s = self._wait_until - time.monotonic()
        time.sleep(max(left_s, 0))
        return left_s > 0

    def _require_closed(self) -> None:
        with self._lock:
            if self._last is None or self._failures < self._opens_after:
                return
            now = time.monotonic()
            if now >= self._open_until:  # this call is the one that tries
                self._open_until = now + self._pause_s
                return
            failed, left_s = f"failed {self._failures} times in a row", self._open_until - now
            raise type(self._last)(f"{self._last} ({failed}; next attempt in {left_s:.0f} s)")
