"""A seeded simulation of the affiliate's monthly activity extract, complete and on time.

Belongs here: drawing players, their months and their money, with the quirks of the real extract. Not here: what
changes or hides those months (``tests.support.world``), labels, features, files. One ``PCG64`` stream makes everything,
so that a seed gives the same frame on every machine.

A player has a latent engagement. It stretches the stay, raises the stakes and the odds of paying in, and fades as the
end comes near. That is all a model can learn from, and why it cannot learn churn perfectly.
"""

from dataclasses import dataclass, replace
from datetime import date
from hashlib import sha256

import numpy as np
import polars as pl
from numpy.typing import NDArray

from churn.errors import UsageError
from churn.variants import Variant
from churn.weeks import month_number

BRANDS = (
    "AZ", "CA", "CO", "DC", "ER", "GM", "IA", "IN", "IS", "KS", "KY", "LA", "MA", "MD", "MI",
    "MS", "NC", "NE", "NJ", "NO", "NV", "NY", "OH", "PA", "TN", "US", "VA", "WV", "WY",
)  # fmt: skip
BEN_LOGINS = (
    "BCCSB22", "BCUSA22L", "BCUSA22N", "BCUSA22NP", "actionnetwork", "starsportsmx", "wedgetraffic",
)  # fmt: skip
PRODUCTS = ("BETTING", "BINGO", "CASINO", "POKER", "RACEBOOK")

_BRAND_WEIGHTS = (
    40, 3, 35, 6, 3, 2, 22, 35, 5, 25, 30, 22, 38, 32, 85,
    3, 45, 3, 90, 2, 3, 80, 120, 105, 35, 8, 40, 14, 5,
)  # fmt: skip
_BEN_LOGIN_WEIGHTS = (12, 9, 22, 7, 38, 5, 7)
_PRODUCT_WEIGHTS = (0.879, 0.003, 0.112, 0.004, 0.002)
_BRAND_STAY = np.sin(1.7 * np.arange(len(BRANDS)))  # fixed and uneven: some markets keep players
_BEN_LOGIN_STAY = np.array([0.1, -0.2, 0.2, 0.0, 0.3, -0.6, -0.4])
_PRODUCT_STAY = np.array([0.0, 0.2, 0.7, 0.3, -0.3])  # casino players stay on
_TRACKERS_PER_LOGIN = 152

_LAUNCH = 26  # months before the extract in which the first players came
_PULL = 0.7  # of engagement on how long players stay
_TWISTED_PULL = -1.2
_STAY_SHAPE = 0.75  # Weibull below 1: the longer a player has stayed, the longer they will
_TRAILING_ODDS = np.array([0.0, 0.35, 0.1, 0.0])  # of a row of zeros, by months since leaving
_BUSY_HANDLE = 2_000.0  # above this monthly stake the sportsbook's luck evens out
_HANDLE_LOST_SHARE = 0.003
_RESTAMP_SHARE = 0.074  # the feed dates these players' registration later than it was
_MAX_RESTAMP_MONTHS = 12
_EARLY_DEPOSIT_SHARE = 0.0172  # first deposit dated before registration

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Days = NDArray[np.datetime64]


@dataclass(frozen=True)
class _Market:
    """What a variant moves: the level mixes, how long players stay and how much they stake."""

    brands: Floats
    ben_logins: Floats
    products: Floats
    log_stay: float
    log_spend: float
    engagement_pull: float


@dataclass(frozen=True)
class Players:
    """One element per player; ``start`` and ``leave`` are months since the extract began."""

    account_id: Ints
    brand: Ints
    ben_login: Ints
    product: Ints
    tracker_id: Ints
    engagement: Floats
    deposits: Bools
    start: Floats
    leave: Floats


@dataclass(frozen=True)
class _Rows:
    """One element per row: which player, which month, and how near the end of the stay."""

    player: Ints
    month: Ints
    mood: Floats
    has_left: Bools


