"""Log a variant's model in MLflow and register it, from its files in S3 or, flagged, from their local copy.

Without a bucket, a variant that has no files gets the bundled model. With one, it needs files of its own, or
--from-variant, which names the variant whose files are used.

MLflow's URI and a bucket are enough. Without a predictions database no trail of the aliases is kept, and an alias that
names a version is left to a deployment that has one.

The version becomes champion if the variant has none; --alias gives it another alias. --all and --under log a fleet in
one process: variants that have a champion are skipped, so that an interrupted run can be repeated, which completes what
it left; a variant that fails stops no other.
"""

import argparse
from collections.abc import Mapping, Sequence

from churn.deployment import command_line
from churn.deployment.services import Deployment, open_deployment
from churn.errors import UsageError
from churn.registry.tags import COMPANY, GEOGRAPHY
from churn.variants import Variant
from churn.versions import CHAMPION
from churn.workflows.fleet import FleetEngine, for_each_variant, threads

_NO_TRAIL = "no database for predictions is set; set CHURN_DATABASE_URL or MLFLOW_SECRET_NAME"
_THREADS = 2  # each variant is taken to its end: a killed run leaves few unfinished


def build_parser() -> argparse.ArgumentParser:
    """Build the parser, which documents the flags."""
    parser = argparse.ArgumentParser(prog="log_model.py", description=__doc__)
    command_line.add_variant_flags(parser)
    parser.add_argument("--alias", help="alias of the new version; default: champion if the variant has none")
    parser.add_argument("--from-variant", metavar="KEY", help="use the model files of this variant; default: its own")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script."""
    args = build_parser().parse_args(argv)
    command_line.run_command("log_model.py", lambda: log_models(args))


def log_models(args: argparse.Namespace) -> None:
    """Log each variant that the flags name, and print the results."""
    named, alias = command_line.parse_variants(args), command_line.parse_alias(args)
    files_of = Variant.from_key(args.from_variant) if args.from_variant else None
    parts = {GEOGRAPHY: args.geography, COMPANY: args.company}
    typed = {named[0]: {name: part for name, part in parts.items() if part}} if named else {}
    with open_deployment() as deployment:
        variants = command_line.add_variants_under(named, args, deployment.sources())
        if command_line.is_fleet(args):
            n, aliases = len(variants), deployment.registry(read_only=False).aliases()
            variants = [one for one in variants if not {alias, CHAMPION} & aliases.get(one, {}).keys()]
            print(f"{n - len(variants)} of {n} variants are registered; logging {len(variants)}", flush=True)
        if deployment.predictions is None:
            print(f"trail     none of the aliases is kept, since {_NO_TRAIL}", flush=True)
        if variants:
            once = command_line.is_fleet(args)
            log_variants(deployment, variants, alias, once=once, files_of=files_of, typed=typed)


def _next_step(champion: int | None) -> str:
    return (
        f"next      version {champion} is still the champion, which scores; log the model with --alias challenger to "
        f"compare it with version {champion}, or with --alias champion to replace that"
    )


def log_variants(
    deployment: Deployment,
    variants: Sequence[Variant],
    alias: str | None,
    *,
    once: bool = False,
    files_of: Variant | None = None,
    typed: Mapping[Variant, Mapping[str, str]] | None = None,
) -> None:
    """Log the variants, a few at once, and print the results.

    Args:
        typed: The tags of a variant's run that have its parts as a person spelled them.
    """
    from churn.workflows.register import log_variant

    registry, sources = deployment.registry(read_only=False), deployment.sources()

    def log(variant: Variant) -> list[str]:
        location, code_version = deployment.artifact_location, deployment.code_version
        if alias and deployment.predictions is None and alias in registry.aliases().get(variant, {}):
            raise UsageError(
                f"the alias {alias} of {variant} names a version, and moving it needs a trail; {_NO_TRAIL}"
            )
        version, candidate = log_variant(
            registry,
            sources,
            variant,
            location,
            code_version,
            alias=alias,
            once=once,
            files_of=files_of,
            run_tags=(typed or {}).get(variant),
        )
        model = candidate.files[0].provenance
        copy = "bundled model" if model.sha256 in sources.simulated else f"local copy of {model.variant}"
        fallback = f"fallback  {copy}, because {model.fallback_reason}"
        return [
            f"variant   {variant}",
            f"model     {model.uri} ({model.size} bytes, sha256 {model.sha256[:12]}…)",
            *([fallback] if model.fallback_reason else []),
            f"run id    {version.mlflow_run_id}",
            f"model URI {version.uri}",
            f"version   {version.version}, {f'alias {version.alias}' if version.alias else 'without an alias'}",
            *([] if version.alias else [_next_step(registry.aliases_of(variant).get(CHAMPION))]),
            *(f"remark    {remark}" for remark in candidate.remarks),
        ]

    engine: FleetEngine[Sequence[str]] = threads(_THREADS)
    command_line.print_attempts("log_model.py", for_each_variant(log, [variant.key for variant in variants], engine))


if __name__ == "__main__":
    main()
