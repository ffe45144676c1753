"""At stake: what models turn out to be worth. Each batch is judged in all and by segment, once, in one transaction; the
run of the version that made the predictions gets it as a time series; and MLflow failing loses nothing of it.
"""

import gzip
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import numpy as np
import polars as pl
import pytest
from mlflow import MlflowClient
from sklearn import metrics

from churn.data.activity import ONE_HOT_COLUMNS
from churn.data.columns import Columns
from churn.data.labels import Horizon, Labels, Reports, at_risk, label
from churn.database.decisions import Decisions, Lists
from churn.database.evaluations import EvaluatedBatch
from churn.deployment.services import Deployment
from churn.errors import ChurnError, InputError, QuarantineError
from churn.evaluation.segments import EvaluatedSegment
from churn.registry.tags import AUC_LIMIT
from churn.storage.sources import NoFileError
from churn.variants import Variant
from churn.workflows.effects import effects_of, report_effects
from churn.workflows.evaluate import PendingEvaluation, PerformanceEvaluator, VariantEvaluation, evaluate_fleet
from orchestration.assets.decisions import campaign_effects
from orchestration.definitions import defs
from orchestration.partitions import RANGE_END_TAG, RANGE_START_TAG, sync_partitions
from orchestration.resources import Services
from tests.support.batches import week_request
from tests.support.campaigns import campaign, members
from tests.support.inputs import register_bundled, trained_until
from tests.support.simulated import simulate_activity
from tests.support.site import Run, Site, bundled, client
from tests.support.templates import made_once

US = Variant("us")
WEEKS = [date(2026, 2, 23), date(2026, 5, 25)]
TODAY = date(2026, 10, 20)
AGREEMENT = 1e-6


@pytest.fixture
def judge(site: Site, log_model: Run, deployment: Deployment) -> PerformanceEvaluator:
    """Two weeks of a registered variant are scored, and all its activity is known since."""

    def make() -> None:
        register_bundled(site, log_model, US.key)
        trained_until(site, US, 1)
        activity = simulate_activity(n_accounts=3000, first_month=date(2025, 2, 1), n_months=21, seed=3)
        site.put(f"{US.prefix}data/churn/activity.parquet", parquet(activity))
        for week in WEEKS:
            deployment.scorer().score_variant(week_request(week).of(US))
        deployment.promoter().evaluator.ingestion.ingest(US)

    made_once(site, "two scored weeks", make, "mlflow", "churn")
    return deployment.promoter().evaluator


def parquet(frame: pl.DataFrame) -> bytes:
    import io

    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


@pytest.fixture
def read_only(judge: PerformanceEvaluator, deployment: Deployment) -> PerformanceEvaluator:
    """A judge that MLflow's database refuses to write for."""
    return replace(judge, registry=deployment.registry(read_only=True))


@pytest.fixture
def live(deployment: Deployment) -> Callable[[str], list[tuple[int, int, float]]]:
    """Read a metric's time series of version 1's run: step, milliseconds, value."""
    client = MlflowClient(deployment.tracking_uri)
    run = client.get_model_version(US.registered_model, "1").run_id
    return lambda name: [(one.step, one.timestamp, one.value) for one in client.get_metric_history(run, name)]


