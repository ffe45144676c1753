"""Everything else that changes state: how each operation is prepared, run, killed at its steps, and checked.

A check reads tables and files by itself, and counts what it finds: facts that must be there, by name. What was asked
for is either written here or what an undisturbed run of the same operation left.
"""

import hashlib
import io
import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import sqlalchemy as sa

from churn.data.activity import KEY
from churn.database.connection import create_engine
from churn.database.embedded_host import find_programs
from churn.database.erasure import record_retention
from churn.database.predictions import BatchInProgress
from churn.database.schema import ensure_database, migrate_predictions
from churn.deployment.services import Deployment
from churn.errors import InputError
from churn.storage.history import FOLDER, ActivityHistory, max_parts
from churn.training.gate import GateLimits
from churn.variants import Variant
from churn.versions import CHALLENGER, CHAMPION, PREVIOUS
from churn.workflows.alert import deliver
from churn.workflows.erase import drop_old_weeks
from churn.workflows.evaluate import evaluate_variant
from churn.workflows.monitor import FleetMonitor
from churn.workflows.set_up import set_up_server, set_up_variants
from experiment_tracking.log_model import log_variants
from tests.support import ROOT
from tests.support.batches import NO_ROWS, record, scored
from tests.support.faults import naive_operations as naive
from tests.support.faults.bench import INPUT, N_ACCOUNTS, Bench, Case, Place
from tests.support.faults.ledger import execute
from tests.support.faults.worker import DELIVERING, MOVES, REGISTERING, Step
from tests.support.simulated import simulate_activity

if TYPE_CHECKING:
    from dagster import DagsterInstance

Seen = Counter[object]
_HISTORY, _PLACES, _ERASE = "churn.storage.history", "churn.storage.places", "churn.workflows.erase"
UNFINISHED = frozenset({"RUNNING", "PENDING", "a damaged part", "a file without a name", "a version without an alias"})
"""What only a killed process leaves."""
ERASED = 2
OLD, OLDER = date(2017, 10, 2), date(2017, 10, 9)
EVALUATED = (date(2017, 9, 4), date(2017, 9, 11))


@dataclass(frozen=True)
class Operation:
    """A change of state.

    Attributes:
        prepare: Makes the state before it; nothing of an earlier case is left.
        run: The command, in a child.
        steps: Where the child may kill itself, by place.
        seen: Counts what is there afterwards.
        asked: Counts what must be there; ``None`` for what an undisturbed run leaves.
        between: What a reader must not see after a kill, before the command is repeated.
        naive: How others do it, a step at each ``yield``, and what is then lost, doubled or wrong.
        random: How often it is killed at a random instant, in each place.
        beside_scoring: Whether a week is scored meanwhile.
    """

    name: str
    prepare: Callable[[Bench, Place], Case]
    run: Callable[[Deployment, Case], object]
    steps: Callable[[Place], Mapping[str, Step]]
    seen: Callable[[Bench, Case], Seen]
    asked: Callable[[Bench, Case], Seen] | None = None
    between: Callable[[Bench, Case], Seen] = lambda _bench, _case: Counter()
    naive: "naive.Naive | None" = None
    places: tuple[Place, ...] = ("S3",)
    each: int = 2
    random: int = 10
    twice: int = 5
    scoring: int = 5


# What is known of players


@cache
def activity(n_months: int = 4, n_accounts: int = N_ACCOUNTS) -> pl.DataFrame:
    """Activity of accounts numbered from 1, each month known three days after its end."""
    frame = simulate_activity(n_accounts=n_accounts, first_month=date(2017, 6, 1), n_months=n_months, seed=5)
    known_at = pl.col("activity_month").cast(pl.Datetime("us", "UTC")).dt.offset_by("1mo3d")
    return frame.with_columns(pl.col("account_id").rank("dense").cast(pl.Int64), known_at=known_at)


@cache
def extracts(n: int) -> list[pl.DataFrame]:
    """Extracts as they follow each other: the last month comes with the last, and each corrects some rows."""
    made = [activity().filter(pl.col("activity_month") < date(2017, 9, 1))]
    for i in range(1, n):
        corrected = (pl.col("account_id") % n == i) & (pl.col("activity_month") == date(2017, 7, 1))
        before = (
            made[-1]
            if i < n - 1
            else pl.concat([made[-1], activity().filter(pl.col("activity_month") >= date(2017, 9, 1))])
        )
        made.append(
            before.with_columns(
                total_deposit=pl.when(corrected).then(pl.col("total_deposit") + i).otherwise("total_deposit"),
                known_at=pl.when(corrected).then(pl.col("known_at").dt.offset_by(f"{i}d")).otherwise("known_at"),
            )
        )
    return made


def body_of(frame: pl.DataFrame) -> bytes:
    body = io.BytesIO()
    frame.write_parquet(body)
    return body.getvalue()


