"""``churn demo --history``: half a year of five variants with models of their own, up to this week, and its report.

Each variant has activity of its own, simulated by drawing from the bundled players. Each past Monday has the extract
that was there then, and goes through the same workflows as any other week. What is recorded as the time of an action is
today's.
"""

import io
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import polars as pl
import polars.selectors as cs

from churn.deployment.services import Deployment
from churn.deployment.settings import find_bundled_files
from churn.errors import UsageError
from churn.report import write_report
from churn.storage.inputs import INPUT_FOLDER
from churn.storage.places import Folder
from churn.training.gate import GateLimits
from churn.variants import Variant
from churn.versions import CHAMPION
from churn.weeks import month_number, month_numbers
from churn.wording import counted
from churn.workflows.decide import record_contacts, write_list
from churn.workflows.evaluate import evaluate_fleet
from churn.workflows.fleet import results_of
from churn.workflows.promote import Promoter
from churn.workflows.score import FleetRequest, score_fleet
from churn.workflows.set_up import set_up_variants
from churn.workflows.train import FeatureNames

VARIANTS = (Variant("ca"), Variant("de"), Variant("uk"), Variant(company="nova"), Variant("es", "nova"))
N_WEEKS, N_ACCOUNTS = 26, 3000  # accounts come and go; 900 or so are there in a month

_CHALLENGED, _DRIFTING, _FAILING, _CONTACTED, _ = VARIANTS
_CONTACTED_AFTER, _CHALLENGED_AFTER, _DRIFTING_AFTER = 0.25, 0.3, 0.7  # of the weeks
_MONTHS, _TRIALS, _BUDGET = 30, 1, 100
_MONEY = pl.col("total_deposit", "total_handle", "total_ngr")
_FEWER = FeatureNames("an experiment with fewer features", ("total_deposit", "total_handle", "total_ngr"))

Facts = Mapping[Variant, pl.DataFrame]


def build_history(
    deployment: Deployment, week: date, *, n_weeks: int = N_WEEKS, n_accounts: int = N_ACCOUNTS
) -> Iterator[str]:
    """Live through the weeks up to ``week``, and write the report; yields what happened. Repeats what was interrupted.

    Raises ``UsageError`` outside the embedded default: no file of others is overwritten.
    """
    if not deployment.is_embedded:
        raise UsageError("--history writes made-up players; unset MLFLOW_SECRET_NAME and MLFLOW_TRACKING_URI for it")
    mondays = [week - timedelta(weeks=n) for n in reversed(range(n_weeks))]
    parts = (_CONTACTED_AFTER, _CHALLENGED_AFTER, _DRIFTING_AFTER)
    contacted, challenged, drifting = (mondays[int(n_weeks * part)] for part in parts)
    facts = {one: draw_facts(one, week, n_accounts, drifting if one == _DRIFTING else None) for one in VARIANTS}
    yield from _train(deployment, facts, mondays[0])
    for monday in mondays:
        bring(deployment, facts, monday, broken=_FAILING if monday == week else None)
        failed, noon = _score(deployment, monday), datetime.combine(monday, time(12), UTC)
        yield f"{monday}: {len(VARIANTS) - len(failed)} of {len(VARIANTS)} variants scored"
        yield from (f"{monday}: {key} failed: {error}" for key, error in failed.items())
        promoter = replace(deployment.promoter(), clock=partial(datetime, noon.year, noon.month, noon.day, tzinfo=UTC))
        if 7 < monday.day <= 14 or monday == week:  # a month's labels mature at once, after a week
            results_of(evaluate_fleet(promoter, [one.key for one in VARIANTS if one.key not in failed]))
        changes = deployment.fleet_monitor().reconcile(noon, []).changes
        yield from (f"{monday}: incident {change.event}: {change.title}" for change in changes)
        if monday == challenged:
            yield _challenge(deployment, promoter, monday)
        if monday == contacted:
            yield _contact(deployment, monday)
    out, mlflow_ui = deployment.settings.churn_home / "report.html", deployment.settings.churn_mlflow_ui_url
    report = write_report(deployment.database_as("reader"), out, week=week, now=datetime.now(UTC), mlflow_ui=mlflow_ui)
    yield f"report: {report.path.as_uri()}"


