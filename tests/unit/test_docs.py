"""At stake: a command that is refused, a link to nowhere or a table of last month's columns costs a reader their trust
in the rest. The site asks no other server for anything: who reads about players is nobody's business.
"""

import argparse
import contextlib
import io
import re
import runpy
import shlex
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest
import sqlalchemy as sa

from churn.cli.main import build_parser
from tests.support import ROOT

DOCS = ROOT / "docs"
BUILD, GENERATE = (runpy.run_path(str(DOCS / name)) for name in ("build.py", "generate.py"))
REFERENCE, SCRIPTS = GENERATE["REFERENCE"], GENERATE["SCRIPTS"]
PAGES = sorted(BUILD["places_of"]())
WRITTEN = [page for page in PAGES if page.parent != REFERENCE]
MADE = {"reliability.md", "hostile-input.md", "RESULTS.md", "MONITORING.md", "YEAR.md"}
"""Pages that a benchmark or a test run writes."""
OURS = [page for page in WRITTEN if page.name not in MADE]
CURRENT = [page for page in OURS if page.name != "CHANGELOG.md" and "adr" not in page.parts]
"""Pages about the code as it is now."""
OTHER_PROGRAMS = (
    "pip install uv",
    "export CHURN_",
    "uv run just ",
    "uv run pytest",
    "uv run python own_model.py ",
    "uv sync --extra ray",
    "uv run ray ",
    "export RAY_AUTH_MODE",
)
"""Lines of the tutorial and the how-to pages that are none of our command lines."""


def commands(page: Path) -> list[str]:
    """Return the lines of a page's shell blocks, and what it quotes of our commands in its text."""
    text = page.read_text()
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    quoted = re.findall(r"`(uv run (?:churn|python experiment_tracking/)[^`]+)`", prose)
    return [line for line in [*lines, *quoted] if line and not line.startswith("#")]