def facts_of(frames: list[pl.DataFrame]) -> Seen:
    """Count the facts that extracts told, each once, however often it was told."""
    rows = pl.concat(frames).select(*KEY, "known_at", pl.col("total_deposit").round(4)).unique().rows()
    return Counter(rows)


def history_of(bench: Bench, case: Case) -> Seen:
    """Count the facts of the parts that no other replaces, and what readers would count twice."""
    seen: Seen = Counter()
    parts = {key: body for key, body in bench.files(case, FOLDER).items() if key.endswith(".parquet")}
    replaced: set[str] = set()
    for key, body in parts.items():
        if hashlib.sha256(body).hexdigest() not in key:
            seen["a damaged part"] += 1
        else:
            replaced |= set(pl.read_parquet_metadata(io.BytesIO(body)).get("replaces", "").split())
    live = [pl.read_parquet(body) for key, body in parts.items() if key not in replaced]
    seen += facts_of(live) if live else Counter()
    read = ActivityHistory(bench.place(case)).read(case.variant).select(*KEY, "known_at")
    seen["counted twice"] += read.height - read.n_unique()
    return +seen


def _with_history(bench: Bench, place: Place, n_parts: int) -> tuple[Case, list[pl.DataFrame]]:
    """Store all extracts but the last, which becomes the input, and a batch that was scored from it."""
    case, told = bench.fresh(place), extracts(n_parts + 1)
    history = ActivityHistory(bench.place(case))
    for i, extract in enumerate(told[:-1]):
        history.append(case.variant, extract, datetime(2017, 11, 1 + i, tzinfo=UTC))
    bench.put(case, INPUT, body_of(told[-1]))
    found = bench.place(case).open(case.variant.prefix + INPUT).entry
    publish(
        bench, case, OLD, source_uri=bench.place(case).uri(found.key), source_version=found.version,
        source_version_id=found.version_id, source_sha256=hashlib.sha256(body_of(told[-1])).hexdigest(),
        source_modified_at=found.modified_at, source="s3" if place == "S3" else "local",
        fallback_reason=None if place == "S3" else "no bucket", history_status="pending",
    )  # fmt: skip
    return case, told


def publish(bench: Bench, case: Case, week: date, n_rows: int = N_ACCOUNTS, **changed: object) -> None:
    """Publish a batch of accounts 1 to ``n_rows``, whose scores rise."""
    told = record(
        n_rows, variant=case.variant, source_variant=case.variant, scored_week=week, **{"as_of": week, **changed}
    )
    rows = scored(n_rows)
    rows.probabilities[:] = [(i + 1) / (n_rows + 1) for i in range(n_rows)]
    with bench.store() as store:
        n_erasures = store.erased().n_erasures
        store.publish(case.variant, week, BatchInProgress([rows], lambda: (told, NO_ROWS), n_erasures=n_erasures))


def _write(place: Place) -> tuple[str, str]:
    return _PLACES, "Bucket.write" if place == "S3" else "Folder.write"


def _of_folder(place: Place) -> dict[str, Step]:
    if place == "S3":
        return {}
    return {"a file is not on disk yet": ("os", "fsync", "entered"), "a file has no name yet": ("os", "fsync", "left")}


def ingesting(place: Place) -> Mapping[str, Step]:
    return {
        "the extract is read": ("churn.workflows.ingest", "read_extract", "left"),
        "the parts are read": (_HISTORY, "ActivityHistory._read_parts", "left"),
        **_of_folder(place),
        "the part is written": (*_write(place), "left"),
        "the facts are appended": (_HISTORY, "ActivityHistory.append", "left"),
        "the extract is marked": ("churn.database.extracts", "ScoredExtracts.mark", "left"),
    }


def compacting(place: Place) -> Mapping[str, Step]:
    delete = "Bucket.delete" if place == "S3" else "Folder.delete"
    return {
        "the parts are read": (_HISTORY, "ActivityHistory._read_parts", "left"),
        **_of_folder(place),
        "the new part is written": (*_write(place), "left"),
        "the new part is read back": (_HISTORY, "ActivityHistory._delete", "entered"),
        "an old part is deleted": (_PLACES, delete, "left"),
        "another old part is deleted": (_PLACES, delete, "left", 1),
        "all old parts are deleted": (_HISTORY, "ActivityHistory._delete", "left"),
    }


def ingest(deployment: Deployment, case: Case) -> None:
    deployment.ingestion().ingest(case.variant)


def _ingested(bench: Bench, case: Case) -> Seen:
    query = "SELECT history_status FROM scoring_batches WHERE scored_week = :week"
    return history_of(bench, case) + Counter(f"extract {row[0]}" for row in execute(bench.server, query, week=OLD))


def _asked_of_history(n_parts: int) -> Callable[[Bench, Case], Seen]:
    return lambda _bench, _case: facts_of(extracts(n_parts + 1)) + Counter(["extract ingested"])


