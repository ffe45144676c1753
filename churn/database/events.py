"""The audit trail of each variant's aliases: append-only, one row for each change.

MLflow's aliases hold the current versions. This table holds the earlier ones, who changed them, why, and on what
evidence. A change made outside this project (in MLflow's UI, by another tool) is recorded later as ``observed``.
"""

import getpass
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Literal

import sqlalchemy as sa

from churn.database.connection import Tables
from churn.variants import Variant

Action = Literal["observed", "challenged", "promoted", "rolled_back", "shared"]

_LOCK_TIMEOUT = "60s"
_COLUMNS = (
    "occurred_at, variant, action, champion_version, previous_version, challenger_version, ab_share, "
    "is_forced, reason, actor, evidence"
)


@dataclass(frozen=True)
class ModelEvent:
    """A change of a variant's aliases, with the versions that they name after it.

    Attributes:
        champion: The champion's version; ``None`` if the alias is not set. Likewise ``previous`` and ``challenger``.
        ab_share: The number of accounts per 10,000 that are served the challenger's score.
        is_forced: Whether a person overruled the test or a guardrail.
        evidence: The figures behind the decision.
    """

    variant: Variant
    action: Action
    champion: int | None
    previous: int | None
    challenger: int | None
    reason: str
    actor: str
    occurred_at: datetime
    ab_share: int = 0
    is_forced: bool = False
    evidence: Mapping[str, Any] = field(default_factory=dict)


class ModelEvents(Tables):
    """The table ``model_events``, as the writer role, which may only add rows."""

    @contextmanager
    def recording(self, variant: Variant) -> Iterator[Callable[[ModelEvent], None]]:
        """Lock the variant, and commit the events recorded in the block unless it raises.

        Processes that change the aliases of the same variant wait for each other.
        """
        with self._transaction() as connection:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
            key = {"key": f"model of {variant.key}"}
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), key)
            yield lambda event: _insert(connection, event)

    def latest(self, variant: Variant) -> ModelEvent | None:
        """Return the newest event of a variant."""
        query = "WHERE variant = :variant ORDER BY occurred_at DESC, event_id DESC LIMIT 1"
        found = self._select(query, variant=variant.key)
        return found[0] if found else None

    def latest_of_all(self) -> dict[Variant, ModelEvent]:
        """Return the newest event of every variant that has one."""
        query = "ORDER BY variant, occurred_at DESC, event_id DESC"
        return {event.variant: event for event in self._select(query, first="DISTINCT ON (variant) ")}

    def history(self, variant: Variant) -> list[ModelEvent]:
        """Return a variant's events, oldest first."""
        return self._select("WHERE variant = :variant ORDER BY occurred_at, event_id", variant=variant.key)

    def champion_on(self, variant: Variant, day: date) -> int | None:
        """Return the version that was champion at the end of a day, UTC; ``None`` before the first event."""
        ((version,),) = self._rows("SELECT champion_on(:variant, :day)", variant=variant.key, day=day)
        return version  # type: ignore[no-any-return]

    def _select(self, rest: str, *, first: str = "", **values: str) -> list[ModelEvent]:
        query = f"SELECT {first}{_COLUMNS} FROM model_events {rest}"  # noqa: S608 our own text
        return [_read(row) for row in self._rows(query, **values)]


def _read(row: sa.Row[Any]) -> ModelEvent:
    return ModelEvent(
        variant=Variant.from_key(row.variant),
        action=row.action,
        champion=row.champion_version,
        previous=row.previous_version,
        challenger=row.challenger_version,
        reason=row.reason,
        actor=row.actor,
        occurred_at=row.occurred_at,
        ab_share=row.ab_share,
        is_forced=row.is_forced,
        evidence=row.evidence,
    )


def _insert(connection: sa.Connection, event: ModelEvent) -> None:
    values = {
        "occurred_at": event.occurred_at,
        "variant": event.variant.key,
        "registered_model": event.variant.registered_model,
        "action": event.action,
        "champion_version": event.champion,
        "previous_version": event.previous,
        "challenger_version": event.challenger,
        "ab_share": event.ab_share,
        "is_forced": event.is_forced,
        "reason": event.reason,
        "actor": event.actor,
        "evidence": json.dumps(event.evidence),
    }
    names, slots = ", ".join(values), ", ".join(f":{name}" for name in values)
    connection.execute(sa.text(f"INSERT INTO model_events ({names}) VALUES ({slots})"), values)  # noqa: S608 ours


def this_person() -> str:
    """Return user and host, as recorded with each change of an alias."""
    return f"{getpass.getuser()}@{socket.gethostname()}"
