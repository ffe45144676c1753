"""A reason for every prediction: contributions and values by the features' parents, and the view that reads them."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_PARENTS = (
    "total_deposit", "total_handle", "total_ngr", "months_active", "brand_id", "ben_login_id", "player_reg_product",
)  # fmt: skip
_PAIRS = [f"{parent}_{part}" for parent in _PARENTS for part in ("contribution", "value")]

_COLUMNS = f"""
ALTER TABLE scoring_batches
    ADD COLUMN scored_by text NOT NULL DEFAULT 'xgboost',
    ADD COLUMN bias double precision,
    ADD COLUMN other_parents text[],
    ADD COLUMN levels jsonb,
    ADD COLUMN importance jsonb;
ALTER TABLE churn_predictions
    {", ".join(f"ADD COLUMN {name} real" for name in _PAIRS)},
    ADD COLUMN other_contributions real[],
    ADD COLUMN other_values real[];
COMMENT ON COLUMN churn_predictions.total_deposit_contribution IS
    'Exact SHAP value in log-odds; null when the batch has no reasons or its model no such feature.';
COMMENT ON COLUMN churn_predictions.brand_id_value IS
    'The place of the level in scoring_batches.levels; one more than the last when the model does not know it.';
COMMENT ON COLUMN churn_predictions.other_contributions IS
    'Of the parents that have no column of their own, in the order of scoring_batches.other_parents.';
"""

# Immutable in effect, and only read what they are given; a reader runs them as itself.
_FUNCTIONS = f"""
CREATE FUNCTION churn_reasons(prediction churn_predictions, batch scoring_batches) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_agg(
        jsonb_build_object('feature', feature, 'value', shown, 'contribution', contribution)
        ORDER BY abs(contribution) DESC, feature
    )
    FROM (
        SELECT feature, contribution,
               CASE WHEN batch.levels ? feature THEN coalesce(batch.levels -> feature ->> value::integer, '(other)')
                    WHEN value = 'NaN' THEN '(missing)'
                    ELSE value::text END AS shown
        FROM (
            VALUES {", ".join(f"('{p}', prediction.{p}_contribution, prediction.{p}_value)" for p in _PARENTS)}
            UNION ALL
            SELECT * FROM unnest(batch.other_parents, prediction.other_contributions, prediction.other_values)
        ) AS stored (feature, contribution, value)
        WHERE contribution IS NOT NULL
    ) AS readable
$$;

CREATE FUNCTION churn_reason(prediction churn_predictions, batch scoring_batches, place integer) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT format(
        '%s = %s (%s)', reason ->> 'feature', reason ->> 'value',
        to_char((reason ->> 'contribution')::numeric, 'FMSG990.00')
    )
    FROM (SELECT public.churn_reasons(prediction, batch) -> (place - 1)) AS found (reason)
    WHERE reason IS NOT NULL
$$;
"""  # noqa: S608 our own column names

_OF_BATCH = """
       b.registered_model, b.model_version, b.published_at AS scored_at, b.as_of,
       b.source, b.fallback_reason IS NOT NULL AS is_fallback, b.fallback_reason,
       b.source_variant <> b.variant AS is_foreign_data, b.source_uri, b.source_modified_at,
       b.account_ids, p.batch_id
"""
_FROM = """
FROM churn_predictions AS p
JOIN scoring_batches AS b ON b.batch_id = p.batch_id AND b.scored_week = p.scored_week
WHERE b.is_current;
"""
_OLD_VIEW = f"""
CREATE VIEW churn_predictions_current AS
SELECT b.variant, b.geography, b.company, p.scored_week, p.account_id, p.churn_probability, {_OF_BATCH} {_FROM}
"""
_VIEW = f"""
CREATE VIEW churn_predictions_current AS
SELECT b.variant, b.geography, b.company, p.scored_week, p.account_id, p.churn_probability,
       churn_reason(p, b, 1) AS reason_1, churn_reason(p, b, 2) AS reason_2, churn_reason(p, b, 3) AS reason_3,
       churn_reasons(p, b) AS reasons, b.bias, {_OF_BATCH} {_FROM}
"""
_GRANTS = """
GRANT SELECT ON churn_predictions_current TO churn_reader, churn_writer;
"""


def upgrade() -> None:
    """Add the columns; batches published before have none of it."""
    for statements in ("DROP VIEW churn_predictions_current", _COLUMNS, _FUNCTIONS, _VIEW, _GRANTS):
        op.get_bind().exec_driver_sql(statements.replace("%", "%%"))


def downgrade() -> None:
    """Drop the reasons."""
    batch = ("scored_by", "bias", "other_parents", "levels", "importance")
    rows = (*_PAIRS, "other_contributions", "other_values")
    op.execute("DROP VIEW churn_predictions_current")
    op.execute("DROP FUNCTION churn_reason(churn_predictions, scoring_batches, integer)")
    op.execute("DROP FUNCTION churn_reasons(churn_predictions, scoring_batches)")
    op.execute(f"ALTER TABLE scoring_batches {', '.join(f'DROP COLUMN {name}' for name in batch)}")
    op.execute(f"ALTER TABLE churn_predictions {', '.join(f'DROP COLUMN {name}' for name in rows)}")
    op.execute(_OLD_VIEW)
    op.execute(_GRANTS)
