"""Signal handling of commands: SIGINT, SIGTERM and SIGHUP work at any moment, and none is lost.

Python calls a signal's handler in the main thread between any two instructions, even inside a finalizer or the callback
of a weak reference, where an exception is reported to ``sys.unraisablehook`` and dropped. So a command that waits
(``churn up``, ``churn metrics``) is not interrupted: the handler sets a flag that the command polls while it waits.
Any other command is interrupted by ``KeyboardInterrupt``, which is raised again if it was dropped.
"""

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_POLL_S, _AGAIN_AFTER_S = 0.1, 0.05


class Stopped(KeyboardInterrupt):
    """A command that waits was asked to stop before it was ready, which is no failure of it."""


class StopRequest:
    """Whether this process was asked to stop.

    It is no ``threading.Event``: a handler may run in the thread that has the event's lock, which would be a deadlock.
    """

    is_set = False

    def wait(self, seconds: float = float("inf")) -> bool:
        """Wait until it is set, at most for ``seconds``; returns whether it is set."""
        deadline = time.monotonic() + seconds
        while not self.is_set and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return self.is_set

    def raise_if_set(self) -> None:
        """Raise ``Stopped`` here, where it cannot be dropped."""
        if self.is_set:
            raise Stopped


stop_request = StopRequest()


@contextmanager
def signals_handled(*, waits: bool) -> Iterator[None]:
    """Handle the signals that end a command during a ``with`` block in the main thread.

    SIGTERM is handled even where it was ignored before. Dagster treats it as SIGINT, which a shell's background job
    ignores, and child processes inherit that. For a command that ``waits``, the first signal only sets
    ``stop_request``; a second one interrupts the orderly stop.
    """
    stop_request.is_set = False

    def handle(_number: int, _frame: FrameType | None) -> None:
        is_first, stop_request.is_set = not stop_request.is_set, True
        if not (waits and is_first):
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # Python sets handlers only there
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    report, sys.unraisablehook = sys.unraisablehook, _interrupt_again
    try:
        for number, handler in before.items():
            if number == signal.SIGTERM or handler is not signal.SIG_IGN:  # as nohup and background jobs have it
                signal.signal(number, handle)
        yield
    finally:
        sys.unraisablehook = report
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt_again(dropped: "sys.UnraisableHookArgs") -> None:
    """Raise a dropped ``KeyboardInterrupt`` again, a moment later; report any other error."""
    if dropped.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(dropped)
        return
    again = threading.Timer(_AGAIN_AFTER_S, _thread.interrupt_main, [signal.SIGTERM])
    again.daemon = True
    again.start()


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """Restore the handler of SIGTERM after a library replaced it, as Dagster and Ray do."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
