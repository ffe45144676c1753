"""The tables of incidents, their alerts, and the delivery of each alert to each receiver.

One transaction changes an incident, writes its alerts and queues them for every receiver, so that incidents and alerts
agree. They change by functions of the owner, which set time and login. :mod:`churn.workflows.alert` sends the alerts.
"""

import json
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from churn.database.connection import OWNER, Tables, create_engine, errors_translated, lock, read_queries
from churn.monitoring import incidents
from churn.monitoring.incidents import Change, Condition, Event, Incident, Mark, Severity

FIRST_RETRY_S, LONGEST_RETRY_S = 15, 900

_LOCK_TIMEOUT, _SENDING_TIMEOUT = "60s", "10min"
_SQL = read_queries("incidents")


@dataclass(frozen=True)
class Alert:
    """An alert to send to one receiver; from ``opened_at`` on, and ``severity``, as its incident is now."""

    alert_id: int
    incident_id: int
    event: Event
    severity: Severity
    title: str
    body: str
    opened_at: datetime
    resolved_at: datetime | None
    kind: str
    members: Mapping[str, str]
    reported: Mapping[str, Mark]


class Incidents(Tables):
    """The tables ``incidents``, ``alerts`` and ``alert_deliveries``, as the writer role."""

    pool_size = 1

    def open(self) -> list[Incident]:
        """Return the open incidents, oldest first."""
        return [_incident(row) for row in self._rows(_SQL["open_incidents"])]

    def reconcile(
        self, conditions: Sequence[Condition], checked: Collection[str], receivers: Collection[str]
    ) -> list[Change]:
        """Open, update and resolve incidents to match ``conditions``, and queue the alerts; one transaction.

        Concurrent calls run one after the other, so that no incident opens twice. Idempotent. ``conditions`` are all of
        the ``checked`` kinds. A receiver that is added later gets later changes only. Returns the changes to alert
        about, each with its incident's number.
        """
        with self._transaction() as connection:
            lock(connection, "incidents", _LOCK_TIMEOUT)
            known = [_incident(row) for row in connection.execute(sa.text(_SQL["open_incidents"]))]
            current = incidents.remaining(known, conditions, checked)
            for number, now in current.items():
                title = incidents.headline(now.kind, now.subject, now.members)
                values = {"members": json.dumps(now.members), "reported": json.dumps(now.marks), "title": title}
                connection.execute(sa.text(_SQL["update"]), values | {"id": number})
            changes = [_write(connection, change) for change in incidents.reconcile(known, conditions, checked)]
            for change in changes:
                connection.execute(sa.text(_SQL["alert"]), vars(change) | {"receivers": sorted(set(receivers))})
        return changes

    def deliver_next(self, receiver: str, send: Callable[[Alert], str | None]) -> bool | None:
        """Send the receiver its next due alert, and record the outcome.

        The delivery is locked meanwhile, so no other process sends it; the lock ends with this process. A failed
        delivery is retried after a random pause; its limit doubles with each attempt up to ``LONGEST_RETRY_S``.
        ``send`` must not raise; it returns what went wrong, without any secret, or ``None``.

        Returns whether the delivery succeeded; ``None`` if none is due, or other processes are sending all due alerts.
        """
        with self._transaction() as connection:
            # Overrides the server's setting, and limits how long a hanging sender locks its alert.
            connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = '{_SENDING_TIMEOUT}'")
            row = connection.execute(sa.text(_SQL["next"]), {"receiver": receiver}).one_or_none()
            if row is None:
                return None
            error = send(replace(Alert(*row[:-1]), reported=_marks(row.reported)))
            values = {"receiver": receiver, "error": error, "retry_after_s": _pause_s(row.n_attempts)}
            connection.execute(sa.text(_SQL["attempted"]), values | {"alert_id": row.alert_id})
        return error is None

    def undelivered(self) -> dict[str, int]:
        """Return the number of alerts that each receiver has not received yet, by name; none that has received all."""
        return dict(map(tuple, self._rows(_SQL["undelivered"])))

    def drop_undelivered(self, receiver: str) -> int:
        """Drop the alerts that wait for a receiver, as the owner role; returns their number."""
        with errors_translated(self._url), create_engine(self._url, role=OWNER).begin() as connection:
            return connection.execute(sa.text(_SQL["drop_undelivered"]), {"receiver": receiver}).rowcount


def _incident(row: sa.Row[Any]) -> Incident:
    return replace(Incident(*row), reported=_marks(row.reported))


def _marks(reported: Mapping[str, Sequence[Any]]) -> dict[str, Mark]:
    return {member: Mark(tuple(causes), *rest) for member, (causes, *rest) in reported.items()}


def _write(connection: sa.Connection, change: Change) -> Change:
    if change.event == "resolved":
        connection.execute(sa.text(_SQL["resolve"]), {"id": change.incident_id})
    if change.incident_id is not None:
        return change
    values = {"severity": incidents.KINDS[change.kind].severity, "members": json.dumps(change.members)}
    values["reported"] = json.dumps(change.reported)
    return replace(change, incident_id=connection.scalar(sa.text(_SQL["open"]), vars(change) | values))


def _pause_s(n_attempts: int) -> float:
    """Draw a random pause before the next attempt, so that retries spread out."""
    return random.uniform(0, min(LONGEST_RETRY_S, FIRST_RETRY_S * 2 ** min(n_attempts, 16)))  # noqa: S311 no secret
