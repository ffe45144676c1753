"""At stake: text that a stranger writes (names of columns, levels and files, tags, reasons, errors) is shown as text in
every target, and steers neither a terminal nor a browser, a spreadsheet, a chat or a log.

``FIELDS`` is the table: a field that a stranger fills, the target that shows it, and the product's own code between.
"""

import csv
import html
import io
import json
import logging
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import psycopg2
import pytest
import requests
from markdown_it import MarkdownIt
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry
from rich.console import Console

from churn.cli.campaign import _described
from churn.cli.demo import _predictions_table, _sources_table
from churn.cli.explain import _print
from churn.database.connection import errors_translated, parse_database_url
from churn.database.evaluations import EvaluatedBatch, PublishedBatch
from churn.database.events import ModelEvent
from churn.database.incidents import Alert
from churn.database.report import FleetRows
from churn.decisions.exclusions import neutralized
from churn.deployment.command_line import _OneLine, print_attempts, run_command, say
from churn.errors import InputError
from churn.evaluation.curves import draw_contributions
from churn.evaluation.metrics import Interval
from churn.evaluation.segments import EvaluatedSegment
from churn.monitoring.conditions import DriftFlag
from churn.monitoring.drift import FeatureDrift
from churn.monitoring.incidents import Condition, Incident, reconcile
from churn.report.content import build_content
from churn.report.page import render
from churn.report.prometheus import _drift, _family
from churn.training.checks import Gate, GateCheck
from churn.training.model_card import Lineage, _lineage
from churn.variants import Variant
from churn.wording import markdown_table, printable
from churn.workflows.alert import parse_receivers
from experiment_tracking.promote_model import _describe_event
from orchestration.assets import metadata
from orchestration.assets.monitoring import _drift_table, _incident_table
from orchestration.checks import of_fleet
from tests.support.texts import HOSTILE

NOW, WEEK = datetime(2026, 11, 23, 12, tzinfo=UTC), date(2026, 11, 16)


# What each target shows: the texts of it, as a person reads them.


def in_markdown(text: str) -> Iterator[str]:
    """Read Markdown as Dagster, MLflow and chats do; fail if it has anything but tables, paragraphs and text."""
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        assert token.type.startswith(("table", "thead", "tbody", "tr", "th", "td", "paragraph", "inline")), token
        if token.type == "inline":
            children = token.children or []
            assert {child.type for child in children} <= {"text", "text_special", "softbreak"}, text
            yield "".join(child.content for child in children)


def in_terminal(text: str) -> Iterator[str]:
    for line in text.splitlines():
        assert line.isprintable(), text
        yield line


def in_log(text: str) -> Iterator[str]:
    (line,) = in_terminal(text)
    assert not line.startswith("ERROR forged")
    yield line


def in_sheet(text: str) -> Iterator[str]:
    for row in csv.reader(io.StringIO(text, newline="")):
        for cell in row:
            assert not cell.startswith(("=", "+", "-", "@", "\t", "\r")), cell
            yield from (cell, cell.removeprefix("'"))


def in_json(text: str) -> Iterator[str]:
    sent = json.loads(text)
    yield from (sent["title"], sent["message"])


def in_slack(text: str) -> Iterator[str]:
    sent = json.loads(text)
    assert sent["mrkdwn"] is False
    for part in (sent["attachments"][0]["title"], sent["attachments"][0]["text"]):
        assert not re.search(r"<|>|&(?!(amp|lt|gt);)", part)
        yield html.unescape(part)


def in_discord(text: str) -> Iterator[str]:
    for line in re.split(r"\r?\n", json.loads(text)["content"]):
        assert not re.search("@(?!\u200b)", line)
        shown = "".join(in_markdown(line.removeprefix("- ")))
        yield shown.replace("\u200b", "")


def in_prometheus(text: str) -> Iterator[str]:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert {sample.name for sample in samples} <= {"churn_psi", "churn_drifted_variants", "churn_open_incidents"}
    assert "forged" not in {sample.name for sample in samples}
    for sample in samples:
        yield from sample.labels.values()


