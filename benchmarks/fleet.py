"""One Dagster run over a range of variants, in a process of its own, as the run launcher starts it.

``python -m benchmarks.fleet FIRST LAST WEEK [RESUMED_RUN_ID]`` prints one JSON object. The time told is the process's
whole life, imports included, since a run per variant pays them too.
"""

import json
import os
import sys
import time

STARTED = time.perf_counter()


def weekly_job() -> object:
    """Return the job, for Dagster to find by name."""
    from orchestration.definitions import defs

    return defs.resolve_job_def("churn_prediction_job")


def main() -> None:
    """Run the job and print what it took."""
    first, last, week, *resumed = sys.argv[1:]
    from churn.deployment.services import open_deployment
    from churn.deployment.settings import load_settings
    from orchestration.instance import dagster_environment
    from tests.support.services import peak_mb

    with open_deployment(load_settings()) as deployment:
        os.environ.update(dagster_environment(deployment))
        import dagster as dg

        from orchestration.assets.scoring import OP_NAME, WEEK_TAG
        from orchestration.fleet import RESUME_TAGS
        from orchestration.partitions import RANGE_END_TAG, RANGE_START_TAG, sync_partitions

        config = {
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            "ops": {OP_NAME: {"config": {"corrected": True}}},  # the week may be past
        }
        with dg.DagsterInstance.get() as instance:
            sync_partitions(instance, deployment.registry(read_only=True).variants())
            options = dg.ReexecutionOptions.from_failure(resumed[0], instance) if resumed else None
            resume_tag = {RESUME_TAGS[0]: "true"} if resumed else {}
            run_started = time.perf_counter()
            with dg.execute_job(
                dg.reconstructable(weekly_job),
                instance=instance,
                tags={RANGE_START_TAG: first, RANGE_END_TAG: last, WEEK_TAG: week, **resume_tag},
                run_config=config,
                raise_on_error=False,
                reexecution_options=options,
            ) as result:
                steps = [event for event in result.all_events if event.is_step_failure]
                held = steps[0].step_failure_data.user_failure_data if steps else None
                failed = held.metadata["failed"].value if held else {}
                said = {"run_id": result.run_id, "success": result.success, "n_failed": len(failed)}
        ended = time.perf_counter()
    print(json.dumps(said | {"seconds": ended - STARTED, "run_seconds": ended - run_started, "peak_mb": peak_mb()}))


if __name__ == "__main__":
    main()
