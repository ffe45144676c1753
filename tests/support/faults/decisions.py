"""What decides about accounts, to be killed: selection, exclusion, export and recording."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from churn.database.decisions import Decisions, Lists
from churn.decisions.exclusions import Exclusion
from churn.deployment.services import Deployment
from churn.workflows import decide
from tests.support.campaigns import campaign, members, on_list, publish_at_risk
from tests.support.faults.bench import Bench, Case, Place
from tests.support.faults.ledger import execute
from tests.support.faults.operations import Operation, Seen
from tests.support.faults.worker import Step

SCORES = {account: account / 100 for account in range(1, 61)}
EXCLUDED = range(40, 50)
TABLES, COMMIT = "churn.database.decisions", ("churn.database.deadlines", "DeadlineConnection.commit")
STEPS: dict[str, dict[str, Step]] = {
    "selection": {
        "the members are selected": (TABLES, "_select", "left"),
        "commit is asked for": (*COMMIT, "entered"),
        "it is committed": (*COMMIT, "left"),
    },
    "exclusion": {
        "nobody is excluded": (TABLES, "Decisions.exclude", "entered"),
        "commit is asked for": (*COMMIT, "entered"),
        "they are excluded": (TABLES, "Decisions.exclude", "left"),
        "others are selected": (TABLES, "_select", "left"),
    },
    "export": {
        "the list is to be recorded": (*COMMIT, "entered"),
        "it is recorded": ("churn.workflows.decide", "write_list", "entered"),
        "it is written": ("churn.workflows.decide", "write_list", "left"),
    },
    "recording": {
        "nothing is recorded": (TABLES, "Decisions.record", "entered"),
        "commit is asked for": (*COMMIT, "entered"),
        "it is recorded": (TABLES, "Decisions.record", "left"),
        "what is quarantined is written": ("churn.workflows.decide", "write_list", "left"),
    },
}


def prepare(bench: Bench, place: Place) -> Case:
    """A campaign over scored accounts, not selected yet, and one that is."""
    case = bench.fresh(place)
    publish_at_risk(case.login, case.variant, SCORES)
    folder = Path(bench.house.deployment.settings.churn_home) / "lists"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    decisions = Decisions(case.login)
    decisions.create(campaign("open", case.variant, holdout_share=0.1, top_share=0.8), {})
    contacts = pl.DataFrame(
        {"account_id": [*sorted(members(case.login, "open")), -1], "exposed_at": str(datetime.now(UTC))}
    )
    contacts.write_csv(folder / "sent.csv")
    decisions.close()
    return replace(case, given={"folder": str(folder)})


def select(deployment: Deployment, case: Case) -> None:
    Decisions(deployment.database).create(campaign("new", case.variant, holdout_share=0.1, allows_overlap=True), {})


def exclude(deployment: Deployment, case: Case) -> None:
    company = str(case.variant.company)
    Decisions(deployment.database).exclude([Exclusion(company, account, "objection") for account in EXCLUDED])
    select(deployment, case)


def export(deployment: Deployment, case: Case) -> None:
    out = Path(case.given["folder"]) / "list.csv"
    Lists(deployment.database).export_campaign("open", out.name, lambda rows: decide.write_list(out, rows))


def record(deployment: Deployment, case: Case) -> None:
    decide.record_contacts(Decisions(deployment.database), Path(case.given["folder"]) / "sent.csv", "open")


def seen(_bench: Bench, case: Case) -> Seen:
    """Count members by arm, whom the lists hold, exclusions and contacts, and what files say."""
    found: Seen = Counter()
    found.update(
        ("member", *row) for row in execute(case.server, "SELECT campaign, account_id, arm FROM campaign_members")
    )
    found.update(("listed", name, one) for name in ("open", "new") for one in on_list(case.login, name))
    found.update(("excluded", *row) for row in execute(case.server, "SELECT account_id, reason FROM exclusions"))
    found.update(("contacted", *row) for row in execute(case.server, "SELECT account_id FROM campaign_exposures"))
    for path in Path(case.given["folder"]).glob("*.csv"):
        rows = pl.read_csv(path)
        found.update((path.name, account) for account in rows["account_id"].to_list())
    return found


def broken(bench: Bench, case: Case) -> Seen:
    """Count what no kill may leave: an excluded account on a list, a half list, a file that the trail does not have."""
    now, found = seen(bench, case), Counter[object]()
    excluded = {one[1] for one in now if isinstance(one, tuple) and one[0] == "excluded"}
    found.update(one for one in now if isinstance(one, tuple) and one[0] == "listed" and one[-1] in excluded)
    if ("member", "new") in {one[:2] for one in now if isinstance(one, tuple)}:
        n = sum(isinstance(one, tuple) and one[:2] == ("member", "new") for one in now)
        found["a half list"] += n not in (len(SCORES), len(SCORES) - len(EXCLUDED))
    if (Path(case.given["folder"]) / "list.csv").exists() and not execute(case.server, "SELECT FROM list_exports"):
        found["a file without its row"] += 1
    return +found


OPERATIONS = [
    Operation(
        name,
        prepare,
        run,
        lambda _place, name=name: STEPS[name],
        seen,
        between=broken,
        each=n,
        random=30,
        twice=15,
        scoring=0,
    )
    for name, run, n in (
        ("selection", select, 10),
        ("exclusion", exclude, 8),
        ("export", export, 10),
        ("recording", record, 8),
    )
]
"""With 3 or 4 steps each, 302 kills."""
