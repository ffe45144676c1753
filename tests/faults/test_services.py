"""At stake: what a service that is down, denied, slow or changed in mid-run costs a fleet, and whether it is told.

Waiting in full for each of two thousand variants would take days; scoring with what was not meant would be worse.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date

import boto3
import pytest
import sqlalchemy as sa
from mlflow import MlflowClient

import churn.workflows.score as pipeline_module
from churn.concurrency import FAILURES_IN_A_ROW
from churn.database.connection import WRITER, create_engine
from churn.database.predictions import PredictionStore
from churn.deployment.credentials import read_secret
from churn.deployment.settings import Settings
from churn.errors import (
    AccessDeniedError,
    ChurnError,
    CredentialsError,
    RegistryUnavailableError,
    SecretsUnavailableError,
    TransientError,
)
from churn.storage.places import ATTEMPTS
from churn.variants import Variant
from churn.workflows.register import log_variant
from churn.workflows.score import Scorer, score_fleet
from tests.support.batches import week_request
from tests.support.faults.house import LOGIN, VARIANTS, House, week_of
from tests.support.faults.ledger import execute
from tests.support.faults.matrix import Stage
from tests.support.faults.proxy import proxy_to
from tests.support.faults.s3 import FaultyHttp, Wrong, faulty_http

WEEK = week_of(390)
KEYS = [variant.key for variant in VARIANTS] * 5


@pytest.fixture
def http(house: House) -> Iterator[FaultyHttp]:
    """What stands before S3 and Secrets Manager."""
    with faulty_http(house.environment["AWS_ENDPOINT_URL"]) as faulty:
        yield faulty


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variant waits for seconds, not for a minute and a half."""
    monkeypatch.setattr(pipeline_module, "_RETRY_FOR_S", 2)


def score_all(scorer: Scorer, week: date = WEEK) -> dict[str, list[object]]:
    done: dict[str, list[object]] = {}
    for key, result in score_fleet(
        scorer, KEYS, week_request(week, dagster_run_id="fleet"), lambda outcome, _: outcome
    ):
        done.setdefault(key, []).append(result)
    return done


@pytest.mark.slow
def test_a_bucket_that_is_down_costs_a_fleet_a_few_waits(house: House, stage: Stage, http: FaultyHttp) -> None:
    http.wrong = Wrong("status", status=503)
    scorer = house.scorer(bucket=stage.bucket(http.url))

    done = score_all(scorer)

    assert http.n_requests <= (FAILURES_IN_A_ROW + 4) * ATTEMPTS  # two are at work at once, and wait once
    records = [outcome.record for outcomes in done.values() for outcome in outcomes]
    assert len(records) == len(KEYS)
    assert {record.source for record in records} == {"local"}
    assert all("kept failing" in record.fallback_reason for record in records)


@pytest.mark.slow
def test_where_no_local_copy_is_allowed_the_rest_of_a_fleet_fails_at_once(
    house: House, stage: Stage, http: FaultyHttp, impatient: None
) -> None:
    http.wrong = Wrong("status", status=503)
    scorer = house.scorer(bucket=stage.bucket(http.url), fallback=False)

    started = time.monotonic()
    errors = [error for results in score_all(scorer).values() for error in results]

    assert len(errors) == len(KEYS)
    assert all(isinstance(error, TransientError) for error in errors)  # so that a later run takes them up
    assert sum("times in a row" in str(error) for error in errors) >= len(KEYS) - FAILURES_IN_A_ROW - 2
    assert time.monotonic() - started < 60


def test_a_registry_that_is_down_costs_a_fleet_a_few_waits(house: House, impatient: None) -> None:
    tracking = sa.make_url(house.deployment.tracking_uri)
    with proxy_to(int(tracking.port or 0)) as proxy:
        scorer = house.scorer(tracking=tracking.set(port=proxy.port).render_as_string(hide_password=False))
        scorer.score_variant(week_request(WEEK).of(VARIANTS[0]))
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
    execute(house.server, ended, name=tracking.database)  # and nobody listens any more

    errors = []
    for variant in [*VARIANTS] * 4:
        with pytest.raises(RegistryUnavailableError) as refused:
            scorer.score_variant(week_request(WEEK).of(variant))
        errors.append(str(refused.value))

    assert sum("times in a row" in error for error in errors) == len(errors) - FAILURES_IN_A_ROW
    assert all("check MLFLOW_TRACKING_URI" in error for error in errors)


