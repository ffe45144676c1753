"""Readers of input files, by content: Parquet, CSV, JSON Lines or a JSON array, of one file or a folder of parts.

Values are read unchanged; ``churn.data.activity`` checks them. A file that would take far more time or memory than its
size suggests is rejected first.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from math import inf
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq

from churn.data import file_kinds
from churn.data.activity import KINDS
from churn.data.arrow_columns import convert, is_bytes, is_not_implemented, is_text
from churn.data.csv_files import read_csv
from churn.data.spellings import is_pattern, renames
from churn.errors import InputError, cause_of, raised_as
from churn.wording import listed

_BATCH_LINES, _HEAD_LINES = 65_536, 1_000

MAX_ARRAY_BYTES = 256 << 20
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_MANY_CELLS, _MANY_ROWS = 50_000_000, 1_000_000
_LEAST_BYTES = 6  # of a key and its value
_LONGEST_TEXT = 1_000
_LEAST_ROWS, _MOST_DECODED = 64, 2 << 30  # of a batch of delta-encoded text
_NO_JSON = (ValueError, RecursionError)
_DAMAGE = (pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError, OSError)


class NoRowsError(InputError):
    """A file can be read and has no rows."""


@dataclass(frozen=True)
class RowFile:
    """A file of rows that can be read repeatedly, some columns and a chunk at a time.

    ``chunks`` takes columns and a size, and yields frames of at most so many rows, in file order; it raises
    ``InputError`` if the file turns out to be damaged.
    """

    columns: list[str]
    n_rows: int
    chunks: Callable[[Sequence[str], int], Iterator[pl.DataFrame]]


def open_rows(path: Path, positional_names: Sequence[str] = ()) -> RowFile:
    """Open a file of rows, whatever its suffix, or a folder of such files, as Spark writes them.

    Parquet is read by row group, other formats into memory. The names of columns are those of the contract and of the
    model, whatever case they are written in; a JSON array of arrays has the model's, in order. A column whose name
    polars takes for a pattern is left out. Raises ``InputError`` if the file is empty, truncated, or in no such format.
    """
    rows = _open_parts(path, positional_names) if path.is_dir() else _open_file(path, positional_names)
    rows = replace(rows, columns=[name for name in rows.columns if not is_pattern(name)])
    if not rows.n_rows or not rows.columns:
        raise NoRowsError(f"{path.name} has no rows; at least one is needed: check the extract that wrote it")
    renamed = renames(tuple(rows.columns), tuple(KINDS), tuple(positional_names))
    return _renamed(rows, renamed) if renamed else rows


def read_frame(path: Path, positional_names: Sequence[str] = ()) -> pl.DataFrame:
    """Read the rows of a file or folder, opened by :func:`open_rows`, into memory, in order; those of CSV are text."""
    rows = open_rows(path, positional_names)
    chunks = list(rows.chunks(rows.columns, _BATCH_LINES))
    with raised_as(InputError, f"{path.name} mixes kinds of values in one column", pl.exceptions.PolarsError):
        whole = pl.concat(chunks, how="vertical_relaxed") if chunks else pl.DataFrame()
    return whole.with_columns(pl.col(pl.Categorical).cast(pl.String))


def _open_file(path: Path, names: Sequence[str]) -> RowFile:
    content = file_kinds.unpacked(path)
    kind = file_kinds.sniff(file_kinds.head_of(content), path.name)
    if kind == "parquet":
        return _open_parquet(content)  # not by polars' reader, which aborts the process on some damaged files
    frame = _READERS[kind](content, names)
    return RowFile(frame.columns, frame.height, lambda columns, size: frame.select(columns).iter_slices(size))


def _renamed(rows: RowFile, renamed: Mapping[str, str]) -> RowFile:
    original = {renamed.get(name, name): name for name in rows.columns}

    def chunks(columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        for frame in rows.chunks([original[name] for name in columns], size):
            yield frame.rename(renamed, strict=False)

    return RowFile(list(original), rows.n_rows, chunks)


def _open_parts(folder: Path, names: Sequence[str]) -> RowFile:
    """Open the files of a folder as one; ``<column>=<value>`` in a path is a column, as in Hive."""
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    keys = [key for key in files if file_kinds.is_part(key.as_posix())]
    opened = {key: _with_columns_of_path(_open_file(folder / key, names), key) for key in keys}
    parts = {key: part for key, part in opened.items() if part.n_rows}
    columns = next((part.columns for part in parts.values()), [])
    for key, part in parts.items():
        if differing := sorted(set(part.columns) ^ set(columns)):
            differ = f"{listed(differing)} is not in both {key} and {next(iter(parts))}"
            raise InputError(f"the parts of {folder.name} have different columns: {differ}; write the folder again")
    n_rows = sum(part.n_rows for part in parts.values())
    return RowFile(columns, n_rows, lambda *of: chain.from_iterable(part.chunks(*of) for part in parts.values()))


def _with_columns_of_path(rows: RowFile, path: Path) -> RowFile:
    pairs = [folder.partition("=") for folder in path.parts[:-1] if "=" in folder]
    values = {name: None if value == _NO_VALUE else unquote(value) for name, _, value in pairs}
    if not values:
        return rows

    def chunks(columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        for frame in rows.chunks([name for name in columns if name not in values] or rows.columns[:1], size):
            literals = [pl.lit(value, dtype=pl.String).alias(name) for name, value in values.items()]
            yield frame.with_columns(literals).select(columns)

    return RowFile([*(name for name in rows.columns if name not in values), *values], rows.n_rows, chunks)


def _open_parquet(path: Path) -> RowFile:
    problem, remedy = f"{path.name} is a truncated or damaged Parquet file", "write it again"
    with raised_as(InputError, problem, *_DAMAGE, remedy=remedy), pq.ParquetFile(path) as file:
        unpacked = _require_modest(path, file.metadata)
        names: list[str] = file.schema_arrow.names
        n_rows = int(file.metadata.num_rows)
        texts = {field.name for field in file.schema_arrow if is_text(field.type)}
        writer = str(file.metadata.created_by)[:80]

    def chunks(columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        n_read = 0
        with raised_as(InputError, problem, *_DAMAGE, remedy=remedy):
            try:
                for batch in _batches(path, columns, [name for name in columns if name in texts], size, unpacked):
                    _require_short_texts(path, batch)
                    n_read += batch.num_rows
                    yield pl.DataFrame(pl.from_arrow(convert(batch))).select(columns)
            except _DAMAGE as error:
                if is_not_implemented(error):
                    what = f"is a Parquet file of a kind that is not read ({cause_of(error)})"
                    needed = "write it with the codec zstd or snappy, and without encryption"
                    raise InputError(f"{path.name}, written by {writer!r}, {what}; {needed}") from error
                raise
            if n_read != n_rows:
                raise ValueError(f"it has {n_read} rows and its metadata {n_rows}")

    return RowFile(names, n_rows, chunks)


def _batches(path: Path, columns: Sequence[str], texts: list[str], size: int, n_bytes: int) -> Iterator[pa.RecordBatch]:
    """Read batches of rows.

    As a dictionary, a level is compared once a chunk, not once a row, and a repeated text is stored once. Arrow does
    not read delta-encoded text so. A long text is then decoded as often as it occurs, and a batch has fewer rows.
    """
    n_read = 0
    options: dict[str, Any] = {"page_checksum_verification": True, "coerce_int96_timestamp_unit": "us"}
    for dictionaries, most in ((texts, size), ([], max(_LEAST_ROWS, _MOST_DECODED // max(n_bytes, 1)))):
        n_skipped = n_read
        try:
            with pq.ParquetFile(path, read_dictionary=dictionaries, **options) as file:
                for whole in file.iter_batches(min(size, most), columns=list(columns), use_threads=False):
                    batch = whole.slice(n_skipped)
                    n_skipped -= whole.num_rows - batch.num_rows
                    if batch.num_rows:
                        batch.validate(full=True)
                        yield batch
                        n_read += batch.num_rows
        except (OSError, pa.ArrowException) as error:
            if not dictionaries or not is_not_implemented(error):
                raise
        else:
            return


def _require_short_texts(path: Path, batch: pa.RecordBatch) -> None:
    """Reject a text that would take a thousand times its size once each of its rows has a copy."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        values = column.dictionary if pa.types.is_dictionary(column.type) else column
        if not is_text(values.type) and not is_bytes(values.type):
            continue
        longest = pc.max(pc.binary_length(values)).as_py() or 0
        if longest > _LONGEST_TEXT:
            problem = f"a text of {longest} bytes in column {name!r}, and up to {_LONGEST_TEXT} are read"
            raise InputError(f"{path.name} has {problem}; correct the extract")


