"""Records for MLflow: a run with its model and data, and the realized performance of a version by week."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

from churn.data.columns import Columns
from churn.monitoring.profiles import Profile
from churn.registry.tags import columns_of
from churn.versions import ModelVersion

if TYPE_CHECKING:  # importing XGBoost takes a second
    from churn.inference.bundle import Bundle, Golden

_FIRST_MONDAY = date(1970, 1, 5)
_DIGEST_LENGTH = 36  # of MLflow's column


@dataclass(frozen=True)
class OpenModel:
    """A model version that is ready to score, and the reference, if logged, that its batches are compared with."""

    version: ModelVersion
    bundle: "Bundle"
    reference: Profile | None

    @property
    def columns(self) -> Columns:
        """What the columns of the variant's activity mean."""
        return replace(columns_of(self.version.columns, self.version.uri), categories=self.bundle.categories)


def dataset_of(context: str, name: str, *, sha256: str, uri: str, profile: Mapping[str, Any]) -> DatasetInput:
    """Describe data that a model was trained or checked on: where they are, their SHA-256, and counts of rows."""
    source, kind = json.dumps({"uri": uri, "sha256": sha256}), "s3" if uri.startswith("s3://") else "local"
    dataset = Dataset(name, sha256[:_DIGEST_LENGTH], kind, source, profile=json.dumps(dict(profile)))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


@dataclass(frozen=True)
class LoggedRun:
    """The content of a new version's run."""

    bundle: "Bundle"
    golden: "Golden"
    sample: pd.DataFrame
    parameters: Mapping[str, Any]
    metrics: Mapping[str, float]  # measured metrics only; empty without labels
    tags: Mapping[str, str]  # in addition to the variant's, which are always set
    about: str = ""  # the version's description: the model, its data, how good it is, and what it is for
    # Texts and pictures by their path, such as `model_card.md`
    artifacts: Mapping[str, str | bytes] = field(default_factory=dict)
    name: str | None = None  # name of the run; `None` for `log-<variant>`
    dataset: DatasetInput | None = None
    reference: Profile | None = None  # inputs and scores to compare batches with, of rows it was not trained on, if any


def live_metrics(week: date, day: date, values: Mapping[str, float]) -> list[Metric]:
    """Return a week's values as metrics ``live_…``; the step is the number of weeks since 1970-01-05."""
    step, at = (week - _FIRST_MONDAY).days // 7, int(datetime.combine(day, time.min, UTC).timestamp() * 1000)
    return [Metric(f"live_{name}", float(value), at, step) for name, value in values.items()]