def _with_full_history(bench: Bench, place: Place) -> Case:
    return _with_history(bench, place, max_parts(bench.variant(place)))[0]


def _asked_of_compaction(bench: Bench, case: Case) -> Seen:
    return _asked_of_history(max_parts(case.variant))(bench, case)


def _twice_between(bench: Bench, case: Case) -> Seen:
    seen = history_of(bench, case)
    known = facts_of(extracts(case.given["n_parts"] + 1)[:-1]) if "n_parts" in case.given else Counter()
    return Counter({name: seen[name] for name in ("a damaged part", "counted twice") if seen[name]}) + (known - seen)


# Which model decides


def _with_aliases(aliases: Mapping[str, int]) -> Callable[[Bench, Place], Case]:
    def prepare(bench: Bench, place: Place) -> Case:
        case = bench.fresh(place, aliases)
        bench.put(case, INPUT, body_of(activity()))
        bench.deployment(case).promoter().settle(case.variant)
        return case

    return prepare


def promote(deployment: Deployment, case: Case) -> None:
    deployment.promoter().promote(case.variant, to=2, force=True, reason="a drill")


def roll_back(deployment: Deployment, case: Case) -> None:
    deployment.promoter().roll_back(case.variant, "a drill", to=1)


def share(deployment: Deployment, case: Case) -> None:
    deployment.promoter().share(case.variant, 2_500, "a drill")


def moved(bench: Bench, case: Case) -> Seen:
    trail = "SELECT action, state, champion_version, ab_share FROM model_events"
    return bench.aliases(case) + Counter(map(tuple, execute(bench.server, trail)))


def _asked_of_move(action: str, before: Mapping[str, int], after: Mapping[str, int], share: int = 0) -> Seen:
    trail = [("observed", "done", before[CHAMPION], 0), (action, "done", after[CHAMPION], share)]
    return Counter([*after.items(), *trail])


def _decided(bench: Bench, case: Case) -> Seen:
    """A reader must find the champion that the trail names, whatever aliases are moved."""
    query = "SELECT champion_version FROM model_events ORDER BY event_id DESC LIMIT 1"
    named = execute(bench.server, query)[0][0]
    used = bench.deployment(case).registry(read_only=True).resolve(case.variant).version
    return Counter() if named == used else Counter(["another champion than the one decided"])


# Registration and training


def _unregistered(n: int) -> Callable[[Bench, Place], Case]:
    def prepare(bench: Bench, place: Place) -> Case:
        return bench.fresh_variants(place, n, {INPUT: body_of(activity())})

    return prepare


def log_models(deployment: Deployment, case: Case) -> None:
    log_variants(deployment, case.variants, None, once=True)


def registered(bench: Bench, case: Case) -> Seen:
    seen: Seen = Counter()
    for i, variant in enumerate(case.variants):
        seen += Counter((i, *one) for one in bench.registered(variant))
    return seen


def _asked_of_registration(_bench: Bench, case: Case) -> Seen:
    return Counter((i, *one) for i, _ in enumerate(case.variants) for one in (("version", 1), (CHAMPION, 1)))


def registering(n: int = 1) -> Callable[[Place], Mapping[str, Step]]:
    after = {f"{name}, of another variant": (*step, 1) for name, step in REGISTERING.items()}
    return lambda _: {**REGISTERING, **({} if n == 1 else after)}


def _untrained(bench: Bench, place: Place) -> Case:
    rows = simulate_activity(n_accounts=900, first_month=date(2025, 5, 1), n_months=18, seed=11)
    return bench.fresh_variants(place, 1, {INPUT: body_of(rows)})


def train(deployment: Deployment, case: Case) -> None:
    limits = GateLimits(min_auc=0.5, max_calibration_error=0.5)
    replace(deployment.trainer(n_trials=1), limits=limits).train_variant(case.variant, date(2026, 11, 30))


def trained(bench: Bench, case: Case) -> Seen:
    """Count aliases, versions that none names, the bytes of the models, and the facts of the history.

    A training that was repeated after its version had the alias adds a challenger of the same bytes.
    """
    found = list(bench.registered(case.variant))
    aliases = {number for name, number in found if name in (CHAMPION, CHALLENGER)}
    loose = [("a version without an alias", 1) for name, number in found if name == "version" and number not in aliases]
    unfinished = [one for one in found if one[0] in ("RUNNING", "PENDING")]
    champions = [one for one in found if one[0] == CHAMPION]
    hashes = {("model", one) for one in bench.model_hashes(case.variant)}
    rows = pl.concat([pl.read_parquet(body) for body in bench.files(case, FOLDER).values()])
    facts = [("facts", rows.height), ("accounts and months", rows.select(KEY).n_unique())]
    return Counter([*champions, *loose, *unfinished, *hashes, *facts])


