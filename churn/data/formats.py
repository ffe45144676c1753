"""Readers of input files, by content: Parquet, CSV, JSON Lines or a JSON array.

Values are read unchanged; ``churn.data.activity`` checks them. A file that would take far more time or memory than its
size suggests is rejected first.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from churn.data.arrow_columns import convert, is_bytes, is_not_implemented, is_text
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
_LEAST_ROWS, _MOST_DECODED = 64, 2 << 30  # of a batch of delta-encoded text
_DAMAGE = (pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError, OSError)
_NOT_CSV = (pl.exceptions.PolarsError, OSError, ValueError, csv.Error, StopIteration)
_MANY_BYTES, _MOST_PACKED = 64 << 20, 50  # money and ids pack a few times


@dataclass(frozen=True)
class RowFile:
    """A file of rows that can be read repeatedly, some columns and a chunk at a time.

    Attributes:
        chunks: From columns and a size to frames of at most so many rows, in file order. Raises ``InputError`` if the
            file turns out to be damaged.
    """

    columns: list[str]
    n_rows: int
    chunks: Callable[[Sequence[str], int], Iterator[pl.DataFrame]]


def open_rows(path: Path, positional_names: Sequence[str] = ()) -> RowFile:
    """Open a file of rows, whatever its suffix: Parquet is read by row group, other formats into memory.

    Args:
        positional_names: Column names for a JSON array of arrays; see :func:`read_frame`.

    Raises:
        InputError: If the file is empty, truncated, or none of the formats.
    """
    with path.open("rb") as file:
        is_parquet = file.read(len(_PARQUET)) == _PARQUET
    if not is_parquet:
        frame = read_frame(path, positional_names)
        return RowFile(frame.columns, frame.height, lambda columns, size: frame.select(columns).iter_slices(size))
    rows = _open_parquet(path)
    if not rows.n_rows:
        raise _no_rows(path.name)
    return rows


@contextmanager
def _input_error(problem: str, *errors: type[BaseException], remedy: str = "") -> Iterator[None]:
    """Translate errors into an ``InputError`` of the problem, the cause and the remedy."""
    try:
        yield
    except errors as error:
        raise InputError(f"{problem} ({_short(error)}){remedy}") from error


def _open_parquet(path: Path) -> RowFile:
    problem, remedy = f"{path.name} is a truncated or damaged Parquet file", "; write it again"
    with _input_error(problem, *_DAMAGE, remedy=remedy), pq.ParquetFile(path) as file:
        _require_modest(path, file.metadata)
        names: list[str] = file.schema_arrow.names
        n_rows = int(file.metadata.num_rows)
        unpacked = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        texts = {field.name for field in file.schema_arrow if is_text(field.type)}
        writer = str(file.metadata.created_by)[:80]

    def chunks(columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        n_read = 0
        with _input_error(problem, *_DAMAGE, remedy=remedy):
            try:
                for batch in _batches(path, columns, [name for name in columns if name in texts], size, unpacked):
                    _require_short_texts(path, batch)
                    n_read += batch.num_rows
                    yield pl.DataFrame(pl.from_arrow(convert(batch))).select(columns)
            except _DAMAGE as error:
                if is_not_implemented(error):
                    raise InputError(
                        f"{path.name}, written by {writer!r}, is a Parquet file of a kind that is not read "
                        f"({_short(error)}); write it with the codec zstd or snappy, and without encryption"
                    ) from error
                raise
            if n_read != n_rows:
                raise ValueError(f"it has {n_read} rows and its metadata {n_rows}")

    return RowFile(names, n_rows, chunks)


def _batches(
    path: Path, columns: Sequence[str], texts: Sequence[str], size: int, unpacked: int
) -> Iterator[pa.RecordBatch]:
    """Read batches of rows.

    As a dictionary, a level is compared once a chunk, not once a row, and a repeated text is stored once. Arrow does
    not read delta-encoded text so. A long text is then decoded as often as it occurs, and a batch has fewer rows.
    """
    n_read = 0
    options = {"page_checksum_verification": True, "coerce_int96_timestamp_unit": "us"}
    try:
        with pq.ParquetFile(path, read_dictionary=list(texts), **options) as file:
            for batch in file.iter_batches(size, columns=list(columns), use_threads=False):
                batch.validate(full=True)
                yield batch
                n_read += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        if not texts or not is_not_implemented(error):
            raise
    else:
        return
    n_skipped, size = n_read, min(size, max(_LEAST_ROWS, _MOST_DECODED // max(unpacked, 1)))
    with pq.ParquetFile(path, **options) as file:
        for whole in file.iter_batches(size, columns=list(columns), use_threads=False):
            batch = whole.slice(n_skipped)
            n_skipped -= whole.num_rows - batch.num_rows
            if batch.num_rows:
                batch.validate(full=True)
                yield batch


def _require_short_texts(path: Path, batch: pa.RecordBatch) -> None:
    """Reject a text that would take a thousand times its size once each of its rows has a copy."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        values = column.dictionary if pa.types.is_dictionary(column.type) else column
        if not is_text(values.type) and not is_bytes(values.type):
            continue
        longest = pc.max(pc.binary_length(values)).as_py() or 0
        if longest > _LONGEST_TEXT:
            raise InputError(
                f"{path.name} has a text of {longest} bytes in column {name!r}, and up to {_LONGEST_TEXT} are read; "
                f"correct the extract"
            )


