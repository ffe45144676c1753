"""The UIs are how people meet the system: one variant must be scorable by hand, exactly once, and seen to be.

Whoever starts the servers must also be rid of them afterwards.
"""

import json
import re
import signal
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Locator, Page, Response, expect

from churn.cli.demo import VARIANTS
from churn.registry.tags import MLFLOW_VIEW
from tests.support.people import (
    CHROMIUM,
    DEMO,
    ROOT,
    Demo,
    Project,
    Served,
    browsing,
    eventually,
    free_ports,
    materialize,
    read,
)

ASSETS = {
    "raw_churn_data",
    "transformed_features",
    "load_model_from_mlflow",
    "generate_predictions",
    "store_predictions",
}
MODELS = [f"churn-prediction-model{suffix}" for suffix in ("", "-clienta", "-eu-clientb", "-us")]
GROUP = "locations/churn/asset-groups/weekly_scoring"


@pytest.fixture(scope="class")
def page(served: Served) -> Iterator[Page]:
    with browsing() as page:
        yield page


def batches(project: Project) -> list[tuple[int, str, int]]:
    query = "SELECT batch_id, variant, n_rows_scored FROM scoring_batches ORDER BY batch_id"
    return read(project, query).rows()


def count(project: Project, table: str) -> int:
    return int(read(project, f"SELECT count(*) FROM {table}").item())  # noqa: S608 the test's own


def test_the_demo_shows_what_came_of_every_variant_and_where_to_look(demo: Demo):
    predictions, sources = re.split("Sources of the predictions", demo.printed.partition("most likely to churn")[2])

    for key, n in DEMO.items():
        assert re.search(rf"{re.escape(key)} +│ +\d+ │ 0\.\d{{3}} █", predictions)
        assert re.search(rf"{re.escape(key)} +│ +\d+ │ +\d+ of {n:,} │ 0\.\d{{3}} │ v1 +│ local", sources)
    assert "because S3 is not configured (MLFLOW_S3_BUCKET)" in sources
    assert re.search(r"uv run churn up .*http://127.0.0.1:3000.*http://127.0.0.1:5000\n", sources)
    assert max(map(len, sources.splitlines())) <= 110
    assert sorted(variant.key for variant in VARIANTS) == list(DEMO)


def test_the_demos_predictions_are_in_postgresql_and_nothing_is_left_running(demo: Demo):
    assert demo.published == [(key, n, n, 1) for key, n in DEMO.items()]
    assert demo.left == []


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")
class TestInTheBrowser:
    def test_materializing_one_variant_by_hand_adds_its_batch_and_nothing_else(
        self, project: Project, served: Served, page: Page
    ):
        before = batches(project), count(project, "churn_predictions"), count(project, "churn_predictions_current")

        page.goto(f"{served.dagster}/{GROUP}")
        materialize(page, "geography-us")

        after = batches(project), count(project, "churn_predictions"), count(project, "churn_predictions_current")
        *earlier, (batch_id, variant, n_rows) = after[0]
        assert (earlier, variant) == (before[0], "geography-us")
        assert after[1:] == (before[1] + n_rows, before[2])

        page.goto(f"{served.dagster}/assets/store_predictions?view=partitions&partition=geography-us")
        expect(value_of(page, "batch_id")).to_have_text(str(batch_id))
        expect(value_of(page, "dagster/row_count")).to_have_text(str(n_rows))
        expect(value_of(page, "highest_risk")).to_contain_text(re.compile(r"\d{8}\s*0\.\d{3}"))  # drawn a moment later

    def test_a_page_of_another_site_changes_nothing_and_may_link_to_dagster(self, served: Served, page: Page):
        mutation = quote("mutation { setNuxSeen }")
        image = f"{served.dagster}/graphql?query={mutation}"
        live = f"{served.dagster.replace('http', 'ws')}/graphql"
        elsewhere = f"""<img src="{image}"><a href="{served.dagster}/assets">see</a><script>
            fetch("{served.dagster}/graphql", {{method: "POST", mode: "no-cors", body: "{{version}}"}});
            new WebSocket("{live}", "graphql-ws").onclose = () => document.title = "closed";
        </script>"""
        answers: list[Response] = []
        page.on("response", lambda response: answers.append(response))  # noqa: PLW0108 it wraps functions only
        with site(elsewhere) as address:
            page.goto(address)
            expect(page).to_have_title("closed")
            asked = lambda: [one.status for one in answers if one.request.headers.get("referer") == address]  # noqa: E731
            eventually(lambda: len(asked()) == 2, "both answers")
            assert asked() == [403, 403]

            page.get_by_role("link", name="see").click()
            expect(page).to_have_url(f"{served.dagster}/assets")
            expect(page.get_by_text("store_predictions").first).to_be_visible()

    def test_the_overview_shows_the_demos_run(self, served: Served, page: Page):
        page.goto(f"{served.dagster}/overview/activity/timeline")

        expect(page.get_by_role("link", name="churn_prediction_job")).to_be_visible()

    def test_mlflow_shows_every_registered_model(self, served: Served, page: Page):
        page.goto(f"{served.mlflow}/#/models")

        for model in MODELS:
            expect(page.get_by_role("link", name=model, exact=True)).to_be_visible()
        page.goto(f"{served.mlflow}/#/experiments/1{MLFLOW_VIEW}")
        expect(page.get_by_role("link", name=re.compile("^log-"))).to_be_visible()


