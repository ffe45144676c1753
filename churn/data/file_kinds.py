"""What a file is, by its first bytes: one of the formats that are read, or another that is named with a remedy. Pure.

Not here: how a format is read (``churn.data.formats``).
"""

import re
import shutil
from pathlib import Path

import pyarrow as pa

from churn.errors import InputError, raised_as

PARQUET = b"PAR1"
SNIFFED_BYTES = 65_536
MAX_COLUMNS = 5_000
MANY_BYTES, MOST_PACKED = 64 << 20, 50  # money and ids pack a few times

_BOM = b"\xef\xbb\xbf"
_CODECS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_READ = "Parquet, CSV, JSON Lines or JSON is needed, perhaps packed by gzip or zstd"
_SAVE_AS_CSV = "save it as CSV UTF-8"
_EXPORT = "export it as Parquet or CSV"
_UNPACK = "unpack it, or pack it by gzip or zstd"

_OTHERS = (
    (b"PK\x03\x04", "an Excel workbook (.xlsx) or a ZIP archive", f"{_SAVE_AS_CSV}, or unpack it"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook (.xls)", _SAVE_AS_CSV),
    (b"PARE", "a Parquet file with an encrypted footer", "write it without encryption"),
    (b"ORC", "an ORC file of Hive or Spark", _EXPORT),
    (b"Obj\x01", "an Avro file of Kafka or BigQuery", _EXPORT),
    (b"ARROW1", "a Feather (Arrow) file", "write it by write_parquet"),
    (b"FEA1", "a Feather file of pandas or R", "write it by write_parquet"),
    (b"SQLite format 3", "a SQLite database", _EXPORT),
    (b"PGDMP", "a dump of pg_dump", "use COPY … TO with FORMAT csv, HEADER"),
    (b"PGCOPY\n\xff", "a binary file of PostgreSQL's COPY", "use COPY … TO with FORMAT csv, HEADER"),
    ((b"RDX", b"RDA"), "an .RData file of R", "write it by write.csv or arrow::write_parquet"),
    (b"X\n\0\0\0", "an .rds file of R", "write it by write.csv or arrow::write_parquet"),
    (b"\x89HDF", "an HDF5 file of pandas", "write it by to_parquet"),
    (b"\x93NUMPY", "a NumPy array", "write it by pandas' to_parquet"),
    ((b"\x80\x04\x95", b"\x80\x05\x95"), "a pickle of Python", "write it by to_parquet"),
    (b"$FL2", "a file of SPSS", _EXPORT),
    (b"<stata_dta>", "a file of Stata", _EXPORT),
    (b"\0" * 12 + b"\xc2\xea\x81\x60", "a data set of SAS", _EXPORT),
    (b"BZh", "packed by bzip2", _UNPACK),
    (b"\xfd7zXZ", "packed by xz", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\x04\x22\x4d\x18", "packed by lz4", _UNPACK),
    (b"\xff\x06\0\0sNaPpY", "packed by snappy", _UNPACK),
    (b"%PDF", "a PDF document", "export the rows as CSV"),
    (b"{\\rtf", "a rich text document", "save it as CSV UTF-8"),
)
_SQL = re.compile(rb"(--|/\*|INSERT INTO|CREATE TABLE|SET |COPY |BEGIN;|DROP TABLE|SELECT )", re.IGNORECASE)
_WIDE = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def sniff(head: bytes, name: str) -> str:
    """Return ``parquet``, ``json_array``, ``json_lines`` or ``csv``; raises ``InputError`` naming any other format."""
    text = head.removeprefix(_BOM).lstrip()
    if not text:
        raise InputError(f"{name} is empty; Parquet, CSV, JSON Lines or a JSON array of rows is needed")
    if head.startswith(PARQUET):
        return "parquet"
    if known := next((other for other in _OTHERS if head.startswith(other[0])), None):
        raise InputError(f"{name} is {known[1]} (first bytes {head[:4]!r}); {known[2]}")
    if encoding := _wide_encoding(head):
        origin = "which Excel writes as Unicode text and PowerShell by default"
        remedy = f"save it as CSV UTF-8, or use Out-File -Encoding utf8, or iconv -f {encoding} -t UTF-8"
        raise InputError(f"{name} is text in {encoding}, {origin}; {_READ}, in UTF-8: {remedy}")
    if b"\0" in head:
        raise InputError(f"{name} is binary and not Parquet (first bytes {head[:4]!r}); {_READ}")
    if text[:1] == b"<":
        hint = f"is it the error of a download, or an Excel sheet saved as a web page? {_READ}"
        raise InputError(f"{name} is a page of HTML or XML (it begins with {text[:20]!r}); {hint}")
    if _SQL.match(text):
        raise InputError(f"{name} is SQL, as pg_dump or mysqldump writes it (line 1: {text[:20]!r}); {_EXPORT}")
    return {b"[": "json_array", b"{": "json_lines"}.get(text[:1], "csv")


def _wide_encoding(head: bytes) -> str | None:
    if marked := next((encoding for mark, encoding in _WIDE.items() if head.startswith(mark)), None):
        return marked
    letters = head[: len(head) // 2 * 2][:1000]
    for start in (0, 1):  # every second byte of Latin letters is NUL
        if len(letters) >= 8 and not letters[start::2].strip(b"\0") and b"\0" not in letters[1 - start :: 2]:
            return "UTF-16"
    return None


def head_of(path: Path) -> bytes:
    """Return the first bytes of a file."""
    with path.open("rb") as file:
        return file.read(SNIFFED_BYTES)


def codec_of(head: bytes) -> str | None:
    """Return the codec that a file is packed by: ``gzip``, ``zstd`` or ``None``."""
    return next((codec for magic, codec in _CODECS.items() if head.startswith(magic)), None)


def unpacked(path: Path) -> Path:
    """Return the path of a file's content: of a file packed by gzip or zstd, a copy beside it.

    Raises ``InputError`` if it is cut off or damaged, or packs far more than rows of many accounts do.
    """
    if (codec := codec_of(head_of(path))) is None:
        return path
    copy, limit = path.parent / ".unpacked" / path.name, max(MANY_BYTES, MOST_PACKED * path.stat().st_size)
    copy.parent.mkdir(exist_ok=True)  # under its own name, which messages have
    problem = f"{path.name} is a truncated or damaged {codec} file"
    with raised_as(InputError, problem, OSError, pa.ArrowException, remedy="write it again"), copy.open("wb") as file:
        with pa.input_stream(str(path), compression=codec) as packed:
            while file.tell() <= limit and (chunk := packed.read(1 << 20)):
                file.write(chunk)
        size = file.tell()
    if size > limit:
        remedy = "which no extract of many accounts does; write it again"
        raise InputError(f"{path.name} packs more than {limit} bytes into {path.stat().st_size}, {remedy}")
    if again := codec_of(head_of(copy)):
        raise InputError(f"{path.name} is packed twice ({codec}, then {again}); pack it once")
    return copy


def pack(path: Path, codec: str) -> None:
    """Pack a file by a codec."""
    copy = path.with_name(f"{path.name}.packed")
    with path.open("rb") as file, pa.output_stream(str(copy), compression=codec) as packed:
        shutil.copyfileobj(file, packed)
    copy.replace(path)


def is_part(key: str) -> bool:
    """Return whether a file of a folder, by its path in it, has rows: writers put others beside them.

    >>> [is_part(key) for key in ("part-0.parquet", "_SUCCESS", "day=1/part-0.parquet", ".part-0.parquet.crc")]
    [True, False, True, False]
    """
    return not any(name.startswith(("_", ".")) and "=" not in name for name in key.split("/"))


def require_few_columns(path: Path, n_columns: int) -> None:
    """Reject a file that becomes a table of very many columns."""
    if n_columns > MAX_COLUMNS:
        hint = "is each row an object with the same few keys, or is the header cut into lines?"
        raise InputError(f"{path.name} has at least {n_columns} columns, and at most {MAX_COLUMNS} are read; {hint}")
