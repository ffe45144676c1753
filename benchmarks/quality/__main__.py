"""Runs every module of this package, each in a process of its own, and writes ``benchmarks/QUALITY.md``."""

import pkgutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import quality
from churn.concurrency import cores
from churn.deployment.code_version import code_version


def main() -> int:
    """Run the modules, or those named on the command line; return 1 if one missed a target."""
    names = sys.argv[1:] or [module.name for module in pkgutil.iter_modules(quality.__path__) if module.name[0] != "_"]
    status, tables = 0, []
    for name in names:
        print(f"{name} …", file=sys.stderr, flush=True)
        run = subprocess.run(
            [sys.executable, "-m", f"benchmarks.quality.{name}"], stdout=subprocess.PIPE, text=True, check=False
        )
        print(run.stdout, flush=True)
        tables.append(run.stdout.strip() or f"## {name}\n\nIt ended with status {run.returncode} and printed nothing.")
        status = status or run.returncode
    written = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {code_version()}, {cores()} cores"
    head = f"# Quality of the scores\n\nWritten by `just quality` ({written}).\n"
    if not sys.argv[1:]:
        Path(__file__).parents[1].joinpath("QUALITY.md").write_text("\n\n".join([head, *tables]).rstrip() + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