def test_a_batch_is_judged_by_segment_as_scikit_learn_would(site: Site, judge: PerformanceEvaluator):
    judge.evaluate_batches(US, TODAY)

    query = (
        "SELECT b.scored_week, s.segment, s.level, s.n_matured, s.n_churned, s.status, s.roc_auc, s.roc_auc_low, "
        "s.brier_score, s.mean_score, s.p_below_limit FROM evaluated_segments AS s JOIN scoring_batches AS b "
        "USING (batch_id) ORDER BY 1, 2, s.n_matured DESC"
    )
    rows = site.rows(site.churn, query)
    assert {(week, segment) for week, segment, *_ in rows} == {
        (week, name) for week in WEEKS for name in ONE_HOT_COLUMNS
    }
    facts = judge.ingestion.history.read(US)
    for week in WEEKS:
        outcomes = _outcomes(site, facts, week)
        for segment in ONE_HOT_COLUMNS:
            found = [row[2:] for row in rows if row[:2] == (week, segment)]
            assert sum(n for _, n, *_ in found) == outcomes.height
            for level, n, n_churned, status, auc, low, brier, mean_score, p_value in found:
                of_level = outcomes.filter(pl.col(segment) == level)
                churned, scores = of_level["churned"].to_numpy(), of_level["score"].to_numpy()
                assert (n, n_churned) == (len(churned), churned.sum())
                assert (status == "ok") == (min(n_churned, n - n_churned) >= 50)
                if status == "insufficient":
                    assert (auc, low, brier, mean_score, p_value) == (None,) * 5
                    continue
                assert auc == pytest.approx(metrics.roc_auc_score(churned, scores), abs=AGREEMENT)
                assert brier == pytest.approx(metrics.brier_score_loss(churned, scores), abs=AGREEMENT)
                assert mean_score == pytest.approx(scores.mean(), abs=AGREEMENT)
                assert low < auc
                assert (p_value < 0.5) == (auc < judge.auc_limit)
    assert {status for *_, status, _, _, _, _, _ in rows} == {"ok", "insufficient"}


@pytest.mark.slow
def test_accounts_that_a_campaign_contacted_do_not_count_and_others_stand_for_them(
    site: Site, judge: PerformanceEvaluator, deployment: Deployment
):
    columns = {"top_share": 0.5, "holdout_share": 0.1, "control_share": 0.2, "starts_on": WEEKS[1]}
    Decisions(deployment.database).create(campaign("spring", US, **columns), {})
    (found,) = (one for one in judge.evaluate_batches(US, TODAY) if one.batch.scored_week == WEEKS[1])
    batch, labels = found.batch, _labels(judge, found.batch.as_of)
    arms = members(deployment.database, "spring")
    offered = np.isin(labels.account_ids, [account for account, arm in arms.items() if arm == "offered"])
    ids, churned, weights = judge.untreated(batch, labels)

    assert 0.3 < offered.mean() < 0.4
    assert ids.tolist() == labels.account_ids[~offered].tolist()
    assert weights == pytest.approx(np.where(np.isin(ids, list(arms)), 1 / (0.1 + 0.9 * 0.2), 1.0))
    assert weights.sum() == pytest.approx(len(labels.account_ids), rel=0.1)
    assert churned.mean() < np.average(churned, weights=weights)
    assert judge.untreated(replace(batch, as_of=date(2025, 6, 30)), labels)[2] is None
    assert found.n_matured == round(weights.sum() ** 2 / (weights @ weights)) < len(ids)
    assert found.n_churned / found.n_matured == pytest.approx(labels.churned.mean(), abs=0.05)

    newest = deployment.trainer(n_trials=1).train_variant(US, TODAY, dry_run=True).trained.held_out
    above = np.isin(newest.account_ids, list(arms))
    assert above.sum() > 50
    assert not np.isin(newest.account_ids, labels.account_ids[offered]).any(), "training leaves out the same"
    assert newest.weights == pytest.approx(np.where(above, 1 / (0.1 + 0.9 * 0.2), 1.0))

    Decisions(deployment.database).close_campaign("spring")
    site.rows(site.churn, "UPDATE campaigns SET selected_at = '2025-01-01', closed_at = '2025-01-01'")
    listed: list[int] = []
    lists = Lists(deployment.database)
    lists.export_variant(US.key, WEEKS[1], 150, "us.csv", lambda rows: listed.extend(map(int, rows["account_id"])))
    lists.close()
    site.rows(site.churn, "UPDATE list_exports SET exported_at = :day", day=WEEKS[1])
    known = dict(zip(*judge.untreated(batch, labels)[::2], strict=True))
    assert not known.keys() & set(listed)
    assert sorted(set(known.values())) == [1.0, 10.0]
    held_out = {account for account, weight in known.items() if weight == 10}
    assert held_out < {account for account, arm in arms.items() if arm == "held_out"}, "of those within its reach"
    assert sum(known.values()) == pytest.approx(len(labels.account_ids), abs=200)


