"""At stake: who is on call looks at Prometheus, not at the database. What it is told must be what the tables hold, and
a database that is down must be told, too: in time, and without its password.
"""

import re
import signal
import socket
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as plain_text_to_metric_families

from churn.cli.main import main
from churn.database.connection import READER
from churn.deployment.services import Deployment
from churn.monitoring.incidents import KINDS
from tests.support import ROOT
from tests.support.children import bound
from tests.support.inputs import monday
from tests.support.metrics import Fleet, make_monitored_fleet, scrape, served
from tests.support.site import PASSWORD, Run, Site, create_login, require_no_password, run_sql


@pytest.fixture
def fleet(site: Site, log_model: Run, deployment: Deployment) -> Fleet:
    return make_monitored_fleet(site, log_model, deployment)


def test_a_scrape_tells_what_the_tables_hold(fleet: Fleet) -> None:
    with served(fleet.site.login.set(database=fleet.site.churn)) as address:
        answer = scrape(address)

    found, us = answer.samples, "geography-us"
    assert ("churn_estimated_auc_ratio", us) not in found  # the bundled model is not calibrated
    (batch,) = fleet.site.rows(
        fleet.site.churn,
        "SELECT n_rows_scored, n_rows_quarantined, mean_probability, n_at_risk, "
        "extract(epoch FROM published_at - started_at)::float8, extract(epoch FROM published_at)::float8, "
        "extract(epoch FROM now() - source_modified_at)::float8 FROM scoring_batches WHERE batch_id = :batch",
        batch=fleet.batch_id,
    )
    by_variant = {
        "churn_batch_rows": batch[0],
        "churn_batch_quarantined_rows": batch[1],
        "churn_batch_mean_probability_ratio": batch[2],
        "churn_batch_at_risk_rows": batch[3],
        "churn_batch_duration_seconds": batch[4],
        "churn_batch_is_fallback": 0,
        "churn_batch_week_timestamp_seconds": seconds(fleet.week),
        "churn_evaluated_week_timestamp_seconds": seconds(monday(1)),
        "churn_psi_max": 0.31,
        "churn_roc_auc_ratio": 0.6,
        "churn_roc_auc_low_ratio": 0.52,
        "churn_roc_auc_high_ratio": 0.68,
        "churn_roc_auc_limit_ratio": 0.7,
    }
    assert {name: found[name, us] for name in by_variant} == pytest.approx(by_variant)
    assert {name for name, *labels in found if labels == [us]} == {*by_variant, "churn_input_age_seconds"}
    assert found["churn_input_age_seconds", us] == pytest.approx(batch[6], abs=30)
    assert found[("churn_last_published_timestamp_seconds",)] == pytest.approx(batch[5])
    assert found[("churn_week_timestamp_seconds",)] == seconds(fleet.week)
    assert {labels[0]: n for (name, *labels), n in found.items() if name == "churn_variants"} == {
        "published": 1, "failed": 1, "missing": 1,
    }  # fmt: skip
    assert {tuple(labels): psi for (name, *labels), psi in found.items() if name == "churn_psi"} == {
        (us, "total_deposit"): 0.31, (us, "churn_probability"): 0.07,
    }  # fmt: skip
    assert found["churn_drifted_variants", "confirmed"] == 1
    assert found["churn_drifted_variants", "new"] == 0
    incidents = {labels[0]: n for (name, *labels), n in found.items() if name == "churn_open_incidents"}
    assert incidents == dict.fromkeys(KINDS, 0) | {"variants_failed": 1}
    assert found[("churn_alerts_waiting",)] == 1
    assert found[("churn_alerts_waiting_oldest_seconds",)] == pytest.approx(7200, abs=30)
    assert found[("churn_up",)] == found[("churn_build_info",)] == 1
    assert 'code_version="v1+test"' in answer.text