def prose(page: Path) -> Iterator[str]:
    """Yield the lines that are wrapped: none of a block, a table, a heading or a picture."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    yield from (line for line in text.splitlines() if not line.lstrip().startswith(("|", "#", "![")))


def ours(line: str) -> tuple[argparse.ArgumentParser, list[str]] | None:
    """Split one of our command lines into its parser and arguments; ``None`` of any other line."""
    if not line.startswith(("uv run churn", "uv run python experiment_tracking/")):
        return None  # and perhaps a line of a longer command, with a quotation that goes on
    match shlex.split(line.replace("…", "1")):
        case [_, _, "churn", *arguments]:
            return build_parser(), arguments
        case [_, _, "python", script, *arguments]:
            return SCRIPTS[script.removeprefix("experiment_tracking/")](), arguments
    return None


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_ours_on_a_page_is_one_that_the_parsers_take(page: Path):
    for line in commands(page):
        if (found := ours(line)) is None:
            continue
        parser, arguments = found
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                parser.parse_args(arguments)
        except SystemExit:
            pytest.fail(f"{line}\n{said.getvalue()}")


@pytest.mark.parametrize("page", [DOCS / "tutorial.md", *sorted(DOCS.glob("how-to/*.md"))], ids=lambda page: page.name)
def test_a_page_to_follow_has_commands_and_none_that_nobody_checks(page: Path):
    lines = commands(page)

    assert lines
    assert [line for line in lines if ours(line) is None and not line.startswith(OTHER_PROGRAMS)] == []


@pytest.mark.parametrize(
    ("line", "usage", "refusal"),
    [
        ("churn score base --weak 2026-11-23", "churn score", "arguments: --weak 2026-11-23; did you mean --week?"),
        ("churn retain --qqq", "churn retain", "arguments: --qqq\n"),
        ("python experiment_tracking/setup.py --geograpy=US", "setup.py", "; did you mean --geography?"),
        ("python experiment_tracking/train_model.py --features defualt", "train_model.py", "'defualt' is not default"),
    ],
)
def test_a_wrong_flag_is_seen_and_answered_by_the_usage_of_its_command(line: str, usage: str, refusal: str):
    found, said = ours(f"uv run {line}"), io.StringIO()

    assert found is not None
    with pytest.raises(SystemExit, match="2"), contextlib.redirect_stderr(said):
        found[0].parse_args(found[1])
    assert said.getvalue().startswith(f"usage: {usage} [-h]")
    assert refusal in said.getvalue()


@pytest.mark.parametrize("page", [ROOT / "README.md", *OURS], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_prose_is_wrapped_at_one_width(page: Path):
    assert [line for line in prose(page) if len(line) > 120 and " " in line.strip(" -")] == []


@pytest.mark.parametrize("page", [ROOT / "README.md", *CURRENT], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_path_that_a_page_names_exists(page: Path):
    folders = "churn|orchestration|experiment_tracking|infra|tests|docs"
    named = re.findall(rf"`((?:{folders})/(?:[\w./-]+/|[\w./-]+\.\w+))(?=[`:])", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1300


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_a_page_points_to_is_in_the_repository(page: Path):
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)

    for target in re.findall(r"\]\(((?!\w+:|#)[^)\s#]+)", text):
        assert (page.parent / target).exists(), target


def test_the_reference_says_what_the_code_says(postgres: sa.URL):
    database = GENERATE["migrate"](postgres.set(database="docs"))
    made = GENERATE["pages"](database)
    graph = GENERATE["defs"].get_repository_def().asset_graph
    (shown,) = (graph.get(key).metadata for key in graph.get_all_asset_keys() if key.path == ["store_predictions"])
    assert shown["dagster/table_name"] == "public.churn_predictions_current"
    assert "churn_probability" in {column.name for column in shown["dagster/column_schema"].columns}
    assert GENERATE["ASSET_TABLES"].read_text() == GENERATE["asset_tables"](database), "run: just reference"

    for name, text in made.items():
        assert (REFERENCE / name).read_text() == text, f"{name} is behind the code; run: just reference"
    assert sorted(made) == sorted(path.name for path in REFERENCE.iterdir())
    # The meaning of each is its comment in the database.
    lines = made["tables.md"].splitlines()
    described = re.compile(r"A (?:table|view)\. \w.* Granted: ")
    unsaid = [line for line in lines if line.endswith("|  |") or (line.startswith("A ") and not described.match(line))]
    assert unsaid == [], "add the meaning to churn/database/migrations/comments.sql"


class _Page(HTMLParser):
    """What a page of the site has to be pointed at, where it points, and what a browser loads for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = {name: value or "" for name, value in attrs}
        self.ids.add(held.get("id", ""))
        if tag == "a" and "href" in held:
            self.links.append(held["href"])
        elif "src" in held or tag == "link":
            self.loaded.append(held.get("src") or held["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, _Page]:
    """The pages of the site by their path, built without a warning."""
    folder = tmp_path_factory.mktemp("site")
    assert BUILD["build"](folder) == 0
    return {
        f"/{path.relative_to(folder).as_posix().removesuffix('index.html')}": _Page(path.read_text())
        for path in folder.rglob("*.html")
        if path.name != "404.html"
    } | {f"/{path.relative_to(folder).as_posix()}": _Page("") for path in folder.rglob("*.*") if path.suffix != ".html"}


def internal(base: str, targets: list[str]) -> Iterator[tuple[str, str]]:
    """Yield path and anchor of each target that is of the site."""
    for target in targets:
        if not urlsplit(target).scheme:
            path, anchor = urldefrag(urljoin(base, target))
            yield unquote(path), unquote(anchor)


def test_every_link_and_anchor_of_the_site_leads_somewhere(site: dict[str, _Page]):
    for base, page in site.items():
        for path, anchor in internal(base, [*page.links, *page.loaded]):
            assert path in site, f"{base} points to {path}"
            assert not anchor or anchor.startswith("__") or anchor in site[path].ids, (
                f"{base} points to {path}#{anchor}"
            )


def test_every_page_is_on_the_site(site: dict[str, _Page]):
    assert len([path for path in site if path.endswith("/")]) == len(PAGES)


def test_the_site_loads_nothing_from_another_server(site: dict[str, _Page]):
    assert [name for page in site.values() for name in page.loaded if urlsplit(name).netloc] == []
    # The theme fetches these from elsewhere when a page has such a diagram, which is why ours are drawn.
    assert not [page for page in PAGES if "```mermaid" in page.read_text()]


def test_the_tests_that_show_a_statement_exist():
    named = set(re.findall(r"`(test_\w+)`", (DOCS / "explanation" / "statistics.md").read_text()))
    defined = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }

    assert len(named) > 40
    assert named <= defined