@pytest.mark.slow
def test_the_effect_of_a_campaign_is_measured_by_what_became_of_its_members(
    judge: PerformanceEvaluator, deployment: Deployment
):
    columns = {"top_share": 0.8, "holdout_share": 0.1, "control_share": 0.3, "starts_on": WEEKS[1]}
    decider = deployment.decider()
    decider.decisions.create(campaign("spring", US, **columns), {})
    arms = members(deployment.database, "spring")
    contacted = [account for account, arm in arms.items() if arm == "offered"][:100]
    contact = {"campaign": "spring", "exposed_at": f"{datetime.now(UTC):%Y-%m-%d}"}
    contacts = [contact | {"row_number": i, "account_id": str(one)} for i, one in enumerate(contacted)]
    assert len(decider.decisions.record(contacts)[None]) == 100
    assert report_effects(decider, "spring", 0.3, date(2026, 8, 1))["effects"] == []
    found = report_effects(decider, "spring", 0.3, TODAY)

    (churn, revenue) = found["effects"]
    (as_of,) = decider.decisions.members("spring")["as_of"].unique()
    reports = Reports.of(judge.ingestion.history.read(US))
    labels = label(reports, np.array(list(arms)), as_of, today=TODAY, horizon=Horizon())
    churned = dict(zip(labels.account_ids.tolist(), labels.churned.tolist(), strict=True))
    for arm in ("offered", "control"):
        outcomes = [churned[account] for account, of in arms.items() if of == arm and account in churned]
        assert churn[f"n_{arm}"] == revenue[f"n_{arm}"] == len(outcomes)
        assert churn[f"mean_{arm}"] == pytest.approx(np.mean(outcomes))
    assert churn["low"] < 0 < churn["high"]
    assert (churn["status"], churn["is_claimed"], churn["exposed_control"]) == ("ok", False, 0)
    assert churn["exposed_offered"] == pytest.approx(len(churned.keys() & set(contacted)) / churn["n_offered"])
    assert revenue["mean_control"] != 0
    assert found["plan"]["n"] == sum(arm != "held_out" for arm in arms.values())
    assert [sentence.partition(":")[0] for sentence in found["sentences"]] == [
        "plan", "all accounts, churn", "all accounts, net revenue, capped",
    ]  # fmt: skip
    shown = dg.materialize([campaign_effects], resources={"services": Services()}).asset_materializations_for_node(
        "campaign_effects"
    )
    assert "| spring | all accounts, churn: " in str(shown[0].metadata["effects"].value)
    (of_any, _) = effects_of(decider, None, TODAY).to_dicts()
    assert of_any["n_control"] == sum(arm == "held_out" and account in churned for account, arm in arms.items())


def _labels(judge: PerformanceEvaluator, as_of: date) -> Labels:
    reports = Reports.of(judge.ingestion.history.read(US))
    return label(reports, at_risk(reports, as_of, Horizon()), as_of, today=TODAY, horizon=Horizon())


def _outcomes(site: Site, facts: pl.DataFrame, week: date) -> pl.DataFrame:
    """Put together, apart from the code under test, who was at risk, how they were scored, and what became of them."""
    query = (
        "SELECT p.account_id, p.churn_probability::float8, b.as_of FROM churn_predictions AS p "
        "JOIN scoring_batches AS b USING (batch_id) WHERE b.scored_week = :week"
    )
    rows = site.rows(site.churn, query, week=week)
    as_of = rows[0][2]
    scored = pl.DataFrame({"account_id": [row[0] for row in rows], "score": [row[1] for row in rows]})
    ids = np.intersect1d(scored["account_id"].to_numpy(), at_risk(Reports.of(facts), as_of, Horizon()))
    labels = label(Reports.of(facts), ids, as_of, today=TODAY, horizon=Horizon())
    end = datetime(as_of.year, as_of.month, as_of.day, tzinfo=UTC) + timedelta(days=1)
    newest = (
        facts.filter(pl.col("activity_month") <= as_of, pl.col("known_at") < end)
        .sort("account_id", "activity_month", "known_at", maintain_order=True)
        .group_by("account_id", maintain_order=True)
        .last()
    )
    churned = pl.DataFrame({"account_id": labels.account_ids, "churned": labels.churned})
    return churned.join(scored, on="account_id").join(newest, on="account_id")