def _require_modest(path: Path, metadata: pq.FileMetaData) -> None:
    """Reject a small file whose metadata announces a large one."""
    _require_few_columns(path, metadata.num_columns)
    size = path.stat().st_size
    if metadata.num_rows > max(size, _MANY_ROWS):
        raise InputError(
            f"{path.name} declares {metadata.num_rows} rows in {size} bytes, less than a byte each; rows of many "
            f"accounts are needed: write the extract again"
        )
    # Not column by column: reading the sizes of a damaged column ends the process.
    unpacked = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
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
    """Reject rows that hardly share a key: a table of them is mostly gaps, and many times as large as the file."""
    _require_few_columns(path, n_columns)
    if n_rows * n_columns > max(_MANY_CELLS, 8 * n_values):
        raise InputError(
            f"{path.name} has {n_values} values in {n_rows} rows of {n_columns} different keys; rows that have their "
            f"keys in common are needed"
        )


def _no_rows(name: str) -> InputError:
    return InputError(f"{name} has no rows; at least one is needed: check the extract that wrote it")


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
    # Not by polars' reader, which aborts the process on some damaged files.
    rows = _open_parquet(path)
    whole = pl.concat(list(rows.chunks(rows.columns, _BATCH_LINES)) or [pl.DataFrame()])
    return whole.with_columns(pl.col(pl.Categorical).cast(pl.String))


def _read_csv(path: Path, _: Sequence[str]) -> pl.DataFrame:
    header = _read_header(path)
    with _input_error(f"{path.name} cannot be read as CSV with a header", *_NOT_CSV):
        # Strings only: the contract parses them, so that a bad value is quarantined with its row.
        frame = pl.read_csv(path, infer_schema=False, glob=False)
        has_quotes = _require_whole_rows(path, len(header), frame.height)
    # Some writers put quotes around everything, the missing values too.
    return frame.with_columns(pl.all().replace("", None)) if has_quotes else frame


def _read_header(path: Path) -> list[str]:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).decode("utf-8-sig", "replace")
    with _input_error(f"{path.name} cannot be read as CSV with a header", *_NOT_CSV):
        # Lines end with a line feed alone, as for polars; read otherwise, the header would differ.
        header = next(csv.reader(io.StringIO(head.lstrip("\r\n"), newline="\n")))
    _require_few_columns(path, len(header))
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise InputError(f"{path.name} has repeated columns: {repeated[:8]}; each may occur once in a CSV's header")
    return header


