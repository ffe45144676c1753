"""Markdown tables. Pure."""

from collections.abc import Iterable, Sequence

_RULES = {"-": "---", "l": ":---", "r": "---:"}


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
