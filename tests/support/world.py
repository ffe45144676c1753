"""Worlds around the simulator: what real extracts do that its plain months do not, each switched by name.

Belongs here: returns, seasons, growth, heavy tails, how a feed delivers, restated columns, campaigns, and the extract
as it would be read on any day, with the truth beside it. Not here: the plain players (``tests.support.simulator``).
Each switch has random numbers of its own, drawn per account and month, so that switching one on leaves the others as
they are. With all switches off, the whole extract is that of ``draw_activity``, byte for byte. What no world shows:
docs/adr/0025.
"""

from dataclasses import dataclass, fields, replace
from datetime import date

import numpy as np
import polars as pl

from churn.data.activity import MONEY
from churn.variants import Variant
from churn.weeks import days_since_epoch, month_number, month_numbers, month_start
from tests.support.simulator import BRANDS, Floats, Ints, Players, draw_activity, draw_stays_again, random_stream

_KEYS = ["account_id", "activity_month"]
_DEPOSITS = ("ftd_date", "qp_date")
_MOST_SESSIONS = 8
_PAUSE = 3  # months at least; in the plain simulation, players skip one or two
_SEASON, _PEAK = 0.3, 10  # share of rows that the quietest month lacks; the calendar month without a lack
_GROWTH = 0.03  # more new players a month
_WHALES, _WHALE_TAIL = 0.01, 1.3  # share of players; Pareto exponent of their stakes
_LATE, _MAX_LATE_DAYS = 0.02, 45  # share of rows; days after the month's end
_GAPS, _FILLED, _MAX_FILL_DAYS = 0.02, 0.5, 90  # share of a brand's months; of these, filled by then
_REVEALED = 0.27  # of the players who could be: gives future first deposits to 3.6 % of the rows
_REACH = 3  # months from a row to the first deposit that it reveals, at most
_CONTACTED = 0.5
_EFFECT = 2.0  # mean of the months that a campaign adds to a stay


@dataclass(frozen=True)
class World:
    """Which effects are on; the default has all, as reality does.

    Attributes:
        returns: A quarter of those who left come back 3 months later or more.
        season: Fewer rows away from October.
        growth: More new players each month.
        heavy_tails: A hundredth of the players stake by a power law.
        month_to_date: The running month is in the extract, with what has happened so far.
        late_rows: 2 % of the rows arrive after their month, or with amounts that are corrected then.
        feed_gaps: 2 % of the months of each brand do not arrive in time; half of these arrive 30 to 90 days after the
            month's end, the others never.
        future_dates: First deposits after a row's month, known once they happened: such players came back.
        restated: A column ``lifetime_months``, rewritten in all rows of an account with each extract.
        campaign: One campaign in the middle, with a control group.
    """

    returns: bool = True
    season: bool = True
    growth: bool = True
    heavy_tails: bool = True
    month_to_date: bool = True
    late_rows: bool = True
    feed_gaps: bool = True
    future_dates: bool = True
    restated: bool = True
    campaign: bool = True


PLAIN_WORLD = World(**dict.fromkeys((field.name for field in fields(World)), False))
HEALTHY_WORLD = World(season=False, growth=False, feed_gaps=False, campaign=False)
SAMPLE_WORLD = replace(HEALTHY_WORLD, restated=False)
"""Of the bundled files: the healthy world in the columns of a real extract, to which ``restated`` adds."""


