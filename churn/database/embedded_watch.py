"""Runs an embedded PostgreSQL, and stops it when no process uses it: ``embedded_watch.py FOLDER UID GID COMMAND…``.

The last user that exits normally stops the server itself; this program is for users that are killed. It is the server's
parent, in a session of its own, and when it is killed, too, the kernel signals the server to stop: the next user starts
both again. It imports no module of the project, to use few resources; :mod:`.embedded_host` starts it.
"""

import ctypes
import fcntl
import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

_INTERVAL_S, _READY_INTERVAL_S = 2, 0.05
_READY_WITHIN_S = 300  # after a power cut, a start replays up to a gigabyte of log first
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Start the server and detach from the caller; exits with status 0 once the server is ready, else with 1."""
    folder, uid, gid, *command = sys.argv[1:]
    outcome, ready = os.pipe()
    if os.fork():
        os.close(ready)
        is_known, _, _ = select.select([outcome], [], [], _READY_WITHIN_S)
        os._exit(0 if is_known and os.read(outcome, 1) else 1)
    me = os.getpid()
    server = os.fork()
    if not server:
        _become(command, int(uid), int(gid), parent=me)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps it at once: whoever stops it waits for that
    os.dup2(ready, 0)
    os.closerange(3, 1024)  # among them server.lock, which is the server's
    while not _has_ended(server) and not _is_ready(Path(folder), server):
        time.sleep(_READY_INTERVAL_S)
    if _is_ready(Path(folder), server):
        os.write(0, b".")
    os.close(0)
    _watch(Path(folder), server)


def _become(command: list[str], uid: int, gid: int, parent: int) -> None:
    """Become the server, without root's privileges, that is to stop when its parent dies."""
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    with suppress(AttributeError):  # a system without prctl has no such signal
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
    if os.getppid() == parent:
        os.execv(command[0], command)  # noqa: S606 no shell is meant
    os._exit(1)


def _watch(folder: Path, server: int) -> None:
    """Check every two seconds whether a process uses the server, until it has stopped."""
    gate, users = (os.open(folder / f"{name}.lock", os.O_RDWR) for name in ("gate", "users"))
    ends: list[int] = []
    with suppress(AttributeError, ProcessLookupError):  # so that it ends with a server that was stopped
        ends.append(os.pidfd_open(server))
    while not _has_ended(server):
        select.select(ends, [], [], _INTERVAL_S)
        fcntl.flock(gate, fcntl.LOCK_EX)  # like every process that joins, starts or stops the server
        with suppress(BlockingIOError):
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            while not _has_ended(server):  # no process may join before it has stopped
                os.kill(server, signal.SIGINT)  # a fast shutdown
                time.sleep(_READY_INTERVAL_S)
            return
        fcntl.flock(gate, fcntl.LOCK_UN)


def _has_ended(server: int) -> bool:
    with suppress(ChildProcessError):
        return os.waitpid(server, os.WNOHANG)[0] != 0
    return True


def _is_ready(folder: Path, server: int) -> bool:
    with suppress(OSError, ValueError, IndexError):
        lines = (folder / "cluster" / "data" / "postmaster.pid").read_bytes().split(b"\n")
        return int(lines[0]) == server and lines[7].strip() == b"ready"
    return False


if __name__ == "__main__":
    main()
