"""Assembly of the code location: assets, job, schedule, sensors, resources. Nothing is opened while this is loaded."""

import dagster as dg

from orchestration.alerting import incident_sensor
from orchestration.assets.evaluation import evaluation_assets, evaluation_job, weekly_evaluation_schedule
from orchestration.assets.monitoring import (
    drifted_features,
    fleet_incidents,
    monitoring_job,
    weekly_monitoring_schedule,
)
from orchestration.assets.reporting import fleet_report
from orchestration.assets.scoring import weekly_assets
from orchestration.assets.training import training_assets, training_job
from orchestration.job import churn_prediction_job, weekly_churn_prediction_schedule
from orchestration.maintenance import maintenance_job, maintenance_schedule
from orchestration.promotion import promotion_job, retraining_sensor
from orchestration.resources import Services
from orchestration.sensors import new_data_sensor

defs = dg.Definitions(
    assets=[weekly_assets, evaluation_assets, training_assets, drifted_features, fleet_incidents, fleet_report],
    jobs=[churn_prediction_job, evaluation_job, training_job, monitoring_job, promotion_job, maintenance_job],
    schedules=[
        weekly_churn_prediction_schedule,
        weekly_evaluation_schedule,
        weekly_monitoring_schedule,
        maintenance_schedule,
    ],
    sensors=[new_data_sensor, retraining_sensor, incident_sensor],
    resources={"services": Services()},
    # A process per step would import everything again.
    executor=dg.in_process_executor,
)
