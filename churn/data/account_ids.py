"""Account ids as companies write them, numbers or texts, and the number of 64 bits that an account is inside. Pure.

A whole number is itself. Any other text, such as a UUID or ``00123``, has a negative number made of its SHA-256, and is
kept beside it as the account's key. What is missing, a truth value, or a number that was rounded or could be read as
another is no id. PostgreSQL computes the same (``churn_account_number``).
"""

import hashlib

import numpy as np
import numpy.typing as npt
import polars as pl
import polars.selectors as cs

from churn.data.spellings import TEXTS, canonical
from churn.errors import InputError

ACCOUNT_KEY = "account_key"
"""The column of the ids that are texts, null where one is a number; frames without such ids lack it."""
_MAX_BYTES = 256
_WHOLE, _HEXADECIMAL = r"^[-+]?(0|[1-9][0-9]*)$", r"^[0-9]+[eE][0-9]+$"  # nothing writes 1e5 for a number
_NO_ID = (
    r"^[-+\u2212]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+][0-9]+|[0-9]+,[0-9]+"
    r"|[0-9]{1,3}([,.' \u2019\u00a0\u202f][0-9]{3})+([.,][0-9]*)?)$|\x00"
    r'|^(\{["}]|\[)'  # objects and arrays of JSON
)
_NO_IDS = ("true", "false", "inf", "+inf", "-inf", "infinity", "+infinity", "-infinity")


def read_id(text: str) -> tuple[int, str]:
    """Return an id's number, and the id without what is no part of it; raises ``ValueError`` if the text is no id.

    >>> read_id(" 1723.0 "), read_id(" A-17")
    ((1723, '1723'), (-873866075587846623, 'A-17'))
    """
    written, keys = with_numbers(pl.DataFrame({"account_id": [text]}))
    number = int(written.item() or "")
    return number, next((key[0] for key in keys), str(number))


def with_numbers(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[pl.Series]]:
    """Replace each ``account_id`` by its number in digits, null if missing and ``?`` if it is none; add the keys."""
    ids = frame["account_id"]
    if not (ids.dtype in TEXTS or ids.dtype.is_integer() or ids.dtype.is_decimal()):
        return frame, []
    ids = ids.cast(pl.String)
    unique = ids.drop_nulls().unique()
    key, whole = unique.str.strip_chars(), canonical(unique, "integer")
    is_number = whole.str.contains(_WHOLE) & ~key.str.contains(_HEXADECIMAL)
    numbers = whole.set(~is_number, None).cast(pl.Int64, strict=False).cast(pl.String)
    is_no_id = key.str.contains(_NO_ID) | key.str.to_lowercase().is_in(_NO_IDS) | (key.str.len_bytes() > _MAX_BYTES)
    keys = key.set(whole.is_null() | numbers.is_not_null() | is_no_id, None)
    heads = b"".join(hashlib.sha256(one.encode()).digest()[:8] for one in keys.fill_null(""))
    of_keys = pl.Series(np.frombuffer(heads, ">i8").astype(np.int64) | np.iinfo(np.int64).min).cast(pl.String)
    written = numbers.fill_null(of_keys.set(keys.is_null(), None))
    written = written.zip_with(written.is_not_null() | whole.is_null(), pl.Series(["?"]))
    numbers, of_rows = (ids.replace_strict(unique, to, default=None, return_dtype=pl.String) for to in (written, keys))
    return frame.with_columns(account_id=numbers), [of_rows.alias(ACCOUNT_KEY)] if keys.count() else []


def key_table(*parts: pl.DataFrame) -> pl.DataFrame | None:
    """Return the keys of an extract's accounts in order of the numbers, of which no two ids may have the same.

    ``None`` if no id is a text; ``InputError`` if two ids have the same number.
    """
    names = cs.by_name("account_id", ACCOUNT_KEY, require_all=False)
    ids = pl.concat([part.select(names) for part in parts], how="diagonal").drop_nulls("account_id")
    if ACCOUNT_KEY not in ids.columns or not ids[ACCOUNT_KEY].count():
        return None
    if (table := ids.unique().sort("account_id"))["account_id"].is_duplicated().any():
        problem = "two account ids of the extract, one of them a text, have the same number of 64 bits"
        raise InputError(f"{problem}, so that their accounts cannot be told apart; correct the ids")
    return table


def keys_of(table: pl.DataFrame, account_ids: npt.ArrayLike) -> pl.Series:
    """Return the keys of accounts of a :func:`key_table`, null where an id is a number."""
    return table[ACCOUNT_KEY].gather(np.searchsorted(table["account_id"].to_numpy(), account_ids))
