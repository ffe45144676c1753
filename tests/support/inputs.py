"""Activity of players and models of variants, as tests put them into a bucket, and what they must lead to."""

import io
import json
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pandas as pd
import polars as pl
import xgboost as xgb

from churn.registry.tags import EVIDENCE_AFTER
from churn.variants import Variant
from orchestration.partitions import sync_partitions
from tests.support import ROOT
from tests.support.site import Run, Site, bundled, put_model_files
from tests.support.templates import made_once

NAMES: list[str] = json.loads(bundled("feature_names_3.json"))

LEVELS = ("brand_id", "ben_login_id", "player_reg_product")


def monday(weeks_ago: int = 0) -> date:
    today = datetime.now(UTC).date()
    return today - timedelta(days=today.weekday() + 7 * weeks_ago)


def activity(seed: int = 0) -> pd.DataFrame:
    """A part of the bundled activity, another for each seed, in another order than by account."""
    rows = pd.read_parquet(ROOT / "data/churn/activity.parquet")
    accounts = rows["account_id"].drop_duplicates().sample(60, random_state=seed)
    return rows[rows["account_id"].isin(accounts)].reset_index(drop=True)


def encoded(rows: pd.DataFrame, as_of: date) -> pd.DataFrame:
    """One row per account, encoded by pandas alone: the last month known, of a month told twice the later row."""
    known = rows[pd.to_datetime(rows["activity_month"]) <= pd.Timestamp(as_of)]
    last = known.sort_values("activity_month", kind="stable").groupby("account_id", as_index=False).tail(1)
    month, deposit = pd.to_datetime(last["activity_month"]).dt, pd.to_datetime(last["ftd_date"])
    first = deposit.where(deposit <= pd.Timestamp(as_of)).dt  # a date to come would tell the future
    last = last.assign(months_active=(month.year - first.year) * 12 + month.month - first.month)
    dummies = pd.get_dummies(last, columns=list(LEVELS)).reindex(columns=["account_id", *NAMES], fill_value=False)
    return dummies.sort_values("account_id").reset_index(drop=True)


def last_active(rows: pd.DataFrame, as_of: date) -> dict[int, date]:
    """Each account's last month with activity, of those that have one; by pandas alone."""
    known = rows[pd.to_datetime(rows["activity_month"]) <= pd.Timestamp(as_of)]
    known = known.groupby(["account_id", "activity_month"], as_index=False).tail(1)
    active = known[(known[["total_deposit", "total_handle", "total_ngr"]].fillna(0) != 0).any(axis=1)]
    months = pd.to_datetime(active.groupby("account_id")["activity_month"].max()).dt.date
    return dict(zip(months.index.tolist(), months.tolist(), strict=True))


def expected(rows: pd.DataFrame, as_of: date | None = None) -> dict[int, float]:
    """What ``Booster.predict`` gives each account."""
    table = encoded(rows, as_of or datetime.now(UTC).date())
    booster = xgb.Booster()
    booster.load_model(bytearray(bundled("xgb_churn_model_2.bin")))
    scores = booster.predict(xgb.DMatrix(table[NAMES].astype("float32"), feature_names=NAMES))
    return dict(zip(table["account_id"].tolist(), scores.tolist(), strict=True))


def as_parquet(rows: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    pl.from_pandas(rows).write_parquet(buffer)
    return buffer.getvalue()


def as_json_lines(rows: pd.DataFrame) -> bytes:
    return pl.from_pandas(rows).write_ndjson().encode()


def as_json_array(rows: pd.DataFrame) -> bytes:
    return b"[" + b",".join(as_json_lines(rows).splitlines()) + b"]"


def as_csv(rows: pd.DataFrame) -> bytes:
    return pl.from_pandas(rows).write_csv().encode()


FORMATS: Mapping[str, Callable[[pd.DataFrame], bytes]] = {
    "activity.parquet": as_parquet,
    "activity.csv": as_csv,
    "activity.jsonl": as_json_lines,
    "activity.json": as_json_array,
}


def register_bundled(site: Site, log_model: Run, *keys: str) -> None:
    """Register the bundled model for variants, whose files are in the bucket."""

    def make() -> None:
        for key in keys:
            put_model_files(site, Variant.from_key(key).prefix)
        said = log_model(*(word for key in keys for word in ("--variant", key)))
        assert said.status == 0, said

    made_once(site, ("registered", *keys), make)


def register_second(site: Site, log_model: Run, variant: Variant) -> None:
    """Register a second version that scores as the bundled model does; the very same file would be no new version."""
    model = xgb.Booster()
    model.load_model(bytearray(bundled("xgb_churn_model_2.bin")))
    model.set_attr(copy="2")
    put_model_files(site, variant.prefix, model=bytes(model.save_raw("ubj")))
    said = log_model("--variant", variant.key)
    assert "version   2, " in said.out, said


def trained_until(site: Site, variant: Variant, *versions: int, day: date | None = date(2025, 1, 1)) -> None:
    """Note that versions were trained on outcomes up to a day only, so that later weeks are evidence about them.

    Args:
        day: ``None`` removes the note.
    """
    of = {"key": EVIDENCE_AFTER, "name": variant.registered_model}
    for version in versions:
        delete = "DELETE FROM model_version_tags WHERE key = :key AND name = :name AND version = :version"
        site.rows(site.mlflow, delete, **of, version=version)
        if day is not None:
            insert = "INSERT INTO model_version_tags (key, name, version, value) VALUES (:key, :name, :version, :day)"
            site.rows(site.mlflow, insert, **of, version=version, day=str(day))


def register(site: Site, log_model: Run, instance: dg.DagsterInstance, *keys: str) -> None:
    """Register the bundled model for variants, and give Dagster their partitions."""
    register_bundled(site, log_model, *keys)
    sync_partitions(instance, [Variant.from_key(key) for key in keys])


def register_with_input(site: Site, log_model: Run, *variants: Variant) -> None:
    """Register the bundled model for variants that have activity of their own in S3."""
    register_bundled(site, log_model, *(variant.key for variant in variants))
    for variant in variants:
        put_input(site, variant.key, as_parquet(activity()))


def put_input(site: Site, key: str, body: bytes, name: str = "activity.parquet") -> None:
    site.put(f"{Variant.from_key(key).prefix}data/churn/{name}", body)


def facts(rows: pd.DataFrame) -> pl.DataFrame:
    """Return activity with dates as an extract has them."""
    typed = pl.from_pandas(rows)
    return typed.with_columns(pl.col("activity_month", "reg_date", "ftd_date", "qp_date").cast(pl.Date))
