"""Files of rows to score, and what is right of one that is taken: the scores that plain Python gives it."""

# ruff: noqa: E501

# Inputs are tables.

import gzip
import io
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from churn.data.features import Encoding, pack_matrix
from churn.data.scoring_rows import prepare
from churn.errors import QuarantineError
from churn.inference.engine import Engine, build_engine
from tests.support.hostile import corpus, oracle
from tests.support.hostile.boosters import bundle
from tests.support.hostile.harness import QUARANTINED, SAME, Family, WrongResultError, require, require_clear

AS_OF = date(2026, 10, 31)


@cache
def engine_for(encoding: Encoding) -> Engine:
    return build_engine(
        bundle(), encoding, pack_matrix(corpus.sample_matrix(), encoding), n_rows=100, with_reasons=False
    )


def judge_rows(payload: object, folder: Path) -> str:
    """Score a file of rows as the weekly job does, and compare with what plain Python reads in it."""
    assert isinstance(payload, bytes)
    path = folder / "rows.dat"
    path.write_bytes(payload)
    try:
        rows = prepare(path, corpus.feature_names(), AS_OF, 1.0, "rows.dat")
        scored: dict[int, float] = {}
        for ids, packed in rows.chunks():
            scores, _ = engine_for(rows.encoding).score(packed)
            require(not scored.keys() & set(ids.tolist()), "an account has two scores")
            scored |= dict(zip(ids.tolist(), scores.tolist(), strict=True))
    except QuarantineError as error:
        require_clear(str(error))
        return QUARANTINED
    finally:
        path.unlink()
    expected = _expected(payload)
    require(scored.keys() == expected.keys(), f"accounts {sorted(scored.keys() ^ expected.keys())[:5]} differ")
    gap = max(abs(scored[account] - expected[account]) for account in scored)
    require(gap <= 1e-5, f"scores differ by {gap:.3g}")
    return QUARANTINED if rows.counts.quarantined.height else SAME


def _expected(payload: bytes) -> dict[int, float]:
    try:
        rows = oracle.parse_rows(payload, corpus.feature_names())
    except oracle.UnreadableError as error:
        if not payload.startswith(b"PAR1"):
            raise WrongResultError(f"rows were scored that plain Python cannot read: {error}") from error
        # Arrow compares what Parquet says twice. Who does not must have read what was there before the damage.
        rows = oracle.parse_rows(SEEDS["delta Parquet"](), corpus.feature_names())
    columns = {name for row in rows for name in row}
    if {"account_id", "activity_month"} <= columns:
        matrix = oracle.activity_matrix(rows, corpus.feature_names(), AS_OF)
    else:
        matrix = oracle.encoded_matrix(rows, corpus.feature_names())
    if not matrix:
        return {}
    scores = bundle().predict(np.array(list(matrix.values()), dtype=np.float32))
    return dict(zip(matrix, scores.tolist(), strict=True))


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pl.from_dicts(list(rows)).write_csv(buffer)
    return buffer.getvalue()


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    frame = pl.from_dicts(list(rows))
    dates = [name for name in oracle.DATES if name in frame.columns]
    return frame.with_columns(pl.col(dates).str.to_date()).to_arrow() if dates else frame.to_arrow()


