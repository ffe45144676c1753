"""Features over several months: which of a source column's features is shown beside its contribution."""

from alembic import op

revision = "0009"
down_revision = "0007"
branch_labels = None
depends_on = None

# The views of 0010 read them.
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


def upgrade() -> None:
    """Add the columns; batches published before have no windows."""
    op.get_bind().exec_driver_sql(_COLUMNS)


def downgrade() -> None:
    """Drop the columns."""
    op.execute("ALTER TABLE scoring_batches DROP COLUMN window_features, DROP COLUMN n_short_windows")
    op.execute("ALTER TABLE churn_predictions DROP COLUMN shown_features")
