"""At stake: an account must be on the same side of an A/B comparison every week and wherever it is asked, or the two
models are compared on accounts that both have scored. What PostgreSQL says is held against this in
``tests/integration/test_assignment_sql.py``.
"""

from hashlib import md5

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from churn.errors import UsageError
from churn.evaluation.assignment import is_assigned

CHOSEN_OF_SIXTY = [13, 19, 20, 36, 39, 44, 47, 55]
"""By ``md5sum`` of ``us:2026-11:<account>``, its first eight digits modulo 10,000 below 1,000."""

any_id = st.integers(-(2**63), 2**63 - 1)
salts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@given(account_ids=st.lists(any_id, max_size=20), salt=salts, share_bp=st.integers(0, 10_000))
def test_the_bucket_is_the_first_eight_digits_of_the_salted_hash(account_ids, salt, share_bp):
    digests = [md5(f"{salt}:{one}".encode(), usedforsecurity=False).hexdigest() for one in account_ids]
    buckets = [int(digest[:8], 16) % 10_000 for digest in digests]
    assigned = is_assigned(np.array(account_ids, dtype=np.int64), salt, share_bp)
    assert assigned.dtype == np.bool_
    assert assigned.tolist() == [bucket < share_bp for bucket in buckets]


def test_who_is_assigned_never_changes():
    assert np.flatnonzero(is_assigned(np.arange(60), "us:2026-11", 1_000)).tolist() == CHOSEN_OF_SIXTY


@pytest.mark.parametrize("share_bp", [100, 1_000, 5_000])
def test_the_share_assigned_is_the_share_asked_for(share_bp):
    share, n = share_bp / 10_000, 40_000
    error = np.sqrt(share * (1 - share) / n)
    assert is_assigned(np.arange(n), "salt", share_bp).mean() == pytest.approx(share, abs=4 * error)


def test_none_and_all_are_shares_too():
    account_ids = np.arange(1_000)
    assert not is_assigned(account_ids, "salt", 0).any()
    assert is_assigned(account_ids, "salt", 10_000).all()


def test_a_larger_share_keeps_those_a_smaller_one_assigned():
    account_ids = np.arange(5_000)
    few, many = (is_assigned(account_ids, "salt", share_bp) for share_bp in (500, 2_000))
    assert (few <= many).all()
    assert few.sum() < many.sum()


def test_another_salt_deals_the_accounts_anew():
    account_ids = np.arange(40_000)
    first, second = (is_assigned(account_ids, salt, 5_000) for salt in ("one", "two"))
    assert (first & second).mean() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("share_bp", [-1, 10_001])
def test_a_share_out_of_range_is_refused(share_bp):
    with pytest.raises(UsageError, match=f"a share of {share_bp} basis points"):
        is_assigned(np.arange(3), "salt", share_bp)


@pytest.mark.parametrize("salt", ["a\0b", "\ud800"], ids=["NUL", "half a character"])
def test_a_salt_that_postgresql_cannot_hold_is_refused(salt):
    with pytest.raises(UsageError, match="use letters and digits"):
        is_assigned(np.arange(3), salt, 100)
