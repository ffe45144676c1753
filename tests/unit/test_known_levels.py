"""At stake: a batch in which a whole column says nothing to the model is refused, not published as if it were usual."""

import numpy as np
import polars as pl
import pytest

from churn.data.features import pack, plan_encoding
from churn.errors import QuarantineError
from churn.monitoring.known_levels import UnknownLevels
from churn.monitoring.profiles import Bins, Profile

NAMES = ("brand_id_OH", "brand_id_PA", "device_tv")


def counted(brands: list[str], reference: Profile | None, devices: str = "phone") -> UnknownLevels:
    """The levels of a batch in two chunks."""
    rows = pl.DataFrame({"brand_id": brands, "device": [devices] * len(brands)})
    encoding = plan_encoding(NAMES, rows.columns)
    unknown = UnknownLevels(encoding, reference)
    half = len(brands) // 2
    chunks = [(np.arange(part.height), pack(part, encoding)) for part in (rows[:half], rows[half:])]
    assert len(list(unknown.counted(chunks))) == 2
    return unknown


def reference(n_known: int, n_unknown: int) -> Profile:
    bins = (Bins("brand_id", levels=("OH", "PA")), Bins("device", levels=("tv",)), Bins("score", edges=(0.5,)))
    n = n_known + n_unknown
    return Profile(bins, np.array([n_known, 0, n_unknown, 1, n - 1, n, 0, 0]))


@pytest.mark.parametrize(
    ("brands", "before", "is_refused"),
    [
        (["OH"] * 100, reference(100, 0), False),
        (["oh ", " Oh", "PA\t", "pa"] * 25, reference(100, 0), False),
        (["Ohio"] * 100, reference(100, 0), True),
        (["Ohio"] * 100, None, True),
        (["Ohio"] * 91 + ["OH"] * 9, reference(100, 0), True),
        (["Ohio"] * 90 + ["OH"] * 10, reference(100, 0), False),
        (["Ohio"] * 99 + ["OH"], reference(90, 10), False),
        (["Ohio"] * 100, reference(5, 95), False),  # a model of few of the levels
        (["1", "2", "3", "4"] * 25, reference(100, 0), True),  # codes in place of names
        (["US-OH"] * 100, reference(100, 0), True),  # ISO 3166-2
        (["ohio", "pennsylvania"] * 50, None, True),
        (['"OH"'] * 100, reference(100, 0), True),  # quoted twice
        (["OH;"] * 100, reference(100, 0), True),  # a separator that was left
        (["brand_id_OH"] * 100, reference(100, 0), True),  # the feature's name
        (["Not Available", "Unknown", "-", "0"] * 25, reference(100, 0), True),
        (["\u041eH"] * 100, reference(100, 0), True),  # Cyrillic
        (["\uff2f\uff28", "\u00a0PA"] * 50, reference(100, 0), False),  # full width, and a space of no break
        (["OH", "Ohio"] * 50, reference(100, 0), False),  # reported, not refused
    ],
)
def test_a_share_of_unknown_levels_far_above_the_references_is_refused(brands, before, is_refused):
    unknown = counted(brands, before)
    if not is_refused:
        unknown.require(0.9, {})
        return
    message = "of 100 accounts .* have a brand_id that the model does not know .'Ohio'.*MAX_UNKNOWN_LEVEL_SHARE allows"
    with pytest.raises(QuarantineError, match=message):
        unknown.require(0.9, {"brand_id": {"Ohio": 3}})
    unknown.require(1.0, {})


def test_a_column_of_one_level_tells_nothing_without_a_reference():
    counted(["OH"] * 10, None, devices="phone").require(0.0, {})
