"""A fleet whose batches are drawn from one mixture, until a drift is planted."""

from dataclasses import dataclass

import numpy as np

from churn.monitoring.drift import FeatureDrift, compare_fleet
from churn.monitoring.profiles import SCORE, Bins, Profile

BRANDS = tuple(f"B{i}" for i in range(29))

NUMBER = Bins("total_deposit", edges=tuple(map(float, range(9))))

CATEGORY = Bins("brand_id", levels=BRANDS)

FLEET_BINS = (
    NUMBER,
    Bins("total_handle", edges=NUMBER.edges),
    Bins("total_ngr", edges=NUMBER.edges),
    Bins("months_active", edges=NUMBER.edges[:7]),
    CATEGORY,
    Bins("ben_login_id", levels=BRANDS[:7]),
    Bins("player_reg_product", levels=BRANDS[:5]),
    Bins(SCORE, edges=NUMBER.edges),
)

MIXES = {
    "total_deposit": [0.01, 0.54, *[0.055] * 8, 0.01],
    "total_handle": [0.01, 0.32, *[0.083] * 8, 0.006],
    "total_ngr": [*[0.1] * 4, 0.27, *[0.066] * 5, 0.0],
    "months_active": [0.03, 0.17, 0.13, 0.11, 0.11, 0.11, 0.11, 0.09, 0.14],
    "brand_id": [*(1 / (i + 1) for i in range(29)), 0.0],
    "ben_login_id": [0.4, 0.3, 0.15, 0.08, 0.04, 0.02, 0.009, 0.001],
    "player_reg_product": [0.85, 0.14, 0.004, 0.003, 0.002, 0.001],
    SCORE: [*[0.1] * 10, 0.0],
}


@dataclass
class Fleet:
    """Variants with mixes of their own, references drawn once, and weekly batches."""

    mixes: dict[str, np.ndarray]
    references: list[Profile]
    sizes: np.ndarray
    rng: np.random.Generator

    def batches(self) -> list[Profile]:
        return draw(self.rng, self.sizes, self.mixes)

    def compare(self, batches: list[Profile]) -> dict[str, list[FeatureDrift]]:
        pairs = zip(self.references, batches, strict=True)
        return compare_fleet({f"company-c{i:04}": (before, now, before) for i, (before, now) in enumerate(pairs)})


def make_fleet(seed: int, n_variants: int = 2_000) -> Fleet:
    """Batches of 50 to 20,000 rows and references of 500 to 50,000; the first twenty variants have 3,000 and 10,000."""
    rng = np.random.default_rng(seed)
    mixes = {}
    for feature, mix in MIXES.items():
        tilted = np.array(mix) * np.exp(rng.normal(0, 0.4, (n_variants, len(mix))))
        mixes[feature] = tilted / tilted.sum(axis=1, keepdims=True)
    sizes, reference_sizes = (
        np.exp(rng.uniform(np.log(low), np.log(high), n_variants)).astype(np.int64)
        for low, high in ((50, 20_000), (500, 50_000))
    )
    sizes[:20], reference_sizes[:20] = 3_000, 10_000
    return Fleet(mixes, draw(rng, reference_sizes, mixes), sizes, rng)


def plant(fleet: Fleet, n_variants: int = 20) -> None:
    """Move a tenth of the rows in one feature of each of the first variants, in turn a number and a category."""
    features = ["total_handle", "brand_id", "total_deposit", "ben_login_id", "total_ngr"]
    for variant in range(n_variants):
        feature = features[variant % len(features)]
        mix = fleet.mixes[feature][variant]
        bins = next(bins for bins in FLEET_BINS if bins.feature == feature)
        fleet.mixes[feature][variant] = move_levels(mix) if bins.levels else move_values(mix)


def draw(rng: np.random.Generator, sizes: np.ndarray, mixes: dict[str, np.ndarray]) -> list[Profile]:
    counts = np.concatenate([rng.multinomial(sizes, mix) for mix in mixes.values()], axis=1)
    return [Profile(FLEET_BINS, row) for row in counts]


def move_levels(mix: np.ndarray, share: float = 0.1) -> np.ndarray:
    order = np.argsort(-mix)
    moved = mix.copy()
    moved[order[0]] -= share
    moved[order[2]] += share
    return moved


def move_values(mix: np.ndarray, share: float = 0.1) -> np.ndarray:
    """Thin the top fifth out to a half, and let what is taken lie in the bottom fifth as rows lie there."""
    moved = mix.copy()
    moved[:-1] -= _part(mix[:-1][::-1])[::-1] * share
    moved[:-1] += _part(mix[:-1]) * share
    return moved


def _part(values: np.ndarray, fifth: float = 0.2) -> np.ndarray:
    """How a fifth of the rows, taken from the left, spreads over the bins."""
    total = np.minimum(np.cumsum(values), fifth)
    return np.diff(total, prepend=0) / fifth
