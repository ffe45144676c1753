"""At stake: a run that read the older extract, or an older model, and ends last must not take a newer batch's place.

What fails after a batch was published must not make it a failed one.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta

import polars as pl
import pytest
from mlflow import MlflowClient

from churn.database.predictions import PredictionStore
from churn.deployment.services import Deployment
from churn.variants import Variant
from churn.workflows.score import ScoringOutcome
from tests.support.batches import week_request
from tests.support.inputs import (
    activity,
    as_parquet,
    expected,
    facts,
    monday,
    put_input,
    register_bundled,
    register_second,
)
from tests.support.site import Run, Site

US = Variant("us")


class Overtaken(PredictionStore):
    """A store whose publishing waits until something else is done."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def publish(self, *arguments: object, **named: object) -> object:  # type: ignore[override]
        self.meanwhile()
        return super().publish(*arguments, **named)  # type: ignore[arg-type]


@pytest.fixture
def overtaken(site: Site, log_model: Run, deployment: Deployment) -> Callable[..., ScoringOutcome]:
    """Score the older extract, while a faster run scores what ``change`` leads to."""
    register_bundled(site, log_model, US.key)
    put_input(site, US.key, as_parquet(activity()))
    store = Overtaken(deployment.database)

    def score(change: Callable[[], object], *, is_forced: bool = False) -> ScoringOutcome:
        request = week_request(monday())

        def meanwhile() -> None:
            change()
            deployment.scorer().score_variant(request.of(US))

        store.meanwhile = meanwhile  # type: ignore[method-assign]
        slow = replace(deployment.scorer(), store=store)
        return slow.score_variant(replace(request, is_forced=is_forced).of(US))

    return score


def scores(site: Site) -> dict[int, float]:
    return dict(site.current().select("account_id", "churn_probability").iter_rows())


@pytest.mark.parametrize("is_forced", [False, True])
def test_the_older_extract_does_not_replace_the_newer_one_unless_forced(
    site: Site, overtaken: Callable[..., ScoringOutcome], is_forced: bool
) -> None:
    older, newer = activity(), activity(seed=1)

    outcome = overtaken(lambda: put_input(site, US.key, as_parquet(newer)), is_forced=is_forced)

    assert (outcome.why_not_current is None) == is_forced
    assert scores(site) == pytest.approx(expected(older if is_forced else newer), abs=1e-6)
    assert site.rows(site.churn, "SELECT count(*), count(*) FILTER (WHERE is_current) FROM scoring_batches") == [(2, 1)]


def test_the_same_extract_uploaded_again_is_not_newer(site: Site, overtaken: Callable[..., ScoringOutcome]) -> None:
    outcome = overtaken(lambda: put_input(site, US.key, as_parquet(activity())))  # uploaded again: the same content

    assert outcome.why_not_current is None


def test_the_older_model_does_not_replace_the_newer_one(
    site: Site, log_model: Run, deployment: Deployment, overtaken: Callable[..., ScoringOutcome]
) -> None:
    register_second(site, log_model, US)
    client = MlflowClient(deployment.tracking_uri)

    outcome = overtaken(lambda: client.set_registered_model_alias(US.registered_model, "champion", "2"))

    assert outcome.why_not_current == "the champion is version 2 now, not 1"
    assert set(site.current()["model_version"]) == {2}


def test_a_past_week_scored_from_less_than_was_known_by_then_does_not_replace_what_was(
    site: Site, log_model: Run, deployment: Deployment
) -> None:
    register_bundled(site, log_model, US.key)
    history, week = deployment.history(), monday(1)
    known_on, later = (datetime.combine(day, time(12), UTC) for day in (week, week + timedelta(weeks=1)))
    then, more = facts(activity()), facts(activity(seed=1)).with_columns(pl.col("account_id") + 10**9)
    history.append(US, then, known_on)
    request = replace(week_request(week, as_of=week + timedelta(days=6)), scored_from="history").of(US)
    store = Overtaken(deployment.database)
    slow = replace(deployment.scorer(), store=store)
    n_known = deployment.scorer().score_variant(request).record.n_rows_scored

    store.meanwhile = lambda: history.append(US, more, later)  # type: ignore[method-assign]
    assert slow.score_variant(request).why_not_current is None, "it became known after the week"

    def meanwhile() -> None:
        history.append(US, more, known_on)
        deployment.scorer().score_variant(request)

    store.meanwhile = meanwhile  # type: ignore[method-assign]
    outcome = slow.score_variant(request)

    assert "other facts that were known" in str(outcome.why_not_current)
    assert site.current().height > n_known == outcome.record.n_rows_scored


def test_a_challenger_that_was_withdrawn_meanwhile_serves_nobody(
    site: Site, log_model: Run, deployment: Deployment
) -> None:
    register_bundled(site, log_model, US.key)
    put_input(site, US.key, as_parquet(activity()))
    register_second(site, log_model, US)
    promoter = deployment.promoter()
    promoter.challenge(US, 2, "a test")
    promoter.share(US, 5000, "a test")
    store = Overtaken(deployment.database)
    store.meanwhile = lambda: promoter.withdraw(US, "a test")  # type: ignore[method-assign]

    outcome = replace(deployment.scorer(), store=store).score_variant(week_request(monday()).of(US))

    assert outcome.why_not_current is None
    assert set(site.current()["model_version"]) == {1}
    batches = site.rows(site.churn, "SELECT role, is_current FROM scoring_batches ORDER BY role")
    assert batches == [("challenger", False), ("champion", True)]
