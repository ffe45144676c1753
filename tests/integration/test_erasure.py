"""At stake: a player asks to be forgotten, once. Whatever knew of them must not, tomorrow's extract must not bring them
back, and nobody else may lose a row by it. Weeks that are too old go the same way: whole, and no others.
"""

import gzip
import io
import json
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import numpy as np
import pandas as pd
import polars as pl
import pytest

from churn.cli.main import main
from churn.data.erased import Erased, tombstone
from churn.data.formats import read_frame
from churn.data.labels import Horizon
from churn.database.erasure import Erasures, erase_rows
from churn.database.predictions import BatchInProgress, PredictionStore
from churn.deployment.services import Deployment
from churn.deployment.settings import load_settings
from churn.errors import DatabaseUnavailableError, UsageError
from churn.storage.history import ActivityHistory
from churn.storage.places import Bucket, Folder, ReplacedError
from churn.variants import Variant
from churn.workflows.erase import first_kept_week
from churn.workflows.evaluate import PerformanceEvaluator
from orchestration.definitions import defs
from orchestration.partitions import RANGE_END_TAG, RANGE_START_TAG
from tests.support.batches import NO_ROWS, WEEK, record, scored, week_request
from tests.support.delivered import read_delivered, require_delivered
from tests.support.inputs import activity, as_csv, as_json_array, as_json_lines, as_parquet, monday, put_input, register
from tests.support.site import Run, Site, bundled, client, n_rows_naming

US = Variant("us")
BASE = Variant()
COPIES = {
    "activity.parquet": as_parquet,
    "activity.csv": as_csv,
    "activity.jsonl": as_json_lines,
    "activity.json": as_json_array,
    "activity.csv.gz": lambda rows: gzip.compress(as_csv(rows)),
    "X_test_sample_2.json/part-0.parquet": as_parquet,
}
PREDICTIONS = "SELECT p::text FROM churn_predictions AS p"


def names(content: bytes, account: int) -> bool:
    """Return whether a file names an account, as text or in a Parquet column."""
    if content.startswith(b"PAR1"):
        frame = pl.read_parquet(content)
        return "account_id" in frame.columns and account in frame["account_id"].to_list()
    return str(account).encode() in content


def files_naming(account: int, *folders: Path) -> set[str]:
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path.name for path in paths if names(path.read_bytes(), account)}


def objects_naming(site: Site, account: int) -> set[str]:
    """Look into every version of every object of the bucket."""
    s3 = boto3.client("s3")
    held = s3.list_object_versions(Bucket=site.bucket).get("Versions", [])
    found = set()
    for item in held:
        body = s3.get_object(Bucket=site.bucket, Key=item["Key"], VersionId=item["VersionId"])["Body"].read()
        if names(body, account):
            found.add(item["Key"])
    return found


def score(instance: dg.DagsterInstance, first: str, last: str, *, week: date | None = None) -> None:
    config = {
        "ops": {"score_variants": {"config": {"week": str(week) if week else None, "corrected": week is not None}}}
    }
    tags = {RANGE_START_TAG: first, RANGE_END_TAG: last}
    job = defs.resolve_job_def("churn_prediction_job")
    assert job.execute_in_process(instance=instance, tags=tags, run_config=config).success


@dataclass(frozen=True)
class Player:
    """One account that is known everywhere, and what of all others must stay."""

    account: int
    extract: pd.DataFrame
    n_rows: int
    copies: Path
    judge: PerformanceEvaluator
    predictions: list[tuple[Any, ...]]
    facts: dict[Variant, pl.DataFrame]


