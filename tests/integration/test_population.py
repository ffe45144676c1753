"""At stake: analysts must get players who can still leave. Each row says when its account was last active, and whether
it is at risk; where that is unknown, nothing pretends to know it.
"""

from datetime import date

import pandas as pd
import pytest

from churn.deployment.services import Deployment
from churn.variants import Variant
from churn.weeks import at_risk_since, month_start
from tests.support.batches import week_request
from tests.support.inputs import activity, as_parquet, encoded, last_active, monday, put_input, register_bundled
from tests.support.site import Run, Site

US, EU, CA = Variant("us"), Variant("eu"), Variant("ca")


def old(rows: pd.DataFrame, n_months: int) -> pd.DataFrame:
    """The same rows, some months earlier."""
    months = pd.to_datetime(rows["activity_month"]) - pd.DateOffset(months=n_months)
    return rows.assign(activity_month=months.dt.date)


def test_rows_say_who_is_at_risk_and_where_it_is_unknown(site: Site, log_model: Run, deployment: Deployment) -> None:
    register_bundled(site, log_model, US.key, EU.key, CA.key)
    rows = activity()
    put_input(site, US.key, as_parquet(rows))
    put_input(site, EU.key, as_parquet(encoded(rows, monday())))
    put_input(site, CA.key, as_parquet(old(rows, 30)))
    request = week_request(monday())

    outcomes = {variant: deployment.scorer().score_variant(request.of(variant)) for variant in (US, EU, CA)}

    since = at_risk_since(request.as_of, 3)
    active = last_active(rows, request.as_of)
    found = site.current(f"variant = '{US.key}'")
    assert dict(found.select("account_id", "last_active_month").drop_nulls().iter_rows()) == active
    at_risk = {account for account, month in active.items() if month >= since}
    assert set(found.filter("is_at_risk")["account_id"]) == at_risk
    assert found["is_at_risk"].null_count() == 0
    assert 0 < len(at_risk) < found.height
    query = "SELECT at_risk_since, n_at_risk, first_month, newest_month, mean_probability, score_counts " \
            "FROM scoring_batches WHERE variant = :variant"  # fmt: skip
    ((stored_since, n_at_risk, *months, mean, counts),) = site.rows(site.churn, query, variant=US.key)
    assert (stored_since, n_at_risk) == (since, len(at_risk))
    assert months == [pd.to_datetime(rows["activity_month"]).min().date(), month_start(date(2026, 10, 1))]
    assert mean == pytest.approx(found.filter("is_at_risk")["churn_probability"].mean(), abs=1e-6)
    assert sum(counts) == len(at_risk)
    assert {account for _, account in outcomes[US].summary.top} <= at_risk

    for variant in (EU, CA):  # without months, and with months that are too old
        unknown = site.current(f"variant = '{variant.key}'")
        assert unknown["is_at_risk"].null_count() == unknown.height > 0
        assert not outcomes[variant].summary.is_at_risk_known
        assert outcomes[variant].summary.n == unknown.height
    assert site.current(f"variant = '{EU.key}'")["last_active_month"].null_count() == 60
    assert site.current(f"variant = '{CA.key}'")["last_active_month"].null_count() < 60


def test_the_newest_week_of_each_variant_has_a_view(site: Site, log_model: Run, deployment: Deployment) -> None:
    register_bundled(site, log_model, US.key, EU.key)
    for variant in (US, EU):
        put_input(site, variant.key, as_parquet(activity()))
    scorer = deployment.scorer()
    for weeks_ago, variant in ((1, US), (0, US), (1, EU)):
        scorer.score_variant(week_request(monday(weeks_ago)).of(variant))

    query = "SELECT DISTINCT variant, scored_week FROM churn_predictions_latest ORDER BY variant"
    assert site.rows(site.churn, query) == [(EU.key, monday(1)), (US.key, monday())]
