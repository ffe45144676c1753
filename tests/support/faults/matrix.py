"""The faults: each is made, met by the product, and answered by a retry; then what is left is judged.

A fault is a function of the :class:`Stage` that makes it once for a variant's week and says in words what came of it.
"""

import logging
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest
import sqlalchemy as sa

import churn.storage.places as places_module
from churn.database.embedded import embedded_postgres
from churn.database.predictions import PredictionStore
from churn.errors import ChurnError, TransientError
from churn.storage.places import Bucket
from churn.variants import Variant
from churn.workflows.score import Scorer
from tests.support.batches import week_request
from tests.support.faults.house import BUCKET, INPUT_KEY, LOGIN, VARIANTS, House, Input, through, week_of
from tests.support.faults.ledger import Reader, Tally, execute, judge, judge_week
from tests.support.faults.naive import publish_naively, score_naively
from tests.support.faults.proxy import Fault, Proxy, proxy_to
from tests.support.faults.s3 import FaultyHttp, Wrong, faulty_http
from tests.support.faults.worker import POINTS, Nursery, Order

ROUNDS_A_WEEK = 24
NAIVE_MOST = 10
LANE_ROUNDS = 100 * ROUNDS_A_WEEK
_NEW_WEEKS = count(300)
WENT_THROUGH = "went through by itself"
_MID_COPY, _MID_INSERT = 9000, 2500  # bytes sent on a connection: more than precedes the rows, less than with them


@dataclass
class Stage:
    """Where faults are made: the house, a reader at its window, the proxies before its services.

    Attributes:
        nursery: Forks processes to be killed; ``None`` where nothing is.
    """

    house: House
    reader: Reader
    proxy: Proxy
    http: FaultyHttp
    nursery: Nursery | None
    rng: random.Random
    variants: Sequence[Variant] = VARIANTS
    rounds: Iterator[int] = field(default_factory=count)
    retries: list[str] = field(default_factory=list)
    usual_s: float | None = None
    restarts: ExitStack = field(default_factory=ExitStack)
    _scorers: dict[str, Scorer] = field(default_factory=dict)

    def scorer(self, name: str = "direct") -> Scorer:
        """Return a scorer with nothing in between, or behind the proxy of PostgreSQL, or of S3; each keeps open."""
        if name not in self._scorers:
            self._scorers[name] = self._open(name)
        return self._scorers[name]

    def fresh(self, name: str) -> Scorer:
        """Return a scorer that nothing has gone wrong with yet."""
        self._scorers.pop(name, None)
        return self.scorer(name)

    def _open(self, name: str) -> Scorer:
        if name == "postgres":
            url = through(self.house.deployment.database, self.proxy.port)
            scorer = self.house.scorer(database=url)
            return replace(scorer, store=PredictionStore(url, answer_within_s=2))
        if name == "s3":
            return self.house.scorer(bucket=self.bucket(self.http.url))
        if name == "s3 only":
            return self.house.scorer(bucket=self.bucket(self.http.url), fallback=False)
        if name == "mlflow":
            tracking = sa.make_url(self.house.deployment.tracking_uri).set(port=self.proxy.port)
            return self.house.scorer(tracking=tracking.render_as_string(hide_password=False))
        return self.house.scorer()

    def bucket(self, url: str) -> Bucket:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL_S3", url)
            return Bucket(BUCKET)


@dataclass(frozen=True)
class Try:
    """One time that a fault is made."""

    stage: Stage
    variant: Variant
    week: date
    run_id: str
    meant: Input

    def score(self, scorer: Scorer) -> str:
        """Score the week with a scorer that meets the fault; says what came of it."""
        try:
            request = week_request(self.week, dagster_run_id=self.run_id).of(self.variant)
            if scorer.score_variant(request).why_not_current:
                return "kept the week's batch from S3; went through once put right"
        except TransientError:
            return "failed as worth a retry, which went through"
        except ChurnError:
            return "failed for good and clearly; went through once put right"
        return WENT_THROUGH


Make = Callable[[Try], str | None]


@dataclass(frozen=True)
class Row:
    """A fault of the matrix.

    Attributes:
        make: Makes it once; says what came of it, or ``None`` when it did not hit.
        many: How often it is made in the long form.
        naive: The same fault upon the naive way.
    """

    name: str
    make: Make
    many: int
    naive: Callable[[Try], None] | None = None
    few: int = 1


