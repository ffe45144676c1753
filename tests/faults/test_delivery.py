"""At stake: whoever reads what is delivered, and the people in it. A delivery or an erasure that is killed at any step
shows by its manifests one whole batch, and its repeat leaves one object and one manifest of what is published.
"""

from collections.abc import Callable
from datetime import date
from functools import partial

import boto3
import pytest

from churn.database.predictions import BatchInProgress, PredictionStore, read_current
from churn.deployment.services import Deployment
from tests.support.batches import NO_ROWS, record, scored
from tests.support.delivered import read_delivered, require_delivered
from tests.support.faults.house import House
from tests.support.faults.matrix import Stage
from tests.support.faults.moves import DELIVERED, deliver, deliverer_of, erase
from tests.support.faults.worker import DELIVERING, Order

BUCKET, PREFIX = "delivered-faults", "delivered/"
WEEK = date(2024, 9, 2)
VIEW = "SELECT * FROM churn_predictions_current WHERE variant = :variant AND scored_week = :week"
STEPS = list(DELIVERING)
POINTS: dict[str, list[str]] = {
    "the first batch is delivered": [*STEPS[:4], STEPS[5]],
    "another batch is delivered": STEPS[:6],
    "an account is erased": STEPS[1:],
}
CASES = [(action, point) for action, points in POINTS.items() for point in points]


@pytest.fixture(scope="module")
def bucket(whole_stage: Stage) -> str:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    return BUCKET


def publish(house: House, n_rows: int) -> None:
    """Publish a batch of accounts 1 to ``n_rows``."""
    store = PredictionStore(house.deployment.database)
    told = record(n_rows, variant=DELIVERED, source_variant=DELIVERED, scored_week=WEEK)
    batch = BatchInProgress([scored(n_rows)], lambda: (told, NO_ROWS), n_erasures=store.erased().n_erasures)
    store.publish(DELIVERED, WEEK, batch)


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(case, id=", ".join(case)) for case in CASES])
def test_a_delivery_or_an_erasure_that_was_killed_shows_whole_batches_and_is_completed_by_its_repeat(
    stage: Stage, house: House, bucket: str, case: tuple[str, str]
) -> None:
    action, point = case
    deliverer_of(house.deployment, bucket).withdraw(DELIVERED, WEEK)
    publish(house, 40)
    command: Callable[[Deployment], None] = partial(deliver, bucket=bucket)
    if action != "the first batch is delivered":
        command(house.deployment)
    if action == "another batch is delivered":
        publish(house, 50)
    if action == "an account is erased":
        command = partial(erase, bucket=bucket, server=house.server)

    stage.nursery.bear(Order(DELIVERED.key, WEEK, "", point, command=command))

    assert stage.nursery.outlive() == -9
    accounts = [set(rows["account_id"]) for rows in read_delivered(bucket, PREFIX).values()]
    assert accounts in ([], [set(range(1, 41))], [set(range(1, 51))], [set(range(1, 41)) - {2}])
    command(house.deployment)
    view = read_current(house.server, VIEW, variant=DELIVERED.key, week=WEEK)
    assert (2 in view["account_id"]) == (action != "an account is erased")
    require_delivered(bucket, PREFIX, view)
