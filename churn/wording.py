"""Numbers, lists and tables in texts for people. Pure."""

from collections.abc import Iterable, Sequence

_RULES = {"-": "---", "l": ":---", "r": "---:"}


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


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]], align: str = "") -> str:
    r"""Return a Markdown table without a newline at its end.

    Line breaks in cells become spaces and ``|`` is escaped; ``None`` is an empty cell.

    Args:
        align: ``-`` (default), ``l`` or ``r`` for each column; columns beyond its end have the default.

    >>> print(markdown_table(("name", "rows"), [("a|b", 2)], "-r"))
    | name | rows |
    | --- | ---: |
    | a\|b | 2 |
    """
    rule = [_RULES[one] for one in align.ljust(len(columns), "-")]
    return "\n".join(f"| {' | '.join(map(_cell, cells))} |" for cells in (columns, rule, *rows))


def _cell(value: object) -> str:
    return "" if value is None else " ".join(str(value).split()).replace("|", "\\|")
