"""The gate's checks of the data that a model was trained on: whether they can be what they seem to be. Pure.

A model may be sound and still learn from columns that say today what they could not have said then, or from a sample
in which nearly everybody seems to leave. Not here: the checks of the model itself (``churn.training.gate``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

import numpy as np
import numpy.typing as npt
import polars as pl

from churn.data.activity import KEY, MONEY
from churn.data.arrivals import LAST_INSTANT
from churn.data.features import encode, features, in_order, plan_encoding
from churn.data.snapshots import Snapshot
from churn.data.windows import ACTIVITY
from churn.errors import InputError
from churn.evaluation.metrics import log_losses
from churn.inference.bundle import Bundle
from churn.training.checks import GateCheck
from churn.training.train import Part, Trained
from churn.weeks import month_number, month_numbers
from churn.wording import percent

MIN_CHURN_SHARE, MAX_CHURN_SHARE = 0.01, 0.9
MIN_ROWS_PER_ACCOUNT = 1.5
MAX_RESTATED_SHARE, ARRIVED_DAYS = 0.05, 10
"""Late corrections reach 2 % of the rows in the reference world; a restated column, most rows of active players. Of
months that were over that many days before: weekly extracts that come three days late bring a month's last days then.
"""
MAX_LATE_RESTATED_SHARE, LATE_DAYS = 0.01, 90
"""Of months that were over that many days before. Late corrections have ended by then; a column that is written into
all past rows of the accounts that it concerns changes as many of the old months as of the new ones."""
MAX_REPLAY_SHARE = 0.01

_REPLAY_TOLERANCE = 1e-5
_CONFIDENCE = 1.96


@dataclass(frozen=True)
class ScoredBefore:
    """A published batch, and the version that scored it."""

    as_of: date
    received_at: datetime  # when the extract that was scored had arrived, UTC
    account_ids: npt.NDArray[np.int64]  # shape (n,), ascending
    scores: npt.NDArray[np.float32]  # as published, shape (n,)
    first_month: date  # the oldest month of that extract; the history may have older ones


def check_churn_share(trained: Trained) -> GateCheck:
    """Check that neither nearly nobody nor nearly everybody churned."""
    n, n_churned = sum(part.n for part in trained.parts), sum(part.n_churned for part in trained.parts)
    share = n_churned / n
    limit = MAX_CHURN_SHARE if share > MIN_CHURN_SHARE else MIN_CHURN_SHARE
    plausible = f"{percent(MIN_CHURN_SHARE)} to {percent(MAX_CHURN_SHARE)}"
    hint = "" if share <= MAX_CHURN_SHARE else ": is the extract a sample of rows?"
    found = f"{percent(share, 1)} of {n:,} rows churned; plausible are {plausible}{hint}"
    holds = MIN_CHURN_SHARE <= share <= MAX_CHURN_SHARE
    return GateCheck.of("churn_share_is_plausible", share, limit, found, holds=holds)


def check_rows_per_account(facts: pl.DataFrame) -> GateCheck:
    """Check that accounts have several months: one row of each, drawn from all months, would all look like churn."""
    mean = facts.select("account_id", "activity_month").n_unique() / facts["account_id"].n_unique()
    holds = mean >= MIN_ROWS_PER_ACCOUNT
    remedy = "" if holds else ": bring all rows of each account"
    found = f"{mean:.2f} months per account; at least {MIN_ROWS_PER_ACCOUNT:g} are needed{remedy}"
    return GateCheck.of("accounts_have_several_months", mean, MIN_ROWS_PER_ACCOUNT, found, holds=holds)


def check_simple_models(trained: Trained, snapshots: Sequence[Snapshot]) -> GateCheck:
    """Compare the held-out log-loss with those of two models that need no training.

    They give every account the share of churn before the held-out days, or that of the accounts whose latest month lies
    as far back. The model must be better than the first, and not worse than the second beyond sampling error.
    """
    name, rows_of = "log_loss_beats_simple_models", {shot.as_of: shot.rows for shot in snapshots}
    accounts, earlier = trained.held_out_accounts, (trained.training, trained.validation)
    lags = np.concatenate([_lags(part, rows_of) for part in earlier])
    churned = np.concatenate([part.churned for part in earlier])
    base = churned.mean()
    n, n_churned = np.bincount(lags), np.bincount(lags, weights=churned)
    by_lag = np.append((n_churned + base) / (n + 1), base)
    recency = by_lag[np.minimum(_lags(accounts, rows_of), len(n))]
    model = log_losses(accounts.churned, trained.bundle.predict(accounts.matrix))
    gains = [log_losses(accounts.churned, scores) - model for scores in (np.full(accounts.n, base), recency)]
    over_base, over_recency = (float(gain.mean()) for gain in gains)
    error = float(_CONFIDENCE * gains[1].std() / np.sqrt(accounts.n))
    holds = over_base > 0 and over_recency + error > 0
    of_recency = f"that of recency alone less it {over_recency:+.4f} ± {error:.4f}"
    remedy = "" if holds else "; use other features, such as --features default"
    found = f"log-loss {model.mean():.4f}; the base rate's less it is {over_base:+.4f}, {of_recency}{remedy}"
    return GateCheck.of(name, min(over_base, over_recency), 0.0, found, holds=holds)


def check_restated(
    facts: pl.DataFrame, source_columns: Sequence[str], *, has_known_at: bool, money: Sequence[str] = MONEY
) -> GateCheck:
    """Check that no column of the features changed in past months from one extract to another.

    Of the first extract it is assumed that a month's row was known when the month was over. A column that is written
    again for past months breaks that: at a past day it would reveal what was found out later. The newest report of a
    month is compared with that of the days after its end, so what was damaged and repaired counts as unchanged.

    The facts are from a history, in which each report of a month differs from the one before. ``has_known_at`` is
    whether the extract itself says when each row became known; windows over activity are computed from ``money``.
    """
    name = "past_months_are_not_restated"
    if has_known_at:
        return GateCheck(name, None, MAX_RESTATED_SHARE, "skipped", "the extract says when each row became known")
    complete = in_order(facts).filter(pl.col("known_at") >= LAST_INSTANT)
    # Amounts as models read them: a warehouse that adds up in another order changes their last digits each time.
    complete = complete.with_columns(pl.col(pl.Float64).cast(pl.Float32))
    again = pl.struct(KEY).eq_missing(pl.struct(KEY).shift())
    newest = facts["known_at"].max()
    # A date that becomes known later lies after the earlier as-of days, at which it is missing in any case.
    read = [*source_columns, *(money if ACTIVITY in source_columns else ())]
    columns = [name for name in dict.fromkeys(read) if name in facts.columns and facts.schema[name] != pl.Date]
    now = complete.filter(~again.shift(-1, fill_value=False))
    if now.height == complete.height:
        return GateCheck(name, None, MAX_RESTATED_SHARE, "skipped", "no extract has changed a past month yet")
    changes: list[tuple[float, float, str]] = []
    for limit, days in ((MAX_RESTATED_SHARE, ARRIVED_DAYS), (MAX_LATE_RESTATED_SHARE, LATE_DAYS)):
        over_since = LAST_INSTANT + pl.duration(days=days)
        is_late = pl.col("known_at") >= over_since
        n_known = complete.filter(pl.col("known_at") < newest, over_since < newest).select(KEY).n_unique()
        is_early = again & ~is_late
        was = complete.filter(is_early | ~again, ~is_early.shift(-1, fill_value=False))
        of = f"of {n_known:,} accounts' months that were over {days} days before"
        n_changed = {one: int(was[one].ne_missing(now[one]).sum()) for one in columns if n_known}
        shares = {column: n / n_known for column, n in n_changed.items() if n}
        changes += [(one, limit, f"{column} in {percent(one, 1)} {of}") for column, one in shares.items()]
    changes.sort(key=lambda change: -change[0] / change[1])
    restated = [sentence for share, limit, sentence in changes if share > limit]
    share, limit, _ = changes[0] if changes else (0.0, MAX_RESTATED_SHARE, "")
    listed = ", ".join(restated) or (f"at most {changes[0][2]}" if changes else "no column")
    late = f"{percent(MAX_LATE_RESTATED_SHARE)} after {LATE_DAYS} days"
    remedy = "leave such a column out with --features, or bring known_at with each row"
    allowed = f"up to {percent(MAX_RESTATED_SHARE)} may be corrections, {late}"
    found = f"extracts changed past months: {listed}; {allowed}: {remedy}"
    return GateCheck.of(name, share, limit, found, holds=not restated)


def check_replay(
    facts: pl.DataFrame, before: ScoredBefore | None, scored_by: Bundle | None, money: Sequence[str] = MONEY
) -> GateCheck:
    """Compute last month's features again from the history, and compare their scores with those published then.

    ``before`` is a batch of last month, if there is one, and ``scored_by`` the model that scored it.
    """
    name = "past_features_are_those_scored"
    if before is None or scored_by is None:
        why = "the champion has no batch of last month in the history"
        return GateCheck(name, None, MAX_REPLAY_SHARE, "skipped", why)
    names = scored_by.feature_names
    known_then = facts.filter(pl.col("known_at") <= before.received_at, pl.col("activity_month") >= before.first_month)
    try:
        rows = features(known_then, before.as_of, names, money)
        scores = scored_by.predict(encode(rows, plan_encoding(names, rows.columns, scored_by.categories)))
    except InputError as error:
        return GateCheck(name, None, MAX_REPLAY_SHARE, "skipped", f"the champion cannot score these rows: {error}")
    ids = rows["account_id"].to_numpy()
    _, again, known = np.intersect1d(ids, before.account_ids, assume_unique=True, return_indices=True)
    differs = np.ones(len(before.account_ids), dtype=np.bool_)
    differs[known] = np.abs(scores[again] - before.scores[known]) > _REPLAY_TOLERANCE
    share = float(differs.mean())
    scored = f"of {len(differs):,} accounts scored as of {before.as_of}"
    differing = f"{differs.sum():,} ({percent(share, 1)}) get another score from the history as it was then"
    meaning = "more means that it has rows that were not known then, or lacks some"
    found = f"{scored}, {differing}, and {percent(MAX_REPLAY_SHARE)} may; {meaning}"
    return GateCheck.of(name, share, MAX_REPLAY_SHARE, found, holds=share <= MAX_REPLAY_SHARE)


def _lags(part: Part, rows_of: dict[date, pl.DataFrame]) -> npt.NDArray[np.int64]:
    """Return the months from each row's latest month to its as-of day, shape (part.n,)."""
    lags = np.zeros(part.n, dtype=np.int64)
    for place, as_of in enumerate(part.as_ofs):
        rows, chosen = rows_of[as_of], part.places == place
        months = rows.select(month_number(as_of) - month_numbers(pl.col("activity_month"))).to_series().to_numpy()
        lags[chosen] = months[np.searchsorted(rows["account_id"].to_numpy(), part.account_ids[chosen])]
    return lags
