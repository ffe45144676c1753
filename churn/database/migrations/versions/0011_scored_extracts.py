"""Extracts that were scored: by which version they can be read again, and whether the activity history has them."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; of batches published before, nothing is ingested."""
    op.execute("""
        ALTER TABLE scoring_batches
            ADD COLUMN source_version_id text,
            ADD COLUMN history_status text CHECK (history_status IN ('pending', 'ingested', 'gone', 'rejected'))
    """)
    op.execute("COMMENT ON COLUMN scoring_batches.source_version_id IS 'S3 version; null if the bucket keeps none.'")
    op.execute("""
        COMMENT ON COLUMN scoring_batches.history_status IS
            'Whether the activity history has the extract: pending until the next night; gone if it was replaced '
            'before, so that what was known then is unknown; rejected if it breaks the contract. Null where nothing '
            'is ingested: encoded rows, another variant''s data, a copy in place of S3, the history itself.'
    """)
    op.execute("""
        CREATE INDEX scoring_batches_pending ON scoring_batches (variant, source_sha256)
            WHERE history_status = 'pending'
    """)
    op.execute("GRANT UPDATE (history_status) ON scoring_batches TO churn_writer")


def downgrade() -> None:
    """Drop the columns with their index and grant."""
    op.execute("ALTER TABLE scoring_batches DROP COLUMN source_version_id, DROP COLUMN history_status")
