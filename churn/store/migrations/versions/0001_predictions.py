"""Batches, predictions, quarantine, and the view that analysts read."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TABLES = """
CREATE TABLE scoring_batches (
    batch_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    variant text NOT NULL,
    geography text,
    company text,
    scored_week date NOT NULL CHECK (extract(isodow FROM scored_week) = 1),
    as_of date NOT NULL,
    registered_model text NOT NULL,
    model_version integer NOT NULL,
    model_alias text NOT NULL,
    model_sha256 text NOT NULL,
    mlflow_run_id text NOT NULL,
    dagster_run_id text,
    code_version text NOT NULL,
    source text NOT NULL CHECK (source IN ('s3', 'local')),
    source_uri text NOT NULL,
    source_version text NOT NULL,
    source_sha256 text NOT NULL,
    source_modified_at timestamptz NOT NULL,
    source_variant text NOT NULL,
    fallback_reason text,
    account_ids text NOT NULL CHECK (account_ids IN ('input', 'row_number')),
    n_rows_read bigint NOT NULL,
    n_rows_quarantined bigint NOT NULL,
    n_accounts_withheld bigint NOT NULL,
    n_rows_scored bigint NOT NULL,
    unknown_levels jsonb NOT NULL,
    started_at timestamptz NOT NULL,
    published_at timestamptz NOT NULL,
    is_current boolean NOT NULL,
    CHECK ((source = 'local') = (fallback_reason IS NOT NULL))
);
CREATE UNIQUE INDEX scoring_batches_current ON scoring_batches (variant, scored_week) WHERE is_current;
CREATE INDEX scoring_batches_dagster_run ON scoring_batches (dagster_run_id);

CREATE TABLE churn_predictions (
    scored_week date NOT NULL,
    batch_id bigint NOT NULL,
    account_id bigint NOT NULL,
    churn_probability real NOT NULL CHECK (churn_probability >= 0 AND churn_probability <= 1),
    PRIMARY KEY (batch_id, account_id, scored_week)
) PARTITION BY LIST (scored_week);
CREATE INDEX churn_predictions_account ON churn_predictions (account_id);

CREATE TABLE quarantined_rows (
    batch_id bigint NOT NULL REFERENCES scoring_batches ON DELETE CASCADE,
    row_number bigint NOT NULL,
    account_id bigint,
    rules text[] NOT NULL,
    row jsonb NOT NULL,
    PRIMARY KEY (batch_id, row_number)
);
CREATE INDEX quarantined_rows_account ON quarantined_rows (account_id);
"""

_VIEW = """
CREATE VIEW churn_predictions_current AS
SELECT b.variant, b.geography, b.company, p.scored_week, p.account_id, p.churn_probability,
       b.registered_model, b.model_version, b.published_at AS scored_at, b.as_of,
       b.source, b.fallback_reason IS NOT NULL AS is_fallback, b.fallback_reason,
       b.source_variant <> b.variant AS is_foreign_data, b.source_uri, b.source_modified_at,
       b.account_ids, p.batch_id
FROM churn_predictions AS p
JOIN scoring_batches AS b ON b.batch_id = p.batch_id AND b.scored_week = p.scored_week
WHERE b.is_current;
"""

# The writer may not create tables; this lets it open a week, and nothing else.
_OPEN_WEEK = """
CREATE FUNCTION open_week(week date) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    partition text := 'churn_predictions_' || to_char(week, 'YYYYMMDD');
BEGIN
    IF extract(isodow FROM week) <> 1 THEN
        RAISE EXCEPTION 'week % does not begin on a Monday', week;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('open_week', 0));
    IF to_regclass(format('public.%I', partition)) IS NULL THEN
        EXECUTE format('CREATE TABLE public.%I PARTITION OF churn_predictions FOR VALUES IN (%L)', partition, week);
    END IF;
END $$;
REVOKE ALL ON FUNCTION open_week(date) FROM PUBLIC;
"""

_GRANTS = """
GRANT EXECUTE ON FUNCTION open_week(date) TO churn_writer;
GRANT SELECT, INSERT ON scoring_batches, churn_predictions, quarantined_rows TO churn_writer;
GRANT UPDATE (is_current) ON scoring_batches TO churn_writer;
GRANT SELECT ON scoring_batches, churn_predictions, quarantined_rows, churn_predictions_current TO churn_reader;
GRANT SELECT ON churn_predictions_current TO churn_writer;
"""


def upgrade() -> None:
    """Make the tables as the owner."""
    for statements in (_TABLES, _VIEW, _OPEN_WEEK, _GRANTS):
        op.get_bind().exec_driver_sql(statements.replace("%", "%%"))


def downgrade() -> None:
    """Drop all of it."""
    op.execute("DROP VIEW churn_predictions_current")
    op.execute("DROP FUNCTION open_week(date)")
    op.execute("DROP TABLE quarantined_rows, churn_predictions, scoring_batches")