def training(place: Place) -> Mapping[str, Step]:
    kept = ("the model is created", "the model is logged", "the version is registered", "the alias is set")
    return {
        "the activity is appended": (_HISTORY, "ActivityHistory.append", "left"),
        "the model is trained": ("churn.workflows.train", "train", "left"),
        "the gate has checked it": ("churn.workflows.train", "check_gate", "left"),
        **{name: REGISTERING[name] for name in kept},
    }


# Evaluation


def _unevaluated(bench: Bench, place: Place) -> Case:
    case = bench.fresh(place, {CHAMPION: 1})
    bench.put(case, INPUT, body_of(activity(9, 300)))
    of_version = {"mlflow_run_id": bench.mlflow_run_id(case), "registered_model": case.variant.registered_model}
    for week in EVALUATED:
        publish(bench, case, week, 300, **of_version)
    return replace(case, given={"week": date(2018, 3, 12)})


def evaluate(deployment: Deployment, case: Case) -> None:
    evaluate_variant(deployment.promoter(), case.variant)


def evaluated(bench: Bench, case: Case) -> Seen:
    figures = (
        "SELECT scored_week, n_matured, n_churned, round(roc_auc::numeric, 9), e.logged_at IS NOT NULL "
        "FROM evaluated_batches AS e JOIN scoring_batches USING (batch_id)"
    )
    segments = (
        "SELECT scored_week, segment, level, s.n_matured "
        "FROM evaluated_segments AS s JOIN scoring_batches USING (batch_id)"
    )
    where = " WHERE scored_week <> :week"
    rows = [tuple(row) for query in (figures, segments) for row in execute(bench.server, query + where, week=case.week)]
    facts = facts_of([pl.read_parquet(body) for body in bench.files(case, FOLDER).values()])
    return Counter(rows) + bench.live_metrics(case) + Counter({"facts": len(facts)})


def evaluating(_: Place) -> Mapping[str, Step]:
    module, tables = "churn.workflows.evaluate", "churn.database.evaluations"
    return {
        "activity is ingested": ("churn.workflows.ingest", "Ingestion.ingest", "left"),
        "figures are computed": (module, "PerformanceEvaluator._evaluate_all", "left"),
        "figures are stored": (tables, "Evaluations.record", "left"),
        "figures are logged": ("churn.registry.registry", "Registry.log_live", "left"),
        "they are marked as logged": (tables, "Evaluations.mark_logged", "left"),
    }


# Incidents and alerts


def _failing(bench: Bench, place: Place) -> Case:
    case = bench.fresh(place, {CHAMPION: 1})
    bench.put(case, INPUT, body_of(activity()))
    with bench.store() as store:
        error = InputError("the extract has no rows")
        store.record_failure(case.variant.key, _this_week(), "a-run", datetime.now(UTC), error)
    return case


def _this_week() -> date:
    today = datetime.now(UTC).date()
    return today - timedelta(days=today.weekday())


def monitor(deployment: Deployment, case: Case) -> None:
    monitor = FleetMonitor(
        deployment.fleet(), deployment.incidents(), lambda: {case.variant.key: 1}, ["ops", "team"], timedelta(days=9)
    )
    monitor.reconcile(datetime.now(UTC), ())


def monitored(bench: Bench, _case: Case) -> Seen:
    incidents = "SELECT 'incident', kind FROM incidents"
    alerts = "SELECT 'alert', i.kind, a.event FROM alerts AS a JOIN incidents AS i USING (incident_id)"
    queued = "SELECT 'queued', receiver FROM alert_deliveries"
    return Counter(tuple(row) for query in (incidents, alerts, queued) for row in execute(bench.server, query))


def _asked_of_monitoring(_bench: Bench, _case: Case) -> Seen:
    kind = "variants_failed"
    return Counter([("incident", kind), ("alert", kind, "opened"), ("queued", "ops"), ("queued", "team")])


def monitoring(_: Place) -> Mapping[str, Step]:
    return {
        "the fleet is read": ("churn.database.fleet", "FleetTables.histories", "left"),
        "its drift is stored": ("churn.database.fleet", "FleetTables.replace_flags", "left"),
        "the incident is opened": ("churn.database.incidents", "_write", "left"),
        "all is committed": ("churn.database.incidents", "Incidents.reconcile", "left"),
    }


N_ALERTS = 3


def _alerting(bench: Bench, place: Place) -> Case:
    case = bench.fresh(place, {CHAMPION: 1})
    bench.put(case, INPUT, body_of(activity()))
    bench.told.clear()
    with create_engine(bench.server).begin() as connection:
        for i in range(N_ALERTS):
            incident = connection.scalar(
                sa.text("SELECT open_incident('data_stale', :s, 'warning', 'a drill', '{}'::jsonb, '{}'::jsonb)"),
                {"s": f"s{i}"},
            )
            queue = sa.text("SELECT queue_alert(:id, 'opened', 'a drill', 'nothing is wrong', ARRAY['ops'])")
            connection.execute(queue, {"id": incident})
    return case


