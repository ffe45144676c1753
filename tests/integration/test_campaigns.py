"""At stake: whom a list holds. A campaign's members are drawn once, each into one arm, and no order of arrival puts an
excluded account on a list.
"""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path

import polars as pl
import pytest

from churn.cli.main import main
from churn.database.decisions import Decisions, Lists
from churn.database.predictions import BatchInProgress, PredictionStore
from churn.decisions.exclusions import Exclusion, texts_of
from churn.deployment.services import Deployment
from churn.errors import InputError, UsageError
from churn.variants import Variant
from churn.workflows.decide import write_list
from tests.support.batches import NO_ROWS, WEEK, record, scored
from tests.support.campaigns import campaign, members, on_list, publish_at_risk
from tests.support.site import Run, Site

US, ACME = Variant("us"), Variant(company="acme")
SCORES = {account: account / 1000 for account in range(1, 1000)}


@pytest.fixture
def decisions(deployment: Deployment) -> Decisions:
    publish_at_risk(deployment.database, US, SCORES, gone=range(900, 1000))
    publish_at_risk(deployment.database, ACME, dict.fromkeys(range(1, 101), 0.9))
    return Decisions(deployment.database)


def test_a_campaign_is_drawn_once_and_its_arms_are_apart(deployment: Deployment, decisions: Decisions) -> None:
    url = deployment.database
    decisions.create(campaign("spring", US, ACME, budget=300, holdout_share=0.1), {})
    drawn = members(url, "spring")
    decisions.create(campaign("spring", US, ACME, budget=300, holdout_share=0.1), {})
    decisions.select("spring", {})

    assert members(url, "spring") == drawn
    (summary,) = decisions.summaries("spring")
    assert summary["n_offered"] == 300 == len(on_list(url, "spring"))
    # The salt is this database's own, so these are bounds of five standard deviations.
    assert 30 < summary["n_control"] < 130
    assert 9 < summary["n_held_out"] < 90


@pytest.mark.slow
def test_by_command_a_campaign_is_created_excluded_from_exported_recorded_and_closed(
    site: Site, deployment: Deployment, decisions: Decisions, run_main: Run, tmp_path: Path
) -> None:
    churn = partial(run_main, main)

    def done(*arguments: str) -> str:
        said = churn(*arguments)
        assert said.status == 0, said
        return said.out

    shown = done("campaign", "create", "spring", "--variant", "us", "--budget", "300", "--channel", "mail")
    assert "300 offered" in shown
    listed = sorted(on_list(deployment.database, "spring"))
    file = tmp_path / "objections.csv"
    file.write_text("account_id\n" + "\n".join(map(str, listed[:3])) + "\n1.5\ntrue\n")
    said = churn("exclude", "--file", str(file), "--reason", "objection", "--company", "")
    said.require_one_line("2 rows cannot be read and excluded nobody: 4, 5;")
    assert on_list(deployment.database, "spring") == set(listed[3:])
    assert "1 account excluded for harm, of 1 named; 1 account left 1 open list" in done(
        "exclude", "--account", str(listed[3]), "--reason", "harm", "--company", ""
    )
    churn("exclude", "--account", "7", "--reason", "harm").require_one_line("name the company", status=2)

    out = tmp_path / "spring.csv"
    assert "296 accounts; left out: " in done("campaign", "export", "spring", "--out", str(out))
    assert set(pl.read_csv(out)["account_id"]) == set(listed[4:])
    sent = pl.DataFrame({"account_id": [*listed[4:10], 10**9], "exposed_at": ["2026-11-29T10:00:00"] * 6 + ["soon"]})
    site.rows(site.churn, "UPDATE campaign_members SET added_at = '2026-11-20'")
    sent.write_csv(tmp_path / "sent.csv")
    for _ in range(2):
        assert done("campaign", "record", "spring", "--file", str(tmp_path / "sent.csv")).splitlines() == [
            "spring: 6 contacts recorded",
            "     1 quarantined  account_not_in_campaign, see sent.csv.quarantined.csv",
        ]
    (status,) = json.loads(done("campaign", "list", "--json"))
    assert (status["n_exposed"], status["n_removed"], status["n_exports"]) == (6, 4, 1)
    assert "closed" in done("campaign", "close", "spring") == done("campaign", "status", "spring")
    assert on_list(deployment.database, "spring") == set()


def test_nobody_is_in_two_open_campaigns_unless_that_is_allowed(deployment: Deployment, decisions: Decisions) -> None:
    url = deployment.database
    decisions.create(campaign("first", US, top_share=0.1, holdout_share=0.1), {})
    decisions.create(campaign("second", US, top_share=0.1, holdout_share=0.1), {})
    decisions.create(campaign("both", US, top_share=0.1, holdout_share=0.1, allows_overlap=True), {})

    first, second, both = (members(url, name) for name in ("first", "second", "both"))
    held_out = {one for one, arm in first.items() if arm == "held_out"}
    assert len(first) == 90 == len(both)
    assert first.keys() & second.keys() == held_out
    assert both.keys() == first.keys()
    assert {one for one, arm in both.items() if arm == "held_out"} == held_out, "for good, in every campaign"
    assert {one for one, arm in both.items() if arm == "control"} != {one for one, a in first.items() if a == "control"}
    for name in ("first", "both"):
        decisions.close_campaign(name)
    decisions.create(campaign("third", US, top_share=0.01), {})
    assert members(url, "third").keys() <= first.keys(), "its accounts are free"


