"""Commands that move a variant's aliases, for a child to be killed at."""

from churn.deployment.services import Deployment
from tests.support.faults.house import VARIANTS

VARIANT = VARIANTS[3]


def promote(deployment: Deployment) -> None:
    deployment.promoter().promote(VARIANT, is_forced=True, reason="a drill")


def roll_back(deployment: Deployment) -> None:
    deployment.promoter().roll_back(VARIANT, "a drill")
