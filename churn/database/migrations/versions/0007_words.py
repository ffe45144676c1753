"""Renames tables and columns to the field's words, and describes them. Rows and grants stay."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# In the order of an upgrade; the names before and after it.
_RENAMINGS = (
    ("ALTER TABLE {} RENAME TO {}", "judged_batches", "evaluated_batches"),
    ("ALTER TABLE evaluated_batches RENAME COLUMN {} TO {}", "judged_at", "evaluated_at"),
    ("ALTER TABLE evaluated_batches RENAME COLUMN {} TO {}", "verdict", "status"),
    ("ALTER TABLE {} RENAME TO {}", "judged_segments", "evaluated_segments"),
    ("ALTER TABLE evaluated_segments RENAME COLUMN {} TO {}", "verdict", "status"),
    ("ALTER TABLE scoring_batches RENAME COLUMN {} TO {}", "other_parents", "other_source_columns"),
    ("ALTER INDEX {} RENAME TO {}", "judged_batches_unlogged", "evaluated_batches_unlogged"),
)
# The names in these comments change with the tables.
_COMMENTS = """
COMMENT ON COLUMN churn_predictions.other_contributions IS
    'Contributions of the source columns without separate columns, in the order of scoring_batches.{other}.';
COMMENT ON COLUMN {after}_segments.p_below_limit IS
    'p-value of a ROC AUC this low if the true one were {after}_batches.auc_limit.';
"""
# Valid before and after, so a downgrade leaves them.
_DESCRIPTIONS = {
    "VIEW churn_predictions_current": "One row for each variant, week and account: the score to use.",
    "VIEW churn_predictions_by_role": "One row for each role, variant, week and account.",
    "TABLE alert_deliveries": "The delivery of each alert to each receiver.",
    "TABLE alerts": "Alerts about incidents, each with its text.",
    "TABLE churn_predictions": "Scores and their reasons, partitioned by week. Only the rows of current batches count.",
    "TABLE evaluated_batches": "Realized performance of a batch, measured when its labels have matured.",
    "TABLE evaluated_segments": "Realized performance of a batch by segment, such as a state, product or source.",
    "TABLE incidents": "Problems of the fleet, one row for each kind and subject from opening to resolution.",
    "TABLE model_events": "Audit trail of the aliases champion, challenger and previous: who changed them, and why.",
    "TABLE quarantined_rows": "Input rows that were not scored because they break the data contract, with the rules.",
    "TABLE scoring_attempts": "Every attempt to score a variant''s week, published or failed.",
    "TABLE scoring_batches": "Every published batch with its model, input and code. One per week and role is current.",
    "TABLE model_references": "Reference counts of each feature and the score by bin, for each model version.",
    "TABLE drift_flags": "Features and scores that drifted; the false discovery rate is controlled over the fleet.",
    "TABLE erasure_salt": "The secret salt of the tombstones. With it, erased account ids can be found by trial.",
    "TABLE erased_accounts": "Tombstones of erased accounts: salted hashes, no ids. Their rows are dropped on read.",
    "COLUMN drift_flags.is_confirmed": "Whether the feature drifted in the week before as well.",
    "COLUMN erased_accounts.variant": "The variant that the account was erased from; empty for all.",
    "COLUMN evaluated_batches.n_at_risk": "Scored accounts at risk at the as-of date; only these are evaluated.",
    "COLUMN evaluated_batches.n_missing": "Accounts at risk whose horizon has passed, but is not in the data.",
    "COLUMN evaluated_batches.status": "ok, or insufficient if too few labels matured: all measures are null then.",
    "COLUMN evaluated_batches.auc_limit": "Minimum ROC AUC of the model version; null if unknown.",
    "COLUMN evaluated_batches.logged_at": "When the figures were logged to MLflow; null before.",
    "COLUMN evaluated_segments.status": "ok, or insufficient if too few labels matured: all measures are null then.",
    "COLUMN incidents.members": "The affected variants or runs, each with a sentence.",
    "COLUMN alert_deliveries.receiver": "Kind and fingerprint of the receiver''s URL, which contains secrets.",
    "COLUMN churn_predictions.brand_id_value": "Index of the level in scoring_batches.levels; past the end if unknown.",
    "COLUMN scoring_batches.ab_share": "Accounts per 10,000 served the challenger''s score; 0 without a test.",
    "COLUMN scoring_batches.ab_salt": "Salt of the hash that assigns accounts to the challenger.",
    "COLUMN scoring_batches.drift": "Differences from the model''s reference, by feature; null without a reference.",
    "COLUMN scoring_batches.n_rows_erased": "Rows dropped on read, since their account was erased.",
    "FUNCTION churn_is_assigned": "Whether an account is served the challenger''s score.",
    "FUNCTION churn_reason": "The reason at a place, 1 being the largest, as text.",
    "FUNCTION churn_reasons": "All reasons of a prediction, the largest first.",
    "FUNCTION drop_weeks": "Drops all weeks before a day (retention).",
    "FUNCTION erase_account": "Erases an account and blocks it from later batches.",
    "FUNCTION index_closed_weeks": "Indexes by account the partitions of weeks that are over.",
    "FUNCTION open_week": "Creates the partition of a week if it is missing.",
}
_CONSTRAINTS = """
SELECT conrelid::regclass, conname FROM pg_constraint
WHERE conrelid IN ('{after}_batches'::regclass, '{after}_segments'::regclass) AND conname LIKE '{before}#_%%' ESCAPE '#'
  AND contype <> 'n'
"""
_BODY = "SELECT pg_get_functiondef('churn_reasons(churn_predictions, scoring_batches)'::regprocedure)"


def _rename(**names: str) -> None:
    """Rename the constraints, and the column in two comments and in the body of ``churn_reasons``."""
    # Error messages show the names of constraints, which are not renamed with their tables and columns.
    for table, old in op.get_bind().exec_driver_sql(_CONSTRAINTS.format(**names)).all():
        new = old.replace("{before}_".format(**names), "{after}_".format(**names))
        new = new.replace("_{was}_".format(**names), "_{is_now}_".format(**names))
        _execute(f"ALTER TABLE {table} RENAME CONSTRAINT {old} TO {new}")
    _execute(_COMMENTS.format(**names))
    definition = op.get_bind().exec_driver_sql(_BODY).scalar_one()
    _execute(definition.replace("batch.{was_other}".format(**names), "batch.{other}".format(**names)))


def _execute(statement: str) -> None:
    op.get_bind().exec_driver_sql(statement.replace("%", "%%"))


def upgrade() -> None:
    """Rename tables, columns and constraints; grants and rows stay with them."""
    for statement, before, after in _RENAMINGS:
        _execute(statement.format(before, after))
    other = {"was_other": "other_parents", "other": "other_source_columns"}
    _rename(before="judged", after="evaluated", was="verdict", is_now="status", **other)
    for name, text in _DESCRIPTIONS.items():
        _execute(f"COMMENT ON {name} IS '{text}'")


def downgrade() -> None:
    """Restore the old names."""
    for statement, before, after in reversed(_RENAMINGS):
        _execute(statement.format(after, before))
    other = {"was_other": "other_source_columns", "other": "other_parents"}
    _rename(before="evaluated", after="judged", was="status", is_now="verdict", **other)
