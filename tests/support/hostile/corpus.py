"""Bad inputs: valid files to start from, ways to damage them, and bombs and look-alikes made by hand. All seeded."""

# ruff: noqa: E501, RUF001

# Inputs are tables, and letters that look like others are what some of them are for.

import gzip
import io
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import xgboost as xgb

from tests.support.hostile.harness import ROOT

MARKER = ROOT / ".churn-hostile-marker"
"""A file that appears only when code out of an input was run."""

N_ROWS = 24
MB = 1 << 20
MILLION = 1_000_000

NUMBERS = [
    "1e999", "-1e999", "NaN", "Infinity", "-Infinity", "1e308", "1e39", "-0", "-0.0", "1e-400", "0x10", "1_000", "+1",
    "01", "1.", ".5", "9" * 400, "9223372036854775807", "9223372036854775808", "-9223372036854775809", "2147483648",
    "18446744073709551616", "9007199254740993", "1e8", "100000000.1", "-1", "-2", "4294967295", "null", "true",
    "false", '""', '"x"', '" 1 "', '"1e5"', '"１２"', '"1,5"', "[]", "{}", "[[[]]]", '{"a":1}', '"\\u0000"',
    '"\\ud800"', '"\\u2028"', '"nan"', '"inf"', '"True"',
]  # fmt: skip
DATES = [
    '"2025-02-30"', '"0000-00-00"', '"9999-12-31"', '"2025-13-01"', '"2025-2-1"', '"20250201"', '"2025-02-01T00:00:00"',
    '"2025-02-01 00:00:00+00:00"', '"2025-02-01T23:00:00"', '"2025-02-01Z"', '"-2025-02-01"', '"+2025-02-01"',
    '"02/01/2025"', '"2025-W05-6"', "1738368000", "20250201", '"２０２５-02-01"', '" 2025-02-01"', '"2025-02-01\\u0000"',
    '"1e4-02-01"', '"262143-01-01"', '"1969-12-01"', '"2200-01-01"', '"1990-01-01"',
]  # fmt: skip


class Malicious:
    """Pickled, it runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {MARKER}",)


def deep(start: str, end: str, depth: int = 100_000) -> bytes:
    return (start * depth + "1" + end * depth).encode()


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.csv", b"0" * (64 * MB))
    return buffer.getvalue()


LOADER = f"""flavors:
  python_function:
    loader_module: os
    data: system
    env: "touch {MARKER}"
