"""Kills an operation at its steps, at random instants, beside itself and beside scoring; runs it again, and checks."""

import math
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import cache, partial
from itertools import repeat
from random import Random

from churn.deployment.services import Deployment
from tests.support.batches import week_request
from tests.support.faults.bench import INPUT, Bench, Case, Place
from tests.support.faults.ledger import Tally, execute
from tests.support.faults.naive import score_naively
from tests.support.faults.operations import ERASED, UNFINISHED, Operation, Seen
from tests.support.faults.worker import Order, Step

KILLED = -signal.SIGKILL
_WEEK = date(2025, 1, 6)  # of an order that scores nothing
_MOST_MISSES = 30
score_of = cache(score_naively)


def perform(run: Callable[[Deployment, Case], object], case: Case, deployment: Deployment) -> None:
    """Run a command in a child."""
    run(case.at(deployment), case)


def perform_naively(
    run: Callable[[Deployment, Case], Iterator[None]], stop: int, case: Case, deployment: Deployment
) -> None:
    """Run a naive way in a child, which kills itself at a step."""
    for i, _ in enumerate(run(case.at(deployment), case)):
        if i == stop:
            os.kill(os.getpid(), signal.SIGKILL)


def score(deployment: Deployment, case: Case) -> None:
    """Score the case's variant."""
    deployment.scorer().score_variant(week_request(case.week).of(case.variant))


