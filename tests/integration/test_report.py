"""At stake: the report is read instead of the tables, so it must hold what the tables hold, and be there whole.

Batches come through the real pipeline; what other parts write later is put into the tables by hand.
"""

import base64
import gzip
import json
import re
import time
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from churn.cli.main import main
from churn.database.decisions import Decisions
from churn.deployment.services import Deployment
from churn.report import write_report
from churn.variants import Variant
from churn.versions import CHALLENGER, CHAMPION
from churn.workflows.score import score_fleet
from orchestration.assets.reporting import fleet_report
from orchestration.resources import Services
from tests.support.batches import week_request
from tests.support.campaigns import campaign
from tests.support.fleet_report import fill, timed_report
from tests.support.inputs import monday, put_input, register_with_input
from tests.support.site import Run, Site

US, EU = Variant("us"), Variant("eu")
MLFLOW = "http://mlflow.example:5000"


@pytest.fixture
def fleet(site: Site, log_model: Run, deployment: Deployment) -> None:
    """Two variants: one scored for two weeks, with a challenger in the second; one that fails in the second."""
    register_with_input(site, log_model, US, EU)
    scorer = deployment.scorer()
    list(score_fleet(scorer, [US.key, EU.key], week_request(monday(1)), lambda outcome, _: outcome))
    assert log_model("--variant", US.key, "--alias", "challenger").status == 0
    put_input(site, EU.key, b"PAR1 and no more")
    list(
        score_fleet(
            scorer, [US.key, EU.key], week_request(monday(), dagster_run_id="a-run"), lambda outcome, _: outcome
        )
    )


def read(path: Path) -> dict[str, Any]:
    """Everything that a report holds, by the name of its part."""
    found = re.findall(r'<script type="application/gzip" id="([\w-]+)">([\w+/=]*)</script>', path.read_text())
    return {name: json.loads(gzip.decompress(base64.b64decode(packed))) for name, packed in found}


def report(deployment: Deployment, out: Path, week: date | None = None) -> dict[str, Any]:
    write_report(deployment.database, out, week=week, now=datetime.now(UTC), mlflow_ui=MLFLOW)
    return read(out)


def test_the_report_holds_what_the_tables_hold(site: Site, fleet: None, deployment: Deployment, tmp_path: Path) -> None:
    ((batch_id, judged_id),) = site.rows(
        site.churn,
        "SELECT max(batch_id) FILTER (WHERE scored_week = :week), max(batch_id) FILTER (WHERE scored_week < :week) "
        "FROM scoring_batches WHERE variant = :us AND role = 'champion'",
        week=monday(),
        us=US.key,
    )
    by_hand(site, judged_id, batch_id)
    watched = "INSERT INTO watched_variants VALUES ('company-new', now(), NULL), ('company-gone', now(), now())"
    site.rows(site.churn, watched)
    Decisions(deployment.database).create(campaign("spring", US, channel="<b>mail</b>", starts_on=monday()), None)

    held = report(deployment, tmp_path / "report.html")

    new, eu, us = held["fleet"]["variants"]
    assert (new["key"], new["status"], new["is_sample"]) == ("company-new", "missing", False)
    assert (eu["key"], eu["status"], us["key"], us["status"]) == (EU.key, "failed", US.key, "scored")
    assert "Parquet" in eu["error"]
    assert (us["champion"], us["challenger"], us["confirmed"]) == (1, 2, ["brand_id"])
    assert us["since"] == monday(1).isoformat()
    assert us["auc"] == {
        "week": monday(1).isoformat(), "value": 0.61, "low": 0.58, "high": 0.64, "limit": 0.7, "is_below": True,
    }  # fmt: skip
    assert [incident["title"] for incident in held["fleet"]["incidents"]] == ["Input drifted: 1 variant", "Old"]
    assert [(one["name"], one["channel"]) for one in held["fleet"]["campaigns"]] == [("spring", "<b>mail</b>")]
    assert held["fleet"]["trend"][0]["auc"] == [0.61, 0.61, 0.61]

    _, _, of_us = held["part-0"]
    ((mean, score_counts, drift, importance, run_id, sha256),) = site.rows(
        site.churn,
        "SELECT mean_probability, score_counts, drift, importance, mlflow_run_id, source_sha256 "
        "FROM scoring_batches WHERE batch_id = :batch",
        batch=batch_id,
    )
    assert us["mean"] == pytest.approx(mean, rel=1e-5)
    assert [len(of_us["history"][role]) for role in (CHAMPION, CHALLENGER)] == [2, 1]
    assert of_us["scores"] == score_counts
    assert of_us["importance"] == pytest.approx(importance, rel=1e-5)
    assert {f["feature"]: f["psi"] for f in of_us["features"]} == pytest.approx(
        {name: measures["psi"] for name, measures in drift.items()}, rel=1e-5
    )
    assert {sum(f["batch"]) for f in of_us["features"]} == {drift["brand_id"]["n_rows"]}
    assert all(len(f["labels"]) == len(f["batch"]) == len(f["reference"]) for f in of_us["features"])
    lineage = of_us["lineage"]
    assert (lineage["batch_id"], lineage["dagster_run_id"]) == (batch_id, "a-run")
    assert (lineage["mlflow_run_id"], lineage["source_sha256"]) == (run_id, sha256)
    assert (lineage["scored_from"], lineage["history_status"]) == ("extract", "pending")
    assert of_us["reliability"] == {"n": [50, 50], "mean_score": [0.2, 0.6], "churned_share": [0.1, 0.7]}
    assert [segment[:5] for segment in of_us["segments"]] == [
        ["brand_id", "OH", 90, 36, 0.55],
        ["brand_id", "PA", 10, 1, None],
    ]


