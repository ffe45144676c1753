"""At stake: an installed package that lacks what a clone has, which only a user in an empty folder would see."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("churn", "experiment_tracking", "orchestration")
BUNDLED = ("data/churn", "models/churn")
LOCATIONS = """{ workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError { __typename
  ... on RepositoryLocation { repositories { name } } } } } } }"""


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return str(done.stdout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, made from the source distribution as a release is."""
    folder = tmp_path_factory.mktemp("dist")
    run("uv", "build", "--quiet", "--out-dir", folder, cwd=ROOT)
    [path] = folder.glob("*.whl")
    return path


def test_the_wheel_holds_every_file_of_the_packages_and_the_bundled_files_and_no_other(wheel: Path) -> None:
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES, *BUNDLED, cwd=ROOT)
    files = [name for name in listed.splitlines() if (ROOT / name).exists()]
    expected = {name if name.startswith(PACKAGES) else f"churn/samples/bundled/{name}" for name in files}

    of_the_clone = {f"experiment_tracking/{name}" for name in ("pyproject.toml", "requirements.txt")}  # install it

    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}

    assert held == expected - of_the_clone
    assert {"orchestration/config/dagster.yaml", "churn/samples/bundled/data/churn/activity.parquet"} <= held


def test_the_wheel_states_its_licence_its_pythons_and_its_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    [folder] = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    metadata = archive.read(f"{folder}/METADATA").decode()

    assert "License-Expression: Apache-2.0\n" in metadata
    assert archive.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert "Requires-Python: <3.14,>=3.11\n" in metadata
    assert "churn = churn.cli.main:main" in archive.read(f"{folder}/entry_points.txt").decode()


@pytest.fixture(scope="module")
def installed(wheel: Path, homes: Path) -> Path:
    """The folder of commands of an empty environment into which the wheel was installed, in the locked versions."""
    environment, locked = homes / "wheel-environment", homes / "locked.txt"
    run("uv", "export", "--quiet", "--locked", "--no-dev", "--no-emit-project", "--no-hashes", "-o", locked, cwd=ROOT)
    run("uv", "venv", "--quiet", "--python", sys.executable, environment, cwd=homes)
    install = ("uv", "pip", "install", "--quiet", "--python", environment / "bin/python", "--compile-bytecode")
    # The lock leaves out NCCL; it is what a plain `pip install` brings along, and costs 500 MB.
    without = homes / "overrides.txt"
    without.write_text("".join(f"nvidia-nccl-cu{n} ; sys_platform == 'never'\n" for n in (12, 13)))
    run(*install, "--constraint", locked, "--overrides", without, wheel, cwd=homes)
    return environment / "bin"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def serving(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run ``churn up`` until it says how to stop it; stop it on exit."""
    with (folder / "up.out").open("w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 200
        while "Ctrl-C" not in (said := (folder / "up.out").read_text()):
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.3)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_installed_commands_work_in_an_empty_folder(installed: Path, homes: Path) -> None:
    folder = homes / uuid.uuid4().hex
    folder.mkdir()
    inherited = {"HOME", "LANG", "TMPDIR", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"}
    environment = {name: value for name, value in os.environ.items() if name in inherited}
    environment |= {"PATH": f"{installed}{os.pathsep}/usr/bin{os.pathsep}/bin", "DAGSTER_DISABLE_TELEMETRY": "yes"}

    said = run(installed / "churn", "demo", cwd=folder, env=environment)

    assert "most likely to churn" in said
    assert "uv run" not in said
    assert {path.name for path in folder.iterdir()} == {".churn"}
    account = re.search(r"churn explain --account (\d+)", said)
    assert account
    assert "log-odds" in run(installed / "churn", "explain", "--account", account[1], cwd=folder, env=environment)

    ports = free_port(), free_port()
    command = [str(installed / "churn"), "up", "--dagster-port", str(ports[0]), "--mlflow-port", str(ports[1])]
    with serving(command, folder, environment):
        body = json.dumps({"query": LOCATIONS}).encode()
        address = f"http://127.0.0.1:{ports[0]}/graphql"
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            [entry] = json.load(answer)["data"]["workspaceOrError"]["locationEntries"]
    # Sensors and schedules keep their state under the location's name.
    assert (entry["name"], entry["locationOrLoadError"]["__typename"]) == ("churn", "RepositoryLocation"), entry
