"""At stake: whoever runs a release must be able to install the next one over it. What was published, who is champion,
what is known of players and what Dagster shows must all be there afterwards, and the next week must be scored.
"""

import re
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from churn.database.predictions import read_current
from churn.deployment.services import open_deployment
from churn.deployment.settings import load_settings
from churn.workflows.score import score_fleet
from experiment_tracking.setup import main as set_up
from orchestration.instance import dagster_environment
from orchestration.partitions import sync_partitions
from tests.support.batches import week_request
from tests.support.release import DATA, VARIANTS, WEEK, published, restore

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


@pytest.mark.parametrize("archive", RELEASES, ids=lambda path: path.name.removesuffix(".tar.gz"))
def test_a_data_directory_of_a_release_is_upgraded_and_goes_on(
    archive: Path, monkeypatch: pytest.MonkeyPatch, homes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = homes / archive.name.removesuffix(".tar.gz")
    expected = restore(archive, home, EVALUATED)
    monkeypatch.setenv("CHURN_HOME", str(home))

    set_up([])

    assert len(re.findall(r"schema: (?:already at|migrated from \S+ to)", capsys.readouterr().out)) == 2
    with open_deployment(load_settings()) as deployment:
        assert published(deployment) == expected
        assert len(expected) > 100
        # An old evaluation is evidence of batches from the day on which the version first scored.
        assert dict(read_current(deployment.database, SEEN).rows()) == dict.fromkeys(KEYS, 1)
        registry = deployment.registry(read_only=True)
        champions = {variant.key: held["champion"] for variant, held in registry.aliases().items()}
        assert champions == dict.fromkeys(KEYS, 1)
        assert {variant.key: deployment.history().read(variant).is_empty() for variant in VARIANTS} == dict.fromkeys(
            KEYS, False
        )

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
