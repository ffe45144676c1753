"""Published weeks whose accounts are at risk, to make lists of."""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta

import numpy as np
import sqlalchemy as sa

from churn.database.copy_format import ScoredRows
from churn.database.predictions import BatchInProgress, PredictionStore, read_current
from churn.variants import Variant
from churn.weeks import days_since_epoch
from tests.support.batches import NO_ROWS, WEEK, record

ACTIVE, GONE = date(2026, 11, 1), date(2026, 1, 1)


def publish_at_risk(
    url: sa.URL, variant: Variant, scores: Mapping[int, float], gone: Sequence[int] = (), *, week: date = WEEK
) -> int:
    """Publish the scores of accounts, all at risk but those that are gone; returns the batch's id."""
    ids = np.array(sorted(scores), dtype=np.int64)
    months = [days_since_epoch(GONE if one in gone else ACTIVE) for one in ids.tolist()]
    probabilities = np.array([scores[one] for one in ids.tolist()], dtype=np.float32)
    rows = ScoredRows(ids, probabilities, np.array(months, dtype=np.int32))
    known = {"horizon_months": 3, "first_month": GONE, "newest_month": ACTIVE, "as_of": week + timedelta(days=6)}
    made = record(len(ids), variant=variant, source_variant=variant, scored_week=week, **known)
    batch = BatchInProgress([rows], lambda: (made, NO_ROWS), has_last_active_month=True)
    return PredictionStore(url).publish(variant, week, batch)[0][0]


def campaign(name: str, *variants: Variant, **changed: object) -> dict[str, object]:
    """The description of a campaign, by default by risk over everybody, with a fifth as control and no holdout."""
    values = {
        "name": name, "variants": [one.key for one in variants], "policy": "risk", "floor": None, "top_share": None,
        "budget": None, "control_share": 0.2, "holdout_share": 0.0, "allows_overlap": False, "starts_on": WEEK,
        "channel": "mail", "note": "",
    }  # fmt: skip
    return values | changed


def members(url: sa.URL, name: str) -> dict[int, str]:
    """The arm of each member, by account."""
    query = "SELECT account_id, arm FROM campaign_members WHERE campaign = :name"
    return dict(read_current(url, query, name=name).iter_rows())


def on_list(url: sa.URL, name: str) -> set[int]:
    """The accounts that the view lists."""
    query = "SELECT account_id FROM campaign_targets WHERE campaign = :name"
    return {int(account) for account in read_current(url, query, name=name)["account_id"]}
