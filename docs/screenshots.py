"""Takes the README's pictures: the demo in a fresh home, both UIs over it, headless Chromium.

Run it again after a change that shows: ``python docs/screenshots.py``. Needs Chromium and the development dependencies.
"""

import argparse
import io
import os
import tempfile
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import polars as pl
from PIL import Image
from playwright.sync_api import Page, expect

from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import load_settings
from churn.variants import Variant
from churn.weeks import monday_of
from churn.workflows.evaluate import evaluate_fleet
from churn.workflows.score import score_fleet
from churn.workflows.set_up import set_up_server, set_up_variants
from tests.support.batches import week_request
from tests.support.people import ROOT, Project, Served, browsing
from tests.support.services import NAMES_KEY, bench_environment, upload_variant
from tests.support.simulated import simulate_activity

_COLOURS = 256
_N_ASSETS, _N_MODELS = 5, 4

SHOWN, TWISTED, DRIFTED, NEWLY_DRIFTED, BROKEN = (
    Variant("us"), Variant(company="clientb"), Variant("us", "clienta"), Variant("ca"), Variant("br"),
)  # fmt: skip
FLEET = (
    Variant(), SHOWN, TWISTED, DRIFTED, NEWLY_DRIFTED, BROKEN, Variant("eu", "clientb"), Variant("mx"), Variant("uk"),
)  # fmt: skip
"""The report's fleet, and those of it who have something to show."""


def build_parser() -> argparse.ArgumentParser:
    """Make the parser, which documents the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="folder; default: %(default)s")
    return parser


def main() -> None:
    """Take every picture."""
    out: Path = build_parser().parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="churn-pictures-") as folder:
        Path(folder).chmod(0o755)  # the account that root's PostgreSQL runs as must get through
        project = Project(Path(folder) / "home")
        project.run("churn", "demo")
        with project.serving() as served, browsing(scale=2) as page:
            page.goto(served.dagster)
            page.get_by_role("button", name="Hide navigation").click()
            take_graph(served, page, out)
            take_predictions(served, page, out)
            take_importance(page, out)
            take_checks(served, page, out)
            take_registry(served, page, out)
        with browsing(scale=2) as page:
            take_report(Project(Path(folder) / "year"), page, out)


def take_graph(served: Served, page: Page, out: Path) -> None:
    """The five assets, their kinds, what was materialized and what was checked."""
    page.set_viewport_size({"width": 1340, "height": 510})
    page.goto(f"{served.dagster}/locations/churn/asset-groups/weekly_scoring")
    expect(page.get_by_text("100% filled")).to_have_count(_N_ASSETS)
    save(page, out / "dagster-graph.png")


def take_predictions(served: Served, page: Page, out: Path) -> None:
    """One variant's predictions: how many, their mean, their distribution."""
    page.set_viewport_size({"width": 1180, "height": 1180})
    page.goto(f"{served.dagster}/assets/generate_predictions?view=partitions&partition=geography-us")
    expect(page.get_by_text("histogram", exact=True)).to_be_visible()
    save(page, out / "dagster-predictions.png")


def take_importance(page: Page, out: Path) -> None:
    """What drove that variant's scores: a table further down the same page."""
    page.set_viewport_size({"width": 1180, "height": 700})
    page.get_by_text("The mean is of").scroll_into_view_if_needed()
    expect(page.get_by_text("mean |log-odds|")).to_be_visible()
    save(page, out / "dagster-importance.png")


def take_checks(served: Served, page: Page, out: Path) -> None:
    """The check that tells a local stand-in from S3, with its reason."""
    page.set_viewport_size({"width": 1180, "height": 590})
    page.goto(f"{served.dagster}/assets/raw_churn_data?view=checks&checkDetail=input_came_from_s3")
    expect(page.get_by_text("S3 is not configured")).to_be_visible()
    save(page, out / "dagster-checks.png")


def take_registry(served: Served, page: Page, out: Path) -> None:
    """The registered models and their champions, without MLflow's news and its assistant in front of them."""
    page.set_viewport_size({"width": 1560, "height": 450})
    page.goto(f"{served.mlflow}/#/models")
    expect(page.get_by_text("@ champion")).to_have_count(_N_MODELS)
    news = page.get_by_role("dialog")
    news.get_by_role("button", name="Close").click()
    expect(news).to_have_count(0)
    close_assistant = page.get_by_role("button", name="Close")
    close_assistant.click()
    expect(close_assistant).to_have_count(0)
    save(page, out / "mlflow-registry.png")


