"""The weekly judging job over a part of a fleet, in a process of its own: ``python -m benchmarks.judging FIRST END``.

Started by :mod:`benchmarks.monitoring`; it imports what a run of the job does, and not what only a benchmark needs.
"""

import argparse
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from benchmarks.services import peak_mb
from churn.concurrency import in_threads
from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import load_settings
from churn.variants import Variant
from churn.workflows.promote import Promoter

THREADS = 2  # as the op has them


def fleet(n_variants: int) -> list[Variant]:
    """Name the variants."""
    return [Variant(company=f"c{i:04}") for i in range(n_variants)]


def promoter_of(deployment: Deployment, variants: Sequence[Variant]) -> Promoter:
    """Look once at all variants of a run, as the op does."""
    promoter = deployment.promoter()
    return promoter.for_fleet(variants, promoter.registry.aliases())


def judge(deployment: Deployment, variants: Sequence[Variant]) -> dict[str, float]:
    """Take in, judge and compare some variants, as one run of the weekly job does; seconds are all threads'."""
    promoter, today = promoter_of(deployment, variants), datetime.now(UTC).date()

    def one(variant: Variant) -> tuple[float, ...]:
        started = time.perf_counter()
        taken = promoter.evaluator.ingest(variant)
        taking_in = time.perf_counter() - started
        judged = promoter.evaluator.evaluate_batches(variant, today, taken)
        promoter.standing(variant, taken)
        accounts, matured = (sum(getattr(batch, name) for batch in judged) for name in ("n_accounts", "n_matured"))
        return len(judged), accounts, matured, taken.n_added, taking_in

    totals = [sum(column) for column in zip(*in_threads(one, variants, THREADS), strict=True)]
    names = ("judged", "accounts", "matured", "new_facts", "taking_in")
    return dict(zip(names, totals, strict=True)) | {"peak_mb": peak_mb()}


def main(argv: Sequence[str] | None = None) -> None:
    """PerformanceEvaluator, and print what came of it as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.judging", description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("end", type=int)
    args = parser.parse_args(argv)
    with open_deployment(load_settings()) as deployment:
        print(json.dumps(judge(deployment, fleet(args.end)[args.first :])))


if __name__ == "__main__":
    main()