def in_picture(text: str) -> Iterator[str]:
    tags = {element.tag.rpartition("}")[2] for element in ET.fromstring(text).iter()}  # noqa: S314 our own
    assert not tags & {"script", "a", "foreignObject"}
    yield from ()


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))


def elements(page: str) -> list[tuple[str, tuple[str, ...]]]:
    parser = Elements()
    parser.feed(page)
    return parser.found


def in_report(text: str) -> Iterator[str]:
    assert elements(text) == elements(report("harmless"))
    yield from ()


# What writes to them.


def printed(work: Callable[[], object]) -> str:
    """Return what the product's own code prints, on both streams."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out), suppress(SystemExit):
        work()
    return out.getvalue()


def on_console(work: Callable[[Console], object]) -> str:
    out = io.StringIO()
    work(Console(file=out, width=2000, highlight=False, emoji=False))
    return re.sub("[│┃]", " ", out.getvalue())


def logged(message: str, *arguments: object, error: Exception | None = None) -> str:
    record = logging.makeLogRecord({"name": "churn", "msg": message, "args": arguments, "levelname": "WARNING"})
    record.exc_info = None if error is None else (type(error), error, None)
    return _OneLine("%(levelname)s %(message)s").format(record)


def raise_(error: Exception) -> None:
    raise error


def database_error(text: str) -> str:
    """What a command prints of an error that quotes a row, or a name, of a stranger."""

    def work() -> None:
        with errors_translated(parse_database_url("postgresql://u:p@host/d", "URL")):
            raise psycopg2.DataError(text)

    return printed(lambda: run_command("churn", work))


def of_database(**fields: Any) -> Any:
    return SimpleNamespace(**fields)


def explained(text: str) -> str:
    reasons = [{"feature": text, "contribution": 0.5, "value": text}]
    row = of_database(
        account=text, variant="base", scored_week="2026-11-16", churn_probability=0.5, registered_model="m",
        model_version=1, batch_id=3, last_active_month=None, is_at_risk=True, reasons=reasons, bias=0.1,
        is_fallback=False, is_foreign_data=False, is_sample=False, reason_1_text=text, reason_2_text=text,
        reason_3_text=None,
    )  # fmt: skip
    return on_console(lambda console: _print(row, console))


EVENT = ModelEvent(Variant(), "promoted", 2, 1, None, "a reason", "somebody", NOW)


def sources(text: str) -> str:
    batch = of_database(
        variant="base", batch_id=1, is_foreign_data=False, is_sample=False, source="local", n_at_risk=1, n_accounts=2,
        is_at_risk_known=True, mean_probability=0.5, model_version=1,
    )  # fmt: skip
    deployment = of_database(database=of_database(database=text))
    return on_console(lambda console: console.print(_sources_table([batch], deployment)))


def segment(text: str) -> str:
    batch = PublishedBatch(1, Variant(), WEEK, WEEK, 1, "champion", "run")
    found = EvaluatedSegment(text, text, 9, 3, "ok", Interval(0.7, 0.6, 0.8), 0.2, 0.1, 0.3)
    whole = EvaluatedBatch(batch, WEEK, 3, 9, 9, 9, 0, 3, "ok", 0.6, {}, segments=[found])
    return str(metadata.segment_table(whole).md_str)


def distributions(text: str) -> str:
    bins = of_database(feature=text, labels=[text])
    profile = of_database(by_feature=lambda: {text: np.array([3])}, bins=[bins])
    summary = of_database(reference=profile, profile=profile)
    outcome = of_database(record=of_database(drift={text: {}}), summary=summary)
    return str(metadata._distributions(outcome)["distributions"].md_str)  # noqa: SLF001


def importance(text: str) -> str:
    return str(metadata._bars(("a", "b"), {text: 0.5}, "").md_str)  # noqa: SLF001


def top(text: str) -> str:
    keys = pl.DataFrame({"account_id": [-7], "account_key": [text]})
    return str(metadata._preview(of_database(top=[(0.5, -7)], population="accounts"), keys).md_str)  # noqa: SLF001


def drifted(text: str) -> str:
    drift = FeatureDrift(text, 9, 0.1, 0.1, 0.1, 0.5, 0.1, 0.1, 0.5)
    return str(_drift_table([DriftFlag(1, text, WEEK, drift, is_confirmed=True)]).md_str)


def lineage(text: str) -> str:
    trained = of_database(feature_names=["a"], bundle=of_database(sha256="0"), plan=of_database(seed=1))
    source = Lineage(
        Variant(), Variant(), (text,), WEEK, ((text, text),), 9, (WEEK, WEEK), text, text, text, text
    )  # fmt: skip
    return _lineage(trained, source)


def check(text: str) -> str:
    (result,) = of_fleet("fleet_incidents", {"every_variant_was_scored": {text: text}})
    return str(result.metadata["variants"].md_str)  # type: ignore[union-attr]


class Once(Collector):
    def __init__(self, *families: Metric) -> None:
        self.families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self.families)


def scraped(*families: Metric) -> str:
    registry = CollectorRegistry()
    registry.register(Once(*families))
    return generate_latest(registry).decode()


def sent(url: str) -> Callable[[str], str]:
    """Return what a service gets of an alert about a variant's error; its HTTP client is replaced."""

    def deliver(text: str) -> str:
        (change,) = reconcile([], [Condition("run_failed", {"a run": text}, text)], {"run_failed"})
        bodies: list[str] = []

        def post(_url: str, data: Any = None, **_: object) -> object:
            bodies.append(data if isinstance(data, str) else data.decode())
            return SimpleNamespace(status_code=200, content=b"ok", headers={})

        (receiver,) = parse_receivers(url).values()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(requests, "post", post)
            patch.setattr(requests, "request", lambda _method, where, **given: post(where, **given))
            alert = Alert(
                1, 2, "opened", "error", change.title, change.body, NOW, None, change.kind, change.members, {}
            )
            assert receiver.send(alert) is None
        return bodies[-1]

    return deliver


