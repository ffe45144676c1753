"""What schedules over all registered variants request."""

from collections.abc import Iterator, Mapping

import dagster as dg

from orchestration.partitions import ranges, sync_partitions
from orchestration.resources import Services


def requests_for_all(
    instance: dg.DagsterInstance, services: Services, name: str, most: int, tags: Mapping[str, str] | None = None
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Yield a request for each chunk of the registered variants.

    Args:
        name: Begins the run keys, so that a tick evaluated twice requests nothing twice.
        most: Variants a run.
        tags: For every run.
    """
    with services.open() as deployment:
        registered = deployment.registry(read_only=True).variants()
    if not registered:
        yield dg.SkipReason("no variant is registered in MLflow; log one with experiment_tracking/log_model.py")
        return
    keys = sync_partitions(instance, registered)
    for range_tags in ranges(keys, set(keys), most):
        yield dg.RunRequest(run_key=":".join([name, *range_tags.values()]), tags={**range_tags, **(tags or {})})
