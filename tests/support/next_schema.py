"""Schemas of releases to come: a made-up one that only adds, and what a schema takes away from code of an older one."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from churn.database.connection import OWNER, READER, create_engine
from tests.support import ROOT

EXPANDED = (Path(__file__).parent / "next_schema.sql").read_text()
_COLUMNS = """
SELECT c.relname || '.' || a.attname, format_type(a.atttypid, a.atttypmod),
       a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AND c.relkind IN ('r', 'p')
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
  AND a.attnum > 0 AND NOT a.attisdropped
"""
_FUNCTIONS = """
SELECT oid::regprocedure::text, pg_get_function_result(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
"""
_RIGHTS = """
SELECT DISTINCT grantee || ' ' || privilege_type || ' ' || table_name || '.' || column_name
FROM information_schema.column_privileges WHERE grantee IN ('churn_writer', 'churn_reader', 'PUBLIC')
UNION
SELECT DISTINCT grantee || ' ' || privilege_type || ' ' || table_name
FROM information_schema.table_privileges WHERE grantee IN ('churn_writer', 'churn_reader') AND privilege_type = 'DELETE'
UNION
SELECT grantee || ' ' || oid::regprocedure FROM pg_proc, unnest(ARRAY['churn_writer', 'churn_reader']) AS grantee
WHERE pronamespace = 'public'::regnamespace AND has_function_privilege(grantee, oid, 'EXECUTE')
"""
_CONSTRAINTS = """
SELECT conrelid::regclass || ' ' || conname, pg_get_constraintdef(o.oid) FROM pg_constraint AS o
JOIN pg_class AS c ON c.oid = conrelid
WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'u', 'p', 'f', 'x') AND NOT relispartition
UNION
SELECT indrelid::regclass || ' ' || indexrelid::regclass, pg_get_indexdef(indexrelid) FROM pg_index AS i
JOIN pg_class AS c ON c.oid = indrelid
WHERE relnamespace = 'public'::regnamespace AND indisunique AND NOT relispartition
"""

Schema = Mapping[str, dict[str, Any]]


def read_schema(connection: sa.Connection) -> Schema:
    """Return what code relies on: columns, functions, rights and constraints by their names."""

    def rows(query: str) -> list[Any]:
        return list(connection.exec_driver_sql(query).tuples())

    return {
        "columns": {name: kind for name, kind, _ in rows(_COLUMNS)},
        "needed": {name: is_needed for name, _, is_needed in rows(_COLUMNS) if is_needed},
        "functions": dict(rows(_FUNCTIONS)),
        "rights": {right: True for (right,) in rows(_RIGHTS)},
        "constraints": dict(rows(_CONSTRAINTS)),
    }


def contractions(before: Schema, after: Schema) -> list[str]:
    """Return what code of one schema misses in a later one, or what the later one newly demands of it."""
    found = [
        f"{name} was {wanted} and is {after[kind].get(name, 'gone')}"
        for kind in ("columns", "functions", "rights")
        for name, wanted in before[kind].items()
        if after[kind].get(name) != wanted
    ]
    tables = {name.partition(".")[0] for name in before["columns"]}
    found += [
        f"{name} must be given" for name in after["needed"].keys() - before["needed"].keys() if _table(name) in tables
    ]
    for name, definition in after["constraints"].items():
        known = before["constraints"].get(name)
        is_new = known is None and _table(name) in tables
        if is_new or (
            known is not None and (_frame(known) != _frame(definition) or not _words(known) <= _words(definition))
        ):
            found.append(f"constraint {name} is {definition}")
    return sorted(found)


def _table(name: str) -> str:
    return re.split(r"[. ]", name)[0]


def _words(definition: str) -> set[str]:
    return set(re.findall(r"'(\w*)'::text", definition))


def _frame(definition: str) -> str:
    """Return a constraint without its list of values, which may grow."""
    return re.sub(r"ARRAY\[.*?\]", "", definition)


def expand(url: sa.URL) -> None:
    """Migrate a predictions database as a next release that only adds would."""
    with create_engine(url, role=OWNER).begin() as connection:
        connection.exec_driver_sql(EXPANDED.replace("%", "%%"))


def migrate_to(url: sa.URL, revision: str) -> None:
    """Migrate an empty database to a revision, as set-up does to the newest."""
    config = Config()
    config.set_main_option("script_location", str(ROOT / "churn" / "database" / "migrations"))
    config.set_main_option("path_separator", "os")
    with create_engine(url).connect() as connection:
        connection.exec_driver_sql(f"GRANT USAGE, CREATE ON SCHEMA public TO {OWNER}, {READER}")
        connection.exec_driver_sql(f"SET ROLE {OWNER}")
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        connection.commit()
