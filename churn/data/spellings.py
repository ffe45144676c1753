"""Which spellings are the same value: one table for the text of every format. Pure.

Databases, spreadsheets and statistics packages spell missing values, days and numbers differently, and the same value
has the same meaning in CSV, JSON and Parquet. Only spellings with one meaning are here: ``01/03/2025`` and ``1,234``
could each be two values, and stay unreadable. Not here: which values a column may have (``churn.data.activity``).
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

import polars as pl

TEXTS = (pl.String, pl.Categorical, pl.Enum)
Kind = Literal["account", "integer", "date", "instant", "text", "number", "money", "balance"]

MISSING_LEVELS = ("", "null", "\\n", "nan", "<na>", "(null)")
"""Lower-case spellings of a missing category; NA and None may be levels."""

MISSING = (*MISSING_LEVELS, "na", "n/a", "#n/a", "nat", "none", "-nan")
_MISSING_DAYS = (*MISSING, "0000-00-00", "0000-00-00 00:00:00")  # as MySQL writes them

_DAY = r"^([0-9]{4})[-/.]([0-9]{1,2})[-/.]([0-9]{1,2})"
_TIME = r"[T :]\s*[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]+)?)?(?:\s?[AaPp][Mm])?"
_ZONE = r"(?:Z|UTC|GMT|[+-][0-9]{2}(?::?[0-9]{2})?(?:\s?[A-Z]{2,5})?|[A-Za-z_]+/[A-Za-z_/]+)"
_REST = rf"(?:{_TIME})?\s*(?:{_ZONE})?$"
_SIGNED = r"^[-+]?"

_Rewrite = tuple[str, str]
_DAYS: Sequence[_Rewrite] = (
    (_DAY + _REST, "$1-$2-$3"),  # a day is that of its own zone: where it was written, this midnight began it
    (rf"^([0-9]{{1,2}})[- ]?([A-Za-z]{{3}})[- ]?([0-9]{{4}}){_REST}", "$3-$2-$1"),  # Oracle, SAS
    (rf"^([A-Za-z]{{3}})[a-z]* ([0-9]{{1,2}}), ([0-9]{{4}}){_REST}", "$3-$1-$2"),  # Tableau, Looker
)
_INSTANTS: Sequence[_Rewrite] = (
    (_DAY, "$1-$2-$3"),
    (r"^([0-9]+-[0-9]+-[0-9]+)\s*(Z|UTC|GMT)?$", "${1}T00:00:00Z"),
    (r"^([0-9]+-[0-9]+-[0-9]+)[T ]\s*([0-9]{1,2}:[0-9]{2})(:[0-9]{2})?(?:[.,]([0-9]{1,9}))?[0-9]*", "${1}T$2$3.$4"),
    (r"T([0-9]{1,2}:[0-9]{2})\.", "T$1:00."),
    (r"\.\s*(UTC|GMT|Z)?$", ".0+00:00"),
    (r"\.\s*([+-])", ".0$1"),
    (r"(\.[0-9]+)\s*(?:UTC|GMT|Z)?$", "${1}+00:00"),
    (r"(\.[0-9]+)\s*([+-][0-9]{2})$", "$1$2:00"),
    (r"(\.[0-9]+)\s*([+-][0-9]{2}):?([0-9]{2})$", "$1$2:$3"),
    (r"Z$", ".0+00:00"),
)
_MINUS: _Rewrite = ("^\u2212", "-")
_INTEGERS: Sequence[_Rewrite] = (_MINUS, (r"^([-+]?[0-9]+)\.0*$", "$1"))
_TRUTH = {"true": "1", "false": "0", "t": "1", "f": "0", "yes": "1", "no": "0", "y": "1", "n": "0"}

# A number with a separator, and which characters are then dropped; a comma that is left is the decimal point.
_NUMBERS: Sequence[tuple[str, str]] = (
    (rf"{_SIGNED}[0-9]{{1,3}}(,[0-9]{{3}})+\.[0-9]*$", ","),
    (rf"{_SIGNED}[0-9]{{1,3}}(,[0-9]{{3}}){{2,}}$", ","),
    (rf"{_SIGNED}[0-9]{{1,3}}(\.[0-9]{{3}})+,[0-9]+$", "."),
    (rf"{_SIGNED}[0-9]{{1,3}}(\.[0-9]{{3}}){{2,}}$", "."),
    (rf"{_SIGNED}[0-9]{{1,3}}([ '\u2019\u00a0\u202f][0-9]{{3}})+([.,][0-9]+)?$", "[ '\u2019\u00a0\u202f]"),
    # Three digits after one comma could be thousands.
    (rf"{_SIGNED}([0-9]+,([0-9]{{1,2}}|[0-9]{{4,}})|(0|[0-9]{{4,}}),[0-9]+)([eE][-+]?[0-9]+)?$", ""),
)
_DECIMAL_COMMA, _THREE_DECIMALS = ",[0-9]+$", rf"{_SIGNED}[1-9][0-9]{{0,2}}\.[0-9]{{3}}$"
_MOST_ROUNDED = 1e11  # spreadsheets round longer integers when they write an exponent


def canonical(column: pl.Series, kind: Kind) -> pl.Series:
    """Rewrite each spelling of a value to the one that the contract parses; what is not in the table stays as it is.

    Among numbers, NaN is a missing value.
    """
    if column.dtype.is_float():
        return column.fill_nan(None)
    if column.dtype not in TEXTS:
        return column
    text = column.cast(pl.String)
    distinct = text.unique()  # files repeat days and levels, and each spelling is rewritten once
    written = _rewrite(distinct.str.strip_chars(), kind)
    changed = distinct.is_not_null() & distinct.ne_missing(written)
    if not changed.any():
        return column
    return text.replace(distinct.filter(changed), written.filter(changed))


def is_pattern(name: str) -> bool:
    """Return whether polars takes a column's name for several columns."""
    return name == "*" or (name.startswith("^") and name.endswith("$"))


