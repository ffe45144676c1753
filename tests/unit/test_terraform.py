"""At stake: an environment that is half described, a password written down, a service that differs from Compose's.

Reads infra/ as it stands, without Terraform: names that are used and given, versions, secrets, commands, the paths
that roles may reach. Terraform itself judges the rest (test_terraform_moto.py, `just infra`).
"""

import fnmatch
import functools
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import hcl2
import pytest
import yaml
from dagster._config import process_config
from dagster._config.field import resolve_to_config_type

from churn.deployment.services import Deployment
from churn.deployment.settings import Settings
from churn.storage.history import FOLDER
from churn.variants import Variant
from orchestration.job import churn_prediction_job

ROOT = Path(__file__).resolve().parents[2]
TERRAFORM = ROOT / "infra" / "terraform"
MODULES = ("network", "database", "artifacts", "secrets", "services", "alarms")
FOLDERS = [TERRAFORM, *(TERRAFORM / "modules" / name for name in MODULES)]
ENVIRONMENTS = ("staging", "production")
TWO_NAMES = ("resource", "data", "ephemeral")

each_folder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def plain(value: Any) -> Any:
    """A parsed value without the quotes that the parser leaves around names and strings, and without its remarks."""
    if isinstance(value, Mapping):
        return {plain(key): plain(held) for key, held in value.items() if not key.startswith("__")}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value[1:-1] if isinstance(value, str) and re.fullmatch(r'".*"', value, re.DOTALL) else value


@functools.cache
def parsed(path: Path) -> dict[str, Any]:
    with path.open() as file:
        return plain(hcl2.load(file))  # type: ignore[no-any-return]


