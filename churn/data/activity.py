"""The contract of input rows: which columns, which values, and the quarantine of rows that break it. Pure.

A row that breaks a rule is quarantined with the names of the broken rules. It is never dropped silently and never
filled in. The quirks of real extracts (dates out of order, missing deposit dates, a month reported twice) are valid
data. Columns, units and quirks: README, "The input files".
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import lru_cache
from itertools import compress

import polars as pl

from churn.data.account_ids import ACCOUNT_KEY, with_numbers
from churn.data.spellings import TEXTS, Kind, canonical, is_odd
from churn.errors import InputError, QuarantineError
from churn.wording import listed, listed_with_nearest, percent

_DTYPES: Mapping[Kind, pl.DataType] = {
    "account": pl.Int64(), "integer": pl.Int64(), "date": pl.Date(), "instant": pl.Datetime("us", "UTC"),
    "text": pl.String(), "number": pl.Float64(), "money": pl.Float64(), "balance": pl.Float64(),
}  # fmt: skip

# balance: money that may be negative. Further columns that a model uses are numbers.
KINDS: Mapping[str, Kind] = {
    "account_id": "account", "activity_month": "date", "known_at": "instant", "brand_id": "text",
    "reg_date": "date", "ftd_date": "date", "qp_date": "date", "ben_login_id": "text", "tracker_id": "integer",
    "player_reg_product": "text", "total_deposit": "money", "total_handle": "money", "total_ngr": "balance",
}  # fmt: skip
MONEY = tuple(name for name, kind in KINDS.items() if kind in ("money", "balance"))
"""The columns in which a value other than 0 is activity."""

MAY_BE_MISSING = frozenset({"ftd_date", "qp_date", "total_handle"})
KEY = ("account_id", "activity_month")
ONE_HOT_COLUMNS = ("brand_id", "ben_login_id", "player_reg_product")

MAX_MONEY = 1e8  # currency units a month, unless a variant declares its own; of dollars, the largest was 4.8 million
_EARLIEST, _LATEST = date(1990, 1, 1), date(2200, 1, 1)
UNDATED = date(1970, 1, 1)
"""The month of a quarantined row whose month cannot be read."""
QUARANTINED = "is_quarantined"
"""The column of a history that marks the rows that broke the contract; of these, only the keys are known."""
_MAX_EXACT = 2.0**53  # above it, neighbouring account ids are one and the same float

_QUARANTINED: Mapping[str, pl.DataType] = {
    "row_number": pl.UInt32(), "account_id": pl.Int64(), "activity_month": pl.Date(), "rules": pl.List(pl.String()),
    "row": pl.String(), ACCOUNT_KEY: pl.String(),
}  # fmt: skip

Names = Collection[str]
Kinds = Mapping[str, Kind]
Rule = tuple[str, pl.Expr]
"""A rule's name and where it is broken."""


@dataclass(frozen=True)
class CheckedRows:
    """The result of checking a file's rows."""

    # The rows that break no rule, typed, with `row_number` (from 1, as in the file), `account_key` if an id is a text.
    rows: pl.DataFrame
    # `row_number, account_id (null if unreadable), activity_month (null if unreadable or absent), rules (list of str),
    # row (the original as JSON), account_key (null of numbers)`.
    quarantined: pl.DataFrame
    n_read: int

    def with_quarantined(self) -> pl.DataFrame:
        """Return the rows without numbers, and the keys of those quarantined that name an account, marked so."""
        rows = self.rows.drop("row_number", QUARANTINED, strict=False)
        month = pl.col("activity_month").dt.month_start().fill_null(UNDATED)
        named = self.quarantined.filter(pl.col("account_id").is_not_null())
        keys = named.select("account_id", month, pl.lit(value=True).alias(QUARANTINED)).unique(maintain_order=True)
        return rows if keys.is_empty() else pl.concat([rows, keys], how="diagonal")

    def require_share(self, limit: float) -> None:
        """Raise ``QuarantineError``, naming rules and rows, when more than ``limit`` of the rows break the contract."""
        share = self.quarantined.height / self.n_read
        if share <= limit and not self.rows.is_empty():
            return
        examples = [
            f"row {number} broke {', '.join(rules)}"  # not the row's values: messages reach logs and chat rooms
            for number, rules in self.quarantined.select("row_number", "rules").head(2).iter_rows()
        ]
        broken = f"{self.quarantined.height} of {self.n_read} rows ({percent(share, 1)}) broke the contract"
        allowed = f"CHURN_MAX_QUARANTINE_SHARE allows {percent(limit, 1)}: {counts_by_rule(self.quarantined)}"
        shown = "; ".join(examples)
        raise QuarantineError(f"{broken}, and {allowed}; {shown}; correct the extract or raise the limit")


