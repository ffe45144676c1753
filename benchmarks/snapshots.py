"""Making training examples, in a process of its own so that its peak memory is its own.

``python -m benchmarks.snapshots [FACTS]`` prints one JSON object: the seconds that twelve snapshots of so many facts
take, 5 million if not told, and the most memory that the process had, drawing the facts included.
"""

import json
import sys
import time
from datetime import date

import numpy as np
import polars as pl

from churn.data.labels import Horizon
from churn.data.snapshots import snapshots
from churn.weeks import month_ends
from tests.support.services import peak_mb
from tests.support.simulated import simulate_activity

FIRST_MONTH, N_MONTHS = date(2025, 2, 1), 21
TODAY = date(2026, 11, 20)
AS_OFS = month_ends(date(2025, 8, 1), date(2026, 7, 31))

_ACCOUNTS_AT_ONCE = 100_000
_IDS_APART = 1_000_000_000
_CORRECTED_SHARE = 0.02
_CORRECTED_AFTER_DAYS = 40


def simulated_facts(n_facts: int) -> pl.DataFrame:
    """Draw facts in the order in which they became known: months at their end, and then 2 % of them corrected."""
    draws: list[pl.DataFrame] = []
    n_drawn = 0
    while n_drawn < n_facts:
        activity = simulate_activity(
            n_accounts=_ACCOUNTS_AT_ONCE, first_month=FIRST_MONTH, n_months=N_MONTHS, seed=len(draws)
        )
        first_known = pl.col("activity_month").dt.month_end().cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        facts = activity.with_columns(
            known_at=first_known + pl.duration(hours=23), account_id=pl.col("account_id") + len(draws) * _IDS_APART
        )
        is_corrected = np.random.default_rng(len(draws)).random(facts.height) < _CORRECTED_SHARE
        corrections = facts.filter(is_corrected).with_columns(
            pl.col("total_deposit", "total_handle", "total_ngr") * 1.1,
            known_at=pl.col("known_at") + pl.duration(days=_CORRECTED_AFTER_DAYS),
        )
        draws.append(pl.concat([facts, corrections]))
        n_drawn += draws[-1].height
    return pl.concat(draws)[:n_facts].sort("known_at", maintain_order=True)


def main() -> None:
    """Make the snapshots and print what they took."""
    facts = simulated_facts(int(sys.argv[1]) if len(sys.argv) > 1 else 5_000_000)
    peak_of_drawing = peak_mb()
    started = time.perf_counter()
    made = snapshots(facts, AS_OFS, today=TODAY, horizon=Horizon())
    seconds = time.perf_counter() - started
    print(
        json.dumps(
            {
                "facts": facts.height,
                "snapshots": len(made),
                "examples": sum(snapshot.rows.height for snapshot in made),
                "churned_share": sum(int(snapshot.churned.sum()) for snapshot in made)
                / max(1, sum(snapshot.rows.height for snapshot in made)),
                "seconds": seconds,
                "peak_mb": peak_mb(),
                "peak_mb_drawing": peak_of_drawing,
            }
        )
    )


if __name__ == "__main__":
    main()
