"""Reads the state of the whole fleet in a few statements, whatever the number of variants, and writes its drift flags.

:mod:`churn.monitoring.conditions` interprets the records.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import date

import sqlalchemy as sa

from churn.database.connection import Tables
from churn.evaluation.metrics import Interval
from churn.monitoring.conditions import (
    Attempt,
    DriftFlag,
    EvaluatedChampion,
    History,
    LowSegment,
    ScoredBatch,
    read_drifts,
)

_BATCHES = sa.text(
    "SELECT batch_id, variant, scored_week, model_version, n_rows_read, source_variant, fallback_reason, drift "
    "FROM scoring_batches WHERE is_current AND role = 'champion' AND scored_week >= :since"
)
_ATTEMPTS = sa.text(
    "SELECT DISTINCT ON (variant, role) attempt_id, variant, scored_week, role, ended_at, left(error, 1000) AS error, "
    "is_transient IS TRUE AS is_transient FROM scoring_attempts WHERE scored_week >= :since "
    "ORDER BY variant, role, scored_week DESC, attempt_id DESC"
)
_HISTORIES = sa.text(
    "SELECT variant, array_agg(scored_week) AS weeks, array_agg(n_rows_read) AS n_rows FROM scoring_batches "
    "WHERE is_current AND role = 'champion' AND scored_week >= :since "
    "AND (:of_all OR variant = ANY(:variants)) GROUP BY variant"
)
_ARRIVALS = sa.text(
    "SELECT variant, array_agg(source_sha256) AS digests, array_agg(arrived_on) AS days FROM ("
    "SELECT variant, source_sha256, min(source_modified_at)::date AS arrived_on FROM scoring_batches "
    "WHERE role = 'champion' AND scored_week >= :since AND fallback_reason IS NULL AND source_variant = variant "
    "AND (:of_all OR variant = ANY(:variants)) GROUP BY variant, source_sha256) AS inputs GROUP BY variant"
)
_EVALUATED = sa.text(
    "SELECT DISTINCT ON (b.variant, b.model_version) batch_id, b.variant, b.scored_week, b.model_version, "
    "e.roc_auc, e.roc_auc_low, e.roc_auc_high, e.auc_limit "
    "FROM evaluated_batches AS e JOIN scoring_batches AS b USING (batch_id) "
    "WHERE b.role = 'champion' AND e.status = 'ok' AND e.auc_limit IS NOT NULL "
    "ORDER BY b.variant, b.model_version, b.scored_week DESC, batch_id DESC"
)
_SEGMENTS = sa.text(
    "SELECT b.variant, s.segment, s.level, s.roc_auc, e.auc_limit, s.p_below_limit "
    "FROM evaluated_segments AS s JOIN evaluated_batches AS e USING (batch_id) "
    "JOIN scoring_batches AS b USING (batch_id) "
    "WHERE s.batch_id = ANY(:batches) AND s.p_below_limit <= :at_most ORDER BY b.variant, s.p_below_limit"
)
_N_SEGMENTS = sa.text("SELECT count(p_below_limit) FROM evaluated_segments WHERE batch_id = ANY(:batches)")
_CATEGORIES = sa.text(
    "SELECT b.batch_id, array_agg(f->>'feature') FROM scoring_batches AS b "
    "JOIN model_references AS r USING (registered_model, model_version), jsonb_array_elements(r.profile->'features') f "
    "WHERE b.batch_id = ANY(:batches) AND f ? 'levels' GROUP BY b.batch_id"
)
_FLAGS = sa.text("SELECT batch_id, feature, is_confirmed FROM drift_flags WHERE batch_id = ANY(:batches)")


class FleetTables(Tables):
    """Queries over all variants at once, and the table ``drift_flags``, as the writer role."""

    def __init__(self, url: sa.URL) -> None:
        super().__init__(url, pool_size=1)

    def batches(self, since: date) -> list[ScoredBatch]:
        """Return the champions' current batches of the weeks from ``since`` on."""
        return [
            ScoredBatch(
                batch_id=row.batch_id,
                variant=row.variant,
                week=row.scored_week,
                model_version=row.model_version,
                n_rows=row.n_rows_read,
                data_of=row.source_variant,
                fallback_reason=row.fallback_reason,
                drifts=read_drifts(row.drift),
            )
            for row in self._rows(_BATCHES, since=since)
        ]

    def attempts(self, since: date) -> list[Attempt]:
        """Return the newest attempt of each variant and role at its newest week from ``since`` on."""
        return [
            Attempt(row.attempt_id, row.variant, row.scored_week, row.role, row.ended_at, row.error, row.is_transient)
            for row in self._rows(_ATTEMPTS, since=since)
        ]

    def histories(self, since: date, variants: Collection[str] | None = None) -> dict[str, History]:
        """Return each variant's row counts and inputs from ``since`` on; of all variants, or of those named."""
        values = {"since": since, "of_all": variants is None, "variants": list(variants or ())}
        inputs = {row.variant: dict(zip(row.digests, row.days, strict=True)) for row in self._rows(_ARRIVALS, **values)}
        return {
            row.variant: History(dict(zip(row.weeks, row.n_rows, strict=True)), inputs.get(row.variant, {}))
            for row in self._rows(_HISTORIES, **values)
        }

    def evaluated(self) -> list[EvaluatedChampion]:
        """Return the newest batch with enough labels of each variant and version that was champion."""
        return [
            EvaluatedChampion(
                row.batch_id,
                row.variant,
                row.scored_week,
                row.model_version,
                Interval(row.roc_auc, row.roc_auc_low, row.roc_auc_high),
                row.auc_limit,
            )
            for row in self._rows(_EVALUATED)
        ]

    def low_segments(self, batch_ids: Sequence[int], at_most: float) -> tuple[list[LowSegment], int]:
        """Return the segments with a p-value of at most ``at_most``, and the number of segments that have a p-value."""
        low = [LowSegment(*row) for row in self._rows(_SEGMENTS, batches=list(batch_ids), at_most=at_most)]
        ((n_evaluated,),) = self._rows(_N_SEGMENTS, batches=list(batch_ids))
        return low, n_evaluated

    def categories(self, batch_ids: Iterable[int]) -> dict[int, frozenset[str]]:
        """Return each batch's categorical features, by its model's reference profile."""
        rows = self._rows(_CATEGORIES, batches=sorted(set(batch_ids)))
        return {batch_id: frozenset(features) for batch_id, features in rows}

    def replace_flags(self, batch_ids: Collection[int], flags: Iterable[DriftFlag]) -> None:
        """Replace all flags of these batches by ``flags``. Idempotent; writes only the batches that change."""
        wanted = {(flag.batch_id, flag.drift.feature, flag.is_confirmed) for flag in flags}
        with self._transaction() as connection:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended('drift_flags', 0))"))
            held = {tuple(row) for row in connection.execute(_FLAGS, {"batches": list(batch_ids)})}
            changed = {batch_id for batch_id, _, _ in wanted ^ held}
            if not changed:
                return
            connection.execute(
                sa.text("DELETE FROM drift_flags WHERE batch_id = ANY(:batches)"), {"batches": list(changed)}
            )
            rows = [
                {"batch": batch_id, "feature": feature, "is_confirmed": is_confirmed}
                for batch_id, feature, is_confirmed in sorted(wanted)
                if batch_id in changed
            ]
            if rows:
                connection.execute(sa.text("INSERT INTO drift_flags VALUES (:batch, :feature, :is_confirmed)"), rows)
