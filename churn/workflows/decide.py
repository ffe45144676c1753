"""Decisions: selects whom campaigns contact, takes exclusions and contacts from files, and writes lists to files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl

from churn.data.columns import Columns
from churn.data.formats import read_frame
from churn.database.decisions import Decisions
from churn.decisions.exclusions import neutralized, texts_of
from churn.decisions.value import expected_revenue
from churn.errors import ChurnError, UsageError
from churn.storage.places import Folder
from churn.variants import Variant
from churn.workflows.fleet import for_each_variant, results_of
from churn.workflows.ingest import Ingestion, read_columns, with_numbers

_CONTACT: dict[str, str | None] = dict.fromkeys(("campaign", "exposed_at", "channel", "delivered", "company"))


@dataclass(frozen=True)
class Decider:
    """The services that selecting accounts needs."""

    decisions: Decisions
    ingestion: Ingestion
    horizon_months: int

    def create(self, campaign: Mapping[str, Any], today: date) -> None:
        """Add a campaign, and select its members in the same transaction if it has begun. Idempotent.

        ``campaign`` has the columns of the table. Raises ``ChurnError`` if it is unknown who is at risk, or worth what,
        in one of its variants, or their exclusions cannot be read; nothing is changed then but exclusions.
        """
        self.decisions.create(campaign, self._revenues(campaign) if campaign["starts_on"] <= today else None)

    def select_due(self, today: date) -> Iterator[tuple[str, ChurnError | None]]:
        """Select the members of the campaigns that have begun since; yields each with the error that it failed with."""
        for name in self.decisions.due(today):
            try:
                self.decisions.select(name, self._revenues(self.decisions.summaries(name)[0]))
                yield name, None
            except ChurnError as error:
                yield name, error

    def _revenues(self, campaign: Mapping[str, Any]) -> dict[str, pl.DataFrame]:
        """Take the exclusions of a campaign's variants, and return the expected revenue of each if it is needed."""
        keys, is_by_value = campaign["variants"], campaign["policy"] == "value_at_risk"
        as_ofs = self.decisions.as_ofs(keys) if is_by_value else {}

        def prepare(variant: Variant) -> pl.DataFrame | None:
            self.ingestion.exclude(variant)
            return self._revenue(variant, as_ofs[variant.key]) if variant.key in as_ofs else None

        prepared = results_of(for_each_variant(prepare, keys))
        return {key: frame for key, frame in prepared.items() if frame is not None}

    def _revenue(self, variant: Variant, as_of: date) -> pl.DataFrame:
        columns = read_columns(self.ingestion.sources, variant) or Columns()
        if columns.revenue is None:
            raise UsageError(f"columns.json of {variant} names no revenue column; name one, or select by risk")
        self.ingestion.ingest_scored(variant)
        facts, _ = with_numbers(self.ingestion.history.read(variant), [columns.revenue], columns, 1.0)
        return expected_revenue(facts, as_of, self.horizon_months, columns.revenue)


def record_contacts(decisions: Decisions, path: Path, campaign: str | None) -> dict[str | None, int]:
    """Record the contacts that a file lists, all or none; returns the number of rows by the rule that they break.

    ``None`` is the rule of those recorded. The others are written to ``<file>.quarantined.csv`` with their rule. The
    file has ``account_id, exposed_at`` and perhaps ``campaign, channel, delivered, company``.
    """
    rows = read_frame(path)
    contacts = texts_of(rows, _CONTACT | {"campaign": campaign}).with_row_index("row_number", 1)
    found = decisions.record(contacts.to_dicts())
    broken = {number: rule for rule, numbers in found.items() if rule is not None for number in numbers}
    if broken:
        rule = pl.col("row_number").replace_strict(broken, default=None).alias("rule")
        left = rows.with_row_index("row_number", 1).with_columns(rule).drop_nulls("rule")
        write_list(path.with_name(f"{path.name}.quarantined.csv"), left)
    return {rule: len(set(numbers)) for rule, numbers in found.items()}


def write_list(path: Path, rows: pl.DataFrame) -> None:
    """Write rows atomically, as Parquet if the name ends so, else as CSV that is safe to open in a spreadsheet."""
    body = BytesIO()
    if path.suffix == ".parquet":
        rows.write_parquet(body)
    else:
        neutralized(rows).write_csv(body)
    try:
        Folder(path.parent).write(path.name, body.getvalue())
    except ChurnError as error:
        raise UsageError(f"{path} cannot be written ({error}); name another file") from error


def status_of(decisions: Decisions, name: str) -> dict[str, Any]:
    """Return a campaign with the numbers of its members, contacts and exports; raises ``UsageError`` without one."""
    found = decisions.summaries(name)
    if not found:
        known = ", ".join(one["name"] for one in decisions.summaries()) or "none"
        raise UsageError(f"there is no campaign {name!r} (there are: {known})")
    return found[0] | {"as_of": datetime.now(UTC)}
