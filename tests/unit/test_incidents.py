"""At stake: people are told of each trouble once when it begins and once when it is over, in words they can act on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from churn.monitoring.incidents import (
    KINDS,
    MAX_CAUSES,
    MAX_NAMED,
    MAX_SENTENCE,
    Change,
    Condition,
    Incident,
    Mark,
    reconcile,
    remaining,
)

MONDAY = datetime(2026, 3, 2, 6, tzinfo=UTC)
DRIFTED = "input_drifted"


def incident(members: Mapping[str, str], kind: str = DRIFTED, subject: str = "") -> Incident:
    return Incident(5, kind, subject, members, MONDAY)


def drifted(*variants: str) -> Condition:
    return Condition(DRIFTED, {variant: f"PSI 0.31 of deposits_30d in {variant}" for variant in variants})


def only(changes: Sequence[Change]) -> Change:
    assert len(changes) == 1, changes
    return changes[0]


class Book:
    """Incidents as they would be kept: what `reconcile` says is applied, and its words are remembered."""

    def __init__(self) -> None:
        self.incidents: dict[int, Incident] = {}
        self.resolved: set[int] = set()
        self.told: dict[int, list[str]] = {}

    @property
    def open(self) -> list[Incident]:
        return [incident for number, incident in self.incidents.items() if number not in self.resolved]

    def look(self, conditions: Sequence[Condition], watched: Sequence[str], now: datetime) -> list[Change]:
        changes = reconcile(self.open, conditions, watched)
        for number, now_is in remaining(self.open, conditions, watched).items():
            self.incidents[number] = replace(self.incidents[number], members=now_is.members, reported=now_is.marks)
        for change in changes:
            number = change.incident_id or len(self.incidents) + 1
            opened_at = self.incidents[number].opened_at if number in self.incidents else now
            reported = self.incidents[number].reported if number in self.incidents else change.reported
            self.incidents[number] = Incident(number, change.kind, change.subject, change.members, opened_at, reported)
            self.resolved |= {number} if change.event == "resolved" else set()
            self.told.setdefault(number, []).append(change.event)
        return changes


kinds = st.sampled_from([DRIFTED, "variants_failed", "run_failed"])
conditions = st.lists(
    st.builds(
        Condition,
        kind=kinds,
        members=st.dictionaries(st.sampled_from("abcde"), st.text(max_size=5), max_size=4),
        subject=st.sampled_from(["", "job"]),
    ),
    max_size=4,
)
looks = st.lists(st.tuples(conditions, st.lists(kinds, unique=True)), max_size=12)


@given(looks)
def test_however_conditions_come_and_go_each_incident_opens_once_and_ends_at_most_once(looks):
    book = Book()
    for hour, (wrong, watched) in enumerate(looks):
        before = {number: set(incident.members) for number, incident in book.incidents.items() if incident in book.open}
        changes = book.look(wrong, watched, MONDAY + timedelta(hours=hour))

        keys = [(incident.kind, incident.subject) for incident in book.open]
        assert len(keys) == len(set(keys))
        for change in changes:
            assert change.kind in watched
            if change.event == "updated":
                assert set(change.members) - before[change.incident_id]
        # What is open of the kinds looked at is exactly what is wrong.
        expected = {}
        for condition in wrong:
            if condition.kind in watched and condition.members:
                expected.setdefault((condition.kind, condition.subject), set()).update(condition.members)
        still = {(found.kind, found.subject): set(found.members) for found in book.open if found.kind in watched}
        assert still == expected
        assert book.look(wrong, watched, MONDAY + timedelta(hours=hour)) == []

    for number, events in book.told.items():
        is_over = number in book.resolved
        assert events == ["opened", *["updated"] * (len(events) - 1 - is_over), *["resolved"] * is_over]


def test_two_thousand_variants_with_one_trouble_are_one_incident_that_names_twenty():
    opened = only(reconcile([], [drifted(*(f"geography-g{n:04}" for n in range(2000)))], [DRIFTED]))

    assert (opened.event, opened.incident_id) == ("opened", None)
    assert opened.title == "Input drifted: 2,000 variants"
    assert opened.body.count("PSI 0.31 of deposits_30d") == MAX_NAMED
    assert opened.body.endswith("and 1,980 more variants")


def test_an_update_names_who_joined_and_says_how_many_there_are():
    changes = reconcile([incident({"geography-us": "PSI 0.3"})], [drifted("geography-us", "geography-eu")], [DRIFTED])

    updated = only(changes)
    assert (updated.event, updated.incident_id) == ("updated", 5)
    assert updated.title == "Input drifted: 1 more variant, 2 in total"
    assert "- geography-eu: PSI 0.31 of deposits_30d in geography-eu" in updated.body
    assert "geography-us" not in updated.body
    assert set(updated.members) == {"geography-us", "geography-eu"}


def test_that_some_recovered_is_written_down_and_nobody_is_told():
    known, wrong = [incident({"geography-us": "bad", "geography-eu": "bad"})], [drifted("geography-eu")]

    assert reconcile(known, wrong, [DRIFTED]) == []
    assert remaining(known, wrong, [DRIFTED]) == {5: wrong[0]}


def test_the_end_says_since_when_it_was_and_with_whom():
    resolved = only(reconcile([incident({"geography-us": "PSI 0.3"})], [], [DRIFTED]))

    assert resolved.event == "resolved"
    assert resolved.title == "Resolved: Input drifted: 1 variant"
    assert resolved.body == "It was:\n- geography-us: PSI 0.3"


A, B = ("AccessDeniedError",), ("QuarantineError",)
LOOKS: dict[str, tuple[Sequence[Mark], Sequence[bool]]] = {
    "nothing new": ([Mark(A, 0.2), Mark(A, 0.2)], [False]),
    "another cause, and back and forth": ([Mark(A), Mark(B), Mark(A), Mark(B), Mark(A)], [True, False, False, False]),
    "one more cause each time, up to a limit": (
        [Mark((str(n),)) for n in range(MAX_CAUSES + 3)], [True] * (MAX_CAUSES - 1) + [False] * 3
    ),
    "twice as bad, once for each doubling": (
        [Mark(A, figure) for figure in (0.2, 0.3, 0.4, 0.2, 0.4, 0.7, 0.8)], [False, True, False, False, False, True]
    ),
    "both at once": ([Mark(A, 0.2), Mark(B, 0.9)], [True]),
    "a figure that was unknown": ([Mark(A), Mark(A, 3), Mark(A, 6)], [False, True]),
}  # fmt: skip


@pytest.mark.parametrize(("marks", "is_told"), LOOKS.values(), ids=LOOKS)
def test_what_gets_worse_is_told_once(marks, is_told):
    book, told = Book(), []
    for hour, mark in enumerate(marks):
        wrong = Condition("variants_failed", {"base": "still", "us": f"look {hour}"}, marks={"us": mark})
        told.append(book.look([wrong], ["variants_failed"], MONDAY + timedelta(hours=hour)))

    assert [bool(changes) for changes in told[1:]] == is_told
    for hour, changes in enumerate(told[1:], start=1):
        for change in changes:
            assert change.title == "Scoring failed: 1 variant got worse, 2 in total"
            assert change.body == f"- us: look {hour}\n  before: look {hour - 1}"


def test_who_joins_and_who_gets_worse_at_one_look_are_one_message():
    known = replace(incident({"us": "PSI 0.3"}), reported={"us": Mark((), 0.3)})
    now = Condition(DRIFTED, {"us": "PSI 0.7", "eu": "PSI 0.4"}, marks={"us": Mark((), 0.7), "eu": Mark((), 0.4)})

    updated = only(reconcile([known], [now], [DRIFTED]))

    assert updated.title == "Input drifted: 1 more variant, 1 variant got worse, 2 in total"
    assert updated.body == "- eu: PSI 0.4\n- us: PSI 0.7\n  before: PSI 0.3"


def test_a_kind_that_was_not_looked_at_neither_opens_nor_ends():
    assert reconcile([incident({"geography-us": "bad"})], [Condition("data_stale", {"base": "old"})], []) == []


def test_jobs_have_incidents_of_their_own():
    wrong = [Condition("run_failed", {"6f1c": "no memory"}, "train"), Condition("run_failed", {"a0b7": "no S3"}, "job")]

    changes = reconcile([], wrong, ["run_failed"])

    assert [change.title for change in changes] == ["Job failed (job): 1 run", "Job failed (train): 1 run"]


def test_text_that_postgres_would_refuse_becomes_one_line_it_takes():
    opened = only(reconcile([], [Condition(DRIFTED, {"base": "a\x00b\ud800\nc" + "d" * 9999})], [DRIFTED]))

    sentence = opened.members["base"]
    assert sentence.startswith("a b cddd")
    assert len(sentence) == MAX_SENTENCE
    assert sentence.isprintable()


def test_every_kind_says_what_is_wrong_without_knowing_more():
    for kind in KINDS.values():
        title = only(reconcile([], [Condition(kind.name, {"base": "x"})], [kind.name])).title
        assert title == f"{kind.heading}: 1 {kind.noun}"
