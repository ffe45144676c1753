"""Log a variant's model in MLflow and register it, from its files in S3 or, flagged, their local copy.

The version becomes champion when the variant has none; --alias gives it another. Repeat --variant, or name a file with
--all, to log many in one process; one that fails does not stop the others.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from churn.arguments import FAILED, add_variant_flags, alias_of, run_command, variant_of
from churn.deployment import Deployment, open_deployment
from churn.errors import ChurnError, UsageError
from churn.settings import load_settings
from churn.variants import Variant


def build_parser() -> argparse.ArgumentParser:
    """Make the parser, which documents the flags."""
    parser = argparse.ArgumentParser(prog="log_model.py", description=__doc__)
    add_variant_flags(parser)
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="KEY",
        help="base, geography-us, company-clienta or geography-eu.company-clientb; may be repeated",
    )
    parser.add_argument("--all", type=Path, metavar="FILE", help="a file with a variant key on each line")
    parser.add_argument("--alias", help="alias for the new version; default: champion when the variant has none")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script."""
    args = build_parser().parse_args(argv)
    run_command("log_model.py", lambda: log_models(args))


def log_models(args: argparse.Namespace) -> None:
    """Log each variant that the flags name."""
    variants, alias = chosen_variants(args), alias_of(args)
    with open_deployment(load_settings()) as deployment:
        failed = [variant for variant in variants if not log_one(deployment, variant, alias)]
    if failed:
        if len(variants) > 1:
            print(
                f"log_model.py: {len(failed)} of {len(variants)} failed: {', '.join(map(str, failed))}", file=sys.stderr
            )
        sys.exit(FAILED)


def log_one(deployment: Deployment, variant: Variant, alias: str | None) -> bool:
    """Log one variant and say what came of it, a line each."""
    from churn.model.onboarding import log_variant

    try:
        version, candidate = log_variant(
            deployment.registry(read_only=False),
            deployment.sources(),
            variant,
            deployment.artifact_location,
            deployment.code_version,
            alias=alias,
        )
    except ChurnError as error:
        print(f"log_model.py: {variant}: {error}", file=sys.stderr, flush=True)
        return False
    model = candidate.files[0].provenance
    print(f"variant   {variant}")
    print(f"model     {model.uri} ({model.size} bytes, sha256 {model.sha256[:12]}…)")
    if model.fallback_reason:
        print(f"fallback  local copy of {model.variant}, because {model.fallback_reason}")
    print(f"run id    {version.mlflow_run_id}")
    print(f"model URI {version.uri}")
    print(f"version   {version.version}{f', alias {version.alias}' if version.alias else ''}", flush=True)
    return True


def chosen_variants(args: argparse.Namespace) -> list[Variant]:
    """Read the variants from the flags, each once, in order.

    Raises:
        UsageError: If a name is not allowed, or the file of --all cannot be read.
    """
    many = [Variant.from_key(key) for key in [*args.variant, *_keys_of(args.all)]]
    one = [variant_of(args)] if not many or args.geography or args.company else []
    return list(dict.fromkeys([*one, *many]))


def _keys_of(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        keys = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--all {path} cannot be read ({error}); a text file with a variant key on each line is needed"
        ) from error
    if not keys:
        raise UsageError(f"--all {path} names no variant; a variant key on each line is needed")
    return keys


if __name__ == "__main__":
    main()
