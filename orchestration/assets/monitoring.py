"""Watching the fleet as assets: what drifts, and what is wrong, with checks whose history the UI keeps.

Unpartitioned, since what is odd in one variant is decided over all of them. The sensor in ``orchestration.alerting``
takes the same look more often and sends the alerts; here is what people see of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from churn.markdown import markdown_table
from churn.monitoring.conditions import describe_drift, drifted
from churn.monitoring.incidents import KINDS, headline
from orchestration.alerting import failed_runs
from orchestration.resources import Services

if TYPE_CHECKING:
    from churn.monitoring.conditions import DriftFlag
    from churn.monitoring.incidents import Incident
    from churn.workflows.monitor import Drifts

DRIFTS, INCIDENTS = "drifted_features", "fleet_incidents"

_MOST_NAMED = 50
_CLAIMS = {
    DRIFTS: {
        "no_input_drifts": (
            "No variant's input differs from its model's reference two weeks running.",
            "input_drifted",
        ),
        "no_scores_drift": ("No variant's scores do.", "scores_drifted"),
        "missing_values_are_usual": ("In this week's batches no more values are missing than were.", "input_drifted"),
        "levels_are_known": ("In this week's batches no more levels are unknown than were.", "input_drifted"),
    },
    INCIDENTS: {
        "volumes_are_usual": ("Every variant has about as many rows as it usually has.", "volume_unusual"),
        "data_is_fresh": ("Every variant was scored on its own data, which is no older than usual.", "data_stale"),
        "every_variant_was_scored": ("Every registered variant was scored for the week.", "variants_failed"),
        "performance_holds": ("No champion's ROC AUC lies under its limit.", "performance_low"),
        "segments_hold": ("No part of the accounts is scored badly where all together are not.", "segment_low"),
    },
}
_KINDS_OF = {"every_variant_was_scored": ("variants_failed", "week_missed")}


def _specs(asset: str) -> list[dg.AssetCheckSpec]:
    return [dg.AssetCheckSpec(name, asset=asset, description=claim) for name, (claim, _) in _CLAIMS[asset].items()]


@dg.asset(
    name=DRIFTS,
    deps=["store_predictions"],
    check_specs=_specs(DRIFTS),
    group_name="monitoring",
    kinds={"postgres", "table"},
    owners=["team:retention"],
    description="Features and scores whose distribution differs from the reference of the model, over the whole fleet.",
)
def drifted_features(services: Services) -> dg.MaterializeResult:
    """Compare every variant's newest batch, and write down what drifts."""
    with services.open() as deployment:
        drifts = deployment.watch().flag(datetime.now(UTC))
    confirmed = [flag for flag in drifts.flags if flag.is_confirmed]
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": dg.MetadataValue.int(len(drifts.flags)),
            "dagster/relation_identifier": dg.MetadataValue.text("drift_flags"),
            "n_variants_compared": dg.MetadataValue.int(drifts.n_compared),
            "n_confirmed": dg.MetadataValue.int(len(confirmed)),
            "drifts": dg.MetadataValue.md(_drift_table(drifts.flags)),
        },
        check_results=_checks(DRIFTS, _members_of_drifts(drifts)),
    )


@dg.asset(
    name=INCIDENTS,
    deps=[DRIFTS, "evaluated_batches"],
    check_specs=_specs(INCIDENTS),
    group_name="monitoring",
    kinds={"postgres", "table"},
    owners=["team:retention"],
    description="What is wrong with the fleet, one incident a kind of trouble; told when it opens, grows or ends.",
)
def fleet_incidents(context: dg.AssetExecutionContext, services: Services) -> dg.MaterializeResult:
    """Look at the whole fleet, and settle what is wrong; the sensor sends the alerts."""
    now = datetime.now(UTC)
    with services.open() as deployment:
        watch = deployment.watch()
        looked = watch.look(now, failed_runs(context.instance, now))
        incidents = watch.incidents.open()
    for change in looked.changes:
        context.log.warning("%s: %s", change.event, change.title)
    members = {
        name: looked.members(*kinds) if looked.not_watched.isdisjoint(kinds) else None
        for name, kinds in ((name, _kinds(INCIDENTS, name)) for name in _CLAIMS[INCIDENTS])
    }
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": dg.MetadataValue.int(len(incidents)),
            "dagster/relation_identifier": dg.MetadataValue.text("incidents"),
            "n_variants": dg.MetadataValue.int(looked.n_variants),
            "open": dg.MetadataValue.md(_incident_table(incidents)),
            "not_watched": dg.MetadataValue.json(sorted(looked.not_watched)),
        },
        check_results=_checks(INCIDENTS, members),
    )


