"""Variants that are watched until somebody acknowledges that one is gone, and a flag for batches of the sample."""

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

_UPGRADE = """
CREATE TABLE watched_variants (variant text PRIMARY KEY, since timestamptz NOT NULL, acknowledged_at timestamptz);
COMMENT ON TABLE watched_variants IS 'Variants seen in the registry or in a batch; monitoring reports those that left.';
COMMENT ON COLUMN watched_variants.since IS 'When monitoring first saw the variant, or saw it again.';
COMMENT ON COLUMN watched_variants.acknowledged_at IS 'When somebody acknowledged that it is gone; null if watched.';
GRANT SELECT ON watched_variants TO churn_reader;
GRANT SELECT, INSERT, UPDATE ON watched_variants TO churn_writer;
ALTER TABLE scoring_batches ADD COLUMN is_sample boolean NOT NULL
    GENERATED ALWAYS AS (position('/data/churn/X_test_sample_2.json' IN source_uri) > 0) STORED;
COMMENT ON COLUMN scoring_batches.is_sample IS 'Whether the encoded sample was scored, for want of any activity.';
"""


def upgrade() -> None:
    """Create the table, which monitoring fills, and the flag."""
    op.execute(_UPGRADE)


def downgrade() -> None:
    """Drop both."""
    op.execute("ALTER TABLE scoring_batches DROP COLUMN is_sample")
    op.execute("DROP TABLE watched_variants")
