"""The embedded PostgreSQL: created on first use, shared by the running processes, stopped by the last of them.

This module owns the server's life cycle: password, port, start, stop, and the locks around them. Databases, roles and
tables are created by :mod:`churn.database.schema`. :mod:`churn.database.embedded_host` finds programs, a user account
and a folder in the operating system.

``home/postgres``, or the folder it links to, contains::

    cluster/data        PostgreSQL's data folder
    cluster/password    the superuser's password, mode 0600
    server.log          output of every start and of the server
    gate.lock           locked while a process starts or stops the server
    users.lock          locked, shared, by every process that uses the server
    server.lock         locked by the server's processes: free when none of them is alive

All locks are ``flock``: the kernel releases them when their owner dies, however it dies.
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
from pathlib import Path

from sqlalchemy import URL, NullPool, create_engine
from sqlalchemy.exc import OperationalError

from churn.database import embedded_host as host
from churn.errors import DatabaseUnavailableError, StoreError, raised_as

_logger = logging.getLogger(__name__)

_not_of_children: set[int] = set()
"""The descriptors of users.lock in this process."""


def _release_in_child() -> None:
    """Replace the descriptors in a forked child: it shares the lock, and would keep it when its parent is killed."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in _not_of_children:
        os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)


os.register_at_fork(after_in_child=_release_in_child)

_WAIT_SECONDS = 300  # after a power cut, a start replays up to a gigabyte of log first


@contextmanager
def embedded_postgres(home: Path, *, bin_dir: Path | None = None, ports: Iterable[int] | None = None) -> Iterator[URL]:
    """Start, or join, the embedded PostgreSQL; yields the superuser's URL of the database ``postgres``, with password.

    The server listens on 127.0.0.1 only. It stops at the end of the last block that uses it, in whichever process, and
    within seconds if all processes that used it were killed, or the one that watches them.

    Args:
        home: The project's state folder; the server's files are in ``home/postgres``.
        bin_dir: Folder of PostgreSQL's programs; by default the wheel's, then the system's, version 14 or newer.
        ports: Ports to try, in order, if the server has to be started; by default free ones.

    Raises:
        DatabaseUnavailableError: If the server is running and does not answer.
        StoreError: If it cannot be created or started; the message has the end of its log.
    """
    link = home.absolute() / "postgres"
    needed = f"user {os.geteuid()} needs write access, and its disk free space: correct that, or move {link} away"
    with ExitStack() as stack:
        with raised_as(StoreError, f"{link} cannot contain the embedded PostgreSQL", OSError, remedy=needed):
            account = host.account_for(link / "cluster")
            folder = host.server_folder(link, account)
            with _gate(folder):
                programs = host.find_programs(bin_dir, account, copies=folder)
            url = stack.enter_context(_Server(folder, programs).in_use(ports or _free_ports()))
        yield url


