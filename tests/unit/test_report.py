"""At stake: people act on this page alone. What it says of a variant must be so, whatever the tables hold."""

import base64
import gzip
import json
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

import pytest

from churn.database.report import FleetRows
from churn.report.content import build_content, plain
from churn.report.page import VARIANTS_PER_PART, render
from churn.versions import CHALLENGER, CHAMPION

WEEKS = [date(2026, 11, 9), date(2026, 11, 16), date(2026, 11, 23)]
NOW = datetime(2026, 11, 24, 8, tzinfo=UTC)
HOSTILE = "</script><img src=x onerror=alert(1)>[[parts]]"

Row = dict[str, Any]


def batch(variant: str, week: date, *, version: int = 1, role: str = CHAMPION, **judged: Any) -> Row:
    names = ("status", "n_matured", "n_churned", "roc_auc", "roc_auc_low", "roc_auc_high", "auc_limit", "brier_score",
             "calibration_error", "lift_at_10", "estimated_auc")  # fmt: skip
    return dict.fromkeys(names) | {
        "variant": variant,
        "scored_week": week,
        "role": role,
        "model_version": version,
        "n_rows_scored": 100,
        "n_at_risk": 60,
        "mean_probability": 0.4,
        "is_fallback": False,
        "is_foreign_data": False,
        "is_sample": False,
        **judged,
    }


def failed(variant: str, error: str, role: str = CHAMPION) -> Row:
    return {"variant": variant, "role": role, "outcome": "failed", "error_type": "InputError", "error": error}


def measured(value: float, limit: float) -> Row:
    return {
        "status": "ok",
        "roc_auc": value,
        "roc_auc_low": value - 0.05,
        "roc_auc_high": value + 0.05,
        "auc_limit": limit,
    }


def summary(rows: FleetRows) -> dict[str, Mapping[str, Any]]:
    fleet, _ = build_content(rows, NOW, "http://mlflow")
    return {variant["key"]: variant for variant in fleet["variants"]}


def unpacked(page: str) -> dict[str, Any]:
    found = re.findall(r'<script type="application/gzip" id="([\w-]+)">([\w+/=]*)</script>', page)
    return {name: json.loads(gzip.decompress(base64.b64decode(packed))) for name, packed in found}


def test_a_variant_is_scored_failed_or_missing_and_a_later_failure_is_told_beside_its_scores():
    rows = FleetRows(
        WEEKS[-1],
        WEEKS,
        batches=[batch("scored", WEEKS[2]), batch("scored-then-failed", WEEKS[2]), batch("missing", WEEKS[1])],
        attempts=[failed("failed", "no file"), failed("scored-then-failed", "no file")],
        registered=[{"variant": "never-scored"}, {"variant": "scored"}],
    )

    found = summary(rows)

    assert {key: (v["status"], v["error"]) for key, v in found.items()} == {
        "failed": ("failed", "no file"),
        "missing": ("missing", None),
        "never-scored": ("missing", None),
        "scored": ("scored", None),
        "scored-then-failed": ("scored", "no file"),
    }


def test_a_challengers_failure_is_not_the_variants():
    rows = FleetRows(
        WEEKS[-1], WEEKS, batches=[batch("us", WEEKS[2])], attempts=[failed("us", "no such version", CHALLENGER)]
    )

    us = summary(rows)["us"]

    assert (us["status"], us["error"], us["challenger_error"]) == ("scored", None, "no such version")


@pytest.mark.parametrize(("value", "limit", "is_below"), [(0.6, 0.7, True), (0.66, 0.7, False), (0.6, None, False)])
def test_an_auc_is_below_its_limit_when_its_whole_interval_is(value: float, limit: float, is_below: bool):
    rows = FleetRows(WEEKS[-1], WEEKS, batches=[batch("us", WEEKS[0], **measured(value, limit))])

    assert summary(rows)["us"]["auc"]["is_below"] is is_below


