"""Numbers and lists in sentences for people. Pure."""

from collections.abc import Sequence


def counted(n: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun.

    >>> counted(1, "variant"), counted(2_000, "variant"), counted(0, "batch", "batches")
    ('1 variant', '2,000 variants', '0 batches')
    """
    return f"{n:,} {noun if n == 1 else plural or f'{noun}s'}"


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return the first names of a list, and how many more there are.

    >>> listed(["a", "b", "c"], 2), listed(["a", "b"], 2)
    ('a, b and 1 more', 'a, b')
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def percent(share: float, digits: int = 0) -> str:
    """Return a share in percent.

    >>> percent(0.05), percent(0.1234, 1)
    ('5 %', '12.3 %')
    """
    return f"{100 * share:.{digits}f} %"
