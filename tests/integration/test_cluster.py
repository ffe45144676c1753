"""At stake: a fleet that is spread over machines meets more deaths than one that is not. Whatever is killed, a worker,
a node or who sent the variants there, nothing may be lost, doubled or torn; and no node may score otherwise than meant.

Two nodes of Ray, each with a raylet and workers of its own, on one machine.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest
import sqlalchemy as sa

import churn.workflows.ray_engine as cluster_module
from churn.database.connection import create_engine
from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import load_settings
from churn.errors import ClusterError, ClusterUnavailableError, InputError
from churn.variants import Variant
from churn.workflows.score import score_fleet
from orchestration.assets.scoring import SPECS, report_batch
from orchestration.partitions import sync_partitions
from tests.support import ROOT
from tests.support.batches import week_request
from tests.support.children import bound
from tests.support.on_nodes import Placed, die_after_publishing, place, unsendable
from tests.support.ray_nodes import Cluster, ray_cluster
from tests.support.services import parquet_bytes, simulated_rows
from tests.support.simulated import simulate_activity
from tests.support.site import (
    Site,
    configure,
    create_database,
    databases_of,
    open_instance,
    put_model_files,
    require_no_password,
    wait_until,
)

pytestmark = pytest.mark.slow  # Ray takes half a minute to start its nodes

AS_OF = date(2026, 11, 15)
FIRST_WEEK = date(2025, 1, 6)
LOCAL = 0
SMALL = [*(f"company-n{i}" for i in range(6)), "company-once", "company-zalways"]
LARGE, SPOILED = "company-large", "company-spoiled"
N_LARGE = 110_000
SCRIPT = ROOT / "tests" / "support" / "run_job.py"

_DIFFERING = """
WITH rows AS (
    SELECT b.scored_week AS week, b.variant, to_jsonb(p) - 'batch_id' - 'scored_week' AS row
    FROM churn_predictions AS p JOIN scoring_batches AS b ON b.batch_id = p.batch_id AND b.scored_week = p.scored_week
    WHERE b.is_current AND b.variant = ANY(:keys))
SELECT count(*) FILTER (WHERE week = :one) AS n, count(*) FILTER (WHERE week = :other) AS n_other,
       (SELECT count(*) FROM (SELECT variant, row FROM rows WHERE week = :one
                              EXCEPT ALL SELECT variant, row FROM rows WHERE week = :other) AS d) AS n_differing
FROM rows
"""


def monday(n: int) -> date:
    """Name a week of a test's own; all of them see the same activity."""
    return FIRST_WEEK + timedelta(weeks=n)


@dataclass(frozen=True)
class Fleet:
    """A deployment with a few variants, scored once by the local engine, and a cluster of two nodes, a core each."""

    site: Site
    cluster: Cluster
    environment: Mapping[str, str]

    def score(self, keys: list[str], week: date, run: str, then: Callable[..., Any] = place) -> dict[str, Any]:
        with open_deployment(load_settings()) as deployment:
            asked = week_request(week, as_of=AS_OF, dagster_run_id=run)
            return dict(
                score_fleet(deployment.scorer(), keys, asked, then, deployment.workers(len(keys), Deployment.scorer))
            )

    def require_same_as_local(self, keys: list[str], week: date) -> None:
        """Every account of these variants has one current row, and the local engine's to the bit."""
        found = self.site.rows(self.site.churn, _DIFFERING, keys=keys, one=monday(LOCAL), other=week)
        ((n, n_other, n_differing),) = found
        assert n > 0
        assert (n_other, n_differing) == (n, 0)

    def batches(self, week: date) -> dict[str, tuple[int, int]]:
        """Count each variant's batches, and the current ones among them."""
        query = (
            "SELECT variant, count(*), count(*) FILTER (WHERE is_current) FROM scoring_batches "
            "WHERE scored_week = :week GROUP BY variant"
        )
        return {variant: (n, n_current) for variant, n, n_current in self.site.rows(self.site.churn, query, week=week)}

    def attempts(self, week: date) -> list[tuple[str, str]]:
        query = "SELECT variant, outcome FROM scoring_attempts WHERE scored_week = :week ORDER BY 1, 2"
        return [(variant, outcome) for variant, outcome in self.site.rows(self.site.churn, query, week=week)]

    def n_busy(self) -> list[int]:
        return [len(node.workers("company-")) for node in self.cluster.nodes]

    @contextmanager
    def before_commit(self, act: Callable[[], None], *, n_waiting: int = 2) -> Iterator[None]:
        """Let no batch be published until so many have written their rows and ``act`` was called."""
        locked = threading.Event()

        def wait_and_act() -> None:
            with create_engine(self.site.server.set(database=self.site.churn)).begin() as connection:
                connection.execute(sa.text("LOCK TABLE scoring_attempts IN SHARE MODE"))
                locked.set()
                wait_until(lambda: self.n_waiting() >= n_waiting, 120)
                act()

        with ThreadPoolExecutor(1) as pool:
            acted = pool.submit(wait_and_act)
            assert locked.wait(30)
            yield
            acted.result()

    def n_waiting(self) -> int:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = :name AND wait_event_type = 'Lock'"
        return int(self.site.rows(self.site.churn, query, name=self.site.churn)[0][0])


