"""Decisions: members and effects of campaigns. Not partitioned: a campaign may have many variants, and one budget."""

from datetime import UTC, datetime, timedelta

import dagster as dg

from churn.workflows.effects import report_effects
from orchestration.assets import asset_of_fleet
from orchestration.assets.metadata import table
from orchestration.checks import EVALUATED
from orchestration.resources import Services


@asset_of_fleet("campaign_members", "decisions", "store_predictions", kinds={"postgres", "table"})
def campaign_members(services: Services) -> dg.MaterializeResult:
    """Select the members of the campaigns that have begun; one that is refused stops no other, and fails the run."""
    with services.open() as deployment:
        decider = deployment.decider()
        selected = dict(decider.select_due(datetime.now(UTC).date()))
        campaigns = [one for one in decider.decisions.summaries() if one["closed_at"] is None]
    columns = ("name", "policy", "n_offered", "n_control", "n_held_out", "n_removed", "n_exposed", "n_control_exposed")
    if refused := {name: str(error) for name, error in selected.items() if error is not None}:
        raise dg.Failure(f"no members selected: {'; '.join(refused.values())}", metadata=refused, allow_retries=False)
    shown = table(columns, [[one[name] for name in columns] for one in campaigns])
    return dg.MaterializeResult(metadata={"selected_now": ", ".join(selected) or "none", "open_campaigns": shown})


@asset_of_fleet("campaign_effects", "decisions", "campaign_members", EVALUATED, kinds={"postgres"})
def campaign_effects(services: Services) -> dg.MaterializeResult:
    """Measure the effects of campaigns, and of any at all; one whose effect is unknown says why."""
    today, found = datetime.now(UTC).date(), {}
    with services.open() as deployment:
        decider = deployment.decider()
        for one in decider.decisions.summaries():
            if one["selected_at"] is not None and one["starts_on"] > today - timedelta(days=400):
                found[one["name"]] = report_effects(decider, one["name"], one["control_share"], today)["sentences"]
        found["any campaign at all"] = report_effects(decider, None, 0.0, today)["sentences"][1:]
    rows = [(name, sentence) for name, sentences in found.items() for sentence in sentences]
    return dg.MaterializeResult(metadata={"effects": table(("campaign", "effect"), rows)})
