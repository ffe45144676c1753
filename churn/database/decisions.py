"""The tables of campaigns, exclusions and exported lists. Their rules are functions of the owner (``campaigns.sql``).

An account is a company, empty for variants without one, and the account's number.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import date
from typing import Any

import polars as pl
import sqlalchemy as sa

from churn.database.connection import READER, Tables, read_queries
from churn.database.published import Row
from churn.decisions.exclusions import Exclusion, parse_exclusions
from churn.errors import InputError
from churn.wording import counted, listed

_SQL = read_queries("decisions")
_MEMBERS = read_queries("effects")["members"]
_MEMBER = {
    "company": pl.String, "account_id": pl.Int64, "variant": pl.String, "as_of": pl.Date, "arm": pl.String,
    "score": pl.Float64, "value_at_risk": pl.Float64, "is_exposed": pl.Boolean,
}  # fmt: skip
_ROWS_AT_ONCE = 50_000
_Write = Callable[[pl.DataFrame], None]
_Exported = tuple[int, dict[str, int]]


class Decisions(Tables):
    """Campaigns, their members and exposures, and exclusions, as the writer role."""

    def summaries(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return all campaigns, or one, with the numbers of their members, contacts and exports; the oldest first."""
        return [row._asdict() for row in self._rows(_SQL["summaries"], name=name)]

    def due(self, today: date) -> list[str]:
        """Return the open campaigns that have begun and whose members are not selected."""
        return [row.name for row in self._rows(_SQL["due"], today=today)]

    def listed_variants(self) -> list[str]:
        """Return the keys of the variants of open campaigns."""
        return [row.variant for row in self._rows(_SQL["listed_variants"])]

    def as_ofs(self, variants: Sequence[str]) -> dict[str, date]:
        """Return the as-of day of each variant's newest champion's batch, which lists are made of."""
        return dict(map(tuple, self._rows(_SQL["as_ofs"], variants=list(variants))))

    def members(self, campaign: str | None) -> pl.DataFrame:
        """Return who is above the cut of a campaign, or of any, the arm, and whether a contact was delivered.

        Columns: ``company, account_id, variant, as_of, arm, score, value_at_risk, is_exposed``.
        """
        return pl.DataFrame(self._rows(_MEMBERS, campaign=campaign), _MEMBER, orient="row")

    def create(self, campaign: Mapping[str, object], revenues: Mapping[str, pl.DataFrame] | None) -> None:
        """Add a campaign and select its members in one transaction; ``None`` leaves the selection for later.

        ``revenues`` are as of :meth:`select`. Idempotent; raises ``UsageError`` if another has its name, or it is
        unknown who is at risk in one of its variants.
        """
        with self._transaction() as connection:
            described = {"described": json.dumps(campaign, default=str)}
            connection.execute(sa.text("SELECT create_campaign(CAST(:described AS jsonb))"), described)
            connection.execute(sa.text("SELECT require_lists(:variants)"), {"variants": campaign["variants"]})
            if revenues is not None:
                _select(connection, str(campaign["name"]), revenues)

    def select(self, name: str, revenues: Mapping[str, pl.DataFrame]) -> None:
        """Select a campaign's members, in one transaction, unless they are selected.

        ``revenues`` have by variant ``account_id, revenue``: the net revenue that each account is expected to bring
        over the horizon, if the campaign is by value at risk. Raises as :meth:`create`.
        """
        with self._transaction() as connection:
            _select(connection, name, revenues)

    def close_campaign(self, name: str) -> bool:
        """End a campaign; returns whether it was open."""
        with self._transaction() as connection:
            return bool(connection.scalar(sa.text("SELECT close_campaign(:name)"), {"name": name}))

    def record(self, contacts: Sequence[Mapping[str, object]]) -> dict[str | None, list[int]]:
        """Record contacts, all or none; returns the numbers of the rows that break each rule, ``None`` of the others.

        Each has ``row_number, campaign, account_id, exposed_at`` and perhaps ``channel, delivered, company``, as texts.
        """
        found: dict[str | None, list[int]] = {}
        with self._transaction() as connection:
            for start in range(0, len(contacts), _ROWS_AT_ONCE):
                values = {"rows": json.dumps(contacts[start : start + _ROWS_AT_ONCE])}
                for rule, numbers in connection.execute(sa.text(_SQL["record"]), values):
                    found.setdefault(rule, []).extend(numbers)
        return found

    def exclude(self, exclusions: Sequence[Exclusion]) -> Row:
        """Exclude accounts from all lists; returns ``n_new``, and ``n_removed`` accounts that left ``n_lists``.

        It is committed when this returns: no list that is selected, read or exported later holds the accounts.
        """
        with self._transaction() as connection:
            return connection.execute(sa.text(_SQL["exclude"]), _columns(exclusions)).one()

    def exclude_rows(self, rows: pl.DataFrame, origin: str, *of: Any) -> Row:
        """Exclude the accounts of a file's rows; ``of`` and the rows are as of :func:`parse_exclusions`.

        Raises ``InputError`` naming rows that cannot be read; the others are excluded then.
        """
        exclusions, broken = parse_exclusions(rows, *of)
        done = self.exclude(exclusions)
        if broken:
            remedy = "correct their id, reason or day, and exclude the file again"
            problem = f"{counted(len(broken), 'row')} cannot be read and excluded nobody"
            raise InputError(f"{origin}: {problem}: {listed(list(map(str, broken)))}; {remedy}")
        return done

    def revoke(self, exclusions: Sequence[Exclusion]) -> int:
        """End the exclusions of these accounts that have the same reason; returns how many."""
        values = {name: value for name, value in _columns(exclusions).items() if name != "untils"}
        with self._transaction() as connection:
            return int(connection.execute(sa.text(_SQL["revoke"]), values).scalar_one())


