"""``churn psql``: PostgreSQL's own client on the predictions, as an analyst reads them."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from churn.database.connection import READER
from churn.database.embedded_host import find_programs
from churn.deployment.services import Deployment
from churn.errors import StoreError, UsageError


def reader_dsn(deployment: Deployment) -> str:
    """Return the address of the predictions for any client: in the reader's role, and without a password.

    The embedded server's password is written to a file that the address names, and only its owner can read.
    """
    url = deployment.database_as("reader")
    query = {"options": f"-crole={READER}"}
    if deployment.is_embedded:
        password = re.sub(r"([:\\])", r"\\\1", str(url.password))
        path = (deployment.settings.churn_home / "pgpass").absolute()
        with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(f"{url.host}:*:*:{url.username}:{password}\n")
        query["passfile"] = str(path)
    dsn = url._replace(drivername="postgresql", password=None).update_query_dict(query).render_as_string()
    return dsn.replace("+", "%20")  # a space, which libpq reads in no other form


def run_psql(deployment: Deployment, arguments: Sequence[str]) -> int:
    """Run psql until it ends; returns its status. Raises ``UsageError`` if there is none."""
    dsn, settings = reader_dsn(deployment), deployment.settings
    try:
        copies = settings.churn_home / "postgres"
        found = shutil.which("psql") or find_programs(settings.churn_postgres_bin, None, copies=copies).folder / "psql"
    except StoreError:
        found = Path("psql")
    password = deployment.database_as("reader").password
    environment = os.environ | ({} if password is None else {"PGPASSWORD": str(password)})
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends a query, not psql
    try:
        return subprocess.run([found, dsn, *arguments], env=environment, check=False).returncode
    except FileNotFoundError:
        message = f"there is no psql here; install it (Debian: apt-get install postgresql-client), or use {dsn}"
        raise UsageError(message) from None
    finally:
        signal.signal(signal.SIGINT, handler)