@dataclass(frozen=True)
class Simulation:
    """A world's activity, and what any day's extract shows of it.

    Attributes:
        truth: One row per player and month, in the extract's columns, as it really was, and ``ever_arrives``.
        campaign: ``account_id``, ``is_contacted`` and ``effect_months``: the months by which contact prolongs that
            player's stay, known for the control group as well; without rows when there is no campaign.
        campaign_month: Its first day; contact is at the month's beginning.
    """

    world: World
    truth: pl.DataFrame
    campaign: pl.DataFrame
    campaign_month: date
    _rows: pl.DataFrame
    _sessions: Ints

    def extract(self) -> pl.DataFrame:
        """Return the whole extract, as read long after its last month."""
        return self.extract_on(month_start(self._rows["activity_month"].max(), 6))  # type: ignore[arg-type]

    def extract_on(self, day: date) -> pl.DataFrame:
        """Return the extract as read at the beginning of a day, sorted by month and account.

        Shape (n_rows, 12), or 13 with ``restated``. Amounts of a running month are those so far, where it is shown.
        """
        share = (self._sessions < days_since_epoch(day)).mean(axis=1)
        if not self.world.month_to_date:
            share = (self._rows["activity_month"] < month_start(day)).to_numpy().astype(np.float64)
        is_complete = pl.Series(share == 1)
        rows = self._rows.with_columns(_arrived=pl.Series(share > 0), _share=pl.Series(share))
        so_far = (pl.col(MONEY) * pl.col("_share")).round(2)
        rows = rows.with_columns(pl.when(is_complete).then(pl.col(MONEY)).otherwise(so_far).name.keep())
        rows = rows.filter("_arrived", pl.col("_arrives_on") <= day)
        if self.world.late_rows:
            first = (pl.col(MONEY) * pl.col("_first_share")).round(2)
            is_final = pl.col("_corrected_on") <= day
            rows = rows.with_columns(pl.when(is_final).then(pl.col(MONEY)).otherwise(first).name.keep())
        if self.world.future_dates:
            dates = pl.col(_DEPOSITS)
            rows = rows.with_columns(pl.when(dates < day).then(dates).name.keep())
        if self.world.restated:
            month = month_numbers(pl.col("activity_month")).filter(_is_active())
            lifetime = (month.max() - month.min() + 1).over("account_id").fill_null(0)
            rows = rows.with_columns(lifetime_months=lifetime.cast(pl.Int64))
        return rows.select(pl.exclude("^_.*$"))


def simulate_world(
    world: World,
    *,
    n_accounts: int,
    first_month: date,
    n_months: int,
    seed: int,
    variant: Variant | None = None,
    twist: date | None = None,
) -> Simulation:
    """Simulate a variant's players in a world. Pure: same arguments, same extracts.

    Args:
        twist: As in :func:`tests.support.simulator.draw_activity`.

    Raises:
        UsageError: As :func:`tests.support.simulator.draw_activity` does.
    """
    variant = variant or Variant()
    players, rows = draw_activity(n_accounts, first_month, n_months, seed, variant=variant, twist=twist)
    draw = _Draws(world, players, first_month, n_months, seed, variant)
    campaign = draw.campaign()
    rows = draw.with_later_stays(rows, campaign)
    rows = draw.thinned(rows)
    rows = draw.with_amounts_and_dates(rows)
    rows = draw.with_delivery(rows)
    truth = rows.unique(_KEYS, keep="last", maintain_order=True)
    truth = truth.with_columns(ever_arrives=~pl.col("_is_gap")).select(pl.exclude("^_.*$"))
    rows = rows.filter(~pl.col("_is_gap"))
    return Simulation(world, truth, campaign, draw.campaign_month, rows, draw.session_days(rows))


