"""At stake: the pipeline chooses in Python who is the challenger's, and views choose in SQL whose score is shown.

One account on which they disagree would show a score of the wrong model, so every one asked here must agree.
"""

import uuid
from collections.abc import Iterator

import numpy as np
import pytest
import sqlalchemy as sa

from churn.evaluation.assignment import SQL_FUNCTION, is_assigned

from .conftest import Site, disconnect, run_sql

SALTS = ["us:2026-11", "", "Größe-東京-🎲", 'it\'s 100% a\\b "c" $$', "e\u0301 is not \u00e9", "salt\n"]
EDGES = [0, 1, -1, 9, 10, 2**31 - 1, 2**31, -(2**31), 2**53 + 1, 2**63 - 1, -(2**63)]

_ASK = "SELECT churn_is_assigned(id, :salt, :share) FROM unnest(CAST(:ids AS bigint[])) WITH ORDINALITY AS u(id, place)"


@pytest.fixture(scope="module")
def database(postgres: sa.URL) -> Iterator[sa.URL]:
    """A database that holds nothing but the function."""
    name = f"assignment_{uuid.uuid4().hex[:8]}"
    run_sql(postgres, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
    url = postgres.set(database=name)
    run_sql(url, SQL_FUNCTION)
    yield url
    disconnect(postgres, name)
    run_sql(postgres, f"DROP DATABASE {name}")


def account_ids() -> np.ndarray:
    rng = np.random.default_rng(8)
    drawn = [rng.integers(-(2**63), 2**63 - 1, 1_000), rng.integers(10**7, 10**8, 1_000), np.arange(-200, 200)]
    return np.concatenate([np.array(EDGES, dtype=np.int64), *drawn])


def ask(url: sa.URL, ids: np.ndarray, salt: str, share: int) -> list[bool]:
    return [row[0] for row in run_sql(url, f"{_ASK} ORDER BY place", salt=salt, share=share, ids=ids.tolist())]


@pytest.mark.parametrize("salt", SALTS)
@pytest.mark.parametrize("share", [0, 1, 777, 5_000, 9_999, 10_000])
def test_postgresql_assigns_the_very_accounts_that_python_assigns(database, salt, share):
    ids = account_ids()
    assert ask(database, ids, salt, share) == is_assigned(ids, salt, share).tolist()


def test_the_function_that_set_up_installs_assigns_the_same_accounts(site: Site):
    ids, url = account_ids(), site.server.set(database=site.churn)
    for salt in SALTS:
        assert ask(url, ids, salt, 3_000) == is_assigned(ids, salt, 3_000).tolist()


def test_postgresql_writes_the_function_into_the_query_that_calls_it(database):
    plan = run_sql(
        database,
        "EXPLAIN (VERBOSE) SELECT * FROM unnest(ARRAY[1, 2]::bigint[]) AS u(id) WHERE churn_is_assigned(id, 'x', 500)",
    )
    text = "\n".join(line for (line,) in plan)
    assert "md5" in text
    assert "churn_is_assigned" not in text, "a call for each row costs several times the hash"


def test_the_function_can_be_installed_twice(database):
    run_sql(database, SQL_FUNCTION)
    assert run_sql(database, "SELECT provolatile, proparallel FROM pg_proc WHERE proname = 'churn_is_assigned'") == [
        ("i", "s")
    ]
