"""Renames tables and columns to the field's words, and describes them. Rows and grants are kept."""

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
# The names in these comments change with the tables.
_COMMENTS = """
COMMENT ON COLUMN churn_predictions.other_contributions IS
    'Contributions of the source columns without a column of their own, in the order of scoring_batches.{other}.';
COMMENT ON COLUMN {segments}.p_below_limit IS
    'p-value of a ROC AUC this low if the true one were {batches}.auc_limit.';
"""
# These hold before and after, so a downgrade leaves them.
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
    "TABLE erased_accounts": "Tombstones of erased accounts, whose rows are dropped on read: salted hashes, no ids.",
    "COLUMN drift_flags.is_confirmed": "Whether the feature drifted in the week before as well.",
    "COLUMN erased_accounts.variant": "The variant that the account was erased from; empty for all.",
    "COLUMN evaluated_batches.n_at_risk": "Scored accounts at risk at the as-of date; only these are evaluated.",
    "COLUMN evaluated_batches.n_missing": "Accounts at risk whose horizon has passed, but is not in the data.",
    "COLUMN evaluated_batches.status": "ok, or insufficient if too few labels matured: all measures are null then.",
    "COLUMN evaluated_batches.auc_limit": "Minimum ROC AUC of the model version; null if unknown.",
    "COLUMN evaluated_batches.logged_at": "When the figures were logged to MLflow; null before.",
    "COLUMN evaluated_segments.status": "ok, or insufficient if too few labels matured: all measures are null then.",
    "COLUMN incidents.members": "The affected variants or runs, each with a sentence.",
    "COLUMN alert_deliveries.receiver": "Kind and fingerprint of the receiver''s URL, which holds secrets.",
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
# A renaming keeps the names of constraints and their indexes, which error messages show.
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
    """Replace a column's name in the body of ``churn_reasons``, which a renaming does not change."""
    definition = op.get_bind().exec_driver_sql(_BODY).scalar_one()
    op.get_bind().exec_driver_sql(definition.replace(before, after).replace("%", "%%"))


def upgrade() -> None:
    """Rename tables, columns and constraints; grants and rows stay with them."""
    for statements in (
        _TABLES,
        _CONSTRAINTS.format(before="judged", after="evaluated", was="verdict", is_now="status"),
        _COMMENTS.format(other="other_source_columns", segments="evaluated_segments", batches="evaluated_batches"),
        "".join(f"COMMENT ON {name} IS '{text}';" for name, text in _DESCRIPTIONS.items()),
    ):
        op.get_bind().exec_driver_sql(statements.replace("%", "%%"))
    _rename_in_reasons("batch.other_parents", "batch.other_source_columns")


def downgrade() -> None:
    """Restore the old names."""
    for statements in (
        _BACK,
        _CONSTRAINTS.format(before="evaluated", after="judged", was="status", is_now="verdict"),
        _COMMENTS.format(other="other_parents", segments="judged_segments", batches="judged_batches"),
    ):
        op.get_bind().exec_driver_sql(statements.replace("%", "%%"))
    _rename_in_reasons("batch.other_source_columns", "batch.other_parents")