def seconds(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()


def test_the_format_is_what_the_scraper_asks_for(site: Site) -> None:
    with served(site.login.set(database=site.churn)) as address:
        new, old = scrape(address), scrape(address, "text/plain")

    assert new.content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert new.text.endswith("\n# EOF\n")
    assert old.content_type.startswith("text/plain; version=0.0.4")
    assert {sample.name for family in plain_text_to_metric_families(old.text) for sample in family.samples} == {
        name for name, *_ in new.samples
    }


def test_names_end_in_their_unit_are_explained_and_are_the_ones_that_rules_speak_of(site: Site) -> None:
    with served(site.login.set(database=site.churn)) as address:
        families = {family.name: family for family in text_string_to_metric_families(scrape(address).text)}

    assert len(families) > 20
    for family in families.values():
        assert family.name.startswith("churn_")
        assert family.documentation
        units = re.findall(r"_(seconds|ratio|rows)$", family.name)
        assert [family.unit.rsplit("_", maxsplit=1)[-1]] == (units or [""])
    assert "assumes no concept drift" in families["churn_estimated_auc_ratio"].documentation
    rules = yaml.safe_load((ROOT / "infra/prometheus/rules.yaml").read_text())
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        named = set(re.findall(r"churn_\w+", rule["expr"]))
        assert named
        assert named <= families.keys(), rule["alert"]


def test_a_login_that_may_only_read_is_enough(site: Site) -> None:
    reader = create_login(site.server, f"IN ROLE {READER}").set(database=site.churn)

    with served(reader) as address:
        found = scrape(address).samples

    assert found[("churn_up",)] == 1
    assert {labels[0]: n for (name, *labels), n in found.items() if name == "churn_variants"} == {
        "published": 0, "failed": 0, "missing": 0,
    }  # fmt: skip
    assert ("churn_last_published_timestamp_seconds",) not in found


@pytest.mark.slow
@pytest.mark.parametrize("why", ["refused", "silent", "not set up", "wrong password"])
def test_a_database_that_does_not_answer_is_a_metric_and_no_failed_scrape(
    site: Site, why: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if why == "silent":
            listener.listen()
        url = {
            "not set up": site.login.set(database="postgres"),
            "wrong password": site.login.set(database=site.churn, password=PASSWORD + "?"),
        }.get(why, site.login.set(port=listener.getsockname()[1]))
        with served(url) as address:
            answer = scrape(address)

    assert answer.status == 200
    assert answer.seconds < 8
    assert answer.samples.keys() == {("churn_up",), ("churn_build_info",)}
    assert answer.samples[("churn_up",)] == 0
    said = "".join(capfd.readouterr()) + caplog.text
    assert "no metrics: PostgreSQL at " in said
    assert "Traceback" not in said
    require_no_password(answer.text, said)


def test_what_was_down_is_found_again_without_a_restart(site: Site) -> None:
    url = site.login.set(database=site.churn)
    with served(url) as address:
        before = scrape(address).samples[("churn_up",)]
        run_sql(site.server, f'ALTER DATABASE "{site.churn}" RENAME TO "{site.churn}-gone"')
        during = scrape(address).samples[("churn_up",)]
        run_sql(site.server, f'ALTER DATABASE "{site.churn}-gone" RENAME TO "{site.churn}"')
        after = scrape(address).samples[("churn_up",)]

    assert (before, during, after) == (1, 0, 1)


@pytest.mark.slow
def test_the_command_serves_on_loopback_until_it_is_told_to_stop(site: Site) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    command = [str(Path(sys.executable).parent / "churn"), "metrics", "--port", port]
    # As a process starts from one where Dagster ran a job while SIGINT was ignored: then SIGTERM is ignored, too.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with subprocess.Popen(bound(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            signal.signal(signal.SIGTERM, before)
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            assert address == f"http://127.0.0.1:{port}/metrics"
            assert scrape(address).samples[("churn_up",)] == 1
            assert process.stdout.readline() == "Ctrl-C stops it.\n"
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()

    assert (process.returncode, out, err) == (0, "stopping …\n", "")


def test_a_port_that_is_taken_is_one_line(site: Site, run_main: Run) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        said = run_main(main, "metrics", "--port", port)

    said.require_one_line("churn metrics: --host 127.0.0.1 --port", port, "name others", status=2)


@pytest.mark.slow
def test_two_thousand_variants_are_scraped_in_under_three_seconds(site: Site) -> None:
    seed_fleet(site, n_variants=2000, n_weeks=26)

    with served(site.login.set(database=site.churn)) as address:
        first, second = scrape(address), scrape(address)

    assert first.samples["churn_variants", "published"] == 2000
    assert sum(name == "churn_roc_auc_ratio" for name, *_ in second.samples) == 2000
    assert max(first.seconds, second.seconds) < 3


def seed_fleet(site: Site, n_variants: int, n_weeks: int) -> None:
    """Batches of many variants and weeks, the older half judged, each with the drift of eight features."""
    run = partial(run_sql, site.server.set(database=site.churn))
    features = ", ".join(
        f"'feature_{n}', jsonb_build_object('psi', v % 100 / 200.0, 'excess_psi', 0.01, 'jensen_shannon', 0.1, "
        "'p_value', 0.5, 'unknown_share', 0.01, 'unknown_rise', 0.001, 'unknown_p_value', 0.5, 'n_rows', 1000)"
        for n in range(8)
    )
    run(
        f"""
        INSERT INTO scoring_batches
            (variant, scored_week, as_of, registered_model, model_version, role, model_sha256, mlflow_run_id,
             code_version, source, source_uri, source_version, source_sha256, source_modified_at, source_variant,
             account_ids, n_rows_read, n_rows_quarantined, n_accounts_withheld, n_rows_scored, unknown_levels,
             started_at, published_at, is_current, drift, mean_probability, score_counts, profile_counts,
             estimated_auc)
        SELECT 'geography-g' || v, w, w + 6, 'churn-prediction-model-g' || v, 1, 'champion', repeat('0', 64), 'run',
               'v1', 's3', 's3://b/k', 'etag', repeat('1', 64), w, 'geography-g' || v, 'input', 1000, 0, 0, 1000,
               '{{}}', w, w + interval '1 second', true, jsonb_build_object({features}), 0.3,
               array_fill(50\\:\\:bigint, ARRAY[20]), array_fill(9\\:\\:bigint, ARRAY[110]), 0.8
        FROM generate_series(1, :n) AS v,
             LATERAL (SELECT :week - 7 * ago FROM generate_series(0, :weeks - 1) AS ago) AS d (w)
        """,  # noqa: S608
        n=n_variants,
        week=monday(),
        weeks=n_weeks,
    )
    run("""
        INSERT INTO scoring_attempts (variant, scored_week, outcome, batch_id, started_at, ended_at)
        SELECT variant, scored_week, 'published', batch_id, started_at, published_at FROM scoring_batches
    """)
    run(
        """
        INSERT INTO evaluated_batches (evidence_after,
                                       batch_id, evaluated_at, labels_as_of, horizon_months, n_accounts, n_at_risk,
                                    n_matured,
                                    n_missing, n_churned, status, auc_limit, roc_auc, roc_auc_low, roc_auc_high)
        SELECT date '2000-01-01',
               batch_id, now(), current_date, 3, 1000, 1000, 1000, 0, 200, 'ok', 0.7, 0.8, 0.75, 0.85
        FROM scoring_batches WHERE scored_week <= :until
        """,
        until=monday() - timedelta(weeks=n_weeks // 2),
    )
    run("INSERT INTO drift_flags SELECT batch_id, 'feature_1', true FROM scoring_batches WHERE batch_id % 50 = 0")
    run("ANALYZE")
