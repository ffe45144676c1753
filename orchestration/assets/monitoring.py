"""Monitoring of the fleet: drifted features and open incidents, with checks.

The assets are not partitioned, since drift is decided over all variants. The incident sensor reconciles the incidents
more often and sends the alerts. Not here: the rules (``churn.monitoring``).
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import dagster as dg

from churn.monitoring.conditions import DriftFlag
from churn.monitoring.incidents import Incident, headline, kind_of
from orchestration import checks
from orchestration.assets import asset_of_fleet
from orchestration.assets.metadata import Metadata, table
from orchestration.checks import DRIFTED, EVALUATED, INCIDENTS
from orchestration.failed_runs import failed_runs
from orchestration.resources import Services

_KINDS = {"postgres", "table"}


@asset_of_fleet(DRIFTED, "monitoring", "store_predictions", kinds=_KINDS, check_specs=checks.specs([DRIFTED]))
def drifted_features(services: Services) -> dg.MaterializeResult:
    """Compare every variant's newest batch with its reference, and store what drifted."""
    with services.open() as deployment:
        drift = deployment.fleet_monitor().flag_drift(datetime.now(UTC))
    counts = {"dagster/row_count": len(drift.flags), "variants_compared": drift.n_compared}
    confirmed = {"confirmed_drifts": sum(flag.is_confirmed for flag in drift.flags)}
    metadata: Metadata = {**counts, **confirmed, "drifts": _drift_table(drift.flags)}
    return dg.MaterializeResult(metadata=metadata, check_results=checks.of_fleet(DRIFTED, drift.by_check()))


@asset_of_fleet(INCIDENTS, "monitoring", DRIFTED, EVALUATED, kinds=_KINDS, check_specs=checks.specs([INCIDENTS]))
def fleet_incidents(context: dg.AssetExecutionContext, services: Services) -> dg.MaterializeResult:
    """Examine the whole fleet, and reconcile the incidents; the incident sensor sends the alerts."""
    now = datetime.now(UTC)
    with services.open() as deployment:
        monitor = deployment.fleet_monitor()
        status = monitor.reconcile(now, failed_runs(context.instance, now))
        incidents = monitor.incidents.open()
    for change in status.changes:
        context.log.warning("%s: %s", change.event, change.title)
    unknown = ", ".join(sorted(status.unavailable_kinds)) or "nothing: every kind of problem was examined"
    counts = {"dagster/row_count": len(incidents), "registered_variants": status.n_variants}
    metadata: Metadata = {**counts, "open_incidents": _incident_table(incidents), "not_examined": unknown}
    return dg.MaterializeResult(metadata=metadata, check_results=checks.of_fleet(INCIDENTS, status.by_check()))


def _drift_table(flags: Sequence[DriftFlag]) -> dg.MarkdownMetadataValue:
    rows = [
        (flag.variant, flag.week, flag.drift.feature,
         f"{flag.drift.effect:+.3f}" if flag.drift.effect else "not measured", f"{flag.drift.psi:.3f}",
         f"{100 * flag.drift.unknown_share:.1f} %", "yes" if flag.is_confirmed else "no")
        for flag in sorted(flags, key=lambda flag: (not flag.is_confirmed, -abs(flag.drift.effect)))
    ]  # fmt: skip
    columns = ("variant", "week", "feature", "effect on scores, log-odds", "PSI", "unknown values", "confirmed")
    return table(columns, rows)


def _incident_table(incidents: Sequence[Incident]) -> dg.MarkdownMetadataValue:
    rows = []
    for one in incidents:
        problem, severity = headline(one.kind, one.subject, one.members), kind_of(one.kind).severity
        rows.append((one.incident_id, problem, severity, f"{one.opened_at:%Y-%m-%d %H:%M}"))
    return table(("incident", "problem", "severity", "since"), rows)