def blocks(folder: Path, kind: str) -> dict[str, Any]:
    """The blocks of one kind in a folder, by name; those with two names by ``first.second``."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.tf")):
        for block in parsed(path).get(kind, []):
            for name, body in block.items():
                found |= (
                    {f"{name}.{second}": held for second, held in body.items()} if kind in TWO_NAMES else {name: body}
                )
    return found


def text(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.tf")))


def code(folder: Path) -> str:
    """The text without comments and descriptions, in which anything may be named."""
    lines = [re.sub(r"(^|\s)#.*", "", line) for line in text(folder).splitlines()]
    return "\n".join(line for line in lines if not line.strip().startswith(("description", "error_message")))


@each_folder
def test_each_variable_says_what_it_is_and_is_used_and_each_that_is_used_is_declared(folder: Path) -> None:
    declared = blocks(folder, "variable")

    assert [name for name, body in declared.items() if not {"description", "type"} <= body.keys()] == []
    assert set(re.findall(r"\bvar\.([a-z_0-9]+)", code(folder))) == set(declared)
    assert [name for name, body in blocks(folder, "output").items() if "description" not in body] == []


@each_folder
def test_each_resource_and_local_that_is_named_is_declared_and_each_local_is_used(folder: Path) -> None:
    declared = {f"{prefix}{name}" for kind, prefix in (("resource", ""), ("data", "data."), ("ephemeral", "ephemeral."))
                for name in blocks(folder, kind)}  # fmt: skip
    named = set(re.findall(r"(?<![\w.\"])((?:data\.|ephemeral\.)?aws_[a-z0-9_]+\.[a-z0-9_]+)", code(folder)))
    assert named <= declared

    local = {name for path in folder.glob("*.tf") for block in parsed(path).get("locals", []) for name in block}
    assert set(re.findall(r"\blocal\.([a-z_0-9]+)", code(folder))) == local


def test_each_module_is_given_all_that_it_needs_and_gives_all_that_it_is_asked_for() -> None:
    calls = blocks(TERRAFORM, "module")
    assert set(calls) == set(MODULES)

    for name, call in calls.items():
        folder = TERRAFORM / "modules" / name
        assert call["source"] == f"./modules/{name}"
        assert set(call) - {"source"} == set(blocks(folder, "variable"))
    asked = set(re.findall(r"\bmodule\.([a-z]+)\.([a-z_0-9]+)", code(TERRAFORM)))
    assert asked == {(name, output) for name in MODULES for output in blocks(TERRAFORM / "modules" / name, "output")}


def test_environments_differ_by_values_alone_and_give_what_has_no_default() -> None:
    values = {name: parsed(TERRAFORM / "environments" / name / "values.tfvars") for name in ENVIRONMENTS}
    declared = blocks(TERRAFORM, "variable")

    assert set(values["staging"]) == set(values["production"])
    assert set(values["staging"]) <= set(declared)
    missing = {name for name, body in declared.items() if "default" not in body} - set(values["staging"])
    assert missing == {"image"}
    for name in ENVIRONMENTS:
        folder = TERRAFORM / "environments" / name
        assert sorted(path.name for path in folder.iterdir() if path.is_file()) == ["backend.hcl", "values.tfvars"]
        assert values[name]["environment"] == name
        assert name in parsed(folder / "backend.hcl")["key"]
    assert values["production"]["highly_available"]
    assert values["production"]["protected"]


def test_what_environments_need_to_be_told_is_checked() -> None:
    unchecked = {name for name, body in blocks(TERRAFORM, "variable").items() if "validation" not in body}
    kinds = blocks(TERRAFORM, "variable")

    assert {name for name in unchecked if kinds[name]["type"] not in ("bool", "${bool}")} == {
        "registry_secret_arn",
        "database_ca_file",  # its contents are
    }


@each_folder
def test_versions_are_pinned_everywhere_alike(folder: Path) -> None:
    (settings,) = parsed(folder / "versions.tf")["terraform"]

    assert settings["required_version"] == ">= 1.11.4, < 2.0.0"
    assert settings["required_providers"][0]["aws"] == {"source": "hashicorp/aws", "version": "5.100.0"}
    assert 'version     = "5.100.0"' in (TERRAFORM / ".terraform.lock.hcl").read_text()


def test_no_password_is_written_down_or_kept_in_the_state() -> None:
    database = blocks(TERRAFORM / "modules/database", "resource")["aws_db_instance.this"]
    versions = blocks(TERRAFORM / "modules/secrets", "resource")["aws_secretsmanager_secret_version.login"]

    assert database["manage_master_user_password"] is True
    assert not {"password", "password_wo"} & database.keys()
    assert not {"secret_string", "secret_binary"} & versions.keys()
    assert "ephemeral.aws_secretsmanager_random_password" in str(versions["secret_string_wo"])
    everything = "".join(code(folder) for folder in FOLDERS)
    assert not re.findall(r'resource\s+"(random_|tls_)|data\s+"aws_secretsmanager_secret_version', everything)
    for name in ENVIRONMENTS:
        held = "".join(path.read_text() for path in (TERRAFORM / "environments" / name).iterdir() if path.is_file())
        assert not re.search(r"(?i)password\b|secret_key|AKIA", held)


def test_the_database_is_private_encrypted_and_speaks_tls_alone() -> None:
    resources = blocks(TERRAFORM / "modules/database", "resource")
    database = resources["aws_db_instance.this"]
    parameters = {item["name"]: item["value"] for item in resources["aws_db_parameter_group.this"]["parameter"]}

    assert (database["storage_encrypted"], database["publicly_accessible"]) == (True, False)
    assert database["skip_final_snapshot"] is False
    assert parameters["rds.force_ssl"] == "1"
    assert parameters["log_parameter_max_length"] == "0"


def services() -> dict[str, Any]:
    for block in parsed(TERRAFORM / "modules/services/main.tf")["locals"]:
        if "services" in block:
            return block["services"]  # type: ignore[no-any-return]
    raise AssertionError


def test_services_are_started_as_compose_starts_them() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

    for name, service in services().items():
        command = compose[name]["command"]
        if name == "mlflow":
            command, ours = command[: command.index("--allowed-hosts")], service["command"]
            assert ours[: len(command)] == command
            assert {"--cors-allowed-origins", "--artifacts-destination"} <= set(ours)
        else:
            assert service["command"] == command
    assert '["python", "-m", "experiment_tracking.setup"]' in text(TERRAFORM / "modules/services")


def test_each_variable_of_the_code_is_a_setting() -> None:
    held = text(TERRAFORM / "modules/services") + text(TERRAFORM)
    named = set(re.findall(r"\b((?:CHURN|MLFLOW)_[A-Z0-9_]+)\b", held))
    of_others = {
        "CHURN_DAGSTER_DATABASE_URL",  # orchestration/config/dagster.yaml
        "MLFLOW_BACKEND_STORE_URI", "MLFLOW_DISABLE_TELEMETRY", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION",
    }  # fmt: skip

    assert {name for name in named - of_others if name.lower() not in Settings.model_fields} == {"CHURN_"} & named
    for name in ENVIRONMENTS:
        settings = parsed(TERRAFORM / "environments" / name / "values.tfvars")["settings"]
        assert [key for key in settings if key.lower() not in Settings.model_fields] == []


def test_the_code_may_write_where_it_writes_and_erase_histories_alone() -> None:
    held: dict[str, list[str]] = {}
    for block in parsed(TERRAFORM / "modules/services/iam.tf")["locals"]:
        held |= {key: value for key, value in block.items() if key.endswith("_objects")}
    patterns = {key: [item.replace("${var.bucket_arn}/", "") for item in value] for key, value in held.items()}

    for variant in (Variant(), Variant(geography="us"), Variant(geography="eu", company="clientb")):
        location = str(Deployment.artifact_location(_with_bucket(), variant)).removeprefix("s3://b/")
        for key, allowed, denied in (
            (f"{location}/models/m-1/artifacts/model.ubj", "mlflow_objects", "history_objects"),
            (f"{variant.prefix}{FOLDER}2026-11-23-abc.parquet", "history_objects", "mlflow_objects"),
        ):
            assert any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns[allowed])
            assert not any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns[denied])
        extract = f"{variant.prefix}data/churn/X_test_sample_2.json"
        assert not any(fnmatch.fnmatchcase(extract, item) for items in patterns.values() for item in items)


def _with_bucket() -> Any:
    return type("Bucketed", (), {"settings": Settings(mlflow_s3_bucket="b")})()


def test_what_scanners_object_to_is_let_pass_only_with_a_reason() -> None:
    for folder in FOLDERS:
        for line in re.findall(r"checkov:skip=.*", text(folder)):
            assert re.fullmatch(r"checkov:skip=CKV2?_AWS_\d+: \S.{9,}|checkov:skip=CKV2?_AWS_\d+: as above", line), line


def helm() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "infra/kubernetes/values.yaml").read_text())  # type: ignore[no-any-return]


def webserver() -> dict[str, Any]:
    deployment, _ = yaml.safe_load_all((ROOT / "infra/kubernetes/webserver.yaml").read_text())
    return deployment["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def test_every_deployment_serves_dagster_behind_the_guard() -> None:
    guarded = ["python", "-m", "orchestration.webserver", "--host", "0.0.0.0", "--workspace"]  # noqa: S104
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    (block,) = [block for block in parsed(TERRAFORM / "modules/services/main.tf")["locals"] if "services" in block]
    on_aws = block["services"]["dagster"]

    assert compose["dagster"]["command"][:-1] == guarded
    assert on_aws["command"][:-1] == guarded
    assert "CHURN_ALLOWED_HOSTS" in str(on_aws["environment"])
    assert webserver()["containers"][0]["command"][:-1] == guarded
    assert helm()["dagsterWebserver"]["replicaCount"] == 0


def test_on_kubernetes_dagster_runs_the_same_code_with_the_same_limits() -> None:
    values, compose = helm(), yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    instance = yaml.safe_load((ROOT / "orchestration/config/dagster.yaml").read_text())
    (deployment,) = values["dagster-user-deployments"]["deployments"]

    assert compose["code"]["command"][-4:] == deployment["dagsterApiGrpcArgs"]
    assert deployment["image"] == values["dagsterWebserver"]["image"] == values["dagsterDaemon"]["image"]
    daemon = values["dagsterDaemon"]
    limit = daemon["runCoordinator"]["config"]["queuedRunCoordinator"]["maxConcurrentRuns"]
    assert limit == default_limit()
    assert instance["run_queue"]["max_concurrent_runs"] == {"env": "CHURN_CONCURRENT_RUNS"}
    assert daemon["runRetries"]["maxRetries"] == instance["run_retries"]["max_retries"]
    assert daemon["runMonitoring"]["enabled"] == instance["run_monitoring"]["enabled"]
    kept = {key: days for key, days in values["retention"]["sensor"]["purgeAfterDays"].items() if key != "started"}
    assert kept == instance["retention"]["sensor"]["purge_after_days"]
    tags = churn_prediction_job.tags or {}  # what the chart has no values for
    assert tags["dagster/max_runtime"] == str(instance["run_monitoring"]["max_runtime_seconds"])
    assert (
        tags["dagster/retry_on_asset_or_op_failure"]
        == str(instance["run_retries"]["retry_on_asset_or_op_failure"]).lower()
    )
    for name in (name for name in deployment["env"] if name.startswith(("CHURN_", "MLFLOW_"))):
        assert name.lower() in Settings.model_fields


def test_on_kubernetes_no_secret_is_among_the_values_and_no_container_is_root() -> None:
    values = helm()
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    (job,) = [yaml.safe_load((ROOT / "infra/kubernetes/setup.yaml").read_text())["spec"]["template"]["spec"]]

    assert "postgresqlPassword" not in values["postgresql"]
    assert {"CHURN_DATABASE_URL", "MLFLOW_TRACKING_URI", "CHURN_ALERT_URLS"} & deployment["env"].keys() == set()
    for part in (deployment, values["dagsterDaemon"]):
        assert part["podSecurityContext"]["runAsNonRoot"]
        assert part["securityContext"]["readOnlyRootFilesystem"]
    assert webserver()["securityContext"]["runAsNonRoot"]
    assert webserver()["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
    assert job["securityContext"]["runAsNonRoot"]
    assert job["containers"][0]["command"] == ["python", "-m", "experiment_tracking.setup"]


def test_wherever_runs_are_created_they_are_planned_and_queued_alike() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    values = helm()
    (block,) = [block for block in parsed(TERRAFORM / "modules/services/main.tf")["locals"] if "services" in block]
    planning, limit = "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS", "CHURN_CONCURRENT_RUNS"

    for name in ("dagster", "daemon", "code"):
        assert compose[name]["environment"][planning] == "1"
        assert compose[name]["environment"][limit] == f"${{{limit}:-{default_limit()}}}"
    assert f'{planning} = "1"' in str(block["dagster_environment"])
    assert f'lookup(var.settings, "{limit}", "{default_limit()}")' in str(block["dagster_environment"])
    assert "local.dagster_environment" in str(block["code_environment"])
    for environment in (values["dagsterDaemon"]["env"], webserver()["containers"][0]["env"]):
        assert {"name": planning, "value": "1"} in environment


def default_limit() -> int:
    return int(Settings.model_fields["churn_concurrent_runs"].default)


def k8s_job(tmp_path: Path) -> dict[str, Any]:
    """What dagster-k8s would submit for a run, given what the chart's templates make of both files."""
    from dagster_k8s import K8sRunLauncher
    from dagster_k8s.container_context import K8sContainerContext
    from dagster_k8s.job import construct_dagster_k8s_job
    from kubernetes.client import ApiClient

    values, pods = helm(), yaml.safe_load((ROOT / "infra/kubernetes/run-pods.yaml").read_text())
    assert pods["runLauncher"]["type"] == "K8sRunLauncher"
    config = pods["runLauncher"]["config"]["k8sRunLauncher"]
    (tmp_path / "kubeconfig").write_text(
        "{current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],"
        " clusters: [{name: c, cluster: {server: 'http://127.0.0.1:9'}}], users: [{name: u, user: {}}]}"
    )
    launcher = process_config(
        resolve_to_config_type(K8sRunLauncher.config_type()),
        {
            "load_incluster_config": False,
            "kubeconfig_file": str(tmp_path / "kubeconfig"),
            "job_namespace": "churn",
            "image_pull_policy": config["imagePullPolicy"],
            "service_account_name": "churn-dagster",
            "dagster_home": values["global"]["dagsterHome"],
            "instance_config_map": "churn-dagster-instance",
            "postgres_password_secret": values["global"]["postgresqlSecretName"],
            "security_context": config["securityContext"],
            "run_k8s_config": {"pod_spec_config": config["runK8sConfig"]["podSpecConfig"]},
        },
    )
    assert launcher.success, launcher.errors
    (code,) = values["dagster-user-deployments"]["deployments"]
    context = K8sContainerContext.create_from_config(
        {
            "k8s": {
                "image_pull_policy": code["image"]["pullPolicy"],
                "env_config_maps": ["churn-churn-user-env"],
                "env_secrets": [secret["name"] for secret in code["envSecrets"]],
                **{key: code[name] for key, name in [("volume_mounts", "volumeMounts"), ("volumes", "volumes")]},
                "resources": code["resources"],
                "run_k8s_config": {"pod_spec_config": {"automount_service_account_token": True}},
            }
        }
    )
    run = dg.DagsterRun(job_name="churn_prediction_job", run_id="1" * 36)
    started = K8sRunLauncher.from_config_value(None, dict(launcher.value or {}))
    merged = K8sContainerContext.create_for_run(run, started, include_run_tags=True).merge(context)
    job = construct_dagster_k8s_job(
        merged.get_k8s_job_config(job_image="image", run_launcher=started),
        args=["dagster", "api", "execute_run"],
        job_name="dagster-run-1",
        user_defined_k8s_config=merged.run_k8s_config,
    )
    return ApiClient().sanitize_for_serialization(job)  # type: ignore[no-any-return]


def test_a_pod_for_each_run_is_as_closed_as_the_codes_and_has_what_it_has(tmp_path: Path) -> None:
    (code,) = helm()["dagster-user-deployments"]["deployments"]

    pod = k8s_job(tmp_path)["spec"]["template"]["spec"]

    (container,) = pod["containers"]
    assert pod["securityContext"] == code["podSecurityContext"]
    assert container["securityContext"] == code["securityContext"]
    assert container["resources"] == code["resources"]
    assert {"secretRef": {"name": "churn-code"}} in container["envFrom"]
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {mount["mountPath"] for mount in code["volumeMounts"]} <= mounted
    passwords = [one["valueFrom"]["secretKeyRef"] for one in container["env"] if one["name"] == "DAGSTER_PG_PASSWORD"]
    assert passwords == [{"name": helm()["global"]["postgresqlSecretName"], "key": "postgresql-password"}]


def test_the_image_can_launch_pods() -> None:
    versions = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["kubernetes"]
    steps = re.findall(r"uv export [^\n]*", (ROOT / "Dockerfile").read_text())

    assert [package.partition("==")[0] for package in versions] == ["dagster-k8s"]
    assert steps
    assert all("--extra kubernetes" in step for step in steps)
