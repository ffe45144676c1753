"""Readers that are bound to variants: logins that see the predictions of these and nothing else.

The views ``own_predictions_…`` show a login the variants that ``reader_variants`` names for it.
"""

import re
from collections.abc import Collection

import sqlalchemy as sa

from churn.database.connection import OWNER, READER, SETUP_NEEDS, WRITER, create_engine, errors_translated, read_queries
from churn.errors import UsageError
from churn.variants import Variant

_NAME = re.compile(r"(?!pg_|churn_)[a-z][a-z0-9_]{0,62}")
_SQL = {name: sa.text(query) for name, query in read_queries("readers").items()}


def add_reader(url: sa.URL, reader: str, variants: Collection[Variant]) -> list[str]:
    """Create a login that is bound to variants, without a password, or bind it to further ones. Idempotent.

    The login of ``url`` creates roles and acts as the owner. Returns the keys of all variants that the reader is bound
    to. Raises ``UsageError`` if the name cannot be a reader's, or a login of that name may do more than such a reader.
    """
    if not _NAME.fullmatch(reader):
        needed = "use a to z, 0 to 9 and _, a letter first, neither pg_ nor churn_, at most 63 characters"
        raise UsageError(f"{reader!r} cannot be a reader: {needed}")
    with errors_translated(url, remedy=SETUP_NEEDS), create_engine(url).begin() as connection:
        may_do_more = connection.scalar(_SQL["rights"], {"reader": reader})
        if may_do_more:
            problem = "is a member of another role or an administrator, so that it may read more than some variants"
            remedy = f"take another name, or revoke that from it ({OWNER}, {WRITER}, {READER} and the like)"
            raise UsageError(f"login {reader!r} {problem}; {remedy}")
        quoted = connection.dialect.identifier_preparer.quote_identifier
        if may_do_more is None:
            connection.exec_driver_sql(f"CREATE ROLE {quoted(reader)} LOGIN")
        connection.exec_driver_sql(f"ALTER ROLE {quoted(reader)} SET default_transaction_read_only = on")
        connection.exec_driver_sql(f"GRANT CONNECT ON DATABASE {quoted(url.database or '')} TO {quoted(reader)}")
        connection.exec_driver_sql(f"SET LOCAL ROLE {OWNER}")
        if may_do_more is None:  # what a login of this name was bound to, which was dropped, is not this one's
            connection.execute(_SQL["forget"], {"reader": reader})
        connection.execute(_SQL["grant"], {"reader": reader, "variants": [variant.key for variant in variants]})
        return list(connection.scalars(_SQL["granted"], {"reader": reader}))
