"""The project's own PostgreSQL: made on first use, shared by the processes that run, stopped by the last of them.

Belongs here: the server's life: password, port, start, stop, and who may do so when. What is in the server (databases,
roles, tables) and where settings come from is not known here; callers pass plain values and get the superuser's URL.
Asking the operating system for programs, an account, a folder and locks is `churn.database.embedded_host`'s.

``home/postgres``, or the folder it links to, holds::

    cluster/data        PostgreSQL's data folder
    cluster/password    the superuser's password, mode 0600
    server.log          what every start, and the server, said
    gate.lock           held for as long as somebody starts or stops the server
    users.lock          held, shared, by every process that uses the server
    server.lock         held by the server's own processes: when it is free, none of them lives

All locks are ``flock``: the kernel releases them when their holder dies, however it dies.
"""

import fcntl
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, NullPool, create_engine
from sqlalchemy.exc import OperationalError

from churn.database.embedded_host import (
    Programs,
    account_for,
    find_programs,
    open_private,
    opened,
    server_folder,
    sync_folder,
    try_lock,
)
from churn.errors import DatabaseUnavailableError, StoreError

_logger = logging.getLogger(__name__)

_WAIT_SECONDS = 300  # after a power cut, a start replays up to a gigabyte of log first


@contextmanager
def embedded_postgres(home: Path, *, bin_dir: Path | None = None, ports: Iterable[int] | None = None) -> Iterator[URL]:
    """Run, or join, the project's own PostgreSQL for the length of a ``with`` block.

    The server listens on 127.0.0.1 only. It stops with the last block that uses it, in whichever process; one that
    outlived a killed process is joined by the next block and stops with it.

    Args:
        home: The project's state folder; the server keeps to ``home/postgres``.
        bin_dir: Folder of PostgreSQL's programs; else the wheel's, else the system's, 14 or newer.
        ports: Ports to try, in order, when the server is to be started; else free ones are picked.

    Yields:
        The superuser's URL of the database ``postgres``, password included.

    Raises:
        DatabaseUnavailableError: If the server runs and does not answer.
        StoreError: If it cannot be made or started; the message has the end of its log.
    """
    link = home.absolute() / "postgres"
    with ExitStack() as leaving:
        try:
            account = account_for(link / "cluster")
            folder = server_folder(link, account)
            with _gate(folder):
                programs = find_programs(bin_dir, account, copies=folder)
            server = _Server(folder, programs)
            url = leaving.enter_context(server.in_use(ports or _free_ports()))
        except OSError as error:
            raise StoreError(
                f"{link} cannot hold the embedded PostgreSQL: {error}; it must be a folder on a disk with free space "
                f"that user {os.geteuid()} may write to. Put that right, or move {link} away to begin with an empty one"
            ) from error
        yield url