def test_a_campaign_refuses_where_it_is_unknown_who_is_at_risk(deployment: Deployment, decisions: Decisions) -> None:
    unknown = Variant("ca")
    made = record(2, variant=unknown, source_variant=unknown)
    batch = BatchInProgress([scored(2)], lambda: (made, NO_ROWS))
    PredictionStore(deployment.database).publish(unknown, WEEK, batch)

    for variants in ([US, unknown], [US, Variant("nowhere")]):
        with pytest.raises(UsageError, match=f"of 1 of 2 variants: {variants[1].key} has no "):
            decisions.create(campaign("spring", *variants), {})
    with pytest.raises(UsageError, match="no expected revenue is known of geography-us"):
        decisions.create(campaign("spring", US, policy="value_at_risk"), {})
    assert decisions.summaries() == []
    decisions.create(campaign("spring", US), {})
    with pytest.raises(UsageError, match="exists and is defined otherwise"):
        decisions.create(campaign("spring", US, budget=5), {})


@pytest.mark.slow
def test_the_list_of_a_week_leaves_out_whom_no_list_may_hold_and_says_how_many(
    site: Site, deployment: Deployment, decisions: Decisions, run_main: Run, tmp_path: Path
) -> None:
    before = {account: 0.9 if account < 5 else account / 2000 for account in SCORES}
    publish_at_risk(deployment.database, US, before, week=WEEK - timedelta(weeks=1))
    decisions.create(campaign("spring", US, budget=50, holdout_share=0.1), {})
    decisions.exclude([Exclusion("", account, "objection") for account in (890, 891, 892)])
    control = {one for one, arm in members(deployment.database, "spring").items() if arm == "control"}
    out = tmp_path / "us.parquet"

    said = run_main(main, "export", "--variant", "us", "--top", "200", "--out", str(out))

    assert said.status == 0, said
    rows = pl.read_parquet(out).with_columns(pl.col("account_id").cast(pl.Int64))
    listed, (trail,) = set(rows["account_id"]), site.rows(site.churn, "SELECT n, left_out FROM list_exports")
    assert trail == (len(rows), trail[1])
    assert trail[1]["excluded"] == 3
    assert trail[1]["control of an open campaign"] == len(control - {890, 891, 892})
    assert 30 < trail[1]["held out"] < 160
    assert not listed & (control | {890, 891, 892} | set(range(900, 1000)))
    assert rows["score"].is_sorted(descending=True)
    assert rows["rise"].to_numpy() == pytest.approx((rows["score"] - rows["score_week_before"]).to_numpy(), abs=1e-6)
    assert rows.filter(pl.col("rise_place") <= 200)["rise"].min() > 0
    assert site.rows(site.churn, "SELECT exported_by FROM list_exports") == [(site.login.username,)]
    reached = site.rows(site.churn, "SELECT account_id, arm, holdout_share FROM list_members")
    assert {account for account, arm, _ in reached if arm == "offered"} == listed
    held_out = {account for account, arm, _ in reached if arm == "held_out"}
    assert held_out
    assert held_out < set(range(1, 900)) - listed - control - {890, 891, 892}
    assert {share for _, _, share in reached} == {0.1}
    assert max(held_out) > min(rows.filter(pl.col("place") <= 200)["account_id"]), "those that would be on it"


def test_cells_that_a_spreadsheet_would_calculate_are_neutralized_and_read_back(tmp_path: Path) -> None:
    rows = pl.DataFrame({"account_id": ["=1+1", "+1", "-7", "@x", "\tx", "plain", "'quoted"], "score": [-0.5] * 7})
    write_list(tmp_path / "list.csv", rows)

    read = pl.read_csv(tmp_path / "list.csv")
    assert [text[0] for text in read["account_id"]] == ["'"] * 5 + ["p", "'"]
    assert read["score"].to_list() == [-0.5] * 7
    assert texts_of(read, {})["account_id"].to_list() == ["=1+1", "+1", "-7", "@x", "\tx", "plain", "'quoted"]


