"""The tutorial is all that a new user has: each of its commands must run as it stands, in order, from nothing, and its
steps in the browser must lead to what it says is there.
"""

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from churn.database.predictions import read_current
from churn.deployment.services import open_deployment
from churn.deployment.settings import load_settings
from tests.support.people import CHROMIUM, ROOT, Project, Served, browsing, eventually, free_ports, materialize

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
FILES = dict(re.findall(r'^```python title="(.*?)"\n(.*?)^```$', TUTORIAL, re.MULTILINE | re.DOTALL))
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```$", TUTORIAL, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
SHOWN = re.findall(r"(http://127\.0\.0\.1:[35]000/?[^)>\s]*)", TUTORIAL)
N_FEATURES, N_ACCOUNTS = 12, 1500

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),  # a minute and a half on an idle machine
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)"),
]


@pytest.fixture
def clone(homes: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """What a clone holds, in a folder of its own, with the environment that ``uv`` would make."""
    root = homes / "clone"
    root.mkdir()
    for name in (".venv", "pyproject.toml", "uv.lock", "README.md", "churn", "experiment_tracking", "orchestration"):
        (root / name).symlink_to(ROOT / name)
    monkeypatch.setenv("UV_NO_SYNC", "1")
    monkeypatch.setenv("COLUMNS", "100")
    return Project(root / ".churn", root)


def test_a_new_user_who_follows_the_tutorial_sees_their_own_variant_scored_and_explained(clone: Project):
    said: dict[str, str] = {}
    for name, text in FILES.items():
        (clone.root / name).write_text(text)
    for command in COMMANDS:
        if command == "pip install uv":
            assert command in (ROOT / "README.md").read_text()  # whose test runs it
        elif command == "uv run churn up":
            with serving(clone, command) as served, browsing() as page:
                with reading(clone) as batches:
                    look_around(batches, served, page)
                served.command.process.send_signal(signal.SIGINT)  # uv hands it on
                assert served.command.process.wait(60) == 0
        else:
            said[command] = clone.run("bash", "-c", command)

    made, *_, explained = said.values()
    assert f"{N_ACCOUNTS} players, {N_FEATURES} features" in made
    account = re.search(r"--account (\d+)", COMMANDS[-1])
    assert account is not None
    assert f"account {account[1]} of geography-br" in explained
    assert re.search(r"logins +\d+ +\+\d\.\d{3}", explained)
    assert re.search(r"device +web +\+\d\.\d{3}", explained)
    assert clone.processes() == []


@contextmanager
def serving(clone: Project, command: str) -> Iterator[Served]:
    """Run ``churn up`` as it is written, on ports that are free here."""
    dagster, mlflow = free_ports(2)
    line = f"exec {command} --dagster-port {dagster} --mlflow-port {mlflow}"
    with clone.running("bash", "-c", line) as running:
        running.wait_until_printed("Ctrl-C stops both")
        yield Served(running, f"http://127.0.0.1:{dagster}", f"http://127.0.0.1:{mlflow}")


def look_around(batches: Callable[[], list[tuple[str, int]]], served: Served, page: Page) -> None:
    """Do in the browser what the tutorial says, at the addresses that it gives."""
    group, predictions, stored, raw, mlflow = (
        address.replace("http://127.0.0.1:3000", served.dagster).replace("http://127.0.0.1:5000", served.mlflow)
        for address in SHOWN
    )
    eventually(lambda: batches() == [("geography-br", N_ACCOUNTS)], "the sensor to have the variant scored")

    page.goto(group)
    materialize(page, "geography-br")
    assert batches() == [("geography-br", N_ACCOUNTS)] * 2

    page.goto(predictions)
    expect(page.get_by_text("histogram", exact=True)).to_be_visible()
    expect(page.get_by_text("importance", exact=True)).to_be_visible()
    page.goto(stored)
    expect(page.get_by_text("dagster/row_count", exact=True)).to_be_visible()
    expect(page.get_by_role("cell", name="5000628", exact=True)).to_be_visible()
    page.goto(raw)
    expect(page.get_by_text("activity.csv").first).to_be_visible()
    page.goto(f"{mlflow}/#/models")
    expect(page.get_by_role("link", name="churn-prediction-model-br", exact=True)).to_be_visible()


@contextmanager
def reading(clone: Project) -> Iterator[Callable[[], list[tuple[str, int]]]]:
    """Yield what gives variant and accounts of every batch, oldest first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHURN_HOME", str(clone.home))
        query = "SELECT variant, n_rows_scored FROM scoring_batches ORDER BY batch_id"
        with open_deployment(load_settings()) as deployment:
            yield lambda: [(variant, n) for variant, n in read_current(deployment.database, query).iter_rows()]
