"""Batches made by hand, to be published without a model."""

import dataclasses
from datetime import UTC, date, datetime

import numpy as np
import polars as pl

from churn.database.predictions import BatchRecord, ScoredRows
from churn.variants import Variant
from churn.weeks import default_as_of
from churn.workflows.score import FleetRequest

WEEK = date(2026, 11, 16)

NO_ROWS = pl.DataFrame(
    schema={
        "row_number": pl.UInt32,
        "account_id": pl.Int64,
        "activity_month": pl.Date,
        "rules": pl.List(pl.String),
        "row": pl.String,
    }
)


def week_request(week: date, *, as_of: date | None = None, dagster_run_id: str | None = None) -> FleetRequest:
    """The request to score a week from the current extract."""
    return FleetRequest(week, as_of or default_as_of(week, datetime.now(UTC).date()), dagster_run_id)


def record(n_rows: int, **changed: object) -> BatchRecord:
    values = BatchRecord(
        variant=Variant("us"),
        scored_week=WEEK,
        as_of=date(2026, 11, 22),
        registered_model="churn-prediction-model-us",
        model_version=1,
        model_sha256="0" * 64,
        mlflow_run_id="mlflow-run",
        dagster_run_id="dagster-run",
        code_version="test",
        source="s3",
        source_uri="s3://bucket/geography-us/data/churn/activity.parquet",
        source_version="etag",
        source_sha256="1" * 64,
        source_modified_at=datetime(2026, 11, 20, tzinfo=UTC),
        source_variant=Variant("us"),
        fallback_reason=None,
        account_ids="input",
        n_rows_read=n_rows,
        n_rows_quarantined=0,
        n_accounts_withheld=0,
        n_rows_scored=n_rows,
        unknown_levels={"brand_id": {"XX": 2}},
        started_at=datetime.now(UTC),
    )
    return dataclasses.replace(values, **changed)  # type: ignore[arg-type]


def scored(n_rows: int, probability: float = 0.25, *, first_account: int = 1) -> ScoredRows:
    accounts = np.arange(first_account, first_account + n_rows, dtype=np.int64)
    return ScoredRows(accounts, np.full(n_rows, probability, dtype=np.float32))
