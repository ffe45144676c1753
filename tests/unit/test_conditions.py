"""At stake: being woken for what is wrong, and for nothing else. What is told must stay told until it is over, whatever
the hour, and end when it is; a stand-in, an old file or a replaced model must neither hide nor linger.
"""

from collections.abc import Sequence
from dataclasses import replace
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
    calibration_poor,
    challengers_failed,
    data_stale,
    drifted,
    flag_drifts,
    fleet_moved,
    independent_cohorts,
    newest_batches,
    performance_low,
    runs_failed,
    segment_low,
    to_repeat,
    variants_failed,
    volume_unusual,
    week_due,
    week_missed,
)
from churn.monitoring.drift import FeatureDrift
from churn.monitoring.incidents import Condition
from churn.monitoring.profiles import SCORE
from churn.weeks import monday_of, month_start

WEEK = date(2026, 11, 16)
LAST, BEFORE = WEEK - timedelta(weeks=1), WEEK - timedelta(weeks=2)
NOW = datetime(2026, 11, 17, 12, tzinfo=UTC)
GRACE = timedelta(hours=6)


def drift(feature: str = "brand_id", *, is_large: bool = True) -> FeatureDrift:
    psi, p_value, share = (0.3, 1e-12, 0.4) if is_large else (0.01, 0.4, 0.11)
    moves = {"OH": (0.1, share), "unknown": (0.0, 0.0)}
    return FeatureDrift(feature, 1000, psi, psi, 0.2, p_value, 0.0, 0.0, 1.0, 1000, 0.0, moves)


def batch(variant: str, week: date = WEEK, drifts: Sequence[FeatureDrift] = (), **values: object) -> ScoredBatch:
    told = {"batch_id": 1, "model_version": 1, "n_rows": 1000, "data_of": variant, "source_sha256": str(week)} | values
    return ScoredBatch(variant=variant, week=week, drifts=drifts, **told)


def attempt(variant: str, error: str | None = None, **values: object) -> Attempt:
    told = {"number": 1, "week": WEEK, "role": "champion", "ended_at": NOW - timedelta(hours=1)} | values
    return Attempt(variant=variant, error=error, **told)


def judged(
    variant: str, auc: float, *, version: int = 1, week: date = BEFORE, reach: float = 0.03, **values: object
) -> EvaluatedChampion:
    told = {"as_of": week, "horizon_months": 3, "n": 500, "n_churned": 150, "mean_score": 0.3} | values
    return EvaluatedChampion(1, variant, week, version, Interval(auc, auc - reach, auc + reach), 0.7, **told)


def earlier(months: int) -> dict[str, date]:
    """A cohort of some months before."""
    return {"week": monday_of(month_start(BEFORE, -months)), "as_of": month_start(BEFORE, -months)}


def test_a_variant_has_failed_when_its_newest_attempt_did():
    attempts = [attempt("us", "no such file"), attempt("eu"), attempt("fr", "no alias", week=LAST)]

    told = variants_failed(attempts, {"us": batch("us")}, NOW)

    assert told.kind == "variants_failed"
    assert told.members == {
        "us": "week of 2026-11-16 (an earlier batch is still published): no such file",
        "fr": "week of 2026-11-09: no alias",
    }


def test_an_error_is_told_in_one_line_of_bounded_length():
    told = variants_failed([attempt("us", "a\nlong   story " * 100 + "; upload it again")], {}, NOW)

    assert len(told.members["us"]) < 450
    assert told.members["us"].endswith(" a long story a…; upload it again")
    assert "\n" not in told.members["us"]


@pytest.mark.parametrize(("minutes", "is_told"), [(1, False), (11, True)])
def test_what_may_pass_is_told_when_no_retry_put_it_right(minutes, is_told):
    ended_at = NOW - timedelta(minutes=minutes)

    told = variants_failed([attempt("us", "down", is_transient=True, ended_at=ended_at)], {}, NOW)

    assert bool(told.members) == is_told


@pytest.mark.parametrize(
    ("n_failed", "minutes", "is_due"),
    [(1, 9, False), (1, 10, True), (2, 19, False), (2, 20, True), (5, 160, True), (9, 239, False), (999, 240, True)],
)
def test_what_may_pass_is_scored_again_after_pauses_that_grow(n_failed, minutes, is_due):
    ended_at = NOW - timedelta(minutes=minutes)
    failed = attempt("us", "down", number=7, is_transient=True, ended_at=ended_at, n_failed=n_failed)

    assert to_repeat([failed], Condition("week_missed", {}), NOW) == ({"us": 7} if is_due else {})


