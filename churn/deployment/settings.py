"""Configuration of one process, read once at its entry point from the environment and ``.env``.

Field names are the environment variables' names in lower case. Only ``churn.deployment`` and entry points use this
class; the core gets plain values.
"""

import importlib.resources
import logging
import os
import re
from collections.abc import Iterable
from datetime import timedelta
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from dotenv import dotenv_values
from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from churn import defaults
from churn.errors import UsageError
from churn.monitoring.incidents import RUNBOOK

_PACKAGE = Path(str(importlib.resources.files("churn"))).resolve()
_IN_WHEEL = _PACKAGE / "samples" / "bundled"  # pyproject.toml copies data/churn and models/churn to it


def find_checkout() -> Path | None:
    """Return the clone that this package runs from, or ``None`` for an installed wheel."""
    return None if _IN_WHEEL.is_dir() else _PACKAGE.parent


def find_bundled_files() -> Path:
    """Return the folder that contains ``data/churn`` and ``models/churn``, in a clone and in a wheel."""
    return find_checkout() or _IN_WHEEL


def find_project_root() -> Path:
    """Return the clone that this package runs from, or the working directory for an installed wheel."""
    return find_checkout() or Path.cwd()


def _seconds_as_number(value: object) -> object:
    """Convert digits to a number: Pydantic reads a number as seconds, but rejects the text that a variable contains."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


logger = logging.getLogger(__name__)

_ENV_FILE = find_project_root() / ".env"
_CLOSE = {"CHURN": 0.8, "MLFLOW": 0.85}  # similarity of two names, of 1; MLflow has variables of its own


class Settings(BaseSettings):
    """The settings of a deployment. With nothing set, an embedded PostgreSQL and local files are used.

    The line below a field describes it, in the reference and in ``.env.example``, too.
    """

    model_config = SettingsConfigDict(
        env_file=_ENV_FILE, env_ignore_empty=True, extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    mlflow_secret_name: str | None = None
    """Secrets Manager secret with username and password, optionally host, port and dbname."""
    mlflow_secret_region: str = "us-east-1"  # noqa: S105 no secret
    """AWS region of the secret."""
    mlflow_s3_bucket: str | None = None
    """Bucket of the variants' files and MLflow artifacts; unset: local files."""
    mlflow_db_name: str = "mlflow_db"
    """Name of MLflow's database."""
    mlflow_db_host: str = "localhost"
    """Host of the PostgreSQL server; overrides the secret's host."""
    mlflow_db_port: int = Field(5432, gt=0, lt=65536)
    """Port of the PostgreSQL server; overrides the secret's port."""
    mlflow_tracking_uri: SecretStr | None = None
    """URI of an MLflow server or database; unset: MLflow's database is opened directly."""
    churn_database_url: SecretStr | None = None
    """postgresql:// URL of the predictions database; unset: CHURN_DB_NAME on MLflow's server."""
    churn_setup_database_url: SecretStr | None = None
    """The same database with the login of set-up, erasure and readers' grants; unset: the job's."""
    churn_monitoring_database_url: SecretStr | None = None
    """The same database with the login of churn metrics, which only reads; unset: the job's."""
    churn_reader_database_url: SecretStr | None = None
    """The same database with the login of churn explain and churn report; unset: the job's."""
    churn_db_name: str = "churn_db"
    """Name of the predictions database."""
    churn_dagster_db_name: str = "dagster_db"
    """Name of Dagster's database of runs and events."""
    churn_home: Path = Field(default_factory=lambda: find_project_root() / ".churn")
    """Folder of caches and the embedded PostgreSQL; created when needed."""
    churn_local_root: Path | None = None
    """Local copy of the bucket; unset: the project, or CHURN_HOME/local when embedded."""
    churn_local_fallback: Literal["auto", "never"] = "auto"
    """auto: read the local copy, flagged, when S3 is unavailable; never: fail."""
    churn_local_max_age: Annotated[timedelta | None, BeforeValidator(_seconds_as_number)] = None
    """Maximum age of the local copy, in seconds or ISO 8601 (P7D); unset: no limit."""
    churn_max_quarantine_share: float = Field(defaults.MAX_QUARANTINE_SHARE, ge=0, le=1)
    """Maximum share of rows that may break the contract; above it the batch fails."""
    churn_max_unknown_level_share: float = Field(defaults.MAX_UNKNOWN_LEVEL_SHARE, ge=0, le=1)
    """Maximum share of a column's values unknown to the model, above its reference's; above it the batch fails."""
    churn_variants_per_run: int = Field(500, ge=0)
    """Maximum variants per run of the weekly job, which is split into several runs; 0: one run."""
    churn_concurrent_runs: int = Field(2, ge=1)
    """Maximum Dagster runs of any job at once; others wait. Each uses connections to PostgreSQL."""
    churn_partitions_name: str = Field(defaults.PARTITIONS_NAME, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """Name of Dagster's partitions of variants; code locations of one instance share them by name."""
    churn_input_checks_per_minute: int = Field(defaults.INPUT_CHECKS_PER_MINUTE, ge=1)
    """Variants per minute whose input is looked up in S3, in turn, one request of LIST each."""
    churn_keep_run_days: int = Field(defaults.KEEP_RUN_DAYS, ge=0)
    """Days to keep Dagster's runs and events, and MLflow's versions without alias that no batch names; 0: all."""
    churn_reasons: bool = True
    """Whether the contributions of every prediction are stored."""
    churn_ray_address: str | None = Field(None, pattern=r"^(auto|(ray://)?[^/@\s]+:\d{1,5})$")
    """Ray cluster to score on: auto, host:6379 or ray://host:10001; unset: this process."""
    churn_workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Processes that score a fleet of 50 variants or more, some 0.5 GB each; unset: one for each core."""
    churn_horizon_months: int = Field(defaults.HORIZON_MONTHS, ge=1, le=24)
    """Whole calendar months after the as-of day's month; a player without activity in them has churned."""
    churn_label_lag_days: int = Field(defaults.LABEL_LAG_DAYS, ge=0, le=92)
    """Days after the horizon to wait for late activity before labels are used."""
    churn_delivery_delay_days: int = Field(defaults.DELIVERY_DELAY_DAYS, ge=0, le=92)
    """Days from a month's end until its rows arrive, for a first extract; later ones show it."""
    churn_min_auc: float = Field(defaults.MIN_AUC, ge=0.5, lt=1)
    """Minimum ROC AUC of a new model, and of champions registered without a limit of their own."""
    churn_max_calibration_error: float = Field(defaults.MAX_CALIBRATION_ERROR, gt=0, lt=1)
    """Maximum calibration error of a new model, widened by sampling error when it has few accounts."""
    churn_min_labels: int = Field(defaults.MIN_LABELS, ge=50)
    """Minimum matured labels of each outcome; below it, training uses the fallback variant's activity."""
    churn_training_trials: int = Field(defaults.TRAINING_TRIALS, ge=1)
    """Hyperparameter trials per training run."""
    churn_retrain_after_months: int = Field(defaults.RETRAIN_AFTER_MONTHS, ge=0, le=60)
    """Age of a champion, in months, at which training is requested; 0: never by age."""
    churn_auto_promote: bool = False
    """Promote a challenger that is proven better without a person's approval."""
    churn_alert_urls: SecretStr | None = None
    """Apprise URLs to notify, as slack://… or named ops=mailtos://…, between spaces or commas; unset: no alerts."""
    churn_environment: str | None = Field(None, pattern=r"^[\w .-]{1,40}$")
    """Name of this deployment in alerts, as production; unset: none."""
    churn_dagster_ui_url: str = "http://127.0.0.1:3000"
    """Address of the Dagster UI, used in links only."""
    churn_runbook_url: str = RUNBOOK
    """Address of the runbook where your team reads it, used in alerts and alert rules."""
    churn_schedule_grace_hours: int = Field(6, ge=1, le=120)
    """Hours after Monday 00:00 UTC by which a week must be scored; later it counts as missed."""
    churn_holdout_share: float = Field(0.1, ge=0, lt=1)
    """Share of accounts that no campaign created from now on contacts, always the same ones; 0: none."""
    churn_keep_weeks: int = Field(0, ge=0)
    """Weeks of predictions to retain, the current one included; older ones are dropped; 0: all."""
    churn_delivery_prefix: str | None = Field(None, pattern=r"^s3://[a-z0-9][a-z0-9.-]+/[\w=-][\w./=-]*$")
    """Where published predictions are delivered as Parquet, s3://bucket/folder; unset: nowhere."""
    churn_mlflow_ui_url: str = "http://127.0.0.1:5000"
    """Address of the MLflow UI, used in links only."""
    churn_allowed_hosts: str | None = None
    """Host names, separated by commas, of Dagster's UI beside loopback; * is any text."""
    churn_code_version: str | None = None
    """Code version to record with each batch; unset: the checkout's commit or package version."""
    churn_log_level: Literal["debug", "info", "warning"] = "warning"
    """Least severe messages that commands show; debug has the tracebacks of other libraries while we retry."""
    churn_postgres_bin: Path | None = None
    """Folder with initdb and pg_ctl for the embedded PostgreSQL; unset: the bundled ones."""


def load_settings() -> Settings:
    """Read the environment; raises ``UsageError`` that names every variable whose value is invalid.

    The value is shown if it is a number, since a text may be a password that was meant for another variable.
    """
    try:
        settings = Settings()
    except UnicodeDecodeError:
        raise UsageError("the environment or .env is wrong: .env is not UTF-8 text; see .env.example") from None
    except ValidationError as error:
        wrong = [_describe_wrong(str(item["loc"][0]), item["input"], item["msg"]) for item in error.errors()]
        raise UsageError(f"the environment or .env is wrong: {'; '.join(wrong)}; see .env.example") from None
    for name, meant in misspelled([*os.environ, *dotenv_values(_ENV_FILE)]).items():
        _warn_of_name(name, meant)
    return settings


def _describe_wrong(name: str, value: object, problem: str) -> str:
    shown = f", not {value}" if re.fullmatch(r"-?\d{1,9}(\.\d{1,9})?|nan|-?inf", str(value)) else ""
    return f"{name.upper()}: {problem}{shown}"


@lru_cache
def _warn_of_name(name: str, meant: str) -> None:
    logger.warning("%s is no setting and is ignored; %s was probably meant: rename it", name, meant)


def misspelled(names: Iterable[str]) -> dict[str, str]:
    """Return the names that are no setting and close to one, with the setting meant."""
    known = {"CHURN_DAGSTER_DATABASE_URL", *(name.upper() for name in Settings.model_fields)}  # that is dagster.yaml's
    found: dict[str, str] = {}
    for name in names:
        prefix, _, rest = name.upper().partition("_")
        if prefix not in _CLOSE or name.upper() in known:
            continue
        rests = {of_known.partition("_")[2]: of_known for of_known in known if of_known.startswith(f"{prefix}_")}
        if close := get_close_matches(rest, rests, n=1, cutoff=_CLOSE[prefix]):
            found[name] = rests[close[0]]
    return found
