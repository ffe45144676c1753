"""At stake: whoever evaluates the product sees in two minutes what half a year of it looks like."""

from datetime import date
from pathlib import Path

import pytest

from churn.cli.demo_history import VARIANTS, build_history, draw_facts
from churn.database.predictions import read_current
from churn.deployment.services import open_deployment
from churn.deployment.settings import Settings
from churn.errors import UsageError
from churn.workflows.set_up import set_up_server
from tests.support.site import Site

WEEK = date(2026, 11, 30)


@pytest.mark.slow
def test_half_a_year_has_a_drift_a_failure_a_challenger_incidents_and_a_campaign(
    homes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHURN_HOME", str(homes / "history"))
    with open_deployment(Settings(_env_file=None)) as deployment:  # type: ignore[call-arg]
        list(set_up_server(*deployment.databases))

        told = list(build_history(deployment, WEEK, n_weeks=22))

        counts = read_current(
            deployment.database,
            "SELECT (SELECT count(*) FROM scoring_batches WHERE role = 'champion' AND is_current) AS n, "
            "(SELECT count(DISTINCT model_sha256) FROM scoring_batches WHERE role = 'champion') AS n_models, "
            "(SELECT count(*) FROM scoring_batches WHERE role = 'challenger') AS n_challenger, "
            "(SELECT count(*) FROM evaluated_batches WHERE status = 'ok') AS n_evaluated, "
            "(SELECT n_exposed FROM campaign_summary) AS n_contacted, "
            "(SELECT array_agg(kind ORDER BY kind) FROM incidents) AS incidents",
        ).row(0, named=True)
    n = len(VARIANTS) * 22 - 1
    assert (counts["n"], counts["n_models"], counts["n_challenger"]) == (n, len(VARIANTS), 15)
    assert counts["n_contacted"] > 0
    assert counts["n_evaluated"] > 0
    assert {"input_drifted", "variants_failed"} <= set(counts["incidents"])
    assert told[-1].startswith("report: file://")
    assert (homes / "history" / "report.html").stat().st_size > 50_000


def test_the_players_of_a_history_are_new_to_each_variant_and_known_in_time() -> None:
    one, other = (draw_facts(variant, WEEK, 50) for variant in VARIANTS[:2])

    assert not one.equals(other)
    assert one.equals(draw_facts(VARIANTS[0], WEEK, 50))
    assert one.filter(known_at=None).is_empty()
    assert one["activity_month"].max() == date(2026, 11, 1)
    drifting = draw_facts(VARIANTS[0], WEEK, 50, drifts=date(2026, 10, 12))
    later = one["activity_month"] >= date(2026, 10, 1)
    assert drifting.filter(~later).equals(one.filter(~later))
    assert drifting.filter(later)["total_handle"].sum() > 90 * one.filter(later)["total_handle"].sum() > 0


def test_a_history_overwrites_no_file_of_others(site: Site) -> None:
    with open_deployment() as deployment, pytest.raises(UsageError, match="unset MLFLOW_SECRET_NAME"):
        next(build_history(deployment, WEEK))
    assert site.rows(site.churn, "SELECT FROM scoring_attempts") == []
