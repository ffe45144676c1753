"""What schedules over all registered variants request."""

from collections.abc import Iterator, Mapping

import dagster as dg

from orchestration.partitions import RANGE_END_TAG, RANGE_START_TAG, ranges, span, sync_partitions
from orchestration.resources import Services

TICK_TAG = "churn/tick"
"""What the runs of one tick have in common, and their retries; filter the list of runs by it."""


def requests_for_all(
    instance: dg.DagsterInstance,
    services: Services,
    tick: str,
    *,
    most: int | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Yield a request for each chunk of the registered variants.

    A daemon that died between two runs of a tick evaluates it again. What was requested by then is requested as it was,
    which Dagster knows by the run key, and what is left in chunks of its own: variants that came or went in between
    would shift all bounds, and others be scored twice.

    Args:
        tick: Begins the run keys, so that a tick evaluated twice requests nothing twice.
        most: Variants a run; ``None``: what CHURN_VARIANTS_PER_RUN says.
        tags: For every run.
    """
    with services.open() as deployment:
        registered = deployment.registry(read_only=True).variants()
        most = deployment.settings.churn_variants_per_run if most is None else most
    if not registered:
        yield dg.SkipReason("no variant is registered in MLflow; log one with experiment_tracking/log_model.py")
        return
    keys = sync_partitions(instance, registered)
    requested = _requested(instance, tick)
    left = {variant.key for variant in registered} - {key for chunk in requested for key in span(chunk, keys)}
    for chunk in [*requested, *ranges(keys, left, most)]:
        yield request(tick, chunk, tags or {})


def request(tick: str, chunk: Mapping[str, str], tags: Mapping[str, str]) -> dg.RunRequest:
    """Request a run for a chunk, which is the tags of a range."""
    return dg.RunRequest(run_key=":".join([tick, *chunk.values()]), tags={**chunk, TICK_TAG: tick, **tags})


def _requested(instance: dg.DagsterInstance, tick: str) -> list[dict[str, str]]:
    """Return the chunks that a tick has runs of already, the first first."""
    runs = instance.get_runs(dg.RunsFilter(tags={TICK_TAG: tick}))
    bounds = dict.fromkeys((run.tags[RANGE_START_TAG], run.tags[RANGE_END_TAG]) for run in reversed(runs))
    return [{RANGE_START_TAG: start, RANGE_END_TAG: end} for start, end in bounds]
