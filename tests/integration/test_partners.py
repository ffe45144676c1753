"""At stake: two partners read the same database. Neither may see a player of the other, nor learn from a count, an
estimate or an error whom the other has.
"""

import json
import re
from collections.abc import Iterator, Mapping
from string import Template

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from churn.database.connection import create_engine
from churn.database.predictions import BatchInProgress, PredictionStore
from churn.database.readers import add_reader
from churn.deployment.services import Deployment
from churn.errors import UsageError
from churn.variants import Variant
from tests.support.batches import NO_ROWS, WEEK, record, scored
from tests.support.site import PASSWORD, Run, Site, run_sql

ACME, RIVAL = Variant(company="acme"), Variant(company="rival")
VIEWS = ("own_predictions_by_role", "own_predictions_current", "own_predictions_latest")
N_OWN, N_OTHERS = 20, 3000
OTHERS = 500_000
"""The rival's first account; the partner's begin at 1."""


@pytest.fixture
def partner(site: Site, deployment: Deployment) -> Iterator[sa.URL]:
    """The URL of a partner's login; its variant and another have two published weeks."""
    store, name = PredictionStore(deployment.database), f"acme_{site.churn[-8:]}"
    for variant, n_rows, first in ((ACME, N_OWN, 1), (RIVAL, N_OTHERS, OTHERS)):
        for week in (WEEK, WEEK.replace(day=9)):
            made = record(n_rows, variant=variant, scored_week=week, source_variant=variant)
            rows = [scored(n_rows, first_account=first)]
            store.publish(variant, week, BatchInProgress(rows, lambda made=made: (made, NO_ROWS)))
    assert add_reader(deployment.database, name, [ACME]) == [ACME.key]
    literal = PASSWORD.replace("'", "''").replace(":", "\\:")
    run_sql(site.server, f"ALTER ROLE {name} PASSWORD '{literal}'")
    for statement in ("ANALYZE", "VACUUM"):
        run_sql(site.server.set(database=site.churn), statement)
    yield site.server.set(database=site.churn, username=name, password=PASSWORD)
    drop(site, name)
    assert add_reader(deployment.database, name, [RIVAL]) == [RIVAL.key], "bound as its namesake"
    drop(site, name)


def drop(site: Site, reader: str) -> None:
    run_sql(site.server.set(database=site.churn), f"DROP OWNED BY {reader}")
    run_sql(site.server, f"DROP ROLE {reader}")


def answer(url: sa.URL, statement: str) -> list[tuple[object, ...]] | str:
    """Return the rows of a statement, or the SQLSTATE that it failed with; what a login can lift is lifted."""
    with create_engine(url).connect() as connection:
        try:
            result = connection.exec_driver_sql(f"SET TRANSACTION READ WRITE; {statement}")
            return [tuple(row) for row in result] if result.returns_rows else []
        except DBAPIError as error:
            return str(getattr(error.orig, "pgcode", None))


def test_a_partner_sees_its_own_variants_as_analysts_do_and_nothing_else(site: Site, partner: sa.URL) -> None:
    for view in VIEWS:
        everybody = site.rows(
            site.churn,
            f"SELECT * FROM {view.replace('own', 'churn')} WHERE variant = 'company-acme'",  # noqa: S608
        )
        assert sorted(map(str, answer(partner, f"SELECT * FROM {view}"))) == sorted(map(str, everybody))  # noqa: S608
        assert len(everybody) == (N_OWN if view.endswith("latest") else 2 * N_OWN)
        columns = "SELECT column_name FROM information_schema.columns WHERE table_name = :v ORDER BY ordinal_position"
        assert site.rows(site.churn, columns, v=view) == site.rows(site.churn, columns, v=view.replace("own", "churn"))
    query = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v')"
    relations = {name for (name,) in site.rows(site.churn, query)}
    readable = {name for name in relations if answer(partner, f'SELECT * FROM "{name}" LIMIT 0') != "42501"}  # noqa: S608
    assert readable == {*VIEWS, "own_campaign_targets"}
    writable = {name for name in relations if answer(partner, f'DELETE FROM "{name}"') not in ("42501", "55000")}  # noqa: S608
    assert writable == set()
    assert answer(site.server.set(database=site.churn), f"SELECT * FROM {VIEWS[0]}") == []  # nobody is bound to nothing  # noqa: S608


PROBES: Mapping[str, str] = {
    "a function that tells what it is called with": (
        "CREATE FUNCTION pg_temp.tell(a bigint, v text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS "
        "'BEGIN IF a >= 500000 OR v <> ''company-acme'' THEN RAISE ''leaked %% %%'', a, v; END IF; RETURN true; END'; "
        "SELECT count(*) FROM $view WHERE pg_temp.tell(account_id, variant)"
    ),
    "an operator of one's own": (
        "CREATE FUNCTION pg_temp.tell(a bigint, b bigint) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS "
        "'BEGIN IF a >= 500000 THEN RAISE ''leaked %%'', a; END IF; RETURN true; END'; "
        "CREATE OPERATOR pg_temp.=== (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = pg_temp.tell, RESTRICT = eqsel); "
        "SELECT count(*) FROM $view WHERE account_id OPERATOR(pg_temp.===) 1"
    ),
    "a division by zero": "SELECT count(*) FROM $view WHERE 1 / (account_id - 500007) <> 5",
    "a cast that raises": (
        "SELECT count(*) FROM $view WHERE CASE variant WHEN 'company-rival' THEN variant ELSE '1' END::int = 1"
    ),
    "an overflow": "SELECT count(*) FROM $view WHERE account_id * 184467440737096 <> 5",
    "a cast in the select list": (
        "SELECT count(CASE WHEN account_id > 499999 THEN variant ELSE '1' END::int) FROM $view"
    ),
    "a join": (
        "SELECT count(*) FROM $view AS v JOIN (VALUES (500007::bigint)) AS l (a) ON 1 / (v.account_id - l.a) <> 5"
    ),
}
"""Statements that would fail, or tell, if a condition were evaluated on another partner's row."""