def run_row(row: Row, stage: Stage, n: int) -> tuple[Tally, Tally | None]:
    """Make a fault n times; returns what it did to us and, where it can be made there, to the naive way."""
    ours, theirs = Tally(), Tally()
    before = stage.reader.tally.torn, stage.reader.tally.readings
    naive_before = stage.reader.naive.torn
    weeks: set[date] = set()
    missed = 0
    while ours.n < n and missed < n + 20:
        attempt = prepare(stage)
        weeks.add(attempt.week)
        outcome = row.make(attempt)
        settle(attempt, outcome, ours)
        if outcome is None:
            missed += 1
            continue
        ours.n += 1
        ours.outcomes[outcome] += 1
    for week in weeks:
        judge_week(stage.house, ours, week)
    ours.torn += stage.reader.tally.torn - before[0]
    ours.readings += stage.reader.tally.readings - before[1]
    if row.naive is None:
        return ours, None
    for _ in range(min(n, NAIVE_MOST)):
        attempt = prepare(stage)
        row.naive(attempt)
        _judge_naively(attempt, theirs)
    theirs.torn += stage.reader.naive.torn - naive_before
    return ours, theirs


def prepare(stage: Stage) -> Try:
    """Give a variant new input, above a batch of the old one that is published and whole."""
    i = next(stage.rounds)
    variant, week = stage.variants[i % len(stage.variants)], week_of(i // ROUNDS_A_WEEK)
    stage.reader.week = week
    stage.retries.clear()
    meant = stage.house.put(variant, (i // len(stage.variants)) % 2)
    return Try(stage, variant, week, f"round-{i}", meant)


def settle(attempt: Try, outcome: str | None, tally: Tally) -> None:
    """Retry what did not go through, by a scorer that meets no fault; then judge."""
    stage = attempt.stage
    if outcome != WENT_THROUGH and not (outcome or "").startswith("stood in"):
        run_id = f"{attempt.run_id}-retry"
        stage.scorer().score_variant(week_request(attempt.week, dagster_run_id=run_id).of(attempt.variant))
        last = judge(stage.house, tally, attempt.variant, attempt.week, attempt.meant)
        tally.broken += last != run_id
    else:
        judge(stage.house, tally, attempt.variant, attempt.week, attempt.meant)


def _judge_naively(attempt: Try, tally: Tally) -> None:
    tally.n += 1
    query = (
        "SELECT account_id, churn_probability FROM naive_predictions WHERE variant = :variant AND scored_week = :week"
    )
    rows: dict[int, list[float]] = {}
    for account, score in execute(attempt.stage.house.server, query, variant=attempt.variant.key, week=attempt.week):
        rows.setdefault(account, []).append(score)
    others = [item for item in attempt.stage.house.inputs if item is not attempt.meant]
    is_stale = any(set(rows) == set(item.scores) != set(attempt.meant.scores) for item in others)
    tally.stale += is_stale
    if not is_stale:
        tally.count(rows, attempt.meant.scores)
    clean = "DELETE FROM naive_predictions WHERE variant = :variant AND scored_week = :week"
    execute(attempt.stage.house.server, clean, variant=attempt.variant.key, week=attempt.week)


# Kills of the worker


def at_point(point: str) -> Make:
    def make(attempt: Try) -> str | None:
        return _reap(attempt, Order(attempt.variant.key, attempt.week, attempt.run_id, point))

    return make


def at_random(attempt: Try) -> str | None:
    stage = attempt.stage
    if stage.usual_s is None:  # how long a child takes that is left alone
        started = time.monotonic()
        _reap(attempt, Order(attempt.variant.key, attempt.week, attempt.run_id))
        stage.usual_s = time.monotonic() - started
    order = Order(attempt.variant.key, attempt.week, attempt.run_id)
    said = _reap(attempt, order, after_s=stage.rng.uniform(0, stage.usual_s))
    if said is None:  # it was done before: the machine is faster than it was
        stage.usual_s *= 0.9
    return said


def _reap(attempt: Try, order: Order, after_s: float | None = None) -> str | None:
    nursery = attempt.stage.nursery
    assert nursery is not None
    child = nursery.bear(order)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)  # it is not reaped yet, so the id is still its own
    if nursery.outlive() != -signal.SIGKILL:
        return None
    return "killed after its commit" if _has_batch(attempt) else "killed before its commit"


def _has_batch(attempt: Try) -> bool:
    query = "SELECT count(*) FROM scoring_batches WHERE dagster_run_id = :run"
    return bool(execute(attempt.stage.house.server, query, run=attempt.run_id)[0][0])


def naive_kill(attempt: Try) -> None:
    """Kill the naive way half way through its chunks, and run it again."""
    nursery = attempt.stage.nursery
    assert nursery is not None
    scores = dict(attempt.meant.scores)
    child = nursery.bear(Order(attempt.variant.key, attempt.week, attempt.run_id, scores=scores))
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not _naive_rows(attempt):
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    nursery.outlive()
    publish_naively(attempt.stage.house.deployment.database, attempt.variant.key, attempt.week, scores)


def _naive_rows(attempt: Try) -> int:
    query = "SELECT count(*) FROM naive_predictions WHERE variant = :variant AND scored_week = :week"
    return int(execute(attempt.stage.house.server, query, variant=attempt.variant.key, week=attempt.week)[0][0])


# PostgreSQL


_BACKENDS = """
SELECT pid FROM pg_stat_activity WHERE usename = :login AND state IN ('active', 'idle in transaction')
AND query NOT LIKE 'SELECT 1%'
"""


def _while_scoring(attempt: Try, strike: Callable[[], bool], scorer: Scorer | None = None) -> str | None:
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(attempt.score(scorer or attempt.stage.scorer())))
    thread.start()
    hit = False
    while thread.is_alive() and not (hit := strike()):
        time.sleep(0.002)
    thread.join()
    return said[0] if hit else None


def _kill_a_backend(attempt: Try) -> bool:
    with suppress(sa.exc.DBAPIError, ProcessLookupError):
        for (pid,) in execute(attempt.stage.house.server, _BACKENDS, login=LOGIN):
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def backend_killed(attempt: Try) -> str | None:
    return _while_scoring(attempt, lambda: _kill_a_backend(attempt))


def naive_backend_killed(attempt: Try) -> None:
    _naive_while(attempt, lambda: bool(_naive_rows(attempt)) and _kill_a_backend(attempt))


def _naive_while(attempt: Try, strike: Callable[[], bool], url: sa.URL | None = None) -> None:
    target = url or attempt.stage.house.deployment.database
    work = threading.Thread(
        target=lambda: publish_naively(target, attempt.variant.key, attempt.week, dict(attempt.meant.scores))
    )
    work.start()
    while work.is_alive():
        with suppress(sa.exc.DBAPIError):
            if strike():
                break
        time.sleep(0.002)
    work.join()


def server_killed(attempt: Try) -> str | None:
    stage, delay = attempt.stage, attempt.stage.rng.uniform(0, 0.1)  # a warm run is over soon
    home = stage.house.deployment.settings.churn_home
    started = time.monotonic()

    def strike() -> bool:
        if time.monotonic() - started < delay:
            return False
        pid = int((home / "postgres/cluster/data/postmaster.pid").read_text().split("\n")[0])
        os.kill(pid, signal.SIGKILL)
        # The last to come starts it again; the others still hold it.
        stage.restarts.enter_context(embedded_postgres(home, ports=[int(stage.house.server.port or 0)] * 20))
        return True

    return _while_scoring(attempt, strike)


def by_proxy(fault: Callable[[], Fault], scorer: str = "postgres") -> Make:
    def make(attempt: Try) -> str | None:
        proxy = attempt.stage.proxy
        proxy.fault, before = fault(), proxy.n_faults
        said = attempt.score(attempt.stage.fresh(scorer))
        proxy.fault = None
        return said if proxy.n_faults > before else None

    return make


def naive_by_proxy(fault: Callable[[], Fault]) -> Callable[[Try], None]:
    def make(attempt: Try) -> None:
        proxy = attempt.stage.proxy
        proxy.fault = fault()
        url = through(attempt.stage.house.deployment.database, proxy.port)
        publish_naively(url, attempt.variant.key, attempt.week, dict(attempt.meant.scores))
        proxy.fault = None

    return make


@contextmanager
def _for_a_while(house: House, on: str, off: str, seconds: float) -> Iterator[None]:
    execute(house.server, on)
    timer = threading.Timer(seconds, lambda: execute(house.server, off))
    timer.start()
    try:
        yield
    finally:
        timer.join()


def too_many_connections(attempt: Try) -> str | None:
    house = attempt.stage.house
    on, off = (f"ALTER ROLE {LOGIN} CONNECTION LIMIT {limit}" for limit in (0, -1))
    with _for_a_while(house, on, off, 1.0):
        return attempt.score(attempt.stage.fresh("refused"))


def deadlock(attempt: Try) -> str | None:
    """Hold the row that publishing updates, and ask for the lock that it holds."""
    server, n_before = attempt.stage.house.server, _deadlocks(attempt)
    attempt.stage.scorer().score_variant(week_request(attempt.week, dagster_run_id="before").of(attempt.variant))
    key = f"{attempt.variant.key}|{attempt.week.isoformat()}"
    engine = sa.create_engine(server, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("SET deadlock_timeout = '30s'")  # so that it is the other that is told
        held = "SELECT 1 FROM scoring_batches WHERE variant = :v AND scored_week = :w AND is_current FOR UPDATE"
        connection.execute(sa.text(held), {"v": attempt.variant.key, "w": attempt.week})
        said: list[str] = []
        thread = threading.Thread(target=lambda: said.append(attempt.score(attempt.stage.scorer())))
        thread.start()
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = :login"
        while thread.is_alive() and not execute(server, waiting, login=LOGIN)[0][0]:
            time.sleep(0.01)
        lock = "SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"
        connection.execute(sa.text(lock), {"key": key})
    thread.join()
    return said[0] if _deadlocks(attempt) > n_before else None


def _deadlocks(attempt: Try) -> int:
    time.sleep(0.1)  # PostgreSQL's counters are a little late
    query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    return int(execute(attempt.stage.house.server, query)[0][0])


def two_at_once(attempt: Try) -> str | None:
    """Let two runs publish the same week at the same time."""
    start, said = threading.Barrier(2), []

    def run(scorer: Scorer) -> None:
        start.wait()
        said.append(attempt.score(scorer))

    threads = [threading.Thread(target=run, args=(attempt.stage.scorer(name),)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return WENT_THROUGH if set(said) == {WENT_THROUGH} else next(text for text in said if text != WENT_THROUGH)


def naive_two_at_once(attempt: Try) -> None:
    target, scores = attempt.stage.house.deployment.database, dict(attempt.meant.scores)
    arguments = (target, attempt.variant.key, attempt.week, scores)
    threads = [threading.Thread(target=publish_naively, args=arguments) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def serialization_failure(attempt: Try) -> str | None:
    """Two at once where transactions see what was there when they began: the later one cannot go on."""
    server = attempt.stage.house.server
    execute(server, f"ALTER ROLE {LOGIN} SET default_transaction_isolation = 'repeatable read'")
    try:
        attempt.stage.fresh("one"), attempt.stage.fresh("two")
        said = two_at_once(attempt)
        return said if any("could not serialize" in text for text in attempt.stage.retries) else None
    finally:
        execute(server, f"ALTER ROLE {LOGIN} RESET default_transaction_isolation")
        attempt.stage.fresh("one"), attempt.stage.fresh("two")


def lock_timeout(attempt: Try) -> str | None:
    """Hold what opening a week needs for longer than it waits."""
    week = week_of(next(_NEW_WEEKS))
    elsewhere = Try(attempt.stage, attempt.variant, week, attempt.run_id, attempt.meant)
    with sa.create_engine(attempt.stage.house.server, poolclass=sa.NullPool).begin() as connection:
        connection.exec_driver_sql("LOCK TABLE churn_predictions IN SHARE UPDATE EXCLUSIVE MODE")
        timer = threading.Timer(12, connection.rollback)
        timer.start()
        said = elsewhere.score(attempt.stage.fresh("one"))
        timer.join()
    return _of_another_week(elsewhere, said)


def _of_another_week(attempt: Try, said: str) -> str:
    tally = Tally()
    judge(attempt.stage.house, tally, attempt.variant, attempt.week, attempt.meant)
    assert not tally.harm, (tally, said)
    assert attempt.stage.retries, "the fault was not met"
    return f"{said} (in a week of its own)"


def disk_full(attempt: Try) -> str | None:
    """Open a week on a small disk that is full, and make room while the product tries again."""
    stage = attempt.stage
    week = week_of(next(_NEW_WEEKS))
    with small_disk(stage.house) as ballast:
        execute(stage.house.server, f"ALTER ROLE {LOGIN} SET default_tablespace = small")
        try:
            threading.Timer(1.5, ballast.unlink).start()
            elsewhere = Try(stage, attempt.variant, week, attempt.run_id, attempt.meant)
            said = _of_another_week(elsewhere, elsewhere.score(stage.fresh("one")))
        finally:
            execute(stage.house.server, f"ALTER ROLE {LOGIN} RESET default_tablespace")
            stage.fresh("one")
            execute(stage.house.server, f"DROP TABLE IF EXISTS churn_predictions_{week:%Y%m%d}")
            execute(stage.house.server, "DELETE FROM scoring_attempts WHERE scored_week = :week", week=week)
            execute(stage.house.server, "DELETE FROM scoring_batches WHERE scored_week = :week", week=week)
    return said


@contextmanager
def small_disk(house: House) -> Iterator[Path]:
    """Mount a disk of 2 MB, full but for one table's worth; yields the file that fills it."""
    folder = Path(tempfile.mkdtemp(prefix="churn-small-", dir=house.deployment.settings.churn_home))
    folder.chmod(0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0777", "tmpfs", folder], check=True)
    try:
        place = folder / "place"
        place.mkdir()
        data = house.deployment.settings.churn_home / "postgres/cluster/data"
        shutil.chown(place, data.stat().st_uid, data.stat().st_gid)
        execute(house.server, f"CREATE TABLESPACE small LOCATION '{place}'")
        execute(house.server, "GRANT CREATE ON TABLESPACE small TO PUBLIC")
        ballast = folder / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with ballast.open("r+b") as file:
            file.truncate(max(ballast.stat().st_size - 40_960, 0))
        yield ballast
    finally:
        execute(house.server, "DROP TABLESPACE IF EXISTS small")
        subprocess.run(["umount", "-l", folder], check=False)


# S3


def _denied(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()


def by_s3(wrong: Callable[[], Wrong], scorer: str = "s3") -> Make:
    """Let S3 answer wrongly; a fallback to the local copy, which is stale here, must be flagged."""

    def make(attempt: Try) -> str | None:
        http = attempt.stage.http
        http.wrong, before = wrong(), http.n_faults
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(places_module, "FETCH_DEADLINE_S", 1.5)
            patch.setattr(places_module, "ANSWER_DEADLINE_S", 1.5)
            said = attempt.score(attempt.stage.fresh(scorer))
        http.wrong = None
        if said == WENT_THROUGH and _is_flagged(attempt):
            said = "stood in: the local copy, flagged"
        return said if http.n_faults > before else None

    return make


def no_such_host(attempt: Try) -> str | None:
    scorer = attempt.stage.house.scorer(bucket=attempt.stage.bucket("http://s3.invalid:9"))
    said = attempt.score(scorer)
    return "stood in: the local copy, flagged" if _is_flagged(attempt) else said


def _is_flagged(attempt: Try) -> bool:
    query = (
        "SELECT bool_and(is_fallback) FROM churn_predictions_current WHERE variant = :variant AND scored_week = :week"
    )
    return bool(execute(attempt.stage.house.server, query, variant=attempt.variant.key, week=attempt.week)[0][0])


def naive_s3(wrong: Callable[[], Wrong]) -> Callable[[Try], None]:
    """Read the naive way, with a local file where that fails, as scripts do."""

    def make(attempt: Try) -> None:
        stage, key = attempt.stage, attempt.variant.prefix + INPUT_KEY
        stage.http.wrong = wrong()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL_S3", stage.http.url)
            patch.setenv("AWS_MAX_ATTEMPTS", "2")
            client = boto3.client("s3")
        try:
            scores = score_naively(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())
        except Exception:  # noqa: BLE001 what such scripts do
            local = stage.house.deployment.local_root / key
            scores = score_naively(local.read_bytes())
        stage.http.wrong = None
        publish_naively(stage.house.deployment.database, attempt.variant.key, attempt.week, scores)

    return make


# The matrix

_S3: Mapping[str, tuple[Callable[[], Wrong], str]] = {
    "S3 answers 500, then is well": (lambda: Wrong("status", 2, 500), "s3"),
    "S3 answers 503 for long": (lambda: Wrong("status", status=503, body=_denied("SlowDown")), "s3"),
    "S3 answers 503 for long, no local copy allowed": (lambda: Wrong("status", 30, 503), "s3 only"),
    "S3 cuts a body, then is well": (lambda: Wrong("truncated", 2, at=INPUT_KEY), "s3"),
    "S3 cuts every body": (lambda: Wrong("truncated", at=INPUT_KEY), "s3"),
    "S3 gives a body with wrong bytes, then the right ones": (lambda: Wrong("corrupt", 1, at=INPUT_KEY), "s3"),
    "S3 gives wrong bytes every time": (lambda: Wrong("corrupt", at=INPUT_KEY), "s3"),
    "S3 drips a byte now and then": (lambda: Wrong("drip", at=INPUT_KEY), "s3"),
    "S3 takes the request and says nothing": (lambda: Wrong("hole"), "s3"),
    "S3 answers 403": (lambda: Wrong("status", status=403, body=_denied("AccessDenied")), "s3"),
    "S3 answers 404": (lambda: Wrong("status", status=404, body=_denied("NoSuchKey")), "s3"),
}
_NAIVE_S3 = {"S3 answers 503 for long", "S3 cuts every body", "S3 gives wrong bytes every time", "S3 answers 403"}


def _at_commit(kind: str) -> Callable[[], Fault]:
    return lambda: Fault(kind, _MID_COPY, b"COMMIT")  # type: ignore[arg-type]


def _mid_copy(kind: str) -> Callable[[], Fault]:
    return lambda: Fault(kind, _MID_COPY)  # type: ignore[arg-type]


ROWS: tuple[Row, ...] = (
    *(Row(f"worker killed when {point}", at_point(point), 14) for point in POINTS),
    Row("worker killed at a random instant", at_random, 320, naive_kill, few=3),
    Row("PostgreSQL backend killed", backend_killed, 15, naive_backend_killed),
    Row("PostgreSQL server killed, started again", server_killed, 12, few=1),
    Row("connection reset amid the rows", by_proxy(_mid_copy("reset")), 15,
        naive_by_proxy(lambda: Fault("reset", _MID_INSERT)), few=2),
    Row("commit's answer lost", by_proxy(_at_commit("lost answer")), 15,
        naive_by_proxy(lambda: Fault("lost answer", _MID_INSERT, b"COMMIT")), few=2),
    Row("commit sent into a black hole", by_proxy(_at_commit("hole")), 3),
    Row("rows sent into a black hole", by_proxy(_mid_copy("hole")), 3),
    Row("too many connections", too_many_connections, 5),
    Row("deadlock", deadlock, 5),
    Row("serialization failure", serialization_failure, 10),
    Row("week's table locked for 12 s", lock_timeout, 1),
    Row("disk full, then room made", disk_full, 3),
    Row("two runs of the same week at once", two_at_once, 20, naive_two_at_once, few=3),
    *(Row(name, by_s3(*how), 3, naive_s3(how[0]) if name in _NAIVE_S3 else None) for name, how in _S3.items()),
    Row("S3's name not found", no_such_host, 2),
    Row("MLflow slow", by_proxy(lambda: Fault("slow", times=40), "mlflow"), 3),
    Row("MLflow's connection reset", by_proxy(lambda: Fault("reset", 300, b"registered_models", 2), "mlflow"), 5),
)  # fmt: skip
SLOW = {
    "week's table locked for 12 s", "S3 answers 503 for long, no local copy allowed",
    # One of each kind is enough for README's command.
    *(f"worker killed when {point}" for point in (
        "the input is read", "the model is loaded", "the week is open", "the lock is held", "the batch is recorded",
        "the batch is to become current",
    )),
    "rows sent into a black hole", "too many connections", "serialization failure", "S3 drips a byte now and then",
    "S3 takes the request and says nothing", "MLflow slow",
}  # fmt: skip
"""Left out of README's command."""


@contextmanager
def open_stage(house: House, nursery: Nursery | None, lane: int = 0, lanes: int = 1) -> Iterator[Stage]:
    """Put the reader and the proxies in their places; each lane has variants and weeks of its own."""
    endpoint = house.environment["AWS_ENDPOINT_URL"]
    assert urlsplit(endpoint).hostname
    with (
        Reader(house).watching() as reader,
        proxy_to(int(house.server.port or 5432)) as proxy,
        faulty_http(endpoint) as http,
        ExitStack() as restarts,
    ):
        rng = random.Random(lane)  # noqa: S311 when to kill
        variants, rounds = VARIANTS[lane::lanes], count(lane * LANE_ROUNDS)
        stage = Stage(house, reader, proxy, http, nursery, rng, variants, rounds, restarts=restarts)
        with _noting_retries(stage):
            yield stage


@contextmanager
def _noting_retries(stage: Stage) -> Iterator[None]:
    class Noting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.msg.startswith("Retrying"):
                stage.retries.append(record.getMessage())

    handler, logger = Noting(), logging.getLogger("churn.workflows.score")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