def counts_by_rule(quarantined: pl.DataFrame) -> dict[str, int]:
    """Return the rows per broken rule, most frequent first; a row that breaks two counts twice."""
    return dict(quarantined["rules"].explode(empty_as_null=False).value_counts(sort=True).iter_rows())


def is_activity(columns: Collection[str]) -> bool:
    """Return whether columns include the key of raw activity; encoded rows have none."""
    return set(KEY) <= set(columns)


def check_activity(
    frame: pl.DataFrame, numbers: Names = (), *, dates: Names = (), first_row: int = 1, max_money: float = MAX_MONEY
) -> CheckedRows:
    """Check raw activity: one row per account and active month.

    Args:
        frame: Has ``account_id``, ``activity_month`` and perhaps other columns of the contract; the rest is unchecked.
        numbers: Further columns that a model uses as numbers, as it does ``dates`` as dates.
        first_row: The number of the first row, where ``frame`` is a chunk of a file.
        max_money: Maximum of money a month; it knows no currency, and is a variant's own where that matters.
    """
    known: dict[str, Kind] = {**dict.fromkeys(numbers, "number"), **dict.fromkeys(dates, "date"), **KINDS}
    kinds = {name: known[name] for name in frame.columns if name in known}
    rules = [rule for name, kind in kinds.items() for rule in _column_rules(name, kind, max_money)]
    rules.append(("activity_month_not_first_of_month", pl.col("activity_month").dt.day() != 1))
    required = [name for name, kind in kinds.items() if kind != "number" and name not in {*MAY_BE_MISSING, *dates}]
    return _check(frame, kinds, required, rules, first_row)


def check_encoded(
    frame: pl.DataFrame,
    features: Sequence[str],
    *,
    one_hot: Names = ONE_HOT_COLUMNS,
    repeated: pl.Series | None = None,
    first_row: int = 1,
    max_money: float = MAX_MONEY,
) -> CheckedRows:
    """Check encoded rows: one row per account, a column per feature; raises ``InputError`` if ``frame`` lacks one.

    Args:
        frame: Has ``features``, and perhaps ``account_id``; without it the row number is the account id.
        one_hot: The source columns of one-hot features, of which a row sets one at most.
        repeated: The ids that occur more than once in the file of which ``frame`` is a chunk; default: in ``frame``.
        first_row: As of :func:`check_activity`, like ``max_money``.
    """
    require_features(frame.columns, features)
    kinds: dict[str, Kind] = {name: KINDS.get(name, "number") for name in features}
    rules = [rule for name, kind in kinds.items() for rule in _column_rules(name, kind, max_money)]
    rules += _one_hot_rules(features, one_hot)
    # A blank line of a CSV is such a row; without a rule it would be scored as an account.
    rules.append(("row_empty", pl.all_horizontal(pl.col(features).is_null())))
    if "account_id" in frame.columns:
        kinds["account_id"] = "account"
        # Nothing shows which of two rows is the right one.
        if repeated is None:
            repeated = repeated_ids(parse_ids(frame["account_id"])["account_id"])
        rules.append(("account_id_duplicated", pl.col("account_id").is_in(repeated.implode())))
        return _check(frame, kinds, ["account_id"], rules, first_row)
    checked = _check(frame, kinds, [], rules, first_row)
    return replace(checked, rows=checked.rows.with_columns(account_id=pl.col("row_number").cast(pl.Int64)))


def repeated_ids(ids: pl.Series) -> pl.Series:
    """Return the account ids that occur more than once."""
    return ids.filter(ids.is_duplicated() & ids.is_not_null()).unique()


def parse_ids(ids: pl.Series) -> pl.DataFrame:
    """Return ``account_id``, null where one cannot be read, and perhaps ``account_key``, as the contract does."""
    parsed = ids.to_frame().select(parse_value("account_id", "account", ids.dtype).alias("account_id"))
    if parsed["account_id"].null_count() == ids.null_count():
        return parsed
    written, keys = with_numbers(ids.to_frame())
    return written.select(parse_value("account_id", "integer", written.schema["account_id"]).alias("account_id"), *keys)