@dataclass
class Driver:
    """Kills one operation in one place.

    Attributes:
        usual_s: How long a child takes that is left alone.
        until_s: When no other kill is tried.
    """

    operation: Operation
    bench: Bench
    place: Place
    rng: Random
    usual_s: float = 0.0
    until_s: float = math.inf
    asked: Seen | None = None

    def run(self, share: float = 1.0, until_s: float = math.inf) -> Tally:
        """Make all kills, or a share of each kind, or as many as there is time for; returns what came of them."""
        tally, self.until_s = Tally(), until_s
        self._undisturbed(tally)
        kills = list(self._kills(share))
        self.rng.shuffle(kills)
        for kill in kills:
            if time.monotonic() > until_s:
                break
            self._make(kill, tally)
        return tally

    def once(self) -> Tally:
        """Make one kill, at a step where there are steps; the short form."""
        tally, steps = Tally(), self.operation.steps(self.place)
        if self.operation.asked is None:
            self._undisturbed(tally, n_times=1)
        self._make(partial(self._at_step, *self.rng.choice(list(steps.items()))) if steps else self._at_random, tally)
        return tally

    @staticmethod
    def n_planned(operation: Operation, place: Place) -> int:
        """Return how many kills a whole run makes."""
        n_others = operation.random + operation.twice + operation.scoring
        return len(operation.steps(place)) * operation.each + n_others

    def _kills(self, share: float) -> Iterator[Callable[[Case], tuple[str, bool]]]:
        operation = self.operation
        steps = self.operation.steps(self.place)
        n = max(1, round(operation.each * share)) if operation.each else 0
        if share < 0.2:  # the short form: some of the steps
            steps = dict(self.rng.sample(list(steps.items()), min(2, len(steps))))
        yield from (partial(self._at_step, name, step) for name, step in steps.items() for _ in range(n))
        others = (
            (self._at_random, operation.random),
            (self._beside_itself, operation.twice),
            (self._beside_scoring, operation.scoring),
        )
        for kill, times in others:
            yield from repeat(kill, -int(-times * share // 1) if times else 0)

    def _undisturbed(self, tally: Tally, n_times: int = 2) -> None:
        """Run the operation twice, which must equal once; what it leaves is asked for unless that is written down."""
        case = self.operation.prepare(self.bench, self.place)
        started = time.monotonic()
        status = self._do(case)
        self.usual_s = time.monotonic() - started
        assert status == 0, f"{self.operation.name} does not go through undisturbed"
        seen = self.operation.seen(self.bench, case)
        if self.operation.asked is None:
            self.asked = seen
        self._compare(tally, case, seen)
        for _ in range(n_times - 1):
            tally.broken += self._do(case) != 0
            self._compare(tally, case)
        self.bench.forget(case)

    def _make(self, kill: Callable[[Case], tuple[str, bool]], tally: Tally) -> None:
        for _ in range(_MOST_MISSES):
            case = self.operation.prepare(self.bench, self.place)
            how, is_killed = kill(case)
            if is_killed:
                between = self.operation.between(self.bench, case)
                tally.broken += between.total()
                status = self._do(case)
                tally.broken += status != 0
                if status:
                    tally.outcomes[f"NOT COMPLETED by the repeat, {how}"] += 1
                if between:
                    tally.outcomes[f"HALF DONE before the repeat: {dict(between)}, {how}"] += 1
            if how == "beside scoring":
                self._compare_scores(tally, case)
            self._compare(tally, case, how=how)
            self.bench.forget(case)
            if is_killed:
                tally.n += 1
                tally.outcomes[how.partition(":")[0]] += 1
                return
            if time.monotonic() > self.until_s:
                return
            self.usual_s *= 0.95
        raise AssertionError(f"{self.operation.name}: {kill} never hit")

    def _at_step(self, name: str, step: Step, case: Case) -> tuple[str, bool]:
        self._begin(case, step)
        is_killed = self.bench.nursery.outlive() == KILLED
        assert is_killed, f"{self.operation.name} in {self.place} never comes to: {name}"
        return f"at a step: {name}", True

    def _at_random(self, case: Case) -> tuple[str, bool]:
        return "at a random instant", self._kill_later(self._begin(case))

    def _beside_itself(self, case: Case) -> tuple[str, bool]:
        first, second = self._begin(case), self._begin(case)
        is_killed = self._kill_later(first, 1.5)
        self.bench.nursery.outlive(second)
        return "beside itself", is_killed

    def _beside_scoring(self, case: Case) -> tuple[str, bool]:
        # What is not registered yet cannot be scored, which is tried again afterwards.
        scoring = self.bench.nursery.bear(replace(self._order(score, case), may_fail=True))
        time.sleep(self.rng.uniform(0, 0.2))
        is_killed = self._kill_later(self._begin(case))
        self.bench.nursery.outlive(scoring)
        return "beside scoring", is_killed

    def _kill_later(self, child: int, factor: float = 1.0) -> bool:
        time.sleep(self.rng.uniform(0, self.usual_s * factor))
        with suppress(ProcessLookupError):  # what it started, if it leads a group
            os.killpg(child, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)  # it is not reaped yet, so the id is still its own
        return self.bench.nursery.outlive(child) == KILLED

    def _begin(self, case: Case, step: Step | None = None) -> int:
        return self.bench.nursery.bear(self._order(self.operation.run, case, step))

    def _do(self, case: Case) -> int:
        self._begin(case)
        return self.bench.nursery.outlive()

    @staticmethod
    def _order(run: Callable[[Deployment, Case], object], case: Case, step: Step | None = None) -> Order:
        return Order(case.variant.key, _WEEK, "", step, command=partial(perform, run, case))

    def _compare(self, tally: Tally, case: Case, seen: Seen | None = None, how: str = "undisturbed") -> None:
        asked = self.operation.asked(self.bench, case) if self.operation.asked else self.asked
        assert asked is not None
        found = self.operation.seen(self.bench, case) if seen is None else seen
        if difference := _count(tally, asked, found):
            tally.outcomes[f"WRONG, {how}: {difference}"] += 1

    def _compare_scores(self, tally: Tally, case: Case) -> None:
        """Compare the scored week with ``Booster.predict`` on its input; the week is scored once more before."""
        week = case.week
        self.bench.nursery.bear(self._order(score, case))
        tally.broken += self.bench.nursery.outlive() != 0
        query = (
            "SELECT account_id, churn_probability FROM churn_predictions_current "
            "WHERE variant = :variant AND scored_week = :week"
        )
        found = execute(self.bench.server, query, variant=case.variant.key, week=week)
        (body,) = self.bench.files(case, INPUT).values()
        erased = {ERASED} if self.operation.name == "erasure" else set()
        expected = {account: value for account, value in score_of(body).items() if account not in erased}
        rows: dict[int, list[float]] = {}
        for account, probability in found:
            rows.setdefault(account, []).append(probability)
        before = Counter(tally.harm)
        tally.count(rows, expected)
        if difference := Counter(tally.harm) - before:
            tally.outcomes[f"WRONG scores: {dict(difference)}"] += 1


def _count(tally: Tally, asked: Seen, seen: Seen) -> dict[str, list[object]]:
    """Count what is lost, doubled, half done, or not asked for."""
    lost, more = asked - seen, seen - asked
    for one, n in more.items():
        kind = "broken" if _is_unfinished(one) else "doubled" if one in asked else "wrong"
        setattr(tally, kind, getattr(tally, kind) + n)
    tally.lost += lost.total()
    return {name: list(found)[:5] for name, found in (("lost", lost), ("more", more)) if found}


def _is_unfinished(one: object) -> bool:
    return not UNFINISHED.isdisjoint(one if isinstance(one, tuple) else (one,))


def run_naively(operation: Operation, bench: Bench) -> Tally | None:
    """Kill the naive way once at each of its steps; returns what came of it, ``None`` where there is none."""
    naive, tally = operation.naive, Tally()
    if naive is None:
        return None
    for stop in range(_MOST_MISSES):
        case = operation.prepare(bench, "S3")
        naive.prepare(bench, case)
        order = partial(Order, case.variant.key, _WEEK, "", may_fail=True)
        bench.nursery.bear(order(command=partial(perform_naively, naive.run, stop, case)))
        is_killed = bench.nursery.outlive() == KILLED
        bench.nursery.bear(order(command=partial(perform_naively, naive.run, -1, case)))
        tally.broken += bench.nursery.outlive() != 0
        if is_killed:
            tally.n += 1
            _count(tally, naive.asked, naive.seen(bench, case))
        bench.forget(case)
        if not is_killed:
            break
    return tally
