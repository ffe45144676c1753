"""At stake: Grafana loads dashboards and rules without a word about what is wrong in them. A panel over another, a
source that is not there, a rule or a runbook that points nowhere shows only when somebody needs it.
"""

import importlib
import json
import re
import shlex
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from churn.cli.main import build_parser
from churn.monitoring.incidents import KINDS
from infra.make_alert_rules import files

ROOT = Path(__file__).resolve().parents[2]
GRAFANA = ROOT / "infra/grafana"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
RUNBOOK = (ROOT / "docs/runbook.md").read_text()
COLUMNS = 24


def provisioned(folder: str) -> list[dict[str, Any]]:
    return [yaml.safe_load(path.read_text()) for path in sorted((GRAFANA / "provisioning" / folder).glob("*.yaml"))]


def alert_rules() -> list[dict[str, Any]]:
    return [rule for file in provisioned("alerting") for group in file["groups"] for rule in group["rules"]]


def prometheus_rules() -> list[dict[str, Any]]:
    file = yaml.safe_load((ROOT / "infra/prometheus/rules.yaml").read_text())
    return [rule for group in file["groups"] for rule in group["rules"]]


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object in a tree of JSON."""
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for part in tree:
            yield from nodes(part)


SOURCES = {source["uid"]: source for file in provisioned("datasources") for source in file["datasources"]}
each_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS.keys())


@each_dashboard
def test_every_panel_is_in_the_grid_and_lies_over_no_other(dashboard: dict[str, Any]) -> None:
    cells = [
        {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        for at in (panel["gridPos"] for panel in dashboard["panels"])
    ]

    assert all(cells)
    assert all(0 <= x < COLUMNS and y >= 0 for taken in cells for x, y in taken)
    assert not [pair for pair in combinations(cells, 2) if pair[0] & pair[1]]


@each_dashboard
def test_every_panel_has_its_number_its_words_and_its_queries(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]

    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["description"].endswith(".")
        assert panel["targets"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
        formats = {target["format"] for target in panel["targets"]}
        assert formats == ({"time_series"} if panel["type"] == "timeseries" else {"table"})


@each_dashboard
def test_every_query_goes_to_a_source_that_is_provisioned(dashboard: dict[str, Any]) -> None:
    named = [node["datasource"] for node in nodes(dashboard) if "datasource" in node]

    assert len(named) > len(dashboard["panels"])
    for source in named:
        assert source == {"type": SOURCES[source["uid"]]["type"], "uid": source["uid"]}


@each_dashboard
def test_every_variable_that_is_used_is_defined(dashboard: dict[str, Any]) -> None:
    defined = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{([a-z_]+)(?::\w+)?\}", json.dumps(dashboard["panels"])))

    assert {name for name in used if not name.startswith("__")} == defined


@each_dashboard
def test_it_speaks_of_utc_and_is_of_a_schema_that_grafana_11_reads(dashboard: dict[str, Any]) -> None:
    assert dashboard["timezone"] == "utc"
    assert 39 <= dashboard["schemaVersion"] <= 41
    assert "id" not in dashboard  # of a database; the uid is what links go by


def test_links_between_dashboards_lead_somewhere() -> None:
    links = [node["url"] for dashboard in DASHBOARDS.values() for node in nodes(dashboard) if "url" in node]
    variables = {
        dashboard["uid"]: {f"var-{one['name']}" for one in dashboard["templating"]["list"]}
        for dashboard in DASHBOARDS.values()
    }

    assert len(variables) == len(DASHBOARDS) == 2
    assert links
    for link in links:
        found = re.fullmatch(r"/d/([\w-]+)(?:\?(var-\w+)=.*)?", link)
        assert found is not None, link
        assert found[1] in variables
        assert found[2] is None or found[2] in variables[found[1]]


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_rules_and_alarms_are_what_their_one_source_writes(path: Path) -> None:
    assert path.read_text() == files()[path]


def test_an_alert_rule_asks_a_provisioned_source_and_shows_a_panel_that_is_there() -> None:
    panels = {d["uid"]: {panel["id"] for panel in d["panels"]} for d in DASHBOARDS.values()}
    rules = alert_rules()

    assert len({rule["uid"] for rule in rules}) == len({rule["title"] for rule in rules}) == len(rules) >= 5
    for rule in rules:
        queries = {query["refId"]: query for query in rule["data"]}
        assert len(queries) == len(rule["data"])
        condition = queries[rule["condition"]]
        assert (condition["datasourceUid"], condition["model"]["type"]) == ("__expr__", "threshold")
        asked = queries[condition["model"]["expression"]]
        assert asked["datasourceUid"] in SOURCES
        assert "rawSql" in asked["model"]
        assert all(query["model"]["refId"] == ref for ref, query in queries.items())
        assert rule["panelId"] in panels[rule["dashboardUid"]]
        assert re.fullmatch(r"\d+[smh]", rule["for"])


def test_every_alert_leads_to_a_section_of_the_runbook() -> None:
    headings = re.findall(r"^## (.+)$", RUNBOOK, re.MULTILINE)
    anchors = {re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings}
    rules = [*alert_rules(), *prometheus_rules()]

    assert set(KINDS) <= anchors
    assert {rule["labels"]["severity"] for rule in rules} == {"warning", "error"}
    for rule in rules:
        file, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert file == "docs/runbook.md"
        assert anchor in anchors
        if anchor in KINDS:
            assert rule["labels"]["severity"] == KINDS[anchor].severity


def test_every_kind_of_incident_has_its_section_in_the_runbook() -> None:
    sections = dict(re.findall(r"^## (\S+)\n(.+?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL))

    assert list(KINDS) == [name for name in sections if name in KINDS]
    for name in KINDS:
        parts = re.findall(r"^\*\*(\w+(?: it)?)[.*]", sections[name], re.MULTILINE)
        assert parts == ["Means", "See it", "Do", "Ends"], name


def test_the_runbooks_links_lead_to_its_sections() -> None:
    links = re.findall(r"\]\(#([^)]+)\)", RUNBOOK)

    assert links
    assert set(links) <= set(KINDS)


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^uv run (.+)$", RUNBOOK, re.MULTILINE))))
def test_the_runbooks_commands_are_ones_that_exist(command: str) -> None:
    program, *arguments = shlex.split(command)
    module = "churn.cli.main"
    if program == "python":
        module = arguments.pop(0).removesuffix(".py").replace("/", ".")
    else:
        assert program == "churn"

    assert importlib.import_module(module).build_parser().parse_args(arguments)


def test_every_command_named_in_the_runbooks_sentences_exists(capsys: pytest.CaptureFixture[str]) -> None:
    named = set(re.findall(r"`(?:uv run )?churn (\w+)", RUNBOOK))

    assert {"report", "metrics", "up"} <= named
    for command in named:
        with pytest.raises(SystemExit, match=r"^0$"):
            build_parser().parse_args([command, "--help"])


def test_every_part_of_dagster_named_in_the_runbook_exists() -> None:
    from orchestration.definitions import defs

    repository, graph = defs.get_repository_def(), defs.resolve_asset_graph()
    known = {job.name for job in repository.get_all_jobs()} | {sensor.name for sensor in repository.sensor_defs}
    known |= {schedule.name for schedule in repository.schedule_defs}
    known |= {key.to_user_string() for key in graph.get_all_asset_keys()} | {key.name for key in graph.asset_check_keys}
    named = set(
        re.findall(r"`(\w+_(?:job|sensor|schedule|incidents|predictions|features|fresh|usual|s3|scored))`", RUNBOOK)
    )

    assert len(named) > 12
    assert named <= known


def test_every_panel_named_in_the_runbook_exists() -> None:
    titles = {panel["title"] for dashboard in DASHBOARDS.values() for panel in dashboard["panels"]}
    named = set(re.findall(r"(?<!\*)\*([A-Z][^*\n]+)\*(?!\*)", RUNBOOK))

    assert len(named) >= 6
    assert named <= titles | {dashboard["title"] for dashboard in DASHBOARDS.values()}


def test_prometheus_finds_the_rules_and_scrapes_where_the_command_listens() -> None:
    config = yaml.safe_load((ROOT / "infra/prometheus/prometheus.yaml").read_text())
    args = build_parser().parse_args(["metrics"])
    rules = prometheus_rules()

    assert [ROOT / "infra/prometheus" / name for name in config["rule_files"]] == [ROOT / "infra/prometheus/rules.yaml"]
    assert config["scrape_configs"][0]["static_configs"] == [{"targets": [f"{args.host}:{args.port}"]}]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+[smh]", rule["for"])
        assert all(rule["expr"].count(opening) == rule["expr"].count(closing) for opening, closing in ("()", "{}"))


def test_no_file_holds_a_password_or_a_host() -> None:
    (source,) = SOURCES.values()
    given = [source["url"], source["user"], source["secureJsonData"]["password"], *source["jsonData"].values()]
    texts = [value for value in given if isinstance(value, str)]

    assert len(texts) == 5
    assert all(re.fullmatch(r"\$__env\{\w+\}(:\$__env\{\w+\})?", text) for text in texts)
    names = set(re.findall(r"\$__env\{(\w+)\}", json.dumps([*SOURCES.values(), *provisioned("dashboards")])))
    assert all(name.startswith("CHURN_GRAFANA_") for name in names)
