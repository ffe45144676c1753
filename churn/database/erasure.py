"""Erasure and retention in PostgreSQL: removes one account from every table, or weeks beyond the retention period.

Both act as the owner role, since the writer role may not delete predictions.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date

import sqlalchemy as sa

from churn.data.account_ids import read_id
from churn.data.erased import Erased, Tombstone, tombstone
from churn.database.connection import OWNER, WRITER, Tables, create_engine, errors_translated, lock, read_queries
from churn.database.deadlines import retry_locked
from churn.database.published import Row
from churn.errors import StoreError
from churn.variants import Variant

_WAIT = "SET LOCAL lock_timeout = '300s'"  # a batch of many million rows may be being written
_SQL = read_queries("erasure")
_SPACES = r"(?:\s|\\+(?:[tnrfv]|x[0-9a-f]{2}|u[0-9a-f]{4}))+"
# Where Dagster stores the metadata and messages of assets and runs.
_DAGSTER_TEXTS = (("event_logs", "event"), ("asset_keys", "last_materialization"), ("job_ticks", "tick_body"))


class Erasures(Tables):
    """The tombstones of erased accounts, read as the writer role."""

    @contextmanager
    def settled(self, *variants: Variant) -> Iterator[Erased]:
        """Return the accounts erased from any of these variants, or from all; no erasure begins during the block."""
        with self._transaction() as connection:
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock_shared(hashtextextended('erasure', 0))")
            yield read_erased(connection, *variants)

    def count(self) -> int:
        """Return the number of erasures in the deployment, as ``Erased.n_erasures``."""
        return int(self._rows("SELECT count(*) FROM erased_accounts")[0][0])

    def only(self, account: str) -> Erased:
        """Return the state in which only this account is erased."""
        with errors_translated(self._url), self._engine.connect() as connection:
            salt = _salt(connection)
        return Erased(salt, frozenset([tombstone(salt, read_id(account)[0])]))


def read_erased(connection: sa.Connection, *variants: Variant) -> Erased:
    """Return the accounts erased from any of these variants, or from all, within the caller's transaction."""
    scopes = ["", *(scope for one in variants for scope in one.scopes)]
    rows = connection.execute(sa.text(_SQL["erased"]), {"scopes": scopes}).all()
    stones = frozenset(Tombstone(row.code, bytes(row.digest)) for row in rows if row.digest is not None)
    return Erased(bytes(rows[0].salt), stones, rows[0].n_erasures)


def erase_rows(
    url: sa.URL, account: str, scope: str = "", *, dry_run: bool, withdraw: Callable[[str, date], object]
) -> Sequence[Row]:
    """Erase an account from the predictions of one of ``Variant.scopes``, and block it from later batches. Idempotent.

    Waits for the batches that are being published, and erases the account from them too. ``dry_run`` rolls back.
    ``withdraw`` is called before, with the variant and week of its predictions; no delivery runs until the commit.

    Returns:
        ``place``, ``n_rows``, ``variants`` (``None`` without rows) and ``why_left``: the table, the rows removed, and
        of which variants; of ``messages``, the error messages and alerts from which the account was removed; and the
        exported lists with it, which are others' now.
    """
    with _tried(url, OWNER, dry_run=dry_run) as connection:
        connection.exec_driver_sql(_WAIT)
        number, _ = read_id(account)
        values = {"account": number, "scope": scope, "quoted": _quoted(account)}
        lock(connection, "erasure")
        for row in connection.execute(sa.text(_SQL["weeks_of"]), values).all():
            withdraw(row.variant, row.scored_week)
        values |= tombstone(_salt(connection), number)._asdict()
        return connection.execute(sa.text(_SQL["erase"]), values).all()


def erase_from_dagster(url: sa.URL, account: str, *, dry_run: bool) -> int:
    """Erase an account from Dagster's events: from tables of the highest scores, and from messages that quote a row.

    Returns the number of texts that named it; 0 if Dagster's tables or database do not exist yet.
    """
    longest, listed = max(re.findall("[0-9A-Za-z]+", account), key=len, default=""), _pattern(account)
    values = {"named": f"%{longest}%", "listed": rf"\| {listed} \| ([01]\.[0-9]+ \|)", "quoted": _quoted(account)}
    n_texts = 0
    try:
        with _tried(url, dry_run=dry_run) as connection:
            for table, column in _DAGSTER_TEXTS:
                if connection.scalar(sa.text("SELECT to_regclass(:table)"), {"table": table}) is not None:
                    statement = sa.text(_SQL["erase_texts"].format(table=table, column=column))
                    n_texts += connection.execute(statement, values).rowcount
    except StoreError as error:
        if f'database "{url.database}" does not exist' not in str(error):
            raise
    return n_texts


def _pattern(account: str) -> str:
    """Return the pattern of an id as Markdown, which shows spaces as one, Python and JSON in JSON escape it."""
    return _SPACES.join("".join(map(_pattern_of_letter, word)) for word in account.split())


def _pattern_of_letter(letter: str) -> str:
    if letter.isascii() and letter.isprintable():
        return rf"\\*{re.escape(letter)}"
    as_json = json.dumps(letter)[1:-1].replace("\\", r"\\+")
    return rf"(?:{letter}|{as_json}|\\+x{ord(letter):02x})"


def _quoted(account: str) -> str:
    """Return the pattern of an id in a message that quotes a row; the id alone could be any word."""
    return rf"(account_id[^-0-9A-Za-z]{{1,24}}){_pattern(account)}(?![-0-9A-Za-z_])"


@retry_locked
def drop_weeks(url: sa.URL, before: date, *, dry_run: bool = False) -> list[date]:
    """Drop all weeks before a day, in every table; returns the weeks that had predictions.

    If readers blocked the table whenever it was tried, this raises ``LockTimeoutError``, and nothing is dropped; so
    does ``AccessDeniedError`` for weeks that set-up recorded as kept, unless the login is an owner.
    """
    with _tried(url, WRITER, dry_run=dry_run) as connection:
        return list(connection.scalars(sa.text("SELECT retain_weeks(:before)"), {"before": before}))


def record_retention(url: sa.URL, keep_weeks: int) -> None:
    """Record how many weeks are kept, 0 for all, for logins that are no owner."""
    with errors_translated(url), create_engine(url, role=OWNER).begin() as connection:
        connection.execute(sa.text("UPDATE retention SET keep_weeks = :n"), {"n": keep_weeks})


def _salt(connection: sa.Connection) -> bytes:
    return bytes(connection.execute(sa.text("SELECT salt FROM erasure_salt")).scalar_one())


@contextmanager
def _tried(url: sa.URL, role: str | None = None, *, dry_run: bool) -> Iterator[sa.Connection]:
    """Open a connection whose transaction is committed at the end of the block, or rolled back if ``dry_run``."""
    with errors_translated(url), create_engine(url, role=role).connect() as connection:
        yield connection
        (connection.rollback if dry_run else connection.commit)()