def alert(deployment: Deployment, _case: Case) -> None:
    deliver(deployment.incidents(), deployment.receivers(), 20)


def alerted(bench: Bench, _case: Case) -> Seen:
    """Count the alerts that were told; at least once and at most twice counts as once."""
    done = execute(bench.server, "SELECT count(*) FROM alert_deliveries WHERE delivered_at IS NOT NULL")[0][0]
    told = Counter({f"alert {i}": max(1, n - 1) for i, n in enumerate(sorted(Counter(bench.told).values()))})
    return told + Counter({"recorded": done})


def _asked_of_alerts(_bench: Bench, _case: Case) -> Seen:
    return Counter([f"alert {i}" for i in range(N_ALERTS)]) + Counter({"recorded": N_ALERTS})


def alerting(_: Place) -> Mapping[str, Step]:
    send, deliver_next = (
        ("churn.workflows.alert", "Receiver.send"),
        ("churn.database.incidents", "Incidents.deliver_next"),
    )
    return {
        "no alert is sent": (*deliver_next, "entered"),
        "an alert is sent": (*send, "left"),
        "it is recorded": (*deliver_next, "left"),
        "another alert is sent": (*send, "left", 1),
        "all are recorded": (*deliver_next, "left", N_ALERTS - 1),
    }


# Erasure and retention


def _to_erase(bench: Bench, place: Place) -> Case:
    case, told = _with_history(bench, place, 2)
    ActivityHistory(bench.place(case)).append(case.variant, told[-1], datetime(2017, 11, 20, tzinfo=UTC))
    bench.local(case).write(case.variant.prefix + INPUT, body_of(told[-1]))
    return case


def erase(deployment: Deployment, case: Case) -> None:
    list(deployment.eraser().erase_account(str(ERASED), case.variant.key))


def erased(bench: Bench, case: Case) -> Seen:
    """Count each account's rows in tables and files, in what was replaced too, also after the next ingestion."""
    seen: Seen = Counter(
        map(
            tuple,
            execute(
                bench.server,
                "SELECT 'predictions', account_id FROM churn_predictions WHERE scored_week = :week",
                week=OLD,
            ),
        )
    )
    bench.deployment(case).ingestion().ingest(case.variant)
    seen += Counter(("history", *row[:1]) for row in history_of(bench, case) if isinstance(row, tuple))
    for version in bench.older_versions(case):
        seen += Counter(("history", one) for one in pl.read_parquet(version)["account_id"] if one == ERASED)
    local = bench.local(case).root / case.variant.prefix
    seen += Counter(("local copy", one) for one in pl.read_parquet((local / INPUT).read_bytes())["account_id"])
    return seen + Counter("a file without a name" for _ in local.rglob("*.unfinished"))


def _asked_of_erasure(_bench: Bench, _case: Case) -> Seen:
    rows = activity()["account_id"].to_list()
    others = [one for one in range(1, N_ACCOUNTS + 1) if one != ERASED]
    stored = Counter(row[0] for row in facts_of(extracts(3)))  # type: ignore[index]
    asked: Seen = Counter(("predictions", one) for one in others)
    asked += Counter({("history", one): n for one, n in stored.items() if one != ERASED})
    return asked + Counter(("local copy", one) for one in rows if one != ERASED)


def erasing(place: Place) -> Mapping[str, Step]:
    of_place = "Bucket" if place == "S3" else "Folder"
    return {
        "nothing is erased": (_ERASE, "erase_rows", "entered"),
        "rows are erased, not committed": ("sqlalchemy", "Connection.commit", "entered"),
        "rows are erased": (_ERASE, "erase_rows", "left"),
        "Dagster's texts are erased": (_ERASE, "erase_from_dagster", "left"),
        "versions are deleted": (_PLACES, f"{of_place}.erase_versions", "left"),
        **_of_folder(place),
        "a part's successor is written": (*_write(place), "left"),
        "a part is deleted": (_PLACES, f"{of_place}.erase", "left"),
        "the history is erased": (_HISTORY, "ActivityHistory.erase", "left"),
        "the local copy is exchanged": (_PLACES, "Folder.exchange", "left"),
        "the local copy is replaced": (_PLACES, "Folder.replace", "left"),
    }


def _to_retain(bench: Bench, place: Place) -> Case:
    case = bench.fresh(place, {CHAMPION: 1})
    bench.put(case, INPUT, body_of(activity()))
    record_retention(bench.server, 60)
    for week in (OLD, OLDER, _kept_week()):
        publish(bench, case, week)
    if place == "S3":
        bench.deliverer(case).deliver(case.variant)
    return replace(case, given={"week": _this_week()})


def _kept_week() -> date:
    return _this_week() - timedelta(weeks=1)


