"""Names of variants, prefixes, weeks, aliases and files of variants."""

# ruff: noqa: E501, RUF001

# Inputs are tables, and letters that look like others are what some of them are for.

import argparse
import contextlib
import random
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from churn.deployment import command_line as arguments
from churn.errors import UsageError
from churn.storage.places import Folder
from churn.storage.sources import Sources
from churn.variants import Variant
from churn.weeks import default_as_of, monday_of, parse_week
from tests.support.hostile import corpus
from tests.support.hostile.harness import SAME, USAGE, require, require_clear

TODAY = date(2026, 11, 4)

PARTS = [
    "", " ", "US ", "us/../x", "../..", "us.uk", "us-uk", "__", "_us", "us_", "u" * 65, "ſ", "ı", "İ", "ß", "ＵＳ", "us\n", "us\0",
    "us\u202e", "\ud800", "'; DROP TABLE x; --", "%s", "%00", "{0}", "$(id)", "`id`", "\x1b[31m", "A" * corpus.MILLION, "🙂", "us\u200b", "1e999",
    "None", "null", "con", ".", "..", "~", "*", "?", "us=1", "us&x", "latest", "v3", "é", "-", "--all", "base", "US", "a_b", "0", "company-x",
    "geography-us", "geography-us.company-x", "company-x.geography-us", "geography-", "geography-us.", ".geography-us", "geography-us.geography-uk",
    "geography-US", "base.geography-us", "geography-us.company-", "champion", "challenger", "previous", "20" * 5000,
]  # fmt: skip
DAYS = [
    "", " ", "today", "2026-11-03", "2026-11-02 ", "2026-W45", "2026-W45-1", "20261102", "2026-11-2", "2026-02-30", "0000-00-00", "0001-01-01",
    "9999-12-27", "9999-12-31", "10000-01-01", "-2026-11-02", "2026-11-02T00:00:00", "2026/11/02", "02.11.2026", "２０２６-11-02", "2026-11-02\n",
    "1e9", "nan", "1" * 10_000, "\ud800", "\0", "2027-01-04", "2020-12-28", "2026-366", "2026-W54-1", "2026-W45-8",
]  # fmt: skip
CHARACTERS = "aZ09_-. /\\'\"\n\0\x1b[]{}%$;:éſıß🙂\u202e\ud800"


def hostile_text(chance: random.Random, words: Sequence[str]) -> str:
    kind = chance.randrange(4)
    word = chance.choice(words)
    if kind == 0:
        return word
    if kind == 1:
        return word[:200] + chance.choice(words)[:200]
    if kind == 2:
        at = chance.randrange(len(word) + 1)
        return word[:at] + chance.choice(CHARACTERS) + word[at:]
    return "".join(chance.choices(CHARACTERS, k=chance.randint(0, 20)))


def judge_variant(payload: object, folder: Path) -> str:
    """Read a name as a part, as a key, and as what finds variants; each is refused, or stands for itself."""
    assert isinstance(payload, str)
    taken = 0
    for read in (Variant, lambda text: Variant(company=text), lambda text: Variant("us", text), Variant.from_key):
        try:
            variant = read(payload)
        except UsageError as error:
            require_clear(str(error))
            continue
        taken += 1
        require(Variant.from_key(variant.key) == variant, "its key is another variant's")
        require(payload.lower() in variant.key, "it stands for something else")
        require(variant.prefix.isascii() and ".." not in variant.prefix, "its prefix leads elsewhere")
    return SAME if taken else USAGE


def judge_under(payload: object, folder: Path) -> str:
    assert isinstance(payload, str)
    model = folder / "local/geography-us/models/churn/xgb_churn_model_2.bin"
    model.parent.mkdir(parents=True, exist_ok=True)
    model.write_bytes(b"")
    found = Sources(None, Folder(folder / "local")).variants_under(payload)
    require(set(found) <= {Variant("us")}, "it found what is not there")
    start = payload.lower() if payload.isascii() else payload  # a folder may be spelled in any case
    require(
        not found or "geography-us".startswith(start) or start.startswith("geography-us/"), "a prefix matched another"
    )
    if not found:
        return USAGE
    return SAME


def judge_week(payload: object, folder: Path) -> str:
    assert isinstance(payload, str)
    with contextlib.suppress(argparse.ArgumentTypeError):
        require(isinstance(arguments.parse_day(payload), date), "no day")
    week = parse_week(payload, TODAY)
    require(week == monday_of(week) and week <= TODAY, "no week that has begun")
    digits = payload.strip()
    forms = {f"{week}", f"{week:%Y%m%d}", f"{week:%G-W%V-%u}", f"{week:%GW%V%u}", f"{week:%G-W%V}", f"{week:%GW%V}"}
    require(digits in forms, "another week")
    require(week <= default_as_of(week, TODAY) <= TODAY, "a day that is not its own")
    return SAME


def judge_alias(payload: object, folder: Path) -> str:
    assert isinstance(payload, str)
    alias = arguments.parse_alias(argparse.Namespace(alias=payload))
    require(alias == payload and alias.isascii() and alias.isprintable(), "an alias that MLflow refuses")
    return SAME


def judge_keys_file(payload: object, folder: Path) -> str:
    assert isinstance(payload, bytes)
    path = folder / "keys.txt"
    path.write_bytes(payload)
    args = argparse.Namespace(variant=[], all=path, under=None, geography=None, company=None)
    found = arguments.parse_variants(args)
    keys = [line.strip() for line in payload.decode().splitlines() if line.strip()]
    require(found == list(dict.fromkeys(key.lower() for key in keys)), "other variants")
    return SAME


KEYS = b"base\ngeography-us\ncompany-clienta\ngeography-eu.company-clientb\n"
