"""One process of a run: reads which inputs it gets, and tells what became of each, one line each."""

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from churn.errors import ChurnError
from tests.support.hostile.corpus import MARKER
from tests.support.hostile.harness import (
    CRASHED,
    ENDS_WELL,
    ESCAPED,
    GREEDY,
    MEMORY_BYTES,
    REFUSED,
    UNCLEAR,
    WRONG,
    Family,
    UnclearMessageError,
    WrongResultError,
    limit_memory,
    require_clear,
    resident_peak,
)
from tests.support.hostile.readers import FAMILIES, warm_up


def outcome_of(family: Family, payload: object, folder: Path) -> tuple[str, str]:
    """Give one input to its reader; returns what became of it, and its message."""
    try:
        try:
            said = family.judge(payload, folder)
        except ChurnError as error:
            require_clear(str(error))
            return (GREEDY if "malloc" in str(error) else REFUSED), str(error)
    except UnclearMessageError as error:
        return UNCLEAR, str(error)
    except WrongResultError as error:
        return WRONG, str(error)
    except (MemoryError, RecursionError) as error:
        return (GREEDY if isinstance(error, MemoryError) else ESCAPED), repr(error)
    except BaseException as error:  # noqa: BLE001 a reader may raise anything, and that is what is looked for
        return ESCAPED, repr(error)
    return (said, "") if said in ENDS_WELL else (CRASHED, said)


def main() -> None:
    """Work through the inputs named on standard input."""
    todo = [line.split("\t") for line in sys.stdin.read().splitlines()]
    families = {family.name: family for family in FAMILIES}
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a reader prints is not ours
    with tempfile.TemporaryDirectory(prefix="churn-hostile-") as scratch:
        folder = Path(scratch)
        warm_up(folder)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        print("ready\t0\t0\t", file=out, flush=True)
        for name, index in todo:
            label, payload = families[name].make(int(index))
            limit_memory()
            before, began = resident_peak(reset=True), time.monotonic()
            outcome, detail = outcome_of(families[name], payload, folder)
            if MARKER.exists():
                MARKER.unlink()
                outcome, detail = WRONG, "code out of the input was run"
            grown = max(resident_peak() - before, 0)
            if grown > MEMORY_BYTES and outcome in ENDS_WELL:
                outcome = GREEDY
            del payload
            told = f"{label}: {detail}".encode("unicode_escape").decode()[:600]
            print(f"{outcome}\t{time.monotonic() - began:.3f}\t{grown}\t{told}", file=out, flush=True)


if __name__ == "__main__":
    main()
