"""Who is at risk, what a past week was scored from, and views that compute a row's reasons once."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_COLUMNS = """
ALTER TABLE churn_predictions ADD COLUMN last_active_month date;
COMMENT ON COLUMN churn_predictions.last_active_month IS
    'Newest month with activity known at the as-of day; -infinity without any; null if unknown, as of encoded rows.';
ALTER TABLE scoring_batches
    ADD COLUMN horizon_months integer CHECK (horizon_months >= 1),
    ADD COLUMN first_month date,
    ADD COLUMN newest_month date,
    ADD COLUMN n_at_risk bigint,
    ADD COLUMN scored_from text NOT NULL DEFAULT 'extract'
        CHECK (scored_from IN ('extract', 'history', 'corrected extract'));
ALTER TABLE scoring_batches
    -- The rule of churn.weeks.at_risk_since.
    ADD COLUMN at_risk_since date GENERATED ALWAYS AS (
        CASE WHEN newest_month >= date_trunc('month', as_of::timestamp) - make_interval(months => horizon_months)
             THEN (date_trunc('month', as_of::timestamp) - make_interval(months => horizon_months))::date END
    ) STORED;
COMMENT ON COLUMN scoring_batches.horizon_months IS 'Horizon by which accounts are at risk, in months.';
COMMENT ON COLUMN scoring_batches.first_month IS 'First month known at the as-of day; null of encoded rows.';
COMMENT ON COLUMN scoring_batches.newest_month IS 'Newest month known at the as-of day; null of encoded rows.';
COMMENT ON COLUMN scoring_batches.scored_from IS
    'extract: the newest one when the week was scored; history: what was known at the as-of day; '
    'corrected extract: a later one, with what became known since.';
COMMENT ON COLUMN scoring_batches.n_at_risk IS 'Scored accounts at risk; null if unknown.';
COMMENT ON COLUMN scoring_batches.at_risk_since IS
    'First month in which activity puts an account at risk; null if no month that new is known.';
COMMENT ON COLUMN scoring_batches.mean_probability IS
    'Mean score of the accounts at risk, or of all accounts if it is unknown who is at risk.';
COMMENT ON COLUMN scoring_batches.score_counts IS
    'Accounts at risk in each twentieth of [0, 1]; all accounts if it is unknown who is at risk.';
COMMENT ON COLUMN scoring_batches.importance IS
    'Mean absolute contribution by source column, in log-odds, over the accounts that mean_probability is of.';
COMMENT ON COLUMN scoring_batches.estimated_auc IS
    'Estimated from the scores of the accounts at risk before labels mature; assumes no concept drift. Null if the '
    'scores are not calibrated.';
"""
_SEPARATE = (
    "total_deposit", "total_handle", "total_ngr", "months_active", "brand_id", "ben_login_id", "player_reg_product",
)  # fmt: skip
_STORED = ", ".join(f"('{name}', p.{name}_contribution, p.{name}_value)" for name in _SEPARATE)

# An aggregate is one row, so that a query without reasons leaves the join out, and one with several sorts them once.
_REASONS = f"""
    SELECT jsonb_agg(reason) AS reasons
    FROM (
        SELECT CASE WHEN name <> feature
                    THEN jsonb_build_object(
                        'feature', feature, 'value', shown, 'contribution', contribution, 'window', name
                    )
                    ELSE jsonb_build_object('feature', feature, 'value', shown, 'contribution', contribution)
               END AS reason
        FROM (
            SELECT feature, contribution, name,
                   CASE WHEN value = 'NaN' THEN '(missing)'
                        WHEN name IS NULL AND b.levels ? feature
                            THEN coalesce(b.levels -> feature ->> value::integer, '(other)')
                        ELSE value::text END AS shown
            FROM (
                SELECT feature, contribution, value,
                       CASE WHEN b.window_features ? feature
                            THEN b.window_features -> feature -> 'features' ->> get_byte(
                                p.shown_features, (b.window_features -> feature ->> 'place')::integer
                            ) END AS name
                FROM (
                    VALUES {_STORED}
                    UNION ALL
                    SELECT * FROM unnest(b.other_source_columns, p.other_contributions, p.other_values)
                ) AS stored (feature, contribution, value)
                WHERE contribution IS NOT NULL
            ) AS named
        ) AS readable
        ORDER BY abs(contribution) DESC, feature
    ) AS sorted