def test_an_incident_says_when_the_week_is_scored_again():
    failed = attempt("us", "down", is_transient=True, n_failed=3)

    told = variants_failed([failed, attempt("eu", "no alias")], {}, NOW).members

    assert told["us"] == "week of 2026-11-16 (scored again by itself from 2026-11-17 11:40 UTC on): down"
    assert told["eu"].endswith("no alias")


CAUSES = {  # error type, error, whether it may pass, whether it is the cause of "InputError: row 3 of 'x.csv' is bad"
    "another row of another file": ("InputError", "row 14 of 'y.csv' is bad", False, True),
    "another text": ("InputError", "column 'age' is missing", False, False),
    "another type": ("QuarantineError", "row 3 of 'x.csv' is bad", False, False),
    "what may pass": ("SourceUnavailableError", "no answer", True, False),
}


@pytest.mark.parametrize(("kind", "error", "may_pass", "is_same"), CAUSES.values(), ids=CAUSES)
def test_causes_are_told_apart_by_type_and_words_not_by_numbers_and_names(kind, error, may_pass, is_same):
    ended_at = NOW - timedelta(hours=1)
    attempts = [
        attempt("us", "row 3 of 'x.csv' is bad", error_type="InputError"),
        attempt("eu", error, error_type=kind, is_transient=may_pass, ended_at=ended_at),
    ]

    marks = variants_failed(attempts, {}, NOW).marks

    assert (marks["us"].causes == marks["eu"].causes) == is_same


@pytest.mark.parametrize(
    "one",
    [attempt("us"), attempt("us", "no alias"), attempt("us", "down", is_transient=True, week=LAST),
     attempt("us", "down", is_transient=True, role="challenger")],
)  # fmt: skip
def test_what_is_published_cannot_pass_or_is_of_another_week_is_not_scored_again(one):
    assert to_repeat([one], Condition("week_missed", {}), NOW) == {}
    assert to_repeat([one], Condition("week_missed", {"eu": "never was"}), NOW) == {"eu": 0}


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


NEVER, EARLIER = None, datetime(2026, 11, 15, 23, 59, tzinfo=UTC)
NEW = datetime(2026, 11, 16, 0, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("since", "scored", "attempted", "sentence"),
    [
        (EARLIER, LAST, NEVER, "the last week scored or attempted is 2026-11-09"),
        (NEW, LAST, NEVER, "the last week scored or attempted is 2026-11-09"),
        (EARLIER, LAST - timedelta(weeks=9), LAST, "the last week scored or attempted is 2026-11-09"),
        (EARLIER, NEVER, LAST, "the last week scored or attempted is 2026-11-09"),
        (EARLIER, NEVER, NEVER, "not scored for the week of 2026-11-16; it never was"),
        (EARLIER - timedelta(weeks=30), NEVER, NEVER, "it never was"),
        (NEW, NEVER, NEVER, None),
        (EARLIER, WEEK, NEVER, None),
        (EARLIER, LAST, WEEK, None),
        (EARLIER, NEVER, WEEK, None),
        (NEW, WEEK, WEEK, None),
    ],
)
def test_a_week_is_missed_by_those_registered_before_it_who_did_nothing(since, scored, attempted, sentence):
    histories = {} if scored is None else {"us": History({scored: 100}), "not registered": History({LAST: 100})}
    attempts = [] if attempted is None else [attempt("us", "no such file", week=attempted)]

    told = week_missed({"us": since}, histories, attempts, WEEK).members

    assert told.keys() == (set() if sentence is None else {"us"})
    assert sentence is None or sentence in told["us"]


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
        "old": "no new data for 22 days, since 2026-10-26; the limit is 7 days",
    }


def test_the_volume_is_told_by_the_weeks_before_alone():
    usual = {WEEK - timedelta(weeks=n): 1000 for n in range(1, 9)}
    histories = {key: History(usual | {WEEK: 400}) for key in ("low", "usual", "new")} | {"new": History({WEEK: 400})}

    told = volume_unusual([batch("low", n_rows=400), batch("usual"), batch("new", n_rows=400)], histories)

    assert told.members == {"low": "400 rows in the week of 2026-11-16; usual are 1,000"}