monitoring_job = dg.define_asset_job(
    "monitoring_job",
    selection=dg.AssetSelection.assets(DRIFTS, INCIDENTS, "fleet_report"),
    description="Finds what drifts and what is wrong over the whole fleet, and writes the report.",
)


@dg.schedule(
    job=monitoring_job,
    cron_schedule="0 7 * * 1",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every Monday at 07:00 UTC, after the week was scored and past ones were judged.",
)
def weekly_monitoring_schedule() -> dg.RunRequest:
    """Request a look."""
    return dg.RunRequest()


def _kinds(asset: str, check: str) -> Sequence[str]:
    return _KINDS_OF.get(check, (_CLAIMS[asset][check][1],))


def _checks(asset: str, members: Mapping[str, Mapping[str, str] | None]) -> list[dg.AssetCheckResult]:
    return [_check(asset, name, found) for name, found in members.items()]


def _check(asset: str, name: str, members: Mapping[str, str] | None) -> dg.AssetCheckResult:
    if members is None:  # Dagster wants a result of each check, and what was not looked at has not passed
        return dg.AssetCheckResult(
            asset_key=dg.AssetKey(asset),
            check_name=name,
            passed=False,
            severity=dg.AssetCheckSeverity.WARN,
            description="not judged: the registry did not answer",
        )
    is_error = KINDS[_CLAIMS[asset][name][1]].severity == "error"
    return dg.AssetCheckResult(
        asset_key=dg.AssetKey(asset),
        check_name=name,
        passed=not members,
        severity=dg.AssetCheckSeverity.ERROR if is_error else dg.AssetCheckSeverity.WARN,
        description=f"{len(members)} variants" if members else None,
        metadata={
            "n_variants": dg.MetadataValue.int(len(members)),
            "variants": dg.MetadataValue.md(_table(("variant", "what"), sorted(members.items()))),
        },
    )


def _members_of_drifts(drifts: "Drifts") -> dict[str, dict[str, str]]:
    inputs, scores = (dict(condition.members) for condition in drifted(drifts.flags))
    levels = [flag for flag in drifts.unknown if flag.drift.feature in drifts.categories.get(flag.batch_id, ())]
    missing = [flag for flag in drifts.unknown if flag not in levels]
    return {
        "no_input_drifts": inputs,
        "no_scores_drift": scores,
        "missing_values_are_usual": _sentences(missing),
        "levels_are_known": _sentences(levels),
    }


def _sentences(flags: Iterable["DriftFlag"]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for flag in flags:
        found.setdefault(flag.variant, []).append(describe_drift(flag.drift))
    return {key: ", ".join(told) for key, told in found.items()}


def _drift_table(flags: Sequence["DriftFlag"]) -> str:
    ordered = sorted(flags, key=lambda flag: (not flag.is_confirmed, -flag.drift.excess_psi))
    columns = ("variant", "week", "feature", "PSI", "unknown", "two weeks running")
    rows = [
        (
            flag.variant,
            str(flag.week),
            flag.drift.feature,
            f"{flag.drift.psi:.3f}",
            f"{100 * flag.drift.unknown_share:.1f} %",
            "yes" if flag.is_confirmed else "not yet",
        )
        for flag in ordered
    ]
    return _table(columns, rows)


def _incident_table(incidents: Sequence["Incident"]) -> str:
    columns = ("incident", "what", "severity", "since")
    rows = [
        (
            str(one.incident_id),
            headline(one.kind, one.subject, one.members),
            KINDS[one.kind].severity,
            f"{one.opened_at:%Y-%m-%d %H:%M}",
        )
        for one in incidents
    ]
    return _table(columns, rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table of at most 50 rows."""
    if not rows:
        return "none"
    more = len(rows) - _MOST_NAMED
    return markdown_table(columns, rows[:_MOST_NAMED]) + (f"\n\nand {more} more" if more > 0 else "")
