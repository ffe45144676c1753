"""Comments on the columns of the views that analysts read, and on the figures of evaluations."""

from alembic import op

revision = "0019"
down_revision = "0015"
branch_labels = None
depends_on = None

_VIEWS = ("churn_predictions_current", "churn_predictions_latest", "churn_predictions_by_role")
_REASON = "One of the three largest contributions to the score: feature = value (contribution), in log-odds."
_OF_VIEWS = {
    "variant": "Key of the variant, such as base, geography-us or geography-eu.company-clientb.",
    "geography": "Geography of the variant, in lower case; null if it has none.",
    "company": "Company of the variant, in lower case; null if it has none.",
    "scored_week": "Monday of the scored week.",
    "account_id": "The account; the number of an input row if account_ids is row_number.",
    "churn_probability": "Probability, 0 to 1, that the account has no activity in the whole calendar months of the "
    "horizon (3 by default) after the month of as_of.",
    "last_active_month": "Newest month with a deposit, handle or revenue; null without any, or if it is unknown.",
    "is_at_risk": "Whether the account can still churn; null if that is unknown.",
    "reason_1": _REASON,
    "reason_2": _REASON,
    "reason_3": _REASON,
    "reasons": "Contribution of every feature to the score, the largest first, with the feature's value; null if "
    "reasons were not computed.",
    "bias": "Log-odds that every account of the batch starts from; with all contributions, the log-odds of the score.",
    "role": "champion, or challenger if the account is served the challenger's score.",
    "registered_model": "Registered model in MLflow that scored the account.",
    "model_version": "Version of the registered model that scored the account.",
    "scored_at": "When the batch was published.",
    "as_of": "Only what was known at the end of this day was used.",
    "newest_month": "Newest month in the data as known then; null of rows that came encoded.",
    "scored_from": "extract; of past weeks history, or corrected extract, which has what became known since.",
    "source": "Where the input was read: s3 or local.",
    "is_fallback": "Whether a local copy of the input was read in place of S3.",
    "fallback_reason": "Why a local copy of the input was read; null if none was.",
    "is_foreign_data": "Whether the base variant's input was scored, because this variant has none.",
    "source_uri": "The input file that was scored.",
    "source_modified_at": "When the input file was last modified.",
    "account_ids": "Where account_id is from: input or row_number.",
    "batch_id": "The batch in scoring_batches, which has its hashes, counts, code version and run ids.",
}
_OF_EVALUATIONS = {
    "evaluated_at": "When the batch was evaluated.",
    "labels_as_of": "Day by whose end the activity was known that the labels were built from.",
    "n_accounts": "Accounts scored in the batch.",
    "n_matured": "Accounts at risk whose label has matured; the figures are of these.",
    "n_churned": "Accounts with a matured label that churned.",
    "roc_auc": "Probability that an account that churned had a higher score than one that stayed.",
    "roc_auc_low": "Lower end of the 95 % confidence interval of roc_auc.",
    "roc_auc_high": "Upper end of the 95 % confidence interval of roc_auc.",
    "average_precision": "Area under the curve of precision and recall.",
    "log_loss": "Mean negative log-likelihood of the outcomes under the scores, in nats.",
    "brier_score": "Mean squared difference of score and outcome.",
    "calibration_error": "Mean difference of score and share that churned, over bins of the scores.",
    "lift_at_10": "Share that churned of the tenth of accounts with the highest scores, divided by the share of all.",
    "mean_score": "Mean churn probability of the accounts with a matured label.",
}


def _comment(relation: str, column: str, text: str | None) -> None:
    value = "NULL" if text is None else "'" + text.replace("'", "''").replace("%", "%%") + "'"
    op.get_bind().exec_driver_sql(f"COMMENT ON COLUMN {relation}.{column} IS {value}")


def _comment_all(*, drop: bool) -> None:
    for relation, texts in (*((view, _OF_VIEWS) for view in _VIEWS), ("evaluated_batches", _OF_EVALUATIONS)):
        for column, text in texts.items():
            _comment(relation, column, None if drop else text)


def upgrade() -> None:
    """Comment on the columns."""
    _comment_all(drop=False)


def downgrade() -> None:
    """Drop the comments."""
    _comment_all(drop=True)
