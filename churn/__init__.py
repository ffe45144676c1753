"""Weekly churn scores for many model variants. The core, which does not import Dagster.

MLflow reads its environment when it is imported, so its variables are set here, before any module imports it: a
registry that is down is reported within seconds, and no telemetry is sent.
"""

import os

MLFLOW_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

for _name, _value in MLFLOW_DEFAULTS.items():
    os.environ.setdefault(_name, _value)
