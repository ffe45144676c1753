"""At stake: a file as real tools write it is read, and one that cannot be is called what it is.

"Damaged" said of a whole file sends its owner to look for an error that is not there.
"""

# ruff: noqa: E501

# Inputs are tables.

import bz2
import gzip
import io
import json
import lzma
import pickle
import zipfile
from decimal import Decimal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather, orc

from churn.data.activity import check_activity
from churn.data.file_kinds import pack
from churn.data.formats import open_rows, read_frame
from churn.errors import InputError

ROWS = [
    {"account_id": 7, "activity_month": "2025-03-01", "brand_id": "OH", "total_deposit": 12.5, "total_ngr": -0.125},
    {"account_id": 8, "activity_month": "2025-03-01", "brand_id": "PA", "total_deposit": 1234.5, "total_ngr": 3.0},
]
HEADER = "account_id,activity_month,brand_id,total_deposit,total_ngr"
LINES = ("7,2025-03-01,OH,12.5,-0.125", "8,2025-03-01,PA,1234.5,3")
CSV = "\n".join([HEADER, *LINES, ""])
JSON_LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def table() -> pa.Table:
    return pa.Table.from_pylist(ROWS)


def parquet(of: pa.Table | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table() if of is None else of, buffer, **options)
    return buffer.getvalue()


def delta(encoding: str) -> bytes:
    options = {"use_dictionary": False, "data_page_version": "2.0"}
    return parquet(column_encoding={"brand_id": encoding, "activity_month": encoding}, **options)


def with_column(name: str, array: pa.Array) -> bytes:
    return parquet(table().set_column(table().column_names.index(name), name, array))


def zstd(content: bytes) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "zstd") as packed:
        packed.write(content)
    return buffer.getvalue().to_pybytes()


def german(separator: str) -> str:
    lines = [line.replace(",", "#").replace(".", ",").replace("#", separator) for line in LINES]
    return "\n".join([HEADER.replace(",", separator), *lines])


READ = {
    "Parquet with DELTA_BYTE_ARRAY, as Spark": delta("DELTA_BYTE_ARRAY"),
    "Parquet with DELTA_LENGTH_BYTE_ARRAY, as DuckDB": delta("DELTA_LENGTH_BYTE_ARRAY"),
    "Parquet of both": parquet(
        use_dictionary=["brand_id"], column_encoding={"activity_month": "DELTA_BYTE_ARRAY"}, row_group_size=1
    ),
    "Parquet with DELTA_BINARY_PACKED": parquet(use_dictionary=False, column_encoding={"account_id": "DELTA_BINARY_PACKED"}),
    "Parquet with BYTE_STREAM_SPLIT": parquet(use_dictionary=False, column_encoding={"total_ngr": "BYTE_STREAM_SPLIT"}),
    "Parquet v1 by gzip": parquet(version="1.0", compression="gzip"),
    "Parquet by brotli": parquet(compression="brotli"),
    "Parquet by lz4": parquet(compression="lz4"),
    "Parquet with decimal256": with_column("total_deposit", pa.array([Decimal("12.50"), Decimal("1234.5")], pa.decimal256(60, 2))),
    "Parquet with binary text": with_column("brand_id", pa.array([b"OH", b"PA"])),
    "Parquet with categories": with_column("brand_id", pa.array(["OH", "PA"]).dictionary_encode()),
    "Parquet with categories of pandas": parquet(pa.Table.from_pandas(table().to_pandas().astype({"brand_id": "category"}))),
    "Parquet with an index of pandas": parquet(pa.Table.from_pandas(table().to_pandas().set_index("account_id"), preserve_index=True)),
    "Parquet with a nested column": parquet(table().append_column("nested", pa.array([{"a": [1]}, {"a": []}]))),
    "Parquet in upper case, as Snowflake": parquet(table().rename_columns([name.upper() for name in HEADER.split(",")])),
    "Parquet packed once more": gzip.compress(parquet()),
    "CSV": CSV.encode(),
    "CSV in upper case, as Oracle": (HEADER.upper() + CSV[len(HEADER) :]).encode(),
    "CSV with names of a spreadsheet": CSV.replace("account_id", "Account ID").replace("brand_id", "Brand-Id").encode(),
    "CSV with names in camel case": CSV.replace("account_id", "accountId").replace("total_ngr", "totalNgr").encode(),
    "CSV with spaced and quoted names": CSV.replace("account_id", '" account_id "').encode(),
    "CSV with a byte order mark and line ends of Windows": CSV.replace("\n", "\r\n").encode("utf-8-sig"),
    "CSV all in quotes": "".join(f'"{line}"\n' for line in CSV.replace(",", '","').splitlines()).encode(),
    "CSV with semicolons": CSV.replace(",", ";").encode(),
    "CSV with semicolons and decimal commas": german(";").encode(),
    "CSV with sep=;": ("sep=;\n" + CSV.replace(",", ";")).encode(),
    "CSV with sep=, and line ends of Windows": ("sep=,\r\n" + CSV.replace("\n", "\r\n")).encode("utf-8-sig"),
    "text with tabs": CSV.replace(",", "\t").encode(),
    "text with tabs and decimal commas": german("\t").encode(),
    "text with bars, as Redshift": CSV.replace(",", "|").encode(),
    "CSV by gzip": gzip.compress(CSV.encode()),
    "CSV by gzip in two members": gzip.compress(CSV[:40].encode()) + gzip.compress(CSV[40:].encode()),
    "CSV by zstd": zstd(CSV.encode()),
    "JSON Lines": JSON_LINES.encode(),
    "JSON Lines by gzip": gzip.compress(JSON_LINES.encode()),
    "JSON Lines by zstd": zstd(JSON_LINES.encode()),
    "JSON Lines in upper case": JSON_LINES.replace("account_id", "ACCOUNT_ID").replace("brand_id", "BRAND_ID").encode(),
    "JSON Lines of BigQuery, integers as text": JSON_LINES.replace('_id": 7', '_id": "7"').replace('_id": 8', '_id": "8"').encode(),
    "JSON array": json.dumps(ROWS, indent=2).encode(),
    "JSON array by gzip": gzip.compress(json.dumps(ROWS).encode()),
}  # fmt: skip


