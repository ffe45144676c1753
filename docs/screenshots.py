"""Takes the README's pictures: the demo in a fresh home, both UIs over it, headless Chromium.

Run it again after a change that shows: ``python docs/screenshots.py``. Needs Chromium and the development dependencies.
"""

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect

from tests.e2e.people import ROOT, Project, Served, browsing

_COLOURS = 256
_N_ASSETS, _N_MODELS = 5, 4


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


def take_graph(served: Served, page: Page, out: Path) -> None:
    """The five assets, their kinds, what was materialized and what was checked."""
    page.set_viewport_size({"width": 1180, "height": 510})
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
    """What drove that variant's scores: the picture behind the link on the same page."""
    page.set_viewport_size({"width": 1180, "height": 700})
    page.get_by_text("[Show Markdown]").click()
    picture = page.get_by_role("img", name="picture")
    expect(picture).to_be_visible()
    expect(picture).to_have_js_property("complete", value=True)
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


def save(page: Page, path: Path) -> None:
    """Write the page as a small PNG once it stands still."""
    page.mouse.move(0, 0)
    page.evaluate("document.fonts.ready")
    shot = Image.open(io.BytesIO(page.screenshot(animations="disabled")))
    # Small icons are what the default method drops first.
    shot.convert("RGB").quantize(_COLOURS, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


if __name__ == "__main__":
    main()
