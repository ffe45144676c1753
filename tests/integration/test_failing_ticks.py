"""At stake: a sensor or schedule that fails at every tick starts nothing, so no run tells that it is broken."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    ScheduleInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._utils.error import SerializableErrorInfo

from orchestration.failed_runs import failed_runs

NOW = datetime(2026, 11, 16, 12, tzinfo=UTC)
LOCATION = ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(module_name="orchestration"))
REPOSITORY = RemoteRepositoryOrigin(LOCATION, "__repository__")
SENSOR, SCHEDULE = InstigatorType.SENSOR, InstigatorType.SCHEDULE
FAILED = (TickStatus.FAILURE, "ZeroDivisionError: a foreign cursor")
BLIND = (TickStatus.SKIPPED, "cannot check for new data: MLflow did not answer")
IDLE = (TickStatus.SKIPPED, "no new input for any of 4 variants")
FINE = (TickStatus.SUCCESS, None)
NOW_AT_IT = (TickStatus.STARTED, None)

Tick = tuple[TickStatus, str | None]
# Kind, minutes between ticks, ticks with the oldest first; the sentence is of the newest one.
CASES: dict[str, tuple[InstigatorType, float, Sequence[Tick], str | None]] = {
    "a sensor that fails for ever": (SENSOR, 0.5, [FAILED] * 22, FAILED[1]),
    "after it was fine": (SENSOR, 5, [FINE, *[FAILED] * 3], FAILED[1]),
    "with a tick under way": (SENSOR, 5, [*[FAILED] * 3, NOW_AT_IT], FAILED[1]),
    "a sensor that cannot see": (SENSOR, 5, [BLIND] * 3, BLIND[1]),
    "now this, now that": (SENSOR, 5, [FAILED, BLIND, FAILED], FAILED[1]),
    "every six hours, twice": (SENSOR, 360, [FINE, FAILED, FAILED], FAILED[1]),
    "every six hours, once": (SENSOR, 360, [FINE, FAILED], None),
    "for five minutes": (SENSOR, 5, [FINE, *[FAILED] * 2], None),
    "until it healed": (SENSOR, 5, [*[FAILED] * 3, FINE], None),
    "until there was nothing to do": (SENSOR, 5, [*[BLIND] * 3, IDLE], None),
    "nothing to do": (SENSOR, 0.5, [IDLE] * 3, None),
    "no tick yet": (SENSOR, 0.5, [], None),
    "only one under way": (SENSOR, 0.5, [NOW_AT_IT], None),
    "a schedule, once": (SCHEDULE, 10_080, [FAILED], FAILED[1]),
    "a schedule that healed": (SCHEDULE, 1_440, [FAILED, FINE], None),
    "a schedule without variants": (SCHEDULE, 1_440, [IDLE], None),
}


OVER: dict[str, tuple[InstigatorStatus, datetime]] = {
    "switched off": (InstigatorStatus.STOPPED, NOW),
    "left for a week": (InstigatorStatus.RUNNING, NOW - timedelta(days=8)),
}


def add_ticks(
    instance: dg.DagsterInstance,
    name: str,
    kind: InstigatorType,
    minutes: float,
    ticks: Sequence[Tick],
    *,
    status: InstigatorStatus = InstigatorStatus.DECLARED_IN_CODE,
    until: datetime = NOW,
) -> None:
    data = ScheduleInstigatorData("0 6 * * 1") if kind == SCHEDULE else None
    state = InstigatorState(RemoteInstigatorOrigin(REPOSITORY, name), kind, status, data)
    instance.add_instigator_state(state)
    for n, (ended, text) in enumerate(reversed(ticks)):
        is_error = ended == TickStatus.FAILURE
        at = (until - timedelta(minutes=n * minutes)).timestamp()
        instance.create_tick(
            TickData(
                state.instigator_origin_id, name, kind, ended, at, run_ids=[], selector_id=state.selector_id,
                error=SerializableErrorInfo(str(text), [], None) if is_error else None,
                skip_reason=None if is_error else text,
            )
        )  # fmt: skip


def test_what_keeps_failing_is_told_by_its_name_and_nothing_else_is(instance: dg.DagsterInstance) -> None:
    for name, (kind, minutes, ticks, _) in CASES.items():
        add_ticks(instance, name, kind, minutes, ticks)
    for name, (status, until) in OVER.items():
        add_ticks(instance, name, SENSOR, 5, [FAILED] * 3, status=status, until=until)

    found = {run.job: run.sentence for run in failed_runs(instance, NOW)}

    assert found == {
        name: f"its ticks keep failing: {sentence}" for name, (_, _, _, sentence) in CASES.items() if sentence
    }
