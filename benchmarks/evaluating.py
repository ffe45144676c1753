"""The weekly evaluation over a part of a fleet, in a process of its own: ``python -m benchmarks.evaluating FIRST END``.

Started by :mod:`benchmarks.monitoring`; it imports what a run of the job imports, and not what only a benchmark needs.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace

from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import load_settings
from churn.storage.history import Appended
from churn.variants import Variant
from churn.workflows.evaluate import evaluate_fleet
from churn.workflows.ingest import Ingestion
from tests.support.services import peak_mb

_ingestions: list[float] = []


class TimedIngestion(Ingestion):
    """Measures how long ingestion takes."""

    def ingest(self, variant: Variant) -> Appended:
        started = time.perf_counter()
        try:
            return super().ingest(variant)
        finally:
            _ingestions.append(time.perf_counter() - started)


def fleet(n_variants: int) -> list[Variant]:
    """Name the variants."""
    return [Variant(company=f"c{i:04}") for i in range(n_variants)]


def measure(deployment: Deployment, variants: Sequence[Variant]) -> dict[str, float]:
    """Evaluate some variants as one run of the weekly job does; the seconds of ingestion are summed over threads."""
    promoter = deployment.promoter()
    timed_ingestion = TimedIngestion(**vars(promoter.evaluator.ingestion))
    totals = {"evaluated": 0.0, "accounts": 0.0, "matured": 0.0, "new_facts": 0.0}
    timed = replace(promoter, evaluator=replace(promoter.evaluator, ingestion=timed_ingestion))
    for _, result in evaluate_fleet(timed, [variant.key for variant in variants]):
        if isinstance(result, BaseException):
            raise result
        totals["evaluated"] += len(result.batches)
        totals["accounts"] += sum(batch.n_accounts for batch in result.batches)
        totals["matured"] += sum(batch.n_matured for batch in result.batches)
        totals["new_facts"] += result.n_new_facts
    return totals | {"ingestion": sum(_ingestions), "peak_mb": peak_mb()}


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate, and print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.evaluating", description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("end", type=int)
    args = parser.parse_args(argv)
    with open_deployment(load_settings()) as deployment:
        print(json.dumps(measure(deployment, fleet(args.end)[args.first :])))


if __name__ == "__main__":
    main()
