"""The oracle of ``churn_is_assigned``: who is the challenger's in an A/B comparison, worked out in Python."""

from hashlib import md5

import numpy as np


def is_assigned(account_ids: np.ndarray, salt: str, share_bp: int) -> np.ndarray:
    """Return which accounts are the challenger's.

    Args:
        account_ids: Shape (n,).
        salt: Names the comparison.
        share_bp: The challenger's share in hundredths of a percent.
    """
    digests = (md5(f"{salt}:{one}".encode(), usedforsecurity=False).hexdigest() for one in account_ids.tolist())
    return np.array([int(digest[:8], 16) % 10_000 < share_bp for digest in digests], dtype=np.bool_)
