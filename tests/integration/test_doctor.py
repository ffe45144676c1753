"""At stake: a deployment that does not work is put right by what this command says, which may be shown to anybody."""

import json
import os
from pathlib import Path

import boto3
import pytest
import requests

from churn.cli.main import main
from tests.support.inputs import register_bundled
from tests.support.site import Run, Site, client


def test_a_deployment_that_works_has_nothing_failed(
    site: Site, run_main: Run, log_model: Run, dagster_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_bundled(site, log_model, "base")
    monkeypatch.setenv("CHURN_DELIVERY_PREFIX", f"s3://{site.bucket}/delivered")

    said = run_main(main, "doctor")

    assert (said.status, said.err) == (0, "")
    assert f"set     MLFLOW_S3_BUCKET: {site.bucket}\n" in said.out
    assert "ok      MLflow, as scoring uses it: registered are 1 variant" in said.out
    assert f"ok      bucket: s3://{site.bucket}/ may be listed and read; 1 files" in said.out
    assert f"ok      delivered files: files may be written to s3://{site.bucket}/delivered/ and deleted" in said.out
    assert f"warning login {site.login.username} of the job: may create roles" in said.out
    assert "not set receivers of alerts: none is named by the settings\n" in said.out
    written = f"files may be written to s3://{site.bucket}/"
    assert (
        f"histories, as evaluation and training write them: {written}history/activity/ and deleted there\n" in said.out
    )
    assert f"artifact store, as log_model.py and training write it: {written}mlflow/ and deleted there\n" in said.out
    assert "doctor" not in str(client("s3").list_objects_v2(Bucket=site.bucket))


def test_the_state_of_the_fleet_is_on_one_screen_and_in_json(
    site: Site, run_main: Run, log_model: Run, dagster_database: str
) -> None:
    register_bundled(site, log_model, "base")
    site.rows(
        site.churn,
        "INSERT INTO scoring_attempts (variant, scored_week, outcome, error_type, error, started_at) "
        "VALUES ('base', date_trunc('week', now() AT TIME ZONE 'UTC'), 'failed', 'InputError', 'no rows', now()) "
        "RETURNING 1",
    )

    said, for_machines = run_main(main, "status"), run_main(main, "status", "--json")

    assert (said.status, said.err) == (0, "")
    assert "0 of 1 variant scored" in said.out
    assert "failed    1: base\n" in said.out
    assert "          base: no rows\n" in said.out
    assert len(said.out.splitlines()) < 30
    found = json.loads(for_machines.out)
    assert (found["failed"], found["errors"], found["published"]) == (["base"], {"base": "no rows"}, [])


def test_a_role_that_may_not_write_is_told_what_it_lacks_and_may_go_on_scoring(
    site: Site, run_main: Run, log_model: Run, *, dagster_database: str, aws: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_bundled(site, log_model, "base")
    iam = client("iam")
    iam.create_user(UserName="scoring")
    actions = ["s3:ListBucket", "s3:GetObject", "secretsmanager:GetSecretValue"]
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]}
    iam.put_user_policy(UserName="scoring", PolicyName="reads", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName="scoring")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the other credentials
    requests.post(f"{aws}/moto-api/reset-auth", data="0", timeout=5)  # from now on, permissions are enforced
    try:
        said = run_main(main, "doctor")
    finally:
        requests.post(f"{aws}/moto-api/reset-auth", data="inf", timeout=5)

    assert (said.status, said.err) == (0, ""), said
    denied = [line for line in said.out.splitlines() if line.startswith("denied")]
    assert len(denied) == 2, said.out
    assert all("s3:PutObject" in line for line in denied)
    assert f"ok      bucket: s3://{site.bucket}/ may be listed and read" in said.out


def test_without_a_bucket_folders_are_written_to(
    site: Site, run_main: Run, local_root: Path, monkeypatch: pytest.MonkeyPatch, dagster_database: str
) -> None:
    monkeypatch.delenv("MLFLOW_S3_BUCKET")
    (local_root / "history").write_text("a file where the folder should be")

    said = run_main(main, "doctor")

    assert said.status == 1
    (failed,) = [line for line in said.out.splitlines() if line.startswith("FAILED")]
    assert failed.startswith("FAILED  activity histories")
    assert "could not be written" in failed
    assert "ok      artifact store, as log_model.py and training write it: files may be written to file:///" in said.out


WRONG = {
    "a bucket that does not exist": ({"MLFLOW_S3_BUCKET": "no-such-bucket-here"}, "bucket: ", "does not exist"),
    "a bucket's impossible name": ({"MLFLOW_S3_BUCKET": "my bucket"}, "bucket: ", "cannot be a bucket's name"),
    "an endpoint that nobody answers": ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}, "bucket: ", "reached"),
    "an endpoint that is no URL": ({"AWS_ENDPOINT_URL_S3": "nonsense"}, "bucket: ", "AWS settings are wrong"),
    "a secret that does not exist": ({"MLFLOW_SECRET_NAME": "other"}, "settings and", "there is no secret 'other'"),
    "a secret of another region": ({"MLFLOW_SECRET_REGION": "eu-west-1"}, "settings and", "there is no secret"),
    "a host without a server": ({"MLFLOW_DB_PORT": "9"}, "predictions database", "did not answer"),
    "no predictions database": ({"CHURN_DB_NAME": "absent"}, "predictions database", "no or an outdated schema"),
    "no MLflow database": ({"MLFLOW_DB_NAME": "absent"}, "MLflow", "no or an outdated schema"),
    "no Dagster database": ({"CHURN_DAGSTER_DB_NAME": "absent"}, "Dagster's database", "no or an outdated schema"),
    "a delivery bucket that does not exist": (
        {"CHURN_DELIVERY_PREFIX": "s3://no-such-bucket-here/x"}, "delivered files", "does not exist",
    ),
    "a delivery among the inputs": (
        {"MLFLOW_S3_BUCKET": "any", "CHURN_DELIVERY_PREFIX": "s3://any/geography-us/x"}, "settings and", "is among"
    ),
    "alerts that go nowhere": ({"CHURN_ALERT_URLS": "hunter2"}, "receivers of alerts", "CHURN_ALERT_URLS"),
    "a tracking server that is down": ({"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, "MLflow", "did not answer"),
    "predictions in MLflow's database": ({"CHURN_DB_NAME": "=MLFLOW_DB_NAME"}, "settings and", "name one database"),
    "Dagster in MLflow's database": ({"CHURN_DAGSTER_DB_NAME": "=MLFLOW_DB_NAME"}, "settings and", "name one database"),
    "Dagster in the predictions' database": (
        {"CHURN_DAGSTER_DB_NAME": "=CHURN_DB_NAME"}, "settings and", "name one database",
    ),
    "a database of another system": ({"CHURN_DATABASE_URL": "mysql://u:hunter2@h/d"}, "settings and", "mysql URL"),
}  # fmt: skip


@pytest.mark.slow
def test_what_is_wrong_is_named_with_the_next_step_and_without_a_secret(
    site: Site, run_main: Run, dagster_database: str
) -> None:
    for case, (variables, what, why) in WRONG.items():
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, os.environ[value[1:]] if value.startswith("=") else value)
            said = run_main(main, "doctor")
        failed = [line for line in said.out.splitlines() if line.startswith("FAILED")]
        assert said.status == 1, case
        assert any(line.startswith(f"FAILED  {what}") and why in line for line in failed), (case, said.out)
        assert "hunter2" not in said.out + said.err, case
