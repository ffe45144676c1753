"""``churn demo``: the whole weekly job with the services that the environment names, or with the embedded default.

Each step calls the functions that the scripts and Dagster call. A second run reuses the first one's data and models.
"""

import io
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from hashlib import sha256
from pathlib import Path

import polars as pl
import polars.selectors as cs
from rich.console import Console
from rich.table import Column, Table

from churn.cli.explain import as_text, build_console
from churn.database.published import PublishedPredictions, Row
from churn.defaults import HORIZON_MONTHS
from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import find_bundled_files, find_checkout
from churn.errors import ChurnError
from churn.signals import sigterm_kept
from churn.storage.inputs import INPUT_FOLDER
from churn.storage.places import Folder
from churn.variants import Variant
from churn.versions import CHAMPION
from churn.weeks import at_risk_since, month_number, month_numbers
from churn.workflows.fleet import results_of
from orchestration.instance import dagster_environment, execute_here

VARIANTS = (Variant(), Variant("us"), Variant(company="clienta"), Variant("eu", "clientb"))

_BAR_WIDTH, _HIGHEST_SHOWN = 5, 3


def run_demo(week: date, *, with_history: bool = False) -> None:
    """Set up, register, score through Dagster, and show the results; a ``ChurnError`` names variants and reason.

    ``with_history`` lives through half a year instead (:mod:`churn.cli.demo_history`).
    """
    console = build_console()
    logging.getLogger("churn").setLevel(logging.ERROR)  # the last table has the content of the warnings
    started = time.monotonic()
    with ExitStack() as stack:
        with _step(console, "PostgreSQL"):
            deployment = stack.enter_context(open_deployment())
        from churn.workflows.set_up import set_up_server

        steps = {"Databases, schemas, roles": set_up_server(*deployment.databases)}
        if with_history:
            from churn.cli.demo_history import build_history

            steps[f"Half a year, up to the week of {week}"] = build_history(deployment, week)
        else:
            steps |= {
                "Player activity": _provide_inputs(deployment, week),
                "Experiments and models in MLflow": _register(deployment),
                f"Dagster run of churn_prediction_job for the week of {week}": _run_job(deployment, week),
            }
        for title, lines in steps.items():
            with _step(console, title):
                for line in lines:
                    console.print(f"  [dim]{line}[/dim]", soft_wrap=True)
        account = None if with_history else _show(console, deployment, week)
    run = "uv run " if find_checkout() else ""
    console.print(f"\nDone in {time.monotonic() - started:.0f} s. Next:")
    following = {} if account is None else {f"explain --account {account}": "why a player has a score"}
    following["up"] = "Dagster on http://127.0.0.1:3000, MLflow on http://127.0.0.1:5000"
    for command, what in following.items():
        console.print(f"  [bold]{run}churn {command}[/bold]   {what}", soft_wrap=True)


@contextmanager
def _step(console: Console, title: str) -> Iterator[None]:
    started = time.monotonic()
    with console.status(f"{title} …"):
        yield
    console.print(f"[green]✓[/green] {title} [dim]{time.monotonic() - started:.1f} s[/dim]")


def demo_activity(sample: pl.DataFrame, variant: Variant, week: date) -> pl.DataFrame:
    """Return a variant's part of the sample, its dates moved by whole months to end with the month before a week. Pure.

    So players are at risk in any year. The base variant has all accounts, each other one its own half of them.
    """
    newest: int = sample.select(month_numbers(pl.col("activity_month").max())).item()
    accounts = sample["account_id"].unique().to_list()
    is_drawn = {one: sha256(f"{variant.key} {one}".encode()).digest()[0] < 128 for one in accounts}
    held = [account for account in accounts if variant == Variant() or is_drawn[account]]
    moved = cs.temporal().dt.offset_by(f"{month_number(week) - 1 - newest}mo")  # from the 31st to a month's last day
    return sample.filter(pl.col("account_id").is_in(held)).with_columns(moved)


def is_outdated_sample(path: Path, week: date) -> bool:
    """Return whether a file is the bundled activity, and too old to tell who is at risk in a week."""
    if path.read_bytes() != (find_bundled_files() / INPUT_FOLDER / path.name).read_bytes():
        return False
    months = pl.read_parquet(path, columns=["activity_month"]).to_series()
    return not bool((months >= at_risk_since(week, HORIZON_MONTHS)).any())


def _provide_inputs(deployment: Deployment, week: date) -> Iterator[str]:
    sample = pl.read_parquet(find_bundled_files() / INPUT_FOLDER / "activity.parquet")
    for variant in VARIANTS:
        path = deployment.local_root / (key := f"{variant.prefix}{INPUT_FOLDER}activity.parquet")
        if not deployment.is_embedded:
            yield f"{variant}: as found in {deployment.settings.mlflow_s3_bucket or deployment.local_root}"
        elif path.exists() and not is_outdated_sample(path, week):
            yield f"{variant}: {path}"
        else:
            activity = demo_activity(sample, variant, week)
            activity.write_parquet(body := io.BytesIO())
            Folder(deployment.local_root).write(key, body.getvalue())
            yield f"{variant}: {activity.height} player-months of the bundled sample, written to {path}"


