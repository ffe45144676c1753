"""What is recorded in MLflow: a run with its model and data, and the realized performance of a version by week."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

from churn.monitoring.profiles import Profile
from churn.versions import ModelVersion

if TYPE_CHECKING:  # XGBoost takes a second to import, which whoever loads no model need not wait for
    from churn.inference.bundle import Bundle, Golden

_FIRST_MONDAY = date(1970, 1, 5)
_DIGEST_LENGTH = 36  # MLflow's column holds no more


@dataclass(frozen=True)
class OpenModel:
    """A model version that is ready to score.

    Attributes:
        reference: Inputs and scores that its batches are compared with; ``None`` where it was logged without.
    """

    version: ModelVersion
    bundle: "Bundle"
    reference: Profile | None


@dataclass(frozen=True)
class LoggedDataset:
    """The data that a run's model comes from, by what MLflow lists of it.

    Attributes:
        sha256: Of the very rows, in hexadecimal.
        source: Where they were kept.
        profile: Counts that distinguish one such data set from another.
    """

    name: str
    sha256: str
    source: str
    profile: Mapping[str, Any]

    def to_mlflow(self) -> DatasetInput:
        """Return the entity that MLflow logs."""
        entity = Dataset(
            name=self.name,
            digest=self.sha256[:_DIGEST_LENGTH],
            source_type="churn",
            source=json.dumps({"uri": self.source, "sha256": self.sha256}),
            profile=json.dumps(dict(self.profile)),
        )
        return DatasetInput(entity, [InputTag("mlflow.data.context", "training")])


@dataclass(frozen=True)
class LoggedRun:
    """What a new version's run records.

    Attributes:
        tags: Beside the variant's own, which are always set.
        metrics: Measured ones only; empty where there are no labels.
        artifacts: Texts and pictures by their path, such as ``model_card.md``.
        name: Of the run; ``None`` for ``log-<variant>``.
        dataset: ``None`` where it is not known.
        reference: Inputs and scores that batches are compared with, of rows the model was not trained on; ``None``
            where there are none.
    """

    bundle: "Bundle"
    golden: "Golden"
    sample: pd.DataFrame
    parameters: Mapping[str, Any]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    artifacts: Mapping[str, str | bytes] = field(default_factory=dict)
    name: str | None = None
    dataset: LoggedDataset | None = None
    reference: Profile | None = None


@dataclass(frozen=True)
class LivePoint:
    """The realized performance of a version in one week.

    Attributes:
        n_matured: Accounts with a mature label; logged with every point.
        metrics: By name, without the prefix ``live_``.
        artifacts: Texts by their path below the week's folder.
    """

    scored_week: date
    as_of: date
    n_matured: int
    metrics: Mapping[str, float]
    artifacts: Mapping[str, str]

    def to_mlflow(self) -> list[Metric]:
        """Return the metrics that MLflow logs: the step is the week counted from 1970-01-05, the time the as-of day."""
        step = (self.scored_week - _FIRST_MONDAY).days // 7
        at = int(datetime.combine(self.as_of, time.min, UTC).timestamp() * 1000)
        values = {f"live_{name}": value for name, value in self.metrics.items()} | {"live_n_matured": self.n_matured}
        return [Metric(name, float(value), at, step) for name, value in values.items()]
