"""The audit trail of each variant's aliases: append-only, one row for each change.

MLflow's aliases name the current versions. This table has the earlier ones, who changed them, why, and on what
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

from churn.database.connection import Tables, insert, lock
from churn.variants import Variant

Action = Literal["observed", "challenged", "promoted", "rolled_back", "shared"]

_LOCK_TIMEOUT = "60s"
# In the order of the fields of ModelEvent.
_COLUMNS = (
    "variant, action, champion_version, previous_version, challenger_version, reason, actor, occurred_at, ab_share, "
    "is_forced, evidence"
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
            lock(connection, f"model of {variant.key}", _LOCK_TIMEOUT)
            yield lambda event: insert(connection, "model_events", _columns(event))

    def latest(self, variant: Variant) -> ModelEvent | None:
        """Return the newest event of a variant."""
        query = "WHERE variant = :variant ORDER BY occurred_at DESC, event_id DESC LIMIT 1"
        return next(iter(self._select(query, variant=variant.key)), None)

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
        return [ModelEvent(Variant.from_key(row.variant), *row[1:]) for row in self._rows(query, **values)]


def _columns(event: ModelEvent) -> dict[str, object]:
    columns = {"champion": "champion_version", "previous": "previous_version", "challenger": "challenger_version"}
    values = {columns.get(name, name): value for name, value in vars(event).items()}
    variant = {"variant": event.variant.key, "registered_model": event.variant.registered_model}
    return values | variant | {"evidence": json.dumps(event.evidence)}


def this_person() -> str:
    """Return user and host, as recorded with each change of an alias."""
    return f"{getpass.getuser()}@{socket.gethostname()}"