@dataclass(frozen=True)
class _Draws:
    world: World
    players: Players
    first_month: date
    n_months: int
    seed: int
    variant: Variant

    @property
    def campaign_month(self) -> date:
        return month_start(self.first_month, self.n_months // 2)

    def stream(self, name: str) -> np.random.Generator:
        return random_stream(self.seed, self.variant.key, name)

    def places(self, rows: pl.DataFrame) -> tuple[Ints, Ints]:
        """Return the index of each row's player, and its month since the extract began."""
        months = rows.select(month_numbers(pl.col("activity_month")) - month_number(self.first_month)).to_series()
        return np.searchsorted(self.players.account_id, rows["account_id"].to_numpy()), months.to_numpy()

    def per_row(self, name: str, rows: pl.DataFrame) -> Floats:
        """Draw a uniform number for each row, fixed by its account and month."""
        numbers = self.stream(name).random((len(self.players.start), self.n_months))
        return np.asarray(numbers[self.places(rows)])

    def campaign(self) -> pl.DataFrame:
        rng, n = self.stream("campaign"), len(self.players.start)
        contacted, effect = rng.random(n) < _CONTACTED, rng.exponential(_EFFECT, n)
        frame = pl.DataFrame(
            {"account_id": self.players.account_id, "is_contacted": contacted, "effect_months": effect.round(3)}
        )
        month = self.n_months // 2
        is_there = (self.players.start < month) & (self.players.leave >= month)
        return frame.filter(pl.Series(is_there & self.world.campaign))

    def with_later_stays(self, rows: pl.DataFrame, campaign: pl.DataFrame) -> pl.DataFrame:
        p = self.players
        stays = []
        if campaign.height:
            effect = np.zeros(len(p.start))
            reached = campaign.filter("is_contacted")
            effect[np.searchsorted(p.account_id, reached["account_id"].to_numpy())] = reached["effect_months"]
            stays.append(("prolonged", effect > 0, np.floor(p.leave) + 1, p.leave + effect))
        if self.world.returns:
            rng, n = self.stream("returns"), len(p.start)
            again = p.leave + _PAUSE + rng.exponential(3.0, n)
            stays.append(("returned", rng.random(n) < 0.25, again, again + rng.exponential(4.0, n)))
        for name, chosen, start, leave in stays:
            is_shown = chosen & (start < self.n_months) & (leave > start)
            rows = self._with_stay(rows, name, np.flatnonzero(is_shown), start, leave)
        return rows

    def _with_stay(self, rows: pl.DataFrame, name: str, chosen: Ints, start: Floats, leave: Floats) -> pl.DataFrame:
        every = {field.name: getattr(self.players, field.name)[chosen] for field in fields(Players)}
        again = replace(Players(**every), start=start[chosen], leave=leave[chosen])
        player, month, money = draw_stays_again(self.stream(name), again, self.n_months, self.variant)
        known = rows.unique("account_id", keep="first").drop("activity_month", *MONEY)
        further = pl.DataFrame(
            {
                "activity_month": (np.datetime64(self.first_month, "M") + month).astype("M8[D]"),
                "account_id": again.account_id[player],
                **dict(zip(MONEY, money, strict=True)),
            }
        )
        further = further.join(known, on="account_id", maintain_order="left").select(rows.columns)
        # A row of zeros that trails the first stay yields to one of the further stay.
        kept = rows.join(further.filter(_is_active()), on=_KEYS, how="anti", maintain_order="left")
        further = further.join(kept, on=_KEYS, how="anti", maintain_order="left")
        return pl.concat([kept, further]).sort("activity_month", "account_id", maintain_order=True)

    def thinned(self, rows: pl.DataFrame) -> pl.DataFrame:
        if self.world.growth:
            odds = np.exp(_GROWTH * (np.floor(self.players.start) - self.n_months + 1))
            stays = self.stream("growth").random(len(odds)) < odds
            rows = rows.filter(pl.Series(stays[self.places(rows)[0]]))
        if self.world.season:
            month = rows["activity_month"].dt.month().to_numpy().astype(np.float64)
            lack = _SEASON * (1 - np.cos(2 * np.pi * (month - _PEAK) / 12)) / 2
            rows = rows.filter(pl.Series(self.per_row("season", rows) >= lack))
        return rows

    def with_amounts_and_dates(self, rows: pl.DataFrame) -> pl.DataFrame:
        if self.world.heavy_tails:
            rng, n = self.stream("heavy_tails"), len(self.players.start)
            factor = np.where(rng.random(n) < _WHALES, 5 * (1 + rng.pareto(_WHALE_TAIL, n)), 1.0)
            of_row = pl.Series(factor[self.places(rows)[0]])
            rows = rows.with_columns((pl.col(MONEY) * of_row).round(2))
        return self._with_future_dates(rows) if self.world.future_dates else rows

    def _with_future_dates(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Move the first deposits of some players to their second active month, and those of others before it."""
        ordered = rows.sort("account_id", "activity_month", maintain_order=True)
        active = ordered.filter(_is_active()).unique(_KEYS, maintain_order=True)
        months = ordered.group_by("account_id").agg(_first=pl.col("activity_month").min())
        later = active.join(months, on="account_id").filter(pl.col("activity_month") > pl.col("_first"))
        months = months.join(
            later.group_by("account_id").agg(_later=pl.col("activity_month").min()), on="account_id", how="left"
        )
        draw = pl.DataFrame(
            {"account_id": self.players.account_id, "_u": self.stream("future_dates").random(len(self.players.start))}
        )
        rows = rows.join(months, on="account_id", how="left", maintain_order="left")
        rows = rows.join(draw, on="account_id", how="left", maintain_order="left")
        reach = month_numbers(pl.col("_later")) - month_numbers(pl.col("_first"))
        is_revealed = ((pl.col("_u") < _REVEALED) & (reach <= _REACH)).fill_null(value=False)
        # The plain simulation dates some too late without regard to what they do: those are dated back.
        is_too_late = pl.col("ftd_date").dt.month_start() > pl.col("_first")
        day_of_month = pl.duration(days=pl.min_horizontal(pl.col("ftd_date").dt.day(), 28) - 1)
        back, ahead = (pl.col(month) + day_of_month - pl.col("ftd_date") for month in ("_first", "_later"))
        back = pl.when(is_too_late).then(back)
        # The day of a registration is known at once: if it moved ahead, too, its lack would tell who comes back.
        shifts = {"reg_date": back} | dict.fromkeys(_DEPOSITS, pl.when(is_revealed).then(ahead).otherwise(back))
        moved = [pl.col(name) + pl.coalesce(shift, pl.duration()) for name, shift in shifts.items()]
        return rows.with_columns(moved).drop("_first", "_later", "_u")

    def with_delivery(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Add when each row arrives, when its amounts are final, and whether it ever arrives."""
        late, kind, factor = (self.per_row(f"late_{name}", rows) for name in ("days", "kind", "factor"))
        month_end = pl.col("activity_month").dt.month_end()
        days = pl.duration(days=pl.lit(pl.Series(1 + np.floor(late / _LATE * _MAX_LATE_DAYS), dtype=pl.Int64)))
        is_late = self.world.late_rows & (late < _LATE)
        arrives_late, is_corrected = pl.Series(is_late & (kind < 0.5)), pl.Series(is_late & (kind >= 0.5))
        brand = rows["brand_id"].replace_strict(list(BRANDS), list(range(len(BRANDS)))).to_numpy()
        of_brand = brand, self.places(rows)[1]
        shape = len(BRANDS), self.n_months
        is_gap = self.world.feed_gaps & (self.stream("feed_gaps").random(shape) < _GAPS)[of_brand]
        is_filled = (self.stream("filled_gaps").random(shape) < _FILLED)[of_brand]
        filled_after = self.stream("filled_after").integers(30, _MAX_FILL_DAYS, shape)[of_brand]
        filled_on = month_end + pl.duration(days=pl.lit(pl.Series(filled_after)))
        on_time = pl.when(arrives_late).then(month_end + days).otherwise("activity_month")
        return rows.with_columns(
            _arrives_on=pl.when(pl.Series(is_gap & is_filled)).then(filled_on).otherwise(on_time),
            _corrected_on=pl.when(is_corrected).then(month_end + days).otherwise("activity_month"),
            _first_share=pl.Series(0.5 + factor),
            _is_gap=pl.Series(is_gap & ~is_filled),
        )

    def session_days(self, rows: pl.DataFrame) -> Ints:
        """Draw the days of each row's sessions, as days since 1970; shape (n_rows, 8), with repeats."""
        player, month = self.places(rows)
        n_sessions = 1 + np.floor(_MOST_SESSIONS * self.per_row("sessions", rows) ** 2).astype(np.int64)
        numbers = self.stream("days").random((len(self.players.start), self.n_months, _MOST_SESSIONS), dtype=np.float32)
        drawn = numbers[player, month]
        drawn = np.take_along_axis(drawn, np.arange(_MOST_SESSIONS) % n_sessions[:, None], axis=1)
        start = self.players.start[player]
        begun = np.where(np.floor(start) == month, start - np.floor(start), 0.0)[:, None]
        first = rows["activity_month"].to_physical().to_numpy().astype(np.int64)
        n_days = rows["activity_month"].dt.days_in_month().to_numpy().astype(np.int64)
        return np.asarray(first[:, None] + np.floor((begun + (1 - begun) * drawn) * n_days[:, None]).astype(np.int64))


def _is_active() -> pl.Expr:
    return pl.any_horizontal((pl.col(name).fill_null(0.0) != 0) for name in MONEY)
