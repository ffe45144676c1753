"""Reads the state of the whole fleet in a few statements, whatever the number of variants, and writes its drift flags.

:mod:`churn.monitoring.conditions` interprets the records.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa

from churn.database.connection import Tables, lock
from churn.evaluation.metrics import Interval
from churn.monitoring import conditions

_NEWEST_INPUTS = (
    "WITH inputs AS (SELECT DISTINCT ON (variant, model_version, source_sha256) batch_id, variant, scored_week "
    "FROM scoring_batches WHERE is_current AND role = 'champion' AND scored_week BETWEEN :since AND :week "
    "ORDER BY variant, model_version, source_sha256, scored_week DESC), "
    "ranked AS (SELECT batch_id, row_number() OVER (PARTITION BY variant ORDER BY scored_week DESC) AS place "
    "FROM inputs) "
    "SELECT batch_id, variant, scored_week AS week, model_version, n_rows_read AS n_rows, source_variant AS data_of, "
    "fallback_reason, drift::text AS drifts, as_of, newest_month, source_sha256, n_rows_newest_month AS n_newest "
    "FROM scoring_batches JOIN ranked USING (batch_id) WHERE place <= 2"
)
_ATTEMPTS = (
    "SELECT DISTINCT ON (variant, role) attempt_id, variant, scored_week, role, ended_at, left(error, 1000) AS error, "
    "is_transient IS TRUE AS is_transient, "
    "count(error) OVER (PARTITION BY variant, role, scored_week) AS n_failed FROM scoring_attempts "
    "WHERE scored_week >= :since "
    "ORDER BY variant, role, scored_week DESC, attempt_id DESC"
)
_HISTORIES = (
    "SELECT variant, array_agg(scored_week ORDER BY scored_week) AS weeks, "
    "array_agg(n_rows_read ORDER BY scored_week) AS n_rows, "
    "array_agg(LEAST(newest_month, (date_trunc('month', as_of) - interval '1 month')::date) ORDER BY scored_week) "
    "FILTER (WHERE n_rows_newest_month IS NOT NULL) AS months, array_agg(n_rows_newest_month ORDER BY scored_week) "
    "FILTER (WHERE n_rows_newest_month IS NOT NULL) AS n_newest FROM scoring_batches "
    "WHERE is_current AND role = 'champion' AND scored_week >= :since "
    "AND (:of_all OR variant = ANY(:variants)) GROUP BY variant"
)
_ARRIVALS = (
    "SELECT variant, array_agg(source_sha256) AS digests, array_agg(arrived_on) AS days FROM ("
    "SELECT variant, source_sha256, min(source_modified_at)::date AS arrived_on FROM scoring_batches "
    "WHERE role = 'champion' AND scored_week >= :since AND fallback_reason IS NULL AND source_variant = variant "
    "AND scored_from <> 'history' "
    "AND (:of_all OR variant = ANY(:variants)) GROUP BY variant, source_sha256) AS inputs GROUP BY variant"
)
_EVALUATED = (
    "SELECT DISTINCT ON (b.variant, b.model_version, date_trunc('month', b.as_of)) batch_id, b.variant, "
    "b.scored_week AS week, b.model_version, ARRAY[e.roc_auc, e.roc_auc_low, e.roc_auc_high] AS roc_auc, "
    'e.auc_limit AS "limit", b.as_of, e.horizon_months, e.n_matured AS n, e.n_churned, e.mean_score, '
    "ARRAY[e.log_loss_excess, e.log_loss_excess_low, e.log_loss_excess_high] AS log_loss_excess, "
    "b.estimated_auc IS NOT NULL AS is_calibrated "
    "FROM evaluated_batches AS e JOIN scoring_batches AS b USING (batch_id) "
    "WHERE b.role = 'champion' AND e.status = 'ok' AND b.as_of > e.evidence_after AND e.auc_limit IS NOT NULL "
    "ORDER BY b.variant, b.model_version, date_trunc('month', b.as_of), b.scored_week DESC, batch_id DESC"
)
_SEGMENTS = (
    "SELECT b.variant, s.segment, s.level, s.roc_auc, e.auc_limit, s.p_below_limit "
    "FROM evaluated_segments AS s JOIN evaluated_batches AS e USING (batch_id) "
    "JOIN scoring_batches AS b USING (batch_id) "
    "WHERE s.batch_id = ANY(:batches) AND s.p_below_limit <= :at_most ORDER BY b.variant, s.p_below_limit"
)
_N_SEGMENTS = "SELECT count(p_below_limit) FROM evaluated_segments WHERE batch_id = ANY(:batches)"
_CATEGORIES = (
    "SELECT b.batch_id, array_agg(f->>'feature') FROM scoring_batches AS b "
    "JOIN model_references AS r USING (registered_model, model_version), jsonb_array_elements(r.profile->'features') f "
    "WHERE b.batch_id = ANY(:batches) AND f ? 'levels' GROUP BY b.batch_id"
)
_WATCH = (
    "INSERT INTO watched_variants (variant, since) SELECT unnest(CAST(:added AS text[])), :now "
    "ON CONFLICT (variant) DO UPDATE SET since = excluded.since, acknowledged_at = NULL"
)
_FLAGS = "SELECT batch_id, feature, is_confirmed FROM drift_flags WHERE batch_id = ANY(:batches)"


class FleetTables(Tables):
    """Queries over all variants at once, and the table ``drift_flags``, as the writer role."""

    pool_size = 1

    def newest_inputs(self, week: date) -> list[conditions.ScoredBatch]:
        """Return the champions' newest current batches until ``week`` of each variant's two newest inputs."""
        found = self._rows(_NEWEST_INPUTS, week=week, since=week - conditions.MEMORY)
        rows = (row._asdict() for row in found)
        return [conditions.ScoredBatch(**row | {"drifts": conditions.StoredDrifts(row["drifts"])}) for row in rows]

    def attempts(self, since: date) -> list[conditions.Attempt]:
        """Return the newest attempt of each variant and role at its newest week from ``since`` on."""
        return [conditions.Attempt(*row) for row in self._rows(_ATTEMPTS, since=since)]

    def histories(self, since: date, variants: Collection[str] | None = None) -> dict[str, conditions.History]:
        """Return each variant's row counts and inputs from ``since`` on; of all variants, or of those named."""
        values = {"since": since, "of_all": variants is None, "variants": list(variants or ())}
        inputs = {row.variant: dict(zip(row.digests, row.days, strict=True)) for row in self._rows(_ARRIVALS, **values)}
        return {
            row.variant: conditions.History(
                dict(zip(row.weeks, row.n_rows, strict=True)),
                inputs.get(row.variant, {}),
                dict(zip(row.months or (), row.n_newest or (), strict=True)),
            )
            for row in self._rows(_HISTORIES, **values)
        }

    def watch(self, registered: Collection[str], scored: Collection[str], now: datetime) -> dict[str, datetime]:
        """Watch variants, one acknowledged as gone once it is registered again; returns since when each is watched."""
        rows = self._rows("SELECT variant, since, acknowledged_at IS NULL FROM watched_variants")
        watched = {key: since for key, since, is_watched in rows if is_watched}
        if added := {*registered} - watched.keys() | {*scored}.difference(key for key, _, _ in rows):
            with self._transaction() as connection:
                connection.execute(sa.text(_WATCH), {"added": sorted(added), "now": now})
        return watched | dict.fromkeys(added, now)

    def evaluated(self) -> list[conditions.EvaluatedChampion]:
        """Return the newest batch of each month with enough labels and evidence, of each version that was champion."""
        return [_evaluated(row._asdict()) for row in self._rows(_EVALUATED)]

    def low_segments(self, batch_ids: Sequence[int], at_most: float) -> tuple[list[conditions.LowSegment], int]:
        """Return the segments with a p-value of at most ``at_most``, and the number of segments that have a p-value."""
        low = [conditions.LowSegment(*row) for row in self._rows(_SEGMENTS, batches=list(batch_ids), at_most=at_most)]
        ((n_evaluated,),) = self._rows(_N_SEGMENTS, batches=list(batch_ids))
        return low, n_evaluated

    def categories(self, batch_ids: Iterable[int]) -> dict[int, frozenset[str]]:
        """Return each batch's categorical features, by its model's reference profile."""
        rows = self._rows(_CATEGORIES, batches=sorted(set(batch_ids)))
        return {batch_id: frozenset(features) for batch_id, features in rows}

    def replace_flags(self, batch_ids: Collection[int], flags: Iterable[conditions.DriftFlag]) -> None:
        """Replace all flags of these batches by ``flags``. Idempotent; writes only the batches that change."""
        wanted = {(flag.batch_id, flag.drift.feature, flag.is_confirmed) for flag in flags}
        with self._transaction() as connection:
            lock(connection, "drift_flags")
            recorded = {tuple(row) for row in connection.execute(sa.text(_FLAGS), {"batches": list(batch_ids)})}
            changed = {batch_id for batch_id, _, _ in wanted ^ recorded}
            columns = ("batch_id", "feature", "is_confirmed")
            rows = [dict(zip(columns, flag, strict=True)) for flag in sorted(wanted) if flag[0] in changed]
            replace = sa.text("SELECT replace_flags(:batches, CAST(:flags AS jsonb))")
            connection.execute(replace, {"batches": list(changed), "flags": json.dumps(rows)})


def _evaluated(row: dict[str, Any]) -> conditions.EvaluatedChampion:
    excess = None if row["log_loss_excess"][0] is None else Interval(*row["log_loss_excess"])
    return conditions.EvaluatedChampion(**row | {"roc_auc": Interval(*row["roc_auc"]), "log_loss_excess": excess})
