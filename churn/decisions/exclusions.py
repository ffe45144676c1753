"""Exclusions and contacts as files say them: one row for each account. Pure; no message names an account."""

import re
from datetime import date
from typing import NamedTuple

import polars as pl

from churn.data.activity import parse_ids
from churn.errors import InputError
from churn.wording import listed

REASONS = ("objection", "harm", "self-excluded", "other")
_FORMULA = r"^([=+\-@\t\r])"  # what a spreadsheet takes for one


class Exclusion(NamedTuple):
    """An account that no list may hold until a day, or for ever; ``company`` ``None`` if nobody said whose it is."""

    company: str | None
    account: int
    reason: str
    until: date | None = None


def parse_exclusions(
    rows: pl.DataFrame, company: str | None, reason: str = REASONS[0], until: date | None = None
) -> tuple[list[Exclusion], list[int]]:
    """Read rows with ``account_id`` and perhaps ``company, reason, until``, in place of which the arguments stand.

    Returns the exclusions, and the numbers, from 1, of rows with an id, a reason or a day that cannot be read.
    """
    texts = texts_of(rows, {"company": company, "reason": reason, "until": until.isoformat() if until else None})
    accounts = parse_ids(texts["account_id"])["account_id"]
    days = texts["until"].str.to_date("%Y-%m-%d", strict=False)
    exclusions, broken = [], []
    for i, (of, account, why, day) in enumerate(zip(texts["company"], accounts, texts["reason"], days, strict=True)):
        if account is None or why not in REASONS or (day is None) != (texts["until"][i] is None):
            broken.append(i + 1)
        else:
            exclusions.append(Exclusion(of if of is None else of.casefold(), account, why, day))
    return exclusions, broken


def texts_of(rows: pl.DataFrame, others: dict[str, str | None]) -> pl.DataFrame:
    """Return ``account_id`` and these columns as texts, as they were before :func:`neutralized`; default where empty.

    Raises ``InputError`` if there is no column ``account_id``.
    """
    if "account_id" not in rows.columns:
        raise InputError(f"the file has no column account_id, but {listed(rows.columns)}; name it so in its first line")
    text = pl.all().cast(pl.String).str.strip_chars().str.replace(r"^'([=+\-@\t\r])", "$1").replace("", None)
    found = rows.select(name for name in ("account_id", *others) if name in rows.columns).select(text)
    given = {name: pl.col(name) if name in found.columns else pl.lit(None, pl.String) for name in others}
    return found.with_columns(**{name: given[name].fill_null(pl.lit(others[name], pl.String)) for name in others})


def neutralized(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows with an apostrophe before each text that a spreadsheet would take for a formula."""
    named = rows.rename(lambda name: re.sub(_FORMULA, r"'\1", name))
    return named.with_columns(pl.col(pl.String).str.replace(_FORMULA, "'$1"))