def retain(deployment: Deployment, case: Case) -> None:
    """Do what ``churn retain`` and the maintenance job do."""
    today = datetime.now(UTC).date()
    drop_old_weeks(deployment.database, today, n_weeks=60, horizon=deployment.horizon)
    deliverer = deployment.deliverer()
    for key in deliverer.keys() if deliverer else ():
        deliverer.deliver(Variant.from_key(key))


def retained(bench: Bench, case: Case) -> Seen:
    queries = (
        "SELECT 'rows', scored_week FROM churn_predictions WHERE scored_week <> :week",
        "SELECT 'batch', scored_week FROM scoring_batches WHERE scored_week <> :week",
        "SELECT 'table', relname FROM pg_class WHERE relname ~ '^churn_predictions_2017[0-9]+$'",
    )
    seen: Seen = Counter()
    for query in queries:
        values = {"week": case.week} if ":week" in query else {}
        seen += Counter(tuple(row) for row in execute(bench.server, query, **values))
    return seen + bench.delivered(case)


def _asked_of_retention(_bench: Bench, case: Case) -> Seen:
    kept = Counter({("rows", _kept_week()): N_ACCOUNTS, ("batch", _kept_week()): 1})
    return kept + Counter({("delivered", _kept_week(), i + 1): 1 for i in range(N_ACCOUNTS)}) + Counter({"objects": 1})


def retaining(_: Place) -> Mapping[str, Step]:
    return {
        "weeks are dropped, not committed": ("sqlalchemy", "Connection.commit", "entered"),
        "weeks are dropped": (_ERASE, "drop_weeks", "left"),
        "a week's manifest is withdrawn": (_PLACES, "Bucket.erase", "left"),
        "a week is withdrawn": ("churn.workflows.deliver", "Deliverer.withdraw", "left"),
    }


# Delivery


def _undelivered(bench: Bench, place: Place) -> Case:
    case = bench.fresh(place, {CHAMPION: 1})
    bench.put(case, INPUT, body_of(activity()))
    publish(bench, case, OLD, 30)
    bench.deliverer(case).deliver(case.variant)
    publish(bench, case, OLD)
    publish(bench, case, OLDER)
    return case


def deliver_weeks(deployment: Deployment, case: Case) -> None:
    deliverer = deployment.deliverer()
    assert deliverer is not None
    deliverer.deliver(case.variant, [OLD, OLDER])


def _delivered(bench: Bench, case: Case) -> Seen:
    return bench.delivered(case)


def _asked_of_delivery(_bench: Bench, _case: Case) -> Seen:
    rows = [("delivered", week, i + 1) for week in (OLD, OLDER) for i in range(N_ACCOUNTS)]
    return Counter(rows) + Counter({"objects": 2})


def _delivered_between(bench: Bench, case: Case) -> Seen:
    """What manifests name is whole: the batch before, or the new one."""
    by_week = Counter(row[1] for row in bench.delivered(case) if isinstance(row, tuple))
    return Counter(f"half a batch of {week}" for week, n in by_week.items() if n not in (30, N_ACCOUNTS))


def delivering(_: Place) -> Mapping[str, Step]:
    return {name: DELIVERING[name] for name in list(DELIVERING)[:6]}


# Set-up and migration


def _empty_server(bench: Bench, place: Place) -> Case:
    case = bench.fresh_variants(place, 1, {})
    return bench.with_databases(case, "predictions", "mlflow", "dagster")


def set_up(deployment: Deployment, case: Case) -> None:
    """Do what ``setup.py`` does."""
    urls = [case.server.set(database=name) for name in case.given["databases"]]
    list(set_up_server(urls[0], urls[2], urls[1], keep_weeks=60))
    there = replace(
        deployment,
        predictions=urls[0],
        mlflow_database=urls[1],
        tracking_uri=urls[1].render_as_string(hide_password=False),
    )
    for _, result in set_up_variants(there.registry(read_only=False), there.artifact_location, case.variants):
        assert not isinstance(result, BaseException), result


def set_up_as(bench: Bench, case: Case) -> Seen:
    predictions, mlflow, _ = case.given["databases"]
    seen = bench.catalog(predictions) + bench.catalog(mlflow)
    for name, query in (
        (predictions, "SELECT 'weeks kept', keep_weeks FROM retention"),
        (mlflow, "SELECT 'experiment', count(*) FROM experiments WHERE name <> 'Default'"),
    ):
        with suppress(sa.exc.ProgrammingError):
            seen += Counter(tuple(row) for row in bench.rows(name, query))
    return seen


def setting_up(_: Place) -> Mapping[str, Step]:
    module = "churn.workflows.set_up"
    return {
        "no database is made": (module, "ensure_database", "entered"),
        "a database is made": (module, "ensure_database", "left"),
        "all databases are made": (module, "ensure_database", "left", 2),
        "the roles are made": (module, "ensure_roles", "left"),
        "MLflow's tables are made": (module, "migrate_mlflow", "left"),
        "our tables are made, not committed": ("alembic.command", "upgrade", "left", 1),
        "our tables are made": (module, "migrate_predictions", "left"),
        "retention is recorded": (module, "record_retention", "left"),
        "the experiment is made": ("mlflow", "MlflowClient.create_experiment", "left"),
    }


