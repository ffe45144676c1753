"""At stake: the whole circle. Over a year, the variants for which the world changed are found, retrained and
promoted, the others are left alone, nothing leaks from the future, and what was promoted can be taken back.
"""

from pathlib import Path

import pytest

from tests.support.year import EVERY, N_TWISTED, N_VARIANTS, N_WEEKS, simulate_year


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_a_year_finds_trains_and_promotes_where_the_world_changed_and_nowhere_else(
    homes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    year = simulate_year(homes / "year")

    assert year.disappointments == []
    assert len(year.twisted) == N_TWISTED
    assert year.n_scored == N_VARIANTS * N_WEEKS // EVERY
    assert len(year.first_champions) == N_VARIANTS
