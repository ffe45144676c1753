"""The tutorial is all that a new user has: each of its commands must run as it stands, in order, from nothing, and its
steps in the browser must lead to what it says is there.
"""

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from churn.data.labels import Horizon
from churn.database.predictions import read_current
from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import load_settings
from churn.weeks import monday_of, month_start
from churn.workflows.evaluate import evaluate_fleet
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
]


@pytest.fixture
def clone(homes: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Project:
    """What a clone holds, in a folder of its own, with the environment that ``uv`` would make."""
    root = homes / f"clone-{len(request.node.name)}"
    root.mkdir()
    for name in (".venv", "pyproject.toml", "uv.lock", "README.md", "churn", "experiment_tracking", "orchestration"):
        (root / name).symlink_to(ROOT / name)
    monkeypatch.setenv("UV_NO_SYNC", "1")
    monkeypatch.setenv("COLUMNS", "100")
    return Project(root / ".churn", root)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")
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

    (made,) = (out for command, out in said.items() if "own_model.py" in command)
    assert f"{N_ACCOUNTS} players, {N_FEATURES} features" in made
    ((account, explained),) = (
        (found[1], out) for command, out in said.items() if (found := re.search(r"--account (\d+)", command))
    )
    assert f"account {account} of geography-br" in explained
    assert re.search(r"logins +\d+ +\+\d\.\d{3}", explained)
    assert re.search(r"device +web +\+\d\.\d{3}", explained)
    *_, trained, status = said.values()
    assert "version    2, alias challenger" in trained
    assert "champion   v1" in status
    assert "challenger v2" in status
    assert clone.left() == []


def test_the_variant_of_the_tutorial_is_trained_evaluated_compared_and_promoted(clone: Project):
    """The weeks are past ones, whose labels have matured; each model was trained before them."""
    for name, text in FILES.items():
        (clone.root / name).write_text(text)
    until_served = COMMANDS[1 : COMMANDS.index("uv run churn up")]
    for command in until_served:
        clone.run("bash", "-c", command)
    mature = Horizon().newest_mature(datetime.now(UTC).date())
    trained_on = month_start(mature, -1) - timedelta(days=1)
    weeks = [monday_of(month_start(mature, -i).replace(day=20)) for i in (1, 0)]

    def train(*features: str) -> str:
        train_model = ("python", "experiment_tracking/train_model.py", "--geography", "BR", "--trials", "2")
        return clone.run(*train_model, "--as-of", str(trained_on), "--features", *features)

    def promote(*arguments: str) -> str:
        return clone.run("python", "experiment_tracking/promote_model.py", *arguments, "--geography", "BR")

    first = train("default")
    assert "gate       passed" in first, first
    assert "version    2, alias challenger" in first
    assert "champion v2, previous v1" in promote("promote", "--force", "--reason", "trained on what it scores")
    assert "version    3, alias challenger" in train("stakes,logins,months_since_active,device_web")
    for week in weeks:
        clone.run("churn", "score", "geography-br", "--week", str(week))
    with deployment_of(clone) as deployment:
        ((_, evaluation),) = evaluate_fleet(deployment.promoter(), ["geography-br"])
    assert not isinstance(evaluation, BaseException), evaluation
    assert [(one.batch.role, one.status) for one in evaluation.batches] == [
        ("champion", "ok"),
        ("challenger", "ok"),
    ] * 2
    assert {segment.segment for one in evaluation.batches for segment in one.segments} == {"device", "sport"}
    assert all(0.7 < one.measures["roc_auc"] < 0.95 for one in evaluation.batches)
    compared = promote("status")
    assert re.search(r"comparison \d{3} matured accounts, log-loss (better|worse) by", compared), compared
    assert "champion v3, previous v2" in promote("promote", "--force", "--reason", "fewer features")
    assert clone.left() == []


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
    expect(page.get_by_role("cell", name="5000348", exact=True)).to_be_visible()
    page.goto(raw)
    expect(page.get_by_text("activity.csv").first).to_be_visible()
    page.goto(mlflow)
    expect(page.get_by_role("link", name="churn_prediction-geography-br", exact=True)).to_be_visible()


@contextmanager
def deployment_of(clone: Project) -> Iterator[Deployment]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHURN_HOME", str(clone.home))
        with open_deployment(load_settings()) as deployment:
            yield deployment


@contextmanager
def reading(clone: Project) -> Iterator[Callable[[], list[tuple[str, int]]]]:
    """Yield what gives variant and accounts of every batch, oldest first."""
    query = "SELECT variant, n_rows_scored FROM scoring_batches ORDER BY batch_id"
    with deployment_of(clone) as deployment:
        yield lambda: [(variant, n) for variant, n in read_current(deployment.database, query).iter_rows()]
