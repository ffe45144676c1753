"""Writes the reference from the code: settings, commands, tables, and what Dagster shows.

``python docs/generate.py`` after a change of any of these; a test holds the pages against the code. The tables are
those of a database migrated for the purpose.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import sqlalchemy as sa
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from churn.cli import main as cli
from churn.database.connection import create_engine
from churn.database.embedded import embedded_postgres
from churn.database.schema import ensure_database, ensure_roles, migrate_predictions
from churn.deployment.settings import Settings
from churn.wording import markdown_table
from experiment_tracking import log_model, promote_model, setup, train_model
from orchestration.definitions import defs

REFERENCE = Path(__file__).parent / "reference"
ASSET_TABLES = Path(__file__).parents[1] / "orchestration" / "assets" / "tables.json"
_TABLES_OF_ASSETS = {
    "store_predictions": "churn_predictions_current",
    "drifted_features": "drift_flags",
    "fleet_incidents": "incidents",
    "campaign_members": "campaign_members",
}
_MADE = "<!-- Made by docs/generate.py from the code; change it there. -->\n\n"

SCRIPTS: Mapping[str, Callable[[], argparse.ArgumentParser]] = {
    "setup.py": setup.build_parser,
    "log_model.py": log_model.build_parser,
    "train_model.py": train_model.build_parser,
    "promote_model.py": promote_model.build_parser,
}

_TABLES = """
SELECT c.relname AS name, CASE c.relkind WHEN 'v' THEN 'view' ELSE 'table' END AS kind,
       obj_description(c.oid, 'pg_class') AS comment
FROM pg_class AS c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
  AND c.relname <> 'alembic_version'
ORDER BY c.relkind <> 'v', c.relname COLLATE "C"
"""
_COLUMNS = """
SELECT a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS is_required,
       col_description(a.attrelid, a.attnum) AS comment
FROM pg_attribute AS a
WHERE a.attrelid = to_regclass(:table) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""
_GRANTS = """
SELECT role, string_agg(privilege, ', ' ORDER BY privilege) AS privileges
FROM unnest(ARRAY['churn_reader', 'churn_writer']) AS role,
     unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
WHERE has_table_privilege(role, to_regclass(:table), privilege)
   OR (privilege IN ('SELECT', 'UPDATE') AND has_any_column_privilege(role, to_regclass(:table), privilege))
GROUP BY role ORDER BY role
"""
_FUNCTIONS = """
SELECT p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')' AS name,
       pg_get_function_result(p.oid) AS result, obj_description(p.oid, 'pg_proc') AS comment,
       array_remove(ARRAY[CASE WHEN has_function_privilege('churn_reader', p.oid, 'EXECUTE') THEN 'churn_reader' END,
                          CASE WHEN has_function_privilege('churn_writer', p.oid, 'EXECUTE') THEN 'churn_writer' END],
                    NULL) AS roles
FROM pg_proc AS p WHERE p.pronamespace = 'public'::regnamespace ORDER BY 1
"""


def build_parser() -> argparse.ArgumentParser:
    """Make the parser, which documents the command."""
    return argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)


def main() -> None:
    """Write every page."""
    build_parser().parse_args()
    REFERENCE.mkdir(exist_ok=True)
    with migrated_database() as url:
        for name, text in pages(url).items():
            (REFERENCE / name).write_text(text)
        ASSET_TABLES.write_text(asset_tables(url))


def asset_tables(database: sa.URL) -> str:
    """Return the tables behind assets as JSON: by asset its table, and each column's name, type and meaning."""
    with create_engine(database).connect() as connection:
        found = {
            asset: {
                "name": table,
                "columns": [(one.name, one.type, one.comment) for one in _rows(connection, _COLUMNS, table=table)],
            }
            for asset, table in _TABLES_OF_ASSETS.items()
        }
    return json.dumps(found, indent=0, ensure_ascii=False) + "\n"


def pages(database: sa.URL) -> dict[str, str]:
    """Return every page's text by its file name.

    Args:
        database: Migrated to the newest schema.
    """
    texts = {
        "settings.md": _settings(),
        "commands.md": _commands(),
        "tables.md": _tables(database),
        "dagster.md": _dagster(),
    }
    return {name: _MADE + text for name, text in texts.items()}


