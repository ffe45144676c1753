"""The long form: every fault many times, the naive way beside it, written to ``docs/reliability.md``.

``python -m tests.faults``, or ``just faults``: some 25 minutes on two cores, as root for the full disk. With names or
patterns, such as ``promotion "S3 *"``, it makes these faults only. The results of each are kept in ``results.json``.
"""

import argparse
import json
import logging
import math
import os
import platform
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import cache
from itertools import chain
from pathlib import Path
from queue import Queue
from random import Random
from typing import Any

from churn.deployment.code_version import code_version
from churn.wording import markdown_table
from tests.support.faults.bench import Bench, Place, open_bench
from tests.support.faults.driver import Driver, run_naively
from tests.support.faults.house import ROOT, House, open_house, warmth_of
from tests.support.faults.ledger import Tally, execute
from tests.support.faults.matrix import ROWS, Stage, open_stage, run_row
from tests.support.faults.operations import OPERATIONS, Operation
from tests.support.faults.worker import OPERATIONS_WARM, Nursery

LANES = 2
REPORT, RESULTS = ROOT / "docs" / "reliability.md", Path(__file__).with_name("results.json")
Results = dict[str, dict[str, Any]]
"""By fault: day, code, what came of it, and of the naive way, as :class:`Tally` has it."""

ALONE = {
    "the Dagster run's process killed ten times at random": "tests/integration/test_fleet.py::"
    "test_ten_kills_at_random_and_every_variant_is_published_exactly_once",
    "MLflow down, a fleet": "tests/faults/test_services.py::test_a_registry_that_is_down_costs_a_fleet_a_few_waits",
    "an alias moved in the middle of a run": "tests/faults/test_services.py::"
    "test_an_alias_moved_in_mid_run_changes_no_score_of_that_run",
    "S3 down, a fleet": "tests/faults/test_services.py::test_a_bucket_that_is_down_costs_a_fleet_a_few_waits",
    "Secrets Manager denied": "tests/faults/test_services.py::test_a_denied_secret_is_told_at_once",
    "Secrets Manager throttled": "tests/faults/test_services.py::test_a_throttled_secret_is_asked_for_again",
    "the password changed in the middle of a run": "tests/faults/test_services.py::"
    "test_a_password_rotated_in_mid_run_fails_clearly_and_the_next_run_reads_the_new_one",
    "the Dagster daemon killed in the middle of a run, and started again": "tests/integration/"
    "test_schedule_and_sensor.py::test_a_daemon_killed_in_the_middle_of_a_run_and_started_again_scores_exactly_once",
    "a backup or a restore killed in the middle": "tests/integration/test_killed_backup.py",
    "campaigns: selection, exclusion, export and recording": "tests/faults/test_decisions.py",
    "a delivery, or an erasure from what is delivered, killed at each step": "tests/faults/test_delivery.py",
    "clocks put forward and back, year ends, week 53": "tests/faults/test_clock.py",
}
"""Faults that are not of one variant's week, and the tests that prove what comes of them."""

_HEAD = """# Reliability: what was broken, and what came of it

Written by `just faults` (`python -m tests.faults`); do not edit. `just faults NAME…` makes some of the faults again.

{days}, code {code}, PostgreSQL {version}, {machine}; {minutes:.0f} minutes.

**{n:,} faults, {kills:,} of them kill -9: {of_scoring} of a worker that scores ({before} before its commit, {after}
after it), {of_server} of a backend or the server, {of_operations} of everything else that changes state, {in_folder} of
them with the history and the models in a folder. Lost {ours.lost}, doubled {ours.doubled}, half done {ours.broken},
wrong {ours.wrong}; torn readings {ours.torn} of {ours.readings:,}; weeks stale and unflagged {ours.stale}.**

## Everything that changes state

Each operation is killed at each of its named steps, at random instants, while it runs beside itself, and while a week
of the same variant is scored. Then the same command is given again, and must complete it; what a reader must not see is
looked for before that. An independent check reads tables, objects and files, and compares them with what was asked for,
and the scored week with `Booster.predict`. S3 is SeaweedFS, which honours conditional puts. The naive way is what a
script does: it is killed once at each of its steps, given again, and checked in the same way. An alert may be told
twice. Kills of which a run has no time for all are drawn at random: of {planned} planned, {of_operations} are counted
here, so that some steps of some rows are still to come.
"""
_OPERATION_COLUMNS = (
    "operation", "place", "kills", "at a step", "at random", "beside itself", "beside scoring", "lost", "doubled",
    "half done", "wrong", "the naive way",
)  # fmt: skip
_SCORING = """
That SeaweedFS refuses all but one of several conditional puts at once is proved by
`tests/faults/test_operations.py::test_no_change_is_lost_of_writers_that_replace_an_object_on_condition`.

## Scoring

Each time, a variant with a published week gets new input, and a run that publishes it meets the fault; what did not go
through is run again. All the while a reader looks at the view every 20 ms. Then every score is compared with
`Booster.predict` on that input. The naive way is pandas, `to_sql(append)` in chunks with a retry, and a local file
where S3 fails; it meets the same fault before the same judge.
"""
_COLUMNS = (
    "fault", "n", "lost", "doubled", "torn", "stale, unflagged", "wrong or not whole", "what came of it",
    "the naive way",
)  # fmt: skip
_TAIL = """
Each operation is killed once in every run of `tests/faults/test_operations.py`, and each fault of scoring is made a few
times by `tests/faults/test_matrix.py::test_the_promises_hold[<fault>]`; what takes long is marked slow. Tests of their
own prove these:
"""
_MODES = ("at a step", "at a random instant", "beside itself", "beside scoring")


