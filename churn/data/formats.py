"""From a file to a frame, the format told by the content: Parquet, CSV, JSON Lines or a JSON array.

Values are read as they stand; whether they make sense is ``activity``'s business.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from churn.data.activity import KINDS
from churn.errors import InputError

_PARQUET = b"PAR1"
_SNIFFED_BYTES = 65_536
_BATCH_LINES = 65_536


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
    """Open a file of rows, whatever its suffix: Parquet stays on disk and is read by row group, the rest is held.

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
        with _damage_told(path), pq.ParquetFile(path) as file:
            self.columns: list[str] = file.schema_arrow.names
            self.n_rows = int(file.metadata.num_rows)

    def chunks(self, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        # A level is then compared once a chunk, not once a row.
        levels = [name for name in columns if KINDS.get(name) == "text"]
        with _damage_told(self._path), pq.ParquetFile(self._path, read_dictionary=levels) as file:
            for batch in file.iter_batches(size, columns=list(columns), use_threads=False):
                yield pl.DataFrame(pl.from_arrow(batch)).select(columns)


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError, OSError) as error:
        raise InputError(
            f"{path.name} is a truncated or damaged Parquet file ({_short(error)}); write it again"
        ) from error


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
    """Tell the format from the first bytes: ``parquet``, ``json_array``, ``json_lines`` or ``csv``.

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
    with _damage_told(path), pq.ParquetFile(path) as file:
        return pl.DataFrame(pl.from_arrow(file.read()))


def _read_csv(path: Path, _: Sequence[str]) -> pl.DataFrame:
    try:
        # Strings only: the contract parses them, so that a bad value is quarantined with its row.
        return pl.read_csv(path, infer_schema=False, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path.name} cannot be read as CSV with a header ({_short(error)})") from error


def _read_json_lines(path: Path, _: Sequence[str]) -> pl.DataFrame:
    if _is_flat(path):
        with suppress(pl.exceptions.PolarsError):
            return pl.read_ndjson(path, infer_schema_length=None)
    # Slower, but names the line that is not JSON, and keeps values of another kind for the contract to refuse.
    lines = _parse_lines(path)
    frames = []
    while batch := list(islice(lines, _BATCH_LINES)):
        frames.append(_from_records(path.name, batch, None))
    try:
        return pl.concat(frames, how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path.name} mixes kinds of values in one column ({_short(error)})") from error


def _read_json_array(path: Path, names: Sequence[str]) -> pl.DataFrame:
    try:
        rows = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name} is not valid JSON ({_short(error)}); it may be truncated") from error
    if not rows:
        return pl.DataFrame()
    if all(isinstance(row, dict) for row in rows):
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
            flat = [{key: _flat(value) for key, value in row.items()} for row in rows]
            return pl.from_dicts(flat, infer_schema_length=None)
        flat_rows = [[_flat(value) for value in row] for row in rows]
        return pl.DataFrame(flat_rows, schema=names, orient="row", infer_schema_length=None, strict=False)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{name} holds values that make no table ({_short(error)})") from error


def _flat(value: object) -> object:
    """Keep a nested value as its text: beside an object, polars would make a number null without a word."""
    return json.dumps(value) if isinstance(value, dict | list) else value


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON; write null for a missing number")


def _is_flat(path: Path) -> bool:
    """Tell whether each line is one object without nested values; deep ones crash polars, and the process with it."""
    before = b"\n"
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            if b"[" in chunk or chunk.count(b"{") != (before + chunk).count(b"\n{"):
                return False
            before = chunk[-1:]
    return True


def _parse_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            shown = repr(line.strip()[:60].decode(errors="replace"))
            try:
                record = json.loads(line, parse_constant=_refuse_constant) if line.strip() else None
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