def test_the_newest_week_that_could_be_judged_is_told_and_one_with_too_few_labels_is_no_figure():
    rows = FleetRows(
        WEEKS[-1],
        WEEKS,
        batches=[
            batch("us", WEEKS[0], **measured(0.8, 0.7)),
            batch("us", WEEKS[1], status="insufficient"),
            batch("us", WEEKS[2]),
        ],
    )

    us = summary(rows)["us"]

    assert (us["auc"]["value"], us["auc"]["week"]) == (0.8, WEEKS[0].isoformat())
    assert us["aucs"] == [0.8, None, None]


def test_drift_is_of_this_week_alone():
    flags = [
        {"variant": "us", "scored_week": WEEKS[1], "feature": "total_ngr", "is_confirmed": True},
        {"variant": "us", "scored_week": WEEKS[2], "feature": "brand_id", "is_confirmed": True},
        {"variant": "us", "scored_week": WEEKS[2], "feature": "total_handle", "is_confirmed": False},
    ]
    rows = FleetRows(WEEKS[-1], WEEKS, batches=[batch("us", WEEKS[2])], flags=flags)

    us = summary(rows)["us"]

    assert (us["confirmed"], us["new"]) == (["brand_id"], ["total_handle"])


def test_the_champion_is_the_trails_and_has_been_since_it_first_scored_if_that_was_before():
    events = [
        {"variant": key, "champion_version": 2, "challenger_version": 3, "ab_share": 2000, "since": NOW}
        for key in ("known-later", "promoted-today")
    ]
    rows = FleetRows(
        WEEKS[-1],
        WEEKS,
        batches=[
            *(batch("known-later", week, version=version) for week, version in zip(WEEKS, (1, 2, 2), strict=True)),
            *(batch("promoted-today", week) for week in WEEKS),
            *(batch("silent", week, version=version) for week, version in zip(WEEKS, (1, 1, 2), strict=True)),
            batch("silent", WEEKS[2], version=3, role=CHALLENGER),
            batch("silent-before", WEEKS[2]),
            batch("silent-before", WEEKS[1], version=3, role=CHALLENGER),
        ],
        champions=events,
    )

    found = summary(rows)

    assert {key: (v["champion"], v["since"], v["challenger"]) for key, v in found.items()} == {
        "known-later": (2, "2026-11-16", 3),
        "promoted-today": (2, "2026-11-24", 3),
        "silent": (2, "2026-11-23", 3),
        "silent-before": (1, "2026-11-23", None),
    }


def test_every_variants_part_is_found_by_its_place():
    keys = [f"company-c{i:03}" for i in range(2 * VARIANTS_PER_PART + 1)]
    fleet, variants = build_content(
        FleetRows(WEEKS[-1], WEEKS, batches=[batch(key, WEEKS[2]) for key in keys]), NOW, "http://mlflow"
    )

    held = unpacked(render(fleet, variants))

    size = held["fleet"]["variants_per_part"]
    places = {variant["key"]: i for i, variant in enumerate(held["fleet"]["variants"])}
    assert list(places) == keys
    assert all(held[f"part-{place // size}"][place % size]["key"] == key for key, place in places.items())


def test_names_and_errors_cannot_become_markup_nor_change_the_page():
    rows = FleetRows(WEEKS[-1], WEEKS, batches=[batch(HOSTILE, WEEKS[2])], attempts=[failed(HOSTILE, HOSTILE)])

    page = render(*build_content(rows, NOW, HOSTILE))

    assert "onerror" not in page
    assert unpacked(page)["fleet"]["variants"][0]["error"] == HOSTILE


def test_the_policy_lets_in_this_script_and_this_style_and_nothing_else():
    page = render(*build_content(FleetRows(None), NOW, "http://mlflow"))

    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-[\w+/=]+'; script-src 'sha256-[\w+/=]+'; img-src data:; "
        r"base-uri 'none'; form-action 'none'",
        policy[1],
    )
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)


def test_the_same_content_is_the_same_file():
    rows = FleetRows(WEEKS[-1], WEEKS, batches=[batch("us", WEEKS[2])])

    assert render(*build_content(rows, NOW, "x")) == render(*build_content(rows, NOW, "x"))


def test_what_is_no_number_is_none():
    assert plain({"a": [float("nan"), float("inf"), 1 / 3], "on": WEEKS[0]}) == {
        "a": [None, None, 0.333333],
        "on": "2026-11-09",
    }