def _register(deployment: Deployment) -> Iterator[str]:
    from churn.workflows.register import log_variant
    from churn.workflows.set_up import set_up_variants

    registry, sources = deployment.registry(read_only=False), deployment.sources()
    location, aliases = deployment.artifact_location, registry.aliases()
    for lines in results_of(set_up_variants(registry, location, VARIANTS)).values():
        yield from lines
    for variant in VARIANTS:
        if CHAMPION in aliases.get(variant, {}):
            version = registry.resolve(variant)
            yield f"{variant}: {version.uri} is its champion"
        else:
            version, candidate = log_variant(registry, sources, variant, location, deployment.code_version, once=True)
            yield f"{variant}: registered {version.uri} from {candidate.files[0].provenance.uri}"


def _run_job(deployment: Deployment, week: date) -> Iterator[str]:
    os.environ.update(dagster_environment(deployment))
    import dagster as dg

    from orchestration.assets.scoring import WEEK_TAG
    from orchestration.definitions import defs
    from orchestration.partitions import ranges, sync_partitions

    job = defs.resolve_job_def("churn_prediction_job")
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    with dg.DagsterInstance.get() as instance:
        keys = sync_partitions(instance, deployment.registry(read_only=True).variants())
        wanted = {variant.key for variant in VARIANTS}
        for tags in ranges(keys, wanted, len(wanted)):
            with sigterm_kept():
                result = execute_here(job, instance, quiet, {**tags, WEEK_TAG: week.isoformat()})
            if not result.success:
                errors = [event.step_failure_data.error_display_string for event in result.get_step_failure_events()]
                reason = errors[0].splitlines()[0] if errors else "see its events"
                raise ChurnError(f"the Dagster run {result.run_id} failed: {reason}; see `churn up`")
            yield f"run {result.run_id}: {' … '.join(tags.values())}"


def _show(console: Console, deployment: Deployment, week: date) -> str | None:
    """Print the tables; return the first account at risk, of the base variant if it has one."""
    variants, published = [variant.key for variant in VARIANTS], PublishedPredictions(deployment.database)
    batches = published.summarize(week, variants)
    highest = published.highest(week, variants, _HIGHEST_SHOWN)
    console.print()
    console.print(_predictions_table(highest, week, [one.variant for one in batches if not one.is_at_risk_known]))
    console.print(_sources_table(batches, deployment))
    for reason in sorted({batch.fallback_reason for batch in batches if batch.fallback_reason}):
        console.print(f"[yellow]local[/yellow]: the local copy was read, because {as_text(reason)}", soft_wrap=True)
    return str(highest[0].account_key) if highest else None


def _predictions_table(highest: Sequence[Row], week: date, unknown: Sequence[str]) -> Table:
    accounts = Column("account_id", justify="right", no_wrap=True)
    columns = Column("variant", no_wrap=True), accounts, Column("probability", no_wrap=True)
    title = f"Accounts at risk that are most likely to churn, week of {week}"
    if unknown:
        title += f"; of {', '.join(unknown)} it is unknown who is at risk, so all accounts are ranked"
    table = Table(*columns, Column("main reasons", style="dim"), title=title, title_justify="left")
    previous = None
    for variant, account, probability, *texts in highest:
        if previous not in (None, variant):
            table.add_section()
        bar, name = "█" * round(_BAR_WIDTH * probability), variant if variant != previous else ""
        said = zip(texts[::2], texts[1::2], strict=True)  # each reason, and what it says in words
        reasons = "\n".join(as_text(text) for one, text in said if one and not one.endswith(("+0.00)", "-0.00)")))
        table.add_row(name, as_text(account), f"{probability:.3f} [red]{bar}[/red]", reasons)
        previous = variant
    return table


def _sources_table(batches: Sequence[Row], deployment: Deployment) -> Table:
    numbers = [Column(name, justify="right") for name in ("batch", "at risk", "mean")]
    title = f"Sources of the predictions in {deployment.database.database}"
    table = Table(Column("variant", overflow="fold"), *numbers, "model", "data", title=title, title_justify="left")
    for batch in batches:
        owner = " (the base variant's)" if batch.is_foreign_data else " (encoded sample)" if batch.is_sample else ""
        source = f"[yellow]{batch.source}[/yellow]{owner}" if batch.source == "local" else batch.source
        at_risk = f"{batch.n_at_risk:,}" if batch.is_at_risk_known else "unknown"
        figures = str(batch.batch_id), f"{at_risk} of {batch.n_accounts:,}", f"{batch.mean_probability:.3f}"
        table.add_row(batch.variant, *figures, f"v{batch.model_version}", source)
    return table
