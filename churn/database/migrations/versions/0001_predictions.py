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
    churn_probability real NOT NULL CHECK (churn_probability >= 0 AND churn_probability <= 1)
) PARTITION BY LIST (scored_week);
-- A batch's rows lie together, so a few pages of ranges find them; a B-tree would cost more than the rows.
CREATE INDEX churn_predictions_batch ON churn_predictions USING brin (batch_id, account_id) WITH (pages_per_range = 16);

CREATE TABLE scoring_attempts (
    attempt_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    variant text NOT NULL,
    scored_week date NOT NULL,
    dagster_run_id text,
    outcome text NOT NULL CHECK (outcome IN ('published', 'failed')),
    batch_id bigint REFERENCES scoring_batches ON DELETE CASCADE,
    error_type text,
    error text,
    is_transient boolean,
    started_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL,
    CHECK ((outcome = 'published') = (batch_id IS NOT NULL)),
    CHECK ((outcome = 'failed') = (error IS NOT NULL))
);
CREATE INDEX scoring_attempts_week ON scoring_attempts (scored_week, variant);

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

# The writer may not create tables or indexes; these let it open a week and index one that is over, and nothing else.
_WEEKS = """
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
        EXECUTE format('GRANT SELECT, INSERT ON public.%I TO churn_writer', partition);
    END IF;
END $$;

CREATE FUNCTION index_closed_weeks(today date) RETURNS SETOF date
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    week date;
    partition text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('open_week', 0));
    FOR week IN SELECT DISTINCT scored_week FROM scoring_batches WHERE scored_week + 7 <= today ORDER BY 1 LOOP
        partition := 'churn_predictions_' || to_char(week, 'YYYYMMDD');
        IF to_regclass(format('public.%I', partition)) IS NOT NULL
           AND to_regclass(format('public.%I', partition || '_account')) IS NULL THEN
            EXECUTE format('CREATE INDEX %I ON public.%I (account_id)', partition || '_account', partition);
            RETURN NEXT week;
        END IF;
    END LOOP;
END $$;
REVOKE ALL ON FUNCTION open_week(date), index_closed_weeks(date) FROM PUBLIC;
"""

_GRANTS = """
GRANT EXECUTE ON FUNCTION open_week(date), index_closed_weeks(date) TO churn_writer;
GRANT SELECT, INSERT ON scoring_batches, scoring_attempts, churn_predictions, quarantined_rows TO churn_writer;
GRANT UPDATE (is_current) ON scoring_batches TO churn_writer;
GRANT USAGE ON SEQUENCE scoring_batches_batch_id_seq TO churn_writer;
GRANT SELECT ON scoring_batches, scoring_attempts, churn_predictions, quarantined_rows, churn_predictions_current
    TO churn_reader;
GRANT SELECT ON churn_predictions_current TO churn_writer;
"""


def upgrade() -> None:
    """Make the tables as the owner."""
    for statements in (_TABLES, _VIEW, _WEEKS, _GRANTS):
        op.get_bind().exec_driver_sql(statements.replace("%", "%%"))


def downgrade() -> None:
    """Drop all of it."""
    op.execute("DROP VIEW churn_predictions_current")
    op.execute("DROP FUNCTION open_week(date), index_closed_weeks(date)")
    op.execute("DROP TABLE quarantined_rows, scoring_attempts, churn_predictions, scoring_batches")
