"""Builds the site: ``python docs/build.py`` puts it into ``site/``, and fails on any warning.

Pages outside ``docs`` that ``mkdocs.yml`` names come in under ``project/``; a link to a file that is no page, such as
source code, becomes plain text. A pattern such as ``adr/*.md`` in the navigation stands for all such pages.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
_CONFIG = ROOT / "mkdocs.yml"
_IMAGES = {".png", ".svg"}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


class DocsError(Exception):
    """The pages and the navigation do not fit together; says how."""


def build_parser() -> argparse.ArgumentParser:
    """Make the parser, which documents the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="folder; default: %(default)s")
    return parser


def main() -> None:
    """Build the site."""
    out: Path = build_parser().parse_args().out
    try:
        status = build(out)
    except DocsError as error:
        sys.exit(f"build.py: {error}")
    sys.exit(status)


def build(out: Path) -> int:
    """Build the site in place of what the folder held; returns the exit status of Zensical, which is 0 or 1."""
    with tempfile.TemporaryDirectory(prefix="churn-site-") as folder:
        config = stage(Path(folder))
        command = [sys.executable, "-m", "zensical", "build", "--strict", "-f", config]
        status = subprocess.run(command, check=False).returncode
        if status == 0:
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(config.parent / "site", out)
        return status


def stage(folder: Path) -> Path:
    """Lay out all pages as the site has them, with a configuration that names each; returns its path.

    Raises:
        DocsError: If the navigation names a page that does not exist, or lacks one that does.
    """
    config = yaml.safe_load(_CONFIG.read_text())
    places = places_of()
    require_all(places)
    docs = folder / "docs"
    for source, place in places.items():
        target = docs / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(relinked(source, places, docs))
    config |= {"docs_dir": "docs", "site_dir": "site", "nav": [_placed(entry) for entry in _nav(config)]}
    path = folder / "mkdocs.yml"
    path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return path


def places_of() -> dict[Path, str]:
    """Return every page that the navigation names, with its place in the site."""
    nav = _nav(yaml.safe_load(_CONFIG.read_text()))
    return {(DOCS / name).resolve(): _place(name) for name in _names(nav)}


def _nav(config: dict[str, Any]) -> list[Any]:
    return [expanded(entry) for entry in config["nav"]]


def expanded(entry: Any) -> Any:
    """Replace patterns in a part of the navigation by the pages they stand for."""
    if isinstance(entry, str):
        return entry
    ((title, held),) = entry.items()
    if isinstance(held, str):
        return entry
    pages: list[Any] = []
    for one in held:
        is_pattern = isinstance(one, str) and "*" in one
        pages += (
            [path.relative_to(DOCS).as_posix() for path in sorted(DOCS.glob(one))] if is_pattern else [expanded(one)]
        )
    return {title: pages}


def _names(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        else:
            ((_, held),) = entry.items()
            yield from _names([held] if isinstance(held, str) else held)


def _placed(entry: Any) -> Any:
    if isinstance(entry, str):
        return _place(entry)
    ((title, held),) = entry.items()
    return {title: _placed(held) if isinstance(held, str) else [_placed(one) for one in held]}


def _place(name: str) -> str:
    """Say where a page is in the site; ``../data/churn/README.md`` becomes ``project/data-churn-readme.md``."""
    return f"project/{name.removeprefix('../').replace('/', '-').lower()}" if name.startswith("../") else name


def require_all(places: Mapping[Path, str]) -> None:
    """Hold the pages that there are against the navigation."""
    missing = [str(path.relative_to(ROOT)) for path in places if not path.is_file()]
    if missing:
        raise DocsError(f"mkdocs.yml names pages that do not exist: {', '.join(missing)}; write them or take them out")
    unnamed = [str(path.relative_to(ROOT)) for path in sorted(DOCS.rglob("*.md")) if path not in places]
    if unnamed:
        raise DocsError(f"no section of mkdocs.yml names {', '.join(unnamed)}; put each where a reader looks for it")


def relinked(source: Path, places: Mapping[Path, str], docs: Path) -> str:
    """Return a page's text with its links as the site needs them; copies the images it shows.

    Args:
        docs: Where the site's pages are laid out.
    """
    here = Path(places[source]).parent

    def link(found: "re.Match[str]") -> str:
        mark, text, name, anchor = found[1], found[2], found[3], found[4] or ""
        target = (source.parent / name).resolve()
        if target in places:
            return f"{mark}[{text}]({os.path.relpath(places[target], here)}{anchor})"
        if target.suffix in _IMAGES and target.is_file():
            place = docs / "images" / target.name
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(target, place)
            return f"{mark}[{text}]({os.path.relpath(Path('images') / target.name, here)})"
        return text if target.exists() else found[0]  # what does not exist is for the strict build to refuse

    fenced = re.split(r"(^```.*?^```$)", source.read_text(), flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in fenced)


if __name__ == "__main__":
    main()