@pytest.fixture
def player(
    site: Site, deployment: Deployment, instance: dg.DagsterInstance, log_model: Run, local_root: Path
) -> Player:
    """The likeliest to churn, whom Dagster's UI lists: scored, delivered, quarantined, in histories, local copies."""
    os.environ["CHURN_DELIVERY_PREFIX"] = f"s3://{site.bucket}/delivered"
    boto3.client("s3").put_bucket_versioning(Bucket=site.bucket, VersioningConfiguration={"Status": "Enabled"})
    register(site, log_model, instance, "base", "geography-us")
    rows = activity()
    put_input(site, "base", as_parquet(rows))
    put_input(site, "geography-us", as_parquet(rows))
    score(instance, "base", "geography-us")
    likeliest = (
        "SELECT account_id FROM churn_predictions_latest WHERE is_at_risk ORDER BY churn_probability DESC LIMIT 1"
    )
    ((account,),) = site.rows(site.churn, likeliest)
    own = rows[rows["account_id"] == account]
    before = own["activity_month"].min() - pd.offsets.MonthBegin(1)
    broken = own.head(1).assign(activity_month=before, total_deposit=-1.0)
    put_input(site, "geography-us", as_parquet(pd.concat([rows, broken])))
    score(instance, "geography-us", "geography-us")
    score(instance, "geography-us", "geography-us", week=monday(1))
    judge = deployment.promoter().evaluator
    assert all(judge.ingestion.ingest(variant).facts.height > 0 for variant in (US, BASE))
    copies = local_root / "Geography-US/data/churn"  # a folder may be spelled in any case
    nobodys = local_root / "geography-a__b/data/churn"
    for folder in (copies, nobodys):
        folder.mkdir(parents=True)
    (nobodys / "activity.csv").write_bytes(as_csv(rows.head(1)))
    for name, write in COPIES.items():
        (copies / name).parent.mkdir(exist_ok=True)
        (copies / name).write_bytes(write(rows))
        os.utime(copies / name, (1_000_000_000, 1_000_000_000))
    others = site.rows(site.churn, f"{PREDICTIONS} WHERE account_id <> :a ORDER BY 1", a=account)
    facts = {v: judge.ingestion.history.read(v).filter(pl.col("account_id") != account) for v in (US, BASE)}
    return Player(account, rows, len(own), copies, judge, others, facts)


def test_an_erased_account_is_nowhere_comes_back_by_no_extract_and_nobody_else_loses_a_row(
    site: Site, player: Player, instance: dg.DagsterInstance, run_main: Run, tmp_path: Path
) -> None:
    account = player.account
    before = n_rows_naming(site, site.churn, account)
    assert "quarantined_rows" in before
    assert set(n_rows_naming(site, site.dagster, account)) == {"event_logs", "asset_keys"}

    weeks = {(BASE.key, monday()), (US.key, monday()), (US.key, monday(1))}
    delivered = read_delivered(site.bucket, "delivered/")
    assert {key for key, rows in delivered.items() if account in rows["account_id"]} == weeks
    counted = run_main(main, "erase", "--account", str(account), "--dry-run")
    assert counted.status == 0, counted
    assert n_rows_naming(site, site.churn, account) == before
    said = run_main(main, "erase", "--account", str(account))

    assert said.status == 0, said
    assert said.out == counted.out.replace("dry run, nothing was erased: ", "").replace("would be erased", "erased")
    assert "dry run, nothing was erased: " in counted.out
    assert f"     4 erased  {site.churn}: churn_predictions\n" in said.out
    assert f"     2 erased  {site.churn}: quarantined_rows\n" in said.out
    assert n_rows_naming(site, site.churn, account) == {}
    assert n_rows_naming(site, site.dagster, account) == {}
    assert said.out.count(f"     1 erased  s3://{site.bucket}/delivered/variant=") == len(weeks)
    require_delivered(site.bucket, "delivered/", site.current())
    assert files_naming(account, player.copies, load_settings().churn_home, tmp_path / "dagster-home") == set()
    # The extracts are their maker's: they are named and counted.
    extracts = {"data/churn/activity.parquet", "geography-us/data/churn/activity.parquet"}
    assert objects_naming(site, account) == extracts
    assert said.out.count("LEFT") == len(extracts)
    require_the_others(site, player)

    score(instance, "base", "geography-us")
    assert [player.judge.ingestion.ingest(variant).n_added for variant in (US, BASE)] == [0, 0]
    assert n_rows_naming(site, site.churn, account) == {}
    assert n_rows_naming(site, site.dagster, account) == {}
    dropped = "SELECT n_rows_erased FROM scoring_batches WHERE is_current AND scored_week = :week ORDER BY variant"
    assert site.rows(site.churn, dropped, week=monday()) == [(player.n_rows,), (player.n_rows + 1,)]
    again = run_main(main, "erase", "--account", str(account))
    assert f"     0 erased  {site.churn}: churn_predictions\n" in again.out


