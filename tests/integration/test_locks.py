"""At stake: an analyst who leaves a transaction open, or a dump that takes hours, must stop neither the weekly job nor
retention nor an upgrade for good; and while these wait, no other analyst may wait for more than a second.
"""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import pytest
import sqlalchemy as sa
import tenacity

from churn.database.connection import READER, create_engine
from churn.database.embedded_host import find_programs
from churn.database.erasure import drop_weeks
from churn.database.predictions import BatchInProgress, PredictionStore
from churn.database.schema import ensure_database, migrate_predictions
from churn.errors import LockTimeoutError
from churn.variants import Variant
from tests.support.batches import NO_ROWS, WEEK, record, scored
from tests.support.next_schema import migrate_to
from tests.support.site import Site, run_sql, wait_until

READ = "SELECT count(*) FROM churn_predictions_current"
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = :name AND wait_event_type = 'Lock'"
HOLDS = """
SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE application_name = :who AND datname = :name AND relation = 'churn_predictions'::regclass
"""
OLD = date(2026, 1, 5)


@pytest.fixture
def store(site: Site) -> Iterator[PredictionStore]:
    store = PredictionStore(site.login.set(database=site.churn))
    yield store
    store.close()


def publish(store: PredictionStore, week: date) -> None:
    told = record(3, scored_week=week)
    store.publish(Variant("us"), week, BatchInProgress([scored(3)], lambda: (told, NO_ROWS)))


@contextmanager
def open_transaction(site: Site, database: str) -> Iterator[sa.Connection]:
    """An analyst who has read the view and left the transaction open."""
    url = site.server.set(database=database).update_query_dict({"application_name": "analyst"})
    with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
        connection.exec_driver_sql(READ)
        yield connection


@contextmanager
def dump(site: Site, folder: Path) -> Iterator[None]:
    """A pg_dump that has locked all tables, and waits for somebody to read its output."""
    output = folder / "dump"
    os.mkfifo(output)
    program = find_programs(None, None, copies=folder).folder / "pg_dump"
    url = site.server.set(drivername="postgresql", database=site.churn).render_as_string(hide_password=False)
    with subprocess.Popen([program, f"--file={output}", f"--dbname={url}"]) as process:
        try:
            wait_until(lambda: site.rows(site.churn, HOLDS, who="pg_dump", name=site.churn)[0][0] > 0)
            yield
        finally:
            process.kill()


@contextmanager
def others_waits(site: Site, database: str) -> Iterator[list[float]]:
    """Let another analyst read the view again and again; yields how long each reading took, in seconds."""
    took: list[float] = []
    done = threading.Event()

    def read() -> None:
        with create_engine(site.login.set(database=database), role=READER).connect() as connection:
            while not done.wait(0.02):
                started = time.monotonic()
                connection.exec_driver_sql(READ)
                connection.rollback()
                took.append(time.monotonic() - started)

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            yield took
        finally:
            done.set()
            reading.result(timeout=60)


def test_the_weekly_job_opens_its_week_while_others_read_and_dump(
    site: Site, store: PredictionStore, tmp_path: Path
) -> None:
    publish(store, OLD)

    with open_transaction(site, site.churn), dump(site, tmp_path), others_waits(site, site.churn) as took:
        publish(store, WEEK)
        assert store.open_weeks(WEEK, 6)[-1] == date(2026, 12, 21)
        publish(store, date(2026, 12, 21))

    assert max(took) < 1
    assert set(site.current()["scored_week"]) == {OLD, WEEK, date(2026, 12, 21)}
    weeks = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'churn_predictions'::regclass"
    assert site.rows(site.churn, weeks) == [(7,)]


def retention(site: Site, store: PredictionStore) -> tuple[str, Callable[..., object]]:
    publish(store, OLD)
    return site.churn, drop_weeks


def upgrade(site: Site, _store: PredictionStore) -> tuple[str, Callable[..., object]]:
    """Make a database of release 0.9.0, as an upgrade finds it."""
    url = site.login.set(database=site.dagster)
    ensure_database(url)
    migrate_to(url, "0007")
    return site.dagster, migrate_predictions


@pytest.mark.parametrize("prepare", [retention, upgrade])
def test_retention_and_upgrades_wait_for_a_reader_and_let_others_read(
    site: Site, store: PredictionStore, prepare: Callable[[Site, PredictionStore], tuple[str, Callable[..., object]]]
) -> None:
    database, work = prepare(site, store)
    url, arguments = site.login.set(database=database), [date(2026, 2, 2)] if work is drop_weeks else []
    again_soon = work.retry_with(wait=tenacity.wait_fixed(0.1))  # type: ignore[attr-defined]

    with others_waits(site, database) as took, ThreadPoolExecutor(1) as pool:
        with open_transaction(site, database):
            with pytest.raises(LockTimeoutError, match=r"is locked by another session .* see SELECT"):
                work.retry_with(stop=tenacity.stop_after_attempt(1))(url, *arguments)  # type: ignore[attr-defined]
            working = pool.submit(again_soon, url, *arguments)
            for is_waiting in (True, False, True):  # at least twice in vain
                wait_until(lambda wanted=is_waiting: (site.rows(database, WAITING, name=database)[0][0] > 0) is wanted)
            assert not working.done()
            assert len(took) > 3
            assert max(took) < 1
        working.result(timeout=30)

    left = "SELECT to_regclass('churn_predictions_20260105'), to_regclass('watched_variants')::text"
    assert site.rows(database, left) == [(None, "watched_variants")]


def test_a_forgotten_transaction_is_ended_and_ours_may_last(site: Site, store: PredictionStore) -> None:
    publish(store, OLD)
    url = site.login.set(database=site.churn)
    limit = "SHOW idle_in_transaction_session_timeout"
    migrate_predictions(url)
    with (
        sa.create_engine(url, poolclass=sa.NullPool).connect() as analyst,
        create_engine(url, role=READER).connect() as own,
    ):
        assert analyst.exec_driver_sql(limit).scalar_one() == "5min"
        assert own.exec_driver_sql(limit).scalar_one() == "1h"

    run_sql(site.server, f"ALTER DATABASE \"{site.churn}\" SET idle_in_transaction_session_timeout = '300ms'")
    migrate_predictions(url)  # which leaves what somebody has set
    with open_transaction(site, site.churn) as forgotten:
        assert drop_weeks(url, date(2026, 2, 2)) == [OLD]
        with pytest.raises(sa.exc.OperationalError):
            forgotten.exec_driver_sql(READ)
