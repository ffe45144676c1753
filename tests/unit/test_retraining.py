"""At stake: a model that has gone bad is retrained, and one bad week, or old labels reported twice, train nothing."""

from datetime import date, timedelta

import pytest

from churn.monitoring.conditions import ScoredBatch
from churn.monitoring.drift import FeatureDrift
from churn.monitoring.retraining import RetrainingPolicy, drifted_features

POLICY = RetrainingPolicy(horizon_months=3, after_months=0)
TODAY = date(2026, 11, 24)
WEEK = date(2026, 11, 23)


def test_a_low_performance_is_a_reason_before_a_drift_and_in_the_words_of_its_alert():
    assert POLICY.reason("ROC AUC 0.650", ["brand_id"], None, TODAY) == "ROC AUC 0.650"


def test_features_that_drifted_are_named_as_the_reason():
    found = POLICY.reason(None, ["total_ngr", "brand_id"], None, TODAY)

    assert found == "brand_id, total_ngr drifted in two different inputs"


@pytest.mark.parametrize(
    ("trained_on", "after", "is_reason"),
    [(date(2026, 8, 24), 3, True), (date(2026, 8, 25), 3, False), (date(2020, 1, 1), 0, False), (None, 3, False)],
)
def test_age_counts_in_whole_months(trained_on: date | None, after: int, is_reason: bool):
    found = RetrainingPolicy(after_months=after).reason(None, [], trained_on, TODAY)

    assert (found is not None) == is_reason


def test_a_request_is_not_repeated_for_a_while():
    assert POLICY.is_paused(TODAY - timedelta(days=27), TODAY)
    assert not POLICY.is_paused(TODAY - timedelta(days=28), TODAY)
    assert not POLICY.is_paused(None, TODAY)


def moved(feature: str, by: float, unknown: float = 0.0) -> FeatureDrift:
    moves = {"OH": (0.3, 0.3 + by), "unknown": (0.0, unknown)}
    return FeatureDrift(feature, 900, 0.4, 0.39, 0.2, 1e-12, unknown, unknown, 1.0, 900, 0.0, moves)


def test_a_drift_counts_when_it_is_large_in_two_different_inputs_of_one_version():
    broken = moved("total_deposit", 0.0, unknown=0.9)
    large, small = moved("brand_id", 0.35), moved("total_ngr", 0.15)  # enough for an alert, not for training
    last = WEEK - timedelta(weeks=1)

    def batch(variant: str, week: date, version: int, source: str, *drifts: FeatureDrift) -> ScoredBatch:
        number = len(batches) + 1
        return ScoredBatch(number, variant, week, version, 900, variant, drifts=drifts, source_sha256=source)

    batches: list[ScoredBatch] = []
    for variant, versions, sources in (
        ("lasts", (1, 1), "ab"), ("same rows", (1, 1), "aa"), ("new model", (1, 2), "ab")
    ):  # fmt: skip
        batches.append(batch(variant, last, versions[0], sources[0], large, small))
        batches.append(batch(variant, WEEK, versions[1], sources[1], large, small))
    batches.append(batch("broken", last, 1, "a", large, broken))
    batches.append(batch("broken", WEEK, 1, "b", large, broken))

    assert drifted_features(batches, WEEK) == {("lasts", 1): ["brand_id"]}


@pytest.mark.parametrize(
    ("trained_on", "stale"), [(None, True), (date(2026, 2, 24), True), (date(2026, 2, 25), False), (TODAY, False)]
)
def test_a_challenger_is_stale_when_two_cohorts_could_have_decided(trained_on: date | None, stale: bool):
    assert POLICY.is_stale(trained_on, TODAY) == stale
