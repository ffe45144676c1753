"""Set-up of databases, schemas, roles and experiments. Safe to repeat, concurrently too, and over an older schema."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import sqlalchemy as sa

from churn.database.erasure import record_retention
from churn.database.schema import ensure_database, ensure_roles, migrate_mlflow, migrate_predictions
from churn.variants import Variant
from churn.workflows.fleet import Attempts, for_each_variant

if TYPE_CHECKING:
    from churn.registry.registry import Registry


def set_up_server(database: sa.URL, dagster: sa.URL, mlflow: sa.URL | None, *, keep_weeks: int = 0) -> Iterator[str]:
    """Create databases, schemas and roles, MLflow's unless it is elsewhere (``None``); yields a line for each step."""
    for url in (database, dagster, mlflow):
        if url is not None:
            is_new = ensure_database(url)
            yield f"database {url.database} at {url.host}:{url.port or 5432}: {'created' if is_new else 'found'}"
    created = ensure_roles(database)
    yield f"roles: {'created ' + ', '.join(created) if created else 'found'}"
    if mlflow is not None:
        yield f"MLflow schema: {_migrated(*migrate_mlflow(mlflow))}"
    yield f"predictions schema: {_migrated(*migrate_predictions(database))}"
    record_retention(database, keep_weeks)


def set_up_variants(
    registry: "Registry", artifact_location: Callable[[Variant], str], variants: Sequence[Variant]
) -> Attempts[list[str]]:
    """Create each variant's experiment; yields each key with its lines or the error."""

    def set_up(variant: Variant) -> list[str]:
        experiment, done = registry.ensure_experiment(variant, artifact_location(variant))
        place = f"artifacts at {experiment.artifact_location}"
        return [f"experiment {experiment.name} (id {experiment.experiment_id}): {done}, {place}"]

    yield from for_each_variant(set_up, [variant.key for variant in variants])


def _migrated(before: str | None, after: str) -> str:
    if before == after:
        return f"already at {after}"
    return f"migrated from {before} to {after}" if before else f"created at {after}"
