"""At stake: which model decides. A challenger scores beside the champion without touching it, is promoted on evidence
or by a person who says why, can be taken back at once, and the trail tells who was champion on any day.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
import xgboost as xgb
from mlflow import MlflowClient

from churn.deployment.services import Deployment
from churn.errors import PromotionError, RegistryUnavailableError, UsageError
from churn.evaluation.comparison import Limits
from churn.variants import Variant
from churn.versions import CHALLENGER, CHAMPION, PREVIOUS
from churn.workflows.evaluate import evaluate_fleet
from churn.workflows.promote import Promoter
from experiment_tracking.promote_model import main as promote_model
from tests.support.assignment import is_assigned
from tests.support.batches import week_request
from tests.support.inputs import register_second, trained_until
from tests.support.simulated import simulate_activity
from tests.support.site import Run, Site, bundled, client, put_model_files
from tests.support.templates import made_once

US = Variant("us")
MODEL = US.registered_model
WEEKS = [date(2026, 2, 23), date(2026, 5, 25)]
TODAY = datetime(2026, 10, 20, 12, tzinfo=UTC)


def misled_model() -> bytes:
    """Return a model that learned the wrong way round: the more a player handles, the surer it is that they churn."""
    names = json.loads(bundled("feature_names_3.json"))
    rows = np.random.default_rng(0).random((500, 45)) * 1000
    data = xgb.DMatrix(rows, rows[:, names.index("total_handle")] > 500, feature_names=names)
    booster = xgb.train({"objective": "binary:logistic", "max_depth": 2, "nthread": 1}, data, 5)
    return bytes(booster.save_raw("ubj"))


def parquet(frame: pl.DataFrame) -> bytes:
    import io

    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


@pytest.fixture
def promoter(deployment: Deployment) -> Promoter:
    opened = deployment.promoter()
    # The bundled model was made for other players than these, so that it is not calibrated for them.
    lenient = replace(opened.evaluator, limits=Limits(max_calibration_loss=0.2))
    return replace(opened, evaluator=lenient, clock=lambda: TODAY)


@pytest.fixture
def two_models(site: Site, log_model: Run, promoter: Promoter) -> None:
    """A misled champion, v1, and the bundled model as its challenger, v2; the variant's activity to score."""

    def make() -> None:
        put_model_files(site, US.prefix, model=misled_model())
        assert log_model("--geography", "US").status == 0
        put_model_files(site, US.prefix)
        assert log_model("--geography", "US").status == 0
        activity = simulate_activity(n_accounts=1500, first_month=date(2025, 2, 1), n_months=21, seed=3)
        site.put(f"{US.prefix}data/churn/activity.parquet", parquet(activity))
        trained_until(site, US, 1, 2)
        promoter.challenge(US, 2, "a test")

    made_once(site, "two models", make, "mlflow", "churn")


@pytest.fixture
def score(deployment: Deployment) -> Callable[..., object]:
    return lambda week: deployment.scorer().score_variant(week_request(week).of(US))


def served(site: Site, week: date) -> dict[int, tuple[str, int, float]]:
    """What analysts read of a week, by account: role, version, score."""
    query = (
        "SELECT account_id, role, model_version, churn_probability FROM churn_predictions_current "
        "WHERE variant = 'geography-us' AND scored_week = :week"
    )
    rows = site.rows(site.churn, query, week=week)
    assert len(rows) == len({account for account, *_ in rows})
    return {account: (role, version, probability) for account, role, version, probability in rows}


def by_role(site: Site, week: date) -> dict[str, dict[int, float]]:
    query = "SELECT role, account_id, churn_probability FROM churn_predictions_by_role WHERE scored_week = :week"
    found: dict[str, dict[int, float]] = {}
    for role, account, probability in site.rows(site.churn, query, week=week):
        found.setdefault(role, {})[account] = probability
    return found


def aliases(deployment: Deployment) -> dict[str, int]:
    held = MlflowClient(deployment.tracking_uri).get_registered_model(MODEL).aliases
    return {alias: int(version) for alias, version in held.items()}


def test_both_score_every_batch_and_analysts_are_served_the_champion(site: Site, two_models: None, score: Callable):
    score(WEEKS[0])

    both = by_role(site, WEEKS[0])
    assert set(both) == {CHAMPION, CHALLENGER}
    assert both[CHAMPION].keys() == both[CHALLENGER].keys()
    assert both[CHAMPION] != both[CHALLENGER]
    assert served(site, WEEKS[0]) == {account: (CHAMPION, 1, score) for account, score in both[CHAMPION].items()}


