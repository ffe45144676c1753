"""``churn status``: the state of the fleet on one screen."""

from collections.abc import Iterator
from datetime import date
from typing import Any

from churn.database.status import read_ticks, read_variants_and_incidents
from churn.deployment.services import Deployment
from churn.errors import ChurnError
from churn.wording import counted, listed

_WIDTH = 76  # beside the 44 columns of a tick's name


def read_status(deployment: Deployment, week: date) -> dict[str, Any]:
    """Read the state of the week that begins on a Monday, for machines; ``describe`` makes it lines for people."""
    variants, incidents = read_variants_and_incidents(deployment.database_as("monitoring"), week)
    status: dict[str, Any] = {"week": week, "n_variants": len(variants), "incidents": incidents}
    for state in ("published", "failed", "missing"):
        status[state] = [one["variant"] for one in variants if one["state"] == state]
    status["errors"] = {one["variant"]: one["error"] for one in variants if one["state"] == "failed"}
    stale = [one for one in variants if one["fallback_reason"] or one["is_repeated"]]
    same = "the same input as the week before"
    status["stale"] = {one["variant"]: one["fallback_reason"] or same for one in stale}
    status["drifting"] = {one["variant"]: one["drifting"] for one in variants if one["drifting"]}
    try:
        status["ticks"] = read_ticks(deployment.dagster_database)
    except ChurnError as error:
        status["ticks"], status["no_ticks_because"] = [], str(error)
    return status


def describe(of: dict[str, Any]) -> Iterator[str]:
    """Describe a status in a line for each fact, long lists and sentences shortened."""
    yield f"week      {of['week']}: {len(of['published']):,} of {counted(of['n_variants'], 'variant')} scored"
    for name in ("failed", "missing", "stale", "drifting"):
        yield f"{name:10}{len(of[name]):,}{': ' if of[name] else ''}{listed(list(of[name]), 5)}"
    for variant, error in list(of["errors"].items())[:3]:
        yield f"          {variant}: {_short(error)}"
    yield f"incidents {counted(len(of['incidents']), 'open incident')}"
    for one in of["incidents"][:10]:
        yield f"          {one['severity']:8}{_short(one['title'])}, since {one['opened_at']:%Y-%m-%d %H:%M}"
    yield f"ticks     {of.get('no_ticks_because') or ('' if of['ticks'] else 'none yet; churn up runs them')}".rstrip()
    for one in of["ticks"]:
        when = f"{one['at']:%Y-%m-%d %H:%M} {one['outcome']}" if one["at"] else "no tick yet"
        off, why = "" if one["is_on"] else "off, ", f": {one['reason']}" if one["reason"] else ""
        yield f"          {one['type']:9}{one['name']:34}{_short(f'{off}{when}{why}')}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"
