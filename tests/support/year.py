"""A year in the life of twenty variants, end to end on real services, in the realistic world of the simulator.

Every second Monday extracts come in, with running months, seasons, growth, gaps and late rows. All variants are scored,
batches whose labels have matured are evaluated, champions that became worse or whose input drifted are retrained,
challengers score beside them, those proven better are promoted, and those without a gain are withdrawn. For four
variants the world changed after their champions were trained; three others get a challenger that knows less.
"""

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import boto3
import polars as pl
import sqlalchemy as sa
from mlflow import MlflowClient

from churn.data.activity import KINDS
from churn.data.arrivals import date_arrivals
from churn.data.features import in_order
from churn.database.connection import OWNER, create_engine
from churn.database.events import ModelEvent
from churn.database.predictions import read_current
from churn.deployment.services import Deployment, open_deployment
from churn.deployment.settings import load_settings
from churn.storage.history import new_facts
from churn.variants import Variant
from churn.versions import CHAMPION
from churn.workflows.evaluate import evaluate_fleet
from churn.workflows.promote import Promoter
from churn.workflows.score import FleetRequest, score_fleet
from churn.workflows.set_up import set_up_server
from churn.workflows.train import FeatureNames, TrainingOutcome
from tests.support.services import BUCKET, bench_environment
from tests.support.world import World, simulate_world

FIRST_WEEK = date(2025, 11, 3)
N_WEEKS, EVERY = 52, 2
N_VARIANTS, N_TWISTED, N_WORSE = 20, 4, 3
N_ACCOUNTS = 30_000
WORLD = World(restated=False)
FIRST_MONTH, N_MONTHS = date(2022, 6, 1), 54
FIRST_EXTRACT = date(2023, 8, 7)  # more than a year before the champions are trained: references need weekly extracts
TRAINED_ON = date(2024, 12, 30)  # the day as of which all first champions are trained
TWIST = date(2025, 1, 1)
TRIALS = 2
FEW_NAMES = ("total_deposit", "total_handle", "total_ngr")
WATCHED = ("input_drifted", "scores_drifted", "data_broken", "performance_low", "calibration_poor", "segment_low")


