"""Set-up of a deployment, said line by line: databases, schemas, roles, and a variant's experiment.

Safe to run twice, by two at once, over an older schema and over a deleted experiment.
"""

from collections.abc import Iterator, Sequence

from churn.concurrency import in_threads
from churn.database.schema import ensure_database, ensure_roles, migrate_mlflow, migrate_predictions
from churn.deployment.services import Deployment
from churn.variants import Variant


def set_up_server(deployment: Deployment) -> Iterator[str]:
    """Make what every variant needs; yields a line per thing done."""
    databases = [deployment.database, deployment.dagster_database, deployment.mlflow_database]
    for url in databases:
        if url is not None:
            yield f"database {url.database} at {url.host}:{url.port or 5432}: {_made(ensure_database(url))}"
    made = ensure_roles(deployment.database)
    yield f"roles: {'created ' + ', '.join(made) if made else 'found'}"
    if deployment.mlflow_database is not None:
        yield f"MLflow schema: {_migrated(*migrate_mlflow(deployment.mlflow_database))}"
    yield f"predictions schema: {_migrated(*migrate_predictions(deployment.database))}"


def set_up_variants(deployment: Deployment, variants: Sequence[Variant]) -> Iterator[str]:
    """Make each variant's experiment; yields a line for each."""
    registry = deployment.registry(read_only=False)

    def set_up(variant: Variant) -> str:
        experiment_id, done = registry.ensure_experiment(variant, deployment.artifact_location(variant))
        location = registry.artifact_location(experiment_id)
        return f"experiment {variant.experiment} (id {experiment_id}): {done}, artifacts at {location}"

    yield from in_threads(set_up, variants)


def _made(now: bool) -> str:  # noqa: FBT001 a value to be worded, not a switch
    return "created" if now else "found"


def _migrated(before: str | None, after: str) -> str:
    if before == after:
        return f"already at {after}"
    return f"migrated from {before} to {after}" if before else f"created at {after}"
