"""Model versions and the names of aliases; does not import MLflow."""

from dataclasses import dataclass

from churn.variants import Variant

CHAMPION = "champion"  # the version that scores
CHALLENGER = "challenger"  # the version that also scores every batch, to be compared with the champion
PREVIOUS = "previous"  # the previous champion, which a rollback returns to


@dataclass(frozen=True)
class ModelVersion:
    """One version of a variant's registered model, and the alias that it was resolved from.

    Attributes:
        is_calibrated: Whether its scores were calibrated, so that they are probabilities.
        columns: What the columns of the variant's activity mean, as declared with the version, in JSON; ``None`` for
            the defaults.
    """

    variant: Variant
    registered_model: str
    version: int
    alias: str | None
    model_id: str
    mlflow_run_id: str
    sha256: str
    has_reference: bool = False
    is_calibrated: bool = False
    columns: str | None = None

    @property
    def uri(self) -> str:
        return f"models:/{self.registered_model}/{self.version}"