class Lists(Tables):
    """The lists that are handed out, as the reader role; the login that reads one is recorded."""

    role = READER

    def export_campaign(self, name: str, file: str, write: _Write) -> _Exported:
        """Export the list of a campaign; returns the accounts on it, and how many are not, by why.

        ``write`` gets the rows when the export is recorded. No exclusion is recorded before it has returned.
        """
        return self._export("targets", "not_targets", file, write, campaign=name, variant=None, week=None)

    def export_variant(self, variant: str, week: date | None, top: int, file: str, write: _Write) -> _Exported:
        """Export a variant's ``top`` accounts by score and by its rise in a week; as :meth:`export_campaign`."""
        of = {"variant": variant, "week": week or self._rows(_SQL["newest_week"], variant=variant)[0][0], "top": top}
        return self._export("of_variant", "left_out", file, write, campaign=None, **of)

    def _export(self, query: str, left_out: str, file: str, write: _Write, **of: Any) -> _Exported:
        with self._transaction() as connection:
            connection.execute(sa.text("SELECT lock_decisions(false)"))
            if of["variant"] is not None:
                connection.execute(sa.text("SELECT require_lists(ARRAY[:variant], :week)"), of)
            found = connection.execute(sa.text(_SQL[query]), of)
            rows = pl.DataFrame(found.fetchall(), list(found.keys()), orient="row", infer_schema_length=None)
            counted = connection.execute(sa.text(_SQL[left_out]), of).all()
            absent = dict(map(tuple, counted)) if left_out == "not_targets" else counted[0][0]
            reached: dict[str, list[str]] = {"accounts": [], "arms": []}
            if of["variant"] is not None:  # who is on it, no campaign says
                reached = {"accounts": rows["account_id"].to_list(), "arms": rows["arm"].to_list()}
                rows = rows.filter(pl.col("arm").cast(pl.String) == "offered").drop("arm")
            with self._transaction() as trail:  # committed before there is a file
                values = {**of, **reached, "n": rows.height, "left_out": json.dumps(absent), "file": file}
                trail.execute(sa.text(_SQL["exported"]), values)
            write(rows)
        return rows.height, absent


def _select(connection: sa.Connection, name: str, revenues: Mapping[str, pl.DataFrame]) -> None:
    connection.execute(sa.text("SELECT lock_decisions(true), stage_revenue()"))
    cursor: Any = connection.connection.cursor()
    with closing(cursor):
        for key, frame in revenues.items():
            frame.select(pl.lit(key), "account_id", "revenue").write_csv(body := io.BytesIO(), include_header=False)
            body.seek(0)
            cursor.copy_expert("COPY pg_temp.staged_revenue FROM STDIN WITH (FORMAT csv)", body)
    connection.execute(sa.text("SELECT select_members(:name)"), {"name": name})


def _columns(exclusions: Sequence[Exclusion]) -> dict[str, list[object]]:
    names = ("companies", "accounts", "reasons", "untils")
    return {name: [one[i] for one in exclusions] for i, name in enumerate(names)}
