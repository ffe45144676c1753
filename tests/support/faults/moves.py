"""Commands that change MLflow, for a child to be killed at."""

from churn.deployment.services import Deployment
from churn.variants import Variant
from experiment_tracking.log_model import adopt_models, build_parser, log_variants
from tests.support.faults.house import VARIANTS

VARIANT = VARIANTS[3]


def promote(deployment: Deployment) -> None:
    deployment.promoter().promote(VARIANT, is_forced=True, reason="a drill")


def roll_back(deployment: Deployment) -> None:
    deployment.promoter().roll_back(VARIANT, "a drill")


def register(deployment: Deployment, key: str) -> None:
    log_variants(deployment, [Variant.from_key(key)], None, once=True)


def adopt(deployment: Deployment, key: str) -> None:
    """Adopt the version of a registered model of somebody else that has the variant's key as its name."""
    adopt_models(deployment, build_parser().parse_args(["--adopt", key]))
