"""Which accounts are scored by the challenger in an A/B comparison: the same ones in Python and in PostgreSQL. Pure.

An account's bucket is a hash of it and of the comparison's salt, so nothing need be stored, an account stays on its
side from week to week, and another salt deals the accounts anew. Both sides are written here; a test holds them
together, bit for bit.
"""

from hashlib import md5

import numpy as np
import numpy.typing as npt

from churn.errors import UsageError

N_BUCKETS = 10_000

# The cast to bigint: eight hexadecimal digits pass the largest integer. "account_id::text", because "text || bigint"
# counts as STABLE and would keep PostgreSQL from writing the function's body into the query that calls it.
SQL_ASSIGNED = "('x' || substr(md5(salt || ':' || account_id::text), 1, 8))::bit(32)::bigint % 10000 < share"
"""Expression over ``account_id bigint``, ``salt text`` and ``share integer``, the last in hundredths of a percent."""

SQL_FUNCTION = f"""
CREATE OR REPLACE FUNCTION churn_is_assigned(account_id bigint, salt text, share integer) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT {SQL_ASSIGNED} $$
"""


def is_assigned(account_ids: npt.NDArray[np.int64], salt: str, share_bp: int) -> npt.NDArray[np.bool_]:
    """Tell which accounts are the challenger's.

    Costs about a microsecond an account, all of it in the hash.

    Args:
        account_ids: Shape (n,), any int64.
        salt: Names the comparison; fixed while it runs.
        share_bp: The challenger's share in hundredths of a percent, 0 to 10,000. A larger share keeps all accounts that
            a smaller one assigned.

    Returns:
        Shape (n,).

    Raises:
        UsageError: If the share is out of range, or the salt is text that PostgreSQL cannot hold.
    """
    if not 0 <= share_bp <= N_BUCKETS:
        raise UsageError(f"a share of {share_bp} basis points was asked for; it must be 0 to {N_BUCKETS:,}")
    return _buckets(account_ids, salt) < share_bp


def _buckets(account_ids: npt.NDArray[np.int64], salt: str) -> npt.NDArray[np.int64]:
    try:
        salted = md5(f"{salt}:".encode(), usedforsecurity=False)
    except UnicodeEncodeError:
        salted = None
    if salted is None or "\0" in salt:
        raise UsageError(f"salt {salt!r} holds a character that PostgreSQL's text cannot; use letters and digits")
    digests = bytearray()
    for account_id in account_ids.tolist():
        hashed = salted.copy()
        hashed.update(b"%d" % account_id)
        digests += hashed.digest()[:4]
    return np.frombuffer(digests, dtype=">u4").astype(np.int64) % N_BUCKETS