def main(argv: Sequence[str] | None = None) -> None:
    """Make the faults, print what came of them, write the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", default=["*"], help="names or patterns; default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="share of each fault's times; default: %(default)s")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of the other operations than scoring")
    parser.add_argument("--add", action="store_true", help="add to the results that are kept, in place of replacing")
    parser.add_argument("--write-only", action="store_true", help="write the report from the results that are kept")
    args = parser.parse_args(argv)
    _be_quiet()
    results: Results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not args.write_only:
        with tempfile.TemporaryDirectory(prefix="churn-faults-") as folder, _in_place(Path(folder)) as (house, lanes):
            version = execute(house.server, "SHOW server_version")[0][0]
            until_s = time.monotonic() + 60 * args.minutes
            about = {"day": str(datetime.now(UTC).date()), "code": code_version(), "postgres": version}
            for name, result in chain(
                _operate(lanes, args.names, args.scale, until_s), _score(lanes, args.names, args.scale)
            ):
                results[name] = {**about, **(_sum(results[name], result) if args.add and name in results else result)}
                RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
                print(f"{name}: {result['ours']}", flush=True)
    REPORT.write_text(report(results))
    if broken := [name for name in results if _tally(results[name]["ours"]).harm]:
        raise SystemExit(f"a promise was broken: {', '.join(broken)}")


def _be_quiet() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("churn").propagate = False
    logging.getLogger("mlflow.store.db.utils").disabled = True


@dataclass(frozen=True)
class Lane:
    """Where faults are made beside those of other lanes; stage and bench are opened when they are needed."""

    stage: Callable[[], Stage]
    bench: Callable[[], Bench]


@contextmanager
def _in_place(folder: Path) -> Iterator[tuple[House, list[Lane]]]:
    folder.chmod(0o755)
    with open_house(folder, "seaweedfs") as house, ExitStack() as leaving:
        warmth, nurseries = warmth_of(house), [Nursery(OPERATIONS_WARM) for _ in range(LANES)]
        for nursery in nurseries:
            leaving.callback(nursery.close)
            nursery.begin(house.environment, house.deployment, warmth)
        for nursery in nurseries:
            nursery.wait()

        def lane(number: int, nursery: Nursery) -> Lane:
            stage = cache(lambda: leaving.enter_context(open_stage(house, nursery, number, LANES)))
            return Lane(stage, cache(lambda: leaving.enter_context(open_bench(house, nursery, number))))

        yield house, [lane(number, nursery) for number, nursery in enumerate(nurseries)]


def _is_named(name: str, names: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in names)


def _operate(
    lanes: list[Lane], names: Sequence[str], scale: float, until_s: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kill the operations, each place by one lane."""
    jobs = [(one, place) for one in OPERATIONS for place in one.places if _is_named(one.name, names)]
    free: Queue[Lane] = Queue()
    for lane in lanes if jobs else ():
        lane.bench()
        free.put(lane)

    def run(job: tuple[Operation, Place]) -> tuple[str, dict[str, Any]] | None:
        (operation, place), lane, started = job, free.get(), time.monotonic()
        rng = Random(f"{operation.name} {place} {time.time()}")  # noqa: S311 when to kill
        try:
            if started > until_s:
                return None
            ours = Driver(operation, lane.bench(), place, rng).run(scale, until_s)
            naive = run_naively(operation, lane.bench()) if place == operation.places[0] else None
            return f"{operation.name}, {place}", _result(ours, naive, time.monotonic() - started)
        finally:
            free.put(lane)

    with ThreadPoolExecutor(len(lanes)) as pool:
        for done in as_completed([pool.submit(run, job) for job in jobs]):
            if (result := done.result()) is not None:
                yield result


