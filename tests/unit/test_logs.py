"""At stake: whoever reads a log after a bad night finds what happened, not thousands of lines of others' tracebacks."""

import os
import threading
from pathlib import Path

import pytest

from churn.cli.logs import LogCopy

REFUSED = """\x1b[32m2026-12-01 03:14:00 +0000\x1b[0m - dagster.daemon.SensorDaemon - \x1b[34mERROR\x1b[0m - No beat:
dagster_postgres.utils.DagsterPostgresException: too many retries for DB connection

Stack Trace:
  File "utils.py", line 158, in create_pg_connection
    conn = retry_pg_connection_fn(engine.connect)

The above exception was caused by the following exception:
sqlalchemy.exc.OperationalError: (psycopg2.OperationalError) connection to server at "127.0.0.1" failed: refused
\tIs the server running on that host and accepting TCP/IP connections?

(Background on this error at: https://sqlalche.me/e/20/e3q8)
"""
RETRY = """WARNING:root:Retrying failed database connection: (psycopg2.OperationalError) refused
\tIs the server running on that host and accepting TCP/IP connections?
"""
BUG = """ERROR:dagster.daemon.SensorDaemon:caught an error
Traceback (most recent call last):
  File "ours.py", line 1, in <module>
ValueError: 3
"""
PLAIN = "\x1b[32m2026-12-01 03:15:00 +0000\x1b[0m - dagster - INFO - Sensor new_data_sensor skipped\n"
HEAD = "2026-12-01 03:14:00 +0000 - dagster.daemon.SensorDaemon - ERROR - No beat:"

CASES = {
    "an error of ours is whole": (BUG, BUG),
    "colours go": (PLAIN, "2026-12-01 03:15:00 +0000 - dagster - INFO - Sensor new_data_sensor skipped\n"),
    "a database that is down is a line": (REFUSED, f"{HEAD} too many retries for DB connection\n"),
    "and a line a minute": (f"{REFUSED}{BUG}{REFUSED}", f"{HEAD} too many retries for DB connection\n{BUG}"),
    "whatever the number of attempts": (RETRY * 500, f"{RETRY.partition(chr(10))[0]}\n"),
    "others between them stay": (f"{RETRY}{BUG}{RETRY}{BUG}", f"{RETRY.partition(chr(10))[0]}\n{BUG}{BUG}"),
    "a last line without an end": ("INFO ready", "INFO ready"),
    "nothing": ("", ""),
}


def copied(printed: str, log: Path, *, is_whole: bool = False, at_once: int = 1 << 16) -> str:
    read, write = os.pipe()
    copying = threading.Thread(target=LogCopy(os.fdopen(read, "rb"), log.open("wb"), is_whole=is_whole))
    copying.start()
    with os.fdopen(write, "wb", buffering=0) as stream:
        for i in range(0, len(printed), at_once):
            stream.write(printed[i : i + at_once].encode())
    copying.join(5)
    return log.read_text()


@pytest.mark.parametrize("at_once", [7, 1 << 16])
@pytest.mark.parametrize("case", CASES)
def test_a_log_has_no_colours_and_a_line_for_what_is_tried_again(case, at_once, tmp_path):
    printed, expected = CASES[case]
    assert copied(printed, tmp_path / "log", at_once=at_once) == expected


def test_at_debug_every_traceback_is_in_the_log(tmp_path):
    assert copied(RETRY * 3 + BUG, tmp_path / "log", is_whole=True) == RETRY * 3 + BUG


def test_a_full_disk_holds_up_no_server():
    read, write = os.pipe()
    full = Path("/dev/full").open("wb")  # noqa: SIM115 it closes it
    copying = threading.Thread(target=LogCopy(os.fdopen(read, "rb"), full), daemon=True)
    copying.start()
    with os.fdopen(write, "wb") as stream:
        stream.write(PLAIN.encode() * 5_000)  # more than a pipe holds
    copying.join(5)
    assert not copying.is_alive()