@pytest.mark.parametrize(
    ("columns", "segments", "why"),
    [
        (Columns(activity=("total_ngr",), segments=("tracker_id",), revenue=None), {"tracker_id"}, None),
        (Columns(segments=("device",)), set(), None),
        (Columns(activity=("logins",)), set(), "none of which measures activity; at least one of logins is needed"),
    ],
)
def test_a_batch_is_evaluated_by_the_columns_that_its_version_declares_or_says_why_not(
    judge: PerformanceEvaluator, deployment: Deployment, columns: Columns, segments: set[str], why: str | None
):
    client = MlflowClient(deployment.tracking_uri)
    client.set_model_version_tag(US.registered_model, "1", "churn.columns", columns.to_json())

    ((_, found),) = evaluate_fleet(deployment.promoter(), [US.key])

    assert isinstance(found, VariantEvaluation), found
    assert len(found.batches) == (len(WEEKS) if why is None else 0)
    assert {one.segment for batch in found.batches for one in batch.segments} == segments
    assert (why is None) == (found.not_evaluated is None)
    assert why is None or why in str(found.not_evaluated)


SAMPLE = bundled("X_test_sample_2.json")
INPUTS: dict[str, tuple[bytes | None, str | type[ChurnError]]] = {
    "cut off": (bundled("activity.parquet")[:-1000], InputError),
    "not Parquet": (b"PAR1" + bytes(100), InputError),
    "empty": (b"", InputError),
    "Excel": (b"PK\x03\x04" + bytes(100) + b"xl/workbook.xml", InputError),
    "UTF-16": ("account_id,activity_month\n".encode("utf-16"), InputError),
    "no rows": (b"account_id,activity_month,total_ngr\n", InputError),
    "over the quarantine limit": (b"account_id,activity_month,total_ngr\n1,never,1\n2,never,1\n", QuarantineError),
    "gzip cut off": (gzip.compress(bundled("activity.jsonl"))[:-100], InputError),
    "JSON Lines cut off": (bundled("activity.jsonl")[:-20], InputError),
    "ORC": (b"ORC" + bytes(100), InputError),
    "a login page": (b"<html><title>Sign in</title></html>", InputError),
    "a title": (b"Players of March\naccount_id,activity_month,total_ngr\n1,2026-03-01,1\n", InputError),
    "without a header": (b"1,2026-03-01,1.5\n2,2026-03-01,2.5\n", InputError),
    "a dump": (b"PGDMP" + bytes(100), InputError),
    "vanished": (None, NoFileError),
    "encoded rows": (SAMPLE, "already encoded"),
}


def test_a_damaged_input_fails_the_evaluation_and_encoded_rows_do_not(
    site: Site, judge: PerformanceEvaluator, deployment: Deployment
) -> None:
    key = f"{US.prefix}data/churn/activity.parquet"
    client("s3").delete_object(Bucket=site.bucket, Key=f"{US.prefix}data/churn/X_test_sample_2.json")
    for case, (body, expected) in INPUTS.items():
        client("s3").delete_object(Bucket=site.bucket, Key=key) if body is None else site.put(key, body)
        ((_, found),) = evaluate_fleet(deployment.promoter(), [US.key])
        if isinstance(expected, str):
            assert isinstance(found, VariantEvaluation), (case, found)
            assert expected in str(found.not_evaluated)
        else:
            assert isinstance(found, expected), (case, found)


def test_a_variant_without_activity_yet_is_not_evaluated_and_fails_nothing(
    site: Site, log_model: Run, deployment: Deployment
) -> None:
    register_bundled(site, log_model, US.key)
    client("s3").delete_object(Bucket=site.bucket, Key=f"{US.prefix}data/churn/X_test_sample_2.json")

    ((_, found),) = evaluate_fleet(deployment.promoter(), [US.key])

    assert isinstance(found, VariantEvaluation), found
    assert "there is no local copy" in str(found.not_evaluated)