def test_a_share_of_the_accounts_is_served_the_challenger_and_stays_with_it(
    site: Site, two_models: None, score: Callable, promoter: Promoter
):
    promoter.share(US, 3000, "a trial")
    for week in WEEKS:
        score(week)
    both, found = by_role(site, WEEKS[1]), served(site, WEEKS[1])

    ids = np.array(sorted(both[CHAMPION]))
    chosen = set(ids[is_assigned(ids, "geography-us:2", 3000)].tolist())
    assert 0.25 < len(chosen) / len(ids) < 0.35
    assert {account for account, (role, *_) in found.items() if role == CHALLENGER} == chosen
    assert all(found[i] == ((CHALLENGER, 2) if i in chosen else (CHAMPION, 1)) + (found[i][2],) for i in found)
    assert all(found[i][2] == both[found[i][0]][i] for i in found)
    before = served(site, WEEKS[0])
    assert all((before[i][0] == CHALLENGER) == (i in chosen) for i in before if i in both[CHAMPION])

    promoter.share(US, 0, "enough")
    score(WEEKS[1])
    assert {role for role, *_ in served(site, WEEKS[1]).values()} == {CHAMPION}


def test_a_challenger_that_cannot_score_takes_nothing_from_the_champion(
    site: Site, two_models: None, score: Callable, deployment: Deployment, promoter: Promoter
):
    promoter.share(US, 5000, "a trial")
    client = MlflowClient(deployment.tracking_uri)
    client.set_model_version_tag(MODEL, "2", "churn.model_sha256", "0" * 64)

    outcome = score(WEEKS[0])

    assert (outcome.challenger_version, outcome.challenger_record) == (2, None)
    assert {role for role, *_ in served(site, WEEKS[0]).values()} == {CHAMPION}
    assert set(by_role(site, WEEKS[0])) == {CHAMPION}
    query = "SELECT role, outcome, error FROM scoring_attempts ORDER BY attempt_id"
    (first, second) = site.rows(site.churn, query)
    assert (first[:2], second[:2]) == (("champion", "published"), ("challenger", "failed"))
    assert "sha256" in second[2]


def test_scoring_again_replaces_both_batches_together(site: Site, two_models: None, score: Callable):
    score(WEEKS[0])
    first = by_role(site, WEEKS[0])

    score(WEEKS[0])

    assert by_role(site, WEEKS[0]) == first
    current = "SELECT role, count(*) FROM scoring_batches WHERE is_current GROUP BY role"
    assert dict(site.rows(site.churn, current)) == {CHAMPION: 1, CHALLENGER: 1}


def test_a_challenger_is_promoted_on_matured_labels_and_not_before(
    site: Site, two_models: None, score: Callable, promoter: Promoter, deployment: Deployment
):
    for week in WEEKS:
        score(week)
    promoter.evaluator.ingestion.ingest(US)
    early = replace(promoter, clock=lambda: datetime(2026, 5, 31, tzinfo=UTC))
    with pytest.raises(PromotionError, match="no account that both models scored has a matured label yet"):
        early.promote(US)
    assert aliases(deployment) == {CHAMPION: 1, CHALLENGER: 2}

    dry, comparison = promoter.promote(US, dry_run=True)
    assert aliases(deployment) == {CHAMPION: 1, CHALLENGER: 2}
    event, _ = promoter.promote(US)

    assert comparison.n > 300
    assert comparison.is_better
    assert (event.champion, event.previous, event.challenger) == (2, 1, None)
    assert (dry.champion, dry.action) == (event.champion, event.action)
    assert aliases(deployment) == {CHAMPION: 2, PREVIOUS: 1}
    assert promoter.events.history(US)[-1].evidence["n"] == comparison.n


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.usefixtures("two_models")
def test_weeks_that_either_model_has_seen_the_outcomes_of_are_no_evidence(
    site: Site, score: Callable, promoter: Promoter, version: int
):
    for week in WEEKS:
        score(week)
    promoter.evaluator.ingestion.ingest(US)
    for day, counts_after in ((date(2026, 5, 31), "2026-05-31"), (None, r"20\d\d-\d\d-\d\d")):
        trained_until(site, US, version, day=day)

        with pytest.raises(PromotionError, match=f"as-of days after {counts_after} count"):
            promoter.promote(US, dry_run=True)
    site.rows(site.churn, "UPDATE scoring_batches SET scored_from = 'corrected extract' RETURNING batch_id")
    assert promoter.evaluator.results.pairs(US, 1, 2) == []


