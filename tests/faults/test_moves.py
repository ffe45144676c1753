"""At stake: which model decides. A promotion or a rollback that is killed at any step is decided or not; once it is, it
scores, whoever comes next completes it, the trail has one line of it, and nothing is moved twice.
"""

from collections.abc import Callable
from datetime import date

import pytest
from mlflow import MlflowClient

from churn.deployment.services import Deployment
from churn.errors import PromotionError
from churn.versions import CHALLENGER, CHAMPION, PREVIOUS
from churn.workflows.promote import Promoter
from tests.support.faults.house import House
from tests.support.faults.ledger import execute
from tests.support.faults.matrix import Stage
from tests.support.faults.moves import VARIANT, promote, roll_back
from tests.support.faults.worker import MOVES, Order

MODEL = VARIANT.registered_model

COMMANDS: dict[str, tuple[Callable[[Deployment], None], dict[str, int], dict[str, int]]] = {
    "promoted": (promote, {CHAMPION: 1, CHALLENGER: 2}, {CHAMPION: 2, PREVIOUS: 1}),
    "rolled_back": (roll_back, {CHAMPION: 2, PREVIOUS: 1}, {CHAMPION: 1, PREVIOUS: 2}),
}
NEXT: dict[str, Callable[[Promoter], object]] = {
    "an evaluation": lambda promoter: promoter.observe(promoter.registry.aliases()),
    "the sensor": lambda promoter: promoter.complete(),
}
DECIDED, ENDED = list(MOVES)[2:], ["the end is committed"]


@pytest.fixture(scope="module")
def two_versions(whole_house: House) -> None:
    client = MlflowClient(whole_house.deployment.tracking_uri)
    first = client.get_model_version(MODEL, "1")
    client.create_model_version(MODEL, first.source, first.run_id, first.tags, model_id=first.model_id)


def set_stage(house: House, wanted: dict[str, int]) -> None:
    """Set the aliases, and the trail of somebody who moved them."""
    client = MlflowClient(house.deployment.tracking_uri)
    for alias in client.get_registered_model(MODEL).aliases:
        client.delete_registered_model_alias(MODEL, alias)
    for alias, version in wanted.items():
        client.set_registered_model_alias(MODEL, alias, str(version))
    execute(house.server, "DELETE FROM model_events WHERE variant = :variant", variant=VARIANT.key)
    house.deployment.promoter().settle(VARIANT)


def in_mlflow(house: House) -> dict[str, int]:
    aliases = MlflowClient(house.deployment.tracking_uri).get_registered_model(MODEL).aliases
    return {alias: int(version) for alias, version in aliases.items()}


def trail(house: House) -> list[tuple[str, str]]:
    query = "SELECT action, state FROM model_events WHERE variant = :variant ORDER BY event_id"
    return [tuple(row) for row in execute(house.server, query, variant=VARIANT.key)]


Case = tuple[str, str, str]
CASES: list[Case] = [(action, point, "the command") for action in COMMANDS for point in MOVES]
CASES += [("promoted", point, who) for point in DECIDED for who in NEXT]
QUICK = [("promoted", point, "the command") for point in DECIDED[:4]] + [("promoted", DECIDED[2], "the sensor")]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=", ".join(case), marks=[] if case in QUICK else [pytest.mark.slow]) for case in CASES],
)
def test_a_move_that_was_killed_is_decided_or_not_and_completed_by_whoever_comes_next(
    stage: Stage, house: House, two_versions: None, case: Case
) -> None:
    action, point, who = case
    command, before, after = COMMANDS[action]
    set_stage(house, before)

    stage.nursery.bear(Order(VARIANT.key, date(2025, 1, 6), "", point, command=command))

    assert stage.nursery.outlive() == -9
    is_decided = point in DECIDED
    champion = house.deployment.registry(read_only=True).resolve(VARIANT).version
    assert champion == (after if is_decided else before)[CHAMPION]
    if who in NEXT:
        NEXT[who](house.deployment.promoter())
    elif point in ENDED:
        with pytest.raises(PromotionError):
            command(house.deployment)
    else:
        command(house.deployment)
    assert in_mlflow(house) == after
    assert trail(house) == [("observed", "done"), (action, "done")]
