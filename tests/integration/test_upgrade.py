"""At stake: whoever runs a release must be able to install the next one over it. What was published, who is champion,
what is known of players and what Dagster shows must all be there afterwards, and the next week must be scored.
"""

import io
import re
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
import sqlalchemy as sa
import xgboost as xgb
from polars.testing import assert_frame_equal

from churn.cli.main import main as churn
from churn.database.connection import create_engine
from churn.database.erasure import drop_weeks
from churn.database.predictions import read_current
from churn.deployment.services import open_deployment
from churn.deployment.settings import load_settings
from churn.variants import Variant
from churn.workflows.score import score_fleet
from experiment_tracking.log_model import main as log_model
from experiment_tracking.promote_model import main as promote_model
from experiment_tracking.setup import main as set_up
from orchestration.definitions import defs
from orchestration.instance import dagster_environment
from orchestration.partitions import RANGE_END_TAG, RANGE_START_TAG, sync_partitions
from tests.support.batches import week_request
from tests.support.release import DATA, VARIANTS, WEEK, published, restore
from tests.support.site import Run

RELEASES = sorted(DATA.glob("release_*.tar.gz"))
KEYS = [variant.key for variant in VARIANTS]
EVALUATED = """
INSERT INTO evaluated_batches (
    batch_id, evaluated_at, labels_as_of, horizon_months, n_accounts, n_at_risk, n_matured, n_missing, n_churned, status
)
SELECT batch_id, clock_timestamp(), current_date, 3, n_rows_scored, 9, 0, 9, 0, 'insufficient' FROM scoring_batches
"""
SEEN = """
SELECT b.variant, (b.published_at AT TIME ZONE 'UTC')::date - e.evidence_after AS days_before
FROM evaluated_batches AS e JOIN scoring_batches AS b USING (batch_id)
"""


def lost_rows(home: Path, url: sa.URL) -> dict[str, int]:
    """Return by table how many rows of an archive's dump a database does not have, in all columns of then."""
    (dump,) = (home / "dumps").glob(f"*_{url.database}.sql")
    blocks = re.findall(r"^COPY public\.(\w+) \((.*?)\) FROM stdin;\n(.*?)^\\\.$", dump.read_text(), re.M | re.S)
    lost = {}
    with create_engine(url).connect() as connection:
        for table, columns, rows in blocks:
            read = io.StringIO()
            cursor: Any = connection.connection.cursor()
            cursor.copy_expert(f"COPY (SELECT {columns} FROM {table}) TO STDOUT", read)  # noqa: S608 of our archive
            then = Counter(rows.replace("@CHURN_HOME@", str(home)).splitlines())
            lost[table] = (then - Counter(read.getvalue().splitlines())).total()
    assert sum(map(bool, (rows for *_, rows in blocks))) > 3
    return {table: n for table, n in lost.items() if n and table != "alembic_version"}


@pytest.mark.parametrize("archive", RELEASES, ids=lambda path: path.name.removesuffix(".tar.gz"))
def test_a_data_directory_of_a_release_is_upgraded_and_goes_on(
    archive: Path, monkeypatch: pytest.MonkeyPatch, homes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = homes / archive.name.removesuffix(".tar.gz")
    expected = restore(archive, home, EVALUATED)
    monkeypatch.setenv("CHURN_HOME", str(home))
    for file in home.glob("cache/models/*/model.ubj"):
        file.write_bytes(b"")  # as a power cut leaves it

    set_up([])

    assert len(re.findall(r"schema: (?:already at|migrated from \S+ to)", capsys.readouterr().out)) == 2
    with open_deployment(load_settings()) as deployment:
        for url in (deployment.database, deployment.mlflow_database, deployment.dagster_database):
            assert url is not None
            assert lost_rows(home, url) == {}
        assert published(deployment) == expected
        assert len(expected) > 100
        # An old evaluation is evidence of batches from the day on which the version first scored.
        assert dict(read_current(deployment.database, SEEN).rows()) == dict.fromkeys(KEYS, 1)
        registry = deployment.registry(read_only=True)
        champions = {variant.key: held["champion"] for variant, held in registry.aliases().items()}
        assert champions == dict.fromkeys(KEYS, 1)
        for variant in VARIANTS:
            (part,) = (home / "local" / variant.prefix / "history").rglob("*.parquet")
            stored = pl.read_parquet(part).drop("known_at")  # which is computed when facts are read
            read = deployment.history().read(variant).select(stored.columns)
            assert_frame_equal(read, stored, check_row_order=False, check_dtypes=False)

        asked = week_request(WEEK + timedelta(weeks=1), as_of=WEEK + timedelta(days=6))
        scored = dict(score_fleet(deployment.scorer(), KEYS, asked, lambda outcome, _: outcome.record.n_rows_scored))

        per_variant = {key: sum(row[0] == key for row in expected) for key in KEYS}
        assert scored == per_variant
        for name, value in dagster_environment(deployment).items():
            monkeypatch.setenv(name, value)
        with dg.DagsterInstance.get() as instance:
            before = list(instance.get_dynamic_partitions("variants"))
            assert sync_partitions(instance, VARIANTS) == before
            assert sorted(before) == sorted(KEYS)
            assert instance.get_materialized_partitions(dg.AssetKey("store_predictions")) == set(KEYS)


@pytest.mark.slow
def test_all_jobs_and_commands_go_on_in_a_data_directory_of_0_9_0(
    monkeypatch: pytest.MonkeyPatch, homes: Path, run_main: Run
) -> None:
    home = homes / "all-of-0-9-0"
    expected = restore(DATA / "release_0_9_0.tar.gz", home)
    monkeypatch.setenv("CHURN_HOME", str(home))
    account = str(expected[0][1])
    set_up([])
    model = xgb.Booster(model_file=str(home / "local/models/churn/xgb_churn_model_2.bin"))
    model.set_attr(copy="2")
    (home / "local/models/churn/xgb_churn_model_2.bin").write_bytes(bytes(model.save_raw("ubj")))

    with open_deployment(load_settings()) as deployment:
        for name, value in dagster_environment(deployment).items():
            monkeypatch.setenv(name, value)
        with dg.DagsterInstance.get() as instance:
            sync_partitions(instance, VARIANTS)
            tags = {RANGE_START_TAG: KEYS[0], RANGE_END_TAG: KEYS[-1]}
            for job in ("churn_prediction_job", "evaluation_job", "monitoring_job", "maintenance_job"):
                done = defs.resolve_job_def(job).execute_in_process(instance=instance, tags=tags)
                assert done.success, job
        registry = deployment.registry(read_only=True)

        assert run_main(log_model, "--variant", "base", "--alias", "challenger").status == 0
        assert run_main(promote_model, "promote", "--variant", "base", "--force", "--reason", "a drill").status == 0
        assert registry.aliases_of(Variant())["champion"] == 2
        assert run_main(promote_model, "rollback", "--variant", "base", "--reason", "a drill").status == 0
        assert registry.aliases_of(Variant())["champion"] == 1
        assert account in run_main(churn, "explain", "--account", account, "--variant", "base", "--week", str(WEEK)).out
        assert run_main(churn, "report", "--week", str(WEEK), "--out", str(home / "report.html")).status == 0
        assert run_main(churn, "erase", "--account", account).status == 0
        assert run_main(churn, "doctor").status == 0
        left = published(deployment)
        assert [row for row in expected if row not in left] == [expected[0]]
        assert drop_weeks(deployment.database_as("setup"), WEEK + timedelta(weeks=1)) == [WEEK]
