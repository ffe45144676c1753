"""States of a deployment that several tests begin with: made once by the code under test, and copied for the others.

A copy takes a fifth of a second; registering four variants takes a second, and scoring and promoting more.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moto.s3.models import s3_backends

from tests.support.site import Site, client, create_database, disconnect, run_sql

_ACCOUNT = "123456789012"
_TEXTS = """
SELECT format('%I', table_name), format('%I', column_name), data_type FROM information_schema.columns
JOIN information_schema.tables USING (table_catalog, table_schema, table_name)
WHERE table_schema = 'public' AND table_type = 'BASE TABLE' AND data_type IN ('text', 'character varying', 'jsonb')
"""


@dataclass(frozen=True)
class _Template:
    """What was made for the first test.

    Attributes:
        databases: The template of each kind of database, and the columns in which the bucket is named.
    """

    bucket: str
    databases: dict[str, tuple[str, list[tuple[str, str, str]]]]


_made: dict[tuple[object, ...], _Template] = {}


def made_once(site: Site, state: object, make: Callable[[], object], *kinds: str) -> None:
    """Bring a deployment's databases and bucket to a state.

    Args:
        state: Its name; ``make`` must lead to the same whenever it is called.
        kinds: The databases that it writes to; MLflow's alone unless others are named.
    """
    names = {kind: getattr(site, kind) for kind in kinds or ("mlflow",)}
    template = _made.get((site.server, state))
    if template is None:
        make()
        _made[site.server, state] = _template_of(site, names)
        return
    _copy_objects(template.bucket, site.bucket)
    for kind, name in names.items():
        source, columns = template.databases[kind]
        run_sql(site.server, f'DROP DATABASE "{name}" WITH (FORCE)')
        create_database(site, name, source)
        _rename(site, name, columns, template.bucket)


def _template_of(site: Site, names: dict[str, str]) -> _Template:
    unique = uuid.uuid4().hex[:8]
    template = _Template(f"template-{unique}", {})
    client("s3").create_bucket(Bucket=template.bucket)
    _copy_objects(site.bucket, template.bucket)
    for kind, name in names.items():
        columns = _columns_that_name(site, name)
        source = f"template_{kind}_{unique}"
        disconnect(site.server, name)
        create_database(site, source, name)
        _rename(site, source, columns, site.bucket, template.bucket)
        disconnect(site.server, source)
        template.databases[kind] = source, columns
    return template


def _columns_that_name(site: Site, database: str) -> list[tuple[str, str, str]]:
    """Return table, column and type of the texts that hold the bucket's name, by one query."""
    columns = [tuple(row) for row in site.rows(database, _TEXTS)]
    one = r"SELECT {i} WHERE EXISTS (SELECT FROM {table} WHERE position(:bucket in {column}\:\:text) > 0)"
    query = " UNION ALL ".join(
        one.format(i=i, table=table, column=column) for i, (table, column, _) in enumerate(columns)
    )
    return [columns[i] for (i,) in site.rows(database, query, bucket=site.bucket)]


def _rename(site: Site, database: str, columns: Sequence[tuple[str, str, str]], old: str, new: str = "") -> None:
    for table, column, kind in columns:
        changed = rf"replace({column}\:\:text, :old, :new)\:\:{kind}"
        query = rf"UPDATE {table} SET {column} = {changed} WHERE position(:old in {column}\:\:text) > 0"  # noqa: S608
        site.rows(database, query, old=old, new=new or site.bucket)


def _copy_objects(source: str, target: str) -> None:
    """Copy what a bucket holds, in the S3 server itself, which is of this process."""
    backend = s3_backends[_ACCOUNT]["aws"]
    for name, key in backend.get_bucket(source).keys.items():
        backend.copy_object(key, target, name)