def is_odd(levels: pl.Series) -> bool:
    """Return whether a category has outer spaces or a spelling of a missing value."""
    if levels.dtype not in TEXTS:
        return False
    distinct = levels.unique().cast(pl.String).drop_nulls()
    return bool((distinct.str.strip_chars().ne(distinct) | distinct.str.to_lowercase().is_in(MISSING_LEVELS)).any())


def _rewrite(text: pl.Series, kind: Kind) -> pl.Series:
    missing = {"text": MISSING_LEVELS, "date": _MISSING_DAYS, "instant": _MISSING_DAYS}.get(kind, MISSING)
    lower, frame = pl.col("text").str.to_lowercase(), text.alias("text").to_frame()
    text = frame.select(pl.when(~lower.is_in(missing)).then("text")).to_series()
    rewrites: Mapping[str, Sequence[_Rewrite]] = {"date": _DAYS, "instant": _INSTANTS, "integer": _INTEGERS}
    for pattern, replacement in rewrites.get(kind, ()):
        text = text.str.replace(pattern, replacement)
    if kind == "integer":
        return _from_exponents(text)
    return _rewrite_numbers(text) if kind in ("number", "money", "balance") else text


def _from_exponents(text: pl.Series) -> pl.Series:
    """Write integers such as R's ``1e+05`` with all their digits."""
    exponent = r"^[-+]?[0-9]+(\.[0-9]+)?[eE][+]?[0-9]{1,3}$"
    number = text.str.extract(f"({exponent})").cast(pl.Float64, strict=False)
    is_whole = (number == number.round()) & (number.abs() < _MOST_ROUNDED)
    return number.set(~is_whole.fill_null(value=False), None).cast(pl.Int64).cast(pl.String).fill_null(text)


def _rewrite_numbers(text: pl.Series) -> pl.Series:
    text = text.str.replace(*_MINUS)
    rewritten = text.str.to_lowercase().replace_strict(_TRUTH, default=None, return_dtype=pl.String)
    for pattern, dropped in _NUMBERS:
        number = text.str.replace_all(dropped, "", literal=len(dropped) == 1) if dropped else text
        number = number.str.replace(",", ".", literal=True)
        rewritten = rewritten.fill_null(number.set(~text.str.contains(pattern).fill_null(value=False), None))
    # Where some commas are decimal points, 1.234 could be thousands as well.
    has_commas = (rewritten.str.contains(".", literal=True) & text.str.contains(_DECIMAL_COMMA)).any()
    return rewritten.fill_null(text.zip_with(~(text.str.contains(_THREE_DECIMALS) & has_commas), text + "?"))


@lru_cache(4096)
def folded_levels(levels: tuple[str, ...]) -> dict[str, int]:
    """Return the position of each level by its folded spelling; spellings that two levels share are left out.

    >>> folded_levels(("PA", "7.0", "ny", "NY"))
    {'pa': 0, '7': 1}
    """
    folded = fold(pl.Series(levels, dtype=pl.String))
    return {key: i for i, (key, is_one) in enumerate(zip(folded, folded.is_unique(), strict=True)) if is_one}


def fold(levels: pl.Series) -> pl.Series:
    """Remove what is not part of a level: outer spaces, case, forms of one letter, and the ``.0`` of a number."""
    return levels.str.normalize("NFKC").str.strip_chars().str.to_lowercase().str.replace(r"^([-+]?[0-9]+)\.0+$", "$1")


def fold_name(name: str) -> str:
    """Remove what is not part of a column's name: outer spaces, case, and how its words are joined.

    >>> {fold_name(name) for name in ("account_id", "ACCOUNT_ID", "Account ID", "account-id", "accountId")}
    {'account_id'}
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip().strip("\ufeff\"'`"))
    return re.sub(r"[\s-]+", "_", words).lower()


@lru_cache(4096)
def renames(columns: tuple[str, ...], contract: tuple[str, ...], features: tuple[str, ...]) -> dict[str, str]:
    """Return the columns of a file that the contract or a model writes otherwise, with the name that they have there.

    If the contract's names are written otherwise, the other columns become lower case, as in other extracts.

    >>> renames(("ACCOUNT_ID", "DEVICE", "NOTE"), ("account_id",), ("Device_tv",))
    {'ACCOUNT_ID': 'account_id', 'DEVICE': 'Device', 'NOTE': 'note'}
    """
    if set(columns) <= {*contract, *features}:
        return {}
    # A feature is named by its column and a level, or by its column and a window.
    starts = (name[:cut] for name in features for cut, letter in enumerate(name) if letter == "_")
    known: dict[str, str] = {}
    for name in (*contract, *features, *starts):
        known.setdefault(fold_name(name), name)
    names = {*contract, *features, *known.values()}
    is_other = any(name not in names and known.get(fold_name(name)) in contract for name in columns)
    wanted = {name: known.get(fold_name(name), name.strip().lower() if is_other else name) for name in columns}
    others = {name: new for name, new in wanted.items() if name not in names and new != name}
    counts = Counter([*others.values(), *columns])
    return {name: new for name, new in others.items() if counts[new] == 1}
