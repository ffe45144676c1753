"""Incidents: compares the current conditions with the open incidents, and returns which open, grow or end. Pure.

An incident covers all variants with the same kind of problem. People are alerted when it opens, when it reaches further
variants or gets worse, and when it is resolved. :mod:`churn.database.incidents` stores incidents and their alerts.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple

from churn.wording import counted

Severity = Literal["warning", "error"]
Event = Literal["opened", "updated", "resolved"]

RUNBOOK = "docs/runbook.md"
MAX_NAMED = 20
MAX_SENTENCE = 500
MAX_CAUSES = 8
"""Causes of a member that are reported, one after the other; further ones of the same incident are not."""


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
        Kind("ticks_failed", "error", "Sensor or schedule keeps failing", noun="automation"),
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


class Mark(NamedTuple):
    """What tells whether a member got worse since it was reported, and the Dagster run that shows it."""

    causes: tuple[str, ...] = ()  # another one is worse, the first time
    figure: float = 0.0  # twice as much is worse; 0 if there is none
    dagster_run_id: str | None = None

    def is_worse(self, reported: "Mark | None") -> bool:
        """Return whether there is another cause or twice the figure than was ever reported."""
        if reported is None:
            return False
        is_new = not {*self.causes} <= {*reported.causes} and 0 < len(reported.causes) < MAX_CAUSES
        return is_new or self.figure >= 2 * reported.figure > 0

    def added_to(self, reported: "Mark | None") -> "Mark":
        """Return what has been reported once this is."""
        if reported is None:
            return self
        causes = tuple(dict.fromkeys((*reported.causes, *self.causes)))[: max(MAX_CAUSES, len(reported.causes))]
        figure = self.figure if self.figure >= 2 * reported.figure else reported.figure
        return Mark(causes, figure, self.dagster_run_id)


@dataclass(frozen=True)
class Condition:
    """A problem that exists now."""

    kind: str
    members: Mapping[str, str]  # the affected variants (by key) or runs (by Dagster run id), each with a sentence
    subject: str = ""  # the job's name for `run_failed`, which has one incident for each job; else empty
    marks: Mapping[str, Mark] = field(default_factory=dict)  # of members of which more than the sentence is known


@dataclass(frozen=True)
class Incident:
    """An open incident, as stored."""

    incident_id: int
    kind: str
    subject: str
    members: Mapping[str, str]
    opened_at: datetime
    reported: Mapping[str, Mark] = field(default_factory=dict)  # also of members that recovered


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
    reported: Mapping[str, Mark] = field(default_factory=dict)


def reconcile(incidents: Sequence[Incident], conditions: Sequence[Condition], checked: Collection[str]) -> list[Change]:
    """Return the incidents that open, and the changes of the open ``incidents`` that get larger, worse or resolved.

    There is no change when only some members recover; :func:`remaining` returns the members to store then. Of each kind
    and subject at most one incident is open, and conditions are merged. Incidents of kinds that were not ``checked`` do
    not change.
    """
    known = {(one.kind, one.subject): one for one in incidents if one.kind in checked}
    current = _by_incident(conditions, checked)
    keys = sorted(known.keys() | current.keys(), key=lambda key: ([*KINDS].index(key[0]), key[1]))
    changes = (_change(key, known.get(key), current.get(key, Condition(key[0], {}))) for key in keys)
    return [change for change in changes if change is not None]


def remaining(
    incidents: Sequence[Incident], conditions: Sequence[Condition], checked: Collection[str]
) -> dict[int, Condition]:
    """Return the current members of each incident that stays open and what is reported of them, if either changed.

    The arguments are those of :func:`reconcile`.
    """
    current, changed = _by_incident(conditions, checked), {}
    for one in incidents:
        if now := current.get((one.kind, one.subject)):
            reported = {member: mark.added_to(one.reported.get(member)) for member, mark in now.marks.items()}
            after = Condition(one.kind, now.members, one.subject, {**one.reported, **reported})
            if (after.members, after.marks) != (one.members, one.reported):
                changed[one.incident_id] = after
    return changed


def headline(kind: str, subject: str, members: Collection[str]) -> str:
    """Return the problem and the number of members in one line.

    >>> headline("run_failed", "churn_prediction_job", ["6f1c", "a0b7"])
    'Job failed (churn_prediction_job): 2 runs'
    """
    return f"{_heading(kind, subject)}: {_count(kind, len(members))}"


def _by_incident(conditions: Sequence[Condition], checked: Collection[str]) -> dict[tuple[str, str], Condition]:
    merged: dict[tuple[str, str], Condition] = {}
    for one in conditions:
        if one.kind in checked and one.members:
            before = merged.get((one.kind, one.subject), Condition(one.kind, {}))
            members = {**before.members, **{member: one_line(sentence) for member, sentence in one.members.items()}}
            marks = {**before.marks, **{member: mark for member, mark in one.marks.items() if member in one.members}}
            merged[one.kind, one.subject] = Condition(one.kind, members, one.subject, marks)
    return merged


def _change(key: tuple[str, str], incident: Incident | None, now: Condition) -> Change | None:
    kind, subject = key
    if incident is None:
        title = headline(kind, subject, now.members)
        return Change("opened", kind, subject, None, now.members, title, _body(kind, now.members), now.marks)
    number, before = incident.incident_id, incident.members
    if not now.members:
        title = f"Resolved: {headline(kind, subject, before)}"
        return Change("resolved", kind, subject, number, before, title, f"It was:\n{_body(kind, before)}")
    added = {member: sentence for member, sentence in now.members.items() if member not in before}
    worse = {
        member: f"{now.members[member]}\n  before: {before[member]}"
        for member, mark in now.marks.items()
        if member in before and mark.is_worse(incident.reported.get(member))
    }
    if not added and not worse:
        return None
    parts = [_count(kind, len(added), "more ")] if added else []
    parts += [f"{_count(kind, len(worse))} got worse"] if worse else []
    title = f"{_heading(kind, subject)}: {', '.join(parts)}, {len(now.members):,} in total"
    return Change("updated", kind, subject, number, now.members, title, _body(kind, worse | added))


def _body(kind: str, members: Mapping[str, str]) -> str:
    lines = [f"- {member}: {members[member]}" for member in sorted(members)[:MAX_NAMED]]
    left = len(members) - len(lines)
    return "\n".join([*lines, *([f"and {_count(kind, left, 'more ')}"] if left else [])])


def one_line(sentence: str, most: int = MAX_SENTENCE) -> str:
    """Return a text in one line of at most so many characters; a longer one loses its middle, not its advice.

    >>> one_line("s3://bucket/x.csv has no column of the name that is needed; upload it again", 52)
    's3://bucket/x.csv has no column…; upload it again'
    """
    # An error may contain characters that PostgreSQL does not accept, such as NUL, which would block all alerts.
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in sentence).split())
    if len(text) <= most:
        return text
    advice = text[text.rfind("; ") :] if "; " in text[-most * 2 // 3 :] else ""
    head = text[: most - len(advice) - 1]
    return f"{head.rpartition(' ')[0] if advice and ' ' in head else head}…{advice}"


def _heading(kind: str, subject: str) -> str:
    return kind_of(kind).heading + (f" ({subject})" if subject else "")


def _count(kind: str, number: int, more: str = "") -> str:
    return counted(number, f"{more}{kind_of(kind).noun}")
