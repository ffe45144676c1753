"""Models: their files, their registry, their scores.

MLflow reads its environment when it is imported, so what we want otherwise is set here, before any module does that: a
registry that is down is told in seconds, and nothing is reported to its makers.
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