@contextmanager
def migrated_database() -> Iterator[sa.URL]:
    """Make an empty database of the newest schema, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="churn-docs-") as folder:
        Path(folder).chmod(0o755)  # the account that root's PostgreSQL runs as must get through
        with embedded_postgres(Path(folder) / "home") as server:
            yield migrate(server.set(database="churn_docs"))


def migrate(url: sa.URL) -> sa.URL:
    """Make a database with the roles and the newest schema; returns its URL."""
    ensure_database(url)
    ensure_roles(url)
    migrate_predictions(url)
    return url


def _settings() -> str:
    rows = [
        (f"`{name.upper()}`", _allowed(field), _default(name, field), field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    return (
        "# Settings\n\nFrom the environment, or from `.env` in the root; the environment wins, and an empty value "
        "means the default. `.env.example` has them all. A value that is not allowed is refused at the start, by "
        "name.\n\n"
        + _table(("variable", "may be", "default", "meaning"), rows)
        + "\nAWS access is boto3's own: `AWS_PROFILE`, roles, `AWS_ENDPOINT_URL` for another S3. TLS to PostgreSQL is "
        "libpq's own: `PGSSLMODE=verify-full`, `PGSSLROOTCERT`.\n"
    )


def _allowed(field: FieldInfo) -> str:
    kind = str(field.annotation)
    words = {"bool": "true, false", "SecretStr": "secret text", "timedelta": "duration", "Path": "path", "str": "text"}
    if choices := re.search(r"Literal\[(.*?)\]", kind):
        return choices[1].replace("'", "`")
    if "int" in kind or "float" in kind:
        bounds = [_bound(limit) for limit in field.metadata]
        return ", ".join(["whole number" if "int" in kind else "number", *filter(None, bounds)])
    return next(meaning for word, meaning in words.items() if word in kind)


def _bound(limit: object) -> str:
    match limit:
        case Ge(least):
            return f"at least {least}"
        case Gt(least):
            return f"above {least}"
        case Le(most):
            return f"at most {most}"
        case Lt(most):
            return f"below {most}"
    return ""


def _default(name: str, field: FieldInfo) -> str:
    if name == "churn_home":
        return "`.churn` in the project"
    value = field.default
    if value is None:
        return "unset"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _commands() -> str:
    parts = ["# Commands\n\nAll end with 0 when they did what was asked, 1 when something failed, 2 for wrong usage.\n"]
    for name, parser in subcommands(cli.build_parser()).items():
        parts.append(_command(f"churn {name}", parser.description or "", parser))
    for name, build in SCRIPTS.items():
        parser = build()
        parts.append(_command(f"experiment_tracking/{name}", parser.description or "", parser))
    return "\n".join(parts)


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of a parser's commands, by name."""
    # There is no public way to ask. An action's own commands follow it, such as those of churn campaign.
    choices = {
        name: one
        for action in parser._actions  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction)  # noqa: SLF001
        for name, one in action.choices.items()
    }
    return {
        name: one
        for parent, parser in choices.items()
        for name, one in {parent: parser, **{f"{parent} {k}": v for k, v in subcommands(parser).items()}}.items()
    }


def _command(name: str, description: str, parser: argparse.ArgumentParser) -> str:
    runs = f"uv run {'python ' if name.endswith('.py') else ''}{name}"
    shown = [action for action in parser._actions if action.dest not in ("help", "action") or action.help]  # noqa: SLF001
    rows = [_argument(action) for action in shown if action.dest != "help"]
    more = f"\n```text\n{parser.epilog}\n```\n" if parser.epilog else ""
    arguments = f"\n{_table(('argument', 'meaning'), rows)}" if rows else ""
    return f"## {name.rpartition('/')[2]}\n\n`{runs}`\n\n{description.strip()}\n{arguments}{more}"


def _argument(action: argparse.Action) -> tuple[str, str]:
    placeholder = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
    name = f"{action.option_strings[0]} {placeholder}" if action.option_strings else str(action.metavar or action.dest)
    if action.nargs == "+":
        name += " …"
    meaning = (action.help or "") % {"default": action.default, "prog": ""}
    return f"`{name.strip()}`", f"{'needed; ' if action.required and action.option_strings else ''}{meaning}"


