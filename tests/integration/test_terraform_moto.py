"""At stake: an environment that cannot be made, a password in Terraform's state, logins that cannot do their work.

Terraform makes a whole environment against moto, which answers for AWS: S3, Secrets Manager, IAM, EC2, RDS, ECS,
load balancing, CloudWatch. Moto takes any policy and runs no container and no PostgreSQL; so the script that makes the
logins runs here on a real server, by an administrator who is no superuser, as one of RDS.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
import sqlalchemy as sa
import yaml
from moto.server import ThreadedMotoServer

from churn.cli.main import main
from churn.database.embedded import embedded_postgres
from churn.database.erasure import drop_weeks
from churn.database.readers import add_reader
from churn.database.schema import excess_rights
from churn.deployment.credentials import read_secret
from churn.deployment.settings import load_settings
from churn.errors import AccessDeniedError
from churn.variants import Variant
from churn.weeks import monday_of
from tests.support import ROOT
from tests.support.site import Run, run_sql

TERRAFORM = ROOT / "infra" / "terraform"
DATABASES = TERRAFORM / "modules" / "services" / "databases.py"
LOGINS = ("setup", "churn", "analyst", "watch", "mlflow", "dagster")
IMAGE = f"ghcr.io/example/churn@sha256:{'a' * 64}"
# Where a machine may hold providers beside those of ~/.terraform.d, which Terraform finds by itself.
MIRRORS = ("/usr/local/share/terraform/plugins", "/opt/tf-plugins")

needs_terraform = pytest.mark.skipif(
    shutil.which("terraform") is None and "CI" not in os.environ, reason="needs terraform on the PATH"
)


def terraform_environment(folder: Path) -> dict[str, str]:
    """Where Terraform finds the provider, on this machine or else in the registry, whatever the user's settings say."""
    mirrors = [f'filesystem_mirror {{\n path = "{path}"\n }}' for path in MIRRORS if Path(path).is_dir()]
    ways = "\n".join(mirrors or ["direct {}"])
    (folder / "terraformrc").write_text(f"provider_installation {{\n{ways}\n}}\n")
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TF_CLI_CONFIG_FILE": str(folder / "terraformrc"),
        "TF_IN_AUTOMATION": "1",
        "CHECKPOINT_DISABLE": "1",
    }


def terraform(where: Path, environment: Mapping[str, str], *args: str) -> str:
    done = subprocess.run(["terraform", *args], cwd=where, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A copy of the configuration that keeps its state in a file, and takes anybody's word for who he is."""
    folder = tmp_path_factory.mktemp("terraform")
    copied = folder / "terraform"
    shutil.copytree(TERRAFORM, copied, ignore=shutil.ignore_patterns(".terraform", "*.tfstate*"))
    (copied / "moto_override.tf").write_text(
        'terraform {\n  backend "local" {}\n}\n\nprovider "aws" {\n  skip_credentials_validation = true\n'
        "  skip_metadata_api_check     = true\n  s3_use_path_style           = true\n}\n"
    )
    (copied / "rds-ca.pem").write_text("-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n")
    environment = terraform_environment(folder)
    terraform(copied, environment, "init", "-input=false", "-no-color", "-lockfile=readonly")
    return copied, environment


@needs_terraform
@pytest.mark.slow
def test_the_configuration_is_formatted_and_valid(workplace: tuple[Path, dict[str, str]]) -> None:
    copied, environment = workplace

    assert terraform(TERRAFORM, environment, "fmt", "-check", "-recursive", "-no-color") == ""
    assert json.loads(terraform(copied, environment, "validate", "-json"))["diagnostics"] == []


@dataclass(frozen=True)
class Made:
    """An environment that Terraform made."""

    state: str
    outputs: Mapping[str, Any]
    again: set[str]
    endpoint: str

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",  # noqa: S106
        )

    def secret(self, name: str) -> dict[str, Any]:
        return json.loads(self.client("secretsmanager").get_secret_value(SecretId=name)["SecretString"])  # type: ignore[no-any-return]

    def containers(self, family: str) -> dict[str, dict[str, Any]]:
        described = self.client("ecs").describe_task_definition(taskDefinition=family)["taskDefinition"]
        return {container["name"]: container for container in described["containerDefinitions"]}


