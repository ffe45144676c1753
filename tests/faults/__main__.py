"""The long form: every fault many times, the naive way beside it, written to ``docs/reliability.md``.

``python -m tests.faults``, or ``just faults``: some ten minutes on two cores, as root for the full disk.
"""

import argparse
import logging
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from churn.deployment.code_version import code_version
from churn.wording import markdown_table
from tests.support.faults.house import ROOT, House, open_house, warmth_of
from tests.support.faults.ledger import Tally, execute
from tests.support.faults.matrix import ROWS, Row, Stage, open_stage, run_row
from tests.support.faults.worker import Nursery

LANES = 2
REPORT = ROOT / "docs" / "reliability.md"
Result = tuple[Row, Tally, Tally | None]

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
    "a delivery, or an erasure from what is delivered, killed at each step": "tests/faults/test_delivery.py",
    "clocks put forward and back, year ends, week 53": "tests/faults/test_clock.py",
}
"""Faults that are not of one variant's week, and the tests that prove what comes of them."""

_HEAD = """# Reliability: what was broken, and what came of it

Written by `just faults` (`python -m tests.faults`); do not edit.

{day}, code {code}, PostgreSQL {version}, {machine}; {minutes:.0f} minutes.

**{ours.n:,} faults, {all_kills} of them kill -9: {kills} of a worker ({before} before its commit, {after} after it),
{others} of a backend or the server. Rows lost {ours.lost}, doubled {ours.doubled}, wrong {ours.wrong}; torn readings
{ours.torn} of {ours.readings:,}; weeks stale and unflagged {ours.stale}; batches not whole, or not current exactly
once, {ours.broken}.**

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
Each row is proved in every run of the tests, a few times, by
`tests/faults/test_matrix.py::test_the_promises_hold[<fault>]`; rows that take long are marked slow. These are proved by
tests of their own:
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Make the faults, print the table, write the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of each fault's times; default: %(default)s")
    scale = parser.parse_args(argv).scale
    _be_quiet()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="churn-faults-") as folder, _in_place(Path(folder)) as (house, stages):
        console = Console()
        results = list(_run(stages, scale, console))
        version = execute(house.server, "SHOW server_version")[0][0]
    text = report(results, version, time.monotonic() - started)
    console.print(_table(results))
    REPORT.write_text(text)
    if any(tally.harm for _, tally, _ in results):
        raise SystemExit("a promise was broken")


def _be_quiet() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("churn").propagate = False
    logging.getLogger("mlflow.store.db.utils").disabled = True


@contextmanager
def _in_place(folder: Path) -> Iterator[tuple[House, list[Stage]]]:
    folder.chmod(0o755)
    with open_house(folder) as house, ExitStack() as leaving:
        warmth = warmth_of(house)
        nurseries = [Nursery(house.environment, house.deployment, warmth) for _ in range(LANES)]
        for nursery in nurseries:
            leaving.callback(nursery.close)
            nursery.wait()
        lanes = enumerate(nurseries)
        yield house, [leaving.enter_context(open_stage(house, nursery, lane, LANES)) for lane, nursery in lanes]


def _run(stages: list[Stage], scale: float, console: Console) -> Iterator[Result]:
    with ThreadPoolExecutor(len(stages)) as pool:
        for row in ROWS:
            times = max(1, round(row.many * scale))
            # Processes are killed side by side; what stops the server is done when nothing else needs it.
            lanes = stages if row.name.startswith("worker") and times >= len(stages) else stages[:1]
            parts = list(pool.map(lambda stage: run_row(row, stage, -(-times // len(lanes))), lanes))  # noqa: B023
            ours, naive = Tally(), Tally()
            for mine, theirs in parts:
                ours.add(mine)
                naive.add(theirs or Tally())
            console.print(f"{row.name}: {ours.n} times, {ours.harm or 'no harm'}", highlight=False)
            yield row, ours, naive if row.naive else None


def _machine() -> str:
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return f"Python {platform.python_version()}, {system}"


def _table(results: list[Result]) -> Table:
    table = Table(title="Faults", show_lines=False)
    for heading in ("fault", "n", "lost", "doubled", "torn", "stale", "wrong", "outcome", "naive way"):
        table.add_column(heading)
    for row, ours, naive in results:
        numbers = (ours.n, ours.lost, ours.doubled, ours.torn, ours.stale, ours.wrong + ours.broken)
        table.add_row(row.name, *map(str, numbers), _outcomes(ours), _harm(naive))
    return table


def _outcomes(tally: Tally) -> str:
    return "; ".join(f"{n} {text}" for text, n in tally.outcomes.most_common())


def _harm(naive: Tally | None) -> str:
    if naive is None:
        return "not made"
    words = {"lost": "rows lost", "doubled": "rows doubled", "torn": "torn readings", "stale": "weeks stale, unflagged"}
    said = ", ".join(f"{naive.harm[name]:,} {text}" for name, text in words.items() if name in naive.harm)
    return f"of {naive.n}: {said or 'no harm'}"


def report(results: list[Result], version: str, seconds: float) -> str:
    """Write the results as the page that ``docs/reliability.md`` is."""
    ours = Tally()
    for _, tally, _ in results:
        ours.add(tally)
    kills = sum(n for text, n in ours.outcomes.items() if text.startswith("killed"))
    before = ours.outcomes["killed before its commit"]
    others = sum(tally.n for row, tally, _ in results if row.name.startswith("PostgreSQL"))
    lines = [
        _HEAD.format(
            day=datetime.now(UTC).date(),
            code=code_version(),
            version=version,
            machine=_machine(),
            minutes=seconds / 60,
            kills=kills,
            before=before,
            after=kills - before,
            others=others,
            all_kills=kills + others,
            ours=ours,
        )
    ]
    rows = []
    for row, tally, naive in results:
        numbers = (tally.n, tally.lost, tally.doubled, tally.torn, tally.stale, tally.wrong + tally.broken)
        rows.append((row.name, *numbers, _outcomes(tally), _harm(naive)))
    lines += [markdown_table(_COLUMNS, rows, is_markup=True), _TAIL]
    lines += [
        markdown_table(("fault", "test"), [(fault, f"`{test}`") for fault, test in ALONE.items()], is_markup=True),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
