"""The tables of incidents, their alerts, and the delivery of each alert to each receiver.

One transaction changes an incident, writes its alerts and queues them for every receiver, so that incidents and alerts
always agree. :mod:`churn.workflows.alert` sends the alerts.
"""

import json
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import sqlalchemy as sa

from churn.database.connection import Tables, lock
from churn.monitoring import incidents
from churn.monitoring.incidents import Change, Condition, Event, Incident, Severity

FIRST_RETRY_S, LONGEST_RETRY_S = 15, 900

_LOCK_TIMEOUT = "60s"
_SENDING_TIMEOUT = "10min"
_OPEN_INCIDENTS = """
SELECT incident_id, kind, subject, members, opened_at FROM incidents WHERE resolved_at IS NULL ORDER BY incident_id
"""
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
# Of each incident only the oldest undelivered alert, so that a receiver gets the alerts of an incident in order.
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
_ATTEMPTED = """
UPDATE alert_deliveries SET n_attempts = n_attempts + 1, last_error = CAST(:error AS text),
    delivered_at = CASE WHEN CAST(:error AS text) IS NULL THEN CAST(:now AS timestamptz) END,
    next_attempt_at = :next_attempt_at
WHERE alert_id = :alert_id AND receiver = :receiver
"""


@dataclass(frozen=True)
class Alert:
    """An alert to send to one receiver; ``severity`` and ``opened_at`` are those of its incident."""

    alert_id: int
    incident_id: int
    event: Event
    severity: Severity
    title: str
    body: str
    opened_at: datetime


class Incidents(Tables):
    """The tables ``incidents``, ``alerts`` and ``alert_deliveries``, as the writer role."""

    pool_size = 1

    def open(self) -> list[Incident]:
        """Return the open incidents, oldest first."""
        return [Incident(*row) for row in self._rows(_OPEN_INCIDENTS)]

    def reconcile(
        self, conditions: Sequence[Condition], checked: Collection[str], receivers: Collection[str], now: datetime
    ) -> list[Change]:
        """Open, update and resolve incidents to match ``conditions``, and queue the alerts; one transaction.

        Concurrent calls run one after the other, so that no incident opens twice. Idempotent.

        Args:
            conditions: All current conditions of the ``checked`` kinds.
            receivers: Names of the receivers to alert. One that is added later gets later changes only.

        Returns:
            The changes to alert about, each with its incident's number.
        """
        with self._transaction() as connection:
            lock(connection, "incidents", _LOCK_TIMEOUT)
            known = [Incident(*row) for row in connection.execute(sa.text(_OPEN_INCIDENTS))]
            current = incidents.remaining(known, conditions, checked)
            for incident in known:
                if incident.incident_id in current:
                    _write_members(connection, incident, current[incident.incident_id], now)
            changes = [_write(connection, change, now) for change in incidents.reconcile(known, conditions, checked)]
            for change in changes:
                alert = {"incident_id": change.incident_id, "event": change.event, "title": change.title}
                more = {"body": change.body, "now": now, "receivers": sorted(set(receivers))}
                connection.execute(sa.text(_ALERT), alert | more)
        return changes

    def deliver_next(
        self, receiver: str, clock: Callable[[], datetime], send: Callable[[Alert], str | None]
    ) -> bool | None:
        """Send the receiver its next due alert, and record the outcome.

        The delivery is locked meanwhile, so no other process sends it; the lock ends with this process. A failed
        delivery is retried after a random pause; its limit doubles with each attempt up to ``LONGEST_RETRY_S``.

        Args:
            send: Returns what went wrong, without any secret; ``None`` on success. Must not raise.

        Returns:
            Whether the delivery succeeded; ``None`` if none is due, or other processes are sending all due alerts.
        """
        with self._transaction() as connection:
            # Overrides the server's setting, and limits how long a hanging sender locks its alert.
            connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = '{_SENDING_TIMEOUT}'")
            row = connection.execute(sa.text(_NEXT), {"receiver": receiver, "now": clock()}).one_or_none()
            if row is None:
                return None
            alert = row._asdict()
            n_attempts = alert.pop("n_attempts")
            error = send(Alert(**alert))
            now = clock()
            values = {"alert_id": row.alert_id, "receiver": receiver, "error": error, "now": now}
            connection.execute(sa.text(_ATTEMPTED), values | {"next_attempt_at": now + _pause(n_attempts)})
        return error is None

    def count_undelivered(self, receivers: Collection[str]) -> int:
        """Count the alerts that these receivers have not received yet."""
        query = "SELECT count(*) FROM alert_deliveries WHERE delivered_at IS NULL AND receiver = ANY(:receivers)"
        ((n,),) = self._rows(query, receivers=list(receivers))
        return int(n)


def _write(connection: sa.Connection, change: Change, now: datetime) -> Change:
    """Write an incident that opens or is resolved, and return the change with the incident's number."""
    if change.event == "resolved":
        query = "UPDATE incidents SET resolved_at = greatest(opened_at, :now) WHERE incident_id = :incident_id"
        connection.execute(sa.text(query), {"now": now, "incident_id": change.incident_id})
    if change.incident_id is not None:
        return change
    values = {
        "kind": change.kind, "subject": change.subject, "severity": incidents.KINDS[change.kind].severity,
        "title": change.title, "members": json.dumps(change.members), "now": now,
    }  # fmt: skip
    return replace(change, incident_id=connection.execute(sa.text(_OPEN), values).scalar_one())


def _write_members(connection: sa.Connection, incident: Incident, members: Mapping[str, str], now: datetime) -> None:
    query = "UPDATE incidents SET members = :members, title = :title, updated_at = :now WHERE incident_id = :id"
    title = incidents.headline(incident.kind, incident.subject, members)
    values = {"members": json.dumps(members), "title": title, "now": now, "id": incident.incident_id}
    connection.execute(sa.text(query), values)


def _pause(n_attempts: int) -> timedelta:
    """Draw a random pause before the next attempt, so that retries spread out."""
    longest = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2 ** min(n_attempts, 16))
    return timedelta(seconds=random.uniform(0, longest))  # noqa: S311 no secret
