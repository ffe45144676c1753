"""At stake: what nobody reads any more goes, so that a fleet's years fit on a disk, and what somebody reads stays."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from mlflow import MlflowClient

from churn.deployment.services import Deployment
from churn.variants import Variant
from churn.weeks import monday_of
from churn.workflows.collect import collect_versions
from orchestration.event_log import log_materializations
from orchestration.upkeep import purge_runs
from tests.support.batches import week_request
from tests.support.inputs import register_bundled, register_second, register_with_input
from tests.support.site import Run, Site
from tests.support.site import client as site_client

US, EU = Variant("us"), Variant("eu")
KEYS = ["a", "b", "c"]
PARTITIONS = dg.StaticPartitionsDefinition(KEYS)
CHECK = dg.AssetCheckKey(dg.AssetKey("scores"), "passes")


class Config(dg.Config):
    week: int
    variants: list[str]
    fails: list[str]


@dg.multi_asset(specs=[dg.AssetSpec("scores", partitions_def=PARTITIONS, skippable=True)])
def score(context: dg.AssetExecutionContext, config: Config) -> Iterator[dg.Output[None]]:
    done = [key for key in config.variants if key not in config.fails]
    log_materializations(
        context, [dg.AssetMaterialization("scores", partition=key, metadata={"week": config.week}) for key in done]
    )
    for key in done:
        context.log_event(
            dg.AssetCheckEvaluation(
                passed=config.week % 2 == 0, check_name="passes", asset_key=CHECK.asset_key, metadata={}, partition=key
            )
        )
    if config.fails:
        raise dg.Failure("as asked for")
    yield from ()  # what is materialized was logged


def run_week(instance: dg.DagsterInstance, week: int, variants: list[str], fails: tuple[str, ...] = ()) -> str:
    config = {"ops": {"score": {"config": {"week": week, "variants": variants, "fails": list(fails)}}}}
    tags = {"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "c"}
    result = dg.materialize([score], instance=instance, run_config=config, tags=tags, raise_on_error=False)
    return result.run_id


def shown(instance: dg.DagsterInstance) -> dict[str, object]:
    """Return what Dagster's UI tells of each partition, and of the asset."""
    asset = dg.AssetKey("scores")
    records = instance.get_latest_storage_id_by_partition(asset, dg.DagsterEventType.ASSET_MATERIALIZATION)
    found: dict[str, object] = {}
    for key in sorted(records):
        (event,) = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[key]), limit=1
        ).records
        found[key] = event.storage_id, event.asset_materialization and event.asset_materialization.metadata["week"]
    infos = instance.event_log_storage.get_asset_check_partition_info([CHECK], partition_keys=KEYS)
    found["checks"] = sorted((str(info.partition_key), info.latest_execution_status.value) for info in infos)
    return found


def test_old_runs_and_their_events_go_and_each_partitions_newest_stay(instance: dg.DagsterInstance) -> None:
    runs = [run_week(instance, week, KEYS if week < 3 else ["a", "b"]) for week in range(5)]
    failed = run_week(instance, 5, ["a", "b"], fails=("b",))
    before, known = shown(instance), {run.run_id for run in instance.get_runs()}
    newer = run_week(instance, 6, ["a"])
    kept = shown(instance)
    assert before["c"] == kept["c"]
    cutoff = instance.get_run_records(dg.RunsFilter(run_ids=[newer]))[0].create_timestamp

    n_runs, n_events = purge_runs(instance, cutoff)

    assert shown(instance) == kept
    assert dict(kept["checks"])["c"] == AssetCheckExecutionRecordStatus.SUCCEEDED.value  # type: ignore[call-overload]
    left = {run.run_id for run in instance.get_runs()}
    assert left == {newer, runs[2], runs[4]}, [[*runs, failed, newer].index(one) for one in left]
    assert n_runs == len(known) - len(left - {newer})
    assert n_events > 80
    assert len(instance.all_logs(newer)) > 10
    assert {event.dagster_event_type for event in instance.all_logs(runs[2])} <= {
        dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_CHECK_EVALUATION,
        dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
    }  # fmt: skip
    assert purge_runs(instance, cutoff) == (0, 0)


def test_an_instance_whose_log_is_not_in_postgresql_is_left_as_it_is() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run_week(instance, 1, KEYS)
        assert purge_runs(instance, datetime.now(UTC) + timedelta(days=1)) == (0, 0)
        assert instance.get_runs()


def keys(site: Site, variant: Variant) -> list[str]:
    found = site_client("s3").list_objects_v2(Bucket=site.bucket, Prefix=f"{variant.prefix}mlflow/")
    return [one["Key"] for one in found["Contents"]]


@pytest.mark.slow
def test_versions_that_no_alias_and_no_batch_names_go_with_their_files(
    site: Site, log_model: Run, deployment: Deployment
) -> None:
    register_with_input(site, log_model, US)
    register_bundled(site, log_model, EU.key)
    register_second(site, log_model, US)
    register_second(site, log_model, EU)
    scorer, promoter = deployment.scorer(), deployment.promoter()
    scorer.score_variant(week_request(monday_of(datetime.now(UTC).date())).of(US))
    for variant in (US, EU):
        promoter.challenge(variant, 2, "a test")
        promoter.promote(variant, reason="a test", force=True)
        promoter.registry.set_aliases(variant, {"previous": None})
    registry, store, events = promoter.registry, deployment.store(), deployment.events()
    client: MlflowClient = registry.client
    gone = client.get_model_version(EU.registered_model, "1")
    files = keys(site, EU)

    assert collect_versions(registry, store, events, datetime.now(UTC) - timedelta(days=1)) == []
    assert collect_versions(registry, store, events, datetime.now(UTC) + timedelta(days=1)) == ["geography-eu v1"]

    assert [one.version for one in client.search_model_versions(f"name = '{EU.registered_model}'")] == [2]
    assert len(client.search_model_versions(f"name = '{US.registered_model}'")) == 2, "v1 scored a week"
    left = keys(site, EU)
    assert 0 < len(left) < len(files)
    assert not [key for key in left if gone.source.removeprefix("models:/") in key]
    assert registry.resolve(EU).version == 2
    assert collect_versions(registry, store, events, datetime.now(UTC) + timedelta(days=1)) == []
