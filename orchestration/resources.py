"""Resources: the deployment's services, resolved from the environment when they are used, not when code is loaded.

https://docs.dagster.io/guides/build/external-resources
"""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import load_settings


class Services(dg.ConfigurableResource):
    """PostgreSQL, MLflow and S3 as configured by the environment, or the embedded default."""

    @contextmanager
    def open(self) -> Iterator[Deployment]:
        """Resolve the services and, on the embedded default, run PostgreSQL while the context lasts."""
        with open_deployment(load_settings()) as deployment:
            yield deployment
