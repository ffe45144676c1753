"""At stake: one value that becomes part of a statement is enough to lose a database, and a defence that nobody tests is
a sentence. Statements hold bound parameters; what is put together is named here with its reason; what ``SECURITY.md``
claims names a test that exists.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("churn", "orchestration", "experiment_tracking")
_SQL = re.compile(
    r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|CREATE|ALTER|DROP|GRANT|REVOKE|COPY|SET (LOCAL|ROLE)|TRUNCATE|CALL|DO)\b"
)

OUR_COLUMNS = "the names of columns are fields of our own dataclass; the values are bound"
OUR_TEXT = "what is put in is one of a few texts that stand in the code; the values are bound"
ALLOWED: Mapping[str, str] = {
    "churn/database/events.py:_select": OUR_TEXT,
    "churn/database/predictions.py:_copy": "the partition is made of a date, the columns are ours",
    "churn/database/evaluations.py:_evaluated": OUR_TEXT,
    "churn/database/evaluations.py:_scores": "COPY takes no parameters; integers and dates are put in",
    "churn/database/predictions.py:current": OUR_COLUMNS,
    "churn/database/readers.py:add_reader": "names cannot be bound; one matches a pattern, SQLAlchemy quotes both",
    "churn/database/schema.py:ensure_database": "a database's name cannot be bound; SQLAlchemy quotes it",
    "churn/database/schema.py:ensure_roles": "one of three constants",
}
"""Every statement that is put together from parts, but for migrations, whose text is all their own."""


def dynamic_sql(path: Path) -> Iterator[str]:
    """Yield ``file:function`` of each statement that is put together of more than constants."""
    tree = ast.parse(path.read_text())
    name = path.relative_to(ROOT).as_posix()
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for node in ast.walk(tree):
        text = _first_text(node)
        if text is not None and _SQL.match(text):
            inside = [one for one in functions if one.lineno <= node.lineno <= (one.end_lineno or 0)]
            yield f"{name}:{inside[-1].name if inside else '(module)'}"


def _first_text(node: ast.AST) -> str | None:
    """Return the constant that a text put together begins with; ``None`` of anything else."""
    if isinstance(node, ast.JoinedStr):
        put_in = [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
        is_fixed = all(isinstance(value, ast.Name) and value.id.isupper() for value in put_in)
        return None if is_fixed else _constant(node.values[0])
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
        return _constant(node.left)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("format", "join"):
        return _constant(node.func.value)
    return None


def _constant(node: ast.AST) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def test_statements_hold_bound_parameters_and_what_is_put_together_is_known() -> None:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if "migrations" not in path.parts]
    found = {place for path in paths for place in dynamic_sql(path)}

    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    "way",
    ['f"SELECT {x}"', 'f"SET ROLE {X.y}"', '"DELETE FROM t WHERE n = " + x', '"GRANT %s" % x', '"COPY {}".format(x)'],
)
def test_a_statement_put_together_in_any_way_is_found(way: str) -> None:
    text = _first_text(ast.parse(way, mode="eval").body)

    assert text is not None
    assert _SQL.match(text)


def test_a_constant_put_into_a_statement_is_no_finding() -> None:
    assert _first_text(ast.parse('f"SELECT {_COLUMNS}"', mode="eval").body) is None


def test_each_defence_of_the_threat_model_names_a_test_that_exists() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and " | `test" in line]
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`((?:unit|integration|e2e|hostile|faults)/)?(test_\w+)\.py(?:::(test_\w+))?`", row)
        assert named, row
        for _, module, function in named:
            (path,) = (ROOT / "tests").rglob(f"{module}.py")
            assert not function or f"def {function}(" in path.read_text(), (row, function)
