"""At stake: a challenger becomes champion since it is better, not since one looked often or counted a player twice."""

from datetime import date

import numpy as np
import pytest

from churn.evaluation.comparison import Limits, PairedCohort, compare, count_once

LIMITS = Limits()


def cohort(as_of: date, ids: range, *, better: float, seed: int = 0) -> PairedCohort:
    """Accounts that churn by a known chance; only the champion's scores are blurred, by ``better``."""
    rng = np.random.default_rng([seed, as_of.toordinal()])
    logit = rng.normal(0, 1.5, len(ids))
    blurred = logit + better * rng.normal(0, 1, len(ids))
    churned = rng.random(len(ids)) < 1 / (1 + np.exp(-logit))
    scores = [(1 / (1 + np.exp(-margin))).astype(np.float32) for margin in (blurred, logit)]
    return PairedCohort(as_of, np.array(ids), *scores, churned)


def test_a_better_challenger_is_found_and_breaks_no_guardrail():
    comparison = compare([cohort(date(2026, 1, 31), range(3000), better=1.0)], 3, LIMITS)

    assert comparison.is_better
    assert not comparison.broken
    assert comparison.improvement.low > 0
    assert comparison.sentence.endswith("the challenger is better")
    assert comparison.evidence()["n"] == 3000


def test_the_same_scores_are_no_evidence():
    same = cohort(date(2026, 1, 31), range(3000), better=0.0)

    comparison = compare([same], 3, LIMITS)

    assert not comparison.is_better
    assert comparison.improvement.value == pytest.approx(0, abs=1e-7)


def test_a_worse_challenger_is_said_to_be_worse():
    good = cohort(date(2026, 1, 31), range(3000), better=1.0)
    swapped = PairedCohort(good.as_of, good.account_ids, good.challenger, good.champion, good.churned)

    comparison = compare([swapped], 3, LIMITS)

    assert not comparison.is_better
    assert "auc_holds" in {guardrail.name for guardrail in comparison.broken}
    assert comparison.improvement.high < 0


def test_without_matured_accounts_it_is_too_early():
    comparison = compare([], 3, LIMITS)

    assert (comparison.n, comparison.is_better) == (0, False)
    assert comparison.sentence == "no account that both models scored has a matured label yet"


def test_few_labels_break_a_guardrail_whatever_the_test_says():
    comparison = compare([cohort(date(2026, 1, 31), range(60), better=3.0)], 3, LIMITS)

    assert [guardrail.name for guardrail in comparison.broken] == ["labels_are_enough"]


def test_a_challenger_that_ranks_as_well_but_is_ill_calibrated_is_not_allowed():
    good = cohort(date(2026, 1, 31), range(5000), better=0.0)
    shifted = (1 / (1 + np.exp(-(np.log(good.champion / (1 - good.champion)) + 1)))).astype(np.float32)

    comparison = compare([PairedCohort(good.as_of, good.account_ids, good.champion, shifted, good.churned)], 3, LIMITS)

    assert "calibration_holds" in {guardrail.name for guardrail in comparison.broken}


def test_an_account_counts_again_only_when_its_outcomes_do_not_overlap():
    january = cohort(date(2026, 1, 31), range(100), better=1.0)
    february = cohort(date(2026, 2, 28), range(150), better=1.0)
    april = cohort(date(2026, 4, 30), range(150), better=1.0)

    counted = count_once([january, february, april], 3)

    assert [kept.account_ids.tolist() for kept in counted] == [
        list(range(100)),
        list(range(100, 150)),
        list(range(100)),
    ]
    assert np.array_equal(counted[1].challenger, february.challenger[100:])
    assert np.array_equal(counted[2].churned, april.churned[:100])


def test_the_order_of_cohorts_does_not_matter():
    cohorts = [cohort(date(2026, month, 28), range(200), better=1.0) for month in (1, 2, 3, 4)]

    assert compare(cohorts, 3, LIMITS) == compare(cohorts[::-1], 3, LIMITS)
