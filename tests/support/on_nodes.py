"""What the tests of a cluster do with each outcome on its node: Ray's workers import it by this module's name."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from churn.workflows.score import Scorer, ScoringOutcome


@dataclass(frozen=True)
class Placed:
    """Where a variant was scored, how many rows it had, and what its worker was sent besides the task."""

    node: str
    n_rows: int
    runtime_env: str


def place(outcome: ScoringOutcome, _scorer: Scorer) -> Placed:
    import ray

    context = ray.get_runtime_context()
    return Placed(context.get_node_id(), outcome.record.n_rows_scored, context.get_runtime_env_string())


def die_after_publishing(outcome: ScoringOutcome, scorer: Scorer, *, folder: Path) -> Placed:
    """Die each time that ``always`` is scored, and the first time that ``once`` is."""
    key = outcome.record.variant.key
    mark = folder / f"{key} has died"
    if key.endswith("always") or (key.endswith("once") and not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return place(outcome, scorer)


def unsendable(outcome: ScoringOutcome, scorer: Scorer) -> Scorer:
    return scorer
