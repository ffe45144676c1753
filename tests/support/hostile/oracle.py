"""What a file of rows says, read once more by plain Python, and what it must then score.

Nothing of ``churn`` is used: the contract, the choice of each account's row and the encoding are written out again, a
row at a time, from README's words.
"""

import csv
import gzip
import hashlib
import io
import json
import math
import re
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]

NUMBERS = ("total_deposit", "total_handle", "total_ngr")
DATES = ("activity_month", "reg_date", "ftd_date", "qp_date")
LEVELS = ("brand_id", "ben_login_id", "player_reg_product")
MAY_BE_MISSING = ("ftd_date", "qp_date", "total_handle")
KNOWN = ("account_id", "tracker_id", "known_at", *DATES, *LEVELS, *NUMBERS)
MISSING_LEVELS = ("", "null", "\\n", "nan", "<na>", "(null)")
MISSING = (*MISSING_LEVELS, "na", "n/a", "#n/a", "nat", "none", "-nan")
SPACES = " \t\n\v\f\r\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
FIRST_DAY, LAST_DAY = date(1990, 1, 1), date(2200, 1, 1)


class UnreadableError(Exception):
    """Plain Python makes nothing of it."""


def parse_rows(content: bytes, names: Sequence[str]) -> list[Row]:
    """Read a file of rows; its columns may be spelled with other case, spaces and hyphens."""
    rows = _parse_rows(content, names)
    columns = {name for row in rows for name in row}
    known = {name.lower(): name for name in (*names, *KNOWN)}
    renamed = {name: known.get(re.sub(r"[\s-]+", "_", name.strip()).lower(), name) for name in columns}
    return [{renamed[name]: value for name, value in row.items()} for row in rows]


def _parse_rows(content: bytes, names: Sequence[str]) -> list[Row]:
    """Read by the standard library, and Parquet by Arrow, value by value."""
    try:
        content = _unpacked(content)
        if content.startswith(b"PAR1"):
            return _parquet(content)
        text = content.decode("utf-8-sig")
        start = text.lstrip()[:1]
        if start == "[":
            rows = json.loads(text)
            return [row if isinstance(row, dict) else dict(zip(names, row, strict=True)) for row in rows]
        if start == "{":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        return _csv(text)
    except (
        ValueError,
        TypeError,
        pa.ArrowException,
        OSError,
        RecursionError,
        csv.Error,
        EOFError,
        zlib.error,
    ) as error:
        raise UnreadableError(repr(error)) from error


def _unpacked(content: bytes) -> bytes:
    if content.startswith(b"\x1f\x8b"):
        return gzip.decompress(content)
    if content.startswith(b"\x28\xb5\x2f\xfd"):
        return bytes(pa.CompressedInputStream(pa.BufferReader(content), "zstd").read())
    return content


def _csv(text: str) -> list[Row]:
    declared = re.match(r'"?sep=(.)"?\r?\n', text)
    text = text[declared.end() :].lstrip("\r\n") if declared else text
    first = text.lstrip("\r\n").partition("\n")[0]
    separator = (
        declared[1] if declared else max(",;\t|", key=lambda each: len(next(csv.reader([first], delimiter=each), [])))
    )
    header, *lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=False)
    return [
        {name: value or None for name, value in zip(header, line or [""] * len(header), strict=True)} for line in lines
    ]


def _parquet(content: bytes) -> list[Row]:
    file = pq.ParquetFile(pa.BufferReader(content))
    table = pa.Table.from_batches(file.iter_batches(7, use_threads=False), file.schema_arrow)
    columns = [_values(column) for column in table.columns]
    return [dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True)]


def _values(column: pa.ChunkedArray) -> list[Any]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _values(column.cast(kind.value_type))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return [_text(value) for value in column.to_pylist()]
    if not pa.types.is_timestamp(kind) and not pa.types.is_date(kind):
        return column.to_pylist()
    unit = "d" if pa.types.is_date32(kind) else "ms" if pa.types.is_date64(kind) else kind.unit
    return [_instant(value, unit) for value in column.cast(pa.int32() if unit == "d" else pa.int64()).to_pylist()]


