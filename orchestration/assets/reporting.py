"""The fleet report, an HTML file that each monitoring run writes. Not here: its content (``churn.report``)."""

from datetime import UTC, datetime

import dagster as dg

from orchestration.assets import asset_of_fleet
from orchestration.assets.metadata import Metadata
from orchestration.resources import Services


@asset_of_fleet("fleet_report", "monitoring", "fleet_incidents", kinds={"html"})
def fleet_report(services: Services) -> dg.MaterializeResult[None]:
    """Write the report of the newest week into ``CHURN_HOME``, where ``churn report`` writes it."""
    from churn.report import write_report  # not when it is only declared

    with services.open() as deployment:
        path, mlflow_ui = deployment.settings.churn_home / "report.html", deployment.settings.churn_mlflow_ui_url
        report = write_report(deployment.database, path, week=None, now=datetime.now(UTC), mlflow_ui=mlflow_ui)
    week, link = str(report.week or "no week was scored yet"), dg.MetadataValue.url(report.path.as_uri())
    metadata: Metadata = {"path": report.path, "link": link, "size_bytes": report.n_bytes}
    return dg.MaterializeResult(metadata={**metadata, "variants": report.n_variants, "week": week})
