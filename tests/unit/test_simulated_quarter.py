"""At stake: whether people go on reading alerts. A quarter of a fleet in which nothing happens must be quiet; what does
happen must be named, together, and by the figure that can see it.

Each week is looked at as the system does: batches counted in profiles, drift compared over the fleet, volumes, labels
that have matured, and incidents settled. Of 2,000 variants each has about 1,000 rows a week.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest

from churn.evaluation.metrics import log_loss_excess, p_at_least, roc_auc_interval
from churn.monitoring.conditions import (
    FDR,
    EvaluatedChampion,
    History,
    LowSegment,
    ScoredBatch,
    calibration_poor,
    drifted,
    flag_drifts,
    independent_cohorts,
    newest_batches,
    performance_low,
    segment_low,
    volume_unusual,
)
from churn.monitoring.incidents import KINDS, Change, Condition, Incident, reconcile, remaining
from tests.support.drifting import Fleet, make_fleet, plant

pytestmark = pytest.mark.slow
N_VARIANTS, N_ROWS, N_WEEKS = 1_000, 3_000, 13
FIRST = date(2026, 8, 24)
KEYS = [f"company-c{i:04}" for i in range(N_VARIANTS)]
PLANTED = frozenset(KEYS[:20])
SEGMENTS = {"OH": slice(0, 400), "PA": slice(400, 700)}


@dataclass
class Desk:
    """What is told, as incidents are settled one look after another."""

    known: list[Incident] = field(default_factory=list)
    told: list[Change] = field(default_factory=list)

    def settle(self, conditions: Sequence[Condition], now: datetime) -> None:
        changes = reconcile(self.known, conditions, KINDS)
        self.told += changes
        current = remaining(self.known, conditions, KINDS)
        over = {change.incident_id for change in changes if change.event == "resolved"}
        kept = [
            replace(one, members=now_is.members, reported=now_is.marks)
            if (now_is := current.get(one.incident_id))
            else one
            for one in self.known
            if one.incident_id not in over
        ]
        opened = [change for change in changes if change.event == "opened"]
        self.known = kept + [
            Incident(len(self.told) * 10 + i, change.kind, change.subject, change.members, now, change.reported)
            for i, change in enumerate(opened)
        ]


@dataclass
class Quarter:
    """A simulated fleet, its weeks so far, and what was told."""

    fleet: Fleet
    rng: np.random.Generator
    batches: list[ScoredBatch] = field(default_factory=list)
    rows: dict[str, dict[date, int]] = field(default_factory=lambda: {key: {} for key in KEYS})
    desk: Desk = field(default_factory=Desk)

    def score(self, week: date) -> None:
        """Draw a week's batches, and compare them with the references."""
        self.fleet.sizes = self.rng.poisson(N_ROWS, N_VARIANTS)
        drifts = self.fleet.compare(self.fleet.batches())
        for key, n_rows in zip(KEYS, self.fleet.sizes.tolist(), strict=True):
            self.rows[key][week] = n_rows
            self.batches.append(ScoredBatch(1, key, week, 1, n_rows, key, drifts=drifts[key], source_sha256=str(week)))
        self.batches = [batch for batch in self.batches if batch.week >= week - timedelta(weeks=2)]

    def look(self, week: date, of_labels: Sequence[Condition] = ()) -> None:
        histories = {key: History(rows) for key, rows in self.rows.items()}
        newest = newest_batches(self.batches, week)
        conditions = [*drifted(flag_drifts(self.batches, week)), volume_unusual(newest.values(), histories), *of_labels]
        self.desk.settle(conditions, datetime(week.year, week.month, week.day, 7, tzinfo=UTC))


