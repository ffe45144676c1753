"""What is wrong now, held against what is known to be wrong: which incidents open, change and end. Pure.

An incident is one kind of trouble, whatever the number of variants it has; people are told once when it opens, when
it reaches variants it did not have, and when it is over. Where incidents are kept and who is told is elsewhere.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Severity = Literal["warning", "error"]
Event = Literal["opened", "updated", "resolved"]

RUNBOOK = "docs/runbook.md"
MAX_NAMED = 20
MAX_SENTENCE = 300


@dataclass(frozen=True)
class Kind:
    """A kind of trouble.

    Attributes:
        heading: What is wrong, in plain words.
        noun: What its members are, one of them.
    """

    name: str
    severity: Severity
    heading: str
    noun: str = "variant"

    @property
    def runbook(self) -> str:
        """Its anchor in the runbook."""
        return self.name


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("run_failed", "error", "Job failed", noun="run"),
        Kind("variants_failed", "error", "Scoring failed"),
        Kind("challengers_failed", "warning", "Scoring by the challenger failed"),
        Kind("week_missed", "error", "Week not scored"),
        Kind("data_stale", "warning", "Data is stale"),
        Kind("volume_unusual", "warning", "Unusual number of rows"),
        Kind("input_drifted", "warning", "Input drifted"),
        Kind("scores_drifted", "warning", "Scores drifted"),
        Kind("performance_low", "error", "Performance below the limit"),
        Kind("segment_low", "warning", "Performance of a segment below the limit"),
    )
}
"""Every kind by its name, in the order in which changes are told."""


@dataclass(frozen=True)
class Condition:
    """Something is wrong now.

    Attributes:
        members: Who is concerned, by variant key or Dagster run id, each with a sentence of what is wrong.
        subject: What a kind has one incident for each of: a job's name for ``run_failed``, else empty.
    """

    kind: str
    members: Mapping[str, str]
    subject: str = ""


@dataclass(frozen=True)
class Incident:
    """Something that was found wrong.

    Attributes:
        members: Who is concerned; of a resolved one, who was at the end.
        updated_at: When ``members`` was written.
        resolved_at: ``None`` while it is open.
    """

    incident_id: int
    kind: str
    subject: str
    members: Mapping[str, str]
    opened_at: datetime
    updated_at: datetime
    resolved_at: datetime | None


@dataclass(frozen=True)
class Change:
    """What people are told of an incident.

    Attributes:
        incident_id: ``None`` for one that opens.
        members: All who are concerned now; when resolved, who was at the end.
        title: One line.
        body: Plain text.
    """

    event: Event
    kind: str
    subject: str
    incident_id: int | None
    members: Mapping[str, str]
    title: str
    body: str


def reconcile(
    open_incidents: Sequence[Incident], conditions: Sequence[Condition], watched: Collection[str]
) -> list[Change]:
    """Return what people must be told; nothing where nothing got worse and nothing ended.

    That some members recovered while others have not is no news; :func:`remaining` has it.

    Args:
        open_incidents: At most one of each kind and subject.
        conditions: All that is wrong of the watched kinds; those of one kind and subject count as one.
        watched: The kinds that were looked at. Of others nothing opens and nothing ends.
    """
    known = {(incident.kind, incident.subject): incident for incident in open_incidents if incident.kind in watched}
    wrong = _by_incident(conditions, watched)
    order = list(KINDS)
    keys = sorted(known.keys() | wrong.keys(), key=lambda key: (order.index(key[0]), key[1]))
    changes = (_change(key, known.get(key), wrong.get(key, {})) for key in keys)
    return [change for change in changes if change is not None]


def remaining(
    open_incidents: Sequence[Incident], conditions: Sequence[Condition], watched: Collection[str]
) -> dict[int, Mapping[str, str]]:
    """Return the members of each open incident that stays open with others than are written down, or other sentences.

    The arguments are those of :func:`reconcile`.
    """
    wrong = _by_incident(conditions, watched)
    found = ((incident, wrong.get((incident.kind, incident.subject))) for incident in open_incidents)
    return {incident.incident_id: now for incident, now in found if now and now != incident.members}


def headline(kind: str, subject: str, members: Collection[str]) -> str:
    """Return what is wrong and with how many, in one line.

    >>> headline("run_failed", "churn_prediction_job", ["6f1c", "a0b7"])
    'Job failed (churn_prediction_job): 2 runs'
    """
    return f"{_heading(kind, subject)}: {_count(kind, len(members))}"


def _by_incident(conditions: Sequence[Condition], watched: Collection[str]) -> dict[tuple[str, str], Mapping[str, str]]:
    found: dict[tuple[str, str], Mapping[str, str]] = {}
    for condition in conditions:
        if condition.kind in watched and condition.members:
            key = (condition.kind, condition.subject)
            sentences = {member: _one_line(sentence) for member, sentence in condition.members.items()}
            found[key] = {**found.get(key, {}), **sentences}
    return found


def _change(key: tuple[str, str], incident: Incident | None, now: Mapping[str, str]) -> Change | None:
    kind, subject = key
    if incident is None:
        body = _body(kind, now)
        return Change("opened", kind, subject, None, now, headline(kind, subject, now), body)
    number = incident.incident_id
    if not now:
        title = f"Resolved: {headline(kind, subject, incident.members)}"
        body = f"Over. It had been open since {incident.opened_at:%Y-%m-%d %H:%M %Z}.\n{_body(kind, incident.members)}"
        return Change("resolved", kind, subject, number, incident.members, title, body)
    added = {member: sentence for member, sentence in now.items() if member not in incident.members}
    if not added:
        return None
    title = f"{_heading(kind, subject)}: {_count(kind, len(added))} more, {len(now)} now"
    return Change("updated", kind, subject, number, now, title, _body(kind, added))


def _body(kind: str, members: Mapping[str, str]) -> str:
    named = sorted(members)[:MAX_NAMED]
    lines = [f"- {member}: {members[member]}" for member in named]
    if len(members) > len(named):
        lines.append(f"and {_count(kind, len(members) - len(named))} more")
    # First, since a receiver may cut long texts.
    where = f"To see all: churn report. What to do: {RUNBOOK}#{KINDS[kind].runbook}"
    return "\n".join([where, "", *lines])


def _one_line(sentence: str) -> str:
    # Errors bring what PostgreSQL does not take, such as NUL; no such text may keep all alerts from being written.
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in sentence).split())
    return text if len(text) <= MAX_SENTENCE else f"{text[: MAX_SENTENCE - 1]}…"


def _heading(kind: str, subject: str) -> str:
    return KINDS[kind].heading + (f" ({subject})" if subject else "")


def _count(kind: str, number: int) -> str:
    return f"{number:,} {KINDS[kind].noun}{'' if number == 1 else 's'}"
