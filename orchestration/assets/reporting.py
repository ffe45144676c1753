"""The fleet report: an HTML file, written again after each monitoring run. How it is written: ``churn.report``."""

from datetime import UTC, datetime

import dagster as dg

from orchestration.resources import Services


@dg.asset(
    group_name="monitoring",
    deps=["fleet_incidents"],
    kinds={"html"},
    owners=["team:retention"],
    description="An HTML report on the fleet: failures, drift, performance and champions, and a page per variant.",
)
def fleet_report(services: Services) -> dg.MaterializeResult[None]:
    """Write the report of the newest week into ``CHURN_HOME``, where ``churn report`` writes it."""
    from churn.report import write_report  # not when it is only declared

    with services.open() as deployment:
        settings = deployment.settings
        report = write_report(
            deployment.database,
            settings.churn_home / "report.html",
            week=None,
            now=datetime.now(UTC),
            mlflow_ui=settings.churn_mlflow_ui_url,
        )
    return dg.MaterializeResult(
        metadata={
            "path": dg.MetadataValue.path(report.path),
            "link": dg.MetadataValue.url(report.path.as_uri()),
            "size_bytes": dg.MetadataValue.int(report.n_bytes),
            "n_variants": dg.MetadataValue.int(report.n_variants),
            "week": dg.MetadataValue.text(str(report.week) if report.week else "no week was scored yet"),
        }
    )