"""  # noqa: S608 our own column names


def _text(place: int) -> str:
    reason = f"(r.reasons -> {place})"
    return f"""CASE WHEN {reason} IS NOT NULL THEN format(
           '%s = %s (%s)', coalesce({reason} ->> 'window', {reason} ->> 'feature'), {reason} ->> 'value',
           to_char(({reason} ->> 'contribution')::numeric, 'FMSG990.00')
       ) END AS reason_{place + 1}"""


_BY_ROLE = f"""
SELECT b.variant, b.geography, b.company, p.scored_week, p.account_id, p.churn_probability,
       nullif(p.last_active_month, '-infinity') AS last_active_month,
       p.last_active_month >= b.at_risk_since AS is_at_risk,
       {_text(0)}, {_text(1)}, {_text(2)},
       r.reasons, b.bias, b.role,
       b.registered_model, b.model_version, b.published_at AS scored_at, b.as_of, b.newest_month,
       b.scored_from, b.source, b.fallback_reason IS NOT NULL AS is_fallback, b.fallback_reason,
       b.source_variant <> b.variant AS is_foreign_data, b.source_uri, b.source_modified_at,
       b.account_ids, p.batch_id
FROM churn_predictions AS p
JOIN scoring_batches AS b ON b.batch_id = p.batch_id AND b.scored_week = p.scored_week
LEFT JOIN LATERAL ({_REASONS}) AS r ON true
WHERE b.is_current
"""  # noqa: S608 our own column names
_SERVED = """
    -- One row an account: the champion's, or the challenger's where it is served to this account.
    AND (b.role = 'champion' OR b.ab_share > 0)
    AND (b.role = 'champion') <> (b.ab_share > 0 AND churn_is_assigned(p.account_id, b.ab_salt, b.ab_share))
"""
_LATEST = """
    AND p.scored_week = (
        SELECT max(n.scored_week) FROM scoring_batches AS n WHERE n.variant = b.variant AND n.is_current
    )
"""
_VIEWS = f"""
CREATE VIEW churn_predictions_by_role AS {_BY_ROLE};
CREATE VIEW churn_predictions_current AS {_BY_ROLE} {_SERVED};
CREATE VIEW churn_predictions_latest AS {_BY_ROLE} {_SERVED} {_LATEST};
COMMENT ON VIEW churn_predictions_by_role IS 'One row for each role, variant, week and account.';
COMMENT ON VIEW churn_predictions_current IS 'One row for each variant, week and account: the score to use.';
COMMENT ON VIEW churn_predictions_latest IS 'The rows of churn_predictions_current of each variant''s newest week.';
GRANT SELECT ON churn_predictions_current, churn_predictions_by_role, churn_predictions_latest
    TO churn_reader, churn_writer;
"""


_OLD_BY_ROLE = """
SELECT b.variant, b.geography, b.company, p.scored_week, p.account_id, p.churn_probability,
       churn_reason(p, b, 1) AS reason_1, churn_reason(p, b, 2) AS reason_2, churn_reason(p, b, 3) AS reason_3,
       churn_reasons(p, b) AS reasons, b.bias, b.role,
       b.registered_model, b.model_version, b.published_at AS scored_at, b.as_of,
       b.source, b.fallback_reason IS NOT NULL AS is_fallback, b.fallback_reason,
       b.source_variant <> b.variant AS is_foreign_data, b.source_uri, b.source_modified_at,
       b.account_ids, p.batch_id
FROM churn_predictions AS p
JOIN scoring_batches AS b ON b.batch_id = p.batch_id AND b.scored_week = p.scored_week
WHERE b.is_current
"""
_OLD_VIEWS = f"""
CREATE VIEW churn_predictions_by_role AS {_OLD_BY_ROLE};
CREATE VIEW churn_predictions_current AS {_OLD_BY_ROLE} {_SERVED};
COMMENT ON VIEW churn_predictions_by_role IS 'One row for each role, variant, week and account.';
COMMENT ON VIEW churn_predictions_current IS 'One row for each variant, week and account: the score to use.';
GRANT SELECT ON churn_predictions_current, churn_predictions_by_role TO churn_reader, churn_writer;
"""


def _execute(*statements: str) -> None:
    for statement in statements:
        op.get_bind().exec_driver_sql(statement.replace("%", "%%"))


def upgrade() -> None:
    """Add the columns; of batches published before it is unknown who is at risk."""
    _execute(_COLUMNS, "DROP VIEW churn_predictions_current, churn_predictions_by_role", _VIEWS)


def downgrade() -> None:
    """Drop the columns; the functions of the old views are still there."""
    batch = ("at_risk_since", "horizon_months", "first_month", "newest_month", "n_at_risk", "scored_from")
    _execute(
        "DROP VIEW churn_predictions_latest, churn_predictions_current, churn_predictions_by_role",
        f"ALTER TABLE scoring_batches {', '.join(f'DROP COLUMN {name}' for name in batch)}",
        "ALTER TABLE churn_predictions DROP COLUMN last_active_month",
        _OLD_VIEWS,
    )