def draw_facts(variant: Variant, week: date, n_accounts: int, drifts: date | None = None) -> pl.DataFrame:
    """Return a variant's player-months until the month of a week, each with the time from which it is known. Pure.

    Players are drawn from the bundled ones, and come and go in months of their own, with money of their own. From the
    month of ``drifts`` on, money is in a currency worth a hundredth.
    """
    sample = pl.read_parquet(find_bundled_files() / INPUT_FOLDER / "activity.parquet")
    rng = np.random.default_rng(int.from_bytes(sha256(variant.key.encode()).digest()[:4]))
    months = sample.select(month_numbers(pl.col("activity_month"))).to_series().to_numpy()
    newest = month_number(week)
    drawn = {
        "account_id": rng.choice(sample["account_id"].unique(maintain_order=True), n_accounts),
        "own_id": 7_000_000 + np.arange(n_accounts),
        "later": newest - months.max() + rng.integers(1 - _MONTHS, np.ptp(months) + 1, n_accounts),
        "factor": rng.lognormal(0, 0.3, n_accounts),
    }
    rows = pl.DataFrame(drawn).join(sample, on="account_id").with_columns(account_id="own_id")
    rows = rows.with_columns(cs.date().dt.offset_by(pl.format("{}mo", "later")))
    rows = rows.filter(month_numbers(pl.col("activity_month")).is_between(newest - _MONTHS + 1, newest))
    days = pl.lit(pl.Series(rng.integers(2, 28, rows.height)))
    seen_on = pl.max_horizontal(pl.col("activity_month") + pl.duration(days=days), "reg_date", "ftd_date", "qp_date")
    is_later = pl.lit(drifts is not None) & (pl.col("activity_month") >= (drifts or week).replace(day=1))
    money = (_MONEY * pl.col("factor") * pl.when(is_later).then(100).otherwise(1)).round(2)
    rows = rows.with_columns(money, known_at=seen_on.cast(pl.Datetime("us", "UTC"))).drop("own_id", "later", "factor")
    return rows.sort("account_id", "activity_month")


def bring(deployment: Deployment, facts: Facts, day: date, broken: Variant | None = None) -> None:
    """Write the extracts of a day; that of ``broken`` has deposits that nobody can have made."""
    for variant, rows in facts.items():
        known = rows.filter(pl.col("known_at") < datetime.combine(day, time(), UTC))
        if variant == broken:
            known = known.with_columns(total_deposit=-1.0)
        known.write_parquet(body := io.BytesIO())
        Folder(deployment.local_root).write(f"{variant.prefix}{INPUT_FOLDER}activity.parquet", body.getvalue())


def _train(deployment: Deployment, facts: Facts, day: date) -> Iterator[str]:
    """Train each variant that has no champion; its first model becomes that."""
    registry = deployment.registry(read_only=False)
    results_of(set_up_variants(registry, deployment.artifact_location, VARIANTS))
    known = registry.aliases()
    left = [one.key for one in VARIANTS if CHAMPION not in known.get(one, {})]
    bring(deployment, facts, day)
    trainer = replace(deployment.trainer(n_trials=_TRIALS), limits=GateLimits(0.5, 1.0))  # few accounts, by chance
    for outcome in results_of(trainer.train_fleet(left, day, lambda outcome: outcome)).values():
        yield f"{day}: {outcome.variant}: trained on {outcome.lineage.n_facts:,} player-months"


def _score(deployment: Deployment, monday: date) -> dict[str, BaseException]:
    request, keys = FleetRequest(monday, as_of=monday), [one.key for one in VARIANTS]
    scored = score_fleet(deployment.scorer(), keys, request, lambda outcome, _: outcome.batch_id)
    return {key: result for key, result in scored if isinstance(result, BaseException)}


def _challenge(deployment: Deployment, promoter: Promoter, day: date) -> str:
    """Train a challenger that knows less, and name it by hand, whatever the gate says."""
    trainer = replace(deployment.trainer(n_trials=_TRIALS, features=_FEWER), challenge=promoter.challenge)
    version = trainer.train_variant(_CHALLENGED, day).version
    assert version is not None  # noqa: S101 it is no dry run
    promoter.challenge(_CHALLENGED, version.version, _FEWER.origin)
    return f"{day}: {_CHALLENGED}: version {version.version} challenges the champion"


def _contact(deployment: Deployment, day: date) -> str:
    """Draw a campaign's members, and record that those offered were contacted."""
    decider, name = deployment.decider(), f"winback-{day}"
    values = {
        "name": name, "variants": [_CONTACTED.key], "policy": "risk", "floor": None, "top_share": None,
        "budget": _BUDGET, "control_share": 0.3, "holdout_share": deployment.settings.churn_holdout_share,
        "allows_overlap": False, "starts_on": day, "channel": "mail", "note": "churn demo --history",
    }  # fmt: skip
    decider.create(values, day)
    offered = decider.decisions.members(name).filter(arm="offered").select("account_id", "company")
    with tempfile.TemporaryDirectory() as folder:
        contacts = Path(folder) / "contacts.csv"
        write_list(contacts, offered.with_columns(exposed_at=pl.lit(datetime.now(UTC).isoformat())))
        found = record_contacts(decider.decisions, contacts, name)
    return f"{day}: {_CONTACTED}: campaign {name} contacted {counted(found.get(None, 0), 'account')}"