@contextmanager
def site(html: str) -> Iterator[str]:
    """Serve one page; yields its address, which is another site than a numeric one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()


def value_of(page: Page, key: str) -> Locator:
    """Where a partition's metadata table shows the value of a key."""
    return page.get_by_text(key, exact=True).locator("xpath=ancestor::tr").locator("td").nth(1)


@pytest.fixture(scope="module")
def lone(homes: Path) -> Project:
    """A project where the demo ran, and nothing is served."""
    project = Project(homes / "lone")
    project.run("churn", "demo")
    return project


@pytest.mark.slow  # the README's own test ends it with one SIGINT
@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGINT, signal.SIGINT]])
def test_a_signal_or_an_impatient_second_one_ends_every_server(lone: Project, signals: list[signal.Signals]):
    with lone.serving() as served:
        running = "\n".join(lone.processes())
        assert all(
            name in running for name in ("mlflow", "orchestration.webserver", "dagster._daemon", "api grpc", "postgres")
        )

        *patient, last = signals
        for number in patient:
            served.command.process.send_signal(number)
            served.command.wait_until_printed("stopping")
        assert served.command.stop(last) == (130 if patient else 0)
        assert lone.left() == []


@pytest.mark.slow
def test_a_terminal_closed_while_the_servers_start_leaves_none_behind(lone: Project):
    dagster, mlflow = map(str, free_ports(2))
    with lone.running("churn", "up", "--dagster-port", dagster, "--mlflow-port", mlflow) as command:
        command.wait_until_printed("starting")

        assert command.stop(signal.SIGHUP) == 0
        assert lone.left() == []


@contextmanager
def dg_dev(project: Project) -> Iterator[str]:
    """Run ``dg dev`` in the root; yields its address. Nothing it makes there may stay."""
    entries = set(ROOT.iterdir())
    (port,) = free_ports(1)
    with project.running("dg", "dev", "--port", str(port)) as command:
        command.wait_until_printed("Serving dagster-webserver")
        eventually(lambda: is_listening(port), "the webserver to listen, which it says a moment early")
        yield f"http://127.0.0.1:{port}"
        command.stop(signal.SIGINT)
        assert not [path for path in set(ROOT.iterdir()) - entries if path.name.startswith(".tmp_dagster")]


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ask(address: str, query: str, **variables: object) -> Any:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{address}/graphql", body, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 our own loopback address
        answered = json.load(answer)
    assert "errors" not in answered, answered
    return answered["data"]


def partitions(address: str) -> list[str]:
    nodes = ask(address, "{ assetNodes { assetKey { path } partitionKeys } }")["assetNodes"]
    return sorted(next(node["partitionKeys"] for node in nodes if node["assetKey"]["path"] == ["raw_churn_data"]))


def running(address: str) -> list[str]:
    """The sensors and schedules that are on."""
    each = "{ name sensorState { status } }", "{ name scheduleState { status } }"
    listed = f"nodes {{ sensors {each[0]} schedules {each[1]} }}"
    query = f"{{ repositoriesOrError {{ ... on RepositoryConnection {{ {listed} }} }} }}"
    (found,) = ask(address, query)["repositoriesOrError"]["nodes"]
    states = [(one["name"], one["sensorState"]) for one in found["sensors"]]
    states += [(one["name"], one["scheduleState"]) for one in found["schedules"]]
    return [name for name, state in states if state["status"] == "RUNNING"]


LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } } }
}
"""
STATUS = "query Status($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"


@pytest.mark.slow
def test_dg_dev_in_the_root_serves_the_graph_and_scores_a_registered_variant(lone: Project):
    n_before = len(batches(lone))
    with dg_dev(lone) as address:
        nodes = ask(address, "{ assetNodes { assetKey { path } repository { location { name } } } }")["assetNodes"]
        assert {node["assetKey"]["path"][-1] for node in nodes} >= ASSETS
        assert {node["repository"]["location"]["name"] for node in nodes} == {"churn"}

        eventually(lambda: partitions(address) == list(DEMO), "the sensor to make the partitions equal to the registry")
        assert running(address) == ["new_data_sensor"]  # it scores nothing and alerts nobody by itself
        assert len(batches(lone)) == n_before
        params = {
            "selector": {
                "repositoryLocationName": "churn",
                "repositoryName": "__repository__",
                "jobName": "churn_prediction_job",
            },
            "executionMetadata": {"tags": [{"key": "dagster/partition", "value": "company-clienta"}]},
        }
        launched = ask(address, LAUNCH, params=params)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess"
        run = launched["run"]["runId"]

        def has_ended() -> bool:
            return ask(address, STATUS, id=run)["runOrError"]["status"] in ("SUCCESS", "FAILURE", "CANCELED")

        eventually(has_ended, "the run to end")
        assert ask(address, STATUS, id=run)["runOrError"]["status"] == "SUCCESS"
    new = batches(lone)[n_before:]
    assert [variant for _, variant, _ in new] == ["company-clienta"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["dg check defs", "dagster definitions validate"])
def test_the_definitions_load_from_the_root_with_nothing_set(homes: Path, command: str):
    project = Project(homes / "never-set-up")

    assert "success" in project.run(*command.split())
    assert not [path.name for path in project.home.iterdir() if path.suffix != ".out"]
