"""Which code is running: written with every model and every batch."""

import functools
import importlib.metadata
import subprocess

from churn.deployment.settings import find_checkout


@functools.cache
def code_version() -> str:
    """Return the checkout's commit, with ``+dirty`` when it is edited, or the installed package's version."""
    return _commit() or importlib.metadata.version("churn-scoring")


def _commit() -> str | None:
    root = find_checkout()
    if root is None or not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--abbrev=40", "--match=", "--dirty=+dirty"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
