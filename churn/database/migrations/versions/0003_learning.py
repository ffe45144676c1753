"""Champion and challenger: roles of batches, A/B assignment, judged batches, and the trail of who was champion when."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# The same as churn.evaluation.assignment.is_assigned, to the bit.
_ASSIGNED = """
CREATE FUNCTION churn_is_assigned(account_id bigint, salt text, share integer) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ('x' || substr(md5(salt || ':' || account_id::text), 1, 8))::bit(32)::bigint % 10000 < share
$$;
"""

_BATCHES = """
ALTER TABLE scoring_batches RENAME COLUMN model_alias TO role;
ALTER TABLE scoring_batches
    ADD CONSTRAINT scoring_batches_role_check CHECK (role IN ('champion', 'challenger')),
    ADD COLUMN ab_share integer NOT NULL DEFAULT 0 CHECK (ab_share BETWEEN 0 AND 10000),
    ADD COLUMN ab_salt text NOT NULL DEFAULT '',
    ADD COLUMN drift jsonb;
COMMENT ON COLUMN scoring_batches.drift IS
    'By feature, and churn_probability, how the batch differs from the reference of its model; null without one.';
COMMENT ON COLUMN scoring_batches.ab_share IS
    'Of 10000 accounts, how many were served the challenger''s score; 0 when it only scored beside the champion.';
DROP INDEX scoring_batches_current;
CREATE UNIQUE INDEX scoring_batches_current ON scoring_batches (variant, scored_week, role) WHERE is_current;
ALTER TABLE scoring_attempts
    ADD COLUMN role text NOT NULL DEFAULT 'champion' CHECK (role IN ('champion', 'challenger'));
GRANT UPDATE (ab_share, ab_salt) ON scoring_batches TO churn_writer;
"""

_TABLES = """
CREATE TABLE judged_batches (
    batch_id bigint PRIMARY KEY REFERENCES scoring_batches ON DELETE CASCADE,
    judged_at timestamptz NOT NULL,
    labels_as_of date NOT NULL,
    horizon_months integer NOT NULL,
    n_accounts bigint NOT NULL,
    n_at_risk bigint NOT NULL,
    n_matured bigint NOT NULL,
    n_missing bigint NOT NULL,
    n_churned bigint NOT NULL,
    verdict text NOT NULL CHECK (verdict IN ('ok', 'insufficient')),
    auc_limit double precision,
    roc_auc double precision,
    roc_auc_low double precision,
    roc_auc_high double precision,
    average_precision double precision,
    log_loss double precision,
    brier_score double precision,
    calibration_error double precision,
    lift_at_10 double precision,
    mean_score double precision,
    CHECK ((verdict = 'ok') = (roc_auc IS NOT NULL))
);

CREATE TABLE model_events (
    event_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    occurred_at timestamptz NOT NULL,
    variant text NOT NULL,
    registered_model text NOT NULL,
    action text NOT NULL CHECK (action IN ('observed', 'challenged', 'promoted', 'rolled_back', 'shared')),
    champion_version integer,
    previous_version integer,
    challenger_version integer,
    ab_share integer NOT NULL DEFAULT 0 CHECK (ab_share BETWEEN 0 AND 10000),
    is_forced boolean NOT NULL DEFAULT false,
    reason text NOT NULL,
    actor text NOT NULL,
    evidence jsonb NOT NULL DEFAULT '{}',
    CHECK (NOT is_forced OR reason <> '')
);
CREATE INDEX model_events_variant ON model_events (variant, occurred_at);

CREATE FUNCTION champion_on(of_variant text, day date) RETURNS integer
LANGUAGE sql STABLE AS $$
    SELECT champion_version FROM public.model_events
    WHERE variant = of_variant AND occurred_at < (day + 1)::timestamp AT TIME ZONE 'UTC'
    ORDER BY occurred_at DESC, event_id DESC LIMIT 1
$$;
COMMENT ON FUNCTION champion_on IS 'The version that was champion at the end of a day, UTC; null before any event.';

GRANT SELECT, INSERT ON judged_batches, model_events TO churn_writer;
GRANT SELECT ON judged_batches, model_events TO churn_reader;
"""

_COLUMNS = """
       b.variant, b.geography, b.company, p.scored_week, p.account_id, p.churn_probability,
       churn_reason(p, b, 1) AS reason_1, churn_reason(p, b, 2) AS reason_2, churn_reason(p, b, 3) AS reason_3,
       churn_reasons(p, b) AS reasons, b.bias,{role}
       b.registered_model, b.model_version, b.published_at AS scored_at, b.as_of,
       b.source, b.fallback_reason IS NOT NULL AS is_fallback, b.fallback_reason,
       b.source_variant <> b.variant AS is_foreign_data, b.source_uri, b.source_modified_at,
       b.account_ids, p.batch_id
FROM churn_predictions AS p
JOIN scoring_batches AS b ON b.batch_id = p.batch_id AND b.scored_week = p.scored_week
WHERE b.is_current
"""
_OLD_VIEW = f"CREATE VIEW churn_predictions_current AS SELECT {_COLUMNS.format(role='')}"
_WITH_ROLE = _COLUMNS.format(role=" b.role,")
_VIEWS = f"""
CREATE VIEW churn_predictions_by_role AS SELECT {_WITH_ROLE};
CREATE VIEW churn_predictions_current AS SELECT {_WITH_ROLE}
    -- One row an account: the champion's, or the challenger's where it is served to this account.
    AND (b.role = 'champion' OR b.ab_share > 0)
    AND (b.role = 'champion') <> (b.ab_share > 0 AND churn_is_assigned(p.account_id, b.ab_salt, b.ab_share));
GRANT SELECT ON churn_predictions_current, churn_predictions_by_role TO churn_reader, churn_writer;
"""


def upgrade() -> None:
    """Add roles; batches published before are the champion's."""
    for statements in (_ASSIGNED, "DROP VIEW churn_predictions_current", _BATCHES, _TABLES, _VIEWS):
        op.get_bind().exec_driver_sql(statements.replace("%", "%%"))


def downgrade() -> None:
    """Drop what came of challengers, and the trail."""
    op.execute("DROP VIEW churn_predictions_current, churn_predictions_by_role")
    op.execute("DROP FUNCTION champion_on(text, date)")
    op.execute("DROP TABLE model_events, judged_batches")
    op.execute("DELETE FROM churn_predictions USING scoring_batches AS b "
               "WHERE b.batch_id = churn_predictions.batch_id AND b.role = 'challenger'")  # fmt: skip
    op.execute("DELETE FROM scoring_batches WHERE role = 'challenger'")
    op.execute("DELETE FROM scoring_attempts WHERE role = 'challenger'")
    op.execute("DROP INDEX scoring_batches_current")
    op.execute("ALTER TABLE scoring_batches DROP CONSTRAINT scoring_batches_role_check")
    op.execute("ALTER TABLE scoring_batches DROP COLUMN ab_share, DROP COLUMN ab_salt, DROP COLUMN drift")
    op.execute("ALTER TABLE scoring_batches RENAME COLUMN role TO model_alias")
    op.execute("CREATE UNIQUE INDEX scoring_batches_current ON scoring_batches (variant, scored_week) WHERE is_current")
    op.execute("ALTER TABLE scoring_attempts DROP COLUMN role")
    op.execute("DROP FUNCTION churn_is_assigned(bigint, text, integer)")
    op.execute(_OLD_VIEW)
    op.execute("GRANT SELECT ON churn_predictions_current TO churn_reader, churn_writer")
