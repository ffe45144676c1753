"""At stake: a deployment that listens to the network, runs what nobody pinned, or has a password that everybody knows;
and one that does not come up at all. Docker Compose itself reads the file here, and hadolint the Dockerfile.
"""

import fnmatch
import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values

from churn.deployment.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
COMPOSE = ROOT / "docker-compose.yml"
ONE_SHOT = {"bucket", "setup"}
OURS = {"bucket", "setup", "mlflow", "code", "dagster", "daemon", "metrics"}


def load_make_env() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_env", ROOT / "infra/compose/make_env.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_env = load_make_env().make_env


def compose(*arguments: str, env: Path) -> "subprocess.CompletedProcess[str]":
    command = ["docker-compose", "--env-file", str(env), "--profile", "*", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={"PATH": PATH, "HOME": "/"}, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("env") / ".env"
    make_env(COMPOSE, path)
    return path


@pytest.fixture(scope="module")
def project(env: Path) -> dict[str, Any]:
    """What Docker Compose makes of the file."""
    done = compose("config", "--format", "json", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def services(project: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return project["services"]  # type: ignore[no-any-return]


def test_the_services_are_those_of_the_deployment(services: dict[str, dict[str, Any]]) -> None:
    assert set(services) == OURS | {"postgres", "s3", "prometheus", "grafana"}
    watching = {name for name, service in services.items() if service.get("profiles")}
    assert watching == {"prometheus", "grafana"}
    assert all(services[name]["profiles"] == ["monitoring"] for name in watching)


def test_without_passwords_compose_starts_nothing_and_names_the_command_that_makes_them(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("")
    done = compose("config", env=tmp_path / ".env")
    assert done.returncode != 0
    assert "POSTGRES_PASSWORD" in done.stderr
    assert "just env" in done.stderr


def test_every_published_port_is_on_loopback_and_published_once(services: dict[str, dict[str, Any]]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    published = [port["published"] for port in ports]
    assert len(published) == len(set(published))


def test_every_image_of_others_is_pinned_to_an_exact_version(services: dict[str, dict[str, Any]]) -> None:
    for name in set(services) - OURS:
        assert re.search(r":v?\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?$", services[name]["image"]), services[name][
            "image"
        ]
    assert {services[name]["image"] for name in OURS} == {"churn-scoring:local"}


def test_the_s3_that_is_tested_is_the_one_that_is_deployed(services: dict[str, dict[str, Any]]) -> None:
    done = subprocess.run(["weed", "version"], env={"PATH": PATH}, capture_output=True, text=True, check=True)
    assert services["s3"]["image"].split(":")[1] in done.stdout.split()


def test_every_container_is_hardened_and_bounded(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}, name
        assert service["logging"]["options"]["max-size"], name
        assert not service.get("privileged"), name
        assert not any("docker.sock" in mount["source"] for mount in service.get("volumes", ())), name
        if name in OURS:
            assert "cap_add" not in service, name


def test_servers_come_back_and_are_checked_and_one_shots_are_neither(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        is_one_shot = name in ONE_SHOT
        assert service["restart"] == ("no" if is_one_shot else "unless-stopped"), name
        assert ("healthcheck" in service) is not is_one_shot, name


def test_what_is_waited_for_can_come_true(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        for other, wanted in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
            assert wanted["condition"] == expected, f"{name} on {other}"
            assert not services[other].get("profiles") or service.get("profiles"), f"{name} on {other}"


def test_there_is_one_network(project: dict[str, Any]) -> None:
    assert set(project["networks"]) == {"churn"}
    own = {name: service for name, service in project["services"].items() if not service.get("network_mode")}
    assert all(set(service["networks"]) == {"churn"} for service in own.values())
    assert set(project["services"]) - set(own) == {"prometheus"}  # on the loopback of what it scrapes


def test_all_files_that_are_mounted_are_there_and_cannot_be_written(services: dict[str, dict[str, Any]]) -> None:
    binds = [mount for service in services.values() for mount in service.get("volumes", ()) if mount["type"] == "bind"]
    assert len(binds) >= 6
    for mount in binds:
        assert Path(mount["source"]).exists(), mount
        assert mount["read_only"], mount


def test_all_data_is_in_named_volumes(project: dict[str, Any]) -> None:
    mounted = {
        mount["source"]
        for service in project["services"].values()
        for mount in service.get("volumes", ())
        if mount["type"] == "volume"
    }
    assert mounted == set(project["volumes"])


def test_every_password_comes_from_the_environment_without_a_default_and_is_in_no_command(
    project: dict[str, Any], env: Path
) -> None:
    text = COMPOSE.read_text()
    for name in re.findall(r"\$\{(\w*(?:PASSWORD|SECRET|KEY)\w*)", text):
        assert not re.findall(rf"\${{{name}(?!:\?run just env}})", text), name
    passwords = {value for value in dotenv_values(env).values() if value}
    for name, service in project["services"].items():
        argued = json.dumps([service.get("command"), service.get("entrypoint"), service.get("healthcheck")])
        assert not [value for value in passwords if value in argued], name
        for key, value in (service.get("environment") or {}).items():
            looks_secret = re.search("PASSWORD|SECRET|_KEY", key) or re.search(r"://\w+:.*@", str(value))
            assert not looks_secret or any(password in str(value) for password in passwords), f"{name}: {key}"


def test_a_setting_means_in_the_containers_what_it_means_in_env(services: dict[str, dict[str, Any]], env: Path) -> None:
    of_the_image = {"churn_home", "churn_local_root", "churn_code_version"}
    of_other_ways_in = {
        "mlflow_secret_name", "mlflow_secret_region", "mlflow_db_name", "mlflow_db_host", "mlflow_db_port",
        "churn_db_name", "churn_postgres_bin",
    }  # fmt: skip
    of_what_the_image_lacks = {"churn_ray_address"}
    apart = {key: value for key, value in services["setup"]["environment"].items() if key.endswith("_DATABASE_URL")}
    given = {key.lower() for name in ("setup", "metrics") for key in services[name]["environment"]}
    assert set(Settings.model_fields) - given == of_the_image | of_other_ways_in | of_what_the_image_lacks
    assert services["setup"]["environment"] == services["code"]["environment"] | apart
    assert set(apart) - set(services["code"]["environment"]) == {
        "CHURN_SETUP_DATABASE_URL",
        "CHURN_READER_DATABASE_URL",
    }
    # No password of the containers is taken for a setting by commands that run beside them and read the same .env.
    assert not {name.lower() for name in dotenv_values(env)} & set(Settings.model_fields)


def test_passwords_are_made_once_are_long_and_only_their_owner_reads_them(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("# mine\nCHURN_KEEP_WEEKS=8\nS3_ACCESS_KEY=\nexport MLFLOW_DB_PASSWORD='hunter2' # keep\n")
    path.chmod(0o644)
    made = make_env(COMPOSE, path)
    assert "S3_ACCESS_KEY" in made
    assert "MLFLOW_DB_PASSWORD" not in made
    held = dotenv_values(path)
    assert held["MLFLOW_DB_PASSWORD"] == "hunter2"  # noqa: S105
    assert held["CHURN_KEEP_WEEKS"] == "8"
    assert path.read_text().startswith("# mine\n")
    assert all(len(held[name] or "") >= 40 for name in made)
    assert len({held[name] for name in made}) == len(made)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    assert make_env(COMPOSE, path) == []
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == [".env"]


def test_the_code_location_has_one_name_everywhere(services: dict[str, dict[str, Any]]) -> None:
    # Sensors and schedules keep their state under it.
    [entry] = yaml.safe_load((ROOT / "infra/compose/workspace.yaml").read_text())["load_from"]
    server, command = entry["grpc_server"], services["code"]["command"]
    assert server["location_name"] == command[command.index("--location-name") + 1]
    assert f'code_location_name = "{server["location_name"]}"' in (ROOT / "pyproject.toml").read_text()
    assert (server["host"], str(server["port"])) == ("code", command[command.index("--port") + 1])


DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_dockerfile_has_nothing_that_hadolint_warns_of() -> None:
    command = ["hadolint", ROOT / "Dockerfile"]
    done = subprocess.run(command, env={"PATH": PATH}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_no_sample_data_stands_in_for_what_a_deployment_lacks() -> None:
    last = DOCKERFILE.split("\nFROM ")[-1]
    assert "CHURN_LOCAL_ROOT=/var/lib/churn/local" in last
    assert not re.search(r"^COPY .*\b(data|models)\b", last, re.MULTILINE)


def test_bases_are_exact_versions_and_the_last_stage_has_no_tools_and_no_root() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert all(re.search(r":\d+\.\d+\.\d+", base) for base in bases)
    last = DOCKERFILE.split("\nFROM ")[-1]
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", last, re.MULTILINE)
    assert not re.search(r"\b(apt-get|pip|uv|gcc|curl)\b", last)


def test_what_the_image_copies_is_there_and_reaches_the_build() -> None:
    """The rules of .dockerignore in order, the last that matches wins."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]

    def reaches(path: str) -> bool:
        ignored = False
        for rule in rules:
            pattern = rule.removeprefix("!")
            parents = [path, *map(str, Path(path).parents)]
            if any(fnmatch.fnmatch(part, pattern) or fnmatch.fnmatch(f"/{part}", pattern) for part in parents):
                ignored = not rule.startswith("!")
        return not ignored

    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = [source for line in copied for source in line.split()]
    assert "churn" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert reaches(source), source
    for secret in (".env", ".git/config", ".churn/postgres/password", "infra/compose/make_env.py", ".venv/bin/python"):
        assert not reaches(secret), secret
    assert not reaches("churn/__pycache__/cli.cpython-311.pyc")