@pytest.fixture(scope="module")
def made(workplace: tuple[Path, dict[str, str]]) -> Iterator[Made]:
    """Production, before its services are started."""
    copied, environment = workplace
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        certificate = _import_certificate(endpoint, copied)
        environment = environment | {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",  # pragma: allowlist secret
            "TF_VAR_image": IMAGE,
            "TF_VAR_started": "false",
        }
        uploaders = '-var=uploaders={acme=["company-acme","geography-us/company-acme"]}'
        values = [uploaders, "-var-file=environments/production/values.tfvars", f"-var=certificate_arn={certificate}"]
        terraform(copied, environment, "apply", "-auto-approve", "-input=false", "-no-color", *values)
        terraform(copied, environment, "plan", "-input=false", "-no-color", "-out=again", *values)
        again = json.loads(terraform(copied, environment, "show", "-json", "again"))
        outputs = json.loads(terraform(copied, environment, "output", "-json"))
        yield Made(
            state=(copied / "terraform.tfstate").read_text(),
            outputs={name: output["value"] for name, output in outputs.items()},
            again={action for item in again["resource_changes"] for action in item["change"]["actions"]},
            endpoint=endpoint,
        )
        server.stop()


def _import_certificate(endpoint: str, folder: Path) -> str:
    request = (
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out crt.pem -subj /CN=churn.example.com -days 2"
    )
    subprocess.run(request.split(), cwd=folder, check=True, capture_output=True)
    key, certificate = (folder / "key.pem").read_bytes(), (folder / "crt.pem").read_bytes()
    acm = Made("", {}, set(), endpoint).client("acm")
    return str(acm.import_certificate(Certificate=certificate, PrivateKey=key)["CertificateArn"])


