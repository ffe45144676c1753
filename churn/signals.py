"""How a command ends when it is told to: SIGINT, SIGTERM and SIGHUP work at any moment, and none is lost.

Python calls a signal's handler in the main thread between any two instructions, even inside a finalizer or the callback
of a weak reference, where an exception is reported to ``sys.unraisablehook`` and dropped. So a command that waits
(``churn up``, ``churn metrics``) is not interrupted: the handler sets a flag that the command looks at while it waits.
Any other command is interrupted by ``KeyboardInterrupt``, which is raised again where it was dropped.
"""

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_LOOK_EVERY_S = 0.1
_AGAIN_AFTER_S = 0.05


class StopRequest:
    """Whether this process was told to stop.

    It is no ``threading.Event``: a handler runs in the thread that may hold the event's lock, and would then wait for
    itself.
    """

    def __init__(self) -> None:
        self.is_made = False

    def wait(self, seconds: float = float("inf")) -> bool:
        """Wait until it is made, or for so long; returns whether it is made."""
        deadline = time.monotonic() + seconds
        while not self.is_made and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY_S)
        return self.is_made

    def raise_if_made(self) -> None:
        """Raise ``KeyboardInterrupt`` here, where it cannot be dropped."""
        if self.is_made:
            raise KeyboardInterrupt


stop_request = StopRequest()


@contextmanager
def signals_handled(*, waits: bool) -> Iterator[None]:
    """Handle the signals that end a command, for the length of a ``with`` block in the main thread.

    SIGTERM is handled even where it was ignored before. Dagster treats it as SIGINT, which a shell's background job
    ignores, and child processes inherit that.

    Args:
        waits: The first signal only makes ``stop_request``; a second one interrupts what is done about the first.
    """
    stop_request.is_made = False

    def handle(_number: int, _frame: FrameType | None) -> None:
        is_first, stop_request.is_made = not stop_request.is_made, True
        if not (waits and is_first):
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # where Python refuses handlers
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
    """Raise a ``KeyboardInterrupt`` that was dropped once more, a moment later; report any other error."""
    if dropped.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(dropped)
        return
    again = threading.Timer(_AGAIN_AFTER_S, _thread.interrupt_main, [signal.SIGTERM])
    again.daemon = True
    again.start()


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """Keep what this process does on SIGTERM in spite of a library that changes it, as Dagster and Ray do."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
