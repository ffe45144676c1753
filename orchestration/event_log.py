"""Writes to Dagster's event log that a fleet needs to be few: materializations in batches, and standing check outcomes.

Dagster writes materializations of partition ranges in batches itself, one asset's at a time, and documents neither that
nor how to read many outcomes at once. If it stops to do so, each event is written alone, and every outcome is logged.
https://github.com/dagster-io/dagster/blob/1.13.27/python_modules/dagster/dagster/_core/instance/methods/event_methods.py
"""

import logging
import os
from collections.abc import Collection, Sequence

import dagster as dg
from dagster._core.events import DagsterEvent, DagsterEventBatchMetadata, generate_event_batch_id
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

logger = logging.getLogger(__name__)

BATCH = 50  # materializations of an asset that are written together, at most
_OUTCOMES = {AssetCheckExecutionRecordStatus.SUCCEEDED: True, AssetCheckExecutionRecordStatus.FAILED: False}


def log_materializations(context: dg.AssetExecutionContext, events: Sequence[dg.AssetMaterialization]) -> None:
    """Log materializations of one asset, at most ``BATCH``, in one write."""
    is_batch = len(events) > 1
    try:
        op = context.op_execution_context
        step, batch = op._step_execution_context, generate_event_batch_id()  # type: ignore[no-untyped-call]  # noqa: SLF001 see above
        os.environ["DAGSTER_EVENT_BATCH_SIZE"] = str(BATCH + 1)  # read when an event comes; above it, batches are cut
        for i, one in enumerate(events if is_batch else (), start=1):
            is_last = DagsterEventBatchMetadata(batch, i == len(events))
            op._events.append(DagsterEvent.asset_materialization(step, one, is_last))  # noqa: SLF001 see above
    except (AttributeError, TypeError) as error:
        logger.warning("materializations are logged one by one, since Dagster's batches have changed: %s", error)
        is_batch = False
    for one in () if is_batch else events:
        context.log_event(one)


def standing_outcomes(
    instance: dg.DagsterInstance, checks: Collection[tuple[str, str]], keys: Sequence[str]
) -> dict[tuple[str, str], dict[str, bool]]:
    """Return whether each check of an asset has passed for each partition when it was last logged."""
    found: dict[tuple[str, str], dict[str, bool]] = {check: {} for check in checks}
    by_key = {dg.AssetCheckKey(dg.AssetKey(asset), name): (asset, name) for asset, name in checks}
    try:
        infos = instance.event_log_storage.get_asset_check_partition_info(list(by_key), partition_keys=list(keys))
    except (AttributeError, TypeError) as error:
        logger.warning("every outcome of a check is logged, since Dagster's records have changed: %s", error)
        return found
    for info in infos:
        if info.partition_key is not None and info.latest_execution_status in _OUTCOMES:
            found[by_key[info.check_key]][info.partition_key] = _OUTCOMES[info.latest_execution_status]
    return found