def test_batches_are_judged_once_when_their_labels_have_matured(
    site: Site, two_models: None, score: Callable, promoter: Promoter
):
    for week in WEEKS:
        score(week)
    judge = promoter.evaluator
    judge.ingestion.ingest(US)

    assert judge.evaluate_batches(US, date(2026, 5, 31)) == []
    judged = judge.evaluate_batches(US, TODAY.date())

    assert [(one.batch.scored_week, one.batch.role) for one in judged] == [
        (week, role) for week in WEEKS for role in (CHAMPION, CHALLENGER)
    ]
    assert judge.evaluate_batches(US, TODAY.date()) == []
    for one in judged:
        assert one.status == "ok"
        assert 0 < one.n_churned < one.n_matured == one.n_at_risk < one.n_accounts
        assert (one.measures["roc_auc"] > 0.7) == (one.batch.role == CHALLENGER)
        assert one.is_below_limit == (one.batch.role == CHAMPION)
    champions = [one for one in judged if one.batch.role == CHAMPION]
    kept = [one for one in judge.results.evaluated_since(US, date.min) if one.batch.role == CHAMPION]
    assert [one.batch for one in kept] == [one.batch for one in champions]
    assert all(found.measures.items() <= one.measures.items() for found, one in zip(kept, champions, strict=True))


def test_rolling_back_restores_the_very_scores(
    site: Site, two_models: None, score: Callable, promoter: Promoter, deployment: Deployment
):
    score(WEEKS[0])
    before = served(site, WEEKS[0])
    promoter.promote(US, force=True, reason="a drill")
    score(WEEKS[0])
    assert served(site, WEEKS[0]) != before

    event = promoter.roll_back(US, "a drill")
    score(WEEKS[0])

    assert served(site, WEEKS[0]) == before
    assert (event.champion, event.previous) == (1, 2)
    assert aliases(deployment) == {CHAMPION: 1, PREVIOUS: 2}


def test_force_needs_a_reason_and_both_are_kept(two_models: None, promoter: Promoter):
    with pytest.raises(UsageError, match="--reason"):
        promoter.promote(US, force=True)

    promoter.promote(US, force=True, reason="the champion is broken")

    event = promoter.events.history(US)[-1]
    assert (event.is_forced, event.reason, event.action) == (True, "the champion is broken", "promoted")


def test_the_trail_tells_who_was_champion_on_any_day(site: Site, two_models: None, promoter: Promoter):
    site.rows(site.churn, "UPDATE model_events SET occurred_at = now() - interval '10 days'")
    promoter.promote(US, force=True, reason="a drill")

    champion_on, today = promoter.events.champion_on, datetime.now(UTC).date()
    assert champion_on(US, today - timedelta(days=11)) is None
    assert champion_on(US, today - timedelta(days=10)) == 1
    assert champion_on(US, today - timedelta(days=1)) == 1
    assert champion_on(US, today) == 2


def test_a_host_with_a_fast_clock_changes_neither_time_nor_order(
    site: Site, two_models: None, promoter: Promoter, deployment: Deployment
):
    promoter.share(US, 3000, "a trial")
    site.rows(site.churn, "UPDATE model_events SET occurred_at = now() + interval '2 hours'")  # as it used to write
    promoter.share(US, 0, "enough")
    n_events = len(promoter.events.history(US))
    for _ in range(5):
        promoter.observe(promoter.registry.aliases())

    assert deployment.store().ab_share(US, 2) == 0
    assert len(promoter.events.history(US)) == n_events
    assert abs(promoter.events.history(US)[-1].occurred_at - datetime.now(UTC)) < timedelta(minutes=1)


def test_an_alias_moved_past_us_is_observed(two_models: None, promoter: Promoter, deployment: Deployment):
    MlflowClient(deployment.tracking_uri).set_registered_model_alias(MODEL, CHAMPION, "2")

    (event,) = promoter.observe(promoter.registry.aliases())

    assert (event.action, event.champion) == ("observed", 2)
    assert promoter.observe(promoter.registry.aliases()) == []
    assert promoter.events.champion_on(US, datetime.now(UTC).date()) == 2


