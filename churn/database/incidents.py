"""Incidents, and the alerts about them on their way: what is written down, and who has yet to be told.

An incident changes in the same transaction that writes the alerts about it and, for every receiver, that it has yet
to get them. So what happened and what people are told of it cannot part. How alerts are sent is elsewhere.
"""

import json
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from churn.database.connection import WRITER, create_engine, errors_translated
from churn.monitoring.incidents import (
    KINDS,
    Change,
    Condition,
    Event,
    Incident,
    Severity,
    headline,
    reconcile,
    remaining,
)

FIRST_RETRY_S, LONGEST_RETRY_S = 15, 900

_LOCK_TIMEOUT = "60s"
_SENDING_TIMEOUT = "10min"
_COLUMNS = "incident_id, kind, subject, members, opened_at, updated_at, resolved_at"

_OPEN = """
INSERT INTO incidents (kind, subject, severity, title, members, opened_at, updated_at)
VALUES (:kind, :subject, :severity, :title, :members, :now, :now) RETURNING incident_id
"""
_ALERT = """
WITH alert AS (
    INSERT INTO alerts (incident_id, event, created_at, title, body)
    VALUES (:incident_id, :event, :now, :title, :body) RETURNING alert_id
)
INSERT INTO alert_deliveries (alert_id, receiver, next_attempt_at)
SELECT alert_id, receiver, :now FROM alert, unnest(CAST(:receivers AS text[])) AS receiver
"""
# Of one incident, only the oldest alert that a receiver has not got: whoever sends that one holds back the others.
_NEXT = """
SELECT a.alert_id, a.event, a.title, a.body, i.incident_id, i.severity, i.opened_at, d.n_attempts
FROM alert_deliveries d JOIN alerts a USING (alert_id) JOIN incidents i USING (incident_id)
WHERE d.receiver = :receiver AND d.delivered_at IS NULL AND d.next_attempt_at <= :now AND NOT EXISTS (
    SELECT FROM alert_deliveries before JOIN alerts b USING (alert_id)
    WHERE b.incident_id = a.incident_id AND b.alert_id < a.alert_id
      AND before.receiver = d.receiver AND before.delivered_at IS NULL
)
ORDER BY d.next_attempt_at, d.alert_id LIMIT 1
FOR UPDATE OF d SKIP LOCKED
"""
_TRIED = """
UPDATE alert_deliveries SET n_attempts = n_attempts + 1, last_error = CAST(:error AS text),
    delivered_at = CASE WHEN CAST(:error AS text) IS NULL THEN CAST(:now AS timestamptz) END,
    next_attempt_at = :next_attempt_at
WHERE alert_id = :alert_id AND receiver = :receiver
"""


@dataclass(frozen=True)
class Alert:
    """What one receiver is to be told.

    Attributes:
        severity: Of the incident.
        opened_at: When the incident did.
    """

    alert_id: int
    incident_id: int
    event: Event
    severity: Severity
    title: str
    body: str
    opened_at: datetime


