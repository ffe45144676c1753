"""The version of the running code, recorded with every model and every batch."""

import functools
import subprocess
from contextlib import suppress

from churn.deployment.settings import find_checkout
from churn.versions import package_version


@functools.cache
def code_version() -> str:
    """Return the checkout's commit, with ``+dirty`` when it is edited, or the installed package's version."""
    root, commit = find_checkout(), ""
    if root is not None and (root / ".git").exists():
        command = ["git", "describe", "--always", "--abbrev=40", "--match=", "--dirty=+dirty"]
        with suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
            commit = done.stdout.strip()
    return commit or package_version()
