"""The Dagster instance of a deployment: its home folder, its configuration, and the environment that points to both."""

import importlib.resources
import os
import shutil
from pathlib import Path

from churn.deployment.services import Deployment

CONFIG = Path(str(importlib.resources.files("orchestration"))) / "config"


def dagster_environment(deployment: Deployment) -> dict[str, str]:
    """Prepare the instance's home, unless ``DAGSTER_HOME`` names one; returns the environment variables for it."""
    home = Path(os.environ.get("DAGSTER_HOME") or deployment.settings.churn_home.absolute() / "dagster")
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists() or "DAGSTER_HOME" not in os.environ:
        shutil.copyfile(CONFIG / "dagster.yaml", home / "dagster.yaml")
    # If the server itself crashes, the last events of Dagster's log can be lost, but never a prediction.
    quick = deployment.dagster_database.update_query_dict({"options": "-c synchronous_commit=off"})
    url = quick.set(drivername="postgresql").render_as_string(hide_password=False)
    return {
        "DAGSTER_HOME": str(home),
        "CHURN_DAGSTER_DATABASE_URL": url,
        "CHURN_CONCURRENT_RUNS": str(deployment.settings.churn_concurrent_runs),
        # A run over thousands of partitions plans them as a range, not one event each (orchestration.assets.scoring).
        "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS": "1",
    }
