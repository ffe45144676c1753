"""Which judged batches MLflow has: asking MLflow itself costs a fleet's judging more than logging to it does."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. Batches judged before it came are logged once more, which changes nothing."""
    op.execute("ALTER TABLE judged_batches ADD COLUMN logged_at timestamptz")
    op.execute(
        "COMMENT ON COLUMN judged_batches.logged_at IS "
        "'When MLflow had taken the figures to the run of the model version; empty: it has not yet.'"
    )
    op.execute("CREATE INDEX judged_batches_unlogged ON judged_batches (labels_as_of) WHERE logged_at IS NULL")
    op.execute("GRANT UPDATE (logged_at) ON judged_batches TO churn_writer")


def downgrade() -> None:
    """Drop it, with its index and its grant."""
    op.execute("ALTER TABLE judged_batches DROP COLUMN logged_at")
