"""At stake: whom a list holds. Selection, exclusion, export and recording are killed at their steps, at random instants
and beside themselves: no account is in two arms, no excluded account on a list, no file without its row in the trail,
and the same command again loses and doubles nothing.
"""

from collections.abc import Iterator
from random import Random

import pytest

from tests.support.faults.bench import Bench, open_bench
from tests.support.faults.decisions import OPERATIONS
from tests.support.faults.driver import Driver
from tests.support.faults.house import House
from tests.support.faults.matrix import Stage
from tests.support.faults.operations import Operation


@pytest.fixture(scope="module")
def bench(whole_house: House, whole_stage: Stage) -> Iterator[Bench]:
    assert whole_stage.nursery is not None
    with pytest.MonkeyPatch.context() as patch:
        for name, value in whole_house.environment.items():
            patch.setenv(name, value)
        with open_bench(whole_house, whole_stage.nursery, 8) as bench:
            yield bench


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.name)
@pytest.mark.parametrize("share", [0.1, 1.0], ids=["short", "full"])
def test_a_decision_that_was_killed_is_made_once_by_its_repeat(
    house: House, bench: Bench, operation: Operation, share: float
) -> None:
    tally = Driver(operation, bench, "S3", Random(operation.name)).run(share)  # noqa: S311 when to kill

    print(operation.name, tally)
    assert tally.n >= (3 if share < 1 else 70)
    assert tally.harm == {}, tally
