"""The categorical features of a model file: which level has which code. Pure.

XGBoost 3.1 and later store the levels with the model, in the field ``cats``; a level's code is its position. Older
files, and models trained on codes, store none: a code is then its own level, or the author lists the levels.
"""

from itertools import pairwise
from typing import Any

import numpy as np

from churn.data.features import MISSING, Levels
from churn.errors import ModelFileError
from churn.inference.forest import sets_of
from churn.wording import listed

_MAX_LEVELS = 65_000  # a level is numbered by 16 bits


def read_levels(document: dict[str, Any], n_features: int) -> dict[int, tuple[int, tuple[str, ...]]]:
    """Return each categorical feature's highest code in a split, or -1, and its stored levels; by the position."""
    learner, booster = document["learner"], document["learner"]["gradient_booster"]
    model = booster.get("model") or booster["gbtree"]["model"]
    highest = {i: -1 for i, kind in enumerate(learner.get("feature_types", [])) if kind == "c"}
    for tree in model.get("trees", []):
        for node, codes in sets_of(tree):
            feature = int(tree["split_indices"][node])
            highest[feature] = max(highest.get(feature, -1), int(codes.max(initial=-1)))
    levels = [_decode(one) for one in model.get("cats", {}).get("enc", [])]
    if (levels and len(levels) != n_features) or not all(0 <= i < n_features for i in highest):
        raise ValueError("its categories do not fit its features")
    return {i: (most, levels[i] if levels else ()) for i, most in sorted(highest.items())}


def _decode(encoded: dict[str, Any]) -> tuple[str, ...]:
    values = np.asarray(encoded["values"])
    if "offsets" not in encoded:
        return tuple(str(int(value)) for value in values)
    text, ends = values.astype(np.int8).tobytes(), np.asarray(encoded["offsets"], dtype=np.int64).tolist() or [0]
    if [ends[0], *sorted(ends)] != [0, *ends] or ends[-1] != len(text):
        raise ValueError("its categories are cut off")
    return tuple(text[first:end].decode() for first, end in pairwise(ends))


def agree(found: dict[str, tuple[int, tuple[str, ...]]], declared: Levels, origin: str) -> Levels:
    """Return the levels of the categorical features: as stored, else as declared, else the codes themselves."""
    if odd := sorted(declared.keys() - found.keys()):
        known = listed(list(found)) or "none"
        raise ModelFileError(f"{origin} has the categorical features {known}; the declaration has {listed(odd)}, too")
    agreed = {}
    for name, (most, stored) in found.items():
        levels = stored or declared.get(name) or tuple(map(str, range(min(most, _MAX_LEVELS) + 1)))
        is_usable = most < len(set(levels)) == len(levels) <= _MAX_LEVELS and declared.get(name, levels) == levels
        if not is_usable or MISSING in levels or "\0" in "".join(levels):
            problem = f"the levels {listed(list(levels), 4)} of {name} and splits it by codes up to {most}"
            needed = f"a level for each code is needed, at most {_MAX_LEVELS:,}, none with NUL or {MISSING!r}"
            rule = "those declared must be those that a file stores: declare all levels in the order of their codes"
            raise ModelFileError(f"{origin} has {problem}; {needed}, and {rule}")
        agreed[name] = levels
    return agreed
