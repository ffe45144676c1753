"""Trained models: a challenger for each variant, or a champion if it has none, checked against the gate.

One op trains a range of variants. A failed gate does not fail the run: the model is registered without
an alias, and the failed checks give the reasons. Not here: how a variant is trained (``churn.workflows.train``).
"""

from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, date, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from churn.deployment.services import Deployment
from churn.errors import UsageError
from orchestration import checks
from orchestration.assets import asset_of_variants
from orchestration.assets.metadata import Metadata, describe_model, table
from orchestration.checks import TRAINED
from orchestration.fleet import AssetReport, FleetRun, fleet_assets
from orchestration.resources import Services

if TYPE_CHECKING:
    from churn.workflows.train import TrainingOutcome

SPEC = asset_of_variants(TRAINED, "learning", kinds={"xgboost", "mlflow"})

_SHOWN_PICTURES, _PICTURE = ("reliability", "roc"), "![picture](data:image/svg+xml;base64,{})"
_MAX_PICTURE_BYTES = 60_000  # the event log stores them as text


class TrainingConfig(dg.Config, use_attribute_docstrings=True):
    """Configuration of a training run."""

    as_of: str | None = None
    """The date to train as of, as YYYY-MM-DD: nothing that became known later is used. Default: today, UTC."""
    trials: int | None = Field(None, gt=0)
    """Hyperparameter trials per variant; by default CHURN_TRAINING_TRIALS."""
    dry_run: bool = False
    """Train and check without changing the activity history or MLflow; the run materializes nothing."""


@fleet_assets("train_variants", [SPEC], backfill_variants=2_000)  # a run's are pooled
def training_assets(context: dg.AssetExecutionContext, config: TrainingConfig, services: Services) -> checks.Results:
    """Train every variant of the run's partitions that this run, or one that it resumes, has not trained."""
    run = FleetRun(context, [SPEC])
    with run.open(services) as deployment:
        today = parse_day(config.as_of, datetime.now(UTC).date())
        keys, report = run.left(), partial(_report, deployment.model_link)
        workers, trainer = deployment.workers(len(keys), Deployment.trainer), deployment.trainer(n_trials=config.trials)
        options: dict[str, Any] = {"fleet": context.partition_keys, "dry_run": config.dry_run, "workers": workers}
        run.log(trainer.train_fleet(keys, today, report, **options), partial(_logged, context.log))
    yield from run.finish()


def parse_day(text: str | None, today: date) -> date:
    """Parse the date to train as of; raises a ``UsageError`` if it is not a date or is in the future."""
    if text is None:
        return today
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"as_of {text!r} is not a date; use YYYY-MM-DD") from None
    if day > today:
        raise UsageError(f"as_of {day} is in the future (today is {today}, UTC); use today or an earlier date")
    return day


def _logged(log: dg.DagsterLogManager, key: str, report: AssetReport) -> AssetReport:
    log.info("%s: %s", key, report.description)
    return report


def _report(model_link: Callable[[str, int], str], outcome: "TrainingOutcome") -> AssetReport:
    metadata, is_dry_run = {TRAINED: _metadata(outcome, model_link)}, outcome.version is None
    evaluations = checks.of_gate(outcome.variant.key, outcome.gate.checks)
    return AssetReport(metadata, evaluations, _sentence(outcome), is_dry_run=is_dry_run)


def _metadata(outcome: "TrainingOutcome", model_link: Callable[[str, int], str]) -> Metadata:
    trained, lineage, version = outcome.trained, outcome.lineage, outcome.version
    rows = [(one.name, one.as_ofs[0], one.as_ofs[-1], f"{one.n:,}", f"{one.n_churned:,}") for one in trained.parts]
    drawn = {name: outcome.pictures.get(f"{name}.svg", b"") for name in _SHOWN_PICTURES}
    shown = {name: b64encode(svg).decode() for name, svg in drawn.items() if 0 < len(svg) <= _MAX_PICTURE_BYTES}
    return {
        **(describe_model(version, model_link) if version is not None else {}),
        "gate": dg.MetadataValue.md(outcome.gate.to_markdown()),
        "trained_as_of": lineage.today.isoformat(),
        "activity_of": lineage.activity_of.key,
        **({"pool": lineage.pooled} if lineage.pooled else {}),
        "why_activity_of_another_variant": "; ".join(lineage.detours) or "the activity is the variant's own",
        "rows": table(("rows for", "first as-of", "last as-of", "rows", "churned"), rows, "---rr"),
        "parameters": {**trained.chosen.parameters, "n_rounds": trained.chosen.n_rounds},
        "data_sha256": lineage.data_sha256,
        "booster_sha256": trained.bundle.sha256,
        **{name: dg.MetadataValue.md(_PICTURE.format(svg)) for name, svg in shown.items()},
        **{f"held_out_{name}": float(value) for name, value in outcome.evaluation.metrics().items()},
    }


def _sentence(outcome: "TrainingOutcome") -> str:
    version, failures = outcome.version, ", ".join(check.name for check in outcome.gate.failures)
    subject = f"Version {version.version}" if version else "The dry run's model"
    if failures:
        return f"{subject} failed the gate: {failures}"
    return f"{subject} passed the gate{f' and is the {version.alias}' if version and version.alias else ''}"
