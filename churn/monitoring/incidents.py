"""Incidents: compares the current conditions with the open incidents, and returns which open, grow or end. Pure.

An incident covers all variants with the same kind of problem. People are alerted when it opens, when it reaches further
variants, and when it is resolved. :mod:`churn.database.incidents` stores incidents and their alerts.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from churn.wording import counted

Severity = Literal["warning", "error"]
Event = Literal["opened", "updated", "resolved"]

RUNBOOK = "docs/runbook.md"
MAX_NAMED = 20
MAX_SENTENCE = 300


@dataclass(frozen=True)
class Kind:
    """A kind of incident; alert titles begin with ``heading``, and ``noun`` names a member in the singular."""

    name: str
    severity: Severity
    heading: str
    noun: str = "variant"


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("run_failed", "error", "Job failed", noun="run"),
        Kind("variants_missing", "error", "No longer registered"),
        Kind("variants_failed", "error", "Scoring failed"),
        Kind("challengers_failed", "warning", "Scoring by the challenger failed"),
        Kind("week_missed", "error", "Week not scored"),
        Kind("data_stale", "warning", "Data is stale or a stand-in"),
        Kind("volume_unusual", "warning", "Unusual number of rows"),
        Kind("data_broken", "error", "Data is broken"),
        Kind("input_drifted", "warning", "Input drifted"),
        Kind("scores_drifted", "warning", "Scores drifted"),
        Kind("fleet_moved", "warning", "Inputs of most variants moved", noun="feature"),
        Kind("performance_low", "error", "Performance below the limit"),
        Kind("calibration_poor", "warning", "Scores do not match outcomes"),
        Kind("segment_low", "warning", "Performance of a segment below the limit"),
    )
}
"""Every kind by its name, in the order in which changes are alerted."""


def kind_of(name: str) -> Kind:
    """Return a kind by its name; one of newer code, whose incidents are in the database, is an error of that name."""
    return KINDS.get(name) or Kind(name, "error", name)


@dataclass(frozen=True)
class Condition:
    """A problem that exists now."""

    kind: str
    members: Mapping[str, str]  # the affected variants (by key) or runs (by Dagster run id), each with a sentence
    subject: str = ""  # the job's name for `run_failed`, which has one incident for each job; else empty


@dataclass(frozen=True)
class Incident:
    """An open incident, as stored."""

    incident_id: int
    kind: str
    subject: str
    members: Mapping[str, str]
    opened_at: datetime


@dataclass(frozen=True)
class Change:
    """A change that people are alerted about; ``incident_id`` is ``None`` for an incident that opens."""

    event: Event
    kind: str
    subject: str
    incident_id: int | None
    members: Mapping[str, str]
    title: str
    body: str


def reconcile(incidents: Sequence[Incident], conditions: Sequence[Condition], checked: Collection[str]) -> list[Change]:
    """Return the incidents that open, and the changes of the open ``incidents`` that get members or are resolved.

    There is no change when only some members recover; :func:`remaining` returns the members to store then. Of each kind
    and subject at most one incident is open, and conditions are merged. Incidents of kinds that were not ``checked`` do
    not change.
    """
    known = {(one.kind, one.subject): one for one in incidents if one.kind in checked}
    current = _by_incident(conditions, checked)
    order = list(KINDS)
    keys = sorted(known.keys() | current.keys(), key=lambda key: (order.index(key[0]), key[1]))
    changes = (_change(key, known.get(key), current.get(key, {})) for key in keys)
    return [change for change in changes if change is not None]


def remaining(
    incidents: Sequence[Incident], conditions: Sequence[Condition], checked: Collection[str]
) -> dict[int, Mapping[str, str]]:
    """Return the current members of each incident that stays open and whose members or sentences changed.

    The arguments are those of :func:`reconcile`.
    """
    current = _by_incident(conditions, checked)
    pairs = ((one, current.get((one.kind, one.subject))) for one in incidents)
    return {one.incident_id: now for one, now in pairs if now and now != one.members}


def headline(kind: str, subject: str, members: Collection[str]) -> str:
    """Return the problem and the number of members in one line.

    >>> headline("run_failed", "churn_prediction_job", ["6f1c", "a0b7"])
    'Job failed (churn_prediction_job): 2 runs'
    """
    return f"{_heading(kind, subject)}: {_count(kind, len(members))}"


def _by_incident(conditions: Sequence[Condition], checked: Collection[str]) -> dict[tuple[str, str], dict[str, str]]:
    members: dict[tuple[str, str], dict[str, str]] = {}
    for condition in conditions:
        if condition.kind in checked and condition.members:
            sentences = {member: one_line(sentence) for member, sentence in condition.members.items()}
            members.setdefault((condition.kind, condition.subject), {}).update(sentences)
    return members


def _change(key: tuple[str, str], incident: Incident | None, now: Mapping[str, str]) -> Change | None:
    kind, subject = key
    if incident is None:
        return Change("opened", kind, subject, None, now, headline(kind, subject, now), _body(kind, now))
    number = incident.incident_id
    if not now:
        title = f"Resolved: {headline(kind, subject, incident.members)}"
        body = f"Resolved; open since {incident.opened_at:%Y-%m-%d %H:%M %Z}.\n{_body(kind, incident.members)}"
        return Change("resolved", kind, subject, number, incident.members, title, body)
    added = {member: sentence for member, sentence in now.items() if member not in incident.members}
    if not added:
        return None
    title = f"{_heading(kind, subject)}: {_count(kind, len(added), 'more ')}, {len(now):,} in total"
    return Change("updated", kind, subject, number, now, title, _body(kind, added))


def _body(kind: str, members: Mapping[str, str]) -> str:
    named = sorted(members)[:MAX_NAMED]
    lines = [f"- {member}: {members[member]}" for member in named]
    if len(members) > len(named):
        lines.append(f"and {_count(kind, len(members) - len(named), 'more ')}")
    # First, since a receiver may truncate long texts.
    links = f"Full list: churn report. What to do: {RUNBOOK}#{kind}"
    return "\n".join([links, "", *lines])


def one_line(sentence: str, most: int = MAX_SENTENCE) -> str:
    """Return a text in one line of at most so many characters."""
    # An error may contain characters that PostgreSQL does not accept, such as NUL, which would block all alerts.
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in sentence).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _heading(kind: str, subject: str) -> str:
    return kind_of(kind).heading + (f" ({subject})" if subject else "")


def _count(kind: str, number: int, more: str = "") -> str:
    return counted(number, f"{more}{kind_of(kind).noun}")
