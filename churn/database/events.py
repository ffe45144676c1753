"""The audit trail of each variant's aliases: append-only, one row for each decision.

MLflow's aliases name the current versions. This table has the earlier ones, who changed them, why, and on what
evidence. A decision is committed here, ``pending``, before the first alias moves, and counts from then on. A change
made outside this project (in MLflow's UI, by another tool) is recorded later as ``observed``. The database sets the
time of a row and the login that its actor begins with; its number gives the order.
"""

import getpass
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from typing import Any, Literal

import sqlalchemy as sa

from churn.database.connection import Tables, lock
from churn.variants import Variant
from churn.versions import CHALLENGER, CHAMPION, PREVIOUS, AliasMove

Action = Literal["observed", "challenged", "promoted", "rolled_back", "shared", "withdrawn"]
State = Literal["pending", "done", "overtaken"]

_LOCK_TIMEOUT = "60s"
# In the order of the fields of ModelEvent.
_COLUMNS = (
    "variant, action, champion_version, previous_version, challenger_version, reason, actor, occurred_at, ab_share, "
    "is_forced, evidence, from_champion, from_previous, from_challenger, state, decision, event_id"
)
_NEWEST = "WHERE variant = :variant ORDER BY event_id DESC LIMIT 1"
_RECORD = "SELECT event_id, occurred_at, actor FROM record_event(CAST(:event AS jsonb))"


@dataclass(frozen=True)
class ModelEvent:
    """A change of a variant's aliases, with the versions that they name after it."""

    variant: Variant
    action: Action
    champion: int | None  # The champion's version; `None` if the alias is not set. Likewise `previous` and `challenger`
    previous: int | None
    challenger: int | None
    reason: str
    actor: str
    occurred_at: datetime
    ab_share: int = 0  # the number of accounts per 10,000 that are served the challenger's score
    is_forced: bool = False  # whether a person overruled the test or a guardrail
    evidence: Mapping[str, Any] = field(default_factory=dict)  # the figures behind the decision
    from_champion: int | None = None  # the version of each alias before it
    from_previous: int | None = None
    from_challenger: int | None = None
    state: State = "done"  # `pending` until all aliases are moved; `overtaken` if somebody else moved one before that
    decision: str | None = None  # what it decides, such as a Dagster run, unique for each variant; `None` for a command
    event_id: int = 0

    @property
    def move(self) -> AliasMove:
        """The move of the aliases that was decided."""
        before = {PREVIOUS: self.from_previous, CHALLENGER: self.from_challenger, CHAMPION: self.from_champion}
        return AliasMove(before, {PREVIOUS: self.previous, CHALLENGER: self.challenger, CHAMPION: self.champion})


class Trail:
    """One variant's events, in a transaction that has its lock."""

    def __init__(self, connection: sa.Connection, variant: Variant) -> None:
        self._connection, self._variant = connection, variant

    def latest(self) -> ModelEvent | None:
        """Return the newest event."""
        query = sa.text(f"SELECT {_COLUMNS} FROM model_events {_NEWEST}")  # noqa: S608 our own text
        row = self._connection.execute(query, {"variant": self._variant.key}).one_or_none()
        return None if row is None else _event(row)

    def record(self, event: ModelEvent) -> ModelEvent:
        """Add an event; returns it with its number, its time, and the database's login before its actor."""
        values = {f"{name}_version": getattr(event, name) for name in (CHAMPION, PREVIOUS, CHALLENGER)} | vars(event)
        values |= {"variant": event.variant.key, "registered_model": event.variant.registered_model}
        row = self._connection.execute(sa.text(_RECORD), {"event": json.dumps(values, default=str)}).one()
        return replace(event, **row._asdict())

    def end(self, state: State) -> None:
        """End the pending event as ``done`` or ``overtaken``."""
        values = {"variant": self._variant.key, "state": state}
        self._connection.execute(sa.text("SELECT end_move(:variant, :state)"), values)

    def require_lock(self) -> None:
        """Raise if the connection is lost: somebody else may then have the lock."""
        self._connection.execute(sa.text("SELECT 1"))


class ModelEvents(Tables):
    """The table ``model_events``, as the writer role, which adds rows by a function of the owner."""

    @contextmanager
    def recording(self, variant: Variant) -> Iterator[Trail]:
        """Lock the variant, and commit the events recorded in the block unless it raises.

        Processes that change the aliases of the same variant wait for each other.
        """
        with self._transaction() as connection:
            lock(connection, model_lock(variant), _LOCK_TIMEOUT)
            yield Trail(connection, variant)

    def latest(self, variant: Variant) -> ModelEvent | None:
        """Return the newest event of a variant."""
        return next(iter(self._select(_NEWEST, variant=variant.key)), None)

    def latest_of_all(self) -> dict[Variant, ModelEvent]:
        """Return the newest event of every variant that has one."""
        query = "ORDER BY variant, event_id DESC"
        return {event.variant: event for event in self._select(query, first="DISTINCT ON (variant) ")}

    def history(self, variant: Variant) -> list[ModelEvent]:
        """Return a variant's events, oldest first."""
        return self._select("WHERE variant = :variant ORDER BY event_id", variant=variant.key)

    def decided(self, variant: Variant, decision: str) -> ModelEvent | None:
        """Return the event of a decision about a variant, if it was made."""
        where = "WHERE variant = :variant AND decision = :decision"
        return next(iter(self._select(where, variant=variant.key, decision=decision)), None)

    def find(self, event_id: int) -> ModelEvent:
        """Return an event by its number."""
        return self._select("WHERE event_id = :event_id", event_id=event_id)[0]

    def pending(self, at_least_s: float = 0) -> list[ModelEvent]:
        """Return the decisions whose aliases have not all been moved, made that many seconds ago or earlier."""
        where = "WHERE state = 'pending' AND occurred_at <= clock_timestamp() - make_interval(secs => :seconds)"
        return self._select(where, seconds=at_least_s)

    def pending_moves(self) -> dict[Variant, AliasMove]:
        """Return the pending move of each variant that has one."""
        return {event.variant: event.move for event in self.pending()}

    def champion_on(self, variant: Variant, day: date) -> int | None:
        """Return the version that was champion at the end of a day, UTC; ``None`` before the first event."""
        ((version,),) = self._rows("SELECT champion_on(:variant, :day)", variant=variant.key, day=day)
        return version  # type: ignore[no-any-return]

    def _select(self, rest: str, *, first: str = "", **values: object) -> list[ModelEvent]:
        query = f"SELECT {first}{_COLUMNS} FROM model_events {rest}"  # noqa: S608 our own text
        return [_event(row) for row in self._rows(query, **values)]


def _event(row: sa.Row[Any]) -> ModelEvent:
    return ModelEvent(Variant.from_key(row.variant), *row[1:])


def model_lock(variant: Variant) -> str:
    """Return the key of the lock of a variant's models and aliases."""
    return f"model of {variant.key}"


def this_person() -> str:
    """Return user and host, as recorded with each change of an alias."""
    return f"{getpass.getuser()}@{socket.gethostname()}"
