"""Live against held out: whether a new model does as well on Mondays after training as its held-out figures say.

In the healthy world, a model of the default set is trained as ``train_model.py`` does, from a history of weekly
extracts or from one first extract. Then the extracts of each Monday of three months are scored, and evaluated when the
outcomes are known. Whole months arrive three days after their end; month-to-date extracts are read on the Monday.

Held out is the mean over all Mondays of the held-out months. The figures published with a model are of the same days,
with each account on one of them; all rows give the same with less chance. Accounts are easier to tell apart late in a
month, when more of it is known. So the target compares the live AUC of a week with that of the held-out Mondays of the
same week of the month, which a model's run has as metrics ``roc_auc_week_<n>`` (there of the three Mondays together).
The difference to the mean of all weeks is printed beside it: in a month's first week a model knows less.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from multiprocessing import get_context

import numpy as np
import polars as pl
from sklearn.metrics import roc_auc_score

from benchmarks.quality import NONE, Target, bootstrap, report
from churn.concurrency import cores
from churn.data.activity import KINDS
from churn.data.arrivals import date_arrivals
from churn.data.features import encode, features, in_order
from churn.data.labels import Reports, at_risk, label
from churn.data.snapshots import Snapshot, snapshots
from churn.evaluation.metrics import calibration_error
from churn.storage.history import new_facts
from churn.training.default_features import default_feature_names
from churn.training.train import Part, Trained, TrainingPlan, train
from churn.weeks import month_start, training_days
from tests.support.world import HEALTHY_WORLD, Simulation, simulate_world

N_WORLDS, N_ACCOUNTS = 6, 12_000
FIRST_MONTH, N_MONTHS = date(2023, 1, 1), 42
FIRST_EXTRACT, TRAINED_ON = date(2024, 1, 8), date(2025, 12, 29)
FIRST_LIVE, LAST_LIVE, LATER = date(2026, 1, 5), date(2026, 3, 30), date(2026, 9, 1)
MAX_MONTHS, DELAY = 24, timedelta(days=3)
PLAN = TrainingPlan(n_trials=4)
MAX_AUC_LOSS, MAX_CALIBRATION_LOSS = 0.02, 0.03
FEEDS = {"whole months": False, "month to date": True}
HISTORIES = ("weekly extracts", "one first extract")


@dataclass(frozen=True)
class Figures:
    """ROC AUC and calibration error of the accounts of a day."""

    auc: float
    calibration: float

    @classmethod
    def of(cls, churned: np.ndarray, scores: np.ndarray) -> "Figures":
        return cls(float(roc_auc_score(churned, scores)), calibration_error(churned, scores))


@dataclass(frozen=True)
class Measured:
    """A model's figures of held-out days, and of live days."""

    held_out: dict[date, Figures]
    live: dict[date, Figures]


def extract_of(simulation: Simulation, day: date) -> pl.DataFrame:
    """Return the extract that is there on a day, in the columns of the contract."""
    read_on = day if simulation.world.month_to_date else day - DELAY
    return simulation.extract_on(read_on).select(name for name in KINDS if name != "known_at")


def history(simulation: Simulation, days: Sequence[date]) -> pl.DataFrame:
    """Return the history of the extracts of some days."""
    received_at = [datetime.combine(day, time(), UTC) for day in days]
    facts = new_facts(extract_of(simulation, days[0]), None, received_at[0])
    for day, received in zip(days[1:], received_at[1:], strict=True):
        facts = in_order(pl.concat([facts, new_facts(extract_of(simulation, day), facts, received)]))
    return date_arrivals(facts, DELAY, received_at[0])


