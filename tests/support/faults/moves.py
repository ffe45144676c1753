"""Commands that change MLflow, or what is delivered, for a child to be killed at."""

import sqlalchemy as sa

from churn.database.erasure import Erasures
from churn.deployment.services import Deployment
from churn.storage.places import Bucket
from churn.variants import Variant
from churn.workflows.deliver import Deliverer
from churn.workflows.erase import Eraser
from experiment_tracking.log_model import adopt_models, build_parser, log_variants
from tests.support.faults.house import VARIANTS

VARIANT = VARIANTS[3]
DELIVERED = Variant(company="delivered")


def promote(deployment: Deployment) -> None:
    deployment.promoter().promote(VARIANT, force=True, reason="a drill")


def roll_back(deployment: Deployment) -> None:
    deployment.promoter().roll_back(VARIANT, "a drill")


def deliverer_of(deployment: Deployment, bucket: str) -> Deliverer:
    return Deliverer(deployment.database, Erasures(deployment.database), Bucket(bucket), "delivered/")


def deliver(deployment: Deployment, bucket: str) -> None:
    deliverer_of(deployment, bucket).deliver(DELIVERED)


def erase(deployment: Deployment, bucket: str, server: sa.URL) -> None:
    """Erase account 2 as an administrator, who is the owner, and deliver what that leaves to the next delivery."""
    eraser = Eraser(server, server.set(database="none"), [], deliverer_of(deployment, bucket))
    list(eraser.erase_account("2", DELIVERED.key))
    deliver(deployment, bucket)


def register(deployment: Deployment, key: str) -> None:
    log_variants(deployment, [Variant.from_key(key)], None, once=True)


def adopt(deployment: Deployment, key: str) -> None:
    """Adopt the version of a registered model of somebody else that has the variant's key as its name."""
    adopt_models(deployment, build_parser().parse_args(["--adopt", key]))
