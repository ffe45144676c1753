"""Effects of campaigns: their members' outcomes, once these have matured, against the control group.

Not here: the statistics (``churn.decisions.effects``), and who is a member (``churn.workflows.decide``).
"""

import math
from collections.abc import Mapping
from datetime import date
from typing import Any

import polars as pl
from polars import selectors as cs

from churn.data.columns import Columns
from churn.data.labels import Horizon, label
from churn.decisions.effects import measure, needed, smallest
from churn.errors import ChurnError
from churn.variants import Variant
from churn.workflows.decide import Decider
from churn.workflows.evaluate import build_reports
from churn.workflows.fleet import for_each_variant, results_of
from churn.workflows.ingest import read_columns, with_numbers

_CHANGE = -0.05  # of churn, for which the accounts needed are named
_SHOWN = 22  # rows; of more, which are of over ten variants, those that are claimed
_UNPLANNED = "without members and a control group nothing will be said about an effect"
_PLANNED = (
    "plan: {n:,} accounts with a mean score of {churn:.2f} show a fall of churn of {smallest_at_any_look} points with "
    "a power of 80 %, whenever one looks ({smallest_at_one_look} at a single look); 5 points need "
    "{needed_at_any_look:,} accounts ({needed_at_one_look:,}); outcomes are known on {known_on}"
)
_CHURN = "{mean_offered:.1%} of {n_offered:,} offered, {mean_control:.1%} of {n_control:,} control"
_REVENUE = "{mean_offered:,.2f} of {n_offered:,} offered, {mean_control:,.2f} of {n_control:,} control"


def effects_of(decider: Decider, campaign: str | None, today: date) -> pl.DataFrame:
    """Return the effects of a campaign, as :func:`churn.decisions.effects.measure` does; empty before labels mature.

    ``None`` is the effect of any campaign at all: the held-out accounts above their first cut are the control.
    """
    members, horizon = decider.decisions.members(campaign), Horizon(decider.horizon_months)
    if campaign is None:
        members = members.sort("as_of").unique(["company", "account_id"], keep="first", maintain_order=True)
        members = members.with_columns(is_offered=pl.col("arm") != "held_out")
    else:
        members = members.filter(pl.col("arm") != "held_out").with_columns(is_offered=pl.col("arm") == "offered")
    mature = members.filter(pl.col("as_of") <= horizon.newest_mature(today))
    of_variant = {str(key): rows for (key,), rows in mature.partition_by("variant", as_dict=True).items()}

    def join(variant: Variant) -> pl.DataFrame:
        return _with_outcomes(decider, variant, of_variant[variant.key], today)

    joined = results_of(for_each_variant(join, sorted(of_variant))).values()
    planned = dict(members["variant"].value_counts().iter_rows())
    return measure(pl.concat(joined), planned) if joined else pl.DataFrame()


def _with_outcomes(decider: Decider, variant: Variant, members: pl.DataFrame, today: date) -> pl.DataFrame:
    """Return a variant's members that have a label, as ``measure`` needs them; late reports move months not counted."""
    columns = read_columns(decider.ingestion.sources, variant) or Columns()
    known, horizon = decider.ingestion.history.open(variant), Horizon(decider.horizon_months)
    reports, month = build_reports(known, columns), pl.col("activity_month")
    facts, _ = with_numbers(known.facts, [columns.revenue] if columns.revenue else [], columns, 1.0)
    revenue = pl.col(columns.revenue).fill_nan(None) if columns.revenue else pl.lit(0.0)
    newest = facts.sort("known_at", maintain_order=True).unique(["account_id", "activity_month"], keep="last")
    joined = []
    for (as_of,), of_day in members.partition_by("as_of", as_dict=True).items():
        labels = label(reports, of_day["account_id"].to_numpy(), as_of, today=today, horizon=horizon)
        within = month.is_between(horizon.first_month(as_of), horizon.last_month(as_of))
        brought = newest.filter(within).group_by("account_id").agg(net_revenue=revenue.sum().cast(pl.Float64))
        outcomes = pl.DataFrame({"account_id": labels.account_ids, "churned": labels.churned})
        joined.append(of_day.join(outcomes, "account_id").join(brought, "account_id", "left"))
    money, cohort = pl.col("net_revenue", "value_at_risk").fill_null(0.0), pl.col("as_of").dt.month_start()
    return pl.concat(joined).select("variant", "is_offered", "is_exposed", "churned", "score", money, cohort=cohort)


def report_effects(decider: Decider, campaign: str | None, control_share: float, today: date) -> dict[str, Any]:
    """Return what a campaign can show (``plan``), its ``effects``, and both as ``sentences``, the plan's first."""
    members = decider.decisions.members(campaign).filter(pl.col("arm") != "held_out")
    plan = _plan(members, control_share, Horizon(decider.horizon_months))
    sentences, found = [(_PLANNED if "churn" in plan else _UNPLANNED).format(**plan)], pl.DataFrame()
    try:
        found = effects_of(decider, campaign, today)
    except ChurnError as error:  # members and contacts are shown in spite of it
        sentences.append(f"the effect is unknown: {error}")
    if found.is_empty():
        return {"plan": plan, "effects": [], "sentences": sentences}
    finite = pl.when(cs.float().is_finite()).then(cs.float()).name.keep()  # as JSON has no others
    shown = found.filter(pl.col("variant").is_null() | pl.col("is_claimed") | (len(found) <= _SHOWN))
    sentences += [_found(one) for one in shown.to_dicts()]
    return {"plan": plan, "effects": found.with_columns(finite).to_dicts(), "sentences": sentences}


def _plan(members: pl.DataFrame, control_share: float, horizon: Horizon) -> dict[str, Any]:
    """Return the smallest fall of churn that is found, in points, and the accounts needed for one of 5."""
    n, scores, as_ofs = len(members), members["score"].to_numpy(), members["as_of"].to_list()
    if not control_share or not n or not 0 < scores.mean() < 1:
        return {"n": n}
    churn, n_claims = float(scores.mean()), 2 if members["variant"].n_unique() == 1 else 4
    figures: dict[str, Any] = {"n": n, "churn": churn, "known_on": horizon.matures_on(max(as_ofs))}
    for looks, claims in (("any", n_claims), ("one", 0)):
        fall = smallest(churn, n, control_share, claims)
        figures[f"smallest_at_{looks}_look"] = None if fall is None else round(100 * fall, 1)
        figures[f"needed_at_{looks}_look"] = needed(churn, _CHANGE, control_share, claims)
    return figures


def _found(of: Mapping[str, Any]) -> str:
    name, arms, factor, unit = ("net revenue, capped", _REVENUE, 1, "")
    if of["outcome"] == "churn":
        name, arms, factor, unit = ("churn", _CHURN, 100, " points")
    found = f"{of['status']}, so nothing is said"
    if of["status"] == "ok":
        low, value, high = (factor * of[end] for end in ("low", "difference", "high"))
        claim = "an effect" if of["is_claimed"] else "no effect is shown"
        shrunken = "" if math.isnan(of["shrunken"]) else f", shrunken {factor * of['shrunken']:+,.1f}"
        found = f"{value:+,.1f}{unit} ({low:+,.1f} to {high:+,.1f}, at every look{shrunken}): {claim}"
    contacted = "contacted {exposed_offered:.0%}, of the control {exposed_control:.0%}".format(**of)
    return f"{of['variant'] or 'all accounts'}, {name}: {arms.format(**of)}; {found}; {contacted}".replace("%", " %")
