"""At stake: every figure of a batch must be of the players it is said to be of: those who can still leave."""

import numpy as np
import numpy.typing as npt
import pytest

from churn.monitoring.drift import estimated_auc
from churn.monitoring.summary import ScoreSummary

IDS = np.arange(100, 106)
PROBABILITIES = np.array([0.9, 0.2, 0.8, 0.1, 0.7, 0.6], dtype=np.float32)
AT_RISK = np.array([False, True, False, True, False, True])


def summary_of(is_at_risk: npt.NDArray[np.bool_] | None, **values: bool) -> ScoreSummary:
    """The accounts in two chunks, the contribution of each being its probability."""
    summary = ScoreSummary(**values)
    for rows in (slice(0, 4), slice(4, 6)):
        summary.add(
            IDS[rows], PROBABILITIES[rows], -PROBABILITIES[rows, None], None if is_at_risk is None else is_at_risk[rows]
        )
    return summary


@pytest.mark.parametrize(
    ("is_at_risk", "counted", "population"),
    [
        (AT_RISK, AT_RISK, "accounts at risk"),
        (None, np.ones(6, bool), "all accounts, since it is unknown who is at risk"),
    ],
)
def test_figures_are_of_accounts_at_risk_or_of_all_where_that_is_unknown(is_at_risk, counted, population):
    summary = summary_of(is_at_risk)

    scores, accounts = PROBABILITIES[counted], IDS[counted]
    assert summary.population == population
    assert (summary.n, summary.n_scored) == (counted.sum(), 6)
    assert summary.mean == pytest.approx(scores.mean())
    assert summary.counts.sum() == counted.sum()
    assert summary.importance(["x"])["x"] == pytest.approx(scores.mean())
    assert [account for _, account in summary.top] == accounts[np.argsort(-scores)].tolist()
    assert summary.record_fields()["n_at_risk"] == (None if is_at_risk is None else 3)


def test_where_nobody_is_at_risk_there_is_no_mean_and_no_list():
    summary = summary_of(np.zeros(6, bool), is_calibrated=True)

    fields = summary.record_fields()
    assert (fields["n_at_risk"], fields["mean_probability"], fields["estimated_auc"]) == (0, None, None)
    assert summary.top == []


def test_the_auc_is_estimated_only_from_calibrated_scores():
    expected = estimated_auc(PROBABILITIES[AT_RISK].astype(float))
    assert summary_of(AT_RISK, is_calibrated=True).estimated_auc == pytest.approx(expected, abs=2e-3)
    assert summary_of(AT_RISK, is_calibrated=False).estimated_auc is None
