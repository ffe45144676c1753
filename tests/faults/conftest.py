"""The house, furnished once for this folder, as a reader looks into it all the while, and the stage in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faults.house import House, open_house, warmth_of
from tests.support.faults.matrix import Stage, open_stage
from tests.support.faults.worker import Nursery


@pytest.fixture(scope="package")
def whole_house(homes: Path) -> Iterator[House]:
    home = homes / "faults"
    home.mkdir()
    with open_house(home) as house:
        yield house


@pytest.fixture(scope="package")
def whole_stage(whole_house: House) -> Iterator[Stage]:
    nursery = Nursery(whole_house.environment, whole_house.deployment, warmth_of(whole_house))
    try:
        nursery.wait()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in whole_house.environment.items():
                patch.setenv(name, value)
            with open_stage(whole_house, nursery) as stage:
                yield stage
    finally:
        nursery.close()


@pytest.fixture
def house(whole_house: House, clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> House:
    """The house, its environment this test's."""
    for name, value in whole_house.environment.items():
        monkeypatch.setenv(name, value)
    return whole_house


@pytest.fixture
def stage(whole_stage: Stage, house: House) -> Stage:
    return whole_stage