@pytest.mark.slow  # four minutes: the provider waits for S3 and RDS to settle
@pytest.mark.timeout(900)
@needs_terraform
class TestAWholeEnvironment:
    def test_no_password_is_in_the_state_or_in_an_output(self, made: Made) -> None:
        for login in LOGINS:
            password = made.secret(made.outputs["login_secrets"][login])["password"]
            assert len(password) == 40
            assert password not in made.state + json.dumps(made.outputs)

    def test_a_second_plan_makes_and_replaces_nothing(self, made: Made) -> None:
        # Moto forgets some of what it was told, so that a few resources would be told it again.
        assert made.again <= {"no-op", "read", "update"}

    def test_the_secret_is_what_the_code_reads(self, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in (
            ("AWS_ENDPOINT_URL", made.endpoint),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("MLFLOW_SECRET_NAME", made.outputs["login_secrets"]["churn"]),
        ):
            monkeypatch.setenv(name, value)

        server = read_secret(load_settings())

        assert (server.username, server.host, server.port) == ("churn", made.outputs["database_host"], 5432)
        for login, database in (("mlflow", "mlflow_db"), ("dagster", "dagster_db")):
            url = sa.make_url(made.secret(made.outputs["login_secrets"][login])["url"])
            assert (url.username, url.host, url.database) == (login, server.host, database)

    def test_the_bucket_keeps_versions_for_a_while_is_encrypted_and_closed(self, made: Made) -> None:
        s3, name = made.client("s3"), made.outputs["bucket"]

        assert s3.get_bucket_versioning(Bucket=name)["Status"] == "Enabled"
        rule = s3.get_bucket_lifecycle_configuration(Bucket=name)["Rules"][0]
        assert rule["NoncurrentVersionExpiration"]["NoncurrentDays"] == 30
        assert all(s3.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"].values())
        encryption = s3.get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"]["Rules"][0]
        assert encryption["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "aws:kms"
        policy = json.loads(s3.get_bucket_policy(Bucket=name)["Policy"])
        assert {"Bool": {"aws:SecureTransport": "false"}} in [item.get("Condition") for item in policy["Statement"]]

    def test_the_database_is_private_encrypted_and_has_a_standby(self, made: Made) -> None:
        (database,) = made.client("rds").describe_db_instances()["DBInstances"]

        assert database["StorageEncrypted"]
        assert database["MultiAZ"]
        assert database["DeletionProtection"]
        assert not database["PubliclyAccessible"]
        assert database["BackupRetentionPeriod"] == 30
        assert database["MasterUserSecret"]["SecretArn"] == made.outputs["master_secret"]

    def test_services_run_the_image_with_the_commands_of_compose(self, made: Made) -> None:
        compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

        for service in ("code", "daemon", "dagster", "mlflow"):
            container = made.containers(f"churn-production-{service}")[service]
            command = compose[service]["command"]
            if service == "mlflow":  # its names and its bucket are others
                command = [*command[:8]]
                assert container["command"][8:10] == ["--allowed-hosts", "mlflow.churn.example.com"]
            assert container["command"][: len(command)] == command
            assert container["image"] == IMAGE
            assert container["readonlyRootFilesystem"]
            assert container["user"] == "10001:10001"
        setup = made.containers("churn-production-code")["setup"]
        assert setup["command"] == compose["setup"]["command"]

    def test_each_environment_variable_is_a_setting_and_no_password_is_among_them(self, made: Made) -> None:
        for family in ("code", "daemon", "dagster", "mlflow", "setup", "databases"):
            for container in made.containers(f"churn-production-{family}").values():
                shown = json.dumps(container.get("environment", []))
                assert not [login for login in LOGINS if made.secret(f"churn-production/{login}")["password"] in shown]
                for secret in container.get("secrets", []):
                    assert secret["valueFrom"].startswith("arn:aws:secretsmanager:")

    def test_a_role_reaches_one_bucket_and_its_own_secrets(self, made: Made) -> None:
        iam = made.client("iam")

        def allowed(role: str, policy: str) -> dict[str, list[str]]:
            document = iam.get_role_policy(RoleName=role, PolicyName=policy)["PolicyDocument"]
            listed = [item["Resource"] for item in document["Statement"]]
            return {
                item["Sid"]: resource if isinstance(resource, list) else [resource]
                for item, resource in zip(document["Statement"], listed, strict=True)
            }

        for task in ("code", "mlflow"):
            for resources in allowed(f"churn-production-{task}", "work").values():
                assert "*" not in resources
                buckets = [arn for arn in resources if arn.startswith("arn:aws:s3:::")]
                assert all(arn.split(":")[5].startswith(made.outputs["bucket"]) for arn in buckets)
        for task in ("daemon", "dagster", "databases"):
            assert iam.list_role_policies(RoleName=f"churn-production-{task}")["PolicyNames"] == []
        (secret,) = allowed("churn-production-daemon-execution", "start")["SecretsOfItsEnvironment"]
        assert ":secret:churn-production/dagster-" in secret
        for task in ("code", "daemon", "dagster", "mlflow", "setup"):
            held = allowed(f"churn-production-{task}-execution", "start")["SecretsOfItsEnvironment"]
            assert made.outputs["master_secret"] not in held

    def test_a_partners_uploader_writes_extracts_below_its_own_prefixes_alone(self, made: Made) -> None:
        (arn,) = made.outputs["uploader_policies"].values()
        document = made.client("iam").get_policy_version(PolicyArn=arn, VersionId="v1")["PolicyVersion"]["Document"]
        extracts, key = document["Statement"]
        bucket = f"arn:aws:s3:::{made.outputs['bucket']}"
        own = {f"{bucket}/{prefix}/data/churn/*" for prefix in ("company-acme", "geography-us/company-acme")}
        assert set(extracts["Resource"]) == own
        assert set(extracts["Action"]) == {"s3:PutObject", "s3:AbortMultipartUpload"}
        assert {action.split(":")[0] for action in key["Action"]} == {"kms"}

    def test_only_who_must_may_connect(self, made: Made) -> None:
        groups = made.client("ec2").describe_security_groups()["SecurityGroups"]
        names = {group["GroupId"]: group["GroupName"].removeprefix("churn-production-") for group in groups}
        ways = {
            (source, names[group["GroupId"]], rule["FromPort"])
            for group in groups
            if group["GroupName"].startswith("churn-production-")
            for rule in group["IpPermissions"]
            for source in [names[pair["GroupId"]] for pair in rule["UserIdGroupPairs"]]
            + [block["CidrIp"] for block in rule["IpRanges"]]
        }

        assert ways == {
            ("10.0.0.0/16", "load-balancer", 443),
            ("load-balancer", "mlflow", 5000),
            ("load-balancer", "dagster", 3000),
            ("dagster", "code", 4000),
            ("daemon", "code", 4000),
            *((service, "database", 5432) for service in ("code", "daemon", "dagster", "mlflow")),
        }


@pytest.fixture(scope="module")
def administrator(homes: Path) -> Iterator[sa.URL]:
    """The administrator of a server without logins of ours, who may create roles and databases and is no superuser."""

    with embedded_postgres(homes / "rds") as embedded:
        # The embedded server's own superuser has the name of a login that is to be made.
        superuser = embedded.set(username="rdsadmin")
        run_sql(embedded, f"CREATE ROLE rdsadmin SUPERUSER LOGIN PASSWORD '{embedded.password}'")
        run_sql(superuser, f"ALTER ROLE {embedded.username} RENAME TO embedded")
        run_sql(superuser, f"CREATE ROLE administrator LOGIN CREATEDB CREATEROLE PASSWORD '{embedded.password}'")
        yield embedded.set(username="administrator")


def make_databases(administrator: sa.URL, suffix: str) -> str:
    """Run the script as its task does; returns what it printed."""
    environment = {
        "PATH": os.environ["PATH"],
        "PGHOST": str(administrator.host),
        "PGPORT": str(administrator.port),
        "PGUSER": str(administrator.username),
        "PGPASSWORD": str(administrator.password),
        **{f"{login.upper()}_DB_PASSWORD": f"{login}-{suffix}" for login in LOGINS},
    }
    done = subprocess.run([sys.executable, DATABASES], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def is_let_in(server: sa.URL, login: str, suffix: str, database: str) -> bool:
    url = server.set(username=login, password=f"{login}-{suffix}", database=database)
    try:
        sa.create_engine(url, poolclass=sa.NullPool).connect().close()
    except sa.exc.OperationalError as error:
        if "permission denied" in str(error) or "password authentication failed" in str(error):
            return False
        raise
    return True


@pytest.mark.slow
def test_logins_are_made_by_an_administrator_who_is_no_superuser_and_set_up_works_with_them(
    administrator: sa.URL, set_up: Run, run_main: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = make_databases(administrator, "first")
    assert make_databases(administrator, "second").count("found") == printed.count("\n")

    assert is_let_in(administrator, "churn", "second", "churn_db")
    assert not is_let_in(administrator, "churn", "first", "churn_db")
    assert is_let_in(administrator, "watch", "second", "churn_db")
    assert not is_let_in(administrator, "watch", "second", "mlflow_db")
    assert not is_let_in(administrator, "mlflow", "second", "churn_db")
    assert not is_let_in(administrator, "dagster", "second", "mlflow_db")

    def url(login: str, database: str) -> str:
        made = administrator.set(drivername="postgresql", username=login, password=f"{login}-second", database=database)
        return made.render_as_string(hide_password=False)

    job, setup = (sa.make_url(url(login, "churn_db")) for login in ("churn", "setup"))
    monkeypatch.setenv("CHURN_DATABASE_URL", url("churn", "churn_db"))
    monkeypatch.setenv("CHURN_SETUP_DATABASE_URL", url("setup", "churn_db"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url("mlflow", "mlflow_db"))
    said = [set_up() for _ in range(2)]
    assert [one.status for one in said] == [0, 0], said
    assert "predictions schema: already at" in said[1].out
    assert excess_rights(job) == []
    assert "may create roles and may drop tables" in " and ".join(excess_rights(setup))

    with pytest.raises(AccessDeniedError, match="set-up recorded CHURN_KEEP_WEEKS=0"):
        drop_weeks(job, date(2020, 1, 6))
    monkeypatch.setenv("CHURN_KEEP_WEEKS", "60")
    assert set_up().status == 0
    assert drop_weeks(job, date(2020, 1, 6)) == []
    with pytest.raises(AccessDeniedError, match="set-up recorded CHURN_KEEP_WEEKS=60"):
        drop_weeks(job, monday_of(date.today()) - timedelta(weeks=58))  # noqa: DTZ011
    assert add_reader(setup, "acme", [Variant(company="acme")]) == ["company-acme"]
    assert run_main(main, "doctor").out.count("warning") == 0
