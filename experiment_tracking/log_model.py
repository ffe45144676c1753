"""Log a variant's model in MLflow and register it, from its files in S3 or, flagged, their local copy.

The version becomes champion when the variant has none; --alias gives it another. --all and --under log a fleet in one
process: variants that are registered are passed over, so that a run that broke off goes on, and one that fails stops no
other.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from churn.concurrency import in_threads
from churn.deployment.command_line import (
    FAILED,
    add_variant_flags,
    alias_of,
    is_fleet,
    named_variants,
    run_command,
    with_found,
)
from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import load_settings
from churn.errors import ChurnError
from churn.variants import Variant

# MLflow's store waits for PostgreSQL more than it computes.
THREADS = 4


def build_parser() -> argparse.ArgumentParser:
    """Make the parser, which documents the flags."""
    parser = argparse.ArgumentParser(prog="log_model.py", description=__doc__)
    add_variant_flags(parser)
    parser.add_argument("--alias", help="alias for the new version; default: champion when the variant has none")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script."""
    args = build_parser().parse_args(argv)
    run_command("log_model.py", lambda: log_models(args))


def log_models(args: argparse.Namespace) -> None:
    """Log each variant that the flags name, and say what came of it."""
    named, alias = named_variants(args), alias_of(args)
    with open_deployment(load_settings()) as deployment:
        variants = with_found(named, args, deployment.sources())
        if is_fleet(args):
            variants = without_registered(deployment, variants)
        failed = log_all(deployment, variants, alias)
    if failed:
        if len(variants) > 1:
            names = ", ".join(map(str, failed))
            print(f"log_model.py: {len(failed)} of {len(variants)} failed: {names}", file=sys.stderr)
        sys.exit(FAILED)


def without_registered(deployment: Deployment, variants: list[Variant]) -> list[Variant]:
    """Leave out the variants that are registered, and say how many there were."""
    registered = set(deployment.registry(read_only=False).variants())
    missing = [variant for variant in variants if variant not in registered]
    print(
        f"{len(variants) - len(missing)} of {len(variants)} variants are registered; logging {len(missing)}", flush=True
    )
    return missing


def log_all(deployment: Deployment, variants: list[Variant], alias: str | None) -> list[Variant]:
    """Log the variants, a few at once; returns those that failed."""
    if not variants:
        return []
    from churn.workflows.register import log_variant

    registry, sources = deployment.registry(read_only=False), deployment.sources()
    log = partial(
        log_variant, registry, sources, artifact_location=deployment.artifact_location,
        code_version=deployment.code_version, alias=alias,
    )  # fmt: skip

    def attempt(variant: Variant) -> tuple[Variant, list[str] | ChurnError]:
        try:
            version, candidate = log(variant)
        except ChurnError as error:
            return variant, error
        model = candidate.files[0].provenance
        fallback = f"fallback  local copy of {model.variant}, because {model.fallback_reason}"
        return variant, [
            f"variant   {variant}",
            f"model     {model.uri} ({model.size} bytes, sha256 {model.sha256[:12]}…)",
            *([fallback] if model.fallback_reason else []),
            f"run id    {version.mlflow_run_id}",
            f"model URI {version.uri}",
            f"version   {version.version}{f', alias {version.alias}' if version.alias else ''}",
        ]

    failed: list[Variant] = []
    for variant, result in in_threads(attempt, variants, THREADS):
        if isinstance(result, ChurnError):
            failed.append(variant)
            print(f"log_model.py: {variant}: {result}", file=sys.stderr, flush=True)
        else:
            print("\n".join(result), flush=True)
    return failed


if __name__ == "__main__":
    main()