def _parquet(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def _delta(table: pa.Table) -> bytes:
    """Write Parquet as DuckDB and Spark do, with texts that are encoded by what differs from the text before."""
    texts = [field.name for field in table.schema if pa.types.is_large_string(field.type)]
    encodings = {name: ("DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY")[i % 2] for i, name in enumerate(texts)}
    options = {"use_dictionary": False, "data_page_version": "2.0", "compression": "none"}
    return _parquet(table, column_encoding=encodings, row_group_size=7, **options)


SEEDS: Mapping[str, Callable[[], bytes]] = {
    "lines": cache(lambda: _lines(corpus.activity_rows())),
    "array": cache(lambda: json.dumps(corpus.activity_rows()).encode()),
    "CSV": cache(lambda: _csv(corpus.activity_rows())),
    "Parquet": cache(lambda: _parquet(_table(corpus.activity_rows()), compression="none")),
    "delta Parquet": cache(lambda: _delta(_table(corpus.activity_rows()))),
    "semicolons": cache(lambda: b"sep=;\n" + _csv(corpus.activity_rows()).replace(b",", b";")),
    "packed CSV": cache(lambda: _csv(corpus.activity_rows())),
    "packed lines": cache(lambda: _lines(corpus.activity_rows())),
    "encoded lines": cache(lambda: _lines(corpus.encoded_rows())),
    "encoded array": cache(lambda: json.dumps(corpus.encoded_rows()).encode()),
    "encoded arrays": cache(lambda: json.dumps([list(row.values())[1:] for row in corpus.encoded_rows()]).encode()),
    "encoded CSV": cache(lambda: _csv(corpus.encoded_rows())),
    "encoded Parquet": cache(lambda: _parquet(_table(corpus.encoded_rows()), compression="zstd")),
}


def _with(column: str, values: Any) -> Callable[[], bytes]:
    """Make a Parquet file of the seed's rows with one column of another kind."""

    def make() -> bytes:
        table = _table(corpus.activity_rows())
        array = values(table[column].combine_chunks()) if callable(values) else pa.array([values] * table.num_rows)
        return _parquet(table.set_column(table.column_names.index(column), column, array))

    return make


def _cast(to: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    return lambda array: array.cast(to, safe=False)


def _bomb(column: str, value: Any, n_rows: int, n_groups: int, **options: Any) -> Callable[[], bytes]:
    """Make a small Parquet file of very many equal rows."""

    def make() -> bytes:
        row = _table(corpus.activity_rows()).slice(0, 1)
        row = row.set_column(row.column_names.index(column), column, pa.array([value]).dictionary_encode())
        block = row.take(pa.array(np.zeros(n_rows, np.int64)))
        buffer = io.BytesIO()
        with pq.ParquetWriter(buffer, block.schema, compression="zstd", **options) as writer:
            for _ in range(n_groups):
                writer.write_table(block)
        return buffer.getvalue()

    return make


PARQUETS: Mapping[str, Callable[[], bytes]] = {
    "months with a zone": _with(
        "activity_month", lambda a: a.cast(pa.timestamp("us")).cast(pa.timestamp("us", "Asia/Tokyo"))
    ),
    "months in nanoseconds": _with("activity_month", _cast(pa.timestamp("ns"))),
    "months in seconds": _with("activity_month", _cast(pa.timestamp("s"))),
    "months as date64": _with("activity_month", _cast(pa.date64())),
    "months as numbers": _with("activity_month", lambda a: a.cast(pa.int32())),
    "months beyond any calendar": _with(
        "activity_month", lambda a: pa.array([2**31 - 1] * len(a), pa.int32()).cast(pa.date32())
    ),
    "months as text": _with("activity_month", _cast(pa.string())),
    "months as large text": _with("activity_month", _cast(pa.large_string())),
    "months as times": _with("activity_month", lambda a: pa.array([1] * len(a), pa.time64("us"))),
    "months as durations": _with("activity_month", lambda a: pa.array([1] * len(a), pa.duration("us"))),
    "ids as decimals": _with("account_id", _cast(pa.decimal128(38, 4))),
    "ids as large decimals": _with("account_id", lambda a: a.cast(pa.decimal256(76, 4))),
    "ids as text": _with("account_id", _cast(pa.string())),
    "ids as floats": _with("account_id", _cast(pa.float64())),
    "ids as single floats": _with("account_id", _cast(pa.float32())),
    "ids as half floats": _with("account_id", lambda a: pa.array([np.float16(1)] * len(a))),
    "ids beyond int64": _with("account_id", lambda a: pa.array([2**64 - 1] * len(a), pa.uint64())),
    "ids as bytes": _with("account_id", lambda a: a.cast(pa.string()).cast(pa.binary())),
    "ids as lists": _with("account_id", lambda a: pa.array([[1]] * len(a))),
    "ids as structs": _with("account_id", lambda a: pa.array([{"a": 1}] * len(a))),
    "ids as maps": _with("account_id", lambda a: pa.array([[("a", 1)]] * len(a), pa.map_(pa.string(), pa.int64()))),
    "ids all missing": _with("account_id", lambda a: pa.nulls(len(a))),
    "money as decimals": _with("total_deposit", _cast(pa.decimal128(20, 2))),
    "money as text": _with("total_deposit", _cast(pa.string())),
    "money as half floats": _with("total_deposit", lambda a: pa.array(np.array(a, dtype=np.float16))),
    "money not finite": _with("total_deposit", lambda a: pa.array([math.nan, math.inf, -math.inf, *np.array(a)[3:]])),
    "money as booleans": _with("total_deposit", lambda a: pa.array([True] * len(a))),
    "money as lists": _with("total_deposit", lambda a: pa.array([[1.0]] * len(a))),
    "levels as categories": _with("brand_id", lambda a: a.dictionary_encode()),
    "levels as numbered categories": _with("brand_id", lambda a: pa.array(range(len(a))).dictionary_encode()),
    "levels as bytes": _with("brand_id", _cast(pa.binary())),
    "levels as bytes that are no text": _with("brand_id", lambda a: pa.array([b"\xff\xfe"] * len(a))),
    "levels as text that is no text": _with(
        "brand_id",
        lambda a: pa.StringArray.from_buffers(
            len(a), pa.array([b"\xff"] * len(a)).buffers()[1], pa.array([b"\xff"] * len(a)).buffers()[2]
        ),
    ),
    "levels as numbers": _with("brand_id", lambda a: pa.array(range(len(a)))),
    "levels as lists": _with("brand_id", lambda a: pa.array([["OH"]] * len(a))),
    "levels with NULs": _with("brand_id", lambda a: pa.array(["OH\0"] * len(a))),
    "levels of 1 MB": _with("brand_id", lambda a: pa.array(["A" * corpus.MB] * len(a))),
    "int96": lambda: _parquet(_table(corpus.activity_rows()), use_deprecated_int96_timestamps=True),
    "months as int96": lambda: _parquet(_months_in_ns(), use_deprecated_int96_timestamps=True),
    "no rows": lambda: _parquet(_table(corpus.activity_rows()).slice(0, 0)),
    "no columns": lambda: _parquet(pa.table({})),
    "columns twice": lambda: _parquet(
        _table(corpus.activity_rows()).append_column("account_id", pa.array([1] * len(corpus.activity_rows())))
    ),
    "20,000 columns": lambda: _parquet(pa.table({f"c{i}": [1] for i in range(20_000)})),
    "names with escapes": lambda: _parquet(pa.table({"\x1b[31m\r\nDROP\u202e": [1]})),
    "an empty name": lambda: _parquet(pa.table({"": [1]})),
    "a table nested 60 deep": lambda: _parquet(pa.table({"a": pa.array([_nested(60)])})),
    "10,000,000 equal rows": _bomb("brand_id", "OH", corpus.MILLION, 10),
    "a text of 80 MB in 200 rows": _bomb("brand_id", "A" * (80 * corpus.MB), 200, 1, dictionary_pagesize_limit=1 << 30),
    "a text of 1 MB in 40,000 rows": _bomb("brand_id", "A" * corpus.MB, 1000, 40, dictionary_pagesize_limit=1 << 30),
    "a text of 1 KB plain in 100,000 rows": _bomb("brand_id", "A" * 1000, 100_000, 1, use_dictionary=False),
}


def _months_in_ns() -> pa.Table:
    table = _table(corpus.activity_rows())
    return (
        table.set_column(0, table.column_names[0], table.column(0).cast(pa.timestamp("ns")))
        if table.column_names[0] == "activity_month"
        else table
    )


def _nested(depth: int) -> Any:
    return {"a": _nested(depth - 1)} if depth else 1


LINES: Mapping[str, Callable[[], bytes]] = {
    "100,000 different keys": lambda: b"".join(b'{"k%d":1}\n' % i for i in range(100_000)),
    "100,000 keys in a row": lambda: b"{" + b",".join(b'"k%d":1' % i for i in range(100_000)) + b"}\n",
    "different keys late": lambda: SEEDS["lines"]() * 5 + b"".join(b'{"k%d":1}\n' % i for i in range(30_000)),
    "1,000 keys over 300,000 rows": lambda: b"".join(b'{"k%d":1}\n' % (i % 1000) for i in range(300_000)),
    "keys twice": lambda: SEEDS["lines"]().replace(b'"total_deposit"', b'"account_id": 1, "total_deposit"'),
    "keys twice, encoded": lambda: SEEDS["encoded lines"]().replace(b'"total_ngr"', b'"total_deposit": 1, "total_ngr"'),
    "keys of control characters": lambda: b'{"\\u001b[31m\\n":1,"\\u202e":2}\n',
    "2,000,000 empty objects": lambda: b"{}\n" * (2 * corpus.MILLION),
    "text in a column of numbers, late": lambda: SEEDS["lines"]() * 400 + SEEDS["lines"]().replace(b'"total_deposit": ', b'"total_deposit": "x", "x": '),
    "a key that comes late": lambda: SEEDS["lines"]() * 400 + SEEDS["lines"]().replace(b'"tracker_id"', b'"late": 1, "tracker_id"'),
}  # fmt: skip
CSVS: Mapping[str, Callable[[], bytes]] = {
    "1,000,000 columns": lambda: b",".join(b"c%d" % i for i in range(corpus.MILLION)) + b"\n" + b"1," * (corpus.MILLION - 1) + b"1\n",
    "1,000,000 columns of no name": lambda: b"," * corpus.MILLION + b"\n" + b"," * corpus.MILLION + b"\n",
    "20,000 columns, 5,000 short rows": lambda: b",".join(b"c%d" % i for i in range(20_000)) + b"\n" + b"1\n" * 5000,
    "one field of 50 MB": lambda: SEEDS["CSV"]() + b'"' + b"x" * (50 * corpus.MB) + b'"\n',
    "a quote that never ends": lambda: SEEDS["CSV"]() + b'"' + b"x\n" * corpus.MB,
    "names twice": lambda: SEEDS["CSV"]().replace(b"tracker_id", b"account_id", 1),
    "rows cut short": lambda: b"\n".join(line.rpartition(b",")[0] if i % 3 == 2 else line for i, line in enumerate(SEEDS["CSV"]().split(b"\n"))),
    "encoded rows cut short": lambda: b"\n".join(line.rpartition(b",")[0] if i % 3 == 2 else line for i, line in enumerate(SEEDS["encoded CSV"]().split(b"\n"))),
    "rows too long": lambda: SEEDS["CSV"]().replace(b"\n", b",1\n").replace(b",1\n", b"\n", 1),
    "semicolons": lambda: SEEDS["CSV"]().replace(b",", b";"),
    "tabs": lambda: SEEDS["CSV"]().replace(b",", b"\t"),
    "carriage returns": lambda: SEEDS["CSV"]().replace(b"\n", b"\r"),
    "carriage returns and line feeds": lambda: SEEDS["CSV"]().replace(b"\n", b"\r\n"),
    "all in quotes": lambda: b"\n".join(b",".join(b'"' + field + b'"' for field in line.split(b",")) for line in SEEDS["CSV"]().splitlines()) + b"\n",
    "no header": lambda: SEEDS["CSV"]().partition(b"\n")[2],
    "names of control characters": lambda: b"\x1b[31mred\x07,b\n1,2\n",
    "formulas": lambda: SEEDS["CSV"]().replace(b"BETTING", b"=cmd|' /C calc'!A0"),
}  # fmt: skip
PACKED: Mapping[str, Callable[[], bytes]] = {
    "a zstd bomb": lambda: _zstd(b"0" * (64 * corpus.MB)),
    "a gzip bomb of rows": lambda: gzip.compress(SEEDS["lines"]() * 20_000),
    "a zstd bomb of rows": lambda: _zstd(SEEDS["CSV"]() * 60_000),
    "gzip twice": lambda: gzip.compress(gzip.compress(SEEDS["CSV"]())),
    "gzip in zstd": lambda: _zstd(gzip.compress(SEEDS["CSV"]())),
    "Parquet by gzip": lambda: gzip.compress(SEEDS["Parquet"]()),
    "delta-encoded Parquet by zstd": lambda: _zstd(SEEDS["delta Parquet"]()),
    "a bomb of Parquet by gzip": lambda: gzip.compress(PARQUETS["10,000,000 equal rows"]()),
    "gzip and garbage": lambda: gzip.compress(SEEDS["CSV"]()) + b"garbage",
    "gzip and zeros": lambda: gzip.compress(SEEDS["CSV"]()) + bytes(512),
    "gzip of another length": lambda: gzip.compress(SEEDS["CSV"]())[:-4] + b"\xff\xff\xff\x7f",
    "gzip of another checksum": lambda: gzip.compress(SEEDS["CSV"]())[:-8] + bytes(4) + gzip.compress(SEEDS["CSV"]())[-4:],
    "gzip of nothing": lambda: gzip.compress(b""),
    "gzip's magic alone": lambda: b"\x1f\x8b",
    "zstd's magic alone": lambda: b"\x28\xb5\x2f\xfd",
    "a zstd frame that claims 16 EB": lambda: b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8 + b"\x01\x00\x00",
    "a zstd frame with a window of 4 TB": lambda: b"\x28\xb5\x2f\xfd\x00\xf8" + b"\x01\x00\x00",
    "a zstd frame to skip": lambda: b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + _zstd(SEEDS["CSV"]()),
    "gzip of bzip2's magic": lambda: gzip.compress(b"BZh91AY&SY"),
}  # fmt: skip
CSV_TOKENS = [token.strip('"') for token in [*corpus.NUMBERS, *corpus.DATES]] + ['"', '""', '"a\nb"', "\0", "a,b", " "]


def mutate_json(seed: Callable[[], bytes]) -> Callable[[random.Random], bytes]:
    def mutate(chance: random.Random) -> bytes:
        kind = chance.randrange(10)
        if kind < 3:
            return corpus.damage(seed(), chance)
        if kind < 4:
            return corpus.encode_otherwise(seed(), chance)
        tokens = corpus.DATES if kind < 6 else corpus.NUMBERS
        return corpus.swap_tokens(seed(), tokens, chance)

    return mutate


def mutate_csv(seed: Callable[[], bytes]) -> Callable[[random.Random], bytes]:
    def mutate(chance: random.Random) -> bytes:
        kind = chance.randrange(10)
        if kind < 4:
            return corpus.damage(seed(), chance)
        if kind < 5:
            return corpus.encode_otherwise(seed(), chance)
        separator = ";" if seed().startswith(b"sep=") else ","
        lines = [line.split(separator) for line in seed().decode().splitlines()]
        for _ in range(chance.choice((1, 1, 3))):
            fields = chance.choice(lines)
            fields[chance.randrange(len(fields))] = chance.choice(CSV_TOKENS)
        return "\n".join(map(separator.join, lines)).encode("utf-8", "surrogatepass")

    return mutate


def mutate_parquet(seed: Callable[[], bytes]) -> Callable[[random.Random], bytes]:
    def mutate(chance: random.Random) -> bytes:
        data = bytearray(seed())
        if chance.randrange(3) == 0:
            return corpus.damage(bytes(data), chance)
        footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")  # where the metadata is
        for _ in range(chance.choice((1, 2, 4))):
            at = chance.randrange(footer, len(data)) if chance.randrange(2) else chance.randrange(len(data))
            data[at] = chance.choice((data[at] ^ (1 << chance.randrange(8)), chance.randrange(256)))
        return bytes(data)

    return mutate


def mutate_packed(mutate: Any) -> Any:
    """Damage rows and pack them, or pack rows and damage what comes of it."""

    def of(seed: Callable[[], bytes]) -> Callable[[random.Random], bytes]:
        def packed(chance: random.Random) -> bytes:
            inside = chance.randrange(2)
            content = (mutate(seed)(chance) if inside else seed()) or b" "
            parts = (
                [content[: len(content) // 2], content[len(content) // 2 :]] if chance.randrange(3) == 0 else [content]
            )
            data = b"".join(map(chance.choice((gzip.compress, _zstd)), parts))
            return data if inside else corpus.damage(data, chance)

        return packed

    return of


def _zstd(content: bytes) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "zstd") as stream:
        stream.write(content)
    return buffer.getvalue().to_pybytes()


def _rows(name: str, crafted: Mapping[str, Callable[[], bytes]], mutate: Any, n_full: int) -> Family:
    return Family(name, dict(crafted), mutate(SEEDS[name]), judge_rows, n_full)


ROWS = {
    family.name: family
    for family in (
        _rows("lines", corpus.GARBAGE | LINES, mutate_json, 900),
        _rows("array", {}, mutate_json, 600),
        _rows("CSV", CSVS, mutate_csv, 800),
        _rows("Parquet", PARQUETS, mutate_parquet, 1300),
        _rows("delta Parquet", {}, mutate_parquet, 400),
        _rows("semicolons", {}, mutate_csv, 200),
        _rows("packed CSV", PACKED, mutate_packed(mutate_csv), 200),
        _rows("packed lines", {}, mutate_packed(mutate_json), 200),
        _rows("encoded lines", {}, mutate_json, 400),
        _rows("encoded array", {}, mutate_json, 300),
        _rows("encoded arrays", {}, mutate_json, 200),
        _rows("encoded CSV", {}, mutate_csv, 300),
        _rows("encoded Parquet", {}, mutate_parquet, 500),
    )
}