def require_the_others(site: Site, player: Player) -> None:
    """Fail when anybody else lost a row, or a file looks newer than it is."""
    assert site.rows(site.churn, f"{PREDICTIONS} ORDER BY 1") == player.predictions
    for variant, held in player.facts.items():
        assert player.judge.ingestion.history.read(variant).equals(held)
    ids = player.extract["account_id"]
    for name in COPIES:
        left = read_frame(player.copies / name)["account_id"].cast(pl.Int64).to_list()
        assert left == ids[ids != player.account].to_list()
        assert (player.copies / name).stat().st_mtime == 1_000_000_000


@pytest.fixture
def store(site: Site) -> PredictionStore:
    return PredictionStore(site.login.set(database=site.churn))


def publish(store: PredictionStore, n_rows: int = 3, *, n_erasures: int = 0, **changed: object) -> int:
    told = record(n_rows, **changed)
    batch = BatchInProgress([scored(n_rows)], lambda: (told, NO_ROWS), n_erasures=n_erasures)
    return store.publish(told.variant, told.scored_week, batch)[0][0]


def test_an_account_is_erased_of_one_variant_alone_where_that_is_asked(
    site: Site, store: PredictionStore, run_main: Run
) -> None:
    publish(store)
    publish(store, variant=BASE)

    unset = run_main(main, "erase", "--account", "2", "--variant", "")  # as of a variable of the shell
    said = run_main(main, "erase", "--account", "2", "--variant", "geography-us")

    unset.require_one_line("variant key ''", status=2)
    assert said.status == 0, said
    held = site.rows(site.churn, "SELECT variant, account_id FROM churn_predictions_current ORDER BY 1, 2")
    assert held == [("base", 1), ("base", 2), ("base", 3), ("geography-us", 1), ("geography-us", 3)]
    assert len(store.erased(US).tombstones) == 1
    assert not store.erased(BASE).tombstones


def test_a_row_number_is_no_account(site: Site, store: PredictionStore, run_main: Run) -> None:
    publish(store, account_ids="row_number")

    assert run_main(main, "erase", "--account", "2").status == 0

    assert site.rows(site.churn, "SELECT count(*) FROM churn_predictions") == [(3,)]


def test_messages_that_quoted_the_account_do_not_any_more_and_say_the_rest(site: Site, store: PredictionStore) -> None:
    told = 'row 7 broke a rule: {"account_id":70,"x":7}; and {"account_id": 7, "x": 7}'
    store.record_failure("geography-us", WEEK, None, datetime.now(UTC), RuntimeError(told))

    removed = erase_rows(site.login.set(database=site.churn), "7", dry_run=False, withdraw=print)
    assert [(one.n_rows, one.variants) for one in removed if one.place == "messages"] == [(1, ["geography-us"])]

    kept = 'row 7 broke a rule: {"account_id":70,"x":7}; and {"account_id": erased, "x": 7}'
    assert site.rows(site.churn, "SELECT error FROM scoring_attempts") == [(kept,)]


def test_rows_read_before_an_erasure_are_not_published_after_it(site: Site, store: PredictionStore) -> None:
    read_before = store.erased(US).n_erasures
    erase_rows(site.login.set(database=site.churn), "2", dry_run=False, withdraw=print)

    with pytest.raises(DatabaseUnavailableError, match="must be read again"):
        publish(store, n_erasures=read_before)

    assert site.rows(site.churn, "SELECT count(*) FROM scoring_batches") == [(0,)]
    publish(store, n_erasures=store.erased(US).n_erasures)


