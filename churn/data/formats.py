"""Readers of input files, by content: Parquet, CSV, JSON Lines or a JSON array.

Values are read unchanged; ``churn.data.activity`` checks them. A file that would take time or memory out of all
proportion to its size is refused before it does.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from churn.errors import InputError

_PARQUET = b"PAR1"
_SNIFFED_BYTES = 65_536
_BATCH_LINES = 65_536
_HEAD_BYTES, _HEAD_LINES = 1 << 20, 1_000
_CHUNK_BYTES = 1 << 20

MAX_COLUMNS = 5_000
MAX_ARRAY_BYTES = 256 << 20
_MANY_CELLS, _MANY_ROWS = 50_000_000, 1_000_000
_LONGEST_TEXT = 1_000
_MANY_BYTES, _MOST_PACKED = 64 << 20, 50  # money and ids pack a few times


class RowFile(Protocol):
    """A file of rows that can be read again and again, some columns and a chunk at a time."""

    @property
    def columns(self) -> list[str]: ...

    @property
    def n_rows(self) -> int: ...

    def chunks(self, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        """Yield frames of at most ``size`` rows, in file order.

        Raises:
            InputError: If the file turns out to be damaged.
        """
        ...


def open_rows(path: Path, positional_names: Sequence[str] = ()) -> RowFile:
    """Open a file of rows, whatever its suffix: Parquet is read by row group, other formats into memory.

    Args:
        positional_names: Column names for a JSON array of arrays; see :func:`read_frame`.

    Raises:
        InputError: If the file is empty, truncated, or none of the formats.
    """
    with path.open("rb") as file:
        is_parquet = file.read(len(_PARQUET)) == _PARQUET
    rows = _ParquetRows(path) if is_parquet else _HeldRows(read_frame(path, positional_names))
    if not rows.n_rows:
        raise _no_rows(path.name)
    return rows


@dataclass(frozen=True)
class _HeldRows:
    frame: pl.DataFrame

    @property
    def columns(self) -> list[str]:
        return self.frame.columns

    @property
    def n_rows(self) -> int:
        return self.frame.height

    def chunks(self, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        yield from self.frame.select(columns).iter_slices(size)


class _ParquetRows:
    def __init__(self, path: Path) -> None:
        self._path = path
        with _damage_translated(path), pq.ParquetFile(path) as file:
            self.columns: list[str] = file.schema_arrow.names
            self.n_rows = int(file.metadata.num_rows)
            self._texts = {field.name for field in file.schema_arrow if _is_text(field.type)}
            _require_modest(path, file.metadata)

    def chunks(self, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        # A level is then compared once a chunk, not once a row, and a text that repeats is held once.
        texts = [name for name in columns if name in self._texts]
        n_read = 0
        with (
            _damage_translated(self._path),
            pq.ParquetFile(self._path, read_dictionary=texts, page_checksum_verification=True) as file,
        ):
            for batch in file.iter_batches(size, columns=list(columns), use_threads=False):
                batch.validate(full=True)
                _require_short_texts(self._path, batch)
                n_read += batch.num_rows
                yield pl.DataFrame(pl.from_arrow(batch)).select(columns)
            if n_read != self.n_rows:
                raise ValueError(f"it has {n_read} rows and says {self.n_rows}")


@contextmanager
def _damage_translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError, OSError) as error:
        raise InputError(
            f"{path.name} is a truncated or damaged Parquet file ({_short(error)}); write it again"
        ) from error


def _require_short_texts(path: Path, batch: pa.RecordBatch) -> None:
    """Refuse a text that would take a thousand times its size once each of its rows has a copy."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if not pa.types.is_dictionary(column.type) or not _is_text(column.type.value_type):
            continue
        longest = pc.max(pc.binary_length(column.dictionary)).as_py() or 0
        if longest > _LONGEST_TEXT:
            raise InputError(
                f"{path.name} holds a text of {longest} bytes in column {name!r}, and up to {_LONGEST_TEXT} are read; "
                f"correct the extract"
            )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _require_modest(path: Path, held: pq.FileMetaData) -> None:
    """Refuse a small file whose metadata announces a large one."""
    _require_few_columns(path, held.num_columns)
    size = path.stat().st_size
    if held.num_rows > max(size, _MANY_ROWS):
        raise InputError(
            f"{path.name} says that its {size} bytes hold {held.num_rows} rows, less than a byte each; rows of many "
            f"accounts are needed: write the extract again"
        )
    # Not column by column: to ask for a damaged column's sizes ends the process.
    unpacked = sum(held.row_group(i).total_byte_size for i in range(held.num_row_groups))
    if unpacked > max(_MANY_BYTES, _MOST_PACKED * size):
        raise InputError(
            f"{path.name} packs {unpacked} bytes into {size}, which no extract of many accounts does; write it again"
        )


