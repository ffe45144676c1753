"""A row of activity that breaks no rule, in every format."""

import csv
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

GOOD: dict[str, Any] = {
    "account_id": "1723", "activity_month": "2025-03-01", "known_at": "2025-04-01T06:00:00Z", "brand_id": "PA",
    "reg_date": "2024-12-05", "ftd_date": "2024-12-06", "qp_date": "2024-12-07", "ben_login_id": "BCUSA22L",
    "tracker_id": "101", "player_reg_product": "BETTING", "total_deposit": "1234.5", "total_handle": "20",
    "total_ngr": "-1234567",
}  # fmt: skip
FEATURES = (
    "total_deposit", "total_handle", "total_ngr", "months_active", "brand_id_PA", "brand_id_OH",
    "ben_login_id_BCUSA22L", "player_reg_product_BETTING",
)  # fmt: skip


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def as_parquet(rows: list[dict[str, Any]] | pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


WRITERS = {"CSV": as_csv, "JSON Lines": as_lines, "Parquet": as_parquet}


def typed(column: str, array: pa.Array) -> bytes:
    table = pa.Table.from_pylist([GOOD])
    return as_parquet(table.set_column(table.column_names.index(column), column, array))