def test_an_erasure_waits_for_batches_on_their_way_and_erases_theirs(site: Site, store: PredictionStore) -> None:
    is_writing, may_end = threading.Event(), threading.Event()

    def rows() -> Iterable[object]:
        is_writing.set()
        assert may_end.wait(30)
        yield scored(3)

    told = record(3)
    batch = BatchInProgress(rows(), lambda: (told, NO_ROWS))  # type: ignore[arg-type]
    with ThreadPoolExecutor(2) as pool:
        publishing = pool.submit(store.publish, US, WEEK, batch)
        assert is_writing.wait(30)
        erasing = pool.submit(erase_rows, site.login.set(database=site.churn), "2", dry_run=False, withdraw=print)
        with pytest.raises(TimeoutError):
            erasing.result(0.5)
        may_end.set()
        publishing.result(30)
        assert [one.n_rows for one in erasing.result(30) if one.place == "churn_predictions"] == [1]
    assert site.rows(site.churn, "SELECT account_id FROM churn_predictions ORDER BY 1") == [(1,), (3,)]


MONTH = date(2025, 1, 1)
EXTRACT = pl.DataFrame({"account_id": [1, 2], "activity_month": [MONTH, MONTH], "total_deposit": [1.0, 2.0]})
RECEIVED_AT = datetime(2025, 3, 1, tzinfo=UTC)


