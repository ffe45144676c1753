"""Reads the state of the whole fleet in a few statements, whatever the number of variants, and writes its drift flags.

:mod:`churn.monitoring.conditions` interprets the records.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa

from churn.database.connection import Tables, lock, read_queries
from churn.evaluation.metrics import Interval
from churn.monitoring import conditions

_SQL = read_queries("fleet")


class FleetTables(Tables):
    """Queries over all variants at once, and the table ``drift_flags``, as the writer role."""

    pool_size = 1

    def newest_inputs(self, week: date) -> list[conditions.ScoredBatch]:
        """Return the champions' newest current batches until ``week`` of each variant's two newest inputs."""
        rows = self._rows(_SQL["newest_inputs"], week=week, since=week - conditions.MEMORY)
        stored = conditions.StoredDrifts
        return [conditions.ScoredBatch(**row._asdict() | {"drifts": stored(row.drifts)}) for row in rows]

    def attempts(self, since: date) -> list[conditions.Attempt]:
        """Return the newest attempt of each variant and role at its newest week from ``since`` on."""
        return [conditions.Attempt(*row) for row in self._rows(_SQL["attempts"], since=since)]

    def histories(self, since: date, variants: Collection[str] | None = None) -> dict[str, conditions.History]:
        """Return each variant's row counts and inputs from ``since`` on; of all variants, or of those named."""
        values = {"since": since, "of_all": variants is None, "variants": list(variants or ())}
        arrivals = self._rows(_SQL["arrivals"], **values)
        inputs = {row.variant: dict(zip(row.digests, row.days, strict=True)) for row in arrivals}
        return {
            row.variant: conditions.History(
                dict(zip(row.weeks, row.n_rows, strict=True)),
                inputs.get(row.variant, {}),
                dict(zip(row.months or (), row.n_newest or (), strict=True)),
            )
            for row in self._rows(_SQL["histories"], **values)
        }

    def watch(self, registered: Collection[str], scored: Collection[str], now: datetime) -> dict[str, datetime]:
        """Watch variants, one acknowledged as gone once it is registered again; returns since when each is watched."""
        rows = self._rows(_SQL["watched"])
        watched = {key: since for key, since, is_watched in rows if is_watched}
        if added := {*registered} - watched.keys() | {*scored}.difference(key for key, _, _ in rows):
            self._execute(_SQL["watch"], added=sorted(added), now=now)
        return watched | dict.fromkeys(added, now)

    def evaluated(self) -> list[conditions.EvaluatedChampion]:
        """Return the newest batch of each month with enough labels and evidence, of each version that was champion."""
        return [_evaluated(row._asdict()) for row in self._rows(_SQL["evaluated"])]

    def low_segments(self, batch_ids: Sequence[int], at_most: float) -> tuple[list[conditions.LowSegment], int]:
        """Return the segments with a p-value of at most ``at_most``, and the number of segments that have a p-value."""
        low = self._rows(_SQL["segments"], batches=list(batch_ids), at_most=at_most)
        ((n_evaluated,),) = self._rows(_SQL["n_segments"], batches=list(batch_ids))
        return [conditions.LowSegment(*row) for row in low], n_evaluated

    def categories(self, batch_ids: Iterable[int]) -> dict[int, frozenset[str]]:
        """Return each batch's categorical features, by its model's reference profile."""
        rows = self._rows(_SQL["categories"], batches=sorted(set(batch_ids)))
        return {batch_id: frozenset(features) for batch_id, features in rows}

    def replace_flags(self, batch_ids: Collection[int], flags: Iterable[conditions.DriftFlag]) -> None:
        """Replace all flags of these batches by ``flags``. Idempotent; writes only the batches that change."""
        wanted = {(flag.batch_id, flag.drift.feature, flag.is_confirmed) for flag in flags}
        with self._transaction() as connection:
            lock(connection, "drift_flags")
            recorded = {tuple(row) for row in connection.execute(sa.text(_SQL["flags"]), {"batches": list(batch_ids)})}
            changed = {batch_id for batch_id, _, _ in wanted ^ recorded}
            columns = ("batch_id", "feature", "is_confirmed")
            rows = [dict(zip(columns, flag, strict=True)) for flag in sorted(wanted) if flag[0] in changed]
            connection.execute(sa.text(_SQL["replace_flags"]), {"batches": list(changed), "flags": json.dumps(rows)})


def _evaluated(row: dict[str, Any]) -> conditions.EvaluatedChampion:
    excess = None if row["log_loss_excess"][0] is None else Interval(*row["log_loss_excess"])
    return conditions.EvaluatedChampion(**row | {"roc_auc": Interval(*row["roc_auc"]), "log_loss_excess": excess})
