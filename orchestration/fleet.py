"""What ops over a range of variants have in common: who is left to do, and how failed variants are told.

Such an op logs what came of each variant when it is done, and raises one failure at the end that names the others.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping

import dagster as dg
from dagster._core.events import AssetMaterializationPlannedData, DagsterEvent

from churn.errors import ChurnError, TransientError

RESUME_TAGS = ("dagster/is_resume_retry", "dagster/is_asset_resume_retry")
MAX_RETRIES = 2
RETRY_POLICY = dg.RetryPolicy(max_retries=MAX_RETRIES, delay=10, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.FULL)
RUN_TAGS = {"dagster/retry_on_asset_or_op_failure": "false", "dagster/max_runtime": "21600"}
"""Of jobs over ranges: what ``dagster.yaml`` says, for instances whose configuration cannot (Dagster's chart)."""

_NAMED_IN_MESSAGE, _NAMED_IN_CHECK = 20, 50


def keep_connections(instance: dg.DagsterInstance) -> None:
    """Let this process's event log keep its connection, as a webserver's does; by default each event makes three."""
    instance.optimize_for_webserver(statement_timeout=60_000, pool_recycle=3600, max_overflow=8)


def runs_gone_on_from(context: dg.AssetExecutionContext) -> list[str]:
    """Return the ids of this run and of those that it resumes, by hand or automatically; not of those it repeats."""
    run: dg.DagsterRun | None = context.run
    ids: list[str] = []
    while run is not None:
        ids.append(run.run_id)
        resumes = run.parent_run_id is not None and any(run.tags.get(tag) == "true" for tag in RESUME_TAGS)
        run = context.instance.get_run_by_id(str(run.parent_run_id)) if resumes else None
    return ids


def materialized_by(run_ids: Iterable[str], instance: dg.DagsterInstance) -> set[str]:
    """Return the variants that some runs have materialized already."""
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION
    events = (entry.dagster_event for run_id in run_ids for entry in instance.all_logs(run_id, of_type=kind))
    return {event.partition for event in events if event is not None and event.partition is not None}


def mark_failed(context: dg.AssetExecutionContext, keys: Iterable[str], specs: Collection[dg.AssetSpec]) -> None:
    """Make the UI show the failed variants' partitions as failed.

    Dagster does so for partitions that a failed run planned and did not materialize. Planning each of thousands of
    partitions costs as much as scoring them, so runs plan ranges (``orchestration.instance``), and only the failed
    ones are planned one by one, here. It is the only use of an event that Dagster does not document.
    """
    for key in keys:
        for spec in specs:
            event = DagsterEvent.build_asset_materialization_planned_event(
                context.job_name,
                context.op_def.name,
                AssetMaterializationPlannedData(spec.key, partition=key),
            )
            context.instance.report_dagster_event(event, context.run.run_id)


def can_retry(failed: Mapping[str, BaseException], context: dg.AssetExecutionContext) -> bool:
    """Tell whether the op may be tried again by itself: something failed that may pass."""
    is_transient = any(isinstance(error, TransientError) for error in failed.values())
    return is_transient and context.retry_number < MAX_RETRIES


def failure_of_all(error: BaseException, context: dg.AssetExecutionContext) -> dg.Failure:
    """Blame one error for every variant of the run."""
    return failure(dict.fromkeys(context.partition_keys, error), context)


def failure(failed: Mapping[str, BaseException], context: dg.AssetExecutionContext) -> dg.Failure:
    """Name the failed variants with their errors."""
    n_variants = len(list(context.partition_keys))
    reasons = {key: str(error) if isinstance(error, ChurnError) else repr(error) for key, error in failed.items()}
    first = next(iter(reasons.items()))
    return dg.Failure(
        f"{len(failed)} of {n_variants} variants failed: {', '.join(list(reasons)[:_NAMED_IN_MESSAGE])}; "
        f"{first[0]}: {first[1]}",
        metadata={"failed": dg.MetadataValue.json(reasons)},
        allow_retries=can_retry(failed, context),
    )


class CheckSummary:
    """The checks of one run, over its variants: which passed for all of them, and for whom they did not.

    Args:
        severities: Of each check, by its asset and name.
    """

    def __init__(self, severities: Mapping[tuple[str, str], dg.AssetCheckSeverity]) -> None:
        self._severities = severities
        self._not_passed: dict[tuple[str, str], list[str]] = {check: [] for check in severities}
        self._n_variants = 0

    def add(self, key: str, evaluations: Iterable[dg.AssetCheckEvaluation]) -> None:
        """Take in a variant's checks."""
        self._n_variants += 1
        for evaluation in evaluations:
            if not evaluation.passed:
                self._not_passed[evaluation.asset_key.to_user_string(), evaluation.check_name].append(key)

    def results(self) -> Iterator[dg.AssetCheckResult]:
        """Yield a result for each check, passed when it did for every variant."""
        for (asset, name), keys in self._not_passed.items():
            yield dg.AssetCheckResult(
                asset_key=dg.AssetKey(asset),
                check_name=name,
                passed=not keys,
                severity=self._severities[asset, name],
                description=f"passed for {self._n_variants - len(keys)} of {self._n_variants} variants",
                metadata={"not_passed": dg.MetadataValue.json(keys[:_NAMED_IN_CHECK])},
            )


class FleetRun:
    """An op's way over its variants: what failed is kept until all are done.

    Args:
        specs: The assets that the op makes.
        severities: Of each check that it evaluates, by its asset and name.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        specs: Collection[dg.AssetSpec],
        severities: Mapping[tuple[str, str], dg.AssetCheckSeverity],
    ) -> None:
        self.context = context
        self.checks = CheckSummary(severities)
        self.failed: dict[str, BaseException] = {}
        self._specs = specs
        keep_connections(context.instance)

    def note_failure(self, key: str, error: BaseException) -> None:
        """Keep a variant's error, to be told when the others are done."""
        self.failed[key] = error
        self.context.log.error("%s: %s", key, error)

    def finish(self) -> Iterator[dg.AssetCheckResult]:
        """Yield the checks summed up, then raise a failure that names the failed variants, if there are any.

        Where the op will be tried again by itself, nothing is summed up yet.
        """
        if self.failed and can_retry(self.failed, self.context):
            raise failure(self.failed, self.context)
        yield from self.checks.results()
        if self.failed:
            mark_failed(self.context, self.failed, self._specs)
            raise failure(self.failed, self.context)