@pytest.fixture(scope="module")
def whole_fleet(
    postgres: sa.URL, login: sa.URL, schemas: Mapping[str, str], aws_endpoint: str, homes: Path
) -> Iterator[Fleet]:
    settings = {
        "AWS_ENDPOINT_URL": aws_endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_S3_BUCKET": "clusters",
        "CHURN_HOME": str(homes / "cluster"),
        "CHURN_LOCAL_FALLBACK": "never",
        "CHURN_CODE_VERSION": "tested",
        "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS": "1",
        "PYTHONPATH": str(ROOT),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=settings["MLFLOW_S3_BUCKET"])
        site = configure(postgres, login, settings["MLFLOW_S3_BUCKET"], patch)
        with databases_of(site, schemas):
            create_database(site, site.dagster, schemas["dagster"])
            register(site, homes)
            with open_deployment(load_settings()) as deployment:
                asked = week_request(monday(LOCAL), as_of=AS_OF, dagster_run_id="local")
                local = score_fleet(deployment.scorer(), [*SMALL, LARGE], asked, rows_of)
                assert dict(local)[LARGE] == N_LARGE
            with ray_cluster(1, 1) as cluster:
                environment = {name: os.environ[name] for name in os.environ if name.startswith(("CHURN", "MLFLOW"))}
                yield Fleet(site, cluster, settings | environment | {"CHURN_RAY_ADDRESS": cluster.address})


def rows_of(outcome: Any, _scorer: Any) -> int:
    return int(outcome.record.n_rows_scored)


def register(site: Site, folder: Path) -> None:
    from experiment_tracking.log_model import main

    for seed, key in enumerate([*SMALL, LARGE, SPOILED]):
        prefix = Variant.from_key(key).prefix
        put_model_files(site, prefix)
        activity = simulate_activity(n_accounts=40 + seed, first_month=date(2024, 6, 1), n_months=7, seed=seed)
        rows = simulated_rows(N_LARGE) if key == LARGE else activity
        body = b"PAR1 no more" if key == SPOILED else parquet_bytes(rows)
        site.put(f"{prefix}data/churn/activity.parquet", body)
    (folder / "fleet").write_text("\n".join([*SMALL, LARGE, SPOILED]))
    main(["--all", str(folder / "fleet")])


