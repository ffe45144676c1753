"""Train a variant on its activity, check the model against the gate, and register it in MLflow.

A model that passes the gate becomes the variant's challenger, or its champion if there is none; one that fails is
registered without an alias, and the failed checks are printed. A variant with too few labels is trained on the activity
of a fallback variant (its geography, else base), which is printed, too. --all and --under train a fleet
together; a variant that fails stops no other.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from churn.deployment import command_line
from churn.deployment.services import Deployment, open_deployment
from churn.errors import ChurnError, UsageError
from churn.wording import counted

if TYPE_CHECKING:
    from churn.evaluation.metrics import Evaluation
    from churn.workflows.train import FeatureNames, TrainingOutcome


def build_parser() -> argparse.ArgumentParser:
    """Build the parser, which documents the flags."""
    parser = command_line.Parser(prog="train_model.py", description=__doc__)
    command_line.add_variant_flags(parser, "that is registered or has a model file")
    as_of = "the date to train as of, as YYYY-MM-DD; nothing that became known later is used; default: today, UTC"
    parser.add_argument("--as-of", type=command_line.parse_day, metavar="DAY", help=as_of)
    trials = "hyperparameter trials; default: CHURN_TRAINING_TRIALS"
    parser.add_argument("--trials", type=_parse_count, metavar="N", help=trials)
    features = (
        "features in place of the variant's own: a .json file of names, names separated by commas, or default; without "
        "it, those of the champion, else of the variant's feature names file, else the default set"
    )
    parser.add_argument("--features", type=_parse_features, metavar="NAMES", help=features)
    parser.add_argument("--dry-run", action="store_true", help="train and check without changing the history or MLflow")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script."""
    args = build_parser().parse_args(argv)
    command_line.run_command("train_model.py", lambda: train_models(args))


def train_models(args: argparse.Namespace) -> None:
    """Train each variant that the flags name, and print the results."""
    named, now = command_line.parse_variants(args), datetime.now(UTC).date()
    today = args.as_of or now
    if today > now:
        raise UsageError(f"--as-of {today} is in the future (today is {now}, UTC); use today or an earlier date")
    with open_deployment() as deployment:
        trainer = deployment.trainer(n_trials=args.trials, features=args.features)
        variants = command_line.find_variants(named, args, trainer.registry.variants, trainer.sources, None)
        trainer = replace(trainer, run_tags={variants[0]: command_line.typed_parts(args)})
        keys = [one.key for one in variants]
        workers = deployment.workers(len(keys), Deployment.trainer) if command_line.is_fleet(args) else None
        attempts = trainer.train_fleet(keys, today, describe, dry_run=args.dry_run, workers=workers)
        command_line.print_attempts("train_model.py", attempts, len(keys))


def describe(outcome: "TrainingOutcome") -> list[str]:
    """Describe a training in lines for a person."""
    from churn.workflows.train import describe_months

    trained, lineage, gate = outcome.trained, outcome.lineage, outcome.gate
    parts = ", ".join(f"{part.n:,} {part.name.replace('_', ' ')}" for part in trained.parts)
    chosen = ", ".join(f"{name} {value:g}" for name, value in trained.chosen.parameters.items())
    as_ofs, source = trained.held_out.as_ofs, outcome.provenance
    months = describe_months(lineage.months, lineage.today, trained.plan.horizon)
    return [
        f"variant    {outcome.variant}",
        f"activity   of {lineage.activity_of}: {lineage.n_facts:,} facts, {outcome.n_facts_added:,} of them new; "
        f"known by {lineage.today}",
        *([f"months     {months}"] if lineage.n_facts else []),
        *([f"pool       of {lineage.pooled}"] if lineage.pooled else []),
        *(f"because    {why}" for why in lineage.detours),
        *([f"fallback   {source.fallback_reason}"] if source and source.fallback_reason else []),
        f"features   {len(trained.feature_names)} of {lineage.names_from}",
        f"rows       {parts}",
        f"chosen     {chosen}, {trained.chosen.n_rounds} rounds; the best of {len(trained.trials)}",
        f"held out   {_measures(outcome.evaluation)}; {as_ofs[0]} to {as_ofs[-1]}",
        *([f"champion   {_measures(outcome.against.evaluation)}; {outcome.against.uri}"] if outcome.against else []),
        f"gate       {'passed' if gate.is_passed else 'FAILED'}",
        *(f"  {check.outcome.replace('fails', 'FAILS'):8} {check.name}: {check.sentence}" for check in gate.checks),
        *_registered(outcome),
    ]


def _registered(outcome: "TrainingOutcome") -> list[str]:
    version, failures = outcome.version, ", ".join(check.name for check in outcome.gate.failures)
    if version is None:
        consequence = f"; the model would not be a challenger: {failures}" if failures else ""
        return [f"dry run    nothing was changed{consequence}"]
    return [
        f"run id     {version.mlflow_run_id}",
        f"model URI  {version.uri}",
        f"version    {version.version}{f', alias {version.alias}' if version.alias else ''}",
        *([f"no alias   version {version.version} is not a challenger: {failures}"] if failures else []),
    ]


def _measures(of: "Evaluation") -> str:
    if of.roc_auc is None or of.log_loss is None:
        return f"too few of one outcome to measure performance of {of.n:,} accounts"
    return (
        f"AUC {of.roc_auc:.3f}, log loss {of.log_loss:.3f}, calibration error {of.calibration_error:.3f}, "
        f"lift {of.lift_at_10:.2f} in the highest tenth, on {counted(of.n, 'account')}"
    )


def _parse_features(text: str) -> "FeatureNames":
    from churn.inference.bundle import parse_feature_names
    from churn.training.default_features import DEFAULT_SET
    from churn.workflows.train import FeatureNames

    if text == "default":
        return FeatureNames(DEFAULT_SET)
    if get_close_matches(text, ["default"], cutoff=0.8):
        raise argparse.ArgumentTypeError(f"{text!r} is not default, and close to it; type default, or name features")
    names = json.dumps([name.strip() for name in text.split(",")])
    try:
        content = Path(text).read_bytes() if text.endswith(".json") else names.encode()
        return FeatureNames("--features", parse_feature_names(content, "--features"))
    except (OSError, ChurnError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parse_count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of trials; 1 or more is needed")
    return int(text)


if __name__ == "__main__":
    main()
