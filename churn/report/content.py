"""Builds the report's content as plain values: one part for the fleet, one for each variant. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from functools import cache, partial
from itertools import takewhile
from typing import Any

import numpy as np

from churn.database.report import FleetRows, Row
from churn.monitoring.incidents import RUNBOOK
from churn.monitoring.profiles import Bins, Profile
from churn.versions import CHALLENGER, CHAMPION
from churn.wording import plain as _plain

Content = dict[str, Any]
plain = partial(_plain, digits=6)

_HISTORY = (
    "model_version", "n_rows_scored", "mean_probability", "estimated_auc", "status", "n_matured", "n_churned",
    "roc_auc", "roc_auc_low", "roc_auc_high", "auc_limit", "brier_score", "calibration_error", "lift_at_10",
)  # fmt: skip
_SEGMENT = (
    "segment", "level", "n_matured", "n_churned", "roc_auc", "roc_auc_low", "roc_auc_high", "calibration_error",
    "mean_score",
)  # fmt: skip
_NO_LINEAGE = {"variant", "score_counts", "profile_counts", "drift", "importance", "reference"}


def build_content(rows: FleetRows, now: datetime, mlflow_ui: str) -> tuple[Content, list[Content]]:
    """Build the fleet's part from the rows of the database, and a part for each of its variants, in the same order.

    ``mlflow_ui`` is the address of the MLflow UI, without a slash at the end.
    """
    grouped = _Grouped(rows)
    known = {key for key, _ in [*grouped.batches, *grouped.attempts]}
    keys = sorted(known | {row["variant"] for row in rows.registered})
    fleet = {
        "week": plain(rows.week),
        "weeks": plain(rows.weeks),
        "made_at": plain(now),
        "mlflow_ui": mlflow_ui,
        "runbook": RUNBOOK,
        "variants": [_summary(key, grouped, rows) for key in keys],
        "trend": [_trend(grouped.champions_of[week]) for week in rows.weeks],
        "incidents": plain(rows.incidents),
        "campaigns": plain(rows.campaigns),
        "changes": plain(rows.changes),
    }
    return fleet, [_details(key, grouped, rows) for key in keys]


class _Grouped:
    def __init__(self, rows: FleetRows) -> None:
        self.batches = _by(rows.batches, "variant", "role")
        self.champions_of = _by((row for row in rows.batches if row["role"] == CHAMPION), "scored_week")
        self.newest = {row["variant"]: row for row in rows.newest}
        self.evaluated = {row["variant"]: row for row in rows.evaluated}
        self.segments = _by(rows.segments, "variant")
        self.flags = _by(rows.flags, "variant")
        self.attempts = {(row["variant"], row["role"]): row for row in rows.attempts}
        self.champions = {row["variant"]: row for row in rows.champions}


def _by(rows: Iterable[Row], *names: str) -> Mapping[Any, list[Row]]:
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in names) if len(names) > 1 else row[names[0]]].append(row)
    return groups


def _summary(key: str, of: _Grouped, rows: FleetRows) -> Content:
    batches = {row["scored_week"]: row for row in of.batches.get((key, CHAMPION), ())}
    current = batches.get(rows.week)
    error, challenger_error = (of.attempts.get((key, role), {}).get("error") for role in (CHAMPION, CHALLENGER))
    measured = next((row for row in reversed(list(batches.values())) if row["status"] == "ok"), None)
    flags = [row for row in of.flags.get(key, ()) if row["scored_week"] == rows.week]
    return {
        "key": key,
        "status": "scored" if current else ("failed" if error else "missing"),
        "error": error,
        "challenger_error": challenger_error,
        "accounts": current["n_rows_scored"] if current else None,
        "at_risk": current["n_at_risk"] if current else None,
        "mean": current["mean_probability"] if current else None,
        **{name: bool(current and current[name]) for name in ("is_fallback", "is_foreign_data", "is_sample")},
        "auc": _auc(measured) if measured else None,
        "aucs": [batches[week]["roc_auc"] if week in batches else None for week in rows.weeks],
        "confirmed": [row["feature"] for row in flags if row["is_confirmed"]],
        "new": [row["feature"] for row in flags if not row["is_confirmed"]],
        **_champion(key, of, batches),
    }


def _auc(measured: Row) -> Content:
    limit, high = measured["auc_limit"], measured["roc_auc_high"]
    return {
        "week": plain(measured["scored_week"]),
        "value": measured["roc_auc"],
        "low": measured["roc_auc_low"],
        "high": high,
        "limit": limit,
        "is_below": limit is not None and high is not None and high < limit,
    }


def _champion(key: str, of: _Grouped, batches: Mapping[date, Row]) -> Content:
    """Return the champion by the alias events, else by the batches, and the earliest date of either for it."""
    event = of.champions.get(key)
    newest = list(batches.values())[-1:]
    champion = event["champion_version"] if event else (newest[0]["model_version"] if newest else None)
    scored = takewhile(lambda row: row["model_version"] == champion, reversed(list(batches.values())))
    days = [row["scored_week"] for row in scored] + ([event["since"].date()] if event else [])
    last = max(batches, default=None)
    challengers = of.batches.get((key, CHALLENGER), ())
    scored_last = next((row["model_version"] for row in challengers if row["scored_week"] == last), None)
    return {
        "champion": champion,
        "since": plain(min(days, default=None)),
        "challenger": event["challenger_version"] if event else scored_last,
        "ab_share": event["ab_share"] if event else 0,
    }


def _trend(batches: Sequence[Row]) -> Content:
    return {
        "n": len(batches),
        "accounts": sum(row["n_rows_scored"] for row in batches),
        "mean": _spread(batches, "mean_probability"),
        "auc": _spread(batches, "roc_auc"),
        "estimated": _spread(batches, "estimated_auc"),
    }


def _spread(rows: Sequence[Row], name: str) -> list[float] | None:
    """Return the 10th, 50th and 90th percentiles of a column; ``None`` if it has no value."""
    values = [row[name] for row in rows if row[name] is not None]
    return plain(np.percentile(values, (10, 50, 90)).tolist()) if values else None


def _details(key: str, of: _Grouped, rows: FleetRows) -> Content:
    newest, evaluated = of.newest.get(key), of.evaluated.get(key)
    flags = of.flags.get(key, ())
    places = {week: place for place, week in enumerate(rows.weeks)}
    return {
        "key": key,
        "history": {role: _history(of.batches.get((key, role), ()), places) for role in (CHAMPION, CHALLENGER)},
        "flags": [[places[row["scored_week"]], row["feature"], row["is_confirmed"]] for row in flags],
        "lineage": plain({name: newest[name] for name in newest if name not in _NO_LINEAGE}) if newest else None,
        "importance": plain(newest["importance"]) if newest else None,
        "features": _features(newest) if newest else [],
        "scores": newest["score_counts"] if newest else None,
        "reliability": plain(evaluated["reliability"]) if evaluated else None,
        "evaluated_week": plain(evaluated["scored_week"]) if evaluated else None,
        "segments": [[row[name] for name in _SEGMENT] for row in of.segments.get(key, ())],
    }


def _history(batches: Sequence[Row], places: Mapping[date, int]) -> list[list[Any]]:
    """Return for each batch the index of its week, then the columns of ``_HISTORY``."""
    return [[places[row["scored_week"]], *(row[name] for name in _HISTORY)] for row in batches]


def _features(newest: Row) -> list[Content]:
    """Return each feature's counts in the newest batch and in the reference; nothing if there is no reference."""
    if newest["reference"] is None or newest["profile_counts"] is None:
        return []
    reference = Profile.from_json(newest["reference"])
    if len(newest["profile_counts"]) != len(reference.counts):
        return []  # other bins: a version's first batch was encoded, and this one is raw
    batch = Profile(reference.bins, np.asarray(newest["profile_counts"], dtype=np.int64))
    drift, before, now = newest["drift"] or {}, reference.by_feature(), batch.by_feature()
    return [
        {
            "feature": bins.feature,
            "is_ordered": not bins.levels,
            "labels": _labels(bins),
            "reference": before[bins.feature].tolist(),
            "batch": now[bins.feature].tolist(),
            **{name: plain(drift.get(bins.feature, {}).get(name)) for name in ("psi", "excess_psi")},
        }
        for bins in reference.bins
    ]


@cache
def _labels(bins: Bins) -> list[str]:
    return list(bins.labels)
