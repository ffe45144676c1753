"""The house, furnished once for this folder, as a reader looks into it all the while, and the stage in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faults.house import House, open_house, warmth_of
from tests.support.faults.matrix import Stage, open_stage
from tests.support.faults.worker import OPERATIONS_WARM, Nursery


@pytest.fixture(scope="package")
def new_nursery(request: pytest.FixtureRequest) -> Iterator[Nursery]:
    """It imports while the house is built; what operations need, if any test has a bench."""
    has_bench = any("bench" in getattr(item, "fixturenames", ()) for item in request.session.items)
    nursery = Nursery(OPERATIONS_WARM if has_bench else ())
    yield nursery
    nursery.close()


@pytest.fixture(scope="package")
def whole_house(homes: Path, new_nursery: Nursery) -> Iterator[House]:
    home = homes / "faults"
    home.mkdir()
    with open_house(home) as house:
        yield house


@pytest.fixture(scope="package")
def nursery(new_nursery: Nursery, whole_house: House) -> Nursery:
    new_nursery.begin(whole_house.environment, whole_house.deployment, warmth_of(whole_house))
    new_nursery.wait()
    return new_nursery


@pytest.fixture(scope="package")
def whole_stage(nursery: Nursery, whole_house: House) -> Iterator[Stage]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in whole_house.environment.items():
            patch.setenv(name, value)
        with open_stage(whole_house, nursery) as stage:
            yield stage


@pytest.fixture
def house(whole_house: House, clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> House:
    """The house, its environment this test's."""
    for name, value in whole_house.environment.items():
        monkeypatch.setenv(name, value)
    return whole_house


@pytest.fixture
def stage(whole_stage: Stage, house: House) -> Stage:
    return whole_stage
