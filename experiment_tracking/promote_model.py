"""Show a variant's champion and challenger, promote, roll back, withdraw, share accounts, and show the history.

A challenger is promoted if it is better on accounts that both scored and whose labels have matured, by a sequential
test that may be repeated at any time, and if no guardrail is broken; --force with --reason overrides both. For a fleet
(--all, --under) the false discovery rate is controlled over all of its challengers.
"""

import argparse
import json
from collections.abc import Sequence
from datetime import date
from functools import partial

from churn.database.events import ModelEvent
from churn.deployment import command_line
from churn.deployment.services import open_deployment
from churn.errors import UsageError
from churn.evaluation.comparison import Comparison
from churn.variants import Variant
from churn.wording import percent, plain
from churn.workflows.fleet import Attempts, for_each_variant
from churn.workflows.promote import WHOLE, Promoter, VariantStatus

ACTIONS = {
    "status": "show champion, previous and challenger, and compare the challenger on matured labels",
    "promote": "make the challenger the champion, if it is proven better",
    "rollback": "make the previous champion the champion again",
    "withdraw": "end the challenger, which scores no longer; training may then name another one",
    "share": "serve the challenger's scores to a share of the accounts (--share)",
    "history": "show every change of the aliases, by whom and why; --on DAY: the champion on that day",
}


def build_parser() -> argparse.ArgumentParser:
    """Build the parser, which documents the flags."""
    actions = "\n".join(["actions:", *(f"  {name:9} {meaning}" for name, meaning in ACTIONS.items())])
    raw = argparse.RawDescriptionHelpFormatter
    parser = command_line.Parser("promote_model.py", description=__doc__, epilog=actions, formatter_class=raw)
    command_line.add_variant_flags(parser, "that is registered")
    parser.add_argument("action", choices=list(ACTIONS), metavar="action", help="|".join(ACTIONS))
    parser.add_argument("--force", action="store_true", help="promote regardless of the test and the guardrails")
    parser.add_argument("--reason", default="", help="recorded in the history; required with --force")
    share = "accounts to serve the challenger's scores, from 0 to 100 percent"
    parser.add_argument("--share", type=float, metavar="PERCENT", help=share)
    on = "a day of the history, as YYYY-MM-DD"
    parser.add_argument("--on", type=command_line.parse_day, metavar="DAY", help=on)
    to = "the version to make champion; a rollback right after a rollback needs it"
    parser.add_argument("--to", type=int, metavar="VERSION", help=to)
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, without doing it")
    as_json = "print JSON, for machines: of status and history, a line for each variant"
    parser.add_argument("--json", action="store_true", help=as_json)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script."""
    args = build_parser().parse_args(argv)
    command_line.run_command("promote_model.py", lambda: promote_models(args))


def promote_models(args: argparse.Namespace) -> None:
    """Run the action for each variant that the flags name, and print the results."""
    named = command_line.parse_variants(args)
    if args.action == "share" and args.share is None:
        raise UsageError("share needs --share PERCENT, such as --share 20; 0 stops it")
    if args.share is not None and not 0 <= args.share <= 100:
        raise UsageError(f"--share {args.share} is not a share of the accounts; use 0 % to 100 %")
    if args.json and args.action not in ("status", "history"):
        raise UsageError(f"--json is for status and history; leave it out with {args.action}")
    if (args.force or args.to is not None) and command_line.is_fleet(args):
        raise UsageError("--force and --to are for one variant; name it with --geography, --company or --variant")
    with open_deployment() as deployment:
        promoter = deployment.promoter()
        variants = command_line.find_variants(named, args, promoter.registry.variants, None)
        is_fleet = args.action == "promote" and command_line.is_fleet(args)
        attempts = (_promote_fleet if is_fleet else _act_on_each)(promoter, variants, args)
        command_line.print_attempts("promote_model.py", attempts)


def _act_on_each(promoter: Promoter, variants: Sequence[Variant], args: argparse.Namespace) -> Attempts[list[str]]:
    for key, result in for_each_variant(partial(_act, promoter, args), [one.key for one in variants], n_threads=1):
        if isinstance(result, UsageError):
            raise result
        yield key, result


def _act(promoter: Promoter, args: argparse.Namespace, variant: Variant) -> list[str]:
    if args.action == "status":
        status = promoter.status(variant)
        return [_json_of(variant, status=status)] if args.json else describe(variant, status)
    if args.action == "history":
        return _history(promoter, variant, args.on, as_json=args.json)
    reason, dry_run = args.reason or "requested", args.dry_run
    if args.action == "rollback":
        event = promoter.roll_back(variant, reason, to=args.to, dry_run=dry_run)
    elif args.action == "withdraw":
        event = promoter.withdraw(variant, reason, dry_run=dry_run)
    elif args.action == "share":
        event = promoter.share(variant, round(args.share * WHOLE / 100), reason, dry_run=dry_run)
    else:
        event, _ = promoter.promote(variant, to=args.to, reason=args.reason, force=args.force, dry_run=dry_run)
    return [_describe_event(event, is_dry=dry_run)]


def _promote_fleet(promoter: Promoter, variants: Sequence[Variant], args: argparse.Namespace) -> Attempts[list[str]]:
    results = promoter.promote_all(variants, reason=args.reason, dry_run=args.dry_run)
    promoted = sum(isinstance(result, ModelEvent) for result in results.values())
    print(f"{promoted} of {len(results)} challengers {'would be ' if args.dry_run else ''}promoted", flush=True)
    for variant, result in results.items():
        if isinstance(result, ModelEvent):
            yield variant.key, [_describe_event(result, is_dry=args.dry_run)]
        elif isinstance(result, Comparison):
            yield variant.key, [f"{variant}: not promoted: {result.sentence}"]
        else:
            yield variant.key, result


def describe(variant: Variant, status: VariantStatus) -> list[str]:
    """Describe a variant's status in lines for a person."""
    event = status.event
    named = {"champion": event.champion, "previous": event.previous, "challenger": event.challenger}
    lines = [f"variant    {variant}", *(f"{name:10} {_version(version)}" for name, version in named.items())]
    lines[-1] += f", serving {percent(event.ab_share / WHOLE)} of the accounts" if event.ab_share else ""
    if (comparison := status.comparison) is not None:
        lines.append(f"comparison {comparison.sentence}")
        rails = comparison.guardrails if comparison.n else ()
        lines += [f"  {'holds' if rail.holds else 'BROKEN':7} {rail.sentence}" for rail in rails]
    return lines