def draw_activity(
    n_accounts: int, first_month: date, n_months: int, seed: int, *, variant: Variant, twist: date | None = None
) -> tuple[Players, pl.DataFrame]:
    """Draw the monthly activity of ``n_accounts`` players. Pure: same arguments, same frame.

    The base variant has the distributions of the reference extract over 21 months. A geography and a company each tilt
    the level mixes, the stay and the stakes by an amount their name fixes.

    Args:
        n_accounts: Players; each has at least one row. About 3.3 rows a player over 21 months.
        twist: A first of month from which on engaged players leave sooner, where they stayed longer before: the
            relation of features to churn changes, which no model trained before can know. ``None`` for never.

    Returns:
        The players, in account order, and a frame of shape (n_rows, 12), sorted by ``activity_month`` and
        ``account_id``, one row per player and month but for a handful of repeats. Money is in currency units with
        cents; ``ftd_date``, ``qp_date`` and ``total_handle`` hold nulls.

    Raises:
        UsageError: If a count is below 1, the seed is negative or ``first_month`` is not the first of a month.
    """
    if min(n_accounts, n_months) < 1 or seed < 0 or first_month.day != 1:
        raise UsageError(
            f"cannot simulate {n_accounts=}, {n_months=}, {seed=} from {first_month}; give counts of at least 1, a "
            f"seed of at least 0 and the first day of a month"
        )
    market = _market(variant)
    rng = random_stream(seed, variant.key)
    players = _draw_players(rng, n_accounts, first_month.month, n_months, market)
    if twist is not None:
        months = month_number(twist) - month_number(first_month)
        players = _twist(np.random.Generator(np.random.PCG64([seed, months])), players, months, market)
    rows = _draw_rows(rng, players, n_months)
    deposit, handle, ngr = _draw_money(rng, players, rows, market.log_spend)
    reg, ftd, qp = _draw_dates(rng, players, np.datetime64(first_month, "M"), n_months)
    is_lost = pl.Series(rng.random(len(handle)) < _HANDLE_LOST_SHARE)
    frame = pl.DataFrame(
        {
            "activity_month": (np.datetime64(first_month, "M") + rows.month).astype("M8[D]"),
            "account_id": players.account_id[rows.player],
            "brand_id": _names(BRANDS, players.brand[rows.player]),
            "reg_date": reg[rows.player],
            "ftd_date": ftd[rows.player],
            "qp_date": qp[rows.player],
            "ben_login_id": _names(BEN_LOGINS, players.ben_login[rows.player]),
            "tracker_id": players.tracker_id[rows.player],
            "player_reg_product": _names(PRODUCTS, players.product[rows.player]),
            "total_deposit": deposit,
            "total_handle": pl.Series(handle).set(is_lost, None),
            "total_ngr": ngr,
        }
    )
    return players, _with_repeats(rng, frame)


def draw_stays_again(
    rng: np.random.Generator, players: Players, n_months: int, variant: Variant
) -> tuple[Ints, Ints, tuple[Floats, Floats, Floats]]:
    """Return further rows of players whose ``start`` and ``leave`` are those of a further stay.

    Returns:
        The index of each row's player, its month since the extract began, and deposit, handle and net gaming revenue.
    """
    rows = _draw_rows(rng, players, n_months)
    return rows.player, rows.month, _draw_money(rng, players, rows, _market(variant).log_spend)


def random_stream(seed: int, *names: str) -> np.random.Generator:
    """Return a generator that depends on nothing but a seed and names."""
    return np.random.Generator(np.random.PCG64([seed, *map(_stable_number, names)]))