def take_report(project: Project, page: Page, out: Path) -> None:
    """The report of a small fleet that has lived through half a year: in the light, in the dark, and on a phone."""
    live_through_half_a_year(project.home)
    report = project.home / "report.html"
    project.run("churn", "report", "--out", str(report))
    page.set_viewport_size({"width": 1180, "height": 1900})
    page.goto(report.as_uri())
    expect(page.get_by_role("table", name="Variants").get_by_role("rowheader")).to_have_count(len(FLEET))
    save(page, out / "report-fleet.png")
    page.set_viewport_size({"width": 390, "height": 844})
    save(page, out / "report-phone.png")
    page.set_viewport_size({"width": 1180, "height": 1500})
    page.goto(f"{report.as_uri()}#/variant/{SHOWN.key}")
    expect(page.get_by_role("heading", name=SHOWN.key)).to_be_visible()
    save(page, out / "report-variant.png")
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 1180, "height": 1100})
    compared = page.get_by_role("region", name="Scores and inputs against the reference")
    compared.evaluate("region => region.scrollIntoView({behavior: 'instant'})")
    save(page, out / "report-dark.png")
    page.emulate_media(color_scheme=None)


def live_through_half_a_year(home: Path) -> None:
    """Train, score, evaluate and monitor a small fleet over 26 weeks, with drift, a changed world and a bad file.

    All goes through the project's own functions, each week as if it were that week; S3 is one of this machine.
    """
    os.environ |= {"CHURN_HORIZON_MONTHS": "1", "CHURN_RETRAIN_AFTER_MONTHS": "0"}
    monday = monday_of(datetime.now(UTC).date())
    weeks = [monday - timedelta(weeks=n) for n in reversed(range(26))]
    with bench_environment(home), open_deployment(load_settings()) as deployment:
        list(set_up_server(*deployment.databases))
        list(set_up_variants(deployment.registry(read_only=False), deployment.artifact_location, FLEET))
        activity = {variant: played_by(variant, twist=weeks[0].replace(day=1)) for variant in FLEET}
        names = (ROOT / NAMES_KEY).read_bytes()
        for variant in FLEET:
            upload_variant(variant, activity[variant], {NAMES_KEY: names})
            deployment.trainer(n_trials=3).train_variant(variant, weeks[0] - timedelta(days=3))
        for n_left, week in zip(reversed(range(26)), weeks, strict=True):
            live_through(week, n_left, deployment, activity)
        list(evaluate_fleet(deployment.promoter(), [variant.key for variant in FLEET]))
        deployment.fleet_monitor().reconcile(datetime.now(UTC), [])


def live_through(week: date, n_left: int, deployment: Deployment, activity: Mapping[Variant, pl.DataFrame]) -> None:
    """Score a week of the fleet, and let happen what happens before it: something in the last ones."""
    if n_left == 4:
        deployment.trainer(n_trials=3).train_variant(SHOWN, week - timedelta(days=3))
    happens: dict[int, Mapping[Variant, pl.DataFrame | bytes]] = {
        1: {DRIFTED: moved(activity[DRIFTED])},
        0: {NEWLY_DRIFTED: moved(activity[NEWLY_DRIFTED]), BROKEN: b"PAR1, and then the transfer broke off"},
    }
    for variant, held in happens.get(n_left, {}).items():
        upload_variant(variant, held, {})
    list(score_fleet(deployment.scorer(), [variant.key for variant in FLEET], week_request(week), lambda *_: None))
    if n_left < 3:
        deployment.fleet_monitor().reconcile(datetime.combine(week, time(9), UTC), [])


def played_by(variant: Variant, twist: date) -> pl.DataFrame:
    """Simulate a variant's activity, each month known a few days after it ended."""
    activity = simulate_activity(
        n_accounts=9_000,
        first_month=date(2022, 7, 1),
        n_months=52,
        seed=5,
        variant=variant,
        twist=twist if variant == TWISTED else None,
    )
    known = pl.col("activity_month").dt.offset_by("1mo").cast(pl.Datetime("us", "UTC")) + pl.duration(days=4)
    return activity.with_columns(known_at=known)


def moved(activity: pl.DataFrame) -> pl.DataFrame:
    """Give a third of the players another state."""
    is_moved = pl.col("account_id") % 3 == 0
    return activity.with_columns(brand_id=pl.when(is_moved).then(pl.lit("OH")).otherwise("brand_id"))


def save(page: Page, path: Path) -> None:
    """Write the page as a small PNG once it stands still."""
    page.mouse.move(0, 0)
    page.evaluate("document.fonts.ready")
    shot = Image.open(io.BytesIO(page.screenshot(animations="disabled")))
    # Small icons are what the default method drops first.
    shot.convert("RGB").quantize(_COLOURS, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


if __name__ == "__main__":
    main()
