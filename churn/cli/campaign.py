"""``churn campaign``, ``churn export`` and ``churn exclude``: who may be contacted, who was, and who must not be."""

import argparse
import math
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from churn.deployment import command_line
from churn.deployment.command_line import add_command, parse_account, parse_day, show
from churn.errors import UsageError
from churn.variants import find_variant, fold_name
from churn.weeks import parse_week
from churn.wording import counted, printable

if TYPE_CHECKING:
    from churn.deployment.services import Deployment

_REASONS = ("objection", "harm", "self-excluded", "other")


def add_parsers(commands: Any) -> None:
    """Add the commands to ``churn``'s parser."""
    campaign = add_command(commands, "campaign", "select, hand out, record and end campaigns")
    actions = campaign.add_subparsers(dest="action", required=True, metavar="action")
    named = {
        "create": "add a campaign, and select its members if it has begun",
        "export": "write the list of whom to contact",
        "record": "record the contacts that a file lists, for the effect",
        "status": "show members, contacts and the effect",
        "close": "end it; its accounts are free for others",
    }
    parsers = {name: add_command(actions, name, text, has_json=name != "export") for name, text in named.items()}
    for parser in parsers.values():
        parser.add_argument("name", help="the campaign: a to z, 0 to 9, _ . -, at most 64 characters")
    add_command(actions, "list", "list all campaigns", has_json=True)
    create = parsers["create"]
    command_line.add_variant_flags(create, "that is scored")
    policy = "rank accounts by churn risk, or by the value at risk; default: %(default)s"
    create.add_argument("--policy", choices=["risk", "value_at_risk"], default="risk", help=policy)
    create.add_argument("--floor", type=float, help="the lowest score, or value at risk, that is contacted")
    create.add_argument("--top-share", type=float, help="share of each variant's accounts at risk, from the top")
    create.add_argument("--budget", type=int, help="the most accounts to contact, over all variants")
    share = "share of those that is drawn not to be contacted; default: %(default)s"
    create.add_argument("--control", type=float, default=0.2, help=share)
    create.add_argument("--starts", type=parse_day, help="the first day, as YYYY-MM-DD; default: today")
    create.add_argument("--channel", required=True, help="such as mail")
    create.add_argument("--note", default="", help="kept with the campaign")
    overlap = "select accounts of other open campaigns, too, which mixes their effects"
    create.add_argument("--allow-overlap", action="store_true", help=overlap)
    out = "the file to write; Parquet if its name ends in .parquet, else CSV"
    parsers["export"].add_argument("--out", type=Path, required=True, metavar="FILE", help=out)
    contacts = "account_id and exposed_at, perhaps campaign, channel, delivered and company"
    parsers["record"].add_argument("--file", type=Path, required=True, help=f"CSV, Parquet or JSON with {contacts}")
    export = add_command(commands, "export", "write the list of a variant's week without a campaign")
    export.add_argument("--variant", required=True, metavar="KEY", help="a key, or us if one has that name")
    export.add_argument("--top", type=int, required=True, help="accounts by score, and as many by its rise in a week")
    export.add_argument("--week", help="the scored week, as YYYY-MM-DD; default: the newest")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help=out)
    exclude = add_command(commands, "exclude", "keep accounts off every list, at once")
    who = exclude.add_mutually_exclusive_group(required=True)
    who.add_argument("--account", type=parse_account, help="the account's id, a number or a text")
    who.add_argument("--file", type=Path, help="CSV, Parquet or JSON with account_id, perhaps company and until")
    exclude.add_argument("--reason", choices=_REASONS, required=True, help="its class, which is stored")
    company = "whose accounts they are; '' for variants without one. Needed where any variant has a company"
    exclude.add_argument("--company", type=str.casefold, help=company)
    exclude.add_argument("--until", type=parse_day, help="the last day, as YYYY-MM-DD; default: for ever")
    exclude.add_argument("--revoke", action="store_true", help="end their exclusions of this reason instead")


def run(args: argparse.Namespace, opened: Callable[[], "AbstractContextManager[Deployment]"]) -> None:
    """Run one of the commands."""
    name = args.action if args.command == "campaign" else f"churn {args.command}"
    if name == "create":
        _require_limits(args)
    with opened() as deployment:
        deployment.require_schema()
        _ACTIONS[name](deployment, args)


