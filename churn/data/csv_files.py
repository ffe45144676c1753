"""Files of separated values with a header, as databases and spreadsheets write them. Pure.

Separators are comma, semicolon, tab and bar, and Excel's line ``sep=;`` may come first. All values are read as text:
``churn.data.activity`` parses them, so that a bad value is quarantined with its row.
"""

import csv
import io
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import polars as pl

from churn.data.activity import KEY
from churn.data.file_kinds import require_few_columns
from churn.data.spellings import fold_name
from churn.errors import InputError, raised_as

_SEPARATORS = ",;\t|"
_HEAD_BYTES, _CHUNK_BYTES = 1 << 20, 1 << 20
_LINES_OF_TITLES = 20
_ERRORS = (pl.exceptions.PolarsError, OSError, ValueError, csv.Error, StopIteration)
_VALUE = re.compile(r"[-+]?[0-9][0-9.,:/TZ +-]*|\\N|true|false", re.IGNORECASE)

_DECIMALS = (r"^[-+]?[0-9.]*[0-9],([0-9]{1,2}|[0-9]{4,})$", r"^[-+]?[0-9]+\.([0-9]{1,2}|[0-9]{4,})$")
"""Numbers with a decimal comma, and with a decimal point."""


def read_csv(path: Path, names: Sequence[str] = ()) -> pl.DataFrame:
    """Read separated values; the header is recognized by the contract's key and by the model's feature ``names``.

    Raises ``InputError`` if it has no header, rows of unequal length, or is no text in UTF-8.
    """
    header, separator, n_skipped = _read_layout(path, names)
    with raised_as(InputError, f"{path.name} cannot be read as CSV with a header", *_ERRORS):
        try:
            frame = pl.read_csv(path, infer_schema=False, glob=False, separator=separator, skip_lines=n_skipped)
        except pl.exceptions.PolarsError:
            _require_utf8(path)
            raise
        has_quotes = _require_whole_rows(path, len(header), separator, n_skipped, frame.height)
    # Some writers put quotes around everything, the missing values too.
    frame = frame.with_columns(pl.all().replace("", None)) if has_quotes else frame
    return frame if separator == "," else _with_decimal_points(frame)


def _read_layout(path: Path, names: Sequence[str]) -> tuple[list[str], str, int]:
    """Return the header, the separator, and the number of lines before the header."""
    with path.open("rb") as file:
        text = file.read(_HEAD_BYTES).decode("utf-8-sig", "replace")
    lines = text.split("\n")  # only line feeds end lines, as for polars; read otherwise, the header would differ
    n_skipped, separators = 0, _SEPARATORS
    if (said := re.fullmatch(r'"?sep=(.)"?\r?', lines[0])) is not None:
        n_skipped, separators, lines = 1, said[1], lines[1:]
    text = "\n".join(lines)
    with raised_as(InputError, f"{path.name} cannot be read as CSV with a header", *_ERRORS):
        header, separator = _widest(text.lstrip("\r\n"), separators)
    require_few_columns(path, len(header))
    known = {fold_name(name) for name in (*KEY, *names)}
    if not _count_known(header, known):
        _require_no_title(path, lines, known, n_skipped)
        _require_names(path, header)
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise InputError(f"{path.name} has repeated columns: {repeated[:8]}; each may occur once in a CSV's header")
    return header, separator, n_skipped


def _widest(text: str, separators: str) -> tuple[list[str], str]:
    """Return the first row by the separator that gives it the most fields; of several, by the first."""
    rows: dict[str, list[str]] = {}
    for separator in separators:
        with suppress(csv.Error):  # by another separator, a line may be a field longer than Python reads
            rows[separator] = next(csv.reader(io.StringIO(text, newline="\n"), delimiter=separator))
    if not rows:
        raise ValueError(f"line 1 has a field of more than {csv.field_size_limit()} letters")
    separator = max(rows, key=lambda separator: len(rows[separator]))
    return rows[separator], separator


def _count_known(fields: Sequence[str], known: Collection[str]) -> int:
    return sum(fold_name(field) in known for field in fields)


def _require_no_title(path: Path, lines: Sequence[str], known: Collection[str], n_skipped: int) -> None:
    for number, line in enumerate(lines[1:_LINES_OF_TITLES], start=2 + n_skipped):
        if max(_count_known(line.strip().split(separator), known) for separator in _SEPARATORS) >= 2:
            title = f"a title, {lines[0].strip()[:40]!r}, and its header is on line {number}"
            remedy = "delete the lines before the header, or export the rows alone"
            raise InputError(f"{path.name} begins with {title}; reports of Excel and BI tools are so: {remedy}")


def _require_names(path: Path, header: Sequence[str]) -> None:
    filled = [field for field in header if field.strip()]
    values = [field for field in filled if _VALUE.fullmatch(field.strip())]
    if values and len(values) * 2 >= len(filled):
        found = f"{len(values)} are numbers or dates (such as {values[0][:20]!r})"
        remedy = "as COPY and UNLOAD write rows by default; export it with HEADER"
        raise InputError(f"{path.name} has no header: of the {len(header)} fields of line 1, {found}, {remedy}")


def _require_utf8(path: Path) -> None:
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError as error:
        number, byte = error.object.count(10, 0, error.start) + 1, error.object[error.start]  # 10 is a line feed
        remedy = "Excel's plain CSV is in Windows-1252: save it as CSV UTF-8"
        raise ValueError(f"line {number} has the byte {byte:#04x}, which is no UTF-8; {remedy}") from error


def _require_whole_rows(path: Path, n_columns: int, separator: str, n_skipped: int, n_rows: int) -> bool:
    """Reject rows shorter than the header, which polars would pad with nulls; return whether the file has quotes."""
    n_separators, has_quotes = 0, False
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            n_separators += chunk.count(separator.encode())
            has_quotes = has_quotes or b'"' in chunk
    if not has_quotes and n_separators == (n_rows + 1) * (n_columns - 1) and not n_skipped:
        return False
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, delimiter=separator)
        for fields in islice(reader, n_skipped, None):
            if fields and len(fields) != n_columns:
                row = f"{len(fields)} fields in the row that ends on line {reader.line_num}"
                hint = "is the file cut off? Write it again"
                raise InputError(f"{path.name} has {row}, and its header {n_columns}; {hint}")
    return has_quotes


def _with_decimal_points(frame: pl.DataFrame) -> pl.DataFrame:
    """Read ``12,500`` as 12.5 where the file has decimal commas and no decimal points; its separator is no comma."""
    commas, points = (any(frame.select(pl.all().str.contains(pattern).any()).row(0)) for pattern in _DECIMALS)
    if not commas or points:
        return frame
    return frame.with_columns(pl.all().str.replace(r"^([-+]?[0-9]+),([0-9]{3})$", "$1.$2"))
