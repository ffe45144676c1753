"""The sample rows of a model against the features that are made from the variant's activity. Pure.

A sample is made elsewhere, by the code that the model was trained with. Where it holds other values than the features
made here of the same accounts, the model will be scored on other inputs than it was trained on.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from churn.data.activity import MONEY
from churn.data.features import Levels, Matrix, encode, features, plan_encoding
from churn.weeks import month_end, month_ends

_TOLERANCE = 1e-4  # relative; samples are often written with few digits
_MONTHS = 24
_MOST_ACCOUNTS, _MOST_DIFFERING = 1_000, 0.05


def compare_with_activity(
    account_ids: pl.Series,
    matrix: Matrix,
    feature_names: Sequence[str],
    activity: pl.DataFrame,
    money: Sequence[str] = MONEY,
    *,
    levels: Levels | None = None,
) -> str | None:
    """Compare sample rows with the features of the same accounts; return the result as a sentence.

    The day of a sample is not known, and may differ by account. So each row is compared with the account's features as
    of the end of each month of the last two years, and the month with the fewest differences counts. The sentence names
    the features that differ in more than 5 % of the accounts; it is ``None`` if no account is in both.

    Args:
        account_ids: Of the sample rows, shape (n,); rows of an account that occurs twice are left out.
        matrix: The sample rows, shape (n, n_features).
        activity: Checked activity with the columns that the features need, as numbers.
    """
    is_common = account_ids.is_unique() & account_ids.is_in(activity["account_id"].unique().implode())
    rows = np.flatnonzero(is_common.fill_null(value=False).to_numpy())[:_MOST_ACCOUNTS]
    if not len(rows):
        return None
    sample = pl.DataFrame({"account_id": account_ids[rows], "row": rows})
    of_accounts = activity.join(sample.select("account_id"), on="account_id", how="semi")
    fewest = np.full(len(matrix), len(feature_names) + 1)
    differs = np.ones((len(matrix), len(feature_names)), dtype=np.bool_)
    first, last = of_accounts.select(first=pl.col("activity_month").min(), last=pl.col("activity_month").max()).row(0)
    for as_of in month_ends(first, month_end(last))[-_MONTHS:]:
        made = features(of_accounts, as_of, feature_names, money)
        encoded = encode(made, plan_encoding(feature_names, made.columns, levels))
        places = made.select("account_id").join(sample, on="account_id", maintain_order="left")["row"].to_numpy()
        unequal = ~np.isclose(encoded, matrix[places], rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
        is_better = unequal.sum(axis=1) < fewest[places]
        differs[places[is_better]], fewest[places[is_better]] = unequal[is_better], unequal[is_better].sum(axis=1)
    pairs = zip(feature_names, differs[rows].sum(axis=0).tolist(), strict=True)
    differing = sorted(((name, n) for name, n in pairs if n > _MOST_DIFFERING * len(rows)), key=lambda pair: -pair[1])
    n_accounts = f"{len(rows):,} accounts"
    if not differing:
        return f"the sample equals the features made from the activity, in {n_accounts}"
    found = f"{len(differing)} of the sample's features differ from those made from the activity of {n_accounts}"
    shown = ", ".join(f"{name} in {n:,}" for name, n in differing[:5])
    return f"{found}: {shown}; check their units and how the sample was made"
