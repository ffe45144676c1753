"""The report: one HTML file about the fleet and each of its variants, which replaces a visit to three UIs."""

from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

import sqlalchemy as sa

from churn.database.report import read_fleet
from churn.errors import ChurnError, UsageError
from churn.report.content import build_content
from churn.report.page import render
from churn.storage.places import Folder


@dataclass(frozen=True)
class Report:
    """A report that was written; ``week`` is ``None`` when nothing was scored yet."""

    path: Path
    week: date | None
    n_variants: int
    n_bytes: int


def write_report(url: sa.URL, out: Path, *, week: date | None, now: datetime, mlflow_ui: str) -> Report:
    """Read the predictions database and write the file atomically; by default about the newest week.

    Raises ``UsageError`` if nothing was scored in ``week``, a Monday, or the file cannot be written; ``ChurnError`` if
    the database cannot be read.
    """
    rows = read_fleet(url, week, now)
    fleet, variants = build_content(rows, now, mlflow_ui.rstrip("/"))
    page = render(fleet, variants).encode()
    try:
        Folder(out.parent).write(out.name, page)
    except ChurnError as error:
        raise UsageError(f"the report cannot be written to {out} ({error}); name a file with --out") from error
    return Report(out.resolve(), rows.week, len(variants), len(page))