def _require_limits(args: argparse.Namespace) -> None:
    """Raise ``UsageError`` if a campaign's name or one of its numbers is not allowed."""
    name, budget, top, floor = args.name, args.budget, args.top_share, args.floor
    limits = {
        f"name {name!r}": (re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", name), "1 to 64 of a to z, 0 to 9, _ . -"),
        f"--control {args.control}": (0 <= args.control < 1, "a share from 0 to below 1"),
        f"--top-share {top}": (top is None or 0 < top <= 1, "a share above 0 and at most 1"),
        f"--budget {budget}": (budget is None or 0 < budget < 2**31, "a whole number above 0"),
        f"--floor {floor}": (floor is None or math.isfinite(floor), "a finite number"),
        f"--channel {args.channel!r}": (args.channel.strip(), "a text such as mail"),
    }
    for said, (is_right, needed) in limits.items():
        if not is_right:
            raise UsageError(f"{printable(said)} is not allowed; {needed} is needed")


def _create(deployment: "Deployment", args: argparse.Namespace) -> None:
    from churn.database.published import PublishedPredictions

    known = PublishedPredictions(deployment.database).variants
    variants = command_line.find_variants(command_line.parse_variants(args), args, known, None)
    today = datetime.now(UTC).date()
    values = {
        "name": args.name, "variants": sorted(one.key for one in variants), "policy": args.policy, "floor": args.floor,
        "top_share": args.top_share, "budget": args.budget, "control_share": args.control,
        "holdout_share": deployment.settings.churn_holdout_share, "allows_overlap": args.allow_overlap,
        "starts_on": args.starts or today, "channel": args.channel, "note": args.note,
    }  # fmt: skip
    deployment.decider().create(values, today)
    _status(deployment, args)


def _list(deployment: "Deployment", args: argparse.Namespace) -> None:
    found = deployment.decider().decisions.summaries()
    show(found, map(_described, found), as_json=args.json)


def _status(deployment: "Deployment", args: argparse.Namespace) -> None:
    from churn.workflows.decide import status_of
    from churn.workflows.effects import report_effects

    decider, today = deployment.decider(), datetime.now(UTC).date()
    found = status_of(decider.decisions, args.name)
    effects = report_effects(decider, args.name, found["control_share"], today)
    lines = [_described(found), *effects.pop("sentences")]
    show(found | effects, lines, as_json=args.json)


def _described(of: dict[str, Any]) -> str:
    state = "closed" if of["closed_at"] else ("open" if of["selected_at"] else f"selected on {of['starts_on']}")
    return (
        f"{of['name']} ({state}; {counted(len(of['variants']), 'variant')}, by {of['policy']}): {of['n_offered']:,} "
        f"offered, {of['n_control']:,} control, {of['n_held_out']:,} held out; {of['n_removed']:,} left the list; "
        f"{of['n_exposed']:,} contacted, of the others {of['n_control_exposed']:,}; "
        f"{counted(of['n_exports'], 'export')}"
    )


def _export_campaign(deployment: "Deployment", args: argparse.Namespace) -> None:
    from churn.workflows.decide import status_of, write_list
    from churn.workflows.fleet import for_each_variant, results_of

    decider = deployment.decider()
    results_of(for_each_variant(decider.ingestion.exclude, status_of(decider.decisions, args.name)["variants"]))
    with closing(_lists(deployment)) as lists:
        n, left_out = lists.export_campaign(args.name, args.out.name, lambda rows: write_list(args.out, rows))
    print(_exported(args.out, n, left_out))


def _export(deployment: "Deployment", args: argparse.Namespace) -> None:
    from churn.database.published import PublishedPredictions
    from churn.workflows.decide import write_list

    if args.top < 1:
        raise UsageError(f"--top {args.top} lists nobody; give 1 or more")
    variant = find_variant(fold_name(args.variant), PublishedPredictions(deployment.database).variants)
    week = parse_week(args.week, datetime.now(UTC).date()) if args.week else None
    deployment.ingestion().exclude(variant)
    with closing(_lists(deployment)) as lists:
        written = lists.export_variant(variant.key, week, args.top, args.out.name, lambda r: write_list(args.out, r))
    print(_exported(args.out, *written))


def _lists(deployment: "Deployment") -> Any:
    from churn.database.decisions import Lists

    return Lists(deployment.database_as("reader"))


def _exported(path: Path, n: int, left_out: dict[str, int]) -> str:
    why = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items()) or "nobody"
    return f"{path}: {counted(n, 'account')}; left out: {why}; recorded with your login"


def _record(deployment: "Deployment", args: argparse.Namespace) -> None:
    from churn.workflows.decide import record_contacts

    found = record_contacts(deployment.decider().decisions, args.file, args.name)
    n_recorded, see = found.get(None, 0), f"see {args.file.name}.quarantined.csv"
    broken = [f"{n:6,} quarantined  {rule}, {see}" for rule, n in sorted((str(r), n) for r, n in found.items() if r)]
    lines = [f"{args.name}: {counted(n_recorded, 'contact')} recorded", *broken]
    show({rule or "recorded": n for rule, n in found.items()}, lines, as_json=args.json)


def _close(deployment: "Deployment", args: argparse.Namespace) -> None:
    deployment.decider().decisions.close_campaign(args.name)
    _status(deployment, args)


def _exclude(deployment: "Deployment", args: argparse.Namespace) -> None:
    import polars as pl

    from churn.data.formats import read_frame
    from churn.decisions.exclusions import parse_exclusions

    rows = pl.DataFrame({"account_id": [args.account]}) if args.file is None else read_frame(args.file)
    of, decisions = (args.company, args.reason, args.until), deployment.decider().decisions
    if args.revoke:
        n = decisions.revoke(parse_exclusions(rows, *of)[0])
        print(f"{counted(n, 'exclusion')} for {args.reason} revoked; lists that exist stay as they are")
        return
    done = decisions.exclude_rows(rows, printable(str(args.file or "--account")), *of)
    print(
        f"{counted(done.n_new, 'account')} excluded for {args.reason}, of {rows.height:,} named; "
        f"{counted(done.n_removed, 'account')} left {counted(done.n_lists, 'open list')}"
    )


_ACTIONS = {
    "create": _create, "list": _list, "export": _export_campaign, "record": _record, "status": _status, "close": _close,
    "churn export": _export, "churn exclude": _exclude,
}  # fmt: skip