@pytest.mark.parametrize("view", VIEWS)
def test_neither_conditions_nor_errors_tell_of_others(partner: sa.URL, view: str) -> None:
    n = N_OWN if view.endswith("latest") else 2 * N_OWN

    told = {what: answer(partner, Template(probe).substitute(view=view)) for what, probe in PROBES.items()}

    assert {what: found for what, found in told.items() if found != [(n,)]} == {}


CONDITIONS = (
    "account_id = {account}", "account_id < {account}", "account_id BETWEEN {account} AND {account} + 9",
    "variant = '{variant}'", "company = '{variant}'", "churn_probability > 0.2 AND account_id <> {account}",
    "batch_id = {batch}", "registered_model = 'churn-prediction-model-{variant}'",
    "scored_week = '2026-11-16' AND account_id = {account}",
)  # fmt: skip


def test_plans_neither_estimate_nor_count_others(partner: sa.URL) -> None:
    """A plan is the same whether the one asked for is another partner's or nobody's, numbers of rows included."""
    others = {"account": OTHERS + 7, "variant": "company-rival", "batch": 3}
    nobodys = {"account": 900_000_000, "variant": "company-nobody", "batch": 999}
    for condition in CONDITIONS:
        for view in VIEWS:
            plans = [plan(partner, f"SELECT * FROM {view} WHERE {condition.format(**of)}") for of in (others, nobodys)]  # noqa: S608
            assert plans[0] == plans[1], (view, condition)


def plan(url: sa.URL, query: str) -> str:
    """What EXPLAIN ANALYZE shows, but for the time it took and the constants asked for."""
    explain = "EXPLAIN (ANALYZE, BUFFERS off, TIMING off, SUMMARY off, FORMAT json)"
    found = answer(url, f"{explain} {query}")
    assert isinstance(found, list), found
    constants = r"500007|900000000|500016|900000009|rival|nobody|\b(3|999)\b(?=\)|')"
    return re.sub(constants, "…", json.dumps(found[0][0], indent=1))


def test_statistics_tell_nothing(partner: sa.URL) -> None:
    for statistics in ("pg_stats", "pg_stats_ext", "pg_stats_ext_exprs"):
        assert answer(partner, f"SELECT * FROM {statistics} WHERE schemaname = 'public'") == []  # noqa: S608
    for hidden in ("pg_statistic", "pg_statistic_ext_data", "pg_authid", "reader_variants", "scoring_batches"):
        assert answer(partner, f"SELECT * FROM {hidden}") == "42501"  # noqa: S608
    assert answer(partner, "SELECT champion_on('company-rival', current_date)") == "42501"
    assert answer(partner, "SELECT make_own_views()") == "42501"
    assert answer(partner, "INSERT INTO reader_variants VALUES (session_user, 'company-rival')") == "42501"
    assert answer(partner, "SET ROLE churn_reader") == "42501"


def test_a_reader_is_added_and_extended_by_command_without_a_password(
    site: Site, run_main: Run, log_model: Run, partner: sa.URL
) -> None:
    from churn.cli.main import main
    from tests.support.site import put_model_files

    put_model_files(site, RIVAL.prefix)
    assert log_model("--company", RIVAL.company).status == 0
    name = str(partner.username)

    said = run_main(main, "reader", "add", name, "--variant", "rival")

    assert said.status == 0, said
    assert f"{name} may read 2 variants: company-acme, company-rival\n" in said.out
    assert f"\\password {name}" in said.out
    assert answer(partner, "SELECT DISTINCT variant FROM own_predictions_latest ORDER BY 1") == [
        ("company-acme",), ("company-rival",),
    ]  # fmt: skip
    wrong = run_main(main, "reader", "add", name, "--variant", "company-acne")
    wrong.require_one_line("company-acne", status=2)


@pytest.mark.parametrize("name", ["Acme", "pg_acme", "churn_acme", "", "a" * 64, 'x"; DROP ROLE y; --'])
def test_a_name_that_cannot_be_a_readers_is_refused(deployment: Deployment, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a reader"):
        add_reader(deployment.database, name, [ACME])


def test_a_login_that_may_do_more_is_not_bound(site: Site, deployment: Deployment, partner: sa.URL) -> None:
    run_sql(site.server, f"GRANT churn_reader TO {partner.username}")

    with pytest.raises(UsageError, match="member of another role"):
        add_reader(deployment.database, str(partner.username), [RIVAL])
