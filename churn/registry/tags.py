"""The names of the tags of our registered models, model versions and runs, and the variant that they identify."""

from collections.abc import Mapping
from contextlib import suppress
from datetime import date, timedelta
from typing import Any

from churn.data.columns import Columns
from churn.errors import UsageError
from churn.variants import Variant

GEOGRAPHY, COMPANY = "geography", "company_id"
TRAINING_DATE = "training_date"  # of the model, as YYYY-MM-DD
TRAINING_DATE_FROM = "churn.training_date_from"  # where that date is from, if training did not set it
MODEL_SHA256 = "churn.model_sha256"  # of the booster's bytes as logged; checked at every load
HAS_REFERENCE = "churn.has_reference"  # true if a reference profile was logged with the version
IS_CALIBRATED = "churn.is_calibrated"  # true if the scores were calibrated in training
COLUMNS = "churn.columns"  # what the columns of the variant's activity mean, in JSON; the defaults without the tag
AUC_LIMIT = "churn.auc_limit"  # minimum ROC AUC of the version: the lower end of its held-out interval
GATE = "churn.gate"  # passed or failed
GATE_FAILURES = "churn.gate_failures"
EVIDENCE_AFTER = "churn.evidence_after"  # last day of the outcomes that the version has seen, as YYYY-MM-DD
TRAINED_AS_OF = "churn.trained_as_of"
TRAINED_ON = "churn.trained_on"  # key of the variant with the training activity
TRAINED_ON_BECAUSE = "churn.trained_on_because"  # why it is not the variant's own activity
POOLED = "churn.pooled"  # how many variants' trees the version has, and what is its own; missing if trained alone
DATA_SHA256 = "churn.data_sha256"
HORIZON_MONTHS = "churn.horizon_months"
CODE_VERSION = "churn.code_version"
LOGGED_ON = "churn.logged_on"
SOURCE = "churn.source"  # s3, local, or mlflow if the version was adopted
FALLBACK_REASON = "churn.fallback_reason"
FILES_OF_VARIANT = "churn.files_of_variant"
MODEL_URI = "churn.model_uri"
ADOPTED = "churn.adopted"  # name, version, run and artifacts of the version that somebody else registered
MODEL_FILE_SHA256 = "churn.model_file_sha256"
FEATURE_NAMES_SHA256 = "churn.feature_names_sha256"
SAMPLE_SHA256 = "churn.sample_sha256"
KIND_OF_EXPERIMENT = {"mlflow.experimentKind": "custom_model_development"}
MLFLOW_VIEW = "?workflowType=machine_learning"
"""Of an experiment, and at the end of links, by which MLflow's UI shows models and runs, not traces and judges."""

FILES = (MODEL_FILE_SHA256, FEATURE_NAMES_SHA256, SAMPLE_SHA256, COLUMNS, CODE_VERSION)
"""What tells versions apart that were registered from files."""


def tags_of_variant(variant: Variant) -> dict[str, str]:
    """Return the tags that identify the variant of a model or a run; the base variant has none."""
    parts = {GEOGRAPHY: variant.geography, COMPANY: variant.company}
    return {tag: value for tag, value in parts.items() if value is not None}


def evidence_after(tags: Mapping[str, str]) -> date:
    """Return the last as-of day that is no evidence about a version, by the version's tags.

    It is the last day of the outcomes that the version was fitted, tuned, calibrated or checked on. Of a version
    without that tag, no day before its registration is evidence; without either tag, no day is.

    >>> evidence_after({LOGGED_ON: "2026-11-30"})
    datetime.date(2026, 11, 29)
    """
    registered = day_of(tags, LOGGED_ON)
    before = date.max if registered is None else registered - timedelta(days=1)
    return day_of(tags, EVIDENCE_AFTER) or before


def day_of(tags: Mapping[str, str], name: str) -> date | None:
    """Return the day in a tag; ``None`` if it is missing or no day."""
    with suppress(ValueError):
        return date.fromisoformat(tags.get(name, ""))
    return None


def columns_of(declared: str | None, version: str) -> Columns:
    """Return what the columns of a variant's activity mean, by a version's tag; without it, the defaults."""
    return Columns() if declared is None else Columns.from_json(declared, f"tag {COLUMNS} of {version}")


def variant_of(model: Any) -> Variant | None:
    """Return the variant of a registered model or version by its tags; ``None`` if the model is not ours."""
    with suppress(UsageError):
        variant = Variant(model.tags.get(GEOGRAPHY), model.tags.get(COMPANY))
        return variant if variant.registered_model == model.name else None
    return None