def mondays(first: date, last: date) -> list[date]:
    """Return the Mondays from one to another."""
    return [first + timedelta(weeks=i) for i in range((last - first).days // 7 + 1)]


def learn(facts: pl.DataFrame) -> Trained:
    """Train as ``churn.workflows.train`` does."""
    last = PLAN.horizon.newest_mature(TRAINED_ON)
    days = training_days(max(FIRST_MONTH, month_start(last, 1 - MAX_MONTHS)), last, PLAN.n_held_out)
    names = default_feature_names(facts)
    return train(snapshots(facts, days, today=TRAINED_ON, horizon=PLAN.horizon, names=names), names, PLAN)


def by_day(part: Part, scores: np.ndarray) -> dict[date, Figures]:
    """Return the figures of each as-of day of a part."""
    rows = ((as_of, part.places == place) for place, as_of in enumerate(part.as_ofs))
    return {as_of: Figures.of(part.churned[chosen], scores[chosen]) for as_of, chosen in rows}


def live(simulation: Simulation, trained: Trained) -> Iterator[tuple[date, Figures]]:
    """Score each Monday after training, as the weekly job does, and evaluate the accounts at risk."""
    truth = simulation.extract_on(LATER)
    for day in mondays(FIRST_LIVE, LAST_LIVE):
        shot = snapshot_of(extract_of(simulation, day), day, trained.feature_names, truth, LATER)
        yield day, Figures.of(shot.churned, trained.bundle.predict(encode(shot.rows, trained.encoding)))


def snapshot_of(extract: pl.DataFrame, day: date, names: Sequence[str], truth: pl.DataFrame, later: date) -> Snapshot:
    """Return the accounts at risk as an extract shows them, with the labels of a later one."""
    known = [
        rows.select(extract.columns).with_columns(known_at=pl.lit(datetime.combine(known_on, time(), UTC)))
        for rows, known_on in ((extract, day), (truth, later))
    ]
    reports = Reports.of(in_order(pl.concat(known)))
    labels = label(reports, at_risk(reports, day, PLAN.horizon), day, today=later, horizon=PLAN.horizon)
    rows = features(extract, day, names)
    rows = rows.filter(np.isin(rows["account_id"].to_numpy(), labels.account_ids))
    return Snapshot(day, rows, labels.churned, np.ones(len(labels.churned)))


def measure(task: tuple[int, str, str, int]) -> Measured:
    """Return the figures of one world, feed and history."""
    i, feed, of_history, n_accounts = task
    world = replace(HEALTHY_WORLD, month_to_date=FEEDS[feed])
    simulation = simulate_world(world, n_accounts=n_accounts, first_month=FIRST_MONTH, n_months=N_MONTHS, seed=500 + i)
    days = mondays(FIRST_EXTRACT, TRAINED_ON) if of_history == "weekly extracts" else [TRAINED_ON]
    trained = learn(history(simulation, days))
    return Measured(
        by_day(trained.held_out, trained.bundle.predict(trained.held_out.matrix)), dict(live(simulation, trained))
    )


def targets_of(name: str, worlds: Sequence[Measured]) -> list[Target]:
    """Compare each week of the month, over worlds."""
    made, published = [], [_mean(world.held_out) for world in worlds]
    for week in range(1, 6):
        lives = [_mean(world.live, week) for world in worlds]
        held_outs = [_mean(world.held_out, week) for world in worlds]
        auc = [live.auc - held_out.auc for live, held_out in zip(lives, published, strict=True)]
        of_week = [live.auc - held_out.auc for live, held_out in zip(lives, held_outs, strict=True)]
        error = [live.calibration - held_out.calibration for live, held_out in zip(lives, published, strict=True)]
        about = f"{name}, week {week}"
        mean = f"live AUC {np.mean([live.auc for live in lives]):.3f}"
        made += [
            _target(f"{about}: {mean}, less held out in such weeks", of_week, MAX_AUC_LOSS),
            _target(f"{about}: {mean}, less the mean of all weeks held out", auc, None),
            _target(f"{about}: calibration error less held out", error, MAX_CALIBRATION_LOSS),
        ]
    return made


def _target(name: str, values: Sequence[float], limit: float | None) -> Target:
    mean, interval = float(np.mean(values)), bootstrap(values, np.mean)
    target = NONE if limit is None else f"within {limit:g}"
    is_met = limit is None or abs(mean) <= limit
    return Target(name, target, f"{mean:+.3f}", f"{interval[0]:+.3f} to {interval[1]:+.3f}", is_met)


def _mean(days: dict[date, Figures], week: int | None = None) -> Figures:
    """Return the mean figures of the days, or of those in a week of the month."""
    chosen = [figures for day, figures in days.items() if week in (None, (day.day + 6) // 7)]
    return Figures(*(float(np.mean([getattr(one, name) for one in chosen])) for name in ("auc", "calibration")))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the targets."""
    parser = argparse.ArgumentParser(prog="benchmarks.quality.live", description=__doc__)
    parser.add_argument("--worlds", type=int, default=N_WORLDS)
    parser.add_argument("--accounts", type=int, default=N_ACCOUNTS)
    chosen = parser.parse_args(argv)
    arms = [(feed, of_history) for feed in FEEDS for of_history in HISTORIES]
    tasks = [(i, *arm, chosen.accounts) for arm in arms for i in range(chosen.worlds)]
    with ProcessPoolExecutor(cores(), get_context("spawn")) as pool:  # polars' threads do not survive a fork
        results = list(pool.map(measure, tasks))
    targets = []
    for k, (feed, of_history) in enumerate(arms):
        worlds = results[k * chosen.worlds : (k + 1) * chosen.worlds]
        targets += targets_of(f"{feed}, {of_history}", worlds)
    return report("Live against held out", targets)


if __name__ == "__main__":
    sys.exit(main())
