"""The simulator's plain months of one variant, without a world around them, and the bundled model's features."""

import json
from datetime import date

import polars as pl

from churn.variants import Variant
from tests.support import ROOT
from tests.support.simulator import draw_activity

FEATURE_NAMES: tuple[str, ...] = tuple(json.loads((ROOT / "data/churn/feature_names_3.json").read_text()))


def simulate_activity(
    *,
    n_accounts: int,
    first_month: date,
    n_months: int,
    seed: int,
    variant: Variant | None = None,
    twist: date | None = None,
) -> pl.DataFrame:
    """Return the frame of :func:`tests.support.simulator.draw_activity`, of the base variant by default."""
    return draw_activity(n_accounts, first_month, n_months, seed, variant=variant or Variant(), twist=twist)[1]
