"""Text that a stranger writes (names of columns, levels, files) is shown as text in every target."""

import logging
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from markdown_it import MarkdownIt
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from churn.cli.explain import _print, build_console
from churn.deployment.command_line import _OneLine
from churn.errors import InputError
from churn.evaluation.curves import draw_contributions
from churn.report.prometheus import _drift
from churn.wording import markdown_table, printable

HOSTILE = [
    "![](/graphql?query=mutation{wipeAssets})", "![x](https://evil.example/p.png)", "[sign in](https://evil.example)",
    "<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "<!-- gone", "&lt;b&gt;", "&#x3c;b&#x3e;",
    "https://evil.example/?a=b", "http://evil.example", "www.evil.example", "WWW.evil.example", "me@evil.example",
    "<https://evil.example>", "a | b | c", "|---|", "`code`", "```", "**bold**", "_em_", "__strong__", "~~gone~~",
    "\\", "\\|", "a\\", "[1]: https://evil.example", "[^1]", "# heading", "- item", "1. item", "> quote", "---", "$x$",
    "\x1b[2J\x1b[31mred", "\x1b]8;;https://evil.example\x07link\x1b]8;;\x07", "a\x00b", "\r\nERROR forged",
    "a\x08\x08b", "\u202egpj.exe", "\u2028split", "[/x]", "[red]x[/red]",
    "[link=https://evil.example]x[/link]", ":smile:", "%s %d",
    "{0}", "'; DROP TABLE x; --", "=cmd|' /C calc'!A0", '"} 1\nforged 1', "x" * 300,
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_it_as_text(text: str) -> None:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    shown = " ".join(printable(" ".join(text.split())).split())
    cell, _ = (token for token in parser.parse(markdown_table((text, "n"), [])) if token.type == "inline")
    assert {child.type for child in cell.children or ()} <= {"text", "text_special"}
    assert "".join(child.content for child in cell.children or ()) == shown


@pytest.mark.parametrize("text", HOSTILE)
def test_a_terminal_shows_it_as_text(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = [{"feature": text, "contribution": 0.5, "value": text}]
    prediction = SimpleNamespace(
        account="7", variant="base", scored_week="2026-11-16", churn_probability=0.5, registered_model="m",
        model_version=1, batch_id=3, last_active_month=None, is_at_risk=True, reasons=reasons, bias=0.1,
        is_fallback=False, is_foreign_data=False, is_sample=False,
    )  # fmt: skip
    monkeypatch.setenv("COLUMNS", "2000")
    _print(prediction, build_console())  # type: ignore[arg-type]  # a row's fields
    printed = capsys.readouterr().out
    assert all(line.isprintable() for line in printed.splitlines())
    assert printed.count(printable(text).strip()) >= 2


def test_a_picture_shows_it_as_text() -> None:
    for some in (HOSTILE[i : i + 15] for i in range(0, len(HOSTILE), 15)):
        values = {f"{text}{i}": np.arange(20.0) for i, text in enumerate(some)}
        drawn = draw_contributions(np.ones((20, len(values))), values, some[0])
        assert ET.fromstring(drawn) is not None  # noqa: S314 our own


@pytest.mark.parametrize("text", HOSTILE)
def test_a_log_line_and_an_error_are_one_line_of_it(text: str) -> None:
    line = _OneLine("%(message)s").format(logging.makeLogRecord({"msg": "column %s", "args": (text,)}))
    assert line.isprintable()
    assert line == f"column {printable(text)}" or text.startswith("\r")  # a line break becomes a space
    assert str(InputError(text)).isprintable()


class Flags(Collector):
    def __init__(self, flags: list[SimpleNamespace]) -> None:
        self._flags = flags

    def collect(self) -> Iterator[Metric]:
        return _drift(self._flags)  # type: ignore[arg-type]  # a row's fields


@pytest.mark.parametrize("text", HOSTILE)
def test_a_label_of_prometheus_holds_it_and_forges_no_sample(text: str) -> None:
    flags = [SimpleNamespace(variant="base", feature=text, psi=0.5, is_confirmed=True)]
    registry = CollectorRegistry()
    registry.register(Flags(flags))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    samples = [sample for family in families for sample in family.samples if sample.name == "churn_psi"]
    assert [(sample.labels["feature"], sample.value) for sample in samples] == [(text, 0.5)]