def _require_few_columns(path: Path, n_columns: int) -> None:
    if n_columns > MAX_COLUMNS:
        raise InputError(
            f"{path.name} has at least {n_columns} columns, and at most {MAX_COLUMNS} are read; is each row an object "
            f"with the same few keys, or is the header cut into lines?"
        )


def _require_few_gaps(path: Path, n_rows: int, n_columns: int, n_values: int) -> None:
    """Refuse rows that hardly share a key: a table of them is mostly gaps, and many times as large as the file."""
    _require_few_columns(path, n_columns)
    if n_rows * n_columns > max(_MANY_CELLS, 8 * n_values):
        raise InputError(
            f"{path.name} holds {n_values} values in {n_rows} rows of {n_columns} different keys; rows that have their "
            f"keys in common are needed"
        )


def _no_rows(name: str) -> InputError:
    return InputError(f"{name} holds no rows; at least one is needed: check the extract that wrote it")


def read_frame(path: Path, positional_names: Sequence[str] = ()) -> pl.DataFrame:
    """Read a file of rows, whatever its suffix.

    Args:
        path: Parquet, CSV with a header, JSON Lines of objects, or a JSON array of objects or of arrays.
        positional_names: Column names for a JSON array of arrays, which carries none: the model's feature order.

    Returns:
        One row per record, in file order. CSV columns are all strings.

    Raises:
        InputError: If the file is empty, truncated, or none of the formats.
    """
    with path.open("rb") as file:
        head = file.read(_SNIFFED_BYTES)
    frame = _READERS[sniff(head, path.name)](path, positional_names)
    if frame.is_empty():
        raise _no_rows(path.name)
    return frame