def _of_release(bench: Bench, place: Place) -> Case:
    case = bench.fresh(place, {CHAMPION: 1})
    bench.put(case, INPUT, body_of(activity()))
    case = bench.with_databases(case, "release")
    bench.copy_release(case.given["databases"][0])
    return case


def migrate(_deployment: Deployment, case: Case) -> None:
    url = case.server.set(database=case.given["databases"][0])
    ensure_database(url)
    migrate_predictions(url)


def migrated(bench: Bench, case: Case) -> Seen:
    (name,) = case.given["databases"]
    rows = "SELECT variant, account_id, round(churn_probability::numeric, 6) FROM churn_predictions_current"
    return bench.catalog(name) + Counter(tuple(row) for row in bench.rows(name, rows))


def migrating(_: Place) -> Mapping[str, Step]:
    step = ("alembic.runtime.migration", "HeadMaintainer.update_to_step")
    return {
        "nothing is changed": ("alembic.command", "upgrade", "entered"),
        "tables are changed": (*step, "entered"),
        "a migration is done": (*step, "left"),
        "all are done, not committed": ("alembic.command", "upgrade", "left"),
        "all is committed": ("churn.database.schema", "_set_up_lock", "entered"),
    }


# Restore, and what is purged of Dagster's log

_OF_BACKUP = ("CHURN_DAGSTER_DB_NAME", "CHURN_DB_NAME", "MLFLOW_DB_NAME")