def test_what_is_wanted_is_named_so_that_doing_it_twice_is_doing_it_once(two_models: None, promoter: Promoter):
    first, _ = promoter.promote(US, to=2, force=True, reason="a drill")
    again, _ = promoter.promote(US, to=2, force=True, reason="a drill")
    assert (again.event_id, again.champion) == (first.event_id, 2)

    back = promoter.roll_back(US, "a drill")
    with pytest.raises(PromotionError, match=r"was rolled back to version 1 .* returning to version 2 .* --to"):
        promoter.roll_back(US, "a drill")
    assert promoter.roll_back(US, "a drill", to=1) == back
    with pytest.raises(PromotionError, match="version 3 of geography-us was never champion"):
        promoter.roll_back(US, "a drill", to=3)
    forth = promoter.roll_back(US, "a drill", to=2)

    assert (forth.champion, forth.previous) == (2, 1)
    actions = [event.action for event in promoter.events.history(US)]
    assert actions == ["observed", "challenged", "promoted", "rolled_back", "rolled_back"]


def test_two_that_promote_or_roll_back_at_once_do_it_once(two_models: None, promoter: Promoter, deployment: Deployment):
    with ThreadPoolExecutor(2) as pool:
        promoted = pool.map(lambda _: promoter.promote(US, to=2, force=True, reason="a drill")[0].event_id, range(2))
    assert len(set(promoted)) == 1

    def roll_back(_: int) -> str:
        try:
            return promoter.roll_back(US, "a drill").action
        except PromotionError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        outcomes = sorted(pool.map(roll_back, range(2)))

    assert "rolled_back" in outcomes
    assert aliases(deployment) == {CHAMPION: 1, PREVIOUS: 2}
    assert [event.action for event in promoter.events.history(US)].count("rolled_back") == 1


@pytest.fixture
def half_promoted(two_models: None, promoter: Promoter) -> None:
    """A promotion that was decided, and interrupted when its first alias was moved."""

    class Interrupted(BaseException):
        pass

    class Registry:
        def __getattr__(self, name: str) -> object:
            return getattr(promoter.registry, name)

        def set_aliases(self, variant: Variant, versions: dict[str, int | None]) -> None:
            promoter.registry.set_aliases(variant, versions)
            raise Interrupted

    with pytest.raises(Interrupted):
        replace(promoter, registry=Registry()).promote(US, force=True, reason="a drill")


def test_a_decision_counts_before_its_aliases_are_moved(
    half_promoted: None, score: Callable, promoter: Promoter, deployment: Deployment
):
    assert aliases(deployment) == {CHAMPION: 1, PREVIOUS: 1, CHALLENGER: 2}

    outcome = score(WEEKS[0])

    assert (outcome.model.version, outcome.challenger_version) == (2, None)
    assert aliases(deployment) == {CHAMPION: 1, PREVIOUS: 1, CHALLENGER: 2}
    assert promoter.status(US).event.champion == 2
    assert promoter.complete(at_least_s=60) == []
    (completed,) = promoter.complete()
    assert (completed.action, completed.state) == ("promoted", "done")
    assert aliases(deployment) == {CHAMPION: 2, PREVIOUS: 1}


@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_decision_that_was_overtaken_is_not_completed(
    half_promoted: None, promoter: Promoter, deployment: Deployment, is_deleted: bool
):
    client = MlflowClient(deployment.tracking_uri)
    if is_deleted:
        client.delete_model_version(MODEL, "2")
    else:
        client.create_model_version(MODEL, client.get_model_version(MODEL, "1").source)
        client.set_registered_model_alias(MODEL, CHAMPION, "3")
    is_now = aliases(deployment)

    with pytest.raises(PromotionError, match="somebody else"):
        promoter.promote(US, force=True, reason="a drill")

    assert aliases(deployment) == is_now
    events = [(event.action, event.state, event.champion) for event in promoter.events.history(US)[2:]]
    assert events == [("promoted", "overtaken", 2), ("observed", "done", 1 if is_deleted else 3)]


def test_a_registry_that_fails_leaves_the_decision_to_whoever_comes_next(
    two_models: None, promoter: Promoter, deployment: Deployment
):
    class Registry:
        def __getattr__(self, name: str) -> object:
            return getattr(promoter.registry, name)

        def set_aliases(self, *_: object) -> None:
            raise RegistryUnavailableError("the MLflow registry did not answer")

    with pytest.raises(RegistryUnavailableError, match=r"is promoted \(champion v2\).*did not answer.*repeat"):
        replace(promoter, registry=Registry()).promote(US, force=True, reason="a drill")
    event, comparison = promoter.promote(US, force=True, reason="a drill")

    assert (event.champion, event.state, comparison) == (2, "done", None)
    assert aliases(deployment) == {CHAMPION: 2, PREVIOUS: 1}


