"""The naive ways of the other operations: a step at each ``yield``, at which it is killed, and is then run again.

None shares code with the product; each does what a script does that somebody writes in an afternoon.
"""

# ruff: noqa: S608 our own texts

import io
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
import polars as pl
import sqlalchemy as sa
from mlflow import MlflowClient

from churn.deployment.services import Deployment
from tests.support.faults.ledger import execute

if TYPE_CHECKING:
    from tests.support.faults.bench import Bench, Case

_BUCKET = "bench"
TABLES = """
CREATE TABLE IF NOT EXISTS naive_trail (champion int);
CREATE TABLE IF NOT EXISTS naive_figures (week date, auc real);
CREATE TABLE IF NOT EXISTS naive_incidents (kind text);
CREATE TABLE IF NOT EXISTS naive_alerts (kind text, is_sent boolean DEFAULT false);
CREATE TABLE IF NOT EXISTS naive_batches (week date);
CREATE TABLE IF NOT EXISTS naive_rows (week date, account_id bigint);
"""
Steps = Iterator[None]


@dataclass(frozen=True)
class Naive:
    """A naive way.

    Attributes:
        run: Does it.
        seen: Counts what is there afterwards.
        asked: What must be there.
        prepare: What it needs beside the case.
    """

    run: Callable[[Deployment, "Case"], Steps]
    seen: Callable[["Bench", "Case"], "Counter[object]"]
    asked: "Counter[object]"
    prepare: Callable[["Bench", "Case"], object] = lambda _bench, _case: None