@dataclass
class Year:
    """What happened.

    Attributes:
        twisted: The variants for which the world changed.
        worse: Those that get a challenger without features over months in the first week, named by hand, though nothing
            changed.
        alerts: The first alert by variant and kind of incident: its week, and what people were told.
        reasons: Why training was requested, by week and variant.
        trained: What came of it.
        promoted: Promotions, by week and variant; ``withdrawn`` likewise.
        first_champions: The models that the year began with.
        wrong_champions: Weeks and variants of which the trail names another champion than the one that scored.
        rollback_is_identical: Whether the first week, scored again by the champion that was rolled back to, has the
            very same scores; ``None`` when nothing was promoted.
    """

    twisted: list[Variant]
    worse: list[Variant]
    alerts: dict[tuple[Variant, str], tuple[date, str]] = field(default_factory=dict)
    reasons: dict[tuple[date, Variant], str] = field(default_factory=dict)
    trained: dict[tuple[date, Variant], TrainingOutcome] = field(default_factory=dict)
    promoted: dict[tuple[date, Variant], ModelEvent] = field(default_factory=dict)
    withdrawn: dict[tuple[date, Variant], ModelEvent] = field(default_factory=dict)
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
        withdrawn = {variant for _, variant in self.withdrawn}
        alerted = {variant for variant, _ in self.alerts}
        claims = {
            f"alerts named {names_of(alerted)}, not {names_of(twisted)} and one other at most": (
                alerted >= twisted and len(alerted - twisted) <= 1
            ),
            f"training was requested for {names_of(self.triggered)}": (
                bool(self.triggered & twisted) and len(self.triggered - twisted) <= 1
            ),
            f"challengers of {names_of(promoted)} were promoted": bool(promoted) and promoted <= twisted,
            f"challengers of {names_of(withdrawn)} were withdrawn, not {names_of(self.worse)}": (
                withdrawn >= set(self.worse)
            ),
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
    started = monotonic()
    os.environ |= {"CHURN_RETRAIN_AFTER_MONTHS": "0", "CHURN_LOCAL_FALLBACK": "never", "CHURN_MIN_AUC": "0.55"}
    variants = [Variant(company=f"c{i:02}") for i in range(n_variants)]
    twisted = variants[:: max(n_variants // N_TWISTED, 1)][:N_TWISTED]
    year = Year(twisted, [variant for variant in variants if variant not in twisted][:N_WORSE])
    with bench_environment(home, "seaweedfs"), open_deployment(load_settings()) as deployment:
        list(set_up_server(*deployment.databases))
        facts = {variant: _facts(variant, n_accounts, is_twisted=variant in year.twisted) for variant in variants}
        _bring(facts, TRAINED_ON)
        # Each alone, as in the year, in which a variant is retrained by itself.
        trainer = replace(deployment.trainer(n_trials=TRIALS), least_pooled=n_variants + 1)
        keys = [variant.key for variant in variants]
        for key, trained in trainer.train_fleet(keys, TRAINED_ON, lambda outcome: outcome):
            outcome = year.first_champions[Variant.from_key(key)] = _raised(trained)
            if not outcome.gate.is_passed:
                _name_by_hand(deployment, outcome)
        print(f"trained {len(variants)} champions in {monotonic() - started:.0f} s", flush=True)
        requested: dict[str, date] = {}
        for i in range(0, n_weeks, EVERY):
            week = FIRST_WEEK + timedelta(weeks=i)
            _bring(facts, week)
            _live_through(week, deployment, facts, year, requested)
            print(f"{week}: {monotonic() - started:.0f} s", flush=True)
        year.auc = read_current(
            deployment.database,
            "SELECT b.variant, b.scored_week, b.model_version, j.roc_auc, j.auc_limit FROM evaluated_batches AS j "
            "JOIN scoring_batches AS b USING (batch_id) WHERE b.role = 'champion' ORDER BY 1, 2",
        )
        events = [event for variant in variants for event in deployment.events().history(variant)]
        year.withdrawn = {(one.occurred_at.date(), one.variant): one for one in events if one.action == "withdrawn"}
        year.wrong_champions = _wrong_champions(deployment, variants)
        if year.promoted:
            year.rollback_is_identical = _drill(deployment, next(iter(year.promoted))[1])
    year.seconds = monotonic() - started
    return year


def _live_through(
    week: date, deployment: Deployment, variants: Iterable[Variant], year: Year, requested: dict[str, date]
) -> None:
    by_key = {variant.key: variant for variant in variants}
    request = FleetRequest(week, as_of=week)
    scorer = replace(deployment.scorer(), with_reasons=False)
    scored = score_fleet(scorer, list(by_key), request, lambda outcome, _: outcome)
    year.n_scored += len([_raised(result) for _, result in scored])
    promoter = _promoter(deployment, week)
    if 7 < week.day <= 7 * (1 + EVERY):  # a month's labels mature at once, after a week
        _evaluate(week, promoter, by_key, year)
    status = deployment.fleet_monitor().reconcile(promoter.clock(), [])
    for kind in WATCHED:
        for key, sentence in status.members(kind).items():
            if year.alerts.setdefault((by_key[key], kind), (week, sentence)) == (week, sentence):
                print(f"{week}: {key}: {kind}: {sentence}", flush=True)
    trainer = replace(deployment.trainer(n_trials=TRIALS), challenge=promoter.challenge)
    for key, reason in deployment.retraining_planner().reasons(week, requested):
        requested[key], variant = week, by_key[key]
        outcome = trainer.train_variant(variant, week)
        year.reasons[week, variant], year.trained[week, variant] = reason, outcome
        failures = "; ".join(claim.sentence for claim in outcome.gate.failures)
        print(f"{week}: {variant}: {reason}: {failures or 'passed the gate'}", flush=True)
    if week == FIRST_WEEK:
        blind = replace(trainer, features=FeatureNames("somebody who tries fewer", FEW_NAMES))
        for variant in year.worse:
            outcome = year.trained[week, variant] = blind.train_variant(variant, week)
            assert outcome.version is not None
            promoter.challenge(variant, outcome.version.version, "by hand, whatever the gate says")
    _date_events(deployment, week, year)


def _evaluate(week: date, promoter: Promoter, by_key: dict[str, Variant], year: Year) -> None:
    for _, evaluation in evaluate_fleet(promoter, list(by_key)):
        _raised(evaluation)
    for variant, promotion in promoter.promote_all(by_key.values()).items():
        if isinstance(_raised(promotion), ModelEvent):
            year.promoted[week, variant] = promotion
        print(f"{week}: {variant}: {getattr(promotion, 'reason', None) or promotion.sentence}", flush=True)


def _raised(result: Any) -> Any:
    if isinstance(result, BaseException):
        raise result
    return result


def _name_by_hand(deployment: Deployment, outcome: TrainingOutcome) -> None:
    """Make a first model champion although it failed the gate, as a person may; without one nothing is scored."""
    assert outcome.version is not None
    version = str(outcome.version.version)
    MlflowClient(deployment.tracking_uri).set_registered_model_alias(
        outcome.variant.registered_model, CHAMPION, version
    )


def _date_events(deployment: Deployment, day: date, year: Year) -> None:
    """Date the week's events: their time is the database's, which does not live through the year."""
    dated = "UPDATE model_events SET occurred_at = :day WHERE event_id > :last RETURNING event_id"
    with create_engine(deployment.database, role=OWNER).begin() as connection:
        found = connection.scalars(sa.text(dated), {"day": f"{day} 12:00+00", "last": year.n_dated}).all()
    year.n_dated = max([year.n_dated, *found])


def _promoter(deployment: Deployment, day: date) -> Promoter:
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    return replace(deployment.promoter(), clock=lambda: noon)


def _facts(variant: Variant, n_accounts: int, *, is_twisted: bool) -> pl.DataFrame:
    """Return what each week's extract said that was new, and since when it was known."""
    world = simulate_world(
        WORLD,
        n_accounts=n_accounts,
        first_month=FIRST_MONTH,
        n_months=N_MONTHS,
        seed=int((variant.company or "0").removeprefix("c")),
        twist=TWIST if is_twisted else None,
    )
    facts = None
    day = FIRST_EXTRACT
    while day < FIRST_WEEK + timedelta(weeks=N_WEEKS):
        extract = world.extract_on(day).select(name for name in KINDS if name != "known_at")
        added = new_facts(extract, facts, _start_of(day))
        facts = added if facts is None else in_order(pl.concat([facts, added]))
        day += timedelta(weeks=1)
    assert facts is not None
    return date_arrivals(facts, timedelta(0), _start_of(FIRST_EXTRACT))


def _start_of(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _bring(facts: dict[Variant, pl.DataFrame], day: date) -> None:
    """Upload the extracts of a day, with all that is known by its end and since when."""
    client = boto3.client("s3")
    for variant, all_facts in facts.items():
        body = io.BytesIO()
        all_facts.filter(pl.col("known_at") < _start_of(day) + timedelta(days=1)).write_parquet(body)
        client.put_object(Bucket=BUCKET, Key=f"{variant.prefix}data/churn/activity.parquet", Body=body.getvalue())


def _wrong_champions(deployment: Deployment, variants: Sequence[Variant]) -> list[tuple[date, Variant]]:
    """Ask the trail, from its first line on, who was champion when each week was scored; compare with the batches."""
    rows = read_current(
        deployment.database,
        "SELECT variant, scored_week, model_version, champion_on(variant, scored_week - 1) AS champion "
        "FROM scoring_batches AS b WHERE role = 'champion' AND is_current AND scored_week > "
        "(SELECT min(occurred_at)::date FROM model_events AS e WHERE e.variant = b.variant) ORDER BY 1, 2",
    )
    assert rows["variant"].n_unique() == len(variants)
    wrong = rows.filter(pl.col("model_version").ne_missing(pl.col("champion")))
    known = {variant.key: variant for variant in variants}
    return [(week, known[key]) for key, week in wrong.select("variant", "scored_week").iter_rows()]


def _drill(deployment: Deployment, variant: Variant) -> bool:
    """Roll a promotion back, score the first week again from the history, and compare with what it was."""
    scorer = replace(deployment.scorer(), with_reasons=False)
    before = _scores(deployment, variant)
    promoter = _promoter(deployment, FIRST_WEEK + timedelta(weeks=N_WEEKS))
    request = FleetRequest.as_known(FIRST_WEEK, today=promoter.today, as_of=FIRST_WEEK).of(variant)
    scorer.score_variant(request)
    promoted = _scores(deployment, variant)
    promoter.roll_back(variant, "a drill")
    scorer.score_variant(request)
    return _scores(deployment, variant).equals(before) and not promoted.equals(before)


def _scores(deployment: Deployment, variant: Variant) -> pl.DataFrame:
    query = (
        "SELECT account_id, churn_probability FROM churn_predictions_current "
        "WHERE variant = :variant AND scored_week = :week ORDER BY account_id"
    )
    return read_current(deployment.database, query, variant=variant.key, week=FIRST_WEEK)


def names_of(variants: Sequence[Variant] | set[Variant]) -> str:
    return ", ".join(sorted(str(variant) for variant in variants)) or "none"
