"""What a model version is called, for those who name one and need not load MLflow for it."""

from dataclasses import dataclass

from churn.variants import Variant

CHAMPION = "champion"
"""The alias of the version that scores."""

CHALLENGER = "challenger"
"""The alias of the version that scores beside the champion, to be compared."""

PREVIOUS = "previous"
"""The alias of the champion before, which rollback returns to."""


@dataclass(frozen=True)
class ModelVersion:
    """One version of a variant's registered model, as an alias named it at one moment."""

    variant: Variant
    registered_model: str
    version: int
    alias: str | None
    model_id: str
    mlflow_run_id: str
    sha256: str
    has_reference: bool = False

    @property
    def uri(self) -> str:
        return f"models:/{self.registered_model}/{self.version}"
