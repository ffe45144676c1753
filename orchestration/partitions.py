"""Partitions: one dynamic partition per registered variant, kept equal to the MLflow registry.

The week is not a dimension, but a tag of the run: variants times weeks would exceed Dagster's limit of keys in a year.
https://docs.dagster.io/guides/build/partitions-and-backfills
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby

import dagster as dg
from dagster._core.storage.dagster_run import FINISHED_STATUSES

from churn.defaults import PARTITIONS_NAME
from churn.deployment.settings import load_settings
from churn.errors import UsageError
from churn.variants import Variant
from churn.wording import listed

logger = logging.getLogger(__name__)

_MOST_DELETED = 3
_NAME_BEFORE_1_0 = "variants"


def _name() -> str:
    try:
        return load_settings().churn_partitions_name
    except UsageError:
        return PARTITIONS_NAME  # nothing runs until the settings are right


variants_partitions = dg.DynamicPartitionsDefinition(name=_name())

RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"
RETRIED_TAG, RETRY_TAG = "dagster/will_retry", "dagster/auto_retry_run_id"

_PARTITION_TAG = "dagster/partition"
BOUND_TAGS = (RANGE_START_TAG, RANGE_END_TAG, _PARTITION_TAG)
"""Tags that name a run's variants: the bounds of its range, or its one partition."""
_RETRIED_WITHIN = timedelta(days=1)


def sync_partitions(instance: dg.DagsterInstance, registered: Sequence[Variant]) -> list[str]:
    """Make the partitions equal to the registered variants, except for bounds of runs that are not finished.

    A run resolves its range by the first and last key when it starts, which may be long after it was requested. If one
    of them were missing it would fail, and if one had been added again, at the end, it would resolve to other variants.
    If the listing lacks more than a tenth of the partitions, and more than three, it may have come back short: none is
    deleted, and a warning says so. Returns the keys in Dagster's order, which is the order of their addition and that
    of ranges; keys that have an order from before 1.0 keep it.
    """
    name = str(variants_partitions.name)
    keys = [variant.key for variant in registered]
    existing = set(instance.get_dynamic_partitions(name))
    obsolete = existing.difference(keys)
    if len(obsolete) > max(_MOST_DELETED, len(existing) // 10):
        logger.warning(
            "MLflow's listing lacks %d of %d partitions (%s), so no partition is deleted; check MLflow, and delete "
            "them in Dagster if these variants are gone",
            len(obsolete), len(existing), listed(sorted(obsolete)),
        )  # fmt: skip
        obsolete = set()
    for key in obsolete - _bounds(instance) if obsolete else ():
        instance.delete_dynamic_partition(name, key)
    if not existing:
        order = {key: i for i, key in enumerate(instance.get_dynamic_partitions(_NAME_BEFORE_1_0))}
        keys.sort(key=lambda key: order.get(key, len(order)))
    if missing := [key for key in keys if key not in existing]:
        instance.add_dynamic_partitions(name, missing)
    return list(instance.get_dynamic_partitions(name))


def _bounds(instance: dg.DagsterInstance) -> set[str]:
    """Return the first and last variants of the runs that are not finished, or that Dagster will retry."""
    is_open = dg.RunsFilter(statuses=[status for status in dg.DagsterRunStatus if status not in FINISHED_STATUSES])
    since = datetime.now(UTC) - _RETRIED_WITHIN
    is_retried = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], tags={RETRIED_TAG: "true"}, created_after=since)
    to_retry = [run for run in instance.get_runs(is_retried) if RETRY_TAG not in run.tags]
    return {run.tags[tag] for run in [*instance.get_runs(is_open), *to_retry] for tag in BOUND_TAGS if tag in run.tags}


def ranges(ordered: Sequence[str], wanted: Collection[str], most: int) -> Iterator[dict[str, str]]:
    """Cover the wanted keys, and no others, with ranges of at most ``most`` keys (0: any); yields the tags of each."""
    for is_wanted, group in groupby(ordered, lambda key: key in wanted):
        keys = list(group) if is_wanted else []
        size = most or len(keys) or 1
        for i in range(0, len(keys), size):
            yield {RANGE_START_TAG: keys[i], RANGE_END_TAG: keys[i : i + size][-1]}


def span(tags: Mapping[str, str], ordered: Sequence[str]) -> list[str]:
    """Return the keys of the range, or of the one partition, named by a run's tags; none if a bound no longer exists.

    >>> span({RANGE_START_TAG: "b", RANGE_END_TAG: "c"}, ["a", "b", "c", "d"])
    ['b', 'c']
    """
    start, end = (tags.get(tag, tags.get(_PARTITION_TAG)) for tag in (RANGE_START_TAG, RANGE_END_TAG))
    if start not in ordered or end not in ordered:
        return []
    return list(ordered[ordered.index(start) : ordered.index(end) + 1])