@dataclass(frozen=True)
class _Server:
    folder: Path
    programs: Programs

    @property
    def cluster(self) -> Path:
        return self.folder / "cluster"

    @property
    def data(self) -> Path:
        return self.cluster / "data"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @contextmanager
    def in_use(self, ports: Iterable[int]) -> Iterator[URL]:
        """Hold the server: it answers on the way in, and the last one out stops it."""
        # Nobody may be handed a server that is about to be stopped. So joining users.lock, and trying on the way out
        # whether one is its last holder, happen behind the gate, which stays shut until the server answers or is gone:
        # a newcomer waits there, then is counted as a user before it looks for the server.
        with opened(self.folder / "users.lock") as users:
            try:
                with _gate(self.folder):
                    fcntl.flock(users, fcntl.LOCK_SH)
                    url = self._join_or_start(ports)
                yield url
            finally:
                with _gate(self.folder):
                    if try_lock(users):
                        self._stop()
                    # A forked child has the same open file, and would hold the lock beyond our closing it.
                    fcntl.flock(users, fcntl.LOCK_UN)

    def _join_or_start(self, ports: Iterable[int]) -> URL:
        deadline = time.monotonic() + _WAIT_SECONDS
        with opened(self.folder / "server.lock") as alive:
            # Held, yet silent: it is starting, recovering or stopping, or was killed and its orphans are ending.
            while (url := self._answering()) is None and not try_lock(alive):
                if time.monotonic() > deadline:
                    raise DatabaseUnavailableError(
                        f"the PostgreSQL of {self.folder} gave no answer for {_WAIT_SECONDS} s; "
                        f"see {self.log}, then end the process that {self.data / 'postmaster.pid'} names"
                    )
                time.sleep(0.05)
            if url is None:
                if self.cluster.exists():
                    self._refuse_other_version()
                else:
                    self._make_cluster(alive)
                self._start(alive, ports)
                url = self._answering()
        if url is None:
            raise DatabaseUnavailableError(
                f"the PostgreSQL of {self.folder} started and does not answer; see {self.log} and run again"
            )
        return url

    def _answering(self) -> URL | None:
        """The URL of what listens on the port in the pid file, if that is this very server."""
        try:
            port = int((self.data / "postmaster.pid").read_bytes().split(b"\n")[3])
            password = (self.cluster / "password").read_text()
        except (FileNotFoundError, IndexError, ValueError):
            return None
        # The server speaks no TLS, and PGSSLMODE=require, meant for another one, would insist.
        query = {"sslmode": "disable"}
        url = URL.create("postgresql+psycopg2", "churn", password, "127.0.0.1", port, "postgres", query)
        # SCRAM makes the server prove that it knows the password. A copied project's does as well: hence the folder.
        options = {"connect_timeout": 10, "require_auth": "scram-sha-256"}
        engine = create_engine(url, poolclass=NullPool, connect_args=options)
        with suppress(OperationalError, OSError), engine.connect() as connection:
            served = Path(connection.exec_driver_sql("show data_directory").scalar_one())
            return url if served.samefile(self.data) else None
        return None

    def _make_cluster(self, alive: int) -> None:
        """Make data folder and password under another name first: nothing half made is ever taken for whole."""
        unfinished = self.folder / "cluster.new"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(mode=0o700)
        password = unfinished / "password"
        with os.fdopen(open_private(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w") as file:
            file.write(secrets.token_hex(32))
        if self.programs.account:
            os.chown(password, *self.programs.account)
            os.chown(unfinished, *self.programs.account)
        options = ["--username=churn", f"--pwfile={password}", "--auth=scram-sha-256"]
        options += ["--encoding=UTF8", "--no-locale", "--no-instructions"]
        made = self.programs.run("initdb", *options, data=unfinished / "data", keep=alive)
        if made.returncode:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise StoreError(
                f"{self.programs.folder / 'initdb'} could not make {self.cluster}; it said:\n{_tail(made.stdout)}\n"
                "Put right what it names and run again; nothing was left behind"
            )
        unfinished.rename(self.cluster)
        sync_folder(self.folder)

    def _refuse_other_version(self) -> None:
        needed = (self.data / "PG_VERSION").read_text().strip()
        if needed != str(self.programs.major):
            raise StoreError(
                f"{self.folder} was made by PostgreSQL {needed}, and {self.programs.folder} is {self.programs.major}; "
                f"point CHURN_POSTGRES_BIN at the programs of PostgreSQL {needed}, or move {self.folder} away "
                "to begin with an empty server"
            )

    def _start(self, alive: int, ports: Iterable[int]) -> None:
        self._drop_foreign_pid()
        said = "there was no port to try"
        with os.fdopen(open_private(self.log, os.O_RDWR | os.O_APPEND | os.O_CREAT), "rb") as log:
            for port in ports:
                before = log.seek(0, os.SEEK_END)
                # Ten million rows write more than the default gigabyte of log; a checkpoint forced by that writes more.
                settings = (
                    f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories= -c max_connections=300 "
                    f"-c max_wal_size=4GB -c checkpoint_timeout=15min"
                )
                action = ("start", "-w", "-t", str(_WAIT_SECONDS), "-o", settings)
                started = self.programs.run("pg_ctl", *action, data=self.data, keep=alive, output=log.fileno())
                if started.returncode == 0:
                    return
                log.seek(before)
                said = log.read().decode(errors="replace")
                if "Address already in use" not in said:  # somebody took the port since it was picked
                    break
        raise StoreError(
            f"the PostgreSQL of {self.folder} did not start; {self.log} ends with:\n{_tail(said)}\n"
            f"Put right what it names and run again, or move {self.folder} away to begin with an empty server"
        )

    def _drop_foreign_pid(self) -> None:
        """Remove the pid file of a dead server where PostgreSQL would take it for a running one's.

        It does so when another process of its user has the pid by now, quite likely after a restart of a container, and
        when nobody has reaped the dead one.
        """
        pid_file = self.data / "postmaster.pid"
        try:
            pid = abs(int(pid_file.read_bytes().split(b"\n")[0]))
            is_foreign = not Path(f"/proc/{pid}/cwd").samefile(self.data)
        except ValueError:
            is_foreign = True  # cut short by a crash or a full disk
        except FileNotFoundError:
            is_foreign = Path("/proc/self").exists()
        except PermissionError:
            is_foreign = False  # of another user, which PostgreSQL can tell
        if is_foreign:
            pid_file.unlink(missing_ok=True)

    def _stop(self) -> None:
        with opened(self.folder / "server.lock") as alive:
            if try_lock(alive):
                return
            action = ("stop", "-w", "-t", str(_WAIT_SECONDS), "-m", "fast")
            stopped = self.programs.run("pg_ctl", *action, data=self.data)
            if stopped.returncode and not try_lock(alive):
                # No error: the caller's work is done, and an error here would hide one of its own.
                message = "the PostgreSQL of %s did not stop; the next run joins it and tries again: %s"
                _logger.warning(message, self.folder, _tail(stopped.stdout))


def _free_ports() -> Iterator[int]:
    for _ in range(5):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        yield port


@contextmanager
def _gate(folder: Path) -> Iterator[None]:
    with opened(folder / "gate.lock") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(gate, fcntl.LOCK_UN)


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-12:])
