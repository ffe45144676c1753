"""At stake: a backup that was interrupted must not look like one, nor cost the last one; and a restore that was
interrupted, on the worst day of the year, must be completed by the same commands, without losing what it had restored.
"""

import os
import random
import re
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from churn.database.predictions import BatchInProgress, PredictionStore
from tests.support.backup import commands, environment
from tests.support.batches import NO_ROWS, WEEK, record, scored
from tests.support.site import Site, disconnect, run_sql

N_RANDOM = 8
PROGRAMS = ("pg_dump", "pg_dumpall", "pg_restore", "psql")
# Kills everything at the start of the n-th call of a program, or a moment later.
COUNTING = """#!/bin/bash
n=$(($(cat "$CALLS") + 1)); echo $n > "$CALLS"
if [ "$n" = "$KILL_AT" ]; then "$PROGRAMS/$(basename "$0")" "$@" & sleep "$KILL_AFTER"; kill -KILL 0; fi
exec "$PROGRAMS/$(basename "$0")" "$@"
"""


# PostgreSQL writes a cast of an array otherwise once it has read it back.
CHECK = re.compile(r" +CONSTRAINT \w+ CHECK .*\n")


class Shell:
    """Runs the page's commands, whole or until they are killed."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self.folder = site, folder
        self.wrappers = folder / "wrappers"
        self.wrappers.mkdir(parents=True)
        for program in PROGRAMS:
            (self.wrappers / program).write_text(COUNTING)
            (self.wrappers / program).chmod(0o755)

    def run(self, block: str, backup: Path, *, kill_at: int = 0, after_s: float = 0.0, within_s: float = 60) -> int:
        """Run a block; returns its status, -9 if it was killed at a call, or by us after ``within_s`` seconds."""
        values = dict(environment(self.site.server, self.site, backup))
        programs = values["PATH"].partition(":")[0]
        values |= {
            "PROGRAMS": programs, "PATH": f"{self.wrappers}:{values['PATH']}", "CALLS": str(self.folder / "calls"),
            "KILL_AT": str(kill_at), "KILL_AFTER": str(after_s),
        }  # fmt: skip
        (self.folder / "calls").write_text("0")
        process = subprocess.Popen(
            ["bash", "-e", "-c", commands(block)], env=values, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(within_s)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return process.wait()

    @property
    def n_calls(self) -> int:
        return int((self.folder / "calls").read_text())


def databases(site: Site) -> list[str]:
    return [site.mlflow, site.churn, site.dagster]


def content(site: Site) -> Mapping[str, str]:
    """Every database that is there, as pg_dump writes it with its own owner, rights and settings."""
    values = environment(site.server, site, Path("/nowhere/backup"))
    there = {name for (name,) in run_sql(site.server, "SELECT datname FROM pg_database")}
    found = {}
    for name in databases(site):
        if name in there:
            done = subprocess.run(
                ["pg_dump", "--create", name], env=values, capture_output=True, text=True, check=True, timeout=60
            )
            found[name] = re.sub(r"^\\(un)?restrict .*", "", done.stdout, flags=re.MULTILINE)
    return found


def tables(text: str) -> str:
    """What a dump says after the properties of the database."""
    return text.partition("CREATE TABLE")[2]


def drop(site: Site) -> None:
    for name in databases(site):
        disconnect(site.server, name)
        run_sql(site.server, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.mark.slow
def test_backups_and_restores_that_were_killed_are_completed_by_repeating_them(
    site: Site, dagster_database: str, homes: Path
) -> None:
    told = record(5000)
    store = PredictionStore(site.login.set(database=site.churn))
    store.publish(told.variant, WEEK, BatchInProgress([scored(5000)], lambda: (told, NO_ROWS)))
    store.close()
    folder = homes / "killed-backups"
    shell = Shell(site, folder)
    last, backup = folder / "last", folder / "backup"
    before = content(site)
    assert len(before) == len(databases(site))
    assert shell.run("back up", last) == 0
    n_calls, kept = shell.n_calls, {path.name: path.read_bytes() for path in last.iterdir()}
    instants = random.Random(7)  # noqa: S311
    n_kills = 0
    for kill in [
        *({"kill_at": n, "after_s": after_s} for n in range(1, n_calls + 1) for after_s in (0, 0.03)),
        *({"within_s": instants.uniform(0.02, 0.5)} for _ in range(N_RANDOM)),
    ]:
        n_kills += shell.run("back up", backup, **kill) == -signal.SIGKILL
        assert not backup.exists() or len(list(backup.iterdir())) == len(kept)
        if not backup.exists():
            assert shell.run("back up", backup) == 0
        assert {path.name for path in backup.iterdir()} == kept.keys()
        assert shell.run("back up", backup) != 0, "a backup is not overwritten"
        drop_folder(backup)
    assert {path.name: path.read_bytes() for path in last.iterdir()} == kept

    drop(site)
    assert shell.run("restore", last) == 0
    restored = content(site)
    assert {name: CHECK.sub("", text) for name, text in restored.items()} == {
        name: CHECK.sub("", text) for name, text in before.items()
    }
    n_calls = shell.n_calls
    for kill in [
        *({"kill_at": n, "after_s": after_s} for n in range(1, n_calls + 1) for after_s in (0, 0.1)),
        *({"within_s": instants.uniform(0.05, 2)} for _ in range(N_RANDOM)),
    ]:
        drop(site)
        n_kills += shell.run("restore", last, **kill) == -signal.SIGKILL
        for name, text in content(site).items():  # whole or empty
            assert "CREATE TABLE" not in text or tables(text) == tables(restored[name]), (name, kill)
        assert shell.run("restore", last) == 0, kill
        assert content(site) == restored, kill
    assert n_kills > 40


def drop_folder(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