def test_the_volume_is_that_of_the_newest_whole_month():
    months = {month_start(WEEK, -n): 100 for n in range(2, 8)}
    history = History({WEEK - timedelta(weeks=n): 1000 for n in range(1, 9)}, {}, months)

    def told(n_newest: int) -> dict[str, str]:
        day = {"as_of": WEEK, "newest_month": WEEK.replace(day=1), "n_newest": n_newest}
        return dict(volume_unusual([batch("us", n_rows=1000, **day)], {"us": history}).members)

    assert told(20) == {"us": "20 rows of 2026-10; usual are 100"}
    assert not told(95)


def test_until_a_week_is_scored_the_last_one_stands_for_it():
    batches = [batch("us", LAST), batch("us", WEEK), batch("eu", LAST), batch("fr", BEFORE)]

    newest = newest_batches(batches, WEEK)

    assert {key: found.week for key, found in newest.items()} == {"us": WEEK, "eu": LAST}


def test_a_drift_is_told_when_two_different_inputs_have_it():
    both, once = [drift(), drift(SCORE)], [drift(), drift(SCORE, is_large=False)]
    batches = [
        *(batch("both", week, both) for week in (LAST, WEEK)),
        *(batch("begins", week, drifts) for week, drifts in ((LAST, [drift(is_large=False)]), (WEEK, [drift()]))),
        *(batch("not-yet", week, once) for week in (BEFORE, LAST)),
        *(batch("gap", week, both) for week in (BEFORE, WEEK)),
        *(batch("same rows", week, both, source_sha256="one") for week in (BEFORE, LAST, WEEK)),
    ]

    flags = flag_drifts(batches, WEEK)
    _, inputs, scores = drifted(flags)

    assert {flag.variant for flag in flags} == {"both", "begins", "not-yet", "gap", "same rows"}
    assert (inputs.kind, set(inputs.members)) == ("input_drifted", {"both", "not-yet", "gap"})
    assert (scores.kind, set(scores.members)) == ("scores_drifted", {"both", "gap"})
    assert "brand_id (share of OH 10 % → 40 %, PSI 0.30)" in inputs.members["both"]


def test_broken_data_is_told_in_the_same_week_and_is_no_drift():
    moves = {"OH": (0.4, 0.1), "unknown": (0.0, 0.75)}
    broken = FeatureDrift("brand_id", 1000, 5.0, 5.0, 0.9, 1e-12, 0.75, 0.75, 1e-200, 1000, 0.4, moves)

    told = drifted(flag_drifts([batch("us", LAST, [drift()]), batch("us", WEEK, [broken])], WEEK))

    assert [set(one.members) for one in told] == [{"us"}, set(), set()]
    assert told[0].members["us"] == (
        "brand_id (log-odds +0.40, PSI 5.00, unknown 75.0 %): most values are unknown to the model or missing, which "
        "they were not in its reference"
    )


def test_the_features_with_the_largest_effect_are_named_first():
    drifts = [replace(drift(name), effect=effect) for name, effect in (("a", 0.1), ("b", -0.5), ("c", 0.2), ("d", 0))]

    _, inputs, _ = drifted(flag_drifts([batch("us", week, drifts) for week in (LAST, WEEK)], WEEK))

    assert [inputs.members["us"].index(f"{name} (") for name in "bca"] == sorted(
        inputs.members["us"].index(f"{name} (") for name in "abc"
    )
    assert "and 1 more drifted" in inputs.members["us"]


def test_what_moved_in_the_whole_fleet_is_told_once_by_feature():
    batches = [batch(f"v{i}", week, [drift()]) for i in range(30) for week in (LAST, WEEK)]

    told = fleet_moved(batches, WEEK)

    assert told.members == {"brand_id": "the share of OH moved by +30 points in the median of 30 variants"}
    assert not flag_drifts(batches, WEEK)
    assert not fleet_moved(batches[:20], WEEK).members  # of ten variants


def test_midnight_ends_no_drift():
    batches = [batch("us", week, [drift()]) for week in (BEFORE, LAST)]

    before, after = (drifted(flag_drifts(batches, week))[1] for week in (LAST, WEEK))

    assert before == after
    assert before.members


def test_another_models_week_confirms_nothing():
    batches = [batch("us", LAST, [drift()]), batch("us", WEEK, [drift()], model_version=2)]

    flags = flag_drifts(batches, WEEK)

    assert [flag.is_confirmed for flag in flags] == [False]


def test_what_a_replaced_champion_was_worth_is_over():
    found = independent_cohorts([judged("us", 0.5, version=1), judged("us", 0.8, version=2, week=LAST)], {"us": 2})

    assert [one.roc_auc.value for one in found["us"]] == [0.8]
    assert not independent_cohorts([judged("us", 0.5, version=1)], {"us": 2})


