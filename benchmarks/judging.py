"""Delayed performance of a fleet, in a process of its own: ``python -m benchmarks.judging``.

Prints one JSON object. On a real PostgreSQL, MLflow in it and S3 on this machine, every variant is registered and two
weeks of it are scored. The first is judged on one thread, each service's calls timed: microseconds a batch by part,
of which ``rest`` is what is computed here. The second is judged on a few threads, as by the weekly op.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.services import bench_environment, model_files, parquet_bytes, peak_mb, upload_variant
from churn.bootstrap import set_up_server
from churn.data.simulate import simulate_activity
from churn.deployment import Deployment, open_deployment
from churn.settings import load_settings
from churn.threads import in_threads
from churn.variants import Variant
from experiment_tracking.log_model import THREADS, log_all

_DATASETS = 20
_WEEKS = (date(2026, 5, 25), date(2026, 6, 29))
_TODAY = date(2026, 11, 16)
_ACCOUNTS_PER_ROW = 1.25  # some come only after the weeks that are scored


class Timed:
    """Stands before a service and sums up the seconds that each of its methods takes."""

    def __init__(self, service: Any, seconds: dict[str, float]) -> None:
        self._service, self._seconds = service, seconds

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._service, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self._seconds[f"{type(self._service).__name__}.{name}"] += time.perf_counter() - started

        return timed


def measure(deployment: Deployment, n_variants: int, n_rows: int) -> dict[str, Any]:
    """Register, score, and judge."""
    variants = [Variant(company=f"c{i:04}") for i in range(n_variants)]
    _prepare(deployment, variants, n_rows)
    judge = deployment.promoter().judge
    started = time.perf_counter()
    for variant in variants:
        judge.take_in(variant)
    taken_in = time.perf_counter()

    parts: dict[str, float] = defaultdict(float)
    services = {name: Timed(getattr(judge, name), parts) for name in ("history", "results", "registry")}
    alone = replace(judge, **services)
    n_judged = sum(len(alone.judge_batches(variant, date(2026, 9, 30))) for variant in variants)
    first = time.perf_counter()
    again = list(in_threads(lambda variant: judge.judge_batches(variant, _TODAY), variants, THREADS))
    second = time.perf_counter()

    judged = [one for found in again for one in found]
    parts["rest"] = first - taken_in - sum(parts.values())
    return {
        "variants": n_variants,
        "rows": sum(one.n_accounts for one in judged) / len(judged),
        "matured": sum(one.n_matured for one in judged) / len(judged),
        "segments": sum(len(one.segments) for one in judged) / len(judged),
        "seconds_take_in": taken_in - started,
        "seconds_alone": first - taken_in,
        "seconds": second - first,
        "us_per_batch": {name: round(took * 1e6 / n_judged) for name, took in sorted(parts.items())},
        "peak_mb": peak_mb(),
    }


def _prepare(deployment: Deployment, variants: list[Variant], n_rows: int) -> None:
    model = model_files()
    inputs = [
        parquet_bytes(
            simulate_activity(
                n_accounts=round(n_rows * _ACCOUNTS_PER_ROW), first_month=date(2025, 2, 1), n_months=21, seed=seed
            )
        )
        for seed in range(_DATASETS)
    ]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: upload_variant(variants[i], inputs[i % _DATASETS], model), range(len(variants))))
    with contextlib.redirect_stdout(io.StringIO()):
        failed = log_all(deployment, variants, None)
    if failed:
        raise RuntimeError(f"{failed} were not registered")
    scorer = deployment.scorer()
    for week in _WEEKS:
        for _, result in scorer.score_fleet([one.key for one in variants], week, None, lambda outcome, _: outcome):
            if isinstance(result, BaseException):
                raise result


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.judging", description=__doc__)
    parser.add_argument("--variants", type=int, default=200)
    parser.add_argument("--rows", type=int, default=1_000, help="of each variant's batch, about")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="churn-bench-") as folder:
        Path(folder).chmod(0o755)
        with bench_environment(Path(folder) / "home"), open_deployment(load_settings()) as deployment:
            list(set_up_server(deployment))
            print(json.dumps(measure(deployment, args.variants, args.rows)))


if __name__ == "__main__":
    main()
