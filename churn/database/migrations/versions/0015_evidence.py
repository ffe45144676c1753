"""Log-loss against its expectation, the rows of the newest whole month, and drift confirmed by another input."""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_COMMENTS = {
    "COLUMN evaluated_batches.log_loss_excess": "Log-loss less its expectation if the scores were calibrated "
    "probabilities; above 0 if they were too sure.",
    "COLUMN evaluated_batches.log_loss_excess_low": "Lower end of its 95 % confidence interval.",
    "COLUMN evaluated_batches.log_loss_excess_high": "Upper end of its 95 % confidence interval.",
    "COLUMN scoring_batches.n_rows_newest_month": "Rows of the newest whole month known at the as-of day, by which the "
    "volume is checked. Null of encoded rows.",
    "COLUMN drift_flags.is_confirmed": "Whether the feature drifted in the variant''s input before as well.",
}


def upgrade() -> None:
    """Add the columns; of batches evaluated or published before, they are not known."""
    op.execute(
        "ALTER TABLE evaluated_batches ADD COLUMN log_loss_excess double precision, "
        "ADD COLUMN log_loss_excess_low double precision, ADD COLUMN log_loss_excess_high double precision"
    )
    op.execute("ALTER TABLE scoring_batches ADD COLUMN n_rows_newest_month bigint")
    for name, text in _COMMENTS.items():
        op.execute(f"COMMENT ON {name} IS '{text}'")


def downgrade() -> None:
    """Drop the columns."""
    op.execute("ALTER TABLE scoring_batches DROP COLUMN n_rows_newest_month")
    op.execute(
        "ALTER TABLE evaluated_batches DROP COLUMN log_loss_excess, DROP COLUMN log_loss_excess_low, "
        "DROP COLUMN log_loss_excess_high"
    )
    op.execute(
        "COMMENT ON COLUMN drift_flags.is_confirmed IS 'Whether the feature drifted in the week before as well.'"
    )
