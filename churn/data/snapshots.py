"""Training examples: for each as-of date, the accounts that could still churn, and whether they did. Pure.

The rows are built by ``features``, as for scoring, so that a model is trained on what it will score. Facts without
``known_at`` are rejected: from an extract alone, a month would be known from its first day, and the whole month's total
would leak into an as-of date within it. ``churn.storage.history`` adds ``known_at``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import polars as pl

from churn.data.arrays import Doubles, Flags
from churn.data.columns import Columns
from churn.data.features import features, in_order
from churn.data.labels import Horizon, Reports, at_risk, label
from churn.weeks import month_number, month_start

_COLUMNS = Columns()


@dataclass(frozen=True)
class Snapshot:
    """The ``features`` of accounts at risk with a mature label, by ``account_id``, and whether they churned.

    ``weights`` are 1, or as of ``churn.decisions.effects.inverse_weights`` and above 0.
    """

    as_of: date
    rows: pl.DataFrame
    churned: Flags
    weights: Doubles


@dataclass(frozen=True)
class Held:
    """The months that extracts hold, where the history has older ones: from ``first_month``, if received on a day."""

    first_month: date
    received_on: date

    def seen(self, facts: pl.DataFrame, day: date, money: Sequence[str]) -> tuple[pl.DataFrame, Reports]:
        """Return the facts of as many months before a day, of none less after the newest extract; and their reports."""
        moved = min(month_number(day) - month_number(self.received_on), 0)
        held = facts.filter(pl.col("activity_month") >= month_start(self.first_month, moved))
        return held, Reports.of(held, money, ())


def snapshots(
    facts: pl.DataFrame,
    as_ofs: Iterable[date],
    *,
    today: date,
    horizon: Horizon,
    names: Sequence[str] = (),
    columns: Columns = _COLUMNS,
    quarantined: pl.DataFrame | None = None,
    held: Held | None = None,
) -> list[Snapshot]:
    """Build the training examples of several as-of dates, labelled by the facts known at the end of ``today``.

    An as-of date whose labels are immature or missing gives no rows. Raises as ``features`` and ``Reports.of`` do.

    Args:
        facts: A variant's activity with ``known_at``, from its history.
        names: The feature names, of which those that are windows are computed.
        columns: The columns that measure activity, and the segments whose rows are watched for gaps of the feed.
        quarantined: Rows that broke the contract, as in :meth:`churn.data.labels.Reports.of`.
        held: The months that extracts hold, if not all; features and who is at risk come from these, labels from all.
    """
    ordered = in_order(facts)  # once for all dates
    reports = Reports.of(ordered, columns.activity, columns.segments, quarantined)

    def build(as_of: date) -> Snapshot:
        rows, of_rows = held.seen(ordered, as_of, columns.activity) if held else (ordered, reports)
        labels = label(reports, at_risk(of_rows, as_of, horizon), as_of, today=today, horizon=horizon)
        known = features(rows, as_of, names, columns.activity)
        is_labelled = np.isin(known["account_id"].to_numpy(), labels.account_ids, assume_unique=True)
        return Snapshot(as_of, known.filter(is_labelled), labels.churned, np.ones(len(labels.churned)))

    return [build(as_of) for as_of in as_ofs]