def checked(path) -> list[dict[str, object]]:
    rows = check_activity(read_frame(path))
    assert rows.quarantined.is_empty(), rows.quarantined.to_dicts()
    found = rows.rows.with_columns(pl.col("activity_month").cast(pl.String))
    return found.select(HEADER.split(",")).to_dicts()


@pytest.mark.parametrize("kind", READ)
def test_files_of_real_tools_are_read_alike(kind, tmp_path):
    (tmp_path / "rows").write_bytes(READ[kind])

    assert checked(tmp_path / "rows") == ROWS
    rows = open_rows(tmp_path / "rows")
    assert rows.n_rows == 2
    chunks = list(rows.chunks(["total_ngr", "brand_id"], 1))
    assert [chunk.columns for chunk in chunks] == [["total_ngr", "brand_id"]] * 2


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("xl/workbook.xml", "<workbook/>")
    return buffer.getvalue()


def arrow_file(write) -> bytes:
    buffer = io.BytesIO()
    write(table(), buffer)
    return buffer.getvalue()


REFUSED = {
    "UTF-16 of Excel": (CSV.encode("utf-16"), "is text in UTF-16, which Excel"),
    "UTF-16 without a mark": (CSV.encode("utf-16-le"), "is text in UTF-16.*save it as CSV UTF-8"),
    "UTF-16, the other way": (CSV.encode("utf-16-be"), "is text in UTF-16"),
    "UTF-32": (CSV.encode("utf-32"), "is text in UTF-32"),
    "Windows-1252": (CSV.replace("OH", "é").encode("cp1252"), "line 2 has the byte 0xe9, which is no UTF-8"),
    "a title": (f"Players of March\n\n{CSV}".encode(), "begins with a title, 'Players of March'.*header is on line 3"),
    "a title, packed": (gzip.compress(f"Players\n{CSV}".encode()), "^rows begins with a title, 'Players'"),
    "a title with empty fields": (f"Report,,,,\n{CSV}".encode(), "begins with a title.*header is on line 2"),
    "a title before semicolons": (f"Report\n{CSV.replace(',', ';')}".encode(), "header is on line 2"),
    "no header": (CSV.partition("\n")[2].encode(), "has no header: of the 5 fields of line 1, 4 are numbers or dates"),
    "no header, by bars": (CSV.partition("\n")[2].replace(",", "|").encode(), "has no header.*export it with HEADER"),
    "Excel": (archive(), r"is an Excel workbook \(.xlsx\).*save it as CSV UTF-8"),
    "old Excel": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 99, r"is an Excel workbook \(.xls\)"),
    "Excel saved as a web page": (b"\xef\xbb\xbf<html><table></table></html>", "is a page of HTML or XML"),
    "the error of S3": (b'<?xml version="1.0"?><Error/>', "is it the error of a download"),
    "ORC": (arrow_file(orc.write_table), "is an ORC file.*export it as Parquet or CSV"),
    "Feather": (arrow_file(feather.write_feather), "is a Feather"),
    "Avro": (b"Obj\x01\x04\x14avro.codec", "is an Avro file"),
    "pickle": (pickle.dumps(ROWS), "is a pickle of Python"),
    "NumPy": (b"\x93NUMPY\x01\0v\0{}", "is a NumPy array"),
    "R": (gzip.compress(b"RDX3\nX\n\0\0"), r"is an .RData file of R"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 20, "is an HDF5 file"),
    "SQLite": (b"SQLite format 3\0" + b"\0" * 99, "is a SQLite database"),
    "pg_dump": (b"--\n-- PostgreSQL database dump\n--\nSET a = 0;\n", "is SQL, as pg_dump or mysqldump writes it"),
    "pg_dump -Fc": (b"PGDMP\x01\x0e\0", "is a dump of pg_dump"),
    "COPY in binary": (b"PGCOPY\n\xff\r\n\0" + b"\0" * 8, "is a binary file of PostgreSQL's COPY"),
    "INSERT": (b"INSERT INTO players VALUES (1, 2);\n", "is SQL"),
    "bzip2": (bz2.compress(CSV.encode()), "is packed by bzip2.*gzip or zstd"),
    "xz": (lzma.compress(CSV.encode()), "is packed by xz"),
    "gzip cut off": (gzip.compress(CSV.encode())[:-9], "is a truncated or damaged gzip file"),
    "zstd cut off": (zstd(CSV.encode())[:-9], "is a truncated or damaged zstd file"),
    "gzip twice": (gzip.compress(gzip.compress(CSV.encode())), "is packed twice"),
    "a gzip bomb": (gzip.compress(b"0" * (80 << 20)), "packs more than"),
    "Parquet encrypted": (b"PARE" + b"\0" * 20 + b"PARE", "is a Parquet file with an encrypted footer"),
    "PDF": (b"%PDF-1.7\n", "is a PDF document"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_files_that_cannot_be_read_are_called_what_they_are(kind, tmp_path):
    content, message = REFUSED[kind]
    (tmp_path / "rows").write_bytes(content)
    with pytest.raises(InputError, match=message) as refused:
        read_frame(tmp_path / "rows")
    assert "damaged" not in str(refused.value) or "cut off" in kind
    assert "1234.5" not in str(refused.value)  # of a person's row


def test_an_instant_of_a_zone_that_does_not_exist_is_named(tmp_path):
    array = pa.array(np.array(["2025-03-01", "2025-03-01"], "datetime64[us]")).cast(pa.timestamp("us", "Foo/Bar"))
    (tmp_path / "rows").write_bytes(with_column("activity_month", array))
    with pytest.raises(InputError, match="'activity_month' has instants of the time zone 'Foo/Bar'"):
        read_frame(tmp_path / "rows")


def test_delta_encoded_text_after_dictionary_pages_is_read_once(tmp_path):
    texts = [f"level {i}" for i in range(30_000)]
    frame = pa.table({"account_id": range(30_000), "brand_id": texts})
    options = {"use_dictionary": ["brand_id"], "data_page_version": "2.0", "dictionary_pagesize_limit": 50_000}
    (tmp_path / "rows").write_bytes(parquet(frame, row_group_size=9_000, **options))

    assert read_frame(tmp_path / "rows")["brand_id"].to_list() == texts


def test_a_long_text_is_not_decoded_as_often_as_it_occurs(tmp_path):
    long = pa.table({"brand_id": ["x" * 900_000] * 100})
    content = parquet(long, use_dictionary=False, column_encoding={"brand_id": "DELTA_BYTE_ARRAY"}, compression="zstd")
    assert len(content) < 1 << 20
    (tmp_path / "rows").write_bytes(content)
    with pytest.raises(InputError, match="a text of 900000 bytes"):
        read_frame(tmp_path / "rows")


def test_a_folder_of_parts_is_one_file(tmp_path):
    folder = tmp_path / "activity.parquet"
    folder.mkdir()
    lines = CSV.splitlines(keepends=True)
    (folder / "part-0.csv").write_text(lines[0] + lines[1])
    (folder / "part-1.csv").write_text(lines[0])  # Spark writes empty parts
    (folder / "part-2.json").write_bytes(b"")
    (folder / "part-3.jsonl").write_text(json.dumps(ROWS[1]) + "\n")
    pack(folder / "part-3.jsonl", "gzip")
    for other in ("_SUCCESS", ".part-0.csv.crc", "_committed_1"):
        (folder / other).write_bytes(b"x")

    assert checked(folder) == ROWS
    assert open_rows(folder).n_rows == 2


def test_the_values_of_hives_folders_are_a_column(tmp_path):
    for row in ROWS:
        folder = tmp_path / "a" / f"ACTIVITY_MONTH={row['activity_month']}" / f"brand_id={row['brand_id']}%20"
        folder.mkdir(parents=True)
        rest = {name: value for name, value in row.items() if name not in ("activity_month", "brand_id")}
        (folder / "part-0.parquet").write_bytes(parquet(pa.Table.from_pylist([rest])))

    assert checked(tmp_path / "a") == ROWS


def test_parts_of_different_columns_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "part-0.csv").write_text("account_id,x\n1,2\n")
    (tmp_path / "a" / "part-1.csv").write_text("account_id,y\n1,2\n")
    with pytest.raises(InputError, match="parts of a have different columns: x, y"):
        open_rows(tmp_path / "a")
