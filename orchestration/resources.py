"""Resources: the deployment's services, found from the environment when they are used, not when code is loaded."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import load_settings


class Services(dg.ConfigurableResource):
    """PostgreSQL, MLflow and S3 as the environment names them, or the embedded default."""

    @contextmanager
    def open(self) -> Iterator[Deployment]:
        """Find the services and, on the embedded default, keep PostgreSQL running meanwhile."""
        with open_deployment(load_settings()) as deployment:
            yield deployment