@pytest.fixture
def fleet(whole_fleet: Fleet, clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """The fleet, its environment this test's; two nodes run."""
    for name, value in whole_fleet.environment.items():
        monkeypatch.setenv(name, value)
    return whole_fleet


def test_two_nodes_score_what_the_local_engine_does_to_the_bit_and_a_bad_variant_hurts_none(fleet: Fleet) -> None:
    week, keys = monday(1), [*SMALL, SPOILED, LARGE]

    results = fleet.score(keys, week, "whole")

    assert sorted(results) == sorted(keys)
    assert isinstance(results.pop(SPOILED), InputError)
    assert results[LARGE].n_rows == N_LARGE
    assert len({placed.node for placed in results.values()}) == 2
    assert {placed.runtime_env for placed in results.values()} == {"{}"}
    fleet.require_same_as_local([*SMALL, LARGE], week)
    assert fleet.batches(week) == dict.fromkeys(results, (1, 1))
    assert fleet.attempts(week) == sorted([(SPOILED, "failed"), *((key, "published") for key in results)])


def test_workers_killed_with_all_rows_written_and_nothing_committed_lose_and_double_nothing(fleet: Fleet) -> None:
    week, killed = monday(2), []

    def kill() -> None:
        for worker in (worker for node in fleet.cluster.nodes for worker in node.workers("company-")):
            worker.send_signal(signal.SIGKILL)
            killed.append(worker.pid)

    with fleet.before_commit(kill):
        results = fleet.score(SMALL, week, "workers")

    assert len(killed) == 2
    assert {key: type(result) for key, result in results.items()} == dict.fromkeys(SMALL, Placed)
    fleet.require_same_as_local(SMALL, week)
    assert fleet.batches(week) == dict.fromkeys(SMALL, (1, 1))
    assert fleet.attempts(week) == [(key, "published") for key in SMALL]


def test_a_worker_that_dies_after_the_commit_leaves_one_current_batch_and_one_that_always_dies_is_given_up(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    week = monday(3)
    monkeypatch.setattr(cluster_module, "MAX_RETRIES", 1)

    results = fleet.score(SMALL, week, "deaths", partial(die_after_publishing, folder=tmp_path))

    given_up = results.pop(SMALL[-1])
    assert isinstance(given_up, ClusterUnavailableError)
    assert "gave the variant up after 2 tries (WorkerCrashedError" in str(given_up)
    assert {type(result) for result in results.values()} == {Placed}
    fleet.require_same_as_local(SMALL, week)
    again = {"company-once": (2, 1), "company-zalways": (2, 1)}
    assert fleet.batches(week) == dict.fromkeys(SMALL, (1, 1)) | again
    assert fleet.attempts(week).count((SMALL[-1], "failed")) == 1


def test_a_node_killed_with_all_rows_written_and_nothing_committed_loses_and_doubles_nothing(fleet: Fleet) -> None:
    week, busy = monday(4), []
    head, other = fleet.cluster.nodes[0], fleet.cluster.nodes[-1]

    def kill() -> None:
        busy.extend([len(head.workers("company-")), len(other.workers("company-"))])
        other.kill()

    try:
        with fleet.before_commit(kill):
            results = fleet.score(SMALL, week, "node")
    finally:
        fleet.cluster.nodes.remove(other)
        fleet.cluster.add(1)

    assert busy == [1, 1]
    assert {type(result) for result in results.values()} == {Placed}
    fleet.require_same_as_local(SMALL, week)
    assert fleet.batches(week) == dict.fromkeys(SMALL, (1, 1))
    assert fleet.attempts(week) == [(key, "published") for key in SMALL]


def test_a_node_that_is_set_otherwise_is_refused_and_nothing_is_scored(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHURN_REASONS", "false")
    monkeypatch.setenv("CHURN_CODE_VERSION", "newer")

    with pytest.raises(ClusterError) as refused:
        fleet.score(SMALL[:2], monday(5), "otherwise")

    assert "differs from this process" in str(refused.value)
    assert "the code is tested there and newer here; CHURN_REASONS is True there and False here. Start" in str(
        refused.value
    )
    require_no_password(str(refused.value))
    assert fleet.batches(monday(5)) == {}


def test_an_address_where_nobody_listens_is_told_in_seconds(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHURN_RAY_ADDRESS", "127.0.0.1:9")
    started = time.monotonic()

    with pytest.raises(ClusterUnavailableError, match=r"the Ray cluster at 127\.0\.0\.1:9 did not answer"):
        fleet.score(SMALL, monday(7), "nobody")

    assert time.monotonic() - started < 20


@pytest.fixture
def instance(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    with open_instance(tmp_path, fleet.site.login.set(database=fleet.site.dagster), monkeypatch) as opened:
        sync_partitions(opened, [Variant.from_key(key) for key in SMALL])
        yield opened


def start(week: date, *resumed: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(SCRIPT), SMALL[0], SMALL[-1], week.isoformat(), *resumed]
    return subprocess.Popen(bound(command), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("number", "week"), [(signal.SIGKILL, monday(8)), (signal.SIGTERM, monday(9))])
def test_a_run_that_is_ended_ends_its_tasks_and_the_next_one_scores_what_is_missing(
    fleet: Fleet, instance: dg.DagsterInstance, number: signal.Signals, week: date
) -> None:

    def end() -> None:
        assert sum(fleet.n_busy()) == 2
        process.send_signal(number)
        wait_until(lambda: sum(fleet.n_busy()) == 0, 30)
        process.kill()  # what was interrupted would wait for the op's retry

    process = start(week)
    with fleet.before_commit(end):
        process.wait(240)
    assert fleet.batches(week) == {}
    run = instance.get_runs(limit=1)[0]
    if not run.is_finished:
        instance.report_run_failed(run)  # what the daemon's run monitoring does

    assert start(week, run.run_id).wait(240) == 0

    resumed = instance.get_runs(limit=1)[0]
    assert fleet.batches(week) == dict.fromkeys(SMALL, (1, 1))
    for spec in SPECS:
        records = instance.fetch_materializations(dg.AssetRecordsFilter(spec.key), limit=99).records
        ours = [record for record in records if record.event_log_entry.run_id == resumed.run_id]
        assert sorted(record.partition_key for record in ours) == SMALL
        assert all(record.asset_materialization.metadata for record in ours)
    checks = [event for event in instance.all_logs(resumed.run_id) if event.dagster_event is not None]
    passed = [
        event.dagster_event.asset_check_evaluation_data.partition
        for event in checks
        if event.dagster_event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION
        and event.dagster_event.asset_check_evaluation_data.check_name == "rows_were_scored"
        and event.dagster_event.asset_check_evaluation_data.passed
    ]
    assert sorted(key for key in passed if key is not None) == SMALL


def test_a_driver_on_another_machine_reaches_the_cluster_by_its_client_port(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ray_cluster(1, with_client_port=True) as cluster:
        monkeypatch.setenv("CHURN_RAY_ADDRESS", cluster.client_address)

        results = fleet.score(SMALL[:2], monday(10), "client")

    assert {type(result) for result in results.values()} == {Placed}
    fleet.require_same_as_local(SMALL[:2], monday(10))


def test_nothing_that_is_sent_to_a_node_holds_a_password(fleet: Fleet) -> None:
    with open_deployment(load_settings()) as deployment:
        sent = (
            partial(report_batch, histories={}, model_link=deployment.model_link),
            deployment.workers(1, Deployment.scorer),
        )

    require_no_password(pickle.dumps(sent, protocol=0).decode("latin-1"), repr(sent))


def test_what_cannot_be_sent_back_is_told_and_no_password_is_in_what_ray_writes_down(fleet: Fleet) -> None:
    results = fleet.score(SMALL[:1], monday(6), "unsendable", unsendable)

    assert "Ray could not run the task or send its result: TypeError" in str(results[SMALL[0]])
    assert fleet.batches(monday(6)) == {SMALL[0]: (1, 1)}
    texts = [path.read_text(errors="replace") for path in fleet.cluster.folder.rglob("*") if path.is_file()]
    assert any("Traceback" in text or "worker" in text for text in texts)
    require_no_password(*texts)
