"""At stake: whoever opens Dagster, MLflow or the report must not run what a stranger wrote into a name, an error or
a tag, nor ask a stranger's server for anything.
"""

import json
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from mlflow import MlflowClient
from playwright.sync_api import Page, Request, expect

from churn.database.connection import OWNER, create_engine
from churn.database.evaluations import EvaluatedBatch, PublishedBatch
from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import load_settings
from churn.evaluation.metrics import Interval
from churn.evaluation.segments import EvaluatedSegment
from churn.variants import Variant
from orchestration.assets.metadata import segment_table
from orchestration.checks import of_fleet
from orchestration.instance import dagster_environment
from tests.support.people import CHROMIUM, Project, browsing
from tests.support.texts import HOSTILE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)"),
]

WEEK = date(2026, 11, 16)
TEXTS = [text.replace("\0", "") for text in HOSTILE]
MADE_BY_STRANGERS = (
    "img[src='x'], img[src*='evil'], img[src*='graphql'], [onerror], iframe, script:has-text('alert(1)')"
)
ASSET = "raw_churn_data"


@pytest.fixture(scope="module")
def project(homes: Path) -> Project:
    """A project where the demo ran; then strangers wrote to its databases and to MLflow."""
    project = Project(homes / "strangers")
    project.run("churn", "demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHURN_HOME", str(project.home))
        with open_deployment(load_settings()) as deployment:
            for name, value in dagster_environment(deployment).items():
                patch.setenv(name, value)
            write_to_dagster()
            write_to_mlflow(deployment)
            write_attempts(deployment)
    project.run("churn", "report", "--out", str(project.home / "report.html"))
    return project


def write_to_dagster() -> None:
    batch = PublishedBatch(1, Variant(), WEEK, WEEK, 1, "champion", "run")
    for start in range(0, len(TEXTS), 15):
        some = TEXTS[start : start + 15]
        segments = [EvaluatedSegment(text, text, 9, 3, "ok", Interval(0.7, 0.6, 0.8), 0.2, 0.1, 0.3) for text in some]
        whole = EvaluatedBatch(batch, WEEK, 3, 9, 9, 9, 0, 3, "ok", 0.6, {}, segments=segments)
        (check,) = of_fleet("fleet_incidents", {"every_variant_was_scored": dict.fromkeys(some, some[0])})
        shown = {"by_segment": segment_table(whole), "by_check": check.metadata["variants"], "uri": "; ".join(some),
                 "levels": dict.fromkeys(some, 1)}  # fmt: skip
        with dg.DagsterInstance.get() as instance:
            instance.report_runless_asset_event(
                dg.AssetMaterialization(ASSET, partition="base", description=some[0], metadata=shown)
            )


def write_to_mlflow(deployment: Deployment) -> None:
    client, model = MlflowClient(deployment.tracking_uri), Variant().registered_model
    run = client.get_model_version(model, "1").run_id
    for i, text in enumerate(TEXTS):
        client.set_model_version_tag(model, "1", f"churn.text_{i}", text)
        client.set_registered_model_tag(model, f"churn.text_{i}", text)
        client.set_tag(run, f"churn.text_{i}", text)


def write_attempts(deployment: Deployment) -> None:
    statement = sa.text(
        "INSERT INTO scoring_attempts (variant, scored_week, outcome, error_type, error, started_at) "
        "SELECT :text, max(scored_week), 'failed', :text, :text, now() FROM scoring_batches"
    )
    incident = sa.text(
        "INSERT INTO incidents (kind, subject, severity, title, members, opened_at, updated_at) "
        "VALUES (:text, :text, 'error', :text, CAST(:members AS jsonb), now(), now())"
    )
    with create_engine(deployment.database_as("setup"), role=OWNER).begin() as connection:
        for text in TEXTS:
            connection.execute(statement, {"text": text})
            connection.execute(incident, {"text": text, "members": json.dumps({text: text})})


@pytest.fixture
def noted() -> list[str]:
    """What strangers did: dialogs, and requests to anybody else or that change something."""
    return []


@pytest.fixture
def page(noted: list[str]) -> Iterator[Page]:
    """A page that notes what strangers would do."""

    def note(request: Request) -> None:
        if "evil" in request.url or "mutation" in request.url or request.url.endswith("/x"):
            noted.append(request.url)

    with browsing() as opened:
        opened.on("request", note)
        opened.on("dialog", lambda dialog: (noted.append(dialog.message), dialog.dismiss()))
        yield opened


def require_nothing_made(page: Page) -> None:
    assert page.locator(MADE_BY_STRANGERS).count() == 0
    assert page.get_by_role("link", name="sign in", exact=True).count() == 0


def test_a_page_that_escapes_nothing_is_caught(page: Page, noted: list[str], tmp_path: Path) -> None:
    """Checks that find nothing anywhere would prove nothing."""
    naive = re.sub(r"!\[.*?\]\((.*?)\)", r'<img src="\1">', "\n".join(TEXTS).replace("<!-- gone", ""))
    naive = re.sub(r"\[(.*?)\]\((.*?)\)", r'<a href="\2">\1</a>', naive)
    (tmp_path / "naive.html").write_text(naive)

    page.goto((tmp_path / "naive.html").as_uri())

    assert page.locator(MADE_BY_STRANGERS).count() >= 4
    with pytest.raises(AssertionError):
        require_nothing_made(page)
    assert "1" in noted, "a dialog of a script or an image"
    assert any("evil" in one for one in noted)
    assert any("mutation" in one for one in noted)


def test_no_page_runs_or_fetches_what_a_stranger_wrote(project: Project, page: Page, noted: list[str]) -> None:
    with project.serving() as served:
        page.goto(f"{served.dagster}/assets/{ASSET}?view=events&partition=base")
        expect(page.get_by_text("by_segment").first).to_be_visible()
        require_nothing_made(page)
        page.get_by_role("button", name="Show Markdown").or_(page.get_by_text("[Show Markdown]")).first.click()
        expect(page.get_by_role("dialog").get_by_text("segment").first).to_be_visible()
        expect(page.get_by_role("dialog").get_by_text("calibration error").first).to_be_visible()
        require_nothing_made(page)
        for route in ("models/churn-prediction-model", "models/churn-prediction-model/versions/1"):
            page.goto(f"{served.mlflow}/#/{route}")
            expect(page.get_by_text("churn.text_0").first).to_be_visible()
            require_nothing_made(page)
    page.goto((project.home / "report.html").as_uri())
    expect(page.locator("body[data-ready]")).to_have_count(1)
    require_nothing_made(page)
    assert noted == []