def report(text: str) -> str:
    names = ("status", "n_matured", "n_churned", "roc_auc", "roc_auc_low", "roc_auc_high", "auc_limit", "brier_score",
             "calibration_error", "lift_at_10", "estimated_auc")  # fmt: skip
    batch = dict.fromkeys(names) | {
        "variant": text, "scored_week": WEEK, "role": "champion", "model_version": 1, "n_rows_scored": 9,
        "n_at_risk": 9, "mean_probability": 0.4, "is_fallback": False, "is_foreign_data": False, "is_sample": False,
    }  # fmt: skip
    attempt = {"variant": text, "role": "champion", "outcome": "failed", "error_type": text, "error": text}
    flag = {"variant": text, "scored_week": WEEK, "feature": text, "is_confirmed": True}
    change = {
        "variant": text, "occurred_at": NOW, "action": "promoted", "champion_version": 2, "previous_version": 1,
        "reason": text, "actor": text,
    }  # fmt: skip
    incident = {
        "incident_id": 1, "kind": text, "subject": text, "severity": text, "title": text, "members": {text: text},
        "opened_at": NOW, "updated_at": NOW, "resolved_at": None,
    }  # fmt: skip
    rows = FleetRows(
        WEEK, [WEEK], batches=[batch], attempts=[attempt], flags=[flag], changes=[change], incidents=[incident],
        registered=[{"variant": text}],
    )  # fmt: skip
    return render(*build_content(rows, NOW, text))


def picture(text: str) -> str:
    return draw_contributions(np.ones((20, 1)), {text: np.arange(20.0)}, text).decode()


