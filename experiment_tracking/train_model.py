"""Train a variant on its activity, check the model against the gate, and register it in MLflow.

A model that passes the gate becomes the variant's challenger, or its champion if there is none; one that fails is
registered without an alias, and the failed checks are printed. A variant with too few labels is trained on the activity
of a fallback variant (its geography, else base), which is printed, too. --all and --under train a fleet in one
process; a variant that fails stops no other.
"""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from churn.deployment.command_line import (
    add_variant_flags,
    day_of,
    exit_if_failed,
    named_variants,
    print_attempts,
    run_command,
    with_found,
)
from churn.deployment.services import open_deployment
from churn.deployment.settings import load_settings
from churn.errors import UsageError

if TYPE_CHECKING:
    from churn.evaluation.metrics import Evaluation
    from churn.workflows.train import TrainingOutcome

_OUTCOMES = {"holds": "holds", "fails": "FAILS", "skipped": "skipped"}


def build_parser() -> argparse.ArgumentParser:
    """Build the parser, which documents the flags."""
    parser = argparse.ArgumentParser(prog="train_model.py", description=__doc__)
    add_variant_flags(parser)
    parser.add_argument(
        "--as-of",
        type=day_of,
        metavar="DAY",
        help="the date to train as of, as YYYY-MM-DD; nothing that became known later is used; default: today, UTC",
    )
    parser.add_argument(
        "--trials", type=_count, metavar="N", help="hyperparameter trials; default: CHURN_TRAINING_TRIALS"
    )
    parser.add_argument("--dry-run", action="store_true", help="train and check without changing the history or MLflow")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script."""
    args = build_parser().parse_args(argv)
    run_command("train_model.py", lambda: train_models(args))


def train_models(args: argparse.Namespace) -> None:
    """Train each variant that the flags name, and print the results."""
    named = named_variants(args)
    now = datetime.now(UTC).date()
    today = args.as_of or now
    if today > now:
        raise UsageError(f"--as-of {today} is in the future (today is {now}, UTC); use today or an earlier date")
    with open_deployment(load_settings()) as deployment:
        variants = with_found(named, args, deployment.sources())
        keys = [variant.key for variant in variants]
        outcomes = deployment.trainer(n_trials=args.trials).train_fleet(keys, today, dry_run=args.dry_run)
        failed = print_attempts("train_model.py", ((key, _lines(result)) for key, result in outcomes))
    exit_if_failed("train_model.py", failed, len(variants))


def _lines(result: "TrainingOutcome | BaseException") -> list[str] | BaseException:
    return result if isinstance(result, BaseException) else describe(result)


def describe(outcome: "TrainingOutcome") -> list[str]:
    """Describe a training in lines for a person."""
    trained, lineage, gate = outcome.trained, outcome.lineage, outcome.gate
    parts = ", ".join(f"{part.n:,} {part.name.replace('_', ' ')}" for part in trained.parts)
    chosen = ", ".join(f"{name} {value:g}" for name, value in trained.chosen.parameters.items())
    held_out = f"{trained.held_out.as_ofs[0]} to {trained.held_out.as_ofs[-1]}"
    source = outcome.provenance
    return [
        f"variant    {outcome.variant}",
        f"activity   of {lineage.activity_of}: {lineage.n_facts:,} facts, {outcome.n_facts_added:,} of them new; "
        f"known by {lineage.today}",
        *(f"because    {why}" for why in lineage.detours),
        *([f"fallback   {source.fallback_reason}"] if source and source.fallback_reason else []),
        f"rows       {parts}",
        f"chosen     {chosen}, {trained.chosen.n_rounds} rounds; the best of {len(trained.trials)}",
        f"held out   {_measures(outcome.evaluation)}; {held_out}",
        *([f"champion   {_measures(outcome.against.evaluation)}; {outcome.against.uri}"] if outcome.against else []),
        f"gate       {'passed' if gate.is_passed else 'FAILED'}",
        *(f"  {_OUTCOMES[check.outcome]:8} {check.name}: {check.sentence}" for check in gate.checks),
        *_registered(outcome),
    ]


def _registered(outcome: "TrainingOutcome") -> list[str]:
    version, failures = outcome.version, ", ".join(check.name for check in outcome.gate.failures)
    if version is None:
        return [
            f"dry run    nothing was changed{f'; the model would not be a challenger: {failures}' if failures else ''}"
        ]
    lines = [
        f"run id     {version.mlflow_run_id}",
        f"model URI  {version.uri}",
        f"version    {version.version}{f', alias {version.alias}' if version.alias else ''}",
    ]
    return [*lines, f"no alias   version {version.version} is not a challenger: {failures}"] if failures else lines


def _measures(found: "Evaluation") -> str:
    of = f"of {found.n:,} accounts"
    if found.roc_auc is None or found.log_loss is None:
        return f"too few of one outcome to measure performance {of}"
    return (
        f"AUC {found.roc_auc:.3f}, log loss {found.log_loss:.3f}, "
        f"calibration error {found.calibration_error:.3f}, lift {found.lift_at_10:.2f} {of}"
    )


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of trials; 1 or more is needed")
    return int(text)


if __name__ == "__main__":
    main()
