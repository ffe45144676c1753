"""The report: one HTML file about the fleet and each of its variants, for people who will not open three UIs."""

import os
import tempfile
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

import sqlalchemy as sa

from churn.database.report import read_fleet
from churn.errors import UsageError
from churn.report.content import build_content
from churn.report.page import render


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        week: The one it is about; ``None`` when nothing was scored yet, which it then says.
    """

    path: Path
    week: date | None
    n_variants: int
    n_bytes: int


def write_report(url: sa.URL, out: Path, *, week: date | None, now: datetime, mlflow_ui: str) -> Report:
    """Read the tables and write the file, which is there whole or not at all.

    Args:
        url: The predictions database.
        week: A Monday; ``None`` for the newest week.
        mlflow_ui: Where people see MLflow.

    Raises:
        UsageError: If nothing was scored in ``week``, or the file cannot be written.
        ChurnError: If the database cannot be read.
    """
    rows = read_fleet(url, week, now)
    fleet, variants = build_content(rows, now, mlflow_ui.rstrip("/"))
    page = render(fleet, variants).encode()
    try:
        _write_whole(page, out)
    except OSError as error:
        raise UsageError(f"the report cannot be written to {out} ({error}); name a file with --out") from error
    return Report(out.resolve(), rows.week, len(variants), len(page))


def _write_whole(content: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink()
        raise