def test_a_run_and_its_retries_are_one_decision(two_models: None, promoter: Promoter, deployment: Deployment):
    promoter.promote(US, force=True, reason="a drill")
    run = replace(promoter, decision="Dagster run 1", decided_at=datetime.now(UTC))
    first = run.roll_back(US, "a drill")
    promoter.roll_back(US, "it was right", to=2)

    assert run.roll_back(US, "a drill") == first
    late = replace(run, decision="Dagster run 2")
    with pytest.raises(PromotionError, match="after this run was launched"):
        late.roll_back(US, "a drill", to=1)
    assert aliases(deployment) == {CHAMPION: 2, PREVIOUS: 1}


def test_the_trail_cannot_be_rewritten_by_those_who_write_it(site: Site, two_models: None):
    from churn.database.connection import WRITER, create_engine

    with create_engine(site.login.set(database=site.churn), role=WRITER).connect() as connection:
        for statement in ("UPDATE model_events SET champion_version = 9", "DELETE FROM model_events"):
            with pytest.raises(Exception, match="permission denied"):
                connection.exec_driver_sql(statement)
            connection.rollback()


@pytest.fixture
def other(site: Site, log_model: Run, promoter: Promoter) -> Variant:
    """A variant whose challenger has not scored yet."""
    variant = Variant(company="clienta")
    put_model_files(site, variant.prefix)
    assert log_model("--company", "clienta").status == 0
    register_second(site, log_model, variant)
    promoter.challenge(variant, 2, "the same model again")
    return variant


def test_a_fleet_is_promoted_where_it_is_better_and_the_rest_is_told(
    two_models: None, other: Variant, score: Callable, promoter: Promoter, deployment: Deployment
):
    for week in WEEKS:
        score(week)
    promoter.evaluator.ingestion.ingest(US)

    results = promoter.promote_all([US, other, Variant("nowhere")])

    assert results[US].champion == 2
    assert results[other].n == 0
    assert "not registered" in str(results[Variant("nowhere")])


def test_evaluating_a_fleet_keeps_each_error_and_promotes_only_where_that_is_wanted(
    two_models: None, other: Variant, score: Callable, promoter: Promoter, deployment: Deployment
):
    for week in WEEKS:
        score(week)
    keys = [US.key, other.key, "no variant"]

    first = dict(evaluate_fleet(promoter, keys))

    assert list(first) == keys
    assert [one.batch.scored_week for one in first[US.key].of_champion] == WEEKS
    assert first[US.key].status.comparison.is_better
    assert "rows already encoded" in str(first[other.key].not_evaluated)
    assert isinstance(first["no variant"], UsageError)
    assert aliases(deployment) == {CHAMPION: 1, CHALLENGER: 2}

    again = dict(evaluate_fleet(promoter, keys, auto_promote=True))

    assert not again[US.key].batches
    assert aliases(deployment) == {CHAMPION: 2, PREVIOUS: 1}
    assert promoter.events.history(US)[-1].reason == "CHURN_AUTO_PROMOTE"
    assert aliases(deployment) == {CHAMPION: 2, PREVIOUS: 1}


@pytest.fixture
def promote(run_main: Run) -> Run:
    return lambda *arguments: run_main(promote_model, *arguments)


