"""Runs bad inputs in processes of their own, so that a crash, a hang and a hunger for memory are seen and counted.

Belongs here: what may become of an input, the limits, the watch over the processes. Not here: the inputs (``corpus``
and its neighbours) and what is right for each of them (``readers``).
"""

import contextlib
import random
import resource
import selectors
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import ROOT
from tests.support.children import bound

DEADLINE_S = 20.0  # wall clock; a second is much for any one input
MEMORY_BYTES = 1 << 30
LONGEST_MESSAGE = 2_500

REFUSED = "refused"
QUARANTINED = "quarantined"
USAGE = "wrong usage"
SAME = "read alike"
ENDS_WELL = (REFUSED, QUARANTINED, USAGE, SAME)

UNCLEAR = "unclear message"
ESCAPED = "another exception"
WRONG = "wrong result"
HUNG = "hang"
CRASHED = "crash"
GREEDY = "over 1 GB"
ENDS_BADLY = (UNCLEAR, ESCAPED, WRONG, HUNG, CRASHED, GREEDY)


class WrongResultError(AssertionError):
    """An input was taken, and what came of it is not what it says."""


def require(holds: bool, what: str) -> None:
    """Check that what came of an input that was taken is right."""
    if not holds:
        raise WrongResultError(what)


class UnclearMessageError(AssertionError):
    """A refusal that a person could not read, or that a terminal or a database could not take."""


def require_clear(message: str) -> None:
    """Check what every refusal promises: one line of printable text of bounded length, with what is needed."""
    if not message.strip() or len(message) > LONGEST_MESSAGE:
        raise UnclearMessageError(f"its length is {len(message)}: {message[:200]!r}")
    odd = [character for character in message if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp", "Cf")]
    if odd:
        raise UnclearMessageError(f"it holds {odd[:5]!r}: {message[:200]!r}")
    if len(message.split()) < 5:
        raise UnclearMessageError(f"it hardly says anything: {message!r}")


@dataclass(frozen=True)
class Family:
    """One reader and the bad inputs for it.

    Attributes:
        crafted: Inputs made by hand, by name; made when they are needed, since some are large.
        mutate: Draws one more input.
        judge: Gives an input to the reader; returns one of ``ENDS_WELL`` or raises.
        n_full: How many inputs of it a full run holds.
    """

    name: str
    crafted: dict[str, Callable[[], object]]
    mutate: Callable[[random.Random], object]
    judge: Callable[[object, Path], str]
    n_full: int

    def make(self, index: int) -> tuple[str, object]:
        """Make an input: the same one for the same index."""
        if index < len(self.crafted):
            name = list(self.crafted)[index]
            return name, self.crafted[name]()
        return f"#{index}", self.mutate(random.Random(f"{self.name} {index}"))  # noqa: S311


@dataclass
class Tally:
    """What became of the inputs of a run, by family."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    bad: list[tuple[str, int, str, str]] = field(default_factory=list)
    most_memory: int = 0
    longest_s: float = 0.0
    longest: str = ""
    took_s: float = 0.0

    def add(self, family: str, index: int, outcome: str, detail: str) -> None:
        self.counts.setdefault(family, Counter())[outcome] += 1
        if outcome not in ENDS_WELL:
            self.bad.append((family, index, outcome, detail))
            sys.stderr.write(f"{family} {index}: {outcome}: {detail}\n")

    @property
    def n(self) -> int:
        return sum(counter.total() for counter in self.counts.values())


def run(chosen: Sequence[tuple[str, int]], *, processes: int = 2) -> Tally:
    """Give inputs, each named by family and index, to the readers in processes of their own."""
    tally, began = Tally(), time.monotonic()
    with selectors.DefaultSelector() as selector:
        workers = [_Worker(list(chosen[start::processes]), selector) for start in range(processes)]
        try:
            while any(worker.is_at_work for worker in workers):
                for key, _ in selector.select(timeout=0.5):
                    key.data.read(tally)
                for worker in workers:
                    worker.look_after(tally)
        finally:
            for worker in workers:
                worker.stop()
    tally.took_s = time.monotonic() - began
    return tally


class _Worker:
    """One process at a time over a share of the inputs; after a crash or a hang the next goes on behind that input."""

    def __init__(self, share: list[tuple[str, int]], selector: selectors.BaseSelector) -> None:
        self._share, self._selector = share, selector
        self._next, self._stalled_at = 0, -1
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._since = time.monotonic()
        self._start()

    @property
    def is_at_work(self) -> bool:
        return self._process is not None

    def _start(self) -> None:
        if self._next >= len(self._share):
            return
        self._process = subprocess.Popen(
            bound([sys.executable, "-m", "tests.support.hostile.worker"]),
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        todo = "".join(f"{family}\t{index}\n" for family, index in self._share[self._next :])
        self._process.stdin.write(todo.encode())
        self._process.stdin.close()
        self._selector.register(self._process.stdout, selectors.EVENT_READ, self)
        self._buffer, self._since = b"", time.monotonic() + 60  # its imports take some seconds

    def read(self, tally: Tally) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        chunk = self._process.stdout.read1(1 << 16)
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        for line in lines:
            self._since = time.monotonic()
            outcome, seconds, memory, detail = line.decode(errors="replace").split("\t", 3)
            if outcome == "ready":
                continue
            if float(seconds) > tally.longest_s:
                tally.longest_s, tally.longest = float(seconds), f"{self._share[self._next][0]}: {detail[:60]}"
            tally.most_memory = max(tally.most_memory, int(memory))
            tally.add(*self._share[self._next], outcome, detail)
            self._next += 1
        if not chunk:
            status = self._end()
            if self._next < len(self._share):
                tally.add(*self._share[self._next], CRASHED, f"exit status {status}")
                self._next += 1
            self._start()

    def look_after(self, tally: Tally) -> None:
        if self._process is not None and time.monotonic() - self._since > DEADLINE_S:
            self._end()
            if self._stalled_at != self._next:  # a busy machine can stall; one that hangs will do so again
                self._stalled_at = self._next
                self._start()
                return
            tally.add(*self._share[self._next], HUNG, f"no end within {DEADLINE_S:g} s")
            self._next += 1
            self._start()

    def stop(self) -> None:
        if self._process is not None:
            self._end()

    def _end(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        self._selector.unregister(self._process.stdout)
        self._process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that has closed its output is about to end
            self._process.wait(0.5)
        self._process.kill()
        status = self._process.wait()
        self._process = None
        return status


def limit_memory() -> None:
    """Let this process take ``MEMORY_BYTES`` more than it has now; allocators keep what earlier inputs needed."""
    resource.setrlimit(resource.RLIMIT_DATA, (_status("VmData") + MEMORY_BYTES, resource.RLIM_INFINITY))


def resident_peak(*, reset: bool = False) -> int:
    """Return the most memory this process ever held, or held since the last reset, in bytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def shares(families: Sequence[Family], n: int | None) -> Iterator[tuple[str, int]]:
    """Choose inputs: the full run, or about ``n``, the crafted ones of each family among the first."""
    total = sum(family.n_full for family in families)
    for family in families:
        count = family.n_full if n is None else max(round(family.n_full * n / total), len(family.crafted) + 5)
        for index in range(count):
            yield family.name, index
