"""The partition is the variant: one dynamic partition per registered variant, kept equal to the MLflow registry.

The week is no dimension: variants times weeks would pass Dagster's limit of keys within a year. It belongs to the run.
"""

from collections.abc import Collection, Iterator, Sequence

import dagster as dg

from churn.variants import Variant

variants_partitions = dg.DynamicPartitionsDefinition(name="variants")

RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"


def sync_partitions(instance: dg.DagsterInstance, registered: Sequence[Variant]) -> list[str]:
    """Make the partitions equal to the registered variants.

    Returns:
        The keys in Dagster's order, which is that of their addition and which ranges follow.
    """
    name = str(variants_partitions.name)
    keys = {variant.key for variant in registered}
    held = instance.get_dynamic_partitions(name)
    for key in set(held) - keys:
        instance.delete_dynamic_partition(name, key)
    missing = [variant.key for variant in registered if variant.key not in set(held)]
    if missing:
        instance.add_dynamic_partitions(name, missing)
    return list(instance.get_dynamic_partitions(name))


def ranges(ordered: Sequence[str], wanted: Collection[str], most: int) -> Iterator[dict[str, str]]:
    """Cover the wanted keys, and no other, with ranges of at most ``most`` keys; yields the tags of each."""
    start, size = None, 0
    for i, key in enumerate(ordered):
        if key not in wanted:
            continue
        start, size = start or key, size + 1
        is_last = i + 1 == len(ordered) or ordered[i + 1] not in wanted
        if is_last or size == most:
            yield {RANGE_START_TAG: start, RANGE_END_TAG: key}
            start, size = None, 0
