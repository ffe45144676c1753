"""A year in the life of twenty variants, end to end on real services.

Fifty-two Mondays: extracts come in, with late corrections, all variants are scored, batches whose labels have matured
are evaluated, champions below their limit are retrained, challengers score beside them, and those proven better are
promoted. For four variants the world changed after their champions were trained.
"""

import io
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import boto3
import numpy as np
import polars as pl
import sqlalchemy as sa

from churn.database.connection import OWNER, create_engine
from churn.database.events import ModelEvent
from churn.database.predictions import read_current
from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import load_settings
from churn.variants import Variant
from churn.workflows.evaluate import evaluate_fleet
from churn.workflows.promote import Promoter
from churn.workflows.score import score_fleet
from churn.workflows.set_up import set_up_server
from churn.workflows.train import TrainingOutcome
from tests.support import ROOT
from tests.support.batches import week_request
from tests.support.services import BUCKET, NAMES_KEY, bench_environment
from tests.support.simulated import simulate_activity

FIRST_WEEK = date(2025, 11, 3)
N_WEEKS = 52
N_VARIANTS, N_TWISTED = 20, 4
N_ACCOUNTS = 12_000
FIRST_MONTH, N_MONTHS = date(2021, 1, 1), 70
TRAINED_ON = date(2024, 3, 31)  # the day as of which all first champions are trained
TWIST = date(2024, 4, 1)
TRIALS = 4
_LAG_DAYS = 4  # a month's rows are known this long after it ended
_CORRECTED_SHARE, _CORRECTED_AFTER_DAYS = 0.01, 45


@dataclass
class Year:
    """What happened.

    Attributes:
        reasons: Why training was requested, by week and variant.
        trained: What came of it.
        promoted: Promotions, by week and variant.
        first_champions: The models that the year began with.
        wrong_champions: Weeks and variants of which the trail names another champion than the one that scored.
        rollback_is_identical: Whether the first week, scored again by the champion that was rolled back to, has the
            very same scores; ``None`` when nothing was promoted.
    """

    twisted: list[Variant]
    reasons: dict[tuple[date, Variant], str] = field(default_factory=dict)
    trained: dict[tuple[date, Variant], TrainingOutcome] = field(default_factory=dict)
    promoted: dict[tuple[date, Variant], ModelEvent] = field(default_factory=dict)
    first_champions: dict[Variant, TrainingOutcome] = field(default_factory=dict)
    wrong_champions: list[tuple[date, Variant]] = field(default_factory=list)
    n_scored: int = 0
    n_dated: int = 0
    rollback_is_identical: bool | None = None
    auc: pl.DataFrame = field(default_factory=pl.DataFrame)
    seconds: float = 0.0

    @property
    def disappointments(self) -> list[str]:
        """What should have happened and did not, or the other way round; empty for a good year."""
        twisted, promoted = set(self.twisted), {variant for _, variant in self.promoted}
        claims = {
            f"training was requested for {names_of(self.triggered)}, not {names_of(twisted)}": self.triggered
            == twisted,
            f"challengers of {names_of(promoted)} were promoted, not {names_of(twisted)}": promoted == twisted,
            f"leaks: {self.leaks}": not self.leaks,
            "rolling back did not restore the scores": self.rollback_is_identical is True,
            f"the trail is wrong about {self.wrong_champions}": not self.wrong_champions,
        }
        return [claim for claim, holds in claims.items() if not holds]

    @property
    def triggered(self) -> set[Variant]:
        return {variant for _, variant in self.reasons}

    @property
    def leaks(self) -> list[str]:
        """Every training in which the planted future reached a feature, or shuffled labels passed."""
        claims = {"the_future_does_not_leak", "shuffled_labels_do_not_pass"}
        outcomes = [*self.trained.values(), *self.first_champions.values()]
        return [f"{o.variant}: {c.sentence}" for o in outcomes for c in o.gate.failures if c.name in claims]


