"""The naive way: pandas, ``Booster.predict``, ``to_sql(append)`` in chunks, retried, a local file if S3 fails.

It also says what scores an input must lead to, since it shares no code with the product.
"""

import io
import json
import time
from datetime import date

import numpy as np
import pandas as pd
import sqlalchemy as sa
import xgboost as xgb

from tests.support import ROOT

_NAMES = json.loads((ROOT / "data/churn/feature_names_3.json").read_bytes())
_LEVELS = ("brand_id", "ben_login_id", "player_reg_product")
_CHUNK = 50
_ATTEMPTS = 5

TABLE = """
CREATE TABLE IF NOT EXISTS naive_predictions (
    variant text NOT NULL, scored_week date NOT NULL, account_id bigint NOT NULL, churn_probability real NOT NULL
)
"""


def encode(rows: pd.DataFrame) -> pd.DataFrame:
    """Make one row per account of its last month, with the model's columns."""
    last = rows.sort_values("activity_month", kind="stable").groupby("account_id", as_index=False).tail(1)
    month, first = pd.to_datetime(last["activity_month"]).dt, pd.to_datetime(last["ftd_date"]).dt
    last = last.assign(months_active=(month.year - first.year) * 12 + month.month - first.month)
    return pd.get_dummies(last, columns=list(_LEVELS)).reindex(columns=["account_id", *_NAMES], fill_value=False)


def score_naively(body: bytes) -> dict[int, float]:
    """Return each account's probability, by ``Booster.predict`` on what a file holds."""
    table = encode(pd.read_parquet(io.BytesIO(body)))
    booster = xgb.Booster()
    booster.load_model(ROOT / "models/churn/xgb_churn_model_2.bin")
    scores = booster.predict(xgb.DMatrix(table[_NAMES].astype(np.float32), feature_names=_NAMES))
    return dict(zip(table["account_id"].tolist(), scores.tolist(), strict=True))


def publish_naively(url: sa.URL, variant: str, week: date, scores: dict[int, float]) -> None:
    """Append the scores in chunks, and begin again when that fails."""
    frame = pd.DataFrame({"account_id": list(scores), "churn_probability": list(scores.values())})
    frame.insert(0, "variant", variant)
    frame.insert(1, "scored_week", week)
    for attempt in range(_ATTEMPTS):
        try:
            engine = sa.create_engine(url, connect_args={"connect_timeout": 5}, poolclass=sa.NullPool)
            for start in range(0, len(frame), _CHUNK):
                frame.iloc[start : start + _CHUNK].to_sql("naive_predictions", engine, if_exists="append", index=False)
        except sa.exc.SQLAlchemyError:
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.3)
        else:
            return
