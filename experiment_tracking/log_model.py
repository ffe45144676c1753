"""Log a variant's model in MLflow and register it, from its files in S3 or, flagged, from their local copy.

Without a bucket, a variant that has no files gets the bundled model. With one, it needs files of its own, or
--from-variant, which names the variant whose files are used.

--adopt registers a version of others, such as one logged by mlflow.xgboost.log_model in a notebook, as the variant's
own, and leaves theirs as it is. Its variant is that of --geography, --company or --variant; with PREFIX*, '*' as
geography or company is the rest of each name. Else the name must end in a variant's key, as risk-geography-us and
risk-geography-eu-company-clientb do. Repeating it changes nothing.

MLflow's URI and a bucket are enough. Without a predictions database no trail of the aliases is kept, and an alias that
names a version is left to a deployment that has one.

The version becomes champion if the variant has none; --alias gives it another alias. --all and --under log a fleet in
one process: variants that have a champion are skipped, so that an interrupted run can be repeated, which completes what
it left; a variant that fails stops no other.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from churn.deployment import command_line
from churn.deployment.services import Deployment, open_deployment
from churn.errors import UsageError
from churn.variants import Variant, find_variant, fold_name, similar
from churn.versions import CHAMPION
from churn.workflows.engines import for_each_on
from churn.workflows.fleet import Attempts, for_each_variant

if TYPE_CHECKING:
    from churn.workflows.register import Registered, Registrar

_NEAR = "{} is new, has no files of its own, and is spelled like {}; to undo it: docs/how-to/remove-a-variant.md"
_NEXT = (
    "next      version {0} is still the champion, which scores; log the model with --alias challenger to compare it "
    "with version {0}, or with --alias champion to replace that"
)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser, which documents the flags."""
    parser = command_line.Parser(prog="log_model.py", description=__doc__)
    command_line.add_variant_flags(parser)
    parser.add_argument("--alias", help="alias of the new version; default: champion if the variant has none")
    adopt = "a registered model as NAME, NAME@ALIAS or NAME/VERSION, or many as PREFIX*[@ALIAS]; default: @champion"
    parser.add_argument("--adopt", metavar="NAME", help=adopt)
    parser.add_argument("--from-variant", metavar="KEY", help="use the model files of this variant; default: its own")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script."""
    args = build_parser().parse_args(argv)
    command_line.run_command("log_model.py", lambda: log_models(args))


def log_models(args: argparse.Namespace) -> None:
    """Log each variant that the flags name, and print the results."""
    if args.adopt is not None:
        with open_deployment() as deployment:
            adopt_models(deployment, args)
        return
    named, alias = command_line.parse_variants(args), command_line.parse_alias(args)
    files_of = fold_name(args.from_variant) if args.from_variant else None
    with open_deployment() as deployment:
        registry = deployment.registry(read_only=False)
        variants = command_line.find_variants(named, args, registry.variants, deployment.sources())
        typed = {variants[0]: command_line.typed_parts(args)}
        if command_line.is_fleet(args):
            n, aliases = len(variants), registry.aliases()
            variants = [one for one in variants if not {alias, CHAMPION} & aliases.get(one, {}).keys()]
            print(f"{n - len(variants)} of {n} variants are registered; logging {len(variants)}", flush=True)
        if variants:
            once = command_line.is_fleet(args)
            source = find_variant(files_of, registry.variants) if files_of else None
            log_variants(deployment, variants, alias, once=once, files_of=source, typed=typed)


def adopt_models(deployment: Deployment, args: argparse.Namespace) -> None:
    """Adopt each version that ``--adopt`` names, and print the results."""
    registry = deployment.registry(read_only=False)  # before MLflow is imported
    from churn.registry.foreign import find_versions
    from churn.workflows.adopt import adopt_each, assign

    alias, parts = command_line.parse_alias(args), command_line.typed_parts(args)
    if command_line.is_fleet(args) or args.from_variant or len(args.variant) + bool(parts) > 1:
        raise UsageError("--adopt takes one variant or none, and not --all, --under or --from-variant")
    keys = [find_variant(fold_name(name), registry.variants).key for name in args.variant]
    chosen, failed = assign(find_versions(registry.client, args.adopt), args.geography, args.company, *keys)
    typed = {name: part for name, part in parts.items() if part != "*"}
    adopt = adopt_each(deployment.registrar(), chosen, alias, typed)
    log_variants(deployment, list(chosen), alias, adopt=adopt, failed=failed)


def log_variants(
    deployment: Deployment,
    variants: Sequence[Variant],
    alias: str | None,
    *,
    once: bool = False,
    files_of: Variant | None = None,
    typed: Mapping[Variant, Mapping[str, str]] | None = None,
    adopt: "Callable[[Variant], Registered | str] | None" = None,
    failed: Mapping[str, BaseException] | None = None,
) -> None:
    """Log the variants, a few at once, and print the results and the models that are of no variant, with the reason.

    ``typed`` are the tags with a variant's parts as a person spelled them. ``adopt`` adopts a version in place of
    logging the variant's files; it returns a line where that was done before.
    """
    from churn.workflows.register import NO_TRAIL, Registered, Registrar

    if deployment.predictions is None:
        print(f"trail     none of the aliases is kept, since {NO_TRAIL}", flush=True)
    registrar, keys = deployment.registrar(), [variant.key for variant in variants]
    known = registrar.registry.variants()
    attempts: Attempts[Registered | str]
    if adopt is not None:
        attempts = for_each_variant(adopt, keys)
    else:
        work = partial(Registrar.log_files, alias=alias, once=once, files_of=files_of, run_tags=typed)
        workers = deployment.workers(len(keys), Deployment.registrar) if once else None
        attempts = for_each_on(workers, registrar, work, keys)

    def describe(key: str, done: "Registered | str | BaseException") -> list[str] | BaseException:
        if isinstance(done, Registered):
            return _describe(Variant.from_key(key), done, registrar, known)
        return [done] if isinstance(done, str) else done

    lines = ((key, describe(key, done)) for key, done in chain(attempts, (failed or {}).items()))
    command_line.print_attempts("log_model.py", lines, len(keys) + len(failed or {}))


def _describe(variant: Variant, done: "Registered", registrar: "Registrar", known: Sequence[Variant]) -> list[str]:
    """Return the lines about a version; ``known`` variants were registered before."""
    version, model, sources = done.version, done.model, registrar.sources
    aliases = {} if version.alias else registrar.registry.aliases_of(variant)
    held = version.alias or ", ".join(sorted(name for name in aliases if aliases[name] == version.version))
    near = None if model.variant == variant else similar(variant, [*known, *sources.beside(variant).values()])
    copy = "bundled model" if model.sha256 in sources.simulated else f"local copy of {model.variant}"
    fallback = f"fallback  {copy}, because {model.fallback_reason}"
    return [
        f"variant   {variant}",
        f"model     {model.uri} ({model.size} bytes, sha256 {model.sha256[:12]}…)",
        *([fallback] if model.fallback_reason else []),
        f"run id    {version.mlflow_run_id}",
        f"model URI {version.uri}",
        f"version   {'already registered as version ' if version.is_repeat else ''}{version.version}, "
        f"{f'alias {held}' if held else 'without an alias'}{'; nothing was changed' if version.is_repeat else ''}",
        *([] if held else [_NEXT.format(aliases.get(CHAMPION))]),
        *([f"warning   {_NEAR.format(variant, near)}"] if near and variant not in known else []),
        *(f"remark    {remark}" for remark in done.remarks),
    ]


if __name__ == "__main__":
    main()