def _require_modest(path: Path, metadata: pq.FileMetaData) -> int:
    """Reject a small file whose metadata announces a large one; return its size unpacked, in bytes."""
    file_kinds.require_few_columns(path, metadata.num_columns)
    size = path.stat().st_size
    if metadata.num_rows > max(size, _MANY_ROWS):
        problem = f"{path.name} declares {metadata.num_rows} rows in {size} bytes, less than a byte each"
        raise InputError(f"{problem}; rows of many accounts are needed: write the extract again")
    # Not column by column: reading the sizes of a damaged column ends the process.
    unpacked = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if unpacked > max(file_kinds.MANY_BYTES, file_kinds.MOST_PACKED * size):
        remedy = "which no extract of many accounts does; write it again"
        raise InputError(f"{path.name} packs {unpacked} bytes into {size}, {remedy}")
    return int(unpacked)


def _require_few_gaps(path: Path, n_rows: int, n_columns: int, n_values: int) -> None:
    """Reject rows that hardly share a key: a table of them is mostly gaps, and many times as large as the file."""
    file_kinds.require_few_columns(path, n_columns)
    if n_rows * n_columns > max(_MANY_CELLS, 8 * n_values):
        needed = "rows that have their keys in common are needed"
        raise InputError(f"{path.name} has {n_values} values in {n_rows} rows of {n_columns} different keys; {needed}")