def by_hand(site: Site, judged_id: int, batch_id: int) -> None:
    """Judge a batch, flag another's drift, and open an incident."""
    site.rows(
        site.churn,
        "INSERT INTO evaluated_batches (evidence_after, "
        "batch_id, evaluated_at, labels_as_of, horizon_months, n_accounts, n_at_risk, "
        "n_matured, n_missing, n_churned, status, auc_limit, roc_auc, roc_auc_low, roc_auc_high, reliability) VALUES "
        "(date '2000-01-01', "
        ":judged, now(), now(), 3, 100, 100, 100, 0, 40, 'ok', 0.7, 0.61, 0.58, 0.64, CAST(:reliability AS jsonb))",
        judged=judged_id,
        reliability=json.dumps({"n": [50, 50], "mean_score": [0.2, 0.6], "churned_share": [0.1, 0.7]}),
    )
    site.rows(
        site.churn,
        "INSERT INTO evaluated_segments (batch_id, segment, level, n_matured, n_churned, status, roc_auc) VALUES "
        "(:judged, 'brand_id', 'OH', 90, 36, 'ok', 0.55), (:judged, 'brand_id', 'PA', 10, 1, 'insufficient', NULL)",
        judged=judged_id,
    )
    site.rows(site.churn, "INSERT INTO drift_flags VALUES (:batch, 'brand_id', true)", batch=batch_id)
    site.rows(
        site.churn,
        "INSERT INTO incidents (kind, severity, title, members, opened_at, updated_at, resolved_at) VALUES "
        "('input_drifted', 'warning', 'Input drifted: 1 variant', CAST(:members AS jsonb), now(), now(), NULL), "
        "('week_missed', 'error', 'Old', '{}', now() - interval '3 days', now(), now() - interval '1 day'), "
        "('week_missed', 'error', 'Older', '{}', now() - interval '30 days', now(), now() - interval '20 days')",
        members=json.dumps({US.key: "brand_id drifted"}),
    )


@pytest.fixture
def filled(site: Site) -> None:
    """Three weeks of two variants, by SQL alone; the first one failed in the last week."""
    fill(site.login.set(database=site.churn), 2, 3, monday())


