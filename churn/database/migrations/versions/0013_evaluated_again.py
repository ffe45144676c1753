"""Evaluations again after a repaired feed, with the earlier one beside, and from which day on they are evidence."""

from alembic import op

revision = "0013"
down_revision = "0017"
branch_labels = None
depends_on = None

_UPGRADE = """
CREATE TABLE replaced_evaluations (
    evaluation_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    batch_id bigint NOT NULL REFERENCES scoring_batches ON DELETE CASCADE,
    replaced_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    evaluation jsonb NOT NULL,
    segments jsonb NOT NULL
);
CREATE INDEX replaced_evaluations_batch ON replaced_evaluations (batch_id);
COMMENT ON TABLE replaced_evaluations IS
    'Evaluations in whose place the batch was evaluated again, because activity arrived that changed its labels.';
COMMENT ON COLUMN replaced_evaluations.evaluation IS 'The row that evaluated_batches had.';
COMMENT ON COLUMN replaced_evaluations.segments IS 'The rows that evaluated_segments had.';

ALTER TABLE evaluated_batches
    ADD COLUMN evidence_after date,
    ADD COLUMN replaces bigint REFERENCES replaced_evaluations ON DELETE SET NULL,
    ADD COLUMN replaces_because text;
COMMENT ON COLUMN evaluated_batches.evidence_after IS
    'The last day whose outcomes the model has seen: the evaluation counts if the batch is as of a later day. Null if '
    'unknown; it does not count then.';
COMMENT ON COLUMN evaluated_batches.replaces IS 'The earlier evaluation of the batch; null if there is none.';
COMMENT ON COLUMN evaluated_batches.replaces_because IS 'Why the batch was evaluated again; null if it was not.';

-- What the tags of a version say is unknown here, but it was registered before it scored.
UPDATE evaluated_batches AS e SET evidence_after = version.first_scored_on - 1
FROM scoring_batches AS b, (
    SELECT variant, model_version, min(published_at AT TIME ZONE 'UTC')::date AS first_scored_on
    FROM scoring_batches GROUP BY variant, model_version
) AS version
WHERE b.batch_id = e.batch_id AND version.variant = b.variant AND version.model_version = b.model_version;

-- The writer may not delete evaluations, but replace one that it has read.
CREATE FUNCTION archive_evaluation(of_batch bigint, of_labels_as_of date) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH segments AS (
        SELECT coalesce(jsonb_agg(to_jsonb(s)), '[]') AS rows FROM public.evaluated_segments AS s
        WHERE s.batch_id = of_batch
    ), evaluation AS (
        DELETE FROM public.evaluated_batches AS e WHERE e.batch_id = of_batch AND e.labels_as_of = of_labels_as_of
        RETURNING to_jsonb(e) AS row
    )
    INSERT INTO public.replaced_evaluations (batch_id, evaluation, segments)
    SELECT of_batch, evaluation.row, segments.rows FROM evaluation, segments RETURNING evaluation_id
$$;
REVOKE ALL ON FUNCTION archive_evaluation(bigint, date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION archive_evaluation(bigint, date) TO churn_writer;
GRANT SELECT ON replaced_evaluations TO churn_reader, churn_writer;
GRANT UPDATE (evidence_after) ON evaluated_batches TO churn_writer;
"""


def upgrade() -> None:
    """Add the table, the columns and the function; of earlier evaluations, the day is that before the first scoring."""
    op.get_bind().exec_driver_sql(_UPGRADE.replace("%", "%%"))


def downgrade() -> None:
    """Drop them; earlier evaluations of batches are lost."""
    op.execute("DROP FUNCTION archive_evaluation(bigint, date)")
    op.execute(
        "ALTER TABLE evaluated_batches DROP COLUMN evidence_after, DROP COLUMN replaces, DROP COLUMN replaces_because"
    )
    op.execute("DROP TABLE replaced_evaluations")
