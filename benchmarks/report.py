"""The report of a large fleet: ``python -m benchmarks.report``. Prints one JSON object.

A PostgreSQL is filled by SQL with half a year of thousands of variants. Timed are building the file, and in headless
Chromium its first paint, when it can be used, a search and the opening of a variant's page.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.fleet_report import fill, timed_in_chromium, timed_report
from tests.support.people import browsing
from tests.support.services import WEEK, predictions_database

N_VARIANTS, N_WEEKS = 2_000, 26


def measure(n_variants: int, n_weeks: int) -> dict[str, float]:
    """Fill a PostgreSQL of its own, build the report and open it."""
    with tempfile.TemporaryDirectory(prefix="churn-report-") as folder:
        with predictions_database("churn-report-") as url:
            fill(url, n_variants, n_weeks, WEEK)
            report, seconds = timed_report(url, Path(folder) / "report.html")
        with browsing() as page:
            opened = timed_in_chromium(page, report.path)
    return {"variants": n_variants, "weeks": n_weeks, "seconds_build": seconds, "mb": report.n_bytes / 1e6, **opened}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.report", description=__doc__)
    parser.add_argument("--variants", type=int, default=N_VARIANTS)
    parser.add_argument("--weeks", type=int, default=N_WEEKS)
    args = parser.parse_args(argv)
    print(json.dumps(measure(args.variants, args.weeks)))


if __name__ == "__main__":
    main()
