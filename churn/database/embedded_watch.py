"""Stop an embedded PostgreSQL whose users were all killed: ``embedded_watch.py FOLDER``, run by :mod:`.embedded`.

A user that ends in order stops the server itself if it is the last one. This program is started with every server, in a
process that outlives its starter, and ends with the server. It imports nothing of ours, so that it takes few resources.
"""

import fcntl
import os
import signal
import sys
import time
from pathlib import Path

_INTERVAL_S = 2


def main() -> None:
    """Leave the caller's process, then look every two seconds whether anybody uses the server."""
    folder = Path(sys.argv[1])
    gate, users, alive = (os.open(folder / f"{name}.lock", os.O_RDWR) for name in ("gate", "users", "server"))
    if os.fork():
        os._exit(0)
    is_stopping = False
    while not is_stopping:
        time.sleep(_INTERVAL_S)
        fcntl.flock(gate, fcntl.LOCK_EX)  # as whoever joins, starts or leaves does
        if _lock(alive):
            return
        is_stopping = _lock(users) and _interrupt(folder / "cluster" / "data" / "postmaster.pid")
        fcntl.flock(users, fcntl.LOCK_UN)
        if not is_stopping:
            fcntl.flock(gate, fcntl.LOCK_UN)
    fcntl.flock(alive, fcntl.LOCK_EX)  # nobody may join before it has stopped


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _interrupt(pid_file: Path) -> bool:
    """Ask the server for a fast shutdown; returns whether there is one to ask."""
    try:
        os.kill(int(pid_file.read_bytes().split(b"\n")[0]), signal.SIGINT)
    except (OSError, ValueError):
        return False
    return True


if __name__ == "__main__":
    main()
