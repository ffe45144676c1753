"""At stake: dashboards, alert rules, the runbook and the page for analysts hold SQL that nobody compiles. A column that
a migration renames would be an empty panel, or an alert that never comes, on the day it is needed.
"""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
import yaml

from churn.database.connection import READER
from churn.deployment.services import Deployment
from tests.support import ROOT
from tests.support.inputs import monday
from tests.support.metrics import Fleet, make_monitored_fleet, scrape, served
from tests.support.site import Run, Site, create_login, run_sql

pytestmark = pytest.mark.slow

GRAFANA = ROOT / "infra/grafana"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
RULES = [
    rule
    for path in sorted((GRAFANA / "provisioning/alerting").glob("*.yaml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
PAGES = {page: (ROOT / "docs" / page).read_text() for page in ("runbook.md", "for-analysts.md")}

Row = dict[str, Any]


@pytest.fixture
def fleet(site: Site, log_model: Run, deployment: Deployment) -> Fleet:
    return make_monitored_fleet(site, log_model, deployment)


def expand(statement: str, **variables: str) -> str:
    """Put in what Grafana does for its macros and variables, as its PostgreSQL source writes them."""
    now = datetime.now(UTC) + timedelta(seconds=1)  # what happens in this very second is shown
    since, until = (f"'{at:%Y-%m-%dT%H:%M:%SZ}'" for at in (now - timedelta(weeks=26), now))
    for name, value in variables.items():
        quoted = "'" + value.replace("'", "''") + "'"
        statement = statement.replace(f"${{{name}:sqlstring}}", quoted)
    statement = re.sub(r"\$__timeFilter\(([^()]+)\)", rf"\1 BETWEEN {since} AND {until}", statement)
    assert "$" not in statement, "a macro or variable that this test does not know"
    return statement


class Grafana:
    """Grafana's login: it may read, and no more."""

    def __init__(self, site: Site, **variables: str) -> None:
        self._url = create_login(site.server, f"IN ROLE {READER}").set(database=site.churn)
        self._variables = variables

    def ask(self, statement: str) -> list[Row]:
        # As a driver sends it: SQLAlchemy must see no parameters in it.
        engine = sa.create_engine(
            self._url, poolclass=sa.pool.NullPool, connect_args={"options": "-c timezone=Asia/Tokyo"}
        )
        with engine.connect() as connection:
            text = expand(statement, **self._variables).replace("%", "%%")
            return [dict(row) for row in connection.exec_driver_sql(text).mappings()]

    def panel(self, dashboard: str, title: str) -> list[Row]:
        (panel,) = (panel for panel in DASHBOARDS[dashboard]["panels"] if panel["title"] == title)
        return self.ask(panel["targets"][0]["rawSql"])


def statements() -> Iterator[tuple[str, str]]:
    """Every statement in the files, with where it stands."""
    for name, dashboard in DASHBOARDS.items():
        for panel in dashboard["panels"]:
            yield from ((f"{name}: {panel['title']}", target["rawSql"]) for target in panel["targets"])
        for variable in dashboard["templating"]["list"]:
            assert variable["query"] == variable["definition"]
            yield f"{name}: ${variable['name']}", variable["query"]
        for annotation in dashboard["annotations"]["list"]:
            yield f"{name}: {annotation['name']}", annotation["target"]["rawSql"]
    for rule in RULES:
        models = (query["model"] for query in rule["data"])
        yield from ((f"rule: {rule['title']}", model["rawSql"]) for model in models if "rawSql" in model)


def test_every_statement_is_found() -> None:
    written = sum(text.count('"rawSql":') for text in (path.read_text() for path in (ROOT / "infra").rglob("*.json")))
    written += sum(text.count("rawSql:") for text in (path.read_text() for path in (ROOT / "infra").rglob("*.yaml")))

    found = [where for where, _ in statements() if ": $" not in where]

    assert len(found) == written > 30


def test_every_statement_runs_as_the_reader_and_panels_show_what_was_published(fleet: Fleet) -> None:
    week, us = fleet.week.isoformat(), "geography-us"
    grafana = Grafana(fleet.site, week=week, variant=us)

    answers = {where: grafana.ask(statement) for where, statement in statements()}

    (batch,) = fleet.site.rows(
        fleet.site.churn,
        "SELECT n_rows_scored, mean_probability, estimated_auc, score_counts, source_sha256, n_at_risk "
        "FROM scoring_batches WHERE batch_id = :batch",
        batch=fleet.batch_id,
    )
    assert [answers[f"fleet: {title}"] for title in ("Published", "Failed", "Missing")] == [
        [{"published": 1}], [{"failed": 1}], [{"missing": 1}],
    ]  # fmt: skip
    times = {where: rows[-1]["time"].astimezone(UTC) for where, rows in answers.items() if rows and "time" in rows[-1]}
    now = {where for where, at in times.items() if at == datetime.combine(fleet.week, datetime.min.time(), UTC)}
    judged = {where for where, at in times.items() if at == datetime.combine(monday(1), datetime.min.time(), UTC)}
    assert judged == {"fleet: ROC AUC over the fleet"}
    assert times.keys() - now - judged == {"variant: Champion changed"}
    last = {where: rows[-1] for where, rows in answers.items() if rows}
    assert (last["fleet: Variants by week"]["published"], last["fleet: Variants by week"]["failed"]) == (1, 1)
    assert last["fleet: Accounts by week"]["scored"] == batch[0]
    assert last["fleet: ROC AUC over the fleet"]["median"] == 0.6
    assert last["fleet: Variants that drift"]["confirmed"] == 1
    assert [row["variant"] for row in answers["fleet: Failed and missing"]] == ["geography-eu", "geography-ca"]
    assert answers["fleet: Failed and missing"][0]["error"] == "the file holds no 'account_id'"
    assert [(row["feature"], row["confirmed"]) for row in answers["fleet: Drift flags"]] == [
        ("total_deposit", True), ("churn_probability", False),
    ]  # fmt: skip
    assert [(row["member"], row["kind"]) for row in answers["fleet: Who is concerned"]] == [
        ("geography-eu", "variants_failed")
    ]
    (shown,) = answers["fleet: Variants in the week"]
    assert (shown["accounts"], shown["mean_probability"], shown["largest_psi"], shown["roc_auc"]) == (
        batch[0], batch[1], 0.31, 0.6,
    )  # fmt: skip
    assert answers["fleet: $week"][0] == {"to_char": week}
    assert [row["variant"] for row in answers["variant: $variant"]] == sorted([
        "geography-ca", "geography-eu", "geography-uk", us,
    ])  # fmt: skip
    assert answers["variant: Accounts"] == [{"accounts": batch[0], "at risk": batch[5]}]
    assert answers["variant: Estimated ROC AUC"] == [{"estimated_auc": batch[2]}]
    assert [row["accounts"] for row in answers["variant: Scores in the newest week"]] == batch[3]
    assert {(row["metric"], row["psi"]) for row in answers["variant: PSI by feature"]} >= {
        ("total_deposit", 0.31), ("churn_probability", 0.07),
    }  # fmt: skip
    first = answers["variant: ROC AUC"][0]
    assert (first["low"], first["ROC AUC"], first["high"], first["limit"]) == (0.52, 0.6, 0.68, 0.7)
    assert answers["variant: Scores and outcomes"][0]["churned share"] == 0.4
    assert [row["level"] for row in answers["variant: Segments"]] == ["OH", "PA"]
    assert [(row["rule"], row["rows"]) for row in answers["variant: Quarantine by rule"]] == [
        ("account_id_is_missing", 1)
    ]
    assert answers["variant: Lineage"][0]["source_sha256"] == batch[4]
    assert [row["outcome"] for row in answers["variant: Attempts"]] == ["published", "failed", "published"]
    assert answers["variant: Champion changed"][0]["text"] == "promoted: version 1"
    # The bundled model is not calibrated, so that no ROC AUC is estimated from its scores.
    assert [where for where, rows in answers.items() if not rows] == ["fleet: Estimated ROC AUC over the fleet"]


def test_alert_rules_are_quiet_on_a_healthy_fleet_and_each_speaks_up_for_its_own(fleet: Fleet) -> None:
    grafana = Grafana(fleet.site)
    rules = {rule["title"]: rule["data"][0]["model"]["rawSql"] for rule in RULES}
    is_late = datetime.now(UTC) - datetime.combine(fleet.week, datetime.min.time(), UTC) > timedelta(hours=6)

    def fired() -> dict[str, int]:
        return {title: row["n"] for title, statement in rules.items() for row in grafana.ask(statement)}

    wrong = fired()
    churn = fleet.site.server.set(database=fleet.site.churn)
    run_sql(churn, "DELETE FROM scoring_attempts WHERE outcome = 'failed'")
    run_sql(churn, "UPDATE drift_flags SET is_confirmed = false")
    run_sql(churn, "UPDATE evaluated_batches SET auc_limit = 0.65")
    run_sql(churn, "UPDATE alert_deliveries SET delivered_at = now()")

    assert wrong == dict.fromkeys(rules, 1) | {"Week missed": int(is_late)}
    assert fired() == dict.fromkeys(rules, 0)


def test_the_fleet_dashboard_and_prometheus_are_told_the_same(fleet: Fleet) -> None:
    grafana = Grafana(fleet.site, week=fleet.week.isoformat())
    with served(fleet.site.login.set(database=fleet.site.churn)) as address:
        found = scrape(address).samples

    for title in ("Published", "Failed", "Missing"):
        (row,) = grafana.panel("fleet", title)
        assert row[title.lower()] == found["churn_variants", title.lower()]
    assert grafana.panel("fleet", "Alerts waiting") == [{"waiting": found[("churn_alerts_waiting",)]}]
    assert grafana.panel("fleet", "Drift confirmed") == [{"drifted": found["churn_drifted_variants", "confirmed"]}]


def test_before_the_first_run_every_statement_runs_too(site: Site) -> None:
    grafana = Grafana(site, week=monday().isoformat(), variant="it's not there")

    answers = {where: grafana.ask(statement) for where, statement in statements()}

    assert answers["fleet: Missing"] == [{"missing": 0}]
    assert answers["fleet: $week"] == [{"to_char": monday().isoformat()}]


def test_the_sql_of_the_pages_runs_as_the_reader(fleet: Fleet) -> None:
    grafana = Grafana(fleet.site)
    for page, least in (("runbook.md", 10), ("for-analysts.md", 5)):
        blocks = re.findall(r"^```sql\n(.+?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)

        assert len(blocks) >= least
        for block in blocks:
            if not block.startswith("UPDATE "):  # by a person with the writer's role; test_monitor.py runs it
                grafana.ask(block)