def _score(lanes: list[Lane], names: Sequence[str], scale: float) -> Iterator[tuple[str, dict[str, Any]]]:
    with ThreadPoolExecutor(len(lanes)) as pool:
        for row in ROWS:
            if not _is_named(row.name, names):
                continue
            started, times = time.monotonic(), max(1, round(row.many * scale))
            # Processes are killed side by side; what stops the server is done when nothing else needs it.
            used = lanes if row.name.startswith("worker") and times >= len(lanes) else lanes[:1]
            each = -(-times // len(used))
            parts = list(pool.map(lambda stage: run_row(row, stage, each), [lane.stage() for lane in used]))  # noqa: B023
            ours, naive = Tally(), Tally()
            for mine, theirs in parts:
                ours.add(mine)
                naive.add(theirs or Tally())
            yield row.name, _result(ours, naive if row.naive else None, time.monotonic() - started)


def _result(ours: Tally, naive: Tally | None, seconds: float) -> dict[str, Any]:
    return {"ours": vars(ours), "naive": naive and vars(naive), "seconds": round(seconds)}


def _sum(kept: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    ours = _tally(kept["ours"])
    ours.add(_tally(made["ours"]))
    naive = made["naive"] or kept["naive"]
    return {"ours": vars(ours), "naive": naive, "seconds": kept["seconds"] + made["seconds"]}


def _tally(kept: dict[str, Any]) -> Tally:
    return Tally(**{**kept, "outcomes": Counter(kept["outcomes"])})


def _machine() -> str:
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return f"Python {platform.python_version()}, {system}"


def _outcomes(tally: Tally) -> str:
    return "; ".join(f"{n} {text}" for text, n in tally.outcomes.most_common())


def _harm(kept: dict[str, Any] | None, what: str) -> str:
    if kept is None:
        return "not made"
    naive = _tally(kept)
    words = {
        "lost": f"{what} lost", "doubled": f"{what} doubled", "broken": "half done", "wrong": f"{what} wrong",
        "torn": "torn readings", "stale": "weeks stale, unflagged",
    }  # fmt: skip
    said = ", ".join(f"{naive.harm[name]:,} {text}" for name, text in words.items() if name in naive.harm)
    return f"of {naive.n}: {said or 'no harm'}"


def report(results: Results) -> str:
    """Write the results as the page that ``docs/reliability.md`` is."""
    of_rows = {row.name: _tally(results[row.name]["ours"]) for row in ROWS if row.name in results}
    places = {f"{one.name}, {place}": (one, place) for one in OPERATIONS for place in one.places}
    of_operations = {name: _tally(results[name]["ours"]) for name in places if name in results}
    ours = Tally()
    for tally in (*of_rows.values(), *of_operations.values()):
        ours.add(tally)
    kills: Counter[str] = Counter()
    for tally in of_rows.values():
        kills.update({text: n for text, n in tally.outcomes.items() if text.startswith("killed")})
    of_server = sum(tally.n for name, tally in of_rows.items() if name.startswith("PostgreSQL"))
    n_operations = sum(tally.n for tally in of_operations.values())
    used = [results[name] for name in (*of_operations, *of_rows)]
    before = kills["killed before its commit"]
    lines = [
        _HEAD.format(
            days=" and ".join(sorted({one["day"] for one in used})),
            code=", ".join(sorted({one["code"] for one in used})),
            version=", ".join(sorted({one["postgres"] for one in used})),
            machine=_machine(),
            minutes=sum(one["seconds"] for one in used) / 60,
            n=ours.n,
            kills=kills.total() + of_server + n_operations,
            of_scoring=kills.total(),
            before=before,
            after=kills.total() - before,
            of_server=of_server,
            of_operations=n_operations,
            planned=sum(Driver.n_planned(one, place) for one, place in places.values()),
            in_folder=sum(tally.n for name, tally in of_operations.items() if places[name][1] == "folder"),
            ours=ours,
        )
    ]
    rows = []
    for name, tally in of_operations.items():
        operation, place = places[name]
        harm = (tally.lost, tally.doubled, tally.broken, tally.wrong)
        naive = _harm(results[name]["naive"], "") if place == operation.places[0] else "above"
        rows.append((operation.name, place, tally.n, *map(tally.outcomes.__getitem__, _MODES), *harm, naive))
    lines += [markdown_table(_OPERATION_COLUMNS, rows, is_markup=True), _SCORING]
    rows = []
    for name, tally in of_rows.items():
        numbers = (tally.n, tally.lost, tally.doubled, tally.torn, tally.stale, tally.wrong + tally.broken)
        rows.append((name, *numbers, _outcomes(tally), _harm(results[name]["naive"], "rows")))
    lines += [markdown_table(_COLUMNS, rows, is_markup=True), _TAIL]
    lines += [
        markdown_table(("fault", "test"), [(fault, f"`{test}`") for fault, test in ALONE.items()], is_markup=True),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
