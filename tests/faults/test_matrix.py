"""At stake: the promises. Whatever breaks, and whenever: no prediction is lost, doubled or wrong, no reader sees half a
batch, nothing stale goes unflagged, and after the retry the week is published exactly once as current.

The short form of ``just faults``: each fault of the matrix a few times, where that makes hundreds.
"""

from importlib import import_module
from operator import attrgetter

import pytest

from tests.support.faults.matrix import ROWS, SLOW, Row, Stage, run_row
from tests.support.faults.worker import DELIVERING, MOVES, POINTS, REGISTERING


def test_each_point_at_which_a_worker_is_killed_is_a_function_of_the_product() -> None:
    for module, path, *_ in {**POINTS, **MOVES, **REGISTERING, **DELIVERING}.values():
        assert callable(attrgetter(path)(import_module(module)))


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.name in SLOW else []) for row in ROWS]
)
def test_the_promises_hold(stage: Stage, row: Row) -> None:
    without_naive = Row(row.name, row.make, row.many)

    tally, _ = run_row(without_naive, stage, row.few)

    assert tally.n == row.few, f"the fault was made {tally.n} times of {row.few}"
    assert tally.harm == {}, (tally, stage.reader.examples)
    assert tally.readings > 0


def test_the_naive_way_is_caught_by_the_same_judge(stage: Stage) -> None:
    """A judge who finds nothing anywhere would prove nothing."""
    row = next(row for row in ROWS if row.name == "worker killed at a random instant")

    _, naive = run_row(Row(row.name, lambda _: "not made", 1, row.naive), stage, 1)

    assert naive is not None
    assert naive.doubled > 0
