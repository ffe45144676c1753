"""At stake: while a new release is rolled out, and when its code is rolled back, code of one release works on the
schema of the next one. So a migration adds first and takes away a release later, code asks for what it knows by name,
and code that a schema no longer serves says so instead of writing to it.
"""

import io
from datetime import date
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from churn.cli.main import main
from churn.database.connection import OWNER, WRITER, create_engine
from churn.database.schema import ensure_database, migrate_predictions, require_predictions_schema
from churn.deployment.services import Deployment
from churn.errors import StoreError
from churn.variants import Variant
from experiment_tracking.promote_model import main as promote_model
from orchestration.definitions import defs
from orchestration.partitions import RANGE_END_TAG, RANGE_START_TAG, sync_partitions
from orchestration.resources import Services
from orchestration.sensors import incident_sensor
from tests.support.batches import week_request
from tests.support.delivered import require_delivered
from tests.support.inputs import monday, register_bundled, register_second, trained_until
from tests.support.next_schema import EXPANDED, contractions, expand, migrate_to, read_schema
from tests.support.simulated import simulate_activity
from tests.support.site import Run, Site, n_rows_naming

US, EU = Variant("us"), Variant("eu")
EVALUATED_WEEK, DROPPED_WEEK = date(2026, 5, 25), date(2026, 3, 2)
CONTRACTED = {
    "a column that is gone": "ALTER TABLE incidents DROP COLUMN severity CASCADE",
    "a column of a view that is gone": "DROP VIEW churn_predictions_latest",
    "a name that changed": "ALTER TABLE model_events RENAME COLUMN actor TO who",
    "a type that changed": "ALTER TABLE watched_variants ALTER COLUMN since TYPE text",
    "a column that must be given": "ALTER TABLE scoring_attempts ADD COLUMN next text NOT NULL",
    "a column that newly must be given": "ALTER TABLE scoring_attempts ALTER COLUMN error SET NOT NULL",
    "a value that is gone": "ALTER TABLE scoring_batches DROP CONSTRAINT scoring_batches_source_check, "
    "ADD CONSTRAINT scoring_batches_source_check CHECK (source = ANY (ARRAY['s3'::text]))",
    "a rule that is new": "ALTER TABLE incidents ADD CHECK (title <> '')",
    "a key that is new": "CREATE UNIQUE INDEX ON alerts (incident_id, event)",
    "a function that is gone": "DROP FUNCTION retain_weeks(date)",
    "a function with another result": "DROP FUNCTION next_delivery(text); "
    "CREATE FUNCTION next_delivery(of_receiver text) RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'",
    "a right that is gone": "REVOKE UPDATE (history_status) ON scoring_batches FROM churn_writer",
    "a function that may not be called": "REVOKE EXECUTE ON FUNCTION open_week(date) FROM churn_writer",
}
OF_NEWER_CODE = """
INSERT INTO incidents (kind, subject, severity, title, members, opened_at, updated_at)
VALUES ('next', '', 'next', 'Next: 1 variant', '{"geography-us": "a sentence"}', now(), now());
INSERT INTO alerts (incident_id, event, title, body) SELECT incident_id, 'next', 'Next', 'A body' FROM incidents;
INSERT INTO scoring_attempts (variant, scored_week, role, outcome, started_at)
VALUES ('geography-eu', '2026-03-02', 'next', 'next', now());
INSERT INTO model_events (
    variant, registered_model, action, champion_version, challenger_version, reason, actor, state
)
SELECT variant, registered_model, 'next', champion_version, challenger_version, 'a reason', 'somebody', 'next'
FROM model_events ORDER BY event_id DESC LIMIT 1;
INSERT INTO watched_variants (variant, since) VALUES ('company-next', now());
UPDATE scoring_batches SET scored_from = 'next', history_status = 'next' WHERE scored_week = '2026-03-02';
"""


def test_migrations_only_add_until_the_schema_says_otherwise(site: Site) -> None:
    url = site.login.set(database=site.dagster)
    ensure_database(url)
    oldest, head = site.rows(site.churn, "SELECT oldest_code(), version_num FROM alembic_version")[0]
    migrate_to(url, oldest)
    with create_engine(url, role=OWNER).connect() as connection:
        before = read_schema(connection)
    migrate_predictions(url)

    with create_engine(url, role=OWNER).connect() as connection:
        after = read_schema(connection)
    assert contractions(before, after) == [], f"migrations after {oldest} need code of {head}"


@pytest.mark.slow
def test_what_a_migration_adds_is_told_from_what_it_takes_away(site: Site) -> None:
    with create_engine(site.login.set(database=site.churn), role=OWNER).connect() as connection:
        before = read_schema(connection)
        for name, statement in {"": EXPANDED, **CONTRACTED}.items():
            nested = connection.begin_nested()
            connection.exec_driver_sql(statement.replace("%", "%%"))
            assert bool(contractions(before, read_schema(connection))) == bool(name), name
            nested.rollback()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("SET version_num = '9999'", None),
        (
            "SET version_num = '9999'",
            r"serves code of schema 9999 or newer, and this code is of \d{4}; install the release",
        ),
        ("SET version_num = '0007'", r"is at schema 0007 and this code needs \d{4}; run experiment_tracking/setup.py"),
    ],
    ids=["newer and serving", "newer and contracted", "older"],
)
def test_code_works_on_a_newer_schema_only_if_that_serves_it(site: Site, change: str, told: str | None) -> None:
    url = site.login.set(database=site.churn)
    site.rows(site.churn, f"UPDATE alembic_version {change}")
    if told and "9999" in told:
        site.rows(site.churn, "CREATE OR REPLACE FUNCTION oldest_code() RETURNS text LANGUAGE sql AS 'SELECT ''9999'''")

    if told is None:
        require_predictions_schema(url, role=WRITER)
        assert migrate_predictions(url) == ("9999", "9999")
        return
    with pytest.raises(StoreError, match=told) as refused:
        require_predictions_schema(url, role=WRITER)
    assert "\n" not in str(refused.value)
    if "9999" in told:
        with pytest.raises(StoreError, match=told):
            migrate_predictions(url)
        assert site.rows(site.churn, "SELECT version_num FROM alembic_version") == [("9999",)]


