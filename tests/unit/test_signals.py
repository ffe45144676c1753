"""At stake: a command that is told to stop and does not is killed, and what it started stays behind. A signal may come
at any moment: while libraries are imported, in a finalizer, or where an earlier program left it ignored.
"""

import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable

import pytest

from churn.deployment.command_line import run_command
from churn.signals import signals_handled, sigterm_kept, stop_request
from tests.support import ROOT

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


class Finalized:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)
        [].append(1)  # the handler runs between two instructions


def in_a_finalizer() -> None:
    Finalized()


def in_a_callback() -> None:
    value = Finalized.__new__(type("Value", (), {}))
    reference = weakref.ref(value, lambda _: in_a_call())
    del value
    assert reference() is None


def in_a_call() -> None:
    signal.raise_signal(signal.SIGTERM)
    [].append(1)


@pytest.mark.parametrize("strike", [in_a_finalizer, in_a_callback, in_a_call])
def test_a_command_at_work_is_interrupted_wherever_the_signal_strikes(
    strike: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        strike()
        for _ in range(500):
            time.sleep(0.01)
        pytest.fail("it was not interrupted")

    with pytest.raises(SystemExit) as leaving:
        run_command("churn score", command)

    assert leaving.value.code == 130
    assert capsys.readouterr().err == "churn score: interrupted; run it again to continue\n"


@pytest.mark.parametrize("strike", [in_a_finalizer, in_a_callback, in_a_call])
def test_a_command_that_waits_sees_that_it_was_told_to_stop(strike: Callable[[], None]) -> None:
    with signals_handled(waits=True):
        assert not stop_request.wait(0)
        strike()
        assert stop_request.wait(10)


def test_a_second_signal_interrupts_what_is_done_about_the_first() -> None:
    with signals_handled(waits=True):
        in_a_call()
        with pytest.raises(KeyboardInterrupt):
            in_a_call()


@pytest.mark.parametrize("number", SIGNALS)
def test_handlers_are_put_back_and_what_was_ignored_on_purpose_stays_so(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with signals_handled(waits=True):
            signal.raise_signal(number)
            assert stop_request.is_set == (number == signal.SIGTERM)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_what_a_library_makes_of_sigterm_does_not_stay() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_kept():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_a_command_runs_without_handlers() -> None:
    before, ran = signal.getsignal(signal.SIGTERM), []
    thread = threading.Thread(target=lambda: run_command("churn score", lambda: ran.append(True)))
    thread.start()
    thread.join()
    assert ran == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_command_ends_soon_at_whatever_moment_it_is_told_to() -> None:
    """Twenty moments, from before Python runs to after the command waits."""
    program = (
        "from churn.deployment.command_line import run_command; from churn.signals import stop_request; "
        "run_command('churn up', lambda: print(stop_request.wait()), waits=True)"
    )
    started = [(time.monotonic(), i / 60, start(program)) for i in range(20)]
    for began, after, process in started:
        time.sleep(max(0, began + after - time.monotonic()))
        process.terminate()
    ends = [(*process.communicate(timeout=20), process.returncode) for *_, process in started]

    assert {end for end in ends if end != ("", "", -signal.SIGTERM)} <= {("True\n", "", 0)}


def start(program: str) -> "subprocess.Popen[str]":
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, text=True, **pipes)