def test_an_alias_moved_in_mid_run_changes_no_score_of_that_run(house: House) -> None:
    deployment, variant = house.deployment, VARIANTS[3]
    registry = deployment.registry(read_only=False)
    new, _ = log_variant(registry, deployment.sources(), variant, deployment.artifact_location, "faults", alias="next")
    client = MlflowClient(deployment.tracking_uri)
    old = client.get_model_version_by_alias(variant.registered_model, "champion").version
    keys, versions = [VARIANTS[0].key, VARIANTS[1].key, VARIANTS[2].key, variant.key], {}

    def move(outcome: object, _: Scorer) -> int:
        if outcome.record.variant == VARIANTS[0]:  # type: ignore[attr-defined]
            client.set_registered_model_alias(variant.registered_model, "champion", str(new.version))
        return outcome.record.model_version  # type: ignore[attr-defined,no-any-return]

    try:
        versions = dict(score_fleet(house.scorer(), keys, week_request(WEEK, dagster_run_id="moved"), move))
        assert versions[variant.key] == int(old)
        after = dict(score_fleet(house.scorer(), keys, week_request(WEEK, dagster_run_id="after"), move))
        assert after[variant.key] == new.version
    finally:
        client.set_registered_model_alias(variant.registered_model, "champion", old)


@pytest.fixture
def secret(house: House, http: FaultyHttp, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The login's credentials in Secrets Manager, which is reached by way of the faults."""
    url = house.deployment.database
    name = f"faults/{time.monotonic_ns()}"
    values = {"username": url.username, "password": url.password, "host": url.host, "port": url.port}
    boto3.client("secretsmanager").create_secret(Name=name, SecretString=json.dumps(values))
    monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", http.url)
    return Settings(_env_file=None, mlflow_secret_name=name)  # type: ignore[call-arg]


def refusal(code: str) -> bytes:
    return json.dumps({"__type": code, "message": "no"}).encode()


def test_a_denied_secret_is_told_at_once(secret: Settings, http: FaultyHttp) -> None:
    http.wrong = Wrong("status", status=400, body=refusal("AccessDeniedException"))

    with pytest.raises(AccessDeniedError, match="secretsmanager:GetSecretValue"):
        read_secret(secret)

    assert http.n_requests == 1


def test_a_throttled_secret_is_asked_for_again(secret: Settings, http: FaultyHttp) -> None:
    http.wrong = Wrong("status", 2, 400, refusal("ThrottlingException"))

    assert read_secret(secret).username == LOGIN
    assert http.n_faults == 2


def test_a_secret_throttled_for_long_is_worth_a_later_try(secret: Settings, http: FaultyHttp) -> None:
    http.wrong = Wrong("status", status=400, body=refusal("ThrottlingException"))

    with pytest.raises(SecretsUnavailableError, match="ThrottlingException"):
        read_secret(secret)

    assert http.n_requests == 4


def test_a_password_rotated_in_mid_run_fails_clearly_and_the_next_run_reads_the_new_one(
    house: House, secret: Settings
) -> None:
    url = read_secret(secret).set(database=house.server.database)
    scorer = replace(house.scorer(), store=PredictionStore(url))
    scorer.score_variant(week_request(WEEK).of(VARIANTS[0]))
    old = str(url.password)
    try:
        execute(house.server, f"ALTER ROLE {LOGIN} PASSWORD 'a new one'")
        scorer.score_variant(week_request(WEEK).of(VARIANTS[1]))  # what is connected stays so
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = :login"
        execute(house.server, ended, login=LOGIN)
        with pytest.raises(CredentialsError, match=f"refused the password of user '{LOGIN}'") as refused:
            scorer.score_variant(week_request(WEEK).of(VARIANTS[2]))
        assert old not in str(refused.value)

        rotated = {"username": LOGIN, "password": "a new one", "host": url.host, "port": url.port}
        client = boto3.client("secretsmanager")
        client.put_secret_value(SecretId=secret.mlflow_secret_name, SecretString=json.dumps(rotated))
        again = PredictionStore(read_secret(secret).set(database=house.server.database))
        assert replace(scorer, store=again).score_variant(week_request(WEEK).of(VARIANTS[2])).record.n_rows_scored > 0
    finally:
        execute(house.server, f"ALTER ROLE {LOGIN} PASSWORD '{old}'")


def test_a_server_that_takes_a_statement_and_says_nothing_is_given_up(house: House) -> None:
    engine = create_engine(house.deployment.database, role=WRITER, answer_within_s=1)
    started = time.monotonic()
    with pytest.raises(sa.exc.OperationalError), engine.connect() as connection:
        connection.execute(sa.text("SELECT pg_sleep(30)"))
    assert time.monotonic() - started < 10


def test_a_failure_of_one_variant_alone_spares_the_others_nothing(house: House) -> None:
    scorer = house.scorer()
    for _ in range(FAILURES_IN_A_ROW + 1):
        with pytest.raises(ChurnError):
            scorer.score_variant(week_request(WEEK).of(Variant(company="nobody")))

    assert scorer.score_variant(week_request(WEEK).of(VARIANTS[0])).record.n_rows_scored > 0
