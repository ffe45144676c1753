"""Stops an embedded PostgreSQL after all its users were killed: ``embedded_watch.py FOLDER``, run by :mod:`.embedded`.

The last user that exits normally stops the server itself. This program is started with every server, in a process that
outlives its starter, and ends with the server. It imports no module of the project, to use few resources.
"""

import fcntl
import os
import signal
import sys
import time
from pathlib import Path

_INTERVAL_S = 2


def main() -> None:
    """Detach from the caller, then check every two seconds whether a process uses the server."""
    folder = Path(sys.argv[1])
    gate, users, alive = (os.open(folder / f"{name}.lock", os.O_RDWR) for name in ("gate", "users", "server"))
    if os.fork():
        os._exit(0)
    is_stopping = False
    while not is_stopping:
        time.sleep(_INTERVAL_S)
        fcntl.flock(gate, fcntl.LOCK_EX)  # like every process that joins, starts or stops the server
        if _lock(alive):
            return
        is_stopping = _lock(users) and _interrupt(folder / "cluster" / "data" / "postmaster.pid")
        fcntl.flock(users, fcntl.LOCK_UN)
        if not is_stopping:
            fcntl.flock(gate, fcntl.LOCK_UN)
    fcntl.flock(alive, fcntl.LOCK_EX)  # no process may join before it has stopped


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _interrupt(pid_file: Path) -> bool:
    """Signal a fast shutdown to the server; returns whether it is running."""
    try:
        os.kill(int(pid_file.read_bytes().split(b"\n")[0]), signal.SIGINT)
    except (OSError, ValueError):
        return False
    return True


if __name__ == "__main__":
    main()
