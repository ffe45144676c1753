"""The report of a large fleet: a database filled by SQL, and the seconds that building and opening the page take."""

import json
import time
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import sqlalchemy as sa

from churn.data.features import derive, pack, plan_encoding
from churn.database.connection import OWNER, create_engine
from churn.monitoring.profiles import reference_profile
from churn.monitoring.summary import ScoreSummary
from churn.report import Report, write_report
from tests.support import ROOT
from tests.support.services import NAMES_KEY, simulated_rows

if TYPE_CHECKING:
    from playwright.sync_api import Page

_LOOKS = 20
_ROWS = 1_000

_SEED = """
CREATE TEMP TABLE looks (look integer, profile jsonb, profile_counts bigint[], score_counts bigint[], drift jsonb);
INSERT INTO looks SELECT * FROM json_populate_recordset(null::looks, :looks);

CREATE TEMP TABLE fleet AS
SELECT i, format('company-c%s', to_char(i, 'FM0000')) AS variant, i % :n_looks AS look
FROM generate_series(0, :n - 1) AS i;

INSERT INTO model_references (registered_model, model_version, profile)
SELECT 'churn-prediction-model-' || variant, 1, profile FROM fleet JOIN looks USING (look);

INSERT INTO scoring_batches (
    variant, company, scored_week, as_of, registered_model, model_version, role, model_sha256, mlflow_run_id,
    dagster_run_id, code_version, source, source_uri, source_version, source_sha256, source_modified_at, source_variant,
    account_ids, n_rows_read, n_rows_quarantined, n_accounts_withheld, n_rows_scored, unknown_levels, started_at,
    published_at, is_current, importance, drift, mean_probability, score_counts, profile_counts, estimated_auc)
SELECT variant, substr(variant, 9), week, week + 6, 'churn-prediction-model-' || variant, 1, 'champion',
       encode(sha256(variant::bytea), 'hex'), md5(variant), md5(week::text), md5('code'), 's3',
       format('s3://bench/%s/data/churn/activity.parquet', variant), md5(variant || week),
       encode(sha256((variant || week)::bytea), 'hex'), week::timestamptz, variant, 'input', 1000, 0, 0,
       900 + (random() * 200)::integer, '{}', week::timestamptz, week::timestamptz, true,
       jsonb_build_object('total_handle', random(), 'total_deposit', random(), 'brand_id', random()),
       drift, 0.3 + random() / 10, score_counts, profile_counts, 0.7 + random() / 10
FROM fleet JOIN looks USING (look)
CROSS JOIN (SELECT CAST(:week AS date) - 7 * place AS week FROM generate_series(0, :weeks - 1) AS place) AS weeks
WHERE (i, week) <> (0, CAST(:week AS date));

INSERT INTO scoring_attempts (variant, scored_week, outcome, batch_id, started_at, ended_at)
SELECT variant, scored_week, 'published', batch_id, started_at, published_at FROM scoring_batches;
INSERT INTO scoring_attempts (variant, scored_week, outcome, error_type, error, started_at, ended_at)
VALUES ('company-c0000', :week, 'failed', 'InputError', 'activity.parquet is no Parquet file', now(), now());

INSERT INTO evaluated_batches (
    evidence_after,
    batch_id, evaluated_at, labels_as_of, horizon_months, n_accounts, n_at_risk, n_matured, n_missing, n_churned,
    status, auc_limit, roc_auc, roc_auc_low, roc_auc_high, brier_score, calibration_error, lift_at_10, reliability)
SELECT date '2000-01-01',
       batch_id, now(), :week, 3, 1000, 900, 900, 0, 300, 'ok', 0.65, auc, auc - 0.04, auc + 0.04, 0.2, 0.03, 2.1,
       jsonb_build_object('n', array_fill(90, ARRAY[10]),
                          'mean_score', ARRAY(SELECT random() FROM generate_series(1, 10)),
                          'churned_share', ARRAY(SELECT random() FROM generate_series(1, 10)))
FROM (SELECT batch_id, 0.7 + random() / 10 AS auc FROM scoring_batches
      WHERE scored_week <= CAST(:week AS date) - 7 * 13) AS matured;

INSERT INTO evaluated_segments (
    batch_id, segment, level, n_matured, n_churned, status, roc_auc, roc_auc_low, roc_auc_high, calibration_error,
    mean_score, p_below_limit)
SELECT batch_id, segment, 'level ' || level, 100, 40, 'ok', auc, auc - 0.1, auc + 0.1, random() / 10, random(), random()
FROM evaluated_batches, (VALUES ('brand_id', 29), ('player_reg_product', 5), ('ben_login_id', 7)) AS s (segment, n)
CROSS JOIN LATERAL (SELECT level, 0.6 + random() / 5 AS auc FROM generate_series(1, n) AS level) AS levels;

INSERT INTO drift_flags (batch_id, feature, is_confirmed)
SELECT batch_id, 'brand_id', scored_week = CAST(:week AS date) FROM scoring_batches
WHERE scored_week > CAST(:week AS date) - 14 AND variant < 'company-c0020';

INSERT INTO model_events (
    occurred_at, variant, registered_model, action, champion_version, challenger_version, reason, actor)
SELECT now() - interval '60 days', variant, variant, 'observed', 1, 2, 'the aliases in MLflow', 'bench' FROM fleet;

INSERT INTO incidents (kind, severity, title, members, opened_at, updated_at)
SELECT 'input_drifted', 'warning', 'Input drifted: ' || count(*) || ' variants',
       jsonb_object_agg(variant, 'brand_id drifted'), now(), now() FROM fleet WHERE i < 20;
"""


