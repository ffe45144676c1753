"""At stake: being woken for what is wrong, and for nothing else. What is told must stay told until it is over, whatever
the hour, and end when it is; a stand-in, an old file or a replaced model must neither hide nor linger.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

import pytest

from churn.evaluation.metrics import Interval
from churn.monitoring.conditions import (
    Attempt,
    EvaluatedChampion,
    FailedRun,
    History,
    LowSegment,
    ScoredBatch,
    challengers_failed,
    data_stale,
    drifted,
    flag_drifts,
    newest_batches,
    newest_evaluated,
    performance_low,
    runs_failed,
    segment_low,
    variants_failed,
    volume_unusual,
    week_due,
    week_missed,
)
from churn.monitoring.drift import FeatureDrift
from churn.monitoring.profiles import SCORE

WEEK = date(2026, 11, 16)
LAST, BEFORE = WEEK - timedelta(weeks=1), WEEK - timedelta(weeks=2)
NOW = datetime(2026, 11, 17, 12, tzinfo=UTC)
GRACE = timedelta(hours=6)


def drift(feature: str = "brand_id", *, is_large: bool = True) -> FeatureDrift:
    psi, p_value = (0.3, 1e-12) if is_large else (0.01, 0.4)
    return FeatureDrift(feature, 1000, psi, psi, 0.2, p_value, 0.0, 0.0, 1.0)


def batch(variant: str, week: date = WEEK, drifts: Sequence[FeatureDrift] = (), **values: object) -> ScoredBatch:
    told = {"batch_id": 1, "model_version": 1, "n_rows": 1000, "data_of": variant} | values
    return ScoredBatch(variant=variant, week=week, drifts=drifts, **told)


def attempt(variant: str, error: str | None = None, **values: object) -> Attempt:
    told = {"number": 1, "week": WEEK, "role": "champion", "ended_at": NOW - timedelta(hours=1)} | values
    return Attempt(variant=variant, error=error, **told)


def judged(
    variant: str, auc: float, *, version: int = 1, week: date = BEFORE, reach: float = 0.03
) -> EvaluatedChampion:
    return EvaluatedChampion(1, variant, week, version, Interval(auc, auc - reach, auc + reach), 0.7)


def test_a_variant_has_failed_when_its_newest_attempt_did():
    attempts = [attempt("us", "no such file"), attempt("eu"), attempt("fr", "no alias", week=LAST)]

    told = variants_failed(attempts, {"us": batch("us")}, NOW)

    assert told.kind == "variants_failed"
    assert told.members == {
        "us": "week of 2026-11-16: no such file (an earlier batch of the week is still published)",
        "fr": "week of 2026-11-09: no alias",
    }


def test_an_error_is_told_in_one_line_of_bounded_length():
    told = variants_failed([attempt("us", "a\nlong   story " * 100)], {}, NOW)

    assert len(told.members["us"]) < 250
    assert "\n" not in told.members["us"]


@pytest.mark.parametrize(("minutes", "is_told"), [(1, False), (11, True)])
def test_what_may_pass_is_told_when_no_retry_put_it_right(minutes, is_told):
    ended_at = NOW - timedelta(minutes=minutes)

    told = variants_failed([attempt("us", "down", is_transient=True, ended_at=ended_at)], {}, NOW)

    assert bool(told.members) == is_told


def test_a_challenger_has_failed_until_it_scores_or_is_no_challenger_any_more():
    champion = attempt("us", number=10)
    failed = attempt("us", "other features", number=11, role="challenger")

    assert challengers_failed([champion, failed], NOW).members == {"us": "week of 2026-11-16: other features"}
    assert not challengers_failed([attempt("us", number=12), failed], NOW).members
    assert not challengers_failed([champion, attempt("us", number=11, role="challenger")], NOW).members
    assert not variants_failed([champion, failed], {}, NOW).members


@pytest.mark.parametrize(
    ("now", "due"),
    [
        (datetime(2026, 11, 16, 0, 0, tzinfo=UTC), LAST),
        (datetime(2026, 11, 16, 5, 59, tzinfo=UTC), LAST),
        (datetime(2026, 11, 16, 6, 0, tzinfo=UTC), WEEK),
        (datetime(2026, 11, 22, 23, 59, tzinfo=UTC), WEEK),
    ],
)
def test_a_week_is_due_when_the_grace_is_over(now, due):
    assert week_due(now, GRACE) == due


def test_a_week_is_missed_by_those_who_had_one_before_and_did_nothing():
    histories = {key: History({LAST: 100}) for key in ("missed", "failed", "gone")} | {"scored": History({WEEK: 100})}
    attempts = [attempt("failed", "no such file"), attempt("missed", "no such file", week=LAST)]

    told = week_missed(["missed", "failed", "scored", "new"], histories, attempts, WEEK)

    assert set(told.members) == {"missed"}
    assert "2026-11-16; the last week scored or attempted is 2026-11-09" in told.members["missed"]


def test_a_stand_in_and_old_data_are_stale_and_fresh_data_is_not():
    days = {str(n): WEEK - timedelta(weeks=n + 3) for n in range(5)}
    batches = [
        batch("local", fallback_reason="S3 does not answer"),
        batch("foreign", data_of="base"),
        batch("old"),
        batch("fresh"),
        batch("unknown"),
        batch("last month", as_of=date(2026, 11, 16), newest_month=date(2026, 10, 1)),
        batch("months ago", as_of=date(2026, 11, 16), newest_month=date(2024, 5, 1)),
        batch("not yet due", as_of=date(2026, 11, 7), newest_month=date(2026, 9, 1)),
    ]
    histories = {"old": History({}, days), "fresh": History({}, days | {"new": WEEK})}

    told = data_stale(batches, histories, NOW.date())

    assert told.members == {
        "local": "scored from the local copy: S3 does not answer",
        "foreign": "scored from the data of base, since the variant has no input",
        "months ago": "the newest month of the data is 2024-05; 2026-10 should have arrived",
        "old": "no new data for 22 days, since 2026-10-26; the limit is 14 days",
    }


def test_the_volume_is_told_by_the_weeks_before_alone():
    usual = {WEEK - timedelta(weeks=n): 1000 for n in range(1, 9)}
    histories = {key: History(usual | {WEEK: 400}) for key in ("low", "usual", "new")} | {"new": History({WEEK: 400})}

    told = volume_unusual([batch("low", n_rows=400), batch("usual"), batch("new", n_rows=400)], histories)

    assert told.members == {"low": "400 rows in the week of 2026-11-16; usual are 1,000"}


def test_until_a_week_is_scored_the_last_one_stands_for_it():
    batches = [batch("us", LAST), batch("us", WEEK), batch("eu", LAST), batch("fr", BEFORE)]

    newest = newest_batches(batches, WEEK)

    assert {key: found.week for key, found in newest.items()} == {"us": WEEK, "eu": LAST}


def test_a_drift_is_told_when_it_was_there_two_weeks_running():
    both, once = [drift(), drift(SCORE)], [drift(), drift(SCORE, is_large=False)]
    batches = [
        *(batch("both", week, both) for week in (LAST, WEEK)),
        *(batch("begins", week, drifts) for week, drifts in ((LAST, [drift(is_large=False)]), (WEEK, [drift()]))),
        *(batch("not-yet", week, once) for week in (BEFORE, LAST)),
        *(batch("gap", week, both) for week in (BEFORE, WEEK)),
    ]

    flags = flag_drifts(batches, WEEK)
    inputs, scores = drifted(flags)

    assert {flag.variant for flag in flags} == {"both", "begins", "not-yet", "gap"}
    assert (inputs.kind, set(inputs.members)) == ("input_drifted", {"both", "not-yet"})
    assert (scores.kind, set(scores.members)) == ("scores_drifted", {"both"})
    assert "brand_id (PSI 0.30)" in inputs.members["both"]


def test_midnight_ends_no_drift():
    batches = [batch("us", week, [drift()]) for week in (BEFORE, LAST)]

    before, after = (drifted(flag_drifts(batches, week))[0] for week in (LAST, WEEK))

    assert before == after
    assert before.members


def test_another_models_week_confirms_nothing():
    batches = [batch("us", LAST, [drift()]), batch("us", WEEK, [drift()], model_version=2)]

    flags = flag_drifts(batches, WEEK)

    assert [flag.is_confirmed for flag in flags] == [False]


def test_what_a_replaced_champion_was_worth_is_over():
    found = newest_evaluated([judged("us", 0.5, version=1), judged("us", 0.8, version=2, week=LAST)], {"us": 2})

    assert {one.roc_auc.value for one in found.values()} == {0.8}
    assert not newest_evaluated([judged("us", 0.5, version=1)], {"us": 2})


def test_performance_is_low_when_chance_cannot_explain_it_in_the_whole_fleet():
    sound = [judged(f"sound{i}", 0.72) for i in range(1000)]
    unlucky = judged("unlucky", 0.665)  # its interval ends just below the limit, as one in forty does

    told = performance_low([*sound, unlucky, judged("low", 0.6)])

    assert set(told.members) == {"low"}
    assert told.members["low"] == "ROC AUC 0.600 (0.570 to 0.630) in the week of 2026-11-02; the limit is 0.700"
    assert set(performance_low([judged("alone", 0.65)]).members) == {"alone"}


def test_a_segment_is_told_unless_its_whole_is():
    low = [LowSegment("us", "brand_id", "OH", 0.55, 0.7, 1e-9), LowSegment("eu", "brand_id", "PA", 0.5, 0.7, 1e-9)]
    chance = LowSegment("fr", "brand_id", "PA", 0.66, 0.7, 0.005)

    told = segment_low([*low, chance], n_evaluated=5000, excluded={"eu"})

    assert told.members == {"us": "brand_id OH: ROC AUC 0.550; the limit is 0.700"}
    assert set(segment_low([chance], n_evaluated=1, excluded=()).members) == {"fr"}
    assert not segment_low([], n_evaluated=0, excluded=()).members


def test_a_run_is_told_unless_each_variant_that_failed_it_tells_itself():
    start = NOW - timedelta(hours=2)
    attempts = [attempt("us", "no such file"), attempt("eu", "no such file", ended_at=start - timedelta(hours=1))]
    runs = [
        FailedRun("weekly", "told", start, "1 of 1 variants failed", ["us"]),
        FailedRun("weekly", "not-told", start, "2 of 2 variants failed: MLflow is down", ["us", "eu"]),
        FailedRun("maintenance", "crashed", start, "out of memory"),
    ]

    conditions = runs_failed(runs, attempts)

    assert {(one.kind, one.subject): dict(one.members) for one in conditions} == {
        ("run_failed", "weekly"): {"not-told": "2 of 2 variants failed: MLflow is down"},
        ("run_failed", "maintenance"): {"crashed": "out of memory"},
    }
