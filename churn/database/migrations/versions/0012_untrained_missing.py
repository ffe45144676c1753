"""Values that are missing in a batch though they were never missing in the model's reference."""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; of batches published before, it is not known."""
    op.execute("ALTER TABLE scoring_batches ADD COLUMN untrained_missing jsonb")
    op.execute("""
        COMMENT ON COLUMN scoring_batches.untrained_missing IS
            'Accounts by feature whose value is missing, of the features that were never missing in the model''s '
            'reference; their scores follow branches that no training row took. Null without a reference.'
    """)


def downgrade() -> None:
    """Drop the column."""
    op.execute("ALTER TABLE scoring_batches DROP COLUMN untrained_missing")
