"""At stake: a variant that is not registered to the end is never scored. A registration that is killed at any step is
completed by its repeat: one version, its alias set, and nothing unfinished left in MLflow; so are two at once.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path

import boto3
import pytest

from churn.registry.registry import Registry
from churn.registry.tags import DATA_SHA256
from churn.variants import Variant
from churn.versions import CHAMPION, ModelVersion
from churn.workflows.register import describe, log_variant, read_candidate
from tests.support import ROOT
from tests.support.faults.house import MODEL_FILES, House
from tests.support.faults.ledger import execute
from tests.support.faults.matrix import Stage
from tests.support.faults.moves import adopt, register
from tests.support.faults.worker import REGISTERING, Order
from tests.support.services import BUCKET
from tests.support.site import bundled

RUNS = "SELECT status FROM runs JOIN experiments AS e USING (experiment_id) WHERE e.name = :name"
MODELS = """
SELECT CASE status WHEN 1 THEN 'PENDING' ELSE 'READY' END FROM logged_models AS m
JOIN experiments AS e USING (experiment_id) WHERE e.name = :name AND m.lifecycle_stage = 'active'
"""
QUICK = ["the model is created", "the version is registered"]


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    return itertools.count()


@pytest.fixture
def variant(numbers: Iterator[int]) -> Variant:
    """A variant with model files, not registered yet."""
    made = Variant(company=f"r{next(numbers)}")
    for key in MODEL_FILES:
        boto3.client("s3").put_object(Bucket=BUCKET, Key=made.prefix + key, Body=(ROOT / key).read_bytes())
    return made


def state(house: House, variant: Variant) -> tuple[list[int], dict[str, int], Counter[str]]:
    """Return a variant's versions, its aliases, and its runs and models by status, as MLflow's tables have them."""
    name, database = variant.registered_model, house.deployment.mlflow_database
    versions = execute(database, "SELECT version FROM model_versions WHERE name = :name AND current_stage <> "
                       "'Deleted_Internal' ORDER BY 1", name=name)  # fmt: skip
    aliases = execute(database, "SELECT alias, version FROM registered_model_aliases WHERE name = :name", name=name)
    runs = execute(database, RUNS, name=variant.experiment)
    models = execute(database, MODELS, name=variant.experiment)
    return [row[0] for row in versions], dict(map(tuple, aliases)), Counter(row[0] for row in (*runs, *models))


@pytest.mark.parametrize(
    "point", [pytest.param(point, marks=[] if point in QUICK else [pytest.mark.slow]) for point in REGISTERING]
)
def test_a_registration_that_was_killed_is_completed_by_its_repeat(
    stage: Stage, house: House, variant: Variant, point: str
) -> None:
    command = partial(register, key=variant.key)
    stage.nursery.bear(Order(variant.key, date(2025, 1, 6), "", point, command=command))
    assert stage.nursery.outlive() == -9

    command(house.deployment)

    versions, aliases, statuses = state(house, variant)
    assert (versions, aliases) == ([1], {CHAMPION: 1})
    assert {"RUNNING", "PENDING"}.isdisjoint(statuses)
    assert statuses["FINISHED"] + statuses["KILLED"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("point", REGISTERING)
def test_an_adoption_that_was_killed_is_completed_by_its_repeat(
    stage: Stage, house: House, variant: Variant, tmp_path: Path, point: str
) -> None:
    theirs = house.deployment.registry(read_only=False).client
    (tmp_path / "MLmodel").write_text("flavors: {xgboost: {data: model.ubj}}")
    (tmp_path / "model.ubj").write_bytes(bundled("xgb_churn_model_2.bin"))
    theirs.create_registered_model(variant.key)
    version = theirs.create_model_version(variant.key, tmp_path.as_uri())
    theirs.set_registered_model_alias(variant.key, CHAMPION, version.version)
    command = partial(adopt, key=variant.key)
    stage.nursery.bear(Order(variant.key, date(2025, 1, 6), "", point, command=command))
    assert stage.nursery.outlive() == -9

    for _ in range(2):
        command(house.deployment)

    versions, aliases, statuses = state(house, variant)
    assert (versions, aliases) == ([1], {CHAMPION: 1})
    assert {"RUNNING", "PENDING"}.isdisjoint(statuses)


@pytest.mark.parametrize("has_lock", [True, False])
def test_two_registrations_at_once_leave_one_version(house: House, variant: Variant, has_lock: bool) -> None:
    deployment = house.deployment

    def log(_: int) -> ModelVersion:
        registry = deployment.registry(read_only=False)
        if not has_lock:
            registry = Registry(deployment.tracking_uri, deployment.settings.churn_home / "cache")
        sources, location = deployment.sources(), deployment.artifact_location
        return log_variant(registry, sources, variant, location, "test", once=True)[0]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(log, range(2))

    versions, aliases, statuses = state(house, variant)
    assert first.version == second.version == aliases[CHAMPION]
    assert versions == [first.version]
    assert {"RUNNING", "PENDING"}.isdisjoint(statuses)


@pytest.mark.slow
def test_a_version_that_a_killed_training_left_without_an_alias_is_named_by_its_repeat(
    house: House, variant: Variant, tmp_path: Path
) -> None:
    deployment = house.deployment
    registry, location = deployment.registry(read_only=False), deployment.artifact_location(variant)
    run = describe(read_candidate(deployment.sources(), variant, tmp_path), "test")
    trained = replace(run, tags={**run.tags, DATA_SHA256: "0" * 64})
    left = registry.log(variant, location, trained, or_champion=False)

    versions = [registry.log(variant, location, trained) for _ in range(2)]

    assert (left.version, left.alias) == (1, None)
    assert [(one.version, one.alias) for one in versions] == [(1, CHAMPION), (2, None)]
