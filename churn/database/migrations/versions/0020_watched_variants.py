"""Variants that are watched: one that leaves the registry is missing until somebody acknowledges that it is gone."""

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
"""


def upgrade() -> None:
    """Create the table; monitoring fills it."""
    op.execute(_UPGRADE)


def downgrade() -> None:
    """Drop the table."""
    op.execute("DROP TABLE watched_variants")