def _sql(case: "Case", *statements: str) -> list[Any]:
    engine = sa.create_engine(case.server, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    rows: list[Any] = []
    with engine.connect() as connection:
        for statement in statements:
            result = connection.exec_driver_sql(statement)
            rows = list(result) if result.returns_rows else []
    return rows


def _count(bench: "Bench", query: str) -> "Counter[object]":
    return Counter(tuple(row) for row in execute(bench.server, query))


# Which model decides


def _promote(deployment: Deployment, case: "Case") -> Steps:
    client, name = MlflowClient(deployment.tracking_uri), case.variant.registered_model
    aliases = client.get_registered_model(name).aliases
    client.set_registered_model_alias(name, "previous", aliases["champion"])
    yield
    client.set_registered_model_alias(name, "champion", aliases["challenger"])
    yield
    client.delete_registered_model_alias(name, "challenger")
    yield
    _sql(case, f"INSERT INTO naive_trail VALUES ({aliases['challenger']})")


def _roll_back(deployment: Deployment, case: "Case") -> Steps:
    client, name = MlflowClient(deployment.tracking_uri), case.variant.registered_model
    aliases = client.get_registered_model(name).aliases
    client.set_registered_model_alias(name, "champion", aliases["previous"])
    yield
    client.set_registered_model_alias(name, "previous", aliases["champion"])
    yield
    _sql(case, f"INSERT INTO naive_trail VALUES ({aliases['previous']})")


def _moved(bench: "Bench", case: "Case") -> "Counter[object]":
    return bench.aliases(case) + _count(bench, "SELECT 'trail', champion FROM naive_trail")


PROMOTION = Naive(_promote, _moved, Counter([("champion", 2), ("previous", 1), ("trail", 2)]))
ROLLBACK = Naive(_roll_back, _moved, Counter([("champion", 1), ("previous", 2), ("trail", 1)]))


def _register(deployment: Deployment, case: "Case") -> Steps:
    client, variant = MlflowClient(deployment.tracking_uri), case.variant
    name, experiment = variant.registered_model, client.get_experiment_by_name(variant.experiment)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(variant.experiment)
    run = client.create_run(experiment_id)
    yield
    model = client.create_logged_model(experiment_id, name="model", source_run_id=run.info.run_id)
    yield
    client.finalize_logged_model(model.model_id, "READY")
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    yield
    version = client.create_model_version(name, model.artifact_location, run.info.run_id)
    yield
    client.set_registered_model_alias(name, "champion", version.version)
    yield
    client.set_terminated(run.info.run_id)


REGISTRATION = Naive(
    _register, lambda bench, case: Counter(bench.registered(case.variant)), Counter([("version", 1), ("champion", 1)])
)


# What is known of players


def _key(case: "Case", name: str) -> str:
    return f"{case.variant.prefix}history/naive/{name}"


def _parts(case: "Case") -> dict[str, pl.DataFrame]:
    client = boto3.client("s3")
    listed = client.list_objects_v2(Bucket=_BUCKET, Prefix=_key(case, "")).get("Contents", [])
    return {
        item["Key"]: pl.read_parquet(client.get_object(Bucket=_BUCKET, Key=item["Key"])["Body"].read())
        for item in listed
    }


def _write(key: str, rows: pl.DataFrame) -> None:
    body = io.BytesIO()
    rows.write_parquet(body)
    boto3.client("s3").put_object(Bucket=_BUCKET, Key=key, Body=body.getvalue())


def _ids(n: int) -> pl.DataFrame:
    return pl.DataFrame({"account_id": list(range(1, n + 1))})


def _ingest(_deployment: Deployment, case: "Case") -> Steps:
    """Write the extract as another part, and record that it was taken."""
    if not _sql(case, "SELECT 1 FROM naive_batches"):
        _write(_key(case, f"part-{time.time_ns()}.parquet"), _ids(40))
        yield
        _sql(case, "INSERT INTO naive_batches VALUES ('2017-10-02')")


def _compact(_deployment: Deployment, case: "Case") -> Steps:
    """Write all parts as one, and delete them."""
    parts = _parts(case)
    _write(_key(case, f"compacted-{time.time_ns()}.parquet"), pl.concat(parts.values()))
    yield
    for key in parts:
        boto3.client("s3").delete_object(Bucket=_BUCKET, Key=key)
        yield


def _with_parts(_bench: "Bench", case: "Case") -> None:
    for i in range(4):
        _write(_key(case, f"part-{i}.parquet"), _ids(40).slice(10 * i, 10))


def _known(_bench: "Bench", case: "Case") -> "Counter[object]":
    return Counter(one for rows in _parts(case).values() for one in rows["account_id"])


INGESTION = Naive(_ingest, _known, Counter(range(1, 41)))
COMPACTION = Naive(_compact, _known, Counter(range(1, 41)), _with_parts)


def _erase(_deployment: Deployment, case: "Case") -> Steps:
    """Delete the rows and write the part again; nobody remembers the account."""
    _sql(case, "DELETE FROM naive_rows WHERE account_id = 2")
    yield
    for key, rows in _parts(case).items():
        _write(key, rows.filter(pl.col("account_id") != 2))
    yield


def _and_ingested(bench: "Bench", case: "Case") -> "Counter[object]":
    """The week after, the same extract comes again."""
    _write(_key(case, "part.parquet"), _ids(40))
    return _known(bench, case)


ERASURE = Naive(
    _erase, _and_ingested, Counter([1, *range(3, 41)]), lambda _, case: _write(_key(case, "part.parquet"), _ids(40))
)


# Tables


def _evaluate(_deployment: Deployment, case: "Case") -> Steps:
    for week in ("2017-09-04", "2017-09-11"):
        _sql(case, f"INSERT INTO naive_figures VALUES ('{week}', 0.8)")
        yield


def _monitor(_deployment: Deployment, case: "Case") -> Steps:
    if not _sql(case, "SELECT 1 FROM naive_incidents"):
        _sql(case, "INSERT INTO naive_incidents VALUES ('variants_failed')")
        yield
        _sql(case, "INSERT INTO naive_alerts VALUES ('variants_failed')")


def _alert(deployment: Deployment, case: "Case") -> Steps:
    """Mark an alert as sent, and send it."""
    (receiver,) = deployment.receivers().values()
    while rows := _sql(case, "SELECT min(kind) FROM naive_alerts WHERE NOT is_sent HAVING count(*) > 0"):
        _sql(case, f"UPDATE naive_alerts SET is_sent = true WHERE kind = '{rows[0][0]}'")
        yield
        receiver._service.notify(title="naive", body=f"alert {rows[0][0]}")  # noqa: SLF001 nothing of the product's
        yield


def _retain(_deployment: Deployment, case: "Case") -> Steps:
    """Drop the old batches, and then their rows."""
    weeks = [str(week) for (week,) in _sql(case, "SELECT week FROM naive_batches WHERE week < '2018-01-01'")]
    for week in weeks:
        _sql(case, f"DELETE FROM naive_batches WHERE week = '{week}'")
        yield
        _sql(case, f"DELETE FROM naive_rows WHERE week = '{week}'")
        yield


def _with_weeks(_bench: "Bench", case: "Case") -> None:
    for week in ("2017-09-04", "2017-09-11", "2018-09-03"):
        _sql(case, f"INSERT INTO naive_batches VALUES ('{week}')")
        _sql(case, f"INSERT INTO naive_rows SELECT '{week}', i FROM generate_series(1, 40) AS i")


EVALUATION = Naive(
    _evaluate,
    lambda bench, _: _count(bench, "SELECT week::text FROM naive_figures"),
    Counter([("2017-09-04",), ("2017-09-11",)]),
)
MONITORING = Naive(
    _monitor,
    lambda bench, _: _count(bench, "SELECT 'alert', kind FROM naive_alerts"),
    Counter([("alert", "variants_failed")]),
)
ALERTS = Naive(
    _alert,
    lambda bench, _: Counter(bench.told),
    Counter([1, 2, 3]),
    lambda bench, case: (bench.told.clear(), _sql(case, "INSERT INTO naive_alerts VALUES ('1'), ('2'), ('3')")),
)
RETENTION = Naive(
    _retain,
    lambda bench, _: _count(bench, "SELECT week::text, account_id FROM naive_rows"),
    Counter(("2018-09-03", i) for i in range(1, 41)),
    _with_weeks,
)


def _make_tables(_deployment: Deployment, case: "Case") -> Steps:
    """Run the statements of a script one by one."""
    for i in range(4):
        _sql(case, f"CREATE TABLE naive_made_{i} (i int)")
        yield


def _drop_tables(_bench: "Bench", case: "Case") -> None:
    _sql(case, *(f"DROP TABLE IF EXISTS naive_made_{i}" for i in range(4)))


SET_UP = MIGRATION = Naive(
    _make_tables,
    lambda bench, _: _count(bench, "SELECT relname FROM pg_class WHERE relname LIKE 'naive_made%'"),
    Counter((f"naive_made_{i}",) for i in range(4)),
    _drop_tables,
)


def _deliver(_deployment: Deployment, case: "Case") -> Steps:
    """Upload a file named by the time, then delete the others that were there."""
    before = list(_parts(case))
    _write(_key(case, f"delivered-{time.time_ns()}.parquet"), _ids(40))
    yield
    for key in before:
        boto3.client("s3").delete_object(Bucket=_BUCKET, Key=key)
        yield
    _sql(case, "INSERT INTO naive_batches VALUES ('2017-10-02')")


def _deliver_once(deployment: Deployment, case: "Case") -> Steps:
    """Deliver unless that was recorded."""
    if not _sql(case, "SELECT 1 FROM naive_rows"):
        _sql(case, "INSERT INTO naive_rows VALUES ('2017-10-02', 1)")
        yield
        yield from _deliver(deployment, case)


DELIVERY = Naive(
    _deliver_once, _known, Counter(range(1, 41)), lambda _, case: _write(_key(case, "delivered-0.parquet"), _ids(30))
)
