"""Set up MLflow's PostgreSQL backend, the predictions database, and a variant's experiment.

Credentials come from the AWS Secrets Manager secret MLFLOW_SECRET_NAME; artifacts go to the bucket MLFLOW_S3_BUCKET.
If neither is set, the embedded PostgreSQL and a local folder are used. Safe to repeat.
"""

import argparse
from collections.abc import Sequence

from churn.deployment import command_line
from churn.deployment.services import open_deployment
from churn.workflows.set_up import set_up_server, set_up_variants


def build_parser() -> argparse.ArgumentParser:
    """Build the parser, which documents the flags."""
    parser = command_line.Parser(prog="setup.py", description=__doc__)
    command_line.add_variant_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script."""
    args = build_parser().parse_args(argv)
    command_line.run_command("setup.py", lambda: set_up(args))


def set_up(args: argparse.Namespace) -> None:
    """Set up the server, then each variant; prints a line for each step."""
    named = command_line.parse_variants(args)
    with open_deployment() as deployment:
        for line in set_up_server(*deployment.databases, keep_weeks=deployment.settings.churn_keep_weeks):
            command_line.say(line)
        registry = deployment.registry(read_only=False)
        variants = command_line.find_variants(named, args, registry.variants, deployment.sources())
        attempts = set_up_variants(registry, deployment.artifact_location, variants)
        command_line.print_attempts("setup.py", attempts, len(variants))


if __name__ == "__main__":
    main()
