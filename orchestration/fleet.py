"""Ops over a range of variants, as scoring, evaluation and training share them.

Such an op logs each variant's report to Dagster when the variant is done, and at the end raises one failure that names
the variants that failed. Not here: the loop over the variants, which is ``churn.workflows.fleet``.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TypeVar

import dagster as dg
from dagster._core.events import AssetMaterializationPlannedData, DagsterEvent

from churn.deployment.services import Deployment
from churn.errors import ChurnError, TransientError
from churn.wording import counted, listed
from churn.workflows.fleet import Attempts, error_text
from orchestration import checks
from orchestration.assets.metadata import Metadata
from orchestration.event_log import BATCH, log_materializations, standing_outcomes
from orchestration.partitions import variants_partitions
from orchestration.resources import Services

RESUME_TAGS = ("dagster/is_resume_retry", "dagster/is_asset_resume_retry")
MAX_RETRIES = 2
RUN_TAGS = {"dagster/retry_on_asset_or_op_failure": "false", "dagster/max_runtime": "21600"}
"""Tags of jobs over ranges: the settings of ``dagster.yaml``, for instances that do not use it (Dagster's chart)."""

_PAGE = 1_000
_NAMED_IN_MESSAGE, _NAMED_IN_CHECK = 20, 50
_SLOW_S = 0.5  # from one report to the next; so long, a report does not wait for others
_INCOMPLETE = "%s is done, but its report is incomplete: %s"

_Out = TypeVar("_Out")


@dataclass(frozen=True)
class AssetReport:
    """What Dagster shows of a variant whose work is done."""

    metadata: Mapping[str, Metadata]
    checks: Sequence[dg.AssetCheckEvaluation] = ()
    description: str | None = None
    problem: str | None = None  # why it is incomplete, if it is
    is_dry_run: bool = False  # whether nothing was changed: the checks count, and no event is logged


def fleet_assets(
    name: str, specs: Sequence[dg.AssetSpec], *, backfill_variants: int
) -> Callable[[Callable[..., checks.Results]], dg.AssetsDefinition]:
    """Return the decorator of an op that materializes assets for a range of variants."""
    return dg.multi_asset(
        name=name,
        specs=specs,
        check_specs=checks.specs(spec.key.to_user_string() for spec in specs),
        partitions_def=variants_partitions,
        backfill_policy=dg.BackfillPolicy.multi_run(backfill_variants),
        retry_policy=dg.RetryPolicy(MAX_RETRIES, delay=10, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.FULL),
    )


def build_report(assets: Iterable[str], build: Callable[[], AssetReport]) -> AssetReport:
    """Build a report; if that fails, return one of bare materializations, since the variant's work is done."""
    try:
        return build()
    except Exception as error:  # noqa: BLE001 no error here may make a published variant a failed one
        return AssetReport({asset: {} for asset in assets}, problem=error_text(error))


def log_report(context: dg.AssetExecutionContext, key: str, report: AssetReport) -> bool:
    """Log a variant's materializations and checks to Dagster; returns whether all of them were logged.

    If an event cannot be logged, a warning is, and the remaining assets are materialized without metadata.
    """
    problem, left = report.problem, list(report.metadata)
    try:
        for asset, metadata in report.metadata.items():
            context.log_event(dg.AssetMaterialization(asset, report.description, metadata, partition=key))
            left.remove(asset)
        for evaluation in report.checks:
            context.log_event(evaluation)
    except Exception as error:  # noqa: BLE001 Dagster's storage and its clients raise errors of many kinds
        problem = error_text(error)
        for asset in left:
            context.log_event(dg.AssetMaterialization(asset, partition=key))
    if problem is not None:
        context.log.warning(_INCOMPLETE, key, problem)
    return problem is None


def resumed_runs(context: dg.AssetExecutionContext) -> list[str]:
    """Return the ids of this run and of those that it resumes, by hand or automatically; not of those it repeats."""
    run: dg.DagsterRun | None = context.run
    ids: list[str] = []
    while run is not None:
        ids.append(run.run_id)
        resumes = run.parent_run_id is not None and any(run.tags.get(tag) == "true" for tag in RESUME_TAGS)
        run = context.instance.get_run_by_id(str(run.parent_run_id)) if resumes else None
    return ids


def _materialized(context: dg.AssetExecutionContext, asset: str) -> set[str]:
    """Return the variants whose asset was materialized by this run, or by one that it resumes."""
    instance, run_ids = context.instance, resumed_runs(context)
    first = instance.get_records_for_run(run_ids[-1], limit=1).records[0].storage_id
    wanted = dg.AssetRecordsFilter(dg.AssetKey.from_user_string(asset), after_storage_id=first)
    found, cursor = set[str](), None
    while True:
        page = instance.fetch_materializations(wanted, limit=_PAGE, cursor=cursor)
        found |= {one.partition_key for one in page.records if one.run_id in run_ids and one.partition_key}
        if not page.has_more:
            return found
        cursor = page.cursor


def root_run(context: dg.OpExecutionContext | dg.AssetExecutionContext) -> dg.RunRecord:
    """Return the record of the run that was launched first: this one, or the one that it retries or resumes.

    A run and its retries are one decision, so what is not in the configuration is decided when the first is launched.
    """
    run_id = context.run.root_run_id or context.run.run_id
    return (
        context.instance.get_run_record_by_id(run_id)
        or context.instance.get_run_records(dg.RunsFilter(run_ids=[context.run.run_id]))[0]
    )


class FleetRun:
    """A run of an op that materializes ``specs``: logs each variant's report, and collects the errors until the end."""

    def __init__(self, context: dg.AssetExecutionContext, specs: Collection[dg.AssetSpec]) -> None:
        self.context = context
        self._assets = [spec.key.to_user_string() for spec in specs]
        known = [(one.asset_key.to_user_string(), one.name) for one in checks.specs(self._assets)]
        self._failed: dict[str, BaseException] = {}
        self._incomplete: set[str] = set()
        # Reuse the event log's connection, as a webserver does; by default each event opens three.
        context.instance.optimize_for_webserver(statement_timeout=60_000, pool_recycle=3600, max_overflow=8)
        self._standing = standing_outcomes(context.instance, known, list(context.partition_keys))
        self._waiting: list[tuple[str, AssetReport]] = []
        self._last_report_at = 0.0
        # What an earlier try, or a run that this one resumes, has logged counts.
        self._done = _materialized(context, self._assets[-1])
        self._passed = {
            check: {key: passed for key, passed in standing.items() if key in self._done}
            for check, standing in self._standing.items()
        }

    @contextmanager
    def open(self, services: Services) -> Iterator[Deployment]:
        """Open the deployment; an error that is not of one variant fails all of them."""
        try:
            with services.open() as deployment:
                yield deployment
        except ChurnError as error:
            raise self._failure(dict.fromkeys(self.context.partition_keys, error)) from error

    def left(self, done: Collection[str] | None = None) -> list[str]:
        """Return the run's variants without those that are ``done``.

        By default these are the ones that this run, or a run that it resumes, has materialized.
        """
        done = self._done if done is None else done
        left = [key for key in dict.fromkeys(self.context.partition_keys) if key not in done]
        self.context.log.info("%d variants to do, %d already done", len(left), len(done))
        return left

    def untold(self, published: Collection[str]) -> list[str]:
        """Return the run's variants that are ``published`` without the materialization that is logged last of each."""
        return [key for key in dict.fromkeys(self.context.partition_keys) if key in published and key not in self._done]

    def log(self, attempts: Attempts[_Out], build: Callable[[str, _Out], AssetReport]) -> None:
        """Log the report of each variant that succeeds, and collect the errors of the others.

        A variant has succeeded even if ``build``, which gets its key and its result, raises an error.
        """
        try:
            for key, result in attempts:
                if isinstance(result, BaseException):
                    self._failed[key] = result
                    self.context.log.error("%s: %s", key, result)
                else:
                    self._add(key, build_report(self._assets, partial(build, key, result)))
        finally:
            self._log_waiting()

    def _add(self, key: str, report: AssetReport) -> None:
        """Log a variant's report, together with the next ones while they come quickly."""
        self._done.add(key)
        self._waiting.append((key, report))
        if time.monotonic() - self._last_report_at > _SLOW_S or len(self._waiting) == BATCH:
            self._log_waiting()
        self._last_report_at = time.monotonic()

    def _log_waiting(self) -> None:
        """Log the reports that wait, or one by one if that fails, and count their checks."""
        reports, self._waiting = self._waiting, []
        real = [(key, report) for key, report in reports if not report.is_dry_run]
        try:
            self._log_together(real)
        except Exception:  # noqa: BLE001 Dagster's storage and its clients raise errors of many kinds
            incomplete = {key for key, report in real if not log_report(self.context, key, report)}
        else:
            incomplete = {key for key, report in real if report.problem is not None}
            for key in incomplete:
                self.context.log.warning(_INCOMPLETE, key, dict(real)[key].problem)
        self._incomplete |= incomplete
        for key, evaluation in ((key, one) for key, report in reports for one in report.checks):
            if key not in incomplete:
                self._passed[_check(evaluation)][key] = evaluation.passed

    def _log_together(self, reports: Sequence[tuple[str, AssetReport]]) -> None:
        """Log the checks that did not pass or did not before, then each asset's materializations at once."""
        for key, evaluation in ((key, one) for key, report in reports for one in report.checks):
            if not (evaluation.passed and self._standing[_check(evaluation)].get(key)):
                self.context.log_event(evaluation)
        for asset in self._assets:
            described = [(key, one.description, one.metadata[asset]) for key, one in reports if asset in one.metadata]
            events = [dg.AssetMaterialization(asset, text, of, partition=key) for key, text, of in described]
            log_materializations(self.context, events)

    def finish(self) -> checks.Results:
        """Yield a result of each check over all variants, then raise a failure that names the failed ones, if any.

        If the op will be retried, no result is yielded yet.
        """
        if self._incomplete:
            self.context.log.warning("%d of %d reports are incomplete", len(self._incomplete), len(self._done))
        failure = self._failure(self._failed) if self._failed else None
        if failure is None or not failure.allow_retries:
            self._mark_failed()  # before the results, since Dagster drops what is logged between the last and an error
            yield from self._check_results()
        if failure is not None:
            raise failure

    def _check_results(self) -> checks.Results:
        n_done, n_incomplete = len(self._done), len(self._incomplete)
        for (asset, name), passed in self._passed.items():
            checked = passed.keys() & self._done - self._incomplete
            keys = [key for key in passed if key in checked and not passed[key]]
            yield dg.AssetCheckResult(
                asset_key=asset,
                check_name=name,
                passed=not keys and not n_incomplete,
                severity=checks.severity(name),
                description=_describe_check(len(checked), len(keys), n_done, n_incomplete),
                metadata={"variants_that_failed": listed(keys, _NAMED_IN_CHECK) or "none"},
            )

    def _mark_failed(self) -> None:
        """Make the UI show the failed variants' partitions as failed, each with its error.

        Dagster does so for partitions that a failed run planned and did not materialize. Planning each of thousands of
        partitions costs as much as scoring them, so runs plan ranges (``orchestration.instance``), and only the failed
        ones are planned one by one, here, by an event that Dagster does not document.
        """
        context, build = self.context, DagsterEvent.build_asset_materialization_planned_event
        for key, error in self._failed.items():
            told = {"variant": key, "error": error_text(error)}
            context.log_event(dg.AssetObservation(self._assets[-1], f"{key} failed", told, partition=key))
        for key, asset in product(self._failed, self._assets):
            planned = AssetMaterializationPlannedData(dg.AssetKey.from_user_string(asset), partition=key)
            event = build(context.job_name, context.op_def.name, planned)
            context.instance.report_dagster_event(event, context.run.run_id)

    def _failure(self, failed: Mapping[str, BaseException]) -> dg.Failure:
        """Build the run's failure; the op can be retried automatically if at least one error is transient."""
        n_variants = len(list(self.context.partition_keys))
        reasons = {key: error_text(error) for key, error in failed.items()}
        first, reason = next(iter(reasons.items()))
        is_transient = any(isinstance(error, TransientError) for error in failed.values())
        may_retry = is_transient and self.context.retry_number < MAX_RETRIES
        which = f"{listed(list(reasons), _NAMED_IN_MESSAGE)}; {first}: {reason}"
        text = f"{len(failed)} of {counted(n_variants, 'variant')} failed: {which}"
        return dg.Failure(text, metadata={"failed": reasons}, allow_retries=may_retry)


def _check(evaluation: dg.AssetCheckEvaluation) -> tuple[str, str]:
    return evaluation.asset_key.to_user_string(), evaluation.check_name


def _describe_check(n_checked: int, n_failed: int, n_done: int, n_incomplete: int) -> str:
    """Describe a check over a run's variants; to some, such as those without a challenger, it does not apply.

    >>> _describe_check(3, 1, 5, 1), _describe_check(0, 0, 4, 0)
    ('Passed for 2 of 4 variants; not evaluated for 1; does not apply to 1.', 'Does not apply to any of 4 variants.')
    """
    n_others = n_done - n_checked - n_incomplete
    if not n_checked and not n_incomplete:
        return f"Does not apply to any of {counted(n_done, 'variant')}."
    rest = f"; not evaluated for {n_incomplete}" if n_incomplete else ""
    rest += f"; does not apply to {n_others}" if n_others else ""
    return f"Passed for {n_checked - n_failed} of {counted(n_checked + n_incomplete, 'variant')}{rest}."