def test_the_run_of_the_version_that_scored_gets_a_time_series(
    site: Site, judge: PerformanceEvaluator, deployment: Deployment, live: Callable
):
    judged = judge.evaluate_batches(US, TODAY)

    monday = date(1970, 1, 5)
    steps = [(week - monday).days // 7 for week in WEEKS]
    times = [int(datetime.combine(one.batch.as_of, datetime.min.time(), UTC).timestamp() * 1000) for one in judged]
    for name in (
        "roc_auc", "roc_auc_low", "roc_auc_high", "brier_score", "log_loss", "average_precision", "calibration_error",
        "lift_at_10",
    ):  # fmt: skip
        values = [one.measures[name] for one in judged]
        assert live(f"live_{name}") == list(zip(steps, times, values, strict=True))
    assert [value for *_, value in live("live_n_matured")] == [one.n_matured for one in judged]
    kept = site.rows(site.churn, "SELECT n_matured, reliability FROM evaluated_batches ORDER BY batch_id")
    for (n_matured, reliability), one in zip(kept, judged, strict=True):
        assert reliability == one.reliability
        assert sum(reliability["n"]) == n_matured
        share = np.dot(reliability["n"], reliability["churned_share"]) / n_matured
        assert share == pytest.approx(one.n_churned / n_matured)


def test_what_mlflow_refused_is_judged_all_the_same_and_logged_once_the_next_time(
    site: Site,
    judge: PerformanceEvaluator,
    read_only: PerformanceEvaluator,
    live: Callable,
    caplog: pytest.LogCaptureFixture,
):
    with caplog.at_level(logging.WARNING):
        judged = read_only.evaluate_batches(US, TODAY)

    assert len(judged) == 2
    assert site.rows(site.churn, "SELECT count(*) FROM evaluated_batches") == [(2,)]
    assert "logging to MLflow failed and will be retried" in caplog.text
    assert live("live_n_matured") == []
    assert len(judge.results.unlogged([US])) == 2

    assert judge.evaluate_batches(US, TODAY + timedelta(days=7)) == []
    assert judge.results.unlogged([US]) == []

    assert [value for *_, value in live("live_roc_auc")] == [one.measures["roc_auc"] for one in judged]
    n_points = site.rows(site.mlflow, "SELECT count(*) FROM metrics WHERE key LIKE 'live_%'")
    assert judge.evaluate_batches(US, TODAY + timedelta(days=14)) == []
    assert site.rows(site.mlflow, "SELECT count(*) FROM metrics WHERE key LIKE 'live_%'") == n_points


@pytest.mark.parametrize(("seen_until", "expected"), [(date(2026, 3, 1), WEEKS[1:]), (None, [])])
def test_only_weeks_after_what_their_model_has_seen_are_evaluated(
    site: Site, judge: PerformanceEvaluator, seen_until: date | None, expected: list[date]
):
    trained_until(site, US, 1, day=seen_until)

    assert [one.batch.scored_week for one in judge.evaluate_batches(US, TODAY)] == expected


def test_a_week_that_was_scored_with_hindsight_is_not_evaluated(site: Site, judge: PerformanceEvaluator):
    hindsight = "UPDATE scoring_batches SET scored_from = 'corrected extract' WHERE scored_week = :week"
    site.rows(site.churn, f"{hindsight} RETURNING batch_id", week=WEEKS[0])

    assert [one.batch.scored_week for one in judge.evaluate_batches(US, TODAY)] == WEEKS[1:]


def test_a_fleet_looks_once_at_what_waits_and_judges_the_same(site: Site, judge: PerformanceEvaluator, live: Callable):
    unregistered = Variant("nowhere")
    fleet = judge.for_fleet([US, unregistered], TODAY)
    assert [one.as_of <= Horizon().newest_mature(TODAY) for one in fleet.listed[US].unevaluated] == [True, True]
    assert judge.for_fleet([US], date(2026, 1, 1)).listed[US].unevaluated == []

    judged = fleet.evaluate_batches(US, TODAY)

    assert [one.batch.scored_week for one in judged] == WEEKS
    assert [value for *_, value in live("live_roc_auc")] == [one.measures["roc_auc"] for one in judged]
    assert fleet.evaluate_batches(unregistered, TODAY) == []
    assert judge.for_fleet([US], TODAY).listed[US] == PendingEvaluation([], [], None)
    first = site.rows(site.churn, "SELECT * FROM evaluated_batches ORDER BY batch_id")
    assert [one.batch for one in fleet.evaluate_batches(US, TODAY)] == [one.batch for one in judged], "as it knew them"
    assert site.rows(site.churn, "SELECT * FROM evaluated_batches ORDER BY batch_id") == first


def test_a_batch_that_was_judged_meanwhile_keeps_its_own_segments(site: Site, judge: PerformanceEvaluator):
    batch, other = judge.results.unevaluated([US])
    poker = EvaluatedSegment("player_reg_product", "POKER", 7, 3, "insufficient")
    first = EvaluatedBatch(batch, TODAY, 3, 7, 7, 7, 0, 3, "insufficient", 0.7, {}, segments=[poker])
    second = replace(first, segments=[replace(poker, level="CASINO")])

    judge.results.record([first])
    judge.results.record([second, replace(second, batch=other)])

    found = site.rows(site.churn, "SELECT batch_id, level FROM evaluated_segments ORDER BY batch_id")
    assert found == [(batch.batch_id, "POKER"), (other.batch_id, "CASINO")]


def test_a_level_that_no_database_takes_as_it_is_fails_nobody(site: Site, judge: PerformanceEvaluator):
    batch = judge.results.unevaluated([US])[0]
    levels = ["a\0b", "é" * 5_000, 'say "no"']
    segments = [EvaluatedSegment("brand_id", name, 7, 3, "insufficient") for name in levels]

    judge.results.record([EvaluatedBatch(batch, TODAY, 3, 7, 7, 7, 0, 3, "insufficient", 0.7, {}, segments=segments)])

    found = {level for (level,) in site.rows(site.churn, "SELECT level FROM evaluated_segments")}
    assert found == {"a\ufffdb", "é" * 200, 'say "no"'}


@pytest.mark.parametrize(("limit", "passed"), [("0.5500", True), ("0.9700", False)])
def test_dagster_shows_segments_and_warns_of_those_below_the_limit(
    judge: PerformanceEvaluator, deployment: Deployment, instance: dg.DagsterInstance, limit: str, passed: bool
):
    MlflowClient(deployment.tracking_uri).set_model_version_tag(US.registered_model, "1", AUC_LIMIT, limit)
    sync_partitions(instance, [US])

    result = defs.resolve_job_def("evaluation_job").execute_in_process(
        instance=instance, tags={RANGE_START_TAG: US.key, RANGE_END_TAG: US.key}
    )

    assert result.success
    checks = {one.check_name: one for one in result.get_asset_check_evaluations() if one.partition == US.key}
    assert set(checks) == {"auc_is_not_below_its_limit", "no_segment_is_below_its_limit"}
    segments = checks["no_segment_is_below_its_limit"]
    assert (segments.passed, segments.severity) == (passed, dg.AssetCheckSeverity.WARN)
    assert segments.description == f"{US.key}: {'passed' if passed else 'failed'}"
    assert segments.metadata["variant"].value == US.key
    below = segments.metadata["below"].value
    assert (f"{WEEKS[1]}: player_reg_product BETTING" in below) == (not passed)
    table = segments.metadata["segments"].value
    assert "| player_reg_product | BETTING |" in table
    assert f"{WEEKS[1]}, limit {float(limit):.3f}; " in table
    (shown,) = (event.metadata for event in result.asset_materializations_for_node("evaluate_batches"))
    assert "| accounts | mean score | share that churned |" in shown["reliability"].value
    size = len(json.dumps({name: str(value.value) for name, value in shown.items()}))
    assert size < 8_000, "thousands of these are kept"
