"""At stake: everything that changes state. Whatever is killed, and whenever: the same command again completes it, and
nothing is lost, doubled, half done or wrong.

The short form of ``just faults``, in a minute: one kill of each operation, where that makes all.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from random import Random
from unittest.mock import patch

import pytest

from churn.storage.places import Bucket, ReplacedError
from tests.support.faults.bench import Bench, Place, open_bench
from tests.support.faults.driver import Driver, run_naively
from tests.support.faults.house import House
from tests.support.faults.operations import OPERATIONS, Operation
from tests.support.faults.worker import Nursery
from tests.support.services import BUCKET, bench_environment

CASES = [(one, place) for one in OPERATIONS for place in one.places]
SHORT = [case for case in CASES if case[0].name not in ("log_model --all", "training") or case[1] == "folder"]


def test_each_step_at_which_an_operation_is_killed_is_a_function_of_the_product() -> None:
    for operation, place in CASES:
        for module, path, *_ in operation.steps(place).values():
            assert callable(attrgetter(path)(import_module(module)))


@pytest.fixture(scope="module")
def bench(nursery: Nursery, whole_house: House) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in whole_house.environment.items():
            patch.setenv(name, value)
        with open_bench(whole_house, nursery, 9) as bench:
            yield bench


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operation", "place"), [pytest.param(*case, id=f"{case[0].name}, {case[1]}") for case in SHORT]
)
def test_what_was_killed_is_completed_by_its_repeat(
    house: House, bench: Bench, operation: Operation, place: Place
) -> None:
    tally = Driver(operation, bench, place, Random(f"{operation.name}, {place}")).once()  # noqa: S311 when to kill

    assert tally.n == 1
    assert tally.harm == {}, tally


@pytest.mark.slow
def test_the_naive_way_is_caught_by_the_same_check(house: House, bench: Bench) -> None:
    """A check that finds nothing anywhere would prove nothing."""
    ingestion = next(one for one in OPERATIONS if one.name == "ingestion")

    tally = run_naively(ingestion, bench)

    assert tally is not None
    assert tally.doubled > 0


@pytest.mark.slow
def test_no_change_is_lost_of_writers_that_replace_an_object_on_condition(homes: Path) -> None:
    """Deliveries rely on it; an emulator that checks and then writes would prove nothing."""
    with patch.dict(os.environ), bench_environment(homes / "conditional", "seaweedfs"):
        bucket = Bucket(BUCKET)
        bucket.write("counter", b"0")

        def add(_: int) -> None:
            n_done = 0
            while n_done < 10:
                found = bucket.open("counter")
                body = str(int(b"".join(found.chunks)) + 1).encode()
                with suppress(ReplacedError):
                    bucket.swap("counter", body, found.entry.version)
                    n_done += 1

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(add, range(4)))

        assert b"".join(bucket.open("counter").chunks) == b"40"