def require_features(columns: Collection[str], features: Sequence[str]) -> None:
    """Raise ``InputError`` naming the features that are missing from encoded rows."""
    missing = [name for name in features if name not in set(columns)]
    if not missing:
        return
    if raw := sorted(set(columns) & KINDS.keys() - {*features, "account_id"}):
        lacking = [name for name in KEY if name not in columns]
        problem = f"the rows have columns of raw activity ({listed(raw, 4)}) and lack {' and '.join(lacking)}"
        remedy = "add it to the extract: raw activity has an account_id and an activity_month in each row"
        raise InputError(f"{problem}; {remedy}")
    if len(missing) == len(features):
        shown, wanted = listed(sorted(columns)), f"the model's {len(features)} features ({listed(features, 4)})"
        neither = f"neither raw activity (account_id, activity_month, …) nor {wanted}"
        raise InputError(f"the rows have columns {shown}, which are {neither}")
    near = listed_with_nearest(missing, [name for name in columns if name not in features])
    remedy = "export them again with the model's feature names"
    raise InputError(f"the encoded rows lack {len(missing)} of the model's {len(features)} features: {near}; {remedy}")


def _check(frame: pl.DataFrame, kinds: Kinds, required: Names, rules: Sequence[Rule], first_row: int) -> CheckedRows:
    frame = frame.drop("row_number", ACCOUNT_KEY, strict=False)  # a file's own have no meaning here
    schema = frame.schema
    columns = [parse_value(name, kind, schema[name]).alias(name) for name, kind in kinds.items()]
    parsed = frame.with_columns(columns).with_row_index("row_number", offset=first_row)
    written = frame
    if odd := _odd_columns(frame, parsed, kinds):
        written = frame.with_columns(canonical(frame[name], kinds[name]) for name in odd)
        written, keys = with_numbers(written) if "account_id" in odd else (written, [])
        kinds_written = {name: kind if kind != "account" else "integer" for name, kind in kinds.items()}
        columns = [parse_value(name, kinds_written[name], written.schema[name]).alias(name) for name in odd]
        parsed = parsed.with_columns(*written.with_columns(columns).select(odd), *keys)
    if _is_valid(written, parsed, kinds, required, rules):
        return CheckedRows(parsed, pl.DataFrame(schema=_QUARANTINED), frame.height)
    was_null = written.select(pl.col(kinds.keys()).is_null())
    missing = [(f"{name}_missing", pl.lit(was_null[name])) for name in required]
    unreadable = [(f"{name}_unreadable", pl.col(name).is_null() & ~pl.lit(was_null[name])) for name in kinds]
    broken = {name: where.fill_null(value=False) for name, where in [*missing, *unreadable, *rules]}
    is_valid = parsed.select(~pl.any_horizontal(*broken.values())).to_series()
    masks = parsed.select(pl.when(where).then(pl.lit(name)).alias(name) for name, where in broken.items())
    names = masks.filter(~is_valid).select(rules=pl.concat_list(pl.all()).list.drop_nulls())["rules"]
    quarantined = _quarantine(parsed.filter(~is_valid), frame.filter(~is_valid), names)
    return CheckedRows(parsed.filter(is_valid), quarantined, frame.height)


def _odd_columns(frame: pl.DataFrame, parsed: pl.DataFrame, kinds: Kinds) -> list[str]:
    """Return the columns with a value that is spelled otherwise than the contract parses it; they are rare."""
    n_null, n_null_parsed = (one.null_count().row(0, named=True) for one in (frame, parsed))
    odd = {name for name in kinds if n_null_parsed[name] > n_null[name]}
    odd |= {name for name, kind in kinds.items() if kind == "text" and is_odd(frame[name])}
    numbers = [name for name, dtype in parsed.schema.items() if name in kinds and dtype.is_float()]
    has_nan = parsed.select(pl.col(numbers).is_nan().any()).row(0) if numbers else ()
    return [name for name in kinds if name in odd | set(compress(numbers, has_nan))]


def _is_valid(frame: pl.DataFrame, parsed: pl.DataFrame, kinds: Names, required: Names, rules: Sequence[Rule]) -> bool:
    """Return whether no row breaks a rule. It takes a tenth of the time of finding such rows, which are rare."""
    n_null, n_null_parsed = (one.null_count().row(0, named=True) for one in (frame, parsed))
    if any(n_null[name] for name in required) or any(n_null_parsed[name] > n_null[name] for name in kinds):
        return False
    return not any(parsed.select(where.any().alias(name) for name, where in rules).row(0))


def _quarantine(parsed: pl.DataFrame, original: pl.DataFrame, rules: pl.Series) -> pl.DataFrame:
    known = parsed.select(name for name, dtype in parsed.schema.items() if _QUARANTINED.get(name) == dtype)
    rows = known.with_columns(rules=rules, row=_as_json(original))
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in _QUARANTINED.items() if name not in rows.columns]
    month = pl.col("activity_month")
    # A month out of this range is treated as missing; Python may have no date for it.
    month = pl.when(month.is_between(_EARLIEST, _LATEST)).then(month)
    return rows.with_columns(missing).with_columns(month).select(_QUARANTINED.keys())


