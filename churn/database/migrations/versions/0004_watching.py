"""Watching: what batches looked like, what drifted, performance by segment, incidents, and alerts on their way."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_BATCHES = """
ALTER TABLE scoring_batches
    ADD COLUMN mean_probability double precision,
    ADD COLUMN score_counts bigint[],
    ADD COLUMN profile_counts bigint[],
    ADD COLUMN estimated_auc double precision;
COMMENT ON COLUMN scoring_batches.score_counts IS 'Accounts in each twentieth of [0, 1].';
COMMENT ON COLUMN scoring_batches.profile_counts IS
    'Rows in the bins of the model''s reference, as model_references.profile has them; null without a reference.';
COMMENT ON COLUMN scoring_batches.estimated_auc IS
    'Estimated before labels from the scores alone: assumes calibrated scores and no concept drift.';

CREATE TABLE model_references (
    registered_model text NOT NULL,
    model_version integer NOT NULL,
    profile jsonb NOT NULL,
    PRIMARY KEY (registered_model, model_version)
);
COMMENT ON TABLE model_references IS 'What batches are compared with: the bins of each feature and the rows in them.';

CREATE TABLE drift_flags (
    batch_id bigint NOT NULL REFERENCES scoring_batches ON DELETE CASCADE,
    feature text NOT NULL,
    is_confirmed boolean NOT NULL,
    PRIMARY KEY (batch_id, feature)
);
COMMENT ON TABLE drift_flags IS
    'What drifted in a week, false discoveries controlled over the fleet; confirmed where it did the week before, too.';
"""

_PERFORMANCE = """
ALTER TABLE judged_batches ADD COLUMN reliability jsonb;
COMMENT ON COLUMN judged_batches.reliability IS
    'Bins of about as many accounts each: {"n": […], "mean_score": […], "churned_share": […]}; null when insufficient.';

CREATE TABLE judged_segments (
    batch_id bigint NOT NULL REFERENCES judged_batches ON DELETE CASCADE,
    segment text NOT NULL,
    level text NOT NULL,
    n_matured bigint NOT NULL,
    n_churned bigint NOT NULL,
    verdict text NOT NULL CHECK (verdict IN ('ok', 'insufficient')),
    roc_auc double precision,
    roc_auc_low double precision,
    roc_auc_high double precision,
    brier_score double precision,
    calibration_error double precision,
    mean_score double precision,
    p_below_limit double precision,
    PRIMARY KEY (batch_id, segment, level),
    CHECK ((verdict = 'ok') = (roc_auc IS NOT NULL))
);
COMMENT ON COLUMN judged_segments.p_below_limit IS
    'Of a ROC AUC this low, were it really the batch''s limit (judged_batches.auc_limit).';
"""

_INCIDENTS = """
CREATE TABLE incidents (
    incident_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    subject text NOT NULL DEFAULT '',
    severity text NOT NULL CHECK (severity IN ('warning', 'error')),
    title text NOT NULL,
    members jsonb NOT NULL,
    opened_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    resolved_at timestamptz,
    CHECK (resolved_at >= opened_at)
);
CREATE UNIQUE INDEX incidents_open ON incidents (kind, subject) WHERE resolved_at IS NULL;
COMMENT ON COLUMN incidents.members IS 'Who is concerned now, variants or runs, each with a sentence.';

CREATE TABLE alerts (
    alert_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    incident_id bigint NOT NULL REFERENCES incidents ON DELETE CASCADE,
    event text NOT NULL CHECK (event IN ('opened', 'updated', 'resolved')),
    created_at timestamptz NOT NULL,
    title text NOT NULL,
    body text NOT NULL
);
CREATE INDEX alerts_incident ON alerts (incident_id);

CREATE TABLE alert_deliveries (
    alert_id bigint NOT NULL REFERENCES alerts ON DELETE CASCADE,
    receiver text NOT NULL,
    n_attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL,
    delivered_at timestamptz,
    last_error text,
    PRIMARY KEY (alert_id, receiver)
);
CREATE INDEX alert_deliveries_waiting ON alert_deliveries (next_attempt_at) WHERE delivered_at IS NULL;
COMMENT ON COLUMN alert_deliveries.receiver IS 'Its kind and a fingerprint of its URL, which holds secrets.';

GRANT SELECT, INSERT ON model_references, judged_segments, alerts TO churn_writer;
GRANT SELECT, INSERT, DELETE ON drift_flags TO churn_writer;
GRANT SELECT, INSERT, UPDATE ON incidents, alert_deliveries TO churn_writer;
GRANT SELECT ON model_references, drift_flags, judged_segments, incidents, alerts, alert_deliveries TO churn_reader;
"""


def upgrade() -> None:
    """Add the tables; batches published before have no picture of their scores."""
    for statements in (_BATCHES, _PERFORMANCE, _INCIDENTS):
        op.get_bind().exec_driver_sql(statements.replace("%", "%%"))


def downgrade() -> None:
    """Drop all of it."""
    op.execute("DROP TABLE alert_deliveries, alerts, incidents, judged_segments, drift_flags, model_references")
    op.execute("ALTER TABLE judged_batches DROP COLUMN reliability")
    op.execute(
        "ALTER TABLE scoring_batches DROP COLUMN mean_probability, DROP COLUMN score_counts, "
        "DROP COLUMN profile_counts, DROP COLUMN estimated_auc"
    )