def test_the_script_shows_promotes_rolls_back_and_remembers(site: Site, two_models: None, promote: Run):
    status = promote("--geography", "US", "status")
    assert (status.status, status.err) == (0, "")
    assert "champion   v1" in status.out
    assert "challenger v2" in status.out
    assert "no account that both models scored has a matured label yet" in status.out

    promote("--geography", "US", "promote").require_one_line("version 2", "--force")
    dry = promote("--geography", "US", "promote", "--force", "--reason", "a drill", "--dry-run")
    assert "would be promoted by force" in dry.out
    assert "champion   v1" in promote("--geography", "US", "status").out
    assert promote("--geography", "US", "promote", "--force", "--reason", "a drill").status == 0
    assert "champion   v2" in promote("--geography", "US", "status").out
    client("s3").delete_object(Bucket=site.bucket, Key=f"{US.prefix}models/churn/xgb_churn_model_2.bin")
    put_model_files(site, "geography-uk/")  # not registered
    for flags in (["--under", "geography-"], ["--variant", "us"]):
        found = promote(*flags, "status")
        assert [line for line in found.out.splitlines() if line.startswith("variant ")] == ["variant    geography-us"]
    promote("--under", "company-", "status").require_one_line("'company-' finds no registered variant", status=2)
    assert promote("--geography", "US", "rollback").status == 0

    lines = promote("--geography", "US", "history").out.splitlines()
    assert [line.split()[3] for line in lines] == ["observed:", "challenged:", "promoted", "rolled"]
    day = datetime.now(UTC).date()
    assert promote("--geography", "US", "history", "--on", day.isoformat()).out.strip().endswith("UTC: v1")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--geography", "US", "share"], ["--share"]),
        (["--geography", "US", "share", "--share", "120"], ["0 %", "100 %"]),
        (["--geography", "US", "promote", "--force"], ["--reason"]),
    ],
)
def test_wrong_usage_is_told(two_models: None, promote: Run, arguments: list[str], parts: list[str]):
    promote(*arguments).require_one_line(*parts, status=2)


@pytest.mark.parametrize("action", ["status", "promote", "rollback", "history"])
def test_a_variant_that_is_not_registered_is_told(site: Site, promote: Run, action: str):
    promote("--geography", "nowhere", action).require_one_line("geography-nowhere")


def test_without_a_previous_champion_there_is_nothing_to_return_to(two_models: None, promote: Run):
    promote("--geography", "US", "rollback").require_one_line("geography-us has no previous champion")


def test_a_challenger_that_cannot_gain_enough_is_withdrawn_and_scores_no_longer(
    site: Site, two_models: None, score: Callable, promoter: Promoter, deployment: Deployment
):
    promoter.promote(US, force=True, reason="a drill")
    promoter.challenge(US, 1, "the misled one again")
    promoter.share(US, 3000, "a trial")
    for week in WEEKS:
        score(week)

    evaluated = dict(evaluate_fleet(promoter, [US.key]))

    assert evaluated[US.key].status.comparison.is_hopeless
    assert aliases(deployment) == {CHAMPION: 2, PREVIOUS: 1}
    event = promoter.events.history(US)[-1]
    assert (event.action, event.champion, event.challenger, event.from_challenger) == ("withdrawn", 2, None, 1)
    assert "matured accounts, log-loss worse by 0." in event.reason
    assert event.evidence["n"] == evaluated[US.key].status.comparison.n
    score(WEEKS[1])
    assert set(by_role(site, WEEKS[1])) == {CHAMPION}


def test_a_challenger_is_withdrawn_when_its_time_is_over(other: Variant, promoter: Promoter):
    named = promoter.events.latest(other).occurred_at
    last, over = (replace(promoter, clock=lambda day=named + timedelta(days=days): day) for days in (29 * 30, 950))

    assert last.withdraw_ended(other, last.status(other)) is None
    event = over.withdraw_ended(other, over.status(other))

    assert (event.action, event.challenger) == ("withdrawn", None)
    assert "not proven better in 31 months, 30 at most" in event.reason


def test_a_challenger_is_withdrawn_once_and_by_version(other: Variant, promoter: Promoter, promote: Run):
    stale = promoter.status(other)
    with pytest.raises(PromotionError, match="is 2 now, not 7"):
        promoter.withdraw(other, "a test", compared=replace(stale, event=replace(stale.event, challenger=7)))

    assert promote("--company", "clienta", "withdraw", "--reason", "a worse idea").status == 0
    promote("--company", "clienta", "withdraw").require_one_line("has no challenger to withdraw")

    assert promoter.events.history(other)[-1].reason == "a worse idea"
    assert stale.event.challenger == 2


def test_a_fleet_asks_for_more_evidence_than_one_variant(
    two_models: None, other: Variant, score: Callable, promoter: Promoter
):
    for week in WEEKS:
        score(week)
    promoter.evaluator.ingestion.ingest(US)
    found = promoter.status(US).comparison.e_value
    strict = replace(promoter.evaluator, limits=replace(promoter.evaluator.limits, alpha=1.1 / found))
    promoter = replace(promoter, evaluator=strict)

    of_two = promoter.promote_all([US, other], dry_run=True)[US]
    alone = promoter.promote_all([US], dry_run=True)[US]

    assert (of_two.is_better, of_two.alpha) == (False, strict.limits.alpha / 2)
    assert of_two.sentence.endswith("no decision yet")
    assert alone.champion == 2