def _json_of(variant: Variant, **found: object) -> str:
    return json.dumps(plain({"variant": variant, **found}))


def _history(promoter: Promoter, variant: Variant, day: date | None, *, as_json: bool) -> list[str]:
    if day is not None:
        version = promoter.events.champion_on(variant, day)
        said = f"{variant}: champion at the end of {day} UTC: {_version(version)}"
        return [_json_of(variant, day=day, champion=version) if as_json else said]
    promoter.status(variant)  # raises if there is no such variant
    promoter.observe({variant: promoter.registry.aliases_of(variant)})
    events = promoter.events.history(variant)
    if as_json:
        return [_json_of(variant, events=events)]
    return [f"{event.occurred_at:%Y-%m-%d %H:%M}  {_describe_event(event)}" for event in events]


def _describe_event(event: ModelEvent, *, is_dry: bool = False) -> str:
    forced = " by force" if event.is_forced else ""
    forced += "" if event.state == "done" else f" ({event.state})"
    shared = f" at {percent(event.ab_share / WHOLE)}" if event.ab_share else ""
    return (
        f"{event.variant}: {'would be ' if is_dry else ''}{event.action.replace('_', ' ')}{forced}: "
        f"champion {_version(event.champion)}, previous {_version(event.previous)}, "
        f"challenger {_version(event.challenger)}{shared}; {event.reason} ({event.actor})"
    )


def _version(version: int | None) -> str:
    return "none" if version is None else f"v{version}"


if __name__ == "__main__":
    main()