@pytest.fixture
def fleet(site: Site, log_model: Run, instance: dg.DagsterInstance) -> None:
    """Two registered variants with activity, one with a second version that waits to be its challenger."""
    body = io.BytesIO()
    simulate_activity(n_accounts=1500, first_month=date(2025, 2, 1), n_months=21, seed=3).write_parquet(body)
    register_bundled(site, log_model, EU.key, US.key)
    register_second(site, log_model, US)
    trained_until(site, US, 1, 2)
    for variant in (EU, US):
        site.put(f"{variant.prefix}data/churn/activity.parquet", body.getvalue())
    sync_partitions(instance, [EU, US])


def run(instance: dg.DagsterInstance, job: str, **config: object) -> dict[str, bool]:
    """Run a job over both variants; returns whether each of its checks passed."""
    done = defs.resolve_job_def(job).execute_in_process(
        instance=instance, tags={RANGE_START_TAG: EU.key, RANGE_END_TAG: US.key}, run_config=config
    )
    assert done.success
    return {one.check_name: one.passed for one in done.get_asset_check_evaluations()}


def look(instance: dg.DagsterInstance) -> str:
    with dg.build_sensor_context(instance=instance, resources={"services": Services()}) as context:
        return str(incident_sensor(context).skip_message)  # type: ignore[union-attr]


@pytest.mark.slow
def test_code_of_this_release_does_all_its_work_on_the_schema_of_the_next(  # noqa: PLR0917 fixtures
    site: Site,
    fleet: None,
    set_up: Run,
    run_main: Run,
    deployment: Deployment,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHURN_DELIVERY_PREFIX", f"s3://{site.bucket}/delivered/")
    scorer = deployment.scorer()  # opened before the migration, as by a process that is at work meanwhile
    for week in (DROPPED_WEEK, EVALUATED_WEEK):
        scorer.score_variant(week_request(week).of(US))
    before = site.current()
    deployment.promoter().challenge(US, 2, "a test")

    expand(site.login.set(database=site.churn))
    site.rows(site.churn, OF_NEWER_CODE)

    assert "predictions schema: already at next" in set_up("--variant", US.key).out
    scorer.score_variant(week_request(EVALUATED_WEEK).of(US))
    checks = run(instance, "churn_prediction_job")
    assert checks["rows_were_scored"]
    assert site.current("scored_week = current_date - extract(isodow FROM current_date)::integer + 1").height > 2000
    known = site.current(f"scored_week = '{EVALUATED_WEEK}'").select(before.columns)
    of_run = ("scored_at", "batch_id")
    assert known.drop(of_run).equals(before.filter(pl.col("scored_week") == EVALUATED_WEEK).drop(of_run))

    run(instance, "evaluation_job")
    evaluated = (
        "SELECT scored_week, role FROM evaluated_batches JOIN scoring_batches USING (batch_id) WHERE status = 'ok' "
        "ORDER BY scored_week, role"
    )
    expected = [(DROPPED_WEEK, "champion"), (EVALUATED_WEEK, "challenger"), (EVALUATED_WEEK, "champion")]
    assert site.rows(site.churn, evaluated) == expected
    segments = "SELECT count(*) > 0, min(next_facts ->> 'n') FROM evaluated_segments"
    assert site.rows(site.churn, segments) == [(True, "1")]
    run(instance, "monitoring_job")
    assert "next" not in look(instance)
    assert site.rows(site.churn, "SELECT resolved_at FROM incidents WHERE kind = 'next'") == [(None,)]

    deployment.promoter().challenge(US, 2, "again")  # the evaluation withdrew one that gains nothing
    promoted = run_main(promote_model, "promote", "--variant", US.key, "--force", "--reason", "a drill")
    assert (promoted.status, promoted.err) == (0, "")
    assert run_main(promote_model, "history", "--variant", US.key).out.count(": next (next): ") == 1
    assert run_main(promote_model, "rollback", "--variant", US.key, "--to", "1", "--reason", "a drill").status == 0
    assert deployment.registry(read_only=True).aliases_of(US)["champion"] == 1

    account = str(site.rows(site.churn, "SELECT min(account_id) FROM churn_predictions_current")[0][0])
    assert "log-odds" in run_main(main, "explain", "--account", account, "--variant", US.key).out
    assert run_main(main, "deliver", "--all-weeks").status == 0
    require_delivered(site.bucket, "delivered/", site.current().select(before.columns))
    erased = run_main(main, "erase", "--account", account)
    assert erased.status == 0, erased
    assert n_rows_naming(site, site.churn, account) == {}
    run(instance, "maintenance_job")
    dropped = run_main(main, "retain", "--weeks", str((monday() - EVALUATED_WEEK).days // 7 + 1))
    assert f"dropped 1 week: {DROPPED_WEEK}" in dropped.out, dropped
    report = run_main(main, "report", "--out", str(tmp_path / "report.html"))
    assert (report.status, report.err) == (0, "")
    for command in (["alerts"], ["reader", "add", "acme_next", "--variant", US.key], ["doctor"]):
        assert run_main(main, *command).status == 0, command