class _Server:
    def __init__(self, folder: Path, programs: host.Programs) -> None:
        self.folder, self.programs = folder, programs
        self.cluster, self.data, self.log = folder / "cluster", folder / "cluster" / "data", folder / "server.log"

    @contextmanager
    def in_use(self, ports: Iterable[int]) -> Iterator[URL]:
        """Use the server: start it if needed, and stop it if this is its last user."""
        # No process may get a server that is about to stop. So users.lock is acquired, and at the end tested for other
        # users, under the gate lock, which is released when the server answers or has stopped. A new process waits for
        # it, then counts as a user before it checks for the server.
        user = os.getpid()
        with host.open_file(self.folder / "users.lock") as users:
            _not_of_children.add(users)
            try:
                with _gate(self.folder):
                    fcntl.flock(users, fcntl.LOCK_SH)
                    url = self._join_or_start(ports)
                yield url
            finally:
                if os.getpid() == user:
                    with _gate(self.folder):
                        if host.try_lock(users):
                            self._stop()
                        fcntl.flock(users, fcntl.LOCK_UN)
                    _not_of_children.discard(users)

    def _join_or_start(self, ports: Iterable[int]) -> URL:
        deadline = time.monotonic() + _WAIT_SECONDS
        with host.open_file(self.folder / "server.lock") as alive:
            # Locked but silent: it is starting, recovering or stopping, or was killed and its orphans are ending.
            while (url := self._find_url()) is None and not host.try_lock(alive):
                if time.monotonic() > deadline:
                    problem = f"the PostgreSQL of {self.folder} has not answered for {_WAIT_SECONDS} s"
                    remedy = f"see {self.log}, then end the process named in {self.data / 'postmaster.pid'}"
                    raise DatabaseUnavailableError(f"{problem}; {remedy}")
                time.sleep(0.05)
            if url is None:
                if self.cluster.exists():
                    self._require_same_version()
                else:
                    self._create_cluster(alive)
                self._start(alive, ports)
                url = self._find_url()
        if url is None:
            remedy = f"see {self.log} and run again"
            raise DatabaseUnavailableError(f"the PostgreSQL of {self.folder} started and does not answer; {remedy}")
        return url

    def _find_url(self) -> URL | None:
        """Return the URL of the server on the port in the pid file, if it is this server."""
        try:
            port = int((self.data / "postmaster.pid").read_bytes().split(b"\n")[3])
            secret = (self.cluster / "password").read_text()
        except (FileNotFoundError, IndexError, ValueError):
            return None
        # The server has no TLS, and PGSSLMODE=require, which is meant for another server, would demand it.
        url = URL.create("postgresql+psycopg2", "churn", secret, "127.0.0.1", port, "postgres", {"sslmode": "disable"})
        # SCRAM makes the server prove that it knows the password. So can a copied project's server: compare folders.
        options = {"connect_timeout": 10, "require_auth": "scram-sha-256"}
        engine = create_engine(url, poolclass=NullPool, connect_args=options)
        with suppress(OperationalError, OSError), engine.connect() as connection:
            served = Path(connection.exec_driver_sql("show data_directory").scalar_one())
            return url if served.samefile(self.data) else None
        return None

    def _create_cluster(self, alive: int) -> None:
        """Create data folder and password under a temporary name, so that an unfinished cluster is never used."""
        unfinished = self.folder / "cluster.new"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(mode=0o700)
        password = unfinished / "password"
        with os.fdopen(host.open_private(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w") as file:
            file.write(secrets.token_hex(32))
        if self.programs.account:
            os.chown(password, *self.programs.account)
            os.chown(unfinished, *self.programs.account)
        options = ["--username=churn", f"--pwfile={password}", "--auth=scram-sha-256"]
        options += ["--encoding=UTF8", "--no-locale", "--no-instructions"]
        initdb = self.programs.run("initdb", *options, data=unfinished / "data", inherit=[alive])
        if initdb.returncode:
            shutil.rmtree(unfinished, ignore_errors=True)
            problem = f"{self.programs.folder / 'initdb'} could not create {self.cluster}:\n{_tail(initdb.stdout)}"
            raise StoreError(f"{problem}\nCorrect the cause and run again; no files were left behind")
        unfinished.rename(self.cluster)
        with host.open_file(self.folder, os.O_RDONLY) as folder:
            os.fsync(folder)  # so that the renaming survives a power cut

    def _require_same_version(self) -> None:
        needed = (self.data / "PG_VERSION").read_text().strip()
        if needed != str(self.programs.major):
            found = f"created by PostgreSQL {needed}, and {self.programs.folder} is of version {self.programs.major}"
            remedy = f"point CHURN_POSTGRES_BIN at the programs of PostgreSQL {needed}"
            other = f"move {self.folder} away to start with an empty server"
            raise StoreError(f"{self.folder} was {found}; {remedy}, or {other}")

    def _start(self, alive: int, ports: Iterable[int]) -> None:
        self._drop_foreign_pid()
        output = "no port to try"
        with os.fdopen(host.open_private(self.log, os.O_RDWR | os.O_APPEND | os.O_CREAT), "rb") as log:
            for port in ports:
                before = log.seek(0, os.SEEK_END)
                # Ten million rows write more WAL than the default gigabyte, and the forced checkpoints write even more.
                settings = (
                    f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories= -c max_connections=300 "
                    f"-c max_wal_size=4GB -c checkpoint_timeout=15min"
                ).split()
                if self.programs.start(self.folder, settings, data=self.data, alive=alive, log=log.fileno()):
                    return
                log.seek(before)
                output = log.read().decode(errors="replace")
                if "Address already in use" not in output:  # else another process has bound the port since
                    break
        problem = f"the PostgreSQL of {self.folder} did not start; {self.log} ends with:\n{_tail(output)}"
        remedy = f"Correct the cause and run again, or move {self.folder} away to start with an empty server"
        raise StoreError(f"{problem}\n{remedy}")

    def _drop_foreign_pid(self) -> None:
        """Remove the pid file of a dead server if PostgreSQL would mistake it for a running one's.

        That happens if another process of its user has the same pid, which is likely after a container restarts, or if
        the dead process was not reaped.
        """
        pid_file = self.data / "postmaster.pid"
        try:
            pid = abs(int(pid_file.read_bytes().split(b"\n")[0]))
            is_foreign = not Path(f"/proc/{pid}/cwd").samefile(self.data)
        except ValueError:
            is_foreign = True  # truncated by a crash or a full disk
        except FileNotFoundError:
            is_foreign = Path("/proc/self").exists()
        except PermissionError:
            is_foreign = False  # of another user, which PostgreSQL detects
        if is_foreign:
            pid_file.unlink(missing_ok=True)

    def _stop(self) -> None:
        with host.open_file(self.folder / "server.lock") as alive:
            if host.try_lock(alive):
                return
            stop = self.programs.run("pg_ctl", "stop", "-w", "-t", str(_WAIT_SECONDS), "-m", "fast", data=self.data)
            if stop.returncode and not host.try_lock(alive):
                # No error: the caller's work is done, and an error here would hide an error of the caller.
                message = "the PostgreSQL of %s did not stop; the next run joins it and tries again: %s"
                _logger.warning(message, self.folder, _tail(stop.stdout))


def _free_ports() -> Iterator[int]:
    for _ in range(5):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        yield port


@contextmanager
def _gate(folder: Path) -> Iterator[None]:
    with host.open_file(folder / "gate.lock") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(gate, fcntl.LOCK_UN)


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-12:])
