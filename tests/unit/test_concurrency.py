"""At stake: a service that is down must cost a fleet of thousands a few waits, and one that is back must be used."""

import threading
import time

import pytest

from churn.concurrency import CircuitBreaker, within
from churn.errors import InputError, SourceUnavailableError


def fail() -> None:
    raise SourceUnavailableError("s3://bucket kept failing")


def call(circuit: CircuitBreaker, work=fail) -> str:
    """Say what came of a call."""
    asked = []

    def noted() -> None:
        asked.append(True)
        work()

    try:
        circuit.call(noted, SourceUnavailableError)
    except SourceUnavailableError as error:
        return f"{'asked' if asked else 'spared'}: {error}"
    return "done"


def test_after_a_few_failures_in_a_row_callers_are_spared_with_the_reason():
    circuit = CircuitBreaker(failures=3, pause_s=60)

    said = [call(circuit) for _ in range(5)]

    assert [text.split(":")[0] for text in said] == ["asked"] * 3 + ["spared"] * 2
    assert "s3://bucket kept failing (failed 3 times in a row; next attempt in" in said[-1]


def test_a_success_between_failures_keeps_it_from_counting():
    circuit = CircuitBreaker(failures=2, pause_s=60)

    said = [call(circuit, work) for work in (fail, lambda: None) * 4]

    assert [text.split(":")[0] for text in said] == ["asked", "done"] * 4


def test_after_the_pause_one_caller_tries_for_all_and_its_success_ends_it():
    circuit = CircuitBreaker(failures=1, pause_s=0.2)
    call(circuit)
    time.sleep(0.25)
    trying, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        trying.set()
        assert go_on.wait(10)

    thread = threading.Thread(target=call, args=(circuit, slow))
    thread.start()
    assert trying.wait(10)
    assert call(circuit).startswith("spared")
    go_on.set()
    thread.join()

    assert call(circuit, lambda: None) == "done"


def test_errors_of_another_kind_say_nothing_about_the_service():
    circuit = CircuitBreaker(failures=1, pause_s=60)

    def damaged() -> None:
        raise InputError("not a Parquet file")

    for _ in range(3):
        with pytest.raises(InputError):
            circuit.call(damaged, SourceUnavailableError)
    assert call(circuit, lambda: None) == "done"


def test_what_hangs_is_left_after_the_time_that_it_has():
    release = threading.Event()
    started = time.monotonic()

    with pytest.raises(TimeoutError):
        within(0.2, lambda: release.wait(30))

    assert time.monotonic() - started < 5
    release.set()


def test_results_and_errors_come_through():
    assert within(10, lambda: 7) == 7
    with pytest.raises(SourceUnavailableError):
        within(10, fail)
