"""How long lists of a fleet take: ``python -m benchmarks.quality.lists``. Exits with 1 if a target is missed.

A PostgreSQL of its own holds a week of 2,000 variants. Timed are a campaign over all of them, from its creation to the
file with its list, and one list of each variant without a campaign.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks.quality import Target, report, without_target
from churn.database.connection import create_engine
from churn.database.decisions import Decisions, Lists
from churn.variants import Variant
from churn.workflows.decide import write_list
from tests.support.batches import WEEK
from tests.support.campaigns import campaign
from tests.support.services import predictions_database

N_VARIANTS, N_ACCOUNTS, AT_RISK, TOP = 2_000, 500, 0.4, 50
MAX_SECONDS = 60.0

_BATCHES = """
INSERT INTO scoring_batches (
    batch_id, variant, company, scored_week, as_of, registered_model, model_version, role, model_sha256, mlflow_run_id,
    code_version, source, source_uri, source_version, source_sha256, source_modified_at, source_variant, account_ids,
    n_rows_read, n_rows_quarantined, n_accounts_withheld, n_rows_scored, unknown_levels, started_at, is_current,
    horizon_months, newest_month, first_month
) OVERRIDING SYSTEM VALUE
SELECT i, 'company-c' || i, 'c' || i, :week, :week + 6, 'm', 1, 'champion', 'x', 'r', 't', 's3', 'u', 'v', 's', now(),
       'company-c' || i, 'input', 1, 0, 0, :n_accounts, '{}', now(), true, 3, '2026-11-01', '2026-01-01'
FROM generate_series(1, :n_variants) AS i
"""
_ROWS = """
INSERT INTO churn_predictions (scored_week, batch_id, account_id, churn_probability, last_active_month)
SELECT :week, i, j, random(), CASE WHEN random() < :at_risk THEN date '2026-10-01' ELSE date '2026-01-01' END
FROM generate_series(1, :n_variants) AS i, generate_series(1, :n_accounts) AS j ORDER BY i, j
"""


def fill(url: sa.URL, n_variants: int, n_accounts: int) -> list[Variant]:
    """Store a week's batches by statements of SQL, as publishing each would take minutes."""
    of = {"week": WEEK, "n_variants": n_variants, "n_accounts": n_accounts, "at_risk": AT_RISK}
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("SELECT open_week(:week)"), of)
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")  # which rows of batches require
        connection.execute(sa.text(_BATCHES), of)
        connection.execute(sa.text(_ROWS), of)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")  # as autovacuum does in time
    return [Variant(company=f"c{i}") for i in range(1, n_variants + 1)]


def targets_of(url: sa.URL, variants: Sequence[Variant], folder: Path) -> Iterator[Target]:
    """Make the lists."""
    decisions, lists, n = Decisions(url, answer_within_s=600), Lists(url, answer_within_s=600), len(variants)
    values = campaign("all", *variants, top_share=0.1, holdout_share=0.1)
    selecting = seconds_of(lambda: decisions.create(values, {}))
    summary = decisions.summaries("all")[0]
    yield without_target(f"seconds to draw {summary['n_offered']:,} members of {n:,} variants", f"{selecting:.1f}")

    def export(campaign: str | None, variant: Variant | None) -> None:
        out = folder / "list.csv"
        if campaign:
            lists.export_campaign(campaign, out.name, lambda rows: write_list(out, rows))
        else:
            lists.export_variant(variant.key, None, TOP, out.name, lambda rows: write_list(out, rows))

    writing = seconds_of(lambda: export("all", None))
    yield _target(f"seconds to draw a campaign of {n:,} variants and to write its list", selecting + writing)
    each = seconds_of(lambda: [export(None, variant) for variant in variants])
    yield _target(f"seconds to write {n:,} lists, one of each variant", each)


def seconds_of(work: Callable[[], Any]) -> float:
    """Return how long some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _target(name: str, seconds: float) -> Target:
    return Target(name, f"{MAX_SECONDS:g} or less", f"{seconds:.1f}", "–", seconds <= MAX_SECONDS)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="benchmarks.quality.lists", description=__doc__)
    parser.add_argument("--variants", type=int, default=N_VARIANTS)
    parser.add_argument(
        "--accounts", type=int, default=N_ACCOUNTS, help=f"of each, {AT_RISK:.0%} at risk".replace("%", "%%")
    )
    args = parser.parse_args(argv)
    with predictions_database("churn-lists-") as url, tempfile.TemporaryDirectory() as folder:
        variants = fill(url, args.variants, args.accounts)
        size = f"Lists of {args.variants:,} variants of {args.accounts:,} accounts"
        return report(size, list(targets_of(url, variants, Path(folder))))


if __name__ == "__main__":
    sys.exit(main())
