"""Which columns of a variant's activity mean what: activity, segments and revenue. Pure.

They are declared with a variant, in a JSON file beside its other files, and kept with each of its versions. Not here:
the columns that every extract must have (``churn.data.activity``), and a model's features (``churn.data.features``).
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf
from typing import Any

import numpy as np

from churn.data.activity import KINDS, MAX_MONEY, MONEY, ONE_HOT_COLUMNS
from churn.data.feature_words import Words, parse_words
from churn.data.features import Levels, Matrix
from churn.errors import InputError, raised_as

_LEAST_ROWS = 50  # in fewer sample rows, two flags may never be set together by chance


@dataclass(frozen=True)
class Columns:
    """The columns of one variant's activity; the defaults are those of the contract.

    Attributes:
        activity: Numbers; a player is active in a month in which one of them is neither missing nor zero.
        segments: Categories; performance is evaluated for each of their levels.
        revenue: The number that says what a player is worth; ``None`` if no column does.
        max_money: Maximum of money a month, in the currency of the variant; a row above it is quarantined.
        categories: The levels of a model's categorical features, in the order of their codes, where its file does not
            store them. A registered model has them in its own file.
        words: What the columns mean, for people, in place of the words for those of the contract.
        one_hot: The source columns of encoded features ``<column>_<level>``; ``None`` for the segments.

    >>> Columns.from_json('{"activity": ["logins"], "segments": ["device"]}', "columns.json").revenue is None
    True
    """

    activity: tuple[str, ...] = MONEY
    segments: tuple[str, ...] = ONE_HOT_COLUMNS
    revenue: str | None = "total_ngr"
    one_hot: tuple[str, ...] | None = None
    max_money: float = MAX_MONEY
    categories: Levels = field(default_factory=dict, hash=False)
    words: Words = field(default_factory=dict, compare=False)

    @property
    def encoded(self) -> tuple[str, ...]:
        """The source columns of one-hot features in encoded rows."""
        return self.segments if self.one_hot is None else self.one_hot

    @classmethod
    def from_json(cls, text: str | bytes, origin: str) -> "Columns":
        """Parse a declaration; ``origin`` names it in an ``InputError``, which any other text raises."""
        problem = f"{origin} is no declaration of columns"
        example = '{"activity": ["total_deposit"], "segments": ["brand_id"], "revenue": "total_ngr"}'
        remedy = f"a JSON object is needed, such as {example}"
        errors = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
        with raised_as(InputError, problem, *errors, remedy=remedy):
            declared: dict[str, Any] = json.loads(text)
            is_empty, categories = not declared, parse_levels(declared.pop("categories", {}))
            max_money, words = declared.pop("max_money", MAX_MONEY), parse_words(declared.pop("words", {}))
            if isinstance(max_money, bool) or not isinstance(max_money, int | float) or not 0 < max_money < inf:
                raise TypeError(f"max_money {max_money!r} is no positive number")
            of_contract = cls(max_money=float(max_money), categories=categories, words=words)
            if not declared and not is_empty:
                return of_contract
            activity, segments = _names(declared.pop("activity")), _names(declared.pop("segments", []))
            one_hot, revenue = declared.pop("one_hot", None), declared.pop("revenue", None)
            revenue = None if revenue is None else _names([revenue])[0]
            one_hot = None if one_hot is None else _names(one_hot)
            columns = replace(of_contract, activity=activity, segments=segments, revenue=revenue, one_hot=one_hot)
            if declared or not columns.activity:
                raise ValueError(f"unknown keys: {', '.join(declared) or 'none'}; columns of activity: none")
        return columns

    def to_json(self) -> str:
        """Serialize; :meth:`from_json` returns an equal object, but for the categories, which a model's file keeps."""
        stored = asdict(self)
        del stored["categories"]
        if self.max_money == MAX_MONEY:
            del stored["max_money"]
        if not self.words:
            del stored["words"]
        return json.dumps(stored)

    def require(self, columns: Collection[str], origin: str) -> None:
        """Raise ``InputError`` if activity lacks a declared column, or one of activity cannot measure it."""
        declared = [*self.activity, *self.segments, *([self.revenue] if self.revenue else [])]
        if missing := [name for name in dict.fromkeys(declared) if name not in columns]:
            problem = f"{origin} has columns {sorted(columns)} and lacks the declared {', '.join(missing)}"
            raise InputError(f"{problem}; correct the declaration or add the columns")
        kinds = {name: KINDS.get(name, "number") for name in self.activity}
        if wrong := [f"{name} ({kind})" for name, kind in kinds.items() if kind not in ("number", "money", "balance")]:
            needed = "for which numbers are needed that are 0 in a month without it; correct the declaration"
            raise InputError(f"{origin}: {', '.join(wrong)} cannot measure activity, {needed}")


def _names(names: list[Any]) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise TypeError(f"{names!r} is not an array of names")
    return tuple(dict.fromkeys(names))


def parse_levels(declared: dict[str, Any]) -> Levels:
    """Check levels by feature; raises ``TypeError`` unless each is an array of different texts."""
    for name, levels in declared.items():
        if not isinstance(levels, list) or not {*map(type, levels)} <= {str} or len({*levels}) < len(levels):
            raise TypeError(f"the levels of {name} are no array of different texts")
    return {name: tuple(levels) for name, levels in declared.items()}


def one_hot_columns(feature_names: Sequence[str], matrix: Matrix) -> tuple[str, ...]:
    """Find the source columns of one-hot features in encoded sample rows, of which at least 50 are needed.

    Features form a group if their names begin with ``<column>_``, their values are 0 and 1, no row has two of them, and
    most rows have one. Of the groups of a feature the largest counts, then the one of the longest column.
    """
    if len(matrix) < _LEAST_ROWS:
        return ()
    is_flag = ((matrix == 0) | (matrix == 1)).all(axis=0)
    flags = {name: place for place, name in enumerate(feature_names) if is_flag[place]}
    prefixes = {name[:cut] for name in flags for cut, letter in enumerate(name) if letter == "_"}
    groups: dict[str, list[str]] = {}
    for prefix in prefixes:
        members = [name for name in feature_names if name.startswith(f"{prefix}_")]
        if len(members) > 1 and all(name in flags for name in members):
            sums = matrix[:, [flags[name] for name in members]].sum(axis=1)
            if sums.max() == 1 and np.mean(sums) > 0.5:
                groups[prefix] = members
    taken: dict[str, str] = {}
    for prefix, members in sorted(groups.items(), key=lambda item: (-len(item[1]), -len(item[0]))):
        if taken.keys().isdisjoint(members):
            taken |= dict.fromkeys(members, prefix)
    return tuple(dict.fromkeys(taken[name] for name in feature_names if name in taken))
