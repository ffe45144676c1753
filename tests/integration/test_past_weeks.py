"""At stake: a past week must be what could have been known then; whole months and corrections that came later must not
slip in, or a replay looks better than the week was.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path

import dagster as dg
import pandas as pd
import polars as pl
import pytest

from churn.cli.main import main
from churn.deployment.services import Deployment
from churn.errors import SourceUnavailableError
from churn.variants import Variant
from churn.workflows.score import ScoringOutcome
from orchestration.definitions import defs
from tests.support.batches import week_request
from tests.support.inputs import activity, as_parquet, encoded, expected, facts, monday, put_input, register_bundled
from tests.support.site import Run, Site, client

US = Variant("us")
WEEK = monday(1)
SUNDAY = WEEK + timedelta(days=6)
MONEY = ["total_deposit", "total_handle", "total_ngr"]


@pytest.fixture
def churn(run_main: Run) -> Run:
    return partial(run_main, main)


def at(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, 12, tzinfo=UTC)


def scores(site: Site) -> dict[int, float]:
    return dict(site.current().select("account_id", "churn_probability").iter_rows())


def test_a_past_week_is_what_was_known_then_and_a_corrected_one_says_so(
    site: Site, log_model: Run, deployment: Deployment, churn: Run
) -> None:
    register_bundled(site, log_model, US.key)
    then = activity()
    now = then.copy()
    now[MONEY] *= 3  # every month was corrected afterwards, and new players came
    new = then[then["account_id"] == then["account_id"].min()].assign(account_id=1)
    now = pd.concat([now, new])
    history = deployment.history()
    history.append(US, facts(then), at(WEEK - timedelta(days=3)))
    history.append(US, facts(now), at(SUNDAY + timedelta(days=1)))
    put_input(site, US.key, as_parquet(now))

    said = churn("score", US.key, "--week", str(WEEK))

    assert said.status == 0, said
    assert scores(site) == pytest.approx(expected(then, SUNDAY), abs=1e-6)
    row = site.current().row(0, named=True)
    assert (row["scored_from"], row["as_of"], row["is_foreign_data"]) == ("history", SUNDAY, False)
    assert row["source_uri"].endswith("/geography-us/history/activity/")
    query = "SELECT count(*) FROM scoring_batches WHERE scored_from = 'history' AND source_modified_at < :end"
    assert site.rows(site.churn, query, end=at(SUNDAY)) == [(1,)]

    churn("score", US.key, "--week", str(WEEK), "--corrected")

    assert scores(site) == pytest.approx(expected(now, SUNDAY), abs=1e-6)
    assert set(site.current()["scored_from"]) == {"corrected extract"}
    assert deployment.store().latest_inputs()[US.key] == deployment.sources().input_version(US)


def test_what_no_history_knows_is_refused_with_the_way_to_go_on(site: Site, log_model: Run, churn: Run) -> None:
    register_bundled(site, log_model, US.key)
    put_input(site, US.key, as_parquet(encoded(activity(), monday())))

    refused = churn("score", US.key, "--week", str(WEEK))

    assert (refused.status, "--corrected" in refused.err, str(SUNDAY) in refused.err) == (1, True, True)
    assert churn("score", US.key, "--week", str(WEEK), "--corrected").status == 0


def test_a_day_outside_its_week_is_refused_and_never_becomes_current(site: Site, log_model: Run, churn: Run) -> None:
    register_bundled(site, log_model, US.key)
    put_input(site, US.key, as_parquet(activity()))
    assert churn("score", US.key, "--week", str(WEEK), "--corrected").status == 0
    before = scores(site)
    outside = ("score", US.key, "--week", str(WEEK), "--as-of", str(WEEK - timedelta(days=60)), "--corrected")

    churn(*outside).require_one_line("is outside the week", "--force", status=2)
    forced = churn(*outside, "--force")

    assert (forced.status, "not made current" in forced.out) == (0, True)
    assert scores(site) == before
    query = "SELECT is_current, as_of < scored_week FROM scoring_batches ORDER BY batch_id"
    assert site.rows(site.churn, query) == [(True, False), (False, True)]
    tomorrow = str(date.today() + timedelta(days=2))  # noqa: DTZ011 later than any clock's today
    churn("score", US.key, "--as-of", tomorrow).require_one_line("is in the future", status=2)
    churn("score", "geography-uss").require_one_line("is not registered", "did you mean 'geography-us'", status=2)
    assert site.rows(site.churn, "SELECT DISTINCT variant FROM scoring_attempts") == [(US.key,)]


def statuses(site: Site) -> list[str | None]:
    """Return what became of the extract of each batch, the oldest first."""
    return [
        status for (status,) in site.rows(site.churn, "SELECT history_status FROM scoring_batches ORDER BY batch_id")
    ]


def keep_versions(site: Site) -> None:
    client("s3").put_bucket_versioning(Bucket=site.bucket, VersioningConfiguration={"Status": "Enabled"})


def score_this_week(deployment: Deployment) -> ScoringOutcome:
    return deployment.scorer().score_variant(week_request(monday()).of(US))


def test_a_months_total_does_not_reach_a_week_in_it(site: Site, log_model: Run, churn: Run) -> None:
    """As once in a week at the end of February, whose Sunday was in March: March's totals, and the players who came in
    it, were scored, since today's extract has them.
    """
    register_bundled(site, log_model, US.key)
    rows = activity()
    months = pd.to_datetime(rows["activity_month"])
    first_rows = months.groupby(rows["account_id"]).transform("min")
    running = first_rows[first_rows > first_rows.min()].mode().max()  # a month in which players came
    sunday = (running + pd.Timedelta(days=20)).date()
    sunday -= timedelta(days=(sunday.weekday() + 1) % 7)
    week = sunday - timedelta(days=6)
    assert sunday.month == running.month
    put_input(site, US.key, as_parquet(rows))

    said = churn("score", US.key, "--week", str(week))

    assert said.status == 0, said
    known = expected(rows[months < running], sunday)
    assert scores(site) == pytest.approx(known, abs=1e-6)
    assert set(site.current()["newest_month"]) == {months[months < running].max().date()}
    churn("score", US.key, "--week", str(week), "--corrected")
    assert scores(site) == pytest.approx(expected(rows, sunday), abs=1e-6)
    assert site.current().height > len(known)


def test_what_was_scored_reaches_the_history_though_it_was_replaced(
    site: Site, log_model: Run, deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    keep_versions(site)
    register_bundled(site, log_model, US.key)
    first, second = activity(), activity(seed=1)
    put_input(site, US.key, as_parquet(first))
    outcome = score_this_week(deployment)
    put_input(site, US.key, as_parquet(second))
    score_this_week(deployment)
    score_this_week(deployment)
    put_input(site, US.key, as_parquet(encoded(first, monday())))
    score_this_week(deployment)
    assert statuses(site) == ["pending", "pending", "pending", None]

    job = defs.resolve_job_def("maintenance_job").execute_in_process(instance=instance)

    assert job.success
    assert statuses(site) == ["ingested", "ingested", "ingested", None]
    known = deployment.history().read(US)
    assert set(known["account_id"]) == {*first["account_id"], *second["account_id"]}
    assert known["known_at"].min() <= outcome.provenance.modified_at <= known["known_at"].max()
    ((kept, modified_at),) = site.rows(
        site.churn, "SELECT source_version_id, source_modified_at FROM scoring_batches ORDER BY batch_id LIMIT 1"
    )
    assert (bool(kept), modified_at) == (True, outcome.provenance.modified_at)
    assert deployment.ingestion().ingest_scored(US) == []
    assert deployment.history().read(US).equals(known)


def test_an_extract_that_was_replaced_before_it_was_ingested_is_gone_and_its_batch_says_so(
    site: Site, log_model: Run, deployment: Deployment
) -> None:
    register_bundled(site, log_model, US.key)
    put_input(site, US.key, as_parquet(activity()))
    score_this_week(deployment)
    put_input(site, US.key, as_parquet(activity(seed=1)))
    score_this_week(deployment)

    appended = deployment.promoter().evaluator.ingestion.ingest(US)

    assert statuses(site) == ["gone", "ingested"]
    assert set(appended.facts["account_id"]) == set(activity(seed=1)["account_id"])


def test_an_interrupted_ingestion_is_completed_and_several_at_once_add_nothing_twice(
    site: Site, log_model: Run, deployment: Deployment
) -> None:
    register_bundled(site, log_model, US.key)
    put_input(site, US.key, as_parquet(activity()))
    outcome = score_this_week(deployment)
    ingestion = deployment.ingestion()
    # As it is left by a process that is killed after the facts were written.
    n_facts = ingestion.history.append(US, facts(activity()), outcome.provenance.modified_at).n_added

    with ThreadPoolExecutor(4) as pool:
        found = [status for each in pool.map(ingestion.ingest_scored, [US] * 4) for status in each]

    assert found
    assert set(found) == {"ingested"}
    assert statuses(site) == ["ingested"]
    assert ingestion.history.read(US).height == n_facts


def test_what_is_not_the_variants_own_activity_is_not_ingested(
    site: Site, log_model: Run, deployment: Deployment, local_root: Path
) -> None:
    register_bundled(site, log_model, US.key)
    score_this_week(deployment)  # the base variant's local copy
    own = local_root / US.prefix / "data/churn/activity.parquet"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_bytes(as_parquet(activity()))
    score_this_week(deployment)  # its own, which replaces S3 for a while

    assert statuses(site) == [None, None]
    assert deployment.ingestion().extracts.variants() == []


def test_an_extract_that_contradicts_the_history_is_rejected_and_one_that_cannot_be_read_waits(
    site: Site, log_model: Run, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_bundled(site, log_model, US.key)
    deployment.history().append(US, facts(activity()).with_columns(plan=pl.lit([1])), at(WEEK))
    put_input(site, US.key, as_parquet(activity().assign(plan="gold")))
    score_this_week(deployment)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
        with closing(replace(deployment)) as cut_off, pytest.raises(SourceUnavailableError):
            cut_off.ingestion().ingest_scored(US)
    assert statuses(site) == ["pending"]

    assert deployment.ingestion().ingest_scored(US) == ["rejected"]

    assert statuses(site) == ["rejected"]