@dataclass
class Labels:
    """Outcomes of batches scored a quarter before; labels are of months, so a month's weeks have the same ones.

    Attributes:
        limits: Every champion brought the lower end of its own held-out AUC, as training gives it.
    """

    rng: np.random.Generator
    limits: list[float]

    def conditions(self, planted: frozenset[str] = frozenset()) -> list[Condition]:
        """Judge a month's batch of every variant, as a whole and in parts."""
        judged: list[EvaluatedChampion] = []
        segments: list[LowSegment] = []
        for key, limit, (churned, scores) in zip(KEYS, self.limits, outcomes(self.rng, planted), strict=True):
            judged.append(_evaluated(key, churned, scores, limit))
            for level, part in SEGMENTS.items():
                auc = roc_auc_interval(churned[part], scores[part])
                segments.append(LowSegment(key, "brand_id", level, auc.value, limit, p_at_least(auc, limit)))
        cohorts = independent_cohorts(judged, dict.fromkeys(KEYS, 1))
        low = performance_low(cohorts)
        read = [one for one in segments if one.p_below_limit <= FDR]
        return [low, calibration_poor(cohorts), segment_low(read, len(segments), low.members)]


def _evaluated(key: str, churned: np.ndarray, scores: np.ndarray, limit: float) -> EvaluatedChampion:
    return EvaluatedChampion(
        1, key, FIRST, 1, roc_auc_interval(churned, scores), limit, as_of=FIRST, horizon_months=3, n=len(churned),
        n_churned=int(churned.sum()), mean_score=float(scores.mean()), is_calibrated=True,
        log_loss_excess=log_loss_excess(churned, scores),
    )  # fmt: skip


def outcomes(rng: np.random.Generator, planted: frozenset[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw who churned, and the scores, each a probability; of the planted little is foretold any more."""
    for key in KEYS:
        scores = rng.beta(1.2, 2.0, N_ROWS)
        # The scores, and what they are made of, look the same; what they mean is other accounts' for six of ten.
        truth = np.where(rng.random(N_ROWS) < 0.6, scores[::-1], scores) if key in planted else scores
        yield rng.random(N_ROWS) < truth, scores


@pytest.fixture(scope="module")
def labels() -> Labels:
    rng = np.random.default_rng(22)
    return Labels(rng, [roc_auc_interval(*held_out).low for held_out in outcomes(rng, frozenset())])


def quarter(seed: int) -> Quarter:
    return Quarter(make_fleet(seed, N_VARIANTS), np.random.default_rng(seed))


def weeks(n: int) -> list[date]:
    return [FIRST + timedelta(weeks=i) for i in range(n)]


def test_in_a_quarter_in_which_nothing_happens_at_most_one_alert_is_sent_of_whatever_kind(labels):
    fleet = quarter(seed=21)

    for i, week in enumerate(weeks(N_WEEKS)):
        if i % 4 == 0:
            of_labels = labels.conditions()
        fleet.score(week)
        fleet.look(week, of_labels)

    assert len(fleet.desk.told) <= 1, [change.title for change in fleet.desk.told]


def test_a_tenth_of_the_rows_moved_in_twenty_variants_is_one_incident_that_names_all_of_them():
    fleet = quarter(seed=23)
    quiet, moved = weeks(5)[:3], weeks(5)[3:]
    for week in quiet:
        fleet.score(week)
        fleet.look(week)
    assert fleet.desk.told == []

    plant(fleet.fleet, len(PLANTED))
    for week in moved:
        fleet.score(week)
        fleet.look(week)

    (told,) = fleet.desk.told  # opened, and never updated: all are there when it is confirmed
    assert (told.event, told.kind) == ("opened", "input_drifted")
    assert set(told.members) >= PLANTED
    assert len(set(told.members) - PLANTED) <= 2


def test_new_meaning_of_the_same_inputs_is_seen_by_the_labels_and_not_by_drift(labels):
    fleet = quarter(seed=24)
    usual, changed = labels.conditions(), labels.conditions(PLANTED)

    for week in weeks(4):
        fleet.score(week)
        fleet.look(week, changed if week >= weeks(3)[-1] else usual)

    by_kind = {told.kind: told for told in fleet.desk.told}
    assert {(told.event, told.kind) for told in fleet.desk.told} == {
        ("opened", "performance_low"), ("opened", "calibration_poor")
    }  # fmt: skip
    for told in by_kind.values():
        assert set(told.members) >= PLANTED
        assert len(set(told.members) - PLANTED) <= 2
