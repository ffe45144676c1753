"""Log a variant's model in MLflow and register it, from its files in S3 or, flagged, from their local copy.

The version becomes champion if the variant has none; --alias gives it another alias. --all and --under log a fleet in
one process: registered variants are skipped, so that an interrupted run can be repeated, and a variant that fails stops
no other.
"""

import argparse
from collections.abc import Sequence

from churn.deployment.command_line import (
    add_variant_flags,
    alias_of,
    exit_if_failed,
    is_fleet,
    named_variants,
    print_attempts,
    run_command,
    with_found,
)
from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import load_settings
from churn.variants import Variant
from churn.workflows.fleet import FleetEngine, for_each_variant, threads

# MLflow's store waits for PostgreSQL more than it computes.
THREADS = 4


def build_parser() -> argparse.ArgumentParser:
    """Build the parser, which documents the flags."""
    parser = argparse.ArgumentParser(prog="log_model.py", description=__doc__)
    add_variant_flags(parser)
    parser.add_argument("--alias", help="alias of the new version; default: champion if the variant has none")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script."""
    args = build_parser().parse_args(argv)
    run_command("log_model.py", lambda: log_models(args))


def log_models(args: argparse.Namespace) -> None:
    """Log each variant that the flags name, and print the results."""
    named, alias = named_variants(args), alias_of(args)
    with open_deployment(load_settings()) as deployment:
        variants = with_found(named, args, deployment.sources())
        if is_fleet(args):
            variants = without_registered(deployment, variants)
        failed = log_all(deployment, variants, alias)
    exit_if_failed("log_model.py", failed, len(variants))


def without_registered(deployment: Deployment, variants: list[Variant]) -> list[Variant]:
    """Leave out the variants that are registered, and print how many there are."""
    registered = set(deployment.registry(read_only=False).variants())
    missing = [variant for variant in variants if variant not in registered]
    print(
        f"{len(variants) - len(missing)} of {len(variants)} variants are registered; logging {len(missing)}", flush=True
    )
    return missing


def log_all(deployment: Deployment, variants: list[Variant], alias: str | None) -> list[str]:
    """Log the variants, a few at once, and print the results; returns the keys of those that failed."""
    if not variants:
        return []
    from churn.workflows.register import log_variant

    registry, sources = deployment.registry(read_only=False), deployment.sources()

    def log(variant: Variant) -> list[str]:
        location, code_version = deployment.artifact_location, deployment.code_version
        version, candidate = log_variant(registry, sources, variant, location, code_version, alias=alias)
        model = candidate.files[0].provenance
        fallback = f"fallback  local copy of {model.variant}, because {model.fallback_reason}"
        return [
            f"variant   {variant}",
            f"model     {model.uri} ({model.size} bytes, sha256 {model.sha256[:12]}…)",
            *([fallback] if model.fallback_reason else []),
            f"run id    {version.mlflow_run_id}",
            f"model URI {version.uri}",
            f"version   {version.version}{f', alias {version.alias}' if version.alias else ''}",
        ]

    engine: FleetEngine[Sequence[str]] = threads(THREADS)
    return print_attempts("log_model.py", for_each_variant(log, [variant.key for variant in variants], engine))


if __name__ == "__main__":
    main()
