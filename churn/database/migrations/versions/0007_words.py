"""The field's words: evaluated batches for judged ones, status for verdict, source columns for parents. Rows stay."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_TABLES = """
ALTER TABLE judged_batches RENAME TO evaluated_batches;
ALTER TABLE evaluated_batches RENAME COLUMN judged_at TO evaluated_at;
ALTER TABLE evaluated_batches RENAME COLUMN verdict TO status;
ALTER TABLE judged_segments RENAME TO evaluated_segments;
ALTER TABLE evaluated_segments RENAME COLUMN verdict TO status;
ALTER TABLE scoring_batches RENAME COLUMN other_parents TO other_source_columns;
ALTER INDEX judged_batches_unlogged RENAME TO evaluated_batches_unlogged;
"""
_BACK = """
ALTER INDEX evaluated_batches_unlogged RENAME TO judged_batches_unlogged;
ALTER TABLE scoring_batches RENAME COLUMN other_source_columns TO other_parents;
ALTER TABLE evaluated_segments RENAME COLUMN status TO verdict;
ALTER TABLE evaluated_segments RENAME TO judged_segments;
ALTER TABLE evaluated_batches RENAME COLUMN status TO verdict;
ALTER TABLE evaluated_batches RENAME COLUMN evaluated_at TO judged_at;
ALTER TABLE evaluated_batches RENAME TO judged_batches;
"""
_COMMENTS = """
COMMENT ON COLUMN churn_predictions.other_contributions IS
    'Of the source columns without a column of their own, in the order of scoring_batches.{other}.';
COMMENT ON COLUMN {segments}.p_below_limit IS
    'Of a ROC AUC this low, were it really the batch''s limit ({batches}.auc_limit).';
"""
# Constraints and their indexes keep their old names through a renaming; messages show them.
_CONSTRAINTS = """
DO $$
DECLARE
    old record;
BEGIN
    FOR old IN
        SELECT conname, conrelid::regclass AS owner,
               replace(replace(conname, '{before}_', '{after}_'), '_{was}_', '_{is_now}_') AS renamed
        FROM pg_constraint
        WHERE conrelid IN ('{after}_batches'::regclass, '{after}_segments'::regclass)
          AND conname LIKE '{before}\\_%' AND contype <> 'n'
    LOOP
        EXECUTE format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I', old.owner, old.conname, old.renamed);
    END LOOP;
END $$;
"""
_BODY = """
SELECT pg_get_functiondef('churn_reasons(churn_predictions, scoring_batches)'::regprocedure)
"""


def _rename_in_reasons(before: str, after: str) -> None:
    """Replace a column's name in the body of ``churn_reasons``, which is text that a renaming does not reach."""
    definition = op.get_bind().exec_driver_sql(_BODY).scalar_one()
    op.get_bind().exec_driver_sql(definition.replace(before, after).replace("%", "%%"))


def upgrade() -> None:
    """Rename tables, columns and constraints; grants and rows stay with them."""
    for statements in (
        _TABLES,
        _CONSTRAINTS.format(before="judged", after="evaluated", was="verdict", is_now="status"),
        _COMMENTS.format(other="other_source_columns", segments="evaluated_segments", batches="evaluated_batches"),
    ):
        op.get_bind().exec_driver_sql(statements.replace("%", "%%"))
    _rename_in_reasons("batch.other_parents", "batch.other_source_columns")


def downgrade() -> None:
    """Give everything its old name back."""
    for statements in (
        _BACK,
        _CONSTRAINTS.format(before="evaluated", after="judged", was="status", is_now="verdict"),
        _COMMENTS.format(other="other_parents", segments="judged_segments", batches="judged_batches"),
    ):
        op.get_bind().exec_driver_sql(statements.replace("%", "%%"))
    _rename_in_reasons("batch.other_source_columns", "batch.other_parents")
