"""Resources: the deployment's services, resolved from the environment when they are used, not when code is loaded.

https://docs.dagster.io/guides/build/external-resources
"""

from contextlib import AbstractContextManager

import dagster as dg

from churn.deployment.services import Deployment, open_deployment


class Services(dg.ConfigurableResource):
    """PostgreSQL, MLflow and S3 as configured by the environment, or the embedded default."""

    def open(self) -> AbstractContextManager[Deployment]:
        """Resolve the services and, on the embedded default, run PostgreSQL while the context lasts."""
        return open_deployment()
