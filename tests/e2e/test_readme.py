"""The README is the product's first screen, and operators and analysts type what their pages show: every command runs,
and the tables of columns list what the view has.
"""

import importlib
import os
import re
import shlex
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from churn.cli.demo import VARIANTS
from churn.cli.main import main
from churn.database.predictions import read_current
from churn.deployment.services import open_deployment
from churn.deployment.settings import load_settings
from tests.support import ROOT
from tests.support.people import DEMO, Project, Served
from tests.support.site import Run

README = (ROOT / "README.md").read_text()
ANALYSTS = (ROOT / "docs/for-analysts.md").read_text()


def commands(text: str) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
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


BEFORE = ("uv run churn demo", "uv run churn up")
"""The fixtures run these; all other commands go on from what the demo left."""
FILES = {"objections.csv": "account_id\n7\n", "sent.csv": "account_id,exposed_at\n7,2026-11-30T10:00:00Z\n"}
"""Files of a reader that commands read."""
ELSEWHERE = ("pip install uv", "uv run pytest")
"""One needs the package index, and has a test that `just test-rest` runs; the other one runs this."""


@pytest.fixture
def environment(project: Project, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a reader, here and for processes; training tries fewer parameters."""
    monkeypatch.setenv("CHURN_HOME", str(project.home))
    monkeypatch.setenv("CHURN_TRAINING_TRIALS", "1")
    monkeypatch.setenv("COLUMNS", "120")
    return project.environment | {"CHURN_TRAINING_TRIALS": "1", "COLUMNS": "120"}


def run(command: str, environment: dict[str, str], folder: Path = ROOT) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_here(command: str, run_main: Run) -> str:
    """Run one of our commands in this process, as a process of its own takes seconds to import what it needs."""
    match shlex.split(command):
        case ["uv", "run", "churn", *arguments]:
            said = run_main(main, *arguments)
        case ["uv", "run", "python", script, *arguments]:
            name = script.removesuffix(".py").replace("/", ".")
            said = run_main(importlib.import_module(name).main, *arguments)
        case _:
            pytest.fail(f"{command} is no command of ours")
    assert said.status == 0, f"{command}\n{said.out}\n{said.err}"
    return said.out


def test_every_command_of_the_readme_and_of_the_pages_beside_it_runs(
    environment: dict[str, str], database: sa.URL, run_main: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    assert set(BEFORE) <= set(COMMANDS)
    for name, row in FILES.items():
        (tmp_path / name).write_text(row)
    for command in COMMANDS:
        monkeypatch.chdir(tmp_path if ".csv" in command else ROOT)
        if command in BEFORE or "pip install uv" in command or command in ELSEWHERE:
            continue
        if command.startswith("(cd ") or "churn psql" in command:  # another program prints
            assert run(command, environment)
        else:
            assert run_here(command, run_main)


def test_churn_up_serves_both_uis_where_it_says(served: Served):
    for address in (served.dagster, served.mlflow):
        with urllib.request.urlopen(address, timeout=20) as answer:  # noqa: S310 our own loopback address
            assert answer.status == 200


@pytest.mark.slow  # it needs the package index
def test_uv_is_installed_as_the_readme_says(tmp_path: Path):
    [as_usual] = [command for command in COMMANDS if command.startswith("pip install uv")]
    [where_refused] = [command for command in COMMANDS if command.startswith("python3 -m venv ~/")]
    environment = {**os.environ, "HOME": str(tmp_path)}

    assert run(f"{where_refused} && command -v uv", environment).strip().endswith(f"{tmp_path}/.uv/bin/uv")
    run(f"{tmp_path}/.uv/bin/{as_usual}", environment)


@pytest.fixture
def database(environment: dict[str, str]) -> Iterator[sa.URL]:
    """The predictions database of the commands, which answers for as long as the test runs."""
    with open_deployment(load_settings()) as deployment:
        for variant in VARIANTS:
            deployment.promoter().evaluator.ingestion.ingest(
                variant
            )  # as the Monday's evaluation does; past weeks are scored from it
        yield deployment.database


def columns_named(text: str, section: str) -> list[str]:
    table = text.partition(f"## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?`) \| \w", table, re.MULTILINE)))


def test_the_tables_of_columns_list_the_view(database: sa.URL):
    held = read_current(database, "SELECT * FROM churn_predictions_current LIMIT 1").columns

    assert sorted(columns_named(ANALYSTS, "Columns of `churn_predictions_current`")) == sorted(held)
    query = "SELECT col_description('churn_predictions_current'::regclass, i) FROM generate_series(1, {}) AS i"
    assert all(read_current(database, query.format(len(held))).to_series())
    shown = columns_named(README, "What analysts read")
    assert {"variant", "scored_week", "account_id", "churn_probability"} <= set(shown) <= set(held)


def test_the_analysts_queries_answer_what_their_text_says(database: sa.URL):
    blocks = re.findall(r"```sql\n(.*?)```", ANALYSTS, re.DOTALL)

    newest, list_, risen, reasons, by_id, evaluated = (read_current(database, block) for block in blocks)

    assert dict(newest.select("variant", "accounts").iter_rows()) == DEMO
    assert list_.height == 100
    assert list_["churn_probability"].is_sorted(descending=True)
    assert list_["account_id"][0] in reasons_shown(ANALYSTS)
    assert (risen.height, evaluated.height) == (0, 0)  # the demo has one recent week, of which no label is mature
    assert set(reasons["feature"]) >= {"total_handle", "ben_login_id", "brand_id"}
    assert by_id["account_key"].unique().to_list() == [str(reasons_shown(ANALYSTS)[0])]


def reasons_shown(text: str) -> list[int]:
    return [int(account) for account in re.findall(r"p\.account_id = (\d+)", text)]


def test_every_file_that_the_readme_points_to_exists():
    for target in re.findall(r"\]\(((?!http|#)[^)#]+)", README):
        assert (ROOT / target).exists(), target
