"""The trained models: a challenger for each variant, or a champion where there is none, judged by the gate.

One op trains a range of variants in one process. A variant that is trained gets its materialization and its checks, one
for each check of the gate, together; one that fails is named at the end, when all the others are done. A failed gate is
no failure of the run: the model is registered without an alias, and the checks tell why.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from churn.errors import ChurnError, UsageError
from churn.markdown import markdown_table
from churn.training.checks import GATE_CHECKS, GateCheck
from churn.versions import CHALLENGER, CHAMPION
from orchestration.assets.metadata import Metadata, picture
from orchestration.fleet import RETRY_POLICY, RUN_TAGS, FleetRun, failure_of_all, materialized_by, runs_gone_on_from
from orchestration.partitions import variants_partitions
from orchestration.resources import Services

if TYPE_CHECKING:
    from churn.workflows.train import TrainingOutcome

ASSET = "trained_models"
OP_NAME = "train_variants"

SPEC = dg.AssetSpec(
    ASSET,
    description="A model trained on the variant's activity: the challenger if it passed the gate, else without alias.",
    kinds={"xgboost", "mlflow"},
    group_name="learning",
    owners=["team:retention"],
    skippable=True,
)
CHECKS = [dg.AssetCheckSpec(name, asset=ASSET, description=check) for name, check in GATE_CHECKS.items()]
SEVERITIES = dict.fromkeys([(ASSET, name) for name in GATE_CHECKS], dg.AssetCheckSeverity.WARN)

_SHOWN_PICTURES = ("reliability.svg", "roc.svg")
_MOST_PICTURE_BYTES = 60_000  # the event log keeps them as text


class TrainingConfig(dg.Config):
    """What a launch may set."""

    as_of: str | None = None
    """The day to train as if it were today, as YYYY-MM-DD; default: today, UTC."""
    trials: int | None = Field(default=None, gt=0)
    """Sets of parameters to try; default: the usual number."""
    dry_run: bool = False
    """Do everything but write to the history and to MLflow; the run then materializes nothing."""


@dg.multi_asset(
    name=OP_NAME,
    specs=[SPEC],
    check_specs=CHECKS,
    partitions_def=variants_partitions,
    backfill_policy=dg.BackfillPolicy.multi_run(100),
    retry_policy=RETRY_POLICY,
)
def training_assets(
    context: dg.AssetExecutionContext, config: TrainingConfig, services: Services
) -> Iterator[dg.AssetCheckResult]:
    """Train every variant of the run's partitions that the runs it goes on from have not trained."""
    run = FleetRun(context, [SPEC], SEVERITIES)
    try:
        today = parse_day(config.as_of, datetime.now(UTC).date())
        with services.open() as deployment:
            done = materialized_by(runs_gone_on_from(context), context.instance)
            missing = [key for key in context.partition_keys if key not in done]
            context.log.info("%d variants to train as of %s, %d already trained", len(missing), today, len(done))
            trainer = deployment.trainer(n_trials=config.trials)
            told = Teller(deployment.model_link)
            for key, result in trainer.train_fleet(missing, today, told.tell, dry_run=config.dry_run):
                if isinstance(result, BaseException):
                    run.note_failure(key, result)
                    continue
                report(context, result, is_dry=config.dry_run)
                run.checks.add(key, result.checks)
    except ChurnError as error:
        raise failure_of_all(error, context) from error
    yield from run.finish()


training_job = dg.define_asset_job(
    "training_job",
    selection=dg.AssetSelection.assets(ASSET),
    description="Trains a range of variants, judges the models by the gate, and registers them in MLflow.",
    tags=RUN_TAGS,
)


def parse_day(text: str | None, today: date) -> date:
    """Read the day to train as of.

    Raises:
        UsageError: If it is no date, or has not come.
    """
    if text is None:
        return today
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"as_of {text!r} is not a date; YYYY-MM-DD is needed") from None
    if day > today:
        raise UsageError(f"as_of {day} has not come (today is {today}, UTC); what will be known then is not known")
    return day