def _stable_number(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big")


def _market(variant: Variant) -> _Market:
    """Tilt the base market by each part of the variant; the base variant is the untilted one."""
    logs = [np.log(w) for w in (_BRAND_WEIGHTS, _BEN_LOGIN_WEIGHTS, _PRODUCT_WEIGHTS)]
    shifts = np.zeros(3)
    for label, value in (("geography", variant.geography), ("company", variant.company)):
        if value is not None:
            tilt = np.random.Generator(np.random.PCG64(_stable_number(f"{label}-{value}")))
            logs = [log + tilt.normal(0, 0.6, len(log)) for log in logs]
            shifts += tilt.normal(0, (0.4, 0.4, 0.15))
    brands, ben_logins, products = (np.exp(log) / np.exp(log).sum() for log in logs)
    return _Market(brands, ben_logins, products, *(float(shift) for shift in shifts))


def _draw_players(
    rng: np.random.Generator, n: int, first_calendar_month: int, n_months: int, market: _Market
) -> Players:
    mixes = market.brands, market.ben_logins, market.products
    brand, ben_login, product = (rng.choice(len(mix), n, p=mix) for mix in mixes)
    rank = np.floor(_TRACKERS_PER_LOGIN * rng.random(n) ** 1.3).astype(np.int64)
    engagement = rng.standard_normal(n)
    deposits = rng.random(n) < _logistic(1.4 + 0.5 * engagement)
    start = _draw_starts(rng, n, first_calendar_month, n_months)
    account_id = 10_000_000 + np.cumsum(rng.integers(1, 1_000, n))
    tracker_id = 1_000 + ben_login * _TRACKERS_PER_LOGIN + rank
    came = Players(account_id, brand, ben_login, product, tracker_id, engagement, deposits, start, leave=start)
    stays = _draw_stays(rng, np.exp(_log_stay(market, came, _PULL)), np.maximum(-start, 0.0))
    return replace(came, leave=start + stays)


def _log_stay(market: _Market, p: Players, pull: float) -> Floats:
    """Return the logarithm of how long players tend to stay, in months; ``pull`` is that of engagement."""
    return np.asarray(
        0.59
        + market.log_stay
        + (pull + market.engagement_pull) * p.engagement
        + 0.35 * _BRAND_STAY[p.brand]
        + _BEN_LOGIN_STAY[p.ben_login]
        + _PRODUCT_STAY[p.product]
        - 0.9 * ~p.deposits
    )


def _twist(rng: np.random.Generator, players: Players, month: int, market: _Market) -> Players:
    """Draw again how long players stay who had not left by a month, with the effect of engagement reversed."""
    log_stay = _log_stay(replace(market, engagement_pull=0.0), players, _TWISTED_PULL)
    stays = _draw_stays(rng, np.exp(log_stay), np.zeros(len(players.start)))
    redrawn = np.maximum(players.start, month) + stays
    return replace(players, leave=np.where(players.leave > month, redrawn, players.leave))


def _draw_starts(rng: np.random.Generator, n: int, first_calendar_month: int, n_months: int) -> Floats:
    """Draw when players came, in fractional months; early ones thin out, autumns bring more."""
    month = np.arange(-_LAUNCH, n_months)
    survival = np.where(month < 0, 1.5 * (1.0 + np.abs(month)) ** -0.9, 1.0)
    weights = survival * (1 + 0.35 * np.cos(2 * np.pi * (month + first_calendar_month - 10) / 12))
    return rng.choice(month, n, p=weights / weights.sum()) + rng.random(n)


def _draw_stays(rng: np.random.Generator, scale: Floats, at_least: Floats) -> Floats:
    """Draw Weibull stays in months, each given that it outlasted ``at_least``."""
    hazard = (at_least / scale) ** _STAY_SHAPE + rng.standard_exponential(len(scale))
    return np.asarray(scale * hazard ** (1 / _STAY_SHAPE))


def _draw_rows(rng: np.random.Generator, players: Players, n_months: int) -> _Rows:
    """Decide who has a row in which month, month by month and players in order.

    Staying players skip a month now and then; those who left may trail a row or two of zeros.
    """
    month = np.arange(n_months)[:, None]
    begun = month >= np.floor(players.start)
    left = month > np.floor(players.leave)
    opening = month == np.maximum(np.floor(players.start), 0)
    since = np.clip(month - np.floor(players.leave), 0, 3).astype(np.int64)
    odds = np.where(left, _TRAILING_ODDS[since], _logistic(1.6 + 0.6 * players.engagement))
    month_of, player = np.nonzero(begun & ((rng.random(odds.shape) < odds) | opening))
    fade = np.exp(-np.maximum(players.leave[player] - month_of, 0.0) / 1.5)
    mood = players.engagement[player] - fade + 0.5 * rng.standard_normal(len(player))
    return _Rows(player, month_of, mood, left[month_of, player])


def _draw_money(
    rng: np.random.Generator, players: Players, rows: _Rows, log_spend: float
) -> tuple[Floats, Floats, Floats]:
    """Draw deposit, handle and net gaming revenue of each row, in cents' precision."""
    n = len(rows.player)
    deposits = players.deposits[rows.player]
    wagers = ~rows.has_left & (rng.random(n) < _logistic(np.where(deposits, 1.7, -0.25) + 0.8 * rows.mood))
    pays = ~rows.has_left & deposits & (rng.random(n) < _logistic(np.where(wagers, 0.25, 0.0) + 0.9 * rows.mood))

    # Half of a stake is the player's purse, of which a few are very deep: that makes the tail.
    purse = np.clip(rng.standard_t(7, len(players.start)), -5.0, 5.5)[rows.player]
    luck, own = rng.standard_normal((2, n))
    log_handle = 4.46 + log_spend + 0.9 * rows.mood + 1.2 * purse + 1.33 * luck
    log_deposit = 3.84 + log_spend + 0.7 * rows.mood + 0.9 * purse + 0.8 * luck + 0.9 * own
    handle = np.where(wagers, _positive_money(log_handle), 0.0)
    deposit = np.where(pays, _positive_money(log_deposit), 0.0)
    return deposit, handle, _draw_ngr(rng, handle, pays)


def _draw_ngr(rng: np.random.Generator, handle: Floats, pays: Bools) -> Floats:
    """Draw the sportsbook's share of each stake; without a stake, the odd fee or bonus cost."""
    ratio = np.interp(
        rng.random(len(handle)),
        (0.0, 0.002, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0),
        (-25.0, -7.0, -3.0, -0.93, -0.04, 0.215, 0.52, 0.975, 1.0),
    )
    evened_out = np.minimum(1.0, (_BUSY_HANDLE / np.maximum(handle, 1.0)) ** np.where(ratio < 0, 0.68, 0.52))
    without_stake = rng.normal(-8.0, 15.0, len(handle)) * (rng.random(len(handle)) < np.where(pays, 0.45, 0.1))
    ngr = np.where(handle > 0, handle * ratio * evened_out, without_stake)
    return np.asarray(np.round(ngr, 2) + 0.0)  # adding zero turns -0.0 into 0.0


def _draw_dates(
    rng: np.random.Generator, players: Players, first_month: np.datetime64, n_months: int
) -> tuple[Days, Days, Days]:
    """Draw registration, first deposit and first cash bet of each player, with the feed's slips.

    A slip is independent of what the player does later, so no date gives the future away.
    """
    n = len(players.start)
    start = np.floor(players.start).astype(np.int64)
    room = np.minimum(_MAX_RESTAMP_MONTHS, n_months - 1 - start)
    is_restamped = (rng.random(n) < _RESTAMP_SHARE) & (room > 0) & (start >= 0)
    later = np.where(is_restamped, 1 + np.floor(rng.random(n) ** 1.5 * room), 0).astype(np.int64)
    day_of_month = np.floor((players.start - start) * 28).astype(np.int64)
    opened: Days = np.asarray((first_month + start + later).astype("M8[D]") + day_of_month, dtype="M8[D]")

    is_early = rng.random(n) < _EARLY_DEPOSIT_SHARE
    reg = opened + np.where(is_early, rng.integers(1, 30, n), 0)
    delay = np.minimum(np.floor(rng.exponential(3.0, n)), 30).astype(np.int64)
    ftd = opened + np.where(is_early | is_restamped, 0, delay)
    qp = np.maximum(reg, ftd) + np.floor(rng.exponential(3.0, n)).astype(np.int64)
    bets_cash = players.deposits & (rng.random(n) < _logistic(0.68 + 0.5 * players.engagement))
    unknown = np.datetime64("NaT", "D")
    return reg, np.where(players.deposits, ftd, unknown), np.where(bets_cash, qp, unknown)


def _with_repeats(rng: np.random.Generator, frame: pl.DataFrame) -> pl.DataFrame:
    """Repeat a handful of rows, every other one with restated money."""
    chosen = rng.choice(frame.height, min(frame.height, 3 + frame.height // 10_000), replace=False)
    restated = np.where(np.arange(len(chosen)) % 2 == 0, 1.0, 1.1)
    money = pl.col("total_deposit", "total_handle", "total_ngr")
    repeats = frame[chosen].with_columns((money * pl.Series(restated)).round(2))
    return pl.concat([frame, repeats]).sort("activity_month", "account_id", maintain_order=True)


def _names(levels: tuple[str, ...], codes: Ints) -> pl.Series:
    return pl.Series(levels, dtype=pl.String).gather(codes)


def _positive_money(log_amount: Floats) -> Floats:
    return np.maximum(np.round(np.exp(log_amount), 2), 0.01)


def _logistic(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)))
