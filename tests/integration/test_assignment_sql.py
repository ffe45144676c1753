"""At stake: an account must be on the same side of an A/B comparison every week and wherever it is asked, or the two
models are compared on accounts that both have scored.
"""

import uuid
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import sqlalchemy as sa

from tests.support.assignment import is_assigned
from tests.support.site import disconnect, run_sql

SALTS = ["us:2026-11", "", "Größe-東京-🎲", 'it\'s 100% a\\b "c" $$', "e\u0301 is not \u00e9", "salt\n"]
EDGES = [0, 1, -1, 9, 10, 2**31 - 1, 2**31, -(2**31), 2**53 + 1, 2**63 - 1, -(2**63)]

CHOSEN_OF_SIXTY = [13, 19, 20, 36, 39, 44, 47, 55]
"""By ``md5sum`` of ``us:2026-11:<account>``, its first eight digits modulo 10,000 below 1,000."""

_ASK = "SELECT churn_is_assigned(id, :salt, :share) FROM unnest(CAST(:ids AS bigint[])) WITH ORDINALITY AS u(id, place)"


@pytest.fixture(scope="module")
def database(postgres: sa.URL, schemas: Mapping[str, str]) -> Iterator[sa.URL]:
    """A database of predictions as set-up makes it."""
    name = f"assignment_{uuid.uuid4().hex[:8]}"
    run_sql(postgres, f"CREATE DATABASE {name} TEMPLATE {schemas['churn']}")
    yield postgres.set(database=name)
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
def test_the_accounts_assigned_are_those_of_the_oracle(database, salt, share):
    ids = account_ids()
    assert ask(database, ids, salt, share) == is_assigned(ids, salt, share).tolist()


def chosen(url: sa.URL, n: int, salt: str, share: int) -> np.ndarray:
    """Whether each of the accounts 0 to n is the challenger's."""
    return np.array(ask(url, np.arange(n), salt, share))


def test_who_is_assigned_never_changes(database):
    assert np.flatnonzero(chosen(database, 60, "us:2026-11", 1_000)).tolist() == CHOSEN_OF_SIXTY


@pytest.mark.parametrize("share_bp", [100, 1_000, 5_000])
def test_the_share_assigned_is_the_share_asked_for(database, share_bp):
    share, n = share_bp / 10_000, 40_000
    error = np.sqrt(share * (1 - share) / n)
    assert chosen(database, n, "salt", share_bp).mean() == pytest.approx(share, abs=4 * error)


def test_none_and_all_are_shares_too(database):
    assert not chosen(database, 1_000, "salt", 0).any()
    assert chosen(database, 1_000, "salt", 10_000).all()


def test_a_larger_share_keeps_those_a_smaller_one_assigned(database):
    few, many = (chosen(database, 5_000, "salt", share_bp) for share_bp in (500, 2_000))
    assert (few <= many).all()
    assert few.sum() < many.sum()


def test_another_salt_assigns_independently(database):
    first, second = (chosen(database, 40_000, salt, 5_000) for salt in ("one", "two"))
    assert (first & second).mean() == pytest.approx(0.25, abs=0.01)


def test_postgresql_writes_the_function_into_the_query_that_calls_it(database):
    plan = run_sql(
        database,
        "EXPLAIN (VERBOSE) SELECT * FROM unnest(ARRAY[1, 2]::bigint[]) AS u(id) WHERE churn_is_assigned(id, 'x', 500)",
    )
    text = "\n".join(line for (line,) in plan)
    assert "md5" in text
    assert "churn_is_assigned" not in text, "a call for each row costs several times the hash"


def test_the_function_is_immutable_and_may_run_in_parallel(database):
    assert run_sql(database, "SELECT provolatile, proparallel FROM pg_proc WHERE proname = 'churn_is_assigned'") == [
        ("i", "s")
    ]