def test_exclusions_beside_an_extract_are_taken_before_anybody_is_selected(
    site: Site, deployment: Deployment, decisions: Decisions
) -> None:
    site.put("geography-us/data/churn/exclusions.csv", b"account_id,reason,until\n899,harm,\n898,,2020-01-01\n897,x,\n")
    values = campaign("spring", US, control_share=0.0)
    with pytest.raises(InputError, match=r"exclusions\.csv.*1 row cannot be read and excluded nobody: 3;"):
        deployment.decider().create(values, WEEK)
    assert decisions.summaries() == []
    site.put("geography-us/data/churn/exclusions.csv", b"account_id,reason,until\n899,harm,\n898,,2020-01-01\n")

    deployment.decider().create(values, WEEK)

    assert on_list(deployment.database, "spring") == set(range(1, 899)), "899 is excluded, 898 no more"
    site.put("geography-us/data/churn/exclusions.csv", b"account_id\n1\n")
    deployment.ingestion().ingest_scored(US)
    assert 1 not in on_list(deployment.database, "spring")
    assert site.rows(site.churn, "SELECT account_id, reason FROM exclusions ORDER BY 1, 2") == [
        (1, "objection"), (898, "objection"), (899, "harm"),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_campaign_by_value_spends_its_budget_on_what_is_lost(
    site: Site, deployment: Deployment, decisions: Decisions
) -> None:
    months = [date(2026, month, 1) for month in range(5, 11)]
    worth = {account: 1000.0 if account % 10 == 0 else 1.0 for account in range(1, 1000)}
    rows = pl.DataFrame(
        {"account_id": account, "activity_month": month, "total_deposit": 0.0, "total_handle": 5.0, "total_ngr": value}
        for account, value in worth.items()
        for month in months
    )
    deployment.history().append(US, rows, datetime(2026, 11, 2, tzinfo=UTC))

    deployment.decider().create(campaign("rich", US, policy="value_at_risk", budget=80, control_share=0.0), WEEK)

    assert on_list(deployment.database, "rich") == set(range(100, 900, 10))
    (top,) = site.rows(site.churn, "SELECT value_at_risk, score FROM campaign_members WHERE account_id = 800")
    assert top[0] == pytest.approx(3 * 1000 * top[1], rel=0.02)


@pytest.mark.slow
def test_an_erased_account_leaves_campaigns_and_the_lists_that_left_are_named(
    site: Site, deployment: Deployment, decisions: Decisions, run_main: Run, tmp_path: Path
) -> None:
    decisions.create(campaign("spring", US, ACME, control_share=0.0), {})
    decisions.exclude([Exclusion("", 50, "harm"), Exclusion("acme", 50, "harm")])
    contacts = [{"row_number": i, "campaign": "spring", "account_id": str(i), "company": "", "exposed_at": None}
                | {"exposed_at": str(datetime.now(UTC))} for i in (50, 60)]  # fmt: skip
    assert decisions.record(contacts) == {None: [50, 60]}
    assert run_main(main, "campaign", "export", "spring", "--out", str(tmp_path / "spring.csv")).status == 0
    assert run_main(main, "export", "--variant", "us", "--top", "900", "--out", str(tmp_path / "us.csv")).status == 0

    said = run_main(main, "erase", "--account", "60", "--variant", "geography-us")

    assert f"1 LEFT  {site.churn}: list spring.csv, exported by {site.login.username}" in said.out
    assert f"1 LEFT  {site.churn}: list us.csv" in said.out
    assert "whoever received it must remove the account" in said.out
    assert f"1 erased  {site.churn}: campaign_members" in said.out
    assert f"1 erased  {site.churn}: campaign_exposures" in said.out
    assert f"1 erased  {site.churn}: list_members" in said.out
    holding = "SELECT company, account_id FROM campaign_members WHERE account_id = 60"
    assert site.rows(site.churn, holding) == [("acme", 60)]
    said = run_main(main, "erase", "--account", "50")
    assert "spring.csv" not in said.out, "it was excluded before"
    for table in ("campaign_members", "campaign_exposures", "exclusions", "list_members"):
        assert site.rows(site.churn, f"SELECT count(*) FROM {table} WHERE account_id = 50") == [(0,)]  # noqa: S608

    site.rows(site.churn, "SELECT drop_weeks(:day)", day=WEEK + timedelta(weeks=1))
    assert site.rows(site.churn, "SELECT count(*) FROM campaign_members") == [(0,)]
    assert len(decisions.summaries()) == 1


@pytest.mark.slow
def test_no_order_of_selection_exclusion_and_export_puts_an_excluded_account_on_a_list(
    deployment: Deployment, decisions: Decisions
) -> None:
    """Threads race; what counts is what a list shows that is read after an exclusion has returned."""
    url, done = deployment.database, threading.Event()
    shown: list[tuple[set[int], set[str]]] = []

    def export() -> None:
        lists = Lists(url)
        while not done.is_set():
            for i in range(20):
                before = set(excluded)
                lists.export_campaign(f"c{i}", "x", lambda rows, of=before: shown.append((of, {*rows["account_id"]})))

    excluded: list[int] = []
    for i in range(20):
        decisions.create(campaign(f"c{i}", US, allows_overlap=True), None)
    with ThreadPoolExecutor(4) as pool:
        pool.submit(export)
        selecting = [pool.submit(Decisions(url).select, f"c{i}", {}) for i in range(20)]
        for account in range(1, 200):
            decisions.exclude([Exclusion("", account, "objection")])
            excluded.append(account)
        for one in selecting:
            one.result()
        done.set()
    assert len(shown) > 10
    assert not [one for before, listed in shown for one in before if str(one) in listed]