def sniff(head: bytes, name: str) -> str:
    """Return the format by the first bytes: ``parquet``, ``json_array``, ``json_lines`` or ``csv``.

    Raises:
        InputError: If the bytes are empty or binary but not Parquet.
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        raise InputError(f"{name} is empty; Parquet, CSV, JSON Lines or a JSON array of rows is needed")
    if head.startswith(_PARQUET):
        return "parquet"
    if b"\0" in head:
        raise InputError(
            f"{name} is binary and not Parquet (first bytes {head[:4]!r}); Parquet, CSV, JSON Lines or JSON is needed"
        )
    return {b"[": "json_array", b"{": "json_lines"}.get(text[:1], "csv")


def _read_parquet(path: Path, _: Sequence[str]) -> pl.DataFrame:
    # Not polars' own reader, which aborts the process on some damaged files.
    rows = _ParquetRows(path)
    frames = list(rows.chunks(rows.columns, _BATCH_LINES))
    whole = frames[0] if len(frames) == 1 else pl.concat(frames or [pl.DataFrame()])
    return whole.with_columns(pl.col(pl.Categorical).cast(pl.String))


def _read_csv(path: Path, _: Sequence[str]) -> pl.DataFrame:
    header = _read_header(path)
    try:
        # Strings only: the contract parses them, so that a bad value is quarantined with its row.
        frame = pl.read_csv(path, infer_schema=False, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path.name} cannot be read as CSV with a header ({_short(error)})") from error
    has_quotes = _require_whole_rows(path, len(header), frame.height)
    # Some writers put quotes around everything, the missing values too.
    return frame.with_columns(pl.all().replace("", None)) if has_quotes else frame


def _read_header(path: Path) -> list[str]:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).decode("utf-8-sig", "replace")
    try:
        # Lines end with a line feed alone, as for polars; any other reading of the header is no header.
        header = next(csv.reader(io.StringIO(head.lstrip("\r\n"), newline="\n")))
    except (csv.Error, StopIteration) as error:
        raise InputError(f"{path.name} cannot be read as CSV with a header ({_short(error)})") from error
    _require_few_columns(path, len(header))
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise InputError(f"{path.name} has columns of one name: {repeated[:8]}; each may stand once in a CSV's header")
    return header


def _require_whole_rows(path: Path, n_columns: int, n_rows: int) -> bool:
    """Refuse rows with fewer fields than the header, which polars fills up as if they were missing values.

    Returns:
        Whether there are quotes in the file.
    """
    n_commas, has_quotes = 0, False
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            n_commas += chunk.count(b",")
            has_quotes = has_quotes or b'"' in chunk
    if not has_quotes and n_commas == (n_rows + 1) * (n_columns - 1):
        return False
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines)
        try:
            for fields in reader:
                if fields and len(fields) != n_columns:
                    raise InputError(
                        f"{path.name} has {len(fields)} fields in the row that ends on line {reader.line_num}, and "
                        f"its header {n_columns}; is the file cut off? Write it again"
                    )
        except (csv.Error, ValueError) as error:
            raise InputError(f"{path.name} cannot be read as CSV with a header ({_short(error)})") from error
    return has_quotes


def _read_json_lines(path: Path, _: Sequence[str]) -> pl.DataFrame:
    frame = _read_even_lines(path)
    if frame is not None:
        return frame
    # Slower, but names the line that is not JSON, and keeps values of another kind for the contract to refuse.
    frames, names, n_rows, n_values = [], set[str](), 0, 0
    lines = _parse_lines(path)
    while batch := list(islice(lines, _BATCH_LINES)):
        for record in batch:
            names.update(record)
            n_values += len(record)
            _require_few_columns(path, len(names))
        n_rows += len(batch)
        _require_few_gaps(path, n_rows, len(names), n_values)
        frames.append(_from_records(path.name, batch, None))
    try:
        return pl.concat(frames, how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path.name} mixes kinds of values in one column ({_short(error)})") from error


def _read_even_lines(path: Path) -> pl.DataFrame | None:
    """Read lines whose keys and kinds of values are all among those of the first; ``None`` when some are not.

    Polars drops keys that its schema lacks, and one of two equal keys, without a word. As many values and nulls as
    keys in the file say that it dropped none.
    """
    counted = _count_keys(path)
    if counted is None:
        return None
    n_lines, n_keys, n_nulls = counted
    try:
        with path.open("rb") as file:
            head = list(islice(file, _HEAD_LINES))
        records = [_parse_line(line) for line in head if line.strip()]
        if not all(isinstance(record, dict) for record in records):
            return None
        names = {name for record in records for name in record}
        _require_few_gaps(path, n_lines, len(names), n_keys)
        schema = pl.read_ndjson(b"".join(head), infer_schema_length=None).schema
        frame = pl.read_ndjson(path, schema=schema)
    except (pl.exceptions.PolarsError, ValueError, RecursionError):
        return None
    n_values = frame.height * frame.width - sum(frame.null_count().row(0))
    return frame if n_values + n_nulls == n_keys else None


def _read_json_array(path: Path, names: Sequence[str]) -> pl.DataFrame:
    if (size := path.stat().st_size) > MAX_ARRAY_BYTES:
        raise InputError(
            f"{path.name} is one JSON array of {size} bytes, and up to {MAX_ARRAY_BYTES} are read; write Parquet or "
            f"JSON Lines"
        )
    try:
        rows = _parse_line(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name} is not valid JSON ({_short(error)}); it may be truncated") from error
    if not rows:
        return pl.DataFrame()
    if all(isinstance(row, dict) for row in rows):
        n_names, n_values = len({name for row in rows for name in row}), sum(map(len, rows))
        _require_few_gaps(path, len(rows), n_names, n_values)
        return _from_records(path.name, rows, None)
    if not all(isinstance(row, list) for row in rows):
        raise InputError(
            f"{path.name} is a JSON array of neither objects nor arrays alone; rows of one kind are needed"
        )
    widths = sorted({len(row) for row in rows})
    if widths != [len(names)]:
        raise InputError(
            f"{path.name} is a JSON array of arrays of lengths {widths[:5]}; the model has {len(names)} features"
        )
    return _from_records(path.name, rows, list(names))


def _from_records(name: str, rows: list[Any], names: list[str] | None) -> pl.DataFrame:
    try:
        if names is None:
            odd = _mixed(rows)
            flat = [{key: _flat(value, key in odd) for key, value in row.items()} for row in rows]
            return pl.from_dicts(flat, infer_schema_length=None)
        flat_rows = [[_flat(value, is_mixed=False) for value in row] for row in rows]
        return pl.DataFrame(flat_rows, schema=names, orient="row", infer_schema_length=None, strict=False)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{name} holds values that make no table ({_short(error)})") from error


def _mixed(rows: list[dict[str, Any]]) -> set[str]:
    """Name the columns that hold truth values and others: beside numbers, polars would make ``true`` the number 1."""
    kinds: dict[bool, set[str]] = {True: set(), False: set()}
    for row in rows:
        for name, value in row.items():
            if value is not None:
                kinds[isinstance(value, bool)].add(name)
    return kinds[True] & kinds[False]


def _flat(value: object, is_mixed: bool) -> object:  # noqa: FBT001
    """Keep a nested value as its text: beside an object, polars would make a number null without a word."""
    return json.dumps(value) if isinstance(value, dict | list) or (is_mixed and isinstance(value, bool)) else value


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON; write null for a missing number")


def _count_keys(path: Path) -> tuple[int, int, int] | None:
    """Count lines, keys and nulls; ``None`` where a value is nested, or a space before a colon could hide a key.

    Text that resembles a key or a null is counted as well, and makes the counts differ from the values'.
    """
    n_lines, n_keys, n_nulls, rest = 1, 0, 0, b""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            whole, end, rest = (rest + chunk).rpartition(b"\n")
            if not _is_flat(whole + end):
                return None
            n_lines += chunk.count(b"\n")
            n_keys += whole.count(b'":')
            n_nulls += whole.count(b'":null') + whole.count(b'": null')
    if not _is_flat(rest):
        return None
    return n_lines, n_keys + rest.count(b'":'), n_nulls + rest.count(b'":null') + rest.count(b'": null')


def _is_flat(lines: bytes) -> bool:
    """Return whether each line is one object without nested values; deep ones crash polars and the process."""
    if any(odd in lines for odd in (b"[", b'" ', b'"\t', b'"\r', b'"\n')):
        return False
    return lines.count(b"{") == (b"\n" + lines).count(b"\n{")


def _parse_line(line: bytes) -> Any:
    return json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=unrepeated)


def unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; a repeated key raises ``ValueError``, since readers differ on which of its values counts."""
    held = dict(pairs)
    if len(held) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in held if keys.count(key) > 1)[:60]!r} occurs twice in one object")
    return held


def _parse_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            shown = repr(line.strip()[:60].decode(errors="replace"))
            try:
                record = _parse_line(line) if line.strip() else None
            except (ValueError, RecursionError) as error:
                if _is_one_object(path):
                    raise InputError(
                        f"{path.name} is a single JSON object; JSON Lines (an object a line) or a JSON array of rows "
                        f"is needed"
                    ) from error
                raise InputError(
                    f"{path.name} cannot be read as JSON Lines: line {number} is not JSON ({_short(error)}): {shown}"
                ) from error
            if isinstance(record, dict):
                yield record
            elif line.strip():
                raise InputError(f"{path.name} cannot be read as JSON Lines: line {number} is not an object: {shown}")


def _is_one_object(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except (ValueError, RecursionError):
        return False


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


_READERS = {
    "parquet": _read_parquet,
    "csv": _read_csv,
    "json_lines": _read_json_lines,
    "json_array": _read_json_array,
}