class Incidents:
    """The tables ``incidents``, ``alerts`` and ``alert_deliveries``, as the writer role."""

    def __init__(self, url: sa.URL) -> None:
        self._url = url
        self._engine = create_engine(url, role=WRITER, kept=1)

    def open(self) -> list[Incident]:
        """Return the incidents that are not over, oldest first."""
        with errors_translated(self._url), self._engine.connect() as connection:
            return _open(connection)

    def recent(self, limit: int) -> list[Incident]:
        """Return the incidents that opened last, newest first, be they over or not."""
        query = sa.text(f"SELECT {_COLUMNS} FROM incidents ORDER BY opened_at DESC, incident_id DESC LIMIT :limit")  # noqa: S608 ours
        with errors_translated(self._url), self._engine.connect() as connection:
            return [_read(row) for row in connection.execute(query, {"limit": limit})]

    def settle(
        self, conditions: Sequence[Condition], watched: Collection[str], receivers: Collection[str], now: datetime
    ) -> list[Change]:
        """Make the incidents what is wrong now, and leave the alerts about it for the receivers; all or nothing.

        Two that settle at once wait for each other, so both never open the same incident. Called again with the same
        arguments it changes nothing.

        Args:
            conditions: All that is wrong of the watched kinds.
            watched: The kinds that were looked at.
            receivers: Who is told. One that is added later gets what happens from then on.

        Returns:
            What the receivers are told, each with its incident's number.
        """
        with errors_translated(self._url), self._engine.begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtextextended('incidents', 0))")
            known = _open(connection)
            now_wrong = remaining(known, conditions, watched)
            for incident in known:
                if incident.incident_id in now_wrong:
                    _write_members(connection, incident, now_wrong[incident.incident_id], now)
            changes = [_write(connection, change, now) for change in reconcile(known, conditions, watched)]
            for change in changes:
                alert = {"incident_id": change.incident_id, "event": change.event, "title": change.title}
                more = {"body": change.body, "now": now, "receivers": sorted(set(receivers))}
                connection.execute(sa.text(_ALERT), alert | more)
        return changes

    def hand_over(
        self, receiver: str, clock: Callable[[], datetime], send: Callable[[Alert], str | None]
    ) -> bool | None:
        """Send the receiver the alert that is due, and write down how that went.

        The delivery stays locked meanwhile, so nobody else sends it; when this process dies, it is anybody's again. One
        that failed is due again after a random time of at most twice as long as before, up to ``LONGEST_RETRY_S``.

        Args:
            send: Returns what went wrong, in words that hold no secret; ``None`` when the receiver has it. Must not
                raise.

        Returns:
            Whether the receiver has it; ``None`` when nothing is due that nobody else is sending.
        """
        with errors_translated(self._url), self._engine.begin() as connection:
            # Ours, whatever the server's is; and no sender that hangs keeps an alert for ever.
            connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = '{_SENDING_TIMEOUT}'")
            row = connection.execute(sa.text(_NEXT), {"receiver": receiver, "now": clock()}).one_or_none()
            if row is None:
                return None
            values = row._asdict()
            n_attempts = values.pop("n_attempts")
            error = send(Alert(**values))
            now = clock()
            tried = {"alert_id": row.alert_id, "receiver": receiver, "error": error, "now": now}
            connection.execute(sa.text(_TRIED), tried | {"next_attempt_at": now + _pause(n_attempts)})
        return error is None

    def waiting(self) -> dict[str, int]:
        """Return how many alerts each receiver has yet to get; none of those that have all."""
        query = "SELECT receiver, count(*) AS n FROM alert_deliveries WHERE delivered_at IS NULL GROUP BY receiver"
        with errors_translated(self._url), self._engine.connect() as connection:
            return {row.receiver: row.n for row in connection.execute(sa.text(query))}


def _open(connection: sa.Connection) -> list[Incident]:
    query = f"SELECT {_COLUMNS} FROM incidents WHERE resolved_at IS NULL ORDER BY incident_id"  # noqa: S608 ours
    return [_read(row) for row in connection.execute(sa.text(query))]


def _read(row: sa.Row[Any]) -> Incident:
    return Incident(**row._asdict())


def _write(connection: sa.Connection, change: Change, now: datetime) -> Change:
    """Write an incident that opens or ends, and return the change with the incident's number."""
    if change.event == "resolved":
        query = "UPDATE incidents SET resolved_at = greatest(opened_at, :now) WHERE incident_id = :incident_id"
        connection.execute(sa.text(query), {"now": now, "incident_id": change.incident_id})
    if change.incident_id is not None:
        return change
    values = {
        "kind": change.kind,
        "subject": change.subject,
        "severity": KINDS[change.kind].severity,
        "title": change.title,
        "members": json.dumps(change.members),
        "now": now,
    }
    return replace(change, incident_id=connection.execute(sa.text(_OPEN), values).scalar_one())


def _write_members(connection: sa.Connection, incident: Incident, members: Mapping[str, str], now: datetime) -> None:
    query = """
        UPDATE incidents SET members = :members, title = :title, updated_at = :now WHERE incident_id = :incident_id
    """
    title = headline(incident.kind, incident.subject, members)
    values = {"members": json.dumps(members), "title": title, "now": now, "incident_id": incident.incident_id}
    connection.execute(sa.text(query), values)


def _pause(n_attempts: int) -> timedelta:
    """Draw how long to wait after an attempt: of all lengths up to the longest, lest many come at the same time."""
    longest = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2 ** min(n_attempts, 16))
    return timedelta(seconds=random.uniform(0, longest))  # noqa: S311 no secret