def fill(url: sa.URL, n_variants: int, n_weeks: int, week: date) -> None:
    """Give a predictions database that is set up the rows of a fleet, without any predictions."""
    values = {"looks": json.dumps(_looks()), "n_looks": _LOOKS, "n": n_variants, "weeks": n_weeks, "week": week}
    with create_engine(url, role=OWNER).begin() as connection:
        connection.execute(sa.text("SELECT setseed(0.5)"))
        for statement in _SEED.split(";\n"):
            if statement.strip():
                wanted = {name: value for name, value in values.items() if f":{name}" in statement}
                connection.execute(sa.text(statement), wanted)


def _looks() -> list[dict[str, object]]:
    """Make references and batches with real bins: different enough that they do not compress into one."""
    names = json.loads((ROOT / NAMES_KEY).read_bytes())
    made = []
    for look in range(_LOOKS):
        frame = derive(simulated_rows(_ROWS, seed=look), date.max)
        encoding = plan_encoding(names, frame.columns)
        packed = pack(frame, encoding)
        scores = np.random.default_rng(look).beta(2, 4, packed.n_rows).astype(np.float32)
        reference = reference_profile(packed, encoding, scores)
        drawn = np.random.default_rng(look + _LOOKS).beta(2, 4, packed.n_rows).astype(np.float32)
        profile = reference.count(packed, drawn)
        made.append(
            {
                "look": look,
                "profile": json.loads(reference.to_json()),
                "profile_counts": profile.counts.tolist(),
                "score_counts": np.histogram(scores, bins=20, range=(0, 1))[0].tolist(),
                "drift": ScoreSummary(reference=reference, profile=profile).drift(),
            }
        )
    return made


def timed_report(url: sa.URL, out: Path) -> tuple[Report, float]:
    """Write the report; returns it and the seconds it took."""
    started = time.perf_counter()
    report = write_report(url, out, week=None, now=datetime.now(UTC), mlflow_ui="http://127.0.0.1:5000")
    return report, time.perf_counter() - started


def timed_in_chromium(page: "Page", path: Path) -> dict[str, float]:
    """Open the file as a person does; returns seconds."""
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready]")
    paint, ready = page.evaluate(
        "[performance.getEntriesByName('first-contentful-paint')[0].startTime, performance.mark('now').startTime]"
    )
    started = time.perf_counter()
    page.get_by_label("Search by name").fill("c0777")
    page.get_by_role("link", name="company-c0777").wait_for()
    found = time.perf_counter()
    page.get_by_role("link", name="company-c0777").click()
    page.get_by_role("heading", name="company-c0777").wait_for()
    opened = time.perf_counter()
    return {
        "seconds_first_paint": paint / 1000,
        "seconds_usable": ready / 1000,
        "seconds_search": found - started,
        "seconds_variant_page": opened - found,
    }
