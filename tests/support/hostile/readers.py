"""The readers under attack, and how many inputs each of them gets."""

# ruff: noqa: E501

# Inputs are tables.

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.hostile import corpus
from tests.support.hostile.beside import BESIDE, golden, judge_golden, judge_names, judge_profile, profile
from tests.support.hostile.boosters import MODELS, judge_model, mutate_model
from tests.support.hostile.commands import LINES_OF_COMMANDS, judge_command, mutate_command
from tests.support.hostile.documents import mutate_document_text
from tests.support.hostile.harness import Family
from tests.support.hostile.rows import ROWS, SEEDS
from tests.support.hostile.surroundings import (
    SECRETS,
    URLS,
    judge_secret,
    judge_settings,
    judge_url,
    mutate_secret,
    mutate_settings,
)
from tests.support.hostile.words import (
    DAYS,
    KEYS,
    PARTS,
    hostile_text,
    judge_alias,
    judge_keys_file,
    judge_under,
    judge_variant,
    judge_week,
)


def warm_up(folder: Path) -> None:
    """Load, compile and start what the first input of a kind would otherwise be charged with."""
    for name in ("lines", "encoded lines"):
        ROWS[name].judge(SEEDS[name](), folder)
    judge_model(corpus.boosters()["gbtree ubj"], folder)
    pq.ParquetFile(pa.BufferReader(SEEDS["Parquet"]())).read()


def _texts(words: Sequence[str]) -> dict[str, Callable[[], object]]:
    return {f"{i}: {word[:20]!r}": (lambda word=word: word) for i, word in enumerate(words)}


def _of_words(words: Sequence[str]) -> Callable[[random.Random], object]:
    return lambda chance: hostile_text(chance, words)


FAMILIES: tuple[Family, ...] = (
    *ROWS.values(),
    Family("models", dict(MODELS), mutate_model, judge_model, 2000),
    Family("feature names", dict(BESIDE), mutate_document_text(lambda: json.dumps(corpus.feature_names()).encode()), judge_names, 400),
    Family("golden rows", dict(BESIDE), mutate_document_text(golden), judge_golden, 500),
    Family("reference profiles", dict(BESIDE), mutate_document_text(profile), judge_profile, 700),
    Family("variants", _texts(PARTS), _of_words(PARTS), judge_variant, 500),
    Family("prefixes", _texts([*PARTS, "/", "/etc/", "../", "../../", "a/../../b/", "geography-us/../../"]), _of_words(PARTS), judge_under, 200),
    Family("weeks and days", _texts(DAYS), _of_words(DAYS), judge_week, 300),
    Family("aliases", _texts(PARTS), _of_words(PARTS), judge_alias, 200),
    Family("files of variants", dict(corpus.GARBAGE), lambda chance: corpus.damage(KEYS, chance), judge_keys_file, 200),
    Family("settings", {}, mutate_settings, judge_settings, 500),
    Family("secrets", dict(SECRETS), mutate_secret, judge_secret, 500),
    Family("database URLs", _texts(URLS), _of_words(URLS), judge_url, 300),
    Family("command lines", dict(LINES_OF_COMMANDS), mutate_command, judge_command, 500),
)  # fmt: skip
