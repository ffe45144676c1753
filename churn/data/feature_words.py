"""What a feature's value means, in sentences: by the words for its source column and the rule for its window. Pure.

``feature_words.toml`` has the rules, and the words for the columns of the contract; a variant declares those of its own
(``churn.data.columns``). The database picks the sentence of a value and fills in the number.
"""

import json
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

from churn.data.features import Encoding
from churn.data.windows import ACTIVITY, parse

Words = Mapping[str, Mapping[str, str]]
"""By source column: ``label``, and as needed ``unit`` and the sentences ``low``, ``high`` and ``missing``."""

_TEXTS: Mapping[str, Words] = tomllib.loads(files("churn.data").joinpath("feature_words.toml").read_text("utf-8"))
_KEYS, _SENTENCES = {"label", "unit", "low", "high", "missing"}, ("name", "low", "high", "missing")
_MAX_CHARACTERS = 4_000  # as JSON; MLflow's tags are limited


def parse_words(declared: Any) -> Words:
    """Check words from outside; raises ``TypeError`` unless they are printable texts by column and key."""
    for column, words in declared.items():
        if not {"label"} <= set(words) <= _KEYS or not "".join(words.values()).isprintable():
            raise TypeError(f"the words of {column!r} need a label, may have {sorted(_KEYS)}, and must be printable")
    if len(json.dumps(declared)) > _MAX_CHARACTERS:
        raise TypeError(f"the words have more than {_MAX_CHARACTERS:,} characters")
    return dict(declared)


@lru_cache(maxsize=64)
def describe_features(encoding: Encoding, declared: str) -> str:
    """Return the sentences of all features and source columns with words as JSON; ``declared`` is JSON, too."""
    words = {**_TEXTS["columns"], **json.loads(declared)}
    levels, sources = {group.source_column for group in encoding.one_hots}, encoding.sources
    named = sorted({*zip(encoding.columns, sources, strict=True), *zip(sources, sources, strict=True)})
    found = [_describe(*pair, words, "level" if pair[0] in levels else "number") for pair in named if pair[1] in words]
    return json.dumps(found)


def _describe(name: str, source: str, words: Words, rule: str) -> dict[str, str]:
    """Return a feature's name in words, and its sentences for 0, for other values and for a missing one.

    >>> _describe("total_handle_sum_3m", "total_handle", _TEXTS["columns"], "number")["low"]
    'No bets in the last 3 months'
    """
    given, months = words[source], ""
    label, unit = given["label"], given.get("unit", "")
    if name != source and (window := parse(name, [source])) is not None:
        rule = "active" if source == ACTIVITY and window.aggregate == "count" else window.aggregate
        months, given = "month" if window.months == 1 else f"{window.months} months", {}
    rules: Any = _TEXTS["rules"]
    slots = {"{months}": months, "{unit}": unit and f" {unit}", "{Label}": label[:1].upper() + label[1:]}
    texts = {"feature": name} | {key: ({**rules["number"], **rules[rule], **given})[key] for key in _SENTENCES}
    for slot, text in {**slots, "{label}": label}.items():
        texts |= {key: texts[key].replace(slot, text) for key in _SENTENCES}
    return texts