def _read_json_lines(path: Path, _: Sequence[str]) -> pl.DataFrame:
    if (frame := _read_even_lines(path)) is not None:
        return frame
    # Slower, but names the line that is not JSON, and keeps values of another kind, which the contract quarantines.
    frames, names, n_rows, n_values = [], set[str](), 0, 0
    lines = _parse_lines(path)
    while batch := list(islice(lines, _BATCH_LINES)):
        names.update(*batch)
        n_rows, n_values = n_rows + len(batch), n_values + sum(map(len, batch))
        _require_few_gaps(path, n_rows, len(names), n_values)
        frames.append(_from_records(path.name, batch))
    with raised_as(InputError, f"{path.name} mixes kinds of values in one column", pl.exceptions.PolarsError):
        return pl.concat(frames, how="diagonal_relaxed")


def _read_even_lines(path: Path) -> pl.DataFrame | None:
    """Read lines whose keys and kinds of values are all among those of the first; ``None`` when some are not.

    Arrow rejects any other, and a key that occurs twice. It accepts several objects on a line, and NaN, which is a
    missing number. Nested values are excluded before it infers the kinds: deep ones may end the process.
    """
    with path.open("rb") as file:
        head = list(islice(file, _HEAD_LINES))
        n_lines = sum(not line.isspace() for line in chain(head, file))
    with suppress(ValueError, RecursionError, AttributeError, pa.ArrowException, pl.exceptions.PolarsError):
        items = [item for line in head if not line.isspace() for item in _parse_line(line).items()]
        if any(isinstance(value, dict | list) for _, value in items):
            return None
        inferred = pj.read_json(io.BytesIO(b"".join(head))).schema
        kinds = [(field.name, pa.string() if pa.types.is_temporal(field.type) else field.type) for field in inferred]
        file_kinds.require_few_columns(path, len(kinds))
        if n_lines * len(kinds) > max(_MANY_CELLS, 8 * path.stat().st_size // _LEAST_BYTES):
            return None
        options = pj.ParseOptions(explicit_schema=pa.schema(kinds), unexpected_field_behavior="error")
        table = pj.read_json(path, parse_options=options)
        table.validate(full=True)
        frame = pl.DataFrame(pl.from_arrow(table)).with_columns(pl.col(pl.Float64).fill_nan(None))
        if frame.height == n_lines and {*frame.columns} == {name for name, _ in items}:
            return frame
    return None


def _read_json_array(path: Path, names: Sequence[str]) -> pl.DataFrame:
    if (size := path.stat().st_size) > MAX_ARRAY_BYTES:
        problem = f"{path.name} is one JSON array of {size} bytes, and up to {MAX_ARRAY_BYTES} are read"
        raise InputError(f"{problem}; write Parquet or JSON Lines")
    with raised_as(InputError, f"{path.name} is not valid JSON", *_NO_JSON, remedy="it may be truncated"):
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
        needed = f"the model has {len(names)} features"
        raise InputError(f"{path.name} is a JSON array of arrays of lengths {widths[:5]}; {needed}")
    return _from_records(path.name, rows, list(names))


def _from_records(name: str, rows: list[Any], names: list[str] | None = None) -> pl.DataFrame:
    errors = (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError, RecursionError)
    with raised_as(InputError, f"{name} has values that make no table", *errors):
        if names is None:
            mixed = _mixed_columns(rows)
            flat = [{key: _flat(value, is_mixed=key in mixed) for key, value in row.items()} for row in rows]
            return pl.from_dicts(flat, infer_schema_length=None)
        flat_rows = [[_flat(value, is_mixed=False) for value in row] for row in rows]
        return pl.DataFrame(flat_rows, schema=names, orient="row", infer_schema_length=None, strict=False)


def _mixed_columns(rows: list[dict[str, Any]]) -> set[str]:
    """Return the columns with truth values and others: among numbers, polars would make ``true`` the number 1."""
    seen = {(name, isinstance(value, bool)) for row in rows for name, value in row.items() if value is not None}
    return {name for name, is_truth in seen if is_truth and (name, False) in seen}


def _flat(value: object, *, is_mixed: bool) -> object:
    """Write a nested value as text: in a column with objects, polars would silently make a number null."""
    return json.dumps(value) if isinstance(value, dict | list) or (is_mixed and isinstance(value, bool)) else value


def _parse_line(line: bytes) -> Any:
    # Python writes NaN though it is no JSON: a missing number; and infinity, which the contract refuses.
    constants = {"NaN": None, "Infinity": inf, "-Infinity": -inf}
    return json.loads(line, parse_constant=constants.__getitem__, object_pairs_hook=unrepeated)


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
            except _NO_JSON as error:
                needed = "JSON Lines (an object a line) or an array of rows is needed"
                with suppress(*_NO_JSON):
                    if isinstance(json.loads(path.read_bytes()), dict):
                        raise InputError(f"{path.name} is one JSON object; {needed}") from error
                raise InputError(f"{where} is not JSON ({cause_of(error)}): {shown}") from error
            if not isinstance(record, dict):
                raise InputError(f"{where} is not an object: {shown}")
            yield record


_Reader = Callable[[Path, Sequence[str]], pl.DataFrame]
_READERS: Mapping[str, _Reader] = {"csv": read_csv, "json_lines": _read_json_lines, "json_array": _read_json_array}
