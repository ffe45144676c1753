"""At stake: what is shown of a variant must never decide whether it counts as done. A report that fails leaves a
published variant published, and the others' reports are logged.
"""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.event_log import SqliteEventLogStorage

from churn.errors import SourceError, SourceUnavailableError
from orchestration import checks, event_log, fleet
from orchestration.checks import EVALUATED
from orchestration.fleet import AssetReport, FleetRun

KEYS = ["company-a", "company-b", "company-c"]
PARTITIONS = dg.StaticPartitionsDefinition(KEYS)
UNBUILDABLE, UNLOGGABLE = object(), object()
SPEC = dg.AssetSpec(EVALUATED, skippable=True)


def check(key: str, name: str, *, passed: bool) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(EVALUATED), check_name=name, passed=passed, metadata={}, partition=key
    )


def report(key: str, result: Any) -> AssetReport:
    if result is UNBUILDABLE:
        raise ValueError("there is no such figure")
    evaluations = [
        check(key, "auc_is_not_below_its_limit", passed=True),
        check(key, "no_segment_is_below_its_limit", passed=key != "company-c"),
    ]
    return AssetReport({EVALUATED: {"figure": result}}, evaluations, f"about {key}")


def run(
    attempts: Mapping[str, Any], *later: Any, instance: dg.DagsterInstance | None = None
) -> tuple[dg.ExecuteInProcessResult, list[str]]:
    """Run an op over three variants, in which each comes to what is given; returns the warnings, too.

    ``later`` is what those come to that are left at each retry.
    """
    warnings: list[str] = []
    outcomes = iter(later)

    @dg.multi_asset(
        specs=[SPEC],
        check_specs=checks.specs([EVALUATED]),
        partitions_def=PARTITIONS,
        backfill_policy=dg.BackfillPolicy.single_run(),
        retry_policy=dg.RetryPolicy(max_retries=len(later)),
    )
    def evaluate(context: dg.AssetExecutionContext) -> Iterator[dg.AssetCheckResult]:
        fleet_run = FleetRun(context, [SPEC])
        left = fleet_run.left()
        tried = dict.fromkeys(left, next(outcomes)) if context.retry_number else attempts
        fleet_run.log(iter(tried.items()), report)
        yield from fleet_run.finish()

    tags = {"dagster/asset_partition_range_start": KEYS[0], "dagster/asset_partition_range_end": KEYS[-1]}
    with dg.instance_for_test() if instance is None else nullcontext(instance) as used:
        result = dg.materialize([evaluate], instance=used, tags=tags, raise_on_error=False)
        warnings += [entry.user_message for entry in used.all_logs(result.run_id) if entry.level == 30]
    return result, warnings


def materialized(result: dg.ExecuteInProcessResult) -> dict[str, Mapping[str, Any]]:
    return {str(event.partition): event.metadata for event in result.asset_materializations_for_node("evaluate")}


@pytest.mark.parametrize("unreportable", [UNBUILDABLE, UNLOGGABLE], ids=["building", "logging"])
def test_a_variant_whose_report_fails_is_materialized_and_the_others_are_reported(unreportable: object) -> None:
    result, warnings = run({"company-a": 1, "company-b": unreportable, "company-c": 3})

    assert result.success
    shown = materialized(result)
    assert {key: set(metadata) for key, metadata in shown.items()} == {
        "company-a": {"figure"}, "company-b": set(), "company-c": {"figure"},
    }  # fmt: skip
    assert any("company-b is done, but its report is incomplete" in warning for warning in warnings)
    assert "1 of 3 reports are incomplete" in warnings
    summary = {one.check_name: one for one in result.get_asset_check_evaluations() if one.partition is None}
    described = {name: (one.passed, one.description) for name, one in summary.items()}
    assert described == {
        "auc_is_not_below_its_limit": (False, "Passed for 2 of 3 variants; not evaluated for 1."),
        "no_segment_is_below_its_limit": (False, "Passed for 1 of 3 variants; not evaluated for 1."),
    }


def test_reports_that_come_quickly_are_logged_together_and_known_outcomes_not_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet, "_SLOW_S", 60.0)
    stored: list[int] = []
    storage = SqliteEventLogStorage  # of the test's instance
    together = storage.store_event_batch
    monkeypatch.setattr(
        storage, "store_event_batch", lambda self, events: (stored.append(len(events)), together(self, events))[1]
    )
    with dg.instance_for_test() as instance:
        first, _ = run({"company-a": 1, "company-b": 2, "company-c": 3}, instance=instance)
        assert stored == [2]  # the first did not wait for others
        assert set(materialized(first)) == set(KEYS)
        again, _ = run({"company-a": 1, "company-b": 2, "company-c": 3}, instance=instance)

    def logged(result: dg.ExecuteInProcessResult) -> list[tuple[str, bool]]:
        return [(str(one.partition), one.passed) for one in result.get_asset_check_evaluations() if one.partition]

    assert len(logged(first)) == 6
    assert logged(again) == [("company-c", False)]
    for result in (first, again):
        summary = [one.description for one in result.get_asset_check_evaluations() if one.partition is None]
        assert summary == ["Passed for 3 of 3 variants.", "Passed for 2 of 3 variants."]


@pytest.mark.parametrize("missing", ["generate_event_batch_id", "DagsterEventBatchMetadata"])
def test_without_dagsters_batches_each_is_logged_alone(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    def changed(*_: object) -> None:
        raise TypeError("it takes no such argument")

    monkeypatch.setattr(event_log, missing, changed)
    result, warnings = run({"company-a": 1, "company-b": 2, "company-c": 3})

    assert result.success
    assert set(materialized(result)) == set(KEYS)
    assert not any("incomplete" in warning for warning in warnings)


def test_a_variant_that_failed_is_named_and_not_materialized() -> None:
    result, _ = run({"company-a": 1, "company-b": SourceError("there is no file"), "company-c": 3})

    assert not result.success
    assert set(materialized(result)) == {"company-a", "company-c"}
    (failure,) = (event.step_failure_data.user_failure_data for event in result.get_step_failure_events())
    assert failure is not None
    assert failure.metadata["failed"].value == {"company-b": "there is no file"}
    assert "1 of 3 variants failed: company-b" in str(failure.description)
    (told,) = [event for event in result.all_events if event.event_type is dg.DagsterEventType.ASSET_OBSERVATION]
    assert told.partition == "company-b"
    assert told.asset_observation_data.asset_observation.metadata["error"].text == "there is no file"


def test_a_retry_does_what_is_left_and_its_checks_count_every_variant_of_the_run() -> None:
    unavailable = SourceUnavailableError("S3 did not answer")

    result, _ = run({"company-a": 1, "company-b": unavailable, "company-c": 3}, 2)

    assert result.success
    assert set(materialized(result)) == {"company-b"}  # of the last try
    summary = {one.check_name: one.description for one in result.get_asset_check_evaluations() if one.partition is None}
    assert summary == {
        "auc_is_not_below_its_limit": "Passed for 3 of 3 variants.",
        "no_segment_is_below_its_limit": "Passed for 2 of 3 variants.",
    }
