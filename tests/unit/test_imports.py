"""At stake: tests, benchmarks and documentation that import each other cannot be changed one at a time."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.support import ROOT

OURS = {"tests": ("tests.support",), "benchmarks": ("benchmarks", "tests.support"), "docs": ("tests.support",)}
"""What the files of a folder may import of these folders."""


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f"{'.' * node.level}{node.module or ''}"


def test_tests_benchmarks_and_documentation_share_tests_support_alone() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for folder, allowed in OURS.items()
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in imported(path)
        if name.startswith((".", *OURS)) and not name.startswith(allowed)
    ]
    assert wrong == []
