"""Numbers, lists and tables in texts for people, and text from outside as each target shows it as text. Pure."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date, datetime
from difflib import get_close_matches
from typing import Any

_RULES = {"-": "---", "l": ":---", "r": "---:"}
_MARKUP = re.compile(r"[\\`*\[\]<>|~&]|(?<![^\W_])_|_(?![^\W_])")


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


def listed_with_nearest(names: Sequence[str], known: Sequence[str]) -> str:
    """Return :func:`listed` names, each with the known one that it is close to, if there is one."""
    near = (get_close_matches(name[:64], known, 1) for name in names)
    first = [f"{name} ({found[0]}?)" if found else name for name, found in zip(names[:8], near, strict=False)]
    return listed([*first, *names[8:]])


def percent(share: float, digits: int = 0) -> str:
    """Return a share in percent.

    >>> percent(0.05), percent(0.1234, 1)
    ('5 %', '12.3 %')
    """
    return f"{100 * share:.{digits}f} %"


def printable(text: str) -> str:
    r"""Return a text as one line without characters that steer a terminal or turn the direction of writing.

    >>> printable("a\x1b[2J\nb\u202e")
    'a\\x1b[2J b\\u202e'
    """
    if text.isprintable():
        return text
    line = " ".join(text.splitlines())
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)


def plain(value: Any, digits: int = 17) -> Any:
    """Return a value that JSON can represent: dates and times as ISO 8601, numbers to some digits, fields by name.

    >>> plain({"day": date(2026, 11, 30), "auc": math.nan, "versions": (1, None)})
    {'day': '2026-11-30', 'auc': None, 'versions': [1, None]}
    """
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if isinstance(value, datetime | date):
        return value.isoformat()
    if is_dataclass(value) and not hasattr(value, "key"):  # a variant is its key
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(one, digits) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one, digits) for one in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def as_markdown(value: object) -> str:
    r"""Return Markdown that shows a text as it is: no picture and no HTML comes of it, and no link but a bare address.

    >>> as_markdown("![](/x) total_ngr_sum_3m <b>")
    '!\\[\\](/x) total_ngr_sum_3m \\<b\\>'
    """
    return _MARKUP.sub(r"\\\g<0>", printable(" ".join(str(value).split())))


def markdown_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], align: str = "", *, is_markup: bool = False
) -> str:
    r"""Return a Markdown table without a newline at its end; ``None`` is an empty cell.

    ``align`` is ``-`` (default), ``l`` or ``r`` for each column. Cells that are Markdown themselves (``is_markup``)
    have only ``|`` escaped.

    >>> print(markdown_table(("name", "rows"), [("a|b", 2)], "-r"))
    | name | rows |
    | --- | ---: |
    | a\|b | 2 |
    """
    rule = " | ".join(_RULES[one] for one in align.ljust(len(columns), "-"))
    shown = _markup_in_cell if is_markup else as_markdown
    lines = (" | ".join("" if cell is None else shown(cell) for cell in cells) for cells in (columns, *rows))
    head, *body = (f"| {line} |" for line in lines)
    return "\n".join([head, f"| {rule} |", *body])


def _markup_in_cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