class Slow(Folder):
    """A folder in which each write begins and waits."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def write(self, key: str, body: bytes) -> None:
        self.has_begun.set()
        assert self.may_end.wait(30)
        super().write(key, body)


def test_an_erasure_waits_for_extracts_on_their_way_into_the_history(
    site: Site, deployment: Deployment, tmp_path: Path
) -> None:
    place = Slow(tmp_path)
    history = ActivityHistory(place, Erasures(deployment.database).settled)
    eraser = replace(deployment.eraser(), places=[Folder(tmp_path)])
    with ThreadPoolExecutor(2) as pool:
        appending = pool.submit(history.append, US, EXTRACT, RECEIVED_AT)
        assert place.has_begun.wait(30)
        erasing = pool.submit(lambda: list(eraser.erase_account("2")))
        assert not wait([erasing], timeout=0.5).done
        place.may_end.set()
        appending.result(30)
        assert any(removed.n for removed in erasing.result(30))

    assert ActivityHistory(Folder(tmp_path)).read(US)["account_id"].to_list() == [1]
    place.may_end.set()
    late = ActivityHistory(place, Erasures(deployment.database).settled)
    assert late.append(US, EXTRACT, RECEIVED_AT + timedelta(days=7)).n_added == 0


def test_what_an_append_wrote_after_an_erasure_is_erased_by_the_next_one(tmp_path: Path) -> None:
    ActivityHistory(Folder(tmp_path)).append(US, EXTRACT, RECEIVED_AT)  # it knew of no erasure
    salt = bytes(range(32))
    erased = Erased(salt, frozenset([tombstone(salt, 2)]), 1)

    appended = ActivityHistory(Folder(tmp_path), lambda _: nullcontext(erased)).append(US, EXTRACT, RECEIVED_AT)

    assert appended.facts["account_id"].to_list() == [1]
    assert ActivityHistory(Folder(tmp_path)).read(US)["account_id"].to_list() == [1]


class Delivering(Folder):
    """A folder to which others deliver files in the middle of a replacement; some systems cannot exchange files."""

    def __init__(self, root: Path, *bodies: bytes, can_exchange: bool = True) -> None:
        super().__init__(root)
        self.bodies, self.can_exchange = list(bodies), can_exchange

    def exchange(self, one: Path, other: Path) -> bool:
        if self.bodies:
            Folder(self.root).write(other.relative_to(self.root).as_posix(), self.bodies.pop(0))
        return self.can_exchange and super().exchange(one, other)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_an_extract_delivered_during_an_erasure_stays_and_is_erased_from(
    site: Site, deployment: Deployment, tmp_path: Path, can_exchange: bool
) -> None:
    key = f"{US.prefix}data/churn/activity.csv"
    older, newer = (EXTRACT.with_columns(total_deposit=pl.lit(deposit)) for deposit in (1.0, 9.0))
    place = Delivering(tmp_path, newer.write_csv().encode(), can_exchange=can_exchange)
    place.write(key, older.write_csv().encode())

    removed = list(replace(deployment.eraser(), places=[place]).erase_account("2"))

    assert [one.n for one in removed if one.place == place.uri(key)] == [1]
    assert (tmp_path / key).read_text() == newer.head(1).write_csv()
    assert len(list((tmp_path / key).parent.iterdir())) == 1


def test_of_two_extracts_delivered_during_a_replacement_the_last_stays(tmp_path: Path) -> None:
    place = Delivering(tmp_path, b"second", b"third")
    place.write("x", b"first")

    with pytest.raises(ReplacedError):
        place.replace("x", b"erased", b"first")

    assert (tmp_path / "x").read_bytes() == b"third"
    assert [entry.key for entry in place.list("")] == ["x"]


def test_what_a_killed_writer_left_unfinished_is_deleted_and_what_another_writes_is_not(tmp_path: Path) -> None:
    class Meanwhile(Folder):
        def exchange(self, one: Path, other: Path) -> bool:
            self.erase_versions("")
            return super().exchange(one, other)

    place, name = Meanwhile(tmp_path), f"{'0f' * 16}.unfinished"
    (tmp_path / "data").mkdir()
    for path in (tmp_path / name, tmp_path / "data" / "theirs.unfinished"):
        path.write_bytes(b"account 2")
    place.write("data/extract", b"before")

    place.replace("data/extract", b"after", b"before")

    assert [path.name for path in sorted(tmp_path.rglob("*")) if path.is_file()] == ["extract", "theirs.unfinished"]
    assert (tmp_path / "data/extract").read_bytes() == b"after"


def test_an_erasure_deletes_the_versions_of_parts_that_were_compacted(site: Site, tmp_path: Path) -> None:
    client("s3").put_bucket_versioning(Bucket=site.bucket, VersioningConfiguration={"Status": "Enabled"})
    history = ActivityHistory(Bucket(site.bucket))
    for week in range(9):
        extract = EXTRACT.with_columns(total_deposit=pl.lit(float(week)))
        history.append(US, extract, RECEIVED_AT + timedelta(weeks=week))

    def versions() -> list[str]:
        listed = client("s3").list_object_versions(Bucket=site.bucket, Prefix=US.prefix)
        return [item["Key"] for item in listed.get("Versions", [])]

    current = {entry.key for entry in history.place.list(US.prefix)}
    assert set(versions()) > current, "compaction leaves the versions"
    salt = bytes(range(32))

    assert history.erase(US, Erased(salt, frozenset([tombstone(salt, 2)]), 1)) > 0

    assert sorted(versions()) == sorted(entry.key for entry in history.place.list(US.prefix))
    assert set(history.read(US)["account_id"]) == {1}


def test_encoded_rows_of_an_erased_account_are_dropped_and_counted(
    site: Site, deployment: Deployment, instance: dg.DagsterInstance, log_model: Run, run_main: Run
) -> None:
    register(site, log_model, instance, "geography-us")
    sample = [json.loads(line) for line in io.BytesIO(bundled("X_test_sample_2.json"))][:5]
    lines = "\n".join(json.dumps(row | {"account_id": number}) for number, row in enumerate(sample, start=100))
    put_input(site, "geography-us", lines.encode(), "activity.jsonl")
    assert run_main(main, "erase", "--account", "102").status == 0

    outcome = deployment.scorer().score_variant(week_request(monday()).of(US))

    assert (outcome.record.n_rows_read, outcome.record.n_rows_scored, outcome.record.n_rows_erased) == (5, 4, 1)
    assert site.rows(site.churn, "SELECT account_id FROM churn_predictions ORDER BY 1") == [
        (100,),
        (101,),
        (103,),
        (104,),
    ]


def test_only_the_erased_account_is_told_among_many() -> None:
    salt = bytes(range(32))
    ids = pl.Series("account_id", np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 200_000))
    chosen = [ids[7], ids[8], 5]
    erased = Erased(salt, frozenset(tombstone(salt, one) for one in chosen))

    assert np.flatnonzero(erased.marks(ids)).tolist() == [7, 8]
    assert erased.marks(pl.Series([None, 5, 0], dtype=pl.Int64)).tolist() == [False, True, False]


def n_by_week(site: Site, table: str) -> dict[date, int]:
    query = f"SELECT scored_week, count(*) FROM {table} GROUP BY 1"  # noqa: S608 the test's own names
    return dict(site.rows(site.churn, query))  # type: ignore[arg-type]


def test_the_nightly_upkeep_drops_weeks_that_are_not_kept_and_all_that_is_recorded_of_them(
    site: Site, store: PredictionStore, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, old, older = monday(19), monday(20), monday(53)
    for week in (monday(), kept, old, older):
        publish(store, scored_week=week)
        store.record_failure("geography-us", week, None, datetime.now(UTC), RuntimeError("it failed"))
    quarantined = NO_ROWS.vstack(
        pl.DataFrame(
            {"row_number": [1], "account_id": [9], "activity_month": [None], "rules": [["r"]], "row": ["{}"]},
            schema=NO_ROWS.schema,
        )
    )
    told = record(3, scored_week=old)
    batch_id = store.publish(US, old, BatchInProgress([scored(3)], lambda: (told, quarantined)))[0][0]
    site.rows(site.churn, "INSERT INTO drift_flags VALUES (:batch, 'total_deposit', true)", batch=batch_id)
    job = defs.resolve_job_def("maintenance_job")
    monkeypatch.setenv("CHURN_DELIVERY_PREFIX", f"s3://{site.bucket}/delivered")

    assert job.execute_in_process(instance=instance).success
    assert set(n_by_week(site, "churn_predictions")) == {monday(), kept, old, older}  # unset: for ever
    assert {week for _, week in read_delivered(site.bucket, "delivered/")} == {monday(), kept, old, older}
    monkeypatch.setenv("CHURN_KEEP_WEEKS", "20")
    assert job.execute_in_process(instance=instance).success

    for table in ("churn_predictions", "scoring_batches", "scoring_attempts"):
        assert set(n_by_week(site, table)) == {monday(), kept}
    assert n_by_week(site, "churn_predictions") == {monday(): 3, kept: 3}
    require_delivered(site.bucket, "delivered/", site.current())
    gone = site.rows(
        site.churn,
        "SELECT to_regclass(:a), to_regclass(:b)",
        a=f"churn_predictions_{old:%Y%m%d}",
        b=f"churn_predictions_{kept:%Y%m%d}",
    )
    assert gone[0][0] is None
    assert gone[0][1] is not None
    assert site.rows(site.churn, "SELECT count(*) FROM quarantined_rows") == [(0,)]
    assert site.rows(site.churn, "SELECT count(*) FROM drift_flags") == [(0,)]
    publish(PredictionStore(site.login.set(database=site.churn)), scored_week=old)  # a dropped week can be scored anew


def test_a_person_sees_which_weeks_would_go_before_they_do(site: Site, store: PredictionStore, run_main: Run) -> None:
    for week in (monday(), monday(30)):
        publish(store, scored_week=week)

    dry = run_main(main, "retain", "--weeks", "30", "--dry-run")
    dropped = f"1 week: {monday(30)}; the newest 30 weeks are kept\n"
    assert (dry.status, dry.out) == (0, f"dry run, nothing was dropped: would drop {dropped}")
    assert set(n_by_week(site, "churn_predictions")) == {monday(), monday(30)}
    assert run_main(main, "retain").out == "dropped 0 weeks; all weeks are kept\n"
    assert run_main(main, "retain", "--weeks", "30").out == f"dropped {dropped}"
    assert set(n_by_week(site, "churn_predictions")) == {monday()}


def test_weeks_are_not_dropped_before_they_can_be_judged(site: Site, run_main: Run) -> None:
    run_main(main, "retain", "--weeks", "4").require_one_line("CHURN_KEEP_WEEKS=4", "labels have matured", status=2)
    run_main(main, "retain", "--weeks=-1").require_one_line("-1 weeks cannot be kept", status=2)

    horizon = Horizon(months=3, lag_days=7)
    assert first_kept_week(date(2026, 11, 24), 20, horizon) == date(2026, 7, 13)
    assert first_kept_week(date(2026, 11, 24), 0, horizon) is None
    with pytest.raises(UsageError):
        first_kept_week(date(2026, 11, 24), 17, horizon)
