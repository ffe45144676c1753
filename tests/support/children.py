"""Child processes that end with their parent, so that a killed run of tests or benchmarks leaves none behind."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

_LAUNCH = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):  # else it is dead already
    os.execvp(sys.argv[2], sys.argv[2:])
"""


def bound(command: Sequence[str | Path]) -> list[str | Path]:
    """Return the command line of the same program as a process that gets SIGTERM when this process dies.

    Start it in the main thread: the system takes the end of the thread that started it for the end of the parent.
    """
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command]