def _as_json(rows: pl.DataFrame) -> pl.Series:
    """Write each row as a JSON object that PostgreSQL's jsonb accepts."""
    text = rows.select(_writable(name, dtype).alias(name) for name, dtype in rows.schema.items()).write_ndjson()
    # Not splitlines, which also splits at characters that JSON does not escape; and jsonb refuses the character NUL.
    return pl.Series(text.removesuffix("\n").replace("\\u0000", "\\ufffd").split("\n"), dtype=pl.String)


def _writable(name: str, dtype: pl.DataType) -> pl.Expr:
    """Replace values on which polars would panic: bytes, and dates out of range."""
    column = pl.col(name)
    if "Binary" in str(dtype) or "Object" in str(dtype):
        return pl.lit(f"({dtype})")
    if dtype == pl.Date:
        return pl.when(column.is_between(date.min, date.max)).then(column)
    if isinstance(dtype, pl.Datetime):
        zone = UTC if dtype.time_zone else None
        column = column.dt.convert_time_zone("UTC") if zone else column
        first, last = datetime.min.replace(tzinfo=zone), datetime.max.replace(tzinfo=zone)
        return pl.when(column.is_between(first, last)).then(column)
    return column


@lru_cache(1024)
def _column_rules(name: str, kind: Kind, max_money: float) -> tuple[Rule, ...]:
    column = pl.col(name)
    rules = [
        # The model uses float32, in which 1e39 is infinite.
        ("not_finite", ("number", "money", "balance"), ~column.cast(pl.Float32).is_finite()),
        ("absurd", ("money", "balance"), column.is_finite() & (column.abs() > max_money)),
        ("negative", ("money",), column < 0),
        ("out_of_range", ("date",), ~column.is_between(_EARLIEST, _LATEST)),
    ]
    return tuple((f"{name}_{rule}", where) for rule, kinds, where in rules if kind in kinds)


def _one_hot_rules(features: Sequence[str], one_hot: Collection[str]) -> list[Rule]:
    rules: list[Rule] = []
    for source_column in one_hot:
        if group := [pl.col(name) for name in features if name.startswith(f"{source_column}_")]:
            flags = pl.any_horizontal([~column.is_in([0.0, 1.0]).fill_null(value=False) for column in group])
            rules.append((f"{source_column}_not_one_hot", flags | (pl.sum_horizontal(group) > 1)))
    return rules


def parse_value(name: str, kind: Kind, dtype: pl.DataType) -> pl.Expr:
    """Cast a column to its kind; a value that cannot be cast becomes null, which a rule then reports."""
    column = pl.col(name)
    if kind == "text" and dtype == pl.Categorical:
        return column
    if dtype in TEXTS:
        return _parse_text(column.cast(pl.String), kind)
    is_number = dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)
    # A number is no date: days since 1970, a year or 20250101 could be meant. A truth value is no id.
    is_readable = dtype in (pl.Date, pl.Datetime) if kind in ("date", "instant") else is_number
    is_whole = kind in ("account", "integer")
    if not is_readable or (is_whole and dtype == pl.Boolean):
        return pl.lit(None, dtype=_DTYPES[kind])
    if is_whole and (dtype.is_float() or dtype.is_decimal()):
        number = column.cast(pl.Float64)
        column = pl.when((number == number.round()) & (number.abs() < _MAX_EXACT)).then(column)
    if kind == "date" and isinstance(dtype, pl.Datetime):
        # The day is that of its own zone; polars panics on instants that no calendar has.
        limit = 9_000_000_000 * {"ms": 10**3, "us": 10**6, "ns": 10**9}[dtype.time_unit]
        in_range = pl.when(column.to_physical().is_between(-limit, limit)).then(column)
        column = in_range.dt.replace_time_zone(None) if dtype.time_zone else column
    if kind == "instant" and dtype == pl.Date:
        in_range = pl.when(column.is_between(_EARLIEST, _LATEST)).then(column)
        return in_range.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return column.cast(_DTYPES[kind], strict=False)


def _parse_text(column: pl.Expr, kind: Kind) -> pl.Expr:
    if kind == "text":
        return column
    stripped = column.str.strip_chars()
    if kind == "date":
        return stripped.str.to_date("%Y-%m-%d", strict=False).fill_null(stripped.str.to_date("%Y-%b-%d", strict=False))
    if kind == "instant":
        exact = column.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%:z", time_unit="us", time_zone="UTC", strict=False)
        return exact.fill_null(column.str.to_datetime(time_unit="us", time_zone="UTC", strict=False))
    if kind == "account":  # what begins with a zero, a sign or a space is looked at more closely
        return pl.when(column >= "1").then(column.cast(pl.Int64, strict=False))
    return stripped.cast(_DTYPES[kind], strict=False)
