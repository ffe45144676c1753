"""The commands of ``docs/backup.md``, to be run as they are written there."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import sqlalchemy as sa

from churn.database.embedded_host import find_programs
from tests.support import ROOT
from tests.support.site import Site


def commands(name: str) -> str:
    """One of the page's blocks of commands."""
    found = re.search(rf"<!-- {name} -->\n```bash\n(.*?)```", (ROOT / "docs/backup.md").read_text(), re.DOTALL)
    assert found, name
    return found[1]


def environment(administrator: sa.URL, site: Site, backup: Path) -> Mapping[str, str]:
    """What the page tells an administrator to set."""
    programs = find_programs(None, None, copies=backup.parent).folder
    return {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PGHOST": str(administrator.host),
        "PGPORT": str(administrator.port),
        "PGUSER": str(administrator.username),
        "PGPASSWORD": str(administrator.password),
        "BACKUP": str(backup),
        "MLFLOW_DB_NAME": site.mlflow,
        "CHURN_DB_NAME": site.churn,
        "CHURN_DAGSTER_DB_NAME": site.dagster,
    }