"""

GARBAGE: Mapping[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "spaces": lambda: b" \n\t\r\n" * 1000,
    "NULs": lambda: b"\0" * 100_000,
    "a byte order mark alone": lambda: b"\xef\xbb\xbf",
    "every byte": lambda: bytes(range(256)) * 20,
    "pickle": lambda: pickle.dumps(Malicious()),
    "pickle, protocol 0": lambda: pickle.dumps(Malicious(), protocol=0),
    "MLmodel with a loader": LOADER.encode,
    "gzip bomb": lambda: gzip.compress(b"0" * (64 * MB)),
    "zip bomb": _zip,
    "arrays nested 100,000 deep": lambda: deep("[", "]"),
    "objects nested 100,000 deep": lambda: deep('{"a":', "}"),
    "arrays nested 900 deep": lambda: deep("[", "]", 900),
    "an unclosed array 1,000,000 deep": lambda: b"[" * MB,
    "1,000,000 empty objects": lambda: b"[" + b"{}," * MB + b"{}]",
    "5,000,000 zeros": lambda: b"[" + b"0," * (5 * MB) + b"0]",
    "a number of 1,000,000 digits": lambda: b'[{"a":' + b"9" * MB + b"}]",
    "a string of 50 MB": lambda: b'["' + b"a" * (50 * MB) + b'"]',
    "a line of 50 MB": lambda: b"a" * (50 * MB),
    "lone surrogates": lambda: b'{"\\ud800":"\\udfff"}',
    "raw surrogates": lambda: b'{"\xed\xa0\x80":1}',
    "UTF-16": lambda: '[{"account_id":1}]'.encode("utf-16"),
    "UTF-32": lambda: '[{"account_id":1}]'.encode("utf-32"),
    "Latin-1": lambda: '[{"é":1}]'.encode("latin-1"),
    "HTML": lambda: b"<html><body>403 Forbidden</body></html>",
    "XML of S3": lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "terminal escapes": lambda: b"\x1b[2J\x1b]0;owned\x07,\x1b[31mred\n1,2\n",
    "terminal escapes in JSON": lambda: b'{"\\u001b[2J\\u001b]0;owned\\u0007":"\\u202e\\u2028\\r\\n"}',
    "ELF": lambda: b"\x7fELF\x02\x01\x01" + b"\0" * 400,
    "PNG": lambda: b"\x89PNG\r\n\x1a\n" + b"\0" * 400,
    "SQLite": lambda: b"SQLite format 3\0" + b"\0" * 4000,
    "Arrow": lambda: b"ARROW1\0\0" + b"\xff" * 400,
    "Parquet's magic alone": lambda: b"PAR1",
    "Parquet's magic twice": lambda: b"PAR1PAR1",
    "Parquet with a footer of 4 GB": lambda: b"PAR1" + b"\0" * 20 + b"\xff\xff\xff\xff" + b"PAR1",
    "Parquet encrypted": lambda: b"PARE" + b"\0" * 20 + b"\x08\0\0\0PARE",
    "NumPy": lambda: b"\x93NUMPY\x01\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }" + b" " * 40,
}


def damage(content: bytes, chance: random.Random) -> bytes:
    """Flip bits, set bytes, cut off, cut out, double, splice."""
    data = bytearray(content)
    kind = chance.randrange(8)
    at = chance.randrange(len(data)) if data else 0
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        return bytes(data[at:])
    if kind == 2:
        del data[at : at + chance.randint(1, 40)]
    elif kind == 3:
        data[at:at] = data[at : at + chance.randint(1, 200)]
    elif kind == 4:
        other = chance.randrange(len(data))
        data[at : at + 16] = data[other : other + 16]
    elif kind == 5:
        data[at:at] = chance.randbytes(chance.randint(1, 8))
    else:
        for _ in range(chance.choice((1, 1, 2, 8))):
            data[chance.randrange(len(data))] = chance.choice((0, 0xFF, 0x7F, 0x80, chance.randrange(256)))
    return bytes(data)


def swap_tokens(content: bytes, tokens: Sequence[str], chance: random.Random) -> bytes:
    """Put hostile values in place of some values of a JSON text."""
    text = content.decode()
    for _ in range(chance.choice((1, 1, 2, 5))):
        colons = [i for i, character in enumerate(text) if character == ":" and text[i - 1] == '"']
        if not colons:
            break
        start = chance.choice(colons) + 1
        end = min((i for mark in ",}" if (i := text.find(mark, start)) > 0), default=start)
        text = text[:start] + chance.choice(tokens) + text[end:]
    return text.encode("utf-8", "surrogatepass")


def encode_otherwise(content: bytes, chance: random.Random) -> bytes:
    text = content.decode()
    how = chance.randrange(6)
    if how == 0:
        return text.encode(chance.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig")))
    if how == 1:
        return text.replace("\n", chance.choice(("\r\n", "\r", "\n\n", "\u2028", "\0\n"))).encode()
    if how == 2:
        return text.replace(",", chance.choice((";", "\t", ",,", ", ")), chance.choice((1, 5, -1))).encode()
    if how == 3:
        return text.replace('"', chance.choice(("'", '""', "")), chance.choice((1, 3, -1))).encode()
    if how == 4:
        return text.replace("{", '{"account_id":1,', chance.choice((1, 2, -1))).encode()
    lines = text.splitlines(keepends=True)
    chance.shuffle(lines)
    return "".join(lines[: chance.randint(0, len(lines))]).encode()


@cache
def feature_names() -> tuple[str, ...]:
    return tuple(json.loads((ROOT / "data/churn/feature_names_3.json").read_bytes()))


@cache
def activity_rows() -> tuple[dict[str, Any], ...]:
    lines = (ROOT / "data/churn/activity.jsonl").read_text().splitlines()
    return tuple(json.loads(line) for line in lines[:: len(lines) // N_ROWS][:N_ROWS])


@cache
def encoded_rows() -> tuple[dict[str, Any], ...]:
    lines = (ROOT / "data/churn/X_test_sample_2.json").read_text().splitlines()[:8]
    return tuple({"account_id": 100 + i, **json.loads(line)} for i, line in enumerate(lines))


@cache
def sample_matrix() -> np.ndarray:
    lines = (ROOT / "data/churn/X_test_sample_2.json").read_text().splitlines()[:64]
    rows = [[np.nan if value is None else float(value) for value in json.loads(line).values()] for line in lines]
    return np.array(rows, dtype=np.float32)


@cache
def boosters() -> dict[str, bytes]:
    """Small boosters of each kind, as UBJSON and as JSON."""
    chance = np.random.default_rng(3)
    matrix = np.repeat(sample_matrix(), 8, axis=0)
    matrix[:, :4] *= chance.lognormal(size=(len(matrix), 4)).astype(np.float32)
    labels = (matrix[:, 3] + chance.normal(size=len(matrix)) * 3 > np.nanmedian(matrix[:, 3])).astype(int)
    data = xgb.DMatrix(matrix, label=labels)
    trees = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1, "eta": 0.3}
    kinds = {
        "gbtree": trees,
        "dart": trees | {"booster": "dart", "rate_drop": 0.5},
        "gblinear": {"objective": "binary:logistic", "booster": "gblinear", "nthread": 1},
    }
    made = {name: xgb.train(parameters, data, 5) for name, parameters in kinds.items()}
    return {f"{name} {form}": bytes(each.save_raw(form)) for name, each in made.items() for form in ("ubj", "json")}
