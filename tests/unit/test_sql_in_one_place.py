"""At stake: a table is renamed by a migration and by the statements beside it. A statement elsewhere is forgotten."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("churn", "orchestration", "experiment_tracking")
DATABASE = ROOT / "churn/database"
MIGRATIONS = "".join(path.read_text() for path in sorted((DATABASE / "migrations/versions").glob("*.py")))
TABLES = set(re.findall(r'CREATE (?:TABLE|VIEW) (\w+)|ALTER TABLE {} RENAME TO {}", "\w+", "(\w+)"', MIGRATIONS))
NAMES = "|".join(sorted({name for pair in TABLES for name in pair if name}))
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


def test_the_tables_are_known_by_their_names_of_today_and_of_before() -> None:
    assert {"scoring_batches", "churn_predictions_current", "evaluated_batches", "judged_batches"} <= set(
        NAMES.split("|")
    )


def test_all_sql_on_our_tables_is_in_the_database_folder() -> None:
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    holding = {path for path in modules if any(SQL.search(text) for text in texts(path.read_text()))}

    assert len(holding) > 8
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
