"""At stake: what comes from outside can be anything, and must never take the process, its memory or a score with it.

Each bad input goes to its reader in a process of its own kind, where a crash of a library in C++ or Rust, a hang and a
hunger for memory are seen too. Here the inputs made by hand and some drawn ones; ``python -m tests.hostile`` has more.
"""

import pytest

from tests.support.hostile.harness import Tally, run, shares
from tests.support.hostile.readers import FAMILIES
from tests.support.hostile.report import table

SHORT = 150


def require_all_end_well(tally: Tally) -> None:
    assert not tally.bad, f"{table(tally)}\n{tally.bad}"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_bad_inputs_are_refused_quarantined_or_read_as_what_they_say():
    chosen = list(shares(FAMILIES, SHORT))

    tally = run(chosen, processes=1)

    require_all_end_well(tally)
    assert tally.n == len(chosen) >= SHORT
    assert set(tally.counts) == {family.name for family in FAMILIES}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_bad_inputs_end_well():
    tally = run(list(shares(FAMILIES, None)))

    require_all_end_well(tally)
    assert tally.n >= 10_000
