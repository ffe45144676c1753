"""The Dagster instance of a deployment: its home folder, its configuration, and the environment that points to both."""

import importlib.resources
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    return {
        "DAGSTER_HOME": str(home),
        "CHURN_DAGSTER_DATABASE_URL": quick.set(drivername="postgresql").render_as_string(hide_password=False),
        "CHURN_CONCURRENT_RUNS": str(deployment.settings.churn_concurrent_runs),
        # A run over thousands of partitions plans them as a range, not one event each (orchestration.assets.scoring).
        "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS": "1",
    }


def execute_here(job: Any, instance: Any, config: Mapping[str, Any], tags: Mapping[str, str]) -> Any:
    """Execute a run in this process; unlike one of ``execute_in_process``, the UI knows its code location."""
    from dagster._core.definitions.job_base import InMemoryJob
    from dagster._core.execution.api import execute_run
    from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("churn"), "__repository__")
    origin, all_tags = RemoteJobOrigin(repository, job.name), {**job.run_tags, **tags}
    run = instance.create_run_for_job(job, run_config=config, tags=all_tags, remote_job_origin=origin)
    return execute_run(InMemoryJob(job), run, instance)
