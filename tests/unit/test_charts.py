"""At stake: a picture is believed at a glance, so its bars must be as long as the shares they stand for, and a name of
any kind must not break it.
"""

import re
from xml.etree import ElementTree as ET

from churn.evaluation.charts import Distribution, draw_distributions


def lengths(svg: str) -> list[list[float]]:
    """The lengths of the bars of each path: of each feature the reference's, then the batch's."""
    paths = [element.get("d") or "" for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}path")]  # noqa: S314
    return [[float(length) for length in re.findall(r"h([\d.]+)v", path)] for path in paths]


def labels(svg: str) -> list[str]:
    return [str(element.text) for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}tspan")]  # noqa: S314


def test_bars_are_as_long_as_the_shares_whatever_the_number_of_rows():
    svg = draw_distributions([Distribution("deposit", ("0", "over 0"), [500, 1500], [30, 10])], "a title")

    before, now = lengths(svg)

    assert before[1] == now[0] == 300
    assert before[0] == now[1] == 100
    assert labels(svg) == ["0", "over 0"]


def test_of_many_bins_those_that_differ_most_are_drawn_and_the_others_as_one():
    names = [f"level {i}" for i in range(30)]
    batch = [10] * 29 + [310]
    svg = draw_distributions([Distribution("brand", names, [20] * 30, batch)], "a title")

    assert len(labels(svg)) == 13
    assert labels(svg)[-2:] == ["level 29", "all others"]


def test_names_of_any_kind_and_batches_without_rows_can_be_drawn():
    svg = draw_distributions([Distribution('a<b & "c"', ("<>",), [0], [0]), Distribution("", (), [], [])], "<&>")

    assert labels(svg) == ["<>"]
    assert lengths(svg) == [[0.0], [0.0], [], []]
