"""The README is the product's first screen, and operators and analysts type what their pages show: every command runs,
and the tables of columns list what the view has.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from churn.database.embedded_host import find_programs
from churn.database.predictions import read_current
from churn.deployment.services import open_deployment
from churn.deployment.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
ANALYSTS = (ROOT / "docs/for-analysts.md").read_text()
CONNECT = "<!-- connect -->\n"
"""Marks the block of shell lines that belong together; it has a test of its own."""


def commands(text: str) -> list[str]:
    blocks = re.findall(rf"(?<!{re.escape(CONNECT)})```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def commands_of(page: str) -> list[str]:
    return commands((ROOT / page).read_text())


COMMANDS = list(
    dict.fromkeys(
        [
            *commands(README),
            *commands(ANALYSTS),
            *commands_of("docs/weekly-job.md"),
            *commands_of("docs/training.md"),
            *commands_of("docs/monitoring.md"),
            *(line for line in commands_of("docs/how-to/erase-a-player.md") if line.endswith("--dry-run")),
        ]
    )
)
"""In a reader's order, each once."""


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
def test_every_command_of_the_readme_and_of_the_pages_beside_it_runs(
    command: str, environment: dict[str, str], tmp_path: Path
):
    if command == "pip install uv":
        run(f"{sys.executable} -m venv '{tmp_path}/venv' && '{tmp_path}'/venv/bin/{command}", environment)
        assert (tmp_path / "venv" / "bin" / "uv").exists()
    elif command.startswith("python3 -m venv ~/"):
        found = run(f"{command} && command -v uv", environment | {"HOME": str(tmp_path)})
        assert found.strip().endswith(f"{tmp_path}/.uv/bin/uv")
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


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Iterator[sa.URL]:
    """The predictions database of the commands, which answers for as long as the test runs."""
    monkeypatch.setenv("CHURN_HOME", environment["CHURN_HOME"])
    with open_deployment(load_settings()) as deployment:
        yield deployment.database


def columns_named(text: str, section: str) -> list[str]:
    table = text.partition(f"## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?`) \| \w", table, re.MULTILINE)))


def test_the_tables_of_columns_list_the_view(database: sa.URL):
    held = read_current(database, "SELECT * FROM churn_predictions_current LIMIT 1").columns

    assert sorted(columns_named(ANALYSTS, "Columns of `churn_predictions_current`")) == sorted(held)
    shown = columns_named(README, "What analysts read")
    assert {"variant", "scored_week", "account_id", "churn_probability"} <= set(shown) <= set(held)


def test_the_analysts_queries_answer_what_their_text_says(database: sa.URL):
    blocks = re.findall(r"```sql\n(.*?)```", ANALYSTS, re.DOTALL)

    newest, list_, risen, reasons, evaluated = (read_current(database, block) for block in blocks)

    assert newest["accounts"].to_list() == [1000] * 4
    assert list_.height == 100
    assert list_["churn_probability"].is_sorted(descending=True)
    assert list_["account_id"][0] in reasons_shown(ANALYSTS)
    assert (risen.height, evaluated.height) == (0, 0)  # the demo has one recent week, of which no label is mature
    assert set(reasons["feature"]) >= {"total_handle", "ben_login_id", "brand_id"}


def reasons_shown(text: str) -> list[int]:
    return [int(account) for account in re.findall(r"p\.account_id = (\d+)", text)]


def test_an_analyst_connects_to_the_embedded_server_as_the_page_says(
    database: sa.URL, environment: dict[str, str], tmp_path: Path
):
    block = ANALYSTS.partition(f"{CONNECT}```bash\n")[2].partition("```")[0]
    (tmp_path / ".churn").symlink_to(environment["CHURN_HOME"])
    programs = find_programs(None, None, copies=tmp_path).folder

    said = run(f"cd '{tmp_path}'\n{block}", environment | {"PATH": f"{programs}:{environment['PATH']}"})

    assert database.port
    assert re.search(r"^ +[1-9]\d{3,}$", said, re.MULTILINE)


def test_every_file_that_the_readme_points_to_exists():
    for target in re.findall(r"\]\(((?!http|#)[^)]+)\)", README):
        assert (ROOT / target).exists(), target
