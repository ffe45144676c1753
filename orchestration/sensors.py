"""Sensors: new data asks for a run of exactly the variants that have some, and partitions follow the registry."""

import json
from datetime import UTC, datetime

import dagster as dg

from churn.concurrency import in_threads
from churn.errors import ChurnError
from churn.storage.sources import Sources
from churn.variants import Variant
from churn.weeks import monday_of
from orchestration.assets.scoring import WEEK_TAG
from orchestration.job import churn_prediction_job
from orchestration.partitions import ranges, sync_partitions
from orchestration.resources import Services
from orchestration.schedules import request

TRIGGER_TAG = "churn/trigger"
_LISTINGS_AT_ONCE = 16


@dg.sensor(
    job=churn_prediction_job,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Keeps the partitions equal to the registered variants, and scores those whose input is new.",
)
def new_data_sensor(context: dg.SensorEvaluationContext, services: Services) -> dg.SensorResult:
    """Compare each variant's input version with the one seen last.

    The cursor holds ``{"tick": n, "versions": {key: version}}``. Where it is empty, what was published last stands for
    what was seen, so that switching the sensor on scores only what was never scored.
    """
    try:
        with services.open() as deployment:
            most = deployment.settings.churn_variants_per_run
            registered = deployment.registry(read_only=True).variants()
            keys = sync_partitions(context.instance, registered)
            cursor = json.loads(context.cursor) if context.cursor else None
            seen = cursor["versions"] if cursor else deployment.store().latest_inputs()
            current = input_versions(deployment.sources(), registered)
    except ChurnError as error:
        return dg.SensorResult(skip_reason=f"cannot look for new data: {error}", cursor=context.cursor)
    new = {key for key, version in current.items() if seen.get(key) != version}
    tick = (cursor["tick"] if cursor else 0) + bool(new)
    # A variant whose input is gone for the moment keeps its version: the same file coming back is not new.
    known = {key: version for key, version in (seen | current).items() if key in set(keys)}
    week = monday_of(datetime.now(UTC).date()).isoformat()
    requests = [
        request(f"new-data:{tick}", chunk, {WEEK_TAG: week, TRIGGER_TAG: "new data"})
        for chunk in ranges(keys, new, most)
    ]
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else f"no new input for any of {len(registered)} variants",
        cursor=json.dumps({"tick": tick, "versions": known}, sort_keys=True),
    )


def input_versions(sources: Sources, variants: list[Variant]) -> dict[str, str]:
    """Return the version of each variant's own input, by key, for those that have one."""
    # A listing over all variants would page through every model they ever logged; one each, many at once, does not.
    versions = in_threads(sources.input_version, variants, _LISTINGS_AT_ONCE)
    return {variant.key: version for variant, version in zip(variants, versions, strict=True) if version is not None}