def _require_whole_rows(path: Path, n_columns: int, n_rows: int) -> bool:
    """Reject rows with fewer fields than the header, which polars would pad with nulls.

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
        for fields in reader:
            if fields and len(fields) != n_columns:
                raise InputError(
                    f"{path.name} has {len(fields)} fields in the row that ends on line {reader.line_num}, and "
                    f"its header {n_columns}; is the file cut off? Write it again"
                )
    return has_quotes


def _read_json_lines(path: Path, _: Sequence[str]) -> pl.DataFrame:
    if (frame := _read_even_lines(path)) is not None:
        return frame
    # Slower, but names the line that is not JSON, and keeps values of another kind, which the contract quarantines.
    frames, names, n_rows, n_values = [], set[str](), 0, 0
    lines = _parse_lines(path)
    while batch := list(islice(lines, _BATCH_LINES)):
        for record in batch:
            names.update(record)
            n_values += len(record)
            _require_few_columns(path, len(names))
        n_rows += len(batch)
        _require_few_gaps(path, n_rows, len(names), n_values)
        frames.append(_from_records(path.name, batch))
    with _input_error(f"{path.name} mixes kinds of values in one column", pl.exceptions.PolarsError):
        return pl.concat(frames, how="diagonal_relaxed")


def _read_even_lines(path: Path) -> pl.DataFrame | None:
    """Read lines whose keys and kinds of values are all among those of the first; ``None`` when some are not.

    Polars silently drops keys that its schema lacks, and one of two equal keys. It dropped none if there are as many
    values and nulls as keys in the file.
    """
    if (counted := _count_keys(path)) is None:
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
    with _input_error(f"{path.name} is not valid JSON", ValueError, RecursionError, remedy="; it may be truncated"):
        rows = _parse_line(path.read_bytes())
    if not rows:
        return pl.DataFrame()
    if all(isinstance(row, dict) for row in rows):
        _require_few_gaps(path, len(rows), len({name for row in rows for name in row}), sum(map(len, rows)))
        return _from_records(path.name, rows)
    if not all(isinstance(row, list) for row in rows):
        raise InputError(f"{path.name} is a JSON array of mixed values; either objects or arrays are needed")
    widths = sorted({len(row) for row in rows})
    if widths != [len(names)]:
        raise InputError(
            f"{path.name} is a JSON array of arrays of lengths {widths[:5]}; the model has {len(names)} features"
        )
    return _from_records(path.name, rows, list(names))


def _from_records(name: str, rows: list[Any], names: list[str] | None = None) -> pl.DataFrame:
    errors = (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError, RecursionError)
    with _input_error(f"{name} has values that make no table", *errors):
        if names is None:
            mixed = _mixed_columns(rows)
            flat = [{key: _flat(value, is_mixed=key in mixed) for key, value in row.items()} for row in rows]
            return pl.from_dicts(flat, infer_schema_length=None)
        flat_rows = [[_flat(value, is_mixed=False) for value in row] for row in rows]
        return pl.DataFrame(flat_rows, schema=names, orient="row", infer_schema_length=None, strict=False)


def _mixed_columns(rows: list[dict[str, Any]]) -> set[str]:
    """Return the columns with truth values and others: among numbers, polars would make ``true`` the number 1."""
    kinds: dict[bool, set[str]] = {True: set(), False: set()}
    for row in rows:
        for name, value in row.items():
            if value is not None:
                kinds[isinstance(value, bool)].add(name)
    return kinds[True] & kinds[False]


def _flat(value: object, *, is_mixed: bool) -> object:
    """Write a nested value as text: in a column with objects, polars would silently make a number null."""
    return json.dumps(value) if isinstance(value, dict | list) or (is_mixed and isinstance(value, bool)) else value


def _constant(name: str) -> float | None:
    """Read what Python writes though it is no JSON: NaN is a missing number, and the contract refuses infinity."""
    return None if name == "NaN" else float(name)


def _count_keys(path: Path) -> tuple[int, int, int] | None:
    """Count lines, keys and nulls; ``None`` where a value is nested, or a space before a colon could hide a key.

    Text that resembles a key or a null is counted as well; the counts then differ from those of the values.
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
    return json.loads(line, parse_constant=_constant, object_pairs_hook=unrepeated)


def unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; a repeated key raises ``ValueError``, since readers differ on which of its values counts."""
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in record if keys.count(key) > 1)[:60]!r} occurs twice in one object")
    return record


def _parse_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path.name} cannot be read as JSON Lines: line {number}"
            shown = repr(line.strip()[:60].decode(errors="replace"))
            try:
                record = _parse_line(line)
            except (ValueError, RecursionError) as error:
                if _is_one_object(path):
                    raise InputError(
                        f"{path.name} is a single JSON object; JSON Lines (an object a line) or a JSON array of rows "
                        f"is needed"
                    ) from error
                raise InputError(f"{where} is not JSON ({_short(error)}): {shown}") from error
            if not isinstance(record, dict):
                raise InputError(f"{where} is not an object: {shown}")
            yield record


def _is_one_object(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except (ValueError, RecursionError):
        return False


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


_READERS = {"parquet": _read_parquet, "csv": _read_csv, "json_lines": _read_json_lines, "json_array": _read_json_array}
