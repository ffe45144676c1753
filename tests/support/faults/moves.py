"""Commands that change MLflow, for a child to be killed at."""

from churn.deployment.services import Deployment
from churn.variants import Variant
from experiment_tracking.log_model import log_variants
from tests.support.faults.house import VARIANTS

VARIANT = VARIANTS[3]


def promote(deployment: Deployment) -> None:
    deployment.promoter().promote(VARIANT, is_forced=True, reason="a drill")


def roll_back(deployment: Deployment) -> None:
    deployment.promoter().roll_back(VARIANT, "a drill")


def register(deployment: Deployment, key: str) -> None:
    log_variants(deployment, [Variant.from_key(key)], None, once=True)
