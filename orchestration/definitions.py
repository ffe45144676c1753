"""Assembly of the code location: assets, jobs, schedules, sensors, resources. Read this first.

Not here: any definition. Loading it opens no service.
"""

import dagster as dg

from orchestration import jobs, schedules, sensors
from orchestration.assets.decisions import campaign_effects, campaign_members
from orchestration.assets.evaluation import evaluation_assets
from orchestration.assets.monitoring import drifted_features, fleet_incidents
from orchestration.assets.reporting import fleet_report
from orchestration.assets.scoring import EXPORT, weekly_assets
from orchestration.assets.training import training_assets
from orchestration.job import churn_prediction_job, weekly_churn_prediction_schedule
from orchestration.resources import Services

defs = dg.Definitions(
    assets=[
        weekly_assets, EXPORT, evaluation_assets, training_assets, drifted_features, fleet_incidents, fleet_report,
        campaign_members, campaign_effects,
    ],
    jobs=[
        churn_prediction_job, jobs.evaluation_job, jobs.training_job, jobs.monitoring_job, jobs.promotion_job,
        jobs.maintenance_job, jobs.decisions_job,
    ],
    schedules=[weekly_churn_prediction_schedule, schedules.weekly_evaluation_schedule, *schedules.FIXED_SCHEDULES],
    sensors=sensors.ALL,
    resources={"services": Services()},
    # A process per step would import everything again.
    executor=dg.in_process_executor,
)  # fmt: skip
