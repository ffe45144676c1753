"""Ids as companies write them, and what each is."""

import hashlib
from collections.abc import Mapping


def number_of(key: str) -> int:
    """The number of a text, computed otherwise than by the product."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big", signed=True) | -(2**63)


NOTHING = object()

WHOLE: Mapping[str, tuple[int, None]] = {
    text: (number, None)
    for text, number in {
        "12": 12, " 13 ": 13, "14.0": 14, "15.": 15, "+5": 5, "-5": -5, "\u22126": -6, "0": 0, "1e+05": 100_000,
        "1.5e3": 1_500, "9223372036854775807": 2**63 - 1, "-9223372036854775808": -(2**63), "\u00a016\u2003": 16,
    }.items()
}  # fmt: skip
TEXTS: Mapping[str, tuple[int, str]] = {
    text: (number_of(text.strip()), text.strip())
    for text in (
        "f47ac10b-58cc-4372-a567-0e02b2c3d479", "F47AC10B-58CC-4372-A567-0E02B2C3D479", "{f47ac10b}", "00123", "-007",
        "A-17", "a-17", " A-18\t", "1e5", "12e3", "0x6BB", "1_723", "9223372036854775808", "1" * 40, "M\u00fcller",
        "Mu\u0308ller", "\U0001f3b2", "\uff11\uff12", "a b", "a,b;c|d", "it's \"q\"", "back\\slash", "%_", "a" * 256,
        "10.0.0.1", "x@example.com", "{1,2}", "-", "yes", "t", "\u200b7", "ca\ufb01", "7\u00ad",
    )
}  # fmt: skip
UNREADABLE = (
    "12.5", "1.23457E+12", "1e-3", ".5", "1,723", "1.723,0", "1 234", "1'234", "12,5", "007.0", "9223372036854775808.0",
    "true", "False", "inf", "-Infinity", "a" * 257, "\u00fc" * 129, '{"a": 1}', "[7]", "{}",
    "a\0b",
)  # fmt: skip
MISSING = ("", "  ", "NULL", "null", "\\N", "NaN", "NA", "None", "<NA>", "(null)", "#N/A", "NaT")
IDS = (*WHOLE, *TEXTS, *UNREADABLE, *MISSING)
