"""At stake: whom a budget is spent on. A few lucky months must not make an account worth more than it will bring."""

from datetime import UTC, date, datetime

import numpy as np
import polars as pl
import pytest

from churn.decisions.value import expected_revenue
from churn.weeks import month_start

AS_OF = date(2026, 11, 15)


def facts(rows: list[tuple[int, date, float]], known_at: datetime = datetime(2026, 11, 1, tzinfo=UTC)) -> pl.DataFrame:
    frame = pl.DataFrame(rows, ["account_id", "activity_month", "total_ngr"], orient="row")
    return frame.with_columns(known_at=pl.lit(known_at, pl.Datetime("us", "UTC")))


def history(n: int = 2000, seed: int = 1) -> tuple[pl.DataFrame, dict[int, float], dict[int, float]]:
    """Accounts of 1 to 12 months with a mean of their own, what their next three bring, and their own plain mean."""
    rng = np.random.default_rng(seed)
    means, n_months = rng.normal(40, 40, n), rng.integers(1, 13, n)
    rows, coming, plain = [], {}, {}
    for account, (mean, months) in enumerate(zip(means, n_months, strict=True)):
        own = rng.normal(mean, 80, months)
        rows += [(account, month_start(AS_OF, -1 - i), float(value)) for i, value in enumerate(own)]
        coming[account], plain[account] = 3 * mean, 3 * float(own.mean())
    return facts(rows), coming, plain


def test_the_expectation_is_nearer_to_what_comes_than_the_accounts_own_mean_or_the_variants() -> None:
    known, coming, plain = history()

    found = dict(expected_revenue(known, AS_OF, 3, "total_ngr").iter_rows())

    def error(guess: dict[int, float]) -> float:
        return float(np.mean([(guess[one] - coming[one]) ** 2 for one in coming]))

    assert found.keys() == coming.keys()
    everybody = dict.fromkeys(coming, float(np.mean(list(plain.values()))))
    assert error(found) < 0.75 * min(error(plain), error(everybody))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([(1, date(2026, 10, 1), 10.0)], {1: 30.0}, id="one account is its variant"),
        pytest.param(
            [(1, date(2026, 10, 1), 10.0), (2, date(2026, 11, 1), 99.0)], {1: 30.0, 2: 30.0}, id="the running month"
        ),
        pytest.param([(1, date(2026, 9, 1), 20.0)], {1: 30.0}, id="a month without a row brought nothing"),
        pytest.param([(1, date(2026, 10, 1), 5.0), (2, date(2026, 7, 1), 9.0)], {1: 15.0}, id="2 is not at risk"),
        pytest.param(
            [(1, date(2026, 10, 1), 10.0), (2, date(2026, 10, 1), 20.0)], {1: 45.0, 2: 45.0}, id="one month is chance"
        ),
        pytest.param([(1, date(2026, 10, 1), 10.0), (1, date(2026, 12, 1), 1.0)], {1: 30.0}, id="a month to come"),
    ],
)
def test_what_counts(rows: list[tuple[int, date, float]], expected: dict[int, float]) -> None:
    found = dict(expected_revenue(facts(rows), AS_OF, 3, "total_ngr").iter_rows())

    assert found == pytest.approx(expected)


def test_it_knows_only_what_was_known_at_the_as_of_day_and_the_last_report_of_a_month() -> None:
    first = facts([(1, date(2026, 10, 1), 10.0)])
    corrected = facts([(1, date(2026, 10, 1), 30.0)], datetime(2026, 11, 15, 23, tzinfo=UTC))
    later = facts([(1, date(2026, 10, 1), 90.0)], datetime(2026, 11, 16, tzinfo=UTC))

    found = expected_revenue(pl.concat([later, corrected, first]), AS_OF, 3, "total_ngr")

    assert found["revenue"].to_list() == pytest.approx([90.0])
