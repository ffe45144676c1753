"""JSON documents, changed at one place, and UBJSON as XGBoost writes it."""

# ruff: noqa: E501

# Inputs are tables.

import json
import math
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.support.hostile import corpus

HOSTILE_VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**31 - 1, 2**31, -(2**31), 2**63, -(2**63), 10**30, 1e308, math.inf, -math.inf, math.nan,
    1e39, 0.5, "", "0", "-1", "99999999999999999999", "1E-1", "nan", "[5E-1,5E-1]", "\0", "x" * 5000, "\ud800", [], {}, [[]],
    [1, 2, 3], [0] * 1000, ["a"], [None], [-1] * 15, [2**31] * 15, [1.5] * 15, [math.nan] * 15, {"a": {"b": []}},
]  # fmt: skip


def mutate_document(document: Any, chance: random.Random) -> Any:
    """Put a hostile value at one place of a JSON document, or take the place away."""
    changed = json.loads(json.dumps(document))
    for _ in range(chance.choice((1, 1, 1, 2))):
        holder, key = _place(changed, chance)
        kind = chance.randrange(8)
        if kind == 0 and isinstance(holder, dict):
            del holder[key]
        elif kind == 1 and isinstance(holder[key], list) and holder[key]:
            at = chance.randrange(len(holder[key]))
            holder[key][at:at] = holder[key][:1] * chance.choice((1, 5))
        elif kind == 2 and isinstance(holder[key], list) and holder[key]:
            del holder[key][chance.randrange(len(holder[key])) :]
        elif kind in (3, 4) and isinstance(holder[key], list) and holder[key]:
            holder[key][chance.randrange(len(holder[key]))] = chance.choice(HOSTILE_VALUES)
        elif kind == 5 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = chance.choice((-1, 1)) * holder[key] + chance.choice((-1, 0, 1, 7))
        else:
            holder[key] = chance.choice(HOSTILE_VALUES)
    return changed


def _place(document: Any, chance: random.Random) -> tuple[Any, Any]:
    holder, key = {"": document}, ""
    while isinstance(inside := holder[key], dict | list) and inside and (key == "" or chance.randrange(6)):
        holder = inside
        key = chance.choice(list(inside)) if isinstance(inside, dict) else chance.randrange(len(inside))
    return holder, key


def to_ubjson(value: Any) -> bytes:
    """Write UBJSON as XGBoost does, lists of numbers as typed arrays."""
    if isinstance(value, dict):
        return b"{" + b"".join(_text(key) + to_ubjson(item) for key, item in value.items()) + b"}"
    if isinstance(value, list):
        return _array(value)
    if isinstance(value, str):
        return b"S" + _text(value)
    if isinstance(value, bool) or value is None:
        return {True: b"T", False: b"F", None: b"Z"}[value]
    if isinstance(value, int):
        return b"L" + struct.pack(">q", max(min(value, 2**63 - 1), -(2**63)))
    with np.errstate(over="ignore"):
        return b"d" + np.array(value, dtype=">f4").tobytes()


def _array(value: list[Any]) -> bytes:
    if value:
        if all(type(item) is int and -(2**31) <= item < 2**31 for item in value):
            return b"[$l#" + _length(value) + struct.pack(f">{len(value)}i", *value)
        if all(type(item) in (int, float) for item in value):
            with np.errstate(over="ignore"):
                return b"[$d#" + _length(value) + np.array(value, dtype=">f4").tobytes()
    return b"[#" + _length(value) + b"".join(map(to_ubjson, value))


def _length(value: Any) -> bytes:
    return b"L" + struct.pack(">q", len(value))


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return _length(data) + data


def mutate_document_text(seed: Callable[[], bytes]) -> Callable[[random.Random], bytes]:
    def mutate(chance: random.Random) -> bytes:
        if chance.randrange(4) == 0:
            return corpus.damage(seed(), chance)
        if chance.randrange(4) == 0:
            return corpus.swap_tokens(seed(), corpus.NUMBERS, chance)
        return json.dumps(mutate_document(json.loads(seed()), chance)).encode()

    return mutate
