"""The command ``churn``: a command line over functions of the core.

Each command imports what it needs when it runs, so that ``--help`` and wrong usage are answered at once.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from churn.cli import campaign
from churn.deployment import command_line
from churn.deployment.command_line import FAILED, parse_account, parse_day, parse_port, print_attempts, run_command, say
from churn.errors import UsageError
from churn.signals import stop_request
from churn.variants import Variant, find_variant, fold_name, nearest
from churn.versions import package_version
from churn.weeks import monday_of, parse_week
from churn.wording import counted, listed, percent, printable

if TYPE_CHECKING:
    from churn.deployment.services import Deployment
    from churn.workflows.score import Scorer, ScoringOutcome


def build_parser() -> argparse.ArgumentParser:
    """Build the parser, which documents the commands."""
    parser = command_line.Parser(prog="churn", description="Weekly churn scores for many model variants.")
    parser.add_argument("--version", action="version", version=f"churn {package_version()}", help="print the version")
    add_command = command_line.add_command
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    demo = add_command(commands, "demo", "run the whole weekly job for four variants and show the results")
    demo.add_argument("--week", help="the Monday to score, as YYYY-MM-DD; default: this week's")
    demo.add_argument("--history", action="store_true", help="build half a year of five variants, and its report")
    up = add_command(commands, "up", "serve the Dagster and MLflow UIs on this machine until interrupted")
    up.add_argument("--dagster-port", type=parse_port, default=3000, help="port of Dagster; default: %(default)s")
    up.add_argument("--mlflow-port", type=parse_port, default=5000, help="port of MLflow; default: %(default)s")
    add_command(commands, "status", "show the week, failures, stale data, drift, incidents and ticks", has_json=True)
    score = add_command(commands, "score", "score variants without Dagster")
    score.add_argument("variant", nargs="+", help="a key such as geography-us, or us if one variant has that name")
    score.add_argument("--week", help="the Monday to score, as YYYY-MM-DD; default: this week's")
    score.add_argument("--as-of", type=parse_day, help="score as known at the end of this day, YYYY-MM-DD")
    score.add_argument("--corrected", action="store_true", help="score a past day from today's extract")
    force = "replace a batch even of newer input; allow an as-of day outside the week, which is not made current"
    score.add_argument("--force", action="store_true", help=force)
    explain = add_command(commands, "explain", "show why an account has its score", has_json=True)
    explain.add_argument("--account", type=parse_account, required=True, help="the account's id, a number or a text")
    variant = "a key, or us if one scored variant has that name; default: base, or the only one with the account"
    explain.add_argument("--variant", help=variant)
    explain.add_argument("--week", help="the scored week, as YYYY-MM-DD; default: the newest")
    _add_commands_of_readers(commands)
    report = add_command(commands, "report", "write one HTML file about the fleet and each of its variants")
    report.add_argument("--out", type=Path, metavar="PATH", help="the file; default: report.html in CHURN_HOME")
    report.add_argument("--week", help="the Monday to report on, as YYYY-MM-DD; default: the newest scored week's")
    erase = add_command(commands, "erase", "erase an account everywhere, and exclude it from later extracts")
    erase.add_argument("--account", type=parse_account, required=True, help="the account's id, a number or a text")
    scope = erase.add_mutually_exclusive_group()
    scope.add_argument("--variant", metavar="KEY", help="erase it from this variant only; default: all")
    scope.add_argument("--company", help="erase it from this company's variants only, whose ids are its own")
    erase.add_argument("--dry-run", action="store_true", help="count matches without deleting")
    retain = add_command(commands, "retain", "drop predictions older than the retention period")
    retain.add_argument("--weeks", type=int, help="weeks to retain, this one included; default: CHURN_KEEP_WEEKS")
    retain.add_argument("--dry-run", action="store_true", help="list the weeks without dropping them")
    deliver = add_command(commands, "deliver", "deliver published predictions to CHURN_DELIVERY_PREFIX")
    deliver.add_argument("--variant", metavar="KEY", help="deliver this variant only; default: all")
    deliver.add_argument("--week", help="the Monday of the week, as YYYY-MM-DD; default: this week's")
    deliver.add_argument("--all-weeks", action="store_true", help="deliver all; withdraw weeks that were dropped")
    helped = "list the alerts that wait, drop those of a receiver, or test the receivers"
    alerts = add_command(commands, "alerts", helped, has_json=True)
    alerts.add_argument("--test", action="store_true", help="send each receiver a test message")
    alerts.add_argument("--drop", metavar="RECEIVER", help="drop what waits for this receiver, which is gone")
    campaign.add_parsers(commands)
    add_command(commands, "doctor", "show what is set, reached, permitted and missing, no secret", has_json=True)
    metrics = add_command(commands, "metrics", "serve the state of the fleet to Prometheus until interrupted")
    metrics.add_argument("--host", default="127.0.0.1", help="address to listen at; default: %(default)s")
    metrics.add_argument("--port", type=parse_port, default=9464, help="port to listen at; default: %(default)s")
    return parser


def _add_commands_of_readers(commands: Any) -> None:
    psql = command_line.add_command(commands, "psql", "open PostgreSQL's client on the predictions, as the reader role")
    psql.add_argument("-c", dest="sql", action="append", default=[], metavar="SQL", help="run this and end; repeatable")
    psql.add_argument("arguments", nargs="*", help="further arguments of psql, after --")
    text = "create a login that reads the predictions of some variants only"
    reader = command_line.add_command(commands, "reader", text)
    reader.add_argument("action", choices=["add"], help="add: create the login, or extend it by further variants")
    reader.add_argument("name", help="the login")
    reader.add_argument("--variant", metavar="KEY", action="append", required=True, help="what it reads; repeatable")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = build_parser().parse_args(argv)
    waits, is_silent = args.command in ("up", "metrics"), args.command != "demo"
    run_command(f"churn {args.command}", lambda: _COMMANDS[args.command](args), waits=waits, is_silent=is_silent)


def _today() -> date:
    return datetime.now(UTC).date()


def _opened() -> "AbstractContextManager[Deployment]":
    from churn.deployment.services import open_deployment

    return open_deployment()


def _demo(args: argparse.Namespace) -> None:
    from churn.cli.demo import run_demo

    run_demo(parse_week(args.week, _today()), with_history=args.history)


def _up(args: argparse.Namespace) -> None:
    from churn.cli.up import serve

    serve(dagster_port=args.dagster_port, mlflow_port=args.mlflow_port)


def _score(args: argparse.Namespace) -> None:
    from churn.deployment.services import Deployment
    from churn.workflows.score import FleetRequest, score_fleet

    names, today = [fold_name(name) for name in args.variant], _today()
    week = parse_week(args.week, today)
    request = FleetRequest.as_known(week, today=today, as_of=args.as_of, corrected=args.corrected, force=args.force)
    with _opened() as deployment:
        report = partial(_describe_scored, is_current=request.make_current)
        scorer = deployment.scorer()
        keys = [find_variant(name, scorer.registry.variants).key for name in names]
        attempts = score_fleet(scorer, keys, request, report, deployment.workers(len(keys), Deployment.scorer))
        print_attempts("churn score", attempts, len(keys))


def _describe_scored(outcome: "ScoringOutcome", _scorer: "Scorer", *, is_current: bool) -> list[str]:
    from churn.monitoring.known_levels import MANY

    record = outcome.record
    months = ", encoded rows" if record.months is None else f", months {record.months}"
    at_risk = "at risk unknown" if record.n_at_risk is None else f"{record.n_at_risk:,} at risk"
    kept = "" if is_current and not outcome.why_not_current else "; stored, not made current"
    kept += f": {outcome.why_not_current}" if outcome.why_not_current else ""
    n_rows, n_accounts = record.n_rows_quarantined, record.n_accounts_withheld
    left_out = [f"{counted(n_rows, 'row')} quarantined"] if n_rows else []
    left_out += [f"{counted(n_accounts, 'account')} not scored, since a row of it is quarantined"] if n_accounts else []
    return [
        f"{record.variant}: {counted(record.n_rows_scored, 'account')} ({at_risk}) scored for {record.scored_week} by "
        f"{record.registered_model} v{record.model_version} from {record.source} ({record.source_uri}{months}), "
        f"batch {outcome.batch_id}{kept}",
        *([f"  {', '.join(left_out)}"] if left_out else []),
        *(
            f"  {feature} is missing for {counted(n, 'account')}, and was never missing in the model's reference"
            for feature, n in (record.untrained_missing or {}).items()
        ),
        *(
            f"  {column}: {percent(drift['unknown_share'])} of accounts have a level that the model does not know, "
            f"{percent(drift['unknown_rise'])} more than in its reference: {listed(list(map(repr, levels)), 3)}"
            for column, levels in record.unknown_levels.items()
            if (drift := (record.drift or {}).get(column)) and drift["unknown_rise"] >= MANY
        ),
    ]


def _explain(args: argparse.Namespace) -> None:
    from churn.cli.explain import build_console, explain_account

    week = parse_week(args.week, _today()) if args.week else None
    name = None if args.variant is None else fold_name(args.variant)
    with _opened() as deployment:
        url = deployment.database_as("reader")
        explain_account(url, name, args.account, week, build_console(), as_json=args.json)


def _psql(args: argparse.Namespace) -> None:
    from churn.cli.psql import run_psql

    with _opened() as deployment:
        sys.exit(run_psql(deployment, [*args.arguments, *(word for sql in args.sql for word in ("-c", sql))]))


def _metrics(args: argparse.Namespace) -> None:
    from churn.report.prometheus import metrics_server

    with _opened() as deployment:
        database, code_version = deployment.database_as("monitoring"), deployment.code_version
        with metrics_server(database, code_version, host=args.host, port=args.port) as address:
            print(f"metrics  {address}\nCtrl-C stops it.", flush=True)
            stop_request.wait()
            print("stopping …", flush=True)


def _report(args: argparse.Namespace) -> None:
    from churn.report import write_report

    now = datetime.now(UTC)
    week = parse_week(args.week, now.date()) if args.week else None
    with _opened() as deployment:
        out, database = args.out or deployment.settings.churn_home / "report.html", deployment.database_as("reader")
        mlflow_ui = deployment.settings.churn_mlflow_ui_url
        written = write_report(database, out, week=week, now=now, mlflow_ui=mlflow_ui)
    n_variants = counted(written.n_variants, "variant")
    about = f"{n_variants}, week of {written.week}" if written.week else "nothing was scored yet"
    print(f"{written.path} ({about}; {written.n_bytes / 1e6:.1f} MB)")


def _erase(args: argparse.Namespace) -> None:
    name = None if args.variant is None else fold_name(args.variant)
    done, there = "would be erased" if args.dry_run else "erased", set[str]()
    with _opened() as deployment:
        scope = Variant(company=args.company).scopes[-1]
        if name is not None:
            scope = find_variant(name, lambda: deployment.registry(read_only=True).variants()).key
        for found in deployment.eraser().erase_account(args.account, scope, dry_run=args.dry_run):
            there.update(found.variants)
            say(f"{found.n:6,} {'LEFT' if found.why_left else done}  {found.place}")
            if found.why_left:
                say(f"       {found.why_left}")
    nothing = "dry run, nothing was erased: " if args.dry_run else ""
    whose = f"all variants of company {scope.partition('=')[2]}" if "=" in scope else scope or "all variants"
    of = f"{whose} (found in {', '.join(sorted(there)) or 'none'})"
    print(f"{nothing}account {printable(args.account)} {done} from {of}, and excluded from later extracts")


def _retain(args: argparse.Namespace) -> None:
    from churn.workflows.erase import drop_old_weeks
    from churn.workflows.fleet import for_each_variant

    with _opened() as deployment:
        n_weeks = deployment.settings.churn_keep_weeks if args.weeks is None else args.weeks
        database, horizon = deployment.database_as("setup"), deployment.horizon
        dropped = drop_old_weeks(database, _today(), n_weeks=n_weeks, horizon=horizon, dry_run=args.dry_run)
        # Of all weeks: a command that was killed may have dropped some, and not withdrawn them.
        if n_weeks and not args.dry_run and (deliverer := deployment.deliverer()) is not None:
            attempts = for_each_variant(deliverer.deliver, deliverer.keys())
            print_attempts("churn retain", ((key, done) for key, done in attempts if done))
    kept = f"the newest {counted(n_weeks, 'week')} are kept" if n_weeks else "all weeks are kept"
    done = "dry run, nothing was dropped: would drop" if args.dry_run else "dropped"
    print(f"{done} {counted(len(dropped), 'week')}{': ' if dropped else ''}{', '.join(map(str, dropped))}; {kept}")


def _deliver(args: argparse.Namespace) -> None:
    from churn.workflows.fleet import for_each_variant

    name = None if args.variant is None else fold_name(args.variant)
    weeks = None if args.all_weeks else [parse_week(args.week, _today())]
    with _opened() as deployment:
        deliverer, registered = deployment.deliverer(), lambda: deployment.registry(read_only=True).variants()
        if deliverer is None:
            raise UsageError("CHURN_DELIVERY_PREFIX is not set; set it to s3://bucket/folder")
        keys = deliverer.keys() if name is None else [find_variant(name, registered).key]
        print_attempts("churn deliver", for_each_variant(partial(deliverer.deliver, weeks=weeks), keys))


def _alerts(args: argparse.Namespace) -> None:
    from churn.database.incidents import Incidents
    from churn.workflows.alert import drop_waiting, send_test

    with _opened() as deployment, closing(Incidents(deployment.database_as("setup"))) as incidents:
        deployment.require_schema()
        receivers = deployment.receivers()
        sent = dict(send_test(receivers, datetime.now(UTC))) if args.test else {}
        if args.drop:
            n = drop_waiting(incidents, receivers, args.drop)
            say(f"dropped {counted(n, 'alert')} that waited for {args.drop}", is_error=args.json)
        waiting = incidents.undelivered()
    if args.test:
        _print_tested(sent, receivers.wrong, as_json=args.json)
        return
    names = {name: waiting.get(name, 0) for name in sorted({*receivers, *waiting})}
    gone = {name: "" if name in receivers else "  not in CHURN_ALERT_URLS; --drop drops them" for name in names}
    lines = (f"{n:6,} waiting  {name}{gone[name]}" for name, n in names.items())
    command_line.show(names, lines, as_json=args.json)


def _print_tested(sent: dict[str, str | None], wrong: Sequence[str], *, as_json: bool) -> None:
    if not sent and not wrong:
        raise UsageError("CHURN_ALERT_URLS is not set, so that nobody is alerted; set it to one or more Apprise URLs")
    outcome = {name: f"did not arrive: {error}" if error else "was accepted" for name, error in sent.items()}
    lines = [*(f"{name}: the test message {said}" for name, said in outcome.items()), *wrong]
    command_line.show({"receivers": outcome, "wrong": wrong}, lines, as_json=as_json)
    if wrong or any(sent.values()):
        sys.exit(FAILED)


def _reader(args: argparse.Namespace) -> None:
    from churn.database.readers import add_reader

    with _opened() as deployment:
        known, url = deployment.registry(read_only=True).variants(), deployment.database_as("setup")
        variants = [find_variant(fold_name(name), lambda: known) for name in args.variant]
        for variant in variants:
            if variant not in known:
                raise UsageError(f"variant {variant} is not registered{nearest(variant, known)}")
        bound = add_reader(url, args.name, variants)
    server = f"{url.host}:{url.port or 5432}/{url.database}"
    say(f"{args.name} may read {counted(len(bound), 'variant')}: {', '.join(bound)}")
    print(f"Set its password:  psql postgresql://{url.username}@{server} -c '\\password {args.name}'")
    print(f"Log in and read:   psql postgresql://{args.name}@{server} -c 'TABLE own_predictions_latest'")


def _status(args: argparse.Namespace) -> None:
    from churn.cli.status import describe, read_status

    with _opened() as deployment:
        found = read_status(deployment, monday_of(_today()))
    command_line.show(found, describe(found), as_json=args.json)


def _doctor(args: argparse.Namespace) -> None:
    from churn.cli.doctor import examine

    found = []
    for status, what, sentence in examine():
        found.append({"status": status, "what": what, "found": sentence})
        if not args.json:
            say(f"{status:8}{what}: {sentence}")
    if args.json:
        command_line.show(found, (), as_json=True)
    if any(one["status"] == "FAILED" for one in found):
        sys.exit(FAILED)


_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "demo": _demo, "up": _up, "score": _score, "explain": _explain, "report": _report, "metrics": _metrics,
    "erase": _erase, "retain": _retain, "deliver": _deliver, "alerts": _alerts, "reader": _reader, "doctor": _doctor,
    "status": _status, "psql": _psql,
    **dict.fromkeys(("campaign", "export", "exclude"), partial(campaign.run, opened=_opened)),
}  # fmt: skip