def as_written(name: str, server: sa.URL, databases: Sequence[str], backup: Path) -> None:
    """Run one of the blocks of commands in ``docs/backup.md``."""
    found = re.search(rf"<!-- {name} -->\n```bash\n(.*?)```", (ROOT / "docs/backup.md").read_text(), re.DOTALL)
    assert found
    programs = find_programs(None, None, copies=backup.parent).folder
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}", "PGHOST": str(server.host), "PGPORT": str(server.port),
        "PGUSER": str(server.username), "PGPASSWORD": str(server.password), "BACKUP": str(backup),
        **dict(zip(_OF_BACKUP, databases, strict=True)),
    }  # fmt: skip
    subprocess.run(
        ["bash", "-c", found[1]], env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _lost(bench: Bench, place: Place) -> Case:
    """Back up three databases, once, and lose them."""
    case = bench.fresh(place, {CHAMPION: 1})
    bench.put(case, INPUT, body_of(activity()))
    backup = bench.house.deployment.settings.churn_home / f"backup-{bench.number}"
    if not backup.exists():
        case = bench.with_databases(case, "backup_dagster", "backup_churn", "backup_mlflow")
        for name in case.given["databases"]:
            bench.copy_release(name)
        as_written("back up", case.server, case.given["databases"], backup)
    case = bench.with_databases(case, "backup_dagster", "backup_churn", "backup_mlflow")
    return replace(case, given={**case.given, "backup": backup})


def restore(_deployment: Deployment, case: Case) -> None:
    os.setpgid(0, 0)  # so that the commands are killed, too
    as_written("restore", case.server, case.given["databases"], case.given["backup"])


def restored(bench: Bench, case: Case) -> Seen:
    rows = "SELECT variant, account_id, round(churn_probability::numeric, 6) FROM churn_predictions_current"
    seen: Seen = Counter()
    for name in case.given["databases"]:
        seen += bench.catalog(name) + Counter((name, *row) for row in bench.rows(name, rows))
    return seen


def _logged_runs(bench: Bench, place: Place) -> Case:
    """Materialize two partitions of an asset in two weeks, once, in a log that is copied."""
    case = bench.with_databases(bench.fresh(place, {CHAMPION: 1}), "dagster")
    bench.put(case, INPUT, body_of(activity()))
    template = f"lane_{bench.number}_dagster_template"
    if not execute(bench.server, "SELECT FROM pg_database WHERE datname = :name", name=template):
        import dagster as dg

        ensure_database(case.server.set(database=template))
        parts = dg.StaticPartitionsDefinition(["a", "b"])
        asset = dg.asset(name="scores", partitions_def=parts)(lambda: None)
        with _instance(case, template) as instance:
            for key in parts.get_partition_keys() * 2:
                dg.materialize([asset], instance=instance, partition_key=key, run_config=_SILENT)
    execute(case.server.set(database="postgres"), f"CREATE DATABASE {case.given['databases'][0]} TEMPLATE {template}")
    return case


_SILENT = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@contextmanager
def _instance(case: Case, database: str) -> "Iterator[DagsterInstance]":
    import dagster as dg

    url = case.server.set(drivername="postgresql", database=database).render_as_string(hide_password=False)
    with tempfile.TemporaryDirectory(prefix="churn-dagster-") as home:
        (Path(home) / "dagster.yaml").write_text(json.dumps({"storage": {"postgres": {"postgres_url": url}}}))
        with dg.DagsterInstance.from_config(home) as instance:
            yield instance


def purge(_deployment: Deployment, case: Case) -> None:
    from orchestration.upkeep import purge_runs

    with _instance(case, case.given["databases"][0]) as instance:
        purge_runs(instance, datetime.now(UTC))


def purged(bench: Bench, case: Case) -> Seen:
    queries = (
        "SELECT 'event', asset_key, partition, dagster_event_type FROM event_logs WHERE asset_key IS NOT NULL",
        "SELECT 'other event', count(*) FROM event_logs WHERE asset_key IS NULL",
        "SELECT 'run', count(*) FROM runs",
    )
    return Counter(tuple(row) for query in queries for row in bench.rows(case.given["databases"][0], query))


def purging(_: Place) -> Mapping[str, Step]:
    return {
        "events are purged": ("dagster", "DagsterInstance.delete_run", "entered"),
        "a run is purged": ("dagster", "DagsterInstance.delete_run", "left"),
        "nothing is purged": ("orchestration.upkeep", "_with", "entered"),
        "events are purged, not committed": ("orchestration.upkeep", "_with", "left", 2),
    }


_BOTH: tuple[Place, ...] = ("S3", "folder")
OPERATIONS: tuple[Operation, ...] = (
    Operation("set-up", _empty_server, set_up, setting_up, set_up_as, naive=naive.SET_UP,
              each=1, random=6, twice=3, scoring=0),
    Operation("migration", _of_release, migrate, migrating, migrated, naive=naive.MIGRATION, random=20, twice=8),
    Operation("log_model", _unregistered(1), log_models, registering(), registered, _asked_of_registration,
              naive=naive.REGISTRATION, places=_BOTH, each=1),
    Operation("log_model --all", _unregistered(3), log_models, registering(3), registered, _asked_of_registration,
              naive=naive.REGISTRATION, places=_BOTH, each=1, random=5, twice=3, scoring=0),
    Operation("training", _untrained, train, training, trained, places=_BOTH, each=1, random=4, twice=2, scoring=0),
    Operation("promotion", _with_aliases({CHAMPION: 1, CHALLENGER: 2}), promote, lambda _: MOVES, moved,
              lambda *_: _asked_of_move("promoted", {CHAMPION: 1}, {CHAMPION: 2, PREVIOUS: 1}), _decided,
              naive.PROMOTION),
    Operation("rollback", _with_aliases({CHAMPION: 2, PREVIOUS: 1}), roll_back, lambda _: MOVES, moved,
              lambda *_: _asked_of_move("rolled_back", {CHAMPION: 2}, {CHAMPION: 1, PREVIOUS: 2}), _decided,
              naive.ROLLBACK),
    Operation("A/B share", _with_aliases({CHAMPION: 1, CHALLENGER: 2}), share,
              lambda _: {name: MOVES[name] for name in list(MOVES)[:3]}, moved,
              lambda *_: _asked_of_move("shared", {CHAMPION: 1}, {CHAMPION: 1, CHALLENGER: 2}, 2_500), _decided),
    Operation("ingestion", lambda bench, place: _with_history(bench, place, 1)[0], ingest, ingesting, _ingested,
              _asked_of_history(1), _twice_between, naive.INGESTION, _BOTH, each=3, random=25, twice=10, scoring=10),
    Operation("compaction", _with_full_history, ingest, compacting, _ingested, _asked_of_compaction, _twice_between,
              naive.COMPACTION, _BOTH, each=3, random=25, twice=10, scoring=10),
    Operation("evaluation", _unevaluated, evaluate, evaluating, evaluated, naive=naive.EVALUATION, places=_BOTH),
    Operation("monitoring", _failing, monitor, monitoring, monitored, _asked_of_monitoring, naive=naive.MONITORING,
              each=3),
    Operation("alerts", _alerting, alert, alerting, alerted, _asked_of_alerts, naive=naive.ALERTS, each=3),
    Operation("erasure", _to_erase, erase, erasing, erased, _asked_of_erasure, naive=naive.ERASURE, places=_BOTH,
              each=2, random=15),
    Operation("retention", _to_retain, retain, retaining, retained, _asked_of_retention, naive=naive.RETENTION),
    Operation("restore", _lost, restore, lambda _: {}, restored, random=15, twice=0),
    Operation("purge", _logged_runs, purge, purging, purged),
    Operation("delivery", _undelivered, deliver_weeks, delivering, _delivered, _asked_of_delivery, _delivered_between,
              naive.DELIVERY),
)  # fmt: skip
"""By name: what it does, in which places, and how often it is killed."""