def _text(value: bytes | None) -> Any:
    try:
        return value if value is None else value.decode()
    except ValueError:
        return value


def _instant(value: int | None, unit: str) -> date | datetime | None:
    if value is None:
        return None
    microseconds = (
        value // 1000 if unit == "ns" else value * {"d": 86_400 * 10**6, "s": 10**6, "ms": 1000, "us": 1}[unit]
    )
    try:
        instant = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)
    return instant.date() if unit == "d" else instant


def is_missing(name: str, value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    if not isinstance(value, str):
        return value is None
    text = value.strip().lower()
    if name in LEVELS:
        return text in MISSING_LEVELS
    return text in MISSING or (name in (*DATES, "known_at") and text in ("0000-00-00", "0000-00-00 00:00:00"))


def number(value: Any) -> float | None:
    """A number, or text of one; ``None`` for what is neither."""
    if isinstance(value, bool | int | float | Decimal):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if not isinstance(value, str):
        return None
    text = value.strip().lower()
    text = {**dict.fromkeys(("true", "t", "yes", "y"), "1"), **dict.fromkeys(("false", "f", "no", "n"), "0")}.get(
        text, text
    )
    if re.fullmatch(r"[-+]?([0-9]+,([0-9]{1,2}|[0-9]{4,})|(0|[0-9]{4,}),[0-9]+)(e[-+]?[0-9]+)?", text):
        text = text.replace(",", ".")
    elif re.fullmatch(r"[-+]?[0-9]{1,3}((,[0-9]{3})+\.[0-9]*|(,[0-9]{3}){2,})", text):
        text = text.replace(",", "")
    try:
        return float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        return None


def integer(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?[eE]\+?[0-9]{1,3}", text) and abs(float(text)) < 1e11:
            value = float(text)
        else:
            match = re.fullmatch(r"([+-]?[0-9]{1,30})(\.0*)?", text)
            value = int(match[1]) if match else None
    if isinstance(value, float | Decimal):
        value = int(value) if math.isfinite(value) and value == int(value) and abs(value) < 2**53 else None
    return value if isinstance(value, int) and -(2**63) <= value < 2**63 else None


def account(value: Any) -> int | None:
    """The number of an account: of a whole number itself, of a text one that is made of its hash."""
    if is_missing("account_id", value):
        return None
    if isinstance(value, Decimal):
        value = format(value, "f")
    elif isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return integer(value)
    text = value.strip(SPACES)
    plain = re.sub("^\u2212", "-", text)
    is_text = re.fullmatch(r"[0-9]+[eE][0-9]+|[+-]?0[0-9]+", plain) is not None
    if not is_text and not re.match("[+-]?0[0-9]", plain) and (whole := integer(plain)) is not None:
        return whole
    point = r"([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
    grouped = r"[0-9]{1,3}([,.' \u2019\u00a0\u202f][0-9]{3})+([.,][0-9]*)?"
    number = rf"[+-]?({point}|[0-9]+[eE][+-][0-9]+|[0-9]+,[0-9]+|{grouped}|inf|infinity)|true|false"
    is_no_id = re.fullmatch(number, plain, re.IGNORECASE | re.ASCII) or re.match(r'\{["}]|\[', text) or "\0" in text
    if (is_no_id and not is_text) or len(text.encode()) > 256:
        return None
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True) | -(2**63)


def day(value: Any) -> date | None:
    if isinstance(value, datetime):
        return value.date()
    if isinstance(value, date):
        return value
    time = r"[T :]\s*[0-9]{1,2}:[0-9]{2}(:[0-9]{2}([.,][0-9]+)?)?(\s?[AP]M)?"
    zone = r"(Z|UTC|GMT|[+-][0-9]{2}(:?[0-9]{2})?(\s?[A-Z]{2,5})?|[A-Za-z_]+/[A-Za-z_/]+)"
    form = rf"\+?([0-9]{{4}})[-/.]([0-9]{{1,2}})[-/.]([0-9]{{1,2}})({time})?\s*{zone}?"
    match = re.fullmatch(form, value.strip()) if isinstance(value, str) else None
    try:
        return date(*map(int, match.groups()[:3])) if match else None
    except ValueError:
        return None


def single(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def breaks_activity(row: Row) -> bool:
    """Return whether a row, with a value or ``None`` for each column, breaks the contract of raw activity."""
    return any(_breaks(name, row[name]) for name in KNOWN if name in row)


def _breaks(name: str, value: Any) -> bool:
    if is_missing(name, value):
        return name not in MAY_BE_MISSING
    if name in DATES:
        parsed = day(value)
        return parsed is None or not FIRST_DAY <= parsed <= LAST_DAY or (name == "activity_month" and parsed.day != 1)
    if name in ("account_id", "tracker_id"):
        return (account if name == "account_id" else integer)(value) is None
    return name in NUMBERS and _is_bad_number(name, value)  # a level that the model does not know sets no column


def _is_bad_number(name: str, value: Any) -> bool:
    parsed = number(value)
    if parsed is None or not math.isfinite(single(parsed)):
        return True
    return name in NUMBERS and (abs(parsed) > 1e8 or (name != "total_ngr" and parsed < 0))


def activity_matrix(rows: Sequence[Row], names: Sequence[str], as_of: date) -> dict[int, list[float]]:
    """Choose and encode each account's row; an account whose newest row is broken is withheld."""
    columns = {name for row in rows for name in row}
    rows = [{name: row.get(name) for name in columns} for row in rows]
    latest: dict[int, tuple[date, Row]] = {}
    broken: list[Row] = []
    for row in rows:
        if breaks_activity(row):
            broken.append(row)
            continue
        number_of, month = account(row["account_id"]), day(row["activity_month"])
        assert number_of is not None
        assert month is not None
        if month <= as_of and (number_of not in latest or latest[number_of][0] <= month):
            latest[number_of] = (month, row)
    for row in broken:
        number_of, month = account(row.get("account_id")), day(row.get("activity_month"))
        if month is not None and not FIRST_DAY <= month <= LAST_DAY:
            month = None
        if number_of in latest and (month is None or latest[number_of][0] <= month <= as_of):
            del latest[number_of]
    return {number: _encode(row, names) for number, (_, row) in latest.items()}


def _encode(row: Mapping[str, Any], names: Sequence[str]) -> list[float]:
    first, month = day(row.get("ftd_date")), day(row["activity_month"])
    assert month is not None
    row = {
        **row,
        "months_active": None if first is None else (month.year - first.year) * 12 + month.month - first.month,
    }
    values = []
    for name in names:
        if name in row:
            parsed = None if is_missing(name, row[name]) else number(row[name])
            values.append(math.nan if parsed is None else parsed)
        else:
            parent = max((column for column in row if name.startswith(f"{column}_")), key=len)
            values.append(float(_fold(row[parent]) == _fold(name.removeprefix(f"{parent}_"))))
    return values


def _fold(level: Any) -> Any:
    return unicodedata.normalize("NFKC", level).strip().lower() if isinstance(level, str) else level


def encoded_matrix(rows: Sequence[Row], names: Sequence[str]) -> dict[int, list[float]]:
    """Take rows that came encoded; those of a repeated account and those that break the contract are left out."""
    has_ids = any("account_id" in row for row in rows)
    ids = [account(row.get("account_id")) if has_ids else i for i, row in enumerate(rows, 1)]
    taken = {}
    for number_of, row in zip(ids, rows, strict=True):
        values = [None if is_missing(name, row.get(name)) else row.get(name) for name in names]
        if number_of is None or ids.count(number_of) > 1 or all(value is None for value in values):
            continue
        if any(value is not None and _is_bad_number(name, value) for name, value in zip(names, values, strict=True)):
            continue
        groups = {
            parent: [number(row.get(name)) for name in names if name.startswith(f"{parent}_")] for parent in LEVELS
        }
        if any(value not in (0.0, 1.0) for group in groups.values() for value in group) or any(
            group.count(1.0) > 1 for group in groups.values()
        ):
            continue
        taken[number_of] = [math.nan if value is None else float(number(value) or 0.0) for value in values]
    return taken