def test_cohorts_that_share_an_outcome_count_once():
    found = independent_cohorts([judged("us", 0.5, **earlier(n)) for n in range(30)], {"us": 1})

    assert [one.as_of for one in found["us"]] == [month_start(BEFORE, -3 * n) for n in range(6)]


def test_performance_is_low_when_chance_cannot_explain_it_in_the_whole_fleet():
    sound = [judged(f"sound{i}", 0.72) for i in range(1000)]
    unlucky = judged("unlucky", 0.665)  # its interval ends just below the limit, as one in forty does
    champions = dict.fromkeys(["unlucky", "low", "alone", *(f"sound{i}" for i in range(1000))], 1)

    told = performance_low(independent_cohorts([*sound, unlucky, judged("low", 0.6)], champions))

    assert set(told.members) == {"low"}
    assert told.members["low"] == "ROC AUC 0.600 (0.570 to 0.630) in the week of 2026-11-02; the limit is 0.700"
    assert set(performance_low(independent_cohorts([judged("alone", 0.65)], champions)).members) == {"alone"}


@pytest.mark.parametrize(("aucs", "is_low"), [([0.65], False), ([0.65] * 4, True), ([0.65, 0.65, 0.8, 0.8], False)])
def test_small_variants_accumulate_evidence_over_independent_cohorts(aucs: list[float], is_low: bool):
    sound = [judged(f"sound{i}", 0.72) for i in range(1000)]
    small = [judged("small", auc, reach=0.04, **earlier(3 * n)) for n, auc in enumerate(aucs)]

    told = performance_low(independent_cohorts([*sound, *small], {one.variant: 1 for one in [*sound, *small]}))

    assert set(told.members) == ({"small"} if is_low else set())
    assert not is_low or ", with 3 earlier cohorts; the limit is 0.700" in told.members["small"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"n": 3000, "n_churned": 900}, None),
        ({"n": 3000, "n_churned": 990}, None),  # 3 points are tolerated
        ({"n": 3000, "n_churned": 1350}, "45.0 % of 6,000 accounts churned, the scores expected 30.0 %"),
        ({"n": 3000, "n_churned": 450}, "15.0 % of 6,000 accounts churned, the scores expected 30.0 %"),
        ({"n": 3000, "n_churned": 1350, "is_calibrated": False}, None),
        ({"n": 3000, "n_churned": 1350, "mean_score": None}, None),
        (
            {"log_loss_excess": Interval(0.12, 0.09, 0.15)},
            "log-loss 0.120 above what the scores imply, mean of 2 cohorts",
        ),
        ({"log_loss_excess": Interval(0.02, 0.01, 0.03)}, None),
    ],
)
def test_outcomes_that_contradict_the_scores_are_told(values: dict[str, object], sentence: str | None):
    newest, before = (judged("us", 0.75, **{"is_calibrated": True} | values, **earlier(months)) for months in (0, 6))

    told = calibration_poor({"us": [newest, before]})

    assert told.members == ({} if sentence is None else {"us": sentence})
    assert calibration_poor({"us": [newest]}).members == {}, "a season that a small fleet cannot tell from it"


@pytest.mark.parametrize(
    ("months", "churned", "is_told"),
    [
        ((0, 3, 6, 9), (1350, 900, 450, 900), False),  # 45 % and 15 % half a year apart: a season
        ((0, 3, 6, 9), (1350, 1350, 1200, 900), True),  # worse for three quarters
        ((0, 3), (1350, 1350), False),
        ((0, 3, 7), (1350, 1350, 1350), True),
        ((0, 12), (1350, 1350), False),  # the same season
    ],
)
def test_in_a_small_fleet_cohorts_half_a_year_apart_count_together(months, churned, is_told):
    of_variant = [
        judged("us", 0.75, n=3000, n_churned=n, is_calibrated=True, **earlier(month))
        for month, n in zip(months, churned, strict=True)
    ]
    assert bool(calibration_poor({"us": of_variant}).members) == is_told


def test_a_season_that_all_variants_share_contradicts_no_scores():
    fleet = {f"v{i}": [judged(f"v{i}", 0.75, n=3000, n_churned=1350, is_calibrated=True)] for i in range(50)}
    odd = {"odd": [judged("odd", 0.75, n=3000, n_churned=900, is_calibrated=True)]}

    assert set(calibration_poor(fleet | odd).members) == {"odd"}


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
