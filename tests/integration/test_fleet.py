"""At stake: thousands of variants in one run. A poisoned one must not hide nor hurt another, and none may be scored
twice when the run is taken up again, whether it failed or its process was killed.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path

import boto3
import dagster as dg
import psutil
import pytest
from dagster import AssetKey
from dagster._core.storage.partition_status_cache import AssetPartitionStatus
from mlflow import MlflowClient

from churn.variants import Variant
from orchestration.assets.scoring import SPECS
from orchestration.partitions import sync_partitions, variants_partitions
from tests.support import ROOT
from tests.support.children import bound
from tests.support.simulated import simulate_activity
from tests.support.site import Run, Site, bundled, put_model_files, wait_until

KEYS = [f"company-v{i:02}" for i in range(60)]
WEEK = "2026-11-16"
SCRIPT = ROOT / "tests" / "support" / "run_job.py"


@pytest.fixture
def fleet(
    site: Site, log_model: Run, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> bytes:
    """Sixty variants, registered, with input in S3; no local copy may stand in. Returns what each holds."""
    monkeypatch.setenv("CHURN_LOCAL_FALLBACK", "never")
    monkeypatch.setenv("DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS", "1")
    activity = simulate_activity(n_accounts=40, first_month=date(2025, 2, 1), n_months=21, seed=1)
    path = tmp_path / "activity.parquet"
    activity.write_parquet(path)
    whole = path.read_bytes()
    for key in KEYS:
        prefix = Variant.from_key(key).prefix
        put_model_files(site, prefix, sample=bundled("X_test_sample_2.json"))
        site.put(f"{prefix}data/churn/activity.parquet", whole)
    (tmp_path / "fleet").write_text("\n".join(KEYS))
    said = log_model("--all", str(tmp_path / "fleet"))
    assert said.status == 0, said
    sync_partitions(instance, [Variant.from_key(key) for key in KEYS])
    return whole


def start(*resumed: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(SCRIPT), KEYS[0], KEYS[-1], WEEK, *resumed]
    return subprocess.Popen(bound(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def newest_run(instance: dg.DagsterInstance) -> dg.DagsterRun:
    return instance.get_runs(limit=1)[0]


def attempts(site: Site, run_id: str) -> dict[str, str]:
    rows = site.rows(
        site.churn, "SELECT variant, outcome FROM scoring_attempts WHERE dagster_run_id = :run", run=run_id
    )
    assert len(rows) == len({variant for variant, _ in rows})
    return dict(rows)


def published(site: Site) -> dict[str, int]:
    query = "SELECT variant, count(*) FROM scoring_batches WHERE is_current GROUP BY variant"
    return dict(site.rows(site.churn, query))


def poison(site: Site, whole: bytes) -> Iterator[str]:
    """Spoil seven variants, each in its own way."""
    spoiled = {
        KEYS[3]: whole[: len(whole) // 2],
        KEYS[11]: b"",
        KEYS[20]: b'{"neither": 1}\n{"neither": 2}\n',
        KEYS[29]: whole.replace(b"PAR1", b"RAP1"),
        KEYS[38]: b"account_id,activity_month\n1,soon\n2,never\n",
    }
    for key, body in spoiled.items():
        site.put(f"{Variant.from_key(key).prefix}data/churn/activity.parquet", body)
        yield key
    for name in ("activity.parquet", "X_test_sample_2.json"):
        key = f"{Variant.from_key(KEYS[47]).prefix}data/churn/{name}"
        boto3.client("s3").delete_object(Bucket=site.bucket, Key=key)
    yield KEYS[47]
    registry(site).delete_registered_model_alias(Variant.from_key(KEYS[59]).registered_model, "champion")
    yield KEYS[59]


def registry(site: Site) -> MlflowClient:
    return MlflowClient(site.login.set(database=site.mlflow).render_as_string(hide_password=False))


@pytest.mark.slow
def test_seven_poisoned_of_sixty_are_shown_and_only_they_are_taken_up_again(
    site: Site, instance: dg.DagsterInstance, fleet: bytes
) -> None:
    poisoned = set(poison(site, fleet))

    assert start().wait(240) == 1

    run = newest_run(instance)
    assert set(published(site)) == set(KEYS) - poisoned
    assert attempts(site, run.run_id) == {key: "failed" if key in poisoned else "published" for key in KEYS}
    errors = site.rows(site.churn, "SELECT error FROM scoring_attempts WHERE outcome = 'failed'")
    assert len(errors) == 7
    assert all(error for (error,) in errors)
    for spec in SPECS:
        assert states(instance, spec.key) == {
            key: AssetPartitionStatus.FAILED if key in poisoned else AssetPartitionStatus.MATERIALIZED for key in KEYS
        }

    for key in poisoned:
        prefix = Variant.from_key(key).prefix
        site.put(f"{prefix}data/churn/activity.parquet", fleet)
    registry(site).set_registered_model_alias(Variant.from_key(KEYS[59]).registered_model, "champion", "1")
    assert start(run.run_id).wait(240) == 0

    resumed = newest_run(instance)
    assert resumed.parent_run_id == run.run_id
    assert attempts(site, resumed.run_id) == dict.fromkeys(poisoned, "published")
    assert set(published(site)) == set(KEYS)
    assert set(states(instance, SPECS[-1].key).values()) == {AssetPartitionStatus.MATERIALIZED}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_killed_at_random_cost_the_run_no_variant(
    site: Site, instance: dg.DagsterInstance, fleet: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHURN_WORKERS", "2")
    chance, killed = random.Random(11), list[int]()  # noqa: S311 no secret
    process = start()
    while len(killed) < 3 and process.poll() is None:
        wait_until(lambda: sum(published(site).values()) > 15 * len(killed) or process.poll() is not None, 240)
        # The processes that work are children of the server that forks them.
        servers = psutil.Process(process.pid).children() if process.poll() is None else []
        if workers := [child.pid for server in servers for child in server.children()]:
            time.sleep(chance.random() / 5)
            with suppress(ProcessLookupError):
                os.kill(chance.choice(workers), signal.SIGKILL)
                killed.append(len(killed))
                print(f"killed a worker with {sum(published(site).values())} published")

    assert process.wait(240) == 0
    assert len(killed) == 3
    assert set(published(site)) == set(KEYS)
    assert set(published(site).values()) == {1}
    doubled = "SELECT count(*) FROM churn_predictions_current GROUP BY variant, account_id HAVING count(*) > 1"
    assert site.rows(site.churn, doubled) == []
    for spec in SPECS:
        assert set(states(instance, spec.key).values()) == {AssetPartitionStatus.MATERIALIZED}


def states(instance: dg.DagsterInstance, key: AssetKey) -> dict[str, AssetPartitionStatus | None]:
    """What the UI shows of each partition."""
    held = instance.get_status_by_partition(key, KEYS, variants_partitions)
    assert held is not None
    return dict(held)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_kills_at_random_and_every_variant_is_published_exactly_once(
    site: Site, instance: dg.DagsterInstance, fleet: bytes
) -> None:
    chance = random.Random(7)  # noqa: S311 no secret
    resumed: list[str] = []
    for _ in range(10):
        before = sum(published(site).values())
        process = start(*resumed)
        target = before + chance.randint(0, 5)
        deadline = time.monotonic() + 120
        while sum(published(site).values()) <= target and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(chance.random() / 10)
        process.send_signal(signal.SIGKILL)
        process.wait()
        run = newest_run(instance)
        if not run.is_finished:
            instance.report_run_failed(run)  # what the daemon's run monitoring does
        resumed = [run.run_id]
    assert sum(published(site).values()) > 0

    assert start(*resumed).wait(240) == 0

    assert published(site) == dict.fromkeys(KEYS, 1)
    batches = site.rows(site.churn, "SELECT variant, count(*) FROM scoring_batches GROUP BY variant")
    assert dict(batches) == dict.fromkeys(KEYS, 1)
    doubled = "SELECT count(*) FROM churn_predictions_current GROUP BY variant, account_id HAVING count(*) > 1"
    assert site.rows(site.churn, doubled) == []
    for spec in SPECS:  # also those of variants that were published by a run that was killed before it logged them
        assert set(states(instance, spec.key).values()) == {AssetPartitionStatus.MATERIALIZED}
    kind = dg.DagsterEventType.ASSET_CHECK_EVALUATION
    logs = [entry for run in instance.get_runs() for entry in instance.all_logs(run.run_id, kind)]
    assert {entry.get_dagster_event().asset_check_evaluation_data.partition for entry in logs} >= set(KEYS)