def simulate_year(
    home: Path, *, n_weeks: int = N_WEEKS, n_variants: int = N_VARIANTS, n_accounts: int = N_ACCOUNTS
) -> Year:
    """Live through the year.

    Args:
        home: Where the services keep their files.
    """
    started = time.monotonic()
    os.environ |= {
        "CHURN_HORIZON_MONTHS": "1",
        "CHURN_RETRAIN_AFTER_MONTHS": "0",
        "CHURN_LOCAL_FALLBACK": "never",
        "CHURN_MIN_AUC": "0.55",
    }
    variants = [Variant(company=f"c{i:02}") for i in range(n_variants)]
    year = Year(twisted=variants[:: max(n_variants // N_TWISTED, 1)][:N_TWISTED])
    with bench_environment(home, "seaweedfs"), open_deployment(load_settings()) as deployment:
        list(set_up_server(*deployment.databases))
        names = (ROOT / NAMES_KEY).read_bytes()
        facts = {variant: _facts(variant, n_accounts, is_twisted=variant in year.twisted) for variant in variants}
        client = boto3.client("s3")
        for variant in variants:
            client.put_object(Bucket=BUCKET, Key=variant.prefix + NAMES_KEY, Body=names)
        _bring(facts, TRAINED_ON)
        trainer = deployment.trainer(n_trials=TRIALS)
        for variant in variants:
            year.first_champions[variant] = trainer.train_variant(variant, TRAINED_ON)
        requested: dict[str, date] = {}
        for i in range(n_weeks):
            week = FIRST_WEEK + timedelta(weeks=i)
            _live_through(week, deployment, facts, year, requested)
            print(f"{week}: {len(year.reasons)} requests, {len(year.promoted)} promotions", flush=True)
        year.auc = read_current(
            deployment.database,
            "SELECT b.variant, b.scored_week, b.model_version, j.roc_auc, j.auc_limit FROM evaluated_batches AS j "
            "JOIN scoring_batches AS b USING (batch_id) WHERE b.role = 'champion' ORDER BY 1, 2",
        )
        year.wrong_champions = _wrong_champions(deployment, variants)
        if year.promoted:
            year.rollback_is_identical = _drill(deployment, next(iter(year.promoted))[1])
    year.seconds = time.monotonic() - started
    return year


def _live_through(
    week: date, deployment: Deployment, facts: dict[Variant, pl.DataFrame], year: Year, requested: dict[str, date]
) -> None:
    _bring(facts, week)
    scorer = deployment.scorer()
    keys = [variant.key for variant in facts]
    for _, result in score_fleet(scorer, keys, week_request(week), lambda outcome, _: outcome):
        if isinstance(result, BaseException):
            raise result
        year.n_scored += 1
    promoter = _promoter(deployment, week)
    for _, evaluation in evaluate_fleet(promoter, [variant.key for variant in facts]):
        if isinstance(evaluation, BaseException):
            raise evaluation
    _promote(week, promoter, facts, year)
    for key, reason in deployment.retraining_planner().reasons(week, requested):
        requested[key] = week
        variant = Variant.from_key(key)
        trainer = replace(deployment.trainer(n_trials=TRIALS), challenge=promoter.challenge)
        outcome = trainer.train_variant(variant, week)
        year.reasons[week, variant], year.trained[week, variant] = reason, outcome
        failures = "; ".join(claim.sentence for claim in outcome.gate.failures)
        print(f"{week}: {variant}: {reason}: {failures or 'passed the gate'}", flush=True)
    _date_events(deployment, week, year)


def _date_events(deployment: Deployment, day: date, year: Year) -> None:
    """Date the week's events: their time is the database's, which does not live through the year."""
    dated = "UPDATE model_events SET occurred_at = :day WHERE event_id > :last RETURNING event_id"
    with create_engine(deployment.database, role=OWNER).begin() as connection:
        found = connection.scalars(sa.text(dated), {"day": f"{day} 12:00+00", "last": year.n_dated}).all()
    year.n_dated = max([year.n_dated, *found])


def _promote(week: date, promoter: Promoter, variants: Iterable[Variant], year: Year) -> None:
    for variant, result in promoter.promote_all(variants).items():
        if isinstance(result, BaseException):
            raise result
        if isinstance(result, ModelEvent):
            year.promoted[week, variant] = result
        else:
            print(f"{week}: {variant}: {result.sentence}", flush=True)


def _promoter(deployment: Deployment, day: date) -> Promoter:
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    return replace(deployment.promoter(), clock=lambda: noon)


def _facts(variant: Variant, n_accounts: int, *, is_twisted: bool) -> pl.DataFrame:
    """Simulate a variant's activity with when it was known, and corrections of some of it much later."""
    seed = int(variant.company.removeprefix("c")) if variant.company else 0
    activity = simulate_activity(
        n_accounts=n_accounts,
        first_month=FIRST_MONTH,
        n_months=N_MONTHS,
        seed=seed,
        twist=TWIST if is_twisted else None,
    )
    known = pl.col("activity_month").dt.offset_by("1mo").cast(pl.Datetime("us", "UTC")) + pl.duration(days=_LAG_DAYS)
    first = activity.with_columns(known_at=known)
    chosen = np.random.default_rng(seed).random(first.height) < _CORRECTED_SHARE
    corrected = first.filter(pl.Series(chosen)).with_columns(
        pl.col("total_deposit", "total_handle").mul(1.5).round(2),
        known_at=pl.col("known_at") + pl.duration(days=_CORRECTED_AFTER_DAYS),
    )
    return pl.concat([first, corrected]).sort("known_at", "activity_month", "account_id")


def _bring(facts: dict[Variant, pl.DataFrame], day: date) -> None:
    """Upload the extracts of a day, which contain all that is known by its end, if anything is new since a week."""
    end = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
    client = boto3.client("s3")
    for variant, all_facts in facts.items():
        known = all_facts.filter(pl.col("known_at") < end)
        has_news = not known.filter(pl.col("known_at") >= end - timedelta(weeks=1)).is_empty()
        if not has_news and day not in (TRAINED_ON, FIRST_WEEK):
            continue
        body = io.BytesIO()
        known.write_parquet(body)
        client.put_object(Bucket=BUCKET, Key=f"{variant.prefix}data/churn/activity.parquet", Body=body.getvalue())


def _wrong_champions(deployment: Deployment, variants: Sequence[Variant]) -> list[tuple[date, Variant]]:
    """Ask the trail who was champion when each week was scored, and hold it against the batches."""
    rows = read_current(
        deployment.database,
        "SELECT variant, scored_week, model_version, champion_on(variant, scored_week - 1) AS champion "
        "FROM scoring_batches WHERE role = 'champion' AND is_current AND scored_week > :first ORDER BY 1, 2",
        first=FIRST_WEEK,
    )
    wrong = rows.filter(pl.col("model_version").ne_missing(pl.col("champion")))
    known = {variant.key: variant for variant in variants}
    return [(week, known[key]) for key, week in wrong.select("variant", "scored_week").iter_rows()]


def _drill(deployment: Deployment, variant: Variant) -> bool:
    """Roll a promotion back, score the first week again as known on its Monday, and compare with what it was."""
    before = _scores(deployment, variant)
    promoter = _promoter(deployment, FIRST_WEEK + timedelta(weeks=N_WEEKS))
    deployment.scorer().score_variant(week_request(FIRST_WEEK, as_of=FIRST_WEEK).of(variant))
    promoted = _scores(deployment, variant)
    promoter.roll_back(variant, "a drill")
    deployment.scorer().score_variant(week_request(FIRST_WEEK, as_of=FIRST_WEEK).of(variant))
    return _scores(deployment, variant).equals(before) and not promoted.equals(before)


def _scores(deployment: Deployment, variant: Variant) -> pl.DataFrame:
    query = (
        "SELECT account_id, churn_probability FROM churn_predictions_current "
        "WHERE variant = :variant AND scored_week = :week ORDER BY account_id"
    )
    return read_current(deployment.database, query, variant=variant.key, week=FIRST_WEEK)


def names_of(variants: Sequence[Variant] | set[Variant]) -> str:
    return ", ".join(sorted(str(variant) for variant in variants)) or "none"
