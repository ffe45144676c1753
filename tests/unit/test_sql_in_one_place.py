"""At stake: a table is renamed by a migration and by the statements beside it. A statement elsewhere is forgotten."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("churn", "orchestration", "experiment_tracking")
DATABASE = ROOT / "churn/database"
FILES = [path for path in (DATABASE / "migrations").rglob("*") if path.suffix in (".py", ".sql")]
MIGRATIONS = "".join(path.read_text() for path in FILES)
NAMES = "|".join(sorted(set(re.findall(r"CREATE (?:TABLE|VIEW) (?:public\.)?(\w+)", MIGRATIONS))))
SQL = re.compile(
    rf"\b(?:FROM|JOIN|INTO|UPDATE|TABLE|COPY|USING)\s+(?:ONLY\s+)?(?:public\.)?(?:{NAMES})\b", re.IGNORECASE
)


def texts(source: str) -> Iterator[str]:
    """Every text in a module's code; docstrings are none of it."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {id(node.body[0].value) for node in ast.walk(tree)
                  if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_the_tables_of_the_release_and_of_later_migrations_are_known() -> None:
    assert {"scoring_batches", "churn_predictions_current", "churn_predictions_latest"} <= set(NAMES.split("|"))


def test_all_sql_on_our_tables_is_in_the_database_folder() -> None:
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    holding = {path for path in modules if any(SQL.search(text) for text in texts(path.read_text()))}

    assert len(holding) > 4
    assert [path for path in holding if DATABASE not in path.parents] == []


@pytest.mark.parametrize(
    "code",
    [
        'x = "SELECT 1 FROM scoring_batches"',
        'x = f"insert into {x} select * from incidents"',
        'x = """\nUPDATE alert_deliveries SET n = 1"""',
        'x = "SELECT a " "FROM x JOIN drift_flags AS f USING (batch_id)"',
    ],
)
def test_a_statement_is_found_however_it_is_written(code: str) -> None:
    assert any(SQL.search(text) for text in texts(code))


def test_a_table_named_in_a_message_or_a_docstring_is_no_statement() -> None:
    code = 'def f():\n    """Reads from scoring_batches."""\n    raise E("look for it in churn_predictions_current")'

    assert not any(SQL.search(text) for text in texts(code))
