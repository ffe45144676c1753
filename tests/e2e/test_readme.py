"""The README is the product's first screen: every command in it runs, and its tables say what the code says."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from churn.database.predictions import read_current
from churn.deployment.services import open_deployment
from churn.deployment.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


@pytest.fixture(scope="module")
def environment(homes: Path) -> dict[str, str]:
    """One home for all commands, which follow each other as a reader would type them."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "CHURN_", "AWS_"))
    }
    return inherited | {"CHURN_HOME": str(homes / "readme"), "UV_NO_SYNC": "1", "COLUMNS": "120"}


def run(command: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_runs(command: str, environment: dict[str, str], tmp_path: Path):
    if command == "pip install uv":
        run(f"{sys.executable} -m venv '{tmp_path}/venv' && '{tmp_path}'/venv/bin/{command}", environment)
        assert (tmp_path / "venv" / "bin" / "uv").exists()
    elif command == "uv run churn up":
        serve_until_ready(command, environment)
    elif command == "uv run pytest":
        assert "tests collected" in run(f"{command} --collect-only -q -n 0", environment)
    else:
        assert run(command, environment)


def serve_until_ready(command: str, environment: dict[str, str]) -> None:
    ports = f"--dagster-port {free_port()} --mlflow-port {free_port()}"
    with subprocess.Popen(
        ["bash", "-c", f"exec {command} {ports}"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as served:
        assert served.stdout is not None
        deadline = time.monotonic() + 240
        for line in served.stdout:
            assert time.monotonic() < deadline
            if "Ctrl-C" in line:
                break
        served.send_signal(signal.SIGINT)
        assert served.wait(60) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_configuration_table_lists_the_settings():
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \| .* \| (.*) \|$", README, re.MULTILINE)

    assert dict(rows) == {name.upper(): field.description for name, field in Settings.model_fields.items()}


def test_the_columns_table_lists_the_view(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]):
    monkeypatch.setenv("CHURN_HOME", environment["CHURN_HOME"])
    with open_deployment(load_settings()) as deployment:
        held = read_current(deployment.database, "SELECT * FROM churn_predictions_current LIMIT 1").columns

    section = README.partition("## What analysts read")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?`) \| \w", section, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(cells))) == sorted(held)


def test_every_file_that_the_readme_points_to_exists():
    for target in re.findall(r"\]\(((?!http|#)[^)]+)\)", README):
        assert (ROOT / target).exists(), target
