"""What a reader of delivered predictions sees, who goes by manifests."""

import hashlib
import io
import json
from datetime import date
from typing import Any

import boto3
import polars as pl


def read_delivered(bucket: str, prefix: str) -> dict[tuple[str, date], pl.DataFrame]:
    """Read every object that a manifest names; fails if one is missing or not what its manifest says."""
    s3 = boto3.client("s3")
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}manifests/").get("Contents", [])
    seen = {}
    for item in listed:
        manifest = json.loads(s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read())
        body = s3.get_object(Bucket=bucket, Key=prefix + manifest["object"])["Body"].read()
        rows = pl.read_parquet(io.BytesIO(body))
        assert hashlib.sha256(body).hexdigest() == manifest["sha256"]
        assert (rows.height, len(body)) == (manifest["n_rows"], manifest["n_bytes"])
        assert rows.is_empty() or manifest["batch_id"] in rows["batch_id"]
        seen[manifest["variant"], date.fromisoformat(manifest["scored_week"])] = rows
    return seen


def require_delivered(bucket: str, prefix: str, view: pl.DataFrame) -> None:
    """Fail unless what is delivered is what the view shows, one version of one object for each variant and week."""
    seen = read_delivered(bucket, prefix)
    objects = boto3.client("s3").list_object_versions(Bucket=bucket, Prefix=f"{prefix}variant=").get("Versions", [])
    shown = {(str(variant), week): rows for (variant, week), rows in view.group_by("variant", "scored_week")}
    assert len(objects) == len(seen)
    assert seen.keys() == shown.keys()
    for key, rows in seen.items():
        assert rows.columns == shown[key].columns
        assert _as_dicts(rows) == _as_dicts(shown[key])


def _as_dicts(rows: pl.DataFrame) -> list[dict[str, Any]]:
    dicts = rows.with_columns(pl.col("churn_probability").cast(pl.Float32)).sort("account_id").to_dicts()
    for row in dicts:  # a struct of Parquet has every field, JSON only those that are set
        row["reasons"] = [{name: value for name, value in one.items() if value} for one in row["reasons"] or ()]
    return dicts
