"""Features over several months: which of a source column's features is shown beside its contribution."""

from alembic import op

revision = "0009"
down_revision = "0007"
branch_labels = None
depends_on = None

_COLUMNS = """
ALTER TABLE scoring_batches ADD COLUMN window_features jsonb, ADD COLUMN n_short_windows integer NOT NULL DEFAULT 0;
ALTER TABLE churn_predictions ADD COLUMN shown_features bytea;
COMMENT ON COLUMN scoring_batches.window_features IS
    'Features of each source column with windows, and the place of its byte in churn_predictions.shown_features.';
COMMENT ON COLUMN scoring_batches.n_short_windows IS
    'Features over more months than the activity has; earlier months count as 0.';
COMMENT ON COLUMN churn_predictions.shown_features IS
    'A byte for each source column with windows: the index of the feature with the largest contribution, whose value '
    'is stored.';
"""

_SEPARATE = (
    "total_deposit", "total_handle", "total_ngr", "months_active", "brand_id", "ben_login_id", "player_reg_product",
)  # fmt: skip
_STORED = ", ".join(f"('{name}', prediction.{name}_contribution, prediction.{name}_value)" for name in _SEPARATE)

# The value belongs to the feature that the byte names. Its name is shown where it is not the source column itself.
_REASONS = f"""
CREATE OR REPLACE FUNCTION churn_reasons(prediction churn_predictions, batch scoring_batches) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_agg(
        jsonb_build_object('feature', feature, 'value', shown, 'contribution', contribution)
        || CASE WHEN name <> feature THEN jsonb_build_object('window', name) ELSE '{{}}' END
        ORDER BY abs(contribution) DESC, feature
    )
    FROM (
        SELECT feature, contribution, name,
               CASE WHEN value = 'NaN' THEN '(missing)'
                    WHEN name IS NULL AND batch.levels ? feature
                        THEN coalesce(batch.levels -> feature ->> value::integer, '(other)')
                    ELSE value::text END AS shown
        FROM (
            SELECT feature, contribution, value,
                   CASE WHEN batch.window_features ? feature
                        THEN batch.window_features -> feature -> 'features' ->> get_byte(
                            prediction.shown_features, (batch.window_features -> feature ->> 'place')::integer
                        ) END AS name
            FROM (
                VALUES {_STORED}
                UNION ALL
                SELECT * FROM unnest(
                    batch.other_source_columns, prediction.other_contributions, prediction.other_values
                )
            ) AS stored (feature, contribution, value)
            WHERE contribution IS NOT NULL
        ) AS named
    ) AS readable
$$;
"""  # noqa: S608 our own column names

_OLD_REASONS = f"""
CREATE OR REPLACE FUNCTION churn_reasons(prediction churn_predictions, batch scoring_batches) RETURNS jsonb
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
            VALUES {_STORED}
            UNION ALL
            SELECT * FROM unnest(batch.other_source_columns, prediction.other_contributions, prediction.other_values)
        ) AS stored (feature, contribution, value)
        WHERE contribution IS NOT NULL
    ) AS readable
$$;
"""  # noqa: S608 our own column names

_REASON = """
CREATE OR REPLACE FUNCTION churn_reason(prediction churn_predictions, batch scoring_batches, place integer) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT format(
        '%s = %s (%s)', {name}, reason ->> 'value',
        to_char((reason ->> 'contribution')::numeric, 'FMSG990.00')
    )
    FROM (SELECT public.churn_reasons(prediction, batch) -> (place - 1)) AS found (reason)
    WHERE reason IS NOT NULL
$$;
"""


def _execute(*statements: str) -> None:
    for statement in statements:
        op.get_bind().exec_driver_sql(statement.replace("%", "%%"))


def upgrade() -> None:
    """Add the columns; batches published before have no windows."""
    _execute(_COLUMNS, _REASONS, _REASON.format(name="coalesce(reason ->> 'window', reason ->> 'feature')"))


def downgrade() -> None:
    """Drop the columns."""
    _execute(_REASON.format(name="reason ->> 'feature'"), _OLD_REASONS)
    op.execute("ALTER TABLE scoring_batches DROP COLUMN window_features, DROP COLUMN n_short_windows")
    op.execute("ALTER TABLE churn_predictions DROP COLUMN shown_features")