def test_a_past_week_is_told_as_it_was(filled: None, deployment: Deployment, tmp_path: Path) -> None:
    now, before = (report(deployment, tmp_path / "report.html", week)["fleet"] for week in (None, monday(1)))

    assert now["weeks"] == [monday(n).isoformat() for n in (2, 1, 0)]
    assert before["weeks"] == [monday(n).isoformat() for n in (2, 1)]
    assert [variant["status"] for variant in now["variants"]] == ["failed", "scored"]
    assert [variant["status"] for variant in before["variants"]] == ["scored", "scored"]


def test_the_trail_says_since_when_a_version_is_champion(
    site: Site, filled: None, deployment: Deployment, tmp_path: Path
) -> None:
    site.rows(site.churn, "DELETE FROM model_events")
    site.rows(
        site.churn,
        "INSERT INTO model_events (occurred_at, variant, registered_model, action, champion_version, "
        "challenger_version, reason, actor) VALUES "
        "('2026-01-05', 'company-c0001', 'm', 'promoted', 2, NULL, 'better', 'a'), "
        "('2026-02-05', 'company-c0001', 'm', 'rolled_back', 1, NULL, 'worse', 'a'), "
        "('2026-03-05', 'company-c0001', 'm', 'challenged', 1, 3, 'passed', 'a'), "
        "('2026-04-05', 'company-c0001', 'm', 'shared', 1, 3, 'try', 'a')",
    )

    _, known = report(deployment, tmp_path / "report.html")["fleet"]["variants"]

    assert (known["champion"], known["since"], known["challenger"]) == (1, "2026-02-05", 3)


def test_the_command_says_where_the_file_lies_and_a_second_run_replaces_it(
    filled: None, run_main: Run, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "fleet.html"
    for _ in range(2):
        said = run_main(main, "report", "--out", str(out))
        assert (said.status, said.err) == (0, "")
        assert said.out.startswith(f"{out} (2 variants, week of {monday()}; ")
    assert [path.name for path in out.parent.iterdir()] == ["fleet.html"]

    refused = run_main(main, "report", "--week", str(monday(9)))
    refused.require_one_line(str(monday(9)), f"newest week is {monday()}", status=2)


def test_a_place_that_cannot_be_written_is_named(site: Site, run_main: Run, tmp_path: Path) -> None:
    said = run_main(main, "report", "--out", str(tmp_path))

    said.require_one_line("cannot be written", str(tmp_path), "--out", status=2)


def test_an_empty_database_makes_a_report_that_says_so(site: Site, run_main: Run, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    said = run_main(main, "report", "--out", str(out))

    assert (said.status, "nothing was scored yet" in said.out) == (0, True)
    assert (read(out)["fleet"]["week"], read(out)["fleet"]["variants"]) == (None, [])


def test_a_database_that_was_not_set_up_is_refused_with_what_to_run(bare_site: Site, run_main: Run) -> None:
    run_main(main, "report").require_one_line("setup.py")


def test_the_asset_writes_the_report_and_links_to_it(filled: None, deployment: Deployment) -> None:
    result = dg.materialize([fleet_report, dg.AssetSpec("fleet_incidents")], resources={"services": Services()})

    (shown,) = [event.metadata for event in result.asset_materializations_for_node("fleet_report")]
    path = Path(shown["path"].value)
    assert path == (deployment.settings.churn_home / "report.html").resolve()
    assert (shown["link"].value, shown["size_bytes"].value) == (path.as_uri(), path.stat().st_size)
    assert (shown["variants"].value, shown["week"].value) == (2, str(monday()))


@pytest.mark.slow
def test_two_thousand_variants_over_half_a_year_are_written_in_seconds(
    site: Site, deployment: Deployment, tmp_path: Path
) -> None:
    fill(site.login.set(database=site.churn), 2_000, 26, monday())

    before = time.process_time()
    written, _ = timed_report(deployment.database, tmp_path / "report.html")

    assert written.n_variants == 2_000
    assert written.n_bytes < 15e6
    assert time.process_time() - before < 8  # not the clock, which neighbours on the machine slow down