@dataclass(frozen=True)
class Told:
    """What a person sees of a trained variant."""

    variant: str
    sentence: str
    metadata: Metadata
    checks: list[dg.AssetCheckEvaluation]


@dataclass(frozen=True)
class Teller:
    """Turns an outcome, with its rows, into the little that is shown of it."""

    model_link: Callable[[str, int], str]

    def tell(self, outcome: "TrainingOutcome") -> Told:
        return Told(
            variant=outcome.variant.key,
            sentence=_sentence(outcome),
            metadata=describe(outcome, self.model_link),
            checks=[_evaluation(outcome.variant.key, check) for check in outcome.gate.checks],
        )


def describe(outcome: "TrainingOutcome", model_link: Callable[[str, int], str]) -> Metadata:
    """Return the asset's metadata: what it was made of, how good it is, the gate, pictures and links."""
    trained, lineage, version = outcome.trained, outcome.lineage, outcome.version
    metrics = {
        f"held_out_{name}": dg.MetadataValue.float(float(value)) for name, value in outcome.evaluation.metrics().items()
    }
    parts = [(p.name, p.as_ofs[0], p.as_ofs[-1], f"{p.n:,}", f"{p.n_churned:,}") for p in trained.parts]
    shown = {
        "gate": dg.MetadataValue.md(outcome.gate.to_markdown()),
        "trained_as_of": dg.MetadataValue.text(lineage.today.isoformat()),
        "activity_of": dg.MetadataValue.text(lineage.activity_of.key),
        "why_not_its_own": dg.MetadataValue.text("; ".join(lineage.detours) or "it is its own"),
        "rows": dg.MetadataValue.md(markdown_table(("part", "first", "last", "rows", "churned"), parts, "---rr")),
        "parameters": dg.MetadataValue.json({**trained.chosen.parameters, "n_rounds": trained.chosen.n_rounds}),
        "data_sha256": dg.MetadataValue.text(lineage.data_sha256),
        "booster_sha256": dg.MetadataValue.text(trained.bundle.sha256),
    }
    pictures = {
        name.removesuffix(".svg"): dg.MetadataValue.md(picture(outcome.pictures[name].decode()))
        for name in _SHOWN_PICTURES
        if len(outcome.pictures[name]) <= _MOST_PICTURE_BYTES
    }
    if version is None:
        return shown | pictures | metrics
    links = {
        "registered_model": dg.MetadataValue.text(version.registered_model),
        "model_version": dg.MetadataValue.int(version.version),
        "alias": dg.MetadataValue.text(version.alias or "none"),
        "mlflow": dg.MetadataValue.url(model_link(version.registered_model, version.version)),
        "mlflow_run_id": dg.MetadataValue.text(version.mlflow_run_id),
    }
    return links | shown | pictures | metrics


def report(context: dg.AssetExecutionContext, told: Told, *, is_dry: bool) -> None:
    """Log what came of a variant: its materialization and its checks, or of a dry run only a line."""
    context.log.info("%s: %s", told.variant, told.sentence)
    if is_dry:
        return
    context.log_event(dg.AssetMaterialization(ASSET, partition=told.variant, metadata=told.metadata))
    for evaluation in told.checks:
        context.log_event(evaluation)


def _sentence(outcome: "TrainingOutcome") -> str:
    version, failures = outcome.version, ", ".join(check.name for check in outcome.gate.failures)
    what = "a dry run" if version is None else f"version {version.version}"
    if failures:
        return f"{what} failed the gate: {failures}"
    alias = None if version is None else version.alias
    return f"{what} passed the gate{f' and is the {alias}' if alias in (CHAMPION, CHALLENGER) else ''}"


def _evaluation(key: str, check: GateCheck) -> dg.AssetCheckEvaluation:
    figures = {"value": check.value, "limit": check.limit}
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(ASSET),
        check_name=check.name,
        passed=check.outcome != "fails",
        severity=dg.AssetCheckSeverity.WARN,
        partition=key,
        description=check.sentence,
        metadata={
            "outcome": dg.MetadataValue.text(check.outcome),
            **{name: dg.MetadataValue.float(float(v)) for name, v in figures.items() if v is not None},
        },
    )