Show = Callable[[str], Iterator[str]]
FIELDS: dict[str, tuple[Show, Callable[[str], str]]] = {
    "a column in a table of Dagster": (in_markdown, lambda text: markdown_table((text, "n"), [(text, 1)])),
    "a source column's importance": (in_markdown, importance),
    "a level and its column in distributions": (in_markdown, distributions),
    "a level and its column in segments": (in_markdown, segment),
    "an account's id in the highest scores": (in_markdown, top),
    "a feature that drifted": (in_markdown, drifted),
    "an incident's kind and subject": (
        in_markdown, lambda text: str(_incident_table([Incident(1, text, text, {text: text}, NOW)]).md_str)
    ),
    "a variant that fails a check, with its error": (in_markdown, check),
    "a check of the gate": (
        in_markdown, lambda text: Gate((GateCheck(text, 0.1, 0.2, "fails", text),)).to_markdown()
    ),
    "URIs, hashes and names in a model card": (in_markdown, lineage),
    "reasons and id in an explanation": (in_terminal, explained),
    "reasons and id in the demo": (
        in_terminal,
        lambda text: on_console(
            lambda console: console.print(_predictions_table([("base", text, 0.5, text, text)], WEEK, []))  # type: ignore[list-item]
        ),
    ),
    "a reason in the trail": (
        in_terminal,
        lambda text: printed(lambda: print_attempts("x", [("base", [_describe_event(replace(EVENT, reason=text))])])),
    ),
    "an actor in the trail": (
        in_terminal,
        lambda text: printed(lambda: print_attempts("x", [("base", [_describe_event(replace(EVENT, actor=text))])])),
    ),
    "a file in an error": (in_log, lambda text: printed(lambda: run_command("x", lambda: raise_(InputError(text))))),
    "a file that the system refuses": (
        in_log, lambda text: printed(lambda: run_command("x", lambda: raise_(OSError(13, "denied", text))))
    ),
    "an S3 key in a variant's error": (
        in_log, lambda text: printed(lambda: print_attempts("x", [("base", InputError(f"s3://b/{text}"))]))
    ),
    "a value in an unexpected error": (
        in_terminal, lambda text: printed(lambda: print_attempts("x", [("base", ValueError(text))]))
    ),
    "a row in an error of the database": (in_log, database_error),
    "a receiver, a database's name or a registry's": (in_terminal, lambda text: printed(lambda: say(text))),
    "a campaign's name": (
        in_terminal,
        lambda text: printed(lambda: say(_described({
            "name": text, "closed_at": None, "selected_at": NOW, "variants": [], "policy": "risk", "n_offered": 1,
            "n_control": 1, "n_held_out": 0, "n_removed": 0, "n_exposed": 0, "n_control_exposed": 0, "n_exports": 0,
        }))),
    ),
    "a column in a line of the log": (in_log, lambda text: logged("column %s", text)),
    "an S3 key in a line of the log": (in_log, lambda text: logged("s3://bucket/%s is gone", text)),
    "a value in a traceback": (in_terminal, lambda text: logged("failed", error=ValueError(text))),
    "an id or a name in a list for a spreadsheet": (
        in_sheet, lambda text: neutralized(pl.DataFrame({"id": [text], "n": [1]})).write_csv()
    ),
    "a column of a list for a spreadsheet": (
        in_sheet, lambda text: neutralized(pl.DataFrame({text: ["a"], "n": [1]})).write_csv()
    ),
    "an error in an alert as JSON": (in_json, sent("json://localhost/x")),
    "an error in an alert in Slack": (in_slack, sent("slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/")),
    "an error in an alert in Discord": (in_discord, sent("discord://4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js")),
    "a feature and a variant in Prometheus": (
        in_prometheus,
        lambda text: scraped(*_drift([of_database(variant=text, feature=text, psi=0.5, is_confirmed=True)])),
    ),
    "an incident's kind and severity in Prometheus": (
        in_prometheus, lambda text: scraped(_family("churn_open_incidents", ["kind", "severity"], [((text, text), 1)]))
    ),
    "a feature in a picture": (in_picture, picture),
    "all that the report shows": (in_report, report),
}  # fmt: skip
SLOW = {"a feature in a picture"}
"""Drawn for every twentieth text: a picture takes a fifth of a second."""


@pytest.mark.parametrize("field", FIELDS)
def test_what_a_stranger_wrote_is_shown_as_text(field: str) -> None:
    show, write = FIELDS[field]
    for text in HOSTILE[::20] if field in SLOW else HOSTILE:
        shown = [" ".join(part.split()) for part in show(write(text))]
        if show in (in_report, in_picture):
            continue
        whole = " ".join(printable(" ".join(text.split())).split())
        raw = " ".join(text.split())
        readings = [*shown, " ".join(shown)]
        assert any(one in part for one in (whole[:80], raw[:80], repr(text)[1:-1]) for part in readings), (text, shown)