def _tables(url: sa.URL) -> str:
    parts = [
        "# Tables and views\n\nOf the predictions database (`CHURN_DB_NAME`), at its newest schema. Analysts read as "
        "`churn_reader` and scoring writes as `churn_writer`; both are roles without a login, granted to the logins "
        "that need them. All instants are UTC.\n"
    ]
    with create_engine(url).connect() as connection:
        parts.extend(_described(connection, table) for table in _rows(connection, _TABLES))
        functions = [
            (f"`{one.name}`", f"`{one.result}`", ", ".join(f"`{role}`" for role in one.roles), one.comment or "")
            for one in _rows(connection, _FUNCTIONS)
        ]
    parts.append("## Functions\n\n" + _table(("function", "gives", "may be called by", "meaning"), functions))
    return "\n".join(parts)


def _described(connection: sa.Connection, table: sa.Row[tuple[object, ...]]) -> str:
    grants = [f"`{one.role}`: {one.privileges}" for one in _rows(connection, _GRANTS, table=table.name)]
    is_view = table.kind == "view"
    columns = [
        (f"`{one.name}`", one.type, *([] if is_view else ["" if one.is_required else "yes"]), one.comment or "")
        for one in _rows(connection, _COLUMNS, table=table.name)
    ]
    headings = ("column", "type", *([] if is_view else ["may be null"]), "meaning")
    said = [f"A {table.kind}. {table.comment or ''}".strip(), f"Granted: {'; '.join(grants) or 'to nobody'}."]
    return f"## {table.name}\n\n{' '.join(said)}\n\n{_table(headings, columns)}"


def _rows(connection: sa.Connection, query: str, **values: object) -> Sequence[sa.Row[tuple[object, ...]]]:
    return connection.execute(sa.text(query), values).all()


def _dagster() -> str:
    repository = defs.get_repository_def()
    graph = repository.asset_graph
    assets = [graph.get(key) for key in sorted(graph.get_all_asset_keys())]
    checks = sorted(
        (f"`{key.asset_key.to_user_string()}`", f"`{key.name}`", _plain(graph.get_check_spec(key).description))
        for key in graph.asset_check_keys
    )
    parts = [
        "# What Dagster shows\n\nThe code location `churn`, `orchestration.definitions`. The partitions are the "
        "variants, by key (`base`, `geography-us`, …).\n\n## Assets\n",
        _table(
            ("asset", "group", "by variant", "made from", "description"),
            [
                (
                    f"`{node.key.to_user_string()}`",
                    node.group_name,
                    "yes" if node.partitions_def else "",
                    ", ".join(f"`{key.to_user_string()}`" for key in sorted(node.parent_keys)),
                    _plain(node.description),
                )
                for node in assets
            ],
        ),
        "\n## Asset checks\n",
        _table(("asset", "check", "description"), checks),
        "\n## Jobs\n",
        _table(
            ("job", "description"),
            [(f"`{job.name}`", _plain(job.description)) for job in _by_name(repository.get_all_jobs())],
        ),
        "\n## Schedules\n",
        _table(
            ("schedule", "job", "cron, UTC", "description"),
            [
                (f"`{one.name}`", f"`{one.job_name}`", f"`{one.cron_schedule}`", _plain(one.description))
                for one in _by_name(repository.schedule_defs)
            ],
        ),
        "\n## Sensors\n",
        _table(
            ("sensor", "interval", "launches", "description"),
            [
                (
                    f"`{one.name}`",
                    f"{one.minimum_interval_seconds} s",
                    ", ".join(f"`{target.job_name}`" for target in one.targets) or "nothing",
                    _plain(one.description),
                )
                for one in _by_name(repository.sensor_defs)
            ],
        ),
    ]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _by_name(named: Iterable[dg.JobDefinition | dg.ScheduleDefinition | dg.SensorDefinition]) -> list[object]:
    return sorted((one for one in named if not one.name.startswith("__")), key=lambda one: one.name)


def _plain(text: str | None) -> str:
    return " ".join((text or "").split())


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    return markdown_table(headings, rows, is_markup=True) + "\n"


if __name__ == "__main__":
    main()
