"""Run the weekly job in a process of its own, as a run launcher does: ``run_job.py FIRST LAST WEEK [RESUMED_RUN_ID]``.

The instance is the one that ``DAGSTER_HOME`` names. The first line printed is the run's id, before anything is scored.
"""

import sys

import dagster as dg

from orchestration.assets.scoring import OP_NAME, WEEK_TAG
from orchestration.partitions import RANGE_END_TAG, RANGE_START_TAG


def weekly_job() -> dg.JobDefinition:
    from orchestration.definitions import defs

    return defs.resolve_job_def("churn_prediction_job")


def promotion_job() -> dg.JobDefinition:
    from orchestration.definitions import defs

    return defs.resolve_job_def("promotion_job")


def main() -> None:
    first, last, week, *resumed = sys.argv[1:]
    with dg.DagsterInstance.get() as instance:
        options = dg.ReexecutionOptions.from_failure(resumed[0], instance) if resumed else None
        tags = {RANGE_START_TAG: first, RANGE_END_TAG: last, WEEK_TAG: week}
        if resumed:
            tags["dagster/is_resume_retry"] = "true"  # as the UI and the daemon's retries say it
        with dg.execute_job(
            dg.reconstructable(weekly_job),
            instance=instance,
            tags=tags,
            run_config={"ops": {OP_NAME: {"config": {"corrected": True}}}},  # a past week has no history in the tests
            raise_on_error=False,
            reexecution_options=options,
        ) as result:
            sys.exit(0 if result.success else 1)


if __name__ == "__main__":
    main()
