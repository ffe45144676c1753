"""At stake: a gap of the feed is no churn, its repair is seen, and what was said before can still be read.

And a week that a model has seen is no evidence about it, whoever reads the evaluations.
"""

import io
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest
from mlflow import MlflowClient

from churn.deployment.services import Deployment
from churn.variants import Variant
from churn.weeks import month_start
from churn.workflows.evaluate import PerformanceEvaluator
from tests.support.batches import week_request
from tests.support.inputs import monday, register_bundled, trained_until
from tests.support.simulated import simulate_activity
from tests.support.site import Run, Site
from tests.support.templates import made_once

US = Variant("us")
WEEK, TODAY = monday(26), datetime.now(UTC).date()  # extracts are received now
EVALUATED = "SELECT n_matured, n_missing, n_churned, replaces_because, replaces FROM evaluated_batches"


def upload(site: Site, rows: pl.DataFrame) -> None:
    buffer = io.BytesIO()
    rows.write_parquet(buffer)
    site.put(f"{US.prefix}data/churn/activity.parquet", buffer.getvalue())


@pytest.fixture
def activity() -> pl.DataFrame:
    return simulate_activity(n_accounts=3000, first_month=month_start(TODAY, -13), n_months=13, seed=3)


@pytest.fixture
def evaluator(site: Site, log_model: Run, deployment: Deployment, activity: pl.DataFrame) -> PerformanceEvaluator:
    """A week of a registered variant is scored."""

    def make() -> None:
        register_bundled(site, log_model, US.key)
        trained_until(site, US, 1)
        upload(site, activity)
        deployment.scorer().score_variant(week_request(WEEK).of(US))

    made_once(site, "a scored week", make, "mlflow", "churn")
    return deployment.promoter().evaluator


def test_a_gap_is_unknown_its_repair_is_evaluated_and_the_first_evaluation_stays(
    site: Site, evaluator: PerformanceEvaluator, deployment: Deployment, activity: pl.DataFrame
):
    ((as_of,),) = site.rows(site.churn, "SELECT as_of FROM scoring_batches")
    is_second = pl.col("activity_month") == month_start(as_of, 2)  # of the three months of the horizon
    gap, broken = is_second & (pl.col("brand_id") == "OH"), is_second & (pl.col("account_id") % 99 == 0)
    lost = activity.filter(~gap)
    amounts = pl.when(broken).then(-1.0).otherwise("total_deposit")
    upload(site, lost.with_columns(total_deposit=amounts))
    evaluator = deployment.promoter().evaluator

    def evaluate(today: date) -> int:
        return len(evaluator.evaluate_batches(US, today, evaluator.ingestion.ingest(US)))

    assert evaluate(TODAY) == 1
    ((n_first, n_missing, n_churned, *why),) = site.rows(site.churn, EVALUATED)
    n_gap, n_rows = activity.filter(gap)["account_id"].n_unique(), lost.filter(broken).height
    assert why == [None, None]
    assert n_missing > n_gap / 2
    assert n_rows > 0
    assert evaluate(TODAY + timedelta(days=7)) == 0
    segments = site.rows(site.churn, "SELECT count(*) FROM evaluated_segments")

    some = activity.filter(~(gap & (pl.col("account_id") % 5 != 0)))
    upload(site, some.with_columns(total_deposit=amounts))
    assert evaluate(TODAY + timedelta(days=14)) == 0, "a gap that is filled in part is none that is known"

    upload(site, activity)
    assert evaluate(TODAY + timedelta(days=21)) == 1

    ((n_again, n_still, n_churned_again, because, replaces),) = site.rows(site.churn, EVALUATED)
    assert (n_again, n_still) == (n_first + n_missing, 0)
    assert f"received after {TODAY}, {n_again:,} accounts have labels" in because
    assert because.endswith(f"before, {n_first:,} and {n_churned:,}")
    assert abs(n_churned / n_first - n_churned_again / n_again) < 0.05, "neither those who stay nor those who leave"
    query = "SELECT evaluation_id, evaluation ->> 'n_matured', jsonb_array_length(segments) FROM replaced_evaluations"
    assert site.rows(site.churn, query) == [(replaces, str(n_first), segments[0][0])]
    run = MlflowClient(deployment.tracking_uri).get_run(
        MlflowClient(deployment.tracking_uri).get_model_version(US.registered_model, "1").run_id
    )
    assert run.data.metrics["live_n_matured"] == n_again
    assert evaluate(TODAY + timedelta(days=28)) == 0


def test_an_evaluation_that_is_no_evidence_any_more_counts_for_nobody(
    site: Site, evaluator: PerformanceEvaluator, deployment: Deployment, activity: pl.DataFrame
):
    upload(site, activity)
    evaluator = deployment.promoter().evaluator
    assert len(evaluator.evaluate_batches(US, TODAY, evaluator.ingestion.ingest(US))) == 1
    site.rows(site.churn, "UPDATE evaluated_batches SET roc_auc = 0.4, roc_auc_low = 0.35, roc_auc_high = 0.45")

    def counted() -> list[int]:
        status = deployment.fleet_monitor().reconcile(datetime.now(UTC), [])
        to_train = dict(deployment.retraining_planner().reasons(TODAY, {}))
        assert list(to_train.values()) == list(status.members("performance_low").values())
        return [len(deployment.fleet().evaluated()), len(to_train)]

    assert counted() == [1, 1]
    trained_until(site, US, 1, day=WEEK + timedelta(days=6))
    assert evaluator.evaluate_batches(US, TODAY, evaluator.ingestion.ingest(US)) == []
    assert counted() == [0, 0]
    site.rows(site.churn, "UPDATE evaluated_batches SET evidence_after = NULL")
    assert counted() == [0, 0]
