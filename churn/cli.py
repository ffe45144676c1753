"""``churn demo|up|score|explain``: a thin face over the same functions that the scripts and Dagster use."""

import argparse
import signal
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from types import FrameType

from churn.arguments import run_command
from churn.weeks import parse_week


def build_parser() -> argparse.ArgumentParser:
    """Make the parser, which documents the commands."""
    parser = argparse.ArgumentParser(prog="churn", description="Weekly churn scores for many model variants.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    demo = commands.add_parser("demo", help="run the whole weekly job for four variants and show what came of it")
    demo.add_argument("--week", help="the Monday to score, as YYYY-MM-DD; default: this week's")
    up = commands.add_parser("up", help="serve the Dagster and MLflow UIs on this machine until interrupted")
    up.add_argument("--dagster-port", type=int, default=3000, help="default: %(default)s")
    up.add_argument("--mlflow-port", type=int, default=5000, help="default: %(default)s")
    score = commands.add_parser("score", help="score variants without Dagster")
    score.add_argument("variant", nargs="+", help="base, geography-us, company-clienta, geography-eu.company-clientb")
    score.add_argument("--week", help="the Monday to score, as YYYY-MM-DD; default: this week's")
    score.add_argument("--as-of", type=date.fromisoformat, help="score as known at the end of this day, YYYY-MM-DD")
    explain = commands.add_parser("explain", help="show why an account has its score")
    explain.add_argument("--account", type=int, required=True, help="the account_id")
    explain.add_argument("--variant", default="base", help="its key, or a geography or company; default: %(default)s")
    explain.add_argument("--week", help="the scored week, as YYYY-MM-DD; default: the newest")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = build_parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal, too, must leave no server behind
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _as_interrupt)
    run_command(f"churn {args.command}", lambda: _COMMANDS[args.command](args))


def _as_interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _demo(args: argparse.Namespace) -> None:
    from churn.demo import run_demo

    run_demo(parse_week(args.week, datetime.now(UTC).date()))


def _up(args: argparse.Namespace) -> None:
    from churn.up import serve

    serve(dagster_port=args.dagster_port, mlflow_port=args.mlflow_port)


def _score(args: argparse.Namespace) -> None:
    from churn.deployment import open_deployment
    from churn.settings import load_settings
    from churn.variants import Variant

    variants = [Variant.from_key(key) for key in args.variant]
    week = parse_week(args.week, datetime.now(UTC).date())
    with open_deployment(load_settings()) as deployment:
        scorer = deployment.scorer()
        for variant in variants:
            outcome = scorer.score_variant(variant, week, as_of=args.as_of)
            record = outcome.record
            print(
                f"{variant}: {record.n_rows_scored} accounts scored for {week} by {record.registered_model} "
                f"v{record.model_version} from {record.source} ({record.source_uri}), batch {outcome.batch_id}"
            )


def _explain(args: argparse.Namespace) -> None:
    from rich.console import Console

    from churn.deployment import open_deployment
    from churn.explain import explain_account
    from churn.settings import load_settings

    week = parse_week(args.week, datetime.now(UTC).date()) if args.week else None
    with open_deployment(load_settings()) as deployment:
        explain_account(deployment.database, args.variant, args.account, week, Console(highlight=False))


_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "demo": _demo,
    "up": _up,
    "score": _score,
    "explain": _explain,
}
